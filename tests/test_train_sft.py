"""Instruction tuning: what is learned, packing, learning itself, resuming, two processes, bad input."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import (
    QUESTIONS,
    assert_close,
    assert_same_run,
    assert_same_start,
    logprobs,
    metrics,
    one_error,
    options,
    refusal,
    run,
    start,
)

import train_sft
from data import prompts
from data.io import InputError, read_jsonl, write_jsonl
from data.train_tokenizer import train
from generate import Sampling, generate
from runtime.hf import from_pretrained, save_pretrained
from train_sft import batches, length, load_examples, pack, sft_loss

POINTS = [
    ["runtime.run.Run.log", 3, "before"],  # before the first checkpoint
    ["runtime.run.Run.log", 7, "after"],  # between two
    ["pathlib.Path.rename", 1, "before"],  # a checkpoint is written but does not have its name yet
    ["runtime.checkpoint.Checkpoints.write", 2, "after"],  # the last is written
]


@pytest.fixture(scope="module")
def runs(killed):
    return killed("sft", POINTS)


@pytest.fixture(scope="module")
def examples(tiny):
    return load_examples([f"{tiny.root}/sft.jsonl"], tiny.tokenizer, "plain", 96)[0]


def test_examples_are_prompt_and_response_with_eos(tiny, examples):
    rows = [row for _, row in read_jsonl(tiny.root / "sft.jsonl")]
    assert len(examples) == len(rows)
    for row, example in zip(rows, examples, strict=True):
        prompt, response = example.prompt, example.response
        assert all(example.mask) and tiny.tokenizer.decode(prompt) == prompts.prompt(
            row["question"], row["format"]
        )
        text = (" " if row["format"] == "cot" else "\n") + row["response"]
        assert (
            tiny.tokenizer.decode(response[:-1]) == text and response[-1] == tiny.tokenizer.eos_id
        )


def test_only_responses_are_learned_and_packing_changes_nothing(tiny, examples):
    """Against the definition, an example at a time: the mean log-prob of response ids and EOS, given what is before."""
    model, chosen = from_pretrained(tiny.root / "base"), examples[::5]
    tokens = sum(len(example.response) for example in chosen)
    expected = -sum(logprobs(model, one.prompt, one.response).sum() for one in chosen) / tokens
    loss = sft_loss(model, chosen, tokens)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found, expected = (torch.autograd.grad(one, parameters) for one in (loss, expected))
    assert_close(dict(zip(names, found, strict=True)), dict(zip(names, expected, strict=True)))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=15), st.integers(1, 5), st.integers(0, 3))
def test_every_epoch_has_every_example_once(lengths, batch, seed):
    stream, seen, count = batches(lengths, 20, batch, seed), [], 0
    while len(seen) < 3 * len(lengths):
        chosen = next(stream)
        count += batch
        assert sum(lengths[i] for i in chosen) <= 20 * batch
        seen += chosen
    for epoch in range(3):
        assert sorted(seen[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == list(
            range(len(lengths))
        )
    # as many packed sequences as an epoch has, packed anew each time
    needed = [len(pack(lengths, 20, np.random.default_rng([seed, epoch]))) for epoch in range(3)]
    assert sum(needed) <= count


def test_epochs_are_shuffled_anew():
    stream = batches([1] * 50, 50, 1, seed=0)
    first, second = next(stream), next(stream)
    assert (
        first != second
        and first != sorted(first)
        and next(batches([1] * 50, 50, 1, seed=1)) != first
    )


def test_long_examples_are_left_out_and_counted(tiny, examples, tmp_path):
    longest = max(map(length, examples))
    fitting, left_out = load_examples(
        [f"{tiny.root}/sft.jsonl"], tiny.tokenizer, "plain", longest - 1
    )
    assert fitting == [example for example in examples if length(example) < longest]
    assert left_out == len(examples) - len(fitting) > 0
    assert load_examples([f"{tiny.root}/sft.jsonl"], tiny.tokenizer, "plain", longest)[1] == 0
    with pytest.raises(
        InputError, match="sft.jsonl: no example of at most 3 tokens; give data or raise --context"
    ):
        load_examples([f"{tiny.root}/sft.jsonl"], tiny.tokenizer, "plain", 3)
    run("sft", tiny.root, tmp_path, steps=1, context=longest - 1, valid="")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["examples"], summary["left_out"]) == (len(fitting), left_out)


def test_what_is_learned_is_said(tiny, tmp_path):
    """Eight examples by heart, EOS included: the loss is near zero and greedy decoding says them word for word."""
    words = ["one", "two", "three", "four five", "six", "seven and seven", "eight.", "9"]
    questions = [*QUESTIONS, "Hal?", "Ida?"]
    rows = [
        {"question": q, "response": f"It is {w}", "format": "cot"}
        for q, w in zip(questions, words, strict=True)
    ]
    write_jsonl(tmp_path / "sft.jsonl", rows)
    longer = from_pretrained(tiny.root / "base")
    longer.config.context = 400
    save_pretrained(longer, tmp_path / "base")
    run(
        "sft",
        tiny.root,
        tmp_path / "run",
        init=tmp_path / "base",
        data=tmp_path / "sft.jsonl",
        valid="",
        context=400,
        batch=1,
        steps=100,
        lr=1e-2,
        decay=0.5,
        save_every=100,
    )
    assert (
        metrics(tmp_path / "run")[-1]["examples"] == 8
        and metrics(tmp_path / "run")[-1]["loss"] < 0.02
    )
    model = from_pretrained(tmp_path / "run" / "model")
    encoded = [tiny.tokenizer.encode(prompts.prompt(question)) for question in questions]
    for row, (sample,) in zip(
        rows, generate(model, tiny.tokenizer, encoded, Sampling(temperature=0.0)), strict=True
    ):
        assert tiny.tokenizer.decode(sample.ids) == " " + row["response"] and sample.finish == "eos"


def test_a_killed_run_is_the_same_run(runs):
    out, log = runs
    assert_same_run(out / "whole", out / "killed")
    second, last = ["step_000004"], ["step_000004", "step_000008", "step_000010"]
    assert [part["checkpoints"] for part in log[:-1]] == [[], second, second, last]


def test_metrics(runs, tiny, examples):
    out, _ = runs
    rows = metrics(out / "whole")
    # two steps of warm-up; over the last three a line down to a tenth
    factors = [0.5, 1, 1, 1, 1, 1, 1, 0.7, 0.4, 0.1]
    assert [row["lr"] for row in rows] == pytest.approx([3e-3 * factor for factor in factors])
    assert [row["step"] for row in rows if "valid_loss" in row] == [3, 6, 9, 10]
    stream = batches([length(example) for example in examples], 72, 5, 0)
    assert [row["examples"] for row in rows] == [len(next(stream)) for _ in rows]
    with torch.no_grad():
        model = from_pretrained(out / "whole" / "model")
        parts = torch.cat([logprobs(model, one.prompt, one.response) for one in examples])
    assert rows[-1]["valid_loss"] == pytest.approx(-parts.mean().item(), rel=1e-5)
    assert rows[-1]["valid_loss"] < rows[2]["valid_loss"] - 0.5


def test_gradients_do_not_depend_on_micro_batches_or_processes(alone, together):
    assert_close(alone[4]["sft"], alone[1]["sft"])
    assert_close(torch.load(together / "gradients.pt")["sft"], alone[1]["sft"])


def test_two_processes_train_the_same_model(runs, together):
    assert_same_start(metrics(together / "sft"), metrics(runs[0] / "whole"))


LINE = '{"question": "Q?", "response": "R.", "format": "cot"}\n'
CHAT = json.dumps(
    {"messages": [{"role": role, "content": "T"} for role in ("system", "user", "assistant")]}
)


@pytest.mark.parametrize(
    "text, changes, message",
    [
        (None, {}, "{}/bad.jsonl: cannot be read .*"),
        ("", {}, "{}/bad.jsonl: no example of at most 72 tokens; .*"),
        (LINE + '{"question": \n', {}, "{}/bad.jsonl:2: not valid JSON .*"),
        (LINE + "\n[1]\n", {}, "{}/bad.jsonl:3: not a JSON object; .*"),
        (LINE + '{"question": "Q?"}\n', {}, "{}/bad.jsonl:2: no response among question; .*"),
        (LINE + '{"question": 3, "response": "R"}\n', {}, "{}/bad.jsonl:2: no question among .*"),
        (CHAT, {}, "{}/bad.jsonl:1: its messages are system, user, assistant; .* --template chat"),
        (
            LINE.replace("cot", "cat"),
            {},
            "{}/bad.jsonl:1: format 'cat' is unknown; use cot, pot, tool",
        ),
        (LINE, dict(valid="{}/none.jsonl"), "{}/none.jsonl: cannot be read .*"),
        (
            LINE,
            dict(template="fancy"),
            "--template fancy: unknown; choose plain, deepseek, qwen or chat",
        ),
        (LINE, dict(init="{}/none"), "{}/none.*"),
        (
            LINE,
            dict(init="{}/mixed"),
            "{}/mixed: the tokenizer has 500 ids, the embedding only 400 rows; .*",
        ),
        (LINE, dict(init=""), "--init is needed: .*"),
        (LINE, dict(lr="high"), "--lr high: needs a number"),
        (LINE, dict(leraning_rate=1), "--leraning_rate: unknown option; .*"),
        (LINE, dict(batch=0), "--batch 0: out of range; give an integer at least 1"),
        (LINE, dict(micro_tokens=0), "--micro_tokens 0: out of range; give an integer at least 1"),
        (LINE, dict(valid_every=0), "--valid_every 0: out of range; give an integer at least 1"),
    ],
)
def test_bad_input_is_one_line(tiny, tmp_path, monkeypatch, capsys, text, changes, message):
    if text is not None:
        (tmp_path / "bad.jsonl").write_text(text)
    if "mixed" in message:  # a checkpoint with the tokenizer of another
        save_pretrained(from_pretrained(tiny.root / "base"), tmp_path / "mixed")
        train([chr(i) * 9 for i in range(300, 900)], 500, workers=1).save(tmp_path / "mixed")
    changes = {"data": "{}/bad.jsonl", **changes}
    changes = {name: str(value).replace("{}", str(tmp_path)) for name, value in changes.items()}
    said = refusal(
        "sft", options("sft", tiny.root, tmp_path / "run", **changes), monkeypatch, capsys
    )
    assert re.fullmatch(message.replace("{}", re.escape(str(tmp_path))), said), said
    assert not (tmp_path / "run").exists()


def test_the_program_says_it_in_one_line_too(tiny, tmp_path):
    (tmp_path / "bad.jsonl").write_text(LINE + LINE[:20])
    arguments = options("sft", tiny.root, tmp_path / "run", data=tmp_path / "bad.jsonl")
    finished = start(arguments, program=train_sft.__file__)
    assert one_error(finished.returncode, finished.stderr).startswith(
        f"{tmp_path}/bad.jsonl:2: not valid JSON"
    )
