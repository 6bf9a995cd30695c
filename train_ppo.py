"""PPO (paper 4.1.1, A.1.5): proximal policy optimization, with the value model that GRPO does without.

    for step in 1..M:                              a batch of questions
        sample completions, reward them            as GRPO does (train_grpo.collect): a rule or a reward model
        log pi_ref(o_t) and V(s_t)                 `assess`: the reference and the value model read the batch
        r_t, advantages A_t, returns R_t           `estimate`: eq. 2, then generalized advantage estimation (`gae`)
        for update in 1..mu:                       `update`: one step of each optimizer
            policy: maximise eq. 15                ratio, clip: GRPO's loss with A_t for every token, no KL in it
            value: minimise (V(s_t) - R_t)^2       `value_loss`, clipped likewise

What differs from GRPO is where the advantage comes from: a second trained model as large as the policy, with its own
gradients and optimizer state (bench/ppo_grpo.py counts them), in place of the mean of a group. And the KL to the
reference is a reward of every token (eq. 2), not a term of the loss (eq. 3). Under the unified view (eq. 5, table 10):
samples of the policy, a reward model, the coefficient of eq. 18 (`ppo_coefficient`).

What the paper leaves open: gamma is 1, since the reward comes at the end and a discount would pay for short answers;
with it the r_t of a completion sum to its reward minus beta times its log-ratio to the reference. A completion cut by
length ends there like any other: it is judged as it is, and no value of what might have followed is added. Tokens that
the policy did not choose (a tool's output) are no actions: GAE steps over them.

    python train_ppo.py --init runs/demo/sft/model --problems runs/demo/data/train.jsonl --to runs/demo/ppo
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

import train_grpo
from batch import MicroBatch, pack_rollouts, token_logprobs, token_values
from data.io import InputError
from data.problems import readers
from data.prompts import check_lengths
from data.sandbox.sandbox import Sandbox
from data.tokenizer import Tokenizer, check_tokenizer
from generate import Sampling
from model import Transformer
from reward import RewardModel
from rollout import Rollout, Sampler, judge, load_rollouts, sample_rollouts, save_rollouts, validate
from runtime.distributed import World, gather_into, prepare, seeded, setup, shard, shuffled
from runtime.hf import from_pretrained
from runtime.metrics import rollout_metrics, rollout_work, token_means
from runtime.optim import adamw, clip_grad_norm, lr_linear_decay
from runtime.options import option
from runtime.run import Run, command
from train_grpo import completion_rewards, grpo_gradient, set_weights


@dataclass
class Config:
    init: str = option("", "model to start from: first policy and reference", required=True)
    value_init: str = option("", "model that the value model starts from; none: --init")
    problems: list[str] = option([], "files of training problems with answers", required=True)
    to: str = option("", "run directory; it gets model/ and value_model/", required=True)
    formats: list[str] = option(
        ["cot"], "in turn over the questions", choices=("cot", "pot"), required=True
    )
    sandbox: str = option("best-effort", "isolation of programs", choices=("strict", "best-effort"))
    template: str = option("plain", "prompt template", choices=("plain", "deepseek", "qwen"))
    reward: str = option(
        "rule",
        "source of the reward, at the last token",
        choices=("rule", "outcome_model", "process_model"),
    )
    reward_model: str = option("", "result of train_reward.py, with the policy's tokenizer")
    steps: int = option(1000, "steps", least=1)
    questions: int = option(1024, "questions a step, over all processes", least=1)
    samples: int = option(1, "completions of a question", least=1)
    mu: int = option(1, "optimizer steps on each batch of samples", least=1)
    # equations 2 and 15
    lr: float = option(1e-6, "learning rate of the policy, constant after the warm-up", least=0)
    value_lr: float = option(1e-5, "learning rate of the value model", least=0)
    warmup: int = option(0, "steps of linear warm-up", least=0)
    decay: float = option(0.0, "last share of the steps, where the rate falls", least=0, most=1)
    beta: float = option(0.04, "weight of the KL in the reward; 0: no reference", least=0)
    gamma: float = option(1.0, "discount", least=0, most=1)
    lam: float = option(0.95, "lambda of GAE", least=0, most=1)
    whiten: bool = option(True, "advantages of a batch get mean 0 and deviation 1")
    clip_low: float = option(0.2, "ratios are clipped below 1 - clip_low", least=0, most=1)
    clip_high: float = option(0.2, "ratios are clipped above 1 + clip_high", least=0)
    clip_value: float = option(0.2, "largest change of a value in a step; 0: any", least=0)
    # sampling
    temperature: float = option(1.0, "sampling temperature, also in the loss", above=0)
    max_new_tokens: int = option(1024, "longest completion; a longer one is cut", least=1)
    max_rows: int = option(256, "completions decoded at once by one process", least=1)
    # optimization
    weight_decay: float = option(0.0, "AdamW weight decay, on matrices", least=0)
    beta2: float = option(0.95, "AdamW beta2 (beta1 is 0.9)", least=0, below=1)
    max_grad_norm: float = option(1.0, "largest norm of each model's gradient; 0: any", least=0)
    micro_tokens: int = option(16_384, "tokens of one forward and backward pass", least=1)
    shared_prompts: bool = option(True, "read a question once for all its completions")
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


def as_grpo(config: Config) -> train_grpo.Config:
    """The options of what PPO and GRPO share: sampling, rewarding, and the policy's loss, which for PPO has no KL."""
    names = {field.name for field in fields(train_grpo.Config)}
    shared = {name: value for name, value in vars(config).items() if name in names}
    return train_grpo.Config(
        **{**shared, "beta": 0.0, "normalize": "grpo"}
    )  # the means of eq. 15 are those of eq. 3


