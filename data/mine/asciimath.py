"""AsciiMath to LaTeX (paper 2.1: pages keep their formulas).

The grammar has simple expressions S, expressions with scripts S_S^S, and fractions S/S.
"""

import re
import unicodedata

from data.mine.mathml import FUNCTIONS, SYMBOLS, braced, join, read_pairs, symbols

_SYMBOLS = read_pairs(
    r"""
    * \cdot   ** \ast   *** \star   // /   \\ \backslash   xx \times   -: \div   @ \circ
    o+ \oplus   ox \otimes   ^^ \wedge   vv \vee   nn \cap   uu \cup   ^^^ \bigwedge
    vvv \bigvee   nnn \bigcap   uuu \bigcup   != \ne   <= \le   >= \ge   -< \prec   >- \succ
    in \in   !in \notin   sub \subset   sup \supset   sube \subseteq   supe \supseteq
    -= \equiv   ~= \cong   ~~ \approx   prop \propto   not \neg   => \Rightarrow
    <=> \Leftrightarrow   AA \forall   EE \exists   _|_ \perp   TT \top   |-- \vdash
    |== \models   oint \oint   del \partial   grad \nabla   +- \pm   O/ \emptyset   oo \infty
    aleph \aleph   ... \ldots   :. \therefore   /_ \angle   CC \mathbb{C}   NN \mathbb{N}
    QQ \mathbb{Q}   RR \mathbb{R}   ZZ \mathbb{Z}   -> \to   |-> \mapsto   larr \leftarrow
    rarr \rightarrow   harr \leftrightarrow   rArr \Rightarrow   lArr \Leftarrow
    hArr \Leftrightarrow   sum \sum   prod \prod   int \int   dx dx   dy dy   dz dz   dt dt
    ' '   cdots \cdots   vdots \vdots   ddots \ddots   quad \quad   # \#   % \%   & \&   $ \$
"""
)
_SYMBOLS |= {"and": r"\text{ and }", "or": r"\text{ or }", "if": r"\text{ if }"}
_SYMBOLS |= {name: "\\" + name for name in FUNCTIONS}
for _char, _command in SYMBOLS.items():
    if _command[1:].isalpha() and "GREEK" in unicodedata.name(_char):
        _SYMBOLS[_command[1:]] = _command
# Commands with one part and with two parts.
_ONE_PART = read_pairs(
    r"""
    sqrt \sqrt   hat \hat   bar \overline   vec \vec   dot \dot   ddot \ddot   tilde \tilde
    ul \underline   ubrace \underbrace   obrace \overbrace   bb \mathbf   bbb \mathbb
    cc \mathcal   fr \mathfrak   tt \mathtt   sf \mathsf   cancel \cancel
"""
)
_TWO_PARTS = read_pairs(
    r"""
    frac \frac   root \sqrt   stackrel \overset   overset \overset   underset \underset
"""
)
_AROUND = {
    "abs": ("|", "|"),
    "norm": (r"\|", r"\|"),
    "floor": (r"\lfloor", r"\rfloor"),
    "ceil": (r"\lceil", r"\rceil"),
}
# Brackets
_LEFT = {"(": "(", "[": "[", "{": r"\{", "(:": r"\langle", "<<": r"\langle", "{:": ""}
_RIGHT = {")": ")", "]": "]", "}": r"\}", ":)": r"\rangle", ">>": r"\rangle", ":}": ""}
_MATRICES = {("[", "]"): "bmatrix", ("(", ")"): "pmatrix", ("{", ""): "cases"}


def _token_pattern() -> re.Pattern:
    """All tokens. Words are grouped by first letter, so that only a single group is tried."""
    words = [*_SYMBOLS, *_ONE_PART, *_TWO_PARTS, *_AROUND, *_LEFT, *_RIGHT, "text"]
    groups: dict[str, list[str]] = {}
    for word in sorted(words, key=len, reverse=True):  # longer words first
        groups.setdefault(word[0], []).append(re.escape(word[1:]))
    alternatives = [r'"[^"]*"', r"text\([^()]*\)", r"\d+(?:\.\d+)?"]
    alternatives += [f"{re.escape(first)}(?:{'|'.join(rest)})" for first, rest in groups.items()]
    return re.compile("|".join([*alternatives, r"\S"]))


