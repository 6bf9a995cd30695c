"""DPO (paper A.1.4): direct preference optimization on pairs of a right and a wrong completion of the SFT model.

    rollout.py samples completions of training questions from the SFT model and judges them by the rule
    `pairs` draws (right, wrong) pairs of each question's completions
    a step minimises -log sigmoid(reward of the right one - reward of the wrong one), the mean over its pairs (eq. 12)

where a completion's implicit reward is beta times the mean over its tokens of log(policy / reference), and the
reference is the model of --init, frozen. Ordinary DPO has the sum in place of the mean: --length_normalize false.

    python rollout.py --model runs/demo/sft/model --problems runs/demo/data/train.jsonl --to runs/samples.jsonl
    python train_dpo.py --init runs/demo/sft/model --data runs/samples.jsonl --to runs/dpo
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from batch import Group, forward_flops, micro_batches, pack_completions, token_logprobs
from data.io import InputError
from data.tokenizer import Tokenizer, check_tokenizer
from generate import Sample
from rollout import Rollout, load_samples
from runtime import optim
from runtime.distributed import World, seeded, setup, shard, shuffled
from runtime.hf import from_pretrained
from runtime.optim import adamw, clip_grad_norm, lr_linear_decay
from runtime.options import option
from runtime.run import Run, command


@dataclass
class Config:
    init: str = option("", "the model that was sampled: policy and reference", required=True)
    data: list[str] = option([], "files of rollout.py, comma-separated", required=True)
    to: str = option("", "run directory; the result is TO/model", required=True)
    valid: str = option("", "such a file held out for validation")
    pairs: int = option(4, "most pairs of a question", least=1)
    context: int = option(4096, "longest prompt and completion; others are left out", least=1)
    # equation 12 (the paper gives no number for DPO)
    length_normalize: bool = option(True, "mean of a completion's log-ratios (eq. 12); false: sum")
    beta: float = option(10.0, "scale of rewards; 0.1 if not length_normalize", above=0)
    # optimization
    batch: int = option(64, "pairs a step, over all processes (64 as DPO's authors)", least=1)
    steps: int = option(500, "optimizer steps", least=1)
    lr: float = option(1e-6, "learning rate, constant after the warm-up", least=0)
    warmup: int = option(0, "steps of linear warm-up", least=0)
    decay: float = option(0.0, "last share of the steps, where the rate falls", least=0, most=1)
    weight_decay: float = option(0.0, "AdamW weight decay, on matrices", least=0)
    beta2: float = option(0.95, "AdamW beta2 (beta1 is 0.9)", least=0, below=1)
    max_grad_norm: float = option(1.0, "largest norm of the gradient; 0: any", least=0)
    micro_tokens: int = option(16_384, "tokens of one forward and backward pass", least=1)
    activation_checkpointing: bool | None = option(None, "recompute activations; none: if needed")
    bf16: bool | None = option(None, "matrix products in bfloat16; none: on GPUs")
    compile: bool | None = option(None, "compile the blocks with torch.compile; none: on GPUs")
    kernels: str = option("fast", "fast; plain: definitions alone", choices=("fast", "plain"))
    # the run
    valid_every: int = option(100, "steps between validations", least=1)
    save_every: int = option(100, "steps between checkpoints", least=1)
    keep: int = option(2, "checkpoints kept", least=1)
    seed: int = option(0, "seed of the pairs and their order", least=0)
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


# ---------------------------------------------------------------------------------------------------------------------
# Pairs


@dataclass
class Pair:
    """A question with a right and a wrong completion, as sampled."""

    prompt: list[int]
    right: Sample
    wrong: Sample

    @property
    def group(self) -> Group:
        return self.prompt, [self.right.ids, self.wrong.ids]

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.right.ids) + len(self.wrong.ids)


def pairs(one: Rollout, count: int, context: int, seed: int) -> tuple[list[Pair], int]:
    """Up to `count` different pairs of a group, drawn by (seed, problem id) from all that it has; and how many of those
    are left out because prompt and completion are longer than `context`.

    A completion that was sampled twice counts once. A group that is all right or all wrong has no pair.
    """
    kinds: list[dict[tuple, Sample]] = [{}, {}]  # wrong, right
    for sample, right in zip(one.samples, one.rule or one.rewards, strict=True):
        if any(sample.mask):  # else nothing in it is the policy's
            kinds[right > 0].setdefault(tuple(sample.ids), sample)
    longest = context - len(one.prompt)
    wrong, right = (
        [sample for ids, sample in kind.items() if len(ids) <= longest] for kind in kinds
    )
    draw = np.random.default_rng(seeded(seed, "pairs", one.problem.id))
    drawn = draw.permutation(len(right) * len(wrong))[:count].tolist()
    found = [Pair(one.prompt, right[i // len(wrong)], wrong[i % len(wrong)]) for i in drawn]
    return found, len(kinds[0]) * len(kinds[1]) - len(right) * len(wrong)


def load_pairs(paths: list[str], config: Config, tokenizer: Tokenizer) -> tuple[list[Pair], dict]:
    """The pairs of some files; and counts of them, of their questions, and of pairs left out. Raises InputError."""
    rollouts = [one for path in paths for _, one in load_samples(path, tokenizer, config.init)]
    drawn = [pairs(one, config.pairs, config.context, config.seed) for one in rollouts]
    found, left_out = [pair for own, _ in drawn for pair in own], sum(count for _, count in drawn)
    if not found:
        reason = f"no question has a right and a wrong completion of at most {config.context} tokens with the prompt"
        advice = (
            "raise --context"
            if left_out
            else "sample more of each, or other problems (rollout.py --samples)"
        )
        raise InputError(f"{', '.join(paths)}: {reason}; {advice}")
    return found, {
        "pairs": len(found),
        "questions": sum(bool(own) for own, _ in drawn),
        "left_out": left_out,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Equation 12. Completions come in pairs: right, wrong, right, wrong ... Tensors [N] hold their tokens one behind the
# other, [2P] a value of each completion; lengths, a list of 2P numbers, says how many tokens each has.


def per_completion(values: Tensor, lengths: list[int]) -> Tensor:
    """Sums [2P] of values [N] over each completion's tokens."""
    return torch.stack([part.sum() for part in values.split(lengths)])


