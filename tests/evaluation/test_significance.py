import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.io import InputError, write_jsonl
from evaluation.significance import (
    bootstrap,
    compare,
    compare_command,
    difference,
    mcnemar,
    paired,
    shares,
    sign_flip,
)

ROOT = Path(__file__).parents[2]


def test_mcnemar_by_hand():
    assert mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024) == mcnemar(2, 8)
    assert mcnemar(6, 0) == 2 / 64 and mcnemar(1, 0) == 1
    assert mcnemar(0, 0) == mcnemar(5, 5) == 1
    assert mcnemar(400, 300) == pytest.approx(0.000179, rel=0.01)  # R: binom.test(400, 700)$p.value


@pytest.mark.parametrize("n", range(11))
def test_mcnemar_is_the_share_of_as_uneven_coin_throws(n):
    throws = [sum(coins) for coins in itertools.product((0, 1), repeat=n)]
    for better in range(n + 1):
        uneven = sum(abs(2 * heads - n) >= abs(2 * better - n) for heads in throws)
        assert mcnemar(better, n - better) == pytest.approx(uneven / 2**n)


def test_sign_flips_against_all_of_them():
    rng = np.random.default_rng(0)
    for _ in range(5):
        values = rng.integers(-4, 6, 9) / 4
        changed = values[values != 0]
        signs = np.array(list(itertools.product((-1, 1), repeat=len(changed))))
        exact = np.mean(np.abs(signs @ changed) >= abs(changed.sum()) - 1e-9)
        assert sign_flip(values, 20_000, 1) == pytest.approx(exact, abs=0.015)
    zeros_and_ones = np.array([1.0] * 8 + [-1.0] * 2 + [0.0] * 30)
    assert sign_flip(zeros_and_ones, 20_000, 0) == pytest.approx(mcnemar(8, 2), abs=0.01)
    assert sign_flip(np.zeros(5), 100, 0) == 1


def test_bootstrap_against_drawing_problem_by_problem():
    rng = np.random.default_rng(3)
    values = rng.choice([-1, -0.25, 0, 0.5, 1], 80, p=[0.1, 0.1, 0.4, 0.2, 0.2])
    plain = values[rng.integers(0, 80, (40_000, 80))].mean(axis=1)
    assert bootstrap(values, 40_000, 0) == pytest.approx(
        tuple(np.percentile(plain, [2.5, 97.5])), abs=0.004
    )
    assert bootstrap(values, 1000, 5) == bootstrap(values, 1000, 5) != bootstrap(values, 1000, 6)
    assert bootstrap(np.full(20, 0.25), 1000, 0) == (0.25, 0.25)


def test_the_interval_covers_the_true_difference():
    """Two models, right with probability 0.6 and 0.7 in a correlated way: 95 % of the intervals
    hold 0.1.
    """
    rng, held = np.random.default_rng(7), 0
    for trial in range(400):
        both, only_b, only_a = rng.multinomial(150, [0.5, 0.2, 0.1, 0.2])[:3]
        differences = np.repeat([0.0, 1.0, -1.0], [150 - only_b - only_a, only_b, only_a])
        low, high = bootstrap(differences, 1000, trial)
        held += low <= 0.1 <= high
        assert both + only_b + only_a <= 150
    assert 0.92 <= held / 400 <= 0.98


def test_false_alarms_are_as_rare_as_they_should_be():
    rng, alarms = np.random.default_rng(1), 0
    for _ in range(400):
        a, b = rng.random((2, 120)) < 0.6
        alarms += difference(a, b, resamples=10)["p"] < 0.05
    assert alarms / 400 < 0.06


def records(right, samples=1, **other):
    return [
        {
            "id": f"p{i}",
            "question": f"q{i}",
            "answer": "1",
            "attempts": [
                {"right": bool(r), "strict": False} for r in (row if samples > 1 else [row])
            ],
            **other,
        }
        for i, row in enumerate(right)
    ]


