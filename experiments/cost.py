"""How cost grows: seconds and memory of a GRPO step against samples, length, questions and model size; where it bends.

    python -m experiments.cost [--device auto] [--to runs/figures]

A base shape is changed in one direction at a time, over powers of two. Completions have a fixed length (nothing ends
one), rewards are random: what is swept is the only thing that changes. Every point is a process of its own, so that its
peak memory is its own: resident on a CPU, above what stood before the model was made; allocated on a GPU. TO/cost keeps
the points that have been measured, and a stopped sweep goes on from there; another --to measures anew.

Beside the measured points stand what the counts of tools/plan.py say: the FLOPs of a phase at the rate of the base point (on
a GPU, for decoding, the bytes it reads) and the bytes of what is held. A sweep's bends are where the slope of its
log-log curve changes. Why, is said by a cost model of a few terms (`counts`), whose seconds a unit are fitted to all
points at once; for memory by the kinds of tools/plan.py.
"""

import ctypes
import dataclasses
import itertools
import json
import math
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import train_grpo
from bench.grpo_step import Learner
from bench.turns import machine, peak_bytes, reset_peak
from data.io import InputError
from experiments.common import canvas, flags, run, save
from model import PRESETS, ModelConfig, Transformer, preset
from runtime.distributed import World, setup
from runtime.options import option
from runtime.run import command
from tools import plan

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
    device: str = option("auto", "auto, cpu or cuda")
    repeats: int = option(5, "steps measured at a point")
    seconds: float = option(10.0, "a point that has taken so long has enough with three steps")
    point: str = option("", "a file: measure the base shape alone, in this process, into it")
    # the base shape; 0 or nothing: a small one on a CPU, DeepSeek-Coder's 1.3B with the paper's G and length on a GPU
    size: str = option("", f"size preset: {', '.join(PRESETS)}")
    vocab: int = option(0, "vocabulary")
    prompt: int = option(0, "tokens of a question")
    questions: int = option(0, "questions of a step")
    samples: int = option(0, "completions G of a question")
    length: int = option(0, "tokens of a completion")
    micro_tokens: int = option(0, "tokens of one forward and backward")
    max_rows: int = option(0, "completions decoded at once")
    # the directions
    by_samples: list[int] = option([], "values of --samples")
    by_length: list[int] = option([], "values of --length")
    by_questions: list[int] = option([], "values of --questions")
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
        return preset(self.size, self.vocab, context=max(4096, self.prompt + self.length))

    @property
    def parameters(self) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in Transformer(self.model).parameters())


SWEEPS = {  # what is swept: how it is called
    "samples": "samples of a question, G",
    "length": "tokens of a completion",
    "questions": "questions of a step",
    "size": "parameters",
}
PHASES = ("rollout", "learning")

# ---------------------------------------------------------------------------------------------------------------------
# A point


def measure(shape: Shape, world: World, repeats: int, budget: float) -> dict:
    """Seconds of every step's phases; peak bytes of each phase, of one step more. Two steps of one question come first.

    On a CPU bytes are above those of a process that has made a step of a tiny model: what libraries load and allocate
    when they are first used is no part of the point.
    """
    cuda, before = world.device.type == "cuda", 0
    if not cuda:
        tiny = learner_of(
            dataclasses.replace(shape, samples=2, length=4), ModelConfig(8, 16, 1, 2, 1, 16), world
        )
        tiny.update(tiny.rollout([[1, 2, 3]] * 2, seed=0))
        del tiny
        return_freed()
        reset_peak()
        before = peak_bytes()
    learner = learner_of(shape, shape.model, world)
    found: dict = {"seconds": {phase: [] for phase in PHASES}, "bytes": {}}

    def phase(name: str, work, *arguments, memory: bool):
        if memory:
            torch.cuda.reset_peak_memory_stats() if cuda else return_freed()
            reset_peak()
        began = time.perf_counter()
        result = work(*arguments)  # ends with numbers on the host, so that a GPU has done its work
        if memory:
            found["bytes"][name] = (
                torch.cuda.max_memory_allocated() if cuda else peak_bytes() - before
            )
        else:
            found["seconds"][name].append(time.perf_counter() - began)
        return result

    def step(number: int, questions: int, memory: bool = False) -> None:
        draw = torch.Generator().manual_seed(number)
        prompts = torch.randint(shape.vocab, (questions, shape.prompt), generator=draw).tolist()
        rollouts = phase("rollout", learner.rollout, prompts, number, memory=memory)
        phase("learning", learner.update, rollouts, memory=memory)

    for number in range(2):
        step(number, 1)
    for rows in found["seconds"].values():
        rows.clear()
    began = time.perf_counter()
    for number in range(repeats):
        if number >= 3 and time.perf_counter() - began > budget:
            break
        step(2 + number, shape.questions)
    step(2 + repeats, shape.questions, memory=True)
    return found


