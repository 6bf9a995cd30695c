"""GRPO (paper 4.1, algorithm 1): group relative policy optimization with the rule reward and outcome supervision.

    for iteration in 1..I:                     the reference becomes the policy
        for step in 1..M:                      a batch of questions
            sample G completions of each       `rollout`: generate.py, reward.py
            advantage = (r - mean) / std       `group_advantage`, over each group
            for update in 1..mu:               one optimizer step each
                maximise eq. 3                 `update`: ratio, clip, minus beta times the KL to the reference

Under the paper's unified view (eq. 5): data source pi_theta, reward rule, gradient coefficient eq. 21
(kernels/policy_loss.py). Defaults are the paper's (4.2): lr 1e-6, beta 0.04, 64 samples of up to 1,024 tokens, 1,024
completions a step, mu 1.

    python train_grpo.py --init runs/demo/sft/model --problems runs/demo/data/train.jsonl --to runs/demo/grpo
    torchrun --nproc_per_node 8 train_grpo.py --config configs/paper/grpo.toml --init DIR --problems FILE --to DIR
"""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import runtime
from batch import Group, pack_completions, token_logprobs
from data import InputError, problems, prompts, read_jsonl, write_jsonl
from data.packing import micro_batches
from data.problems import Problem
from data.sandbox import Sandbox
from data.tokenizer import Tokenizer
from eval import check_tokenizer, encode_prompts, evaluate, summarise
from generate import Sample, Sampling, generate
from kernels.advantage import group_advantage
from kernels.policy_loss import policy_loss, token_weights
from model import Transformer, from_pretrained
from options import option
from reward import completion_text, predictions, rule_rewards
from runtime import World, seeded


@dataclass
class Config:
    init: str = option("", "model directory to start from: the first policy and reference")
    problems: list[str] = option([], "training problems with answers, comma-separated files")
    to: str = option("", "run directory; the result is TO/model")
    formats: list[str] = option(["cot"], "in turn over the questions of a batch: cot, pot, or both (cot,cot,pot)")
    template: str = option("plain", "prompt template: plain, deepseek or qwen")
    # algorithm 1
    iterations: int = option(1, "outer iterations I: the reference becomes the policy at the start of each")
    steps: int = option(1000, "steps M of an iteration")
    questions: int = option(16, "questions a step, over all processes (16 x 64 samples = the paper's batch of 1,024)")
    samples: int = option(64, "completions G of a question")
    mu: int = option(1, "optimizer steps on each batch of samples")
    # equation 3
    lr: float = option(1e-6, "learning rate, constant after the warm-up")
    warmup: int = option(0, "steps of linear warm-up")
    decay: float = option(0.0, "share of the steps, the last, over which the rate falls linearly to a tenth (0: none)")
    beta: float = option(0.04, "weight of the KL to the reference; 0 needs no reference")
    clip_low: float = option(0.2, "ratios are clipped below 1 - clip_low")
    clip_high: float = option(0.2, "ratios are clipped above 1 + clip_high")
    normalize: str = option("grpo", "grpo: mean over tokens, then completions; dapo: all tokens; dr_grpo: constant")
    scale: str = option("std", "std: advantages are divided by the group's deviation; none: not (Dr. GRPO)")
    ddof: int = option(1, "1: sample deviation (TRL, verl); 0: population deviation")
    # sampling
    temperature: float = option(1.0, "sampling temperature; the log-probs in the loss use it too")
    max_new_tokens: int = option(1024, "longest completion; a longer one is cut and judged as it is")
    max_rows: int = option(256, "completions decoded at once by one process")
    # optimization
    weight_decay: float = option(0.0, "AdamW weight decay, on matrices")
    beta2: float = option(0.95, "AdamW beta2 (beta1 is 0.9)")
    clip: float = option(1.0, "largest gradient norm")
    micro_tokens: int = option(16_384, "tokens of one forward and backward on one process")
    shared_prompts: bool = option(True, "run a question once for its G completions; false repeats it (same gradient)")
    activation_checkpointing: bool = option(False, "recompute activations in the backward: less memory, 1/3 more time")
    # the run
    valid: str = option("", "problems held out for evaluation during training (greedy)")
    valid_limit: int = option(200, "number of those problems used")
    valid_every: int = option(20, "steps between evaluations; the start and the end are always evaluated")
    save_every: int = option(20, "steps between checkpoints")
    keep: int = option(2, "checkpoints kept")
    keep_rollouts: bool = option(True, "write rollouts to TO/rollouts (a resumed run reads those after its checkpoint)")
    seed: int = option(0, "seed of questions and samples")
    device: str = option("auto", "auto, cpu or cuda")


