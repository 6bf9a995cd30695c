"""What a stage will need, before a GPU is rented: memory by kind, arithmetic, hours, what to change if it does not fit.

    python -m tools.plan grpo --config configs/paper/grpo.toml --model 7b --gpus 8
    python -m tools.plan pretrain --config configs/paper/pretrain.toml --model 7b --gpus 64 --tflops 400
    python -m tools.plan sft --model DIR --gpus 1 --gpu_memory 24 --micro_tokens 8192 --rates runs/sft_1.3b

After the stage (pretrain, sft, reward, grpo, ppo, dpo) come the trainer's own options and those below; its files need
not be there. The trainer's own functions run on the meta device (tools/ledger.py), with made-up sequences as long as the
options allow, and what is printed is what the process holds that has most to do.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import train_dpo
import train_grpo
import train_ppo
import train_pretrain
import train_reward
import train_sft
from batch import (
    MicroBatch,
    cut_group,
    micro_batches,
    pack_rollouts,
    token_logprobs,
    token_scores,
    token_values,
)
from data.io import InputError, run_cli
from data.problems.problem import Problem
from generate import Decoder, Sample, Sequence, sample_tokens
from kernels.cpu import decoder as cpu_decoder
from kernels.triton.decoder import SharedCache
from model import PRESETS, KVCache, Layout, ModelConfig, Transformer, preset
from rollout import Rollout
from runtime.distributed import World
from runtime.hf import read_config
from runtime.options import option, parse, usage
from tools.ledger import ELSEWHERE, Ledger, Model

STAGES = {
    "pretrain": train_pretrain,
    "sft": train_sft,
    "reward": train_reward,
    "grpo": train_grpo,
    "ppo": train_ppo,
    "dpo": train_dpo,
}
META = World(device=torch.device("meta"))
KINDS = {  # in the order of the table
    "weights": "weights, float32",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "gathered": "gathered, bf16 copies",
    "reference": "reference, float32",
    "sampler": "sampler's copy",
    "reward model": "reward model",
    "cache": "KV cache",
    "activations": "activations",
    "logits": "logits, [V, D] gradient",
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


# ---------------------------------------------------------------------------------------------------------------------
# The work of a step: made-up sequences, cut into micro-batches as the trainer cuts them


@dataclass
class Work:
    """A step's sequences, and those that the process with most tokens has in its first two micro-batches (the second
    finds the gradients of the first)."""

    text: str
    tokens: (
        int  # of a step, over all GPUs; a question is read once for each micro-batch that it is in
    )
    once: int  # the same with every question read once: as timing.jsonl counts
    own: int  # tokens of the process that has most
    micros: int  # its micro-batches
    largest: int  # tokens of the first, none is larger
    traced: int  # tokens of the first two
    items: list | np.ndarray  # what these two hold


def response_tokens(config) -> int:
    return (
        config.response_tokens
        or getattr(config, "max_new_tokens", 0)
        or config.context - config.prompt_tokens
    )


def work_of(stage: str, config) -> Work:
    prompt = config.prompt_tokens
    if stage == "pretrain":
        share = -(-config.batch // config.gpus)
        sizes = [
            min(config.micro_batch, share - first) for first in range(0, share, config.micro_batch)
        ]
        rows = np.zeros((sum(sizes[:2]), config.context + 1), dtype=np.int64)
        if config.document_tokens:
            rows[:, config.document_tokens - 1 :: config.document_tokens] = 1  # EOS
        tokens = [size * config.context for size in sizes]
        text = f"{config.batch:,} sequences of {config.context:,} tokens"
        together = config.batch * config.context
        return Work(
            text, together, together, sum(tokens), len(sizes), tokens[0], sum(tokens[:2]), rows
        )

    length = response_tokens(config)
    if stage == "sft":
        count = config.batch * (config.context // (prompt + length))
        text = f"{count:,} examples of {prompt} + {length:,} tokens"
        items, sizes = [([0] * prompt, [[0] * length])] * count, [prompt + length] * count
    elif stage == "dpo":
        sample = Sample([0] * length, [0.0] * length, [True] * length, "eos")
        text = f"{config.batch:,} pairs of {prompt} + 2 x {length:,} tokens"
        items = [train_dpo.Pair([0] * prompt, sample, sample)] * config.batch
        sizes = [pair.tokens for pair in items]
    else:
        group = config.completions if stage == "reward" else config.samples
        text = (
            f"{config.questions:,} questions of {prompt} x {group} completions of {length:,} tokens"
        )
        parts = cut_group([0] * prompt, [[0] * length] * group, config.micro_tokens)
        items = [
            _group(stage, prompt, len(members), length)
            for _ in range(config.questions)
            for members in parts
        ]
        sizes = [prompt + len(members) * length for members in parts] * config.questions
    once = sum(sizes) if stage in ("sft", "dpo") else config.questions * (prompt + group * length)
    shares = micro_batches(sizes, config.micro_tokens, config.gpus)
    tokens = max(
        ([sum(sizes[i] for i in micro) for micro in micros if micro] for micros in shares), key=sum
    )
    first = max(shares, key=lambda micros: sum(sizes[i] for micro in micros for i in micro))[:2]
    chosen = [items[i] for micro in first for i in micro]
    return Work(
        text, sum(sizes), once, sum(tokens), len(tokens), tokens[0], sum(tokens[:2]), chosen
    )


def _group(stage: str, prompt: int, count: int, length: int):
    ids = [0] * length
    if stage == "reward":
        labels = [[1.0]] * count
        return train_reward.Labelled(
            [0] * prompt, [ids] * count, [[length - 1]] * count, labels, [1.0] * count
        )
    samples, numbers = (
        [Sample(ids, [0.0] * length, [True] * length, "eos")] * count,
        [[0.0] * length] * count,
    )
    made = Rollout(Problem("", "", ""), "cot", [0] * prompt, samples, advantages=[1.0] * count)
    made.values, made.returns = numbers, numbers
    return made


# ---------------------------------------------------------------------------------------------------------------------
# A step on the meta device


@dataclass
class Plan:
    """What a step takes. Bytes are those of the process that has most to do."""

    shape: ModelConfig
    work: Work
    parameters: int
    phases: dict[str, dict[str, int]]  # bytes by kind when most is held
    most: dict[str, int]  # bytes of each kind when most of that kind is held
    flops: dict[str, float]  # of the process that has most to do
    learned: dict[str, int] = dataclasses.field(
        default_factory=dict
    )  # bytes by kind when the gradients are whole
    decoded: int = 0  # completions decoded at once
    decode_steps: int = 0
    decode_bytes: float = 0.0  # weights and cache that decoding reads
    cache_capacity: int = 0

    def held(self, phase: str) -> int:
        return sum(self.phases[phase].values())

    @property
    def peak(self) -> int:
        return max(map(self.held, self.phases))

    @property
    def update_flops(self) -> float:
        return sum(flops for name, flops in self.flops.items() if name != "rollout")


def model_shape(stage: str, config) -> ModelConfig:
    """The model's ModelConfig. Raises InputError where there is none, or its context is too short."""
    name = config.model or config.init or getattr(config, "size", "")
    if not name:
        raise InputError(f"--model is needed: {', '.join(PRESETS)}, or a model directory")
    if name in PRESETS or not Path(name).exists():
        if name not in PRESETS and ("/" in name or Path(name).suffix):
            raise InputError(
                f"--model {name}: no such directory; give one with config.json, or {', '.join(PRESETS)}"
            )
        shape = preset(name, config.vocab)
    else:
        shape = read_config(name)
    longest = (
        config.prompt_tokens + response_tokens(config) if stage != "pretrain" else config.context
    )
    if stage in ("grpo", "ppo") and longest > shape.context:
        raise InputError(
            f"--prompt_tokens {config.prompt_tokens} and responses of {response_tokens(config)} are longer than the "
            f"model's context, {shape.context}; lower one"
        )
    shape.context = max(shape.context, longest)
    return shape


