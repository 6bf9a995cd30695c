"""GRPO (paper 4.1, algorithm 1): group relative policy optimization. RFT and Online RFT are the same loop.

    for iteration in 1..I:                     the reference becomes the policy (4.1.4)
        for step in 1..M:                      a batch of questions
            sample G completions of each       rollout.py, generate.py
            reward them                        `judge` and `completion_rewards`, or a reward model
            advantage = (r - mean) / std       `group_advantage` (4.1.2), `process_advantage` (4.1.3)
            for update in 1..mu:               maximize eq. 3: `update`, `grpo_loss`

A method is a data source, a reward and a gradient coefficient (eq. 5):

    --algorithm grpo          samples of the policy; coefficient of eq. 21
    --algorithm online_rft    samples of the policy; eq. 10: 1 if right, else 0
    --algorithm rft           samples of the first model; eq. 10

    python train_grpo.py --init runs/demo/sft/model --problems runs/demo/data/train.jsonl --to runs/demo/grpo
"""

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from runtime.options import option

import torch

import train_reward
from batch import hidden_states, logprobs, pack_rollouts, token_logprobs
from data.chat import load_tokenizer
from data.io import InputError
from data.problems import readers
from data.sandbox.sandbox import Sandbox
from data.tokenizer import check_tokenizer
from generate import Sampling
from kernels import definition
from reward import solution_score
from rollout import (
    Rollout,
    Sampler,
    judge,
    load_rollouts,
    sample_rollouts,
    save_rollouts,
    validate,
)
from runtime.distributed import gather_into, prepare, seeded, setup, shard, shuffled
from runtime.hf import from_pretrained
from runtime.metrics import rollout_metrics, rollout_work, token_means
from runtime.optim import adamw, backward, clip_grad_norm, cut, lr_linear_decay, set_lr
from runtime.run import Run, RunOptions, SamplingOptions, command


@dataclass
class Config(RunOptions, SamplingOptions):  # where, and what is sampled how
    init: str = option("", "model to start from: first policy and reference", required=True)
    # the method
    algorithm: str = option(
        "grpo",
        "who samples and what is learned; see above",
        choices=("grpo", "online_rft", "rft"),
    )
    reward: str = option(
        "rule",
        "what training maximizes: the verdicts of the rule, or the scores of a reward model",
        choices=("rule", "outcome_model", "process_model"),
    )
    reward_model: str = option("", "result of train_reward.py, with the policy's tokenizer")
    supervision: str = option(
        "outcome", "a reward for each completion, or for each step", choices=("outcome", "process")
    )
    # algorithm 1
    iterations: int = option(1, "outer iterations; each has a new reference", least=1)
    steps: int = option(1000, "steps M of an iteration", least=1)
    questions: int = option(16, "questions a step, over all processes", least=1)
    samples: int = option(64, "completions G of a question", least=2)
    mu: int = option(1, "optimizer steps on each batch of samples", least=1)
    # the reward model between outer iterations
    reward_questions: int = option(0, "problems the reward model learns on; 0: it stays", least=0)
    reward_config: str = option("", "TOML file of train_reward.py's options")
    # equation 3
    lr: float = option(1e-6, "learning rate, constant after the warm-up", least=0)
    warmup: int = option(0, "steps of linear warm-up", least=0)
    decay: float = option(0.0, "last share of the steps, where the rate falls", least=0, most=1)
    beta: float = option(0.04, "weight of the KL to the reference; 0: no reference", least=0)
    clip_low: float = option(0.2, "ratios are clipped below 1 - clip_low", least=0, most=1)
    clip_high: float = option(0.2, "ratios are clipped above 1 + clip_high", least=0)
    normalize: str = option(
        "grpo", "how tokens are averaged; see token_weights", choices=("grpo", "dapo", "dr_grpo")
    )
    scale: str = option(
        "std", "divide advantages by the deviation, or do not (Dr. GRPO)", choices=("std", "none")
    )
    ddof: int = option(1, "1: sample deviation; 0: population deviation", choices=(0, 1))
    eps: float = option(1e-4, "added to the deviation; 0: the paper's exact form", least=0)
    # evaluation
    valid: list[str] = option([], "files of problems held out for greedy evaluation")
    valid_every: int = option(20, "steps between evaluations", least=1)


