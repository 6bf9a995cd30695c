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


def test_weights_are_stored_once(tmp_path, monkeypatch):
    """Also a checkpoint with weights in trainer/ resumes: of an earlier version, or of a model in bfloat16."""
    model, again = Transformer(SHAPE, seed=1), Transformer(SHAPE, seed=2)
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(World, "dtype", dtype)
        path = tmp_path / str(dtype)
        Checkpoints(tmp_path).write(path, model, ToyTokenizer(), state={})
        trainer = (path / "trainer").glob("*.distcp")
        sizes[dtype] = sum(file.stat().st_size for file in trainer)
        Checkpoints(tmp_path).read(path, again)
        for name, weight in again.state_dict().items():
            assert torch.equal(weight, model.state_dict()[name])
        again.initialize(seed=3)
    weights = sum(4 * p.numel() for p in model.parameters())
    assert sizes[torch.float32] < weights / 2 < weights < sizes[torch.bfloat16]
