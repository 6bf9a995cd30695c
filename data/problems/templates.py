"""Templates of word problems: a question with placeholders for its numbers, and an equation over
them.

A template gives a program of thought, a chain of thought, and any number of variants. New numbers
(`WordTemplate.resample`) prevent that a model memorizes answers. New names and things
(`Rewording`) prevent that it learns that Joan always finds seashells. Without variants a small
model memorizes a few thousand questions long before it can read them.
"""

import functools
import math
import operator
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from string import ascii_lowercase

from data.io import InputError


def parse_number(text: str) -> Fraction:
    """The exact number in a text. A float that is a rounded fraction becomes the fraction.

    Raises InputError if the text is not a number.

    >>> parse_number("2.50"), parse_number("0.16666666666666666")
    (Fraction(5, 2), Fraction(1, 6))
    """
    try:
        number = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{text!r} is not a number") from None
    near = number.limit_denominator(1000)
    is_rounded = number.denominator > 10**6 and abs(number - near) < Fraction(1, 10**9)
    return near if is_rounded else number


def number_text(number: Fraction) -> str:
    """The number as an exact text without trailing zeros.

    >>> number_text(Fraction(8)), number_text(Fraction(1, 4)), number_text(Fraction(1, 6))
    ('8', '0.25', '1/6')
    """
    rest, twos, fives = number.denominator, 0, 0
    while rest % 2 == 0:
        rest //= 2
        twos += 1
    while rest % 5 == 0:
        rest //= 5
        fives += 1
    places = max(twos, fives)
    if rest > 1 or places == 0:
        return str(number)
    digits = str(abs(number) * 10**places)
    digits = digits.zfill(places + 1)
    sign = "-" if number < 0 else ""
    return f"{sign}{digits[:-places]}.{digits[-places:]}"


_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


@functools.cache
def _parse(equation: str):
    """The tree of a prefix equation: (op, left, right), the index of a placeholder (int), or a
    constant (Fraction)."""
    tokens = iter(equation.split())

    def node():
        token = next(tokens, None)
        if token is None:
            raise InputError(f"equation {equation!r} ends too early")
        if token in _OPERATORS:
            return token, node(), node()
        placeholder = re.fullmatch(r"number(\d+)", token)
        return int(placeholder[1]) if placeholder else parse_number(token)

    tree = node()
    if next(tokens, None) is not None:
        raise InputError(f"equation {equation!r} goes on after the end")
    return _in_reading_order(tree)


def _in_reading_order(tree):
    """The tree whose sums and products begin with the number that comes first in the question.

    The annotators wrote either order, and a model cannot learn an arbitrary choice.
    """
    if not isinstance(tree, tuple):
        return tree
    op = tree[0]
    left = _in_reading_order(tree[1])
    right = _in_reading_order(tree[2])
    first, second = _placeholders(left), _placeholders(right)
    if op in "+*" and first and second and min(second) < min(first):
        return (op, right, left)
    return (op, left, right)


def _placeholders(tree) -> list[int]:
    return [leaf for leaf in _leaves(tree) if isinstance(leaf, int)]


def _leaves(tree) -> Iterator[int | Fraction]:
    if isinstance(tree, tuple):
        yield from _leaves(tree[1])
        yield from _leaves(tree[2])
    else:
        yield tree


