"""GRPO (paper 4.1, algorithm 1): group relative policy optimization; RFT and Online RFT are the same loop.

    for iteration in 1..I:                     the reference becomes the policy; the reward model learns on (4.1.4)
        for step in 1..M:                      a batch of questions
            sample G completions of each       rollout.py
            reward them                        `supervise`: by the rule, an outcome model or a process model (reward.py)
            advantage = (r - mean) / std       over each group: of completions (4.1.2) or of their steps (4.1.3)
            for update in 1..mu:               one optimizer step each
                maximise eq. 3                 `update`: ratio, clip, minus beta times the KL to the reference

Under the paper's unified view (eq. 5, table 10) a method is a data source, a reward and a gradient coefficient:

    GRPO         --algorithm grpo                      samples of the policy; eq. 21 (kernels/policy_loss.py)
    Online RFT   --algorithm rft                       samples of the policy; eq. 10, 1 where the answer is right else 0
    RFT          --algorithm rft --data_source sft     samples of the model it started from; eq. 10

Defaults are the paper's (4.2): lr 1e-6, beta 0.04, 64 samples of up to 1,024 tokens, 1,024 completions a step, mu 1.

    python train_grpo.py --init runs/demo/sft/model --problems runs/demo/data/train.jsonl --to runs/demo/grpo
    torchrun --nproc_per_node 8 train_grpo.py --config configs/paper/grpo.toml --init DIR --problems FILE --to DIR
"""

import copy
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import train_reward
from batch import (
    Group,
    cut_group,
    forward_flops,
    hidden_states,
    logprobs,
    micro_batches,
    pack_completions,
    token_logprobs,
)
from data.io import InputError
from data.problems import readers
from data.problems.problem import Problem
from data.prompts import encode_prompts
from data.sandbox.sandbox import Sandbox
from data.tokenizer import Tokenizer, check_tokenizer
from evaluation.metrics import summarize
from evaluation.solve import Solver
from generate import Sampling
from kernels import definition
from kernels.head_loss import fuses, head_policy_loss
from kernels.policy_loss import policy_loss as fused_terms
from model import ModelConfig, Transformer
from reward import RewardModel, solution_score
from rollout import Rollout, label_steps, load_rollouts, rollout, save_rollouts
from runtime import optim
from runtime.distributed import World, gather_into, prepare, seeded, setup, shard, shuffled
from runtime.hf import from_pretrained
from runtime.optim import adamw, clip_grad_norm, lr_linear_decay
from runtime.options import option, parse
from runtime.run import Run, command


