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
from data.answers.reading import CHARACTERS, MAX_LENGTH, SPACES, WORDS, Reading, circles, read
from data.answers.trees import Unreadable, is_percent, kind, multiply, stated_value
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
    if gold is None or prediction is None or not gold.strip() or not prediction.strip():
        return Verdict(False, "no_answer")

    # Plain numbers. Decimals may be rounded, so different ones need the full comparison.
    numbers = plain_number(gold), plain_number(prediction)
    if None not in numbers:
        equal = numbers[0] == numbers[1]
        if equal or strict or "." not in gold + prediction:
            return _verdict(equal)

    # Equal texts, letters of multiple choice, times
    gold, prediction = gold.strip(), prediction.strip()
    if gold == prediction:
        return _verdict(True)
    relaxed = not strict
    if relaxed:  # what is in a box is the answer, whatever stands around it
        gold, prediction = (
            extract(text) or text if "\\box" in text else text for text in (gold, prediction)
        )
    if relaxed and (options := _options(gold, prediction)):
        return _verdict(options[0] == options[1])
    texts = _simplified(gold, relaxed), _simplified(prediction, relaxed)
    if texts[0] == texts[1] != "":
        return _verdict(True)
    if max(len(gold), len(prediction)) > MAX_LENGTH:
        return Verdict(False, "not_parsed")
    times = _time(texts[0]), _time(texts[1])
    if None not in times:
        return _verdict(_same_time(*times, relaxed))

    # Mathematics
    readings = read(gold, relaxed), read(prediction, relaxed)
    verdict = _compare_readings(*readings, relaxed)
    if verdict.equal or None in readings:
        words = verdict.reason == "not_parsed" and all(_WORDS_ONLY.fullmatch(t) for t in texts)
        return _verdict(False) if words else verdict

    # Other readings: 2 t beside 2t is a product, not tonnes; 100,200 beside 100, 200 is a list
    again = read(gold, relaxed, letters=False), read(prediction, relaxed, letters=False)
    if again != readings and _compare_readings(*again, relaxed).equal:
        return _verdict(True)
    if relaxed and "list" in (kind(readings[0].tree), kind(readings[1].tree)):
        again = [read(text, relaxed, thousands=False) for text in (gold, prediction)]
        if None not in again and all(kind(reading.tree) == "list" for reading in again):
            blanks = [Reading(("blanks", *r.tree[1:]), r.units) for r in again]
            return _verdict(True) if _compare_readings(*blanks, relaxed).equal else verdict
    return verdict


def _verdict(equal: bool) -> Verdict:
    return Verdict(equal, "equal" if equal else "value")


# ---- Trees and units -----------------------------------------------------------------------------


def _compare_readings(a: Reading | None, b: Reading | None, relaxed: bool) -> Verdict:
    if None in (a, b):
        return Verdict(False, "not_parsed")
    try:
        if same(a.tree, b.tree, Mode(relaxed)):
            return _verdict(True) if _same_units(a, b, relaxed) else Verdict(False, "unit")
        if _same_quantity(a, b):
            return Verdict(False, "unit")
        trees = stated_value(a.tree), stated_value(b.tree)
        kinds = [tree[:3] if kind(tree) == "seq" else kind(tree) for tree in trees]
        return Verdict(False, "value" if kinds[0] == kinds[1] else "format")
    except (Unreadable, RecursionError, OverflowError, ZeroDivisionError, ValueError, TypeError):
        return Verdict(False, "not_parsed")


def _same_units(a: Reading, b: Reading, relaxed: bool) -> bool:
    """In relaxed mode words beside numbers (apples, people) do not count, nor does a unit that only
    one answer has."""
    if not relaxed:
        return a.units == b.units
    units = []
    for reading in (a, b):
        measures = tuple(filter(is_measure, reading.units))
        percent = ("%",) if is_percent(reading.tree) else ()
        units.append(measures or percent)
    return () in units or units[0] == units[1]


def _same_quantity(a: Reading, b: Reading) -> bool:
    """Whether two answers are one quantity in different units, as 100 cm and 1 m. They are
    different answers, but not different values."""
    if not len(a.units) == len(b.units) == 1 or not kind(a.tree) == kind(b.tree) == "number":
        return False
    (dimensions_a, factor_a), (dimensions_b, factor_b) = a.units + b.units
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
    text = SPACES.sub(" ", WORDS.sub(r"\1", circles(text))).translate(CHARACTERS)
    text = re.sub(r"\s+", "" if "\\" in text else " ", text).strip(" .,;:!?*" if relaxed else " ")
    return _BETWEEN_CIRCLES.sub("", text).casefold() if relaxed else text


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
    hour, minute, second = int(hour), int(minute or spoken or (30 if half else 0)), int(second or 0)
    mark = (early or late or ("a" if morning else "p" if afternoon else "")).lower()
    if hour > (12 if early or late else 24) or minute > 59 or second > 59:
        return None
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
    texts = tuple(re.sub(r"[{}$\s.*]+", " ", WORDS.sub(r"\1", text)).strip() for text in texts)
    if not any(OPTION.fullmatch(text) for text in texts):
        return None
    found = [_LETTER.match(text) for text in texts]
    return None if None in found else [match[1] or match[2] for match in found]


def choice(text: str, options: list[str] | tuple[str, ...]) -> str | None:
    """The letter of the option that a text picks, or None.

    It reads "The answer is (B)", 故选：B, "B) 12" and a last "(B)". A text that gives the content of
    exactly one option picks that option. `options` stand in order, with or without their letters.

    >>> choice("So the answer is 12.", ["10", "12", "14"])
    'B'
    """
    letters = [chr(65 + k) for k in range(len(options))]
    answer = extract(text)
    if answer is None:
        answer = text.strip(" \n\t*$.。")
        opening = re.match(r"\(?([A-Z])(?:[).:,、。]|\s*$)", answer[:MAX_LENGTH])
        marked = re.findall(r"[(（]([A-Z])[)）]", text)
        picked = opening[1] if opening else marked[-1] if marked else None
    else:
        found = _options("A", answer)
        picked = found[1] if found else None
    if picked in letters:
        return picked

    # No letter: compare with the text of each option. Strict first, since 50% and 0.5 may both be
    # options.
    contents = [
        _without_letter(option, letter) for letter, option in zip(letters, options, strict=True)
    ]
    for strict in (True, False):
        equal = [
            letter
            for letter, content in zip(letters, contents, strict=True)
            if compare(content, answer, strict).equal
        ]
        if len(equal) == 1:
            return equal[0]
    return None


def _without_letter(option: str, letter: str) -> str:
    """The option without its "(A)", "A." or "A:"."""
    match = re.match(r"\s*\(?([A-Z])[).:、]\s*", option)
    return option[match.end() :] if match and match[1] == letter else option
