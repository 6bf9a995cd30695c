"""LM head and policy loss in one: the gradient is made in the forward pass, so that no logits are made twice.

The definition is two calls: `linear_logprob`, then `policy_loss` (equation 3). What the loss gives the log-prob of a
token, its slope, is known as soon as the token's logits have been read once: then they can be turned into their own
gradient, slope * (onehot - softmax) / temperature, at once. With T tokens, width D and vocabulary V this takes 6TDV
FLOPs (logits, gradient of the hidden states, gradient of the weight); to keep one number a token and make the logits
again in the backward takes 8TDV. The logits exist a chunk at a time, and `backward` only multiplies by what comes in.

What is rounded. Log-probs are float32 from the dot product on, so bf16 factors give float32 logits, which costs twice
the bytes of bf16 logits (at V = 131,072 some 10 bytes a logit read and written by the kernel instead of 4: 3 ms of 70
for 16,384 tokens on an H200, by count). Rounded logits would put errors of up to 9e-3 nats into ratio and KL. The
gradient of the logits is rounded to bf16, as tensor cores need it; sums over tokens run in float32.
"""

import functools

import torch

import kernels
from kernels import float_of, use_triton
from kernels.logprob import (
    check,
    linear_logprob,
    logprob_from_logits,
    product,
    read_row,
    read_torch,
    row_blocks,
)
from kernels.policy_loss import STATS, check_loss, loss_and_slope, policy_loss, token_terms
from kernels.triton import jit, tl, triton

# Bytes of a chunk's float32 logits. On GPUs the bf16 gradients of GROUP chunks are kept for their two matrix products:
# each reads and writes the gradient of the weight, [V, D] in float32, once. Together 1.25 GiB, and nothing else of note
# is held beside inputs and outputs. On a CPU the gradients take the place of the logits.
CHUNK_BYTES, GROUP = {"cpu": 16 << 20, "cuda": 1 << 28}, 8
# Rows of logits in work at once, by multiprocessor. A row is read twice, and the second time it should still be in the
# L2 cache: few rows, and many threads for each.
PROGRAMS, ROW = 1, dict(warps=16, stages=4)


