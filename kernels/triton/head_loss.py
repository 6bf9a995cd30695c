"""LM head and loss in one in Triton: kernels/head_loss.py for GPUs, with equation 3 inside the kernel.

What is rounded. Log-probs are float32 from the dot product on, so bf16 factors give float32 logits. Rounded logits
would put errors of up to 9e-3 nats into ratio and KL. The gradient of the logits is rounded to bf16, as tensor cores
need it; sums over tokens run in float32.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import accelerator
from kernels.cases import cross_entropy_cases, grpo_cases, ppo_cases
from kernels.logprob import HALF, float_of, learned, product
from kernels.triton import available, jit, tl, triton
from kernels.triton.logprob import check, logprobs, read_row, row_blocks
from kernels.triton.policy_loss import STATS, loss_and_slope, token_terms

# Bytes of a chunk's float32 logits. The bf16 gradients of GROUP chunks are kept for their two matrix products: each
# reads and writes the gradient of the head, [V, D] in float32, once. Together 1.25 GiB.
CHUNK_BYTES, GROUP = 1 << 28, 8
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
            coefficient = token_terms(log_ratio, d, a, w, low, high, beta, REF)[1] * scale
            tl.debug_barrier()  # every thread has read the target's logit before one overwrites it
            for block in tl.range(0, blocks, num_stages=STAGES):
                at = (blocks - 1 - block) * (ROWS * LANES) + v  # from the end, which was read last
                x = tl.load(row + at, mask=at < V, other=0.0).to(tl.float32) * scale
                tl.store(
                    grad + at,
                    coefficient * (tl.where(at == target, 1.0, 0.0) - tl.exp(x - lse)),
                    mask=at < V,
                )


def multiprocessors(tensor: Tensor) -> int:
    return (
        torch.cuda.get_device_properties(tensor.device).multi_processor_count
        if tensor.is_cuda
        else 1
    )


def _rows(logits, tokens, temperature, settings, out):
    """Logits [n, V] -> (logp [n], entropy [n]); the gradient of the loss with respect to them goes to `out` [n, V]."""
    targets, advantage, weight, old_logp, ref_logp = tokens
    n, V = logits.shape
    logp, spread = (torch.empty(n, device=logits.device) for _ in range(2))
    old, ref = (logp if x is None else x for x in (old_logp, ref_logp))
    programs = min(n, PROGRAMS * multiprocessors(logits))
    scalars = 1 / temperature, *map(float, settings)
    _policy_kernel[(programs,)](
        *(logits, targets, old, ref, advantage, weight, out, logp, spread),
        *(n, V, logits.stride(0), out.stride(0), *scalars),
        *(old_logp is not None, ref_logp is not None, True),
        **row_blocks(V, out.element_size(), **ROW),
    )
    return logp, spread


def _learn(h, w, tokens, index, temperature, settings, logp, spread, grad_h, grad_w):
    """Write log-probs and entropies of the tokens `index`, and add their gradients to grad_h, grad_w."""
    half, V = h.dtype != logp.dtype, len(w)

    def rows(begin, end):  # by number in `index`: without a copy if these are all tokens
        return slice(begin, end) if len(index) == len(h) else index[begin:end]

    chunk = max(1, CHUNK_BYTES // (4 * V))
    size = chunk * GROUP if half else chunk
    logits = torch.empty(min(chunk, len(index)), V, dtype=logp.dtype, device=h.device)
    slopes = logits
    if half:
        slopes = torch.empty(min(size, len(index)), V, dtype=h.dtype, device=h.device)
    for begin in range(0, len(index), size):
        end = min(begin + size, len(index))
        inputs = h[rows(begin, end)]
        for start in range(begin, end, chunk):
            stop = min(start + chunk, end)
            some, here = rows(start, stop), slice(start - begin, stop - begin)
            x = product(inputs[here], w.T, out=logits[: stop - start])
            parts = [None if t is None else t[some] for t in tokens]
            logp[some], spread[some] = _rows(x, parts, temperature, settings, slopes[here])
        slope = slopes[: end - begin]
        if grad_h is not None:
            grad_h[rows(begin, end)] = torch.mm(slope, w).to(grad_h.dtype)
        if grad_w is not None:
            product(slope.T, inputs, out=grad_w, add=True)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, tokens, settings, temperature: float, wanted):
        """tokens: targets, advantage, weight, old_logp, ref_logp; settings: clip_low, clip_high, beta."""
        targets, advantage, weight, old_logp, ref_logp = tokens
        factor = hidden.dtype if hidden.dtype in HALF else float_of(hidden)
        h, w = hidden.to(factor), head.to(factor)
        logp, spread = (torch.zeros(len(h), device=h.device) for _ in range(2))
        grad_h = torch.zeros_like(hidden) if wanted[0] else None
        grad_w = torch.zeros(w.shape, device=w.device) if wanted[1] else None
        # Rows without loss are dropped. Without advantage and KL the gradient is 0, whatever the log-prob: only read.
        chosen = weight != 0
        learned = chosen if wanted[0] or wanted[1] else torch.zeros_like(chosen)
        if ref_logp is None or settings[2] == 0:
            learned = learned & (advantage != 0)
        index = learned.nonzero()[:, 0]
        if len(index) < len(h) and len(rest := (chosen & ~learned).nonzero()[:, 0]):
            logp[rest], spread[rest] = logprobs(h[rest], w, targets[rest], temperature, True)
        _learn(h, w, tokens, index, temperature, settings, logp, spread, grad_h, grad_w)
        ctx.gradients = grad_h, grad_w if grad_w is None else grad_w.to(head.dtype)
        loss, _, sums = loss_and_slope(logp, old_logp, ref_logp, advantage, weight, *settings)
        ctx.mark_non_differentiable(sums, logp, spread)
        return loss, sums, logp, spread

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss are used up: call the loss again")
        found, ctx.gradients = ctx.gradients, None  # handed over, not copied: this works once
        for x in found:
            if x is not None and x.numel():
                blocks = triton.cdiv(x.numel(), 4096)
                _scale_kernel[(blocks,)](x, grad.float(), x.numel(), 4096)  # without asking the GPU
        return *found, None, None, None, None


@jit
def _scale_kernel(x, factor, n, BLOCK: tl.constexpr):
    """x *= factor, a number on the device; nothing is moved where it is 1, as it is for loss.backward()."""
    by = tl.load(factor)
    if by != 1.0:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(x + i, tl.load(x + i, mask=i < n).to(tl.float32) * by, mask=i < n)


def head_loss(hidden: Tensor, head: Tensor, tokens, settings: tuple, temperature: float = 1.0):
    check(tokens[0], len(head))
    wanted = [torch.is_grad_enabled() and x.requires_grad for x in (hidden, head)]
    return _HeadLoss.apply(hidden, head, tokens, settings, temperature, wanted)


def takes(hidden: Tensor, head: Tensor, *rest, **named) -> bool:
    return hidden.dtype != torch.float64 and not learned(*rest, *named.values())


def policy(hidden: Tensor, head: Tensor, micro, temperature: float, settings: tuple):
    """What a trainer's policy_loss returns: (loss, sums, log-probs [N])."""
    tensors = micro.targets, micro.advantage, micro.weight, micro.old_logp, micro.ref_logp
    tokens = [None if x is None else x.contiguous() for x in tensors]
    loss, sums, logp, spread = head_loss(hidden, head, tokens, settings, temperature)
    stats = dict(zip(STATS, sums.unbind(), strict=True)) | {"entropy": spread.sum()}
    return loss, stats, logp


