r"""Finds where the answer stands in a text: in a \boxed{}, after ####, or after "The answer is".

Time is bounded by counts, not by a clock. Only the last MAX_TEXT characters of a text are read,
every pattern scans them in linear time, and at most MAX_TRIED formulas and phrases are tried.
"""

import re
from fractions import Fraction

from data.answers.reading import MAX_LENGTH, WORDS, circles, read

MAX_TEXT = 100_000  # characters that are read, counted from the end
MAX_TRIED = 64  # formulas and phrases that are tried

_END_OF_TEXT = re.compile(r"<\|im_(?:start|end)\|>|<\|endoftext\|>|<｜end▁of▁sentence｜>")
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_PHRASE = re.compile(
    r"\banswers?\*{0,4}\s{0,4}(?:is|are|:|：|=)(?:\s{0,4}:)?|"
    r"\b(?:correct|right|best) (?:option|choice)\s{0,4}(?:is|:)|"
    r"答案\s{0,4}(?:应该|应)?\s{0,4}(?:是|为|：|:)+",
    re.I,
)
_PICKED = re.compile(
    r"选\s{0,4}(?:择|项)?\s{0,4}(?:为|是)?\s{0,4}[:：]?\s{0,4}"
    r"([(（]?[A-H](?:[,、 ]{0,3}[A-H]){0,7}[)）]?)(?![A-Za-z])"
)
_SENTENCE_END = re.compile(
    r"\.(?=\s|$)|[。！]|\n\s*\S*|, (?:because|since|so|it|as)\b|\b(?:because|since)\b|I hope"
)
_DELIMITER = re.compile(r"\\[()\[\]]|\\.|\$\$|\$", re.S)
# A number or a fraction in running text, with its sign, currency and percent sign
_NUMBER = re.compile(
    r"(?<![\w.])[-+]?[$€£¥]?"
    r"(?:\\[dt]?frac\{-?\d+\}\{\d+\}"
    r"|(?:\d{1,3}(?:(?:,|\{,\})\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|\.\d+)"
    r"(?:\s{0,4}\\?%|\s{1,4}(?:percent|pct)\b)?",
    re.A,
)
_BOX = re.compile(r"\\f?box(?:ed)?[ \t]*\{|\\f?box(?:ed)?[ \t]*([^\s${}\\]+)|\\.|[{}]", re.S)
_BETWEEN_BOXES = re.compile(
    r"(?:[^.;!?\n]{0,40}(?:[,;、和或]|\band\b|\bor\b))?\s*(?:\w{1,20}\s*=\s*)?", re.I
)
_HAS_VALUE = re.compile(r"\d|\\|\$|(?<![\w'])[A-Z](?![\w'])")
OPTION = re.compile(r"\(?([A-Z])\)?")  # a letter of multiple choice
_PLAIN_NUMBER = re.compile(
    r"\s*\$?\s*([-+]?)(?:(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?:/(\d+))?"
    r"|\\[dt]?frac\{(\d+)\}\{(\d+)\})\s*\$?\s*",
    re.A,
)


def extract(text: str, fallback_last_number: bool = False) -> str | None:
    r"""The answer that `text` states, or None.

    An answer has a marker: `\boxed{x}`, `#### x`, "The answer is x", "Final answer: x", "The
    correct option is B", 答案是x, 答案为x, or 故选：B.

    - The last marker counts. But a phrase without a number, a formula or a capital letter by itself
      ("the answer is reasonable") does not replace a box or ####.
    - A box whose braces never close does not count.
    - Boxes that are joined by a comma, "and" or "or" are one list.
    - Text before the last `</think>` is not read.

    `fallback_last_number=True` takes, without any marker, the last formula or the last number of
    the text. It is off by default: a policy that is rewarded for any last number stops writing the
    marker.

    >>> extract("5 - 3 = 2. The answer is 2.")
    '2'
    >>> extract(r"The roots are \boxed{2} and \boxed{3}.")
    '2, 3'
    >>> extract("It costs 5 dollars.") is None
    True
    """
    text = text.rsplit("</think>", 1)[-1]
    text = _END_OF_TEXT.split(text, maxsplit=1)[0]
    text = text[-MAX_TEXT:]
    best, where = _last_box(text)

    hashes = [match for match in _HASHES.finditer(text) if match.start() >= where]
    if hashes:
        best, where = hashes[-1][1].strip(), hashes[-1].start()

    phrases = [match for match in _PHRASE.finditer(text) if match.start() >= where]
    clauses, with_value = [], []
    for match in phrases[-MAX_TRIED:]:
        clause = _clause(text[match.end() : match.end() + 400])
        if clause:
            clauses.append((clause, match.start()))
        if _HAS_VALUE.search(clause):
            with_value.append((clause, match.start()))
    if best is None and not with_value:
        with_value = clauses
    if with_value:
        clause, where = with_value[-1]
        best = _value_in(clause)

    picked = [match for match in _PICKED.finditer(text) if match.start() >= where]
    if picked and (best is None or OPTION.fullmatch(best)):
        best = picked[-1][1]
    if best is None and fallback_last_number:
        best = _last_value(text)
    return best or None


