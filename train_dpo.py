"""DPO (paper A.1.4): direct preference optimization on pairs of a right and a wrong completion of the SFT model.

    rollout.py samples completions of training questions from the SFT model, and the rule judges them
    `draw_pairs` draws (right, wrong) pairs from the completions of each question
    for step in 1..M:
        a batch of pairs
        minimize -log sigmoid(reward of the right one - reward of the wrong one)      eq. 12

The implicit reward of a completion is beta times the mean over its tokens of log(policy / reference). The reference is
the model of --init, frozen. Ordinary DPO has the sum in place of the mean: --length_normalize false. Data may also be
published pairs of a chosen and a rejected answer.

    python rollout.py --model runs/demo/sft/model --problems runs/demo/data/train.jsonl --to runs/samples.jsonl
    python train_dpo.py --init runs/demo/sft/model --data runs/samples.jsonl --to runs/dpo
"""

from collections.abc import Iterator
from dataclasses import dataclass
from runtime.options import option

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from batch import Group, hidden_states, logprobs, micro_batches, pack_completions
from data import prompts
from data.chat import load_tokenizer
from data.io import InputError
from data.problems.examples import Example
from data.problems.preferences import Preference, load_preferences
from data.rows import read_rows
from data.tokenizer import Tokenizer, check_tokenizer
from generate import Sample
from rollout import Rollout, load_rollouts
from runtime.distributed import World, seeded, setup, shard, shuffled
from runtime.hf import from_pretrained
from runtime.optim import Work, adamw, clip_grad_norm, forward_flops, lr_linear_decay, set_lr
from runtime.run import Run, command


@dataclass
class Config:
    init: str = option("", "the model that was sampled: policy and reference", required=True)
    data: list[str] = option([], "files of rollout.py, or of pairs (docs/data.md)", required=True)
    to: str = option("", "run directory; the result is TO/model", required=True)
    valid: str = option("", "such a file held out for validation")
    template: str = option("plain", "prompt template of published pairs", choices=prompts.TEMPLATES)
    system: str = option("", "system message of --template chat; empty: the template's")
    pairs: int = option(4, "most pairs of a question", least=1)
    context: int = option(0, "longest prompt and completion; 0: by the model", least=0)
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
    bf16: bool | None = option(None, "products in bfloat16; none: on GPUs, and where faster")
    compile: bool | None = option(None, "compile the blocks with torch.compile; none: on GPUs")
    kernels: str = option("fast", "plain: without accelerators", choices=("fast", "plain"))
    # the run
    valid_every: int = option(100, "steps between validations", least=1)
    save_every: int = option(100, "steps between checkpoints", least=1)
    keep: int = option(2, "checkpoints kept", least=1)
    seed: int = option(0, "seed of the pairs and their order", least=0)
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


# ----------------------------------------------------------------------------------------------------
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


def draw_pairs(rollout: Rollout, count: int, context: int, seed: int) -> tuple[list[Pair], int]:
    """Up to `count` different pairs of a question, and how many pairs are left out as longer than `context`.

    The draw depends on (seed, problem id) alone. A completion that was sampled twice counts once. A group that is all
    right or all wrong has no pair.
    """
    right: dict[tuple, Sample] = {}
    wrong: dict[tuple, Sample] = {}
    for sample, verdict in zip(rollout.samples, rollout.verdicts, strict=True):
        if any(sample.mask):  # the policy chose at least one token
            kind = right if verdict > 0 else wrong
            kind.setdefault(tuple(sample.ids), sample)
    possible = len(right) * len(wrong)

    # Keep completions that fit, and draw from all pairs of them.
    longest = context - len(rollout.prompt)
    rights = [sample for ids, sample in right.items() if len(ids) <= longest]
    wrongs = [sample for ids, sample in wrong.items() if len(ids) <= longest]
    fitting = len(rights) * len(wrongs)
    order = np.random.default_rng(seeded(seed, "pairs", rollout.problem.id)).permutation(fitting)
    pairs = []
    for number in order[:count].tolist():
        i, j = divmod(number, len(wrongs))
        pairs.append(Pair(rollout.prompt, rights[i], wrongs[j]))
    return pairs, possible - fitting


def encode_answer(
    messages: list[dict], is_chat: bool, where: str, template: str, tokenizer: Tokenizer
) -> tuple[list[int], list[int]]:
    """The ids of a prompt and of the answer in the last message, with its EOS. Raises InputError for a chat that the
    template cannot write."""
    if template != "chat":
        question, answer = Example(messages).question_and_response(where)
        (prompt,) = prompts.encode(tokenizer, [prompts.prompt(question, "cot", template)], template)
        answer = prompts.response_text(answer, "cot", template)
        return prompt, [*tokenizer.encode(answer), tokenizer.eos_id]
    messages = Example(messages, is_chat=is_chat).in_chat()
    learned = [False] * (len(messages) - 1) + [True]
    try:
        ids, learned, _ = tokenizer.chat.encode_example(messages, learned)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    first = learned.index(True)
    return ids[:first], ids[first:]


