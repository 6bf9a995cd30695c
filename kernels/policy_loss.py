"""The GRPO loss of packed tokens, equation 3, with the gradient coefficient of equation 21 written by hand.

    loss = sum_t weight_t * ( -min(ratio_t A_t, clip(ratio_t, 1 - low, 1 + high) A_t) + beta KL_t )

    d loss / d logp_t = -weight_t * ( A_t ratio_t [not clipped] + beta (exp(ref_logp_t - logp_t) - 1) )

with ratio = exp(logp - old_logp) for each token. The weights carry the mask and the means (token_weights). With one
update per rollout (mu = 1) old_logp is logp itself without its gradient: the ratio is 1, its gradient that of logp, and
the second line is equation 21. Only `logp` receives a gradient. The paper has no dual clip, no wider upper clip
(clip_high is here for DAPO) and no bound on the KL, and by default neither has this.
"""

import torch

import kernels
from kernels import float_of, use_triton
from kernels.kl import HIGHEST, KINDS, LOWEST, kl_block, value_and_slope
from kernels.triton import jit, tl, triton

STATS = ("kl", "clip", "ratio", "count")


def _terms(logp, old_logp, ref_logp, advantage, weight, low, high, beta, kind):
    """The definition: (loss [], gradient with respect to logp [T], sums [4] in the order of STATS)."""
    live = weight != 0
    # what stands at masked places may be anything, inf and NaN too: it must be gone before exp, for inf * 0 is NaN
    a = advantage.where(live, 0)
    log_ratio = torch.zeros_like(logp) if old_logp is None else (logp - old_logp).where(live, 0)
    ratio = log_ratio.clamp(LOWEST, HIGHEST).exp()
    surrogate, cut = ratio * a, ratio.clamp(1 - low, 1 + high) * a
    clipped = cut < surrogate  # then the minimum is constant in logp
    d = torch.zeros_like(logp) if ref_logp is None else (ref_logp - logp).where(live, 0)
    kl, kl_slope = value_and_slope(d, kind) if ref_logp is not None else (d, d)
    loss = weight * (beta * kl - torch.minimum(surrogate, cut))
    slope = weight * (beta * kl_slope - surrogate.where(~clipped, 0))
    sums = torch.stack(
        [kl.where(live, 0).sum(), clipped.sum(), ratio.where(live, 0).sum(), live.sum()]
    )
    return loss.sum(), slope, sums


@jit
def token_terms(log_ratio, d, a, w, low, high, beta, REF: tl.constexpr, KIND: tl.constexpr):
    """_terms of tokens inside a kernel: (loss, gradient with respect to logp, KL, whether clipped, ratio) of each."""
    ratio = tl.exp(tl.minimum(tl.maximum(log_ratio, -1e4), 80.0))
    surrogate = ratio * a
    cut = tl.minimum(tl.maximum(ratio, 1.0 - low), 1.0 + high) * a
    clipped = cut < surrogate
    kl, kl_slope = kl_block(d, KIND)
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
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """_terms for a block of tokens; its five sums (loss, then STATS) go to a row of `sums` [blocks, 5]."""
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
    loss, its_slope, kl, clipped, ratio = token_terms(
        log_ratio, d, a, w, low, high, beta, REF, KIND
    )
    tl.store(slope + i, its_slope, mask=inside)
    row = sums + tl.program_id(0) * 5
    tl.store(row, tl.sum(loss, 0))
    tl.store(row + 1, tl.sum(tl.where(live, kl, 0.0), 0))
    tl.store(row + 2, tl.sum(clipped.to(tl.float32), 0))
    tl.store(row + 3, tl.sum(tl.where(live, ratio, 0.0), 0))
    tl.store(row + 4, tl.sum(live.to(tl.float32), 0))


def loss_and_slope(logp, old_logp, ref_logp, advantage, weight, low, high, beta, kind, on_triton):
    """_terms of any float types, on either backend."""
    if not on_triton:
        dtype = float_of(logp)
        tensors = [
            None if x is None else x.to(dtype)
            for x in (logp, old_logp, ref_logp, advantage, weight)
        ]
        return _terms(*tensors, low, high, beta, kind)
    n, block = len(logp), 1024
    slope = torch.empty(n, device=logp.device)
    sums = torch.zeros(
        max(1, triton.cdiv(n, block)), 5, device=logp.device
    )  # rows, not atomics: repeatable
    tensors = [
        logp if x is None else x.contiguous() for x in (logp, old_logp, ref_logp, advantage, weight)
    ]
    if n:
        scalars = map(float, (low, high, beta))  # an int would be another kernel
        _loss_kernel[(len(sums),)](
            *tensors,
            slope,
            sums,
            n,
            *scalars,
            old_logp is not None,
            ref_logp is not None,
            kind,
            block,
        )
    sums = sums.sum(0)
    return sums[0].clone(), slope, sums[1:].clone()


