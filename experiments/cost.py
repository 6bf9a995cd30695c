"""How the cost of a GRPO step grows: seconds and memory over G, length, questions and model size.

    python -m experiments.cost [--device auto] [--to runs/figures]

Changes a base shape in one direction at a time, over powers of two. Completions have a fixed length
and rewards are random, so nothing else changes. Every point is a process of its own, with its own
peak memory: resident on a CPU, above what was there before the model; allocated on a GPU. TO/cost
keeps the measured points, and the same command continues a stopped sweep.

Beside the measured points stand the counts of tools/plan.py: FLOPs at the rate of the base point
(on a GPU, the bytes that decoding reads) and bytes held. A bend is where the slope of a log-log
curve changes. A cost model of a few terms (`counts`) says why: its seconds per unit are fitted to
all points. For memory the kinds of tools/plan.py say why.
"""

import ctypes
import dataclasses
import json
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from runtime.options import option

import torch

import train_grpo
from bench.grpo_step import Learner
from bench.turns import machine, peak_bytes, reset_peak
from data.io import InputError
from experiments.common import canvas, flags, run, save
from experiments.cost_model import (
    PHASES,
    fit_units,
    held,
    median_seconds,
    predicted,
    seconds,
    short,
    story,
    sweep_bends,
    term_seconds,
)
from model import ModelConfig, Transformer
from presets import PRESETS, preset
from runtime.distributed import World, setup
from runtime.run import command
from tools import plan
from tools.step import Plan

POWERS = [2**i for i in range(13)]
BASES = {
    "cpu": dict(
        size="1m",
        vocab=512,
        prompt=32,
        questions=8,
        samples=8,
        length=32,
        micro_tokens=4096,
        max_rows=256,
        by_samples=POWERS[:7],
        by_length=POWERS[2:10],
        by_questions=POWERS[:7],
        by_size=["1m", "2m", "4m", "10m", "30m"],
    ),
    "cuda": dict(
        size="1.3b",
        vocab=102_400,
        prompt=256,
        questions=16,
        samples=64,
        length=1024,
        micro_tokens=16_384,
        max_rows=256,
        by_samples=POWERS[2:8],
        by_length=POWERS[6:12],
        by_questions=POWERS[:6],
        by_size=["30m", "125m", "350m", "1.3b"],
    ),
}


@dataclass
class Config:
    to: str = option("runs/figures", "directory of the points, the table and the picture")
    device: str = option("auto", "device", choices=("auto", "cpu", "cuda"))
    repeats: int = option(5, "measured steps of a point", least=1)
    seconds: float = option(10.0, "after this time three measured steps are enough", least=0)
    point: str = option("", "measure only the base shape, in this process, into this file")
    # the base shape; 0 or empty: small on a CPU; 1.3B with the paper's G and length on a GPU
    size: str = option("", f"size preset: {', '.join(PRESETS)}")
    vocab: int = option(0, "vocabulary", least=0)
    prompt: int = option(0, "tokens of a question", least=0)
    questions: int = option(0, "questions of a step", least=0)
    samples: int = option(0, "completions G of a question", least=0)
    length: int = option(0, "tokens of a completion", least=0)
    micro_tokens: int = option(0, "tokens of one forward and backward", least=0)
    max_rows: int = option(0, "completions decoded at once", least=0)
    # the directions
    by_samples: list[int] = option([], "values of --samples", least=1)
    by_length: list[int] = option([], "values of --length", least=1)
    by_questions: list[int] = option([], "values of --questions", least=1)
    by_size: list[str] = option([], "values of --size")


@dataclass(frozen=True)
class Shape:
    """A step: Q questions of P tokens, G completions of L tokens each, and the model."""

    size: str
    vocab: int
    prompt: int
    questions: int
    samples: int
    length: int
    micro_tokens: int
    max_rows: int

    @property
    def model(self):
        return preset(
            self.size,
            self.vocab,
            context=max(4096, self.prompt + self.length),
        )

    @property
    def parameters(self) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in Transformer(self.model).parameters())


SWEEPS = {  # direction -> its name in tables
    "samples": "samples of a question, G",
    "length": "tokens of a completion",
    "questions": "questions of a step",
    "size": "parameters",
}

