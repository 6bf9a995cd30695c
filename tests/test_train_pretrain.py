"""Pre-training: documents apart, the mixture, schedules, resuming, two processes, bad input."""

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import (
    assert_close,
    assert_same_run,
    assert_same_start,
    metrics,
    one_error,
    options,
    refusal,
    run,
    start,
)

import train_pretrain
from data.shards import Mixture, Shards, windows
from data.train_tokenizer import train
from runtime.hf import from_pretrained
from train_pretrain import document_lengths, lm_loss

POINTS = [
    ["runtime.run.Run.log", 2, "after"],  # before the first checkpoint
    ["runtime.run.Run.log", 6, "before"],  # between two
    ["torch.save", 1, "before"],  # while one is written
    ["runtime.checkpoint.remove", 1, "before"],  # when the oldest is removed
    ["runtime.run.Metrics.summary", 1, "before"],  # at the very end
]


@pytest.fixture(scope="module")
def runs(killed):
    return killed("pretrain", POINTS)


def test_document_lengths():
    assert document_lengths(np.array([[5, 0, 7, 8]]), 0) == [2, 2]
    assert document_lengths(np.array([[5, 6, 7], [0, 0, 8], [4, 0, 0]]), 0) == [3, 1, 1, 1, 2, 1]


@given(st.integers(1, 4), st.integers(1, 9), st.data())
def test_documents_end_at_eos_and_at_the_windows_end(rows, size, data):
    ids = np.array(
        data.draw(st.lists(st.integers(0, 2), min_size=rows * size, max_size=rows * size))
    )
    ends = np.cumsum(document_lengths(ids.reshape(rows, size), 0)).tolist()
    assert ends == [i + 1 for i in range(len(ids)) if ids[i] == 0 or (i + 1) % size == 0]


def alone(model, rows, eos: int) -> tuple[torch.Tensor, int]:
    """Summed loss and count of predicted tokens, document by document: none sees, or is predicted by, another."""
    total, count = torch.zeros(()), 0
    for row in rows.tolist():
        document = []
        for token, following in zip(row, row[1:], strict=False):
            document.append(token)
            if token == eos:
                document = []
                continue
            total = (
                total - model.logits(model(torch.tensor(document)))[-1].log_softmax(-1)[following]
            )
            count += 1
    return total, count


def test_a_window_costs_what_its_documents_cost_alone(tiny):
    model = from_pretrained(tiny.root / "base")
    rows, eos = windows(tiny.root / "a", 32, 4), tiny.tokenizer.eos_id
    assert (rows[:, :-1] == eos).sum() >= 4
    total, count = alone(model, rows, eos)
    assert count == (rows[:, :-1] != eos).sum()
    loss = lm_loss(model, rows, eos, count)
    assert loss.item() == pytest.approx(total.item() / count, rel=1e-6)
    (expected,) = torch.autograd.grad(total / count, model.layers[0].attn.qkv.weight)
    (found,) = torch.autograd.grad(loss, model.layers[0].attn.qkv.weight)
    assert_close({"qkv": found}, {"qkv": expected})


def test_a_killed_run_is_the_same_run(runs):
    out, log = runs
    assert_same_run(out / "whole", out / "killed")
    second, last = ["step_000004"], ["step_000004", "step_000008", "step_000010"]
    assert [part["checkpoints"] for part in log[:4]] == [[], second, second, last]
    summaries = [
        json.loads((out / name / "summary.json").read_text()) for name in ("whole", "killed")
    ]
    assert summaries[0]["metrics"] == summaries[1]["metrics"] and summaries[1]["steps"] == 10


def test_metrics(runs, tiny):
    out, _ = runs
    rows = metrics(out / "whole")
    assert [row["step"] for row in rows] == list(range(1, 11))
    # 3 steps of warm-up to 3e-3; 31.6 % of it after step 8, 10 % after step 9
    factors = [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 0.316, 0.1]
    assert [row["lr"] for row in rows] == pytest.approx([3e-3 * factor for factor in factors])
    assert [row["tokens"] for row in rows] == [192 * step for step in range(1, 11)]
    mixture = Mixture({"a": tiny.root / "a", "b": tiny.root / "b"}, {"a": 0.7, "b": 0.3}, 32, 0)
    for row in rows:
        names = mixture.next_batch(6)[1]
        assert row["sources"] == {"a": names.count("a"), "b": names.count("b")}
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1

    assert [row["step"] for row in rows if "valid_loss/v" in row] == [3, 6, 9, 10]
    with torch.no_grad():
        total, count = alone(
            from_pretrained(out / "whole" / "model"),
            windows(tiny.root / "valid", 32, 5),
            tiny.tokenizer.eos_id,
        )
    assert rows[-1]["valid_loss/v"] == pytest.approx(total.item() / count, rel=1e-5)


