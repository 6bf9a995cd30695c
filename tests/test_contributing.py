"""Every recipe of CONTRIBUTING.md: its diff is applied to a copy of the code, which then runs."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
STUDENTS = ("A length penalty", "An advantage", "A loss")
LEFT_OUT = (".git", ".venv", "runs", "tests", "docs", "__pycache__", ".*_cache")
OPTIONS = "--formats cot --steps 2 --questions 4 --samples 4 --max_new_tokens 16 --lr 3e-3 --seed 1"


def diff_of(recipe: str) -> str:
    """The first block of a diff below the heading of a recipe."""
    section = TEXT.split(f"\n### {recipe}\n")[1]
    section = section.split("\n## ")[0].split("\n### ")[0]
    return re.search(r"(?ms)^```diff\n(.*?)^```$", section)[1]


@pytest.fixture
def edited(tmp_path):
    """edited(recipe): a copy of the code in which the recipe's diff has been applied."""

    def make(recipe: str) -> Path:
        folder = tmp_path / "code"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
        patch = diff_of(recipe)
        subprocess.run(["git", "apply", "-"], cwd=folder, input=patch, text=True, check=True)
        return folder

    return make


def run(folder: Path, *words: str) -> str:
    """What a program of the copy prints; the program has to succeed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    finished = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def train(folder: Path, tiny, to: Path, *options: str) -> str:
    """Two small steps of GRPO; returns what is printed."""
    files = ["--init", f"{tiny.root}/model", "--problems", f"{tiny.root}/problems.jsonl"]
    return run(folder, "train_grpo.py", *files, "--to", str(to), *OPTIONS.split(), *options)


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def first_rollouts(to: Path) -> list[dict]:
    return read_lines(to / "rollouts" / "step_000001.jsonl")


def test_every_recipe_has_a_diff():
    recipes = re.findall(r"(?m)^### (.+)$", TEXT)
    assert set(STUDENTS) < set(recipes)
    for recipe in recipes:
        assert diff_of(recipe)


@pytest.mark.parametrize("recipe", STUDENTS)
def test_three_edits_of_a_student_are_short(recipe):
    """At most 6 new lines, in one file."""
    new = re.findall(r"(?m)^\+(?!\+\+)", diff_of(recipe))
    files = re.findall(r"(?m)^\+\+\+ ", diff_of(recipe))
    assert len(new) <= 6
    assert len(files) == 1


def test_reward(edited, tiny, tmp_path):
    to = tmp_path / "run"
    train(edited("A reward"), tiny, to)
    for row in first_rollouts(to):
        for g, response in enumerate(row["responses"]):
            ended = response["finish"] != "length"
            assert row["rewards"][g] == pytest.approx(row["verdicts"][g] + 0.1 * ended)
    first = read_lines(to / "metrics.jsonl")[0]
    assert first["reward"] != first["verdict"]


def test_length_penalty(edited, tiny, tmp_path):
    to = tmp_path / "run"
    train(edited("A length penalty"), tiny, to)
    for row in first_rollouts(to):
        assert set(row["verdicts"]) <= {0, 1}
        for g, response in enumerate(row["responses"]):
            penalty = 0.002 * len(response["ids"])
            assert row["rewards"][g] == pytest.approx(row["verdicts"][g] - penalty)


def test_leave_one_out_advantage(edited, tiny, tmp_path):
    to = tmp_path / "run"
    train(edited("An advantage"), tiny, to, "--scale", "none")
    some = False
    for row in first_rollouts(to):
        for g, reward in enumerate(row["rewards"]):
            others = row["rewards"][:g] + row["rewards"][g + 1 :]
            advantage = row["advantages"][g]
            assert advantage == pytest.approx(reward - statistics.mean(others), abs=1e-6)
            some = some or advantage != 0
    assert some


def test_loss(edited, tiny, tmp_path):
    """The edit takes effect, and a line says which accelerator was set aside."""
    options = ["--mu", "2", "--clip_high", "0.01"]
    unedited = train(ROOT, tiny, tmp_path / "before", *options)
    text = train(edited("A loss"), tiny, tmp_path / "after", *options)
    assert "kernels.head_loss" in unedited
    assert "train_grpo.grpo_loss was edited" in text

    before = read_lines(tmp_path / "before" / "metrics.jsonl")[0]
    after = read_lines(tmp_path / "after" / "metrics.jsonl")[0]
    assert before["reward"] == after["reward"]
    assert before["loss"] != after["loss"]


def test_benchmark(edited, tmp_path):
    path = tmp_path / "data" / "word-problems" / "SVAMP.json"
    path.parent.mkdir(parents=True)
    problem = {"ID": "1", "Body": "Tom has 3 pens", "Question": "How many pens?", "Answer": 3.0}
    path.write_text(json.dumps([problem]))
    folder = edited("A benchmark")
    text = run(folder, "-m", "data.problems.benchmarks", "--data", str(tmp_path / "data"))
    # name, published, found, bad
    assert re.search(r"(?m)^svamp +1000 +1 +0 ", text), text


def test_accelerator(edited, tiny, tmp_path):
    """It is recorded, and a run uses it."""
    folder = edited("An accelerator")
    run(folder, "-m", "kernels", "--numbers")
    recorded = json.loads((folder / "kernels" / "fingerprints.json").read_text())
    assert "kernels.lean_swiglu.swiglu" in recorded
    assert "kernels.lean_swiglu" in train(folder, tiny, tmp_path / "run")
