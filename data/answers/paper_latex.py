r"""A reader of LaTeX that behaves like the reader of the paper's grader (parse_latex of sympy
1.12).

The paper's rules (paper_rules.py) depend on its peculiarities, which are repeated here:

- It reads the longest prefix that is an expression, and ignores the rest.
- Every letter is a variable, also \pi, e and i. A letter before a bracket is a function.
- Digits with spaces between them are one number.
- An operator whose right side cannot be read ends the prefix: 2**10 is 2.
- An unknown character directly after the prefix makes the whole text unreadable.

Sums, integrals, limits and derivatives are not read. The trees are raw, ("+", a, b) as written,
since a rule of the grader compares them as written. `worked_out` turns them into the trees of
trees.py.
"""

import re
from fractions import Fraction

from data.answers.trees import (
    Unreadable,
    add,
    binomial,
    factorial,
    multiply,
    negate,
    power,
    symbols,
)

MAX_DEPTH = 30  # nested brackets, powers and functions
MAX_STEPS = 4000  # attempts to read a number, a name or a bracket
SKIPPED = {
    r"\,",
    r"\:",
    r"\;",
    r"\!",
    r"\quad",
    r"\qquad",
    r"\left",
    r"\right",
    r"\thinspace",
    r"\medspace",
    r"\thickspace",
    r"\*",
    r"\-",
    r"\.",
    r"\/",
    r"\"",
    r"\(",
    r"\=",
}
RELATIONS = {
    "=": "=",
    "<": "<",
    ">": ">",
    r"\neq": "!=",
    r"\leq": "<=",
    r"\le": "<=",
    r"\leqslant": "<=",
    r"\geq": ">=",
    r"\ge": ">=",
    r"\geqslant": ">=",
}
TIMES = {"*", r"\times", r"\cdot"}
OVER = {"/", r"\div", ":"}
FUNCTIONS = {
    "\\" + name: name for name in "exp log lg ln sin cos tan csc sec cot sinh cosh tanh".split()
} | {"\\arc" + name: "a" + name for name in ("sin", "cos", "tan")}
KEYWORDS = {
    r"\lim",
    r"\int",
    r"\sum",
    r"\prod",
    r"\to",
    r"\rightarrow",
    r"\Rightarrow",
    r"\langle",
    r"\rangle",
    r"\rfloor",
    r"\rceil",
    r"\}",
    *RELATIONS,
    *TIMES,
    *OVER,
    *FUNCTIONS,
}
CLOSING = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}
TOKEN = re.compile(
    r"[ \t\r\n]+|(&[ \t\r\n]*=|=[ \t\r\n]*&|d[ \t\r\n]*(?:[a-zA-Z]|\\[a-zA-Z]+)|\\[a-zA-Z]+"
    r"|\\[,:;!*\-./\"(={}]|'+|[a-zA-Z0-9+\-*/()\[\]{}|_^:=<>!,.])",
    re.A,
)


class Rejected(Unreadable):
    """There is no readable prefix: a character is outside the grammar, or the text is too large."""


def read_prefix(text: str):
    """The raw tree of the longest prefix of `text` that is an expression or a relation.

    Raises Unreadable if there is none, or if the next character is outside the grammar.
    """
    reader = _Reader(text)
    tree = reader.relation()
    reader.token()
    return tree