def implicit_rewards(logp: Tensor, ref_logp: Tensor, weight: Tensor, lengths: list[int]) -> Tensor:
    """r(o) [2P] = sum_t weight_t (log pi_t - log ref_t); weight [N] is beta / |o| for eq. 12, beta for ordinary DPO."""
    return per_completion(weight * (logp - ref_logp), lengths)


def dpo_loss(rewards: Tensor, count: int) -> Tensor:
    """Eq. 12, to minimise: the sum over these pairs of -log sigmoid(r(o+) - r(o-)), over `count`, those of the batch.

    rewards [2P]. Where the policy is the reference this is log 2 a pair.
    """
    right, wrong = rewards.view(-1, 2).unbind(1)
    return -F.logsigmoid(right - wrong).sum() / count


def dpo_coefficient(rewards: Tensor, weight: Tensor, lengths: list[int], count: int) -> Tensor:
    """The gradient of eq. 12 is the sum over tokens of this coefficient [N] times grad log pi: minus d loss / d logp.

        o+:   weight_t sigmoid(r(o-) - r(o+)) / count        o-:   minus the same

    with weight beta / |o|. Eq. 14 as printed is not the gradient of eq. 12: it lacks the factor beta, and the mean over
    tokens inside the sigmoid, where it has each token's own log-ratio.
    """
    right, wrong = rewards.view(-1, 2).unbind(1)
    doubt = torch.sigmoid(wrong - right) / count  # near 0 once the pair is told apart
    each = torch.stack([doubt, -doubt], dim=1).flatten()
    return weight * each.repeat_interleave(torch.tensor(lengths, device=each.device))


METRICS = (
    "loss",
    "accuracy",  # share of pairs in which the right completion has the larger implicit reward
    "margin",  # by how much it is larger
    "reward_right",
    "reward_wrong",
    "logp_right",  # mean log-prob of a token under the policy: of each completion, then over them
    "logp_wrong",
)


