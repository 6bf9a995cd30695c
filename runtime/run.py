"""A run: its directory, options, metrics and checkpoints, and the signals that stop it."""

import json
import math
import os
import signal
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from runtime.options import check, local_main, option, parse, read_toml, to_toml, toml_value

import torch
import torch.distributed as dist

from data.io import InputError, atomic_write, in_a_line
from model import Transformer
from runtime import optim
from runtime.checkpoint import Checkpoints, Others, remove
from runtime.distributed import World, choose_bf16, is_first
from runtime.hf import read_config, sequence_tokens
from runtime.optim import Work, learning_bytes, memory_left


def command(main: Callable, Config) -> None:
    """Run `main(parse(Config))` as a program.

    An error of the user (InputError, a file, a gradient that is not finite, a GPU that is too
    small) is one line and exit code 2; a stop by SIGINT is exit code 130, by SIGTERM 143.
    """
    code, message, together = 0, "", False
    try:
        description = sys.modules[main.__module__].__doc__ or ""
        main(parse(Config, description=description))
        together = True
    except (InputError, OSError, FloatingPointError) as error:
        code, message = 2, f"error: {in_a_line(error)}"
    except torch.OutOfMemoryError as error:
        advice = "lower --micro_tokens, --micro_batch or --max_rows"
        code, message = 2, f"error: {str(error).splitlines()[0]} {advice}"
    except Interrupted as stop:
        code, message, together = 128 + stop.signum, str(stop), True
    except KeyboardInterrupt:
        code, message = 130, "interrupted; the same command continues from its last checkpoint"
    if message and is_first(message):
        print(message, file=sys.stderr, flush=True)
    # After an error, other processes may still wait in a collective. torchrun ends them.
    if dist.is_initialized() and together:
        dist.destroy_process_group()
    if code:
        sys.exit(code)


# ----------------------------------------------------------------------------------------------------
# Signals


class Interrupted(Exception):
    """A signal stopped the run, which has saved itself."""

    def __init__(self, signum: int, saved: Path):
        name = signal.Signals(signum).name
        super().__init__(f"{name}: saved {saved}; the same command continues from there")
        self.signum = signum