def test_init_goes_on_from_a_model(tiny, tmp_path):
    run(
        "pretrain",
        tiny.root,
        tmp_path,
        init=tiny.root / "model",
        steps=1,
        context=0,
        valid="",
        batch=2,
    )
    rows = Mixture(
        {"a": tiny.root / "a", "b": tiny.root / "b"}, {"a": 0.7, "b": 0.3}, 96, 0
    ).next_batch(2)[0]
    with torch.no_grad():
        total, count = alone(from_pretrained(tiny.root / "model"), rows, tiny.tokenizer.eos_id)
    assert metrics(tmp_path)[0]["loss"] == pytest.approx(total.item() / count, rel=1e-5)
    assert from_pretrained(tmp_path / "model").config.context == 96


def test_a_new_model_and_a_mixture_by_size(tiny, tmp_path):
    changes = dict(
        init="",
        tokenizer=tiny.root / "base",
        size="1m",
        weights="",
        valid="",
        steps=1,
        batch=16,
        seed=5,
    )
    run("pretrain", tiny.root, tmp_path, **changes)
    row = metrics(tmp_path)[0]
    assert row["loss"] == pytest.approx(math.log(tiny.tokenizer.vocab_size), rel=0.02)
    shares = {name: len(Shards(tiny.root / name)) for name in ("a", "b")}
    names = Mixture({name: tiny.root / name for name in shares}, shares, 32, 5).next_batch(16)[1]
    assert row["sources"] == {"a": names.count("a"), "b": names.count("b")}
    shape = from_pretrained(tmp_path / "model").config
    assert (shape.width, shape.layers, shape.context) == (128, 4, 32)
    assert (shape.vocab_size, shape.eos_id) == (tiny.tokenizer.vocab_size, tiny.tokenizer.eos_id)


def test_gradients_do_not_depend_on_micro_batches_or_processes(alone, together):
    assert_close(alone[4]["pretrain"], alone[1]["pretrain"])
    assert_close(torch.load(together / "gradients.pt")["pretrain"], alone[1]["pretrain"])


def test_two_processes_train_the_same_model(runs, together):
    assert_same_start(metrics(together / "pretrain"), metrics(runs[0] / "whole"))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(to=""), "--to is needed: .*"),
        (dict(data=""), "--data is needed: .*"),
        (dict(init=""), "--tokenizer DIR is needed for a new model, or --init DIR to continue one"),
        (
            dict(init="", tokenizer="{}/base", size="3m"),
            "--size 3m: unknown; choose 1m, .* or 7b",
        ),
        (dict(data="a={}/nowhere", weights="a=1"), ".*nowhere/manifest.json: cannot be read .*"),
        (
            dict(data="a={}/broken", weights="a=1"),
            ".*broken/manifest.json: not a manifest of token shards; .*",
        ),
        (
            dict(data="a={}/other", weights="a=1"),
            ".*other: made with tokenizer .* make the shards again .*",
        ),
        (dict(data="a={}/a", weights="a=1", valid="v={}/other"), ".*other: made with tokenizer .*"),
        (dict(data="a={}/a,c={}/b"), "mixture: .* unmatched: b, c"),
        (dict(context=97), "--context 97: .*/base takes 96 tokens; give at most that, or raise .*"),
        (dict(init="{}/nowhere"), ".*nowhere.*"),
        (dict(stpes=3), "--stpes: unknown option; did you mean --steps[?]"),
        (dict(micro_batch=0), "--micro_batch 0: out of range; give an integer at least 1"),
        (dict(save_every=0), "--save_every 0: out of range; give an integer at least 1"),
        (dict(valid_every=-1), "--valid_every -1: out of range; give an integer at least 1"),
    ],
)
def test_bad_input_is_one_line(tiny, tmp_path, monkeypatch, capsys, changes, message):
    for name, text in (
        ("broken", "{}"),
        ("other", json.dumps(Shards(tiny.root / "a").manifest | {"tokenizer": "x"})),
    ):
        (tiny.root / name).mkdir(exist_ok=True)
        (tiny.root / name / "manifest.json").write_text(text)
        (tiny.root / name / "tokens-00000.bin").write_bytes(
            (tiny.root / "a" / "tokens-00000.bin").read_bytes()
        )
    changes = {name: str(value).replace("{}", str(tiny.root)) for name, value in changes.items()}
    said = refusal(
        "pretrain", options("pretrain", tiny.root, tmp_path / "run", **changes), monkeypatch, capsys
    )
    assert re.fullmatch(message, said), said
    assert not list(tmp_path.iterdir())


def test_the_program_says_it_in_one_line_too(tiny, tmp_path):
    other = train(["to be or not to be"], 300, workers=1)
    other.save(tmp_path)
    arguments = options("pretrain", tiny.root, tmp_path / "run", init="", tokenizer=tmp_path)
    finished = start(arguments, program=train_pretrain.__file__)
    said = one_error(finished.returncode, finished.stderr)
    assert said.startswith(
        f"{tiny.root}/a: made with tokenizer {tiny.tokenizer.hash[:12]}, not with {other.hash[:12]}"
    )
