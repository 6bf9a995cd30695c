"""Advantages of groups in Triton: outcome and process supervision (sections 4.1.2, 4.1.3), statistics in float64."""

import torch
from torch import Tensor

from kernels import accelerator
from kernels.cases import group_advantage_cases, process_advantage_cases
from kernels.triton import available, interpreting, jit, tl, triton


@jit
def _mean_and_std(r, finite, DDOF: tl.constexpr):
    """Of the finite rewards of a block, in float64, and whether they differ."""
    n = tl.sum(finite.to(tl.int32), 0)
    mean = tl.sum(tl.where(finite, r, 0.0), 0) / tl.maximum(n, 1)
    centred = tl.where(finite, r - mean, 0.0)
    std = tl.sqrt(tl.sum(centred * centred, 0) / tl.maximum(n - DDOF, 1))
    inf = float("inf")
    return mean, std, tl.max(tl.where(finite, r, -inf), 0) > tl.min(tl.where(finite, r, inf), 0)


@jit(do_not_specialize=["G"])
def _group_kernel(rewards, out, G, eps, DDOF: tl.constexpr, STD: tl.constexpr, BLOCK: tl.constexpr):
    """One group."""
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    r = tl.load(rewards + row * G + i, mask=i < G, other=float("nan")).to(tl.float64)
    finite = tl.abs(r) < float("inf")  # false for NaN
    mean, std, signal = _mean_and_std(r, finite, DDOF)
    centred = tl.where(signal, tl.where(finite, r - mean, 0.0), 0.0)
    if STD:
        centred = centred / tl.where(signal, std + eps, 1.0)
    tl.store(out + row * G + i, centred.to(tl.float32), mask=i < G)


@jit(do_not_specialize=["S"])
def _process_kernel(
    rewards,
    ends,
    steps,
    tokens,
    out,
    S,
    eps,
    DDOF: tl.constexpr,
    ALL: tl.constexpr,
    OWN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of tokens of one completion: statistics of all S steps of the group, then the sum over its own steps.

    steps, tokens [G + 1]: where each completion's steps and tokens begin in the flat arrays.
    """
    row = tl.program_id(0)
    i = tl.arange(0, ALL)
    r = tl.load(rewards + i, mask=i < S, other=float("nan")).to(tl.float64)
    mean, std, signal = _mean_and_std(r, tl.abs(r) < float("inf"), DDOF)

    first = tl.load(steps + row)
    k = first + tl.arange(0, OWN)
    own = k < tl.load(steps + row + 1)
    r = tl.load(rewards + k, mask=own, other=float("nan")).to(tl.float64)
    centred = tl.where(signal, tl.where(tl.abs(r) < float("inf"), r - mean, 0.0), 0.0)
    step = centred / tl.where(signal, std + eps, 1.0)
    end = tl.load(ends + k, mask=own, other=-1)

    begin = tl.load(tokens + row)
    t = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.sum(tl.where(end[None, :] >= t[:, None], step[None, :], 0.0), 1)
    tl.store(out + begin + t, total.to(tl.float32), mask=t < tl.load(tokens + row + 1) - begin)


def on_device(rewards) -> bool:
    """Rewards on the host stay there: a launch costs more than the sums."""
    first = rewards[0] if isinstance(rewards, list) else rewards
    return first.is_cuda or interpreting()


@accelerator(
    "train_grpo.group_advantage",
    takes=lambda rewards, *_, **__: on_device(rewards),
    available=available,
    cases=group_advantage_cases,
)
def group_advantage(
    rewards: Tensor, ddof: int = 1, scale: str = "std", eps: float = 1e-4
) -> Tensor:
    (Q, G), out = rewards.shape, torch.empty(rewards.shape, device=rewards.device)
    if Q:
        block = triton.next_power_of_2(G)
        _group_kernel[(Q,)](rewards.contiguous(), out, G, eps, ddof, scale == "std", block)
    return out


@accelerator(
    "train_grpo.process_advantage",
    takes=lambda step_rewards, *_, **__: on_device(step_rewards),
    available=available,
    cases=process_advantage_cases,
)
def process_advantage(
    step_rewards: list[Tensor],
    step_ends: list[Tensor],
    lengths: list[int],
    ddof: int = 1,
    eps: float = 1e-4,
) -> list[Tensor]:
    rewards, ends = torch.cat(step_rewards).double(), torch.cat(step_ends).long()  # [S]
    device, G, S = rewards.device, len(lengths), len(rewards)
    counts = torch.tensor([len(r) for r in step_rewards], device=device)  # [G]
    size = torch.tensor(lengths, device=device)  # [G]
    out = torch.zeros(sum(lengths), device=device)
    if S and len(out):
        steps, tokens = (torch.nn.functional.pad(x.cumsum(0), (1, 0)) for x in (counts, size))
        block = 64
        grid = G, triton.cdiv(max(lengths), block)
        widths = triton.next_power_of_2(S), triton.next_power_of_2(int(counts.max()))
        _process_kernel[grid](rewards, ends, steps, tokens, out, S, eps, ddof, *widths, block)
    return list(out.split(lengths))
