"""tools/pipeline.py on a toy pipeline of trivial commands: order, marks, failures, settings,
summary.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.io import run_cli
from tools import pipeline

ROOT = Path(__file__).parents[2]

# Writes a line to TO/log each time it runs; fails with the code in the file TO/fail.NAME; "eval"
# writes results.
STEP = """
import json, os, sys
from pathlib import Path
to, name, *rest = sys.argv[1:]
with open(Path(to, "log"), "a") as file:
    file.write(" ".join([name, *rest]) + chr(10))
if Path(to, "fail." + name).exists():
    code = int(Path(to, "fail." + name).read_text())
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)
if name == "eval":
    for row, share in (("base", 0.25), ("grpo", 0.5)):
        Path(to, "eval", row).mkdir(parents=True, exist_ok=True)
        results = {"test.cot": {"accuracy": share, "interval": [share - 0.1, share + 0.1], "problems": 8},
                   "test.pot": {"accuracy": 0.0, "interval": [0.0, 0.3], "problems": 8}}
        Path(to, "eval", row, "results.json").write_text(json.dumps({"results": results}))
"""
TOML = """
rows = ["base", "grpo"]
columns = { cot = "test.cot", pot = "test.pot" }
[[stage]]
name = "make"
seconds = 60
run = ["python '{configs}/step.py' '{to}' make-1 --seed {seed}", "python {configs}/step.py {to} make-2 --data {data}"]
[[stage]]
name = "train"
seconds = 30
run = ["python {configs}/step.py {to} train-1", "python {configs}/step.py {to} train-2"]
[[stage]]
name = "eval"
seconds = 10
run = ["python {configs}/step.py {to} eval"]
"""
ALL = ["make-1 --seed 0", "make-2 --data", "train-1", "train-2", "eval"]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """run(*options) runs the toy pipeline and returns its exit code; the folders have a space in
    their names.
    """

    class Toy:
        file, to = tmp_path / "the configs" / "pipeline.toml", tmp_path / "the run"
        log = property(lambda self: (self.to / "log").read_text().splitlines())

        def run(self, *options, file=None):
            arguments = [
                "tools/pipeline.py",
                str(file or self.file),
                "--to",
                str(self.to),
                *map(str, options),
            ]
            monkeypatch.setattr(sys, "argv", arguments)
            try:
                run_cli(pipeline.main)
            except SystemExit as stop:
                return stop.code
            return 0

    toy = Toy()
    toy.file.parent.mkdir()
    toy.to.mkdir()
    toy.file.write_text(TOML)
    (toy.file.parent / "step.py").write_text(STEP)
    return toy


def test_stages_run_in_order_and_once(toy, capfd):
    assert toy.run() == 0
    assert [line.strip() for line in toy.log] == ALL
    summary = json.loads((toy.to / "summary.json").read_text())
    assert set(summary) == {"accuracy", "interval", "seconds"}
    assert summary["accuracy"] == {
        "base": {"cot": 0.25, "pot": 0.0},
        "grpo": {"cot": 0.5, "pot": 0.0},
    }
    assert summary["interval"]["grpo"] == {"cot": [0.4, 0.6], "pot": [0.0, 0.3]}
    assert list(summary["seconds"]) == ["make", "train", "eval"]
    assert all(0 < seconds < 60 for seconds in summary["seconds"].values())
    out = capfd.readouterr().out
    assert "[2/3] train: about 30 s, all that is left 0.7 min" in out
    assert "25.0 (15.0 - 35.0)" in out and "50.0 (40.0 - 60.0)" in out

    (toy.to / "summary.json").unlink()
    assert toy.run() == 0
    assert len(toy.log) == len(ALL)  # nothing was run again
    assert json.loads((toy.to / "summary.json").read_text()) == summary
    assert capfd.readouterr().out.count("finished before") == 3

    (toy.to / "stages" / "train.json").unlink()  # the documented way to repeat a stage
    assert toy.run() == 0
    assert toy.log[len(ALL) :] == ["train-1", "train-2"]


@pytest.mark.parametrize(("code", "exit_code"), [(7, 7), (-signal.SIGKILL, 137)])
def test_a_stage_that_fails_is_started_again(toy, code, exit_code, capfd):
    (toy.to / "fail.train-2").write_text(str(code))
    assert toy.run() == exit_code
    assert [line.strip() for line in toy.log] == ALL[:-1]
    assert "stage train stopped" in capfd.readouterr().err
    assert not (toy.to / "summary.json").exists()
    partial = toy.to / "stages" / "train.partial"
    first = json.loads(partial.read_text())["seconds"]
    assert first > 0
    partial.write_text('{"seconds": 1000}')  # as if the first try had been long

    assert toy.run() == exit_code
    assert json.loads(partial.read_text())["seconds"] > 1000
    (toy.to / "fail.train-2").unlink()
    assert toy.run() == 0
    assert [line.strip() for line in toy.log] == [*ALL[:2], *["train-1", "train-2"] * 3, "eval"]
    assert 1000 < json.loads((toy.to / "summary.json").read_text())["seconds"]["train"] < 1100
    assert not partial.exists()


def test_a_signal_reaches_the_stage(toy):
    """SIGTERM to the pipeline alone: the running command gets it and may finish its work before the
    pipeline ends.
    """
    (toy.file.parent / "step.py").write_text("""
