"""What is logged of a step of reinforcement learning: metrics of rollouts, means over tokens, work.

`rollouts` are rollout.Rollout; `world` is a runtime.distributed.World.
"""

import numpy as np
import torch
from torch import Tensor

from runtime.distributed import World
from runtime.optim import Work, forward_flops


def token_means(sums: dict[str, Tensor], world: World) -> dict[str, float]:
    """Sums over this process's policy tokens -> means over those of all processes.

    "count" is the number of tokens. A value whose name ends in "loss" is a mean already.
    """
    names = sorted(sums)
    local = torch.stack([sums[name].double() for name in names])
    totals = dict(zip(names, world.all_sum(local).tolist(), strict=True))
    count = max(totals.pop("count"), 1.0)
    means = {}
    for name, total in totals.items():
        means[name] = total if name.endswith("loss") else total / count
    return means


def rollout_metrics(rollouts: list) -> dict:
    """Rewards and lengths of a batch of rollouts.

    verdict: share of right answers. gap: by how much the reward exceeds it (a reward model that is
    hacked shows here). no_signal: share of groups whose advantages are all 0. distinct: share of
    different completions in a group. steps: mean number of steps that a reward model scored.
    """
    rewards = np.array([rollout.rewards for rollout in rollouts])  # [Q, G]
    verdicts = np.array([rollout.verdicts for rollout in rollouts])  # [Q, G]
    finite = np.isfinite(rewards)
    known, gap = rewards[finite], (rewards - verdicts)[finite]
    if not len(known):
        known = gap = np.zeros(1)

    silent = distinct = 0
    lengths: list[int] = []
    steps: list[int] = []
    truncated = 0
    for rollout in rollouts:
        silent += not any(map(np.any, rollout.advantages))
        distinct += len({tuple(sample.ids) for sample in rollout.samples})
        for sample in rollout.samples:
            lengths.append(len(sample.ids))
            truncated += sample.finish == "length"
        steps += map(len, rollout.step_ends)

    metrics = {
        "reward": float(known.mean()),
        "reward_std": float(known.std()),
        "reward_not_finite": int((~finite).sum()),
        "verdict": float(verdicts.mean()),
        "gap": float(gap.mean()),
        "no_signal": silent / len(rollouts),
        "distinct": distinct / len(lengths),
        "length": float(np.mean(lengths)),
        "length_max": max(lengths),
        "truncated": truncated / len(lengths),
    }
    if steps:
        metrics["steps"] = float(np.mean(steps))
    return metrics


def rollout_work(rollouts: list, learned: list[tuple], updates: int, reward_model=None) -> Work:
    """What a step does with rollouts, over all processes, for timing.jsonl.

    learned: models (or None), the policy first, with the number of forwards of the batch that they
    take; a backward counts as two. updates: optimizer steps. Sampling takes one forward of the batch,
    because the cache keeps what was read; so does a reward model.
    """
    groups = [rollout.group for rollout in rollouts]
    tokens = sampled = 0
    for rollout in rollouts:
        tokens += len(rollout.prompt)
        for sample in rollout.samples:
            tokens += len(sample.ids)
            sampled += sum(sample.mask)

    flops = 0.0
    for model, forwards in learned:
        if model:
            flops += forwards * forward_flops(model.config, groups)
    policy, _ = learned[0]
    sampling = forward_flops(policy.config, groups)
    if reward_model is not None:
        sampling += forward_flops(reward_model.model.config, groups, last=True)
    return Work(updates * tokens, flops, sampled, sampling)
