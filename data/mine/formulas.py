"""LaTeX from the other ways in which web pages write a formula (paper 2.1): MathML, AsciiMath, and LaTeX with marks
around it that differ from page to page. What comes out stands between $...$, or $$...$$ on a line of its own.
"""

import functools
import re
import unicodedata
from html import unescape

# fmt: off
_SYMBOLS = {  # Unicode to LaTeX; a letter may not follow the commands directly, which `_join` sees to
    "−": "-", "∗": "*", "⋅": r"\cdot", "·": r"\cdot", "×": r"\times", "÷": r"\div", "±": r"\pm", "∓": r"\mp",
    "≤": r"\le", "≥": r"\ge", "⩽": r"\le", "⩾": r"\ge", "≪": r"\ll", "≫": r"\gg", "≠": r"\ne", "≈": r"\approx",
    "≡": r"\equiv", "∼": r"\sim", "≃": r"\simeq", "≅": r"\cong", "∝": r"\propto", "≺": r"\prec", "≻": r"\succ",
    "∞": r"\infty", "∂": r"\partial", "∇": r"\nabla", "√": r"\surd", "∑": r"\sum", "∏": r"\prod", "∐": r"\coprod",
    "∫": r"\int", "∬": r"\iint", "∭": r"\iiint", "∮": r"\oint", "⋃": r"\bigcup", "⋂": r"\bigcap",
    "⨁": r"\bigoplus", "⨂": r"\bigotimes", "⋁": r"\bigvee", "⋀": r"\bigwedge", "∈": r"\in", "∉": r"\notin",
    "∋": r"\ni", "⊂": r"\subset", "⊆": r"\subseteq", "⊃": r"\supset", "⊇": r"\supseteq", "⊊": r"\subsetneq",
    "∪": r"\cup", "∩": r"\cap", "∖": r"\setminus", "∅": r"\emptyset", "∀": r"\forall", "∃": r"\exists",
    "∄": r"\nexists", "¬": r"\neg", "∧": r"\wedge", "∨": r"\vee", "⊕": r"\oplus", "⊗": r"\otimes", "∘": r"\circ",
    "•": r"\bullet", "⋆": r"\star", "→": r"\to", "←": r"\leftarrow", "↔": r"\leftrightarrow", "⟶": r"\longrightarrow",
    "⇒": r"\Rightarrow", "⇐": r"\Leftarrow", "⇔": r"\Leftrightarrow", "⟹": r"\implies", "⟺": r"\iff", "↦": r"\mapsto",
    "↑": r"\uparrow", "↓": r"\downarrow", "⇌": r"\rightleftharpoons", "∥": r"\parallel", "⊥": r"\perp",
    "∠": r"\angle", "△": r"\triangle", "□": r"\square", "∣": r"\mid", "∤": r"\nmid", "‖": r"\|", "⊢": r"\vdash",
    "⊨": r"\models", "∴": r"\therefore", "∵": r"\because", "…": r"\ldots", "⋯": r"\cdots", "⋮": r"\vdots",
    "⋱": r"\ddots", "°": r"^\circ", "′": "'", "″": "''", "ℓ": r"\ell", "ℏ": r"\hbar", "ℜ": r"\Re", "ℑ": r"\Im",
    "ℵ": r"\aleph", "⟨": r"\langle", "⟩": r"\rangle", "〈": r"\langle", "〉": r"\rangle", "⌊": r"\lfloor",
    "⌋": r"\rfloor", "⌈": r"\lceil", "⌉": r"\rceil", "{": r"\{", "}": r"\}", "#": r"\#", "%": r"\%", "&": r"\&",
    "$": r"\$", "_": r"\_", "\\": r"\backslash", "\u2061": "", "\u2062": "", "\u2063": "", "\u2064": "",
    "\u200b": "", "\ufeff": "", "\xa0": " ", "ϵ": r"\epsilon", "ϑ": r"\vartheta", "ϕ": r"\phi", "φ": r"\varphi",
    "ε": r"\varepsilon", "ς": r"\varsigma", "ϖ": r"\varpi", "ϱ": r"\varrho", "ο": "o",
}
for _name in ("alpha beta gamma delta zeta eta theta iota kappa lamda mu nu xi pi rho sigma tau upsilon chi psi omega "
              "Gamma Delta Theta Lamda Xi Pi Sigma Upsilon Phi Psi Omega").split():
    _case = "CAPITAL" if _name[0].isupper() else "SMALL"
    _SYMBOLS[unicodedata.lookup(f"GREEK {_case} LETTER {_name}")] = "\\" + _name.replace("amda", "ambda")