class Interrupt:
    """Notes the first SIGINT (Ctrl-C) or SIGTERM. A second one acts as without this class."""

    def __init__(self) -> None:
        self.signum, self._time = 0, 0.0
        self._handlers: dict[int, Any] = {}  # those of before

    def start(self) -> "Interrupt":
        # Python handles signals in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._handlers[signum] = signal.signal(signum, self._handle)
        return self

    def stop(self, *_) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    __enter__, __exit__ = start, stop

    def _handle(self, signum, frame) -> None:
        # The terminal sends Ctrl-C to all, and torchrun sends it once more: that is the same signal.
        if self.signum and time.monotonic() - self._time > 2:
            self.stop()
            os.kill(os.getpid(), signum)
        elif not self.signum:
            self.signum, self._time = signum, time.monotonic()
            if local_main():
                os.write(2, b"stopping after this step; once more stops at once\n")

    def requested(self, world: World) -> int:
        """The number of the signal that any process received, or 0. A collective, so all stop together."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            if world.all_sum(self.signum == signum):
                return signum
        return 0


# ----------------------------------------------------------------------------------------------------
# Metrics


class Metrics:
    """metrics.jsonl: a line {"step": n, ...} for each step, the same if the run is repeated.

    timing.jsonl: likewise, what depends on the clock.
    """

    def __init__(self, run_dir, world: World, total_steps: int):
        self.directory = Path(run_dir)
        self.world = world
        self.total = total_steps
        self.began = time.monotonic()
        self.printed = -math.inf  # when the last line was
        self.first: int | None = None  # the step before the first that this process made

    def truncate(self, step: int) -> None:
        """Drop the lines after `step`, which a resumed run writes again, and a half-written line."""
        if not self.world.is_main:
            return
        for name in ("metrics", "timing"):
            path = self.directory / f"{name}.jsonl"
            if path.exists():
                whole = path.read_text(encoding="utf-8").split("\n")[:-1]
                with atomic_write(path) as file:
                    for line in whole:
                        if json.loads(line)["step"] <= step:
                            file.write(line + "\n")

    def write(self, step: int, metrics: dict, timing: dict) -> None:
        """Append to both files and, at most once a second, print a line with the time left."""
        if not self.world.is_main:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        for name, row in (("metrics", metrics), ("timing", timing)):
            with open(self.directory / f"{name}.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")

        if self.first is None:
            self.first = max(step - 1, 0)
        now = time.monotonic()
        if now - self.printed < 1 and step < self.total:
            return
        self.printed = now
        words = [f"step {step}/{self.total}"]
        for name, value in metrics.items():
            if isinstance(value, int | float):
                words.append(
                    f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                )
        seconds = (now - self.began) / max(step - self.first, 1)
        left = _clock(seconds * max(self.total - step, 0))
        print(f"{'  '.join(words)}  | {left} left", flush=True)

    def summary(self, values: dict) -> None:
        """Write summary.json."""
        if self.world.is_main:
            with atomic_write(self.directory / "summary.json") as file:
                json.dump(values, file, indent=2)

    def rows(self, name: str = "metrics") -> list[dict]:
        """The lines of metrics.jsonl, or of timing.jsonl."""
        path = self.directory / f"{name}.jsonl"
        if not path.exists():
            return []
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


# ----------------------------------------------------------------------------------------------------
# The run

# Options that do not change the results of a run.
MAY_CHANGE = (
    "to",
    "keep",
    "save_every",
    "device",
    "kernels",
    "compile",
    "activation_checkpointing",
    "max_rows",
)
WIDE = 256  # narrower models multiply in float32 on CPUs: the same numbers on every machine
PATIENCE = 100  # steps in a row without a signal, after which a run stops


@dataclass
class RunOptions:
    """Options of a trainer that have nothing to do with its method; its Config may inherit them."""

    # the run
    to: str = option("", "run directory; the result is TO/model", required=True)
    save_every: int = option(20, "steps between checkpoints", least=1)
    seed: int = option(0, "seed of all that is drawn", least=0)
    # the machine
    max_grad_norm: float = option(1.0, "largest norm of the gradient; 0: any", least=0)
    micro_tokens: int = option(16_384, "tokens of one forward and backward pass", least=1)
    activation_checkpointing: bool | None = option(None, "recompute activations; none: if needed")
    bf16: bool | None = option(None, "products in bfloat16; none: on GPUs, and where faster")
    kernels: str = option("fast", "plain: without accelerators", choices=("fast", "plain"))
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


@dataclass
class SamplingOptions:
    """What is sampled and how; the Config of a program that samples may inherit these options."""

    # sampling
    problems: list[str] = option([], "files of problems with answers", required=True)
    formats: list[str] = option(
        ["cot"], "in turn over the questions", choices=("cot", "pot"), required=True
    )
    template: str = option(
        "plain", "prompt template", choices=("plain", "deepseek", "qwen", "chat")
    )
    system: str = option("", "system message of --template chat; empty: the template's")
    temperature: float = option(1.0, "sampling temperature, also in the loss", above=0)
    max_new_tokens: int = option(1024, "longest completion; a longer one is cut", least=1)
    max_rows: int = option(256, "completions decoded at once by one process", least=1)


class Run:
    """The run directory `config.to` of a trainer.

    config: the trainer's options, checked once more; it has steps (and perhaps iterations) and
    save_every. Raises InputError if the directory holds a run with other options. Those in
    MAY_CHANGE may differ, and the number of steps may grow. If there is --context, it becomes the
    tokens of a training sequence (see sequence_tokens).

    init: the directory of --init. If it is gone, the last checkpoint, which has its side files.
    """

    def __init__(self, config, world: World):
        check(config)
        self.config = config
        self.world = world
        self.directory = Path(config.to)
        self.total = config.steps * getattr(config, "iterations", 1)
        self.checkpoints = Checkpoints(self.directory, world, getattr(config, "keep", 2))
        self.metrics = Metrics(self.directory, world, self.total)
        self.interrupt = Interrupt()
        self.seconds: dict[str, float] = {}  # of this step, by phase
        self._phase, self._since = "", 0.0
        self.silent = 0  # steps in a row in which no group had a signal
        self.init = getattr(config, "init", "")
        saved = self.checkpoints.complete()
        if self.init and saved and not Path(self.init).exists():
            self.init = str(saved[-1])
        if self.init and Path(self.init).resolve() == self.directory.resolve():
            raise InputError(f"--to {config.to}: it is the model of --init; give another directory")
        if hasattr(config, "context"):
            config.context = sequence_tokens(config.context, self.init)
        path = self.directory / "config.toml"
        begun = self.checkpoints.complete() or (self.directory / "rollouts").exists()
        before = read_toml(path) if begun and path.exists() else {}
        self._choose_bf16(before)
        self._check_config(path, before)

    def _choose_bf16(self, before: dict) -> None:
        """Decide on matrix products in bfloat16 where the option is None. A collective.

        On a CPU, for a wide model, by measurement; a line says what and why. The config keeps the
        decision: `before`, the config of a run that is resumed, decides if it is there.
        """
        if getattr(self.config, "bf16", False) is not None:
            return
        if before:
            stored = before.get("bf16")
            self.config.bf16 = stored if isinstance(stored, bool) else None
        elif (
            self.world.device.type == "cpu"
            and self.init
            and (shape := read_config(self.init)).width >= WIDE
        ):
            self.config.bf16, why = choose_bf16(shape, self.world)
            self.say(f"bf16 {'on' if self.config.bf16 else 'off'}: {why}")
        self.world.bf16 = self.config.bf16

    def _check_config(self, path: Path, before: dict) -> None:
        """Raise InputError if the directory holds a run with other options."""
        # Where a run has iterations, `steps` is the length of each.
        grows = "iterations" if getattr(self.config, "iterations", 1) > 1 else "steps"
        now = tomllib.loads(to_toml(self.config))
        for name, value in now.items():
            old = before.get(name, value)
            if old == value or name in MAY_CHANGE or (name == grows and value > old):
                continue
            change = f"{name} was {toml_value(old)}, now {toml_value(value)}"
            raise InputError(f"{path}: {change}; give the same value, or another --to")

    def say(self, text: str) -> None:
        """Print a line, on one process."""
        if self.world.is_main:
            print(text, flush=True)

    def checkpointing(self, *models: Transformer, tokens: int) -> None:
        """Tell the trained models whether to recompute activations (--activation_checkpointing).

        If the option is None, they do so on a GPU that has no memory for a forward and backward
        pass of `tokens`; a line says so. The config keeps the decision. Call this when all models
        of the run are on the device. A collective.
        """
        if self.config.activation_checkpointing is None:
            self.config.activation_checkpointing = False
            if (left := memory_left(self.world)) is not None:
                needed = learning_bytes(models, tokens, self.world.dtype)
                on = self.world.all_sum(float(needed > left)) > 0  # the same on every process
                self.config.activation_checkpointing = on
                why = f"learning takes about {needed / 1e9:.1f} GB, {left / 1e9:.1f} GB are free"
                self.say(f"activation checkpointing {'on' if on else 'off'}: {why}")
        for model in models:
            model.activation_checkpointing = self.config.activation_checkpointing

    def resume(self, model, optimizer, others: Others = None) -> tuple[int, dict]:
        """Load the last checkpoint into models and optimizers, if there is one.

        Returns its step and state, or (0, {}). From here on, a signal stops the run at the end of a
        step (see `checkpoint`).
        """
        found = self.checkpoints.load_latest(model, optimizer, others)
        step, state = found or (0, {})
        self.metrics.truncate(step if found else -1)
        if self.world.is_main:
            with atomic_write(self.directory / "config.toml") as file:
                file.write(to_toml(self.config))
                for definition, names in sorted(self.world.accelerators.items()):
                    file.write(f"# {definition} is computed by {', '.join(names)}\n")
        if found:
            self.say(f"{self.directory}: continuing after step {step} of {self.total}")
        self.interrupt.start()
        return step, state

    def phase(self, name: str) -> None:
        """Begin a phase of a step. It lasts until the next one or `log`; its seconds are counted.

        The name "" counts nothing.
        """
        now = time.perf_counter()
        if self._phase:
            self.seconds.setdefault(self._phase, 0.0)
            self.seconds[self._phase] += now - self._since
        self._phase = name
        self._since = now

    def log(self, step: int, metrics: dict, work: Work | None = None) -> None:
        """Write a step: `metrics` to metrics.jsonl, seconds and speed to timing.jsonl.

        timing.jsonl has the seconds of each phase and of all. With `work` it also has tokens a
        second and mfu (see runtime/optim.py) of the phases "update" and "assess"; and if the step
        sampled, in a phase "rollout", tokens sampled a second and mfu_step, that of the whole step.
        """
        self.phase("")
        seconds = self.seconds
        self.seconds = {}
        timing = dict(seconds)
        if seconds:
            timing["seconds"] = sum(seconds.values())
        if work:
            learning = seconds["update"] + seconds.get("assess", 0.0)
            timing |= optim.speed(work.tokens, work.flops, learning, self.world)
        if work and work.sampled and "rollout" in seconds:
            timing["rollout_tokens_per_second"] = work.sampled / seconds["rollout"]
            flops = work.flops + work.sampling_flops
            timing["mfu_step"] = optim.mfu(flops / timing["seconds"], self.world)
        self.metrics.write(step, metrics, timing)

        if count := metrics.get("reward_not_finite"):
            self.say(f"step {step}: {count} rewards are not finite; they count for nothing")
        self.silent = self.silent + 1 if metrics.get("no_signal") == 1 else 0

    def checkpoint(
        self,
        step: int,
        model,
        tokenizer,
        optimizer,
        state: dict | None = None,
        others: Others = None,
    ) -> None:
        """Save every `save_every` steps, at the last one, and before the run stops early.

        Raises Interrupted after a signal, InputError after PATIENCE steps without a signal to learn.
        """
        signum = self.interrupt.requested(self.world)
        silent = self.silent >= PATIENCE and step < self.total
        if signum or silent or self.due(step, self.config.save_every):
            path = self.checkpoints.save(step, model, tokenizer, optimizer, state, others)
            if signum:
                self.interrupt.stop()
                raise Interrupted(signum, path)
        if silent:
            reason = "all rewards of each group were alike: the problems are too easy or too hard"
            hint = "the same command continues from here"
            raise InputError(f"step {step}: no signal in {self.silent} steps, {reason}; {hint}")

    def renew_reference(self, step: int, policy, reference, tokenizer) -> None:
        """Give the reference the weights of the policy at the first step of this outer iteration.

        Those are kept as reference_I/, for a run that is resumed later in the iteration.
        """
        iteration, done = divmod(step - 1, self.config.steps)
        if done == 0:
            self.save_reference(iteration, policy, tokenizer)
        self.load_reference(iteration, reference)

    def due(self, step: int, every: int) -> bool:
        """Is it time for what happens every so many steps, and at the last one?"""
        return step % every == 0 or step == self.total

    def save_reference(self, iteration: int, model, tokenizer) -> None:
        """Keep the model, exactly, as reference_I/.

        Older ones are removed, except the one before and those that a checkpoint needs.
        """
        self.checkpoints.write(
            self.directory / f"reference_{iteration}", model, tokenizer, state={}
        )
        if self.world.is_main:
            needed = {iteration, iteration - 1}
            for path in self.checkpoints.complete():
                needed.add(int(path.name[5:]) // self.config.steps)
            for path in self.directory.glob("reference_*"):
                if int(path.name[10:]) not in needed:
                    remove(path)

    def load_reference(self, iteration: int, reference) -> None:
        self.checkpoints.read(self.directory / f"reference_{iteration}", reference)

    def finish(self, model, tokenizer, values: dict) -> None:
        """Write the result: model/ and summary.json (steps, seconds, last metrics, and `values`)."""
        self.interrupt.stop()
        self.checkpoints.write(self.directory / "model", model, tokenizer)
        rows = self.metrics.rows()
        seconds = sum(row.get("seconds", 0.0) for row in self.metrics.rows("timing"))
        summary = {
            "steps": self.total,
            "seconds": seconds,
            "metrics": rows[-1] if rows else {},
            **values,
        }
        self.metrics.summary(summary)
        self.say(f"wrote {self.directory / 'model'} ({self.total} steps, {_clock(seconds)})")
