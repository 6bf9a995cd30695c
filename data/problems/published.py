r"""Problems of published data sets, recognized by the names and types of fields.

The question is a text, or the user's message of a chat. The answer stands in a field, bare or at
the end of a solution (\boxed{}, ####, "The answer is"). docs/data.md has the table of layouts.
"""

import ast
import json
import math
import random
import re
from contextlib import suppress
from pathlib import Path

from data import answers
from data.io import InputError
from data.problems.chats import chat_of_text, is_chat, read_chat
from data.problems.fields import FLAGS, boxed_answer, language
from data.problems.problem import LETTERS, Problem

# The first of these that holds something is taken. Names are in lower case; case does not matter.
QUESTIONS = (
    "question",
    "problem",
    "query",
    "instruction",
    "problem_statement",
    "original_text",
    "squestion",
    "prompt",
    "input",
    "messages",
    "conversations",
    "conversation",
    "context_messages",
    "message_1",
    "content",
)
BARE = (  # answers alone
    "expected_answer",
    "final_answer",
    "ground_truth",
    "gt_answer",
    "gold_answer",
    "golden_answer",
    "reference_answer",
    "correct_answer",
    "numerical_answer",
    "short_answer",
    "final_ans",
)
# These say more than `answer`, which may be a solution.
BETTER = {
    *BARE,
    "reward_model",
    "verification_info",
    "options",
    "choices",
    "distractor1",
    "a",  # an option
    "body",
    "context",
}
WEAK = ("target", "result", "label")  # they may say something else
ANSWERS = (
    *BARE,
    "gt",
    "lsolutions",
    "gold",
    "answer",
    "answers",
    "output_answer",
    "ans",
    *WEAK,
)
SOLUTIONS = (
    "solution",
    "generated_solution",
    "response",
    "output",
    "completion",
    "generation",
    "rationale",
    "solutions",
    "message_2",
    "answer",
)
OPTIONS = ("options", "choices")
LABELS = (
    "correct_answer",
    "answerkey",
    "correct",
    "answer",
    "label",
    "gold",
    "answer_idx",
    "answer_index",
    "target",
    *BARE,
)
LAYOUTS = (
    "question, problem, query, instruction, prompt or messages, with answer, expected_answer, "
    "final_answer, ground_truth, reward_model or a solution that states its answer"
)


def published(row: dict, path: Path, line: int) -> Problem:
    """The problem in a row. Raises InputError: for a row of no known layout, or without an answer
    that can be compared."""
    where = f"{path}:{line}"
    row = {str(name).lower(): value for name, value in row.items()}
    messages = [row[name] for name in sorted(row)]
    if is_chat(messages):  # Open-Reasoner-Zero on the Hub: the columns 0, 1 are messages
        row = {"conversations": messages}
    extra = row.get("extra_info") if isinstance(row.get("extra_info"), dict) else {}

    question = _question(extra, where) or _question(row, where)
    if question is None:
        raise InputError(f"{where}: no question among {_names(row)}; a problem needs {LAYOUTS}")
    common = {
        "id": f"{path.stem}-{line}",
        "source": _source(row, path),
        "lang": language(question),
        "solution": _solution(row),
    }
    choices = find_choices(row, question)
    if choices:
        label = _label(row, choices, where)
        texts = tuple(text for _, text in choices)
        question = without_options(question, choices)
        return Problem(question=question, answer=label, kind="choice", choices=texts, **common)
    return Problem(question=question, answer=_answer(row, extra, where), **common)


def _names(row: dict) -> str:
    return ", ".join(row) or "nothing"


def _source(row: dict, path: Path) -> str:
    for name in ("data_source", "source", "dataset"):
        if isinstance(row.get(name), str) and row[name]:
            return row[name]
    return path.stem


# ---- The question --------------------------------------------------------------------------------


def _question(row: dict, where: str) -> str | None:
    """The text of the question. A user's message is the question; a system message is left out."""
    for name in QUESTIONS:
        value = row.get(name)
        value = chat_of_text(value) or value if isinstance(value, str) else value
        if is_chat(value):
            return _user_text(value, where)
        if isinstance(value, str) and value.strip():
            return _whole(row, name, value.strip())
    return None


def _whole(row: dict, name: str, question: str) -> str:
    """The question with what stands before or after it in other fields: ASDiv's body, the context
    of OlympiadBench, Alpaca's input."""
    before = [row.get(other) for other in ("body", "context") if name == "question"]
    after = [row.get("input")] if name == "instruction" else []
    parts = [*before, question, *after]
    space = " " if row.get("body") else "\n\n"
    return space.join(part.strip() for part in parts if isinstance(part, str) and part.strip())


