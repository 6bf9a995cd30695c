"""What the figures share: models to start from, runs, statistics over seeds, pictures.

Every part is a command that can also be typed by hand. What has finished is not run again, so the
same command continues a figure that was stopped. Figures 5, 6 and 7 share their models and
problems.
"""

import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from runtime.options import option

import numpy as np

from data.io import InputError, atomic_write

ROOT = Path(__file__).resolve().parents[1]
# 97.5 % quantiles of Student's t for 1 to 9 degrees of freedom
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass
class Config:
    to: str = option("runs/figures", "directory of the models, runs, tables and pictures")
    seeds: int = option(5, "runs of reinforcement learning; all start from one SFT model", least=1)
    steps: int = option(60, "steps of reinforcement learning", least=1)
    lr: float = option(5e-5, "learning rate of reinforcement learning", least=0)
    jobs: int = option(2, "runs at the same time; they share the processor's cores", least=1)
    # in place of the built-in problems
    init: str = option("", "SFT model; needs --base, --problems, --valid and --test")
    base: str = option("", "model from which the reward models are trained")
    problems: str = option("", "training problems")
    valid: str = option("", "problems for the curves")
    test: str = option("", "problems for the final figures")
    formats: str = option("pot", "kind of solution", choices=("cot", "pot"))
    max_new_tokens: int = option(64, "longest completion", least=1)


# --------------------------------------------------------------------------------------------------
# Runs


def run(done: Path, *arguments) -> None:
    """Run `python ARGUMENTS`, unless the file `done` exists, which the command writes at its end.

    Ends the program if the command fails.
    """
    if done.exists():
        return
    words = list(map(str, arguments))
    log = done.with_name(f"{done.name}.log")
    print(f"$ python {shlex.join(words)}  > {log}", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as output:
        command = [sys.executable, *words]
        code = subprocess.run(command, cwd=ROOT, stdout=output, stderr=output).returncode
    if code:
        end = "\n".join(log.read_text(encoding="utf-8").splitlines()[-3:])
        reason = f"{words[0]} stopped (exit code {code}, {log}); the same command continues"
        print(f"{end}\n{reason}", file=sys.stderr)
        sys.exit(code if code > 0 else 128 - code)


def flags(**values) -> list[str]:
    """Options of a command line."""
    words = []
    for name, value in values.items():
        words += [f"--{name}", str(value)]
    return words


def parallel(jobs: int, tasks: Iterable[Callable]) -> list:
    """The results of the tasks, `jobs` at a time. The tasks call `run`.

    Each has its share of the cores: models this small gain more from several runs than from
    threads. If a task fails, no other begins and the program ends.
    """
    cores = os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda task: task(), tasks))


def every_seed(
    config, names: Iterable[str], task: Callable[[int, str], Any]
) -> dict[str, list[Any]]:
    """{name: [task(seed, name) of each seed]}. All names of a seed come before the next seed."""
    pairs = [(seed, name) for seed in range(config.seeds) for name in names]
    results = parallel(config.jobs, [partial(task, *pair) for pair in pairs])
    found: dict[str, list[Any]] = {name: [] for name in names}
    for (_, name), result in zip(pairs, results, strict=True):
        found[name].append(result)
    return found


# --------------------------------------------------------------------------------------------------
# The models, the trainers, the evaluation


@dataclass
class Start:
    """Where reinforcement learning starts: models and problem files."""

    base: str
    sft: str
    problems: str
    valid: str
    test: str