@dataclass(frozen=True)
class WordTemplate:
    """A question with placeholders, the numbers that fill them, and an equation. Arithmetic is
    exact.

    Raises InputError if the equation cannot be read, or if a number is missing.

    >>> numbers = Fraction(5), Fraction(3)
    >>> template = WordTemplate("Joan has number0 pens and buys number1 .", numbers,
    ...                         "+ number0 number1")
    >>> template.text(), template.answer(), template.program()
    ('Joan has 5 pens and buys 3.', '8', 'print(5 + 3)')
    """

    question: str  # with placeholders number0, number1, ...
    numbers: tuple[Fraction, ...]
    equation: str  # in prefix notation: / + number0 number1 2.0

    def __post_init__(self):
        used = _placeholders(_parse(self.equation))
        used += map(int, re.findall(r"number(\d+)", self.question))
        last, count = max(used, default=-1), len(self.numbers)
        if last >= count:
            raise InputError(f"number{last} is used, but there are {count} numbers")

    def text(self) -> str:
        """The question with the numbers filled in, and without the spaces before punctuation that
        the files have."""

        def number(match: re.Match) -> str:
            return number_text(self.numbers[int(match[1])])

        filled = re.sub(r"number(\d+)", number, self.question)
        filled = re.sub(r"(?<=\w) ([’']) s\b", r"\1s", filled)
        filled = re.sub(r"\s+(n['’]t|['’](?:s|re|ve|ll|d|m))\b", r"\1", filled)
        filled = re.sub(r"\(\s+", "(", filled)
        filled = re.sub(r"\s+([.,?!;:%)])(?!\d)", r"\1", filled)
        return filled.strip()

    def value(self) -> Fraction:
        """The value of the equation."""
        return self._results()[-1]

    def answer(self) -> str:
        """The exact value as an integer, a finite decimal or a fraction."""
        return number_text(self.value())

    def program(self, lines: bool = False) -> str:
        """A line of Python without needless parentheses: print((5 + 3) / 2).

        lines: write each operation on a line, for process supervision: a = 5 + 3, b = a / 2,
        print(b).
        """
        tree = _parse(self.equation)
        if not lines:
            text, _ = self._infix(tree)
            return f"print({text})"
        statements: list[str] = []

        def variable(tree) -> str:
            if not isinstance(tree, tuple):
                text = number_text(self._leaf(tree))
                return f"({text})" if "/" in text else text
            left = variable(tree[1])
            right = variable(tree[2])
            name = ascii_lowercase[len(statements)]
            statements.append(f"{name} = {left} {tree[0]} {right}")
            return name

        last = variable(tree)
        return "\n".join([*statements, f"print({last})"])

    def cot(self) -> str:
        """Each operation on a line, then the answer. The lines show results with 4 decimals, and
        the computation goes on with the exact ones."""
        lines: list[str] = []
        _, result = self._chain(_parse(self.equation), lines)
        return "\n".join([*lines, f"The answer is {result}."])

    def agrees(self, answer: str) -> bool:
        """Whether the equation gives this answer, up to a thousandth or half of the last
        decimal."""
        stated = Fraction(answer)
        places = len(answer.rstrip("0").partition(".")[2])
        tolerance = abs(stated) / 1000
        if places:  # a whole number is not a rounded one: 3 is not an answer of 2.5
            tolerance = max(tolerance, Fraction(1, 2 * 10**places))
        return abs(self.value() - stated) <= tolerance

    def resample(self, rng: random.Random, tries: int = 300) -> "WordTemplate":
        """The same question with other numbers of similar size and kind.

        The result of every operation keeps its kind: above zero, whole, or with at most 4
        decimals. If none of the `tries` draws fits, the template itself is returned. Different
        numbers stay different, and equal numbers stay equal: the annotators identified numbers by
        value, and `+ number0 number0` may mean two numbers that are both 3. For the same reason a
        number that is equal to a constant of the equation stays.
        """
        leaves = _leaves(_parse(self.equation))
        constants = {leaf for leaf in leaves if isinstance(leaf, Fraction)}
        results = self._results()
        for _ in range(tries):
            drawn = {}
            for number in self.numbers:
                drawn[number] = number if number in constants else _draw(number, rng)
            if len(set(drawn.values())) < len(drawn):
                continue
            variant = replace(self, numbers=tuple(drawn[number] for number in self.numbers))
            try:
                if all(map(_alike, results, variant._results())):
                    return variant
            except ZeroDivisionError:
                continue
        return self

    def _leaf(self, leaf: int | Fraction) -> Fraction:
        return self.numbers[leaf] if isinstance(leaf, int) else leaf

    def _results(self) -> list[Fraction]:
        """The result of each operation. The last is the value. Raises ZeroDivisionError."""
        results = []

        def walk(tree):
            if not isinstance(tree, tuple):
                return self._leaf(tree)
            left = walk(tree[1])
            right = walk(tree[2])
            compute = _OPERATORS[tree[0]]
            results.append(compute(left, right))
            return results[-1]

        value = walk(_parse(self.equation))
        return results or [value]

    def _infix(self, tree) -> tuple[str, int]:
        """(text, precedence): 1 for a sum, 2 for a product or a fraction, 3 for a number."""
        if not isinstance(tree, tuple):
            text = number_text(self._leaf(tree))
            return text, 2 if "/" in text else 3
        op = tree[0]
        precedence = _PRECEDENCE[op]
        left, left_level = self._infix(tree[1])
        right, right_level = self._infix(tree[2])
        if left_level < precedence:
            left = f"({left})"
        same_level = right_level == precedence and op in "-/"
        if right_level < precedence or same_level:
            right = f"({right})"
        return f"{left} {op} {right}", precedence

    def _chain(self, tree, lines: list[str]) -> tuple[Fraction, str]:
        """(the value of a tree, its text). Appends the lines of its operations."""
        if not isinstance(tree, tuple):
            value = self._leaf(tree)
            return value, number_text(value)
        op = tree[0]
        left, left_text = self._chain(tree[1], lines)
        right, right_text = self._chain(tree[2], lines)
        if op in "*/" and "/" in left_text:  # 5 / 1/6 would be 5/6
            left_text = f"({left_text})"
        if op in "*/" and "/" in right_text:
            right_text = f"({right_text})"
        value = _OPERATORS[op](left, right)
        rounded = number_text(round(value, 4))
        lines.append(f"{left_text} {op} {right_text} = {rounded}")
        return value, rounded


