r"""Reads an answer that a person, LaTeX or Python wrote: its expression tree and its units.

`read` removes what is not mathematics (formula signs, boxes, spacing commands, units, currency,
words), writes Chinese numerals as digits, and parses the rest. Every pattern here runs over at most
MAX_LENGTH characters and is at worst quadratic in them.
"""

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from data.answers.expressions import CONSTANTS, Parser
from data.answers.trees import FUNCTIONS, Unreadable
from data.answers.units import MEASURES, SIGNS, unit

MAX_LENGTH = 1000  # characters of an answer; longer ones are compared as text

CHARACTERS = str.maketrans(
    {
        **{chr(0xFF01 + i): chr(0x21 + i) for i in range(94)},  # full-width ASCII
        "\u3000": " ",
        "\xa0": " ",
        "\u202f": " ",
        "\u2009": " ",
        "、": ",",
        "。": ".",
        "−": "-",
        "–": "-",
        "—": "-",
        "‐": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "÷": "/",
        "√": r"\sqrt ",
        "π": r"\pi ",
        "∞": r"\infty ",
        "≤": "<=",
        "≥": ">=",
        "⩽": "<=",
        "⩾": ">=",
        "≠": "!=",
        "≈": "=",
        "∪": r"\cup ",
        "∈": r"\in ",
        "±": r"\pm ",
        "∓": r"\mp ",
        "∅": r"\emptyset ",
        "∧": "&",
        "½": r"\frac{1}{2}",
        "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "²": "^{2}",
        "³": "^{3}",
        "⁴": "^{4}",
        "⁻": "^-",
        "°": r"^\circ ",
    }
)
WORDS = re.compile(
    r"\\(?:text|textbf|textit|textnormal|textrm|mbox|mathrm|mathbf|mathit|operatorname)"
    r"\s*\{([^{}]*)\}"
)
SPACES = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![A-Za-z])|(?<!\\)\\[,;:! ]|\\q?quad|~"
)
_CIRCLED = re.compile(r"\\textcircled\s*\{?\s*(\d{1,2})\s*\}?")

_DOLLAR = "\u00a4"  # stands for \$ and for a $ that is not a formula sign
_CURRENCY = re.compile("[\u00a4€£¥￥₹¢]")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree\b|°")
_TEMPERATURE = re.compile(
    rf"(?:{_DEGREES.pattern})\s*(?:\\(?:text|mathrm|rm)\s*\{{\s*([CF])\s*\}}|([CF])(?![A-Za-z]))"
)
_ANGLES = re.compile(r"(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_UNIT = re.compile(
    r"(?<=[\d)}%])(\s*)([A-Za-z一-鿿℃℉][A-Za-z一-鿿/ ]*(?:\s?\^\s*(?:[23]|\{[23]\})|[²³])?"
    r"(?: ?/ ?[A-Za-z一-鿿]+(?:\^(?:[23]|\{[23]\})|[²³])?)?)(?=\s*(?:[,;.)\]]|$|and\b|or\b|和|或))"
)
_NUMERAL = "零〇一二两三四五六七八九十百千万亿"
_DIGITS = {**{c: i for i, c in enumerate("零一二三四五六七八九")}, "〇": 0, "两": 2}
_PLACES = {"十": 10, "百": 100, "千": 1000, "万": 10_000, "亿": 100_000_000}
_NOT_NUMERALS = {
    "千米": "km",
    "千克": "kg",
    "千瓦": "kW",
    "百分点": "个",
    "一半": "1/2",
    "百分比": "%",
}
_IN_CHINESE = re.compile(f"[{_NUMERAL}半负又点]")


class Reading(NamedTuple):
    tree: object
    units: tuple  # of the numbers from left to right; a single one where all are the same


@functools.lru_cache(4096)
def read(text: str, relaxed: bool, thousands: bool = True, letters: bool = True) -> Reading | None:
    """The tree and the units of an answer. None if it is not mathematics, or beyond the limits.

    relaxed: "about" and "=" before the value are removed. thousands: 1,234 is one number. letters:
    "5 m" is five metres, not 5 times m.
    """
    if len(text) > MAX_LENGTH:
        return None
    try:
        text, units = _normalise(text, relaxed, letters)
        if thousands:  # but not inside brackets, where commas separate
            text = re.sub(
                r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)", lambda m: _join_thousands(m, text), text
            )
        if (
            re.fullmatch("[A-Za-z ]+", text)
            and re.search("[A-Za-z]{2}", text)
            and text not in CONSTANTS
        ):
            return None  # words, not a product of variables; that is written x y
        return Reading(Parser(text).whole(), units[:1] if len(set(units)) == 1 else units)
    except (Unreadable, RecursionError, OverflowError, ZeroDivisionError, ValueError):
        return None


