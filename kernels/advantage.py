"""Group-relative advantages: outcome supervision (section 4.1.2) and process supervision (section 4.1.3).

The paper does not say which standard deviation it divides by; ddof 1 (the sample's) is the default here.
"""

import torch

from kernels import use_triton
from kernels.triton import jit, tl, triton


def _normalise(rewards: torch.Tensor, ddof: int, scale: str, eps: float) -> torch.Tensor:
    """The definition: rows of rewards [Q, G] -> (r - mean) / (std + eps), float64 [Q, G].

    Rows without two different finite rewards give exactly 0: the rounding error of a mean (that of 64 times 0.1, say)
    divided by a standard deviation that is nothing but rounding error would look like a signal.
    """
    r = rewards.double()
    finite = r.isfinite()
    n = finite.sum(-1, keepdim=True)
    mean = r.where(finite, 0).sum(-1, keepdim=True) / n.clamp(min=1)
    centred = (r - mean).where(finite, 0)
    signal = r.where(finite, -torch.inf).amax(-1, keepdim=True) > r.where(finite, torch.inf).amin(
        -1, keepdim=True
    )
    if scale == "std":
        std = (centred.square().sum(-1, keepdim=True) / (n - ddof).clamp(min=1)).sqrt()
        centred = centred / (std + eps).where(signal, 1)
    return centred.where(signal, 0)


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
    """One group: _normalise of one row."""
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
    step = centred / tl.where(signal, std, 1.0)
    end = tl.load(ends + k, mask=own, other=-1)

    begin = tl.load(tokens + row)
    t = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.sum(tl.where(end[None, :] >= t[:, None], step[None, :], 0.0), 1)
    tl.store(out + begin + t, total.to(tl.float32), mask=t < tl.load(tokens + row + 1) - begin)


def _check(ddof, scale="std"):
    if ddof not in (0, 1):
        raise ValueError(f"ddof {ddof}: give 1 (sample standard deviation) or 0")
    if scale not in ("std", "none"):
        raise ValueError(f"scale {scale!r}: give 'std' or 'none'")


def group_advantage(
    rewards: torch.Tensor,
    ddof: int = 1,
    scale: str = "std",
    eps: float = 0.0,
    backend: str | None = None,
) -> torch.Tensor:
    """Advantage of each completion of Q groups of G: (r - mean) / (std + eps) over its group, section 4.1.2.

    rewards [Q, G], any float type -> float32 [Q, G]; statistics in float64. scale "none" leaves out the division
    (Dr. GRPO). Exactly 0 where all rewards of a group are equal and in a group of one. A reward that is not finite
    is left out of the statistics and gets 0. Raises ValueError for other shapes, ddof or scale.
    """
    _check(ddof, scale)
    if rewards.dim() != 2 or not rewards.shape[1]:
        raise ValueError(f"rewards {list(rewards.shape)} must be [Q, G] with G of at least 1")
    if not use_triton(rewards, backend):
        return _normalise(rewards, ddof, scale, eps).float()
    (Q, G), out = rewards.shape, torch.empty(rewards.shape, device=rewards.device)
    _group_kernel[(Q,)](
        rewards.contiguous(), out, G, eps, ddof, scale == "std", triton.next_power_of_2(G)
    )
    return out


def process_advantage(
    step_rewards: list[torch.Tensor],
    step_ends: list[torch.Tensor],
    lengths: list[int],
    ddof: int = 1,
    backend: str | None = None,
) -> list[torch.Tensor]:
    """Per-token advantages of ONE group from the rewards of its steps, section 4.1.3.

    For each of the G completions: step_rewards [K], step_ends [K] int, the index of each step's last token, and its
    length in tokens. Returns float32 [length] for each. Mean and standard deviation pool all steps of all completions;
    a token's advantage is the sum of the normalised rewards of the steps that end at or after it (sums are not centred
    again), so 0 after the last step and everywhere where all steps score the same. A reward that is not finite counts
    as 0 and is left out of the statistics. Raises ValueError for lists that do not match, ends outside the completion.
    """
    _check(ddof)
    if not len(step_rewards) == len(step_ends) == len(lengths):
        raise ValueError(
            f"{len(step_rewards)} step_rewards, {len(step_ends)} step_ends, {len(lengths)} lengths"
        )
    for i, (r, e) in enumerate(zip(step_rewards, step_ends, strict=True)):
        if r.shape != e.shape or r.dim() != 1:
            raise ValueError(
                f"completion {i}: step_rewards {list(r.shape)} and step_ends {list(e.shape)} must be [K]"
            )
    if not any(len(r) for r in step_rewards):
        return [
            r.new_zeros(length, dtype=torch.float32)
            for r, length in zip(step_rewards, lengths, strict=True)
        ]
    rewards, ends = torch.cat(step_rewards).double(), torch.cat(step_ends).long()  # [S]
    counts = torch.tensor([len(r) for r in step_rewards], device=rewards.device)  # [G]
    size = torch.tensor(lengths, device=rewards.device)  # [G]
    owner = torch.repeat_interleave(counts)  # [S] completion of each step
    if bool(((ends < 0) | (ends >= size[owner])).any()):
        raise ValueError(
            "a step ends outside its completion: step_ends are token indices from 0 to length - 1"
        )
    G, S, longest = len(lengths), len(rewards), max(lengths)
    if use_triton(step_rewards[0], backend):
        out = torch.empty(sum(lengths), device=rewards.device)
        steps, tokens = (torch.nn.functional.pad(x.cumsum(0), (1, 0)) for x in (counts, size))
        block = 64
        _process_kernel[(G, triton.cdiv(longest, block))](
            *(rewards, ends, steps, tokens, out, S, ddof),
            *(triton.next_power_of_2(S), triton.next_power_of_2(int(counts.max())), block),
        )
        return list(out.split(lengths))
    table = rewards.new_zeros(
        G, longest
    )  # [G, longest] each step's normalised reward at its last token
    table.index_put_((owner, ends), _normalise(rewards[None], ddof, "std", 0.0)[0], accumulate=True)
    sums = table.flip(1).cumsum(1).flip(1).float()  # sum from each token to the end
    return [row[:length] for row, length in zip(sums, lengths, strict=True)]
