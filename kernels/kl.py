"""Per-token estimators of KL(policy || reference), equation 4 (section 4.1.1).

With d = ref_logp - logp of a token that the policy sampled:

    k1 = -d                 unbiased, may be negative; its gradient is zero in expectation, so only for logging
    k2 = d^2 / 2            biased, low variance; its gradient is, in expectation, that of KL(policy || reference)
    k3 = exp(d) - d - 1     unbiased and never negative: the paper's

The paper differentiates k3 with the samples held fixed: 1 - exp(d) with respect to logp. In expectation this is the
gradient of the other direction, KL(reference || policy).
"""

import torch

from kernels import float_of, use_triton
from kernels.triton import jit, tl, triton

# exp overflows float32 at 88.7. Beyond these bounds the estimate is that of the bound, and so is its gradient: finite,
# with the true sign, never zero where the policy has lost the token.
LOWEST, HIGHEST = -1e4, 80.0
KINDS = ("k1", "k2", "k3")


def value_and_slope(d: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition: the estimate at d = ref_logp - logp and its derivative with respect to logp, both shaped as d."""
    d = d.clamp(LOWEST, HIGHEST)
    if kind == "k1":
        return -d, torch.ones_like(d)
    if kind == "k2":
        return d * d / 2, -d
    growth = torch.expm1(d)
    # near 0 the difference expm1(d) - d cancels: at d = 1e-4 float32 would have lost most of its digits
    series = d * d * (1 / 2 + d / 6 + d * d / 24)
    return torch.where(d.abs() <= 0.01, series, growth - d), -growth


@jit
def kl_block(d, KIND: tl.constexpr):
    """value_and_slope for a block of float32 inside a kernel."""
    d = tl.minimum(tl.maximum(d, -1e4), 80.0)
    if KIND == "k1":
        value = -d
        slope = d * 0.0 + 1.0
    elif KIND == "k2":
        value = d * d * 0.5
        slope = -d
    else:
        # There is no expm1 here, so the series goes on until exp(d) - 1 - d is harmless: to |d| = 1/2 within 4e-8.
        series = 1 / 720 + d * (1 / 5040 + d / 40320)
        series = d * d * (1 / 2 + d * (1 / 6 + d * (1 / 24 + d * (1 / 120 + d * series))))
        near = tl.abs(d) <= 0.5
        growth = tl.where(near, d + series, tl.exp(d) - 1.0)
        value = tl.where(near, series, growth - d)
        slope = -growth
    return value, slope


@jit(do_not_specialize=["n"])
def _kl_kernel(logp, ref_logp, value, slope, n, KIND: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    d = tl.load(ref_logp + i, mask=i < n, other=0.0).to(tl.float32)
    d -= tl.load(logp + i, mask=i < n, other=0.0).to(tl.float32)
    v, s = kl_block(d, KIND)
    tl.store(value + i, v, mask=i < n)
    tl.store(slope + i, s, mask=i < n)


class _KL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logp, ref_logp, kind, on_triton):
        if on_triton:
            logp, ref_logp = logp.contiguous(), ref_logp.contiguous()
            value, slope = (torch.empty_like(logp, dtype=torch.float32) for _ in range(2))
            if n := logp.numel():
                _kl_kernel[(triton.cdiv(n, 1024),)](logp, ref_logp, value, slope, n, kind, 1024)
        else:
            dtype = float_of(logp)
            value, slope = value_and_slope(ref_logp.to(dtype) - logp.to(dtype), kind)
        ctx.save_for_backward(slope)
        ctx.dtypes = logp.dtype, ref_logp.dtype
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (slope,) = ctx.saved_tensors
        grad = grad * slope
        return (
            grad.to(ctx.dtypes[0]) if ctx.needs_input_grad[0] else None,
            (-grad).to(ctx.dtypes[1]) if ctx.needs_input_grad[1] else None,
            None,
            None,
        )


def kl(
    logp: torch.Tensor, ref_logp: torch.Tensor, kind: str = "k3", backend: str | None = None
) -> torch.Tensor:
    """Estimate of KL(policy || reference) of each token, in nats: float32 [T] (float64 for float64), equation 4.

    logp, ref_logp [T] (any one shape): log-probs of the sampled tokens under the policy and the reference. An infinite
    difference gives the estimate at the bound (see LOWEST, HIGHEST); NaN stays NaN. Raises ValueError for an unknown
    kind or different shapes.
    """
    if kind not in KINDS:
        raise ValueError(f"KL estimator {kind!r}: give one of {', '.join(KINDS)}")
    if logp.shape != ref_logp.shape:
        raise ValueError(
            f"logp {list(logp.shape)} and ref_logp {list(ref_logp.shape)} must have one shape"
        )
    return _KL.apply(logp, ref_logp, kind, use_triton(logp, backend))
