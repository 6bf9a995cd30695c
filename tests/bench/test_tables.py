"""bench/tables.py and the options of comparisons: which rows stand in a table, its figures by hand,
what is refused.
"""

import argparse
import json
import sys

import pytest

import train_grpo
from bench import tables, turns
from data.io import InputError, run_cli


def side(*values: float, key: str = "seconds", peak: float = 100.0, **versions: str) -> dict:
    rows = [{"seconds": 1.0, key: value} for value in values]
    return {"rows": rows, "peak_mb": peak, "versions": versions}


def row(bench: str, found: dict, **settings) -> dict:
    here = {"cpu": "Xeon", "cores": 2, "memory_gib": 8.0, "python": "3.11.7", "torch": "2.13.0"}
    return {
        "bench": bench,
        "when": "2026-01-02 03:04",
        "commit": "abc",
        **here,
        "settings": settings,
        "found": found,
    }


OLD = row(
    "step", {"ours": side(4.0), "trl": side(4.0)}, rounds=1
)  # before the dtype was recorded: float32
STEP = row(
    "step",
    {
        "ours": side(1.0, 3.0, 2.0, peak=1234.4),
        "trl": side(5.0, 9.0, 7.0, peak=2000.0, torch="2.12.0", trl="1.16.0"),
    },
    rounds=3,
    dtype="float32",
    peer_dtype="float32",
    ours="",
)
HALF = row(
    "step", {"ours": side(1.0)}, rounds=1, dtype="bfloat16", peer_dtype="float32", ours="fused=true"
)
SPEEDS = row(
    "speed",
    {
        "1": {"ours": side(300.0, key="speed"), "hf": side(200.0, key="speed")},
        "16": {"ours": side(900.0, key="speed"), "hf": side(1000.0, key="speed")},
    },
    cases="1,16",
)
LATER = row(
    "speed", {"1": {"ours": side(400.0, key="speed"), "hf": side(200.0, key="speed")}}, cases="1"
)


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (OLD, SPEEDS, STEP, HALF, LATER)))
    return path


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["tables.py", *map(str, arguments)])
    try:
        run_cli(tables.main)
    except SystemExit as stop:
        return stop.code
    return 0


def test_medians_spread_ratio_and_versions_by_hand(results, monkeypatch, capsys):
    """The newest of each comparison: OLD has gone, of SPEEDS only the case that LATER did not
    measure again is left.
    """
    assert run(monkeypatch, "--results", results) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:6]]
    assert cells == [
        [
            "step",
            "dtype float32",
            "2.000 s (1.000 - 3.000)",
            "1,234 MB",
            "trl: 7.000 s (5.000 - 9.000)",
            "2,000 MB",
            "3.50",
            "3",
            "a",
        ],
        [
            "step",
            "dtype bfloat16, peer_dtype float32, ours fused=true",
            "1.000 s (1.000 - 1.000)",
            "100 MB",
            "",
            "",
            "",
            "1",
            "b",
        ],
        [
            "speed, 1",
            "dtype float32",
            "400 tokens/s (400 - 400)",
            "100 MB",
            "hf: 200 tokens/s (200 - 200)",
            "100 MB",
            "2.00",
            "1",
            "c",
        ],
        [
            "speed, 16",
            "dtype float32",
            "900 tokens/s (900 - 900)",
            "100 MB",
            "hf: 1,000 tokens/s (1,000 - 1,000)",
            "100 MB",
            "0.90",
            "1",
            "c",
        ],
    ]
    machine = "2 cores of Xeon, 8.0 GiB, Python 3.11.7, torch 2.13.0"
    assert (
        lines[7] == f"- a: {machine}, trl 1.16.0, the peer's torch 2.12.0; commit abc, 2026-01-02"
    )
    assert lines[8] == f"- b: {machine}; commit abc, 2026-01-02" and len(lines) == 10


