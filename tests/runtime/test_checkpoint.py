"""Checkpoints: order, damage, and the references of outer iterations."""

import pytest
import torch
from toy import SHAPE, ToyConfig, ToyTokenizer, run_toy

from data.io import InputError
from model import Transformer
from runtime.checkpoint import Checkpoints
from runtime.distributed import World
from runtime.run import Run


def test_damaged_checkpoint_is_named(tmp_path):
    run_toy(tmp_path, "--steps", "3")
    next((tmp_path / "step_000003" / "trainer").glob("*.distcp")).unlink()
    with pytest.raises(
        InputError, match="step_000003: not resumable .*; remove it to continue from the one before"
    ):
        run_toy(tmp_path, "--steps", "4")


def test_checkpoints_are_ordered_by_number(tmp_path):
    for name in ("step_999999", "step_1000000", "step_000001", ".step_2000000.tmp", "step_x"):
        (tmp_path / name).mkdir()
    assert [p.name for p in Checkpoints(tmp_path).complete()] == [
        "step_000001",
        "step_999999",
        "step_1000000",
    ]


def test_reference_is_kept_exactly(tmp_path):
    run = Run(ToyConfig(to=str(tmp_path)), World())
    models = [Transformer(SHAPE, seed) for seed in range(4)]
    for iteration in (1, 2, 3):
        run.save_reference(iteration, models[iteration], ToyTokenizer())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reference_2", "reference_3"]
    run.load_reference(2, models[0])
    for name, weight in models[0].state_dict().items():
        assert torch.equal(weight, models[2].state_dict()[name])
