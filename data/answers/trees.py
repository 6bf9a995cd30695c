"""Expression trees: how they are built, and what can be said of them without evaluating.

A tree is a Fraction or a tuple whose first item names its kind:
  numbers     Fraction | ("dec", Fraction, decimals, significant digits) | ("sym", name) | ("const", name) | ("%", a)
              | ("+", a, b, ...) | ("*", a, b, ...) | ("^", a, b) | ("call", function, a, ...)
  structures  ("seq", "(" or "[", ")" or "]", a, ...) for points and intervals | ("set", ...) | ("list", ...) unordered
              | ("blanks", ...) answers to several blanks, in order | ("union", ...) | ("ratio", ...)
              | ("matrix", row, ...) | ("rel", (operator, ...), a, b, ...)
Rational arithmetic is done exactly while the tree is built; what is left (surds, constants, variables) is evaluated by
values.py. The limits below bound the work by counts: there is no clock, no signal, and no simplifier that could run
away.
"""

import math
from fractions import Fraction

MAX_NODES = 4000  # of a product of matrices, the only operation that copies its operands
MAX_BITS = 20_000  # of an exact power, half of an exact sum or product, and the logarithm of what exp and ^ produce

FUNCTIONS = {
    **{
        name: name
        for name in "sin cos tan sec csc cot sinh cosh tanh asin acos atan exp floor sqrt log".split()
    },
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
    """Not mathematics, or more of it than the limits allow."""


def power(base, exponent):
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        n = exponent.numerator
        if base in (0, 1, -1):
            if base == 0 and n < 0:
                raise Unreadable("division by zero")
            return Fraction(base) ** (n % 2 if base else min(n, 1))
        if abs(n) * max(abs(base.numerator), base.denominator).bit_length() > MAX_BITS:
            raise Unreadable("power too large")
        return base**n
    if exponent == 1:
        return base
    return ("^", scalar(base), scalar(exponent))


def scalar(node):
    if isinstance(node, Fraction) or node[0] not in STRUCTURES:
        return exact(node) if not isinstance(node, Fraction) and node[0] == "dec" else node
    raise Unreadable("arithmetic on a structure")


def add(*terms):
    if all(not isinstance(t, Fraction) and t[0] == "matrix" for t in terms):
        shapes = {tuple(len(row) for row in t[1:]) for t in terms}
        if len(shapes) > 1:
            raise Unreadable("matrices of different shapes")
        return (
            "matrix",
            *(
                tuple(add(*cells) for cells in zip(*rows, strict=True))
                for rows in zip(*(t[1:] for t in terms), strict=True)
            ),
        )
    return fold("+", [scalar(t) for t in terms])


def multiply(*factors):
    matrices = [f for f in factors if not isinstance(f, Fraction) and f[0] == "matrix"]
    if not matrices:
        return fold("*", [scalar(f) for f in factors])
    result = [list(row) for row in matrices[0][1:]]
    for right in matrices[1:]:
        columns = list(zip(*right[1:], strict=True))
        if any(len(row) != len(right) - 1 for row in result):
            raise Unreadable("matrices of different shapes")
        result = [
            [add(*(multiply(x, y) for x, y in zip(row, column, strict=True))) for column in columns]
            for row in result
        ]
        if size(result, MAX_NODES) > MAX_NODES:
            raise Unreadable("product of matrices too large")
    scale = [f for f in factors if f not in matrices]
    return ("matrix", *(tuple(multiply(*scale, cell) for cell in row) for row in result))


def fold(operator, nodes):
    """A sum or product with its rational part worked out."""
    total = Fraction(operator == "*")
    rest = []
    for node in nodes:
        if isinstance(node, Fraction):
            total = total + node if operator == "+" else total * node
            if max(total.numerator.bit_length(), total.denominator.bit_length()) > 2 * MAX_BITS:
                raise Unreadable("number too large")
        else:
            rest.append(node)
    if not rest or total == 0 and operator == "*":
        return total
    if total != (operator == "*"):
        rest.insert(0, total)
    return rest[0] if len(rest) == 1 else (operator, *rest)


def factorial(n):
    if not isinstance(n, Fraction) or n.denominator != 1 or not 0 <= n <= 1000:
        raise Unreadable("factorial")
    return Fraction(math.factorial(int(n)))


def binomial(n, k):
    if all(isinstance(x, Fraction) and x.denominator == 1 for x in (n, k)) and 0 <= k <= n <= 2000:
        return Fraction(math.comb(int(n), int(k)))
    raise Unreadable("binomial")


def size(node, limit: int) -> int:
    """Nodes of a tree, counted no further than a little beyond the limit."""
    count, waiting = 0, [node]
    while waiting and count <= limit:
        node = waiting.pop()
        count += 1
        if isinstance(node, (tuple, list)):
            waiting += node
    return count


def exact(node) -> Fraction | None:
    return node if isinstance(node, Fraction) else node[1] if node[0] == "dec" else None


def joined(a, b):
    """a < x and x < b as a < x < b; an infinite end says nothing."""
    if kind(a) == kind(b) == "rel":
        for first in (a, reversed_relation(a)):
            for second in (b, reversed_relation(b)):
                if first[-1] == second[2]:
                    operators, terms = first[1] + second[1], (*first[2:], *second[3:])
                    infinite = ("const", "inf"), negate(("const", "inf"))
                    start, end = terms[0] in infinite, len(terms) - (terms[-1] in infinite)
                    return ("rel", operators[start : end - 1], *terms[start:end])
    raise Unreadable("relations that do not join")


def reversed_relation(relation):
    operators = tuple(NEGATED.get(o, o) for o in reversed(relation[1]))
    return ("rel", operators, *reversed(relation[2:]))


def negate(node):
    if not isinstance(node, Fraction) and node[0] == "dec":
        return ("dec", -node[1], *node[2:])
    return multiply(Fraction(-1), node)


def kind(node) -> str:
    return "number" if isinstance(node, Fraction) or node[0] not in STRUCTURES else node[0]


def is_percent(node) -> bool:
    return isinstance(node, tuple) and node[0] == "%"


def symbols(node) -> frozenset:
    if not isinstance(node, tuple):
        return frozenset()
    if node[:1] == ("sym",):
        return frozenset([node[1]])
    return frozenset().union(*map(symbols, node))


def as_matrix(node):
    """[[1, 2], [3, 4]] as a matrix; anything else is returned as it is."""
    if (
        kind(node) == "seq"
        and len(node) > 3
        and all(kind(row) == "seq" and row[1] == "[" for row in node[3:])
    ):
        return ("matrix", *(row[3:] for row in node[3:]))
    return node


def is_name(node) -> bool:
    """x, a_3, f(2), |AB|, AB:CD, (p, q), NO/BO: what stands left of "=" only to say what the value is called."""
    if isinstance(node, Fraction):
        return False
    if node[0] == "^":
        return node[2] == -1 and is_name(node[1])
    if node[0] == "call":
        return node[1] not in FUNCTIONS.values() or node[1] == "abs" and is_name(node[2])
    return (
        node[0] == "sym"
        or node[0] in ("*", "ratio", "seq")
        and all(is_name(part) for part in node[1:] if not isinstance(part, str))
    )


def stated_value(node):
    """x = 5 as its value 5, where the left side is a name or a sum worked out: 35 + 70 = 105."""
    if kind(node) == "rel" and set(node[1]) == {"="}:
        if is_name(node[2]) or kind(node[2]) == "number" and not symbols(node):
            return node[-1]
    return node
