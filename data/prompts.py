r"""The text that a model reads for a question, and the text that it writes after it.

A prompt depends on three things.

- The template, which is the layout. "plain" needs few tokens and is for small models. "deepseek" is
  the layout of the paper's models, with their instructions. "qwen" is ChatML, for Qwen's models.
  "chat" is the model's own chat template (chat.py). The prompt is then the message of the user.
- The format, which is the kind of solution (paper, section 3.1). "cot" is a chain of thought, "pot"
  is a program that prints the answer, and "tool" is reasoning that runs programs on the way.
  Evaluation has two more: "code" is a program that must pass tests, "proof" is a proof in Isabelle.
- The language. A question with a Chinese character gets the Chinese wording.

>>> prompt("What is 5 - 3?", "cot", "plain")
'Question: What is 5 - 3?\nAnswer:'
>>> response_text("5 - 3 = 2. The answer is 2.", "cot", "plain")
' 5 - 3 = 2. The answer is 2.'
"""

import re

from data.io import InputError
from data.problems.problem import Problem, is_chinese, statement

FORMATS = ("cot", "pot", "tool")  # for training
ALL_FORMATS = (*FORMATS, "code", "proof")
TEMPLATES = ("plain", "deepseek", "qwen", "chat")

# ---- The wording of the templates ----------------------------------------------------------------

# Template "plain": (format, is Chinese) -> (before the question, before the response)
_PLAIN = {
    ("cot", False): ("Question:", "Answer:"),
    ("cot", True): ("问题：", "解答："),
    ("pot", False): ("Question:", "Program:"),
    ("pot", True): ("问题：", "程序："),
    ("tool", False): ("Question:", "Solution:"),
    ("tool", True): ("问题：", "求解："),
    ("code", False): ("Task:", "Program:"),
    ("code", True): ("任务：", "程序："),
    ("proof", False): ("Informal:", ""),
    ("proof", True): ("Informal:", ""),
}
_PLAIN_CHOICE = {
    False: "Answer with the letter of the right option.",
    True: "请用正确选项的字母作答。",
}

# The other templates: (format, is Chinese) -> the instruction
_TOOL = "Please integrate natural language reasoning with programs to solve the problem above"
_PROOF = (
    "Please prove the theorem in Isabelle: write the steps of the informal solution as a "
    "structured proof, and leave each step's own proof to sledgehammer."
)
_INSTRUCTIONS = {
    ("cot", False): r"Please reason step by step, and put your final answer within \boxed{}.",
    ("cot", True): r"请通过逐步推理来解答问题，并把最终答案放置于\boxed{}中。",
    ("pot", False): "Please write a Python program that computes the answer and prints it.",
    ("pot", True): "请编写一个Python程序来计算并打印出答案。",
    ("tool", False): rf"{_TOOL}, and put your final answer within \boxed{{}}.",
    ("tool", True): r"请结合自然语言和Python程序语言来解答问题，并把最终答案放置于\boxed{}中。",
    ("code", False): "Please write the Python program in a ```python block.",
    ("code", True): "请编写Python程序，并放在```python代码块中。",
    ("proof", False): _PROOF,
    ("proof", True): _PROOF,
}
_LETTER = r"put the letter of the right option within \boxed{}."
_CHOICE_INSTRUCTIONS = {
    ("cot", False): f"Please reason step by step, and {_LETTER}",
    ("cot", True): r"请通过逐步推理来解答问题，并把正确选项的字母放置于\boxed{}中。",
    ("pot", False): "Please write a Python program that prints the letter of the right option.",
    ("pot", True): "请编写一个Python程序来打印出正确选项的字母。",
    ("tool", False): f"{_TOOL}, and {_LETTER}",
    ("tool", True): "请结合自然语言和Python程序语言来解答问题，"
    r"并把正确选项的字母放置于\boxed{}中。",
}


def _check(format: str, template: str) -> None:
    if format not in ALL_FORMATS:
        raise InputError(f"format {format!r}: unknown; use one of {', '.join(ALL_FORMATS)}")
    if template not in TEMPLATES:
        raise InputError(f"template {template!r}: unknown; use one of {', '.join(TEMPLATES)}")


# ---- The prompt ----------------------------------------------------------------------------------


