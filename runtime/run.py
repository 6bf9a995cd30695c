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

from data.io import InputError, atomic_write
from runtime.checkpoint import Checkpoints, Others, remove
from runtime.distributed import World
from runtime.optim import memory_limit
from runtime.options import check, local_main, parse, read_toml, to_toml, toml_value


def command(main: Callable, Config) -> None:
    """Run `main(parse(Config))` as a program: InputError is one line and exit code 2; a stop by signal 130 or 143."""
    code, message, together = 0, "", True
    try:
        main(parse(Config, description=sys.modules[main.__module__].__doc__ or ""))
    except InputError as error:
        code, message, together = 2, f"error: {error}", False
    except Interrupted as stop:
        code, message = 128 + stop.signum, str(stop)
    except KeyboardInterrupt:
        code, together = 130, False
        message = (
            "interrupted; the same command continues from the last checkpoint, if there is one"
        )
    if message and local_main():
        print(message, file=sys.stderr, flush=True)
    if (
        dist.is_initialized() and together
    ):  # otherwise some may still wait in a collective: torchrun ends them
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
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Python handles signals nowhere else
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
        "patience",
        "kernels",
        "compile",
        "activation_checkpointing",
    )

    def __init__(self, config, world: World):
        check(config)
        self.config, self.world, self.directory = config, world, Path(config.to)
        self.total = config.steps * getattr(config, "iterations", 1)
        self.checkpoints = Checkpoints(self.directory, world, config.keep)
        self.metrics = Metrics(self.directory, world, self.total)
        self.interrupt = Interrupt()
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

    def checkpointing(self, stage: str, shape) -> bool:
        """Whether blocks compute their activations again in the backward: what the option says or, where it is None, on
        a GPU whose memory a step would not fit without, by tools/plan.py's count; then a line says so. Kept in the config.

        shape: the model's ModelConfig; stage: the trainer's name in tools/plan.py. A collective.
        """
        if self.config.activation_checkpointing is None:
            self.config.activation_checkpointing = False
            if (limit := memory_limit(self.world)) is not None:
                from tools import plan  # it imports the trainers

                needed = plan.learning_peak(stage, self.config, shape, self.world.size)
                on = self.world.all_sum(float(needed > limit)) > 0  # the same on every process
                self.config.activation_checkpointing = on
                why = f"without it a step takes {needed / 1e9:.1f} GB, by tools/plan.py, of {limit / 1e9:.1f} GB"
                self.say(f"activation checkpointing {'on' if on else 'off'}: {why}")
        return self.config.activation_checkpointing

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
        if found:
            self.say(f"{self.directory}: continuing after step {step} of {self.total}")
        self.interrupt.start()
        return step, state

    def log(self, step: int, metrics: dict, timing: dict) -> None:
        self.metrics.write(step, metrics, timing)

    def checkpoint(
        self,
        step: int,
        model,
        tokenizer,
        optimizer,
        state: dict | None = None,
        others: Others = None,
    ) -> None:
        """Save every `save_every` steps, at the last one, and when asked to stop: then it raises Interrupted."""
        signum = self.interrupt.requested(self.world)
        if signum or step % self.config.save_every == 0 or step == self.total:
            path = self.checkpoints.save(step, model, tokenizer, optimizer, state, others)
            if signum:
                self.interrupt.stop()
                raise Interrupted(signum, path)

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
