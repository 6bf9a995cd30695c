"""reward.py: what a completion says, what it answers, whether that is right; steps and learned rewards."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reward
from batch import token_scores
from data.io import InputError
from data.sandbox.sandbox import Sandbox
from data.train_tokenizer import train
from generate import Sample, completion_text
from reward import (
    RewardModel,
    predictions,
    solution_score,
    step_ends,
    verdict,
)


class Words:
    """A tokenizer whose ids are the places of words in a list."""

    def __init__(self, *words):
        self.words = [word if isinstance(word, bytes) else word.encode() for word in words]

    def decode_bytes(self, ids, special=False):
        words = [self.words[i] for i in ids]  # words in < > are special tokens
        return b"".join(word for word in words if special or not word.startswith(b"<"))


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2, cpu_seconds=1) as sandbox:
        yield sandbox


@pytest.mark.parametrize(
    ("words", "finish", "text"),
    [
        (
            ["It is 4.", "\n", "Question", ": What"],
            "stop",
            "It is 4.",
        ),  # the last token says more than the stop string
        (["It is 4.", "\nQuestion:"], "length", "It is 4.\nQuestion:"),  # no stop string ended it
        (["It is 4.", ""], "eos", "It is 4."),
        (["\nQuestion:"], "stop", ""),
        (["It is 4.", "\n问题：\nQuestion:"], "stop", "It is 4."),  # two at once: the earlier one
        (
            ["a```output", "4", "\nb", "```output"],
            "stop",
            "a```output4\nb",
        ),  # an earlier one, answered by a tool, stays
        (
            ["a```output", "4", "b", "\nQuestion:"],
            "stop",
            "a```output4b",
        ),  # also where another one ends the text
        (
            ["对", "\n问".encode() + b"\xe9", b"\xa2\x98", "："],
            "stop",
            "对",
        ),  # a character in two tokens
    ],
)
def test_completion_text(words, finish, text):
    sample = Sample([*range(len(words))], [0.0] * len(words), [True] * len(words), finish)
    assert completion_text(Words(*words), sample, ("\nQuestion:", "\n问题：", "```output")) == text


@pytest.mark.parametrize(
    "words, finish, text",
    [
        (["It", " is 4.", "<end>"], "stop", "It is 4."),
        (["<think>", "4", "<pad>", " is it", "<end>"], "stop", "4 is it"),  # others have no text
        (["4", "<", "end", ">5"], "stop", "4"),  # the stop string in ordinary tokens
        (["4", "\nU:", "<end>"], "stop", "4\nU:"),
        (["4", ".\nUser", "<user>"], "stop", "4."),  # it ends in a special token
        (["4", "<end>", "x", "<end>"], "stop", "4x"),  # only the last id ends a completion
        (["4", "<end>"], "eos", "4"),
        (["4", "</s>ordinary"], "eos", "4"),  # EOS that is not a special token is no text either
        (["4", "<end>", "5"], "length", "45"),
    ],
)
def test_completion_text_with_special_tokens(words, finish, text):
    sample = Sample([*range(len(words))], [0.0] * len(words), [True] * len(words), finish)
    assert completion_text(Words(*words), sample, ("<end>", "\nUser<user>")) == text


def test_completion_text_without_stop_strings():
    assert (
        completion_text(Words("ab", "c"), Sample([0, 1, 0], [0.0] * 3, [True] * 3, "stop"))
        == "abcab"
    )


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
    texts = [
        "Let us see:\n```python\nprint(6 * 7)\n```\nDone, the answer is 1.",
        "print(3)",
        "```python\nprint(8)",
    ]
    assert predictions(texts, "pot", "deepseek", sandbox) == ["42", None, "8"]


def test_formats_without_a_rule():
    with pytest.raises(InputError, match="'tool'.*use cot or pot"):
        predictions(["x"], "tool")
    with pytest.raises(ValueError, match="sandbox"):
        predictions(["print(1)"], "pot")


def test_verdicts():
    golds = ["4", "1/2", "4", "1,200", "7", ""]
    said = ["4.0", "0.5", "5", "$1200", None, ""]
    assert [*map(verdict, golds, said)] == [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]


# ---------------------------------------------------------------------------------------------------------------------
# Learned rewards


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        (["1+2", "=3", "\n", "\n", "So", " 3", ""], [2, 6]),  # the docstring's; the last is EOS
        (["1+2", "=3.\n", "So", " 3"], [1, 3]),  # a newline within a token
        (
            ["a", "\nb", "\nc"],
            [1, 2],
        ),  # cut off: the last token ends the second line and begins the third
        (["\n", "a", "\n", ""], [3]),  # blank lines before, and nothing behind the newline but EOS
        (["a", "\n", " ", "\n", ""], [4]),
        (["a"], [0]),
        ([""], [0]),  # nothing but EOS: a step all the same
        (["\n", "\n"], [1]),
    ],
)
def test_step_ends(words, ends):
    assert step_ends(Words(*words), range(len(words))) == ends


@given(
    st.lists(st.sampled_from(["a", " b", "\n", ".\n", "\nc", " \n ", ""]), min_size=1, max_size=12)
)
def test_steps_are_lines(words):
    """As many steps as lines with something on them, each ending in the token that holds the line's newline."""
    ends = step_ends(Words(*words), range(len(words)))
    assert ends == sorted(set(ends)) and ends[-1] == len(words) - 1
    lines = [line for line in "".join(words).split("\n") if line.strip()]
    crowded = words[-1] == "\nc"  # the last token belongs to two lines: one end for both
    assert len(ends) in ({max(len(lines), 1)} if not crowded else {len(lines), len(lines) - 1, 1})
    for end in ends[:-1]:
        assert "\n" in words[end]


