r"""Where an answer stands in a text: boxes, ####, phrases.

Every scan here is linear in the text, of which the last MAX_TEXT characters are read, and the number of formulas and
phrases that are tried is limited: time is bounded by counts, not by a clock.
"""

import re

from data.answers.reading import MAX_LENGTH, WORDS, circles, read

MAX_TEXT = 100_000  # characters, from the end
MAX_TRIED = 64  # formulas and phrases

_END = re.compile(r"<\|im_(?:start|end)\|>|<\|endoftext\|>|<｜end▁of▁sentence｜>")
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_PHRASE = re.compile(
    r"\banswers?\*{0,4}\s{0,4}(?:is|are|:|：|=)(?:\s{0,4}:)?|\b(?:correct|right|best) (?:option|choice)\s{0,4}(?:is|:)|"
    r"答案\s{0,4}(?:应该|应)?\s{0,4}(?:是|为|：|:)+",
    re.I,
)
_PICKED = re.compile(
    r"选\s{0,4}(?:择|项)?\s{0,4}(?:为|是)?\s{0,4}[:：]?\s{0,4}([(（]?[A-H](?:[,、 ]{0,3}[A-H]){0,7}[)）]?)(?![A-Za-z])"
)
_SENTENCE_END = re.compile(
    r"\.(?=\s|$)|[。！]|\n\s*\S*|, (?:because|since|so|it|as)\b|\b(?:because|since)\b|I hope"
)
_DELIMITER = re.compile(r"\\[()\[\]]|\\.|\$\$|\$", re.S)
_NUMBER = re.compile(  # a number, fraction or LaTeX fraction in running text, with its sign, currency and percent mark
    r"(?<![\w.])[-+]?[$€£¥]?(?:\\[dt]?frac\{-?\d+\}\{\d+\}|(?:\d{1,3}(?:(?:,|\{,\})\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|\.\d+)"
    r"(?:\s{0,4}\\?%|\s{1,4}(?:percent|pct)\b)?",
    re.A,
)
_BOX = re.compile(r"\\f?box(?:ed)?[ \t]*\{|\\f?box(?:ed)?[ \t]*([^\s${}\\]+)|\\.|[{}]", re.S)
_BETWEEN_BOXES = re.compile(
    r"(?:[^.;!?\n]{0,40}(?:[,;、和或]|\band\b|\bor\b))?\s*(?:\w{1,20}\s*=\s*)?", re.I
)
_VALUE = re.compile(r"\d|\\|\$|(?<![\w'])[A-Z](?![\w'])")
OPTION = re.compile(r"\(?([A-Z])\)?")


def extract(text: str, fallback_last_number: bool = False) -> str | None:
    r"""The answer stated in `text`, or None.

    Markers: `\boxed{...}` (braces balanced; a box that never closes does not count), `#### x`, "The answer is x" /
    "Final answer: x" / "The correct option is B" / 答案是x / 答案为x / 故选：B. The marker that stands last wins,
    except that a phrase whose clause holds no number, formula or single capital letter ("the answer is reasonable")
    does not take the place of a box or ####. Boxes joined by a comma, "and" or "or" are one list. Text up to the last
    `</think>` is not read.

    `fallback_last_number=True`: where no marker is found, the last formula between dollars or `\( \)` or the last
    number, whichever stands later. Off by default: a policy rewarded for any last number stops writing the marker.
    """
    text = _END.split(text.rsplit("</think>", 1)[-1], maxsplit=1)[0][-MAX_TEXT:]
    best, where = _boxed(text)
    hashes = [match for match in _HASHES.finditer(text) if match.start() >= where]
    if hashes:
        best, where = hashes[-1][1].strip(), hashes[-1].start()
    phrases = [match for match in _PHRASE.finditer(text) if match.start() >= where]
    clauses = [
        (_clause(text[match.end() : match.end() + 400]), match.start())
        for match in phrases[-MAX_TRIED:]
    ]
    stated = [pair for pair in clauses if _VALUE.search(pair[0])]
    if not stated and best is None:
        stated = [pair for pair in clauses if pair[0]]
    if stated:
        best, where = _core(stated[-1][0]), stated[-1][1]
    picked = [match for match in _PICKED.finditer(text) if match.start() >= where]
    if picked and (best is None or OPTION.fullmatch(best)):
        best = picked[-1][1]
    if best is None and fallback_last_number:
        best = _last_value(text)
    return best or None


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, content) of each \boxed{...} that closes and stands in no other one, in order."""
    found, open_braces = (
        [],
        [],
    )  # of each open brace: where its box starts (None: no box), and where its content does
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
    return [
        (start, end, text[content : end - 1] if text[end - 1] == "}" else text[content:end])
        for start, end, content in found[-MAX_TRIED:]
    ]


def _boxed(text: str) -> tuple[str | None, int]:
    """The last box, with those before it that belong to the same list, and where it ends."""
    found = boxes(text)
    if not found:
        return None, -1
    parts = [found[-1][2]]
    for (_, end, previous), (start, _, _) in reversed(list(zip(found, found[1:], strict=False))):
        if start - end > 200:
            break
        gap = re.sub(r"\\(?:text|mbox|q?quad|[()\[\], ])|[{}$]", " ", text[end:start])
        if not _BETWEEN_BOXES.fullmatch(gap.strip()):
            break
        parts.insert(0, previous)
    return ", ".join(dict.fromkeys(part.strip() for part in parts)), found[-1][1]


def formulas(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, content) of what stands between $ $, $$ $$, \( \) or \[ \], in order; one pass."""
    closing = {"$": "$", "$$": "$$", r"\(": r"\)", r"\[": r"\]"}
    found, opened = [], None
    for match in _DELIMITER.finditer(text):
        if opened is None:
            opened = match if match[0] in closing else None
        elif match[0] == closing[opened[0]]:
            found.append((opened.start(), match.end(), text[opened.end() : match.start()]))
            opened = None
        elif match[0] in (r"\(", r"\[") or match[0] == "$$":
            opened = match  # the one before was no opening one: $5 is money
    return found


def _clause(text: str) -> str:
    """Up to the end of the sentence; a full stop or line end inside a formula does not end it."""
    text = text.lstrip(" \t\n*:：")
    inside = [(start, end) for start, end, _ in formulas(text)]
    for match in _SENTENCE_END.finditer(text):
        if not any(start < match.start() < end for start, end in inside):
            return text[: match.start()].strip(" \t*,")
    return text.strip(" \t\n*,")


def _core(clause: str) -> str:
    """The value inside "x, the number of apples, is $5$": the whole clause when it reads as mathematics by itself."""
    if (
        read(clause, True) is not None
        or OPTION.match(clause)
        and not re.match(r"\(?[A-Z]\)?[\w'^_=+*/\\-]", clause)
    ):
        return clause
    if circled := re.findall("[①-⑳](?:[ ,、和]*[①-⑳])*", circles(clause)):
        return circled[-1]
    letters = re.findall(r"(?<![\w'$])([A-HJ-Z])(?![\w'])", WORDS.sub(r"\1", clause))
    return _last_value(clause) or (letters[0] if letters else clause)


def _last_value(text: str) -> str | None:
    """The last formula that reads as mathematics, or the last number outside such formulas."""
    candidates = [(end, 1, content) for _, end, content in formulas(text)[-MAX_TRIED:]]
    candidates += [(match.end(), 0, match[0]) for match in _NUMBER.finditer(text)]
    for _, is_formula, content in sorted(candidates, reverse=True):
        if not is_formula or len(content) <= MAX_LENGTH and read(content, True) is not None:
            return content.strip()
    return None
