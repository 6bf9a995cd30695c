r"""Compares two answers: are they the same?

`compare` takes answers, not texts that contain one; use `extract` first. It tries cheap
comparisons before expensive ones: plain numbers (in microseconds), letters of multiple choice,
texts, times. Then reading.py removes what is not mathematics, expressions.py parses both answers,
and equality.py and values.py compare the trees.

Every step has a limit that is a count: 1,000 characters of an answer (longer ones are compared as
text), 4,000 steps of the parser, 40 levels, 64 items, 40,000 bits of an exact number, 4,000 nodes
of a matrix product, 5,000 comparisons, and 120 digits with bounded arguments of functions.
Patterns that scan a whole text are linear. There is no clock, no signal and no worker process, so
the same pair gets the same verdict on every machine, in every thread, under every load.
"""

import re
from typing import NamedTuple

from data.answers.equality import Mode, same
from data.answers.extraction import OPTION, extract, plain_number
from data.answers.reading import (
    CHARACTERS,
    MAX_LENGTH,
    SPACES,
    WORDS,
    Reading,
    circles,
    read,
)
from data.answers.trees import (
    Unreadable,
    is_percent,
    kind,
    multiply,
    stated_value,
)
from data.answers.units import is_measure
from data.answers.values import identical


class Verdict(NamedTuple):
    """The result of a comparison: `equal`, and the reason.

    - "equal": the answers are the same
    - "no_answer": one answer is missing or empty
    - "value": both are mathematics, with different values
    - "unit": the same number with different units (cm and m, $ and €); in strict mode also a unit
      that only one answer has
    - "format": both are mathematics, of different kinds (a point and a number, [0,1] and (0,1))
    - "not_parsed": one answer is not mathematics, or it is too large, and the texts differ
    """

    equal: bool
    reason: str


def compare(gold: str | None, prediction: str | None, strict: bool = False) -> Verdict:
    r"""Compare two answers. Never raises, never hangs, and does not depend on their order.

    The default is relaxed. It accepts:

    - a unit, a currency or words that only one answer has
    - 50% for 50 and for 0.5 (but not 50 for 0.5), x = 5 for 5, x > 5 for (5, inf)
    - a list in any order, as a set, or in the same order as a point
    - [5] and [1, 2, 3] as Python prints lists
    - rounded decimals (`values.rounds_to`)
    - a letter of multiple choice with or without the text of the option
    - another case of letters in words, 3:45 for 3:45 PM

    Different units of measure (cm and m) are different. Strict mode accepts equal values of the
    same kind and unit, and nothing else. The order of a list is free there; tuples and blanks (a;
    b) must have the same order.

    >>> compare("1/2", r"\frac{2}{4}")
    Verdict(equal=True, reason='equal')
    >>> compare("5 cm", "5 m").reason, compare("2", "3").reason, compare("2", None).reason
    ('unit', 'value', 'no_answer')
    """
    if gold is None or prediction is None:
        return Verdict(False, "no_answer")
    gold, prediction = gold.strip(), prediction.strip()
    if not gold or not prediction:
        return Verdict(False, "no_answer")

    # Plain numbers. Decimals may be rounded, so different ones need the full comparison.
    a, b = plain_number(gold), plain_number(prediction)
    if a is not None and b is not None:
        if a == b or strict or "." not in gold + prediction:
            return _verdict(a == b)

    # Equal texts
    if gold == prediction:
        return _verdict(True)
    relaxed = not strict
    if relaxed:
        gold, prediction = _unboxed(gold), _unboxed(prediction)
        letters = _options(gold, prediction)
        if letters:
            return _verdict(letters[0] == letters[1])
    simple_gold = _simplified(gold, relaxed)
    simple_prediction = _simplified(prediction, relaxed)
    if simple_gold and simple_gold == simple_prediction:
        return _verdict(True)
    if max(len(gold), len(prediction)) > MAX_LENGTH:
        return Verdict(False, "not_parsed")

    # Times
    time, other_time = _time(simple_gold), _time(simple_prediction)
    if time and other_time:
        return _verdict(_same_time(time, other_time, relaxed))

    # Mathematics
    a, b = read(gold, relaxed), read(prediction, relaxed)
    verdict = _compare_readings(a, b, relaxed)
    if verdict.equal:
        return verdict
    if a is None or b is None:
        words = _WORDS_ONLY.fullmatch(simple_gold) and _WORDS_ONLY.fullmatch(simple_prediction)
        return _verdict(False) if words else verdict

    # Without units of a single letter: 2 t beside 2t is a product, not tonnes
    c = read(gold, relaxed, letters=False)
    d = read(prediction, relaxed, letters=False)
    if (c, d) != (a, b) and _compare_readings(c, d, relaxed).equal:
        return _verdict(True)

    # Without thousands: 100,200 beside 100, 200 is a list
    if relaxed and "list" in (kind(a.tree), kind(b.tree)):
        c = read(gold, relaxed, thousands=False)
        d = read(prediction, relaxed, thousands=False)
        if c and d and kind(c.tree) == kind(d.tree) == "list":
            c = Reading(("blanks", *c.tree[1:]), c.units)
            d = Reading(("blanks", *d.tree[1:]), d.units)
            if _compare_readings(c, d, relaxed).equal:
                return _verdict(True)
    return verdict