@pytest.mark.parametrize("kind", ["outcome", "process"])
def test_a_reward_model_scores_each_completion_as_alone(tiny, kind, monkeypatch):
    """In groups of any size and micro-batch, in the order they came; at every step's end, or at the last token."""
    sizes = []

    def counting(model, groups, places):
        sizes.append(
            sum(len(prompt) + sum(map(len, completions)) for prompt, completions in groups)
        )
        return token_scores(model, groups, places)

    monkeypatch.setattr(reward, "token_scores", counting)
    directory = tiny.root / "process"
    judge = RewardModel(directory, "process", tiny.tokenizer)
    judge.kind = kind
    draw = torch.Generator().manual_seed(0)
    groups = []
    for count in (3, 1, 2):
        texts = ["1 + 2 = 3.\nSo the answer is 3.", "The answer is 2.", "\n\na\nb\nc"]
        completions = [tiny.tokenizer.encode(text) for text in texts[:count]]
        groups.append((torch.randint(0, 256, (4 + count,), generator=draw).tolist(), completions))
    for micro_tokens in (20, 1000):
        found = judge(groups, micro_tokens)
        for (prompt, completions), rows in zip(groups, found, strict=True):
            for ids, row in zip(completions, rows, strict=True):
                ends = step_ends(tiny.tokenizer, ids) if kind == "process" else [len(ids) - 1]
                with torch.no_grad():
                    scores = judge.model.score(judge.model(torch.tensor(prompt + ids)))[
                        :, 0
                    ].sigmoid()
                expected = [scores[len(prompt) + end].item() for end in ends]
                assert row == pytest.approx(expected, abs=1e-5)
        longest = max(len(prompt) + max(map(len, completions)) for prompt, completions in groups)
        assert max(sizes) <= max(micro_tokens, longest)
        sizes.clear()
    assert judge([]) == []
    if kind == "process":
        assert [len(row) for row in found[0]] == [2, 1, 3]


def test_a_solution_is_as_good_as_its_weakest_step():
    assert solution_score([0.9, 0.2, 0.7]) == 0.2


def test_reward_models_that_do_not_fit(tiny, tmp_path):
    with pytest.raises(
        InputError, match="process: a model that scores process; give a model that scores outcome"
    ):
        RewardModel(tiny.root / "process", "outcome", tiny.tokenizer)
    other = train([chr(i) * 9 for i in range(300, 900)], 400, workers=1)
    with pytest.raises(InputError, match="process: its tokenizer is not the policy's"):
        RewardModel(tiny.root / "process", "process", other)
