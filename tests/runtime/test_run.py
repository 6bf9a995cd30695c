"""The directory of a run: its files, options, metrics and signals; a run that was stopped goes on."""

import dataclasses
import json
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from runtime.options import option, parse, to_toml

import pytest
import torch
import torch.distributed as dist
import training
from safetensors.torch import load_file
from toy import SHAPE, ToyConfig, edit, lines, run_toy, start, toy_main

import runtime.distributed
import runtime.run
from data.io import InputError
from model import Transformer
from runtime.checkpoint import Checkpoints
from runtime.distributed import World
from runtime.optim import Work, learning_bytes
from runtime.run import Interrupt, Metrics, Run
from runtime.run import command as run_program


def test_a_run_writes_its_files(uninterrupted):
    names = sorted(path.name for path in uninterrupted.iterdir())
    files = "config.toml metrics.jsonl model step_000009 step_000012 summary.json timing.jsonl"
    assert names == files.split()
    assert parse(ToyConfig, ["--config", str(uninterrupted / "config.toml")]) == ToyConfig(
        to=str(uninterrupted)
    )
    text = (uninterrupted / "config.toml").read_text()
    assert "# model.attention is computed by kernels." in text  # an accelerator
    assert [json.loads(line)["step"] for line in lines(uninterrupted)] == list(range(1, 13))
    timing = [json.loads(line) for line in lines(uninterrupted, "timing")]
    for row in timing:
        assert row.keys() == {"step", "seconds", "update", "tokens_per_second", "mfu"}
        assert row["seconds"] == row["update"] > 0
        assert row["tokens_per_second"] * row["seconds"] == pytest.approx(32)
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert summary == {
        "steps": 12,
        "seconds": sum(row["seconds"] for row in timing),
        "metrics": json.loads(lines(uninterrupted)[-1]),
        "toy": True,
    }
    files = "config.json generation_config.json model.safetensors tokenizer.json"
    assert sorted(path.name for path in (uninterrupted / "model").iterdir()) == files.split()
    losses = [json.loads(line)["loss"] for line in lines(uninterrupted)]
    assert losses[-1] < losses[0]


def same_weights(first, second) -> bool:
    first, second = (load_file(path / "model" / "model.safetensors") for path in (first, second))
    equal = (torch.equal(first[name], second[name]) for name in first)
    return first.keys() == second.keys() and all(equal)


# before the first line is written, and between two checkpoints
@pytest.mark.parametrize("step", [1, 8])
def test_killed_run_continues_bit_for_bit(uninterrupted, tmp_path, step):
    process = start("--to", tmp_path, "--kill_at", step)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    assert len(lines(tmp_path)) == step - 1 and not (tmp_path / "model").exists()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": ')  # killed while writing
    (tmp_path / ".step_000012.tmp").mkdir()
    edit(tmp_path / "config.toml", f"kill_at = {step}", "kill_at = 0")
    run_toy(tmp_path)
    assert lines(tmp_path) == lines(uninterrupted)
    assert same_weights(tmp_path, uninterrupted)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_and_exits(uninterrupted, tmp_path, monkeypatch, capsys, signum, code):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    options = ["--to", str(tmp_path), "--kill_at", "4", "--kill_with", str(int(signum))]
    monkeypatch.setattr(sys, "argv", ["toy", *options])
    with pytest.raises(SystemExit) as stop:
        run_program(toy_main, ToyConfig)
    assert stop.value.code == code
    said = training.without_news(capsys.readouterr().err)
    saved = f"{tmp_path}/step_000004"
    assert said == f"{signum.name}: saved {saved}; the same command continues from there\n"
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


def test_processes_that_raise_the_same_error_print_it_once(tmp_path, monkeypatch, capsys):
    """The process that raised an error prints it, whichever it is."""
    monkeypatch.setattr(sys, "argv", ["toy", "--to", str(tmp_path), "--fail", "true"])
    monkeypatch.setenv("LOCAL_RANK", "1")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for _ in range(2):
        with pytest.raises(SystemExit):
            run_program(toy_main, ToyConfig)
    dist.destroy_process_group()
    assert capsys.readouterr().err == "error: data.jsonl:3: no answer\n"


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


