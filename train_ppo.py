"""PPO (paper 4.1.1, A.1.5): proximal policy optimization, with the value model that GRPO does without.

    for step in 1..M:
        a batch of questions
        sample completions and reward them              as in GRPO: by the rule or by a reward model
        log-probs of the reference and values V(s_t)    assess
        rewards, advantages and returns of tokens       estimate: eq. 2, then generalized advantage estimation (gae)
        for update in 1..mu:
            policy: maximize eq. 15                     ppo_loss: ratio and clip, with an advantage for every token
            value model: minimize (V(s_t) - R_t)^2      value_loss: clipped likewise

The difference from GRPO is the source of the advantage: a second trained model as large as the policy, with gradients
and optimizer state (bench/ppo_grpo.py counts them), in place of the mean of a group. And the KL to the reference is a
reward of every token (eq. 2), not a term of the loss (eq. 3). In the unified view (eq. 5, table 10) PPO has samples of
the policy, a reward model, and the gradient coefficient of eq. 18: the advantage.

The paper leaves some choices open. gamma is 1 here: the reward comes at the end, and a discount would pay for short
answers. With gamma 1 the rewards of the tokens sum to the reward of the completion minus beta times its log-ratio to
the reference. A completion that is cut by length ends there: no value of what might have followed is added. Tokens that
the policy did not choose (a tool's output) are no actions, and GAE steps over them.

    python train_ppo.py --init runs/demo/sft/model --problems runs/demo/data/train.jsonl --to runs/demo/ppo
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from runtime.options import option

import numpy as np
import torch
from torch import Tensor

from batch import MicroBatch, hidden_states, logprobs, pack_rollouts, token_logprobs, token_values
from data.chat import load_tokenizer
from data.io import InputError
from data.problems import readers
from data.sandbox.sandbox import Sandbox
from data.tokenizer import Tokenizer, check_tokenizer
from generate import Sampling
from kernels import definition
from model import Transformer
from reward import RewardModel
from rollout import Rollout, Sampler, judge, load_rollouts, sample_rollouts, save_rollouts, validate
from runtime.distributed import World, gather_into, prepare, seeded, setup, shard, shuffled
from runtime.hf import from_pretrained
from runtime.metrics import rollout_metrics, rollout_work, token_means
from runtime.optim import adamw, clip_grad_norm, lr_linear_decay, set_lr
from runtime.run import Run, command
from train_grpo import bounded, completion_rewards, token_weights


@dataclass
class Config:
    init: str = option("", "model to start from: first policy and reference", required=True)
    value_init: str = option("", "model that the value model starts from; none: --init")
    problems: list[str] = option([], "files of training problems with answers", required=True)
    to: str = option("", "run directory; it gets model/ and value_model/", required=True)
    formats: list[str] = option(
        ["cot"], "in turn over the questions", choices=("cot", "pot"), required=True
    )
    template: str = option(
        "plain", "prompt template", choices=("plain", "deepseek", "qwen", "chat")
    )
    system: str = option("", "system message of --template chat; empty: the template's")
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
    activation_checkpointing: bool | None = option(None, "recompute activations; none: if needed")
    bf16: bool | None = option(None, "products in bfloat16; none: on GPUs, and where faster")
    compile: bool | None = option(None, "compile the blocks with torch.compile; none: on GPUs")
    kernels: str = option("fast", "plain: without accelerators", choices=("fast", "plain"))
    # the run
    valid: str = option("", "problems held out for evaluation during training (greedy)")
    valid_limit: int = option(200, "number of those problems used", least=1)
    valid_every: int = option(20, "steps between evaluations", least=1)
    save_every: int = option(20, "steps between checkpoints", least=1)
    keep: int = option(2, "checkpoints kept", least=1)
    seed: int = option(0, "seed of questions and samples", least=0)
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


# ----------------------------------------------------------------------------------------------------
# Reward, value and advantage of every token


@torch.no_grad()
def assess(config: Config, rollouts: list[Rollout], reference, value, world: World) -> None:
    """Fill in the values and, with a reference, ref_logprobs of every completion token. Processes share the work."""
    found: dict[tuple[int, int], list] = {}  # (rollout, completion): rows of numbers of its tokens
    for micro in pack_rollouts(rollouts, config.micro_tokens, world):
        read = [token_values(value, micro)]  # each [N]
        if reference is not None:
            read.append(token_logprobs(reference, micro, config.temperature)[0])
        parts = torch.stack(read).split(micro.completion.bincount().tolist(), dim=1)
        if not micro.idle:
            found |= zip(micro.members, [part.tolist() for part in parts], strict=True)
    for part in world.all_gather_objects(found):
        found |= part
    for r, rollout in enumerate(rollouts):
        rows = [found[r, g] for g in range(len(rollout.samples))]
        rollout.values = [row[0] for row in rows]
        rollout.ref_logprobs = [row[1] for row in rows] if reference is not None else []


def log_ratios(rollout: Rollout, g: int) -> list[float]:
    """log pi_old(o_t) - log pi_ref(o_t) of the tokens that the policy chose. Its mean estimates the KL."""
    sample = rollout.samples[g]
    reference = rollout.ref_logprobs[g] if rollout.ref_logprobs else sample.logprobs  # none: no KL
    rows = zip(sample.logprobs, reference, sample.mask, strict=True)
    return [old - ref for old, ref, chosen in rows if chosen]


def token_rewards(config: Config, rollout: Rollout, g: int) -> list[float]:
    """Eq. 2 for the tokens that the policy chose.

    The last of them gets the reward of the completion. Each pays beta * (log pi_old - log pi_ref), where pi_old is the
    policy that sampled.
    """
    rewards = [-config.beta * ratio for ratio in log_ratios(rollout, g)]
    rewards[-1] += rollout.rewards[g]
    return rewards


def gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Generalized advantage estimation of one completion: A_t = sum over k of (gamma lam)^k delta_(t+k).

    delta_t = r_t + gamma V(s_(t+1)) - V(s_t); after the last token V is 0. Advantage plus value is the return, what
    the value should have been.

    >>> [round(a, 6) for a in gae([0, 0, 1], [0.5, 0.6, 0.8], gamma=1, lam=0.5)]  # deltas 0.1, 0.2, 0.2
    [0.25, 0.3, 0.2]
    """
    advantages = []
    advantage = next_value = 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        delta = reward + gamma * next_value - value
        advantage = delta + gamma * lam * advantage
        next_value = value
        advantages.append(advantage)
    return advantages[::-1]


