r"""A model's own chat template: the Jinja program that turns a conversation into the text that the model reads.

A message is {"role": "system", "user" or "assistant", "content": text}. `ChatTemplate.encode` gives the ids
of transformers' apply_chat_template. One thing differs: the text of a special token in a message is only
text. No message can begin another turn.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from os.path import commonprefix
from pathlib import Path

import regex

from data.io import InputError, in_a_line, read_json
from data.jinja import MARK, compile_template
from data.tokenizer import Tokenizer

GUARD = "\ue123\ue127"  # private characters that break the text of a special token in a message
QUESTION, ANSWER = "What is 5 - 3?", "It is 5 - 3 = 2."  # of a trial


class ChatTemplate:
    """The chat template of a model, with its tokenizer.

    end_id: the token that the template writes after an answer. EOS if it writes none.
    """

    def __init__(self, text: str, tokenizer: Tokenizer, variables: dict, where: str, system: str):
        """text: the template. variables: what it sees beside the messages, such as bos_token.
        where: its file, for messages. system: see `load`. Raises InputError if it does not work.
        """
        self.tokenizer, self.variables = tokenizer, variables
        self.where, self.system = where, system
        self.blocks = re.search(r"{%-?\s*generation\s*-?%}", text) is not None
        self.template = compile_template(text, where)
        tokens = [regex.escape(token) for token in tokenizer.special if len(token) > 1]
        tokens = "|".join(tokens) or "(?!)"  # which matches nothing
        self.special = regex.compile(rf"(?=(?:{tokens}))[\s\S]")  # the first character of each
        self.parts = False  # whether the content of a message is a list of parts
        self.tail = ""  # what the template writes after the last answer
        self.end_id = self._find_end()

    @classmethod
    def load(cls, directory: str | Path, tokenizer: Tokenizer, system: str = "") -> "ChatTemplate":
        """The template of a Hugging Face directory, where transformers 5 finds it.

        It is "default" of additional_chat_templates/, or chat_template.jinja. Without such files it
        is chat_template of tokenizer_config.json: a text, or a list of {name, template}.
        system: a system message for conversations without one; "": none.
        """
        directory = Path(directory)
        try:
            return cls._load(directory, tokenizer, system)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            reason = f"not as transformers writes it ({type(error).__name__}: {in_a_line(error)})"
            raise InputError(f"{directory}: its chat template is {reason}") from None

    @classmethod
    def _load(cls, directory: Path, tokenizer: Tokenizer, system: str) -> "ChatTemplate":
        path = directory / "tokenizer_config.json"
        config = read_json(path) if path.exists() else {}
        variables = dict(config)
        roles = directory / "special_tokens_map.json"
        if "added_tokens_decoder" not in config and roles.exists():
            variables |= read_json(roles)

        files = {path.stem: path for path in directory.glob("additional_chat_templates/*.jinja")}
        if (path := directory / "chat_template.jinja").is_file():
            files.setdefault("default", path)
        templates = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
        where = files.get("default", directory / "tokenizer_config.json")
        if not files:
            templates = config.get("chat_template") or {}
            if isinstance(templates, str):
                templates = {"default": templates}
            elif isinstance(templates, list):
                templates = {row["name"]: row["template"] for row in templates}
        if not isinstance(templates.get("default"), str):
            found = f"only {', '.join(templates)}" if templates else "none"
            advice = "give a chat model, or use --template plain, deepseek or qwen"
            reason = f"--template chat needs a chat template, and there is {found}"
            raise InputError(f"{directory}: {reason}; {advice}")
        return cls(templates["default"], tokenizer, _tokens(variables), str(where), system)

    # ---- Text and ids ----------------------------------------------------------------------------

    def render(self, messages: list[dict], add_generation_prompt: bool = False) -> str:
        """The text of a conversation. add_generation_prompt: with the beginning of the next answer.

        Raises InputError where the template fails, or refuses the conversation.
        """
        text = self._render(messages, add_generation_prompt)
        return text.replace(GUARD, "").replace(MARK, "")

    def encode(self, messages: list[dict], add_generation_prompt: bool = False) -> list[int]:
        """The ids of a conversation. BOS is among them if the template writes it."""
        return self._encode(self._render(messages, add_generation_prompt))[0]

    def encode_question(self, question: str) -> list[int]:
        """The ids of a question, up to the beginning of the answer."""
        return self.encode([{"role": "user", "content": question}], add_generation_prompt=True)

    def encode_example(
        self, messages: list[dict], learned: list[bool] | None = None
    ) -> tuple[list[int], list[bool], int]:
        """The ids of a conversation up to the end of its last answer, for each whether it is learned,
        and the number of answers that cannot be learned.

        learned: which messages are (None: all of the assistant). Where the template has generation
        blocks, they say what is learned. Otherwise it is what follows the prompt of an answer, up to
        the end of the turn. The ids before it are those of the prompt. In templates that change
        earlier turns, as those that drop thoughts, only the last answer can be learned.
        """
        if self.blocks and learned is None:
            ids, flags = self._encode(self._render(messages))
            if True not in flags:
                raise InputError(f"{self.where}: its generation blocks are empty for this row")
            count = len(flags) - flags[::-1].index(True)
            return ids[:count], flags[:count], 0

        # Prompt, whole turn and text of each answer. The last turn is the whole conversation.
        turns = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant" and (learned is None or learned[i]):
                prompt = self._render(messages[:i], True).replace(MARK, "")
                turn = self._render(messages[: i + 1]).replace(MARK, "")
                turns.append((prompt, turn, self._guard(message["content"].strip())))
        if not turns:
            raise InputError("no answer of the assistant is learned; remove the row")
        prompt, text, answer = turns[-1]
        if not text.startswith(prompt):  # as where the prompt begins a thought
            text = prompt + answer
            turns[-1] = prompt, text, answer

        # Cut the text where the answers that stand in it begin and end.
        ids, flags = [], []
        begin = count = 0
        for prompt, turn, answer in turns:
            end = self._end_of_answer(text, prompt, turn, answer)
            if end is None:
                continue
            for start, stop, flag in ((begin, len(prompt), False), (len(prompt), end, True)):
                new = self._encode(text[start:stop])[0]
                ids += new
                flags += [flag] * len(new)
            begin = end
            count += 1
        if True not in flags:
            raise InputError(f"{self.where}: the chat template does not write the answer")
        if ids[-1] != self.end_id:
            ids.append(self.end_id)
            flags.append(True)
        return ids, flags, len(turns) - count

    def _end_of_answer(self, text: str, prompt: str, turn: str, answer: str) -> int | None:
        """Where the answer of a turn ends in the text of a conversation, with the token that ends it.
        None if the text does not begin with this prompt and this answer."""
        same = len(commonprefix([text, turn]))
        # Where the text of the answer ends. The template may have changed it: then with the turn.
        tail = self.tail if turn.endswith(self.tail) else ""
        found = turn.rfind(answer, len(prompt), len(turn) - len(tail))
        after = found + len(answer) if found >= 0 else len(turn.rstrip())
        if not turn.startswith(prompt) or same < after:
            return None
        # The token that ends it stands there, or a little later.
        end = next((t for t, i in self.tokenizer.special.items() if i == self.end_id), "")
        place = text.rfind(end, after if found >= 0 else len(prompt), same) if end else -1
        if place < 0:  # as where the next turn begins with it
            place = len(text) - len(text[after:].lstrip())
        return place + len(end) if end and text.startswith(end, place) else after

    def _render(self, messages: list[dict], add_generation_prompt: bool = False) -> str:
        """The text with the private characters."""
        if self.system and (not messages or messages[0]["role"] != "system"):
            messages = [{"role": "system", "content": self.system}, *messages]
        return self.template(
            **self.variables,
            messages=[self._plain(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
        )

    def _plain(self, message: dict) -> dict:
        """A message as the template sees it: no field is None, and no text holds a special token."""
        message = {name: value for name, value in message.items() if value is not None}
        names = ("reasoning_content", "thinking", "reasoning")
        thoughts = next((message[name] for name in names if name in message), None)
        if thoughts is not None:  # templates know them by the first or the second name
            message = {"thinking": thoughts, **message, "reasoning_content": thoughts}
        if self.parts and isinstance(message.get("content"), str):
            message["content"] = [{"type": "text", "text": message["content"]}]
        return {name: v if name == "role" else self._guard(v) for name, v in message.items()}

    def _guard(self, value):
        """A value of a message, where GUARDs break the text of special tokens."""
        if isinstance(value, dict):
            return {name: self._guard(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._guard(inner) for inner in value]
        if not isinstance(value, str):
            return value
        return self.special.sub(rf"\g<0>{GUARD}", value.replace(GUARD, "").replace(MARK, ""))

    def _encode(self, text: str) -> tuple[list[int], list[bool]]:
        """The ids of a text with private characters, and which of them lie between two MARKs."""
        ids, learned, inside = [], [], False
        for part, id in self.tokenizer.split_special(text):
            pieces = part.replace(GUARD, "").split(MARK)
            if id is not None:
                ids.append(id)
                learned.append(inside)
                continue
            whole = self.tokenizer.encode("".join(pieces))
            ids += whole
            if len(pieces) == 1:
                learned += [inside] * len(whole)
                continue
            # Which bytes lie between two MARKs? A token is learned if one of its bytes does.
            flags: list[bool] = []
            for number, piece in enumerate(pieces):
                inside ^= number > 0
                flags += [inside] * len(piece.encode(errors="surrogatepass"))
            begin = 0
            for id in whole:
                end = begin + len(self.tokenizer.decode_bytes([id]))
                learned.append(any(flags[begin:end]))
                begin = end
        return ids, learned

    def _trial(self, messages: list[dict], text: str) -> str:
        """What the template writes after a text of a conversation. Raises InputError if it does not
        write the text."""
        prompted = messages[-1]["role"] == "user"
        _, found, after = self.render(messages, prompted).rpartition(text)
        if not found:
            reason = "the chat template does not write the text of a message"
            raise InputError(f"{self.where}: {reason}; use another --template")
        return after

    def _find_end(self) -> int:
        """The first special token after an answer, or EOS. The trial also shows if the template works."""
        turn = {"role": "user", "content": QUESTION}
        answer = {"role": "assistant", "content": ANSWER}
        try:
            self._trial([turn], QUESTION)
        except InputError as error:
            self.parts = True  # of models that also see images: a text is a part of the content
            try:
                self._trial([turn], QUESTION)
            except InputError:
                raise error from None
        for messages in ([turn, answer], [turn, answer, turn]):
            with suppress(InputError):  # a template may be for one question alone
                after = self._trial(messages, ANSWER)
                self.tail = after if messages[-1] is answer else self.tail
                for _, id in self.tokenizer.split_special(after):
                    if id is not None:
                        return id
        return self.tokenizer.eos_id


def load_tokenizer(directory: str | Path, template: str = "plain", system: str = "") -> Tokenizer:
    """The tokenizer of a model. For template "chat" it has the model's chat template in `chat`, with
    the system message `system`. Its `eos_id` is then what the template writes after an answer.

    Raises InputError where the model does not have what the template needs.
    """
    tokenizer = Tokenizer.load(Path(directory) / "tokenizer.json")
    if template == "chat":
        tokenizer.chat = ChatTemplate.load(directory, tokenizer, system)
        tokenizer.eos_id = tokenizer.chat.end_id
    elif system:
        raise InputError(f"--system needs --template chat, not {template}")
    if template == "qwen" and not {"<|im_start|>", "<|im_end|>"} <= tokenizer.special.keys():
        reason = "--template qwen needs the special tokens <|im_start|> and <|im_end|>"
        raise InputError(f"{directory}: {reason}; use --template chat, plain or deepseek")
    return tokenizer


def talk(tokenizer: Tokenizer, complete: Callable) -> None:
    """A conversation in the terminal: a line of standard input is a message. An empty line ends it, and
    so do the end of the input and Ctrl-C. complete: the ids of a conversation -> the text that answers."""
    messages = []
    with suppress(EOFError, KeyboardInterrupt):
        while line := _read_line():
            messages.append({"role": "user", "content": line})
            answer = complete(tokenizer.chat.encode(messages, add_generation_prompt=True))
            messages.append({"role": "assistant", "content": answer})
            print(answer, flush=True)


def _read_line() -> str:
    try:
        return input("> ").strip()
    except UnicodeDecodeError:
        raise InputError("standard input: not UTF-8 text; write the messages in UTF-8") from None


def _tokens(config: dict) -> dict[str, str]:
    """The texts of bos_token, eos_token and all other fields NAME_token."""
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found
