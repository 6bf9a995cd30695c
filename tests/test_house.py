"""Limits of the code base: which files stand at the root, who imports whom, how long the path of a reader is."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not any(part.startswith(".") or part == "runs" for part in path.relative_to(ROOT).parts)
)
OURS = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
MODULES = {name.removesuffix(".__init__"): path for path, name in OURS.items()}
TRAINERS = ["pretrain", "sft", "reward", "grpo", "dpo", "ppo"]
READING_PATH = [
    "train_grpo.py",
    "rollout.py",
    "reward.py",
    "generate.py",
    "batch.py",
    "model.py",
    "data/prompts.py",
]
COMMANDS = [
    *(f"train_{name}" for name in TRAINERS),
    "rollout",
    "generate",
    "eval",
    "evaluation.audit",
    "tools.plan",
    "tools.pipeline",
    "data.mine",
    "data.train_tokenizer",
    "data.shards",
    "data.download",
    "data.problems.training_sets",
    "data.problems.benchmarks",
    "data.problems.contamination",
    "data.world.synthetic",
    "data.world.web",
    "kernels",
    "experiments.figure3",
    "experiments.figure5",
    "experiments.figure6",
    "experiments.figure7",
    "experiments.best_of_n",
    "experiments.hacking",
    "experiments.cost",
]


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Modules of ours that a file imports; without `everywhere` those that importing the file loads."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in members if name in MODULES} or {node.module}
    return {name for name in found if name in MODULES}


def graph() -> dict[str, set[str]]:
    """Who imports whom, imports inside functions included; tests left out."""
    names = [name for name in MODULES if not name.startswith(("tests", "conftest"))]
    return {name: imports(MODULES[name]) - {name} for name in names}


def test_root_files():
    names = [path.name for path in ROOT.glob("*.py")]
    assert len(names) <= 13, names
    data = {path.name for path in (ROOT / "data").glob("*.py")}
    assert data == {
        "__init__.py",
        "chat.py",
        "download.py",
        "io.py",
        "jinja.py",
        "prompts.py",
        "rows.py",
        "shards.py",
        "tokenizer.py",
        "train_tokenizer.py",
    }


def test_no_import_circle():
    edges = graph()
    state: dict[str, int] = {}  # 1: on the path, 2: done

    def visit(name: str, path: list[str]) -> None:
        if state.get(name) == 1:
            pytest.fail(f"an import circle: {' -> '.join([*path[path.index(name) :], name])}")
        if name not in state:
            state[name] = 1
            for other in sorted(edges.get(name, ())):
                visit(other, [*path, name])
            state[name] = 2

    for name in edges:
        visit(name, [])


@pytest.mark.parametrize(
    ("room", "never"),
    [
        ("runtime", ("train_", "eval", "evaluation", "tools", "experiments", "rollout", "reward")),
        ("data", ("train_", "eval", "evaluation", "tools", "experiments", "model", "rollout")),
        ("train_", ("eval", "evaluation", "tools", "experiments", "bench")),
        ("rollout", ("train_", "eval", "evaluation", "tools", "experiments", "bench")),
        ("reward", ("train_", "rollout", "eval", "evaluation", "tools", "experiments")),
        ("generate", ("train_", "rollout", "reward", "eval", "evaluation", "tools")),
        ("batch", ("train_", "rollout", "reward", "generate", "eval", "evaluation", "tools")),
        ("model", ("train_", "rollout", "reward", "generate", "batch", "eval", "evaluation")),
        ("evaluation", ("train_", "eval", "tools", "experiments", "bench")),
    ],
)
def test_imports_run_one_way(room, never):
    """train_ means any trainer; other names mean that file or a file of that folder."""

    def belongs(name: str, place: str) -> bool:
        return name.startswith(place) if place.endswith("_") else name.split(".")[0] == place

    for name, others in graph().items():
        if belongs(name, room):
            wrong = [other for other in others if any(belongs(other, place) for place in never)]
            assert not wrong, f"{name} imports {wrong}"


def loaded(name: str) -> list[str]:
    """The modules of ours that `import name` loads."""
    program = f"import sys, {name}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [module for module in done.stdout.split() if module in MODULES]


def test_a_trainer_loads_little():
    modules = loaded("train_pretrain")
    assert len(modules) <= 20, modules


@pytest.mark.parametrize("name", COMMANDS[:9])
def test_threads_sleep_while_they_wait(name):
    """OpenMP reads how threads wait when torch is loaded: it must have been said by then."""
    program = f"""
import os, sys

class Finder:
    def find_spec(name, *_):
        if name == "torch":
            sys.exit(os.environ.get("OMP_WAIT_POLICY", "nothing"))

sys.meta_path.insert(0, Finder)
import {name}
"""
    given = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=given, capture_output=True, text=True
    )
    assert done.stderr.split() == ["passive"]


def test_reading_path():
    """A step of GRPO is read in seven files."""
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in READING_PATH}
    assert sum(lines.values()) <= 2300, lines
    assert lines["train_grpo.py"] <= 450


def test_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1500, len(text.split())


def test_grpo_has_few_options():
    import dataclasses

    import train_grpo

    assert len(dataclasses.fields(train_grpo.Config)) <= 40


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.parent == ROOT], ids=lambda p: p.name
)
def test_root_files_are_readable(path):
    """At most seven arguments; no comprehension with two loops in a trainer."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            count = len(node.args.args) + len(node.args.kwonlyargs)
            count -= bool(node.args.args) and node.args.args[0].arg in ("self", "cls")
            assert count <= 7, f"{path.name}: {node.name} has {count} arguments"


def test_grpo_is_not_dense():
    """At most 9 tokens a line of code on average."""
    import io
    import tokenize

    text = (ROOT / "train_grpo.py").read_text(encoding="utf-8")
    tree, skipped = ast.parse(text), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(
            node
        ):
            skipped |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    layout = {
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
        tokenize.COMMENT,
    }
    tokens, lines = 0, set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout and token.start[0] not in skipped:
            tokens += 1
            lines |= set(range(token.start[0], token.end[0] + 1))
    assert tokens / len(lines) <= 9


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name):
    """Every command explains itself, and says how it is called today."""
    done = subprocess.run(
        [sys.executable, "-m", name, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 10
    for program in re.findall(r"python (?:-m )?([\w./]+)", done.stdout):
        module = program.removesuffix(".py").replace("/", ".")
        assert module in MODULES, f"{name} --help names {program}, which is not there"


def test_tests_mirror_the_tree():
    """A test file in a folder belongs to a file of that room."""
    rooms = {
        path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")
    }
    for room in rooms:
        assert (ROOT / room).is_dir(), f"tests/{room} has no room"
