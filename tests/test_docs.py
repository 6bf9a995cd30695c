"""The documents say what is there: links, files, commands, options, examples and printed outputs.

python tests/test_docs.py      writes the outputs of the commands into the documents again
"""

import doctest
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from runtime.options import parse

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
BLOCK = re.compile(r"(?ms)^```\w*\n(.*?)^```$")
# `<!-- output: COMMAND -->` stands over the block of what the command prints.
OUTPUT = re.compile(r"(?ms)^<!-- output: (.*?) -->\n```\n(.*?)^```$")
# A command of a program whose options are a dataclass named Config.
COMMAND = re.compile(r"^ *(?:python|torchrun)? ?.*?((?:train_\w+|rollout|eval)\.py)( --.+)$")


def documented_commands() -> list[tuple[str, str]]:
    """(program, options) of every command line of a trainer, rollout.py or eval.py in a block."""
    found = []
    for page in PAGES:
        for block in BLOCK.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                if match := COMMAND.match(line):
                    found.append((match[1], match[2].split("#")[0]))
    return found


def heading_ids(text: str) -> set[str]:
    """The anchors that GitHub makes of headings."""
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            assert anchor in heading_ids(path.read_text()), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_named_files_exist(page):
    """Paths of this repository and modules after `python -m`. The changelog names old ones."""
    text = "" if page.name == "CHANGELOG.md" else page.read_text()
    folders = "data|kernels|runtime|evaluation|tools|experiments|bench|configs|tests|docs"
    for name in re.findall(rf"(?<![\w/.])((?:{folders})/[\w./]+\.\w+)", text):
        assert (ROOT / name).exists() or (page.parent / name).exists() or "/N." in name, name
    for name in re.findall(r"`(\w+\.py)`", text):
        assert list(ROOT.rglob(name)), name
    for name in re.findall(
        r"python -m ((?:data|evaluation|tools|experiments|kernels)[\w.]*)", text
    ):
        path = ROOT / name.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


@pytest.mark.parametrize("program, text", documented_commands())
def test_documented_options_exist(program, text, monkeypatch):
    """Every option of a documented command is one of the program's, with a value that it takes."""
    module = importlib.import_module(program.removesuffix(".py"))
    monkeypatch.chdir(ROOT)
    parse(module.Config, shlex.split(text))


def test_examples_print_what_they_say():
    text = (ROOT / "docs" / "lesson.md").read_text()
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    blocks = "\n".join(block for block in BLOCK.findall(text) if ">>>" in block)
    test = parser.get_doctest(blocks, {}, "lesson.md", "lesson.md", 0)
    assert len(test.examples) > 10
    runner.run(test)
    assert not runner.failures


def test_lines_that_the_exercises_change_are_there():
    code = (ROOT / "train_grpo.py").read_text()
    for line in (
        "rewards.double()",
        "advantage = advantage.where(highest > lowest, 0)",
        "lengths.clamp(min=1)",
        "objective = torch.minimum(ratio * advantage, clipped * advantage)",
    ):
        assert code.count(line) == 1, line


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_named_functions_exist(page):
    """`train_grpo.grpo_loss` and the like."""
    for module, name in re.findall(
        r"`(train_\w+|batch|model|reward|rollout)\.(\w+)`", page.read_text()
    ):
        assert name == "py" or hasattr(importlib.import_module(module), name), f"{module}.{name}"


def printed(command: str) -> str:
    words = shlex.split(command)
    assert words[0] == "python"
    run = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    return run.stdout


def test_pasted_outputs_are_those_of_the_commands():
    """After a change that is meant: python tests/test_docs.py."""
    found = [pair for page in PAGES for pair in OUTPUT.findall(page.read_text())]
    assert found
    for command, text in found:
        assert printed(command) == text, command


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1500


def test_reading_path_is_there():
    """The seven files of the README's table exist, in this order."""
    rows = re.findall(r"(?m)^\| (\d) \| `([\w/.]+)`", (ROOT / "README.md").read_text())
    assert [number for number, _ in rows] == list("1234567")
    assert all((ROOT / file).exists() for _, file in rows)


if __name__ == "__main__":
    for page in PAGES:
        old = page.read_text()
        new = OUTPUT.sub(
            lambda match: f"<!-- output: {match[1]} -->\n```\n{printed(match[1])}```", old
        )
        if new != old:
            page.write_text(new)
            print(f"{page.relative_to(ROOT)}: written")
