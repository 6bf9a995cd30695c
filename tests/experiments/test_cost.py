"""experiments/cost.py: bends, fit and counts against other ways to them, a point really measured, a
sweep resumed.
"""

import dataclasses
import json
import math
from runtime.options import check

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.io import InputError
from experiments import cost
from experiments.cost import (
    Config,
    Shape,
    attention_flops,
    counts,
    measure,
)
from experiments.cost_model import (
    bends,
    fit_units,
    median_seconds,
    nonnegative,
    predicted,
    story,
    time_shares,
)
from kernels.cpu import decoder as cpu_decoder
from model import KVCache, Transformer
from runtime.distributed import World
from runtime.optim import model_flops

SMALL = Shape(
    "1m", vocab=64, prompt=6, questions=3, samples=4, length=5, micro_tokens=60, max_rows=8
)


# --------------------------------------------------------------------------------------------------
# Bends


@settings(max_examples=50, deadline=None)
@given(
    place=st.integers(1, 5),
    before=st.floats(-1, 2),
    turn=st.floats(0.4, 2),
    seed=st.integers(0, 9),
    up=st.booleans(),
    scale=st.floats(1e-3, 1e9),
)
def test_a_bend_is_found_where_it_is(place, before, turn, seed, up, scale):
    """Two pieces of a power law that meet, with 1 % of noise."""
    x = 2.0 ** np.arange(7)
    after = before + turn * (1 if up else -1)
    y = scale * np.where(x < x[place], x**before, x[place] ** (before - after) * x**after)
    noise = np.exp(0.01 * np.random.default_rng(seed).standard_normal(7))
    places, slopes = bends(x, y * noise, tolerance=0.05)
    assert places == [place]
    assert slopes == pytest.approx([before, after], abs=0.06)


def test_a_power_law_has_no_bend_and_neither_has_what_is_nearly_one():
    x = [4, 8, 16, 32, 64, 128]
    assert bends(x, [3 * v**1.5 for v in x]) == ([], [pytest.approx(1.5)])
    assert bends(x, [v * (1.08 if i % 2 else 1) for i, v in enumerate(x)])[0] == []
    hinge = [v**1.0 if v < 20 else 16 * (v / 16) ** 1.2 for v in x]
    assert (
        bends(x, hinge, tolerance=1e-6)[0] == []
    )  # a bend, but of slopes that are nearly the same
    assert (
        bends([1, 2], [1, 5]) == ([], [pytest.approx(math.log2(5))])
        and bends([1, 2, 4], [1, 1, 9])[0] == []
    )


def test_a_fixed_cost_bends_where_it_is_reached():
    """1 + x / 8 from 1 to 256: flat, then linear; the bend lies where both are as large, at 8, or
    beside it.
    """
    x = 2.0 ** np.arange(9)
    places, slopes = bends(x, 1 + x / 8, tolerance=0.15)
    assert len(places) == 1 and 4 <= x[places[0]] <= 16
    assert slopes[0] < 0.35 and slopes[1] > 0.75


# --------------------------------------------------------------------------------------------------
# The cost model


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 4))
def test_the_fit_is_the_best_of_those_without_negative_numbers(seed, count):
    """Conditions of Karush, Kuhn and Tucker: no slope where a coefficient is above 0, none
    downwards where it is 0.
    """
    draw = np.random.default_rng(seed)
    features, values = (
        draw.random((12, count)) * 10.0 ** draw.integers(0, 12, count),
        draw.random(12) + 0.1,
    )
    found = nonnegative(features, values)
    A = features / values[:, None]
    slope = A.T @ (A @ found - 1) / A.max(axis=0)
    assert (found >= 0).all()
    assert np.abs(slope[found > 0]).max(initial=0) < 1e-6 and (slope[found == 0] > -1e-6).all()


def test_known_costs_are_found_again():
    """A GRPO step of 2 us a decoding step and layer and 10^-11 s a FLOP, over a sweep in each
    direction.
    """
    shapes = [
        dataclasses.replace(SMALL, **{name: value})
        for name, values in dict(
            samples=[2, 8], length=[4, 20], questions=[1, 6], size=["1m", "2m"]
        ).items()
        for value in values
    ]
    points = []
    for shape in shapes:
        terms = counts(shape, gpu=False)["terms"]
        rollout, learning = terms["rollout"], terms["learning"]
        decoding = (
            2e-6 * rollout["overhead of decoding steps"]
            + 1e-11 * rollout["matrix products of decoding"]
        )
        update = 1e-11 * (
            learning["matrix products of learning"] + learning["attention of learning"]
        )
        points.append({"terms": terms, "seconds": {"rollout": [decoding], "learning": [update]}})
    units = fit_units(points)
    assert units["rollout"]["overhead of decoding steps"] == pytest.approx(2e-6)
    assert units["rollout"]["matrix products of decoding"] == pytest.approx(1e-11)
    assert units["rollout"]["weights read at each decoding step"] == pytest.approx(0, abs=1e-16)
    assert units["learning"]["attention of learning"] == pytest.approx(1e-11)
    assert sum(time_shares(points[0], units).values()) == pytest.approx(1)
    part = (
        2e-6
        * points[0]["terms"]["rollout"]["overhead of decoding steps"]
        / median_seconds(points[0], "step")
    )
    assert time_shares(points[0], units)["overhead of decoding steps"] == pytest.approx(part)


