"""Sharding, checkpoints, metrics and interruption, on a transformer small enough to train in a blink."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from data.io import InputError
from model import ModelConfig, Transformer
from runtime import distributed
from runtime.checkpoint import Checkpoints
from runtime.distributed import World, gather_into, seeded, setup, shard
from runtime.optim import (
    adamw,
    clip_grad_norm,
    lr_constant,
    lr_linear_decay,
    lr_multistep,
    mfu,
    peak_flops,
)
from runtime.options import option, parse
from runtime.run import Interrupt, Metrics, Run
from runtime.run import command as run_program

ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------------------------------------------------------------
# A toy trainer. This file is also the program that the tests start in processes of their own.


# Uneven sizes: 5 and 7 do not divide by two processes. The head is used outside forward.
SHAPE = ModelConfig(
    7, width=5, layers=2, heads=1, kv_heads=1, ffn=7, head_width=2, qkv_bias=True, family="qwen2"
)


class ToyTokenizer:
    def save(self, directory):
        (Path(directory) / "tokenizer.json").write_text("{}")


@dataclass
class ToyConfig:
    to: str = option("", "run directory")
    steps: int = option(12, "steps")
    lr: float = option(0.05, "learning rate")
    save_every: int = option(3, "steps between checkpoints")
    keep: int = option(2, "checkpoints kept")
    # for the tests
    kill_at: int = option(0, "the step that ends in `kill_with`")
    kill_with: int = option(int(signal.SIGKILL), "signal")
    kill_rank: int = option(0, "the process that receives it")
    fail: bool = option(False, "raise an InputError")
    device: str = option("cpu", "auto, cpu or cuda")


def toy_batch(step: int):
    generator = distributed.generator("batch", step)
    ids = torch.randint(0, 7, (8, 4), generator=generator)
    return ids, (3 * ids + 1) % 7


def toy_gradient(model, world, step: int) -> float:
    """Half of the batch on each of two processes, all of it on one; divided by the global count."""
    ids, targets = (part[world.rank :: world.size] for part in toy_batch(step))
    loss = (
        F.cross_entropy(model.logits(model(ids)).flatten(0, 1), targets.flatten(), reduction="sum")
        / 32
    )
    loss.backward()
    return world.all_sum(loss.item())


def toy_main(config: ToyConfig) -> None:
    world = setup(config.device)
    run = Run(config, world)
    if config.fail:
        raise InputError("data.jsonl:3: no answer")
    model = shard(Transformer(SHAPE), world)
    optimizer = adamw(model, config.lr)
    start, state = run.resume(model, optimizer)
    noise = torch.Generator()
    noise.set_state(state["noise"]) if state else noise.manual_seed(1)
    for step in range(start + 1, config.steps + 1):
        loss = toy_gradient(model, world, step)
        norm = clip_grad_norm(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] *= 0.98  # state that is not a tensor
        if step == config.kill_at and world.rank == config.kill_rank:
            os.kill(os.getpid(), config.kill_with)
        run.log(
            step,
            {"loss": loss, "norm": norm, "draw": torch.rand((), generator=noise).item()},
            {"seconds": 0.5},
        )
        run.checkpoint(step, model, ToyTokenizer(), optimizer, {"noise": noise.get_state()})
    run.finish(model, ToyTokenizer(), {"toy": True})


def grads_main(config: ToyConfig) -> None:
    """Two processes: gradients, clipping and gathering, saved by the first for comparison with one process."""
    world = setup("cpu")
    assert (world.size, world.all_sum(world.rank + 1), world.all_gather_objects(world.rank)) == (
        2,
        3.0,
        [0, 1],
    )
    assert world.broadcast_object({"from": world.rank}) == {"from": 0}
    plain = Transformer(SHAPE)
    target = Transformer(SHAPE)
    model = shard(plain, world)
    with torch.no_grad():
        model(toy_batch(0)[0])  # leaves the root whole, as a validation loss does
    toy_gradient(model, world, 1)
    toy_gradient(model, world, 2)  # a second micro-batch adds up
    grads = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    norm = clip_grad_norm(model, 0.1)
    clipped = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    optimizer = adamw(model, 0.05)
    optimizer.step()
    with torch.no_grad():
        model(toy_batch(0)[0])
    gather_into(model, target)
    mine = [weight.tolist() for weight in target.state_dict().values()]
    assert world.all_gather_objects(mine) == [mine, mine]
    if world.is_main:
        torch.save((grads, norm, clipped, target.state_dict()), Path(config.to) / "grads.pt")


def both_main(config: ToyConfig) -> None:
    """All that two processes have to show, in one start: they cost seconds. Rank 1 alone receives the signal."""
    grads_main(config)
    toy_main(config)


def start(*arguments, processes: int = 1) -> subprocess.Popen:
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        if processes > 1
        else []
    )
    command = [sys.executable, *launcher, __file__, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


def run_toy(to, *arguments) -> None:
    toy_main(parse(ToyConfig, ["--to", str(to), *arguments]))


def lines(directory, name="metrics") -> list[str]:
    path = Path(directory) / f"{name}.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "run"
    run_toy(directory)
    return directory


# ---------------------------------------------------------------------------------------------------------------------
# Schedules, optimizer, seeds, speed


def test_multistep_schedule():
    rates = {step: lr_multistep(step, 4, 100) for step in (1, 2, 4, 5, 80, 81, 90, 91, 100)}
    assert rates == {1: 0.25, 2: 0.5, 4: 1, 5: 1, 80: 1, 81: 0.316, 90: 0.316, 91: 0.1, 100: 0.1}
    assert [lr_multistep(step, 0, 10) for step in (1, 8, 9, 10)] == [1, 1, 0.316, 0.1]


def test_other_schedules():
    assert [lr_constant(step, 2) for step in (1, 2, 3)] == [
        0.5,
        1,
        1,
    ] and lr_constant(1, 0) == 1
    # The last fifth of 100 steps falls from 1 to 0.1: half-way, at step 90, 0.55.
    rates = [lr_linear_decay(step, 10, 100, 0.2) for step in (5, 10, 80, 90, 100)]
    assert rates == pytest.approx([0.5, 1, 1, 0.55, 0.1])
    assert lr_linear_decay(100, 0, 100, 0.0) == 1


def test_weight_decay_on_matrices_only():
    model = Transformer(SHAPE)
    optimizer = adamw(model, 0.1, weight_decay=0.5)
    decayed, plain = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    vectors = {id(p) for n, p in model.named_parameters() if n.endswith(("norm.weight", "bias"))}
    assert plain == vectors and decayed == {id(p) for p in model.parameters()} - vectors


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


def test_mfu():
    world = World(size=2)
    peak = peak_flops(world.device)
    assert 1e8 < peak < 1e15 and peak_flops(world.device) == peak
    assert mfu(peak, world) == 0.5


def test_clip_grad_norm():
    model = Transformer(SHAPE)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.head.weight.grad[0, :2] = torch.tensor([3.0, 4.0])
    assert clip_grad_norm(model, 10.0) == 5 and model.head.weight.grad[0, 1] == 4
    assert clip_grad_norm(model, 1.0) == 5
    assert model.head.weight.grad[0, :2].tolist() == pytest.approx([0.6, 0.8])
    model.head.weight.grad[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="nan"):
        clip_grad_norm(model, 1.0)


def test_device_errors(monkeypatch):
    with pytest.raises(InputError, match="--device gpu: unknown"):
        setup("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda: PyTorch finds no GPU"):
        setup("cuda")
    assert setup("auto") == World()


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints and metrics


def test_a_run_writes_its_files(uninterrupted):
    names = sorted(path.name for path in uninterrupted.iterdir())
    files = "config.toml metrics.jsonl model step_000009 step_000012 summary.json timing.jsonl"
    assert names == files.split()
    assert parse(ToyConfig, ["--config", str(uninterrupted / "config.toml")]) == ToyConfig(
        to=str(uninterrupted)
    )
    assert [json.loads(line)["step"] for line in lines(uninterrupted)] == list(range(1, 13))
    assert lines(uninterrupted, "timing")[0] == '{"step": 1, "seconds": 0.5}'
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert summary == {
        "steps": 12,
        "seconds": 6.0,
        "metrics": json.loads(lines(uninterrupted)[-1]),
        "toy": True,
    }
    files = "config.json generation_config.json model.safetensors tokenizer.json"
    assert sorted(path.name for path in (uninterrupted / "model").iterdir()) == files.split()
    losses = [json.loads(line)["loss"] for line in lines(uninterrupted)]
    assert losses[-1] < losses[0]


def same_weights(first, second) -> bool:
    first, second = (load_file(path / "model" / "model.safetensors") for path in (first, second))
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


@pytest.mark.parametrize(
    "step", [1, 8]
)  # before the first line is written, and between two checkpoints
def test_killed_run_continues_bit_for_bit(uninterrupted, tmp_path, step):
    process = start("--to", tmp_path, "--kill_at", step)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    assert len(lines(tmp_path)) == step - 1 and not (tmp_path / "model").exists()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": ')  # killed while writing
    (tmp_path / ".step_000012.tmp").mkdir()
    edit(
        tmp_path / "config.toml", f"kill_at = {step}", "kill_at = 0"
    )  # its only difference from the whole run
    run_toy(tmp_path)
    assert lines(tmp_path) == lines(uninterrupted)
    assert same_weights(tmp_path, uninterrupted)
    assert not list(tmp_path.glob(".*"))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_and_exits(uninterrupted, tmp_path, monkeypatch, capsys, signum, code):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    options = ["--to", str(tmp_path), "--kill_at", "4", "--kill_with", str(int(signum))]
    monkeypatch.setattr(sys, "argv", ["toy", *options])
    with pytest.raises(SystemExit) as stop:
        run_program(toy_main, ToyConfig)
    assert stop.value.code == code
    said = capsys.readouterr().err
    assert (
        said
        == f"{signum.name}: saved {tmp_path}/step_000004; the same command continues from there\n"
    )
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    run_program(toy_main, ToyConfig)  # the same command
    assert lines(tmp_path) == lines(uninterrupted) and same_weights(tmp_path, uninterrupted)


@pytest.fixture
def heeded():
    """SIGINT as Python handles it, whatever started the tests: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_second_signal_stops_at_once(monkeypatch, heeded):
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun's echo of the first
        assert interrupt.requested(World()) == signal.SIGINT
        later = time.monotonic() + 5
        monkeypatch.setattr(time, "monotonic", lambda: later)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_input_error_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["toy", "--to", str(tmp_path), "--fail", "true"])
    with pytest.raises(SystemExit) as stop:
        run_program(toy_main, ToyConfig)
    assert stop.value.code == 2 and capsys.readouterr().err == "error: data.jsonl:3: no answer\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit):
        run_program(toy_main, ToyConfig)
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.iterdir())  # the corrected command is not refused


