"""Equation 3 of packed tokens in Triton: the loss, its sums and its slope in one pass over the tokens."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import accelerator
from kernels.cases import grpo_loss_cases
from kernels.logprob import learned
from kernels.triton import available, jit, tl, triton

STATS = ("kl", "clip", "ratio", "count")


@jit
def kl_block(d):
    """Eq. 4 and its derivative with respect to logp, at d = ref_logp - logp."""
    d = tl.minimum(tl.maximum(d, -1e4), 80.0)
    # There is no expm1 here, so the series goes on until exp(d) - 1 - d is harmless: to |d| = 1/2 within 4e-8.
    series = 1 / 720 + d * (1 / 5040 + d / 40320)
    series = d * d * (1 / 2 + d * (1 / 6 + d * (1 / 24 + d * (1 / 120 + d * series))))
    near = tl.abs(d) <= 0.5
    growth = tl.where(near, d + series, tl.exp(d) - 1.0)
    return tl.where(near, series, growth - d), -growth


@jit
def token_terms(log_ratio, d, a, w, low, high, beta, REF: tl.constexpr):
    """(loss, slope with respect to logp, KL, whether clipped, ratio) of tokens; the slope is equation 21."""
    ratio = tl.exp(tl.minimum(tl.maximum(log_ratio, -1e4), 80.0))
    surrogate = ratio * a
    cut = tl.minimum(tl.maximum(ratio, 1.0 - low), 1.0 + high) * a
    clipped = cut < surrogate
    kl, kl_slope = kl_block(d)
    if not REF:
        kl = d
        kl_slope = d
    loss = w * (beta * kl - tl.minimum(surrogate, cut))
    return loss, w * (beta * kl_slope - tl.where(clipped, 0.0, surrogate)), kl, clipped, ratio


@jit(do_not_specialize=["n"])
def _loss_kernel(
    logp,
    old_logp,
    ref_logp,
    advantage,
    weight,
    slope,
    sums,
    n,
    low,
    high,
    beta,
    OLD: tl.constexpr,
    REF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """token_terms of a block of tokens; its five sums (loss, then STATS) go to a row of `sums` [blocks, 5]."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    w = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    live = w != 0.0
    new = tl.load(logp + i, mask=live, other=0.0).to(tl.float32)
    a = tl.load(advantage + i, mask=live, other=0.0).to(tl.float32)
    log_ratio = tl.zeros((BLOCK,), tl.float32)
    d = tl.zeros((BLOCK,), tl.float32)
    if OLD:
        log_ratio = new - tl.load(old_logp + i, mask=live, other=0.0).to(tl.float32)
    if REF:
        d = tl.load(ref_logp + i, mask=live, other=0.0).to(tl.float32) - new
    loss, token_slope, kl, clipped, ratio = token_terms(log_ratio, d, a, w, low, high, beta, REF)
    tl.store(slope + i, token_slope, mask=inside)
    row = sums + tl.program_id(0) * 5
    tl.store(row, tl.sum(loss, 0))
    tl.store(row + 1, tl.sum(tl.where(live, kl, 0.0), 0))
    tl.store(row + 2, tl.sum(clipped.to(tl.float32), 0))
    tl.store(row + 3, tl.sum(tl.where(live, ratio, 0.0), 0))
    tl.store(row + 4, tl.sum(live.to(tl.float32), 0))


def loss_and_slope(logp, old_logp, ref_logp, advantage, weight, low, high, beta):
    """(loss [], slope [N], sums [4] in the order of STATS); old_logp None: the ratio is 1; ref_logp None: no KL."""
    n, block = len(logp), 1024
    slope = torch.empty(n, device=logp.device)
    blocks = max(1, triton.cdiv(n, block))
    sums = torch.zeros(blocks, 5, device=logp.device)  # rows, not atomics: repeatable
    tensors = [
        logp if x is None else x.contiguous() for x in (logp, old_logp, ref_logp, advantage, weight)
    ]
    if n:
        scalars = map(float, (low, high, beta))  # an int would be another kernel
        given = old_logp is not None, ref_logp is not None
        _loss_kernel[(blocks,)](*tensors, slope, sums, n, *scalars, *given, block)
    sums = sums.sum(0)
    return sums[0].clone(), slope, sums[1:].clone()


class _PolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logp, old_logp, ref_logp, advantage, weight, low, high, beta):
        ctx.dtype = logp.dtype
        tensors = logp, old_logp, ref_logp, advantage, weight
        loss, slope, sums = loss_and_slope(*tensors, low, high, beta)
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        (slope,) = ctx.saved_tensors
        return (grad * slope).to(ctx.dtype), *[None] * 7


def takes(logp: Tensor, *rest, **named) -> bool:
    return logp.dtype != torch.float64 and not learned(*rest, *named.values())


@accelerator("train_grpo.grpo_loss", takes=takes, available=available, cases=grpo_loss_cases)
def grpo_loss(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor | None,
    advantage: Tensor,
    weight: Tensor,
    clip: tuple[float, float] = (0.2, 0.2),
    beta: float = 0.04,
) -> tuple[Tensor, dict[str, Tensor]]:
    tensors = logp, old_logp, ref_logp, advantage, weight
    loss, sums = _PolicyLoss.apply(*tensors, *clip, beta)
    return loss, dict(zip(STATS, sums.unbind(), strict=True))
