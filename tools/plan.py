"""What a training stage needs: memory by kind, arithmetic, hours, and what to change if it does not
fit.

    python -m tools.plan grpo --config configs/paper/grpo.toml --model 7b --gpus 8
    python -m tools.plan pretrain --config configs/paper/pretrain.toml --model 7b --gpus 64 --tflops 400
    python -m tools.plan sft --model DIR --gpus 1 --gpu_memory 24 --rates runs/sft_1.3b

After the stage (pretrain, sft, reward, grpo, ppo, dpo) come the trainer's options and those below.
The trainer's files need not exist. Nothing is trained: the trainer's functions run on the meta
device (tools/step.py), with sequences as long as the options allow. The table is that of the
process that has most to do.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from runtime.options import option, parse, usage

import numpy as np

import train_dpo
import train_grpo
import train_ppo
import train_pretrain
import train_reward
import train_sft
from data.io import InputError, run_cli
from model import ModelConfig
from presets import PRESETS, preset
from runtime.hf import read_config
from tools import step
from tools.step import KINDS, Plan
from tools.work import response_tokens

STAGES = {
    "pretrain": train_pretrain,
    "sft": train_sft,
    "reward": train_reward,
    "grpo": train_grpo,
    "ppo": train_ppo,
    "dpo": train_dpo,
}
GB = 1e9


@dataclass
class Options:
    # what is planned
    model: str = option("", "size preset or model directory; default: --init, or --size")
    vocab: int = option(102_400, "vocabulary of a preset (DeepSeek's)", least=1)
    gpus: int = option(8, "GPUs, one process each, over all machines", least=1)
    gpu_memory: float = option(80.0, "memory of a GPU, GB (10^9 bytes)", above=0)
    reserve: float = option(0.1, "share of it kept free, for CUDA and NCCL", least=0, below=1)
    # the sequences
    prompt_tokens: int = option(256, "tokens of a question", least=1)
    response_tokens: int = option(0, "mean tokens of a response; 0: the most", least=0)
    completions: int = option(16, "reward: completions of a question", least=1)
    document_tokens: int = option(0, "pretrain: tokens of a document; 0: the context", least=0)
    # how fast
    tflops: float = option(0.0, "10^12 FLOP/s of a GPU in learning; 0: not known", least=0)
    bandwidth: float = option(0.0, "10^12 bytes/s of a GPU in decoding; 0: not known", least=0)
    rates: str = option("", "run directory of the same trainer; gives both as measured")
    rates_gpus: int = option(1, "GPUs of that run", least=1)


def options_of(stage: str) -> type:
    """The trainer's options and those of a plan, as one dataclass."""
    bases = (STAGES[stage].Config, Options)
    return dataclasses.dataclass(type("Config", bases, {"__annotations__": {}}))


def check(stage: str, config) -> None:
    """Raises InputError for options that the trainer or a plan refuses."""
    if config.kernels == "plain":
        raise InputError("--kernels plain: a plan is of the fast path; leave it out")
    if stage != "pretrain" and not hasattr(config, "max_new_tokens"):
        if config.prompt_tokens + (config.response_tokens or 1) > config.context:
            raise InputError(
                f"--prompt_tokens and --response_tokens are above --context {config.context}; "
                "lower them"
            )
    if hasattr(STAGES[stage], "check"):
        # The trainer's check asks for files, which a plan does not need.
        files = {"init": "-", "to": "-", "problems": ["-"], "data": ["-"]}
        if getattr(config, "reward", "rule") != "rule":
            files["reward_model"] = "-"
        missing = {}
        for name, value in files.items():
            if hasattr(config, name) and not getattr(config, name):
                missing[name] = value
        STAGES[stage].check(replace(config, **missing))