def _user_text(chat: list[dict], where: str) -> str:
    users = [m for m in chat if str(m.get("role", m.get("from"))).lower() in ("user", "human")]
    if len(users) != 1:
        raise InputError(
            f"{where}: a chat with {len(users)} messages of the user; a problem has one question"
        )
    return read_chat(users, where)[0]["content"].strip()


# ---- The answer ----------------------------------------------------------------------------------


def _answer(row: dict, extra: dict, where: str) -> str:
    for name in ("reward_model", "verification_info"):  # verl, SYNTHETIC-1
        if text := value_text(row.get(name)):
            row = row | {"expected_answer": text}
    wrong = [name for name in FLAGS if row.get(name) is False]
    names = ANSWERS if wrong else (*ANSWERS, *SOLUTIONS)
    texts = [value_text(row.get(name)) for name in names]
    if "original_text" in row:  # Ape210K: 4(5/11) is 4 + 5/11
        texts = [re.sub(r"(?<=\d)\((\d+/\d+)\)$", r" \1", text) for text in texts]
    if "body" in row:  # ASDiv: 9 (apples); 5 (pears)
        texts = [re.sub(r" \([^()]+\)(?=;|$)", "", text) for text in texts]
    if not wrong:
        texts += [_assistant_text(value) for value in row.values() if is_chat(value)]
    texts = [text for text in [*texts, value_text(extra.get("answer"))] if text]
    if not texts:
        raise InputError(f"{where}: no answer among {_names(row)}; a problem needs {LAYOUTS}")
    # A label may be a class, or say whether the solution is right. Is it the answer of the solution?
    named = next((name for name in ANSWERS if value_text(row.get(name))), "")
    weak = named if named in WEAK else ""
    solutions = (value_text(row.get(name)) for name in SOLUTIONS if weak)
    marked = next(filter(None, map(answers.extract, solutions)), None)
    for text in texts:
        if answer := stated_answer(text):
            if marked and not answers.compare(marked, answer).equal:
                reason = f"{weak} is {answer[:40]!r}, and the solution's answer is {marked[:40]!r}"
                raise InputError(f"{where}: {reason}; remove one of the fields")
            return check_answer(answer, where)
    raise InputError(f"{where}: {UNSTATED}")


def check_answer(answer: str, where: str) -> str:
    """The answer. Raises InputError for a word that stands for no answer."""
    if answer.lower() in ("proof", "notfound", "not found", "none", "n/a", "nan"):
        raise InputError(f"{where}: the answer is {answer!r}, not a value; remove the row")
    return answer


def value_text(value) -> str:
    """The text of an answer: of a number (51.0 is 51), of a list (its items with commas between),
    or in an object (`value`, `ground_truth`), which may be written as JSON or as Python writes it. ""
    if there is none."""
    if isinstance(value, str):
        if re.fullmatch(r"""\[(".*"|'.*')\]|\{["'].*\}""", value, re.S):
            for parse in (json.loads, ast.literal_eval):
                with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                    return value_text(parse(value))
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "" if value != value or value in (math.inf, -math.inf) else str(value)
    if isinstance(value, list):
        return ", ".join(filter(None, map(value_text, value)))
    if isinstance(value, dict):
        return value_text(value.get("value", value.get("ground_truth")))
    return ""


def _assistant_text(chat: list[dict]) -> str:
    last = chat[-1]
    if str(last.get("role", last.get("from"))).lower() in ("user", "human", "system"):
        return ""
    names = ("ground_truth", "content", "value")
    return next((text for name in names if (text := value_text(last.get(name)))), "")


_SENTENCES = re.compile(r"[a-z]{2}(?<!Mrs)[.!?]\s+[A-Z]|\n\s*\S")
# A sentence that says something: "He has 3 + 4 = 7 pens.", "Therefore ...", "所以..."
_STATEMENT = re.compile(
    r"(?=.*(?:=|\b(?:is|are|was|were|has|have|had|will|would|can)\b))[A-Z].*[\w)%$]\.|"
    r"(?:So|Thus|Hence|Therefore)\b.*|(?:所以|因此|答[：:]).*|.*[\u4e00-\u9fff].*。",
    re.S,
)
UNSTATED = (
    "the answer is a solution without \\boxed{}, #### or 'The answer is'; give the answer in a field "
    "of its own, or remove the row"
)


def stated_answer(text: str) -> str | None:
    r"""The answer in a text, which is the answer alone or a solution.

    A solution has several sentences or lines. Its answer is in a box, after #### or after "The
    answer is". None for a solution without such a mark.

    >>> stated_answer("5 + 3 = 8.\n#### 8"), stated_answer("x = 8"), stated_answer("It\nis 8.")
    ('8', 'x = 8', None)
    """
    stated = boxed_answer(text) or answers.extract(text)
    if stated:
        return re.sub(r"(?<=\d),(?=\d{3}\b)", "", stated) if "####" in text else stated
    words = re.findall(r"[A-Za-z]{2,}|[\u4e00-\u9fff]", _COMMAND.sub(" ", text))
    long = len(text) > (200 if len(words) > 12 else 400)  # a formula may be longer
    sentences = "\\begin" not in text and _SENTENCES.search(text)
    statement = len(words) > 1 and _STATEMENT.fullmatch(text)
    return None if long or sentences or statement else text