def plain_number(text: str) -> Fraction | None:
    r"""The value of an integer, a decimal or a fraction that stands alone, else None.

    Most answers are such numbers, and this reads them without the parser.

    >>> plain_number("1,234.5"), plain_number("-3/4"), plain_number("2 apples")
    (Fraction(2469, 2), Fraction(-3, 4), None)
    """
    if len(text) >= 60 or text.count("$") not in (0, 2):  # a single $ is money
        return None
    match = _PLAIN_NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, whole, decimals, denominator, top, bottom = match.groups()
    whole = (whole or "").replace(",", "")
    if decimals:
        if denominator:
            return None
        numerator = int(whole + decimals[1:])
        below = 10 ** (len(decimals) - 1)
    else:
        numerator = int(top or whole)
        below = int(bottom or denominator or 1)
    if below == 0:
        return None
    value = Fraction(numerator, below)
    return -value if sign == "-" else value


# ---- Boxes and formulas --------------------------------------------------------------------------


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, content) of each \boxed{} that closes and is not inside another box, in
    order."""
    found = []  # (start, end, start of the content)
    open_braces = []  # (start of the box or None, start of the content)
    for match in _BOX.finditer(text):
        token = match[0]
        if token.startswith(("\\box", "\\fbox")):
            if match[1]:  # \boxed 5
                found.append((match.start(), match.end(), match.start(1)))
            else:
                open_braces.append((match.start(), match.end()))
        elif token == "{":
            open_braces.append((None, match.end()))
        elif token == "}" and open_braces:
            start, content = open_braces.pop()
            if start is not None:
                while found and found[-1][0] > start:
                    found.pop()
                found.append((start, match.end(), content))

    result = []
    for start, end, content in found[-MAX_TRIED:]:
        last = end - 1 if text[end - 1] == "}" else end
        result.append((start, end, text[content:last]))
    return result


def _last_box(text: str) -> tuple[str | None, int]:
    """(the content of the last box, with the boxes before it that belong to the same list; where
    the last box ends)."""
    found = boxes(text)
    if not found:
        return None, -1
    start, last_end, content = found[-1]
    parts = [content.strip()]
    for previous_start, end, content in reversed(found[:-1]):
        if start - end > 200:
            break
        gap = re.sub(r"\\(?:text|mbox|q?quad|[()\[\], ])|[{}$]", " ", text[end:start])
        if not _BETWEEN_BOXES.fullmatch(gap.strip()):
            break
        parts.insert(0, content.strip())
        start = previous_start
    return ", ".join(dict.fromkeys(parts)), last_end


def formulas(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, content) of each formula in $ $, $$ $$, \( \) or \[ \], in order."""
    closing = {"$": "$", "$$": "$$", r"\(": r"\)", r"\[": r"\]"}
    found, opened = [], None
    for match in _DELIMITER.finditer(text):
        if opened is None:
            opened = match if match[0] in closing else None
        elif match[0] == closing[opened[0]]:
            found.append((opened.start(), match.end(), text[opened.end() : match.start()]))
            opened = None
        elif match[0] in (r"\(", r"\[") or match[0] == "$$":
            opened = match  # the sign before it opened no formula: $5 is money
    return found


# ---- The answer in a clause ----------------------------------------------------------------------


def _clause(text: str) -> str:
    """The text up to the end of the sentence. A full stop or a newline inside a formula does not
    end the sentence."""
    text = text.lstrip(" \t\n*:：")
    inside = [(start, end) for start, end, _ in formulas(text)]
    for match in _SENTENCE_END.finditer(text):
        if not any(start < match.start() < end for start, end in inside):
            return text[: match.start()].strip(" \t*,")
    return text.strip(" \t\n*,")


def _value_in(clause: str) -> str:
    """The answer in a clause like "x, the number of apples, is $5$". A clause that is mathematics
    as a whole is the answer."""
    if plain_number(clause) is not None or read(clause, True) is not None:
        return clause
    formula = re.match(r"\(?[A-Z]\)?[\w'^_=+*/\\-]", clause)
    if OPTION.match(clause) and not formula:
        return clause
    circled = re.findall("[①-⑳](?:[ ,、和]*[①-⑳])*", circles(clause))
    if circled:
        return circled[-1]
    value = _last_value(clause)
    if value:
        return value
    letters = re.findall(r"(?<![\w'$])([A-HJ-Z])(?![\w'])", WORDS.sub(r"\1", clause))
    return letters[0] if letters else clause


def _last_value(text: str) -> str | None:
    """The last formula that is mathematics, or the last number outside such formulas."""
    candidates = []  # (where it ends, whether it is a formula, text)
    for _, end, content in formulas(text)[-MAX_TRIED:]:
        candidates.append((end, True, content))
    for match in _NUMBER.finditer(text):
        candidates.append((match.end(), False, match[0]))
    for _, is_formula, content in sorted(candidates, reverse=True):
        if not is_formula:
            return content.strip()
        if len(content) <= MAX_LENGTH and read(content, True) is not None:
            return content.strip()
    return None