@dataclass
class Config:
    init: str = option("", "model to start from: first policy and reference", required=True)
    problems: list[str] = option([], "files of training problems with answers", required=True)
    to: str = option("", "run directory; the result is TO/model", required=True)
    formats: list[str] = option(
        ["cot"], "in turn over the questions", choices=("cot", "pot"), required=True
    )
    sandbox: str = option("best-effort", "isolation of programs", choices=("strict", "best-effort"))
    template: str = option("plain", "prompt template", choices=("plain", "deepseek", "qwen"))
    # the method
    algorithm: str = option(
        "grpo", "rft: learn right completions alike, without clip and KL", choices=("grpo", "rft")
    )
    data_source: str = option(
        "policy", "who samples: the policy or the model of --init", choices=("policy", "sft")
    )
    reward: str = option(
        "rule", "source of the reward", choices=("rule", "outcome_model", "process_model")
    )
    reward_model: str = option("", "result of train_reward.py, with the policy's tokenizer")
    supervision: str = option(
        "outcome", "one reward for a completion or for each step", choices=("outcome", "process")
    )
    # algorithm 1
    iterations: int = option(1, "outer iterations; each has a new reference", least=1)
    steps: int = option(1000, "steps M of an iteration", least=1)
    questions: int = option(16, "questions a step, over all processes", least=1)
    samples: int = option(64, "completions G of a question", least=1)
    mu: int = option(1, "optimizer steps on each batch of samples", least=1)
    patience: int = option(100, "stop after so many steps without a signal; 0: never", least=0)
    # the reward model between outer iterations
    reward_questions: int = option(0, "problems the reward model learns on; 0: it stays", least=0)
    reward_samples: int = option(16, "completions of each of those problems", least=1)
    reward_step_samples: int = option(8, "completions that label a step", least=1)
    reward_config: str = option("", "TOML file of train_reward.py's options")
    reward_history: list[str] = option([], "files the reward model was first trained on, to replay")
    # equation 3
    lr: float = option(1e-6, "learning rate, constant after the warm-up", least=0)
    warmup: int = option(0, "steps of linear warm-up", least=0)
    decay: float = option(0.0, "last share of the steps, where the rate falls", least=0, most=1)
    beta: float = option(0.04, "weight of the KL to the reference; 0: no reference", least=0)
    clip_low: float = option(0.2, "ratios are clipped below 1 - clip_low", least=0, most=1)
    clip_high: float = option(0.2, "ratios are clipped above 1 + clip_high", least=0)
    normalize: str = option(
        "grpo", "how the mean over tokens is taken", choices=("grpo", "dapo", "dr_grpo")
    )
    scale: str = option(
        "std", "divide advantages by the deviation, or not", choices=("std", "none")
    )
    ddof: int = option(1, "1: sample deviation; 0: population deviation", choices=(0, 1))
    eps: float = option(1e-4, "added to the deviation; 0: the paper's exact form", least=0)
    # sampling
    temperature: float = option(1.0, "sampling temperature, also in the loss", above=0)
    max_new_tokens: int = option(1024, "longest completion; a longer one is cut", least=1)
    max_rows: int = option(256, "completions decoded at once by one process", least=1)
    # optimization
    weight_decay: float = option(0.0, "AdamW weight decay, on matrices", least=0)
    beta2: float = option(0.95, "AdamW beta2 (beta1 is 0.9)", least=0, below=1)
    max_grad_norm: float = option(1.0, "largest norm of the gradient; 0: any", least=0)
    micro_tokens: int = option(16_384, "tokens of one forward and backward pass", least=1)
    shared_prompts: bool = option(True, "read a question once for its G completions")
    fused: bool | None = option(None, "LM head and loss in one pass; none: by vocabulary")
    activation_checkpointing: bool | None = option(None, "recompute activations; none: if needed")
    bf16: bool | None = option(None, "matrix products in bfloat16; none: on GPUs")
    compile: bool | None = option(None, "compile the blocks with torch.compile; none: on GPUs")
    kernels: str = option("fast", "fast; plain: definitions alone", choices=("fast", "plain"))
    # the run
    valid: str = option("", "problems held out for evaluation during training (greedy)")
    valid_limit: int = option(200, "number of those problems used", least=1)
    valid_every: int = option(20, "steps between evaluations", least=1)
    save_every: int = option(20, "steps between checkpoints", least=1)
    keep: int = option(2, "checkpoints kept", least=1)
    keep_rollouts: bool = option(True, "write rollouts to TO/rollouts; a resumed run reads them")
    seed: int = option(0, "seed of questions and samples", least=0)
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


# ----------------------------------------------------------------------------------------------------
# The method: advantages (4.1.2, 4.1.3) and the loss (equations 3 and 4)


@definition
def group_advantage(
    rewards: Tensor, ddof: int = 1, scale: str = "std", eps: float = 1e-4
) -> Tensor:
    """Outcome supervision (4.1.2): each reward minus the mean of its group, divided by the deviation.

    rewards [Q, G] -> advantages [Q, G] float32; the statistics are float64. ddof 1 takes the sample
    deviation, 0 the population's; scale "none" does not divide (Dr. GRPO). The paper's exact form is
    eps 0. A reward that is not finite is left out and gets advantage 0.

    >>> group_advantage(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), eps=0).tolist()
    [[0.5, 0.5, 0.5, -1.5]]
    """
    rewards = rewards.double()
    finite = rewards.isfinite()  # [Q, G]
    count = finite.sum(-1, keepdim=True)  # [Q, 1]
    mean = rewards.where(finite, 0).sum(-1, keepdim=True) / count.clamp(min=1)
    advantage = (rewards - mean).where(finite, 0)
    if scale == "std":
        variance = advantage.square().sum(-1, keepdim=True) / (count - ddof).clamp(min=1)
        advantage = advantage / (variance.sqrt() + eps)
    # Equal rewards give exactly 0: the rounding error of their mean is no signal.
    highest = rewards.where(finite, -torch.inf).amax(-1, keepdim=True)
    lowest = rewards.where(finite, torch.inf).amin(-1, keepdim=True)
    return advantage.where(highest > lowest, 0).float()