def prepare(config: Config) -> Start:
    """The models and problems of the options, or those of the built-in world (configs/figures).

    The built-in problems have two steps and are solved by programs. Programs leave arithmetic to
    Python, so what is wrong is the reasoning, which a reward model of this size can learn to see.
    """
    if config.init:
        for name in ("base", "problems", "valid", "test"):
            if not getattr(config, name):
                raise InputError(f"--{name} is needed with --init")
        return Start(
            config.base,
            config.init,
            config.problems,
            config.valid,
            config.test,
        )
    to = Path(config.to).resolve() / "world"
    pipeline = ["tools.pipeline", "configs/figures/pipeline.toml", *flags(to=to)]
    run(to / "stages" / "sft.json", "-m", *pipeline)
    problems = to / "problems"
    counts = flags(train=20_000, valid=400, test=500, documents=0)
    options = [*flags(to=problems, levels=2, langs="en"), *counts]
    run(problems / "sft.jsonl", "-m", "data.world.synthetic", *options)
    return Start(
        base=str(to / "pretrain" / "model"),
        sft=str(to / "sft" / "model"),
        problems=str(problems / "train.jsonl"),
        valid=str(problems / "valid.jsonl"),
        test=str(problems / "test.jsonl"),
    )


def sample(config: Config, start: Start, to: Path, **options) -> None:
    """Samples of the SFT model, by rollout.py, in the file `to`."""
    common = dict(
        model=start.sft,
        formats=config.formats,
        max_new_tokens=config.max_new_tokens,
    )
    run(to, "rollout.py", *flags(**common, **options, to=to))


def train_reward(start: Start, to: Path, **options) -> None:
    """One run of train_reward.py with the demo's configuration."""
    words = ["--config", "configs/demo/reward.toml", *flags(init=start.base, **options, to=to)]
    run(to / "summary.json", "train_reward.py", *words)


@dataclass
class Rewards:
    """Reward models, and the samples that they were trained on."""

    outcome: str
    process: str
    samples: str


def reward_models(config: Config, start: Start) -> Rewards:
    """Reward models that are trained on the same samples of the SFT model."""
    to = Path(config.to).resolve() / "reward"
    files: dict[str, dict] = {
        "train_0": dict(problems=start.problems, first=0, limit=2000, samples=4),
        "train_1": dict(problems=start.problems, first=2000, limit=2000, samples=4),
        "valid": dict(problems=start.valid, limit=200, samples=16),
    }
    tasks = []
    for name, options in files.items():
        file = to / f"{name}.jsonl"
        tasks.append(
            partial(
                sample,
                config,
                start,
                file,
                step_samples=4,
                **options,
            )
        )
    parallel(config.jobs, tasks)

    data = f"{to / 'train_0.jsonl'},{to / 'train_1.jsonl'}"
    tasks = []
    for kind in ("outcome", "process"):
        options = dict(
            kind=kind,
            data=data,
            valid=to / "valid.jsonl",
        )
        tasks.append(partial(train_reward, start, to / kind, **options))
    parallel(config.jobs, tasks)
    return Rewards(
        str(to / "outcome" / "model"),
        str(to / "process" / "model"),
        data,
    )


def train_grpo(
    config: Config,
    start: Start,
    to: Path,
    seed: int,
    configuration: str = "configs/demo/grpo.toml",
    **options,
) -> list[dict]:
    """One run of train_grpo.py. Returns its metrics."""
    common = dict(
        init=start.sft,
        problems=start.problems,
        valid=start.valid,
        valid_every=10,
        save_every=20,
        formats=config.formats,
        max_new_tokens=config.max_new_tokens,
        steps=config.steps,
        lr=config.lr,
        decay=0.0,
        seed=seed,
        to=to,
    )
    words = ["--config", configuration, *flags(**(common | options))]
    run(to / "summary.json", "train_grpo.py", *words)
    return read_metrics(to)