def estimate(config: Config, rollouts: list[Rollout]) -> dict:
    """Fill in advantages and returns of every token, on every process. Returns metrics.

    A completion whose reward is not finite counts for nothing: its advantages are 0, its returns are its values.
    """
    # Advantages and values of the tokens that the policy chose, one completion after the other.
    places: list[tuple[Rollout, int, list[int]]] = []
    advantages: list[float] = []
    values: list[float] = []
    ratios: list[float] = []
    for rollout in rollouts:
        rollout.advantages = [[0.0] * len(sample.ids) for sample in rollout.samples]
        rollout.returns = [list(row) for row in rollout.values]
        for g, sample in enumerate(rollout.samples):
            chosen = [t for t, is_chosen in enumerate(sample.mask) if is_chosen]
            if chosen and math.isfinite(rollout.rewards[g]):
                before = [rollout.values[g][t] for t in chosen]
                rewards = token_rewards(config, rollout, g)
                advantages += gae(rewards, before, config.gamma, config.lam)
                values += before
                ratios += log_ratios(rollout, g)
                places.append((rollout, g, chosen))

    # Bring the advantages of the batch to mean 0 and deviation 1. Below 1e-4 the deviation is rounding, above all of
    # the log-ratios in the first step, and must not become 1.
    raw = np.array(advantages or [0.0])
    returns = raw + np.array(values or [0.0])
    whitened = (raw - raw.mean()) / math.sqrt(raw.var() + 1e-8) if config.whiten else raw
    numbers = zip(whitened.tolist(), returns.tolist(), strict=True)
    for rollout, g, chosen in places:
        for t in chosen:
            rollout.advantages[g][t], rollout.returns[g][t] = next(numbers)

    spread = returns.var()
    return {
        "kl": float(np.mean(ratios or [0.0])),
        "returns": float(returns.mean()),
        # The share of the returns' variance that the values foresee.
        "explained_variance": float(1 - raw.var() / spread) if spread > 0 else 0.0,
    }


