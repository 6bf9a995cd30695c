"""evaluation/metrics.py: figures worked by hand."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.metrics import normal, pass_at_k, summarize, vote, wilson


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        # Newcombe, Two-sided confidence intervals for the single proportion (1998), table I, method
        # 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),  # of the third, by symmetry
        (8, 10, 0.490, 0.943),
    ],
)
def test_wilson(right, total, low, high):
    assert wilson(right, total) == pytest.approx((low, high), abs=5e-5 if total > 10 else 5e-4)


def test_normal():
    # mean 0.5, deviation 0.5 (divided by n - 1), error 0.5 / sqrt(3) = 0.288675, times 1.959964:
    # 0.5658
    assert normal([0.0, 0.5, 1.0]) == (0.0, 1.0)
    # mean 0.5, variance (0.01 + 0 + 0.01) / 2, error sqrt(0.01 / 3) = 0.057735, times 1.959964:
    # 0.113159
    assert normal([0.4, 0.5, 0.6]) == pytest.approx((0.386841, 0.613159), abs=1e-6)
    assert normal([0.0, 0.0]) == wilson(0, 2) and normal([1.0]) == wilson(
        1, 1
    )  # no deviation, yet not certain


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_counts_all_choices(right, data):
    k = data.draw(st.integers(1, len(right)))
    choices = list(itertools.combinations(right, k))
    share = sum(any(choice) for choice in choices) / len(choices)
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        ([], None),
        ([None, None], None),
        ([None, "3", None], "3"),  # those without an answer abstain
        (["1", "2", "2"], "2"),
        (["2", "1", "1", "2"], "2"),  # a tie: the first seen
        (["7", "0.5", "1/2", "7", "50/100"], "0.5"),  # three ways to write one answer
        (["7", "7", "1/2", r"\frac{1}{2}", "0.5", "7.0"], "7"),
        (["red", "Red", "blue"], "red"),
    ],
)
def test_the_majority(predicted, expected):
    winner = vote(predicted)[-1] if predicted else None
    assert expected == (None if winner is None else predicted[winner])


def record(name, answers, gold, finish="eos", tokens=4, shots=0, section="", **more):
    """A record whose relaxed verdicts are those of equal texts; strictly, "1" alone is right."""
    attempts = [
        {
            "text": "",
            "answer": a,
            "finish": finish,
            "tokens": tokens,
            "right": a == gold,
            "strict": a == gold == "1",
            "reason": "no_answer" if a is None else "equal" if a == gold else "value",
            "strict_reason": "equal" if a == gold == "1" else "unit",
            **more,
        }
        for a in answers
    ]
    return {
        "id": name,
        "answer": gold,
        "kind": "answer",
        "section": section,
        "shots": shots,
        "attempts": attempts,
    }


def test_summarize_by_hand():
    records = [
        record("a", ["1", "2", "2", "1"], "1", shots=4),  # 2 of 4; votes: 1, 1, 1
        record("b", ["4", None, "5", "5"], "5", tokens=8),  # 2 of 4; votes 4, 4, 5
        record("c", ["9", "9", None, "9"], "3", "length", 6, shots=1),  # none
    ]
    metrics = summarize(records)
    assert (metrics["problems"], metrics["samples"]) == (3, 4)
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert metrics["interval"] == pytest.approx(normal([0.5, 0.5, 0.0]))
    assert metrics["strict"] == pytest.approx(2 / 12)
    assert metrics["strict_interval"] == pytest.approx(normal([0.5, 0.0, 0.0]))
    assert metrics["reasons"] == {"equal": 4, "no_answer": 2, "strict_unit": 2, "value": 6}
    assert metrics["no_answer"] == pytest.approx(2 / 12) and metrics["no_room"] == 0
    assert metrics["shots"] == pytest.approx(5 / 3)
    assert metrics["truncated"] == pytest.approx(4 / 12)
    assert metrics["tokens"] == pytest.approx(6)
    assert [metrics[f"maj@{k}"] for k in (1, 2, 4)] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert metrics["maj@4_interval"] == wilson(2, 3)
    # of 4 samples with 2 right: 1 - 2/4, 1 - C(2,2)/C(4,2) = 1 - 1/6, 1
    assert [metrics[f"pass@{k}"] for k in (1, 2, 4)] == pytest.approx([1 / 3, 2 / 3 * 5 / 6, 2 / 3])
    assert metrics["pass@2_interval"] == pytest.approx(normal([5 / 6, 5 / 6, 0.0]))

    greedy = summarize([{**record, "attempts": record["attempts"][:1]} for record in records])
    assert (greedy["accuracy"], greedy["interval"]) == (pytest.approx(1 / 3), wilson(1, 3))
    assert not [name for name in greedy if "@" in name]


@settings(max_examples=30)
@given(st.integers(1, 20))
def test_k_doubles_up_to_all_samples(K):
    metrics = summarize([record("a", ["1"] * K, "1")])
    expected = [] if K == 1 else sorted({2**i for i in range(K.bit_length())} | {K})
    assert [
        int(name[4:]) for name in metrics if name.startswith("maj@") and "_" not in name
    ] == expected


def test_answers_are_compared_once():
    """64 samples of 1,000 problems with few different answers: comparisons grow with the different
    ones.
    """
    seen = Counter()
    said = ["1", "1.0", "2", None, "3"] * 12
    winners = vote(said, lambda a, b: seen.update([(a, b)]) or float(a) == float(b))
    assert winners[:5] == [0, 0, 0, 0, 0] and winners[-1] == 0 and set(seen.values()) == {1}
    assert seen == {("1", "1.0"): 1, ("1", "2"): 1, ("1", "3"): 1, ("2", "3"): 1}


@given(st.lists(st.sampled_from([None, "1", "2", "3", "1.0"]), min_size=1, max_size=12))
def test_the_curve_of_votes_is_that_of_each_number_of_samples(said):
    def plain(answers):
        classes = {}
        for answer in filter(None, answers):
            classes.setdefault(float(answer), []).append(answer)
        return max(classes.values(), key=len)[0] if classes else None

    winners = vote(said, lambda a, b: float(a) == float(b))
    for k, place in enumerate(winners, 1):
        assert (None if place is None else said[place]) == plain(said[:k])