@jit(
    do_not_specialize=["T"],
    do_not_specialize_on_alignment=[
        "targets",
        "old_logp",
        "ref_logp",
        "advantage",
        "weight",
        "logp",
        "entropy",
    ],
)
def _policy_kernel(
    logits,
    targets,
    old_logp,
    ref_logp,
    advantage,
    weight,
    out,
    logp,
    entropy,
    T,
    V,
    stride,
    out_stride,
    scale,
    low,
    high,
    beta,
    OLD: tl.constexpr,
    REF: tl.constexpr,
    KIND: tl.constexpr,
    ENTROPY: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Log-prob and entropy of tokens, and the gradient of the loss with respect to their logits, which may replace
    them: a thread writes the places that it has read. A token of weight 0 is not read; its gradient is 0."""
    v = tl.arange(0, ROWS)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    blocks = tl.cdiv(V, ROWS * LANES)
    for t in range(tl.program_id(0), T, tl.num_programs(0)):
        wide = tl.full((), t, tl.int64)  # T x V passes 2^31
        row, grad = logits + wide * stride, out + wide * out_stride
        w = tl.load(weight + t).to(tl.float32)
        if w == 0.0:
            tl.store(logp + t, 0.0)
            if ENTROPY:
                tl.store(entropy + t, 0.0)
            for block in range(0, blocks):
                at = block * (ROWS * LANES) + v
                tl.store(grad + at, tl.zeros((ROWS, LANES), tl.float32), mask=at < V)
        else:
            target = tl.load(targets + t)
            new, lse, spread = read_row(row, target, V, scale, ENTROPY, ROWS, LANES, STAGES)
            tl.store(logp + t, new)
            if ENTROPY:
                tl.store(entropy + t, spread)
            log_ratio = new * 0.0
            d = new * 0.0
            if OLD:
                log_ratio = new - tl.load(old_logp + t).to(tl.float32)
            if REF:
                d = tl.load(ref_logp + t).to(tl.float32) - new
            a = tl.load(advantage + t).to(tl.float32)
            coefficient = token_terms(log_ratio, d, a, w, low, high, beta, REF, KIND)[1] * scale
            tl.debug_barrier()  # every thread has read the target's logit before one overwrites it
            for block in tl.range(0, blocks, num_stages=STAGES):
                at = (blocks - 1 - block) * (ROWS * LANES) + v  # from the end, which was read last
                x = tl.load(row + at, mask=at < V, other=0.0).to(tl.float32) * scale
                tl.store(
                    grad + at,
                    coefficient * (tl.where(at == target, 1.0, 0.0) - tl.exp(x - lse)),
                    mask=at < V,
                )


def multiprocessors(tensor) -> int:
    return (
        torch.cuda.get_device_properties(tensor.device).multi_processor_count
        if tensor.is_cuda
        else 1
    )


def _rows_triton(logits, tokens, temperature, settings, entropy, out):
    """Logits [n, V] -> (logp [n], entropy [n]); the gradient of the loss with respect to them goes to `out` [n, V]."""
    targets, advantage, weight, old_logp, ref_logp = tokens
    (n, V), kind = logits.shape, settings[-1]
    logp, ent = (torch.empty(n, device=logits.device) for _ in range(2))
    programs = PROGRAMS * multiprocessors(logits)
    old, ref = (logp if x is None else x for x in (old_logp, ref_logp))
    _policy_kernel[(min(n, programs),)](
        *(logits, targets, old, ref, advantage, weight, out, logp, ent),
        *(n, V, logits.stride(0), out.stride(0), 1 / temperature, *map(float, settings[:-1])),
        *(old_logp is not None, ref_logp is not None, kind, entropy),
        **row_blocks(V, out.element_size(), **ROW),
    )
    return logp, ent


def _rows_torch(logits, tokens, temperature, settings, entropy, out):
    """_rows_triton in PyTorch; overwrites the logits too. `out` may be `logits` where the entropy is not asked for."""
    targets, advantage, weight, old_logp, ref_logp = tokens
    log_p = logits if temperature == 1 else logits.div_(temperature)
    logp, _, ent = read_torch(log_p, targets, out if entropy else None)
    p = out if entropy else torch.exp(log_p, out=out)
    slope = loss_and_slope(logp, old_logp, ref_logp, advantage, weight, *settings, False)[1]
    coefficient = (slope / temperature)[:, None]
    p.mul_(-coefficient).scatter_add_(1, targets[:, None], coefficient)
    return logp, ent


def _learn(h, w, tokens, index, temperature, settings, chunk, on_triton, logp, ent, grad_h, grad_w):
    """Write log-probs and (unless None) entropies of the tokens `index`, and add their gradients to grad_h, grad_w."""
    half, V = h.dtype != logp.dtype, len(w)
    make = _rows_triton if on_triton else _rows_torch

    def rows(begin, end):  # by number in `index`: without a copy if these are all tokens
        return slice(begin, end) if len(index) == len(h) else index[begin:end]

    size = chunk * GROUP if half else chunk
    logits = torch.empty(min(chunk, len(index)), V, dtype=logp.dtype, device=h.device)
    slopes = logits
    if half or (ent is not None and not on_triton):
        slopes = torch.empty(min(size, len(index)), V, dtype=h.dtype, device=h.device)
    for begin in range(0, len(index), size):
        end = min(begin + size, len(index))
        inputs = h[rows(begin, end)]
        for start in range(begin, end, chunk):
            stop = min(start + chunk, end)
            own, here = rows(start, stop), slice(start - begin, stop - begin)
            x = product(inputs[here], w.T, out=logits[: stop - start])
            its = [None if t is None else t[own] for t in tokens]
            logp[own], spread = make(x, its, temperature, settings, ent is not None, slopes[here])
            if ent is not None:
                ent[own] = spread
        slope = slopes[: end - begin]
        if grad_h is not None:
            grad_h[rows(begin, end)] = torch.mm(slope, w).to(grad_h.dtype)
        if grad_w is not None:
            product(slope.T, inputs, out=grad_w, add=True)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden, weight, tokens, settings, temperature, entropy, chunk, wanted, on_triton
    ):
        targets, advantage, weights, old_logp, ref_logp = tokens
        dtype = float_of(hidden)
        factor = torch.bfloat16 if on_triton and hidden.dtype == torch.bfloat16 else dtype
        h, w = hidden.to(factor), weight.to(factor)
        new = functools.partial(torch.zeros, device=h.device)
        logp, ent = new(len(h), dtype=dtype), new(len(h), dtype=dtype) if entropy else None
        grad_h = new(hidden.shape, dtype=hidden.dtype) if wanted[0] else None
        grad_w = new(w.shape, dtype=dtype) if wanted[1] else None
        # Rows without loss are dropped. Without advantage and KL the gradient is 0 whatever the log-prob: only read.
        learned = weights != 0 if any(wanted) else torch.zeros_like(weights, dtype=torch.bool)
        if ref_logp is None or settings[2] == 0:
            learned &= advantage != 0
        index = learned.nonzero()[:, 0]
        if len(index) < len(h) and len(rest := ((weights != 0) & ~learned).nonzero()[:, 0]):
            backend = "triton" if on_triton else "torch"
            logp[rest], spread = linear_logprob(
                h[rest], w, targets[rest], temperature, None, entropy, backend
            )
            if entropy:
                ent[rest] = spread
        _learn(
            h, w, tokens, index, temperature, settings, chunk, on_triton, logp, ent, grad_h, grad_w
        )
        ctx.gradients = grad_h, grad_w if grad_w is None else grad_w.to(weight.dtype)
        loss, _, sums = loss_and_slope(
            logp, old_logp, ref_logp, advantage, weights, *settings, on_triton
        )
        ctx.mark_non_differentiable(*(x for x in (sums, logp, ent) if x is not None))
        return loss, sums, logp, ent

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, *_):
        return *_scaled(ctx, grad), *[None] * 7


class _LogitsLoss(torch.autograd.Function):
    """policy_loss_from_logits on Triton; elsewhere autograd differentiates the definition."""

    @staticmethod
    def forward(ctx, logits, tokens, settings, temperature, entropy, inplace):
        out = logits if inplace else torch.empty_like(logits)
        logp, ent = _rows_triton(logits, tokens, temperature, settings, entropy, out)
        ctx.gradients = (out,)
        targets, advantage, weights, old_logp, ref_logp = tokens
        loss, _, sums = loss_and_slope(
            logp, old_logp, ref_logp, advantage, weights, *settings, True
        )
        ctx.mark_non_differentiable(sums, logp, ent)
        return loss, sums, logp, ent

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, *_):
        return *_scaled(ctx, grad), *[None] * 5


@jit
def _scale_kernel(x, factor, n, BLOCK: tl.constexpr):
    """x *= factor, a number on the device; nothing is moved where it is 1, as it is for loss.backward()."""
    by = tl.load(factor)
    if by != 1.0:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(x + i, tl.load(x + i, mask=i < n).to(tl.float32) * by, mask=i < n)


def _scaled(ctx, grad):
    """The gradients made in the forward, times the incoming one; they are handed over, so that this works once."""
    if ctx.gradients is None:
        raise RuntimeError(
            "the gradients of this loss were made in its forward pass and are used up: call it again"
        )
    found, ctx.gradients = ctx.gradients, None
    for x in found:
        if x is None or not x.numel():
            continue
        if grad.is_cuda and triton is not None and x.is_contiguous() and x.dtype != torch.float64:
            _scale_kernel[(triton.cdiv(x.numel(), 4096),)](
                x, grad.float(), x.numel(), 4096
            )  # without asking the GPU
        elif grad != 1:
            x.mul_(grad)
    return found


def fuses(vocabulary: int, tensor: torch.Tensor, wanted: bool | None = None) -> bool:
    """Whether a trainer takes head and loss in one: as it is told, else for tensors on GPUs and vocabularies of 4,096
    and more. A small vocabulary's head is no share of a step on a CPU: logits made twice cost nothing there."""
    if wanted is None:
        wanted = vocabulary >= 4096 or tensor.is_cuda
    return wanted and not kernels.reference


def head_policy_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    advantage: torch.Tensor,
    weights: torch.Tensor,
    old_logp: torch.Tensor | None = None,
    ref_logp: torch.Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    beta: float = 0.04,
    kl_kind: str = "k3",
    temperature: float = 1.0,
    entropy: bool = True,
    chunk: int | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """The loss of `policy_loss` on the log-probs of `linear_logprob`, with its gradients made in the forward pass.

    hidden [T, D], weight [V, D] (the LM head), targets [T] int64; the others [T], with `weights` from `token_weights`:
    a token of weight 0 is dropped before the first matrix product, and nothing of it is read. chunk: tokens whose
    logits exist at once (default: by CHUNK_BYTES). Returns the loss, a float32 scalar (float64 for float64) whose
    gradients reach hidden and weight, once; what to log, `policy_loss`'s sums and with `entropy` that of the entropies;
    and the log-probs [T], detached, 0 where the weight is 0: the old_logp of a second update. Raises ValueError as the
    two do.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {list(hidden.shape)} and weight {list(weight.shape)} must be [T, D] and [V, D]"
        )
    check(len(hidden), len(weight), targets, temperature)
    check_loss(
        targets, kl_kind, old_logp=old_logp, ref_logp=ref_logp, advantage=advantage, weight=weights
    )
    chunk = chunk or max(
        1, CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cuda"]) // (4 * len(weight))
    )
    wanted = [torch.is_grad_enabled() and x.requires_grad for x in (hidden, weight)]
    tokens, settings = (
        (targets, advantage, weights, old_logp, ref_logp),
        (clip_low, clip_high, beta, kl_kind),
    )
    loss, sums, logp, ent = _HeadLoss.apply(
        hidden,
        weight,
        tokens,
        settings,
        temperature,
        entropy,
        chunk,
        wanted,
        use_triton(hidden, backend),
    )
    return loss, _stats(sums, ent), logp


def cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    count: int,
    fused: bool | None = None,
    chunk: int | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Minus the log-probs of the targets [T] int64, summed and divided by `count`: the loss of pre-training and SFT.

    hidden [T, D], weight [V, D] (the LM head). In one with the head where `fuses` says so (`fused` overrides it): the
    log-likelihood has the gradient of a policy loss with advantage 1, whose ratio is 1 as long as the policy is the one
    that sampled. Otherwise by `linear_logprob`. Returns a float32 scalar (float64 for float64). Raises ValueError as
    that does.
    """
    if not fuses(len(weight), hidden, fused):
        return (
            -linear_logprob(hidden, weight, targets, chunk=chunk, entropy=False, backend=backend)[
                0
            ].sum()
            / count
        )
    ones = torch.ones(len(targets), dtype=float_of(hidden), device=hidden.device)
    settings = dict(beta=0.0, entropy=False, chunk=chunk, backend=backend)
    loss, _, logp = head_policy_loss(hidden, weight, targets, ones, ones / count, **settings)
    return (
        loss - loss.detach() - logp.sum() / count
    )  # the gradient of the one, the value of the other


def policy_loss_from_logits(
    logits: torch.Tensor,
    targets: torch.Tensor,
    advantage: torch.Tensor,
    weights: torch.Tensor,
    old_logp: torch.Tensor | None = None,
    ref_logp: torch.Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    beta: float = 0.04,
    kl_kind: str = "k3",
    temperature: float = 1.0,
    entropy: bool = True,
    inplace: bool = False,
    backend: str | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """`head_policy_loss` for logits [T, V] that are there already; weights of 0 and -inf as in the definition.

    On Triton the logits are read and their gradient written in one kernel; with `inplace` it replaces them, so that no
    other [T, V] exists: 4TV bytes moved for bf16. Elsewhere `logprob_from_logits` and `policy_loss` in turn, the
    definition, which leaves the logits alone.
    """
    check(*logits.shape, targets, temperature)
    check_loss(
        targets, kl_kind, old_logp=old_logp, ref_logp=ref_logp, advantage=advantage, weight=weights
    )
    settings = clip_low, clip_high, beta, kl_kind
    if use_triton(logits, backend):
        logits = logits if logits.stride(1) == 1 else logits.contiguous()
        tokens = [
            None if x is None else x.contiguous()
            for x in (targets, advantage, weights, old_logp, ref_logp)
        ]
        loss, sums, logp, ent = _LogitsLoss.apply(
            logits, tokens, settings, temperature, entropy, inplace
        )
        return loss, _stats(sums, ent if entropy else None), logp
    logp, ent = logprob_from_logits(logits, targets, temperature, entropy, backend)
    loss, stats = policy_loss(logp, old_logp, ref_logp, advantage, weights, *settings, backend)
    live = weights != 0
    return (
        loss,
        stats | ({"entropy": ent.where(live, 0).sum()} if entropy else {}),
        logp.detach().where(live, 0),
    )


def _stats(sums, entropy):
    found = dict(zip(STATS, sums.unbind(), strict=True))
    return found if entropy is None else found | {"entropy": entropy.sum()}