class _Reader:
    def __init__(self, text: str):
        self.text, self.at, self.depth = text, 0, 0
        self.seen = (-1, "", 0)  # (where the last token was searched, the token, where it ends)
        self.in_bars = False
        self.steps = 0

    def attempt(self, read, *arguments):
        """The result of `read`, or None with the position as before."""
        state = self.at, self.depth, self.in_bars
        try:
            return read(*arguments)
        except Rejected:
            raise
        except Unreadable:
            self.at, self.depth, self.in_bars = state
            return None

    def token(self) -> str:
        """The next token, "" at the end. Raises Unreadable at a character outside the grammar."""
        if self.seen[0] == self.at:
            return self.seen[1]
        end = self.at
        while True:
            if end >= len(self.text):
                self.seen = (self.at, "", end)
                return ""
            match = TOKEN.match(self.text, end)
            if not match:
                raise Rejected(self.text[end])
            end = match.end()
            if match[1] and match[1] not in SKIPPED:
                name = "=" if "&" in match[1] else match[1]
                self.seen = (self.at, name, end)
                return name

    def take(self, *wanted: str) -> str | None:
        token = self.token()
        if not token or token not in wanted:
            return None
        self.at = self.seen[2]
        return token

    def need(self, *wanted: str) -> str:
        taken = self.take(*wanted)
        if taken is None:
            raise Unreadable(f"expected {wanted}")
        return taken

    def relation(self):
        left = self.sum()
        while operator := self.take(*RELATIONS):
            left = ("rel", RELATIONS[operator], left, self.sum())
        return left

    def sum(self):
        self.depth += 1
        left = self.product()
        while self.token() in ("+", "-"):
            start, operator = self.at, self.take("+", "-")
            right = self.attempt(self.product)
            if right is None:
                self.at = start
                break
            if operator == "-":
                right = ("*", Fraction(-1), right)
            left = ("+", left, right)
        self.depth -= 1
        return left

    def product(self, functions=True):
        left = self.unary(functions)
        while self.token() in TIMES or self.token() in OVER:
            start, operator = self.at, self.take(*TIMES, *OVER)
            right = self.attempt(self.unary, functions)
            if right is None:
                self.at = start
                break
            left = ("*", left, right if operator in TIMES else ("^", right, Fraction(-1)))
        return left

    def unary(self, functions):
        sign = 1
        while operator := self.take("+", "-"):
            sign = -sign if operator == "-" else sign
        factors = [self.postfix(True)]
        while self.starts(functions):
            factor = self.attempt(self.postfix, functions)
            if factor is None:
                break
            factors.append(factor)
        value = _side_by_side(factors)
        if sign > 0:
            return value
        return -value if isinstance(value, Fraction) else ("*", Fraction(-1), value)

    def starts(self, functions) -> bool:
        token = self.token()
        if token in FUNCTIONS or token in (r"\sqrt", r"\overline"):
            return functions
        if token == "|":
            return self.depth > 0 and not self.in_bars
        if token in CLOSING or token in (r"\lfloor", r"\lceil"):
            return True
        is_name = token[:1].isalnum() or token[:1] == "\\" and token[1:2].isalpha()
        return is_name and token not in KEYWORDS

    def postfix(self, functions):
        value = self.primary(functions)
        while self.token() == "^":
            start = self.at
            self.take("^")
            exponent = self.attempt(self.script)
            if exponent is None:
                self.at = start
                break
            value = ("^", value, exponent)
            if self.take("_"):
                self.script()
        while self.take("!"):
            value = ("call", "!", value)
        return value

    def script(self):
        if self.take("{"):
            value = self.sum()
            self.need("}")
            return value
        return self.atom()

    def primary(self, functions):
        self.steps += 1
        if self.depth > MAX_DEPTH or self.steps > MAX_STEPS:
            raise Rejected("nested too deeply, or too long")
        if opening := self.take(*CLOSING):
            outer, self.in_bars = self.in_bars, False
            value = self.sum()
            self.in_bars = outer
            self.need(CLOSING[opening])
            return value
        if self.take("|"):
            outer, self.in_bars = self.in_bars, True
            value = self.sum()
            self.in_bars = outer
            self.need("|")
            return ("call", "abs", value)
        if opening := self.take(r"\lfloor", r"\lceil"):
            value = self.sum()
            self.need(opening.replace("\\l", "\\r"))
            return ("call", opening[2:], value)
        if name := self.take(*FUNCTIONS):
            return self.function(FUNCTIONS[name])
        if self.take(r"\sqrt"):
            root = Fraction(2)
            if self.take("["):
                root = self.sum()
                self.need("]")
            return ("call", "root", self.group(), root)
        if self.take(r"\overline"):
            return ("call", "conjugate_", self.group())
        return self.atom(functions)

    def group(self):
        self.need("{")
        value = self.sum()
        self.need("}")
        return value

    def function(self, name):
        base = exponent = None
        for _ in range(2):
            if base is None and self.take("_"):
                base = self.script()
            elif exponent is None and self.take("^"):
                exponent = self.script()
        if self.token() == "(":
            argument = self.arguments()[0]
        else:
            self.depth += 1
            argument = self.product(functions=False)
            self.depth -= 1
        if name in ("log", "ln", "lg"):
            base = base or (Fraction(10) if name == "lg" else None)
            value = ("call", "log", argument) if base is None else ("call", "log", argument, base)
        elif name == "exp":
            value = ("^", ("const", "e"), argument)
        elif exponent == -1 and name in ("sin", "cos", "tan"):
            return ("call", "a" + name, argument)
        else:
            value = ("call", name, argument)
        return value if exponent is None else ("^", value, exponent)

    def atom(self, functions=False):
        token = self.token()
        if token.isdigit():
            return self.number()
        if self.take(r"\frac", r"\dfrac", r"\tfrac"):
            parts = []
            for _ in range(2):
                digit = self.take(*"0123456789")
                parts.append(Fraction(digit) if digit else self.group())
            inverse = ("^", parts[1], Fraction(-1))
            return inverse if parts[0] == 1 else ("*", parts[0], inverse)
        if self.take(r"\binom", r"\dbinom", r"\tbinom"):
            return ("call", "binomial", self.group(), self.group())
        is_name = token[:1].isalpha() or token[:1] == "\\" and token[1:2].isalpha()
        if token in KEYWORDS or not is_name:
            raise Unreadable(f"no expression at {token}")
        self.take(token)
        if token == r"\infty":
            return ("const", "inf")
        name = token.lstrip("\\").replace(" ", "")
        if self.take("_"):
            name += f"_{self.script()}"
        while self.token().startswith("'"):
            name += self.take(self.token())
        arguments = None
        if functions and self.token() == "(":
            arguments = self.attempt(self.arguments)
        return ("sym", name) if arguments is None else ("call", name + "_", *arguments)

    def arguments(self):
        self.need("(")
        found = [self.sum()]
        while self.take(","):
            found.append(self.sum())
        self.need(")")
        return found

    def number(self):
        digits = self.digits()
        while self.token() == ",":  # three digits must follow
            group = re.match(
                r",\s*(\d)\s*(\d)\s*(\d)", self.text[self.seen[2] - 1 : self.seen[2] + 20], re.A
            )
            if not group:
                break
            digits += group[1] + group[2] + group[3]
            self.at = self.seen[2] - 1 + group.end()
        if self.token() == "." and re.match(
            r"\s*\d", self.text[self.seen[2] : self.seen[2] + 9], re.A
        ):
            self.take(".")
            digits += "." + self.digits()
        if re.fullmatch("0+[1-9].*", digits) and "." not in digits:
            raise Rejected("a leading zero")
        return Fraction(digits)

    def digits(self) -> str:
        found = ""
        while digit := self.take(*"0123456789"):
            found += digit
        return found