def pair_loss(
    model, reference, chosen: list[Pair], config: Config, count: int
) -> tuple[Tensor, Tensor]:
    """The part of some pairs in the loss of `count` pairs, and in METRICS [7], detached."""
    samples = [sample for pair in chosen for sample in (pair.right, pair.wrong)]
    lengths = [len(sample.ids) for sample in samples]
    batch = pack_completions([pair.group for pair in chosen], device=model.device)
    mask = torch.tensor(
        [own for sample in samples for own in sample.mask], device=model.device
    ).float()
    mean = (
        mask / per_completion(mask, lengths)[batch.completion]
    )  # [N]: 1 / |o|; 0 where a tool wrote
    weight = config.beta * (mean if config.length_normalize else mask)
    logp, _ = token_logprobs(model, batch)
    with torch.no_grad():
        ref_logp, _ = token_logprobs(reference, batch)
    rewards = implicit_rewards(logp, ref_logp, weight, lengths)
    loss = dpo_loss(rewards, count)
    right, wrong = rewards.detach().view(-1, 2).unbind(1)
    logp_right, logp_wrong = per_completion(mean * logp.detach(), lengths).view(-1, 2).unbind(1)
    parts = [(right > wrong).float(), right - wrong, right, wrong, logp_right, logp_wrong]
    return loss, torch.stack([loss.detach(), *(part.sum() / count for part in parts)])


def dpo_gradient(model, reference, chosen: list[Pair], config: Config, world: World) -> dict:
    """Accumulate the gradient of the mean loss over all processes' pairs (where gradients are on); returns METRICS.

    Every process holds all pairs and takes its share of the micro-batches, in equal number.
    """
    total = torch.zeros(len(METRICS), device=world.device)
    for micro in micro_batches([pair.tokens for pair in chosen], config.micro_tokens, world.size)[
        world.rank
    ]:
        loss, parts = pair_loss(
            model, reference, [chosen[i] for i in micro or [0]], config, len(chosen)
        )
        if torch.is_grad_enabled():
            (
                loss if micro else 0.0 * loss
            ).backward()  # nothing left for this process: run along without loss
        if micro:
            total += parts
    return dict(zip(METRICS, world.all_sum(total).tolist(), strict=True))


@torch.no_grad()
def validate(model, reference, held_out: list[Pair], config: Config, world: World) -> dict:
    """Loss, accuracy and margin of held-out pairs."""
    found = dpo_gradient(model, reference, held_out, config, world)
    return {f"valid_{name}": found[name] for name in ("loss", "accuracy", "margin")}


# ---------------------------------------------------------------------------------------------------------------------
# Training


def main(config: Config) -> None:
    world = setup(config.device, config.kernels, config.bf16, config.compile)
    run = Run(config, world)
    tokenizer = Tokenizer.load(config.init)
    model = from_pretrained(config.init, world.device)
    check_tokenizer(tokenizer, model, config.init)
    train, counts = load_pairs(config.data, config, tokenizer)
    valid = load_pairs([config.valid], config, tokenizer)[0] if config.valid else []
    run.say(
        "{pairs} pairs of {questions} questions; {left_out} possible ones were too long".format(
            **counts
        )
    )

    model = shard(model, world)  # one after the other, so that whole copies do not pile up
    reference = shard(from_pretrained(config.init, world.device), world)
    optimizer = adamw(model, config.lr, (0.9, config.beta2), config.weight_decay)
    run.checkpointing(model, tokens=max(config.micro_tokens, config.context))
    start, _ = run.resume(model, optimizer)
    order = shuffled(len(train), config.seed)
    for _ in range(start * config.batch):
        next(order)

    for step in range(start + 1, config.steps + 1):
        began = time.perf_counter()
        rate = config.lr * lr_linear_decay(step, config.warmup, config.steps, config.decay)
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = [train[next(order)] for _ in range(config.batch)]
        metrics = dpo_gradient(model, reference, chosen, config, world)
        metrics |= {"grad_norm": clip_grad_norm(model, config.max_grad_norm), "lr": rate}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        flops = (3 + 1) * forward_flops(
            model.config, [pair.group for pair in chosen]
        )  # the reference: forward only
        speed = optim.speed(
            sum(pair.tokens for pair in chosen), flops, time.perf_counter() - began, world
        )
        if valid and (step % config.valid_every == 0 or step == config.steps):
            metrics |= validate(model, reference, valid, config, world)
        run.log(step, metrics, {"seconds": time.perf_counter() - began, **speed})
        run.checkpoint(step, model, tokenizer, optimizer)
    run.finish(model, tokenizer, counts)


if __name__ == "__main__":
    command(main, Config)
