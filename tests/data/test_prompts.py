import itertools

import pytest

from data import InputError
from data.prompts import FORMATS, TEMPLATES, program, prompt, response_text, stop_strings

ALL = list(itertools.product(FORMATS, TEMPLATES))


def test_plain_is_short_and_literal():
    assert prompt("What is 5 - 3?", "cot") == "Question: What is 5 - 3?\nAnswer:"
    assert prompt("What is 5 - 3?", "pot") == "Question: What is 5 - 3?\nProgram:"
    assert response_text("The answer is 2.", "cot") == " The answer is 2."
    assert response_text("print(5 - 3)\n", "pot") == "\nprint(5 - 3)"
    assert prompt("5减3是多少？", "pot") == "问题：5减3是多少？\n程序："


def test_deepseek_has_the_published_format():
    assert prompt("Q?", "cot", "deepseek") == (
        "User: Q?\nPlease reason step by step, and put your final answer within \\boxed{}.\n\nAssistant:")
    assert prompt("求和。", "cot", "deepseek") == (
        "User: 求和。\n请通过逐步推理来解答问题，并把最终答案放置于\\boxed{}中。\n\nAssistant:")
    assert response_text("2", "cot", "deepseek") == " 2"


def test_qwen_is_chatml():
    text = prompt("Q?", "cot", "qwen")
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_start|>assistant\n")
    assert text.count("<|im_start|>") == 3 and text.count("<|im_end|>") == 2


@pytest.mark.parametrize("format, template", ALL)
def test_the_response_and_not_the_prompt_brings_the_space(format, template):
    text = prompt("What is 5 - 3?", format, template)
    assert not text.endswith(" ") and "What is 5 - 3?" in text
    assert template == "qwen" or response_text("x", format, template)[0] in " \n"


@pytest.mark.parametrize("format, template", ALL)
@pytest.mark.parametrize("question", ["What is 5 - 3?", "5减3是多少？"])
def test_formats_differ_and_a_next_question_stops(format, template, question):
    others = {prompt(question, f, template) for f in FORMATS}
    assert len(others) == len(FORMATS)
    stops = stop_strings(format, template)
    following = response_text("x", format, template) + ("\n" if template != "qwen" else "") + prompt(question, format,
                                                                                                    template)
    assert any(stop in following for stop in stops)
    assert ("```output" in stops) == (format == "tool")


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
    with pytest.raises(InputError, match="'llama'.*plain, deepseek, qwen"):
        stop_strings("cot", "llama")