@definition
def process_advantage(
    step_rewards: list[Tensor],
    step_ends: list[Tensor],
    lengths: list[int],
    ddof: int = 1,
    eps: float = 1e-4,
) -> list[Tensor]:
    """Process supervision (4.1.3): advantages of the tokens of one group, from rewards of its steps.

    For each of G completions: step_rewards [K], step_ends [K] (the index of a step's last token) and
    the length in tokens. Returns float32 [length] for each. The mean and the deviation are those of
    all steps of all completions. A token's advantage is the sum of the normalized rewards of the
    steps that end at this token or after it.

    >>> rewards = [torch.tensor(r) for r in ([1.0, 0, 1], [0.0, 0], [1.0, 1, 1, 0])]
    >>> ends = [torch.arange(3), torch.arange(2), torch.arange(4)]  # a step is one token
    >>> for row in process_advantage(rewards, ends, [3, 2, 4], eps=0):
    ...     print([round(value, 4) for value in row.tolist()])
    [0.6325, -0.2108, 0.8433]
    [-2.1082, -1.0541]
    [1.4757, 0.6325, -0.2108, -1.0541]
    """
    normalized = group_advantage(torch.cat(step_rewards)[None], ddof, "std", eps)[0]  # [all steps]
    parts = normalized.split([len(rewards) for rewards in step_rewards])
    advantages = []
    for part, ends, length in zip(parts, step_ends, lengths, strict=True):
        at_end = torch.zeros(length, dtype=torch.float64, device=part.device)
        at_end = at_end.index_add(0, ends.long(), part.double())  # [length]
        advantages.append(at_end.flip(0).cumsum(0).flip(0).float())  # the sum from here to the end
    return advantages


def token_weights(
    lengths: Tensor,
    mask: Tensor,
    completion: Tensor,
    normalization: str,
    completions: int,
    tokens: int,
    max_tokens: int,
) -> Tensor:
    """The means of eq. 3 as a weight of each token, float32 [N]: 0 where the policy did not choose it.

    lengths [number of completions]: |o_i|, tokens that the policy chose; mask [N] bool: those tokens;
    completion [N]: the row of each token in lengths. completions, tokens: their number in the global
    batch, known before the first backward; max_tokens: the longest completion allowed.

        grpo     1 / (|o_i| * completions)       mean over a completion, then over completions (eq. 3)
        dapo     1 / tokens                      mean over all tokens
        dr_grpo  1 / (completions * max_tokens)  a constant

    >>> lengths, completion = torch.tensor([1, 2]), torch.tensor([0, 1, 1])
    >>> token_weights(lengths, completion >= 0, completion, "grpo", 2, 3, 8).tolist()
    [0.5, 0.25, 0.25]
    """
    if normalization == "grpo":
        weight = 1 / (lengths.clamp(min=1).float() * completions)[completion]
    elif normalization == "dapo":
        weight = torch.full(mask.shape, 1 / max(tokens, 1), device=mask.device)
    elif normalization == "dr_grpo":
        weight = torch.full(mask.shape, 1 / (completions * max_tokens), device=mask.device)
    else:
        raise ValueError(f"normalization {normalization!r}: give grpo, dapo or dr_grpo")
    return weight.where(mask.bool(), 0)


def bounded(x: Tensor) -> Tensor:
    """x from -10,000 to 80, with the gradient of x: exp stays finite, and no gradient is lost."""
    x = x.nan_to_num(nan=torch.nan)  # infinities become the largest floats
    return x.detach().clamp(-1e4, 80.0) + (x - x.detach())