# ---- Reward and advantage ------------------------------------------------------------------------


def completion_rewards(rollout: Rollout) -> list[float]:
    """What training maximizes, for each completion. The verdicts do not change with it."""
    if rollout.step_rewards:  # scores of a reward model
        return list(map(solution_score, rollout.step_rewards))
    return list(rollout.verdicts)


def advantages(rollout: Rollout, config: Config) -> list:
    """For each completion a number, or with process supervision a number for each of its tokens."""
    if config.algorithm != "grpo":  # (Online) RFT, eq. 10: 1 if right, else 0
        return rollout.verdicts
    if config.supervision == "process":
        rows = process_advantage(
            list(map(torch.tensor, rollout.step_rewards)),
            list(map(torch.tensor, rollout.step_ends)),
            [len(sample.ids) for sample in rollout.samples],
            config.ddof,
            config.eps,
        )
        return [row.tolist() for row in rows]
    rewards = torch.tensor([rollout.rewards])  # [1, G]
    [advantage] = group_advantage(rewards, config.ddof, config.scale, config.eps)
    return advantage.tolist()


@definition
def group_advantage(rewards, ddof=1, scale="std", eps=1e-4):
    """Outcome supervision (4.1.2): each reward minus the mean of its group, divided by the deviation.

    rewards [Q, G] -> advantages [Q, G] float32. ddof 1: sample deviation, 0: the population's. scale
    "none" does not divide (Dr. GRPO). eps 0: the paper's form. A reward that is not finite counts as 0.

    >>> group_advantage(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), eps=0).tolist()
    [[0.5, 0.5, 0.5, -1.5]]
    """
    rewards = rewards.double()
    finite = rewards.isfinite()  # [Q, G]
    count = finite.sum(-1, keepdim=True)  # [Q, 1]
    mean = rewards.where(finite, 0).sum(-1, keepdim=True) / count
    advantage = (rewards - mean).where(finite, 0)
    if scale == "std":
        squares = advantage.square().sum(-1, keepdim=True)
        std = (squares / (count - ddof)).sqrt()
        advantage = advantage / (std + eps)
    # Equal rewards give exactly 0: the rounding error of their mean is no signal.
    highest = rewards.where(finite, -torch.inf).amax(-1, keepdim=True)
    lowest = rewards.where(finite, torch.inf).amin(-1, keepdim=True)
    advantage = advantage.where(highest > lowest, 0)
    return advantage.float()


@definition
def process_advantage(step_rewards, step_ends, lengths, ddof=1, eps=1e-4):
    """Process supervision (4.1.3) of one group: an advantage for each token, from rewards of steps.

    For each of G completions: step_rewards [K], step_ends [K] (index of each step's last token), length
    in tokens; returns float32 [length]. Mean and deviation are those of all steps of the group. A token
    gets the sum over the steps that end at it or after it.

    >>> rewards = [torch.tensor(r) for r in ([1.0, 0, 1], [0.0, 0], [1.0, 1, 1, 0])]
    >>> ends = [torch.arange(3), torch.arange(2), torch.arange(4)]  # a step is one token
    >>> process_advantage(rewards, ends, [3, 2, 4], eps=0)[2]
    tensor([ 1.4757,  0.6325, -0.2108, -1.0541])
    """
    rewards = torch.cat(step_rewards)  # [steps of the group]
    [normalized] = group_advantage(rewards[None], ddof, "std", eps)
    counts = [len(rewards) for rewards in step_rewards]
    parts = normalized.double().split(counts)
    result = []
    for part, ends, length in zip(parts, step_ends, lengths, strict=True):
        at_end = part.new_zeros(length)
        at_end = at_end.index_add(0, ends, part)  # [length]
        backward = at_end.flip(0).cumsum(0)
        result.append(backward.flip(0).float())
    return result