def _unboxed(text: str) -> str:
    """The content of a box in the text, else the text. What is in a box is the answer."""
    if "\\box" not in text:
        return text
    return extract(text) or text


def _verdict(equal: bool) -> Verdict:
    return Verdict(equal, "equal" if equal else "value")


# ---- Trees and units -----------------------------------------------------------------------------


def _compare_readings(a: Reading | None, b: Reading | None, relaxed: bool) -> Verdict:
    if a is None or b is None:
        return Verdict(False, "not_parsed")
    try:
        if same(a.tree, b.tree, Mode(relaxed)):
            if _same_units(a, b, relaxed):
                return _verdict(True)
            return Verdict(False, "unit")
        if _same_quantity(a, b):
            return Verdict(False, "unit")
        if _format(a.tree) == _format(b.tree):
            return Verdict(False, "value")
        return Verdict(False, "format")
    except (Unreadable, RecursionError, OverflowError, ZeroDivisionError, ValueError, TypeError):
        return Verdict(False, "not_parsed")


def _format(tree):
    """The kind of an answer; for a point or an interval with the brackets."""
    value = stated_value(tree)
    return value[:3] if kind(value) == "seq" else kind(value)


def _same_units(a: Reading, b: Reading, relaxed: bool) -> bool:
    """In relaxed mode words beside numbers (apples, people) do not count, nor does a unit that only
    one answer has."""
    if not relaxed:
        return a.units == b.units
    units, other_units = _measures(a), _measures(b)
    return not units or not other_units or units == other_units


def _measures(reading: Reading) -> tuple:
    measures = tuple(filter(is_measure, reading.units))
    if not measures and is_percent(reading.tree):
        return ("%",)
    return measures


def _same_quantity(a: Reading, b: Reading) -> bool:
    """Whether two answers are one quantity in different units, as 100 cm and 1 m. They are
    different answers, but not different values."""
    if kind(a.tree) != "number" or kind(b.tree) != "number":
        return False
    if len(a.units) != 1 or len(b.units) != 1:
        return False
    dimensions_a, factor_a = a.units[0]
    dimensions_b, factor_b = b.units[0]
    if factor_a == factor_b or dimensions_a != dimensions_b:
        return False
    return identical(multiply(a.tree, factor_a), multiply(b.tree, factor_b))


# ---- Texts and times -----------------------------------------------------------------------------

_WORDS_ONLY = re.compile(r"[^\W\d_][^\d\\^=+*<>/]*")
_BETWEEN_CIRCLES = re.compile("(?<=[①-⑳])[ ,和]+(?=[①-⑳])")


def _simplified(text: str, relaxed: bool) -> str:
    """The text without formula signs, LaTeX's words and spaces, so that equal texts look equal."""
    if text.count("$") % 2 == 0 or relaxed:  # a single $ is money
        text = text.strip("$ ")
    text = WORDS.sub(r"\1", circles(text))
    text = SPACES.sub(" ", text).translate(CHARACTERS)
    text = re.sub(r"\s+", "" if "\\" in text else " ", text)
    if not relaxed:
        return text.strip(" ")
    text = text.strip(" .,;:!?*")
    return _BETWEEN_CIRCLES.sub("", text).casefold()


