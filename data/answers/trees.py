"""Expression trees: how they are built, and what is known about them without evaluating them.

A tree is a Fraction, or a tuple whose first item is its kind.

numbers:
    Fraction
    ("dec", Fraction, decimals, significant digits)
    ("sym", name)    ("const", name)    ("%", a)
    ("+", a, b, ...)    ("*", a, b, ...)    ("^", a, b)    ("call", function, a, ...)
structures:
    ("seq", "(" or "[", ")" or "]", a, ...)    a point or an interval
    ("set", a, ...)    ("list", a, ...)        in any order
    ("blanks", a, ...)                         the answers to several blanks, in order
    ("union", a, ...)    ("ratio", a, ...)    ("matrix", row, ...)
    ("rel", (operator, ...), a, b, ...)        an equation or an inequality

Rational arithmetic is exact and happens while the tree is built. What is left (roots, constants,
variables) is evaluated in values.py. The limits below bound the work by counts. There is no clock,
no signal, and no simplifier that could run away.
"""

import math
from fractions import Fraction

MAX_NODES = 4000  # of a product of matrices, the only operation that copies its operands
# Bits of an exact power, half the bits of an exact sum or product, and the largest logarithm of
# what exp and ^ give
MAX_BITS = 20_000

_SAME_NAME = "sin cos tan sec csc cot sinh cosh tanh asin acos atan exp floor sqrt log".split()
FUNCTIONS = {  # name in a text -> name in a tree
    **{name: name for name in _SAME_NAME},
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "ln": "log",
    "lg": "log10",
    "abs": "abs",
    "Abs": "abs",
    "ceil": "ceil",
    "ceiling": "ceil",
    "Rational": "frac",
    "Fraction": "frac",
    "Integer": "same",
    "Float": "same",
    "Decimal": "same",
    "mpf": "same",
    "float": "same",
    "int": "same",
    "factorial": "factorial",
    "binomial": "binomial",
}
NEGATED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
STRUCTURES = {"seq", "set", "list", "blanks", "union", "ratio", "matrix", "rel"}


class Unreadable(ValueError):
    """The text is not mathematics, or it is larger than the limits allow."""


# ---- Arithmetic ----------------------------------------------------------------------------------


def power(base, exponent):
    exact_base = isinstance(base, Fraction)
    if exact_base and isinstance(exponent, Fraction) and exponent.denominator == 1:
        return _exact_power(base, exponent.numerator)
    if exponent == 1:
        return base
    return ("^", scalar(base), scalar(exponent))


def _exact_power(base: Fraction, n: int) -> Fraction:
    if base == 0 and n < 0:
        raise Unreadable("division by zero")
    if base == 0:
        return Fraction(n == 0)
    if abs(base) == 1:
        return base ** (n % 2)
    size = max(abs(base.numerator), base.denominator)
    if abs(n) * size.bit_length() > MAX_BITS:
        raise Unreadable("power too large")
    return base**n


def scalar(node):
    """The node as a number: a decimal becomes a Fraction. Raises Unreadable for a structure."""
    if isinstance(node, Fraction):
        return node
    if node[0] in STRUCTURES:
        raise Unreadable("arithmetic on a structure")
    return exact(node) if node[0] == "dec" else node


def add(*terms):
    if not all(_is_matrix(term) for term in terms):
        return _fold("+", [scalar(term) for term in terms])
    shapes = {tuple(map(len, term[1:])) for term in terms}
    if len(shapes) > 1:
        raise Unreadable("matrices of different shapes")
    rows = []
    for same_row in zip(*(term[1:] for term in terms), strict=True):
        rows.append(tuple(add(*cells) for cells in zip(*same_row, strict=True)))
    return ("matrix", *rows)


def multiply(*factors):
    matrices = [factor for factor in factors if _is_matrix(factor)]
    if not matrices:
        return _fold("*", [scalar(factor) for factor in factors])
    result = matrices[0][1:]
    for right in matrices[1:]:
        result = _matrix_product(result, right[1:])
    scale = [factor for factor in factors if factor not in matrices]
    rows = []
    for row in result:
        rows.append(tuple(multiply(*scale, cell) for cell in row))
    return ("matrix", *rows)


def _is_matrix(node) -> bool:
    return not isinstance(node, Fraction) and node[0] == "matrix"


def _matrix_product(left, right) -> list[list]:
    columns = list(zip(*right, strict=True))
    if any(len(row) != len(right) for row in left):
        raise Unreadable("matrices of different shapes")
    result = []
    for row in left:
        cells = []
        for column in columns:
            products = [multiply(x, y) for x, y in zip(row, column, strict=True)]
            cells.append(add(*products))
        result.append(cells)
    if _size(result, MAX_NODES) > MAX_NODES:
        raise Unreadable("product of matrices too large")
    return result


