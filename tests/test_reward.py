"""reward.py: what a completion says, what it answers, and whether that is right."""

import pytest

from data import InputError
from data.sandbox import Sandbox
from generate import Sample
from reward import completion_text, predictions, rule_rewards


class Words:
    """A tokenizer whose ids are the places of words in a list."""

    def __init__(self, *words):
        self.words = words

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2, cpu_seconds=1) as sandbox:
        yield sandbox


@pytest.mark.parametrize(("words", "finish", "text"), [
    (["It is 4.", "\n", "Question", ": What"], "stop", "It is 4."),  # the last token says more than the stop string
    (["It is 4.", "\nQuestion:"], "length", "It is 4.\nQuestion:"),  # no stop string ended it
    (["It is 4.", ""], "eos", "It is 4."),
    (["\nQuestion:"], "stop", ""),
    (["It is 4.", "\n问题：\nQuestion:"], "stop", "It is 4."),  # two at once: the earlier one
    (["a```output", "4", "\nb", "```output"], "stop", "a```output4\nb"),  # an earlier one, answered by a tool, stays
])  # fmt: skip
def test_completion_text(words, finish, text):
    sample = Sample([*range(len(words))], [0.0] * len(words), [True] * len(words), finish)
    assert completion_text(Words(*words), sample, ("\nQuestion:", "\n问题：", "```output")) == text


def test_completion_text_without_stop_strings():
    assert completion_text(Words("ab", "c"), Sample([0, 1, 0], [0.0] * 3, [True] * 3, "stop")) == "abcab"


def test_predictions_of_chains_of_thought():
    texts = [r"So \boxed{4}.", "The answer is 7.", "I do not know", "", "3 + 4 = 7", "答案是12。"]
    assert predictions(texts, "cot") == ["4", "7", None, None, None, "12"]
    assert predictions([], "cot") == []


def test_predictions_of_programs(sandbox):
    programs = {
        "print(3 + 4)": "7",
        "print('steps')\nprint(' 12 ')\n": "12",  # the last line
        "print(5)\n\nprint()\nprint('  ')": "5",  # the last line with something on it
        "x = 3": None,  # prints nothing
        "": None,  # no program
        " \n": None,
        "print(4)\n1 / 0": None,  # prints an answer, then fails
        "print(4": None,
        "print(4)\nwhile True: pass": None,
        "print(2/4)": "0.5",
    }
    assert predictions(list(programs), "pot", sandbox=sandbox) == list(programs.values())
    assert predictions([], "pot", sandbox=sandbox) == []


def test_predictions_of_programs_in_other_templates(sandbox):
    texts = ["Let us see:\n```python\nprint(6 * 7)\n```\nDone, the answer is 1.", "print(3)", "```python\nprint(8)"]
    assert predictions(texts, "pot", "deepseek", sandbox) == ["42", None, "8"]


def test_formats_without_a_rule():
    with pytest.raises(InputError, match="'tool'.*use cot or pot"):
        predictions(["x"], "tool")
    with pytest.raises(ValueError, match="sandbox"):
        predictions(["print(1)"], "pot")


def test_rule_rewards():
    golds = ["4", "1/2", "4", "1,200", "7", ""]
    assert rule_rewards(golds, ["4.0", "0.5", "5", "$1200", None, ""]) == [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    with pytest.raises(ValueError):
        rule_rewards(["1", "2"], ["1"])