# --------------------------------------------------------------------------------------------------
# Counts


@pytest.mark.parametrize(
    "changes", [{}, {"samples": 1}, {"size": "2m", "questions": 1}, {"length": 1, "samples": 2}]
)
def test_pairs_by_counting_them(changes):
    shape = dataclasses.replace(SMALL, micro_tokens=10**6, **changes)
    P, L, G, model = shape.prompt, shape.length, shape.samples, shape.model
    prompt = sum(range(1, P + 1))
    fed = prompt + G * sum(P + t for t in range(1, L))  # of a question
    decoded = prompt + G * sum(P + t for t in range(1, L + 1))
    pair = 2 * model.heads * model.head_width * model.layers * shape.questions
    assert attention_flops(shape) == {"rollout": 2 * pair * decoded, "learning": 9 * pair * fed}


def test_products_are_those_of_the_weights():
    """What is left of tools/plan.py's FLOPs: twice, with gradients four times more, each weight for
    each token; the head for the tokens that are predicted, its logits made again in the backward.
    """
    shape = dataclasses.replace(SMALL, micro_tokens=10**6, max_rows=10**3)
    Q, P, L, G, model = shape.questions, shape.prompt, shape.length, shape.samples, shape.model
    head = model.width * model.vocab_size
    blocks = model_flops(model, 1, 1, 0) / 2 - head
    found = counts(shape, gpu=False)["terms"]
    learning = 8 * blocks * Q * (P + G * (L - 1)) + 10 * head * Q * G * L
    assert found["learning"]["matrix products of learning"] == pytest.approx(learning, rel=1e-9)
    rollout = 2 * (blocks * Q * P + head * Q + (blocks + head) * Q * G * L)
    assert found["rollout"]["matrix products of decoding"] == pytest.approx(rollout, rel=0.02)
    assert found["rollout"]["overhead of decoding steps"] == L * model.layers
    assert found["learning"]["optimizer"] == sum(p.numel() for p in Transformer(model).parameters())


def test_a_gpu_decodes_at_the_rate_of_its_memory():
    on_cpu, on_gpu = counts(SMALL, gpu=False), counts(SMALL, gpu=True)
    assert on_cpu["work"]["rollout"] == sum(
        on_cpu["terms"]["rollout"][name]
        for name in ("matrix products of decoding", "attention of decoding")
    )
    steps = on_gpu["terms"]["rollout"]["overhead of decoding steps"] / SMALL.model.layers
    weights = 2 * on_gpu["parameters"]  # bytes in bfloat16
    assert weights < on_gpu["work"]["rollout"] / steps < 1.1 * weights  # the cache is small


# --------------------------------------------------------------------------------------------------
# Words and tables


def point(step: float, **changes) -> dict:
    terms = {"rollout": {"overhead": 1.0}, "learning": {"products": step - 1}}
    counted = {"rollout": {"cache": 10e6}, "learning": {"activations": 30e6, "weights": 10e6}}
    made = {
        "seconds": {"rollout": [1.0, 1.2, 0.8], "learning": [step - 1] * 3},
        "terms": terms,
        "counted": counted,
    }
    return (
        made
        | {
            "work": terms and {"rollout": 1.0, "learning": step - 1},
            "micro_batches": 1,
            "bytes": {"rollout": 20e6, "learning": 50e6},
        }
        | changes
    )


UNITS = {"rollout": {"overhead": 1.0}, "learning": {"products": 1.0}}


def test_reasons_are_those_of_each_side():
    """1 s of overhead and a tenth of x of products: 1.1, 1.2, 1.4 ... 26.6."""
    x = [2**i for i in range(9)]
    points = [point(1 + v / 10) for v in x]
    text = story(points, x, "time", UNITS)
    assert text.startswith("time: 1 to ") and "; then " in text and text.endswith("%)")
    reasons = [part.split("(")[1] for part in text.split("; then ")]
    assert reasons[0].startswith("overhead ") and reasons[-1].startswith("products ")
    flat = story([point(2.0, micro_batches=m) for m in (1, 2, 4)], [1, 2, 4], "memory", UNITS)
    assert (
        flat
        == "memory: 1 to 4 slope 0.00 (activations 75%, weights, float32 25%; 1 to 4 micro-batches)"
    )


def test_prediction_and_table_by_hand():
    base, other = point(3.0), point(5.0)
    assert predicted(base, base, "step") == 3.0
    assert predicted(other, base, "step") == 1.0 + 2.0 * 4 / 2
    lines = cost.table([base, other], [8, 850_000], base, "samples").splitlines()
    assert lines[2] == (
        "| 8 | 1.000 s (0.800 - 1.200) | 2.000 s (2.000 - 2.000) | 3.000 s (2.800 - 3.200) | 3.000 s | "
        "50 MB | 40 MB |"
    )
    assert lines[3].startswith("| 0.85M |") and lines[0].startswith(
        "| samples of a question, G | rollout |"
    )