# ---------------------------------------------------------------------------------------------------------------------
# Reward, value and advantage of every token


@torch.no_grad()
def assess(config: Config, rollouts: list[Rollout], reference, value, world: World) -> None:
    """Fill in values and, with a reference, ref_logprobs of every completion token. Processes share the work."""
    found = {}  # (rollout, completion) -> [2, n] or [1, n]: values, log-probs of the reference
    for micro in pack_rollouts(rollouts, config.micro_tokens, world):
        read = [token_values(value, micro)]
        if reference is not None:
            read.append(token_logprobs(reference, micro, config.temperature)[0])
        rows = torch.stack(read).split(micro.completion.bincount().tolist(), dim=1)
        if not micro.idle:
            rows = [row.tolist() for row in rows]
            found |= zip(micro.members, rows, strict=True)
    found = {key: rows for part in world.all_gather_objects(found) for key, rows in part.items()}
    for r, one in enumerate(rollouts):
        rows = [found[r, g] for g in range(len(one.samples))]
        one.values = [row[0] for row in rows]
        one.ref_logprobs = [row[1] for row in rows] if reference is not None else []


def gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Generalized advantage estimation of one completion: A_t = sum_k (gamma lam)^k delta_(t+k), where
    delta_t = r_t + gamma V(s_(t+1)) - V(s_t). Behind the last token nothing is to be had: V is 0 there.

    Example: rewards [0, 0, 1], values [0.5, 0.6, 0.8], gamma 1, lam 0.5. The deltas are [0.1, 0.2, 0.2], the advantages
    from behind 0.2, 0.2 + 0.2 / 2 = 0.3 and 0.1 + 0.3 / 2 = 0.25: [0.25, 0.3, 0.2]. Advantage plus value is the return,
    what the value should have been: [0.75, 0.9, 1].
    """
    advantages, after, next_value = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        after = reward + gamma * next_value - value + gamma * lam * after
        next_value = value
        advantages.append(after)
    return advantages[::-1]


def token_rewards(config: Config, one: Rollout, g: int) -> list[float]:
    """Equation 2, of the tokens that the policy chose: the completion's reward at the last of them, and from each
    beta (log pi_old - log pi_ref). pi_old is the policy that sampled: what it said then is in the rollout."""
    rewards = [-config.beta * ratio for ratio in log_ratios(one, g)]
    rewards[-1] += one.rewards[g]
    return rewards


def log_ratios(one: Rollout, g: int) -> list[float]:
    """log pi_old(o_t) - log pi_ref(o_t) of a completion's tokens that the policy chose: k1, the KL in expectation."""
    sample = one.samples[g]
    reference = one.ref_logprobs[g] if one.ref_logprobs else sample.logprobs  # no reference: no KL
    return [
        old - ref
        for old, ref, own in zip(sample.logprobs, reference, sample.mask, strict=True)
        if own
    ]


