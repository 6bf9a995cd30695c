"""Prompts and completions as one packed batch, and the log-probs of every completion token. No padding anywhere.

Two layouts give the same numbers and gradients:

    plain    every prompt + completion is a document (instruction tuning)
    shared   the prompt goes through the model once, its G completions attend to it (GRPO's update)

Example: prompt [5 6 7] with completions [8 9] and [4 3 2], shared. The last token of a completion is predicted and
never fed: ids = [5 6 7 | 8 | 4 3], positions = [0 1 2 | 3 | 3 4]. Hidden state 2 (the prompt's last) predicts both
first tokens: index = [2 3, 2 4 5], targets = [8 9, 4 3 2], completion = [0 0, 1 1 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.io import InputError
from kernels import definition
from model import Layout, Transformer

Group = tuple[list[int], list[list[int]]]  # a prompt's ids and the ids of its completions


# ---- Packing -------------------------------------------------------------------------------------


@dataclass
class Batch:
    """T tokens to feed and N completion tokens to predict: hidden state `index[n]` predicts `targets[n]`."""

    ids: Tensor  # [T] int64
    layout: Layout
    index: Tensor  # [N] int64
    targets: Tensor  # [N] int64
    completion: Tensor  # [N] int64: the number of the completion in the batch


def pack_completions(groups: list[Group], shared: bool = True, device="cpu") -> Batch:
    """Lay out groups of (prompt, completions), see above. A group of one completion is always plain.

    Raises ValueError for an empty prompt or completion.
    """
    segments: list[list[int]] = []
    parents: list[int] = []
    index, targets = [], []
    tokens = 0

    def feed(ids: list[int], parent: int = -1) -> int:
        """Append a segment. Returns the place of its first token."""
        nonlocal tokens
        segments.append(ids)
        parents.append(parent)
        tokens += len(ids)
        return tokens - len(ids)

    for prompt, completions in groups:
        if not prompt or not all(completions):
            raise ValueError("a prompt and each of its completions must hold at least one token")
        targets += completions
        if not shared or len(completions) == 1:
            for ids in completions:
                first = feed(prompt + ids[:-1]) + len(prompt) - 1
                index.append(np.arange(first, first + len(ids)))
            continue
        parent = len(segments)
        last = feed(prompt) + len(prompt) - 1  # it predicts every first token
        for ids in completions:
            first = feed(ids[:-1], parent) if len(ids) > 1 else 0
            index.append(np.r_[last, first : first + len(ids) - 1])

    def tensor(parts) -> Tensor:
        array = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
        return torch.from_numpy(array).to(device, non_blocking=True)

    number = np.repeat(np.arange(len(targets)), [len(ids) for ids in targets])
    return Batch(
        ids=tensor(segments),
        layout=Layout([len(ids) for ids in segments], parents, device),
        index=tensor(index),
        targets=tensor(targets),
        completion=tensor([number]),
    )


def cut_group(prompt: list[int], completions: list[list[int]], budget: int) -> list[list[int]]:
    """Parts of a group, as numbers of completions. Prompt and completions of a part hold at most `budget` tokens.

    A part holds at least one completion.
    """
    parts: list[list[int]] = []
    size = budget + 1
    for number, ids in enumerate(completions):
        if size + len(ids) > budget:
            parts.append([])
            size = len(prompt)
        parts[-1].append(number)
        size += len(ids)
    return parts


def micro_batches(costs: Sequence[float], budget: float, world: int = 1) -> list[list[list[int]]]:
    """[rank][micro-batch][item]: every item once, the same number of micro-batches on each rank.

    The longest items come first, where running out of memory costs least. Each goes to the rank with
    the least cost, then into the first micro-batch of at most `budget`. An item above it is alone.
    Some micro-batches may be empty. Raises InputError for a budget or a world below 1.
    """
    if budget <= 0 or world < 1:
        counts = f"a budget of {budget} tokens on {world} processes"
        raise InputError(f"{counts}; both must be above zero")
    ranks: list[list[list[int]]] = [[] for _ in range(world)]
    rooms: list[list[float]] = [[] for _ in range(world)]  # what is left of each budget
    totals = [0.0] * world
    for item in np.argsort(-np.asarray(costs, dtype=np.float64), kind="stable").tolist():
        cost = float(costs[item])
        rank = totals.index(min(totals))
        totals[rank] += cost
        micros, room = ranks[rank], rooms[rank]
        fits = (micro for micro, left in enumerate(room) if cost <= left)
        micro = next(fits, len(micros))
        if micro == len(micros):
            micros.append([])
            room.append(budget)
        micros[micro].append(item)
        room[micro] -= cost
    most = max(map(len, ranks))
    return [micros + [[] for _ in range(most - len(micros))] for micros in ranks]


@dataclass
class MicroBatch(Batch):
    """Completions of rollouts that go through a model at once, with what a policy loss needs."""

    members: list[tuple[int, int]]  # of each completion: its rollout and its number there
    idle: bool  # a copy for a process with nothing left: it takes part, and counts for nothing
    mask: Tensor  # [N] bool: tokens that the policy chose; a tool wrote the others
    lengths: Tensor  # [completions]: the number of those tokens
    advantage: Tensor  # [N]
    weight: Tensor  # [N]: of each token in the loss
    old_logp: Tensor | None = None  # [N]; None: the policy that learns has sampled
    ref_logp: Tensor | None = None  # [N]; None: no KL


def pack_rollouts(rollouts: list, budget: int, world, shared: bool = True) -> list[MicroBatch]:
    """This process's share of the rollouts in micro-batches of at most `budget` tokens, weights 0.

    A group that is longer is cut, to single completions if need be. All processes get the same
    number of micro-batches.
    """
    parts, sizes = [], []
    for r, rollout in enumerate(rollouts):
        prompt, completions = rollout.group
        for numbers in cut_group(prompt, completions, budget):
            parts.append([(r, g) for g in numbers])
            sizes.append(len(prompt) + sum(len(completions[g]) for g in numbers))

    batches = []
    for micro in micro_batches(sizes, budget, world.size)[world.rank]:
        groups, members, mask, lengths, advantage = [], [], [], [], []
        for part in [parts[number] for number in micro or [0]]:
            rollout = rollouts[part[0][0]]
            groups.append((rollout.prompt, [rollout.samples[g].ids for _, g in part]))
            members += part
            for _, g in part:
                sample = rollout.samples[g]
                chosen = [c and bool(micro) for c in sample.mask]
                mask += chosen
                lengths.append(sum(chosen))
                # One number for all tokens of a completion, or one for each.
                value = rollout.advantages[g] if rollout.advantages else 0.0
                advantage.append(np.broadcast_to(value, len(sample.ids)))
        batch = pack_completions(groups, shared, world.device)
        values = torch.from_numpy(np.concatenate(advantage, dtype=np.float32)).to(world.device)
        batches.append(
            MicroBatch(
                **vars(batch),
                members=members,
                idle=not micro,
                mask=torch.tensor(mask, device=world.device),
                lengths=torch.tensor(lengths, device=world.device),
                advantage=values,
                weight=torch.zeros_like(values),
            )
        )
    return batches


# ---- What a model says of the completions --------------------------------------------------------


def hidden_states(model: Transformer, batch: Batch) -> Tensor:
    """The hidden states [N, D] that predict the completion tokens: rows that predict nothing skip the head.

    `model` may be sharded: its forward is called as a whole, and the head is used while its weights are gathered.
    """
    return model(batch.ids, batch.layout).index_select(0, batch.index)


@definition
def logprobs(
    hidden: Tensor, head: Tensor, targets: Tensor, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probs [N] of the targets [N] in nats and, if `entropy`, the entropies [N] without gradient.

    hidden [N, D], head [V, D]. float32 from the dot product on: bfloat16 is off by up to 9e-3 nats.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logits = hidden.to(dtype) @ head.to(dtype).T / temperature  # [N, V]
    log_p = logits.log_softmax(-1)
    logp = log_p.gather(-1, targets[:, None])[:, 0]  # [N]
    if not entropy:
        return logp, None
    return logp, torch.special.entr(log_p.detach().exp()).sum(-1)


def token_logprobs(
    model: Transformer, batch: Batch, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-prob [N] float32 of every completion token and, if asked, the entropy [N] there, without gradient."""
    hidden = hidden_states(model, batch)
    return logprobs(hidden, model.head_weight, batch.targets, temperature, entropy)


