"""Processes, seeds, and two processes against one."""

import functools
import json
import signal

import pytest
import torch
from toy import SHAPE, edit, lines, run_toy, start, toy_gradient

from data.io import InputError
from model import Transformer
from presets import preset
from runtime import distributed
from runtime.checkpoint import Checkpoints
from runtime.distributed import World, seeded, setup, use_kernels
from runtime.optim import adamw, clip_grad_norm


def test_seeds_are_stable_and_differ():
    assert seeded(0, "rollout", 3) == seeded(0, "rollout", 3)
    keys = [
        (0, "a", 1),
        (0, "a", 11),
        (0, "a1", 1),
        (1, "a", 1),
        (0, "b", 1),
        (0, "a", 1, 1),
        ("0", "a", 1),
    ]
    assert len({seeded(*key) for key in keys}) == len(keys)
    assert all(0 <= seeded(i) < 2**63 for i in range(1000))
    assert seeded("x") == 0x099D343026BB7CFD  # the same on every machine, for ever
    assert torch.equal(
        torch.rand(3, generator=distributed.generator("x")),
        torch.rand(3, generator=distributed.generator("x")),
    )


def test_device_errors(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda: PyTorch finds no GPU"):
        setup("cuda")
    assert setup("auto") == World()


def test_an_accelerator_set_aside_on_one_process_is_set_aside_on_all(capsys):
    name = "kernels.cpu.attention.attention"

    class OtherFails(World):
        def all_gather_objects(self, value):
            return [value, {name: "it fails on the other process"}]

    alone, world = World(), OtherFails(size=2)
    shape = preset("1m", 300)
    use_kernels(shape, alone)
    use_kernels(shape, world)
    assert name in alone.accelerators["model.attention"]
    assert name not in world.accelerators["model.attention"]
    assert "it fails on the other process" in capsys.readouterr().err
    plain = World(kernels="plain")
    use_kernels(shape, plain)
    assert plain.accelerators == {}


def test_two_processes(uninterrupted, tmp_path):
    """Gradients are those of one process; a signal to one stops both at one step; one process takes the run over."""
    words = f"--kill_at 4 --kill_with {int(signal.SIGTERM)} --kill_rank 1".split()
    process = start("--to", tmp_path, *words, processes=2)
    output, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and "SIGTERM: saved" in errors, errors
    assert errors.count("SIGTERM: saved") == 1 and output.count("step 1/12") == 1

    # Gradients, their norm, and the weights after a step.
    close = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
    grads, norm, clipped, weights = torch.load(tmp_path / "grads.pt")
    model, world = Transformer(SHAPE).double(), World()
    toy_gradient(model, world, 1)
    toy_gradient(model, world, 2)
    for name, parameter in model.named_parameters():
        close(grads[name], parameter.grad)
    assert norm == pytest.approx(clip_grad_norm(model, 0.1), rel=1e-10) and norm > 0.1
    adamw(model, 0.05).step()
    for name, parameter in model.named_parameters():
        close(clipped[name], parameter.grad)
        close(weights[name], parameter.detach())

    # One process continues the run of two.
    assert len(lines(tmp_path)) == 4
    assert Checkpoints(tmp_path).complete()[-1].name == "step_000004"
    edit(tmp_path / "config.toml", "kill_at = 4", "kill_at = 0")
    edit(tmp_path / "config.toml", "kill_with = 15", f"kill_with = {int(signal.SIGKILL)}")
    edit(tmp_path / "config.toml", "kill_rank = 1", "kill_rank = 0")
    run_toy(tmp_path)
    for line, whole in zip(lines(tmp_path), lines(uninterrupted), strict=True):
        assert json.loads(line) == pytest.approx(json.loads(whole), rel=1e-8)
