import itertools

import pytest

from data.io import InputError
from data.problems.problem import Problem
from data.prompts import (
    ALL_FORMATS,
    FORMATS,
    TEMPLATES,
    problem_prompt,
    program,
    prompt,
    response_text,
    statement,
    stop_strings,
)

ALL = list(itertools.product(ALL_FORMATS, TEMPLATES))


def test_plain_is_short_and_literal():
    assert prompt("What is 5 - 3?", "cot") == "Question: What is 5 - 3?\nAnswer:"
    assert prompt("What is 5 - 3?", "pot") == "Question: What is 5 - 3?\nProgram:"
    assert response_text("The answer is 2.", "cot") == " The answer is 2."
    assert response_text("print(5 - 3)\n", "pot") == "\nprint(5 - 3)"
    assert prompt("5减3是多少？", "pot") == "问题：5减3是多少？\n程序："


def test_deepseek_has_the_published_format():
    assert prompt("Q?", "cot", "deepseek") == (
        "User: Q?\nPlease reason step by step, and put your final answer within \\boxed{}.\n\nAssistant:"
    )
    assert prompt("求和。", "cot", "deepseek") == (
        "User: 求和。\n请通过逐步推理来解答问题，并把最终答案放置于\\boxed{}中。\n\nAssistant:"
    )
    assert response_text("2", "cot", "deepseek") == " 2"


def test_qwen_is_chatml():
    text = prompt("Q?", "cot", "qwen")
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_start|>assistant\n")
    assert text.count("<|im_start|>") == 3 and text.count("<|im_end|>") == 2


@pytest.mark.parametrize("format, template", ALL)
def test_the_response_and_not_the_prompt_brings_the_space(format, template):
    text = prompt("What is 5 - 3?", format, template)
    assert not text.endswith(" ") and "What is 5 - 3?" in text
    assert template in ("qwen", "chat") or response_text("x", format, template)[0] in " \n"


@pytest.mark.parametrize("format, template", ALL)
@pytest.mark.parametrize("question", ["What is 5 - 3?", "5减3是多少？"])
def test_formats_differ_and_a_next_question_stops(format, template, question):
    others = {prompt(question, f, template) for f in ALL_FORMATS}
    assert len(others) == len(ALL_FORMATS)
    stops = stop_strings(format, template)
    assert ("```output" in stops) == (format == "tool")
    if template == "chat":  # the chat template's token ends an answer
        return
    following = (
        response_text("x", format, template)
        + ("\n" if template != "qwen" else "")
        + prompt(question, format, template)
    )
    assert any(stop in following for stop in stops)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_trained_program_is_found_again(template):
    code = "a = 2 * 3\nprint(a)"
    assert program(response_text(code, "pot", template), "pot", template) == code


def test_program_blocks():
    text = "First:\n```python\nprint(1)\n```\n```output\n1\n```\nthen\n```python\nprint(2)"
    assert program(text, "tool", "plain") == "print(2)"
    assert program("no code", "pot", "deepseek") is None
    assert program("  \n", "pot", "plain") is None
    assert program("```python\nprint(1)\n```", "cot", "deepseek") is None


def test_unknown_names():
    with pytest.raises(InputError, match="'essay'.*cot, pot, tool"):
        prompt("Q", "essay")
    with pytest.raises(InputError, match="'llama'.*plain, deepseek, qwen, chat"):
        stop_strings("cot", "llama")


# ---- Problems of all kinds -----------------------------------------------------------------------

CHOICE = Problem("1", "How many?", "B", kind="choice", choices=("3", "4"))
CHOICE_ZH = Problem("1", "有几个？", "B", lang="zh", kind="choice", choices=("3", "4"))
FUNCTION = Problem(
    "1",
    "def f():",
    "",
    kind="code",
    task={"prompt": "def f():\n    '''F'''\n", "tests": "", "entry_point": "f"},
)
SCRIPT = Problem(
    "1",
    "Write f.",
    "",
    kind="code",
    task={"prompt": "Write f.", "tests": "assert f()", "entry_point": ""},
)
THEOREM = Problem(
    "1",
    "S.",
    "",
    kind="proof",
    task={
        "header": "theory",
        "informal_statement": "S.",
        "informal_proof": "P.",
        "formal_statement": "theorem t",
    },
)


def test_statements():
    assert statement(Problem("1", "Q?", "2")) == "Q?"
    assert statement(CHOICE) == "How many?\n(A) 3\n(B) 4"
    assert statement(SCRIPT) == "Write f.\nThe program must pass these tests:\nassert f()"
    assert (
        statement(FUNCTION)
        == "Complete this Python function.\n```python\ndef f():\n    '''F'''\n```"
    )
    assert (
        statement(THEOREM) == "(*### Problem\n\nS.\n\n### Solution\n\nP. *)\n\nFormal:\ntheorem t"
    )


def test_choices_ask_for_the_letter():
    assert problem_prompt(CHOICE, "cot") == (
        "Question: How many?\n(A) 3\n(B) 4\nAnswer with the letter of the right option.\nAnswer:"
    )
    assert problem_prompt(CHOICE, "cot", "deepseek") == (
        "User: How many?\n(A) 3\n(B) 4\nPlease reason step by step, and put the letter of the right option within "
        "\\boxed{}.\n\nAssistant:"
    )
    for format, template in itertools.product(FORMATS, TEMPLATES):
        assert "letter" in problem_prompt(CHOICE, format, template)
        assert "字母" in problem_prompt(CHOICE_ZH, format, template)
        assert "letter" not in prompt("How many?", format, template)


def test_a_function_stands_alone_for_a_base_model():
    assert problem_prompt(FUNCTION, "code") == "def f():\n    '''F'''"
    assert problem_prompt(FUNCTION, "code", "deepseek").startswith(
        "User: Complete this Python function.\n```python\n"
    )
    assert problem_prompt(SCRIPT, "code") == f"Task: {statement(SCRIPT)}\nProgram:"
    assert problem_prompt(THEOREM, "proof") == f"Informal:\n{statement(THEOREM)}"
