"""What the figures share: models to start from, runs that are kept, means and intervals over seeds, pictures.

Every part is a command that can be typed by hand; what has finished is not run again, so that a figure that was stopped
goes on from there, and figures 5, 6 and 7 share their world and their reward models.
"""

import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.io import InputError, atomic_write
from runtime.options import option

ROOT = Path(__file__).resolve().parents[1]
T_975 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
)  # Student's t, 1 to 9 degrees of freedom


@dataclass
class Config:
    to: str = option("runs/figures", "directory of the world, the runs, tables and pictures")
    seeds: int = option(
        5, "seeds of reinforcement learning (the world and the SFT model are the same for all)"
    )
    steps: int = option(60, "steps of reinforcement learning")
    lr: float = option(5e-5, "learning rate of reinforcement learning, the same for all methods")
    jobs: int = option(2, "runs at the same time, each with its share of the processors")
    # in place of the built-in world
    init: str = option("", "SFT model to start from; needs --base, --problems, --valid and --test")
    base: str = option("", "model that the reward models start from")
    problems: str = option("", "training problems")
    valid: str = option("", "problems of the curves")
    test: str = option("", "problems of the final figures")
    formats: str = option("pot", "cot or pot")
    max_new_tokens: int = option(64, "longest completion")


@dataclass
class World:
    base: str
    sft: str
    problems: str
    valid: str
    test: str


