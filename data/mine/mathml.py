"""MathML to LaTeX (paper 2.1: pages keep their formulas)."""

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from html import unescape


def read_pairs(text: str) -> dict[str, str]:
    """
    >>> read_pairs("a 1  b 2")
    {'a': '1', 'b': '2'}
    """
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


# ---- Tables ----------------------------------------------------------------------------------

# Unicode to LaTeX. A letter must not follow a command directly; `join` takes care of this.
SYMBOLS = read_pairs(
    r"""
    − -   ∗ *   ⋅ \cdot   · \cdot   × \times   ÷ \div   ± \pm   ∓ \mp   ≤ \le   ≥ \ge   ⩽ \le
    ⩾ \ge   ≪ \ll   ≫ \gg   ≠ \ne   ≈ \approx   ≡ \equiv   ∼ \sim   ≃ \simeq   ≅ \cong
    ∝ \propto   ≺ \prec   ≻ \succ   ∞ \infty   ∂ \partial   ∇ \nabla   √ \surd   ∑ \sum
    ∏ \prod   ∐ \coprod   ∫ \int   ∬ \iint   ∭ \iiint   ∮ \oint   ⋃ \bigcup   ⋂ \bigcap
    ⨁ \bigoplus   ⨂ \bigotimes   ⋁ \bigvee   ⋀ \bigwedge   ∈ \in   ∉ \notin   ∋ \ni   ⊂ \subset
    ⊆ \subseteq   ⊃ \supset   ⊇ \supseteq   ⊊ \subsetneq   ∪ \cup   ∩ \cap   ∖ \setminus
    ∅ \emptyset   ∀ \forall   ∃ \exists   ∄ \nexists   ¬ \neg   ∧ \wedge   ∨ \vee   ⊕ \oplus
    ⊗ \otimes   ∘ \circ   • \bullet   ⋆ \star   → \to   ← \leftarrow   ↔ \leftrightarrow
    ⟶ \longrightarrow   ⇒ \Rightarrow   ⇐ \Leftarrow   ⇔ \Leftrightarrow   ⟹ \implies   ⟺ \iff
    ↦ \mapsto   ↑ \uparrow   ↓ \downarrow   ⇌ \rightleftharpoons   ∥ \parallel   ⊥ \perp
    ∠ \angle   △ \triangle   □ \square   ∣ \mid   ∤ \nmid   ‖ \|   ⊢ \vdash   ⊨ \models
    ∴ \therefore   ∵ \because   … \ldots   ⋯ \cdots   ⋮ \vdots   ⋱ \ddots   ° ^\circ   ′ '
    ″ ''   ℓ \ell   ℏ \hbar   ℜ \Re   ℑ \Im   ℵ \aleph   ⟨ \langle   ⟩ \rangle   〈 \langle
    〉 \rangle   ⌊ \lfloor   ⌋ \rfloor   ⌈ \lceil   ⌉ \rceil   { \{   } \}   # \#   % \%   & \&
    $ \$   _ \_   \ \backslash   ϵ \epsilon   ϑ \vartheta   ϕ \phi   φ \varphi   ε \varepsilon
    ς \varsigma   ϖ \varpi   ϱ \varrho   ο o
"""
)
SYMBOLS |= dict.fromkeys("\u2061\u2062\u2063\u2064\u200b\ufeff", "") | {"\xa0": " "}

_GREEK = (
    "alpha beta gamma delta zeta eta theta iota kappa lamda mu nu xi pi rho sigma tau upsilon chi "
    "psi omega Gamma Delta Theta Lamda Xi Pi Sigma Upsilon Phi Psi Omega"
)
for _name in _GREEK.split():
    _case = "CAPITAL" if _name[0].isupper() else "SMALL"
    _letter = unicodedata.lookup(f"GREEK {_case} LETTER {_name}")
    SYMBOLS[_letter] = "\\" + _name.replace("amda", "ambda")