# ----------------------------------------------------------------------------------------------------
# The losses


def ppo_loss(logp: Tensor, old_logp: Tensor, micro: MicroBatch, config) -> tuple[Tensor, dict]:
    """Minus the objective of eq. 15, and sums over tokens to log. logp, old_logp [N]: log-probs in nats.

    With mu = 1 old_logp is logp.detach(). Then the ratio is 1, and the gradient coefficient is eq. 18, the advantage.
    """
    chosen = micro.weight != 0
    # Other places may hold inf or NaN. They go before exp, because 0 * inf is NaN.
    logp, old_logp, advantage = (x.where(chosen, 0) for x in (logp, old_logp, micro.advantage))
    ratio = bounded(logp - old_logp).exp()
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    objective = torch.minimum(ratio * advantage, clipped * advantage)
    loss = -(micro.weight * objective).sum()

    is_clipped = clipped * advantage < ratio * advantage
    to_log = {"clip": is_clipped, "ratio": ratio, "count": torch.ones_like(ratio)}
    return loss, {name: x.detach().where(chosen, 0).sum() for name, x in to_log.items()}


@definition
def policy_loss(hidden: Tensor, head: Tensor, micro: MicroBatch, config):
    """Eq. 15 of a micro-batch, from hidden states [N, D] and the LM head [V, D].

    Returns the loss, the sums of ppo_loss and of "entropy", and the log-probs [N] without gradient, 0 where the weight
    is 0.
    """
    logp, entropy = logprobs(hidden, head, micro.targets, config.temperature, entropy=True)
    old_logp = logp.detach() if micro.old_logp is None else micro.old_logp
    loss, stats = ppo_loss(logp, old_logp, micro, config)
    chosen = micro.weight != 0
    stats["entropy"] = entropy.where(chosen, 0).sum()
    return loss, stats, logp.detach().where(chosen, 0)


def value_loss(
    value: Tensor, old: Tensor, returns: Tensor, weight: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Half the weighted sum of max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2). All [N]; clip 0: no clip.

    Returns it and the number of tokens where the clipped side is larger: they have no gradient.
    """
    error = (value - returns) ** 2
    near = value.clamp(old - clip, old + clip) if clip else value
    clipped_error = (near - returns) ** 2
    is_clipped = (clipped_error > error) & (weight != 0)
    return 0.5 * (weight * torch.maximum(error, clipped_error)).sum(), is_clipped.sum()


# ----------------------------------------------------------------------------------------------------
# Update


def set_weights(batches: list[MicroBatch], rollouts: list[Rollout], config: Config) -> None:
    """Eq. 15 has the means of eq. 3: over the tokens of a completion, then over completions."""
    masks = [sample.mask for rollout in rollouts for sample in rollout.samples]
    completions = max(sum(map(any, masks)), 1)  # those with a token that the policy chose
    for micro in batches:
        lengths = (micro.lengths, micro.mask, micro.completion)
        micro.weight = token_weights(*lengths, "grpo", completions, 0, config.max_new_tokens)


def policy_gradient(policy: Transformer, batches: list[MicroBatch], config: Config) -> dict:
    """Add up the gradient of eq. 15. Returns sums over this process's tokens."""
    sums: dict[str, Tensor] = {}
    for micro in batches:
        hidden = hidden_states(policy, micro)  # [N, D]
        loss, stats, logp = policy_loss(hidden, policy.head_weight, micro, config)
        loss.backward()
        if micro.old_logp is None:  # the policy of the first update is the one that sampled
            micro.old_logp = logp
        for name, number in (stats | {"loss": loss.detach()}).items():
            sums[name] = sums.get(name, 0.0) + number
    return sums