def test_another_machine_is_another_comparison():
    assert len(tables.newest([STEP, STEP | {"cpu": "Epyc"}, STEP], ["step"])) == 2


def test_what_stands_between_markers_is_rewritten_and_nothing_else(results, tmp_path, monkeypatch):
    path = tmp_path / "page.md"
    path.write_text(
        "# Page\n\n<!-- table: speed, step -->\nold\n<!-- end of table -->\nkept\n"
        "<!-- table: speed -->\n<!-- end of table -->\n| kept |\n"
    )
    assert run(monkeypatch, "--results", results, "--write", path) == 0
    text = path.read_text()
    first, second = (part.split("<!-- end of table -->\n")[0] for part in text.split("-->\n|")[1:3])
    works = [line.split(" | ")[0] for line in first.splitlines()[2:6]]
    assert works == ["| speed, 1", "| speed, 16", "| step", "| step"]
    assert "step" not in second and "old" not in text
    assert text.startswith("# Page\n\n<!-- table: speed, step -->\n") and text.endswith(
        "\n| kept |\n"
    )
    assert "<!-- end of table -->\nkept\n<!-- table: speed -->\n" in text
    assert run(monkeypatch, "--results", results, "--write", path) == 0 and path.read_text() == text


@pytest.mark.parametrize(
    "text, message",
    [
        ("nothing\n", "page.md: 0 lines <!-- table"),
        ("<!-- table: all -->\n", "1 lines <!-- table: ... --> and 0 <!-- end of table -->"),
        (2 * "<!-- table: all -->\n" + 2 * "<!-- end of table -->\n", "after each other"),
        (
            "<!-- table: a -->\n<!-- end of table -->\n",
            "page.md: no result of 'a'; there are some of step, speed",
        ),
    ],
)
def test_markers_that_cannot_be_filled_change_nothing(
    text, message, results, tmp_path, monkeypatch, capsys
):
    (tmp_path / "page.md").write_text(text)
    assert run(monkeypatch, "--results", results, "--write", tmp_path / "page.md") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert (tmp_path / "page.md").read_text() == text


def test_the_results_that_are_kept_make_a_table():
    rows = [json.loads(line) for line in turns.RESULTS.read_text().splitlines()]
    text = tables.chosen(rows, "all", "results")
    assert {one["bench"] for one in rows} == {
        line.split(" | ")[0][2:].split(",")[0]
        for line in text.splitlines()[2:]
        if line.startswith("| ") and not line.startswith("|  |")  # a further peer
    }


# --------------------------------------------------------------------------------------------------
# bench/turns.py


def given(*arguments: str) -> argparse.Namespace:
    parser = turns.arguments("A comparison.", rounds=3)
    parser.add_argument("--ours", default="")
    return parser.parse_args(arguments)


def test_only_our_side_is_given_our_options():
    chosen = given(
        "--peer", "PEER", "--dtype", "bfloat16", "--peer_dtype", "float32", "--ours", "fused=true"
    )
    found = turns.side_commands(
        turns.commands("bench.py", chosen, "trl"), chosen, "DIR", "--size", "1m"
    )
    ours, peer = (turns_given[2:] for turns_given in found.values())
    assert found["ours"][:2] == [sys.executable, "bench.py"] and found["trl"][:2] == [
        "PEER",
        "bench.py",
    ]
    shared = ["DIR", "--threads", "2", "--size", "1m"]
    assert ours == ["--side", "ours", *shared, "--dtype", "bfloat16", "--ours", "fused=true"]
    assert peer == ["--side", "trl", *shared, "--dtype", "float32"]
    settings = {
        "rounds": 3,
        "threads": 2,
        "dtype": "bfloat16",
        "peer_dtype": "float32",
        "ours": "fused=true",
    }
    assert turns.settings(chosen) == settings
    assert turns.settings(given())["peer_dtype"] == "float32"
    assert list(turns.commands("bench.py", given(), "trl")) == ["ours"]