# ---- The loss (equations 3 and 4) ----------------------------------------------------------------


@definition
def grpo_loss(logp, old_logp, ref_logp, advantage, weight, clip=(0.2, 0.2), beta=0.04):
    """Minus the objective of eq. 3, and sums over tokens to log. All tensors are [N].

    logp, old_logp, ref_logp: log-probs in nats under the policy, the policy that sampled, the reference
    (None: no KL). weight: see token_weights; 0: nothing else matters. clip: below and above 1. With mu = 1
    the gradient of logp is eq. 21: -weight * (advantage + beta * (exp(ref_logp - logp) - 1)).
    """
    # Places of weight 0 may hold inf or NaN. They go before exp, because 0 * inf is NaN.
    chosen = weight != 0
    logp = logp.where(chosen, 0)
    old_logp = old_logp.where(chosen, 0)
    advantage = advantage.where(chosen, 0)
    ratio = bounded(logp - old_logp).exp()
    low, high = clip
    clipped = ratio.clamp(1 - low, 1 + high)
    objective = torch.minimum(ratio * advantage, clipped * advantage)
    kl = torch.zeros_like(logp)
    if ref_logp is not None:
        kl = kl_estimate(logp, ref_logp.where(chosen, 0))
    loss = weight * (beta * kl - objective)
    stats = {
        "kl": kl,
        "clip": clipped * advantage < ratio * advantage,
        "ratio": ratio,
        "count": chosen,
    }
    sums = {}
    for name, value in stats.items():
        sums[name] = value.detach().where(chosen, 0).sum()
    return loss.sum(), sums


def kl_estimate(logp, ref_logp):
    """KL(policy || reference) of sampled tokens in nats, eq. 4: exp(d) - d - 1, d = ref_logp - logp.
    Its gradient, with the samples held fixed, is in expectation that of KL(reference || policy)."""
    d = bounded(ref_logp - logp)
    k3 = torch.expm1(d) - d
    # Near 0 this difference loses its digits: there the series is exact.
    series = 1 / 2 + d / 6 + d * d / 24
    return k3.where(d.abs() > 0.01, d * d * series)


def bounded(x):
    """x between -10,000 and 80, with the gradient of x: exp stays finite, no gradient is lost."""
    x = x.nan_to_num(nan=torch.nan)  # infinities become the largest floats
    inside = x.detach().clamp(-1e4, 80.0)
    return inside + (x - x.detach())


@definition
def token_weights(lengths, mask, completion, normalization, completions, tokens, max_tokens):
    """The means of eq. 3 as a weight of each token, float32 [N]; 0 outside the mask.

    lengths [completions here]: |o_i|, tokens that the policy chose; mask [N]: those tokens; completion
    [N]: each token's row in lengths. completions, tokens: numbers of the whole batch, over all processes.
        grpo     1 / (|o_i| * completions)       mean over a completion, then over completions (eq. 3)
        dapo     1 / tokens                      mean over all tokens
        dr_grpo  1 / (completions * max_tokens)  a constant
    """
    if normalization == "grpo":
        divisor = lengths.clamp(min=1)[completion] * completions
    elif normalization == "dapo":
        divisor = max(tokens, 1)
    elif normalization == "dr_grpo":
        divisor = completions * max_tokens
    else:
        raise ValueError(f"normalization {normalization!r}: give grpo, dapo or dr_grpo")
    return mask.float() / divisor


def set_weights(micro_batches, rollouts, config):
    """Set the weights of all tokens, so that no gradient depends on how the batch is cut."""
    masks = []
    for rollout in rollouts:
        masks += [sample.mask for sample in rollout.samples]
    completions = sum(map(any, masks))  # those with a token that the policy chose
    tokens = sum(map(sum, masks))
    for micro in micro_batches:
        micro.weight = token_weights(
            micro.lengths,
            micro.mask,
            micro.completion,
            config.normalize,
            completions,
            tokens,
            config.max_new_tokens,
        )