# --------------------------------------------------------------------------------------------------
# Points


def test_a_point_does_the_work_that_it_says(monkeypatch):
    """The base shape's completions are all of the same length, in every measured step; the bytes
    hold the weights.
    """
    seen, make_learner = [], cost.make_learner

    def watched(*arguments):
        learner = make_learner(*arguments)
        rollout = learner.rollout
        learner.rollout = lambda *given, **named: seen.append(rollout(*given, **named)) or seen[-1]
        return learner

    monkeypatch.setattr(cost, "make_learner", watched)
    found = measure(SMALL, World(), repeats=2, budget=100.0)
    assert [len(rows) for rows in found["seconds"].values()] == [2, 2]
    assert all(value > 0 for rows in found["seconds"].values() for value in rows)
    for rollouts in seen[-3:]:
        assert [len(one.prompt) for one in rollouts] == [6] * 3
        assert [len(sample.ids) for one in rollouts for sample in one.samples] == [5] * 12
    assert {one.prompt[0] for one in seen[-2]} != {one.prompt[0] for one in seen[-1]}
    assert set(found["bytes"]) == {"rollout", "learning"}


def test_a_point_that_takes_long_is_content_with_three_steps():
    assert len(measure(SMALL, World(), repeats=9, budget=0.0)["seconds"]["rollout"]) == 3


def test_counted_cache_is_that_of_the_rows_at_once():
    """8 rows of 6 + 5 tokens, though 12 completions are sampled."""
    suits = cpu_decoder.suits(SMALL.model)
    cache = (cpu_decoder.BlockCache if suits else KVCache)(SMALL.model, 8, 11)
    assert (
        counts(SMALL, gpu=False)["bytes"]["rollout"]["cache"]
        == cache.keys.nbytes + cache.values.nbytes
    )


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Options of a tiny sweep; points are measured in this process, and listed."""
    started = []

    def run(done, *words):
        if not done.exists():
            started.append(done.name)
            cost.main(cost_options(words[2:]))

    def cost_options(words):
        from runtime.options import parse

        return parse(Config, [str(word) for word in words])

    monkeypatch.setattr(cost, "run", run)
    monkeypatch.setattr(cost, "draw", lambda *_: None)
    base = dataclasses.asdict(SMALL)
    directions = dict(by_samples=[1, 2, 4], by_length=[2, 5], by_questions=[3], by_size=["1m"])
    return Config(to=str(tmp_path), device="cpu", repeats=1, **base, **directions), started


def test_a_sweep_is_resumed_and_the_base_is_measured_once(tiny, tmp_path, capsys):
    config, started = tiny
    cost.main(config)
    assert len(started) == len(set(started)) == 4  # G 1, 2, the base, length 2
    found = json.loads((tmp_path / "cost.json").read_text())
    assert [one["samples"] for one in found["points"]] == [1, 2, 4, 4]
    assert found["base"]["length"] == 5 and found["base"]["bytes"] != found["base"]["counted"]
    text = capsys.readouterr().out
    assert (
        text.count("| --- | --- | --- | --- | --- | --- | --- |") == 4 and text.count("\n- ") == 8
    )
    files = sorted((tmp_path / "cost").glob("*.json"))
    files[0].unlink()
    cost.main(config)
    assert len(started) == 5 and started[-1] == files[0].name
    cost.main(dataclasses.replace(config, by_questions=[1, 3]))
    assert (
        len(started) == 6
        and json.loads((tmp_path / "cost.json").read_text())["points"][-1]["questions"] == 1
    )


def test_a_point_that_does_not_fit_is_left_out(tiny, monkeypatch, capsys):
    config, started = tiny
    page = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 10_000}
    monkeypatch.setattr(cost.os, "sysconf", page.__getitem__)
    with pytest.raises(InputError, match="the base shape does not fit; give a smaller --size"):
        cost.main(config)
    assert not started and "left out: Shape(size='1m'" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(samples=-1), "--samples -1: out of range"),
        (dict(by_length=[4, 0]), "--by_length 4,0: out of range"),
        (dict(by_size=["8b"]), "unknown model size '8b'"),
        (dict(repeats=0), "--repeats 0: out of range"),
    ],
)
def test_options_are_checked(changes, message):
    with pytest.raises(InputError, match=message):
        config = Config(**changes)
        check(config)
        cost.complete(config, "cpu")


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_defaults_sweep_around_their_base(kind):
    config = cost.complete(Config(), kind)
    for name in cost.SWEEPS:
        shapes = cost.sweep(config, name)
        assert cost.shape_of(config) in shapes and len(shapes) >= 4
        assert [cost.position(shape, name) for shape in shapes] == sorted(
            {cost.position(shape, name) for shape in shapes}
        )


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (an extra)")
    x = [2**i for i in range(5)]
    cost.draw(
        tmp_path / "a.png",
        {name: (x, [point(1 + v / 10) for v in x]) for name in cost.SWEEPS},
        point(1.1),
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