_FUNCTIONS = set("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh coth log ln lg exp lim limsup liminf max "
                 "min sup inf det dim ker gcd deg arg hom Pr".split())
_LIMITS = {rf"\{f}" for f in "sum prod coprod int iint iiint oint bigcup bigcap bigoplus bigotimes bigvee bigwedge lim "
                             "limsup liminf max min sup inf det gcd Pr".split()}
_OVER = {"¯": r"\bar", "‾": r"\overline", "―": r"\overline", "^": r"\hat", "ˆ": r"\hat", "~": r"\tilde",
         "˜": r"\tilde", "→": r"\vec", "⃗": r"\vec", "˙": r"\dot", "¨": r"\ddot", "⏞": r"\overbrace", "ˇ": r"\check"}
_UNDER = {"_": r"\underline", "¯": r"\underline", "‾": r"\underline", "⏟": r"\underbrace", "̲": r"\underline"}
_VARIANTS = {"bold": "mathbf", "double-struck": "mathbb", "script": "mathcal", "fraktur": "mathfrak",
             "normal": "mathrm", "bold-italic": "boldsymbol", "sans-serif": "mathsf", "monospace": "mathtt"}
_STYLES = {"BOLD ITALIC": "boldsymbol", "BOLD SCRIPT": "mathcal", "BOLD FRAKTUR": "mathfrak", "BOLD": "mathbf",
           "DOUBLE-STRUCK": "mathbb", "SCRIPT": "mathcal", "FRAKTUR": "mathfrak", "BLACK-LETTER": "mathfrak",
           "SANS-SERIF": "mathsf", "MONOSPACE": "mathtt"}  # by what names of characters say, the longer first
_FENCES = {("(", ")"): "pmatrix", ("[", "]"): "bmatrix", ("|", "|"): "vmatrix", (r"\|", r"\|"): "Vmatrix"}
# fmt: on

_ONE = re.compile(r"\\[A-Za-z]+|\\.|[^\\]")  # what ^ and _ take without braces
_BASE = re.compile(
    r"\w?|\d[\d.,]*|\\[A-Za-z]+|\\[a-z]+\{\w*\}|[)\]|]"
)  # what they follow without braces
_RUNS_ON = re.compile(r"(?:\\[A-Za-z]+|[_^]\w)$")


def _join(pieces) -> str:
    """Pieces of LaTeX one after the other, a space only where a command or an index would run into what follows."""
    text = ""
    for piece in pieces:
        if (
            piece[:1].isalnum()
            and (text[-1:].isalnum() or text[-1:] == "_")
            and _RUNS_ON.search(text[-20:])
        ):
            text += " "
        text += piece
    return text


def _braced(latex: str) -> str:
    return (
        latex if latex.isalnum() and len(latex) == 1 or _ONE.fullmatch(latex) else "{" + latex + "}"
    )


def _base(latex: str) -> str:
    return (
        latex
        if latex.isalnum() and len(latex) == 1 or _BASE.fullmatch(latex)
        else "{" + latex + "}"
    )


def _script(below: str, above: str) -> str:
    prime = above if above and set(above) == {"'"} else ""
    return (f"_{_braced(below)}" if below else "") + (
        prime or (f"^{_braced(above)}" if above else "")
    )


