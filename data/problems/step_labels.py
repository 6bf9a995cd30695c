"""Solutions with a label for each step, from public files: PRM800K, Math-Shepherd, TRL and ProcessBench."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from data.io import InputError
from data.problems.chats import is_chat
from data.rows import read_rows


@dataclass
class Solution:
    """A solution as text: the steps with their labels (None: not rated) and the verdict (None:
    unknown)."""

    question: str
    steps: list[tuple[str, float | None]]
    verdict: float | None = None


def prm800k(path: str) -> Iterator[Solution]:
    """The solutions of a file of PRM800K, in which people rated steps: -1 is wrong, 0 and 1 are
    not.

    Gives the path of the chosen steps, and every other rated step after the steps that were chosen
    before it. The label of a chosen step counts once. Raises InputError.
    """
    for where, row in read_rows(path):
        try:
            yield from _prm800k_line(row)
        except (KeyError, TypeError, IndexError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{where}: not a line of PRM800K ({reason})") from None


def _prm800k_line(row: dict) -> Iterator[Solution]:
    question: str = row["question"]["problem"]
    before: list[tuple[str, float | None]] = []  # the chosen steps so far
    for step in row["label"]["steps"]:
        rated = step["completions"] or []
        number = step.get("chosen_completion")
        chosen = step["human_completion"] if number is None else rated[number]
        for other in rated:
            if other is not chosen and other["rating"] is not None:
                unlabeled = [(text, None) for text, _ in before]
                yield Solution(question, [*unlabeled, (other["text"], _label(other["rating"]))])
        if chosen is None:  # nobody went on from here
            break
        before.append((chosen["text"], _label(chosen.get("rating"))))
    if any(label is not None for _, label in before):
        verdicts = {"solution": 1.0, "found_error": 0.0}
        yield Solution(question, before, verdicts.get(row["label"].get("finish_reason")))


def _label(rating: int | None) -> float | None:
    return None if rating is None else float(rating >= 0)


TAG = "ки"  # Math-Shepherd writes it at the end of every step


def math_shepherd(path: str) -> Iterator[Solution]:
    """The solutions of a file of Math-Shepherd, {input, label}, or of the editions of OpenRLHF and
    RLHFlow.

    input is a question with lines "Step 1: ...". label is input with + or - in place of each tag.
    OpenRLHF has value in its place, the list of signs. RLHFlow has conversations: the user says a
    step (the first with the question), and the assistant its sign. Raises InputError.
    """
    for where, row in read_rows(path):
        text, signs = _text_and_signs(row)
        if not isinstance(text, str) or "Step 1:" not in text:
            reason = "it needs input with steps, and label"
            raise InputError(f"{where}: not a line of Math-Shepherd; {reason}")
        if not signs or len(signs) != text.count(TAG) or not set(signs) <= {"+", "-"}:
            reason = f"label is not input with + or - in place of each {TAG}"
            raise InputError(f"{where}: {reason}")
        start = text.index("Step 1:")
        parts = re.split(f"(?={TAG})", text[start:])[: len(signs)]
        steps = [part.removeprefix(TAG) for part in parts]
        labels = [float(sign == "+") for sign in signs]
        yield Solution(text[:start].strip(), list(zip(steps, labels, strict=True)), labels[-1])


def _text_and_signs(row: dict) -> tuple:
    """The text with a TAG after each step, and what stands for each TAG."""
    chat, text, marked = row.get("conversations"), row.get("input"), row.get("label")
    if is_chat(chat):
        texts = [str(message.get("content")).strip() for message in chat]
        return "".join(f"{step} {TAG}\n" for step in texts[::2]), texts[1::2]
    if isinstance(row.get("value"), list):
        return text, [str(sign) for sign in row["value"]]
    if not isinstance(text, str) or not isinstance(marked, str):
        return None, []
    # A tag is a letter longer than a sign, so sign k is k places further left than tag k.
    tags = [match.start() for match in re.finditer(TAG, text)]
    return text, [marked[place - k : place - k + 1] for k, place in enumerate(tags)]


def stepwise(path: str) -> Iterator[Solution]:
    """The solutions of a file in TRL's layout for stepwise supervision, or in ProcessBench's.

    TRL: {prompt, completions, labels}, a label for each step. ProcessBench: {problem, steps, label},
    where label is the number from 0 of the first wrong step, or -1. What comes after it has no
    label. The solution is right if the last step with a label is. Raises InputError.
    """
    for where, row in read_rows(path):
        question = row.get("prompt", row.get("problem"))
        steps = row.get("completions", row.get("steps"))
        labels = row.get("labels")
        wrong = row.get("label")
        if labels is None and type(wrong) is int and isinstance(steps, list):
            right = len(steps) if wrong < 0 else min(wrong, len(steps))
            labels = [True] * right + [False] * (wrong >= 0)
            labels += [None] * (len(steps) - len(labels))
        texts = isinstance(steps, list) and all(isinstance(step, str) for step in steps)
        known = isinstance(labels, list) and all(label in (0, 1, None) for label in labels)
        if not isinstance(question, str) or not texts or not known or len(steps) != len(labels):
            reason = "it needs prompt, completions and a label, true or false, for each of them"
            raise InputError(f"{where}: no solution with labels of its steps; {reason}")
        numbers = [None if label is None else float(label) for label in labels]
        rated = [number for number in numbers if number is not None]
        if rated:
            yield Solution(question, list(zip(steps, numbers, strict=True)), rated[-1])
