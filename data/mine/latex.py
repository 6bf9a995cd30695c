"""LaTeX as it stands in pages, with delimiters that differ from page to page (paper 2.1).

The result is a formula between $...$, or between $$...$$ if it stands on a line of its own.
"""

import re

_COMMENT = re.compile(r"(?<!\\)%[^\n]*\n?|<!\[CDATA\[|\]\]>")
_OUTER = re.compile(
    r"\$\$(.*)\$\$|\$(.*)\$|\\\((.*)\\\)|\\\[(.*)\\\]|\{\\(?:display|text)style\b(.*)\}", re.DOTALL
)
_SETTINGS = re.compile(r"\\(?:bg_\w+|fn_\w+|dpi\{\d+\}|inline\b|displaystyle\b|textstyle\b) ?")
# Environments that stand outside of $$, and those that stand inside.
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
_LONGEST = 20_000  # characters of a formula; the time of `tidy` grows with their square


def _is_balanced(text: str) -> bool:
    """Is there no brace in the text that closes a brace before it?"""
    depth = 0
    for mark in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if mark == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def _inner_environment(match: re.Match) -> str:
    inner, body = _ENVIRONMENTS[match[1]], match[3].strip()
    return f"\\begin{{{inner}}} {body} \\end{{{inner}}}" if inner else body


def tidy(latex: str) -> str:
    """A formula on one line, without delimiters, comments and settings of the drawn size.

    Environments that only stand outside of $$ become those that stand inside: align becomes
    aligned, and of equation only the content stays.

    >>> print(tidy("$x^2 % a square\\n+ 1$"))
    x^2 + 1
    """
    if "%" in latex or "CDATA" in latex:
        latex = _COMMENT.sub("", latex)
    latex = " ".join(latex.split())
    if len(latex) > _LONGEST:
        return latex
    while match := _OUTER.fullmatch(latex):
        inside = next(group for group in match.groups() if group is not None).strip()
        if "$" in inside or not _is_balanced(inside):  # two formulas, or braces of two groups
            break
        latex = inside
    if "\\begin" in latex:
        latex = _ENVIRONMENT.sub(_inner_environment, latex)
    return _SETTINGS.sub("", latex).strip() if "\\" in latex else latex


_DOLLARS = re.compile(
    r"\$(?<![\\$].)(?:\$(?P<dollars>[^$]++)\$\$|(?=[^\s$])[^$\n]{0,999}(?<=[^\s\\])\$(?!\d))"
)
# Formulas in $, \( \[ and environments. The first to begin wins, so nothing inside it matches.
_FORMULA = re.compile(
    _DOLLARS.pattern + r"|\\(?<!\\.)(?:"
    r"\((?P<round>(?:[^\\\n]++|\n(?!\n)|\\[^()])*+)\\\)"
    r"|\[(?!\\\])(?P<square>(?:[^\\\n]++|\n(?!\n)|\\[^][])*+)\\\]"
    r"|begin\{(?P<name>" + "|".join(_ENVIRONMENTS) + r")(?P<star>\*?)\}"
    r"(?:[^\\]++|\\(?!(?:begin|end)\{(?P=name)(?P=star)\}))*+\\end\{(?P=name)(?P=star)\})"
)


def _normal(match: re.Match) -> str:
    kind = match.lastgroup
    if not kind:  # $...$ stays as it is
        return match[0]
    latex = tidy(match[0] if kind == "star" else match[kind])
    mark = "$" if kind == "round" else "$$"
    return mark + latex + mark if latex else ""


def normal_delimiters(text: str) -> str:
    r"""Text with \(...\) as $...$, and with \[...\] and environments of formulas as $$...$$.

    >>> normal_delimiters(r"so \(x\) is 1")
    'so $x$ is 1'
    """
    if "\\" in text and ("\\(" in text or "\\[" in text or "\\begin{" in text):
        return _FORMULA.sub(_normal, text)
    return _DOLLARS.sub(_normal, text) if "$$" in text else text  # the same, but faster