def check(stage: str, config) -> None:
    if config.kernels == "plain":
        raise InputError("--kernels plain: a plan is of the fast path; leave it out")
    if stage != "pretrain" and not hasattr(config, "max_new_tokens"):
        if config.prompt_tokens + (config.response_tokens or 1) > config.context:
            raise InputError(
                f"--prompt_tokens and --response_tokens are above --context {config.context}; lower them"
            )
    # The check of the trainer asks for files that a plan does not need.
    if hasattr(STAGES[stage], "check"):
        files = {
            name: getattr(config, name) or kind
            for name, kind in FILES.items()
            if hasattr(config, name)
        }
        if getattr(config, "reward", "rule") == "rule":
            files.pop("reward_model", None)
        STAGES[stage].check(replace(config, **files))


FILES = {"init": "-", "to": "-", "problems": ["-"], "data": ["-"], "reward_model": "-"}


def measure(stage: str, config, shape: ModelConfig | None = None) -> Plan:
    """Trace a step of the trainer: models as it holds them, two micro-batches, a decoding step. shape: the model's, if
    it is not the one that the options name."""
    shape, work = shape or model_shape(stage, config), work_of(stage, config)
    gpu = config.device != "cpu"
    dtype = torch.bfloat16 if gpu else torch.float32
    ledger = Ledger(shape.vocab_size)
    score = config.kind if stage == "reward" else ""
    with ledger.tracing(gpu):
        shared = ledger, replace(shape, score=score), config.gpus, dtype
        value = reference = judge = None
        with ledger.phase("start"):
            model = Model(*shared)
            if stage == "ppo":
                value = Model(ledger, replace(shape, score="value"), config.gpus, dtype)
            beta = (
                getattr(config, "beta", 0) if getattr(config, "algorithm", "grpo") == "grpo" else 0
            )
            if beta:
                reference = Model(*shared, trained=False, kind="reference")
            if stage in ("grpo", "ppo"):
                copies = 2 if getattr(config, "algorithm", "") == "rft" else 1
                sampler = [
                    Model(*shared, trained=False, kind="sampler", whole=True) for _ in range(copies)
                ][-1]
                if config.reward != "rule":
                    scored = replace(
                        read_config(config.reward_model) if config.reward_model else shape,
                        score="value",
                    )
                    judge = Model(
                        ledger,
                        scored,
                        config.gpus,
                        dtype,
                        trained=False,
                        kind="reward model",
                        whole=True,
                    )
        trained = [one for one in (model, value) if one is not None]
        for one in trained:
            one.add_optimizer()
            one.module.activation_checkpointing = config.activation_checkpointing
            one.module.set_dropout(getattr(config, "dropout", 0.0))
        flops = {}
        plan = Plan(
            shape,
            work,
            sum(p.numel() for p in model.module.parameters()),
            ledger.phases,
            ledger.most,
            flops,
        )

        def phase(
            name: str, run: Callable[[], object], times: float = work.own / work.traced
        ) -> None:
            before = ledger.flops
            with ledger.phase(name):
                run()
            flops[name] = (ledger.flops - before) * times

        items = work.items
        if stage in ("grpo", "ppo"):
            _reinforce(
                stage, config, plan, ledger, phase, items, model, value, reference, judge, sampler
            )
        else:
            other = reference.module if reference is not None else None
            phase("update", lambda: _learn(stage, config, model.module, other, items))
            plan.learned = dict(ledger.live)
        for one in trained:
            one.zero_grad()
        if getattr(config, "reward_questions", 0):
            given = ["--config", config.reward_config] if config.reward_config else []
            names = {field.name for field in dataclasses.fields(Options)}
            again = {name: getattr(config, name) for name in names} | {
                "model": config.reward_model or config.model
            }
            again |= {
                "kind": config.reward.removesuffix("_model"),
                "completions": config.samples,
            }
            inner = measure(
                "reward",
                replace(
                    parse(options_of("reward"), given, partial=True), **again, device=config.device
                ),
            )
            for name in inner.phases:  # the reward model learns on while all else stays where it is
                held = {kind: size for kind, size in ledger.live.items() if size and kind in KINDS}
                both = inner.phases[name]
                phases = {
                    kind: held.get(kind, 0) + both.get(kind, 0)
                    for kind in KINDS
                    if kind in {*held, *both}
                }
                ledger.phases[f"reward {name}"] = phases
            for kind, most in inner.most.items():
                ledger.most[kind] = max(ledger.most[kind], ledger.live[kind] + most)
    return plan


