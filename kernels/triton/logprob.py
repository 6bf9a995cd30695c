"""kernels/logprob.py in Triton: logits are read once, and half precision is multiplied as it is."""

import torch
from torch import Tensor

from kernels import accelerator
from kernels.cases import logprob_cases
from kernels.logprob import Rows, chunked, learned
from kernels.triton import available, jit, tl, triton

READ = dict(warps=8, stages=3)  # several rows at a time on each multiprocessor


@jit
def read_row(
    row,
    target,
    V,
    scale,
    ENTROPY: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    STAGES: tl.constexpr,
):
    """(log-prob, log-sum-exp, entropy) of one token from one read of its logits, which begin at the pointer `row`.

    Online softmax with a maximum for each of LANES columns of the vocabulary, read as blocks of [ROWS, LANES]: a thread
    holds whole columns, so that threads need each other only at the end, and an element costs one exponential and a
    little. STAGES - 1 blocks are on their way while one is worked on.
    """
    v = tl.arange(0, ROWS)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    x_target = tl.load(row + target).to(tl.float32) * scale
    peak = tl.full((LANES,), -1e30, tl.float32)
    total = tl.zeros((LANES,), tl.float32)  # sum of exp(x - peak) so far
    dot = tl.zeros((LANES,), tl.float32)  # sum of exp(x - peak) * x so far
    for start in tl.range(0, V, ROWS * LANES, num_stages=STAGES):
        x = tl.load(row + start + v, mask=start + v < V, other=float("-inf")).to(tl.float32) * scale
        new_peak = tl.maximum(peak, tl.max(x, 0))
        e = tl.exp(x - new_peak[None, :])
        shrink = tl.exp(peak - new_peak)
        total = total * shrink + tl.sum(e, 0)
        if ENTROPY:
            dot = dot * shrink + tl.sum(e * tl.where(e > 0, x, 0.0), 0)
        peak = new_peak
    shrink = tl.exp(peak - tl.max(peak, 0))
    total = tl.sum(total * shrink, 0)
    lse = tl.max(peak, 0) + tl.log(total)
    return x_target - lse, lse, lse - tl.sum(dot * shrink, 0) / total


@jit(do_not_specialize_on_alignment=["targets", "logp", "lse", "entropy"])
def _read_kernel(
    logits,
    targets,
    logp,
    lse,
    entropy,
    V,
    stride,
    scale,
    ENTROPY: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    STAGES: tl.constexpr,
):
    """read_row of one token."""
    row = tl.program_id(0).to(tl.int64)
    values = read_row(
        logits + row * stride, tl.load(targets + row), V, scale, ENTROPY, ROWS, LANES, STAGES
    )
    tl.store(logp + row, values[0])
    tl.store(lse + row, values[1])
    if ENTROPY:
        tl.store(entropy + row, values[2])


@jit(do_not_specialize_on_alignment=["targets", "lse"])
def _slope_kernel(logits, targets, lse, out, V, stride, scale, BLOCK: tl.constexpr):
    """d -logp / d (scaled logits) = softmax - onehot of one block of one token.

    `out` may be `logits`: each element is read by the program that writes it.
    """
    row = tl.program_id(0).to(tl.int64)
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * stride + v, mask=v < V, other=0.0).to(tl.float32) * scale
    slope = tl.exp(x - tl.load(lse + row)) - tl.where(v == tl.load(targets + row), 1.0, 0.0)
    tl.store(out + row * V + v, slope, mask=v < V)


def row_blocks(V, itemsize, warps, stages):
    """The blocks of read_row and the warps that work on them: a thread moves 16 bytes of each of its rows at once."""
    lanes = min(warps * 32 * 16 // itemsize, triton.next_power_of_2(triton.cdiv(V, 2)))
    return dict(ROWS=2, LANES=lanes, STAGES=stages, num_warps=warps)


def read(logits: Tensor, targets: Tensor, temperature: float, entropy: bool):
    T, V = logits.shape
    logp, lse, spread = (torch.empty(T, device=logits.device) for _ in range(3))
    blocks = row_blocks(V, logits.element_size(), **READ)
    _read_kernel[(T,)](
        logits,
        targets,
        logp,
        lse,
        spread,
        V,
        logits.stride(0),
        1 / temperature,
        entropy,
        **blocks,
    )
    return logp, lse, spread if entropy else None


def slope(logits: Tensor, targets: Tensor, lse: Tensor, temperature: float, dtype: torch.dtype):
    T, V = logits.shape
    out = logits if dtype == logits.dtype else torch.empty_like(logits, dtype=dtype)
    block = min(triton.next_power_of_2(V), 4096)
    _slope_kernel[(T, triton.cdiv(V, block))](
        logits, targets, lse, out, V, logits.stride(0), 1 / temperature, block, num_warps=8
    )
    return out


def check(targets: Tensor, V: int) -> None:
    """A kernel would read outside of its memory. Raises ValueError."""
    low, high = (int(x) for x in targets.aminmax()) if len(targets) else (0, 0)
    if low < 0 or high >= V:
        raise ValueError(f"targets reach from {low} to {high}, outside the vocabulary of {V}")


TRITON = Rows(read, slope, half=True)


def takes(hidden: Tensor, head: Tensor, targets: Tensor, temperature=1.0, entropy=False) -> bool:
    return hidden.dtype != torch.float64 and not learned(temperature)


@accelerator("batch.logprobs", takes=takes, available=available, cases=logprob_cases)
def logprobs(
    hidden: Tensor, head: Tensor, targets: Tensor, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    check(targets, len(head))
    return chunked(hidden, head, targets.contiguous(), temperature, entropy, TRITON)
