r"""The one door for answers: `extract` finds the answer in a text, `compare` says whether two answers are the same,
`choice` which option was picked; `paper_extract` and `paper_equal` repeat the rules of the paper's own evaluation.

`compare` is for answers, not for texts with an answer in them: `extract` first. It tries plain numbers (microseconds),
then letters, texts and times, then takes off what is not mathematics (reading.py), parses both sides (expressions.py)
and compares the trees (equality.py, values.py).

Effort is bounded by counts at every step: 1,000 characters of an answer (longer ones are compared as text), 4,000
parser steps, 40 levels, 64 items, 40,000 bits of an exact number, 4,000 nodes of a matrix product, 5,000 comparisons,
120 digits with bounded arguments of functions; patterns that scan a whole text are linear. So there is no clock, no
signal and no worker process: the same pair gets the same verdict on any machine, in any thread, under any load.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from data.answers.equality import Mode, same
from data.answers.extraction import OPTION, extract
from data.answers.paper_rules import paper_equal, paper_extract
from data.answers.reading import CHARACTERS, MAX_LENGTH, SPACES, WORDS, Reading, circles, read
from data.answers.trees import Unreadable, is_percent, kind, multiply, stated_value
from data.answers.units import is_measure
from data.answers.values import identical

__all__ = ["Verdict", "choice", "compare", "extract", "paper_equal", "paper_extract"]


class Verdict(NamedTuple):
    """Test `.equal`. `reason`: "equal"; "no_answer" (a side is missing or empty); "value" (both read, different);
    "unit" (the same number of another unit: cm for m, $ for €; in strict mode also with and without a unit); "format"
    (both read, of different kinds: a point for a number, [0,1] for (0,1)); "not_parsed" (a side was not read as
    mathematics, or refused as too large, and the texts differ)."""

    equal: bool
    reason: str


_PLAIN = re.compile(
    r"\s*\$?\s*([-+]?)(?:(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?:/(\d+))?|\\[dt]?frac\{(\d+)\}\{(\d+)\})\s*\$?\s*",
    re.A,
)


def compare(gold: str | None, prediction: str | None, strict: bool = False) -> Verdict:
    r"""Whether two answers are the same. Never raises, never hangs; symmetric.

    Relaxed (the default) lets form go: a unit, currency or words on one side; 50% for 50 and for 0.5 (but not 50 for
    0.5); x = 5 for 5; a list in any order, as a set, or in order as a point; [5] and [1, 2, 3] as Python prints lists;
    x > 5 for (5, inf); decimals as `rounds_to` says; letters of multiple choice with or without their text; case in
    words; 3:45 for 3:45 PM. Different units of measure (cm, m) are different. Strict: equal values of the same kind
    and unit, and nothing else; of a list any order, of a tuple and of blanks (a; b) theirs.
    """
    if gold is None or prediction is None or not gold.strip() or not prediction.strip():
        return Verdict(False, "no_answer")
    fast = _plain(gold), _plain(prediction)
    if None not in fast and (fast[0] == fast[1] or strict or "." not in gold + prediction):
        return _verdict(fast[0] == fast[1])
    gold, prediction = gold.strip(), prediction.strip()
    if gold == prediction:
        return _verdict(True)
    relaxed = not strict
    if relaxed:  # what is boxed is the answer, whatever stands around it
        gold, prediction = (
            extract(text) or text if "\\box" in text else text for text in (gold, prediction)
        )
    if relaxed and (options := _options(gold, prediction)):
        return _verdict(options[0] == options[1])
    texts = _text(gold, relaxed), _text(prediction, relaxed)
    if texts[0] == texts[1] != "":
        return _verdict(True)
    if max(len(gold), len(prediction)) > MAX_LENGTH:
        return Verdict(False, "not_parsed")
    times = _time(texts[0]), _time(texts[1])
    if None not in times:
        return _verdict(_same_time(*times, relaxed))
    readings = read(gold, relaxed), read(prediction, relaxed)
    verdict = _compare_readings(*readings, relaxed)
    if verdict.equal or None in readings:
        words = verdict.reason == "not_parsed" and all(_WORDY.fullmatch(text) for text in texts)
        return _verdict(False) if words else verdict
    again = read(gold, relaxed, letters=False), read(prediction, relaxed, letters=False)
    if again != readings and _compare_readings(*again, relaxed).equal:
        return _verdict(True)  # 2 t beside 2t is a product, not tonnes
    if relaxed and "list" in (
        kind(readings[0].tree),
        kind(readings[1].tree),
    ):  # 100,200 beside 100, 200
        again = [read(text, relaxed, thousands=False) for text in (gold, prediction)]
        if None not in again and all(kind(one.tree) == "list" for one in again):
            in_order = [Reading(("blanks", *one.tree[1:]), one.units) for one in again]
            return _verdict(True) if _compare_readings(*in_order, relaxed).equal else verdict
    return verdict


def _compare_readings(a, b, relaxed: bool) -> Verdict:
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
    if not relaxed:
        return a.units == b.units
    # Words beside numbers (apples, people) are let go, and a unit that stands on one side only.
    units = [
        tuple(filter(is_measure, r.units)) or (("%",) if is_percent(r.tree) else ()) for r in (a, b)
    ]
    return () in units or units[0] == units[1]


def _same_quantity(a: Reading, b: Reading) -> bool:
    """100 cm and 1 m: other units, as answers different, but no other value."""
    if not len(a.units) == len(b.units) == 1 or not kind(a.tree) == kind(b.tree) == "number":
        return False
    (dimensions_a, factor_a), (dimensions_b, factor_b) = a.units + b.units
    return (
        factor_a != factor_b
        and dimensions_a == dimensions_b
        and identical(multiply(a.tree, factor_a), multiply(b.tree, factor_b))
    )


def _verdict(equal: bool) -> Verdict:
    return Verdict(equal, "equal" if equal else "value")


def _plain(text: str) -> Fraction | None:
    match = len(text) < 60 and _PLAIN.fullmatch(text)
    if not match or "$" in text and text.count("$") != 2:  # one $ is money
        return None
    sign, whole, decimals, denominator, top, bottom = match.groups()
    if denominator and (decimals or not int(denominator)) or bottom and not int(bottom):
        return None
    if decimals:
        value = Fraction(int(whole.replace(",", "") + decimals[1:]), 10 ** (len(decimals) - 1))
    else:
        value = Fraction(int(top or whole.replace(",", "")), int(bottom or denominator or 1))
    return -value if sign == "-" else value


_WORDY = re.compile(r"[^\W\d_][^\d\\^=+*<>/]*")
_CIRCLES = re.compile("(?<=[①-⑳])[ ,和]+(?=[①-⑳])")


def _text(text: str, relaxed: bool) -> str:
    if text.count("$") % 2 == 0 or relaxed:  # one $ is money
        text = text.strip("$ ")
    text = SPACES.sub(" ", WORDS.sub(r"\1", circles(text))).translate(CHARACTERS)
    text = re.sub(r"\s+", "" if "\\" in text else " ", text).strip(" .,;:!?*" if relaxed else " ")
    return _CIRCLES.sub("", text).casefold() if relaxed else text


# ---------------------------------------------------------------------------------------------------- times

_TIME = re.compile(
    r"(?:(上午|早上|凌晨)|(下午|晚上|傍晚|中午))?\s?(\d{1,2})(?:(?::(\d\d)(?::(\d\d))?|点(?:(\d{1,2})分?|(半)?))"
    r"\s?(?:([ap])\.?m\.?)?|\s?([ap])\.?m\.?)",
    re.I | re.A,
)


class _Time(NamedTuple):
    seconds: int
    half: bool  # whether morning or afternoon is said


def _time(text: str) -> _Time | None:
    """10:30, 15:45:10, 3 PM, 下午3点45分; None where the text is none. 3:4 is a ratio."""
    match = len(text) < 30 and _TIME.fullmatch(text)
    if not match:
        return None
    morning, afternoon, hour, minute, second, spoken, half, early, late = match.groups()
    hour, minute, second = int(hour), int(minute or spoken or (30 if half else 0)), int(second or 0)
    mark = (early or late or ("a" if morning else "p" if afternoon else "")).lower()
    if hour > (12 if early or late else 24) or minute > 59 or second > 59:
        return None
    hour = hour % 12 + 12 * (mark == "p") if mark and hour <= 12 else hour
    return _Time(3600 * hour + 60 * minute + second, bool(mark))


def _same_time(a: _Time, b: _Time, relaxed: bool) -> bool:
    return (
        a.seconds == b.seconds
        or relaxed
        and a.half != b.half
        and (a.seconds - b.seconds) % 43200 == 0
    )


# ---------------------------------------------------------------------------------------------------- multiple choice

_LETTER = re.compile(  # a letter at the start, else the last that stands alone and is not part of a formula
    r"\(?([A-Z])(?![\w'^_=+*/\\-])\)?(?! *[-+=*/^<>\\])|.*\b([A-HJ-Z])(?![\w'])(?! *[-+=*/^<>\\])",
    re.A | re.S,
)


def _options(*texts: str) -> list[str] | None:
    """The letters chosen, where at least one text is only a letter and each has one: "D", "(D) Alina", "D. Because"."""
    if max(map(len, texts)) > MAX_LENGTH:
        return None
    texts = tuple(re.sub(r"[{}$\s.*]+", " ", WORDS.sub(r"\1", text)).strip() for text in texts)
    if not any(OPTION.fullmatch(text) for text in texts):
        return None
    found = [_LETTER.match(text) for text in texts]
    return None if None in found else [match[1] or match[2] for match in found]


def choice(text: str, options: list[str] | tuple[str, ...]) -> str | None:
    """The letter of the option that a text picks, or None: "The answer is (B)", 故选：B, "B) 12", a last "(B)", or the
    text of exactly one option instead of its letter. The options are given in order, with or without their letters."""
    letters = [chr(65 + k) for k in range(len(options))]
    answer = extract(text)
    if answer is None:
        whole = text.strip(" \n\t*$.。")
        opening = re.match(r"\(?([A-Z])(?:[).:,、。]|\s*$)", whole[:MAX_LENGTH])
        marked = re.findall(r"[(（]([A-Z])[)）]", text)
        picked = opening[1] if opening else marked[-1] if marked else None
        answer = whole
    else:
        picked = _options("A", answer)
        picked = picked and picked[1]
    if picked in letters:
        return picked
    bare = [
        re.sub(r"^\s*\(?([A-Z])[).:、]\s*", lambda m, own=own: "" if m[1] == own else m[0], option)
        for own, option in zip(letters, options, strict=True)
    ]
    for strict in (True, False):  # 50% and 0.5 may both be options
        equal = [
            letter
            for letter, option in zip(letters, bare, strict=True)
            if compare(option, answer, strict).equal
        ]
        if len(equal) == 1:
            return equal[0]
    return None
