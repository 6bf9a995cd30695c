"""Mathematical expressions: one small parser for LaTeX and for what Python prints, and a bounded evaluator.

A tree is a Fraction or a tuple whose first item names its kind:
  numbers     Fraction | ("dec", Fraction, decimals, significant digits) | ("sym", name) | ("const", name) | ("%", a)
              | ("+", a, b, ...) | ("*", a, b, ...) | ("^", a, b) | ("call", function, a, ...)
  structures  ("seq", "(" or "[", ")" or "]", a, ...) for points and intervals | ("set", ...) | ("list", ...) unordered
              | ("union", ...) | ("ratio", ...) | ("matrix", row, ...) | ("rel", (operator, ...), a, b, ...)
Rational arithmetic is done exactly while the tree is built. What is left (surds, constants, variables) is evaluated
with 120 digits at a few fixed points: effort is bounded by the size of the expression, and there is no simplifier that
could run away, no clock and no signal.
"""

import functools
import math
import random
import re
import threading
from fractions import Fraction

import mpmath

MAX_DEPTH = 40  # nested brackets, powers and functions
MAX_ITEMS = 64  # of a list, set or point
MAX_BITS = 20_000  # size of an exact power, and (as a number) of the logarithm of what exp and ^ may produce


class Unreadable(ValueError):
    """Not mathematics, or more of it than the limits allow."""


FUNCTIONS = {
    **{name: name for name in "sin cos tan sec csc cot sinh cosh tanh asin acos atan exp floor sqrt log".split()},
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "ln": "log", "lg": "log10", "abs": "abs", "Abs": "abs",
    "ceil": "ceil", "ceiling": "ceil", "Rational": "frac", "Fraction": "frac", "Integer": "same", "Float": "same",
}  # fmt: skip
CONSTANTS = {"pi": "pi", "e": "e", "E": "e", "i": "i", "I": "i", "oo": "inf", "infty": "inf", "inf": "inf"}
GREEK = frozenset("alpha beta gamma delta epsilon varepsilon zeta eta theta lambda mu nu xi rho sigma tau phi varphi "
                  "chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega ell emptyset".split())
RELATIONS = {**{c: c for c in ("<", ">", "<=", ">=", "=", "!=")}, "==": "=", r"\leq": "<=", r"\le": "<=", r"\lt": "<",
              r"\geq": ">=", r"\ge": ">=", r"\gt": ">", r"\neq": "!=", r"\ne": "!=", r"\approx": "=", r"\in": "in",
              r"\leqslant": "<=", r"\geqslant": ">="}  # fmt: skip
NEGATED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
TIMES = {"*", r"\cdot", r"\times", r"\ast"}
STRUCTURES = {"seq", "set", "list", "union", "ratio", "matrix", "rel"}
TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?(?:[eE][-+]?\d+(?!\w))?|\.\d+)|(\\[A-Za-z]+|\\.|\*\*|[<>=!]=|[A-Za-z]+"
                    r"|[-+*/^=<>()\[\]{}|,;:!%_'&]))", re.S)


def power(base, exponent):
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        n = exponent.numerator
        if base in (0, 1, -1):
            if base == 0 and n < 0:
                raise Unreadable("division by zero")
            return base ** (n % 2 if base else min(n, 1))
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
        return ("matrix", *(tuple(add(*cells) for cells in zip(*rows, strict=True))
                            for rows in zip(*(t[1:] for t in terms), strict=True)))
    return fold("+", [scalar(t) for t in terms], sum)


def multiply(*factors):
    matrices = [f for f in factors if not isinstance(f, Fraction) and f[0] == "matrix"]
    if not matrices:
        return fold("*", [scalar(f) for f in factors], math.prod)
    result = [list(row) for row in matrices[0][1:]]
    for right in matrices[1:]:
        columns = list(zip(*right[1:], strict=True))
        if any(len(row) != len(right) - 1 for row in result):
            raise Unreadable("matrices of different shapes")
        result = [[add(*(multiply(x, y) for x, y in zip(row, column, strict=True))) for column in columns]
                  for row in result]
    scale = [f for f in factors if f not in matrices]
    return ("matrix", *(tuple(multiply(*scale, cell) for cell in row) for row in result))