def encode_pair(found: Preference, where: str, template: str, tokenizer: Tokenizer) -> Pair:
    """A published pair as token ids. The log-probs of its samples are unknown and not used.

    Of steps of a solution (Step-DPO), the tokens with which both begin are no part of the comparison, and no EOS
    follows. Raises InputError as `encode_answer` does.
    """
    answers = []
    for text in (found.start + found.chosen, found.start + found.rejected):
        messages = [*found.prompt, {"role": "assistant", "content": text}]
        prompt, ids = encode_answer(messages, found.is_chat, where, template, tokenizer)
        answers.append(ids if found.whole else ids[:-1])

    common = 0
    shortest = min(map(len, answers))
    if found.start:
        while common < shortest - 1 and answers[0][common] == answers[1][common]:
            common += 1
    samples = []
    for ids in answers:
        mask = [False] * common + [True] * (len(ids) - common)
        samples.append(Sample(ids, [0.0] * len(ids), mask, "eos" if found.whole else "length"))
    return Pair(prompt, *samples)


def file_pairs(path: str, config: Config, tokenizer: Tokenizer) -> Iterator[tuple[list[Pair], int]]:
    """The pairs of each question of a file, and how many are left out as longer than the context."""
    _, row = next(read_rows(path), ("", {}))
    if "responses" in row:
        for rollout in load_rollouts(path, tokenizer):
            yield draw_pairs(rollout, config.pairs, config.context, config.seed)
        return
    for where, found in load_preferences(path):
        pair = encode_pair(found, where, config.template, tokenizer)
        longest = max(len(pair.right.ids), len(pair.wrong.ids))
        fits = len(pair.prompt) + longest <= config.context
        yield ([pair], 0) if fits else ([], 1)


def load_pairs(
    paths: list[str], config: Config, tokenizer: Tokenizer
) -> tuple[list[Pair], dict[str, int]]:
    """The pairs of some files, and the counts of pairs, of their questions and of pairs left out.

    Raises InputError where no question has a pair.
    """
    pairs: list[Pair] = []
    questions = left_out = 0
    for path in paths:
        for drawn, longer in file_pairs(path, config, tokenizer):
            pairs += drawn
            questions += bool(drawn)
            left_out += longer
    if not pairs:
        what = f"a right and a wrong completion of at most {config.context} tokens with the prompt"
        advice = "sample more of each, or other problems (rollout.py --samples)"
        advice = "raise --context" if left_out else advice
        raise InputError(f"{', '.join(paths)}: no question has {what}; {advice}")
    return pairs, {"pairs": len(pairs), "questions": questions, "left_out": left_out}


# ----------------------------------------------------------------------------------------------------
# Equation 12. The completions of P pairs come as right, wrong, right, wrong ... Tensors [N] hold their
# tokens one after the other, tensors [2P] a value of each completion; `lengths` holds 2P numbers of tokens.


def per_completion(values: Tensor, lengths: list[int]) -> Tensor:
    """Sums [2P] of values [N] over the tokens of each completion."""
    return torch.stack([part.sum() for part in values.split(lengths)])


def implicit_rewards(logp: Tensor, ref_logp: Tensor, weight: Tensor, lengths: list[int]) -> Tensor:
    """r(o) = sum over tokens of weight * (logp - ref_logp), [2P].

    logp, ref_logp [N]: log-probs in nats. weight [N]: beta / |o| for eq. 12, beta for ordinary DPO.
    """
    return per_completion(weight * (logp - ref_logp), lengths)


def dpo_loss(rewards: Tensor, count: int) -> Tensor:
    """Eq. 12 to minimize: the sum of -log sigmoid(r(right) - r(wrong)), divided by `count`, the pairs of the batch.

    rewards [2P] -> loss []. Its gradient with respect to logp is -weight * sigmoid(r(wrong) - r(right)) / count for
    the tokens of the right completion, and plus the same for those of the wrong one. Eq. 14 as printed lacks beta and
    the mean over tokens, so it is not the gradient of eq. 12.

    >>> round(dpo_loss(torch.tensor([0.0, 0.0]), count=1).item(), 4)  # the policy is the reference: log 2
    0.6931
    """
    right, wrong = rewards.view(-1, 2).unbind(1)  # [P]
    return -F.logsigmoid(right - wrong).sum() / count


METRICS = (
    "loss",
    "accuracy",  # share of pairs in which the right completion has the larger implicit reward
    "margin",  # by how much it is larger
    "reward_right",
    "reward_wrong",
    "logp_right",  # mean log-prob of a token under the policy: of each completion, then over them
    "logp_wrong",
)


