"""A run: its directory, options, metrics and checkpoints, and how signals stop it."""

import json
import math
import os
import signal
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from data.io import InputError, atomic_write
from runtime import optim
from runtime.checkpoint import Checkpoints, Others, remove
from runtime.distributed import World, is_first
from runtime.optim import Work, learning_bytes, memory_left
from runtime.options import check, local_main, parse, read_toml, to_toml, toml_value


def command(main: Callable, Config) -> None:
    """Run `main(parse(Config))` as a program.

    An error of the user (InputError, a file, a gradient that is not finite, a GPU that is too
    small) is one line and exit code 2; a stop by SIGINT is exit code 130, by SIGTERM 143.
    """
    code, message, together = 0, "", False
    try:
        main(parse(Config, description=sys.modules[main.__module__].__doc__ or ""))
        together = True
    except (InputError, OSError, FloatingPointError) as error:
        code, message = 2, f"error: {error}"
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


class Interrupted(Exception):
    """The run was asked to stop and has saved itself."""

    def __init__(self, signum: int, saved: Path):
        super().__init__(
            f"{signal.Signals(signum).name}: saved {saved}; the same command continues from there"
        )
        self.signum = signum


class Interrupt:
    """Turns the first SIGINT (Ctrl-C) or SIGTERM into a flag; a second one, later, acts as usual."""

    def __init__(self):
        self.signum, self._at, self._before = 0, 0.0, {}

    def start(self) -> "Interrupt":
        # Python handles signals in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def stop(self, *_) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    __enter__, __exit__ = start, stop

    def _handle(self, signum, frame) -> None:
        # torchrun passes on a Ctrl-C that the terminal has already sent: within two seconds it is the same one.
        if self.signum and time.monotonic() - self._at > 2:
            self.stop()
            os.kill(os.getpid(), signum)
        elif not self.signum:
            self.signum, self._at = signum, time.monotonic()
            if local_main():
                os.write(2, b"stopping after this step; once more stops at once\n")

    def requested(self, world: World) -> int:
        """The number of the signal that any process has received, or 0. A collective: all stop at the same step."""
        wanted = [float(self.signum == signum) for signum in (signal.SIGINT, signal.SIGTERM)]
        sigint, sigterm = world.all_sum(torch.tensor(wanted)).tolist()
        return signal.SIGINT if sigint else signal.SIGTERM if sigterm else 0


