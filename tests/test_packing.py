import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch import micro_batches
from data.io import InputError
from train_sft import pack


def test_greedy_in_order():
    assert pack([3, 4, 2, 6, 1, 1], 8) == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]  # 3+4, 2 does not fit; 2+6 = 8; 1+1
    assert pack([], 8) == []


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(50, 120), st.integers(0, 2**32))
def test_pack_properties(lengths, capacity, seed):
    rows = pack(lengths, capacity, np.random.default_rng(seed))
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in row) for row in rows]
    assert all(total <= capacity for total in sums) and all(rows)
    # a row is closed only by an item that did not fit in it
    assert all(
        total + lengths[after[0]] > capacity for total, after in zip(sums, rows[1:], strict=False)
    )
    assert rows == pack(lengths, capacity, np.random.default_rng(seed))


def test_pack_order_is_random():
    rows = pack([1] * 100, 10, np.random.default_rng(0))
    assert rows != pack([1] * 100, 10) and rows != pack([1] * 100, 10, np.random.default_rng(1))


def test_pack_names_an_item_that_is_too_long():
    with pytest.raises(
        InputError, match="item 2 has 9 tokens and the context holds 8; raise the context length"
    ):
        pack([1, 8, 9], 8, np.random.default_rng(0))


def test_micro_batches_by_hand():
    # longest first: 7 -> rank 0, 5 -> rank 1, 4 -> rank 1 (5 < 7), 3 -> rank 0 (7 < 9), 1 -> rank 1 (9 < 10)
    assert micro_batches([4, 7, 1, 5, 3], 8, world=2) == [[[1], [4]], [[3, 2], [0]]]
    assert micro_batches([2, 20, 0], 5) == [[[1], [0, 2]]]  # above the budget: alone
    assert micro_batches([1], 5, world=3) == [[[0]], [[]], [[]]]
    assert micro_batches([], 5, world=2) == [[], []]


@given(st.lists(st.integers(0, 40), max_size=80), st.integers(1, 60), st.integers(1, 5))
def test_micro_batch_properties(costs, budget, world):
    batches = micro_batches(costs, budget, world)
    assert len(batches) == world and len({len(micros) for micros in batches}) == 1
    assert sorted(i for micros in batches for micro in micros for i in micro) == list(
        range(len(costs))
    )
    for micros in batches:
        for micro in micros:
            total = sum(costs[i] for i in micro)
            assert total <= budget or len(micro) == 1
    totals = [sum(costs[i] for micro in micros for i in micro) for micros in batches]
    assert max(totals) - min(totals) <= max(
        costs, default=0
    )  # greedy balance: at most one item apart
    # no two micro batches of a rank could have been one
    for micros in batches:
        sums = [sum(costs[i] for i in micro) for micro in micros if micro]
        assert (
            len(sums) < 2 or min(sums) + sorted(sums)[1] > budget or any(s > budget for s in sums)
        )
    assert batches == micro_batches(costs, budget, world)


def test_micro_batches_rejects_no_budget():
    with pytest.raises(InputError, match="budget of 0"):
        micro_batches([1], 0)