def circles(text: str) -> str:
    r"""Write \textcircled{1}\textcircled{3} as ①③."""
    return _CIRCLED.sub(lambda m: chr(0x245F + int(m[1])) if 0 < int(m[1]) <= 20 else m[0], text)


def _join_thousands(match: re.Match, text: str) -> str:
    before = text[: match.start()]
    inside = sum(before.count(c) for c in ("(", "[", r"\{")) > sum(
        before.count(c) for c in (")", "]", r"\}")
    )
    return match[0] if inside else match[0].replace(",", "")


def _normalise(text: str, relaxed: bool, letters: bool) -> tuple[str, tuple]:
    """(the text for the parser, the units that were removed from it)."""
    units = []
    text = _unwrapped(text.strip())
    text = _currency_apart(text.replace("\\$", _DOLLAR))
    text = re.sub(r"\\[()\[\]]|\*\*(?!\s*[\w(\\+-])", " ", re.sub(r"\\\\", r"\\\\ ", text)).replace(
        r"\%", "%"
    )
    text = re.sub(r"(?<=\d)(?:\{,\}|,?\\[,!;: ])\s*(?=\d{3}(?!\d))", "", text)
    text = _python(SPACES.sub(" ", text))
    if _IN_CHINESE.search(text):
        text = _numerals(text)
    text = _TEMPERATURE.sub(lambda m: "℃" if "C" in m.groups() else "℉", text)
    text = _CURRENCY.sub(lambda m: units.append(unit(SIGNS.get(m[0], "dollar"))) or " ", text)
    if not _ANGLES.search(text):
        text = _DEGREES.sub(lambda m: units.append(unit("degree")) or " ", text)
    if re.search(r"\d", WORDS.sub("", text)):  # words beside numbers are units
        text = WORDS.sub(lambda m: _word(m, units), text)
    text = _UNIT.sub(lambda m: _take_unit(m, units, letters), text.strip())
    if relaxed:
        text = re.sub(
            r"^(?:[A-Za-z]{2,} )*(?:about|around|approximately|roughly|约|大约)\s*(?=[\d\\-])",
            "",
            text,
        )
        text = re.sub(r"^(?:=|≈|\\approx(?![A-Za-z]))\s*", "", text)
    text = WORDS.sub(r" \1 ", text).translate(CHARACTERS)
    return re.sub(r"\s+", " ", text).strip().rstrip(".,;:?").strip(), tuple(units)


def _unwrapped(text: str) -> str:
    r"""The text without \[ \], \( \) or \boxed{} around the whole of it."""
    for _ in range(3):
        if text[:2] in (r"\[", r"\("):
            end = text.rstrip(". ")
            if end[-2:] == {r"\[": r"\]", r"\(": r"\)"}[text[:2]] and len(end) > 3:
                text = end[2:-2].strip()
        match = re.match(r"\$*\\f?box(?:ed)?\s*\{", text)
        end = text.rstrip("$. ")
        if match and end.endswith("}"):
            depth = 0
            for brace in re.finditer(r"\\.|[{}]", end, re.S):
                depth += {"{": 1, "}": -1}.get(brace[0], 0)
                if not depth and brace[0] == "}":
                    break
            if not depth and brace.end() == len(end):
                text = end[match.end() : -1].strip()
    return text


def _currency_apart(text: str) -> str:
    """The text without formula signs, which come in pairs. A $ by itself is money and stays."""
    text = text.replace("$$", " ")
    return text.replace("$", " " if text.count("$") % 2 == 0 else _DOLLAR)