FUNCTIONS = set(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh coth log ln lg exp lim limsup "
    "liminf max min sup inf det dim ker gcd deg arg hom Pr".split()
)
# Commands whose limits stand below and above; the scripts of munder and mover become _ and ^.
_LIMITS = set(
    r"\sum \prod \coprod \int \iint \iiint \oint \bigcup \bigcap \bigoplus \bigotimes \bigvee "
    r"\bigwedge \lim \limsup \liminf \max \min \sup \inf \det \gcd \Pr".split()
)
# Accents by what MathML puts above or below.
_OVER = read_pairs(
    r"""
    ¯ \bar   ‾ \overline   ― \overline   ^ \hat   ˆ \hat   ~ \tilde   ˜ \tilde   → \vec   ˙ \dot
    ¨ \ddot   ⏞ \overbrace   ˇ \check
"""
)
_OVER["\u20d7"] = r"\vec"
_UNDER = read_pairs(r"_ \underline   ¯ \underline   ‾ \underline   ⏟ \underbrace")
_UNDER["\u0332"] = r"\underline"
_VARIANTS = read_pairs(
    """
    bold mathbf   double-struck mathbb   script mathcal   fraktur mathfrak   normal mathrm
    bold-italic boldsymbol   sans-serif mathsf   monospace mathtt
"""
)
# Styles by the Unicode names of characters; longer names come first.
_STYLES = {
    "BOLD ITALIC": "boldsymbol",
    "BOLD SCRIPT": "mathcal",
    "BOLD FRAKTUR": "mathfrak",
    "BOLD": "mathbf",
    "DOUBLE-STRUCK": "mathbb",
    "SCRIPT": "mathcal",
    "FRAKTUR": "mathfrak",
    "BLACK-LETTER": "mathfrak",
    "SANS-SERIF": "mathsf",
    "MONOSPACE": "mathtt",
}
_FENCES = {
    ("(", ")"): "pmatrix",
    ("[", "]"): "bmatrix",
    ("|", "|"): "vmatrix",
    (r"\|", r"\|"): "Vmatrix",
}


# ---- Pieces of LaTeX -------------------------------------------------------------------------

_SINGLE = re.compile(r"\\[A-Za-z]+|\\.|[^\\]")  # needs no braces after ^ and _
_BASE = re.compile(r"\w?|\d[\d.,]*|\\[A-Za-z]+|\\[a-z]+\{\w*\}|[)\]|]")  # nor before them
_RUNS_ON = re.compile(r"(?:\\[A-Za-z]+|[_^]\w)$")


def join(pieces: Iterable[str]) -> str:
    """Join pieces of LaTeX. A space stands only where a command or a script would run on.

    >>> print(join([r"\\alpha", "x", "y"]))
    \\alpha xy
    """
    text = ""
    for piece in pieces:
        joins = piece[:1].isalnum() and (text[-1:].isalnum() or text[-1:] == "_")
        if joins and _RUNS_ON.search(text[-20:]):
            text += " "
        text += piece
    return text


def braced(latex: str) -> str:
    """LaTeX as the argument of ^ and _."""
    if (latex.isalnum() and len(latex) == 1) or _SINGLE.fullmatch(latex):
        return latex
    return "{" + latex + "}"


def _base(latex: str) -> str:
    """LaTeX that a script follows."""
    if (latex.isalnum() and len(latex) == 1) or _BASE.fullmatch(latex):
        return latex
    return "{" + latex + "}"


def _scripts(below: str, above: str) -> str:
    lower = f"_{braced(below)}" if below else ""
    if set(above) == {"'"}:  # primes
        return lower + above
    return lower + (f"^{braced(above)}" if above else "")


def _character(char: str) -> str:
    if char in SYMBOLS:
        return SYMBOLS[char]
    if char.isascii():
        return char
    plain = unicodedata.normalize("NFKC", char)
    if plain == char or unicodedata.category(char)[0] not in "LN":
        return char
    # A letter of a mathematical alphabet: the plain letter, with the style that the name says.
    name = unicodedata.name(char, "")
    plain = "".join(SYMBOLS.get(c, c) for c in plain)
    for words, style in _STYLES.items():
        if words in name:
            return f"\\{style}{{{plain}}}"
    return plain