def fold(operator, nodes, combine):
    numbers = [n for n in nodes if isinstance(n, Fraction)]
    rest = [n for n in nodes if not isinstance(n, Fraction)]
    total = combine(numbers) if numbers else None
    if not rest:
        return Fraction(total)
    if total is not None and total != (0 if operator == "+" else 1):
        rest.insert(0, Fraction(total))
    return rest[0] if len(rest) == 1 else (operator, *rest)


def exact(node) -> Fraction | None:
    return node if isinstance(node, Fraction) else node[1] if node[0] == "dec" else None


class Parser:
    def __init__(self, text: str):
        self.tokens, position = [], 0
        while position < len(text):
            match = TOKEN.match(text, position)
            if not match:
                raise Unreadable(text[position:])
            self.tokens.append(match[1] or match[2])
            position = match.end()
        self.tokens += ["", ""]
        self.at = self.depth = 0
        self.in_bars = False
        self.sign, self.saw_sign = 1, False  # which reading of \pm is being parsed, and whether there is one

    def peek(self, *tokens):
        return self.tokens[self.at] in tokens

    def take(self, *tokens):
        if self.tokens[self.at] in tokens:
            self.at += 1
            return self.tokens[self.at - 1]
        return None

    def need(self, token):
        if not self.take(token):
            raise Unreadable(f"expected {token} before {self.tokens[self.at]}")

    def whole(self):
        """groups := group (";" group)*; a group of several values beside another one is a tuple: p=5,q=2;p=7,q=2."""
        groups = [self.items()]
        while self.take(";"):
            groups.append(self.items())
        if not self.peek(""):
            raise Unreadable(f"left over: {self.tokens[self.at]}")
        if len(groups) > 1 and max(map(len, groups)) > 1:
            return ("list", *(g[0] if len(g) == 1 else ("seq", "(", ")", *map(stated_value, g)) for g in groups))
        items = [item for group in groups for item in group]
        return items[0] if len(items) == 1 else ("list", *items)

    def items(self, both_signs=True):
        """Comma-separated items, also joined by "and"/"or"; an item with \\pm is two items when both_signs."""
        found = []
        while True:
            start, outer = self.at, self.saw_sign
            self.saw_sign = False
            found.append(self.relation())
            if both_signs and self.saw_sign:
                self.at, self.sign = start, -1
                found.append(self.relation())
                self.sign, self.saw_sign = 1, False
            self.saw_sign |= outer
            if len(found) > MAX_ITEMS:
                raise Unreadable("too many items")
            if not self.take(",", "and", "or", "和", "或"):
                return found
            while self.take(",", "and", "or", "和", "或"):
                pass

    def relation(self):
        terms, operators = [self.union()], []
        while self.tokens[self.at] in RELATIONS:
            operators.append(RELATIONS[self.take(self.tokens[self.at])])
            terms.append(self.union())
        if not operators:
            return terms[0]
        if operators == ["in"]:  # x \in [0, 1]: the set is the answer
            return terms[1]
        return ("rel", tuple(operators), *terms)

    def union(self):
        parts = [self.ratio()]
        while self.take(r"\cup"):
            parts.append(self.ratio())
        return parts[0] if len(parts) == 1 else ("union", *parts)

    def ratio(self):
        parts = [self.sum()]
        while self.take(":"):
            parts.append(self.sum())
        return parts[0] if len(parts) == 1 else ("ratio", *parts)

    def sum(self):
        terms = [self.term()]
        while operator := self.take("+", "-", r"\pm", r"\mp"):
            term = self.term()
            terms.append(term if self.is_plus(operator) else negate(term))
        return terms[0] if len(terms) == 1 else add(*terms)

    def is_plus(self, operator):
        self.saw_sign |= operator in (r"\pm", r"\mp")
        return {"+": 1, "-": -1, r"\pm": self.sign, r"\mp": -self.sign}[operator] > 0

    def term(self):
        factors = [self.signed()]
        while True:
            if self.take(*TIMES):
                factors.append(self.signed())
            elif self.take("/"):
                factors.append(power(self.signed(), Fraction(-1)))
            elif self.starts_factor():
                previous = factors[-1]
                number_before = self.tokens[self.at - 1].isdigit()
                number_after = self.tokens[self.at][:1].isdigit() or self.tokens[self.at] == ""
                is_fraction = self.peek(r"\frac")
                factor = self.postfix()
                if number_before and number_after and self.take("/"):  # 1 1/2
                    factor, is_fraction = multiply(factor, power(self.postfix(), Fraction(-1))), True
                elif number_before and number_after:
                    raise Unreadable("two numbers side by side")
                value = factor if is_fraction and number_before and isinstance(factor, Fraction) else None
                if value is not None and 0 < value < 1 and exact(previous) is not None:  # 1\frac{1}{2}
                    sign = -1 if exact(previous) < 0 else 1
                    factors[-1] = add(previous, sign * value)
                else:
                    factors.append(factor)
            else:
                return factors[0] if len(factors) == 1 else multiply(*factors)

    def starts_factor(self):
        token = self.tokens[self.at]
        if token in ("and", "or") or token in RELATIONS or token in (r"\cup", r"\pm", r"\mp", r"\}", r"\\", r"\end"):
            return False
        return token[:1].isalnum() or token[:1] in ("\\", "(", "{", ".") or (token == "|" and not self.in_bars)

    def signed(self):
        if operator := self.take("-", "+", r"\pm", r"\mp"):
            value = self.nested(self.signed)
            return value if self.is_plus(operator) else negate(value)
        return self.postfix()

    def nested(self, parse, *arguments):
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        value = parse(*arguments)
        self.depth -= 1
        return value

    def postfix(self):
        value = self.nested(self.primary)
        while True:
            if self.take("!"):
                if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 1000:
                    raise Unreadable("factorial")
                value = Fraction(math.factorial(int(value)))
            elif self.take("%"):
                value = ("%", scalar(value))
            elif self.take("^", "**"):
                value = power(value, self.nested(self.signed))
            else:
                return value

    def primary(self):
        token = self.tokens[self.at]
        self.at += 1
        if token[:1].isdigit() or token[:1] == ".":
            return self.number(token)
        if token in ("(", "[", "{", r"\{"):
            return self.bracket(token)
        if token in ("|", r"\lvert"):
            outer, self.in_bars = self.in_bars, True
            value = self.sum()
            self.in_bars = outer
            self.need("|" if token == "|" else r"\rvert")
            return ("call", "abs", scalar(value))
        name = token.lstrip("\\")
        if token == r"\begin":
            return self.matrix()
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            return multiply(self.argument(), power(self.argument(), Fraction(-1)))
        if token in (r"\binom", r"\dbinom"):
            n, k = self.argument(), self.argument()
            if isinstance(n, Fraction) and isinstance(k, Fraction) and n.denominator == k.denominator == 1:
                if 0 <= k <= n <= 2000:
                    return Fraction(math.comb(int(n), int(k)))
            raise Unreadable("binomial")
        if name in FUNCTIONS:
            return self.function(name)
        if name in CONSTANTS:
            return ("const", CONSTANTS[name])
        if token == "Matrix" and self.take("("):
            value = as_matrix(self.sum())
            self.need(")")
            return value
        if name in GREEK or (token.isalpha() and len(token) == 1):
            return self.symbol(name)
        if token.isascii() and token.isalpha() and len(token) <= 3:  # xy is x times y
            self.at -= 1
            self.tokens[self.at:self.at + 1] = list(token)
            return multiply(*(self.primary() for _ in token))
        raise Unreadable(token)

    def number(self, token):
        exponent = int(token.lower().partition("e")[2] or 0)
        if abs(exponent) > MAX_BITS // 4:
            raise Unreadable("power of ten too large")
        value = Fraction(token.rstrip("."))
        if self.take("_"):  # 204_5 is 204 in base five
            base = self.argument()
            try:
                return Fraction(int(token, int(exact(base))))
            except (ValueError, TypeError):
                raise Unreadable("number base") from None
        if self.tokens[self.at] == "j":
            self.at += 1
            return multiply(value, ("const", "i"))
        if "." in token or "e" in token.lower():
            mantissa = token.lower().partition("e")[0]
            decimals = len(mantissa.partition(".")[2]) - exponent
            return ("dec", value, decimals, len(mantissa.replace(".", "").lstrip("0")))
        return value

    def symbol(self, name):
        while self.peek("_", "'"):
            name += self.take("_", "'")
            if name[-1] == "_":
                if self.take("{"):
                    while not self.peek("}", ""):
                        name += self.tokens[self.at]
                        self.at += 1
                    self.need("}")
                else:
                    name += self.tokens[self.at]
                    self.at += 1
        if name[0] in "fghFGHP" and self.take("("):
            arguments = self.items(both_signs=False)
            self.need(")")
            return ("call", name, *map(scalar, arguments))
        return ("sym", name)

    def argument(self):
        """One LaTeX argument: {...}, or a single token; of a bare number only its first digit, as in \\frac12."""
        token = self.tokens[self.at]
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at:self.at + 1] = [token[0], token[1:]]
        return self.nested(self.primary)

    def function(self, name):
        kind = FUNCTIONS[name]
        exponent, base = None, None
        if name == "sqrt":
            if self.take("["):
                base = self.sum()
                self.need("]")
            value = scalar(self.nested(self.primary))
            if isinstance(value, Fraction) and base is None and value >= 0:
                roots = math.isqrt(value.numerator), math.isqrt(value.denominator)
                if roots[0] ** 2 == value.numerator and roots[1] ** 2 == value.denominator:
                    return Fraction(*roots)
            return ("call", "root", value, base or Fraction(2))
        if self.take("_"):
            base = self.argument()
        if self.take("^", "**"):
            exponent = self.argument() if not self.take("-") else negate(self.argument())
        if self.take("("):
            arguments = [scalar(a) for a in self.items(both_signs=False)]
            self.need(")")
        else:  # \sin 2x \cos y: the argument ends before the next function
            factors = [self.nested(self.postfix)]
            while self.starts_factor() and self.tokens[self.at].lstrip("\\") not in FUNCTIONS:
                factors.append(self.nested(self.postfix))
            arguments = [scalar(multiply(*factors))]
        if kind in ("frac", "same"):
            value = arguments[0] if len(arguments) == 1 else multiply(arguments[0], power(arguments[1], Fraction(-1)))
        else:
            if exponent == -1 and kind in ("sin", "cos", "tan"):
                kind, exponent = "a" + kind, None
            is_exp = kind == "exp" and len(arguments) == 1
            value = power(("const", "e"), arguments[0]) if is_exp else ("call", kind, *arguments)
            if base is not None:
                value = multiply(value, power(("call", kind, scalar(base)), Fraction(-1)))
        return value if exponent is None else power(value, exponent)

    def bracket(self, opening):
        if opening == r"\{" or opening == "{":
            closing = r"\}" if opening == r"\{" else "}"
            items = [] if self.peek(closing) else self.nested(self.items, opening == r"\{")
            self.need(closing)
            if opening == r"\{":
                return ("set", *items)
            return items[0] if len(items) == 1 else ("list", *items)
        outer, self.in_bars = self.in_bars, False
        items = [] if self.peek(")", "]") else self.nested(self.items, False)
        while self.take(";"):
            items += self.nested(self.items, False)
        self.in_bars = outer
        closing = self.take(")", "]")
        if not closing:
            raise Unreadable("bracket not closed")
        if len(items) == 1 and (opening + closing == "()" or kind(items[0]) == "matrix"):
            return items[0]
        return ("seq", opening, closing, *items)

    def matrix(self):
        self.need("{")
        environment = self.take("pmatrix", "bmatrix", "matrix", "vmatrix", "Bmatrix", "array")
        self.need("}")
        if environment == "array" and self.take("{"):
            while self.tokens[self.at] and not self.take("}"):
                self.at += 1
        rows = [[]]
        while not self.take(r"\end"):
            if self.take("&") or self.take(r"\\"):
                if self.tokens[self.at - 1] == r"\\":
                    rows.append([])
            else:
                rows[-1].append(scalar(self.sum()))
        self.need("{")
        self.need(environment)
        self.need("}")
        return ("matrix", *(tuple(row) for row in rows if row))