_TOKEN = _token_pattern()


def asciimath(source: str) -> str:
    """LaTeX of AsciiMath. What is not AsciiMath stays as it is, symbol by symbol.

    >>> print(asciimath("sum_(i=1)^n i^3=((n(n+1))/2)^2"))
    \\sum_{i=1}^n i^3=(\\frac{n(n+1)}{2})^2
    """
    tokens = _TOKEN.findall(source)[::-1]  # a stack: the next token is the last
    parts = []
    try:
        while tokens:
            parts.append(_expression(tokens))
            if tokens:  # a closing bracket without an opening one
                parts.append(_RIGHT[tokens.pop()])
    except RecursionError:  # hundreds of nested brackets
        return source
    return join(parts)


def _more(tokens: list[str]) -> bool:
    """Does another part follow, before the closing bracket?"""
    return bool(tokens) and tokens[-1] not in _RIGHT


def _expression(tokens: list[str]) -> str:
    """Everything up to a closing bracket, which stays on the stack."""
    pieces = []
    while _more(tokens):
        piece, inside = _intermediate(tokens)
        if tokens and tokens[-1] == "/":
            tokens.pop()
            below = _intermediate(tokens)[1] if _more(tokens) else ""
            piece = rf"\frac{{{inside}}}{{{below}}}"
        pieces.append(piece)
    return join(pieces)


def _intermediate(tokens: list[str]) -> tuple[str, str]:
    """S, S_S, S^S or S_S^S. Returns (LaTeX, LaTeX without outer brackets for a fraction)."""
    latex, inside = _simple(tokens)
    scripts = ""
    for mark in "_^":
        if len(tokens) > 1 and tokens[-1] == mark and tokens[-2] not in _RIGHT:
            tokens.pop()
            scripts += mark + braced(_simple(tokens)[1])
    if not scripts:
        return latex, inside
    return latex + scripts, latex + scripts


def _simple(tokens: list[str]) -> tuple[str, str]:
    """S. Returns the same as _intermediate."""
    token = tokens.pop()
    if token in _LEFT:
        return _bracket(token, tokens)
    if token[0] == '"':
        latex = rf"\text{{{token[1:-1]}}}"
    elif token.startswith("text("):
        latex = rf"\text{{{token[5:-1]}}}"
    elif token in _ONE_PART and _more(tokens):
        latex = f"{_ONE_PART[token]}{{{_simple(tokens)[1]}}}"
    elif token in _TWO_PARTS and _more(tokens):
        first = _simple(tokens)[1]
        second = _simple(tokens)[1] if _more(tokens) else ""
        argument = f"[{first}]" if token == "root" else f"{{{first}}}"
        latex = f"{_TWO_PARTS[token]}{argument}{{{second}}}"
    elif token in _AROUND and _more(tokens):
        left, right = _AROUND[token]
        latex = join([left, _simple(tokens)[1], right])
    elif token in _SYMBOLS:
        latex = _SYMBOLS[token]
    else:  # a number, a letter or a sign; also ^ or _ in a wrong place
        latex = token if token in "^_" else symbols(token)
    return latex, latex


def _bracket(left: str, tokens: list[str]) -> tuple[str, str]:
    """What is between brackets; a matrix if it looks like [[a,b],[c,d]]."""
    inside = _expression(tokens)
    right = _RIGHT[tokens.pop()] if tokens else ""
    kind = _MATRICES.get((left, right))
    between_rows = {"[]": "],[", "()": "),("}.get(inside[:1] + inside[-1:])
    if kind and between_rows and between_rows in inside[1:-1]:
        rows = [row.replace(",", " & ") for row in re.split(r"[\])],[\[(]", inside[1:-1])]
        matrix = rf"\begin{{{kind}}}" + r" \\ ".join(rows) + rf"\end{{{kind}}}"
        return matrix, matrix
    return join([_LEFT[left], inside, right]), inside