@accelerator("train_grpo.policy_loss", takes=takes, available=available, cases=grpo_cases)
def grpo(hidden: Tensor, head: Tensor, micro, config):
    settings = config.clip_low, config.clip_high, config.beta
    return policy(hidden, head, micro, config.temperature, settings)


@accelerator("train_ppo.policy_loss", takes=takes, available=available, cases=ppo_cases)
def ppo(hidden: Tensor, head: Tensor, micro, config):
    settings = config.clip_low, config.clip_high, 0.0
    loss, stats, logp = policy(hidden, head, micro, config.temperature, settings)
    del stats["kl"]
    return loss, stats, logp


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, tokens: int) -> Tensor:
    """The gradient of a policy loss with advantage 1, whose ratio is 1; the value is that of the log-probs."""
    ones = torch.ones(len(targets), device=hidden.device)
    parts = targets.contiguous(), ones, ones / tokens, None, None
    loss, _, logp, _ = head_loss(hidden, head, parts, (0.2, 0.2, 0.0))
    return loss - loss.detach() - logp.sum() / tokens


@accelerator(
    "train_pretrain.cross_entropy", takes=takes, available=available, cases=cross_entropy_cases
)
def pretrain(hidden: Tensor, head: Tensor, targets: Tensor, tokens: int) -> Tensor:
    return cross_entropy(hidden, head, targets, tokens)


@accelerator("train_sft.cross_entropy", takes=takes, available=available, cases=cross_entropy_cases)
def sft(hidden: Tensor, head: Tensor, targets: Tensor, tokens: int) -> Tensor:
    return cross_entropy(hidden, head, targets, tokens)