def pair_loss(policy, reference, pairs: list[Pair], config: Config, count: int):
    """The part of some pairs in the loss of `count` pairs, and their part in METRICS [7], without gradient."""
    samples = []
    for pair in pairs:
        samples += [pair.right, pair.wrong]
    lengths = [len(sample.ids) for sample in samples]
    batch = pack_completions([pair.group for pair in pairs], device=policy.device)

    # Log-probs of all completion tokens under policy and reference.
    logp, _ = logprobs(hidden_states(policy, batch), policy.head_weight, batch.targets)  # [N]
    with torch.no_grad():
        hidden = hidden_states(reference, batch)
        ref_logp, _ = logprobs(hidden, reference.head_weight, batch.targets)  # [N]

    # Only tokens that the policy chose count: 1 / |o| for them, 0 for what a tool wrote.
    mask = torch.tensor(np.concatenate([sample.mask for sample in samples]), device=policy.device)
    mask = mask.float()  # [N]
    mean = mask / per_completion(mask, lengths)[batch.completion]
    weight = config.beta * (mean if config.length_normalize else mask)
    rewards = implicit_rewards(logp, ref_logp, weight, lengths)  # [2P]
    loss = dpo_loss(rewards, count)

    right, wrong = rewards.detach().view(-1, 2).unbind(1)  # [P]
    logp_right, logp_wrong = per_completion(mean * logp.detach(), lengths).view(-1, 2).unbind(1)
    parts = [(right > wrong).float(), right - wrong, right, wrong, logp_right, logp_wrong]
    return loss, torch.stack([loss.detach(), *(part.sum() / count for part in parts)])


def batch_loss(policy, reference, pairs: list[Pair], config: Config, world: World) -> dict:
    """METRICS of a batch over all processes. Adds up the gradient of its loss where gradients are on.

    Every process holds all pairs and takes its share of the micro-batches, in equal number.
    """
    total = torch.zeros(len(METRICS), device=world.device)
    sizes = [pair.tokens for pair in pairs]
    for micro in micro_batches(sizes, config.micro_tokens, world.size)[world.rank]:
        # The processes call a sharded model equally often, so one without pairs runs without effect.
        part = [pairs[i] for i in micro or [0]]
        loss, values = pair_loss(policy, reference, part, config, len(pairs))
        if torch.is_grad_enabled():
            (loss if micro else 0.0 * loss).backward()
        if micro:
            total += values
    return dict(zip(METRICS, world.all_sum(total).tolist(), strict=True))


# ----------------------------------------------------------------------------------------------------
# Training


def main(config: Config) -> None:
    world = setup(config.device, config.kernels, config.bf16, config.compile)
    run = Run(config, world)

    # --- pairs, policy and reference
    tokenizer = load_tokenizer(config.init, config.template, config.system)
    policy = from_pretrained(config.init, world.device)
    check_tokenizer(tokenizer, policy, config.init)
    pairs, counts = load_pairs(config.data, config, tokenizer)
    held_out = load_pairs([config.valid], config, tokenizer)[0] if config.valid else []
    run.say(f"{counts['pairs']} pairs of {counts['questions']} questions")
    run.say(f"{counts['left_out']} possible pairs are too long")

    policy = shard(policy, world)
    reference = shard(from_pretrained(config.init, world.device), world)
    optimizer = adamw(policy, config.lr, (0.9, config.beta2), config.weight_decay)
    run.checkpointing(policy, tokens=max(config.micro_tokens, config.context))
    start, _ = run.resume(policy, optimizer)
    order = shuffled(len(pairs), config.seed)
    for _ in range(start * config.batch):
        next(order)

    for step in range(start + 1, config.steps + 1):
        run.phase("update")

        # --- a batch of pairs
        batch = [pairs[next(order)] for _ in range(config.batch)]

        # --- the gradient of eq. 12
        metrics = batch_loss(policy, reference, batch, config, world)

        # --- one step of AdamW
        factor = lr_linear_decay(step, config.warmup, config.steps, config.decay)
        rate = set_lr(optimizer, config.lr * factor)
        norm = clip_grad_norm(policy, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        # --- validate, log, save
        run.phase("validate")
        metrics |= {"grad_norm": norm, "lr": rate}
        if held_out and (step % config.valid_every == 0 or step == config.steps):
            with torch.no_grad():
                found = batch_loss(policy, reference, held_out, config, world)
            metrics |= {f"valid_{name}": found[name] for name in ("loss", "accuracy", "margin")}
        # A forward and a backward of the policy (3), a forward of the reference (1).
        flops = (3 + 1) * forward_flops(policy.config, [pair.group for pair in batch])
        run.log(step, metrics, Work(sum(pair.tokens for pair in batch), flops))
        run.checkpoint(step, policy, tokenizer, optimizer)
    run.finish(policy, tokenizer, counts)


if __name__ == "__main__":
    command(main, Config)
