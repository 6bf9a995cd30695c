"""The sequences of a training step: as long as the options allow, cut into micro-batches as the
trainer does.

Their ids are all 0: only lengths matter to a plan.
"""

from dataclasses import dataclass

import numpy as np

import train_dpo
import train_reward
import train_sft
from batch import cut_group, micro_batches
from data.problems.problem import Problem
from generate import Sample
from rollout import Rollout


@dataclass
class Work:
    """A step's sequences, seen from the process that has most tokens.

    A plan traces its first two micro-batches: the second one finds the gradients of the first.
    """

    text: str  # the step in words
    tokens: int  # over all processes; a question counts once for each micro-batch that it is in
    once: int  # the same with every question once, as timing.jsonl counts
    own: int  # tokens of this process
    micros: int  # its micro-batches
    largest: int  # tokens of the first micro-batch; no other has more
    traced: int  # tokens of the first two
    items: list | np.ndarray  # the sequences of these two


def response_tokens(config) -> int:
    """Mean length of a response: the option, else the most that the trainer allows."""
    if config.response_tokens:
        return config.response_tokens
    return getattr(config, "max_new_tokens", 0) or config.context - config.prompt_tokens


def work_of(stage: str, config) -> Work:
    """The work of a step of a trainer, by its options and those of a plan."""
    if stage == "pretrain":
        return windows(config)
    P, L = config.prompt_tokens, response_tokens(config)
    if stage == "sft":
        return examples(config, P, L)
    if stage == "dpo":
        return pairs(config, P, L)
    return groups(stage, config, P, L)


def windows(config) -> Work:
    """Pre-training: windows of whole documents."""
    B, T = config.batch, config.context
    share = -(-B // config.gpus)
    starts = range(0, share, config.micro_batch)
    sizes = [min(config.micro_batch, share - start) for start in starts]  # windows
    rows = np.zeros((sum(sizes[:2]), T + 1), dtype=np.int64)
    if config.document_tokens:
        rows[:, config.document_tokens - 1 :: config.document_tokens] = 1  # EOS
    return Work(
        text=f"{B:,} sequences of {T:,} tokens",
        tokens=B * T,
        once=B * T,
        own=share * T,
        micros=len(sizes),
        largest=sizes[0] * T,
        traced=sum(sizes[:2]) * T,
        items=rows,
    )


def examples(config, P: int, L: int) -> Work:
    """SFT: a question and a response."""
    count = config.batch * (config.context // (P + L))
    text = f"{count:,} examples of {P} + {L:,} tokens"
    items = [train_sft.Example([0] * P, [0] * L, [True] * L)] * count
    return packed(config, text, items, [P + L] * count)


def pairs(config, P: int, L: int) -> Work:
    """DPO: a question with two responses."""
    text = f"{config.batch:,} pairs of {P} + 2 x {L:,} tokens"
    pair = train_dpo.Pair(
        [0] * P,
        sample(L),
        sample(L),
    )
    return packed(
        config,
        text,
        [pair] * config.batch,
        [pair.tokens] * config.batch,
    )


def groups(
    stage: str,
    config,
    P: int,
    L: int,
) -> Work:
    """GRPO, PPO and reward models: questions with G completions, cut into parts of a group."""
    Q = config.questions
    G = config.completions if stage == "reward" else config.samples
    text = f"{Q:,} questions of {P} x {G} completions of {L:,} tokens"
    counts = [len(part) for part in cut_group([0] * P, [[0] * L] * G, config.micro_tokens)]
    make = labeled_part if stage == "reward" else rollout_part
    items = [make(P, count, L) for count in counts] * Q
    sizes = [P + count * L for count in counts] * Q
    work = packed(config, text, items, sizes)
    work.once = Q * (P + G * L)
    return work


def packed(
    config,
    text: str,
    items: list,
    sizes: list[int],
) -> Work:
    """The work of items of these sizes (tokens), in micro-batches of at most --micro_tokens."""
    shares = micro_batches(sizes, config.micro_tokens, config.gpus)

    def tokens_of(micro: list[int]) -> int:
        return sum(sizes[i] for i in micro)

    share = max(shares, key=lambda micros: sum(map(tokens_of, micros)))
    tokens = [tokens_of(micro) for micro in share if micro]
    chosen = []
    for micro in share[:2]:
        chosen += [items[i] for i in micro]
    return Work(
        text=text,
        tokens=sum(sizes),
        once=sum(sizes),
        own=sum(tokens),
        micros=len(tokens),
        largest=tokens[0],
        traced=sum(tokens[:2]),
        items=chosen,
    )


def sample(L: int) -> Sample:
    return Sample(
        [0] * L,
        [0.0] * L,
        [True] * L,
        "eos",
    )


def labeled_part(P: int, count: int, L: int) -> train_reward.Labeled:
    """Completions of a question with a label at their end."""
    ends, labels = [[L - 1]] * count, [[1.0]] * count
    return train_reward.Labeled(
        [0] * P,
        [[0] * L] * count,
        ends,
        labels,
        [1.0] * count,
    )


def rollout_part(P: int, count: int, L: int) -> Rollout:
    """Completions of a question with advantages and, for PPO, values and returns."""
    samples = [sample(L)] * count
    rollout = Rollout(
        Problem("", "", ""),
        "cot",
        [0] * P,
        samples,
        advantages=[1.0] * count,
    )
    rollout.values = rollout.returns = [[0.0] * L] * count
    return rollout