def _character(char: str) -> str:
    if char in _SYMBOLS:
        return _SYMBOLS[char]
    if char.isascii():
        return char
    plain = unicodedata.normalize("NFKC", char)
    if plain == char or unicodedata.category(char)[0] not in "LN":
        return char
    name = unicodedata.name(
        char, ""
    )  # a letter of an alphabet for mathematics: the plain one, in its style
    style = next((s for word, s in _STYLES.items() if word in name), None)
    plain = "".join(_SYMBOLS.get(c, c) for c in plain)
    return f"\\{style}{{{plain}}}" if style else plain


@functools.lru_cache(4096)
def _symbols(text: str) -> str:
    if text.isascii() and text.isalnum():
        return text
    return _join(map(_character, text))


@functools.lru_cache(4096)
def _word(text: str, variant: str | None) -> str:
    """A name (mi) or an operator (mo) of one letter or more."""
    text = text.strip()
    if text in _FUNCTIONS:
        return "\\" + text
    style = _VARIANTS.get(variant, "mathrm" if len(text) > 1 and text.isalpha() else "")
    latex = _symbols(text)
    if not style or (style == "mathrm" and not text.isalpha()) or latex.startswith("\\"):
        return latex
    return f"\\{style}{{{latex}}}"


class _Element:
    """An element of MathML: its name, attributes as they stand in the tag, elements in it, and all text in it."""

    __slots__ = "tag", "_attributes", "children", "text"

    def __init__(self, tag: str, attributes: str = ""):
        self.tag, self._attributes, self.children, self.text = tag, attributes, [], ""

    def get(self, name: str) -> str | None:
        return attribute(self._attributes, name) if self._attributes else None


