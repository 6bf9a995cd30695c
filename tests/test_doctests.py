"""The worked examples in docstrings are right: every module that has `>>>` runs its examples."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("", "data", "evaluation", "runtime", "kernels", "tools")


def modules_with_examples() -> list[str]:
    names = []
    for folder in FOLDERS:
        pattern = "**/*.py" if folder else "*.py"
        for path in sorted((ROOT / folder).glob(pattern)):
            if ">>> " in path.read_text(encoding="utf-8"):
                names.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0