def test_paired_by_hand():
    one = paired(records([1, 1, 0, 0, 0, 1]), records([1, 0, 1, 1, 0, 1]))
    assert (one["n"], one["a"], one["b"]) == (6, 0.5, pytest.approx(4 / 6))
    assert (one["better"], one["worse"], one["p"], one["test"]) == (2, 1, 1.0, "McNemar, exact")
    assert (
        one["difference"] == pytest.approx(1 / 6)
        and one["interval"][0] < 1 / 6 < one["interval"][1]
    )


def test_paired_with_samples_takes_their_mean():
    a, b = records([[1, 0], [0, 0], [1, 1]], 2), records([[1, 1], [0, 1], [1, 0]], 2)
    assert (
        shares(a) == [0.5, 0, 1] and shares(b) == [1, 0.5, 0.5] and shares(a, "strict") == [0, 0, 0]
    )
    one = paired(a, b)
    assert one["difference"] == pytest.approx(0.5 / 3) and (one["better"], one["worse"]) == (2, 1)
    assert one["test"] == "sign flip" and one["p"] > 0.5


@pytest.mark.parametrize(
    "other, message",
    [
        (records([1, 0]), "not of the same problems"),
        (records([[1, 0]] * 3, 2), "problem p0 has 1 and 2 samples"),
        (
            [{**r, "question": "another"} for r in records([1, 1, 1])],
            "problem p0 has another question",
        ),
        (
            [{**r, "answer": "2"} for r in records([1, 1, 1])],
            "problem p0 has another question or answer",
        ),
        (records([1, 1, 1])[::-1], "in the same order"),
    ],
)
def test_what_does_not_pair_is_refused(other, message):
    with pytest.raises(InputError, match=message):
        paired(records([1, 0, 1]), other)


# --------------------------------------------------------------------------------------------------
# Two directories


def directory(path, right, settings=(), name="test.cot"):
    write_jsonl(path / f"{name}.jsonl", records(right))
    everything = {
        "model": str(path),
        "to": str(path),
        "temperature": 0.0,
        "seed": 0,
        "limit": 0,
        **dict(settings),
    }
    document = {"results": {name: {"problems": len(right)}}, "settings": everything}
    (path / "results.json").write_text(json.dumps(document))
    return str(path)


def test_compare_reads_what_eval_wrote(tmp_path, capsys):
    a, b = (
        directory(tmp_path / "a", [0] * 8 + [1] * 12),
        directory(tmp_path / "b", [1] * 18 + [0] * 2),
    )
    found = compare(a, b)
    assert list(found) == ["test.cot"]
    one = found["test.cot"]
    assert (one["a"], one["b"], one["better"], one["worse"]) == (0.6, 0.9, 8, 2) and one[
        "p"
    ] == pytest.approx(0.109375)
    compare_command([a, b, "--to", str(tmp_path / "out.json")])
    (line,) = capsys.readouterr().out.splitlines()[1:]
    assert (
        line.split()[:7] == ["test.cot", "20", "60.0", "%", "90.0", "%", "+30.0"]
        and "0.109" in line
    )
    assert json.loads((tmp_path / "out.json").read_text())["results"]["test.cot"]["better"] == 8


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": 0.7}, "--temperature is 0.0 in .* and 0.7 in"),
        ({"seed": 1}, "--seed is 0 in"),
        ({"limit": 5}, "--limit is 0"),
        ({"top_p": 0.9}, "--top_p is None in"),
    ],
)
def test_other_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        compare(directory(tmp_path / "a", [1, 0]), directory(tmp_path / "b", [1, 0], settings))


def test_directories_that_cannot_be_compared(tmp_path):
    a = directory(tmp_path / "a", [1, 0])
    with pytest.raises(InputError, match="results.json: cannot be read"):
        compare(a, str(tmp_path / "none"))
    with pytest.raises(InputError, match="no benchmark and format in common"):
        compare(a, directory(tmp_path / "b", [1, 0], name="other.cot"))
    with pytest.raises(InputError, match="test.cot: the two are not of the same problems"):
        compare(a, directory(tmp_path / "c", [1, 0, 0]))
    (tmp_path / "b" / "results.json").write_text('{"test.cot": {}}')
    with pytest.raises(InputError, match="has no settings"):
        compare(a, str(tmp_path / "b"))
    done = subprocess.run(
        [sys.executable, "-m", "evaluation.audit", "compare", a],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ")