@dataclass
class Rollout:
    """One question with its G completions, as sampled and as judged."""

    problem: Problem
    format: str
    prompt: list[int]
    samples: list[Sample]  # G
    rewards: list[float]  # G
    advantages: list[float]  # G


def question_order(count: int, seed: int) -> Iterator[int]:
    """Endless problem numbers: every problem once an epoch, shuffled anew each epoch."""
    epoch = 0
    while True:
        yield from np.random.default_rng([seed, epoch]).permutation(count).tolist()
        epoch += 1


# ---------------------------------------------------------------------------------------------------------------------
# Rollout: sample and judge


def rollout(
    config: Config,
    step: int,
    policy: Transformer,
    tokenizer: Tokenizer,
    items: list[Problem],
    sandbox: Sandbox | None,
    world: World,
) -> tuple[list[Rollout], dict]:
    """Sample and judge G completions of each item; processes share the items and exchange results: all return all.

    Random streams hang on (seed, step, place in the batch), so any number of processes draws the same samples.
    """
    began = time.perf_counter()
    own = range(world.rank, len(items), world.size)
    formats = [config.formats[i % len(config.formats)] for i in range(len(items))]
    encoded: dict[int, list[int]] = {}
    groups: dict[int, list[Sample]] = {}
    for format in dict.fromkeys(formats):  # stop strings differ by format
        members = [i for i in own if formats[i] == format]
        stop = tuple(prompts.stop_strings(format, config.template))
        seed = seeded(config.seed, "rollout", step)
        sampling = Sampling(config.samples, config.temperature, 1.0, config.max_new_tokens, stop, seed)
        questions = encode_prompts(tokenizer, [items[i] for i in members], format, config.template)
        sampled = generate(policy, tokenizer, questions, sampling, config.max_rows, keys=members)
        encoded.update(zip(members, questions, strict=True))
        groups.update(zip(members, sampled, strict=True))
    sampled_at = time.perf_counter()
    rewards: dict[int, list[float]] = {}
    for format in dict.fromkeys(formats):
        members = [i for i in own if formats[i] == format]
        stop = tuple(prompts.stop_strings(format, config.template))
        texts = [completion_text(tokenizer, sample, stop) for i in members for sample in groups[i]]
        golds = [items[i].answer for i in members for _ in range(config.samples)]
        judged = rule_rewards(golds, predictions(texts, format, config.template, sandbox))
        for place, i in enumerate(members):
            rewards[i] = judged[place * config.samples : (place + 1) * config.samples]
    mine = [(i, Rollout(items[i], formats[i], encoded[i], groups[i], rewards[i], [])) for i in own]
    everything = sorted((pair for part in world.all_gather_objects(mine) for pair in part), key=lambda pair: pair[0])
    rollouts = [one for _, one in everything]
    scores = torch.tensor([r.rewards for r in rollouts], dtype=torch.float64)  # [Q, G]
    advantages = group_advantage(scores, config.ddof, config.scale)
    for one, row in zip(rollouts, advantages.tolist(), strict=True):
        one.advantages = row
    return rollouts, {"rollout": sampled_at - began, "reward": time.perf_counter() - sampled_at}


