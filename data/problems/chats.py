"""Chats as data sets publish them, as lists of messages {role, content}.

OpenAI's {role, content} and ShareGPT's {from, value} are the same thing. A content may be a string
or a list of parts with text.
"""

import ast
import json
import re
from contextlib import suppress

from data.io import InputError

_ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "chatbot", "model", "bot", "function_call"),
    "tool": ("tool", "observation", "function", "function_response", "ipython"),
}
_ROLE = {name: role for role, names in _ROLES.items() for name in names}
_SPEAKER = ("role", "from", "speaker")
_TEXT = ("content", "value", "text")
# Read by chat templates. Thoughts have three names; data/chat.py knows all of them.
_KEPT = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking", "reasoning")


def is_chat(value) -> bool:
    """Whether a field holds a list of messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, dict) for message in value)
        and any(name in value[0] for name in _SPEAKER)
    )


_PAIRS = (("input", "output"), ("human", "assistant"), ("user", "assistant"))


def turns(value) -> list[dict]:
    """The messages of a field that holds a chat: a list of messages, of pairs {input, output} as in
    Capybara, or of texts in turn as in UltraChat, or a text with a chat. [] if it holds none."""
    if is_chat(value):
        return value
    if isinstance(value, str):
        return chat_of_text(value)
    if not isinstance(value, list):
        return []
    if len(value) > 1 and all(isinstance(text, str) for text in value):
        roles = ("user", "assistant")
        return [{"role": roles[n % 2], "content": text} for n, text in enumerate(value)]
    for names in _PAIRS:
        messages = []
        for pair in value:
            texts = [pair.get(name) for name in names] if isinstance(pair, dict) else [None]
            if not all(isinstance(text, str) for text in texts):
                break
            if isinstance(pair.get("system"), str) and pair["system"] and not messages:
                messages.append({"role": "system", "content": pair["system"]})
            for role, text in zip(("user", "assistant"), texts, strict=True):
                messages.append({"role": role, "content": text})
        else:
            return messages
    return []


_RENDERED = re.compile(
    r"<\|(?:im_start|start_header_id)\|>\s*(\w+)(?:<\|end_header_id\|>)?\s*"
    r"(.*?)\s*(?=<\|(?:im_end|eot_id|im_start|start_header_id)\|>|\Z)",
    re.S,
)


def chat_of_text(text: str) -> list[dict]:
    """The messages of a text that holds a chat, [] of another text. It is written as JSON or as
    Python writes it, or by the chat template of Qwen or Llama 3."""
    if re.match(r"""\s*\[\s*\{\s*["']""", text):
        for parse in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                value = parse(text)
                return value if is_chat(value) else []
    return [
        {"role": role, "content": content} for role, content in _RENDERED.findall(text) if content
    ]


def read_chat(value: list[dict], where: str) -> list[dict]:
    """The messages {role, content} of a chat, with the roles system, user, assistant and tool.

    Raises InputError for an unknown role and for a message without text.

    >>> read_chat([{"from": "human", "value": "1 + 1?"}], "f.jsonl:1")
    [{'role': 'user', 'content': '1 + 1?'}]
    """
    messages = []
    for number, message in enumerate(value, 1):
        speaker = str(_first(message, _SPEAKER)).lower()
        if speaker not in _ROLE:
            known = ", ".join(_ROLE)
            raise InputError(f"{where}: message {number} has the role {speaker!r}; use {known}")
        content = _text(_first(message, _TEXT))
        kept = {name: message[name] for name in _KEPT if message.get(name)}
        if content is None and "tool_calls" not in kept:
            reason = "has no text, or a part that is no text; correct or remove the row"
            raise InputError(f"{where}: message {number} {reason}")
        messages.append({"role": _ROLE[speaker], "content": content or "", **kept})
    return messages


def _first(message: dict, names: tuple[str, ...]):
    return next((message[name] for name in names if message.get(name) is not None), None)


def _text(content) -> str | None:
    """The text of a content. None if there is none, or if a part is a picture or a sound."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = []
    for part in content:
        if isinstance(part, dict) and part.get("type", "text") == "text":
            part = part.get("text", part.get("value"))
        if not isinstance(part, str):
            return None
        texts.append(part)
    return "".join(texts)