@functools.lru_cache(4096)
def symbols(text: str) -> str:
    """The characters of a text as LaTeX.

    >>> print(symbols("α≤2"))
    \\alpha\\le 2
    """
    if text.isascii() and text.isalnum():
        return text
    return join(map(_character, text))


@functools.lru_cache(4096)
def _word(text: str, variant: str | None) -> str:
    """A name (mi) or an operator (mo)."""
    text = text.strip()
    if text in FUNCTIONS:
        return "\\" + text
    default = "mathrm" if len(text) > 1 and text.isalpha() else ""
    style = _VARIANTS.get(variant or "", default)
    latex = symbols(text)
    if not style or (style == "mathrm" and not text.isalpha()) or latex.startswith("\\"):
        return latex
    return f"\\{style}{{{latex}}}"


# ---- Elements --------------------------------------------------------------------------------

# A tag and the text after it. If the tag begins an element with nothing but text: also the end of
# this element, and the text after the end.
_TAG = re.compile(r"<(/)?([\w:-]++)([^>]{0,9999}+)>([^<]*+)(?(1)|(?:(</\2>)([^<]*+))?)")
_DEEPEST = 150  # maximum depth of elements; deeper ones become siblings


class _Element:
    """A MathML element: name, attributes as in the tag, children, and all text inside."""

    __slots__ = "tag", "_attributes", "children", "text"

    def __init__(self, tag: str, attributes: str = ""):
        self.tag = tag
        self._attributes = attributes
        self.children: list[_Element] = []
        self.text = ""

    def get(self, name: str) -> str | None:
        return attribute(self._attributes, name) if self._attributes else None