# --------------------------------------------------------------------------------------------------
# A point


def measure(
    shape: Shape,
    world: World,
    repeats: int,
    budget: float,
) -> dict:
    """{"seconds": {phase: [of each step]}, "bytes": {phase: peak}}.

    Two steps of one question warm up. After `budget` seconds three measured steps are enough. One
    more step measures the memory. On a CPU the bytes of a process that has made a step of a tiny
    model are subtracted: libraries and what they allocate at their first use.
    """
    cuda = world.device.type == "cuda"
    before = 0 if cuda else bytes_of_libraries(shape, world)
    learner = make_learner(shape, shape.model, world)
    found: dict = {"seconds": {phase: [] for phase in PHASES}, "bytes": {}}

    def timed(phase: str, work, *arguments):
        began = time.perf_counter()
        result = work(*arguments)  # ends with numbers on the host: a GPU has finished its work
        found["seconds"][phase].append(time.perf_counter() - began)
        return result

    def weighed(phase: str, work, *arguments):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            result = work(*arguments)
            found["bytes"][phase] = torch.cuda.max_memory_allocated()
        else:
            return_freed()
            reset_peak()
            result = work(*arguments)
            found["bytes"][phase] = peak_bytes() - before
        return result

    def step(number: int, questions: int, watch=timed) -> None:
        draw = torch.Generator().manual_seed(number)
        prompts = torch.randint(shape.vocab, (questions, shape.prompt), generator=draw).tolist()
        rollouts = watch("rollout", learner.rollout, prompts, number)
        watch("learning", learner.update, rollouts)

    # warm up
    for number in range(2):
        step(number, 1)
    for rows in found["seconds"].values():
        rows.clear()

    # measure
    began = time.perf_counter()
    for number in range(repeats):
        if number >= 3 and time.perf_counter() - began > budget:
            break
        step(2 + number, shape.questions)
    step(2 + repeats, shape.questions, weighed)
    return found


def bytes_of_libraries(shape: Shape, world: World) -> int:
    """Resident bytes of this process after a step of a tiny model."""
    tiny = dataclasses.replace(shape, samples=2, length=4)
    learner = make_learner(
        tiny,
        ModelConfig(8, 16, 1, 2, 1, 16),
        world,
    )
    learner.update(learner.rollout([[1, 2, 3]] * 2, seed=0))
    del learner
    return_freed()
    reset_peak()
    return peak_bytes()


def return_freed() -> None:
    """Give freed memory back to the system: glibc keeps it, but it is no part of the next phase."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def make_learner(shape: Shape, model: ModelConfig, world: World) -> Learner:
    """What train_grpo.py holds. Only their length ends completions."""
    config = train_grpo.Config(
        questions=shape.questions,
        samples=shape.samples,
        max_new_tokens=shape.length,
        max_rows=shape.max_rows,
        micro_tokens=shape.micro_tokens,
    )
    return Learner(
        Transformer(model).to(world.device),
        config,
        world,
        eos=-1,
    )


def planned(shape: Shape, gpu: bool) -> Plan:
    """What tools/plan.py counts for a step on one device."""
    options = plan.options_of("grpo")(
        model=shape.size,
        vocab=shape.vocab,
        gpus=1,
        device="cuda" if gpu else "cpu",
        prompt_tokens=shape.prompt,
        questions=shape.questions,
        samples=shape.samples,
        max_new_tokens=shape.length,
        max_rows=shape.max_rows,
        micro_tokens=shape.micro_tokens,
    )
    return plan.measure("grpo", options)


def counts(shape: Shape, gpu: bool) -> dict:
    """What a step of the shape needs, of each phase: the work that its time is predicted from, the
    bytes held, by kind (of the part that holds most), and the terms of the cost model.
    """
    found, model = planned(shape, gpu), shape.model
    learning = max(("reference", "update"), key=found.held)
    flops = {"rollout": found.flops["rollout"], "learning": found.update_flops}
    attention = attention_flops(shape)
    weights, layers = found.parameters, model.layers
    return {
        "parameters": weights,
        "micro_batches": found.work.micros,
        "work": flops | ({"rollout": found.decode_bytes} if gpu else {}),
        "bytes": {"rollout": found.phases["rollout"], "learning": found.phases[learning]},
        "terms": {
            "rollout": {
                "overhead of decoding steps": found.decode_steps * layers,
                "weights read at each decoding step": found.decode_steps * weights,
                "matrix products of decoding": flops["rollout"] - attention["rollout"],
                "attention of decoding": attention["rollout"],
            },
            "learning": {
                "overhead of micro-batches": found.work.micros * layers,
                "optimizer": weights,
                "matrix products of learning": flops["learning"] - attention["learning"],
                "attention of learning": attention["learning"],
            },
        },
    }


def attention_flops(shape: Shape) -> dict[str, float]:
    """FLOPs of the attention, from the pairs of tokens that see each other.

    Two products for each pair without gradients; with gradients five more, because the scores are
    computed again.
    """
    P, L, G = shape.prompt, shape.length, shape.samples
    model = shape.model
    pair = 2 * model.heads * model.head_width * model.layers * shape.questions
    prompt = P * (P + 1) / 2
    decoded = prompt + G * (L * P + L * (L + 1) / 2)
    learned = prompt + G * ((L - 1) * P + (L - 1) * L / 2)  # the last token is no input
    return {"rollout": 2 * pair * decoded, "learning": (2 + 2 + 5) * pair * learned}


# --------------------------------------------------------------------------------------------------
# The sweep


def complete(config: Config, kind: str) -> Config:
    """The options with the device's defaults. Raises InputError."""
    missing = {n: value for n, value in BASES[kind].items() if not getattr(config, n)}
    config = dataclasses.replace(config, **missing)
    for name in [config.size, *config.by_size]:
        preset(name, config.vocab)
    return config


