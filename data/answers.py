r"""The one door for answers: `extract` finds the answer in a text, `compare` says whether two answers are the same.

`extract` looks for markers; `compare` tries plain numbers first (microseconds), then takes off what is not mathematics
(units, currency, words), parses both sides (expressions.py) and compares the trees. No clock, no signal, no simplifier:
the same pair gets the same verdict on any machine, in any thread, under any load.
"""

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from data.expressions import (
    CONSTANTS,
    FUNCTIONS,
    NEGATED,
    Parser,
    Unreadable,
    add,
    as_matrix,
    identical,
    is_name,
    kind,
    multiply,
    negate,
    power,
    proportional,
    rounds_to,
    scalar,
    stated_value,
    symbols,
)

MAX_LENGTH = 1000  # characters of one answer; longer ones are compared as text


class Verdict(NamedTuple):
    """Test `.equal`. `reason`: "equal"; "no_answer" (a side is missing or empty); "value" (both read, different);
    "format" (both read, of different kinds: a point for a number, [0,1] for (0,1)); "not_parsed" (a side was not read
    as mathematics, or refused as too large, and the texts differ)."""

    equal: bool
    reason: str


# ---------------------------------------------------------------------------------------------------- extract

_END = re.compile(r"<\|im_(?:start|end)\|>|<\|endoftext\|>")
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_PHRASE = re.compile(r"\banswers?\**\s*(?:is|are|:|：|=)(?:\s*:)?|答案\s*(?:应该)?\s*(?:是|为|：|:)+", re.I)
_SENTENCE_END = re.compile(r"\.(?=\s|$)|[。！]|\n\s*\S*|, (?:because|since|so|it|as)\b|\b(?:because|since)\b|I hope")
_MATH = re.compile(r"(?<!\\)\$\$(.+?)\$\$|(?<!\\)\$((?:[^$\\]|\\.)+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
_NUMBER = re.compile(  # a number, fraction or LaTeX fraction in running text, with its sign, currency and percent mark
    r"(?<![\w.])[-+]?[$€£¥]?(?:\\[dt]?frac\{-?\d+\}\{\d+\}|(?:\d{1,3}(?:(?:,|\{,\})\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|\.\d+)"
    r"(?:\s*\\?%|\s+(?:percent|pct)\b)?", re.A)
_NEXT_BOX = re.compile(  # what may stand between two boxes that form one answer
    r"(?:[^.;!?\n]{0,40}(?:[,;、和或]|\band\b|\bor\b))?\s*(?:\w+(?:\s*=)\s*)?", re.I)


def extract(text: str, fallback_last_number: bool = False) -> str | None:
    r"""The answer stated in `text`, or None.

    Markers: `\boxed{...}` (braces balanced; a box that never closes does not count), `#### x`, "The answer is x" /
    "Final answer: x" / 答案是x / 答案为x. The marker that stands last wins, except that a phrase whose clause holds no
    number, formula or single capital letter ("the answer is reasonable") does not take the place of a box or ####.
    Boxes joined by a comma, "and" or "or" are one list. Text up to the last `</think>` is not read.

    `fallback_last_number=True`: where no marker is found, the last formula between dollars or `\( \)` or the last
    number, whichever stands later. Off by default: a policy rewarded for any last number stops writing the marker.
    """
    text = _END.split(text.rsplit("</think>", 1)[-1])[0]
    best, where = None, -1
    boxes = _boxes(text)
    if boxes:
        start, end, content = boxes[-1]
        parts = [content]
        for (_, previous_end, previous), (next_start, _, _) in reversed(list(zip(boxes, boxes[1:], strict=False))):
            gap = re.sub(r"\\(?:text|mbox|q?quad|[()\[\], ])|[{}$]", " ", text[previous_end:next_start])
            if not _NEXT_BOX.fullmatch(gap.strip()):
                break
            parts.insert(0, previous)
        best, where = ", ".join(dict.fromkeys(part.strip() for part in parts)), end
    for match in _HASHES.finditer(text):
        if match.start() >= where:
            best, where = match[1].strip(), match.start()
    for match in _PHRASE.finditer(text):
        if match.start() >= where:
            clause = _clause(text[match.end():match.end() + 400])
            if clause and (best is None or re.search(r"\d|\\|\$|(?<![\w'])[A-Z](?![\w'])", clause)):
                best, where = _core(clause), match.start()
    if best is None and fallback_last_number:
        best = _last_value(text)
    return best or None


def _boxes(text: str) -> list[tuple[int, int, str]]:
    found = []
    for match in re.finditer(r"\\f?box(?:ed)?\s*", text):
        rest = text[match.end():match.end() + 4 * MAX_LENGTH]
        if not rest.startswith("{"):  # \boxed 5
            if word := re.match(r"[^\s${}\\]+", rest):
                found.append((match.start(), match.end() + word.end(), word[0]))
            continue
        depth = 0
        for brace in re.finditer(r"\\.|[{}]", rest, re.S):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0 and brace[0] == "}":
                found.append((match.start(), match.end() + brace.end(), rest[1:brace.start()]))
                break
    return found


def _clause(text: str) -> str:
    """Up to the end of the sentence; a full stop or line end inside a formula does not end it."""
    text = text.lstrip(" \t\n*:：")
    formulas = [match.span() for match in _MATH.finditer(text)]
    for match in _SENTENCE_END.finditer(text):
        if not any(start < match.start() < end for start, end in formulas):
            return text[:match.start()].strip(" \t*,")
    return text.strip(" \t\n*,")


def _core(clause: str) -> str:
    """The value inside "x, the number of apples, is $5$": the whole clause when it reads as mathematics by itself."""
    if _read(clause, True) is not None or _option(clause):
        return clause
    letters = re.findall(r"(?<![\w'$])([A-HJ-Z])(?![\w'])", clause)
    return _last_value(clause) or (letters[0] if letters else clause)


def _last_value(text: str) -> str | None:
    formulas = [match for match in _MATH.finditer(text) if _read(next(filter(None, match.groups())), True) is not None]
    for match in formulas:  # numbers inside a formula are not looked at by themselves
        text = text[:match.start()] + "x" * len(match[0]) + text[match.end():]
    found = [(match.end(), next(filter(None, match.groups()))) for match in formulas]
    found += [(match.end(), match[0]) for match in _NUMBER.finditer(text)]
    return max(found)[1].strip() if found else None


# ---------------------------------------------------------------------------------------------------- normalise

_CHARACTERS = str.maketrans({
    **{chr(0xFF01 + i): chr(0x21 + i) for i in range(94)},  # full-width ASCII
    "\u3000": " ", "\xa0": " ", "\u202f": " ", "、": ",", "。": ".", "−": "-", "–": "-", "—": "-", "‐": "-",
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "√": r"\sqrt ", "π": r"\pi ", "∞": r"\infty ",
    "≤": "<=", "≥": ">=", "≠": "!=", "≈": "=", "∪": r"\cup ", "∈": r"\in ", "±": r"\pm ", "∅": r"\emptyset ",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "²": "^{2}", "³": "^{3}", "⁴": "^{4}",
    "°": r"^\circ ",
})  # fmt: skip
_SIGNS = re.compile(r"\\?\$|[€£¥￥]|\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree\b")  # currency, degrees
_MEASURES = {
    **dict.fromkeys("mm cm dm km m ft in mi yd mm² cm² m² km² ft² cm³ m³".split(), 1),
    **dict.fromkeys("g kg mg lb lbs oz s h hr hrs min ml L l W N J V A K Hz km/h m/s mph kmh°".split(), 1),
}
_UNIT = re.compile(r"(?<=[\d)}%])(\s*)([A-Za-z一-鿿][A-Za-z一-鿿/ ]*(?:\^?\{?[23]\}?|[²³])?)(?=\s*(?:[,;$.]|$))")
_WORDS = re.compile(r"\\(?:text|textbf|textit|textnormal|textrm|mbox|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
_SPACES = re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![A-Za-z])|(?<!\\)\\[,;:! ]|\\q?quad|~")
_DIGITS = {**{c: i for i, c in enumerate("零一二三四五六七八九")}, "〇": 0, "两": 2}
_PLACES = {"十": 10, "百": 100, "千": 1000, "万": 10_000, "亿": 100_000_000}


def _chinese(text: str) -> int:
    """三百零五 -> 305, 二〇二四 -> 2024, 3万 -> 30000."""
    if not re.search("[十百千万亿]", text):
        return int("".join(str(_DIGITS.get(c, c)) for c in text))
    total = part = 0
    digit = None
    for token in re.findall(r"\d+|.", text):
        if token in _PLACES:
            place = _PLACES[token]
            if place >= 10_000:  # 万 and 亿 multiply all that stands before them
                total, part = (total + part + (digit or 0)) * place, 0
            else:
                part += (1 if digit is None else digit) * place
            digit = None
        else:
            digit = int(token) if token.isdigit() else _DIGITS[token]
    return total + part + (digit or 0)


def _normalise(text: str, relaxed: bool) -> tuple[str, str]:
    """(text for the parser, unit that was taken off). Units, currency and words go only in relaxed mode."""
    text, units = text.strip(), []
    for _ in range(3):  # formula signs and boxes around the whole
        text = re.sub(r"^\\[(\[]\s*(.*?)\s*\\[)\]]\.?$", r"\1", text, flags=re.S)
        if (box := _boxes(text)) and text.startswith("\\") and box[0][1] == len(text):
            text = box[0][2].strip()
    text = re.sub(r"(?<!\\)\\[()\[\]]|(?<!\\)\$\$?|\*\*(?!\s*[\w(\\+-])", " ", text).replace(r"\%", "%")
    text = _SPACES.sub(" ", re.sub(r"(?<=\d)(?:\{,\}|,?\\[,!;: ])\s*(?=\d{3}(?!\d))", "", text))
    if relaxed:
        text = _SIGNS.sub(" ", text)
        if re.search(r"\d", _WORDS.sub("", text)):  # words beside numbers are units, apart from "and" and "or"
            text = _WORDS.sub(lambda m: m[0] if len(m[1].strip()) < 2 else
                              f" {m[1]} " if m[1].strip() in ("and", "or") else units.append(m[1].strip()) or " ", text)
        text = _UNIT.sub(lambda m: _take_unit(m, units), text.strip())
        text = re.sub(r"^(?:[A-Za-z]{2,} )*(?:about|around|approximately|roughly|约|大约)\s*(?=[\d\\-])", "", text)
    text = _WORDS.sub(r" \1 ", text).translate(_CHARACTERS)
    text = re.sub(r"(百分之)?([零〇一二两三四五六七八九十百千万亿\d]+)分之([零〇一二两三四五六七八九十百千万亿\d]+)",
                  lambda m: f"{_chinese(m[3])}/{_chinese(m[2])}", text.replace("百分之", "100分之"))
    text = re.sub(r"[零〇一二两三四五六七八九十百千万亿][零〇一二两三四五六七八九十百千万亿\d]*|\d+[十百千万亿]+",
                  lambda m: str(_chinese(m[0])), text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".,;:?").strip(), " ".join(units)


def _take_unit(match: re.Match, units: list[str]) -> str:
    words = re.findall(r"[A-Za-z一-鿿]+", match[2])
    if words in (["percent"], ["pct"], ["percentage"]):
        return "%"
    for word in words:
        if word in ("and", "or", "cup") or word in FUNCTIONS or word in CONSTANTS:
            return match[0]
        if word in _MEASURES:
            if len(word) == 1 and not (match[1] or match[2][-1] in "²³"):  # 5m may be algebra, "5 m" and 5m² are not
                return match[0]
        elif word.isascii() and len(word) < 3 or re.search("[十百千万亿零一二三四五六七八九]", word[0]):
            return match[0]
    units.append(match[2].strip())
    return ""


@functools.lru_cache(4096)
def _read(text: str, relaxed: bool, thousands: bool = True):
    """(tree, unit), or None where the text is not mathematics within the limits."""
    if len(text) > MAX_LENGTH:
        return None
    try:
        text, unit = _normalise(text, relaxed)
        if thousands:  # 1,234 is one number except inside brackets, where commas separate
            text = re.sub(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)", lambda m: _join_thousands(m, text), text)
        # Words, not a product of variables; that is written x y.
        if re.fullmatch(r"[A-Za-z ]*[A-Za-z]{2}[A-Za-z ]*", text) and text not in CONSTANTS:
            return None
        return Parser(text).whole(), unit
    except (Unreadable, RecursionError, OverflowError, ZeroDivisionError, ValueError):
        return None


def _join_thousands(match: re.Match, text: str) -> str:
    before = text[:match.start()]
    inside = sum(before.count(c) for c in ("(", "[", r"\{")) > sum(before.count(c) for c in (")", "]", r"\}"))
    return match[0] if inside else match[0].replace(",", "")


# ---------------------------------------------------------------------------------------------------- compare

_PLAIN = re.compile(
    r"[$ ]*([-+]?)(?:(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?:/(\d+))?|\\[dt]?frac\{(\d+)\}\{(\d+)\})[$ ]*", re.A)


def compare(gold: str | None, prediction: str | None, strict: bool = False) -> Verdict:
    r"""Whether two answers are the same. Never raises, never hangs; symmetric.

    Relaxed (the default) lets form go: units, currency and words beside numbers; 50% for 50 and for 0.5 (but not 50
    for 0.5); x = 5 for 5; a list in any order, as a set, or in order as a point; [5] and [1, 2, 3] as Python prints
    lists; decimals as `_rounded` says; letters of multiple choice with or without their text; case in words.
    Different units of measure (cm, m) are different. Strict: equal values of the same kind, and nothing else.
    """
    if gold is None or prediction is None or not gold.strip() or not prediction.strip():
        return Verdict(False, "no_answer")
    fast = _plain(gold), _plain(prediction)
    if None not in fast and (fast[0] == fast[1] or strict or "." not in gold + prediction):
        return _verdict(fast[0] == fast[1])
    if gold.strip() == prediction.strip():
        return _verdict(True)
    relaxed = not strict
    if relaxed:  # a whole sentence with its boxes
        gold, prediction = (extract(t) or t if "\\boxed" in t else t for t in (gold, prediction))
    if relaxed and (options := _option(gold, prediction)):
        return _verdict(options[0] == options[1])
    if _text(gold, relaxed) == _text(prediction, relaxed) != "":
        return _verdict(True)
    trees = _read(gold, relaxed), _read(prediction, relaxed)
    if None in trees:
        return Verdict(False, "not_parsed")
    (a, unit_a), (b, unit_b) = trees
    if unit_a != unit_b and unit_a in _MEASURES and unit_b in _MEASURES:
        return _verdict(False)
    try:
        if _same(a, b, relaxed):
            return _verdict(True)
        if "list" in (kind(a), kind(b)):  # 100,200 beside 100, 200 is a list, not a number
            again = _read(gold, relaxed, False), _read(prediction, relaxed, False)
            if None not in again and _same(again[0][0], again[1][0], relaxed):
                return _verdict(True)
        kinds = [node[:3] if kind(node) == "seq" else kind(node) for node in (stated_value(a), stated_value(b))]
        return Verdict(False, "value" if kinds[0] == kinds[1] else "format")
    except (Unreadable, RecursionError, OverflowError, ZeroDivisionError, ValueError, TypeError):
        return Verdict(False, "not_parsed")


def _verdict(equal: bool) -> Verdict:
    return Verdict(equal, "equal" if equal else "value")


def _plain(text: str) -> Fraction | None:
    match = len(text) < 60 and _PLAIN.fullmatch(text)
    if not match:
        return None
    sign, whole, decimals, denominator, top, bottom = match.groups()
    if denominator and (decimals or not int(denominator)) or bottom and not int(bottom):
        return None
    value = Fraction(int(top), int(bottom)) if bottom else Fraction(whole.replace(",", "") + (decimals or ""))
    value = value / int(denominator) if denominator else value
    return -value if sign == "-" else value


_CHOICE = re.compile(  # a letter at the start, else the last that stands alone and is not part of a formula
    r"\(?([A-Z])(?![\w'^_=+*/\\-])\)?(?! *[-+=*/^<>\\])|.*\b([A-HJ-Z])(?![\w'])(?! *[-+=*/^<>\\])", re.A | re.S)


def _option(*texts: str) -> list[str] | None:
    """The letters chosen, where at least one text is only a letter and each has one: "D", "(D) Alina", "D. Because"."""
    if max(map(len, texts)) > MAX_LENGTH:
        return None
    texts = tuple(re.sub(r"[{}$\s.*]+", " ", _WORDS.sub(r"\1", text)).strip() for text in texts)
    if not any(re.fullmatch(r"\(?[A-Z]\)?", text) for text in texts):
        return None
    found = []
    for text in texts:
        match = _CHOICE.match(text)
        if not match:
            return None
        found.append(match[1] or match[2])
    return found


def _text(text: str, relaxed: bool) -> str:
    text = _SPACES.sub(" ", _WORDS.sub(r"\1", text.strip().strip("$"))).translate(_CHARACTERS)
    text = re.sub(r"\s+", "" if "\\" in text else " ", text).strip(" .,;:!?*" if relaxed else " ")
    return text.casefold() if relaxed else text


def _same(a, b, relaxed: bool) -> bool:
    if a == b:
        return True
    if relaxed and kind(a) != "rel" or kind(b) != "rel":
        a, b = (stated_value(a), stated_value(b)) if relaxed else (a, b)
    kinds = kind(a), kind(b)
    if kinds == ("number", "number"):
        return _same_percent(a, b, relaxed)
    if "rel" in kinds:
        return _same_relation(a, b, relaxed)
    if "matrix" in kinds:
        a, b = as_matrix(a), as_matrix(b)
        return kind(a) == kind(b) == "matrix" and len(a) == len(b) and all(
            _all_same(left, right, relaxed) for left, right in zip(a[1:], b[1:], strict=True))
    if relaxed and "seq" in kinds and kinds[0] != kinds[1]:  # [5] is 5; [1, 2, 3] a list; (1, 2) is 1, 2
        seq, other = (a, b) if kinds[0] == "seq" else (b, a)
        if seq[1:3] == ("[", "]") and len(seq) == 4:
            return _same(seq[3], other, relaxed)
        if kind(other) == "list" and seq[1:3] in (("(", ")"), ("[", "]")) and len(seq) == len(other) + 2 and all(
                _same(x, y, relaxed) for x, y in zip(seq[3:], other[1:], strict=True)):
            return True
        if seq[1:3] == ("[", "]") and (len(seq) > 5 or any(kind(x) == "seq" for x in seq[3:])):
            return _same(("list", *seq[3:]), other, relaxed)
    if kinds[0] == kinds[1] == "seq":
        return a[1:3] == b[1:3] and _all_same(a[3:], b[3:], relaxed)
    if kinds[0] == kinds[1] == "ratio":
        if len(a) != len(b) or 0 in a[1:] or 0 in b[1:]:
            return _all_same(a[1:], b[1:], relaxed)
        scale = [multiply(x, power(scalar(y), Fraction(-1))) for x, y in zip(a[1:], b[1:], strict=True)]
        return all(identical(scale[0], s) for s in scale[1:])
    if kinds[0] == kinds[1] or relaxed and set(kinds) == {"set", "list"}:  # order and repetition do not matter
        return all(any(_same(x, y, relaxed) for y in b[1:]) for x in a[1:]) and all(
            any(_same(x, y, relaxed) for x in a[1:]) for y in b[1:])
    if relaxed and set(kinds) == {"set", "number"}:
        elements = a if kinds[0] == "set" else b
        return len(elements) == 2 and _same(elements[1], b if kinds[0] == "set" else a, relaxed)
    return False


def _all_same(left, right, relaxed: bool) -> bool:
    return len(left) == len(right) and all(_same(x, y, relaxed) for x, y in zip(left, right, strict=True))


def _same_percent(a, b, relaxed: bool) -> bool:
    percent = [isinstance(n, tuple) and n[0] == "%" for n in (a, b)]
    bare = [n[1] if is_percent else n for n, is_percent in zip((a, b), percent, strict=True)]
    if percent[0] == percent[1] or relaxed and _same_number(*bare, relaxed):
        return _same_number(*bare, relaxed)
    scaled = [multiply(Fraction(1, 100), n) if is_percent else n for n, is_percent in zip(bare, percent, strict=True)]
    return _same_number(*scaled, relaxed)


def _same_relation(a, b, relaxed: bool) -> bool:
    if kind(a) != "rel" or kind(b) != "rel":
        interval, other = (_interval(a), b) if kind(a) == "rel" else (_interval(b), a)
        return relaxed and interval is not None and _same(interval, other, relaxed)
    (operators_a, left), (operators_b, right) = (_oriented(a), _oriented(b))
    if operators_a != operators_b:
        return False
    if len(left) == 2 or set(operators_a) == {"="}:
        return all(proportional(*pair, operators_a[0] in ("=", "!="))
                   for pair in zip(_differences(left), _differences(right), strict=True))
    return _all_same(left, right, relaxed)


def _oriented(relation):
    """Operators and terms, with < and <= instead of > and >=."""
    operators, terms = relation[1], relation[2:]
    if set(operators) <= {">", ">="}:
        return tuple(NEGATED[o] for o in reversed(operators)), terms[::-1]
    return operators, terms


def _differences(terms):
    return [add(scalar(x), negate(scalar(y))) for x, y in zip(terms, terms[1:], strict=False)]


def _interval(relation):
    """x > 5 as (5, inf), 0 < f(x) <= 1 as (0, 1], for a name between constants; else None."""
    operators, terms = _oriented(relation)
    infinity = ("const", "inf")
    if len(terms) == 2 and operators[0] in ("<", "<="):
        if is_name(terms[0]) and not symbols(terms[1]):
            operators, terms = ("<", *operators), (negate(infinity), *terms)
        elif is_name(terms[1]) and not symbols(terms[0]):
            operators, terms = (*operators, "<"), (*terms, infinity)
    if len(terms) != 3 or not set(operators) <= {"<", "<="} or not is_name(terms[1]):
        return None
    return ("seq", "(" if operators[0] == "<" else "[", ")" if operators[1] == "<" else "]", terms[0], terms[2])


def _same_number(a, b, relaxed: bool) -> bool:
    return identical(a, b) or relaxed and (rounds_to(a, b) or rounds_to(b, a))