def model_shape(stage: str, config) -> ModelConfig:
    """The model's configuration. Raises InputError if there is none or its context is too short."""
    name = config.model or config.init or getattr(config, "size", "")
    if not name:
        raise InputError(f"--model is needed: {', '.join(PRESETS)}, or a model directory")
    if name in PRESETS or not Path(name).exists():
        if name not in PRESETS and ("/" in name or Path(name).suffix):
            raise InputError(
                f"--model {name}: no such directory; give one with config.json, or "
                f"{', '.join(PRESETS)}"
            )
        shape = preset(name, config.vocab)
    else:
        shape = read_config(name)
    longest = config.context if stage == "pretrain" else 0
    if stage != "pretrain":
        longest = config.prompt_tokens + response_tokens(config)
    if stage in ("grpo", "ppo") and longest > shape.context:
        raise InputError(
            f"--prompt_tokens {config.prompt_tokens} and responses of {response_tokens(config)} "
            f"are longer than the model's context, {shape.context}; lower one"
        )
    shape.context = max(shape.context, longest)
    return shape


def measure(stage: str, config) -> Plan:
    """What a step takes; see tools/step.py."""
    return step.measure(stage, config, model_shape(stage, config))


# --------------------------------------------------------------------------------------------------
# Rates of a run


def measured_rates(stage: str, config) -> tuple[float, float]:
    """(FLOP/s of a GPU in learning, bytes/s in decoding or 0), as the run --rates reached them.

    The counts of a plan with the run's options, over the median of its seconds. Raises InputError.
    """
    # the run
    run = Path(config.rates)
    timing = [row for row in read_rows(run, "timing") if row.get("seconds")]
    if not timing:
        raise InputError(
            f"--rates {run}: timing.jsonl has no step with seconds; give a run that has made some"
        )
    saved = [*sorted(run.glob("step_*")), run / "model"]
    saved = [path for path in saved if (path / "config.json").exists()]
    if not saved:
        raise InputError(f"--rates {run}: no model in it; give a run that has saved one")

    # its options
    options = parse(options_of(stage), ["--config", str(run / "config.toml")], partial=True)
    options.model, options.gpus = str(saved[-1]), config.rates_gpus
    for name in ("device", "prompt_tokens", "response_tokens", "document_tokens"):
        setattr(options, name, getattr(config, name))

    def median(name: str) -> float:
        values = [row[name] for row in timing if row.get(name)]
        if not values:
            raise InputError(
                f"--rates {run}: timing.jsonl has no {name}; give a run of train_{stage}.py"
            )
        return float(np.median(values))

    if stage not in ("grpo", "ppo"):
        found = measure(stage, options)
        return found.update_flops * median("tokens_per_second") / found.work.once, 0.0

    lengths = [row["length"] for row in read_rows(run, "metrics") if "length" in row]
    options.response_tokens = max(1, round(float(np.mean(lengths)))) if lengths else 0
    found = measure(stage, options)
    learning = found.update_flops - found.flops.get("reward", 0)
    seconds = median("update")
    if stage == "ppo":
        seconds += median("assess")
    return learning / seconds, found.decode_bytes / median("rollout")