def _fold(operator, nodes):
    """A sum or a product whose rational part is computed."""
    neutral = Fraction(operator == "*")
    total, rest = neutral, []
    for node in nodes:
        if not isinstance(node, Fraction):
            rest.append(node)
            continue
        total = total + node if operator == "+" else total * node
        size = max(abs(total.numerator), total.denominator)
        if size.bit_length() > 2 * MAX_BITS:
            raise Unreadable("number too large")
    if not rest:
        return total
    if total == 0 and operator == "*":
        return total
    if total != neutral:
        rest.insert(0, total)
    return rest[0] if len(rest) == 1 else (operator, *rest)


def factorial(n):
    if not isinstance(n, Fraction) or n.denominator != 1 or not 0 <= n <= 1000:
        raise Unreadable("factorial")
    return Fraction(math.factorial(int(n)))


def binomial(n, k):
    whole = all(isinstance(x, Fraction) and x.denominator == 1 for x in (n, k))
    if not whole or not 0 <= k <= n <= 2000:
        raise Unreadable("binomial")
    return Fraction(math.comb(int(n), int(k)))


def negate(node):
    if not isinstance(node, Fraction) and node[0] == "dec":
        return ("dec", -node[1], *node[2:])
    return multiply(Fraction(-1), node)


# ---- What is known about a tree ------------------------------------------------------------------


def _size(node, limit: int) -> int:
    """The number of nodes of a tree. Counting stops a little beyond the limit."""
    count, waiting = 0, [node]
    while waiting and count <= limit:
        node = waiting.pop()
        count += 1
        if isinstance(node, (tuple, list)):
            waiting += node
    return count


def exact(node) -> Fraction | None:
    """The value of a rational number or a decimal, else None."""
    if isinstance(node, Fraction):
        return node
    return node[1] if node[0] == "dec" else None


def kind(node) -> str:
    """ "number", or the kind of a structure."""
    if isinstance(node, Fraction) or node[0] not in STRUCTURES:
        return "number"
    return node[0]


def is_percent(node) -> bool:
    return isinstance(node, tuple) and node[0] == "%"


def symbols(node) -> frozenset:
    """The names of the variables in a tree."""
    if not isinstance(node, tuple):
        return frozenset()
    if node[:1] == ("sym",):
        return frozenset([node[1]])
    return frozenset().union(*map(symbols, node))


def as_matrix(node):
    """[[1, 2], [3, 4]] as a matrix. Any other node is returned as it is."""
    if kind(node) != "seq" or len(node) <= 3:
        return node
    rows = node[3:]
    for row in rows:
        if kind(row) != "seq" or row[1] != "[":
            return node
    return ("matrix", *(row[3:] for row in rows))


def joined(a, b):
    """a < x and x < b as a < x < b. An infinite end is left out."""
    if kind(a) != "rel" or kind(b) != "rel":
        raise Unreadable("relations that do not join")
    for first in (a, reversed_relation(a)):
        for second in (b, reversed_relation(b)):
            if first[-1] != second[2]:
                continue
            operators = first[1] + second[1]
            terms = (*first[2:], *second[3:])
            infinity = ("const", "inf")
            infinite = (infinity, negate(infinity))
            if terms[-1] in infinite:
                operators, terms = operators[:-1], terms[:-1]
            if terms[0] in infinite:
                operators, terms = operators[1:], terms[1:]
            return ("rel", operators, *terms)
    raise Unreadable("relations that do not join")


def reversed_relation(relation):
    operators = tuple(NEGATED.get(operator, operator) for operator in reversed(relation[1]))
    return ("rel", operators, *reversed(relation[2:]))


def is_name(node) -> bool:
    """Whether a node left of "=" only names the value: x, a_3, f(2), |AB|, AB:CD, (p, q), NO/BO."""
    if isinstance(node, Fraction):
        return False
    if node[0] == "^":
        return node[2] == -1 and is_name(node[1])
    if node[0] == "call":
        if node[1] == "abs":
            return is_name(node[2])
        return node[1] not in FUNCTIONS.values()
    if node[0] in ("*", "ratio", "seq"):
        parts = [part for part in node[1:] if not isinstance(part, str)]
        return all(map(is_name, parts))
    return node[0] == "sym"


def stated_value(node):
    """The value 5 of x = 5, where the left side is a name, or of a worked sum like 35 + 70 =
    105."""
    if kind(node) != "rel" or set(node[1]) != {"="}:
        return node
    left = node[2]
    worked = kind(left) == "number" and not symbols(node)
    return node[-1] if worked or is_name(left) else node