import signal, sys, time
from pathlib import Path
to = Path(sys.argv[1])
def stop(*_):
    time.sleep(0.3)
    (to / "saved").write_text("")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
(to / "started").write_text("")
time.sleep(60)
""")
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.pipeline", toy.file, "--to", toy.to], cwd=ROOT
    )
    deadline = time.monotonic() + 60
    while not (toy.to / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143
    assert (toy.to / "saved").exists()


def test_only(toy):
    assert toy.run("--only", "train") == 0
    assert toy.log == ["train-1", "train-2"]
    assert not (toy.to / "summary.json").exists()
    assert toy.run("--only", "make,eval") == 0
    assert (toy.to / "summary.json").exists()


def test_a_run_directory_keeps_its_settings(toy, capfd):
    assert toy.run("--seed", 3, "--only", "make") == 0
    assert toy.log[0] == "make-1 --seed 3"
    capfd.readouterr()
    assert toy.run("--seed", 4) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and str(toy.to) in err and '"seed": 4' in err
    assert toy.run("--seed", 3) == 0


def test_data_reaches_the_commands(toy, tmp_path, capfd):
    toy.file.write_text('needs_data = "get it with download.py"\n' + TOML)
    for options in ([], ["--data", tmp_path / "absent"]):
        assert toy.run(*options) == 2
        assert "get it with download.py" in capfd.readouterr().err
    data = tmp_path / "the data"
    data.mkdir()
    assert toy.run("--data", data) == 0
    assert toy.log[1] == f"make-2 --data {data}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rows =", "rows =[", "not valid TOML"),
        ("seconds = 30", "", "stage 2 has no 'seconds'"),
        ('rows = ["base", "grpo"]', "", "no rows in it"),
        ("columns = {", "other = {", "no columns in it"),
        (TOML, 'rows = ["a"]\ncolumns = { a = "a" }', "no [[stage]] in it"),
        ("{to} train-1", "{too} train-1", "must be among {to}, {data}"),
        ("{to} train-1", "{ train-1", "must be among {to}, {data}"),
        ("python '{configs}/step.py'", "no-such-program", "no-such-program: cannot be run"),
        ('"grpo"]', '"grpo", "sft"]', "sft/results.json: no stage has written it"),
        ("test.pot", "other.pot", "has no results of other.pot"),
    ],
)
def test_wrong_pipeline_files(toy, old, new, message, capfd):
    assert old in TOML
    toy.file.write_text(TOML.replace(old, new))
    assert toy.run() == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_wrong_options(toy, tmp_path, capfd):
    assert toy.run(file=tmp_path / "absent.toml") == 2
    assert "absent.toml: cannot be read" in capfd.readouterr().err
    assert toy.run("--only", "trian") == 2
    assert "--only trian: no such stage; there are make, train, eval" in capfd.readouterr().err
    assert toy.run("--sead", "1") == 2


@pytest.mark.parametrize(
    "file", sorted(str(path) for path in ROOT.glob("configs/*/pipeline*.toml"))
)
def test_our_pipelines_name_programs_and_files_that_exist(file):
    """Every command of a pipeline: its module, and the --config file it reads."""
    folder = Path(file).parent
    for stage in pipeline.load(file)["stage"]:
        for command in stage["run"]:
            words = command.format(to="TO", data="DATA", seed=0, configs=folder).split()
            assert words[0] == "python"
            path = ROOT / (
                words[2].replace(".", "/") if words[1] == "-m" else words[1].removesuffix(".py")
            )
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), command
            if "--config" in words:
                config = Path(words[words.index("--config") + 1])
                assert config.parts[0] == "TO" or (ROOT / config).exists(), command