def read_rows(run: Path, name: str) -> list[dict]:
    """The lines of a run's metrics.jsonl or timing.jsonl."""
    try:
        lines = (run / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise InputError(
            f"--rates {run}: {name}.jsonl cannot be read ({error}); give a run directory"
        ) from None


# --------------------------------------------------------------------------------------------------
# Advice


def fewer_rows(config, plan: Plan):
    """Half the completions decoded at once."""
    return replace(config, max_rows=plan.decoded // 2) if plan.decoded >= 16 else None


def smaller_batches(config, plan: Plan, floor: int):
    """Micro-batches of half the tokens, at least `floor` and a sequence; None if that is all."""
    half = plan.work.largest // 2
    if hasattr(config, "micro_batch"):
        if half < max(floor, config.context):
            return None
        return replace(config, micro_batch=half // config.context)
    responses = 2 if hasattr(config, "length_normalize") else 1  # DPO: pairs
    shortest = config.prompt_tokens + responses * response_tokens(config)
    if half < floor or shortest >= plan.work.largest:
        return None
    return replace(config, micro_tokens=max(half, shortest))


def checkpointed(config, plan: Plan):
    """Activations computed again in the backward pass."""
    if config.activation_checkpointing:
        return None
    return replace(config, activation_checkpointing=True)


def more_gpus(config, plan: Plan):
    """Twice the GPUs."""
    return replace(config, gpus=2 * config.gpus) if config.gpus < 1024 else None


@dataclass
class Remedy:
    """A change of the options, or None where it does not apply, and its cost in words."""

    change: Callable
    cost: Callable[[Plan, Plan], str]


def decoding_cost(old: Plan, new: Plan) -> str:
    return f"{new.decode_steps / old.decode_steps:.3g} times the decoding steps"


def gather_cost(old: Plan, new: Plan) -> str:
    return (
        f"{new.work.micros} micro-batches a step, not {old.work.micros}: "
        "all weights are gathered for each"
    )


def flops_cost(old: Plan, new: Plan) -> str:
    return f"{new.update_flops / old.update_flops:.2f} times the FLOPs"


REMEDIES = (  # the cheapest first
    Remedy(fewer_rows, decoding_cost),
    Remedy(lambda config, plan: smaller_batches(config, plan, 4096), gather_cost),
    Remedy(checkpointed, flops_cost),
    Remedy(lambda config, plan: smaller_batches(config, plan, 1), gather_cost),
    Remedy(more_gpus, lambda old, new: "more machines"),
)


def advice(stage: str, config, plan: Plan, limit: float) -> Iterator[tuple[str, Plan, str]]:
    """(changed options, the plan with them and those before, their cost), until a step fits."""

    def excess(plan: Plan) -> float:
        return sum(max(0.0, plan.held(phase) - limit) for phase in plan.phases)

    for remedy in REMEDIES:
        before, old = plan, config
        while excess(plan) and (changed := remedy.change(config, plan)) is not None:
            new = measure(stage, changed)
            if excess(new) > 0.999 * excess(plan):
                break
            config, plan = changed, new
        if remedy.change is more_gpus and excess(plan):
            return  # what is too large is whole on every GPU
        if plan is not before:
            yield changes(old, config), plan, remedy.cost(before, plan)


def changes(old, new) -> str:
    """The options that differ, as on the command line."""
    words = []
    for name, value in vars(new).items():
        if value != getattr(old, name):
            words.append(f"--{name} {str(value).lower()}")
    return " ".join(words)


# --------------------------------------------------------------------------------------------------
# The report


def table(plan: Plan) -> str:
    """Kinds of memory by phases, each phase at its peak; last, the most of a kind at any time."""
    order = ("start", "rollout", "reward", "reference", "assess", "update")
    phases = [name for name in order if name in plan.phases]
    phases += [name for name in plan.phases if name not in phases]
    rows = [["GB on a GPU", *phases, "at any time"]]
    for kind, text in KINDS.items():
        sizes = [plan.phases[phase].get(kind, 0) for phase in phases]
        sizes.append(plan.most.get(kind, 0))
        if any(sizes):
            rows.append([text, *(f"{size / GB:.2f}" if size else "-" for size in sizes)])
    rows.append(["together", *(f"{plan.held(phase) / GB:.2f}" for phase in phases)])
    lines = []
    for first, *rest in rows:
        lines.append(f"{first:24}" + "".join(f"{cell:>15}" for cell in rest))
    return "\n".join(lines)


def report(stage: str, config) -> str:
    """The whole text of a plan."""
    if getattr(config, "context", None) == 0:
        config = step.with_context(config, model_shape(stage, config))
    check(stage, config)
    limit = config.gpu_memory * GB * (1 - config.reserve)
    plan = measure(stage, config)

    # activation checkpointing, by need
    decision = []
    if config.activation_checkpointing is None:
        needed = plan.held("update")
        on = needed > limit
        text = f"without it learning takes {needed / GB:.2f} GB"
        decision = [f"activation checkpointing {'on' if on else 'off'}: {text}"]
        if on:
            config = replace(config, activation_checkpointing=True)
            plan = measure(stage, config)

    # the step
    work, shape = plan.work, plan.shape
    lines = [
        f"{stage}: {plan.parameters / 1e9:.3f} B parameters (D {shape.width}, {shape.layers} "
        f"layers, vocabulary {shape.vocab_size:,}), {config.gpus} GPUs of {config.gpu_memory:g} GB",
        f"a step: {work.text}, {work.tokens:,} tokens; on a GPU {work.micros} micro-batches of "
        f"at most {work.largest:,} tokens",
    ]
    if plan.decoded:
        capacity = f"{plan.cache_capacity:,} tokens of cache each"
        lines.append(f"decoding: {plan.decoded} completions at once, {capacity}")
    lines += [*decision, "", table(plan), ""]

    # does it fit?
    fits = plan.peak <= limit
    room = f"{limit / GB:.1f} GB of {config.gpu_memory:g} ({config.reserve:.0%} kept free)"
    verdict = "it fits" if fits else "IT DOES NOT FIT"
    lines.append(f"peak {plan.peak / GB:.2f} GB, {room}: {verdict}")
    if not fits:
        last = plan
        for text, last, cost in advice(stage, config, plan, limit):
            lines.append(f"  {text:34} peak {last.peak / GB:8.2f} GB   {cost}")
        if last.peak > limit:
            phase = max(last.phases, key=last.held)
            lines.append(
                f"  that is all: {phase!r} takes more than {limit / GB:.1f} GB on however many "
                "GPUs; take larger ones, or a smaller model"
            )
    return "\n".join([*lines, "", *speed(stage, config, plan)])


def speed(stage: str, config, plan: Plan) -> Iterator[str]:
    """Lines about the arithmetic and the time of a step, on the GPU that has most to do."""
    tflops, bandwidth, source = config.tflops * 1e12, config.bandwidth * 1e12, "given"
    if config.rates:
        tflops, bandwidth = measured_rates(stage, config)
        source = f"of {config.rates}"

    # phases
    total = 0.0
    for name, flops in plan.flops.items():
        line = f"{name:10} {flops / 1e12:14,.1f} TFLOPs a GPU and step"
        seconds = flops / tflops if tflops else 0.0
        if name == "rollout":
            read = f"{plan.decode_bytes / 1e12:.2f} TB"
            line += f", {plan.decode_steps:,} decoding steps read {read}"
            seconds = plan.decode_bytes / bandwidth if bandwidth else 0.0
        if seconds:
            line += f": {seconds:,.1f} s"
        total += seconds
        yield line

    # all steps
    missing = [] if tflops else ["--tflops"]
    if plan.decoded and not bandwidth:
        missing.append("--bandwidth")
    if missing:
        yield f"seconds: give {' and '.join(missing)} (measured), or --rates RUN"
        return
    rates = f"{tflops / 1e12:.3g} TFLOP/s"
    if plan.decoded:
        rates += f" and {bandwidth / 1e12:.3g} TB/s"
    steps = config.steps * getattr(config, "iterations", 1)
    hours = f"{steps:,} steps {steps * total / 3600:,.1f} hours"
    yield f"a step {total:,.1f} s, {hours} at {rates}, {source}"


def main() -> None:
    words = sys.argv[1:] or ["--help"]
    stage = words[0].removeprefix("train_").removesuffix(".py")
    if stage in ("--help", "-h"):
        print(usage(Options, __doc__))
        return
    if stage not in STAGES:
        raise InputError(f"{words[0]}: unknown stage; begin with one of {', '.join(STAGES)}")
    print(report(stage, parse(options_of(stage), words[1:], __doc__, partial=True)))


if __name__ == "__main__":
    run_cli(main)