def value_gradient(
    value: Transformer, batches: list[MicroBatch], rollouts: list[Rollout], config: Config
) -> dict:
    """Add up the gradient of the value model's loss, with the weights of the policy's. Returns sums to log."""
    sums: dict = {"value_loss": 0.0, "value_clip": 0.0}
    for micro in batches:
        before, returns = [], []
        for r, g in micro.members:
            before += rollouts[r].values[g]
            returns += rollouts[r].returns[g]
        device = micro.weight.device
        old = torch.tensor(before, device=device)  # [N]
        target = torch.tensor(returns, device=device)  # [N]
        predicted = token_values(value, micro)  # [N]
        loss, clipped = value_loss(predicted, old, target, micro.weight, config.clip_value)
        loss.backward()
        sums["value_loss"] += loss.detach()
        sums["value_clip"] += clipped
    return sums


def update(policy, optimizer, value, value_optimizer, rollouts, config: Config, world) -> dict:
    """mu optimizer steps of both models on a batch of rollouts.

    Returns metrics of the first step, but the ratio and the clip fractions of the last.
    """
    batches = pack_rollouts(rollouts, config.micro_tokens, world)
    set_weights(batches, rollouts, config)
    metrics: dict[str, float] = {}
    for _ in range(config.mu):
        # --- the gradients of both models
        sums = policy_gradient(policy, batches, config)
        sums |= value_gradient(value, batches, rollouts, config)

        # --- one step of each optimizer
        norm = clip_grad_norm(policy, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value_norm = clip_grad_norm(value, config.max_grad_norm)
        value_optimizer.step()
        value_optimizer.zero_grad(set_to_none=True)

        means = token_means(sums, world)
        last = {"clip_fraction": means.pop("clip"), "ratio": means["ratio"]}
        last["value_clip"] = means["value_clip"]
        norms = {"grad_norm": norm, "value_grad_norm": value_norm}
        metrics = means | norms | metrics | last
    return metrics


# ----------------------------------------------------------------------------------------------------
# Training


def check(config: Config) -> None:
    """Raise InputError for options that do not go together."""
    if config.reward != "rule" and not config.reward_model:
        raise InputError(f"--reward {config.reward} needs --reward_model DIR, of train_reward.py")
    if config.reward == "rule" and config.reward_model:
        raise InputError("--reward_model needs --reward outcome_model or process_model")


def load_value_model(config: Config, tokenizer: Tokenizer, device) -> Transformer:
    """The first value model. Raises InputError where its directory has another tokenizer than the policy's."""
    directory = config.value_init or config.init
    if Tokenizer.load(directory).hash != tokenizer.hash:
        advice = "start the value model from one that has it"
        raise InputError(f"{directory}: its tokenizer is not the policy's; {advice}")
    value = from_pretrained(directory, device, score="value")
    check_tokenizer(tokenizer, value, directory)
    return value


def load_reward_model(config: Config, tokenizer: Tokenizer, world: World) -> RewardModel | None:
    """The reward model; None where the rule is the reward."""
    if config.reward == "rule":
        return None
    kind = config.reward.removesuffix("_model")
    return RewardModel(config.reward_model, kind, tokenizer, world.device, world.dtype)


def main(config: Config) -> None:
    check(config)
    world = setup(config.device, config.kernels, config.bf16, config.compile)
    run = Run(config, world)
    tokenizer = load_tokenizer(config.init, config.template, config.system)
    problems = readers.load_all(config.problems)
    held_out = readers.load(config.valid)[: config.valid_limit] if config.valid else []

    # --- the policy and the value model are trained; the sampler is a copy, whole on every process
    policy = from_pretrained(config.init, world.device)
    check_tokenizer(tokenizer, policy, config.init)
    readers.check_lengths(tokenizer, problems + held_out, config, policy.config.context)
    policy = shard(policy, world)
    value = shard(load_value_model(config, tokenizer, world.device), world)
    reference = None
    if config.beta:
        reference = shard(from_pretrained(config.init, world.device), world)
    copied = from_pretrained(config.init, world.device, world.dtype)
    copied = prepare(copied, world, trained=False)
    reward_model = load_reward_model(config, tokenizer, world)
    run.say(f"{len(problems)} problems, {config.questions} x {config.samples} completions a step")

    # --- a resumed run goes on after the last checkpoint
    optimizer = adamw(policy, config.lr, (0.9, config.beta2), config.weight_decay)
    value_optimizer = adamw(value, config.value_lr, (0.9, config.beta2), config.weight_decay)
    others = {"value": (value, value_optimizer)}
    run.checkpointing(policy, value, tokens=config.micro_tokens)
    start, _ = run.resume(policy, optimizer, others)
    order = shuffled(len(problems), config.seed)
    for _ in range(start * config.questions):
        next(order)

    sampling = Sampling(config.samples, config.temperature, max_new_tokens=config.max_new_tokens)
    with Sandbox() if "pot" in config.formats else nullcontext() as sandbox:
        sampler = Sampler(copied, tokenizer, config.template, config.max_rows, sandbox, world)
        if start == 0 and held_out:
            gather_into(policy, sampler.model)
            run.log(0, validate(sampler, held_out, config))

        for step in range(start + 1, config.steps + 1):
            # --- sample completions, unless the run was stopped after this step had sampled
            questions = [problems[next(order)] for _ in range(config.questions)]
            path = run.directory / "rollouts" / f"step_{step:06d}.jsonl"
            if is_sampled := world.broadcast_object(path.exists()):
                rollouts = load_rollouts(path)
            else:
                run.phase("rollout")
                gather_into(policy, sampler.model)
                sampling.seed = seeded(config.seed, "rollout", step)
                rollouts = sample_rollouts(sampler, questions, config.formats, sampling)

                # --- reward of each completion
                run.phase("judge")
                judge(sampler, rollouts)
                run.phase("reward")
                if reward_model is not None:
                    reward_model.score(rollouts, config.micro_tokens, world)
                for rollout in rollouts:
                    rollout.rewards = completion_rewards(rollout)

                # --- value and log-prob under the reference of each token
                run.phase("assess")
                assess(config, rollouts, reference, value, world)

            # --- reward, advantage and return of each token (eq. 2, GAE)
            run.phase("")
            estimates = estimate(config, rollouts)
            metrics = rollout_metrics(rollouts) | estimates
            if world.is_main and not is_sampled:
                save_rollouts(path, rollouts, tokenizer)

            # --- mu steps of both optimizers on eq. 15 and on the value loss
            run.phase("update")
            factor = lr_linear_decay(step, config.warmup, config.steps, config.decay)
            rates = {
                "lr": set_lr(optimizer, config.lr * factor),
                "value_lr": set_lr(value_optimizer, config.value_lr * factor),
            }
            found = update(policy, optimizer, value, value_optimizer, rollouts, config, world)
            metrics = found | metrics | rates

            # --- validate, log, save
            run.phase("")
            if held_out and (step % config.valid_every == 0 or step == config.steps):
                gather_into(policy, sampler.model)
                metrics |= validate(sampler, held_out, config)
            assessed = "assess" in run.seconds
            forwards = 3 * config.mu  # of each trained model; a backward counts as two
            learned = [(policy, forwards), (value, forwards + assessed), (reference, int(assessed))]
            run.log(step, metrics, rollout_work(rollouts, learned, config.mu, reward_model))
            run.checkpoint(step, policy, tokenizer, optimizer, others=others)
    run.checkpoints.write(run.directory / "value_model", value, tokenizer)
    run.finish(policy, tokenizer, {"problems": len(problems)})


if __name__ == "__main__":
    command(main, Config)