def save_rollouts(path: Path, rollouts: list[Rollout], tokenizer: Tokenizer) -> None:
    """A line a question: {id, question, answer, format, prompt, responses}; a response is {text, ids, logprobs, mask,
    reward, advantage, finish}."""

    def row(one: Rollout) -> dict:
        parts = zip(one.samples, one.rewards, one.advantages, strict=True)
        responses = [
            {"text": tokenizer.decode(sample.ids), **asdict(sample), "reward": reward, "advantage": advantage}
            for sample, reward, advantage in parts
        ]
        return {**asdict(one.problem), "format": one.format, "prompt": one.prompt, "responses": responses}

    write_jsonl(path, map(row, rollouts))


def load_rollouts(path: Path) -> list[Rollout]:
    """What `save_rollouts` wrote, bit for bit: a step that was sampled before a crash is not sampled again."""
    rollouts = []
    for _, row in read_jsonl(path):
        problem = Problem(**{key: row[key] for key in ("id", "question", "answer", "solution", "source", "lang")})
        responses = row["responses"]
        samples = [Sample(r["ids"], r["logprobs"], r["mask"], r["finish"]) for r in responses]
        rewards, advantages = [r["reward"] for r in responses], [r["advantage"] for r in responses]
        rollouts.append(Rollout(problem, row["format"], row["prompt"], samples, rewards, advantages))
    return rollouts


# ---------------------------------------------------------------------------------------------------------------------
# Update: equation 3


@dataclass
class Unit:
    """Part of a group that fits a micro-batch: one question and some of its completions, all of them where they fit."""

    rollout: Rollout
    members: list[int]  # numbers of the samples

    @property
    def group(self) -> Group:
        return self.rollout.prompt, [self.rollout.samples[g].ids for g in self.members]

    @property
    def tokens(self) -> int:
        return len(self.rollout.prompt) + sum(len(self.rollout.samples[g].ids) for g in self.members)


def units(rollouts: list[Rollout], budget: int) -> list[Unit]:
    """Cut groups so that question and completions of a unit hold at most `budget` tokens (one completion at least)."""
    found = []
    for one in rollouts:
        unit, size = Unit(one, []), len(one.prompt)
        for g, sample in enumerate(one.samples):
            if unit.members and size + len(sample.ids) > budget:
                found.append(unit)
                unit, size = Unit(one, []), len(one.prompt)
            unit.members.append(g)
            size += len(sample.ids)
        found.append(unit)
    return found


class MicroBatch:
    """Units as tensors, with the constants of the loss: N completion tokens."""

    def __init__(self, parts: list[Unit], config: Config, completions: int, tokens: int, device):
        samples = [unit.rollout.samples[g] for unit in parts for g in unit.members]
        advantages = [unit.rollout.advantages[g] for unit in parts for g in unit.members]
        self.batch = pack_completions([unit.group for unit in parts], config.shared_prompts, device)
        mask = torch.tensor([chosen for sample in samples for chosen in sample.mask], device=device)
        self.advantage = torch.tensor(advantages, dtype=torch.float32, device=device)[self.batch.completion]  # [N]
        lengths = torch.tensor([sum(sample.mask) for sample in samples], device=device)  # |o_i|
        self.weight = token_weights(  # [N]
            lengths, mask, self.batch.completion, config.normalize, completions, tokens, config.max_new_tokens
        )
        self.old_logp: Tensor | None = None  # None at the first update: the policy is the one that sampled (mu = 1)
        self.ref_logp: Tensor | None = None


def grpo_gradient(model, batches: list[MicroBatch], config: Config, first: bool) -> dict[str, Tensor]:
    """Accumulate the gradient of eq. 3 over this process's micro-batches. Returns sums over policy tokens, for metrics.

    Every constant of the loss is in the batches' weights: neither micro-batching nor the number of processes matters.
    """
    sums: dict[str, Tensor] = {}
    for micro in batches:
        logp, entropy = token_logprobs(model, micro.batch, config.temperature, entropy=first)
        clip = config.clip_low, config.clip_high
        loss, stats = policy_loss(
            logp, micro.old_logp, micro.ref_logp, micro.advantage, micro.weight, *clip, config.beta
        )
        loss.backward()
        stats["loss"] = loss.detach()
        if first:
            stats["entropy"] = (entropy * (micro.weight != 0)).sum()
            if config.mu > 1:
                micro.old_logp = logp.detach()
        for key, value in stats.items():
            sums[key] = sums.get(key, 0.0) + value
    return sums