class Metrics:
    """metrics.jsonl: {"step": n, ...} a line a step, alike in every repetition; timing.jsonl: what the clock says."""

    def __init__(self, run_dir, world: World, total_steps: int):
        self.directory, self.world, self.total = Path(run_dir), world, total_steps
        self.began, self.first, self.printed = time.monotonic(), None, -math.inf

    def truncate(self, step: int) -> None:
        """Drop the lines after `step`, and a half-written last one: what a resumed run will write again."""
        if not self.world.is_main:
            return
        for path in (self.directory / "metrics.jsonl", self.directory / "timing.jsonl"):
            if path.exists():
                whole = path.read_text(encoding="utf-8").split("\n")[:-1]
                with atomic_write(path) as file:
                    file.writelines(
                        line + "\n" for line in whole if json.loads(line)["step"] <= step
                    )

    def write(self, step: int, metrics: dict, timing: dict) -> None:
        """Append to both files and, at most once a second, print a line with the time left."""
        if not self.world.is_main:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        for name, row in (("metrics", metrics), ("timing", timing)):
            with open(self.directory / f"{name}.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")
        now = time.monotonic()
        self.first = max(step - 1, 0) if self.first is None else self.first
        if now - self.printed >= 1 or step >= self.total:
            self.printed = now
            shown = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
            text = "  ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()
            )
            left = (now - self.began) / max(step - self.first, 1) * max(self.total - step, 0)
            print(f"step {step}/{self.total}  {text}  | {_clock(left)} left", flush=True)

    def summary(self, values: dict) -> None:
        """Write summary.json."""
        if self.world.is_main:
            with atomic_write(self.directory / "summary.json") as file:
                json.dump(values, file, indent=2)

    def rows(self, name: str = "metrics") -> list[dict]:
        path = self.directory / f"{name}.jsonl"
        return (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if path.exists()
            else []
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class Run:
    """The run directory `config.to` of one trainer. `config` also has steps (and iterations), save_every and keep.

    Raises InputError where the directory holds a run with other options, but for those that do not change its results
    and for a larger number of steps.
    """

    MAY_CHANGE = (
        "keep",
        "save_every",
        "device",
        "max_rows",
        "keep_rollouts",
        "to",
        "kernels",
        "compile",
        "activation_checkpointing",
    )
    PATIENCE = 100  # steps in a row without a signal, after which a run stops

    def __init__(self, config, world: World):
        check(config)
        self.config, self.world, self.directory = config, world, Path(config.to)
        self.total = config.steps * getattr(config, "iterations", 1)
        self.checkpoints = Checkpoints(self.directory, world, getattr(config, "keep", 2))
        self.metrics = Metrics(self.directory, world, self.total)
        self.interrupt = Interrupt()
        self.seconds: dict[str, float] = {}  # of this step, by phase
        self._phase, self._since = "", 0.0
        self.silent = 0  # steps in a row in which no group had a signal
        self._check_config()

    def _check_config(self) -> None:
        path = self.directory / "config.toml"
        if not path.exists() or not (
            self.checkpoints.complete() or (self.directory / "rollouts").exists()
        ):
            return  # nothing here yet that the options have shaped
        before, now = read_toml(path), tomllib.loads(to_toml(self.config))
        grows = (
            "iterations" if getattr(self.config, "iterations", 1) > 1 else "steps"
        )  # else an iteration's own length
        for name, value in now.items():
            old = before.get(name, value)
            if old != value and name not in self.MAY_CHANGE and not (name == grows and value > old):
                change = f"{name} was {toml_value(old)}, now {toml_value(value)}"
                raise InputError(f"{path}: {change}; give the same value, or another --to")

    def say(self, text: str) -> None:
        if self.world.is_main:
            print(text, flush=True)

    def checkpointing(self, *models: nn.Module, tokens: int) -> None:
        """Say to the trained models whether blocks recompute their activations in the backward.

        This is --activation_checkpointing. Where that is None, they do so on a GPU without memory
        for a forward and backward pass of `tokens`; a line says so. The decision is kept in the
        config. Call it when all models of the run are on the device. A collective.
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
        """(last finished step, its state) with models and optimizers as they were then; (0, {}) at the start.

        From here on Ctrl-C and SIGTERM are answered by `checkpoint`.
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
        """What follows is this phase of a step, until the next phase or `log`. Its seconds count."""
        now = time.perf_counter()
        if self._phase:
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = name, now

    def log(self, step: int, metrics: dict, work: Work | dict | None = None) -> None:
        """Write a step: `metrics` to metrics.jsonl, seconds and speed to timing.jsonl.

        timing.jsonl gets the seconds of each phase and of all together, and of the phases "update"
        and "assess" the tokens and the share of peak FLOP/s (mfu). Where the step sampled, in a
        phase "rollout": tokens sampled a second, and mfu_step, that of the whole step.
        """
        self.phase("")
        seconds, self.seconds = self.seconds, {}
        timing = {"seconds": sum(seconds.values()), **seconds} if seconds else {}
        if isinstance(work, dict):
            timing |= work
        elif work is not None:
            learning = seconds["update"] + seconds.get("assess", 0.0)
            timing |= optim.speed(work.tokens, work.flops, learning, self.world)
            if "rollout" in seconds and work.sampled:
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

        Raises Interrupted after Ctrl-C or SIGTERM, InputError after PATIENCE steps without a signal.
        """
        signum = self.interrupt.requested(self.world)
        silent = self.silent >= self.PATIENCE and step < self.total
        if signum or silent or step % self.config.save_every == 0 or step == self.total:
            path = self.checkpoints.save(step, model, tokenizer, optimizer, state, others)
            if signum:
                self.interrupt.stop()
                raise Interrupted(signum, path)
        if silent:
            reason = "all rewards of each group were alike: the problems are too easy or too hard"
            hint = "the same command goes on from here"
            raise InputError(f"step {step}: no signal in {self.silent} steps, {reason}; {hint}")

    def renew_reference(self, step: int, policy, reference, tokenizer) -> None:
        """Make the reference that of the outer iteration of `step`: the policy at its first step."""
        iteration, done = divmod(step - 1, self.config.steps)
        if done == 0:
            self.save_reference(iteration, policy, tokenizer)
        self.load_reference(iteration, reference)

    def save_reference(self, iteration: int, model, tokenizer) -> None:
        """Keep the policy at the start of an outer iteration, exactly, as reference_I/. The one before stays too, and
        those of the iterations that the checkpoints are in: a run resumed from one needs its reference."""
        self.checkpoints.write(
            self.directory / f"reference_{iteration}", model, tokenizer, state={}
        )
        if self.world.is_main:
            needed = {
                int(path.name[5:]) // self.config.steps for path in self.checkpoints.complete()
            }
            for old in self.directory.glob("reference_*"):
                if (number := int(old.name[10:])) < iteration - 1 and number not in needed:
                    remove(old)

    def load_reference(self, iteration: int, reference) -> None:
        self.checkpoints.read(self.directory / f"reference_{iteration}", reference)

    def finish(self, model, tokenizer, values: dict) -> None:
        """Write the result: model/ and summary.json (steps, seconds, last metrics, and `values`)."""
        self.interrupt.stop()
        self.checkpoints.write(self.directory / "model", model, tokenizer)
        last = (self.metrics.rows() or [{}])[-1]
        seconds = sum(row.get("seconds", 0.0) for row in self.metrics.rows("timing"))
        self.metrics.summary({"steps": self.total, "seconds": seconds, "metrics": last, **values})
        self.say(f"wrote {self.directory / 'model'} ({self.total} steps, {_clock(seconds)})")
