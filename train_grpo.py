"""GRPO (paper 4.1, algorithm 1): group relative policy optimization. RFT and Online RFT are the same loop.

    for iteration in 1..I:                     the reference becomes the policy (4.1.4)
        for step in 1..M:                      a batch of questions
            sample G completions of each       rollout.py, generate.py
            reward them                        `judge` and `completion_rewards`, or a reward model
            advantage = (r - mean) / std       `group_advantage` (4.1.2), `process_advantage` (4.1.3)
            for update in 1..mu:               an optimizer step
                maximize eq. 3                 `grpo_loss`, which is minus eq. 3

In the paper's unified view (eq. 5, table 10) a method is a data source, a reward and a coefficient:

    GRPO         --algorithm grpo          samples of the policy; coefficient of eq. 21
    Online RFT   --algorithm online_rft    samples of the policy; eq. 10: 1 if right, else 0
    RFT          --algorithm rft           samples of the first model; eq. 10

Defaults are the paper's (4.2): lr 1e-6, beta 0.04, 64 samples of at most 1,024 tokens, mu 1.

    python train_grpo.py --init runs/demo/sft/model --problems runs/demo/data/train.jsonl --to runs/demo/grpo
    torchrun --nproc_per_node 8 train_grpo.py --config configs/paper/grpo.toml --init DIR --problems FILE --to DIR
"""

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

import train_reward
from batch import MicroBatch, hidden_states, logprobs, pack_rollouts, token_logprobs
from data.io import InputError
from data.problems import readers
from data.prompts import check_lengths
from data.sandbox.sandbox import Sandbox
from data.tokenizer import Tokenizer, check_tokenizer
from generate import Sampling
from kernels import definition
from model import Transformer
from reward import solution_score
from rollout import Rollout, Sampler, judge, load_rollouts, sample_rollouts, save_rollouts, validate
from runtime.distributed import gather_into, prepare, seeded, setup, shard, shuffled
from runtime.hf import from_pretrained
from runtime.metrics import rollout_metrics, rollout_work, token_means
from runtime.optim import adamw, clip_grad_norm, lr_linear_decay, set_lr
from runtime.options import option
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
    algorithm: str = option("grpo", "see above", choices=("grpo", "online_rft", "rft"))
    reward: str = option("rule", "source", choices=("rule", "outcome_model", "process_model"))
    reward_model: str = option("", "result of train_reward.py, with the policy's tokenizer")
    supervision: str = option("outcome", "what has a reward", choices=("outcome", "process"))
    # algorithm 1
    iterations: int = option(1, "outer iterations; each has a new reference", least=1)
    steps: int = option(1000, "steps M of an iteration", least=1)
    questions: int = option(16, "questions a step, over all processes", least=1)
    samples: int = option(64, "completions G of a question", least=1)
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
    normalize: str = option("grpo", "mean over tokens", choices=("grpo", "dapo", "dr_grpo"))
    scale: str = option("std", "divide advantages by the deviation", choices=("std", "none"))
    ddof: int = option(1, "1: sample deviation; 0: population deviation", choices=(0, 1))
    eps: float = option(1e-4, "added to the deviation; 0: the paper's exact form", least=0)
    # sampling
    temperature: float = option(1.0, "sampling temperature, also in the loss", above=0)
    max_new_tokens: int = option(1024, "longest completion; a longer one is cut", least=1)
    max_rows: int = option(256, "completions decoded at once by one process", least=1)
    # the machine
    max_grad_norm: float = option(1.0, "largest norm of the gradient; 0: any", least=0)
    micro_tokens: int = option(16_384, "tokens of one forward and backward pass", least=1)
    activation_checkpointing: bool | None = option(None, "recompute activations; none: if needed")
    bf16: bool | None = option(None, "matrix products in bfloat16; none: on GPUs")
    kernels: str = option("fast", "fast; plain: definitions alone", choices=("fast", "plain"))
    # the run
    valid: str = option("", "problems held out for evaluation during training (greedy)")
    valid_every: int = option(20, "steps between evaluations", least=1)
    save_every: int = option(20, "steps between checkpoints", least=1)
    seed: int = option(0, "seed of questions and samples", least=0)
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


# ----------------------------------------------------------------------------------------------------
# Reward and advantage


def completion_rewards(rollout: Rollout) -> list[float]:
    """What training maximizes, for each completion. The verdicts do not change with it."""
    if rollout.step_rewards:  # scores of a reward model
        return [solution_score(scores) for scores in rollout.step_rewards]
    return list(rollout.verdicts)