def return_freed() -> None:
    """Give back what the phase before has freed (glibc keeps it): it is no part of this one's memory."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def learner_of(shape: Shape, model: ModelConfig, world: World) -> Learner:
    """What train_grpo.py holds, with completions that nothing but their length ends."""
    config = train_grpo.Config(
        questions=shape.questions,
        samples=shape.samples,
        max_new_tokens=shape.length,
        max_rows=shape.max_rows,
        micro_tokens=shape.micro_tokens,
    )
    return Learner(Transformer(model).to(world.device), config, world, eos=-1)


def planned(shape: Shape, gpu: bool) -> plan.Plan:
    """What tools/plan.py counts for a step on one device."""
    return plan.measure(
        "grpo",
        plan.options_of("grpo")(
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
        ),
    )


def counts(shape: Shape, gpu: bool) -> dict:
    """What a step of the shape needs, of each phase: the work that its time is predicted from, the bytes held, by kind
    (of the part that holds most), and the terms of the cost model."""
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
    """Of the pairs of tokens that see each other: two products without gradients, five more with (the scores are made
    again)."""
    P, L, G = shape.prompt, shape.length, shape.samples
    pair = 2 * shape.model.heads * shape.model.head_width * shape.model.layers * shape.questions
    prompt = P * (P + 1) / 2
    if G > 1:  # the prompt once; what is last in a completion is not fed
        fed = prompt + G * ((L - 1) * P + (L - 1) * L / 2)
    else:
        fed = (P + L - 1) * (P + L) / 2
    decoded = prompt + G * (L * P + L * (L + 1) / 2)
    return {"rollout": 2 * pair * decoded, "learning": (2 + 2 + 5) * pair * fed}


# ---------------------------------------------------------------------------------------------------------------------
# Bends and reasons


def bends(x, y, tolerance: float = 0.1, change: float = 0.25) -> tuple[list[int], list[float]]:
    """(Places in x where the slope of log y against log x changes, the slopes of the pieces.)

    The curve is continuous and straight between the bends, which stand at inner points: the fewest with which no point
    is further off than `tolerance` (of log y), at most one for two points beyond the second; slopes that differ by
    less than `change` are one.
    """
    x, y = np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float))

    def fit(places: tuple[int, ...]) -> tuple[float, np.ndarray, float]:
        columns = [np.ones_like(x), x - x[0], *(np.maximum(0, x - x[place]) for place in places)]
        solution = np.linalg.lstsq(np.stack(columns, axis=1), y, rcond=None)[0]
        errors = y - solution @ np.stack(columns)
        return float(errors @ errors), solution[1:], float(np.abs(errors).max())

    inner, chosen = range(1, len(x) - 1), ()
    for count in range(max(0, (len(x) - 2) // 2) + 1):
        chosen = min(itertools.combinations(inner, count), key=lambda places: fit(places)[0])
        if fit(chosen)[2] <= tolerance:
            break
    while chosen:
        changes = np.abs(fit(chosen)[1][1:])
        if changes.min() >= change:
            break
        chosen = tuple(place for i, place in enumerate(chosen) if i != changes.argmin())
    return list(chosen), np.cumsum(fit(chosen)[1]).tolist()


def nonnegative(features, values) -> np.ndarray:
    """The coefficients >= 0 [F] with which features [N, F] come nearest to values [N] > 0, by relative squared error.

    There are few features: every set of them that may be above 0 is tried.
    """
    features, values = np.asarray(features, dtype=float), np.asarray(values, dtype=float)
    scale = np.maximum(features.max(axis=0), 1e-300)  # FLOPs beside counts: columns of like size
    A = features / scale / values[:, None]
    best, least = np.zeros(A.shape[1]), float(len(values))
    for count in range(1, A.shape[1] + 1):
        for chosen in map(list, itertools.combinations(range(A.shape[1]), count)):
            solution = np.linalg.lstsq(A[:, chosen], np.ones(len(values)), rcond=None)[0]
            error = float(((A[:, chosen] @ solution - 1) ** 2).sum())
            if (solution >= 0).all() and error < least - 1e-12:
                best, least = np.zeros(A.shape[1]), error
                best[chosen] = solution
    return best / scale


def fitted(points: list[dict]) -> dict[str, dict[str, float]]:
    """Seconds of a unit of each term of each phase, fitted to the medians of all points."""
    found = {}
    for phase in PHASES:
        names = list(points[0]["terms"][phase])
        rows = [[point["terms"][phase][name] for name in names] for point in points]
        solution = nonnegative(rows, [middle(point, phase) for point in points])
        found[phase] = dict(zip(names, solution.tolist(), strict=True))
    return found


def middle(point: dict, phase: str) -> float:
    """The median seconds of a phase, or of the "step"."""
    return statistics.median(seconds(point, phase))


def seconds(point: dict, phase: str) -> list[float]:
    if phase == "step":
        return [sum(pair) for pair in zip(*point["seconds"].values(), strict=True)]
    return point["seconds"][phase]


def predicted(point: dict, base: dict, phase: str) -> float:
    """Seconds of a phase, or of the "step", with the base point's rate."""
    if phase == "step":
        return sum(predicted(point, base, one) for one in PHASES)
    return middle(base, phase) * point["work"][phase] / base["work"][phase]