def estimate(config: Config, rollouts: list[Rollout]) -> dict:
    """Fill in advantages and returns of every token, and return their metrics. Every process does it for all.

    A completion whose reward is not finite counts for nothing: its advantages are 0, its returns its values.
    """
    advantages, values, ratios, places = [], [], [], []  # of each completion's policy tokens
    for one in rollouts:
        one.advantages, one.returns = [], []
        for g, sample in enumerate(one.samples):
            one.advantages.append([0.0] * len(sample.ids))
            one.returns.append(list(one.values[g]))
            own = [t for t, chosen in enumerate(sample.mask) if chosen]
            if own and math.isfinite(one.rewards[g]):
                places.append((one, g, own))
                values.append([one.values[g][t] for t in own])
                ratios += log_ratios(one, g)
                advantages.append(
                    gae(token_rewards(config, one, g), values[-1], config.gamma, config.lam)
                )
    flat, value = (
        np.array([x for row in rows for x in row] or [0.0]) for rows in (advantages, values)
    )
    returns = flat + value
    # below 1e-4 it is rounding, of the log-ratios in the first step above all, which must not be blown up to 1
    mean, deviation = (flat.mean(), math.sqrt(flat.var() + 1e-8)) if config.whiten else (0.0, 1.0)
    for (one, g, own), advantage, before in zip(places, advantages, values, strict=True):
        for t, a, v in zip(own, advantage, before, strict=True):
            one.advantages[g][t], one.returns[g][t] = float((a - mean) / deviation), a + v
    spread = returns.var()
    return {
        "kl": float(np.mean(ratios or [0.0])),
        "returns": float(returns.mean()),
        "explained_variance": float(1 - flat.var() / spread)
        if spread > 0
        else 0.0,  # of the returns, by the values
    }


