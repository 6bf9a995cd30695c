"""What pyproject.toml, requirements.txt and the workflow declare is what the code needs."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ("runtime", "kernels", "data", "evaluation", "tools", "experiments", "bench")
# An import and the package that brings it, where the names differ.
PACKAGES = {
    "distributed": "dask",
    "fasttext": "fasttext-wheel",
    "math_verify": "math-verify",
    "llama_cpp": "llama-cpp-python",
}
# The peers' own environment brings the first two, the comparison on a GPU the last; sympy brings mpmath.
ELSEWHERE = {"liger_kernel", "mpmath"}


def requirement_names(lines: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9_-]+", line)[0].lower() for line in lines}


def third_party(path: Path) -> set[str]:
    """Top-level names of what a file imports that are neither Python's nor ours."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    folder = {file.stem for file in path.parent.glob("*.py")}
    ours = {file.stem for file in ROOT.glob("*.py")} | set(ROOMS) | {"tests"}
    return names - set(sys.stdlib_module_names) - ours - folder


def test_modules_and_packages_are_declared():
    declared = PROJECT["tool"]["setuptools"]
    assert declared["py-modules"] == sorted(path.stem for path in ROOT.glob("*.py"))
    assert declared["packages"]["find"]["include"] == [f"{room}*" for room in ROOMS]
    with_code = {path.parent.relative_to(ROOT).parts[0] for path in ROOT.glob("[a-z]*/*.py")}
    assert with_code == {*ROOMS, "tests"}
    kinds = set(declared["package-data"]["*"])
    for room in ROOMS[:-1]:
        files = [path for path in (ROOT / room).rglob("*") if path.is_file()]
        suffixes = {f"*{path.suffix}" for path in files} - {"*.py", "*.pyc", "*.pyi"}
        assert suffixes <= kinds, room


def test_every_import_is_declared():
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    everywhere = requirement_names(project["dependencies"])
    optional = requirement_names([line for lines in extras.values() for line in lines])
    files = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
    for path in files:
        for name in third_party(path) - ELSEWHERE:
            assert PACKAGES.get(name, name) in everywhere | optional, f"{path}: {name}"
    pinned = requirement_names(
        re.findall(r"^[a-z].*", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    )
    extras_pinned = requirement_names(extras["mine"] + extras["cluster"] + extras["dev"])
    assert pinned == everywhere | extras_pinned


@pytest.mark.parametrize(
    "missing, command, words",
    [
        (
            ["resiliparse"],
            "from data.mine.html_text import html_text; html_text(b'<p>x</p>')",
            "pip install fastwarc resiliparse",
        ),
        (
            ["distributed", "dask"],
            "from data.mine.run import executor\nwith executor('dask://127.0.0.1:1', 1): pass",
            "dask[distributed]",
        ),
        (
            ["matplotlib"],
            "from pathlib import Path\n"
            "from experiments.common import canvas\n"
            "with canvas(Path('a.png')): pass",
            "matplotlib",
        ),
    ],
    ids=["mine", "cluster", "plot"],
)
def test_a_missing_extra_is_one_line(missing, command, words):
    """The line names the command that installs what is missing."""
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({missing!r}))\n"
        "from data.io import InputError\n"
        f"try:\n    exec({command!r})\n"
        "except InputError as error:\n    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()
    assert "pip install" in line and words in line


def test_installed_definitions_are_ours(monkeypatch):
    """Beside other packages in site-packages our files are still ours, and get fingerprints."""
    fingerprint = importlib.import_module("kernels.fingerprint")
    monkeypatch.setattr(fingerprint, "LIBRARIES", (str(ROOT),))
    is_library = fingerprint._is_library_file.__wrapped__
    ours = [*PROJECT["tool"]["setuptools"]["py-modules"], "data/prompts", "runtime/optim"]
    assert not any(is_library(str(ROOT / f"{name}.py")) for name in ours)
    assert is_library(str(ROOT / "numpy" / "__init__.py")) and is_library(str(ROOT / "datasets.py"))


def test_make_help_lists_every_target():
    run = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    listed = [line.split()[0] for line in run.stdout.splitlines()[1:]]
    assert listed == targets
    assert all(len(line) <= 100 for line in run.stdout.splitlines())


def test_workflow_runs_the_declared_pythons():
    text = (ROOT / ".github/workflows/test.yml").read_text()
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    versions = re.findall(r'"(3\.\d+)"', text)
    assert versions[0] == oldest and len(versions) >= 4
    assert "make test" in text and "ubuntu" in text and "macos" in text