def _learn(stage: str, config, model: Transformer, reference: Transformer | None, items) -> None:
    """Forward and backward of some items, by the trainer's own function."""
    if stage == "pretrain":
        train_pretrain.batch_loss(model, items, 1, config.micro_batch, META)
    elif stage == "sft":
        train_sft.batch_loss(model, items, config.micro_tokens, META)
    elif stage == "reward":
        train_reward.reward_gradient(model, items, config, META)
    else:
        train_dpo.batch_loss(model, reference, items, config, META)


def _reinforce(
    stage: str,
    config,
    plan: Plan,
    ledger: Ledger,
    phase,
    items,
    model,
    value,
    reference,
    judge,
    sampler,
):
    options = train_ppo.as_grpo(config) if stage == "ppo" else config
    frozen = reference.module if reference is not None else None
    batches: list[MicroBatch] = []

    def pack(reference=None) -> None:
        batches.extend(pack_rollouts(items, config.micro_tokens, META))
        train_grpo.set_weights(batches, items, options)
        for micro in batches if reference is not None else []:
            with torch.no_grad():
                micro.ref_logp, _ = token_logprobs(reference, micro, config.temperature)

    if stage == "grpo" and frozen is not None:
        phase("reference", lambda: pack(frozen))
    else:
        pack()
    if value is not None:
        phase("assess", lambda: _assess(batches, value.module, frozen, config.temperature))

    def update() -> None:
        train_grpo.grpo_gradient(model.module, batches, options)
        if value is not None:
            train_ppo.value_gradient(value.module, batches, items, config)

    phase("update", update, config.mu * plan.work.own / plan.work.traced)
    plan.learned = dict(ledger.live)
    batches.clear()
    for one in (model, value):
        if one is not None:
            one.zero_grad()

    prompts, group, prompt = (
        -(-config.questions // config.gpus),
        config.samples,
        config.prompt_tokens,
    )
    rows, mean = min(config.max_rows, prompts * group), response_tokens(config)
    longest = min(config.max_new_tokens, plan.shape.context - prompt)
    completions = prompts * group
    plan.decoded, plan.decode_steps = rows, math.ceil(completions * mean / rows)
    cpu = config.device == "cpu"
    in_cpp = cpu and cpu_decoder.suits(plan.shape)
    place = META.device, sampler.dtype
    with ledger.of_kind("cache"), ledger.phase("rollout"):
        if in_cpp:
            cache = cpu_decoder.BlockCache(plan.shape, rows, prompt + longest, *place)
        elif cpu:
            cache = KVCache(plan.shape, rows, prompt + longest, *place)
        else:
            sequences = [Sequence(p, 0, prompt, longest, 0, 0) for p in range(prompts)]
            cache = SharedCache(plan.shape, rows, group, sequences, *place)
    matrices = int(plan.shape.flops(1, 1, 0) / 2) if in_cpp else 0
    packed = ledger.new(matrices, torch.float32, "weights")  # CpuDecoder's copy
    # A GPU's step is a kernel that meta tensors do not run. The plain decoder's operations stand for it.
    with ledger.of_kind(ELSEWHERE):
        whole = KVCache(plan.shape, rows, prompt + longest, *place)
    before = ledger.flops
    with torch.no_grad(), ledger.phase("rollout"):
        ledger.new(
            max(p.numel() for p in model.module.parameters()), torch.float32, "gathered"
        )  # gather_into
        pack = (cpu_decoder.CpuDecoder if in_cpp else Decoder).pack
        at_once = min(-(-rows // group), max(1, pack // prompt))
        _prefill(sampler.module, prompt, at_once)
        prefill = ledger.flops - before
        _decode(sampler.module, whole, config.temperature, prompt + longest)
        before = ledger.flops
        _decode(sampler.module, whole, config.temperature, prompt + (mean + 1) // 2)
    plan.flops["rollout"] = (
        prefill * prompts / at_once + (ledger.flops - before) / rows * completions * mean
    )
    weights = sum(w.nbytes for w in sampler.weights)
    if not plan.shape.tied:  # of the embedding only the rows of the new tokens
        weights -= plan.shape.vocab_size * plan.shape.width * sampler.dtype.itemsize
    token = 2 * cache.keys.nbytes / (cache.rows * cache.capacity)
    plan.cache_capacity = cache.capacity
    together = 1 if cpu else min(group, rows)  # rows that read a prompt at once
    cached = completions * (mean * prompt / together + mean * (mean - 1) / 2)
    plan.decode_bytes = plan.decode_steps * weights + token * cached
    del cache, whole, packed
    if judge is not None:  # RewardModel's micro-batches: parts of a group, or several groups
        parts = cut_group([0] * prompt, [[0] * mean] * group, config.micro_tokens)
        together = min(prompts, max(1, config.micro_tokens // (prompt + group * mean)))

        def score() -> None:
            for members in parts:
                count = len(members)
                groups = [([0] * prompt, [[0] * mean] * count)] * together
                token_scores(judge.module, groups, [[mean - 1]] * (count * together))

        with torch.no_grad():
            phase("reward", score, prompts / together)


def _assess(batches, value: Transformer, reference: Transformer | None, temperature: float) -> None:
    """train_ppo.assess, but for what it makes of the numbers."""
    with torch.no_grad():
        for micro in batches:
            told = [token_values(value, micro)]
            if reference is not None:
                told.append(token_logprobs(reference, micro, temperature)[0])
            torch.stack(told)


def _prefill(model: Transformer, prompt: int, count: int) -> None:
    store, ids = [], torch.zeros(count * prompt, dtype=torch.int64, device="meta")
    hidden = model(ids, Layout([prompt] * count, device="meta"), store)
    kept = [torch.stack(part) for part in zip(*store, strict=True)]
    model.logits(hidden[:count]).float()
    del kept


def _decode(model: Transformer, cache: KVCache, temperature: float, longest: int) -> None:
    """A token for every row of a cache in which the longest row has so many."""
    ids = torch.zeros(cache.rows, dtype=torch.int64, device="meta")
    logits = model.logits(model.decode(ids, cache, ids, longest)).float()
    sample_tokens(
        logits, temperature, 1.0, torch.zeros(cache.rows, dtype=torch.float64, device="meta")
    )


# ---------------------------------------------------------------------------------------------------------------------
# Rates, advice, report


def options_of(stage: str) -> type:
    """The trainer's options and those of a plan, as one dataclass."""
    return dataclasses.dataclass(
        type("Config", (STAGES[stage].Config, Options), {"__annotations__": {}})
    )


def measured_rates(stage: str, config) -> tuple[float, float]:
    """(FLOPs a second and GPU in forward and backward, bytes a second in decoding or 0) of the run `--rates`: what this
    program counts for its options, over the median of its seconds. Raises InputError."""
    run = Path(config.rates)
    rows = {}
    for name in ("timing", "metrics"):
        try:
            lines = (run / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
            rows[name] = [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            raise InputError(
                f"--rates {run}: {name}.jsonl cannot be read ({error}); give a run directory"
            ) from None
    finished = [*sorted(run.glob("step_*")), run / "model"]
    model = next((path for path in reversed(finished) if (path / "config.json").exists()), None)
    if model is None:
        raise InputError(f"--rates {run}: no model in it; give a run that has saved one")
    before = parse(options_of(stage), ["--config", str(run / "config.toml")], partial=True)
    given = {"model": str(model), "gpus": config.rates_gpus, "device": config.device}
    before = replace(
        before, **given, prompt_tokens=config.prompt_tokens, document_tokens=config.document_tokens
    )
    timing = [row for row in rows["timing"] if row.get("seconds")]
    if not timing:
        raise InputError(
            f"--rates {run}: timing.jsonl has no step with seconds; give a run that has made some"
        )

    def median(name: str) -> float:
        values = [row[name] for row in timing if row.get(name)]
        if not values:
            raise InputError(
                f"--rates {run}: timing.jsonl has no {name}; give a run of train_{stage}.py"
            )
        return float(np.median(values))

    if stage in ("grpo", "ppo"):
        lengths = [row["length"] for row in rows["metrics"] if "length" in row]
        before.response_tokens = max(1, round(float(np.mean(lengths)))) if lengths else 0
        found = measure(stage, before)
        learning = found.update_flops - found.flops.get("reward", 0)
        seconds = median("update") + (median("assess") if stage == "ppo" else 0)
        return learning / seconds, found.decode_bytes / median("rollout")
    before.response_tokens = config.response_tokens
    found = measure(stage, before)
    return found.update_flops * median("tokens_per_second") / found.work.once, 0.0


def smaller(config, found: Plan, floor: int):
    """With micro-batches of half the tokens, of at least `floor` and of a sequence; None where they hold no more."""
    half = found.work.largest // 2
    if hasattr(config, "micro_batch"):
        return (
            replace(config, micro_batch=half // config.context)
            if half >= max(floor, config.context)
            else None
        )
    shortest = config.prompt_tokens + response_tokens(config) * (
        2 if hasattr(config, "length_normalize") else 1
    )
    fits = half >= floor and shortest < found.work.largest
    return replace(config, micro_tokens=max(half, shortest)) if fits else None


def fewer_rows(config, found: Plan):
    return replace(config, max_rows=found.decoded // 2) if found.decoded >= 16 else None


def checkpointed(config, found: Plan):
    return (
        None if config.activation_checkpointing else replace(config, activation_checkpointing=True)
    )


def more_gpus(config, found: Plan):
    return replace(config, gpus=2 * config.gpus) if config.gpus < 1024 else None


def _gathers(old: Plan, new: Plan) -> str:
    return f"{new.work.micros} micro-batches a step, not {old.work.micros}: all weights are gathered for each"


# (change, what it costs), the cheapest first
LADDER = (
    (
        fewer_rows,
        lambda old, new: f"{new.decode_steps / old.decode_steps:.3g} times the decoding steps",
    ),
    (lambda config, found: smaller(config, found, 4096), _gathers),
    (checkpointed, lambda old, new: f"{new.update_flops / old.update_flops:.2f} times the FLOPs"),
    (lambda config, found: smaller(config, found, 1), _gathers),
    (more_gpus, lambda old, new: "more machines"),
)


def advice(stage: str, config, found: Plan, limit: float) -> Iterator[tuple[str, Plan, str]]:
    """(Changed option, the plan with it and those before, its cost), the cheapest first, until a step fits."""

    def excess(plan: Plan) -> float:
        return sum(max(0.0, plan.held(phase) - limit) for phase in plan.phases)

    for change, cost in LADDER:
        before, start = found, config
        while excess(found) and (tried := change(config, found)) is not None:
            new = measure(stage, tried)
            if excess(new) > 0.999 * excess(found):
                break
            config, found = tried, new
        if change is more_gpus and excess(found):
            return  # what is too large is whole on every GPU
        if found is not before:
            changed = [
                f.name
                for f in dataclasses.fields(config)
                if getattr(config, f.name) != getattr(start, f.name)
            ]
            text = " ".join(f"--{key} {str(getattr(config, key)).lower()}" for key in changed)
            yield text, found, cost(before, found)


def table(found: Plan) -> str:
    """Kinds by phases, each phase at its own peak; last, the most of a kind at any time."""
    order = [
        name
        for name in ("start", "rollout", "reward", "reference", "assess", "update")
        if name in found.phases
    ]
    order += [name for name in found.phases if name not in order]
    lines = [f"{'GB on a GPU':24}" + "".join(f"{name:>15}" for name in [*order, "at any time"])]
    for kind, text in KINDS.items():
        row = [found.phases[phase].get(kind, 0) / GB for phase in order] + [
            found.most.get(kind, 0) / GB
        ]
        if any(row):
            lines.append(
                f"{text:24}" + "".join(f"{size:15.2f}" if size else f"{'-':>15}" for size in row)
            )
    lines.append(f"{'together':24}" + "".join(f"{found.held(phase) / GB:15.2f}" for phase in order))
    return "\n".join(lines)


def report(stage: str, config) -> str:
    check(stage, config)
    tflops, bandwidth = config.tflops * 1e12, config.bandwidth * 1e12
    limit = config.gpu_memory * GB * (1 - config.reserve)
    found, decided = measure(stage, config), ""
    if config.activation_checkpointing is None:  # as the trainer decides
        decided = "activation checkpointing " + ("on" if found.held("update") > limit else "off")
        decided += f": without it learning takes {found.held('update') / GB:.2f} GB"
        if found.held("update") > limit:
            config = replace(config, activation_checkpointing=True)
            found = measure(stage, config)
    rates = "given"
    if config.rates:
        tflops, bandwidth = measured_rates(stage, config)
        rates = f"of {config.rates}"
    work, shape = found.work, found.shape
    lines = [
        f"{stage}: {found.parameters / 1e9:.3f} B parameters (D {shape.width}, {shape.layers} layers, vocabulary "
        f"{shape.vocab_size:,}), {config.gpus} GPUs of {config.gpu_memory:g} GB",
        f"a step: {work.text}, {work.tokens:,} tokens; on a GPU {work.micros} micro-batches of "
        f"at most {work.largest:,} tokens",
    ]
    if found.decoded:
        lines.append(
            f"decoding: {found.decoded} completions at once, {found.cache_capacity:,} tokens of cache each"
        )
    if decided:
        lines.append(decided)
    fits = found.peak <= limit
    verdict = "it fits" if fits else "IT DOES NOT FIT"
    kept = f"{limit / GB:.1f} GB of {config.gpu_memory:g} ({config.reserve:.0%} kept free)"
    lines += ["", table(found), "", f"peak {found.peak / GB:.2f} GB, {kept}: {verdict}"]
    if not fits:
        last = found
        for text, last, cost in advice(stage, config, found, limit):
            lines.append(f"  {text:34} peak {last.peak / GB:8.2f} GB   {cost}")
        if last.peak > limit:
            phase = max(last.phases, key=last.held)
            reason = f"{phase!r} takes more than {limit / GB:.1f} GB on however many GPUs"
            lines.append(f"  that is all: {reason}; take larger ones, or a smaller model")
    lines += ["", *speed(found, config, tflops, bandwidth, rates)]
    return "\n".join(lines)


def speed(found: Plan, config, tflops: float, bandwidth: float, rates: str) -> Iterator[str]:
    """Lines on arithmetic and time of a step, on the GPU that has most to do."""
    steps = config.steps * getattr(config, "iterations", 1)
    seconds = 0.0
    for name, flops in found.flops.items():
        line = f"{name:10} {flops / 1e12:14,.1f} TFLOPs a GPU and step"
        if name == "rollout":
            line += (
                f", {found.decode_steps:,} decoding steps read {found.decode_bytes / 1e12:.2f} TB"
            )
            if bandwidth:
                seconds += found.decode_bytes / bandwidth
                line += f": {found.decode_bytes / bandwidth:,.1f} s"
        elif tflops:
            seconds += flops / tflops
            line += f": {flops / tflops:,.1f} s"
        yield line
    missing = [] if tflops else ["--tflops"]
    missing += ["--bandwidth"] if found.decoded and not bandwidth else []
    if missing:
        yield f"seconds: give {' and '.join(missing)} (measured), or --rates RUN"
        return
    at = f"{tflops / 1e12:.3g} TFLOP/s" + (
        f" and {bandwidth / 1e12:.3g} TB/s" if found.decoded else ""
    )
    yield f"a step {seconds:,.1f} s, {steps:,} steps {steps * seconds / 3600:,.1f} hours at {at}, {rates}"


def main() -> None:
    stage = (
        sys.argv[1].removeprefix("train_").removesuffix(".py") if len(sys.argv) > 1 else "--help"
    )
    if stage in ("--help", "-h"):
        print(usage(Options, __doc__))
        return
    if stage not in STAGES:
        raise InputError(f"{sys.argv[1]}: unknown stage; begin with one of {', '.join(STAGES)}")
    print(report(stage, parse(options_of(stage), sys.argv[2:], __doc__, partial=True)))


if __name__ == "__main__":
    run_cli(main)
