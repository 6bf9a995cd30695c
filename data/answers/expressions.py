r"""A small parser for the mathematics that LaTeX writes and that Python prints. It gives the trees
of trees.py.

It is a recursive descent over at most a thousand characters. It reads both notations where LaTeX
and Python differ: \frac12 and 1/2, 2^{10} and 2**10, \{1, 2\} and {1, 2} and FiniteSet(1, 2), [0,
1) and Interval.Ropen(0, 1), x \ge 2 and Eq(x, 2).
"""

import math
import re
from fractions import Fraction

from data.answers.trees import (
    FUNCTIONS,
    MAX_BITS,
    Unreadable,
    add,
    as_matrix,
    binomial,
    exact,
    factorial,
    is_name,
    is_percent,
    joined,
    kind,
    multiply,
    negate,
    power,
    scalar,
    stated_value,
)

MAX_DEPTH = 40  # nested brackets, powers and functions
MAX_ITEMS = 64  # of a list, set or point
# Numbers, names and brackets that are read. What \pm makes the parser read twice counts twice.
MAX_STEPS = 4000


EQUATIONS = {"Eq": "=", "Ne": "!=", "Lt": "<", "Le": "<=", "Gt": ">", "Ge": ">="}  # sympy's names
SYMPY = {
    "Matrix",
    "ImmutableMatrix",
    "ImmutableDenseMatrix",
    "MutableDenseMatrix",
    "array",
    "FiniteSet",
    "Interval",
    "Interval.open",
    "Interval.Lopen",
    "Interval.Ropen",
    "Union",
    *EQUATIONS,
}
CONSTANTS = {
    "pi": "pi",
    "e": "e",
    "E": "e",
    "i": "i",
    "I": "i",
    "oo": "inf",
    "infty": "inf",
    "inf": "inf",
}
GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta lambda mu nu xi rho sigma tau phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega ell emptyset".split()
)
RELATIONS = {
    **{c: c for c in ("<", ">", "<=", ">=", "=", "!=")},
    "==": "=",
    r"\leq": "<=",
    r"\le": "<=",
    r"\lt": "<",
    r"\geq": ">=",
    r"\ge": ">=",
    r"\gt": ">",
    r"\neq": "!=",
    r"\ne": "!=",
    r"\approx": "=",
    r"\in": "in",
    r"\leqslant": "<=",
    r"\geqslant": ">=",
}
TIMES = {"*", r"\cdot", r"\times", r"\ast"}
TOKEN = re.compile(
    r"\s*(?:(\d+(?:\.\d*)?(?:[eE][-+]?\d+(?!\w))?|\.\d+)|(\\[A-Za-z]+|\\.|\*\*|[<>=!]="
    r"|Interval\.\w+|[A-Za-z]+|[-+*/^=<>()\[\]{}|,;:!%_'&]))",
    re.S,
)


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
        self.at = self.depth = self.steps = 0
        self.in_bars = self.in_matrix = False
        self.sign = 1  # the sign that \pm has in this reading
        self.saw_sign = False  # whether there is a \pm

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
        """groups := group (";" group)*

        A group of several values beside another group is a tuple: p=5,q=2;p=7,q=2.
        """
        groups = [self.items()]
        while self.take(";"):
            groups.append(self.items())
        if not self.peek(""):
            raise Unreadable(f"left over: {self.tokens[self.at]}")
        if len(groups) == 1:
            return groups[0][0] if len(groups[0]) == 1 else ("list", *groups[0])
        if max(map(len, groups)) == 1:
            return ("blanks", *(group[0] for group in groups))
        values = []
        for group in groups:
            point = ("seq", "(", ")", *map(stated_value, group))
            values.append(group[0] if len(group) == 1 else point)
        return ("list", *values)

    def items(self, both_signs=True):
        """Items that are separated by commas, "and" or "or". With both_signs an item with \\pm is
        two."""
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
        """relation := comparison ("&" comparison)*

        sympy prints 0 < x < 1 as (0 < x) & (x < 1).
        """
        value = self.comparison()
        while not self.in_matrix and self.take("&", r"\land", r"\wedge"):
            value = joined(value, self.comparison())
        return value

    def comparison(self):
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
                    factor = multiply(factor, power(self.postfix(), Fraction(-1)))
                    is_fraction = True
                elif number_before and number_after:
                    raise Unreadable("two numbers side by side")
                is_fraction = is_fraction and number_before and isinstance(factor, Fraction)
                if is_fraction and 0 < factor < 1 and exact(previous) is not None:  # 1\frac{1}{2}
                    sign = -1 if exact(previous) < 0 else 1
                    factors[-1] = add(previous, sign * factor)
                else:
                    factors.append(factor)
            else:
                return factors[0] if len(factors) == 1 else multiply(*factors)

    def starts_factor(self):
        token = self.tokens[self.at]
        if token in ("and", "or", r"\cup", r"\pm", r"\mp", r"\}", r"\\", r"\end"):
            return False
        if token in RELATIONS:
            return False
        if token == "|":
            return not self.in_bars
        return token[:1].isalnum() or token[:1] in ("\\", "(", "{", ".")

    def signed(self):
        if operator := self.take("-", "+", r"\pm", r"\mp"):
            value = self.nested(self.signed)
            return value if self.is_plus(operator) else negate(value)
        return self.postfix()

    def nested(self, parse, *arguments):
        self.depth += 1
        self.steps += 1
        if self.depth > MAX_DEPTH or self.steps > MAX_STEPS:
            raise Unreadable("nested too deeply, or too long")
        value = parse(*arguments)
        self.depth -= 1
        return value

    def postfix(self):
        value = self.nested(self.primary)
        while True:
            if self.take("!"):
                value = factorial(value)
            elif self.take("%"):
                if is_percent(value):
                    raise Unreadable("percent of percent")
                value = ("%", scalar(value))
            elif self.degrees():
                value = multiply(value, ("const", "pi"), Fraction(1, 180))
            elif self.take("^", "**"):
                value = power(value, self.nested(self.signed))
            else:
                return value

    def degrees(self) -> bool:
        """Take ^\\circ or ^{\\circ}, if it is next. It is left in the text only beside functions of
        angles."""
        for form in (["^", r"\circ"], ["^", "{", r"\circ", "}"]):
            if self.tokens[self.at : self.at + len(form)] == form:
                self.at += len(form)
                return True
        return False

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
            return binomial(self.argument(), self.argument())
        if name in FUNCTIONS:
            return self.function(name)
        if name in CONSTANTS:
            return ("const", CONSTANTS[name])
        if token in SYMPY and self.take("("):
            return self.sympy_object(token)
        if name in GREEK or (token.isalpha() and len(token) == 1):
            return self.symbol(name)
        if token.isascii() and token.isalpha() and len(token) <= 3:  # xy is x times y
            self.at -= 1
            self.tokens[self.at : self.at + 1] = list(token)
            return multiply(*(self.primary() for _ in token))
        raise Unreadable(token)

    def sympy_object(self, name):
        """The rest of Matrix([[1, 2]]), FiniteSet(1, 2), Interval.open(0, 1), Union(...) or Eq(x,
        2) after the opening bracket."""
        items = [] if self.peek(")") else self.nested(self.items, False)
        self.need(")")
        if name in EQUATIONS and len(items) == 2:
            return ("rel", (EQUATIONS[name],), *items)
        if name.startswith("Interval") and len(items) == 2:
            infinity = ("const", "inf")
            left_open = name.endswith((".open", ".Lopen")) or items[0] == negate(infinity)
            right_open = name.endswith((".open", ".Ropen")) or items[1] == infinity
            return ("seq", "(" if left_open else "[", ")" if right_open else "]", *items)
        if name == "FiniteSet":
            return ("set", *items)
        if name == "Union" and items:
            return items[0] if len(items) == 1 else ("union", *items)
        if len(items) == 1 and name not in EQUATIONS:
            value = as_matrix(items[0])
            if kind(value) == "seq" and value[1] == "[":  # one column
                return ("matrix", *((scalar(x),) for x in value[3:]))
            if kind(value) == "matrix":
                return value
        raise Unreadable(name)

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
        """An argument of a LaTeX command: {...} or a single token. Of a bare number it is only the
        first digit, as in \\frac12."""
        token = self.tokens[self.at]
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at : self.at + 1] = [token[0], token[1:]]
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
            value = arguments[0]
            if len(arguments) > 1:
                value = multiply(value, power(arguments[1], Fraction(-1)))
        elif kind == "factorial":
            value = factorial(*arguments)
        elif kind == "binomial":
            value = binomial(*arguments)
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
            builder = self.tokens[self.at].isalpha() and self.tokens[self.at + 1] in (
                "|",
                r"\mid",
                ":",
            )
            if builder and opening == r"\{":  # {x | 1 < x < 2} is 1 < x < 2
                self.at += 2
            items = [] if self.peek(closing) else self.nested(self.items, opening == r"\{")
            self.need(closing)
            if builder and len(items) == 1 and opening == r"\{":
                return items[0]
            if (
                items
                and opening == "{"
                and all(kind(x) == "ratio" and len(x) == 3 and is_name(x[1]) for x in items)
            ):
                items = [("rel", ("=",), *x[1:]) for x in items]  # {x: 2} is x = 2
                return items[0] if len(items) == 1 else ("list", *items)
            return items[0] if len(items) == 1 and opening == "{" else ("set", *items)
        outer, self.in_bars = self.in_bars, False
        outside, self.in_matrix = self.in_matrix, False
        items = [] if self.peek(")", "]") else self.nested(self.items, False)
        while self.take(";"):
            items += self.nested(self.items, False)
        self.in_bars, self.in_matrix = outer, outside
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
        outer, self.in_matrix = self.in_matrix, True
        while not self.take(r"\end"):
            if self.take("&") or self.take(r"\\"):
                if self.tokens[self.at - 1] == r"\\":
                    rows.append([])
            else:
                rows[-1].append(scalar(self.sum()))
        self.in_matrix = outer
        self.need("{")
        self.need(environment)
        self.need("}")
        return ("matrix", *(tuple(row) for row in rows if row))