def shape_of(config: Config, **changes) -> Shape:
    names = [field.name for field in dataclasses.fields(Shape)]
    return Shape(**{name: getattr(config, name) for name in names} | changes)


def sweep(config: Config, name: str) -> list[Shape]:
    """The shapes of a direction, in order, with the base shape among them."""
    values = dict.fromkeys([*getattr(config, f"by_{name}"), getattr(config, name)])
    shapes = [shape_of(config, **{name: value}) for value in values]
    return sorted(shapes, key=lambda shape: position(shape, name))


def position(shape: Shape, name: str) -> float:
    """The place of a shape on the axis of a direction."""
    return shape.parameters if name == "size" else getattr(shape, name)


def point_of(shape: Shape, config: Config, kind: str) -> dict | None:
    """The point of a shape. It is measured in another process, unless its file exists.

    None if the device has not enough memory.
    """
    # is there enough memory?
    counted = counts(shape, gpu=kind == "cuda")
    need = max(sum(part.values()) for part in counted["bytes"].values())
    if kind == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > 0.9 * memory:
        print(f"left out: {shape} needs {need / 1e9:.1f} GB of {memory / 1e9:.1f}")
        return None

    # measure
    values = dataclasses.asdict(shape)
    words = [kind, f"threads{torch.get_num_threads()}"]
    words += [f"{name}{value}" for name, value in values.items()]
    file = Path(config.to).resolve() / "cost" / f"{'_'.join(words)}.json"
    options = flags(point=file, **values, device=kind)
    options += flags(repeats=config.repeats, seconds=config.seconds)
    run(file, "-m", "experiments.cost", *options)
    measured = json.loads(file.read_text(encoding="utf-8"))
    counted["counted"] = counted.pop("bytes")
    return {**values, **measured, **counted}