def _side_by_side(factors: list):
    """The product of the factors. An x between two values without variables means "times"."""
    kept = []
    for k, factor in enumerate(factors):
        inside = factor == ("sym", "x") and 0 < k < len(factors) - 1
        if not inside or symbols(factors[k - 1]) | symbols(factors[k + 1]):
            kept.append(factor)
    value = kept[-1]
    for factor in reversed(kept[:-1]):
        value = ("*", factor, value)
    return value


def worked_out(tree):
    """A raw tree as a tree of trees.py, with its rational arithmetic computed."""
    if isinstance(tree, Fraction) or tree[0] in ("sym", "const"):
        return tree
    parts = [worked_out(part) if isinstance(part, (tuple, Fraction)) else part for part in tree[1:]]
    if tree[0] == "+":
        return add(*parts)
    if tree[0] == "*":
        return negate(parts[1]) if parts[0] == -1 else multiply(*parts)
    if tree[0] == "^":
        return power(*parts)
    if tree[0] == "call" and parts[0] == "!":
        if isinstance(parts[1], Fraction):
            return factorial(parts[1])
        return ("call", "factorial_", parts[1])
    if tree[0] == "call" and parts[0] == "binomial":
        return binomial(*parts[1:])
    if tree[0] == "rel":
        raise Unreadable("a relation has no value")
    return ("call", *parts)