def _draw(number: Fraction, rng: random.Random) -> Fraction:
    """A number of similar size (half to double; below 10 any digit) and of the same kind: a whole
    number that is as round, a decimal, or a fraction."""
    if number <= 0 or number == 1:
        return number
    text = number_text(number)
    if "/" in text:
        below = rng.choice((2, 3, 4, 5, 6, 8, 9, 10, 12))
        most = 2 * number
        if number < 1:
            most = min(most, 1)
        low = math.ceil(number * below / 2)
        high = math.floor(most * below)
        above = rng.randint(max(1, low), max(1, high))
        drawn = Fraction(above, below)
        return number if drawn.denominator == 1 else drawn
    _, _, decimals = text.partition(".")
    unit = Fraction(1, 10 ** len(decimals))
    # 6000 becomes a multiple of 100, 120 of 10, 123 of 1.
    while unit >= 1 and number % (10 * unit) == 0 and number >= 100 * unit:
        unit *= 10
    size = int(number / unit)
    low, high = size // 2, 2 * size
    if size < 10:
        low, high = 2 if unit == 1 else 1, 9
    drawn = rng.randint(low, high) * unit
    return number if unit < 1 and drawn.denominator == 1 else drawn


def _alike(old: Fraction, new: Fraction) -> bool:
    """Whether two results are of the same kind: whole, with at most 4 decimals, above zero."""
    if old.denominator == 1 and new.denominator > 1:
        return False
    if old * 10000 % 1 == 0 and new * 10000 % 1:
        return False
    if old > 0:
        return new > 0
    return old < 0 or new >= 0


# ---- Other words ---------------------------------------------------------------------------------

# Words with a capital that are not exchanged (days, months, places, titles), and counted words
# that are not exchanged (units of all sorts)
_NOT_NAMES = set(
    "Mrs Mr Halloween Christmas Valentine Valentines Easter Japanese Japan English America "
    "Europe Pokemon Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February "
    "March April May June July August September October November December".split()
)
_NOT_THINGS = set(
    "dollars cents bucks quarters dimes nickels pennies miles kilometers meters centimeters "
    "yards feet inches pounds ounces tons grams kilograms gallons liters pints cups acres "
    "seconds minutes hours days weeks months years times degrees points lives calories pairs "
    "dozens leaves less numbers".split()
)


class Rewording:
    """Exchanges names and things in a question: `Rewording(questions)(question, rng)`.

    The new names and things come from `questions`, which have placeholders
    (WordTemplate.question). A name is a word with a capital inside a sentence that never occurs in
    lower case. A thing is the plural after a number. Both must occur in at least two questions. A
    quarter of the results is in lower case, as half of the files are.
    """

    def __init__(self, questions: Iterable[str]):
        questions = list(questions)
        names, things, small = Counter(), Counter(), set()
        for question in questions:
            plurals = re.findall(r"number\d+ ([a-z]{2,}s)\b", question)
            things.update(set(plurals))
            if question != question.lower():
                small.update(re.findall(r"\b[a-z]+\b", question))
                capitals = re.findall(r"(?<=[a-z,] )[A-Z][a-z]+\b", question)
                names.update(set(capitals))
        everything = set(re.findall(r"[a-z]+", " ".join(questions).lower()))

        kept = set()
        for name, count in names.items():
            if count > 1 and name.lower() not in small:
                kept.add(name)
        self.names = sorted(kept - _NOT_NAMES)
        frequent = {thing for thing, count in things.items() if count > 1}
        self.things = {}  # plural -> singular
        for plural in sorted(frequent - _NOT_THINGS):
            forms = (plural[:-1], re.sub("es$", "", plural), re.sub("ies$", "y", plural))
            known = [word for word in forms if word in everything]
            self.things[plural] = known[0] if known else plural[:-1]
        self._name = {name.lower() for name in self.names}

    def __call__(self, question: str, rng: random.Random) -> str:
        words = sorted(set(re.findall(r"[a-z]+", question.lower())))
        names = [word for word in words if word in self._name]
        things = [word for word in words if word in self.things]
        others = [name.lower() for name in self.names if name.lower() not in names]
        drawn = rng.sample(others, min(len(names), len(others)))
        swap = dict(zip(names, drawn, strict=False))
        others = [thing for thing in self.things if thing not in things]
        drawn = rng.sample(others, min(len(things), len(others)))
        for old, new in zip(things, drawn, strict=False):
            if rng.random() < 0.5:
                swap[old] = new
                swap[self.things[old]] = self.things[new]

        def exchange(match: re.Match) -> str:
            word = match[0]
            new = swap.get(word.lower(), word)
            return new if word.islower() else new.capitalize()

        question = re.sub(r"[A-Za-z]+", exchange, question)
        if rng.random() < 0.25:
            return question.lower()

        def capital(match: re.Match) -> str:
            return match[0].capitalize() if match[0] in self._name else match[0]

        question = re.sub(r"[a-z]+", capital, question)
        start = r"(?:^|(?<=[.?!] ))(?!number\d)[a-z]"
        return re.sub(start, lambda match: match[0].upper(), question)