def table(
    points: list[dict],
    x: list[float],
    base: dict,
    name: str,
) -> str:
    """A Markdown table of a direction."""
    headings = [SWEEPS[name], "rollout", "reference and update", "a step", "counted"]
    rows = [[*headings, "memory", "counted"]]
    rows.append(["---"] * len(rows[0]))
    for value, point in zip(x, points, strict=True):
        row = [short(value)]
        for phase in (*PHASES, "step"):
            times = seconds(point, phase)
            middle = median_seconds(point, phase)
            row.append(f"{middle:.3f} s ({min(times):.3f} - {max(times):.3f})")
        row.append(f"{predicted(point, base, 'step'):.3f} s")
        for counted in (False, True):
            row.append(f"{held(point, 'step', counted) / 1e6:,.0f} MB")
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(path: Path, sweeps: dict[str, tuple[list[float], list[dict]]], base: dict) -> None:
    """Time above, memory below, a column for each direction. Dashed: counted; dotted: bends."""
    with canvas(path, 2, len(sweeps), (5 * len(sweeps), 9)) as axes:
        for column, (name, (x, points)) in enumerate(sweeps.items()):
            above, below = axes[column], axes[len(sweeps) + column]
            draw_time(above, x, points, base)
            draw_memory(below, x, points)
            for axis, what in ((above, "time"), (below, "memory")):
                for bend in sweep_bends(points, x, what)[0]:
                    axis.axvline(x[bend], linestyle=":", color="gray")
                axis.set_xscale("log", base=2)
                axis.set_yscale("log")
                axis.set_xticks(x, list(map(short, x)))
                axis.grid(alpha=0.3, which="both")
                axis.legend()
            above.set(title=f"against {SWEEPS[name]}")
            below.set(xlabel=SWEEPS[name])
        axes[0].set(ylabel="seconds (dashed: counted)")
        axes[len(sweeps)].set(ylabel="peak memory, MB (dashed: counted)")


LABELS = {"rollout": "rollout", "learning": "reference and update", "step": "step"}
COLORS = {"rollout": "tab:blue", "learning": "tab:orange", "step": "black"}


def draw_time(
    axis,
    x: list[float],
    points: list[dict],
    base: dict,
) -> None:
    for phase, color in COLORS.items():
        medians = [median_seconds(point, phase) for point in points]
        axis.plot(
            x,
            medians,
            marker="o",
            markersize=3,
            color=color,
            label=LABELS[phase],
        )
        least = [min(seconds(point, phase)) for point in points]
        most = [max(seconds(point, phase)) for point in points]
        axis.fill_between(
            x,
            least,
            most,
            alpha=0.15,
            color=color,
            linewidth=0,
        )
        counted = [predicted(point, base, phase) for point in points]
        axis.plot(x, counted, "--", color=color, linewidth=1)


def draw_memory(axis, x: list[float], points: list[dict]) -> None:
    for phase in PHASES:
        color = COLORS[phase]
        measured = [held(point, phase) / 1e6 for point in points]
        axis.plot(
            x,
            measured,
            marker="o",
            markersize=3,
            color=color,
            label=LABELS[phase],
        )
        counted = [held(point, phase, counted=True) / 1e6 for point in points]
        axis.plot(x, counted, "--", color=color, linewidth=1)


def main(config: Config) -> None:
    world = setup(config.device)
    kind = world.device.type
    config = complete(config, kind)
    if config.point:
        found = measure(shape_of(config), world, config.repeats, config.seconds)
        save(Path(config.point), found | machine() | {"threads": torch.get_num_threads()})
        return

    # measure all points, each once
    sweeps, known = {}, {}
    for name in SWEEPS:
        for shape in sweep(config, name):
            if shape not in known:
                known[shape] = point_of(shape, config, kind)
        kept = [shape for shape in sweep(config, name) if known[shape]]
        x = [position(shape, name) for shape in kept]
        sweeps[name] = x, [known[shape] for shape in kept]
    base = known[shape_of(config)]
    if base is None:
        raise InputError(
            "the base shape does not fit; give a smaller --size, --micro_tokens or --max_rows"
        )

    # fit the cost model
    points = [point for point in known.values() if point]
    units = fit_units(points)
    errors = []
    for point in points:
        modeled = sum(term_seconds(point, units).values())
        errors.append(abs(modeled / median_seconds(point, "step") - 1))

    # tables, sentences, picture
    lines = []
    for name, (x, row) in sweeps.items():
        lines += ["", table(row, x, base, name), ""]
        lines += [f"- {story(row, x, what, units)}." for what in ("time", "memory")]
    median, most = statistics.median(errors), max(errors)
    lines += ["", f"The cost model is off by {median:.0%} in the median, {most:.0%} at most."]
    print("\n".join(lines))
    to = Path(config.to).resolve()
    values = {
        "base": base,
        "seconds_of_a_unit": units,
        "points": points,
        "text": lines,
    }
    save(to / "cost.json", values)
    draw(to / "cost.png", sweeps, base)


if __name__ == "__main__":
    command(main, Config)
