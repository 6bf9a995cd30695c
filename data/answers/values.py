"""The value of an expression tree at a few fixed points, with 120 digits, and what follows for
equality.

The work is bounded by the size of the tree: each node is one operation on numbers of 120 digits,
and the arguments of functions and the results of powers are limited. The points depend on the
names of the variables only, so every process uses the same ones.
"""

import functools
import random
import threading
from fractions import Fraction

import mpmath

from data.answers.trees import (
    FUNCTIONS,
    MAX_BITS,
    Unreadable,
    exact,
    symbols,
)

MP = mpmath.MPContext()
MP.dps = 120
# Irrational values that differ by less, absolutely or relatively, count as equal.
_TOLERANCE = MP.mpf(10) ** -100
_LOCK = threading.Lock()  # mpmath changes its working precision while it evaluates
_CONSTANTS = {"pi": MP.pi, "e": MP.e, "i": MP.mpc(0, 1), "inf": MP.inf}


def _evaluate(node, point: int):
    """The number that a tree gives when each variable has its fixed value of that point."""
    if isinstance(node, Fraction):
        return MP.mpf(node.numerator) / node.denominator
    kind, *parts = node
    if kind == "dec":
        return _evaluate(parts[0], point)
    if kind == "const":
        return +_CONSTANTS[parts[0]]
    if kind == "sym":
        return _value_of_variable(parts[0], point)
    if kind == "%":
        return _evaluate(parts[0], point) / 100
    if kind == "call":
        name, *arguments = parts
        return _call(name, [_evaluate(argument, point) for argument in arguments])
    if kind not in ("+", "*", "^"):
        raise Unreadable(kind)
    values = [_evaluate(part, point) for part in parts]
    if kind == "^":
        base, exponent = values
        return _bounded_power(base, exponent)
    if kind == "+":
        return MP.fsum(values)
    return MP.fprod(values)


def _value_of_variable(name: str, point: int):
    """All variables are positive at points 0 to 2, all negative at 3, and some negative at 4."""
    value = MP.mpf(random.Random(f"{name} {point}").uniform(0.3, 2.7))
    if point == 3:
        return -value
    if point == 4 and random.Random(name).random() < 0.5:
        return -value
    return value


def _bounded_power(base, exponent):
    if base:
        size = 1 + abs(MP.log(abs(base)))
        if abs(exponent) * size > MAX_BITS:
            raise Unreadable("power too large")
    return base**exponent


def _call(name, values):
    x = values[0]
    large = any(abs(value) > 10**9 for value in values)
    if large and name not in ("root", "log", "abs", "log10"):
        raise Unreadable("argument too large")
    if name == "root":
        degree = values[1]
        if degree == 2:
            return MP.sqrt(x)
        odd = MP.isint(degree) and int(degree) % 2
        if isinstance(x, MP.mpf) and x < 0 and odd:
            return -_bounded_power(-x, 1 / degree)
        return _bounded_power(x, 1 / degree)
    if name == "abs":
        return abs(x)
    if name in FUNCTIONS.values():
        return getattr(MP, name)(*values)
    # Any fixed function stands for an unknown f(x).
    total = 0
    for k, value in enumerate(values):
        total += (k + 1.37) * MP.sin(value + len(name))
    return total + ord(name[0])


@functools.lru_cache(1024)
def values(node, points=range(5)) -> list:
    """The values of a tree at the points, None where it is undefined. Raises Unreadable where the
    limits do not allow to evaluate it."""
    found = []
    with _LOCK:
        for point in points:
            try:
                value = _evaluate(node, point)
                found.append(None if MP.isnan(value) else value)
            except Unreadable:  # too large, which is not the same as undefined
                raise
            except (ZeroDivisionError, ValueError, OverflowError, TypeError, MP.NoConvergence):
                found.append(None)
    return found


def _agree(a, b) -> bool:
    if MP.isinf(a) or MP.isinf(b):
        return a == b
    return abs(a - b) <= _TOLERANCE * max(1, abs(a), abs(b))


def proportional(a, b, any_sign: bool) -> bool:
    """Whether a = c b for a constant c, which must be positive unless any_sign. Then a = 0 and b =
    0 are the same equation."""
    if symbols(a) != symbols(b):
        return False
    ratios = []
    for x, y in zip(values(a, range(3)), values(b, range(3)), strict=True):
        if x is None or y is None:
            continue
        if not x or not y:
            return False
        ratios.append(x / y)
    if len(ratios) < 2:
        return False
    first = ratios[0]
    if not all(_agree(first, ratio) for ratio in ratios):
        return False
    return any_sign or MP.im(first) == 0 and MP.re(first) > 0


def identical(a, b) -> bool:
    """Whether two number trees have the same value: exact for rational numbers, else at the
    points."""
    exact_a, exact_b = exact(a), exact(b)
    if exact_a is not None and exact_b is not None:
        return exact_a == exact_b
    points = range(5) if symbols(a) | symbols(b) else range(1)
    compared = 0
    for point, x, y in zip(points, values(a, points), values(b, points), strict=True):
        if x is None or y is None:
            continue
        # Where variables are negative, roots and logarithms have branches: only real values count.
        real = isinstance(x, MP.mpf) and isinstance(y, MP.mpf)
        if point >= 3 and not real:
            continue
        if not _agree(x, y):
            return False
        compared += 1
    return compared >= min(len(points), 2)


def rounds_to(decimal, other) -> bool:
    """Whether `decimal` is `other`, correctly rounded.

    `decimal` needs at least 4 significant digits (0.3333 for 1/3, 1.5708 for pi/2). A float of 15
    digits or more needs only 9 correct digits. Two short decimals, or a short decimal and a number
    with a finite decimal form, must be equal.
    """
    if isinstance(decimal, Fraction) or decimal[0] != "dec":
        return False
    _, _, decimals, digits = decimal
    if digits < 4 or symbols(other):
        return False
    other_is_float = isinstance(other, tuple) and other[0] == "dec" and other[3] >= 15
    number = exact(other)
    if digits < 15 and not other_is_float and number is not None:
        below = number.denominator
        if pow(10, below.bit_length(), below) == 0:
            return False  # `other` has a finite decimal form
    value = values(other, range(1))[0]
    if not isinstance(value, MP.mpf) or MP.isinf(value):
        return False
    error = abs(value - _evaluate(decimal, 0))
    if error <= MP.mpf(10) ** -decimals / 2:
        return True
    return digits >= 15 and error <= abs(value) * MP.mpf(10) ** -9
