"""Fields of a row that must be there (a text, a list, a letter of an option), and the answer in a
text."""

import math
import re

from data import answers
from data.io import InputError
from data.problems.problem import LETTERS, is_chinese

# Where they are true or false, they say whether the solution is right.
FLAGS = ("is_correct", "correct", "label")
_MEDIA = re.compile(r"(?:decoded_)?(?:image|picture|video|audio)(?:s|_\d+)?", re.I)


def check_row(row: dict, where: str, learned: bool = True) -> None:
    """Raise InputError for a row with pictures, videos or sounds, of which a text says only a part.
    With `learned` also for a row whose solution is said to be wrong: it would be learned."""
    for name, value in row.items():
        if _MEDIA.fullmatch(str(name)) and value and value == value:  # NaN: a missing value
            reason = "only texts can be used; remove the row, or the field if the text says it all"
            raise InputError(f"{where}: it has {name!r}, and {reason}")
    wrong = next((name for name in FLAGS if row.get(name) is False), None)
    if learned and wrong:
        raise InputError(f"{where}: {wrong!r} is false; remove rows with wrong solutions")


def field(row: dict, name: str, where: str) -> str:
    """A field that must be there, as text; 51.0 is written 51."""
    value = row.get(name)
    if isinstance(value, float) and not math.isfinite(value):
        value = None  # a missing value, as pandas writes it
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None or isinstance(value, (dict, list, bool)) else str(value).strip()
    if not text:
        raise InputError(f"{where}: a problem without {name!r}; add it or remove the line")
    return text


def list_field(row: dict, name: str, where: str) -> list[str]:
    value = row.get(name)
    if not isinstance(value, list) or not value or not all(str(item).strip() for item in value):
        raise InputError(
            f"{where}: {name!r} must be a list without empty entries; correct it or remove the line"
        )
    return [str(item).strip() for item in value]


def letter(label: str, choices: list[str], where: str, several: bool = False) -> str:
    """The letter of an answer, "(B)" or "B"; with `several` also "ACD". It must belong to an
    option."""
    letters = re.sub(r"[() .,]", "", label)
    unknown = set(letters) - set(LETTERS[: len(choices)])
    if not letters or unknown or len(letters) > (len(choices) if several else 1):
        raise InputError(
            f"{where}: answer {label!r} is not the letter of any of the {len(choices)} options; "
            "correct it or remove the line"
        )
    return "".join(sorted(set(letters)))


def lettered(options: list[str], where: str) -> list[str]:
    """The options without the "(A)", "A)" or "A." at their start."""
    for letter, option in zip(LETTERS, options, strict=False):
        if not re.match(rf"\(?{letter}[).]\s*\S", option):
            raise InputError(
                f"{where}: option {option[:20]!r} does not begin with ({letter}) and a text; "
                "correct it or remove the problem"
            )
    return [re.split(r"[).]", option, maxsplit=1)[1].strip() for option in options]


def language(text: str) -> str:
    return "zh" if is_chinese(text) else "en"


def boxed_answer(solution: str) -> str | None:
    """The answer in the last box of a solution, or None. Text after the box cannot be the answer."""
    return answers.extract(_through_last_box(solution))


def _through_last_box(solution: str) -> str:
    """The solution up to the end of the last box; "" without a box."""
    start = max(solution.rfind(r"\boxed"), solution.rfind(r"\fbox"))
    if start < 0:
        return ""
    box = re.compile(r"\\(?:boxed|fbox)\s*([^\s{]*)").match(solution, start)
    if box[1]:  # \boxed 5
        return solution[: box.end()]
    depth = 0
    for brace in re.compile(r"\\.|[{}]", re.S).finditer(solution, box.end()):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return solution[: brace.end()]
    return ""
