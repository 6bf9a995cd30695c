"""Preference pairs of published data sets: two answers to a prompt, of which the first is better.

The layouts are recognized by the fields of a row. docs/data.md has the table.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from data.io import InputError
from data.problems.chats import is_chat, read_chat
from data.problems.examples import CHATS, first, read_prompt
from data.problems.fields import check_row
from data.rows import read_rows

_NAMES = ("{}", "{}_response", "response_{}", "{}_answer", "{}_messages", "{}_conversations")
CHOSEN = (*(name.format("chosen") for name in _NAMES), "preferred")
REJECTED = (*(name.format("rejected") for name in _NAMES), "reject", "dispreferred")
LAYOUTS = (
    "files of rollout.py; prompt, chosen and rejected, as texts or as chats; chosen and rejected as "
    "whole chats; question, chosen and rejected; prompt, response_0, response_1 and "
    "better_response_id; prompt, response_1, response_2 and preference_strength"
)


@dataclass
class Preference:
    """Two answers to the same prompt.

    prompt: the messages {role, content} before the answers.
    start: a text with which both answers begin, and which is not compared.
    whole: whether the answers are complete. A step of a solution is not.
    is_chat: whether the prompt was a chat, to which no instruction is added.
    """

    prompt: list[dict]
    chosen: str
    rejected: str
    start: str = ""
    whole: bool = True
    is_chat: bool = False


def load_preferences(path) -> Iterator[tuple[str, Preference]]:
    """Yield ("file:line", preference) of the rows of a data file; see data.rows.read_rows.

    Raises InputError for a row that is no pair. It names the layouts if no layout fits.
    """
    for where, row in read_rows(path):
        yield where, preference(row, where)


def preference(row: dict, where: str) -> Preference:
    """The pair in a row. Raises InputError."""
    row = {name.lower(): value for name, value in row.items()}
    check_row(row, where, learned=False)
    chosen, rejected = _answers(row)
    if chosen is None or rejected is None:
        held = ", ".join(row) or "nothing"
        raise InputError(f"{where}: no chosen and rejected among {held}; data are {LAYOUTS}")

    chosen, rejected = _messages(chosen, where), _messages(rejected, where)
    common = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        common += 1
    prompt = chosen[:common]  # of chats that hold the prompt too
    chat = bool(prompt)
    if not prompt:
        chats = first(row, (*CHATS, "trajectory"))
        if is_chat(row.get("context")):  # HelpSteer 3
            chats = row["context"]
        prompt = _messages(chats, where) if chats else read_prompt(row, where)
        chat = is_chat(chats) or is_chat(row.get("prompt"))
        if len(prompt) == 1 and prompt[0]["content"].startswith("\n\nHuman:"):
            prompt, chat = _turns(prompt[0]["content"]), True
    while prompt and prompt[-1]["role"] == "assistant" and not prompt[-1]["content"]:
        prompt.pop()
    if not prompt:
        raise InputError(f"{where}: no prompt; add one, or give chats with a common beginning")

    chosen, rejected = chosen[common:], rejected[common:]
    for answer, name in ((chosen, "chosen"), (rejected, "rejected")):
        if [message["role"] for message in answer] != ["assistant"]:
            roles = ", ".join(message["role"] for message in answer)
            reason = f"after the common beginning, {name} is {roles}; it must be one answer"
            raise InputError(f"{where}: {reason} of the assistant")
    system = row.get("system")
    if isinstance(system, str) and system and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": system}, *prompt]
    texts = chosen[0]["content"], rejected[0]["content"]
    if texts[0].strip() == texts[1].strip():
        raise InputError(f"{where}: chosen and rejected are the same; remove the row")
    start = row.get("initial_reason_steps")  # Step-DPO: the answers are the next step
    return Preference(prompt, *texts, start or "", start is None, chat)


def _answers(row: dict) -> tuple:
    """The better and the worse answer: a text, a chat, or the message of a chat."""
    better = row.get("better_response_id")
    if better in (0, 1) and {"response_0", "response_1"} <= row.keys():  # PKU-SafeRLHF
        return row["response_0" if better == 0 else "response_1"], row[f"response_{1 - better}"]
    for names in (("response_1", "response_2"), ("response1", "response2")):  # HelpSteer 2 and 3
        strength = row.get("preference_strength", row.get("overall_preference"))
        if isinstance(strength, int) and strength and set(names) <= row.keys():
            return row[names[strength > 0]], row[names[strength < 0]]
    found = []
    for names in (CHOSEN, REJECTED):
        values = (row.get(name) for name in names)
        values = [[value] if isinstance(value, dict) else value for value in values]
        found.append(first(dict(zip(names, values, strict=True)), names))
    if found[0] is None and isinstance(found[1], str):  # ms-swift: the example and a worse answer
        chat = first(row, CHATS)
        if is_chat(chat):
            return chat, [*chat[:-1], {"role": "assistant", "content": found[1]}]
        found[0] = first(row, ("response",))
    return found[0], found[1]


def _messages(value, where: str) -> list[dict]:
    if is_chat(value):
        return read_chat(value, where)
    if value.startswith("\n\nHuman:"):
        return _turns(value)
    return [{"role": "assistant", "content": value}]


def _turns(text: str) -> list[dict]:
    """The messages of a text as in HH-RLHF: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    messages = []
    parts = re.split(r"\n\n(Human|Assistant):", text)
    for speaker, content in zip(parts[1::2], parts[2::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        messages.append({"role": role, "content": content.strip()})
    return messages
