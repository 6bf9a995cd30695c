"""What is logged of a step of reinforcement learning: metrics of rollouts, means over tokens, work.

`rollouts` are rollout.Rollout; `world` is a runtime.distributed.World.
"""

from itertools import chain

import numpy as np
import torch
from torch import Tensor

from batch import forward_flops
from runtime.distributed import World
from runtime.optim import Work


def token_means(sums: dict[str, Tensor], world: World) -> dict[str, float]:
    """Sums over this process's policy tokens -> means over those of all processes.

    "count" is the number of tokens. A value whose name ends in "loss" is a mean already.
    """
    names = sorted(sums)
    values = world.all_sum(torch.stack([sums[name].double() for name in names])).tolist()
    totals = dict(zip(names, values, strict=True))
    count = max(totals.pop("count"), 1.0)
    return {name: x if name.endswith("loss") else x / count for name, x in totals.items()}


def rollout_metrics(rollouts: list) -> dict:
    """Rewards and lengths of a batch of rollouts.

    verdict: share of right answers. gap: by how much the reward exceeds it (a reward model that is
    hacked shows here). no_signal: share of groups whose advantages are all 0. distinct: share of
    different completions in a group. steps: mean number of steps that a reward model scored.
    """
    rewards = np.array([rollout.rewards for rollout in rollouts])  # [Q, G]
    verdicts = np.array([rollout.verdicts for rollout in rollouts])  # [Q, G]
    finite = np.isfinite(rewards)
    known = rewards[finite] if finite.any() else np.zeros(1)
    gap = (rewards - verdicts)[finite] if finite.any() else np.zeros(1)
    samples = list(chain(*(rollout.samples for rollout in rollouts)))
    lengths = [len(sample.ids) for sample in samples]
    silent = [not any(map(np.any, rollout.advantages)) for rollout in rollouts]
    distinct = [len(set(map(tuple, rollout.group[1]))) for rollout in rollouts]
    steps = [len(ends) for rollout in rollouts for ends in rollout.step_ends]
    return ({"steps": float(np.mean(steps))} if steps else {}) | {
        "reward": float(known.mean()),
        "reward_std": float(known.std()),
        "reward_not_finite": int((~finite).sum()),
        "verdict": float(verdicts.mean()),
        "gap": float(gap.mean()),
        "no_signal": float(np.mean(silent)),
        "distinct": sum(distinct) / len(samples),
        "length": float(np.mean(lengths)),
        "length_max": max(lengths),
        "truncated": float(np.mean([sample.finish == "length" for sample in samples])),
    }


def rollout_work(rollouts: list, learned: list[tuple], updates: int, reward_model=None) -> Work:
    """What a step does with rollouts, over all processes, for timing.jsonl.

    learned: models (or None), the policy first, with the number of forwards of the batch that they
    take; a backward counts as two. updates: optimizer steps. Sampling takes one forward of the batch,
    as the cache keeps what was read; so does a reward model.
    """
    groups = [rollout.group for rollout in rollouts]
    read = sum(len(prompt) + sum(map(len, completions)) for prompt, completions in groups)
    samples = chain(*(rollout.samples for rollout in rollouts))
    sampling = forward_flops(learned[0][0].config, groups)
    if reward_model is not None:
        sampling += forward_flops(reward_model.model.config, groups, last=True)
    return Work(
        tokens=updates * read,
        flops=sum(times * forward_flops(m.config, groups) for m, times in learned if m),
        sampled=sum(sum(sample.mask) for sample in samples),
        sampling_flops=sampling,
    )
