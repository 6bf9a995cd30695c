"""Prompts: the text that a model is given for a question, and what training appends to it.

Three templates. "plain" is a few tokens long, for small models. "deepseek" is the format of the paper's models, with
their instructions for chain of thought and for reasoning with programs. "qwen" is ChatML, of Qwen's models.
Formats (section 3.1): "cot" chain of thought, "pot" program of thought, "tool" reasoning with programs run in between.
A question with Chinese characters gets the Chinese wording.
"""

import re

from data import InputError

FORMATS = ("cot", "pot", "tool")
TEMPLATES = ("plain", "deepseek", "qwen")

_PLAIN = {  # (format, is Chinese) -> (before the question, before the response)
    ("cot", False): ("Question:", "Answer:"), ("cot", True): ("问题：", "解答："),
    ("pot", False): ("Question:", "Program:"), ("pot", True): ("问题：", "程序："),
    ("tool", False): ("Question:", "Solution:"), ("tool", True): ("问题：", "求解："),
}
_INSTRUCTIONS = {
    ("cot", False): r"Please reason step by step, and put your final answer within \boxed{}.",
    ("cot", True): r"请通过逐步推理来解答问题，并把最终答案放置于\boxed{}中。",
    ("pot", False): "Please write a Python program that computes the answer and prints it.",
    ("pot", True): "请编写一个Python程序来计算并打印出答案。",
    ("tool", False): "Please integrate natural language reasoning with programs to solve the problem above, "
                     r"and put your final answer within \boxed{}.",
    ("tool", True): r"请结合自然语言和Python程序语言来解答问题，并把最终答案放置于\boxed{}中。",
}


def _check(format: str, template: str) -> None:
    if format not in FORMATS:
        raise InputError(f"format {format!r}: unknown; give one of {', '.join(FORMATS)}")
    if template not in TEMPLATES:
        raise InputError(f"template {template!r}: unknown; give one of {', '.join(TEMPLATES)}")


def is_chinese(text: str) -> bool:
    return re.search(r"[\u3400-\u9fff]", text) is not None


def prompt(question: str, format: str = "cot", template: str = "plain") -> str:
    """The text given to the model; `response_text` follows it directly. Raises InputError for unknown names."""
    _check(format, template)
    kind = format, is_chinese(question)
    if template == "plain":
        before, after = _PLAIN[kind]
        return f"{before}{'' if kind[1] else ' '}{question}\n{after}"
    if template == "deepseek":
        return f"User: {question}\n{_INSTRUCTIONS[kind]}\n\nAssistant:"
    return (f"<|im_start|>system\n{_INSTRUCTIONS[kind]}<|im_end|>\n"
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")


def encode(tokenizer, texts: list[str], template: str = "plain") -> list[list[int]]:
    """Ids of prompts, with BOS in front where the tokenizer wants one. ChatML's markers become their special ids."""
    bos = [tokenizer.bos_id] if tokenizer.add_bos else []
    if template != "qwen":
        return [bos + ids for ids in tokenizer.encode_batch(texts)]
    special = tokenizer.special
    pieces = [[p for p in re.split(r"(<\|im_(?:start|end)\|>)", text) if p] for text in texts]
    ids = [[i for p in parts for i in ([special[p]] if p in special else tokenizer.encode(p))] for parts in pieces]
    return [bos + one for one in ids]


def response_text(response: str, format: str = "cot", template: str = "plain") -> str:
    """Exactly the text that training appends after the prompt, before EOS. `response` is an SFT line's: for pot, the
    bare program. Space or newline belongs to the response, since a prompt that ends in a space splits tokens badly."""
    _check(format, template)
    if format == "pot" and template != "plain":
        response = f"```python\n{response.strip()}\n```"
    separator = {"plain": " " if format == "cot" else "\n", "deepseek": " ", "qwen": ""}[template]
    return separator + response.strip()


def stop_strings(format: str = "cot", template: str = "plain") -> list[str]:
    """Strings at which sampling ends besides EOS: where the model starts a question of its own (a base model does not
    know EOS), and for tool where it waits for a program's output."""
    _check(format, template)
    stops = {"plain": ["\nQuestion:", "\n问题："], "deepseek": ["\nUser:"], "qwen": ["<|im_end|>", "<|im_start|>"]}
    return stops[template] + (["```output"] if format == "tool" else [])


def program(text: str, format: str = "pot", template: str = "plain") -> str | None:
    """The Python code of a completion: in "plain" pot the whole text, otherwise the last ```python block (one that the
    end of the text cut off counts). None for cot, and where there is no code."""
    _check(format, template)
    if format == "cot":
        return None
    if format == "pot" and template == "plain":
        code = text
    else:
        blocks = re.findall(r"```python[^\S\n]*\n(.*?)(?:```|\Z)", text, re.DOTALL)
        code = blocks[-1] if blocks else ""
    return code.strip() or None
