"""Every recipe of CONTRIBUTING.md: its diff is applied to a copy of the code, and the code runs as the text says."""

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
# {"A reward": its diff, ...}
DIFFS = dict(re.findall(r"(?ms)^### ([^\n]+)\n(?:(?!^##).)*?^```diff\n(.*?)^```$", TEXT))
STUDENTS = ("A length penalty", "An advantage", "A loss")
OPTIONS = "--formats cot --steps 2 --questions 4 --samples 4 --max_new_tokens 16 --lr 3e-3 --seed 1"


def run(folder: Path, *words: str) -> str:
    """What a program of the copy prints; the program has to succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    finished = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout + finished.stderr


@pytest.fixture
def edited(tmp_path):
    """edited(recipe): a copy of the code in which the recipe's diff has been applied."""

    def make(recipe: str) -> Path:
        folder = tmp_path / "code"
        left_out = (".git", ".venv", "runs", "tests", "docs", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*left_out))
        subprocess.run(
            ["git", "apply", "-"], cwd=folder, input=DIFFS[recipe], text=True, check=True
        )
        return folder

    return make


def train(folder: Path, tiny, to: Path, *options: str) -> tuple[str, list[dict], list[dict]]:
    """Two small steps of GRPO: what is printed, the metrics of the steps, the rollouts of the first."""
    paths = ["--init", tiny.root / "model", "--problems", tiny.root / "problems.jsonl", "--to", to]
    text = run(folder, "train_grpo.py", *map(str, paths), *OPTIONS.split(), *options)
    metrics = [json.loads(line) for line in (to / "metrics.jsonl").read_text().splitlines()]
    lines = (to / "rollouts" / "step_000001.jsonl").read_text().splitlines()
    return text, metrics, [json.loads(line) for line in lines]


def test_every_recipe_has_a_diff():
    recipes = re.findall(r"(?m)^### (.+)$", TEXT)
    assert list(DIFFS) == recipes and set(STUDENTS) < set(recipes)


@pytest.mark.parametrize("recipe", STUDENTS)
def test_three_edits_of_a_student_are_short(recipe):
    """At most 6 new lines, in one file."""
    lines = DIFFS[recipe].splitlines()
    assert sum(line.startswith("+++ ") for line in lines) == 1
    assert sum(line.startswith("+") and not line.startswith("+++") for line in lines) <= 6


def test_reward(edited, tiny, tmp_path):
    _, metrics, rollouts = train(edited("A reward"), tiny, tmp_path / "run")
    for row in rollouts:
        for g, response in enumerate(row["responses"]):
            ended = response["finish"] != "length"
            assert row["rewards"][g] == pytest.approx(row["verdicts"][g] + 0.1 * ended)
    assert metrics[0]["reward"] != metrics[0]["verdict"]


def test_length_penalty(edited, tiny, tmp_path):
    _, _, rollouts = train(edited("A length penalty"), tiny, tmp_path / "run")
    for row in rollouts:
        assert set(row["verdicts"]) <= {0, 1}
        for g, response in enumerate(row["responses"]):
            penalty = 0.002 * len(response["ids"])
            assert row["rewards"][g] == pytest.approx(row["verdicts"][g] - penalty)


def test_leave_one_out_advantage(edited, tiny, tmp_path):
    folder = edited("An advantage")
    _, _, rollouts = train(folder, tiny, tmp_path / "run", "--scale", "none")
    for row in rollouts:
        rewards, expected = row["rewards"], []
        for g, reward in enumerate(rewards):
            expected.append(reward - statistics.mean(rewards[:g] + rewards[g + 1 :]))
        assert row["advantages"] == pytest.approx(expected, abs=1e-6)
    assert any(any(row["advantages"]) for row in rollouts)


def test_loss(edited, tiny, tmp_path):
    """The edit takes effect, and a line says which accelerator was set aside."""
    options = ["--mu", "2", "--clip_high", "0.01"]
    unedited, before, _ = train(ROOT, tiny, tmp_path / "before", *options)
    text, after, _ = train(edited("A loss"), tiny, tmp_path / "run", *options)
    assert before[0]["reward"] == after[0]["reward"]
    assert before[0]["loss"] != after[0]["loss"]
    assert "kernels.head_loss" in unedited
    assert "train_grpo.grpo_loss was edited" in text


def test_benchmark(edited, tmp_path):
    folder = edited("A benchmark")
    path = tmp_path / "data" / "word-problems" / "SVAMP.json"
    path.parent.mkdir(parents=True)
    row = {"ID": "1", "Body": "Tom has 3 pens", "Question": "How many pens has he?", "Answer": 3.0}
    path.write_text(json.dumps([row]))
    text = run(folder, "-m", "data.problems.benchmarks", "--data", str(tmp_path / "data"))
    (line,) = [line for line in text.splitlines() if line.startswith("svamp")]
    assert line.split()[:4] == ["svamp", "1000", "1", "0"]
    assert "svamp" in run(folder, "-m", "data.problems.benchmarks", "--help") + line


def test_accelerator(edited, tiny, tmp_path):
    """It is recorded, and a run uses it."""
    folder = edited("An accelerator")
    run(folder, "-m", "kernels", "--numbers")
    assert "kernels.lean_swiglu.swiglu" in (folder / "kernels" / "fingerprints.json").read_text()
    text, _, _ = train(folder, tiny, tmp_path / "run")
    assert "kernels.lean_swiglu" in text