def run(done: Path, *words) -> None:
    """Run `python words` unless the file that it leaves at its end is there. Ends the program where it fails."""
    if done.exists():
        return
    words = list(map(str, words))
    log = done.with_name(f"{done.name}.log")
    print(f"$ python {shlex.join(words)}  > {log}", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as output:
        code = subprocess.run(
            [sys.executable, *words], cwd=ROOT, stdout=output, stderr=output
        ).returncode
    if code:
        end = "\n".join(log.read_text(encoding="utf-8").splitlines()[-3:])
        reason = f"{words[0]} stopped (exit code {code}, {log}); the same command goes on from here"
        print(f"{end}\n{reason}", file=sys.stderr)
        sys.exit(code if code > 0 else 128 - code)


def parallel(config: Config, tasks: list[Callable]) -> list:
    """The results of the tasks, which call `run`: `config.jobs` at a time, with the processors shared out among them,
    which gives models this small more than threads do. Where one fails no other is begun and the program ends."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // config.jobs)))
    with ThreadPoolExecutor(config.jobs) as pool:
        return list(pool.map(lambda task: task(), tasks))


def flags(**values) -> list[str]:
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def world(config: Config) -> World:
    """The models and problems of the options, or base and SFT models of configs/figures and built-in problems of two
    steps, to be solved by programs: these leave arithmetic to Python, so that what is wrong is the reasoning, which
    a reward model of this size can learn to see (docs/BENCHMARKS.md)."""
    if config.init:
        for name in ("base", "problems", "valid", "test"):
            if not getattr(config, name):
                raise InputError(f"--{name} is needed with --init")
        return World(config.base, config.init, config.problems, config.valid, config.test)
    to = Path(config.to).resolve() / "world"
    run(
        to / "stages" / "sft.json",
        "-m",
        "tools.pipeline",
        "configs/figures/pipeline.toml",
        *flags(to=to),
    )
    counts = dict(train=20_000, valid=400, test=500, documents=0)
    chosen = dict(to=to / "problems", levels=2, langs="en", **counts)
    run(to / "problems" / "sft.jsonl", "-m", "data.world.synthetic", *flags(**chosen))
    files = [to / "problems" / f"{name}.jsonl" for name in ("train", "valid", "test")]
    return World(str(to / "pretrain" / "model"), str(to / "sft" / "model"), *map(str, files))


def reward_models(config: Config, here: World) -> dict[str, str]:
    """{"outcome": DIR, "process": DIR} trained on the same samples of the SFT model, and "samples": their files."""
    to = Path(config.to).resolve() / "reward"
    common = dict(
        model=here.sft, formats=config.formats, max_new_tokens=config.max_new_tokens, step_samples=4
    )
    train = {
        f"train_{i}": dict(problems=here.problems, first=2000 * i, limit=2000, samples=4)
        for i in range(2)
    }
    files = train | {"valid": dict(problems=here.valid, limit=200, samples=16)}
    data = ",".join(str(to / f"{name}.jsonl") for name in train)

    def sample(name: str) -> None:
        own = files[name] | dict(to=to / f"{name}.jsonl")
        run(to / f"{name}.jsonl", "rollout.py", *flags(**common, **own))

    def learn(kind: str) -> None:
        own = dict(kind=kind, init=here.base, data=data, valid=to / "valid.jsonl", to=to / kind)
        run(
            to / kind / "summary.json",
            "train_reward.py",
            "--config",
            "configs/demo/reward.toml",
            *flags(**own),
        )

    parallel(config, [partial(sample, name) for name in files])
    parallel(config, [partial(learn, kind) for kind in ("outcome", "process")])
    return {kind: str(to / kind / "model") for kind in ("outcome", "process")} | {"samples": data}


def grpo(
    config: Config,
    here: World,
    to: Path,
    seed: int,
    configuration: str = "configs/demo/grpo.toml",
    **options,
) -> list[dict]:
    """One run of train_grpo.py, with the demo's configuration unless another is named; returns its metrics."""
    chosen = dict(
        init=here.sft,
        problems=here.problems,
        valid=here.valid,
        valid_every=10,
        save_every=20,
        to=to,
    )
    chosen |= dict(
        formats=config.formats,
        max_new_tokens=config.max_new_tokens,
        steps=config.steps,
        lr=config.lr,
    )
    chosen |= dict(decay=0.0, keep=1, seed=seed) | options
    run(to / "summary.json", "train_grpo.py", "--config", configuration, *flags(**chosen))
    return [
        json.loads(line) for line in (to / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def evaluation(config: Config, here: World, model: Path, to: Path, **options) -> dict:
    """eval.py's results on the test problems; greedy unless the options say otherwise."""
    chosen = dict(
        model=model,
        problems=here.test,
        formats=config.formats,
        max_new_tokens=config.max_new_tokens,
        to=to,
    )
    run(to / "results.json", "eval.py", *flags(**(chosen | options)))
    return next(
        iter(json.loads((to / "results.json").read_text(encoding="utf-8"))["results"].values())
    )


def curve(metrics: list[dict], key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of the lines that have the key."""
    rows = [row for row in metrics if key in row]
    return [row["step"] for row in rows], [row[key] for row in rows]


def mean_interval(values) -> tuple[float, float, float]:
    """(mean, sample deviation, half of the 95 % interval of the mean by Student's t) of one value a seed."""
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 2:
        return float(values.mean()), 0.0, math.nan
    deviation = float(values.std(ddof=1))
    t = T_975[n - 2] if n - 2 < len(T_975) else 1.96
    return float(values.mean()), deviation, t * deviation / math.sqrt(n)


def percent(values) -> str:
    """Shares of several seeds as "81.2 (dev. 1.3, 79.6 - 82.8)"; the range is the 95 % interval of the mean."""
    mean, deviation, half = (100 * x for x in mean_interval(values))
    return f"{mean:.1f} (dev. {deviation:.1f}, {mean - half:.1f} - {mean + half:.1f})"


def difference(first, second) -> str:
    """The mean of second - first, seed by seed, with its 95 % interval."""
    mean, _, half = (100 * x for x in mean_interval(np.subtract(second, first)))
    verdict = "yes" if mean - half > 0 else "no" if mean + half < 0 else "undecided"
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f}): {verdict}"


def save(path: Path, values: dict) -> None:
    with atomic_write(path) as file:
        json.dump(values, file, indent=2)
    print(f"written to {path}")


@contextmanager
def canvas(
    path: Path, rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 4.5)
) -> Iterator[list]:
    """Axes [rows * columns] of a picture of `size` inches, which is written to `path` as a PNG at the end."""
    try:
        import matplotlib
    except ImportError:
        raise InputError(f"{path}: drawing needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=size, dpi=150, squeeze=False)
    yield axes.flatten().tolist()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
    print(f"drawn in {path}")


def picture(
    path: Path, title: str, xlabel: str, ylabel: str, lines: dict[str, tuple], log_x: bool = False
) -> None:
    """Draw lines {name: (x, [values of a seed] x seeds)} with their mean and 95 % interval as a PNG."""
    with canvas(path) as (axes,):
        for name, (x, seeds) in lines.items():
            mean, _, half = zip(
                *(mean_interval(column) for column in zip(*seeds, strict=True)), strict=True
            )
            mean, half = np.array(mean), np.nan_to_num(half)
            (line,) = axes.plot(x, mean, label=name, marker="o", markersize=3)
            axes.fill_between(
                x, mean - half, mean + half, alpha=0.15, color=line.get_color(), linewidth=0
            )
        if log_x:
            axes.set_xscale("log", base=2)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        axes.grid(alpha=0.3)
        axes.legend()