@functools.cache
def _attribute(name: str) -> re.Pattern:
    return re.compile(rf"""(?<![\w:-]){name}\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")


def attribute(tag: str, name: str) -> str | None:
    """The value of an attribute in the text of a tag, or None."""
    match = _attribute(name).search(tag) if name in tag else None
    return unescape(match[match.lastindex]) if match else None


# A tag and the text behind it; where it begins an element that only holds text, its end and the text behind that too.
_TAG = re.compile(r"<(/)?([\w:-]++)([^>]{0,9999}+)>([^<]*+)(?(1)|(?:(</\2>)([^<]*+))?)")
_DEEPEST = 150  # elements in one another; what is deeper stands beside what it is in


def _elements(markup: str) -> _Element:
    """The tree of a piece of MathML. Elements that are not closed are closed with what they are in."""
    stack = [_Element("mrow")]
    for closing, tag, attributes, text, whole, behind in _TAG.findall(markup):
        if ":" in tag:
            tag = tag.rpartition(":")[2]
        if not closing:
            stack[-1].children.append(one := _Element(tag, attributes))
            if whole:
                one.text = unescape(text)
                stack[-1].text += one.text
                text = behind
            elif not attributes.endswith("/") and len(stack) < _DEEPEST:
                stack.append(one)
        elif tag in [one.tag for one in stack[1:]]:
            closed = None
            while closed != tag:
                done = stack.pop()
                stack[-1].text += done.text
                closed = done.tag
        if text:
            stack[-1].text += unescape(text)
    return stack[0]


def _row(elements) -> str:
    """The elements side by side. A table between fences becomes a matrix with these."""
    pieces = [_latex(one) for one in elements]
    begin, end = r"\begin{matrix}", r"\end{matrix}"
    for i, piece in enumerate(pieces):
        if not (piece.startswith(begin) and piece.endswith(end)):
            continue
        before, after = pieces[i - 1] if i else "", pieces[i + 1] if i + 1 < len(pieces) else ""
        kind = _FENCES.get((before, after)) or (
            "cases" if before == r"\{" and after == "" else None
        )
        if kind:
            pieces[i] = f"\\begin{{{kind}}}{piece[len(begin) : -len(end)]}\\end{{{kind}}}"
            pieces[i - 1] = ""
            if after:
                pieces[i + 1] = ""
    return _join(pieces)


def _table(element) -> str:
    rows = []
    for row in element.children:
        cells = row.children[1 if row.tag == "mlabeledtr" else 0 :]
        rows.append(" & ".join(_row(cell.children) for cell in cells))
    return r"\begin{matrix}" + r" \\ ".join(rows) + r"\end{matrix}"


def _multiscripts(children) -> str:
    names = [one.tag for one in children]
    split = names.index("mprescripts") if "mprescripts" in names else len(children)
    texts = [_latex(one) for one in children]

    def scripts(values: list[str]) -> str:
        return "".join(_script(*pair) for pair in zip(values[::2], values[1::2], strict=False))

    before = scripts(texts[split + 1 :])
    return ("{}" + before if before else "") + _base(texts[0]) + scripts(texts[1:split])


def mathml(markup: str) -> str:
    """LaTeX of MathML as it stands in a page, entities and all, with or without math around it.

    Elements that are not known count as rows of what they hold; annotations are left out. Example:
    mathml("<mi>x</mi><mo>=</mo><mfrac><mn>1</mn><mn>2</mn></mfrac>") is x=\\frac{1}{2}."""
    return _row(_elements(markup).children)


_PARTS = {
    "mfrac": 2,
    "mroot": 2,
    "msup": 2,
    "msub": 2,
    "mover": 2,
    "munder": 2,
    "msubsup": 3,
    "munderover": 3,
}


def _latex(element: _Element) -> str:
    tag = element.tag
    if tag in ("mi", "mo"):
        return _word(element.text, element.get("mathvariant"))
    if tag == "mn":
        return _symbols(element.text.strip())
    if tag in ("mtext", "ms"):
        text = element.text.replace("\xa0", " ")
        return rf"\text{{{text}}}" if any(map(str.isalnum, text)) else _symbols(text.strip()) or " "
    if tag in (
        "annotation",
        "annotation-xml",
        "mphantom",
        "none",
        "mprescripts",
        "maligngroup",
        "malignmark",
    ):
        return ""
    if tag == "mspace":
        return " "
    children = element.children
    if tag in ("semantics", "maction"):
        return _latex(children[0]) if children else ""
    if tag == "msqrt":
        return rf"\sqrt{{{_row(children)}}}"
    if tag == "mtable":
        return _table(element)
    if tag == "mfenced":
        left, right = (_symbols(element.get(at) or s) for at, s in (("open", "("), ("close", ")")))
        between = element.get("separators")
        between = "," if between is None else between.strip()[:1]
        inside = [_latex(one) for one in children]
        if (
            len(inside) == 1
            and inside[0].startswith(r"\begin{matrix}")
            and (left, right) in _FENCES
        ):
            return inside[0].replace("{matrix}", f"{{{_FENCES[left, right]}}}")
        return left + between.join(inside) + right
    if tag == "mmultiscripts" and children:
        return _multiscripts(children)
    if _PARTS.get(tag) != len(
        children
    ):  # a row, also where something that should have two parts has not
        return (
            _row(children) if children else "" if tag in _PARTS else _symbols(element.text.strip())
        )
    base, *rest = [_latex(one) for one in children]
    if tag == "mfrac":
        thickness = element.get("linethickness")
        flat = thickness and re.fullmatch(r"0+(\.0*)?[a-z%]*", thickness.strip())
        return rf"{{{base} \atop {rest[0]}}}" if flat else rf"\frac{{{base}}}{{{rest[0]}}}"
    if tag == "mroot":
        return rf"\sqrt[{rest[0]}]{{{base}}}"
    below, above = (
        rest if len(rest) == 2 else (rest[0], "") if tag in ("msub", "munder") else ("", rest[0])
    )
    if tag in ("msub", "msup", "msubsup") or base in _LIMITS:
        return _base(base) + _script(below, above)
    accents = _OVER if tag == "mover" else _UNDER if tag == "munder" else {}
    if mark := accents.get(children[-1].text.strip()):
        return f"{mark}{{{base}}}"
    latex = rf"\underset{{{below}}}{{{base}}}" if below else base
    return rf"\overset{{{above}}}{{{latex}}}" if above else latex


# --- AsciiMath: simple expressions S, S_S^S, and S/S --------------------------------------------------------------

# fmt: off
_ASCII = {
    "*": r"\cdot", "**": r"\ast", "***": r"\star", "//": "/", "\\\\": r"\backslash", "xx": r"\times", "-:": r"\div",
    "@": r"\circ", "o+": r"\oplus", "ox": r"\otimes", "^^": r"\wedge", "vv": r"\vee", "nn": r"\cap", "uu": r"\cup",
    "^^^": r"\bigwedge", "vvv": r"\bigvee", "nnn": r"\bigcap", "uuu": r"\bigcup", "!=": r"\ne", "<=": r"\le",
    ">=": r"\ge", "-<": r"\prec", ">-": r"\succ", "in": r"\in", "!in": r"\notin", "sub": r"\subset",
    "sup": r"\supset", "sube": r"\subseteq", "supe": r"\supseteq", "-=": r"\equiv", "~=": r"\cong",
    "~~": r"\approx", "prop": r"\propto", "and": r"\text{ and }", "or": r"\text{ or }", "not": r"\neg",
    "=>": r"\Rightarrow", "<=>": r"\Leftrightarrow", "if": r"\text{ if }", "AA": r"\forall", "EE": r"\exists",
    "_|_": r"\perp", "TT": r"\top", "|--": r"\vdash", "|==": r"\models", "oint": r"\oint", "del": r"\partial",
    "grad": r"\nabla", "+-": r"\pm", "O/": r"\emptyset", "oo": r"\infty", "aleph": r"\aleph", "...": r"\ldots",
    ":.": r"\therefore", "/_": r"\angle", "CC": r"\mathbb{C}", "NN": r"\mathbb{N}", "QQ": r"\mathbb{Q}",
    "RR": r"\mathbb{R}", "ZZ": r"\mathbb{Z}", "->": r"\to", "|->": r"\mapsto", "larr": r"\leftarrow",
    "rarr": r"\rightarrow", "harr": r"\leftrightarrow", "rArr": r"\Rightarrow", "lArr": r"\Leftarrow",
    "hArr": r"\Leftrightarrow", "sum": r"\sum", "prod": r"\prod", "int": r"\int", "dx": "dx", "dy": "dy", "dz": "dz",
    "dt": "dt", "'": "'", "cdots": r"\cdots", "vdots": r"\vdots", "ddots": r"\ddots", "quad": r"\quad",
    "#": r"\#", "%": r"\%", "&": r"\&", "$": r"\$",
} | {name: "\\" + name for name in _FUNCTIONS} | {
    v[1:]: v for k, v in _SYMBOLS.items() if v[1:].isalpha() and "GREEK" in unicodedata.name(k)
}
_ONE_PART = {"sqrt": r"\sqrt", "hat": r"\hat", "bar": r"\overline", "vec": r"\vec", "dot": r"\dot", "ddot": r"\ddot",
             "tilde": r"\tilde", "ul": r"\underline", "ubrace": r"\underbrace", "obrace": r"\overbrace",
             "bb": r"\mathbf", "bbb": r"\mathbb", "cc": r"\mathcal", "fr": r"\mathfrak", "tt": r"\mathtt",
             "sf": r"\mathsf", "cancel": r"\cancel"}
_TWO_PARTS = {"frac": r"\frac", "root": r"\sqrt", "stackrel": r"\overset", "overset": r"\overset",
              "underset": r"\underset"}
_LEFT = {"(": "(", "[": "[", "{": r"\{", "(:": r"\langle", "<<": r"\langle", "{:": ""}
_RIGHT = {")": ")", "]": "]", "}": r"\}", ":)": r"\rangle", ">>": r"\rangle", ":}": ""}
# fmt: on
_WORDS = sorted(
    [*_ASCII, *_ONE_PART, *_TWO_PARTS, *_LEFT, *_RIGHT, "abs", "floor", "ceil", "norm", "text"],
    key=len,
    reverse=True,
)
_WORDS_BY_LETTER = {word[0]: [one for one in _WORDS if one[0] == word[0]] for word in _WORDS}
_TOKEN = re.compile(  # the alternatives in groups by the first letter, of which only one is gone through
    r'"[^"]*"|text\([^()]*\)|\d+(?:\.\d+)?|'
    + "|".join(
        f"{re.escape(first)}(?:{'|'.join(re.escape(word[1:]) for word in words)})"
        for first, words in _WORDS_BY_LETTER.items()
    )
    + r"|\S"
)


_MATRICES = {("[", "]"): "bmatrix", ("(", ")"): "pmatrix", ("{", ""): "cases"}


def asciimath(source: str) -> str:
    """LaTeX of AsciiMath. Example: asciimath("sum_(i=1)^n i^3=((n(n+1))/2)^2") is
    \\sum_{i=1}^n i^3=(\\frac{n(n+1)}{2})^2. What is not AsciiMath comes out as it is, symbol by symbol."""
    tokens = _TOKEN.findall(source)[::-1]  # a stack: the next one is the last
    parts = []
    try:
        while tokens:
            parts.append(_expression(tokens))
            if tokens:  # a closing bracket that nothing opened
                parts.append(_RIGHT[tokens.pop()])
    except RecursionError:  # hundreds of brackets in one another
        return source
    return _join(parts)


def _expression(tokens: list[str]) -> str:
    """Up to a closing bracket, which is left."""
    pieces = []
    while tokens and tokens[-1] not in _RIGHT:
        piece, inside = _intermediate(tokens)
        if tokens and tokens[-1] == "/":
            tokens.pop()
            below = _intermediate(tokens)[1] if tokens and tokens[-1] not in _RIGHT else ""
            piece = rf"\frac{{{inside}}}{{{below}}}"
        pieces.append(piece)
    return _join(pieces)


def _intermediate(tokens: list[str]) -> tuple[str, str]:
    """S, S_S, S^S or S_S^S: (its LaTeX, the same without the brackets around it, as a fraction takes it)."""
    latex, inside = _simple(tokens)
    scripts = ""
    for mark in "_^":
        if len(tokens) > 1 and tokens[-1] == mark and tokens[-2] not in _RIGHT:
            tokens.pop()
            scripts += mark + _braced(_simple(tokens)[1])
    return latex + scripts, latex + scripts if scripts else inside


def _simple(tokens: list[str]) -> tuple[str, str]:
    token = tokens.pop()
    more = bool(tokens) and tokens[-1] not in _RIGHT
    if token in _LEFT:
        inside = _expression(tokens)
        right = _RIGHT[tokens.pop()] if tokens else ""
        kind = _MATRICES.get((token, right))
        cells = {"[]": "],[", "()": "),("}.get(inside[:1] + inside[-1:])
        if kind and cells and cells in inside[1:-1]:
            rows = [row.replace(",", " & ") for row in re.split(r"[\])],[\[(]", inside[1:-1])]
            matrix = rf"\begin{{{kind}}}" + r" \\ ".join(rows) + rf"\end{{{kind}}}"
            return matrix, matrix
        return _join([_LEFT[token], inside, right]), inside
    if token[0] == '"' or token.startswith("text("):
        latex = rf"\text{{{token[5:-1] if token[0] == 't' else token[1:-1]}}}"
    elif token in _ONE_PART and more:
        latex = f"{_ONE_PART[token]}{{{_simple(tokens)[1]}}}"
    elif token in _TWO_PARTS and more:
        first = _simple(tokens)[1]
        second = _simple(tokens)[1] if tokens and tokens[-1] not in _RIGHT else ""
        latex = (
            rf"\sqrt[{first}]{{{second}}}"
            if token == "root"
            else f"{_TWO_PARTS[token]}{{{first}}}{{{second}}}"
        )
    elif token in ("abs", "norm", "floor", "ceil") and more:
        left, right = {
            "abs": "||",
            "norm": (r"\|", r"\|"),
            "floor": (r"\lfloor", r"\rfloor"),
            "ceil": (r"\lceil", r"\rceil"),
        }[token]
        latex = _join([left, _simple(tokens)[1], right])
    elif token in _ASCII:
        latex = _ASCII[token]
    else:  # a number, a letter or a sign; ^ or _ where it does not belong stays what it is
        latex = token if token in "^_" else _symbols(token)
    return latex, latex


# --- LaTeX as it stands in pages ----------------------------------------------------------------------------------

_COMMENT = re.compile(r"(?<!\\)%[^\n]*\n?|<!\[CDATA\[|\]\]>")
_OUTER = re.compile(
    r"\$\$(.*)\$\$|\$(.*)\$|\\\((.*)\\\)|\\\[(.*)\\\]|\{\\(?:display|text)style\b(.*)\}", re.DOTALL
)
_SETTINGS = re.compile(r"\\(?:bg_\w+|fn_\w+|dpi\{\d+\}|inline\b|displaystyle\b|textstyle\b) ?")
_ENVIRONMENTS = {
    "equation": "",
    "displaymath": "",
    "math": "",
    "align": "aligned",
    "alignat": "alignedat",
    "eqnarray": "aligned",
    "flalign": "aligned",
    "gather": "gathered",
    "multline": "gathered",
}
_ENVIRONMENT = re.compile(
    rf"\\begin\{{({'|'.join(_ENVIRONMENTS)})(\*?)\}}(.*?)\\end\{{\1\2\}}", re.DOTALL
)


_LONGEST = 20_000  # characters of what may be one formula: what `tidy` does takes time that grows with their square


def _balanced(text: str) -> bool:
    """Whether no brace closes what was opened before `text`."""
    depth = 0
    for mark in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if mark == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def _environment(match: re.Match) -> str:
    inner = _ENVIRONMENTS[match[1]]
    body = match[3].strip()
    return f"\\begin{{{inner}}} {body} \\end{{{inner}}}" if inner else body


def tidy(latex: str) -> str:
    """LaTeX on one line, without comments, marks around it, or settings of how large it is drawn. Environments that
    only stand outside of $$ become those that stand inside: align is aligned, of equation what is in it remains."""
    if "%" in latex or "CDATA" in latex:
        latex = _COMMENT.sub("", latex)
    latex = " ".join(latex.split())
    if len(latex) > _LONGEST:
        return latex
    while match := _OUTER.fullmatch(latex):
        inside = next(group for group in match.groups() if group is not None).strip()
        if "$" in inside or not _balanced(
            inside
        ):  # two formulas, or braces that do not belong together
            break
        latex = inside
    if "\\begin" in latex:
        latex = _ENVIRONMENT.sub(_environment, latex)
    return _SETTINGS.sub("", latex).strip() if "\\" in latex else latex


_DOLLARS = re.compile(
    r"\$(?<![\\$].)(?:\$(?P<dollars>[^$]++)\$\$|(?=[^\s$])[^$\n]{0,999}(?<=[^\s\\])\$(?!\d))"
)
_FORMULA = re.compile(  # the first that begins counts, so that nothing inside of a formula is taken for one
    _DOLLARS.pattern + r"|\\(?<!\\.)(?:"
    r"\((?P<round>(?:[^\\\n]++|\n(?!\n)|\\[^()])*+)\\\)"
    r"|\[(?!\\\])(?P<square>(?:[^\\\n]++|\n(?!\n)|\\[^][])*+)\\\]"
    r"|begin\{(?P<name>" + "|".join(_ENVIRONMENTS) + r")(?P<star>\*?)\}"
    r"(?:[^\\]++|\\(?!(?:begin|end)\{(?P=name)(?P=star)\}))*+\\end\{(?P=name)(?P=star)\})"
)


def _normal(match: re.Match) -> str:
    kind = match.lastgroup
    if not kind:  # $...$ as it is
        return match[0]
    latex = tidy(match[0] if kind == "star" else match[kind])
    mark = "$" if kind == "round" else "$$"
    return mark + latex + mark if latex else ""


def normal_delimiters(text: str) -> str:
    """Text with \\(...\\) as $...$, and \\[...\\] and environments of formulas as $$...$$."""
    if "\\" in text and ("\\(" in text or "\\[" in text or "\\begin{" in text):
        return _FORMULA.sub(_normal, text)
    return _DOLLARS.sub(_normal, text) if "$$" in text else text  # the same, and faster