class _PolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logp, old_logp, ref_logp, advantage, weight, low, high, beta, kind, on_triton):
        ctx.dtype = logp.dtype
        tensors = logp, old_logp, ref_logp, advantage, weight
        loss, slope, sums = loss_and_slope(*tensors, low, high, beta, kind, on_triton)
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, _):
        (slope,) = ctx.saved_tensors
        return (grad * slope).to(ctx.dtype), *[None] * 9


def check_loss(logp, kl_kind, **tensors):
    """Raise ValueError for an unknown kl_kind or for tensors that are not [T] as `logp` is (None passes)."""
    if kl_kind not in KINDS:
        raise ValueError(f"KL estimator {kl_kind!r}: give one of {', '.join(KINDS)}")
    for name, x in tensors.items():
        if logp.dim() != 1 or (x is not None and x.shape != logp.shape):
            raise ValueError(
                f"{name} {[] if x is None else list(x.shape)} and logp {list(logp.shape)} must be [T]"
            )


def policy_loss(
    logp: torch.Tensor,
    old_logp: torch.Tensor | None,
    ref_logp: torch.Tensor | None,
    advantage: torch.Tensor,
    weight: torch.Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    beta: float = 0.04,
    kl_kind: str = "k3",
    backend: str | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of T packed tokens (to minimise: minus the objective of equation 3) and what to log about them.

    All tensors [T]. logp, old_logp, ref_logp: log-probs in nats of the tokens under the policy, the policy that sampled
    them (None when there is one update per rollout) and the reference (None: no KL). weight: 0 where the policy did not
    choose the token, where nothing else is read; see token_weights. Returns the loss, a float32 scalar (float64 for
    float64) with a gradient for logp alone, and detached scalars: sums over the tokens of weight other than 0 of `kl`,
    of `clip` (1 where the minimum took the clipped side), of `ratio`, and their `count`. Raises ValueError for an
    unknown kl_kind or shapes that differ.
    """
    check_loss(
        logp, kl_kind, old_logp=old_logp, ref_logp=ref_logp, advantage=advantage, weight=weight
    )
    if kernels.reference and backend is None:  # the definition, and autograd for its gradient
        old_logp = logp.detach() if old_logp is None else old_logp
        settings = clip_low, clip_high, beta, kl_kind
        loss, _, sums = loss_and_slope(
            logp, old_logp, ref_logp, advantage, weight, *settings, False
        )
        return loss, dict(zip(STATS, sums.detach().unbind(), strict=True))
    tensors = logp.contiguous(), old_logp, ref_logp, advantage, weight
    loss, sums = _PolicyLoss.apply(
        *tensors, clip_low, clip_high, beta, kl_kind, use_triton(logp, backend)
    )
    return loss, dict(zip(STATS, sums.unbind(), strict=True))


def grpo_coefficient(
    advantage: torch.Tensor, logp: torch.Tensor, ref_logp: torch.Tensor | None, beta: float
) -> torch.Tensor:
    """GRPO's gradient coefficient of each token, equation 21: A + beta (pi_ref / pi - 1); ref_logp None: A. All [T].

    With one update per rollout the gradient of `policy_loss` is minus weight times this times grad log pi.
    """
    return advantage if ref_logp is None else advantage + beta * torch.expm1(ref_logp - logp)


def token_weights(
    lengths: torch.Tensor,
    mask: torch.Tensor,
    completion: torch.Tensor,
    normalization: str,
    completions: int,
    tokens: int,
    max_tokens: int,
) -> torch.Tensor:
    """The weight of each packed token in the loss, float32 [T]; summed over the global batch they make its mean.

    lengths [N]: policy-chosen tokens of each completion, |o_i|; mask [T] bool: which tokens the policy chose (prompts
    and tool output are not); completion [T]: each token's row in lengths. Known before the first backward, for the
    whole global batch: completions, their number; tokens, that of policy-chosen tokens; max_tokens, the length limit.

        "grpo"     1 / (|o_i| * completions)        mean over a completion, then over completions (equation 3)
        "dapo"     1 / tokens                       mean over tokens
        "dr_grpo"  1 / (completions * max_tokens)   a constant

    A completion without policy tokens adds nothing but counts in `completions`; a batch without any is 0, not 0/0.
    Raises ValueError for another normalization or for a count below 1 that it divides by (below 0 for tokens).
    """
    if completions < 1 or tokens < 0 or (normalization == "dr_grpo" and max_tokens < 1):
        raise ValueError(
            f"token_weights: completions {completions}, tokens {tokens}, max_tokens {max_tokens}"
        )
    if normalization == "grpo":
        weight = 1 / (lengths.clamp(min=1).float() * completions)[completion]
    elif normalization == "dapo":
        weight = torch.full(mask.shape, 1 / max(tokens, 1), device=mask.device)
    elif normalization == "dr_grpo":
        weight = torch.full(mask.shape, 1 / (completions * max_tokens), device=mask.device)
    else:
        raise ValueError(f"normalization {normalization!r}: give grpo, dapo or dr_grpo")
    return weight.where(mask.bool(), 0)
