"""The equations of a worked solution: "3 * 4 = 12", "$5 - $2 = $3", "20% of 50 = 10", found and checked exactly.

An equation is two sides of plain arithmetic around "="; words and units beside them are passed over. What cannot be
read for certain (a variable, a unit in the middle: "3 apples + 4 = 7") is counted and not judged. Used to tell slips of
arithmetic from wrong set-ups, and to work out a solution anew with other numbers.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

MAX_SIDE = 120  # characters of one side; longer ones are not read

Tree = Fraction | tuple  # a number, or (operator, left, right)


@dataclass(frozen=True)
class Equation:
    """left = right, e.g. ("*", 3, 4) = 12; `decimals` of the right side where it is a plain number, else None."""

    text: str
    left: Tree
    right: Tree
    decimals: int | None

    def holds(self) -> bool:
        """Whether both sides are equal: exactly, or as a right side with decimals rounds the left. A number on the left
        that looks rounded itself (three decimals or more, or ending in 33, 66 or 67) may be off by half its last digit.
        A division by zero does not hold."""
        try:
            left, right = value(self.left), value(self.right)
            if (
                self.text.endswith("%")
                and not isinstance(self.left, Fraction)
                and left == right * 100
            ):
                return True  # 100 - 40 = 60%
            slack = Fraction(1, 2 * 10**self.decimals) if self.decimals else Fraction(0)
            for number in _rounded(self.left):
                moved = _moved(self.left, number, Fraction(1, 2 * 10 ** _places(number)))
                slack += abs(value(moved) - left)
        except ZeroDivisionError:
            return False
        return abs(left - right) <= slack


def value(tree: Tree) -> Fraction:
    """Raises ZeroDivisionError."""
    if not isinstance(tree, tuple):
        return tree
    left, right = value(tree[1]), value(tree[2])
    match tree[0]:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
    return left / right


def leaves(tree: Tree) -> Iterator[Fraction]:
    if isinstance(tree, tuple):
        yield from leaves(tree[1])
        yield from leaves(tree[2])
    else:
        yield tree


def equations(text: str) -> tuple[list[Equation], int]:
    """(the equations of a text in its order, how many "=" could not be read). "a = b = c" is a = b and b = c; "x = 5"
    and "5 = 5" state nothing that could be wrong: the first is not read, the second is left out."""
    found, unread = [], 0
    for clause in _clauses(text):
        parts = clause.split("=")
        for number, (before, after) in enumerate(zip(parts, parts[1:], strict=False)):
            left, right = _side(before, False, number > 0), _side(after, True, True)
            if left is None or right is None:
                unread += 1
            elif isinstance(left[1], tuple) or isinstance(right[1], tuple):
                plain = re.fullmatch(r"-?\d*\.?(\d*)", right[0])
                decimals = len(plain[1]) if plain and "." in right[0] else 0 if plain else None
                found.append(Equation(f"{left[0]} = {right[0]}", left[1], right[1], decimals))
    return found, unread


# ---------------------------------------------------------------------------------------------------- reading

_SIDE = r"[\d.+\-*/()% ]"


def _clauses(text: str) -> Iterator[str]:
    """Pieces that hold at least one "=", signs made plain; a sentence, a line or a comma ends a piece."""
    text = re.sub(r"<<[^<>]*>>", "", text)
    text = re.sub(r"\\d?frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1)/(\2)", text)
    text = re.sub(r"\\(?:times|cdot)|[×·]|(?<=[\d)%])\s*[xX]\s*(?=[\d($])", "*", text)
    text = (
        re.sub(r"\\div|÷", "/", text)
        .replace("−", "-")
        .replace("–", "-")
        .replace("％", "%")
        .replace("＝", "=")
    )
    text = re.sub(r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))", "", text)  # thousands
    text = re.sub(r"\\?\$|€|£|¥|\\\(|\\\)|\\\[|\\\]|&|\*\*(?!\d)|(?<!\d)\*\*|\\(?=%)", "", text)
    text = re.sub(r"%\s*of\s+", "% * ", text)
    for clause in re.split(r"\n|[.?!](?=\s|$)|[。；;！？]|,\s|，|、", text):
        if "=" in clause and not re.search(r"[<>!=~≈]=|=\s*=", clause):
            yield clause


def _side(text: str, from_start: bool, inner: bool) -> tuple[str, Tree] | None:
    """(text, tree) of the arithmetic at the start (or at the end) of what stands on one side of "="."""
    text = text.strip()
    if from_start or inner and not re.search(r"\d", re.sub(rf"^{_SIDE}+", "", text)):
        run = re.match(rf"{_SIDE}*", text)[0]
        if (
            re.match(r"[\w^{\\]", text[len(run) :])
            and not run.endswith(" ")
            and text[len(run) :][0].isascii()
        ):
            return None  # 3x, 10^2
        if re.search(r"[\d^]", text[len(run) :]):
            return None  # more follows: "= 5 apples + 3"
    else:
        text = text[
            : max((m.end() for m in re.finditer(r"[\d)%]", text)), default=0)
        ]  # no unit: "5 * 4 apples ="
        run = re.search(rf"{_SIDE}*$", text)[0]
        before = text[: len(text) - len(run)]
        if re.search(r"[\w^}\\]$", before) and before[-1].isascii() and not run.startswith(" "):
            return None  # f(3), x2
        start, last = run.strip()[:1], before.strip()[-1:]
        if (
            start in ("+", "*", "/", ")")
            or start in ("-", "(")
            and last not in ("", ":", "：", "(", "，")
        ):
            return None  # the left operand is not a number
        if (
            re.search(r"[-+*/^]\s*$", before)
            or before.strip()
            and re.fullmatch(r"[\d.]+%?", run.strip())
        ):
            return None  # "5 of the 3 = 15" tells nothing certain about 3
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


# ---------------------------------------------------------------------------------------------------- rounded numbers


def _places(number: Fraction) -> int:
    places = 0
    while places < 12 and number * 10**places % 1:
        places += 1
    return places


def _rounded(tree: Tree) -> list[Fraction]:
    """Numbers of the tree that may have been rounded, each once."""
    return [
        n
        for n in dict.fromkeys(leaves(tree))
        if (places := _places(n)) > 2 or places == 2 and int(abs(n) * 100) % 100 in (33, 66, 67)
    ]


def _moved(tree: Tree, number: Fraction, by: Fraction) -> Tree:
    if isinstance(tree, tuple):
        return tree[0], _moved(tree[1], number, by), _moved(tree[2], number, by)
    return tree + by if tree == number else tree