def kl_estimate(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """KL(policy || reference) of each sampled token in nats, eq. 4: exp(d) - d - 1, d = ref_logp - logp.

    The paper differentiates this estimate with the samples held fixed. In expectation that is the
    gradient of KL(reference || policy).

    >>> kl_estimate(torch.tensor([0.0]), torch.tensor([-1.0])).item()  # 1 / e
    0.3678794503211975
    """
    d = bounded(ref_logp - logp)
    # Near 0 expm1(d) - d loses its digits: there the series of exp is exact.
    series = d * d * (1 / 2 + d / 6 + d * d / 24)
    return torch.where(d.abs() <= 0.01, series, torch.expm1(d) - d)


@definition
def grpo_loss(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor | None,
    advantage: Tensor,
    weight: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    beta: float = 0.04,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Minus the objective of eq. 3, a scalar, and sums over tokens for the log. All tensors [N].

    logp, old_logp, ref_logp: log-probs in nats of the tokens under the policy, the policy that sampled
    them and the reference (None: no KL). weight: see token_weights; where it is 0 nothing else counts.
    With one update for each batch (mu = 1) old_logp is logp.detach(), and the gradient with respect to
    logp is eq. 21: -weight * (advantage + beta * (exp(ref_logp - logp) - 1)).
    """
    chosen = weight != 0
    # Other places may hold inf or NaN, which must be gone before exp: 0 * inf is NaN.
    logp, old_logp, advantage = (x.where(chosen, 0) for x in (logp, old_logp, advantage))
    ratio = bounded(logp - old_logp).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    objective = torch.minimum(ratio * advantage, clipped * advantage)
    kl = torch.zeros_like(logp)
    if ref_logp is not None:
        kl = kl_estimate(logp, ref_logp.where(chosen, 0))
    loss = (weight * (beta * kl - objective)).sum()
    is_clipped = clipped * advantage < ratio * advantage
    return loss, token_stats(chosen, kl=kl, clip=is_clipped, ratio=ratio)


def token_stats(chosen: Tensor, **values: Tensor) -> dict[str, Tensor]:
    """The sum of each value over the chosen tokens, and their count; no gradient. All [N]."""
    sums = {name: value.detach().where(chosen, 0).sum() for name, value in values.items()}
    return sums | {"count": chosen.sum()}


@definition
def policy_loss(
    hidden: Tensor, head: Tensor, micro, config
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Eq. 3 of a micro-batch from hidden states [N, D] and the LM head [V, D].

    micro: targets, advantage, weight, old_logp or None (the policy itself sampled), ref_logp or None,
    all [N]. Returns the loss, the sums of grpo_loss and of the entropies, and log-probs [N] without
    gradient, 0 where the weight is 0.
    """
    logp, entropy = logprobs(hidden, head, micro.targets, config.temperature, entropy=True)
    old_logp = logp.detach() if micro.old_logp is None else micro.old_logp
    loss, stats = grpo_loss(
        logp,
        old_logp,
        micro.ref_logp,
        micro.advantage,
        micro.weight,
        config.clip_low,
        config.clip_high,
        config.beta,
    )
    chosen = micro.weight != 0
    stats["entropy"] = entropy.where(chosen, 0).sum()
    return loss, stats, logp.detach().where(chosen, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Reward and advantage


def collect(
    config: Config,
    step: int,
    sampler: Transformer,
    tokenizer: Tokenizer,
    items: list[Problem],
    sandbox: Sandbox | None,
    reward_model: RewardModel | None,
    world: World,
) -> tuple[list[Rollout], dict]:
    """A step's rollouts, with rewards and advantages, and the seconds of sampling, of the rule when all was sampled
    (programs run while others are still being written), and of a reward model and advantages."""
    began, judging = time.perf_counter(), {"judge": 0.0}
    seed = seeded(config.seed, "rollout", step)
    sampling = Sampling(config.samples, config.temperature, 1.0, config.max_new_tokens, seed=seed)
    formats = [config.formats[i % len(config.formats)] for i in range(len(items))]
    shared = config.max_rows, sandbox, world, judging
    rollouts = rollout(sampler, tokenizer, items, formats, config.template, sampling, *shared)
    sampled = time.perf_counter()
    supervise(config, rollouts, reward_model, world)
    rewarded = time.perf_counter() - sampled
    return rollouts, {"rollout": sampled - began - judging["judge"], **judging, "reward": rewarded}


def supervise(
    config: Config, rollouts: list[Rollout], reward_model: RewardModel | None, world: World
) -> None:
    """Fill in rewards, rule and advantages of rollouts that the rule has judged."""
    for one in rollouts:
        one.rule = list(one.rewards)
    if reward_model is not None:
        own = range(world.rank, len(rollouts), world.size)
        groups = [(rollouts[i].prompt, [sample.ids for sample in rollouts[i].samples]) for i in own]
        scores = dict(zip(own, reward_model(groups, config.micro_tokens), strict=True))
        for i, rows in (pair for part in world.all_gather_objects(scores) for pair in part.items()):
            rollouts[i].rewards = [solution_score(row) for row in rows]
            if reward_model.kind == "process":
                rollouts[i].step_rewards = rows
                rollouts[i].step_ends = reward_model.places(
                    [sample.ids for sample in rollouts[i].samples]
                )
    for one in rollouts:
        one.advantages = advantages(config, one)


def advantages(config: Config, one: Rollout) -> list:
    """Of each completion of a group: a number for all of its tokens, or with process supervision one for each."""
    if config.algorithm == "rft":
        return [rft_coefficient(right) for right in one.rule]
    if config.supervision == "process":
        rewards = [torch.tensor(row, dtype=torch.float64) for row in one.step_rewards]
        ends = [torch.tensor(row) for row in one.step_ends]
        lengths = [len(sample.ids) for sample in one.samples]
        return [
            row.tolist()
            for row in process_advantage(rewards, ends, lengths, config.ddof, config.eps)
        ]
    rewards = torch.tensor([one.rewards], dtype=torch.float64)  # [1, G]
    return group_advantage(rewards, config.ddof, config.scale, config.eps)[0].tolist()


def rft_coefficient(right: float) -> float:
    """The gradient coefficient of (Online) RFT, eq. 10: 1 where the answer is right, else 0."""
    return float(right > 0)


def refresh(
    config: Config,
    iteration: int,
    policy: Transformer,
    tokenizer: Tokenizer,
    items: list[Problem],
    sandbox: Sandbox | None,
    world: World,
) -> None:
    """Between outer iterations (4.1.4): label new samples of the policy and train the reward model on with them, and
    with a share of what it was trained on before. Leaves TO/reward_data/iteration_I.jsonl and TO/reward_I/model; what
    is there already is kept."""
    data = [
        Path(config.to) / "reward_data" / f"iteration_{i}.jsonl" for i in range(1, iteration + 1)
    ]
    shared = config.max_rows, sandbox, world
    if not world.broadcast_object(data[-1].exists()):
        order = shuffled(len(items), seeded(config.seed, "reward", iteration))
        chosen = [items[next(order)] for _ in range(config.reward_questions)]
        formats = [config.formats[i % len(config.formats)] for i in range(len(chosen))]
        seed = seeded(config.seed, "reward samples", iteration)
        sampling = Sampling(
            config.reward_samples, config.temperature, 1.0, config.max_new_tokens, seed=seed
        )
        rollouts = rollout(policy, tokenizer, chosen, formats, config.template, sampling, *shared)
        if config.reward == "process_model":
            again = replace(
                sampling, samples=config.reward_step_samples, seed=seeded(seed, "steps")
            )
            label_steps(policy, tokenizer, rollouts, config.template, again, *shared)
        world.barrier()
        if world.is_main:
            save_rollouts(data[-1], rollouts, tokenizer)
        world.barrier()
    if not world.broadcast_object(reward_directory(config, iteration).exists()):
        given = ["--config", config.reward_config] if config.reward_config else []
        options = replace(
            parse(train_reward.Config, given, partial=True),
            kind=config.reward.removesuffix("_model"),
            init=str(reward_directory(config, iteration - 1)),
            data=[str(data[-1])],
            history=config.reward_history + [str(path) for path in data[:-1]],
            to=str(reward_directory(config, iteration).parent),
            seed=seeded(config.seed, "reward model", iteration),
            device=config.device,
            bf16=config.bf16,
            compile=config.compile,
            kernels=config.kernels,
        )
        train_reward.main(options)


def reward_directory(config: Config, iteration: int) -> Path:
    """The reward model of an outer iteration, which counts from 0."""
    own = iteration and config.reward_questions
    return Path(config.to) / f"reward_{iteration}" / "model" if own else Path(config.reward_model)


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
        return len(self.rollout.prompt) + sum(
            len(self.rollout.samples[g].ids) for g in self.members
        )


def units(rollouts: list[Rollout], budget: int) -> list[Unit]:
    """Cut groups so that question and completions of a unit hold at most `budget` tokens (one completion at least)."""
    ids = [[sample.ids for sample in one.samples] for one in rollouts]
    return [
        Unit(one, members)
        for one, completions in zip(rollouts, ids, strict=True)
        for members in cut_group(one.prompt, completions, budget)
    ]


class MicroBatch:
    """Units as tensors, with the constants of the loss: N completion tokens."""

    def __init__(self, parts: list[Unit], config: Config, completions: int, tokens: int, device):
        samples = [unit.rollout.samples[g] for unit in parts for g in unit.members]
        advantages = [
            np.broadcast_to(
                unit.rollout.advantages[g], len(unit.rollout.samples[g].ids)
            )  # one, or one a token
            for unit in parts
            for g in unit.members
        ]
        self.parts = parts
        self.batch = pack_completions([unit.group for unit in parts], config.shared_prompts, device)
        mask = torch.tensor([chosen for sample in samples for chosen in sample.mask], device=device)
        self.advantage = torch.tensor(
            np.concatenate(advantages), dtype=torch.float32, device=device
        )  # [N]
        lengths = torch.tensor([sum(sample.mask) for sample in samples], device=device)  # |o_i|
        self.weight = token_weights(  # [N]
            lengths,
            mask,
            self.batch.completion,
            config.normalize,
            completions,
            tokens,
            config.max_new_tokens,
        )
        # None: the policy is the one that sampled (the first update), or the method has no ratio
        self.old_logp: Tensor | None = None
        if config.data_source == "sft" and config.algorithm == "grpo":
            self.old_logp = torch.tensor(
                [p for sample in samples for p in sample.logprobs], device=device
            )
        self.ref_logp: Tensor | None = None


def micro_loss(
    model, micro: MicroBatch, config: Config, entropy: bool
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Eq. 3 of a micro-batch, sums to log of its policy tokens (that of the entropies if asked), and log-probs [N]."""
    old, ref, clip = micro.old_logp, micro.ref_logp, (config.clip_low, config.clip_high)
    if fuses(model.config.vocab_size, micro.advantage, config.fused):
        return head_policy_loss(
            hidden_states(model, micro.batch),
            model.head_weight,
            micro.batch.targets,
            micro.advantage,
            micro.weight,
            old,
            ref,
            *clip,
            config.beta,
            temperature=config.temperature,
            entropy=entropy,
        )
    logp, spread = token_logprobs(model, micro.batch, config.temperature, entropy=entropy)
    loss, stats = fused_terms(logp, old, ref, micro.advantage, micro.weight, *clip, config.beta)
    if entropy:
        stats["entropy"] = (spread * (micro.weight != 0)).sum()
    return loss, stats, logp.detach()


def grpo_gradient(
    model, batches: list[MicroBatch], config: Config, first: bool
) -> dict[str, Tensor]:
    """Accumulate the gradient of eq. 3 over this process's micro-batches. Returns sums over policy tokens, for metrics.

    Every constant of the loss is in the batches' weights: neither micro-batching nor the number of processes matters.
    """
    sums: dict[str, Tensor] = {}
    for micro in batches:
        loss, stats, logp = micro_loss(model, micro, config, entropy=first)
        loss.backward()
        stats["loss"] = loss.detach()
        if first and config.mu > 1 and config.algorithm == "grpo" and micro.old_logp is None:
            micro.old_logp = logp
        for key, value in stats.items():
            sums[key] = sums.get(key, 0.0) + value
    return sums


def make_batches(
    rollouts: list[Rollout], config: Config, reference, world: World
) -> list[MicroBatch]:
    """This process's micro-batches with the reference's log-probs, computed once per rollout."""
    masks = [sample.mask for one in rollouts for sample in one.samples]
    completions = sum(
        any(mask) for mask in masks
    )  # a completion without a token of the policy's own does not count
    tokens = sum(map(sum, masks))
    parts = units(rollouts, config.micro_tokens)
    batches = []
    for micro in micro_batches([unit.tokens for unit in parts], config.micro_tokens, world.size)[
        world.rank
    ]:
        made = MicroBatch(
            [parts[i] for i in micro or [0]], config, completions, tokens, world.device
        )
        if not micro:  # nothing left for this process: run along without loss
            made.weight.zero_()
        if reference is not None:
            with torch.no_grad():
                made.ref_logp = token_logprobs(reference, made.batch, config.temperature)[0]
        batches.append(made)
    return batches


def update(
    model, optimizer, rollouts: list[Rollout], config: Config, reference, world: World
) -> dict:
    """mu optimizer steps on a batch of rollouts. Returns its metrics (the first step's but for clip_fraction)."""
    batches = make_batches(rollouts, config, reference, world)
    metrics = {}
    for inner in range(config.mu):
        sums = grpo_gradient(model, batches, config, first=inner == 0)
        norm = clip_grad_norm(model, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        last = averaged(sums, world) | {"grad_norm": norm}
        metrics = {**last, **metrics, "clip_fraction": last["clip"], "ratio": last["ratio"]}
    metrics.pop("clip")
    return metrics


def averaged(sums: dict[str, Tensor], world: World) -> dict[str, float]:
    """Sums over a process's policy tokens as means over those of all processes; losses hold their means already."""
    keys = sorted(sums)
    values = world.all_sum(torch.stack([sums[key].double() for key in keys])).tolist()
    total = dict(zip(keys, values, strict=True))
    count = max(total.pop("count"), 1.0)
    return {key: value if key.endswith("loss") else value / count for key, value in total.items()}


def rollout_metrics(rollouts: list[Rollout]) -> dict:
    """Rewards and lengths of a batch. rule: share of right answers; gap: what the reward exceeds it by (a reward model
    that is being hacked shows here); no_signal: share of groups whose advantages are all 0; distinct: share of
    different completions in a group."""
    rewards = np.array([one.rewards for one in rollouts])
    rule = np.array([one.rule or one.rewards for one in rollouts])
    samples = [sample for one in rollouts for sample in one.samples]
    lengths = np.array([len(sample.ids) for sample in samples])
    finite = np.isfinite(rewards)
    return {
        "reward": float(rewards[finite].mean()) if finite.any() else 0.0,
        "reward_std": float(rewards[finite].std()) if finite.any() else 0.0,
        "reward_not_finite": int((~finite).sum()),
        "rule": float(rule.mean()),
        "gap": float((rewards - rule)[finite].mean()) if finite.any() else 0.0,
        "no_signal": float(np.mean([not any(map(np.any, one.advantages)) for one in rollouts])),
        "distinct": float(
            np.mean(
                [len({tuple(s.ids) for s in one.samples}) / len(one.samples) for one in rollouts]
            )
        ),
        "length": float(lengths.mean()),
        "length_max": int(lengths.max()),
        "truncated": float(np.mean([sample.finish == "length" for sample in samples])),
    }


def timing(
    rollouts: list[Rollout],
    seconds: dict,
    policy: ModelConfig,
    learned: list[tuple[ModelConfig, int]],
    mu: int,
    reward_model: RewardModel | None,
    world: World,
) -> dict:
    """A step's line of timing.jsonl: its `seconds` by phase and together; `speed` of learning, in which the
    models of `learned` take so many forwards of the batch each (a backward counts as two); and where it was sampled in
    this step too, the tokens sampled a second, over all processes, and mfu_step: that of the whole step, for which
    sampling takes the policy one forward of the batch, as the cache keeps what was read."""
    groups = [(one.prompt, [sample.ids for sample in one.samples]) for one in rollouts]
    tokens = mu * sum(len(prompt) + sum(map(len, completions)) for prompt, completions in groups)
    flops = sum(times * forward_flops(shape, groups) for shape, times in learned)
    found = optim.speed(tokens, flops, seconds["update"] + seconds.get("assess", 0.0), world)
    together = sum(seconds.values())
    if "rollout" in seconds:
        sampled = sum(sum(sample.mask) for one in rollouts for sample in one.samples)
        flops += forward_flops(policy, groups)
        if reward_model is not None:
            flops += forward_flops(reward_model.model.config, groups, last=True)
        found["rollout_tokens_per_second"] = sampled / seconds["rollout"]
        found["mfu_step"] = optim.mfu(flops / together, world)
    return {"seconds": together, **seconds, **found}


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
            solver = Solver(policy, tokenizer, config.template, sandbox, config.max_rows)
            records = solver.solve(own, format, sampling)
        records = [record for part in world.all_gather_objects(records) for record in part]
        found[f"valid/{format}"] = summarize(records)["accuracy"]
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Algorithm 1


def check(config: Config) -> None:
    if config.reward != "rule" and not config.reward_model:
        raise InputError(
            f"--reward {config.reward} needs --reward_model DIR, a result of train_reward.py"
        )
    if config.reward == "rule" and (config.reward_model or config.reward_questions):
        raise InputError(
            "--reward_model and --reward_questions need --reward outcome_model or process_model"
        )
    if config.supervision == "process" and config.reward != "process_model":
        raise InputError(f"--supervision process needs --reward process_model, not {config.reward}")
    if config.algorithm == "rft" and config.reward != "rule":
        raise InputError(
            f"--algorithm rft needs --reward rule, not {config.reward}: it learns what is right"
        )
    if config.supervision == "process" and config.scale != "std":
        raise InputError(
            "--scale none: process supervision (4.1.3) divides by the deviation; leave --scale out"
        )
    if config.reward_questions and config.iterations == 1:
        raise InputError(
            "--reward_questions needs --iterations above 1: the reward model learns on between them"
        )
    if config.reward_questions and config.reward_config:
        # better refused now than after an iteration
        parse(train_reward.Config, ["--config", config.reward_config], partial=True)


def load_problems(
    config: Config, tokenizer: Tokenizer, context: int
) -> tuple[list[Problem], list[Problem]]:
    """Those to train on and those held out. Raises InputError for a prompt that leaves no room in the context: better
    refused now than when its turn comes."""
    items = [item for path in config.problems for item in readers.load(path)]
    held_out = readers.load(config.valid)[: config.valid_limit] if config.valid else []
    for format in dict.fromkeys(config.formats):
        asked = items + held_out
        for item, ids in zip(
            asked, encode_prompts(tokenizer, asked, format, config.template), strict=True
        ):
            if len(ids) >= context:
                reason = f"its prompt is as long as the model's context, {context}; leave it out"
                raise InputError(
                    f"problem {item.id}{f' ({item.source})' if item.source else ''}: {reason}"
                )
    return items, held_out


def main(config: Config) -> None:
    check(config)
    world = setup(config.device, config.kernels, config.bf16, config.compile)
    run = Run(config, world)
    tokenizer = Tokenizer.load(config.init)
    model = from_pretrained(config.init, world.device)
    check_tokenizer(tokenizer, model, config.init)
    items, held_out = load_problems(config, tokenizer, model.config.context)
    run.say(f"{len(items)} problems, {config.questions} x {config.samples} completions a step")

    model = shard(model, world)  # one after the other, so that whole copies do not pile up
    regularised = config.beta and config.algorithm == "grpo"
    reference = shard(from_pretrained(config.init, world.device), world) if regularised else None
    # Whole on every process: decoding never waits for another one.
    policy = prepare(from_pretrained(config.init, world.device, world.dtype), world, trained=False)
    offline = config.data_source == "sft"
    sampler = copy.deepcopy(policy) if offline else policy
    optimizer = adamw(model, config.lr, (0.9, config.beta2), config.weight_decay)

    def reward_of(iteration: int) -> RewardModel | None:
        kind, directory = config.reward.removesuffix("_model"), reward_directory(config, iteration)
        return (
            RewardModel(directory, kind, tokenizer, world.device, world.dtype)
            if kind != "rule"
            else None
        )

    reward_model = reward_of(0)
    run.checkpointing(model, tokens=config.micro_tokens)
    start, state = run.resume(model, optimizer)
    silent = state.get("silent", 0)  # steps in a row without a signal
    total = config.iterations * config.steps
    order = shuffled(len(items), config.seed)
    for _ in range(start * config.questions):
        next(order)
    if (iteration := start // config.steps) and start % config.steps:
        if reference is not None:
            run.load_reference(iteration, reference)
        reward_model = reward_of(iteration)

    with Sandbox(mode=config.sandbox) if "pot" in config.formats else nullcontext() as sandbox:
        if start == 0 and held_out:
            gather_into(model, policy)
            run.log(0, validate(config, policy, tokenizer, held_out, sandbox, world), {})
        for step in range(start + 1, total + 1):
            iteration, done = divmod(step - 1, config.steps)
            if iteration and done == 0:
                if reference is not None:
                    run.save_reference(iteration, model, tokenizer)
                    run.load_reference(iteration, reference)
                if config.reward_questions:
                    gather_into(model, policy)
                    refresh(config, iteration, policy, tokenizer, items, sandbox, world)
                    reward_model = reward_of(iteration)
            batch = [items[next(order)] for _ in range(config.questions)]
            path = run.directory / "rollouts" / f"step_{step:06d}.jsonl"
            seconds = {}
            if world.broadcast_object(path.exists()):
                rollouts = load_rollouts(path)
            else:
                if not offline:
                    gather_into(model, policy)
                rollouts, seconds = collect(
                    config, step, sampler, tokenizer, batch, sandbox, reward_model, world
                )
                world.barrier()  # no process may find the file of a step that another is still sampling
                if world.is_main and config.keep_rollouts:
                    save_rollouts(path, rollouts, tokenizer)
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = config.lr * lr_linear_decay(step, config.warmup, total, config.decay)
            metrics = rollout_metrics(rollouts) | update(
                model, optimizer, rollouts, config, reference, world
            )
            seconds["update"] = time.perf_counter() - began
            if held_out and (step % config.valid_every == 0 or step == total):
                gather_into(model, policy)
                metrics |= validate(config, policy, tokenizer, held_out, sandbox, world)
            reads = [(model.config, 3 * config.mu + (reference is not None))]
            run.log(
                step,
                metrics,
                timing(rollouts, seconds, model.config, reads, config.mu, reward_model, world),
            )
            silent = silent + 1 if metrics["no_signal"] == 1 else 0
            if metrics["reward_not_finite"]:
                run.say(
                    f"step {step}: {metrics['reward_not_finite']} rewards are not finite; they count for nothing"
                )
            if config.supervision == "process" and all(
                len(ends) == 1 for one in rollouts for ends in one.step_ends
            ):
                run.say(
                    f"step {step}: no completion has more than one line: process supervision sees no steps"
                )
            run.checkpoint(step, model, tokenizer, optimizer, {"silent": silent})
            if config.patience and silent >= config.patience and step < total:
                run.checkpoints.save(step, model, tokenizer, optimizer, {"silent": silent})
                reason = "all rewards of each group were alike: the problems are too easy or too hard for the model"
                raise InputError(
                    f"step {step}: no signal in {silent} steps, {reason}; --patience 0 goes on from here"
                )
    run.finish(model, tokenizer, {"problems": len(items)})


if __name__ == "__main__":
    command(main, Config)
