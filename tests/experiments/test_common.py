"""experiments/common.py: means and intervals over seeds, commands that are run once, pictures."""

import json
import sys
import time
from functools import partial

import numpy as np
import pytest

from data.io import InputError
from experiments import common
from experiments.common import (
    Config,
    curve,
    difference,
    mean_interval,
    parallel,
    percent,
    picture,
    prepare,
    run,
)


def test_mean_deviation_and_interval_by_hand():
    """80, 82, 84: mean 82, deviation 2, t of 2 degrees 4.303: half of the interval is 4.303 * 2 /
    sqrt(3) = 4.969.
    """
    mean, deviation, half = mean_interval([0.80, 0.82, 0.84])
    assert (mean, deviation, half) == pytest.approx((0.82, 0.02, 0.04969), abs=1e-5)
    assert percent([0.80, 0.82, 0.84]) == "82.0 (dev. 2.0, 77.0 - 87.0)"
    assert np.isnan(mean_interval([0.5])[2])


def test_t_is_students():
    """The share of t-distributed means beyond the table's value is 5 %, by simulation."""
    draw = np.random.default_rng(0)
    for n in (2, 3, 5, 10):
        sample = draw.standard_normal((200_000, n))
        t = sample.mean(1) / (sample.std(1, ddof=1) / np.sqrt(n))
        assert abs((np.abs(t) > common.T_975[n - 2]).mean() - 0.05) < 0.002


def test_differences_are_taken_seed_by_seed():
    """Seeds that differ by far more than the methods do not hide a constant gain."""
    first = [0.50, 0.60, 0.70]
    assert difference(first, [0.52, 0.62, 0.72]).startswith("+2.0 (+2.0 to +2.0): yes")
    assert difference(first, [0.40, 0.50, 0.60]).endswith(": no")
    assert difference(first, [0.52, 0.58, 0.71]).endswith(": undecided")


def test_curves_take_the_lines_that_have_the_key():
    assert curve([{"step": 0, "a": 1.0}, {"step": 1}, {"step": 2, "a": 3.0}], "a") == (
        [0, 2],
        [1.0, 3.0],
    )


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # set by `parallel` where it is not


def test_a_command_is_run_once_and_its_failure_ends_the_program(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(common, "ROOT", tmp_path)
    (tmp_path / "once.py").write_text(
        "import sys; open(sys.argv[1], 'a').write('x'); sys.exit(int(sys.argv[2]))"
    )
    for _ in range(2):
        run(tmp_path / "done", "once.py", tmp_path / "done", 0)
    assert (tmp_path / "done").read_text() == "x"
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "other", "once.py", tmp_path / "else", 3)
    assert stop.value.code == 3 and "once.py stopped (exit code 3, " in capfd.readouterr().err


def test_tasks_keep_their_order_and_a_failure_stops_the_rest():
    done = []
    assert parallel(2, [lambda i=i: i for i in range(7)]) == list(range(7))

    def task(i: int) -> None:
        if i == 1:
            raise SystemExit(3)
        time.sleep(0.05)
        done.append(i)

    with pytest.raises(SystemExit) as stop:
        parallel(2, [partial(task, i) for i in range(40)])
    assert stop.value.code == 3 and len(done) < 10


def test_models_of_ones_own_need_problems():
    with pytest.raises(InputError, match="--valid is needed with --init"):
        prepare(Config(init="a", base="b", problems="c"))
    assert prepare(Config(init="a", base="b", problems="c", valid="d", test="e")).sft == "a"


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (an extra)")
    lines = {"one": ([1, 2], [[0.1, 0.2], [0.3, 0.2]]), "two": ([1, 2], [[0.4, 0.5]])}
    picture(tmp_path / "a.png", "t", "x", "y", lines)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="a.png: drawing needs matplotlib: pip install"):
        picture(tmp_path / "a.png", "t", "x", "y", {})


def test_tables_are_written_whole(tmp_path):
    common.save(tmp_path / "to" / "a.json", {"a": [1]})
    assert json.loads((tmp_path / "to" / "a.json").read_text()) == {"a": [1]}