@definition
def policy_loss(hidden, head, micro, config):
    """Eq. 3 of a micro-batch, from hidden states [N, D] and the LM head [V, D].

    micro: targets, advantage, weight, old_logp (None: the policy itself sampled), ref_logp (None: no
    KL), all [N]. Returns the loss, sums to log, and log-probs [N], 0 where the weight is 0.
    """
    logp, entropy = logprobs(hidden, head, micro.targets, config.temperature, entropy=True)
    old_logp = logp.detach() if micro.old_logp is None else micro.old_logp
    loss, sums = grpo_loss(
        logp,
        old_logp,
        micro.ref_logp,
        micro.advantage,
        micro.weight,
        (config.clip_low, config.clip_high),
        config.beta,
    )
    chosen = micro.weight != 0
    sums["entropy"] = entropy.where(chosen, 0).sum()
    return loss, sums, logp.detach().where(chosen, 0)


def grpo_gradient(policy, micro_batches, config):
    """Accumulate the gradient of eq. 3. Returns sums over this process's tokens, to log."""
    totals = {}
    for micro in micro_batches:
        hidden = cut(hidden_states(policy, micro), policy)  # [N, D]
        loss, sums, logp = policy_loss(hidden, policy.head_weight, micro, config)
        backward(loss, hidden, policy)
        # The policy of the first update is the one that sampled. RFT has no ratio.
        if micro.old_logp is None and config.algorithm == "grpo":
            micro.old_logp = logp
        sums["loss"] = loss.detach()
        for name, value in sums.items():
            totals.setdefault(name, 0.0)
            totals[name] += value
    return totals