@functools.cache
def _attribute_pattern(name: str) -> re.Pattern:
    return re.compile(rf"""(?<![\w:-]){name}\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")


def attribute(tag: str, name: str) -> str | None:
    """The value of an attribute in the text of a tag, or None.

    >>> attribute('img src="a.png" alt=x', "alt")
    'x'
    """
    match = _attribute_pattern(name).search(tag) if name in tag else None
    return unescape(match[match.lastindex]) if match else None


def _parse(markup: str) -> _Element:
    """The tree of a piece of MathML. The end of a parent also ends its open children."""
    stack = [_Element("mrow")]
    for closing, tag, attributes, text, whole, text_after in _TAG.findall(markup):
        tag = tag.rpartition(":")[2]
        if not closing:
            element = _Element(tag, attributes)
            stack[-1].children.append(element)
            if whole:
                element.text = unescape(text)
                stack[-1].text += element.text
                text = text_after
            elif not attributes.endswith("/") and len(stack) < _DEEPEST:
                stack.append(element)
        elif tag in [element.tag for element in stack[1:]]:
            closed = None
            while closed != tag:
                done = stack.pop()
                stack[-1].text += done.text
                closed = done.tag
        if text:
            stack[-1].text += unescape(text)
    return stack[0]


# ---- Elements to LaTeX -----------------------------------------------------------------------


def mathml(markup: str) -> str:
    """LaTeX of MathML as it stands in a page, with or without the math element around it.

    Unknown elements count as rows of their children. Annotations are left out.

    >>> print(mathml("<mi>x</mi><mo>=</mo><mfrac><mn>1</mn><mn>2</mn></mfrac>"))
    x=\\frac{1}{2}
    """
    return _row(_parse(markup).children)


_BEGIN, _END = r"\begin{matrix}", r"\end{matrix}"
_NOTHING = set("annotation annotation-xml mphantom none mprescripts maligngroup malignmark".split())
# How many children these elements must have.
_PARTS = dict(mfrac=2, mroot=2, msup=2, msub=2, mover=2, munder=2, msubsup=3, munderover=3)


def _row(elements: Iterable[_Element]) -> str:
    """Elements side by side. A table between fences becomes a matrix with these fences."""
    pieces = [_latex(element) for element in elements]
    for i, piece in enumerate(pieces):
        if not (piece.startswith(_BEGIN) and piece.endswith(_END)):
            continue
        before = pieces[i - 1] if i else ""
        after = pieces[i + 1] if i + 1 < len(pieces) else ""
        kind = _FENCES.get((before, after))
        if before == r"\{" and not after:
            kind = "cases"
        if kind:
            body = piece[len(_BEGIN) : -len(_END)]
            pieces[i] = f"\\begin{{{kind}}}{body}\\end{{{kind}}}"
            pieces[i - 1] = ""
            if after:
                pieces[i + 1] = ""
    return join(pieces)


def _table(element: _Element) -> str:
    rows = []
    for row in element.children:
        cells = row.children[1:] if row.tag == "mlabeledtr" else row.children
        rows.append(" & ".join(_row(cell.children) for cell in cells))
    return _BEGIN + r" \\ ".join(rows) + _END


def _fenced(element: _Element) -> str:
    left = symbols(element.get("open") or "(")
    right = symbols(element.get("close") or ")")
    separators = element.get("separators")
    separator = "," if separators is None else separators.strip()[:1]
    inside = [_latex(child) for child in element.children]
    if len(inside) == 1 and inside[0].startswith(_BEGIN) and (left, right) in _FENCES:
        return inside[0].replace("{matrix}", f"{{{_FENCES[left, right]}}}")
    return left + separator.join(inside) + right


def _multiscripts(children: Sequence[_Element]) -> str:
    names = [child.tag for child in children]
    split = names.index("mprescripts") if "mprescripts" in names else len(children)
    texts = [_latex(child) for child in children]

    def scripts(values: list[str]) -> str:
        return "".join(map(_scripts, values[::2], values[1::2]))

    before = scripts(texts[split + 1 :])
    return ("{}" + before if before else "") + _base(texts[0]) + scripts(texts[1:split])


def _latex(element: _Element) -> str:
    tag, children = element.tag, element.children
    if tag in ("mi", "mo"):
        return _word(element.text, element.get("mathvariant"))
    if tag == "mn":
        return symbols(element.text.strip())
    if tag in ("mtext", "ms"):
        text = element.text.replace("\xa0", " ")
        return rf"\text{{{text}}}" if any(map(str.isalnum, text)) else symbols(text.strip()) or " "
    if tag in _NOTHING:
        return ""
    if tag == "mspace":
        return " "
    if tag in ("semantics", "maction"):
        return _latex(children[0]) if children else ""
    if tag == "msqrt":
        return rf"\sqrt{{{_row(children)}}}"
    if tag == "mtable":
        return _table(element)
    if tag == "mfenced":
        return _fenced(element)
    if tag == "mmultiscripts" and children:
        return _multiscripts(children)
    if _PARTS.get(tag) == len(children):
        return _combined(element)
    # A row. Also an element with the wrong number of children.
    if children:
        return _row(children)
    return "" if tag in _PARTS else symbols(element.text.strip())


def _combined(element: _Element) -> str:
    """An element with two or three children: a fraction, a root, or scripts."""
    tag = element.tag
    base, *rest = [_latex(child) for child in element.children]
    if tag == "mfrac":
        thickness = (element.get("linethickness") or "").strip()
        if re.fullmatch(r"0+(\.0*)?[a-z%]*", thickness):  # no line
            return rf"{{{base} \atop {rest[0]}}}"
        return rf"\frac{{{base}}}{{{rest[0]}}}"
    if tag == "mroot":
        return rf"\sqrt[{rest[0]}]{{{base}}}"

    # Scripts
    if len(rest) == 2:
        below, above = rest
    elif tag in ("msub", "munder"):
        below, above = rest[0], ""
    else:
        below, above = "", rest[0]
    if tag in ("msub", "msup", "msubsup") or base in _LIMITS:
        return _base(base) + _scripts(below, above)

    # Accents, and other marks above and below
    accents = {"mover": _OVER, "munder": _UNDER}.get(tag, {})
    accent = accents.get(element.children[-1].text.strip())
    if accent:
        return f"{accent}{{{base}}}"
    latex = rf"\underset{{{below}}}{{{base}}}" if below else base
    return rf"\overset{{{above}}}{{{latex}}}" if above else latex