def advantages(rollout: Rollout, config: Config) -> list:
    """For each completion a number, or with process supervision a number for each of its tokens."""
    if config.algorithm != "grpo":  # (Online) RFT, eq. 10: 1 if right, else 0
        return list(rollout.verdicts)
    if config.supervision == "process":
        rewards = [torch.tensor(scores) for scores in rollout.step_rewards]
        ends = [torch.tensor(ends) for ends in rollout.step_ends]
        lengths = [len(sample.ids) for sample in rollout.samples]
        rows = process_advantage(rewards, ends, lengths, config.ddof, config.eps)
        return [row.tolist() for row in rows]
    rewards = torch.tensor(rollout.rewards, dtype=torch.float64)[None]  # [1, G]
    return group_advantage(rewards, config.ddof, config.scale, config.eps)[0].tolist()


@definition
def group_advantage(rewards, ddof=1, scale="std", eps=1e-4):
    """Outcome supervision (4.1.2): each reward minus the mean of its group, divided by the deviation.

    rewards [Q, G] -> advantages [Q, G] float32. ddof 1 is the sample deviation, 0 the population's;
    scale "none" does not divide (Dr. GRPO); the paper's exact form is eps 0. Statistics are float64.
    A reward that is not finite is left out and gets advantage 0.

    >>> group_advantage(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), eps=0).tolist()
    [[0.5, 0.5, 0.5, -1.5]]
    """
    rewards = rewards.double()
    finite = rewards.isfinite()  # [Q, G]
    count = finite.sum(-1, keepdim=True)  # [Q, 1]
    mean = rewards.where(finite, 0).sum(-1, keepdim=True) / count.clamp(min=1)
    advantage = (rewards - mean).where(finite, 0)
    if scale == "std":
        squares = advantage.square().sum(-1, keepdim=True)
        std = (squares / (count - ddof).clamp(min=1)).sqrt()
        advantage = advantage / (std + eps)
    # Equal rewards give exactly 0: the rounding error of their mean is no signal.
    highest = rewards.where(finite, -torch.inf).amax(-1, keepdim=True)
    lowest = rewards.where(finite, torch.inf).amin(-1, keepdim=True)
    return advantage.where(highest > lowest, 0).float()


@definition
def process_advantage(step_rewards, step_ends, lengths, ddof=1, eps=1e-4):
    """Process supervision (4.1.3) of one group: an advantage for each token, from rewards of steps.

    For each of G completions: step_rewards [K], step_ends [K] (index of each step's last token), and
    its length in tokens. Returns float32 [length] for each. Mean and deviation are those of all steps
    of the group. A token gets the sum over the steps that end at it or after it.

    >>> rewards = [torch.tensor(r) for r in ([1.0, 0, 1], [0.0, 0], [1.0, 1, 1, 0])]
    >>> ends = [torch.arange(3), torch.arange(2), torch.arange(4)]  # a step is one token
    >>> for row in process_advantage(rewards, ends, [3, 2, 4], eps=0):
    ...     print([round(value, 4) for value in row.tolist()])
    [0.6325, -0.2108, 0.8433]
    [-2.1082, -1.0541]
    [1.4757, 0.6325, -0.2108, -1.0541]
    """
    counts = [len(rewards) for rewards in step_rewards]
    together = torch.cat(step_rewards)[None]  # [1, steps of the group]
    normalized = group_advantage(together, ddof, "std", eps)[0].double()
    result = []
    for part, ends, length in zip(normalized.split(counts), step_ends, lengths, strict=True):
        at_end = part.new_zeros(length).index_add(0, ends.long(), part)  # [length]
        result.append(at_end.flip(0).cumsum(0).flip(0).float())  # sum from each token on
    return result


# ----------------------------------------------------------------------------------------------------
# The loss (equations 3 and 4)


def bounded(x: Tensor) -> Tensor:
    """x between -10,000 and 80, with the gradient of x: exp stays finite, no gradient is lost."""
    x = x.nan_to_num(nan=torch.nan)  # infinities become the largest floats
    return x.detach().clamp(-1e4, 80.0) + (x - x.detach())


def kl_estimate(logp, ref_logp):
    """KL(policy || reference) of sampled tokens in nats, eq. 4: exp(d) - d - 1, d = ref_logp - logp.

    The samples are held fixed in the gradient. It is, in expectation, that of KL(reference || policy).
    """
    d = bounded(ref_logp - logp)
    # Near 0 the difference expm1(d) - d loses its digits: there the series is exact.
    series = d * d * (1 / 2 + d / 6 + d * d / 24)
    return torch.where(d.abs() <= 0.01, series, torch.expm1(d) - d)


