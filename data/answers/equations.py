"""Finds the equations of a worked solution and checks them exactly: "3 * 4 = 12", "20% of 50 = 10".

An equation is two sides of plain arithmetic around "=". Words and units beside the sides are
skipped. An equation that cannot be read with certainty (it has a variable, or a unit in the middle
as in "3 apples + 4 = 7") is counted and not judged. This separates errors of arithmetic from wrong
ideas, and it computes a solution again with other numbers.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

MAX_SIDE = 120  # characters of a side; longer ones are not read

Tree = Fraction | tuple  # a number, or (operator, left, right)


@dataclass(frozen=True)
class Equation:
    """left = right, for example ("*", 3, 4) = 12."""

    text: str
    left: Tree
    right: Tree
    decimals: int | None  # of the right side if it is a plain number

    def holds(self) -> bool:
        """Whether both sides are equal, or the right side is the left side, correctly rounded.

        A number on the left that looks rounded (three decimals or more, or ending in 33, 66 or 67)
        may be wrong by half of its last digit. A division by zero does not hold.
        """
        try:
            left, right = value(self.left), value(self.right)
            computed = not isinstance(self.left, Fraction)
            if self.text.endswith("%") and computed and left == right * 100:
                return True  # 100 - 40 = 60%
            slack = Fraction(0)
            if self.decimals:
                slack = _half_of_digit(self.decimals)
            for number in _rounded(self.left):
                by = _half_of_digit(_places(number))
                moved = value(_moved(self.left, number, by))
                slack += abs(moved - left)
        except ZeroDivisionError:
            return False
        return abs(left - right) <= slack


def value(tree: Tree) -> Fraction:
    """The number that a tree gives. Raises ZeroDivisionError."""
    if not isinstance(tree, tuple):
        return tree
    left = value(tree[1])
    right = value(tree[2])
    match tree[0]:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
    return left / right


def leaves(tree: Tree) -> Iterator[Fraction]:
    """The numbers of a tree, from left to right."""
    if isinstance(tree, tuple):
        yield from leaves(tree[1])
        yield from leaves(tree[2])
    else:
        yield tree


def equations(text: str) -> tuple[list[Equation], int]:
    """(the equations of a text in order, how many "=" could not be read).

    "a = b = c" is a = b and b = c. "x = 5" counts as not read, and "5 = 5" is left out, since
    neither can be wrong.

    >>> found, unread = equations("She has 3 * 4 = 12 pens. Then x = 5.")
    >>> [(equation.text, equation.holds()) for equation in found], unread
    ([('3 * 4 = 12', True)], 1)
    """
    found, unread = [], 0
    for clause in _clauses(text):
        parts = clause.split("=")
        for number, (before, after) in enumerate(zip(parts, parts[1:], strict=False)):
            left = _side(before, from_start=False, inner=number > 0)
            right = _side(after, from_start=True, inner=True)
            if left is None or right is None:
                unread += 1
                continue
            left_text, left_tree = left
            right_text, right_tree = right
            if not isinstance(left_tree, tuple) and not isinstance(right_tree, tuple):
                continue  # 5 = 5
            decimals = None
            plain = re.fullmatch(r"-?\d*\.?(\d*)", right_text)
            if plain:
                decimals = len(plain[1]) if "." in right_text else 0
            text = f"{left_text} = {right_text}"
            found.append(Equation(text, left_tree, right_tree, decimals))
    return found, unread


# ---- reading -------------------------------------------------------------------------------------

_SIDE = r"[\d.+\-*/()% ]"


_PLAIN = (
    (r"<<[^<>]*>>", ""),
    (r"\\d?frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1)/(\2)"),
    (r"\\(?:times|cdot)|[×·]|(?<=[\d)%])\s*[xX]\s*(?=[\d($])", "*"),
    (r"\\div|÷", "/"),
    ("[−–]", "-"),
    ("％", "%"),
    ("＝", "="),
    (r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))", ""),  # thousands
    (r"\\?\$|€|£|¥|\\\(|\\\)|\\\[|\\\]|&|\*\*(?!\d)|(?<!\d)\*\*|\\(?=%)", ""),
    (r"%\s*of\s+", "% * "),
)


def _clauses(text: str) -> Iterator[str]:
    """The pieces of a text that have an "=", with plain signs. A sentence, a line or a comma ends a
    piece."""
    for pattern, replacement in _PLAIN:
        text = re.sub(pattern, replacement, text)
    for clause in re.split(r"\n|[.?!](?=\s|$)|[。；;！？]|,\s|，|、", text):
        if "=" in clause and not re.search(r"[<>!=~≈]=|=\s*=", clause):
            yield clause


def _side(text: str, from_start: bool, inner: bool) -> tuple[str, Tree] | None:
    """(text, tree) of the arithmetic on a side of "=": at its start if from_start, else at its end.

    inner: the side has a "=" on both ends. None if the side cannot be read with certainty.
    """
    text = text.strip()
    if from_start or inner and not re.search(r"\d", re.sub(rf"^{_SIDE}+", "", text)):
        run = re.match(rf"{_SIDE}*", text)[0]
        after = text[len(run) :]
        touches = not run.endswith(" ") and after[:1].isascii()
        if touches and re.match(r"[\w^{\\]", after):
            return None  # 3x, 10^2
        if re.search(r"[\d^]", after):
            return None  # "= 5 apples + 3"
    else:
        ends = [match.end() for match in re.finditer(r"[\d)%]", text)]
        text = text[: max(ends, default=0)]  # without the unit of "5 * 4 apples ="
        run = re.search(rf"{_SIDE}*$", text)[0]
        before = text[: len(text) - len(run)]
        touches = not run.startswith(" ") and before[-1:].isascii()
        if touches and re.search(r"[\w^}\\]$", before):
            return None  # f(3), x2
        start = run.strip()[:1]
        last = before.strip()[-1:]
        if start in ("+", "*", "/", ")"):
            return None  # the left operand is not a number
        if start in ("-", "(") and last not in ("", ":", "：", "(", "，"):
            return None
        if re.search(r"[-+*/^]\s*$", before):
            return None
        if before.strip() and re.fullmatch(r"[\d.]+%?", run.strip()):
            return None  # "5 of the 3 = 15" says nothing certain about 3
    run = run.strip().rstrip(".").strip()
    tree = _tree(run)
    return None if tree is None else (run, tree)


def _tree(text: str) -> Tree | None:
    if not text or len(text) > MAX_SIDE or not re.search(r"\d", text):
        return None
    code = re.sub(r"(\d+\.?\d*|\.\d+)\s*%", r"(\1/100)", text)
    try:
        return _walk(ast.parse(code.strip(), mode="eval").body, code.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def _walk(node, code: str) -> Tree:
    match node:
        case ast.Constant():
            literal = ast.get_source_segment(code, node)
            if not re.fullmatch(r"\d+\.?\d*|\.\d+", literal):
                raise ValueError(literal)
            return Fraction(literal)
        case ast.UnaryOp(op=ast.USub()):
            inner = _walk(node.operand, code)
            return ("-", Fraction(0), inner) if isinstance(inner, tuple) else -inner
        case ast.BinOp() if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)], _walk(node.left, code), _walk(node.right, code)
    raise ValueError(code)


# ---- rounded numbers -----------------------------------------------------------------------------


def _half_of_digit(places: int) -> Fraction:
    """Half of the last digit of a number with so many decimals."""
    return Fraction(1, 2 * 10**places)


def _places(number: Fraction) -> int:
    """How many decimals a number has, at most 12."""
    places = 0
    while places < 12 and number * 10**places % 1:
        places += 1
    return places


def _rounded(tree: Tree) -> list[Fraction]:
    """The numbers of a tree that may be rounded, each once."""
    found = []
    for number in dict.fromkeys(leaves(tree)):
        places = _places(number)
        thirds = places == 2 and int(abs(number) * 100) % 100 in (33, 66, 67)
        if places > 2 or thirds:
            found.append(number)
    return found


def _moved(tree: Tree, number: Fraction, by: Fraction) -> Tree:
    """The tree with `by` added to every leaf that is `number`."""
    if isinstance(tree, tuple):
        return tree[0], _moved(tree[1], number, by), _moved(tree[2], number, by)
    return tree + by if tree == number else tree