def update(policy, optimizer, micro_batches, config, world):
    """mu optimizer steps on eq. 3 (algorithm 1, lines 10 and 11). Returns their metrics."""
    metrics = {}
    for _ in range(config.mu):
        sums = grpo_gradient(policy, micro_batches, config)
        grad_norm = clip_grad_norm(policy, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        means = token_means(sums, world)
        means["clip_fraction"] = means.pop("clip")
        means["grad_norm"] = grad_norm
        # Metrics are those of the first step, but the ratio and the clip fraction of the last.
        metrics = means | metrics
        metrics["ratio"] = means["ratio"]
        metrics["clip_fraction"] = means["clip_fraction"]
    return metrics


# ---- Algorithm 1 ---------------------------------------------------------------------------------


def check(config: Config) -> None:
    """Raise InputError for options that do not go together."""
    train_reward.check_options(config)
    if config.supervision == "process" and config.reward != "process_model":
        raise InputError(f"--supervision process needs --reward process_model, not {config.reward}")
    if config.supervision == "process" and config.scale != "std":
        raise InputError("--scale none: process supervision (4.1.3) divides by the deviation")
    if config.algorithm != "grpo" and config.reward != "rule":
        raise InputError(f"--algorithm {config.algorithm} needs --reward rule, not {config.reward}")


def main(config: Config) -> None:
    check(config)
    world = setup(config.device, config.kernels, config.bf16)
    run = Run(config, world)
    tokenizer = load_tokenizer(config.init, config.template, config.system)
    problems = readers.load_all(config.problems)
    held_out = readers.load_all(config.valid)

    # The policy is trained. The sampler is a copy, whole on every process: decoding never waits.
    policy = from_pretrained(config.init, world.device)
    check_tokenizer(tokenizer, policy, config.init)
    readers.check_lengths(tokenizer, problems + held_out, config, policy.config.context)
    policy = shard(policy, world)
    reference = None  # pi_ref of eq. 3
    if config.beta and config.algorithm == "grpo":
        reference = shard(from_pretrained(config.init, world.device), world)
    whole = from_pretrained(config.init, world.device, world.dtype)
    prepare(whole, world, trained=False)
    reward_model = train_reward.load_model(config, 0, tokenizer, world)
    run.checkpointing(policy, tokens=config.micro_tokens)
    run.say(f"{len(problems)} problems, {config.questions} x {config.samples} completions a step")
    sampling = Sampling(config.samples, config.temperature, 1.0, config.max_new_tokens)

    # A resumed run goes on after the last checkpoint.
    optimizer = adamw(policy, config.lr, weight_decay=0.0)
    start, _ = run.resume(policy, optimizer)
    order = shuffled(len(problems), config.seed)
    for _ in range(start * config.questions):
        next(order)

    with Sandbox() if "pot" in config.formats else nullcontext() as sandbox:
        sampler = Sampler(whole, tokenizer, config.template, config.max_rows, sandbox, world)
        data_source = sampler  # of eq. 5
        if config.algorithm == "rft":
            data_source = replace(sampler, model=copy.deepcopy(whole))  # always the first model
        if start == 0 and held_out:
            gather_into(policy, sampler.model)
            run.log(0, validate(sampler, held_out, config))
        iteration = 0
        for step in range(start + 1, run.total + 1):
            # --- A new outer iteration (4.1.4): a new reference, and the reward model learns on
            current = (step - 1) // config.steps
            if iteration != current:
                iteration = current
                if reference:
                    run.renew_reference(step, policy, reference, tokenizer)
                if config.reward_questions:
                    gather_into(policy, sampler.model)
                    train_reward.renew(config, iteration, sampler, problems)
                    reward_model = train_reward.load_model(config, iteration, tokenizer, world)

            # --- Sample G completions of each question (algorithm 1, line 7)
            questions = [problems[next(order)] for _ in range(config.questions)]
            path = run.directory / "rollouts" / f"step_{step:06d}.jsonl"
            if world.broadcast_object(path.exists()):  # sampled before the run was stopped
                rollouts = load_rollouts(path)
                if [rollout.problem for rollout in rollouts] != questions:
                    raise InputError(f"{path}: sampled from other problems; use another --to")
            else:
                if data_source is sampler:
                    gather_into(policy, sampler.model)
                sampling.seed = seeded(config.seed, "rollout", step)
                run.phase("rollout")
                rollouts = sample_rollouts(data_source, questions, config.formats, sampling)

            # --- Reward (line 8) and advantage (line 9; 4.1.2, 4.1.3)
            run.phase("judge")
            judge(data_source, rollouts)
            run.phase("reward")
            if reward_model:
                reward_model.score(rollouts, config.micro_tokens, world)
            for rollout in rollouts:
                rollout.rewards = completion_rewards(rollout)
                rollout.advantages = advantages(rollout, config)
            run.phase("")
            metrics = rollout_metrics(rollouts)
            world.barrier()  # no process may find the file of a step that another still samples
            if world.is_main:
                save_rollouts(path, rollouts, tokenizer)

            # --- Pack without padding; the reference reads the batch once
            run.phase("update")
            micro_batches = pack_rollouts(rollouts, config.micro_tokens, world)
            set_weights(micro_batches, rollouts, config)
            if reference:
                for micro in micro_batches:
                    with torch.no_grad():
                        micro.ref_logp, _ = token_logprobs(reference, micro, config.temperature)

            # --- mu optimizer steps on eq. 3
            rate = lr_linear_decay(step, config.warmup, run.total, config.decay)
            set_lr(optimizer, config.lr * rate)
            metrics |= update(policy, optimizer, micro_batches, config, world)

            # --- Evaluate, log, save
            run.phase("")
            if held_out and run.due(step, config.valid_every):
                gather_into(policy, sampler.model)
                metrics |= validate(sampler, held_out, config)
            learned = [(policy, 3 * config.mu), (reference, 1)]  # forwards; a backward is two
            run.log(step, metrics, rollout_work(rollouts, learned, config.mu, reward_model))
            run.checkpoint(step, policy, tokenizer, optimizer)
    run.finish(policy, tokenizer, {"problems": len(problems)})


if __name__ == "__main__":
    command(main, Config)