def held(point: dict, phase: str, counted: bool = False) -> float:
    """Peak bytes of a phase, or of the "step", as measured or as counted."""
    if phase == "step":
        return max(held(point, one, counted) for one in PHASES)
    return sum(point["counted"][phase].values()) if counted else point["bytes"][phase]


def shares(point: dict, units: dict[str, dict[str, float]]) -> dict[str, float]:
    """What each term of the cost model is of a step's seconds."""
    parts = {
        name: units[phase][name] * count
        for phase in PHASES
        for name, count in point["terms"][phase].items()
    }
    total = sum(parts.values())
    return {name: part / total for name, part in parts.items()}


def kinds(point: dict) -> dict[str, float]:
    """What each kind is of the counted bytes, in the phase that holds most of them."""
    phase = max(PHASES, key=lambda one: held(point, one, counted=True))
    total = held(point, phase, counted=True)
    return {plan.KINDS[kind]: size / total for kind, size in point["counted"][phase].items()}


def reasons(points: list[dict], of) -> str:
    """The largest shares, as means over the points: those of a tenth and more, at most three."""
    parts = [of(point) for point in points]
    mean = {
        name: sum(part.get(name, 0.0) for part in parts) / len(parts)
        for part in parts
        for name in part
    }
    largest = sorted(mean.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {share:.0%}" for name, share in largest if share >= 0.1)


def turning(points: list[dict], x: list[float], what: str) -> tuple[list[int], list[float]]:
    """The `bends` of a sweep's "time" or "memory"; what is less than the repeats' spread is none."""
    if what == "memory":
        return bends(x, [held(point, "step") for point in points])
    times = [seconds(point, "step") for point in points]
    noise = statistics.median(math.log(max(row) / min(row)) / 2 for row in times)
    return bends(x, list(map(statistics.median, times)), max(0.1, noise))


def story(points: list[dict], x: list[float], what: str, units: dict) -> str:
    """A line in words: the slopes of a sweep's "time" or "memory", where they change, what dominates on each side."""
    of = kinds if what == "memory" else lambda point: shares(point, units)
    places, slopes = turning(points, x, what)
    parts = []
    for first, last, slope in zip([0, *places], [*places, len(x) - 1], slopes, strict=True):
        own = points[first : last + 1]
        text = f"{short(x[first])} to {short(x[last])} slope {round(slope, 2) + 0.0:.2f} ({reasons(own, of)}"
        micros = sorted({point["micro_batches"] for point in own})
        if micros[-1] > 1:
            text += (
                f"; {' to '.join(map(str, dict.fromkeys([micros[0], micros[-1]])))} micro-batches"
            )
        parts.append(text + ")")
    return f"{what}: " + "; then ".join(parts)


def short(number: float) -> str:
    """1,024, 0.85M or 1.3B."""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if number >= size / 10:
            return f"{number / size:.3g}{letter}"
    return f"{number:,.0f}"


# ---------------------------------------------------------------------------------------------------------------------
# The sweep


def complete(config: Config, kind: str) -> Config:
    """With the device's values where none are given. Raises InputError."""
    config = dataclasses.replace(
        config, **{name: value for name, value in BASES[kind].items() if not getattr(config, name)}
    )
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if any(
            type(one) is int and one < 1 for one in (value if isinstance(value, list) else [value])
        ):
            raise InputError(f"--{field.name} must be at least 1")
    for name in [config.size, *config.by_size]:
        preset(name, config.vocab)
    return config


def shape_of(config: Config, **changes) -> Shape:
    names = [field.name for field in dataclasses.fields(Shape)]
    return Shape(**{name: getattr(config, name) for name in names} | changes)


def sweep(config: Config, name: str) -> list[Shape]:
    """The shapes of a direction by what is swept, the base shape among them."""
    values = dict.fromkeys([*getattr(config, f"by_{name}"), getattr(config, name)])
    return sorted(
        (shape_of(config, **{name: value}) for value in values),
        key=lambda shape: place(shape, name),
    )


def place(shape: Shape, name: str) -> float:
    """Where a shape stands in a direction."""
    return shape.parameters if name == "size" else getattr(shape, name)


def point_of(shape: Shape, config: Config, kind: str) -> dict | None:
    """A shape's counts, and what was measured, in a process of its own unless its file is there. None where the device
    has not the memory."""
    counted = counts(shape, gpu=kind == "cuda")
    need = max(sum(part.values()) for part in counted["bytes"].values())
    if kind == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > 0.9 * memory:
        print(f"left out: {shape} needs {need / 1e9:.1f} GB of {memory / 1e9:.1f}")
        return None
    own = dataclasses.asdict(shape)
    words = [
        kind,
        f"threads{torch.get_num_threads()}",
        *(f"{name}{value}" for name, value in own.items()),
    ]
    file = Path(config.to).resolve() / "cost" / f"{'_'.join(words)}.json"
    more = dict(device=kind, repeats=config.repeats, seconds=config.seconds)
    run(file, "-m", "experiments.cost", *flags(point=file, **own, **more))
    measured = json.loads(file.read_text(encoding="utf-8"))
    return {**own, **measured, **counted, "bytes": measured["bytes"], "counted": counted["bytes"]}


def table(points: list[dict], x: list[float], base: dict, name: str) -> str:
    """A Markdown table of a direction."""
    head = (
        SWEEPS[name],
        "rollout",
        "reference and update",
        "a step",
        "counted",
        "memory",
        "counted",
    )
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for value, point in zip(x, points, strict=True):
        times = [
            f"{middle(point, phase):.3f} s ({min(seconds(point, phase)):.3f} - {max(seconds(point, phase)):.3f})"
            for phase in (*PHASES, "step")
        ]
        memory = [f"{held(point, 'step', counted) / 1e6:,.0f} MB" for counted in (False, True)]
        cells = [short(value), *times, f"{predicted(point, base, 'step'):.3f} s", *memory]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(path: Path, sweeps: dict[str, tuple[list[float], list[dict]]], base: dict) -> None:
    """Time above, memory below, a column for each direction; dashed: what the counts say; dotted: the bends."""
    with canvas(path, 2, len(sweeps), (5 * len(sweeps), 9)) as axes:
        for column, (name, (x, points)) in enumerate(sweeps.items()):
            above, below = axes[column], axes[len(sweeps) + column]
            for phase, color in zip(
                (*PHASES, "step"), ("tab:blue", "tab:orange", "black"), strict=True
            ):
                label = {"learning": "reference and update"}.get(phase, phase)
                times = [seconds(point, phase) for point in points]
                above.plot(
                    x,
                    list(map(statistics.median, times)),
                    marker="o",
                    markersize=3,
                    color=color,
                    label=label,
                )
                least, most = list(map(min, times)), list(map(max, times))
                above.fill_between(x, least, most, alpha=0.15, color=color, linewidth=0)
                above.plot(
                    x,
                    [predicted(point, base, phase) for point in points],
                    "--",
                    color=color,
                    linewidth=1,
                )
                if phase != "step":
                    below.plot(
                        x,
                        [held(p, phase) / 1e6 for p in points],
                        marker="o",
                        markersize=3,
                        color=color,
                        label=label,
                    )
                    below.plot(
                        x,
                        [held(p, phase, True) / 1e6 for p in points],
                        "--",
                        color=color,
                        linewidth=1,
                    )
            for one, what in ((above, "time"), (below, "memory")):
                for bend in turning(points, x, what)[0]:
                    one.axvline(x[bend], linestyle=":", color="gray")
                one.set_xscale("log", base=2)
                one.set_yscale("log")
                one.set_xticks(x, list(map(short, x)))
                one.grid(alpha=0.3, which="both")
            above.set(
                title=f"against {SWEEPS[name]}",
                ylabel="seconds (dashed: counted)" if not column else "",
            )
            below.set(
                xlabel=SWEEPS[name],
                ylabel="peak memory, MB (dashed: counted)" if not column else "",
            )
            above.legend()
            below.legend()


def main(config: Config) -> None:
    world = setup(config.device)
    kind = world.device.type
    config = complete(config, kind)
    if config.point:
        found = measure(shape_of(config), world, config.repeats, config.seconds)
        save(Path(config.point), found | machine() | {"threads": torch.get_num_threads()})
        return
    sweeps, known = {}, {}
    for name in SWEEPS:
        for shape in sweep(config, name):
            if shape not in known:
                known[shape] = point_of(shape, config, kind)
        kept = [shape for shape in sweep(config, name) if known[shape]]
        sweeps[name] = [place(shape, name) for shape in kept], [known[shape] for shape in kept]
    base, points = known[shape_of(config)], [point for point in known.values() if point]
    if base is None:
        raise InputError(
            "the base shape does not fit; give a smaller --size, --micro_tokens or --max_rows"
        )
    units, lines = fitted(points), []
    for name, (x, own) in sweeps.items():
        lines += ["", table(own, x, base, name), ""]
        lines += [f"- {story(own, x, what, units)}." for what in ("time", "memory")]
    off = [
        abs(
            sum(
                units[phase][name] * count
                for phase in PHASES
                for name, count in point["terms"][phase].items()
            )
            / middle(point, "step")
            - 1
        )
        for point in points
    ]
    lines += [
        "",
        f"The cost model is off by {statistics.median(off):.0%} in the median, {max(off):.0%} at most.",
    ]
    print("\n".join(lines))
    to = Path(config.to).resolve()
    save(
        to / "cost.json",
        {"base": base, "seconds_of_a_unit": units, "points": points, "text": lines},
    )
    draw(to / "cost.png", sweeps, base)


if __name__ == "__main__":
    command(main, Config)