def negate(node):
    if not isinstance(node, Fraction) and node[0] == "dec":
        return ("dec", -node[1], *node[2:])
    return multiply(Fraction(-1), node)


def kind(node) -> str:
    return "number" if isinstance(node, Fraction) or node[0] not in STRUCTURES else node[0]


def symbols(node) -> frozenset:
    if not isinstance(node, tuple):
        return frozenset()
    if node[:1] == ("sym",):
        return frozenset([node[1]])
    return frozenset().union(*map(symbols, node))


def as_matrix(node):
    """[[1, 2], [3, 4]] as a matrix; anything else is returned as it is."""
    if kind(node) == "seq" and len(node) > 3 and all(kind(row) == "seq" and row[1] == "[" for row in node[3:]):
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
    return node[0] == "sym" or node[0] in ("*", "ratio", "seq") and all(
        is_name(part) for part in node[1:] if not isinstance(part, str))


def stated_value(node):
    """x = 5 as its value 5, where the left side is a name or a sum worked out: 35 + 70 = 105."""
    if kind(node) == "rel" and set(node[1]) == {"="}:
        if is_name(node[2]) or kind(node[2]) == "number" and not symbols(node):
            return node[-1]
    return node


# ---------------------------------------------------------------------------------------------------- evaluate

MP = mpmath.MPContext()
MP.dps = 120
SAME = MP.mpf(10) ** -100  # irrational values that differ by less, absolutely or relatively, count as equal
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
        return -value if point == 3 or point == 4 and random.Random(parts[0]).random() < 0.5 else value
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
        return -((-x) ** (1 / values[1])) if negative else MP.sqrt(x) if values[1] == 2 else x ** (1 / values[1])
    if name == "abs":
        return abs(x)
    if name in FUNCTIONS.values():
        return getattr(MP, name)(*values)
    return sum((k + 1.37) * MP.sin(v + len(name)) for k, v in enumerate(values)) + ord(name[0])  # an unknown f(x)


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
    pairs = [(x, y) for x, y in zip(values(a, range(3)), values(b, range(3)), strict=True) if None not in (x, y)]
    if len(pairs) < 2 or any(not x or not y for x, y in pairs):
        return False
    ratios = [x / y for x, y in pairs]
    return all(agree(ratios[0], r) for r in ratios) and (any_sign or MP.im(ratios[0]) == 0 and MP.re(ratios[0]) > 0)


def identical(a, b) -> bool:
    """Whether two number trees have the same value: exact for rationals, else at the points."""
    if exact(a) is not None and exact(b) is not None:
        return exact(a) == exact(b)
    points = range(5) if symbols(a) | symbols(b) else range(1)
    pairs = []
    for k, (x, y) in enumerate(zip(values(a, points), values(b, points), strict=True)):
        real = isinstance(x, MP.mpf) and isinstance(y, MP.mpf)
        if None not in (x, y) and (k < 3 or real):  # where variables are negative, roots and logarithms have branches
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
        if pow(10, number.denominator.bit_length(), number.denominator) == 0:  # other has a finite decimal form
            return False
    value = values(other, range(1))[0]
    if not isinstance(value, MP.mpf) or MP.isinf(value):
        return False
    error = abs(value - evaluate(decimal, 0))
    return error <= MP.mpf(10) ** -decimal[2] / 2 or decimal[3] >= 15 and error <= abs(value) * MP.mpf(10) ** -9