_COMMAND = re.compile(r"\\[A-Za-z]+(?:\{[a-z]+\*?\})?")


def _solution(row: dict) -> str | None:
    """The text of a solution: longer than an answer alone."""
    for name in SOLUTIONS:
        value = row.get(name)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, str) and _SENTENCES.search(value):
            return value
    return None


# ---- Options -------------------------------------------------------------------------------------


def find_choices(row: dict, question: str) -> list[tuple[str, str]]:
    """(label, text) of the options in order; [] if the problem has none."""
    for name in OPTIONS:
        value = row.get(name)
        if isinstance(value, dict) and isinstance(value.get("text"), list):  # ARC
            texts, labels = map(value_text, value["text"]), value.get("label")
            if not isinstance(labels, list):
                return _lettered(list(texts))
            return list(zip(map(str, labels), texts, strict=False))
        if isinstance(value, dict):
            return [(label, text) for label, text in value.items() if isinstance(text, str)]
        if isinstance(value, str):  # MathQA: one text
            value = re.split(r"\s*,?\s*(?=\b[a-jA-J]\s?\)\s)", value.strip())
            value = list(filter(None, value))
        if isinstance(value, list) and len(value) > 1 and all(map(value_text, value)):
            return _lettered(list(map(value_text, value)))
    if all(isinstance(row.get(name), str) for name in "abcd"):
        return [(name.upper(), row[name]) for name in "abcde" if isinstance(row.get(name), str)]
    wrong = [row[k] for k in sorted(row) if k.startswith(("incorrect answer", "distractor"))]
    right = value_text(row.get("correct answer", row.get("correct_answer")))
    if wrong and right:  # GPQA, SciQ: the order is drawn, the same in every run
        texts = [right, *map(value_text, wrong)]
        random.Random(question).shuffle(texts)
        return _lettered(texts)
    return []


def without_options(question: str, choices: list[tuple[str, str]]) -> str:
    """The question without the options that stand at its end: "A. 1 B. 2"."""
    marked = [rf"\(?{label}\s?[).:]\s*{re.escape(text.strip())}" for label, text in choices]
    found = re.search(r"\s+" + r"[\s,;]+".join(marked) + r"\s*$", question)
    return question[: found.start()] if found else question


def _lettered(options: list[str]) -> list[tuple[str, str]]:
    """(letter, option) of each option, without the "(A)" or "a )" at its start."""
    choices = []
    for number, option in enumerate(options):
        letter = chr(ord("A") + number)
        text = re.sub(rf"^\(?{letter}\s?[).:]\s*", "", option, flags=re.I)
        choices.append((letter, text))
    return choices


def _label(row: dict, choices: list[tuple[str, str]], where: str) -> str:
    """The letter of the right option. A field gives it as the option's label, its text, or its
    number from 0. Where the options are numbers, a number is one of them."""
    if len(choices) > len(LETTERS):
        raise InputError(f"{where}: {len(choices)} options; at most {len(LETTERS)} can be used")
    labels = [label.upper() for label, _ in choices]
    texts = [text.strip() for _, text in choices]
    options = next((row[name] for name in OPTIONS if isinstance(row.get(name), list)), [])
    numbers = [option if type(option) is int else None for option in options]
    names = [name for name in ("correct answer", *LABELS) if row.get(name) not in (None, "", [])]
    for name in names:
        value = row[name]
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        text = value_text(value)
        bare = re.sub(r"[() .:]", "", text).upper()
        if isinstance(value, bool):  # "correct": true says something else
            continue
        if type(value) is int and value in numbers:
            return LETTERS[numbers.index(value)]
        if isinstance(value, int) and 0 <= value < len(choices) and text not in labels:
            return LETTERS[value]
        if text in texts and texts.count(text) == 1 and bare not in labels:
            return LETTERS[texts.index(text)]
        if bare in labels:
            return LETTERS[labels.index(bare)]
        if text.isdigit() and int(text) < len(choices):
            return LETTERS[int(text)]
        if text in texts:
            return LETTERS[texts.index(text)]
        stated = re.sub(r"[() .:]", "", answers.extract(text) or "").upper()
        if stated in labels:
            return LETTERS[labels.index(stated)]
    raise InputError(
        f"{where}: no field says which of the {len(choices)} options is right; "
        f"give its letter in one of {', '.join(LABELS)}"
    )