def ppo_coefficient(advantage: Tensor, ratio: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """The gradient coefficient: what grad log pi of each token is multiplied by, [T]. In the first update of a batch
    the ratio is 1, and the coefficient is eq. 18, A_t; later A_t times the ratio, 0 where the clip holds it."""
    clipped = torch.where(advantage > 0, ratio > 1 + clip_high, ratio < 1 - clip_low)
    return (advantage * ratio).where(~clipped, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Update


def value_loss(
    value: Tensor, old: Tensor, returns: Tensor, weight: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """sum_t weight_t max((V_t - R_t)^2, (clip(V_t, V_old_t - c, V_old_t + c) - R_t)^2) / 2, and the number of tokens
    where the clipped side is the larger: they have no gradient. All [T]; clip 0 does without."""
    error = (value - returns) ** 2
    near = value.clamp(old - clip, old + clip) if clip else value
    bounded = (near - returns) ** 2
    return 0.5 * (weight * torch.maximum(error, bounded)).sum(), (
        (bounded > error) & (weight != 0)
    ).sum()


def value_gradient(model, batches: list[MicroBatch], rollouts, config: Config) -> dict[str, Tensor]:
    """Accumulate the gradient of `value_loss` over this process's micro-batches, with the weights of the policy's."""
    sums = {"value_loss": 0.0, "value_clip": 0.0}
    for micro in batches:
        old, returns = [], []
        for r, g in micro.members:
            old += rollouts[r].values[g]
            returns += rollouts[r].returns[g]
        old, returns = (torch.tensor(x, device=micro.weight.device) for x in (old, returns))
        value = token_values(model, micro)
        loss, clipped = value_loss(value, old, returns, micro.weight, config.clip_value)
        loss.backward()
        sums["value_loss"] += loss.detach()
        sums["value_clip"] += clipped
    return sums


def update(
    model, optimizer, value, value_optimizer, rollouts: list[Rollout], config: Config, world: World
) -> dict:
    """mu optimizer steps of both models on a batch of rollouts. Returns its metrics (the first step's, but for the
    clip fractions and the ratio: the last step's)."""
    options = as_grpo(config)
    batches = pack_rollouts(rollouts, config.micro_tokens, world)
    set_weights(batches, rollouts, options)
    metrics = {}
    for _ in range(config.mu):
        norms = {}
        sums = grpo_gradient(model, batches, options)
        sums |= value_gradient(value, batches, rollouts, config)
        for name, one, its_optimizer in (
            ("", model, optimizer),
            ("value_", value, value_optimizer),
        ):
            norms[f"{name}grad_norm"] = clip_grad_norm(one, config.max_grad_norm)
            its_optimizer.step()
            its_optimizer.zero_grad(set_to_none=True)
        last = token_means(sums, world) | norms
        latest = {
            "clip_fraction": last.pop("clip"),
            "ratio": last["ratio"],
            "value_clip": last["value_clip"],
        }
        metrics = {**last, **metrics, **latest}
    return metrics


# ---------------------------------------------------------------------------------------------------------------------
# The run


def check(config: Config) -> None:
    if config.reward == "rule" and config.reward_model:
        raise InputError("--reward_model needs --reward outcome_model or process_model")
    train_grpo.check(as_grpo(config))


def load_value(config: Config, tokenizer: Tokenizer, device) -> Transformer:
    """The first value model. Raises InputError where its directory has another tokenizer than the policy's."""
    directory = config.value_init or config.init
    if Tokenizer.load(directory).hash != tokenizer.hash:
        raise InputError(
            f"{directory}: its tokenizer is not the policy's; start the value model from one that has it"
        )
    value = from_pretrained(directory, device, score="value")
    check_tokenizer(tokenizer, value, directory)
    return value


def main(config: Config) -> None:
    check(config)
    world = setup(config.device, config.kernels, config.bf16, config.compile)
    run = Run(config, world)
    tokenizer = Tokenizer.load(config.init)
    model = from_pretrained(config.init, world.device)
    check_tokenizer(tokenizer, model, config.init)
    items = [item for path in config.problems for item in readers.load(path)]
    held_out = readers.load(config.valid)[: config.valid_limit] if config.valid else []
    check_lengths(
        tokenizer, items + held_out, config.formats, config.template, model.config.context
    )
    model = shard(model, world)  # one after the other, so that whole copies do not pile up
    value = shard(load_value(config, tokenizer, world.device), world)
    reference = shard(from_pretrained(config.init, world.device), world) if config.beta else None
    # Whole on every process: decoding never waits for another one.
    policy = prepare(from_pretrained(config.init, world.device, world.dtype), world, trained=False)
    kind, learned = config.reward.removesuffix("_model"), config.reward != "rule"
    reward_model = (
        RewardModel(config.reward_model, kind, tokenizer, world.device, world.dtype)
        if learned
        else None
    )
    run.say(f"{len(items)} problems, {config.questions} x {config.samples} completions a step")

    optimizer = adamw(model, config.lr, (0.9, config.beta2), config.weight_decay)
    value_optimizer = adamw(value, config.value_lr, (0.9, config.beta2), config.weight_decay)
    others = {"value": (value, value_optimizer)}
    run.checkpointing(model, value, tokens=config.micro_tokens)
    start, _ = run.resume(model, optimizer, others)
    order = shuffled(len(items), config.seed)
    for _ in range(start * config.questions):
        next(order)

    with Sandbox(mode=config.sandbox) if "pot" in config.formats else nullcontext() as sandbox:
        sampler = Sampler(policy, tokenizer, config.template, config.max_rows, sandbox, world)
        if start == 0 and held_out:
            gather_into(model, policy)
            run.log(0, validate(sampler, held_out, config.formats, config.max_new_tokens))
        for step in range(start + 1, config.steps + 1):
            batch = [items[next(order)] for _ in range(config.questions)]
            path = run.directory / "rollouts" / f"step_{step:06d}.jsonl"
            if world.broadcast_object(path.exists()):
                rollouts = load_rollouts(path)
            else:
                gather_into(model, policy)
                sampling = Sampling(config.samples, config.temperature, 1.0, config.max_new_tokens)
                sampling.seed = seeded(config.seed, "rollout", step)
                run.phase("rollout")
                rollouts = sample_rollouts(sampler, batch, config.formats, sampling)
                run.phase("judge")
                judge(sampler, rollouts)
                run.phase("reward")
                if reward_model is not None:
                    reward_model.score(rollouts, config.micro_tokens, world)
                for one in rollouts:
                    one.rewards = completion_rewards(one)
                run.phase("assess")
                assess(config, rollouts, reference, value, world)
                run.phase("")
            estimates = estimate(config, rollouts)
            metrics = rollout_metrics(rollouts) | estimates
            if world.is_main and config.keep_rollouts and not path.exists():
                save_rollouts(path, rollouts, tokenizer)
            run.phase("update")
            share = lr_linear_decay(step, config.warmup, config.steps, config.decay)
            rates = {"lr": config.lr * share, "value_lr": config.value_lr * share}
            for one, rate in zip((optimizer, value_optimizer), rates.values(), strict=True):
                for group in one.param_groups:
                    group["lr"] = rate
            metrics = (
                update(model, optimizer, value, value_optimizer, rollouts, config, world)
                | metrics
                | rates
            )
            run.phase("")
            if held_out and (step % config.valid_every == 0 or step == config.steps):
                gather_into(model, policy)
                metrics |= validate(sampler, held_out, config.formats, config.max_new_tokens)
            times, assessed = 3 * config.mu, "assess" in run.seconds
            reads = [
                (model.config, times + (assessed and reference is not None)),
                (value.config, times + assessed),
            ]
            run.log(step, metrics, rollout_work(rollouts, reads, config.mu, reward_model))
            run.checkpoint(step, model, tokenizer, optimizer, others=others)
    run.checkpoints.write(run.directory / "value_model", value, tokenizer)
    run.finish(model, tokenizer, {"problems": len(items)})


if __name__ == "__main__":
    command(main, Config)