_TIME = re.compile(
    r"(?:(上午|早上|凌晨)|(下午|晚上|傍晚|中午))?\s?(\d{1,2})"
    r"(?:(?::(\d\d)(?::(\d\d))?|点(?:(\d{1,2})分?|(半)?))"
    r"\s?(?:([ap])\.?m\.?)?|\s?([ap])\.?m\.?)",
    re.I | re.A,
)


class _Time(NamedTuple):
    seconds: int
    has_half: bool  # whether it says morning or afternoon


def _time(text: str) -> _Time | None:
    """The time of 10:30, 15:45:10, 3 PM or 下午3点45分. None for other texts: 3:4 is a ratio."""
    match = len(text) < 30 and _TIME.fullmatch(text)
    if not match:
        return None
    morning, afternoon, hour, minute, second, spoken, half, early, late = match.groups()
    hour = int(hour)
    minute = int(minute or spoken or (30 if half else 0))
    second = int(second or 0)
    if hour > (12 if early or late else 24) or minute > 59 or second > 59:
        return None
    mark = (early or late or "").lower()  # a or p
    if not mark and (morning or afternoon):
        mark = "a" if morning else "p"
    if mark and hour <= 12:
        hour = hour % 12 + 12 * (mark == "p")
    return _Time(3600 * hour + 60 * minute + second, bool(mark))


def _same_time(a: _Time, b: _Time, relaxed: bool) -> bool:
    if a.seconds == b.seconds:
        return True
    return relaxed and a.has_half != b.has_half and (a.seconds - b.seconds) % 43200 == 0


# ---- Multiple choice -----------------------------------------------------------------------------

# The letter at the start, else the last letter that stands alone and is not part of a formula
_LETTER = re.compile(
    r"\(?([A-Z])(?![\w'^_=+*/\\-])\)?(?! *[-+=*/^<>\\])"
    r"|.*\b([A-HJ-Z])(?![\w'])(?! *[-+=*/^<>\\])",
    re.A | re.S,
)


def _options(*texts: str) -> list[str] | None:
    """The letters of "D", "(D) Alina" and "D. Because", if one of the texts is only a letter and
    each text has a letter. Else None."""
    if max(map(len, texts)) > MAX_LENGTH:
        return None
    letters = []
    has_letter_alone = False
    for text in texts:
        text = WORDS.sub(r"\1", text)
        text = re.sub(r"[{}$\s.*]+", " ", text).strip()
        match = _LETTER.match(text)
        if match is None:
            return None
        letters.append(match[1] or match[2])
        if OPTION.fullmatch(text):
            has_letter_alone = True
    return letters if has_letter_alone else None


def choice(text: str, options: list[str] | tuple[str, ...]) -> str | None:
    """The letter of the option that a text picks, or None.

    It reads "The answer is (B)", 故选：B, "B) 12" and a last "(B)". A text that gives the content of
    exactly one option picks that option. `options` stand in order, with or without their letters.

    >>> choice("So the answer is 12.", ["10", "12", "14"])
    'B'
    """
    letters = [chr(65 + k) for k in range(len(options))]
    answer, picked = extract(text), None
    if answer is None:
        answer = text.strip(" \n\t*$.。")
        opening = re.match(r"\(?([A-Z])(?:[).:,、。]|\s*$)", answer[:MAX_LENGTH])
        marked = re.findall(r"[(（]([A-Z])[)）]", text)
        if opening:
            picked = opening[1]
        elif marked:
            picked = marked[-1]
    elif pair := _options("A", answer):
        picked = pair[1]
    if picked in letters:
        return picked

    # No letter: compare with the text of each option. Strict first, since 50% and 0.5 may both be
    # options.
    for strict in (True, False):
        equal = []
        for letter, option in zip(letters, options, strict=True):
            content = _without_letter(option, letter)
            if compare(content, answer, strict).equal:
                equal.append(letter)
        if len(equal) == 1:
            return equal[0]
    return None


def _without_letter(option: str, letter: str) -> str:
    """The option without its "(A)", "A." or "A:"."""
    match = re.match(r"\s*\(?([A-Z])[).:、]\s*", option)
    return option[match.end() :] if match and match[1] == letter else option