def test_other_options_are_refused(uninterrupted, tmp_path):
    with pytest.raises(InputError) as error:
        run_toy(uninterrupted, "--lr", "0.1")
    change = "lr was 0.05, now 0.1; give the same value, or another --to"
    assert str(error.value) == f"{uninterrupted}/config.toml: {change}"
    with pytest.raises(InputError, match="steps was 12, now 11"):
        run_toy(uninterrupted, "--steps", "11")
    run_toy(tmp_path, "--steps", "3")
    run_toy(tmp_path, "--steps", "12", "--keep", "1", "--save_every", "4")
    assert lines(tmp_path) == lines(uninterrupted)
    assert [path.name for path in Checkpoints(tmp_path).complete()] == ["step_000012"]
    assert "steps = 12\n" in (tmp_path / "config.toml").read_text()


def test_options_may_change_before_the_first_checkpoint(tmp_path):
    tmp_path.joinpath("config.toml").write_text("lr = 0.1\n")
    tmp_path.joinpath("metrics.jsonl").write_text('{"step": 1, "loss": 9}\n')
    run_toy(tmp_path, "--steps", "1")
    assert len(lines(tmp_path)) == 1 and json.loads(lines(tmp_path)[0])["loss"] != 9


def test_damaged_checkpoint_is_named(tmp_path):
    run_toy(tmp_path, "--steps", "3")
    next((tmp_path / "step_000003" / "trainer").glob("*.distcp")).unlink()
    with pytest.raises(
        InputError, match="step_000003: not resumable .*; remove it to go on from the one before"
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


def test_metrics_truncate(tmp_path, capsys):
    metrics = Metrics(tmp_path, World(), 3)
    for step in range(4):
        metrics.write(step, {"loss": step / 3, "nested": {"a": 1}}, {"seconds": 1.0})
    assert "step 3/3  loss 1  | 0:00:00 left" in capsys.readouterr().out
    before = lines(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    metrics.truncate(2)
    assert lines(tmp_path) == before[:3] and len(lines(tmp_path, "timing")) == 3
    metrics.truncate(-1)
    assert lines(tmp_path) == []
    Metrics(tmp_path / "other", World(rank=1, size=2), 3).write(1, {}, {})
    assert not (tmp_path / "other").exists()


def test_reference_is_kept_exactly(tmp_path):
    run = Run(ToyConfig(to=str(tmp_path)), World())
    models = [Transformer(SHAPE, seed) for seed in range(4)]
    for iteration in (1, 2, 3):
        run.save_reference(iteration, models[iteration], ToyTokenizer())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reference_2", "reference_3"]
    run.load_reference(2, models[0])
    for name, weight in models[0].state_dict().items():
        assert torch.equal(weight, models[2].state_dict()[name])


# ---------------------------------------------------------------------------------------------------------------------
# Two processes


def test_two_processes(uninterrupted, tmp_path):
    """Gradients equal one process's; a signal to one stops both at one step; one process takes the run over."""
    process = start(
        "--to",
        tmp_path,
        "--kill_at",
        4,
        "--kill_with",
        int(signal.SIGTERM),
        "--kill_rank",
        1,
        processes=2,
    )
    output, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and "SIGTERM: saved" in errors, errors
    assert errors.count("SIGTERM: saved") == 1 and output.count("step 1/12") == 1

    grads, norm, clipped, weights = torch.load(tmp_path / "grads.pt")
    model, world = Transformer(SHAPE), World()
    toy_gradient(model, world, 1)
    toy_gradient(model, world, 2)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-5, atol=1e-7)
    assert norm == pytest.approx(clip_grad_norm(model, 0.1), rel=1e-5) and norm > 0.1
    adamw(model, 0.05).step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(clipped[name], parameter.grad, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(weights[name], parameter.detach(), rtol=1e-4, atol=1e-6)

    assert (
        len(lines(tmp_path)) == 4
        and [p.name for p in Checkpoints(tmp_path).complete()][-1] == "step_000004"
    )
    edit(tmp_path / "config.toml", "kill_at = 4", "kill_at = 0")
    edit(tmp_path / "config.toml", "kill_with = 15", f"kill_with = {int(signal.SIGKILL)}")
    edit(tmp_path / "config.toml", "kill_rank = 1", "kill_rank = 0")
    run_toy(tmp_path)
    for line, whole in zip(lines(tmp_path), lines(uninterrupted), strict=True):
        assert json.loads(line) == pytest.approx(
            json.loads(whole), rel=5e-4
        )  # rounding, grown by steps of rate 0.05


if __name__ == "__main__":
    run_program(both_main if "RANK" in os.environ else toy_main, ToyConfig)
