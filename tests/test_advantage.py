"""Group and process advantages (4.1.2, 4.1.3) by hand."""

import math
import statistics

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import train_grpo


def group_advantage(rewards, *args, **options):
    """Without the term beside the deviation, as in the paper."""
    return train_grpo.group_advantage(rewards, *args, **{"eps": 0.0, **options})


def test_three_right_one_wrong():
    rewards = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    sample, population = group_advantage(rewards)[0], group_advantage(rewards, ddof=0)[0]
    assert sample.tolist() == [0.5, 0.5, 0.5, -1.5]
    assert population[0].item() == pytest.approx(0.57735, abs=5e-6)
    torch.testing.assert_close(population, sample * math.sqrt(4 / 3))


def test_equal_rewards_give_exactly_zero():
    rewards = torch.full((1, 64), 0.1)
    assert (group_advantage(rewards) == 0).all()
    assert (group_advantage(rewards, ddof=0, scale="none") == 0).all()
    for G in range(2, 70):  # in float64 too: the mean of 0.1 three times is not 0.1
        for scale in ("std", "none"):
            assert (
                group_advantage(torch.full((1, G), 0.1, dtype=torch.float64), scale=scale) == 0
            ).all()
    # what it guards against: the mean in float32, one reward after another, over the deviation that its error makes
    mean = torch.tensor(0.0)
    for r in rewards[0]:
        mean += r
    mean /= 64
    off = rewards[0, 0] - mean
    assert abs(off / ((off * off * 64 / 63).sqrt() + 1e-8)) == pytest.approx(0.9, abs=0.1)


def test_group_of_one_has_no_baseline():
    assert group_advantage(torch.tensor([[3.0], [0.0]])).tolist() == [[0.0], [0.0]]


def test_non_finite_rewards_are_left_out():
    rewards = torch.tensor(
        [[1.0, math.nan, 0.0, math.inf], [math.nan, -math.inf, 2.0, math.nan], [math.nan] * 4]
    )
    advantage = group_advantage(rewards)
    assert advantage[0].tolist() == pytest.approx([math.sqrt(0.5), 0, -math.sqrt(0.5), 0])
    assert (advantage[1:] == 0).all()


def test_scale_none_and_eps():
    rewards = torch.tensor([[2.0, 0.0, 1.0]])
    assert group_advantage(rewards, scale="none").tolist() == [[1.0, -1.0, 0.0]]
    assert group_advantage(rewards, eps=1.0).tolist() == [[0.5, -0.5, 0.0]]
    # TRL's: sample deviation, plus 1e-4
    torch.testing.assert_close(
        group_advantage(rewards, eps=1e-4),
        (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4),
    )


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=9), st.sampled_from([0, 1]))
def test_against_the_statistics_module(rewards, ddof):
    got = group_advantage(torch.tensor([rewards], dtype=torch.float64), ddof=ddof)[0].tolist()
    if max(rewards) == min(rewards):
        assert got == [0.0] * len(rewards)
    else:
        std = (statistics.stdev if ddof else statistics.pstdev)(rewards)
        assert got == pytest.approx(
            [(r - statistics.mean(rewards)) / std for r in rewards], rel=1e-5, abs=1e-6
        )


STEPS = [[1, 0, 1], [0, 0], [1, 1, 1, 0]]
PER_STEP = [[0.6325, -0.2108, 0.8433], [-2.1082, -1.0541], [1.4757, 0.6325, -0.2108, -1.0541]]


def process(steps, ends, lengths, **options):
    options.setdefault("eps", 0.0)
    return train_grpo.process_advantage(
        [torch.tensor(s, dtype=torch.float32) for s in steps],
        [torch.tensor(e, dtype=torch.int64) for e in ends],
        lengths,
        **options,
    )


def test_process_example():
    """Pooled over all nine steps: mean 5/9, std 0.527046; a token sums the steps that end at or after it."""
    pooled = [r for s in STEPS for r in s]
    assert statistics.mean(pooled) == pytest.approx(5 / 9)
    assert statistics.stdev(pooled) == pytest.approx(0.527046, abs=5e-7)
    one_token_steps = process(STEPS, [range_(len(s)) for s in STEPS], [len(s) for s in STEPS])
    for got, want in zip(one_token_steps, PER_STEP, strict=True):
        assert got.dtype == torch.float32
        assert got.tolist() == pytest.approx(want, abs=5.1e-5)


def range_(n):
    return list(range(n))


def test_process_tokens_within_and_after_steps():
    ends = [[1, 4, 5], [0, 2], [2, 3, 4, 9]]
    got = process(STEPS, ends, [7, 3, 10])
    a, b, c = PER_STEP
    assert got[0].tolist() == pytest.approx([a[0]] * 2 + [a[1]] * 3 + [a[2]] + [0], abs=5.1e-5)
    assert got[0][6].item() == 0  # after the last step: exactly nothing
    assert got[1].tolist() == pytest.approx([b[0], b[1], b[1]], abs=5.1e-5)
    assert got[2].tolist() == pytest.approx([c[0]] * 3 + [c[1], c[2]] + [c[3]] * 5, abs=5.1e-5)


def test_one_step_each_is_outcome_supervision():
    rewards = [0.3, 0.9, 0.1, 0.4]
    got = process([[r] for r in rewards], [[2]] * 4, [3] * 4)
    outcome = group_advantage(torch.tensor([rewards]))[0]
    torch.testing.assert_close(torch.stack(got), outcome[:, None].expand(4, 3))


@given(st.data())
def test_process_against_loops(data):
    G = data.draw(st.integers(1, 4))
    lengths = data.draw(st.lists(st.integers(0, 12), min_size=G, max_size=G))
    ends = [
        sorted(data.draw(st.lists(st.integers(0, n - 1), max_size=5))) if n else [] for n in lengths
    ]
    assume(any(ends))
    steps = [[data.draw(st.sampled_from([0.0, 0.1, 0.25, 1.0, math.nan])) for _ in e] for e in ends]
    got = process(steps, ends, lengths, ddof=0)
    pooled = [r for s in steps for r in s if math.isfinite(r)]
    std = statistics.pstdev(pooled) if len(set(pooled)) > 1 else 0
    for i, length in enumerate(lengths):
        want = [0.0] * length
        for t in range(length):
            for r, e in zip(steps[i], ends[i], strict=True):
                if e >= t and std and math.isfinite(r):
                    want[t] += (r - statistics.mean(pooled)) / std
        assert got[i].shape == (length,)
        assert got[i].tolist() == pytest.approx(want, abs=1e-5)