@definition
def grpo_loss(logp, old_logp, ref_logp, advantage, weight, clip_low=0.2, clip_high=0.2, beta=0.04):
    """Minus the objective of eq. 3, and sums over tokens to log. All tensors are [N].

    logp, old_logp, ref_logp: log-probs in nats under the policy, the policy that sampled, and the
    reference (None: no KL). weight: see token_weights; where it is 0, nothing else matters.
    With mu = 1 old_logp is logp.detach(), and the gradient of logp is eq. 21:
    -weight * (advantage + beta * (exp(ref_logp - logp) - 1)).
    """
    chosen = weight != 0
    # Other places may hold inf or NaN. They go before exp, because 0 * inf is NaN.
    logp, old_logp, advantage = (x.where(chosen, 0) for x in (logp, old_logp, advantage))
    ratio = bounded(logp - old_logp).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    objective = torch.minimum(ratio * advantage, clipped * advantage)
    kl = torch.zeros_like(logp)
    if ref_logp is not None:
        kl = kl_estimate(logp, ref_logp.where(chosen, 0))
    loss = (weight * (beta * kl - objective)).sum()

    is_clipped = clipped * advantage < ratio * advantage
    to_log = {"kl": kl, "clip": is_clipped, "ratio": ratio, "count": torch.ones_like(ratio)}
    return loss, {name: x.detach().where(chosen, 0).sum() for name, x in to_log.items()}


@definition
def policy_loss(hidden, head, micro, config):
    """Eq. 3 of a micro-batch, from hidden states [N, D] and the LM head [V, D].

    micro: targets, advantage, weight, old_logp (None: the policy itself sampled) and ref_logp (None:
    no KL), all [N]. Returns the loss, the sums of grpo_loss and of "entropy", and the log-probs [N]
    without gradient, 0 where the weight is 0.
    """
    logp, entropy = logprobs(hidden, head, micro.targets, config.temperature, entropy=True)
    old_logp = logp.detach() if micro.old_logp is None else micro.old_logp
    clip = config.clip_low, config.clip_high
    loss, stats = grpo_loss(
        logp, old_logp, micro.ref_logp, micro.advantage, micro.weight, *clip, config.beta
    )
    chosen = micro.weight != 0
    stats["entropy"] = entropy.where(chosen, 0).sum()
    return loss, stats, logp.detach().where(chosen, 0)


def token_weights(lengths, mask, completion, normalization, completions, tokens, max_tokens):
    """The means of eq. 3 as a weight of each token, float32 [N]; 0 outside the mask.

    lengths [completions here]: |o_i|, tokens that the policy chose; mask [N] bool: those tokens;
    completion [N]: the row of each token in lengths. completions, tokens: numbers of the whole batch,
    over all processes. max_tokens: the longest completion allowed.

        grpo     1 / (|o_i| * completions)       mean over a completion, then over completions (eq. 3)
        dapo     1 / tokens                      mean over all tokens
        dr_grpo  1 / (completions * max_tokens)  a constant
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


def set_weights(micro_batches: list[MicroBatch], rollouts: list[Rollout], config) -> None:
    """The weights hold all means of eq. 3, so that no gradient depends on how the batch is cut."""
    masks = [sample.mask for rollout in rollouts for sample in rollout.samples]
    tokens = sum(map(sum, masks))
    completions = sum(map(any, masks))  # those with a token that the policy chose
    for micro in micro_batches:
        micro.weight = token_weights(
            micro.lengths,
            micro.mask,
            micro.completion,
            config.normalize,
            max(completions, 1),
            tokens,
            config.max_new_tokens,
        )


def grpo_gradient(policy: Transformer, micro_batches: list[MicroBatch], config) -> dict:
    """Accumulate the gradient of eq. 3. Returns sums over this process's tokens, to log."""
    sums: dict[str, Tensor] = {}
    for micro in micro_batches:
        hidden = hidden_states(policy, micro)  # [N, D]
        loss, stats, logp = policy_loss(hidden, policy.head_weight, micro, config)
        loss.backward()
        # The policy of the first update is the one that sampled. RFT has no ratio.
        if micro.old_logp is None and config.algorithm == "grpo":
            micro.old_logp = logp
        for name, value in (stats | {"loss": loss.detach()}).items():
            sums[name] = sums.get(name, 0.0) + value
    return sums