def _python(text: str) -> str:
    """The text with np.float64(0.5), Decimal('0.5') and arrays without commas in plainer Python."""
    if "(" in text:
        text = re.sub(r"\b(?:np|numpy|sp|sympy|math|mpmath)\.(?=[A-Za-z])", "", text)
        text = re.sub(
            r"\b(?:float|int|mpf|Decimal|Fraction)(?:16|32|64)?\('?([^'()]*)'?\)", _call, text
        )
    if text.startswith("[") and re.fullmatch(r"[-\d\s.e+\[\]]+", text):
        text = re.sub(r"(?<=[\d.\]])\s+(?=[-\d.\[])", ", ", text)
    return text


def _call(match: re.Match) -> str:
    return f"({match[1].replace(',', '/')})" if match[0].startswith("Fraction") else f"({match[1]})"


# ---- units, words --------------------------------------------------------------------------------


def _word(match: re.Match, units: list) -> str:
    word = match[1].strip()
    if len(word) < 2 and word not in MEASURES and not re.match("[一-鿿]", word):
        return match[0]
    if word in ("and", "or", "和", "或") or re.fullmatch(r"[A-Za-z一-鿿/ ]+", word):
        return f" {word} "
    units.append(unit(word))
    return " "


def _take_unit(match: re.Match, units: list, letters: bool) -> str:
    words = re.findall(r"[A-Za-z一-鿿℃℉]+", match[2])
    if words in (["percent"], ["pct"], ["percentage"]):
        return "%"
    for k, word in enumerate(words):
        if word in ("and", "or", "cup") or word in FUNCTIONS or word in CONSTANTS:
            return match[0]
        if word in MEASURES:
            # 5m may be algebra, "5 m" is not.
            spaced = match[1] or match[2][-1] in "²³" or k
            if len(word) == 1 and word.isascii() and not (letters and spaced):
                return match[0]
        elif word.isascii() and len(word) < 3 or word[0] in _NUMERAL:
            return match[0]
    units.append(unit(match[2]))
    return " "


# ---- Chinese numerals ----------------------------------------------------------------------------


def _numerals(text: str) -> str:
    """Write Chinese numerals as digits.

    >>> _numerals("三分之二"), _numerals("百分之五十"), _numerals("一又三分之二")
    ('2/3', '50%', '1 2/3')
    >>> _numerals("三点五"), _numerals("1.5万"), _numerals("负三")
    ('3.5', '15000', '-3')
    """
    for word, plain in _NOT_NUMERALS.items():
        text = text.replace(word, plain)
    number = rf"[{_NUMERAL}\d][{_NUMERAL}\d.]*"
    text = re.sub(f"百分之({number})", lambda m: f"{_chinese(m[1])}%", text)
    text = re.sub(
        f"(?:({number})又)?({number})分之({number})",
        lambda m: f"{_chinese(m[1]) + ' ' if m[1] else ''}{_chinese(m[3])}/{_chinese(m[2])}",
        text,
    )
    text = re.sub(
        f"(?<![\\d{_NUMERAL}])([{_NUMERAL}]+)点([{_NUMERAL[:11]}]+)(?!分)",
        lambda m: f"{_chinese(m[1])}.{''.join(str(_DIGITS[c]) for c in m[2])}",
        text,
    )
    text = re.sub(
        rf"[{_NUMERAL}][{_NUMERAL}\d]*|\d+(?:\.\d+)?[十百千万亿]+", lambda m: _chinese(m[0]), text
    )
    return re.sub(r"负\s*(?=\d)", "-", text)


def _chinese(text: str) -> str:
    """The digits of one numeral.

    >>> _chinese("三百零五"), _chinese("二〇二四"), _chinese("3万")
    ('305', '2024', '30000')
    """
    if not re.search("[十百千万亿]", text):
        return "".join(str(_DIGITS.get(c, c)) for c in text)
    total = part = Fraction(0)
    digit = None
    for token in re.findall(r"\d+(?:\.\d+)?|.", text):
        if token in _PLACES:
            place = _PLACES[token]
            if place >= 10_000:  # 万 and 亿 multiply everything before them
                total, part = (total + part + (digit or 0)) * place, Fraction(0)
            else:
                part += (1 if digit is None else digit) * place
            digit = None
        else:
            digit = Fraction(token) if token[0].isdecimal() else Fraction(_DIGITS[token])
    value = total + part + (digit or 0)
    return str(value) if value.denominator == 1 else f"({value})"