def make_batches(rollouts: list[Rollout], config: Config, reference, world: World) -> list[MicroBatch]:
    """This process's micro-batches with the reference's log-probs, computed once per rollout."""
    masks = [sample.mask for one in rollouts for sample in one.samples]
    completions = sum(any(mask) for mask in masks)  # a completion without a token of the policy's own does not count
    tokens = sum(map(sum, masks))
    parts = units(rollouts, config.micro_tokens)
    batches = []
    for micro in micro_batches([unit.tokens for unit in parts], config.micro_tokens, world.size)[world.rank]:
        made = MicroBatch([parts[i] for i in micro or [0]], config, completions, tokens, world.device)
        if not micro:  # nothing left for this process: run along without loss
            made.weight.zero_()
        if reference is not None:
            with torch.no_grad():
                made.ref_logp = token_logprobs(reference, made.batch, config.temperature)[0]
        batches.append(made)
    return batches


def update(model, optimizer, rollouts: list[Rollout], config: Config, reference, world: World) -> dict:
    """mu optimizer steps on a batch of rollouts. Returns its metrics (the first step's but for clip_fraction)."""
    batches = make_batches(rollouts, config, reference, world)
    metrics = {}
    for inner in range(config.mu):
        sums = grpo_gradient(model, batches, config, first=inner == 0)
        norm = runtime.clip_grad_norm(model, config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        keys = sorted(sums)
        values = world.all_sum(torch.stack([sums[key].double() for key in keys])).tolist()
        total = dict(zip(keys, values, strict=True))
        count = max(total.pop("count"), 1.0)
        last = {key: value if key == "loss" else value / count for key, value in total.items()} | {"grad_norm": norm}
        metrics = {**last, **metrics, "clip_fraction": last["clip"], "ratio": last["ratio"]}
    metrics.pop("clip")
    return metrics


def rollout_metrics(rollouts: list[Rollout]) -> dict:
    """Rewards and lengths of a batch. no_signal: share of groups whose rewards are all alike (advantage 0)."""
    rewards = np.array([one.rewards for one in rollouts])
    samples = [sample for one in rollouts for sample in one.samples]
    lengths = np.array([len(sample.ids) for sample in samples])
    finite = np.isfinite(rewards)
    return {
        "reward": float(rewards[finite].mean()) if finite.any() else 0.0,
        "reward_std": float(rewards[finite].std()) if finite.any() else 0.0,
        "reward_not_finite": int((~finite).sum()),
        "no_signal": float(np.mean([not np.any(one.advantages) for one in rollouts])),
        "length": float(lengths.mean()),
        "length_max": int(lengths.max()),
        "truncated": float(np.mean([sample.finish == "length" for sample in samples])),
    }


def validate(
    config: Config,
    policy: Transformer,
    tokenizer: Tokenizer,
    items: list[Problem],
    sandbox: Sandbox | None,
    world: World,
) -> dict:
    """Greedy accuracy on held-out problems, by format; the processes share the problems."""
    found = {}
    for format in dict.fromkeys(config.formats):
        own, records = items[world.rank :: world.size], []
        if own:
            sampling = Sampling(temperature=0.0, max_new_tokens=config.max_new_tokens)
            records = evaluate(policy, tokenizer, own, format, sampling, config.template, sandbox, config.max_rows)[1]
        records = [record for part in world.all_gather_objects(records) for record in part]
        found[f"valid/{format}"] = summarise(records)["accuracy"]
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Algorithm 1


def check(config: Config) -> None:
    for name in ("init", "problems", "to"):
        if not getattr(config, name):
            raise InputError(f"--{name} is needed")
    for name, known in (("normalize", ("grpo", "dapo", "dr_grpo")), ("scale", ("std", "none"))):
        if getattr(config, name) not in known:
            raise InputError(f"--{name} {getattr(config, name)}: unknown; choose one of {', '.join(known)}")
    for format in config.formats or [""]:
        if format not in ("cot", "pot"):
            raise InputError(f"--formats {format}: unknown; use cot, pot or both")
    if config.ddof not in (0, 1):
        raise InputError(f"--ddof {config.ddof}: give 1 (sample deviation) or 0 (population deviation)")
    sizes = ("iterations", "steps", "questions", "samples", "mu", "max_new_tokens", "max_rows", "micro_tokens")
    for name in (*sizes, "valid_limit", "valid_every", "save_every"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name} must be at least 1")
    if config.temperature <= 0:
        raise InputError("--temperature must be above 0: greedy samples of a group are all the same")


def main(config: Config) -> None:
    check(config)
    world = runtime.setup(config.device)
    run = runtime.Run(config, world)
    tokenizer = Tokenizer.load(config.init)
    model = from_pretrained(config.init, world.device)
    check_tokenizer(tokenizer, model, config.init)
    items = [item for path in config.problems for item in problems.load(path)]
    held_out = problems.load(config.valid)[: config.valid_limit] if config.valid else []
    for format in dict.fromkeys(config.formats):
        asked = items + held_out
        for item, ids in zip(asked, encode_prompts(tokenizer, asked, format, config.template), strict=True):
            if len(ids) >= model.config.context:
                reason = f"its prompt is as long as the model's context, {model.config.context}; leave it out"
                raise InputError(f"problem {item.id}{f' ({item.source})' if item.source else ''}: {reason}")
    run.say(f"{len(items)} problems, {config.questions} x {config.samples} completions a step")

    model.activation_checkpointing = config.activation_checkpointing
    model = runtime.shard(model, world)  # one after the other, so that whole copies do not pile up
    reference = runtime.shard(from_pretrained(config.init, world.device), world) if config.beta else None
    policy = from_pretrained(config.init, world.device, world.dtype)  # whole: decoding never waits for another process
    optimizer = runtime.adamw(model, config.lr, (0.9, config.beta2), config.weight_decay)
    start, _ = run.resume(model, optimizer)
    total = config.iterations * config.steps
    order = question_order(len(items), config.seed)
    for _ in range(start * config.questions):
        next(order)
    if reference is not None and (iteration := start // config.steps) and start % config.steps:
        run.load_reference(iteration, reference)

    with Sandbox() if "pot" in config.formats else nullcontext() as sandbox:
        if start == 0 and held_out:
            runtime.gather_into(model, policy)
            run.log(0, validate(config, policy, tokenizer, held_out, sandbox, world), {})
        for step in range(start + 1, total + 1):
            iteration, done = divmod(step - 1, config.steps)
            if reference is not None and iteration and done == 0:
                run.save_reference(iteration, model, tokenizer)
                run.load_reference(iteration, reference)
            batch = [items[next(order)] for _ in range(config.questions)]
            path = run.directory / "rollouts" / f"step_{step:06d}.jsonl"
            seconds = {}
            if world.broadcast_object(path.exists()):
                rollouts = load_rollouts(path)
            else:
                runtime.gather_into(model, policy)
                rollouts, seconds = rollout(config, step, policy, tokenizer, batch, sandbox, world)
                world.barrier()  # no process may find the file of a step that another is still sampling
                if world.main and config.keep_rollouts:
                    save_rollouts(path, rollouts, tokenizer)
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = config.lr * runtime.lr_linear_decay(step, config.warmup, total, config.decay)
            metrics = rollout_metrics(rollouts) | update(model, optimizer, rollouts, config, reference, world)
            seconds["update"] = time.perf_counter() - began
            if held_out and (step % config.valid_every == 0 or step == total):
                runtime.gather_into(model, policy)
                metrics |= validate(config, policy, tokenizer, held_out, sandbox, world)
            run.log(step, metrics, {"seconds": sum(seconds.values()), **seconds})
            run.checkpoint(step, model, tokenizer, optimizer)
    run.finish(model, tokenizer, {"problems": len(items)})


if __name__ == "__main__":
    runtime.command(main, Config)