def update(policy: Transformer, optimizer, micro_batches: list[MicroBatch], config, world) -> dict:
    """mu optimizer steps on eq. 3 (algorithm 1, lines 10 and 11). Returns metrics of the first step,
    but the ratio and the clip fraction of the last."""
    metrics: dict[str, float] = {}
    for _ in range(config.mu):
        sums = grpo_gradient(policy, micro_batches, config)
        grad_norm = clip_grad_norm(policy, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        means = token_means(sums, world)
        last = {"clip_fraction": means.pop("clip"), "ratio": means["ratio"]}
        metrics = means | {"grad_norm": grad_norm} | metrics | last
    return metrics


# ----------------------------------------------------------------------------------------------------
# Algorithm 1


def check(config: Config) -> None:
    """Raise InputError for options that do not go together."""
    learned = config.reward != "rule"
    process = config.supervision == "process"
    if learned and not config.reward_model:
        raise InputError(f"--reward {config.reward} needs --reward_model DIR, of train_reward.py")
    if not learned and (config.reward_model or config.reward_questions):
        needs = "need --reward outcome_model or process_model"
        raise InputError(f"--reward_model and --reward_questions {needs}")
    if process and config.reward != "process_model":
        raise InputError(f"--supervision process needs --reward process_model, not {config.reward}")
    if process and config.scale != "std":
        raise InputError("--scale none: process supervision (4.1.3) divides by the deviation")
    if learned and config.algorithm != "grpo":
        raise InputError(f"--algorithm {config.algorithm} needs --reward rule, not {config.reward}")
    if config.reward_questions and config.iterations == 1:
        raise InputError("--reward_questions needs --iterations above 1: it acts between them")
    train_reward.renewal_options(config)  # a bad --reward_config is refused at once


def main(config: Config) -> None:
    check(config)
    world = setup(config.device, config.kernels, config.bf16)
    run = Run(config, world)
    tokenizer = Tokenizer.load(config.init)
    problems = list(chain(*(readers.load(path) for path in config.problems)))
    held_out = readers.load(config.valid) if config.valid else []

    # The policy is trained. The sampler is a copy, whole on every process: decoding never waits.
    policy = from_pretrained(config.init, world.device)
    check_tokenizer(tokenizer, policy, config.init)
    context = policy.config.context
    check_lengths(tokenizer, problems + held_out, config.formats, config.template, context)
    policy = shard(policy, world)
    reference = None  # pi_ref of eq. 3
    if config.beta and config.algorithm == "grpo":
        reference = shard(from_pretrained(config.init, world.device), world)
    copied = from_pretrained(config.init, world.device, world.dtype)
    copied = prepare(copied, world, trained=False)
    reward_model = train_reward.load_model(config, 0, tokenizer, world)
    run.checkpointing(policy, tokens=config.micro_tokens)
    run.say(f"{len(problems)} problems, {config.questions} x {config.samples} completions a step")

    sampling = Sampling(config.samples, config.temperature, max_new_tokens=config.max_new_tokens)

    # A resumed run goes on after the last checkpoint.
    optimizer = adamw(policy, config.lr, weight_decay=0.0)
    start, _ = run.resume(policy, optimizer)
    order = shuffled(len(problems), config.seed)
    for _ in range(start * config.questions):
        next(order)

    with Sandbox(mode=config.sandbox) if "pot" in config.formats else nullcontext() as sandbox:
        sampler = Sampler(copied, tokenizer, config.template, config.max_rows, sandbox, world)
        data_source = sampler  # of eq. 5
        if config.algorithm == "rft":
            data_source = replace(sampler, model=copy.deepcopy(copied))  # always the first model
        if start == 0 and held_out:
            gather_into(policy, sampler.model)
            run.log(0, validate(sampler, held_out, config.formats, config.max_new_tokens))

        iteration = 0
        for step in range(start + 1, run.total + 1):
            # --- A new outer iteration (4.1.4): a new reference, and the reward model learns on
            if (step - 1) // config.steps != iteration:
                iteration = (step - 1) // config.steps
                if reference is not None:
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
            if reward_model is not None:
                reward_model.score(rollouts, config.micro_tokens, world)
            for rollout in rollouts:
                rollout.rewards = completion_rewards(rollout)
                rollout.advantages = advantages(rollout, config)
            metrics = rollout_metrics(rollouts)
            run.phase("")
            world.barrier()  # no process may find the file of a step that another still samples
            if world.is_main:
                save_rollouts(path, rollouts, tokenizer)

            # --- Pack without padding; the reference reads the batch once
            run.phase("update")
            micro_batches = pack_rollouts(rollouts, config.micro_tokens, world)
            set_weights(micro_batches, rollouts, config)
            if reference is not None:
                for micro in micro_batches:
                    with torch.no_grad():
                        micro.ref_logp, _ = token_logprobs(reference, micro, config.temperature)

            # --- mu optimizer steps on eq. 3 (lines 10 and 11)
            rate = lr_linear_decay(step, config.warmup, run.total, config.decay)
            set_lr(optimizer, config.lr * rate)
            metrics |= update(policy, optimizer, micro_batches, config, world)

            # --- Evaluate, log, save
            run.phase("")
            if held_out and (step % config.valid_every == 0 or step == run.total):
                gather_into(policy, sampler.model)
                metrics |= validate(sampler, held_out, config.formats, config.max_new_tokens)
            forwards = 3 * config.mu + (reference is not None)  # a backward counts as two
            learned = [(policy.config, forwards)]
            run.log(step, metrics, rollout_work(rollouts, learned, config.mu, reward_model))
            run.checkpoint(step, policy, tokenizer, optimizer)
    run.finish(policy, tokenizer, {"problems": len(problems)})


if __name__ == "__main__":
    command(main, Config)
