"""Examples for instruction tuning, recognized by the fields of a row and not by the name of a set.

A row is a chat (`messages`, `conversations`), a prompt with its completion, or a question with its
response under one of the names that data sets use. docs/data.md has the table.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from data.io import InputError
from data.problems.chats import chat_of_text, is_chat, read_chat, turns
from data.problems.fields import check_row
from data.problems.problem import Problem, statement
from data.problems.published import find_choices, without_options
from data.prompts import FORMATS, prompt, response_text
from data.rows import read_rows

CHATS = ("messages", "conversations", "conversation", "dialogue", "chat")
# The first of these that has a text is the question, or the response.
QUESTIONS = ("question", "problem", "query", "instruction", "prompt", "input", "message_1")
RESPONSES = (
    "response",
    "completion",
    "output",
    "generated_solution",
    "generation",
    "solution",
    "rationale",
    "cot",
    "message_2",
    "answer",
)
LAYOUTS = (
    "question and response; messages; prompt and completion; conversations; instruction, input "
    "and output; problem and solution; query and response; question and answer (text without a "
    "question is for data.shards and train_pretrain.py)"
)


@dataclass
class Example:
    """A chat whose last message is of the assistant.

    messages: {role, content}, with role system, user, assistant or tool.
    format: kind of the solution. A "pot" is a program, and the content is the program alone.
    learned: which messages are learned. None: all of the assistant.
    is_chat: the row is a chat, which a chat template takes as it is. A question gets the
    instruction of its format.
    """

    messages: list[dict]
    format: str = "cot"
    learned: list[bool] | None = None
    is_chat: bool = field(default=False, compare=False)

    def in_chat(self) -> list[dict]:
        """The messages as a chat template takes them: a question has the instruction of its format,
        and a program its fence."""
        *before, answer = self.messages
        if not self.is_chat:
            *before, question = before
            text = prompt(question["content"], self.format, "chat")
            before.append(question | {"content": text})
        if not self.is_chat or self.format == "pot":
            answer = answer | {"content": response_text(answer["content"], self.format, "chat")}
        return [*before, answer]

    def question_and_response(self, where: str) -> tuple[str, str]:
        """The two texts, where one user message and one assistant message are all. Raises
        InputError for another chat."""
        if [message["role"] for message in self.messages] != ["user", "assistant"]:
            roles = ", ".join(message["role"] for message in self.messages)
            reason = f"its messages are {roles}; this template takes user, assistant"
            raise InputError(f"{where}: {reason}; use --template chat")
        if self.learned and not self.learned[1]:
            raise InputError(f"{where}: the answer is not to be learned; remove the row")
        return self.messages[0]["content"], self.messages[1]["content"]


def load_examples(path) -> Iterator[tuple[str, Example]]:
    """Yield ("file:line", example) of the rows of a data file; see data.rows.read_rows.

    Raises InputError for a row that is no example. It names the layouts if no layout fits.
    """
    for where, row in read_rows(path):
        yield where, example(row, where)


def example(row: dict, where: str) -> Example:
    """The example in a row. Raises InputError."""
    check_row(row, where)
    names = CHATS if first(row, QUESTIONS) else (*CHATS, "items", "data", "text")
    chat = next(filter(None, (turns(row.get(name)) for name in names)), None)
    if chat is not None:
        messages = read_chat(chat, where)
        learned = _learned(chat, messages)
    else:
        prompt, completion = _prompt_and_completion(row, where)
        messages = prompt + completion
        learned = [False] * len(prompt) + [m["role"] == "assistant" for m in completion]

    # Nothing is learned after the last message of the assistant.
    if {"chosen", "rejected"} <= row.keys() and messages[-1]["role"] != "assistant":
        reason = "a preference pair, without a message of the assistant before it"
        raise InputError(f"{where}: {reason}; give it to train_dpo.py")
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise InputError(f"{where}: no message of the assistant; add one or remove the row")
    learned = learned[: len(messages)]
    if isinstance(row.get("system"), str) and row["system"] and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": row["system"]})
        learned.insert(0, False)
    plain = learned == [message["role"] == "assistant" for message in messages]
    found = Example(messages, learned=None if plain else learned)
    found.is_chat = chat is not None or is_chat(first(row, QUESTIONS))
    return _with_format(found, row, where)


def _learned(chat: list[dict], messages: list[dict]) -> list[bool]:
    """Which messages are learned: all of the assistant, but for OpenAI's weight 0, LLaMA-Factory's
    loss_weight 0 and axolotl's train false."""
    learned = []
    for source, message in zip(chat, messages, strict=True):
        names = ("weight", "loss_weight", "train")
        wanted = [source[name] for name in names if source.get(name) is not None]
        learned.append(message["role"] == "assistant" and all(wanted))
    return learned