def token_values(model: Transformer, batch: Batch) -> Tensor:
    """V(s_t) [N] float32 of every completion token: the score at the token that predicts it, the last of the state s_t."""
    return model.score(hidden_states(model, batch)).float()[:, 0]


def token_scores(model: Transformer, groups: list[Group], places: list[list[int]]) -> Tensor:
    """Scores [S] float32 of a model with a score head at tokens of the completions: places, a list for each completion
    in order, counts a completion's tokens from 0; -1 is the last token of its prompt.

    Example: prompt [5 6 7], completions [8 9] and [4 3 2], places [[1], [-1, 2]]: the scores of 9, of 7 and of 2.
    """
    # One token more: `pack_completions` does not feed a completion's last, and index[0] is the prompt's last.
    longer = [(prompt, [[*ids, 0] for ids in completions]) for prompt, completions in groups]
    batch = pack_completions(longer, device=model.device)
    lengths = np.array([len(ids) for _, completions in longer for ids in completions])
    first = np.repeat(lengths.cumsum() - lengths, [len(own) for own in places])
    chosen = torch.from_numpy(
        first + np.concatenate([np.asarray(own, dtype=np.int64) for own in places]) + 1
    )
    hidden = model(batch.ids, batch.layout)
    return model.score(hidden[batch.index[chosen.to(model.device)]]).float()[:, 0]