def prompt(
    question: str, format: str = "cot", template: str = "plain", kind: str = "answer"
) -> str:
    """The prompt of a question. The text of `response_text` follows it directly.

    question: what `statement` returns. kind: the problem's kind; a "choice" asks for a letter.
    Raises InputError for a format or a template that does not exist.
    """
    _check(format, template)
    chinese = is_chinese(question)
    if template == "plain":
        before, after = _PLAIN[format, chinese]
        if kind == "choice":
            question = f"{question}\n{_PLAIN_CHOICE[chinese]}"
        between = "\n" if format == "proof" else " "
        if chinese:
            between = ""
        return f"{before}{between}{question}\n{after}".rstrip("\n")

    choice = kind == "choice" and format in FORMATS
    instruction = (_CHOICE_INSTRUCTIONS if choice else _INSTRUCTIONS)[format, chinese]
    if template == "chat":
        return f"{question}\n{instruction}"
    if template == "deepseek":
        return f"User: {question}\n{instruction}\n\nAssistant:"
    return (
        f"<|im_start|>system\n{instruction}<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


def problem_prompt(problem: Problem, format: str, template: str = "plain") -> str:
    """The prompt of a problem, without exemplars.

    In template "plain" a function to complete stands alone, as in HumanEval. Its last newline is
    left out, because the completion begins with it.
    """
    if template == "plain" and problem.kind == "code" and problem.task["entry_point"]:
        return problem.task["prompt"].rstrip()
    return prompt(statement(problem), format, template, problem.kind)


def encode(tokenizer, texts: list[str], template: str = "plain") -> list[list[int]]:
    """The token ids of prompts, with BOS in front if the model expects it.

    In template "qwen" the markers of ChatML become the tokenizer's special tokens. Anywhere else
    the text of a special token is only text.
    """
    if template == "chat":
        return [tokenizer.chat.encode_question(text) for text in texts]
    bos = [tokenizer.bos_id] if tokenizer.add_bos else []
    if template != "qwen":
        return [bos + ids for ids in tokenizer.encode_batch(texts)]

    encoded = []
    for text in texts:
        encoded.append(list(bos))
        for part in re.split(r"(<\|im_(?:start|end)\|>)", text):
            id = tokenizer.special.get(part)
            encoded[-1] += tokenizer.encode(part) if id is None else [id]
    return encoded


# ---- The response --------------------------------------------------------------------------------


def response_text(response: str, format: str = "cot", template: str = "plain") -> str:
    """The exact text that training appends to the prompt, before EOS.

    response: the response of an SFT example; for "pot" this is the program alone. The space or the
    newline between prompt and response belongs to the response, because a prompt that ends in a
    space is cut into bad tokens.
    """
    _check(format, template)
    if format in ("pot", "code") and template != "plain":
        response = f"```python\n{response.strip()}\n```"
    separator = {"plain": " " if format == "cot" else "\n", "deepseek": " "}
    return separator.get(template, "") + response.strip()


def stop_strings(format: str = "cot", template: str = "plain") -> list[str]:
    """The strings that end a completion, besides EOS.

    A base model does not know EOS: it goes on with a new question, and there it is stopped. In
    format "tool" the model also stops where the output of a program belongs.
    """
    _check(format, template)
    stops = {
        "plain": ["\nQuestion:", "\n问题："],
        "code": ["\nTask:", "\n任务："],
        "proof": ["\nInformal:"],
        "deepseek": ["\nUser:"],
        "qwen": ["<|im_end|>", "<|im_start|>"],
    }
    kind = format if template == "plain" and format in stops else template
    # In template "chat" a special token ends the answer: Tokenizer.eos_id.
    return stops.get(kind, []) + (["```output"] if format == "tool" else [])


def program(text: str, format: str = "pot", template: str = "plain") -> str | None:
    """The Python program in a completion, or None if it has none. "cot" and "proof" never have one.

    In template "plain" the whole completion of a "pot" or a "code" is the program. Otherwise the
    program is the last ```python block, which the end of the text may cut off.
    """
    _check(format, template)
    if format in ("cot", "proof"):
        return None
    if format in ("pot", "code") and template == "plain":
        return text.strip() or None
    blocks = re.findall(r"```python[^\S\n]*\n(.*?)(?:```|\Z)", text, re.DOTALL)
    return (blocks[-1].strip() or None) if blocks else None