def test_phases_and_speed(tmp_path):
    run = Run(ToyConfig(to=str(tmp_path)), World())
    for name in ("rollout", "reward", "update", "reward"):
        run.phase(name)
    run.log(1, {}, Work(tokens=10, flops=1e6, sampled=5, sampling_flops=3e6))
    run.log(2, {"valid": 0.5})
    first, second = (json.loads(line) for line in lines(tmp_path, "timing"))
    seconds = {name: first[name] for name in ("rollout", "reward", "update")}
    assert first["seconds"] == pytest.approx(sum(seconds.values()))
    assert first["tokens_per_second"] == pytest.approx(10 / first["update"])
    assert first["rollout_tokens_per_second"] == pytest.approx(5 / first["rollout"])
    share = first["mfu_step"] * first["seconds"] / (first["mfu"] * first["update"])
    assert share == pytest.approx(4)  # of 4e6 FLOPs to 1e6
    assert second == {"step": 2}


def test_activations_are_recomputed_where_memory_is_short(tmp_path, monkeypatch, capsys):
    config, model = SwitchConfig(to=str(tmp_path)), Transformer(SHAPE)
    needed = learning_bytes([model], 100, torch.float32)
    for left, on in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(runtime.run, "memory_left", lambda world, left=left: left)
        run = Run(dataclasses.replace(config), World())
        run.checkpointing(model, tokens=100)
        assert model.activation_checkpointing is run.config.activation_checkpointing is on
        word = "on" if on else "off"
        assert capsys.readouterr().out.startswith(f"activation checkpointing {word}: learning")


def test_activations_as_the_option_says(tmp_path, monkeypatch, capsys):
    model = Transformer(SHAPE)
    for chosen, left in ((True, 1e15), (False, 0.0), (None, None)):
        monkeypatch.setattr(runtime.run, "memory_left", lambda world, left=left: left)
        run = Run(SwitchConfig(to=str(tmp_path), activation_checkpointing=chosen), World())
        run.checkpointing(model, tokens=100)
        assert model.activation_checkpointing is bool(chosen)
    assert not capsys.readouterr().out


def test_bfloat16_is_measured_once(tmp_path, monkeypatch, capsys):
    """For a wide model on a CPU; the config keeps it, and a resumed run does not measure again."""

    def begin(answer=None, width=256, **options):
        def choose(*_):
            assert answer is not None, "measured again"
            return answer, "because"

        shape = dataclasses.replace(SHAPE, width=width)
        monkeypatch.setattr(runtime.run, "read_config", lambda init: shape)
        monkeypatch.setattr(runtime.run, "choose_bf16", choose)
        run = Run(Bf16Config(to=str(tmp_path), init="somewhere", **options), World(**options))
        assert run.world.bf16 is run.config.bf16
        return run, run.config.bf16, capsys.readouterr().out

    assert begin(False)[1:] == (False, "bf16 off: because\n")
    assert begin(width=128)[1:] == (None, "")
    assert begin(bf16=False)[1:] == (False, "")
    run, on, line = begin(True)
    assert (on, line) == (True, "bf16 on: because\n")
    (tmp_path / "step_000001").mkdir()
    (tmp_path / "config.toml").write_text(to_toml(run.config))
    assert begin()[1:] == (True, "")
    with pytest.raises(InputError, match="bf16 was true, now false; give the same value"):
        begin(bf16=False)
    (tmp_path / "config.toml").write_text(to_toml(dataclasses.replace(run.config, bf16=None)))
    assert begin()[1:] == (None, ""), "begun by an earlier version, in float32"


def test_bfloat16_is_chosen_by_time_and_error(monkeypatch):
    ticks = iter([0, 3, 0, 1] * 4)  # float32 takes three times as long
    monkeypatch.setattr(runtime.distributed.time, "process_time", lambda: next(ticks))
    shape = dataclasses.replace(SHAPE, width=256, ffn=512)
    on, why = runtime.distributed.choose_bf16(shape, World(kernels="plain"))
    assert on
    assert re.fullmatch(r"products are 3.0 times as fast as in float32 and differ by 0\.\d%", why)
    ticks = iter([0, 1.4, 0, 1] * 4)
    assert not runtime.distributed.choose_bf16(shape, World(kernels="plain"))[0]


@dataclass
class Bf16Config(ToyConfig):
    init: str = option("", "model")
    bf16: bool | None = option(None, "products in bfloat16")


@dataclass
class SwitchConfig(ToyConfig):
    activation_checkpointing: bool | None = option(None, "recompute activations")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("trainer", training.TRAINERS)
def test_a_step_of_every_trainer_on_a_gpu(trainer, tiny, tmp_path):
    iterations = {"grpo": 1, "iterative": 2}.get(trainer)
    more = {"iterations": iterations} if iterations else {}
    to = training.run(trainer, tiny.root, tmp_path, steps=1, valid="", device="cuda", **more)
    assert training.metrics(to)[-1]["step"] == (iterations or 1)
