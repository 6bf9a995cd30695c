"""Metrics of rollouts, and means over the tokens of all processes."""

import pytest
import torch

from data.problems.problem import Problem
from generate import Sample
from rollout import Rollout
from runtime.distributed import World
from runtime.metrics import rollout_metrics, rollout_work, token_means


def group(verdicts: list, advantages: list, lengths: list, finish: list) -> Rollout:
    samples = []
    for length, how in zip(lengths, finish, strict=True):
        ids = list(range(length))
        samples.append(Sample(ids, [0.0] * length, [True] * length, how))
    problem = Problem("p", "q", "1")
    return Rollout(problem, "cot", [5, 6], samples, verdicts, list(verdicts), advantages)


def batch() -> list[Rollout]:
    finish = ["eos", "stop", "length", "eos"]
    mixed = group([1.0, 0.0, 0.0, 1.0], [0.9, -0.9, -0.9, 0.9], [2, 3, 8, 5], finish)
    alike = group([1.0, 0.0, 1.0, 0.0], [0.0] * 4, [1, 1, 8, 4], ["eos", "eos", "length", "eos"])
    alike.rewards = [1.0, 1.0, float("nan"), 1.0]
    return [mixed, alike]


def test_rollout_metrics():
    expected = {
        "reward": 5 / 7,
        "reward_std": (5 / 7 * 2 / 7) ** 0.5,
        "reward_not_finite": 1,
        "verdict": 0.5,
        "gap": (5 - 3) / 7,
        "no_signal": 0.5,
        "distinct": (1 + 3 / 4) / 2,
        "length": 4.0,
        "length_max": 8,
        "truncated": 0.25,
    }
    rollouts = batch()
    assert rollout_metrics(rollouts) == pytest.approx(expected)
    rollouts[0].step_ends = [[1], [0, 2], [1, 4, 7], [4]]
    assert rollout_metrics(rollouts)["steps"] == 7 / 4
    for rollout in rollouts:
        rollout.rewards = [float("inf")] * 4
    found = rollout_metrics(rollouts)
    assert found["reward"] == found["gap"] == 0 and found["reward_not_finite"] == 8


def test_rollout_work(tiny):
    from runtime.hf import from_pretrained

    rollouts, model = batch(), from_pretrained(tiny.root / "base")
    rollouts[0].samples[0].mask = [True, False]  # a tool wrote the second token
    once = rollout_work(rollouts, [(model, 1), (None, 1)], updates=1)
    assert (once.tokens, once.sampled) == (2 * 2 + 32, 31)
    assert once.flops == once.sampling_flops
    more = rollout_work(rollouts, [(model, 6), (model, 1)], updates=2)
    assert (more.tokens, more.flops) == (2 * once.tokens, 7 * once.flops)


def test_token_means():
    class Twice(World):
        def all_sum(self, value):
            return 2 * value

    sums = {"kl": torch.tensor(3.0), "count": torch.tensor(4.0), "loss": torch.tensor(0.5)}
    assert token_means(sums, Twice(size=2)) == {"kl": 0.75, "loss": 1.0}
    assert token_means({"kl": torch.tensor(0.0), "count": torch.tensor(0.0)}, World()) == {"kl": 0}
