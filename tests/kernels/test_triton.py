"""The Triton kernels: compiled where there is a GPU, elsewhere in Triton's interpreter.

The interpreter is chosen by an environment variable that must be set before triton is first imported, and the other
tests of this process may have imported it, or want it without: hence a child process.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def test_kernels_in_a_process_of_their_own():
    pytest.importorskip("triton")
    here = Path(__file__).parent
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", here / "triton_cases.py"],
        cwd=here.parents[1],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            **({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}),
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    assert int(re.search(r"(\d+) passed", child.stdout)[1]) >= 70, child.stdout


def test_without_triton():
    """As on a platform that has no Triton: everything imports, and nothing of it is used."""
    program = """
import sys
sys.modules["triton"] = None
import torch, train_grpo, kernels
from presets import preset
choice = kernels.use("fast", kernels.Setting(preset("1m", 300)))
assert not choice.set_aside, choice
assert not [name for names in choice.in_use.values() for name in names if "triton" in name]
"""
    child = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert child.returncode == 0, child.stderr