def test_an_earlier_revision_is_our_side_of_another_folder():
    chosen = given("--before", "OLD", "--ours", "bf16=true")
    found = turns.side_commands(turns.commands("bench.py", chosen, "trl"), chosen, "DIR")
    assert list(found) == ["ours", "before"]
    assert found["before"] == [sys.executable, "OLD/bench/bench.py", *found["ours"][2:]]


def test_options_of_ours_are_read_as_the_trainer_reads_them():
    known = ("micro_tokens", "bf16")
    config = turns.own_options(
        train_grpo.Config, "micro_tokens=7,bf16=true", known, dict(samples=3, micro_tokens=9)
    )
    assert (config.micro_tokens, config.bf16, config.samples) == (7, True, 3)
    with pytest.raises(InputError, match="--ours lr=1: not an option .* micro_tokens, bf16"):
        turns.own_options(train_grpo.Config, "lr=1", known, {})
    with pytest.raises(InputError, match="--micro_tokens x: needs an integer"):
        turns.own_options(train_grpo.Config, "micro_tokens=x", known, {})


def script(tmp_path, name: str, text: str) -> list[str]:
    (tmp_path / name).write_text(
        f"import sys\nsys.path.insert(0, {str(turns.RESULTS.parents[1])!r})\n{text}"
    )
    return [sys.executable, str(tmp_path / name)]


def test_models_that_differ_are_not_compared(tmp_path):
    """Each command is asked `--check NAME FOLDER`; what it prints decides."""
    same = "import json; print(json.dumps([-1.0, -2.0 - {} * (sys.argv[2] == 'peer')]))"
    near, far = (script(tmp_path, f"{gap}.py", same.format(gap)) for gap in ("1e-4", "1e-2"))
    turns.check_same({"ours": near, "peer": near}, "DIR", 1e-3)
    with pytest.raises(InputError, match="do not give the same log-probs: .*-2.01"):
        turns.check_same({"ours": far, "peer": far}, "DIR", 1e-3)
    wrong = script(tmp_path, "nan.py", "print('[NaN, -2.0]')")
    with pytest.raises(InputError, match="same log-probs"):
        turns.check_same({"ours": near, "peer": wrong}, "DIR", 1e-3)
    with pytest.raises(InputError, match="no such thing"):
        turns.check_same(
            {"ours": script(tmp_path, "bad.py", "sys.exit('no such thing')")}, "DIR", 1e-3
        )


def test_sides_take_turns_and_tell_versions_and_their_own_peak(tmp_path):
    """The one who measures holds 300 MB, of which no side may know; "big" holds 120 MB more than
    "small".
    """
    text = """
import time
from bench.turns import serve
held = []
def work(number):
    if sys.argv[1] == "big" and not held:
        held.append(bytearray(b"x") * 120_000_000)
    return {"number": number, "at": time.monotonic()}
serve(work, warmup=1)
"""
    ballast = bytearray(b"x") * 300_000_000
    command = script(tmp_path, "side.py", text)
    found = turns.alternate({"small": [*command, "small"], "big": [*command, "big"]}, 3)
    del ballast
    order = sorted((one["at"], name) for name, part in found.items() for one in part["rows"])
    assert [name for _, name in order] == ["small", "big", "big", "small", "small", "big"]
    assert [one["number"] for one in found["big"]["rows"]] == [1, 2, 3]
    assert found["small"]["versions"] == {
        "python": turns.machine()["python"]
    }  # it has imported nothing else
    assert 115 < found["big"]["peak_mb"] - found["small"]["peak_mb"] < 135
    assert found["small"]["peak_mb"] < 100 and found["big"]["peak_above_imports_mb"] > 100


def test_the_peak_counts_from_where_it_was_reset():
    block = bytearray(b"x") * 200_000_000
    before = turns.peak_bytes()
    del block
    turns.reset_peak()
    after = turns.peak_bytes()
    if sys.platform == "linux":
        assert before - after > 150e6