def _prompt_and_completion(row: dict, where: str) -> tuple[list[dict], list[dict]]:
    """The messages before what is learned, and the messages with it."""
    row = {name.lower(): value for name, value in row.items()}
    response = first(row, RESPONSES)
    extra = row.get("extra_info")
    if response is None and isinstance(extra, dict) and first(extra, RESPONSES):  # verl
        row, response = extra, first(extra, RESPONSES)
    prompt = read_prompt(row, where)
    for found, kind in ((prompt, "question"), (response, "response")):
        if not found:
            held = ", ".join(row) or "nothing"
            raise InputError(f"{where}: no {kind} among {held}; a row needs {LAYOUTS}")
    if isinstance(response, str):
        return prompt, [{"role": "assistant", "content": _without_marks(response)}]
    return prompt, read_chat(response, where)


def read_prompt(row: dict, where: str) -> list[dict]:
    """The messages of the question or the prompt of a row (names in lower case), [] if it has
    none."""
    question = first(row, QUESTIONS)
    if question is None or is_chat(question):
        return read_chat(question or [], where)
    if choices := find_choices(row, question):
        texts = tuple(text for _, text in choices)
        stem = without_options(question, choices)
        question = statement(Problem("", stem, "", kind="choice", choices=texts))
    context = first(row, ("input", "context"))
    if "instruction" in row and isinstance(context, str) and context != question:
        question = f"{question}\n\n{context}"
    messages = []
    history = row.get("history") or []
    for turn in history if isinstance(history, list) else [history]:
        if not (isinstance(turn, list) and [*map(type, turn)] == [str, str]):
            reason = "'history' is not a list of pairs of texts; correct or remove it"
            raise InputError(f"{where}: {reason}")
        messages.append({"role": "user", "content": turn[0]})
        messages.append({"role": "assistant", "content": turn[1]})
    return [*messages, {"role": "user", "content": question}]


def first(row: dict, names: tuple[str, ...]):
    """The first of some fields that holds a text or a chat, or None. A chat may be written as a
    text."""
    for name in names:
        value = row.get(name)
        if is_chat(value):
            return value
        if isinstance(value, str) and value.strip():
            return chat_of_text(value) or value
    return None


_TAGS = {
    "<llm-code>": "```python",
    "</llm-code>": "```",
    "<llm-code-output>": "```output",
    "</llm-code-output>": "```",
}


def _without_marks(response: str) -> str:
    """The response without the marks of data sets: of GSM8K's calculator (<<1+1=2>>) and of its
    answers (####), and OpenMathInstruct's tags around programs, which become fences."""
    for tag, fence in _TAGS.items():
        response = response.replace(tag, fence)
    mark = re.search(r"\n\s*####\s*(\S[^\n]*)\s*$", response)
    if mark is None:
        return response
    solution = re.sub(r"<<[^<>]*>>", "", response[: mark.start()]).rstrip()
    return f"{solution}\nThe answer is {mark[1].strip()}."


_FENCE = re.compile(r"\s*```(?:python|py)?[^\S\n]*\n(.*?)\n?```\s*", re.S)


def _with_format(example: Example, row: dict, where: str) -> Example:
    """Set the format: as the row says, else as the response shows beyond doubt, else "cot"."""
    format = row.get("format")
    if format is not None:
        if format not in FORMATS:
            known = ", ".join(FORMATS)
            raise InputError(f"{where}: format {format!r} is unknown; use {known}")
        example.format = format
        return example
    response = example.messages[-1]["content"]
    fence = _FENCE.fullmatch(response)
    if "```python" in response and "```output" in response:
        example.format = "tool"
    elif is_program(fence[1] if fence else response):
        example.format = "pot"
        example.messages[-1]["content"] = fence[1] if fence else response
    return example


def is_program(text: str) -> bool:
    """Whether the whole text is Python that prints something."""
    if "print(" not in text:
        return False
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