def read_metrics(directory: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    text = (directory / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def evaluate(config: Config, start: Start, model, to: Path, **options) -> dict:
    """The figures of eval.py on the test problems, greedy by default."""
    common = dict(
        model=model,
        problems=start.test,
        formats=config.formats,
        max_new_tokens=config.max_new_tokens,
        to=to,
    )
    run(to / "results.json", "eval.py", *flags(**(common | options)))
    results = json.loads((to / "results.json").read_text(encoding="utf-8"))["results"]
    return next(iter(results.values()))


def sft_accuracy(config: Config, start: Start) -> float:
    """The test accuracy at the start."""
    to = Path(config.to).resolve() / "figure5" / "sft" / "eval"
    return evaluate(config, start, start.sft, to)["accuracy"]


# --------------------------------------------------------------------------------------------------
# Statistics over seeds


def curve(metrics: list[dict], key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of the lines that have the key."""
    rows = [row for row in metrics if key in row]
    return [row["step"] for row in rows], [row[key] for row in rows]


def curves(runs: list[list[dict]], key: str) -> tuple[list[int], list[list[float]]]:
    """(steps, [values of each seed]) of the metrics of several runs."""
    steps, _ = curve(runs[0], key)
    return steps, [curve(metrics, key)[1] for metrics in runs]


def mean_interval(values) -> tuple[float, float, float]:
    """(mean, deviation, half of the 95 % interval of the mean by Student's t), over seeds."""
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 2:
        return float(values.mean()), 0.0, math.nan
    deviation = float(values.std(ddof=1))
    t = T_975[n - 2] if n - 2 < len(T_975) else 1.96
    return float(values.mean()), deviation, t * deviation / math.sqrt(n)


def percent(values) -> str:
    """Shares of several seeds, e.g. "81.2 (dev. 1.3, 79.6 - 82.8)", with the 95 % interval."""
    mean, deviation, half = (100 * x for x in mean_interval(values))
    return f"{mean:.1f} (dev. {deviation:.1f}, {mean - half:.1f} - {mean + half:.1f})"


def verdict(mean: float, half: float) -> str:
    """Is a difference above 0? "yes", "no" or "undecided", by its interval."""
    if mean - half > 0:
        return "yes"
    return "no" if mean + half < 0 else "undecided"


def difference(first, second) -> str:
    """The mean of second - first, seed by seed, with its 95 % interval, in points."""
    mean, _, half = (100 * x for x in mean_interval(np.subtract(second, first)))
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f}): {verdict(mean, half)}"


def print_accuracies(sft: float, final: dict[str, list[float]]) -> None:
    """A table of test accuracies: the start, and each method over its seeds."""
    width = max(map(len, final)) + 1
    seeds = len(next(iter(final.values())))
    print(f"\ntest accuracy, %, {seeds} seeds")
    print(f"{'SFT':<{width}} {100 * sft:.1f}")
    for name, values in final.items():
        print(f"{name:<{width}} {percent(values)}")


# --------------------------------------------------------------------------------------------------
# Files and pictures


def save(path: Path, values: dict) -> None:
    with atomic_write(path) as file:
        json.dump(values, file, indent=2)
    print(f"written to {path}")


@contextmanager
def canvas(
    path: Path, rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 4.5)
) -> Iterator[list]:
    """Axes [rows * columns] of a picture of `size` inches. At the end it is written to `path`, a
    PNG.
    """
    try:
        import matplotlib
    except ImportError:
        raise InputError(f"{path}: drawing needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows,
        columns,
        figsize=size,
        dpi=150,
        squeeze=False,
    )
    yield axes.flatten().tolist()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
    print(f"drawn in {path}")


def picture(
    path: Path, title: str, xlabel: str, ylabel: str, lines: dict[str, tuple], log_x: bool = False
) -> None:
    """Draw lines {name: (x, [values of each seed])}: their mean and its 95 % interval."""
    with canvas(path) as (axes,):
        for name, (x, seeds) in lines.items():
            points = [mean_interval(column) for column in zip(*seeds, strict=True)]
            mean = np.array([point[0] for point in points])
            half = np.nan_to_num([point[2] for point in points])
            (line,) = axes.plot(
                x,
                mean,
                label=name,
                marker="o",
                markersize=3,
            )
            shade = dict(
                alpha=0.15,
                color=line.get_color(),
                linewidth=0,
            )
            axes.fill_between(x, mean - half, mean + half, **shade)
        if log_x:
            axes.set_xscale("log", base=2)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        axes.grid(alpha=0.3)
        axes.legend()
