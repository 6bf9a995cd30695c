"""The value of an expression tree, with 120 digits at a few fixed points, and what follows about equality.

Effort is bounded by the size of the tree: each node is one operation on numbers of 120 digits, with the arguments of
functions and the results of powers limited. The points come from the names of the variables, not from a clock or a
global generator, so that every process sees the same.
"""

import functools
import random
import threading
from fractions import Fraction

import mpmath

from data.answers.trees import FUNCTIONS, MAX_BITS, Unreadable, exact, symbols

MP = mpmath.MPContext()
MP.dps = 120
SAME = (
    MP.mpf(10) ** -100
)  # irrational values that differ by less, absolutely or relatively, count as equal
LOCK = threading.Lock()  # mpmath changes its working precision while it evaluates


def evaluate(node, point: int):
    """The number (120 digits) that a tree has when each symbol takes its fixed value of that point."""
    if isinstance(node, Fraction):
        return MP.mpf(node.numerator) / node.denominator
    kind, *parts = node
    if kind == "dec":
        return evaluate(parts[0], point)
    if kind == "const":
        return {"pi": +MP.pi, "e": +MP.e, "i": MP.mpc(0, 1), "inf": MP.inf}[parts[0]]
    if kind == "sym":  # all positive at points 0 to 2, all negative at 3, both at 4
        value = MP.mpf(random.Random(f"{parts[0]} {point}").uniform(0.3, 2.7))
        return (
            -value if point == 3 or point == 4 and random.Random(parts[0]).random() < 0.5 else value
        )
    if kind == "%":
        return evaluate(parts[0], point) / 100
    if kind == "call":
        return call(parts[0], [evaluate(part, point) for part in parts[1:]])
    if kind not in ("+", "*", "^"):
        raise Unreadable(kind)
    values = [evaluate(part, point) for part in parts]
    if kind == "^":
        return bounded_power(*values)
    return MP.fsum(values) if kind == "+" else MP.fprod(values)


def bounded_power(base, exponent):
    if base and abs(exponent) * (1 + abs(MP.log(abs(base)))) > MAX_BITS:
        raise Unreadable("power too large")
    return base**exponent


def call(name, values):
    x = values[0]
    if any(abs(v) > 10**9 for v in values) and name not in ("root", "log", "abs", "log10"):
        raise Unreadable("argument too large")
    if name == "root":
        negative = isinstance(x, MP.mpf) and x < 0 and MP.isint(values[1]) and int(values[1]) % 2
        if values[1] == 2:
            return MP.sqrt(x)
        return -bounded_power(-x, 1 / values[1]) if negative else bounded_power(x, 1 / values[1])
    if name == "abs":
        return abs(x)
    if name in FUNCTIONS.values():
        return getattr(MP, name)(*values)
    return sum((k + 1.37) * MP.sin(v + len(name)) for k, v in enumerate(values)) + ord(
        name[0]
    )  # an unknown f(x)


@functools.lru_cache(1024)
def values(node, points=range(5)) -> list:
    """Values at the points; None where undefined. Raises Unreadable where the limits forbid the evaluation."""
    found = []
    with LOCK:
        for point in points:
            try:
                value = evaluate(node, point)
                found.append(None if MP.isnan(value) else value)
            except Unreadable:  # refused, not undefined
                raise
            except (ZeroDivisionError, ValueError, OverflowError, TypeError, MP.NoConvergence):
                found.append(None)
    return found


def agree(a, b) -> bool:
    if MP.isinf(a) or MP.isinf(b):
        return a == b
    return abs(a - b) <= SAME * max(1, abs(a), abs(b))


def proportional(a, b, any_sign: bool) -> bool:
    """a = c b for a constant c (positive unless any_sign): then a = 0 and b = 0 are one equation."""
    if symbols(a) != symbols(b):
        return False
    pairs = [
        (x, y)
        for x, y in zip(values(a, range(3)), values(b, range(3)), strict=True)
        if None not in (x, y)
    ]
    if len(pairs) < 2 or any(not x or not y for x, y in pairs):
        return False
    ratios = [x / y for x, y in pairs]
    return all(agree(ratios[0], r) for r in ratios) and (
        any_sign or MP.im(ratios[0]) == 0 and MP.re(ratios[0]) > 0
    )


def identical(a, b) -> bool:
    """Whether two number trees have the same value: exact for rationals, else at the points."""
    if exact(a) is not None and exact(b) is not None:
        return exact(a) == exact(b)
    points = range(5) if symbols(a) | symbols(b) else range(1)
    pairs = []
    for k, (x, y) in enumerate(zip(values(a, points), values(b, points), strict=True)):
        real = isinstance(x, MP.mpf) and isinstance(y, MP.mpf)
        if None not in (x, y) and (
            k < 3 or real
        ):  # where variables are negative, roots and logarithms have branches
            pairs.append((x, y))
    return len(pairs) >= min(len(points), 2) and all(agree(x, y) for x, y in pairs)


def rounds_to(decimal, other) -> bool:
    """`decimal` stands for a value that cannot be written out: at least 4 significant digits and rightly rounded
    (0.3333 for 1/3, 1.5708 for pi/2), or a float of 15 digits or more, right to 9. Of two short decimals, or a short
    decimal and a whole number, nothing is let go."""
    if isinstance(decimal, Fraction) or decimal[0] != "dec" or decimal[3] < 4 or symbols(other):
        return False
    other_is_float = isinstance(other, tuple) and other[0] == "dec" and other[3] >= 15
    number = exact(other)
    if decimal[3] < 15 and not other_is_float and number is not None:
        if (
            pow(10, number.denominator.bit_length(), number.denominator) == 0
        ):  # other has a finite decimal form
            return False
    value = values(other, range(1))[0]
    if not isinstance(value, MP.mpf) or MP.isinf(value):
        return False
    error = abs(value - evaluate(decimal, 0))
    return (
        error <= MP.mpf(10) ** -decimal[2] / 2
        or decimal[3] >= 15
        and error <= abs(value) * MP.mpf(10) ** -9
    )
