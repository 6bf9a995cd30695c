"""Log-probs of given tokens straight from hidden states: the logits of all tokens never exist at once.

The definition is logprob_from_logits(hidden @ weight.T, ...): log softmax(logits / temperature) at the target, in
float32 from the dot product on (bf16 log-probs are off by up to 9e-3 nats). linear_logprob computes the same a chunk
of tokens at a time and keeps one number a token, the log-sum-exp; its backward makes the chunk's logits again. That is
one more matrix product in exchange for [T, V] floats of memory: 0.4 GB for every 1,000 tokens at V = 102,400.
"""

import torch

import kernels
from kernels import float_of, use_triton
from kernels.triton import jit, tl, triton

# Bytes of logits in a chunk. A CPU wants them to stay in its caches, a GPU wants matrix products of thousands of rows.
CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 1 << 30}
HALF = (torch.bfloat16, torch.float16)
READ = dict(
    warps=8, stages=3
)  # of the kernel that reads logits: several rows at a time on each multiprocessor


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


@jit(do_not_specialize_on_alignment=["targets", "lse", "grad"])
def _slope_kernel(
    logits, targets, lse, grad, out, V, stride, scale, GRAD: tl.constexpr, BLOCK: tl.constexpr
):
    """d -logp / d (scaled logits) = softmax - onehot of one block of one token; with GRAD times -grad * scale.

    `out` may be `logits`: each element is read by the program that writes it.
    """
    row = tl.program_id(0).to(tl.int64)
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * stride + v, mask=v < V, other=0.0).to(tl.float32) * scale
    slope = tl.exp(x - tl.load(lse + row)) - tl.where(v == tl.load(targets + row), 1.0, 0.0)
    if GRAD:
        slope *= -tl.load(grad + row) * scale
    tl.store(out + row * V + v, slope, mask=v < V)


def row_blocks(V, itemsize, warps, stages):
    """The blocks of read_row and the warps that work on them: a thread moves 16 bytes of each of its rows at once."""
    lanes = min(warps * 32 * 16 // itemsize, triton.next_power_of_2(triton.cdiv(V, 2)))
    return dict(ROWS=2, LANES=lanes, STAGES=stages, num_warps=warps)


def read_triton(logits, targets, scale, entropy):
    """Logits [T, V] times scale -> (logp, log-sum-exp, entropy), each [T] float32; entropy unset if not asked."""
    T, V = logits.shape
    logp, lse, ent = (torch.empty(T, device=logits.device) for _ in range(3))
    blocks = row_blocks(V, logits.element_size(), **READ)
    _read_kernel[(T,)](
        logits, targets, logp, lse, ent, V, logits.stride(0), scale, entropy, **blocks
    )
    return logp, lse, ent


def _slope_triton(logits, targets, lse, scale, grad, out):
    T, V = logits.shape
    block = min(triton.next_power_of_2(V), 4096)
    _slope_kernel[(T, triton.cdiv(V, block))](
        logits,
        targets,
        lse,
        grad,
        out,
        V,
        logits.stride(0),
        scale,
        grad is not None,
        block,
        num_warps=8,
    )
    return out


def read_torch(logits, targets, scratch):
    """read_triton for logits already scaled, which become log-probs; the entropy if there is a scratch buffer for it,
    which then holds the probabilities."""
    x_target = logits.gather(1, targets[:, None])[:, 0]
    torch.log_softmax(logits, -1, out=logits)  # in place, so that each row is read from memory once
    logp = logits.gather(1, targets[:, None])[:, 0]
    if scratch is None:
        return logp, x_target - logp, None
    p = torch.exp(logits, out=scratch[: len(logits)])
    return logp, x_target - logp, -torch.linalg.vecdot(p, logits)


def _slope_torch(logits, targets, lse):
    """_slope_triton without grad for logits already scaled, in place."""
    slope = logits.sub_(lse[:, None]).exp_()
    return slope.scatter_add_(1, targets[:, None], slope.new_full((len(slope), 1), -1))


def factors(hidden, weight, on_triton):
    """Both in the type they are multiplied in: half precision on GPUs if hidden is, else float32 or float64."""
    half = hidden.dtype in HALF and (hidden.is_cuda or on_triton)
    dtype = hidden.dtype if half else float_of(hidden)
    return hidden.to(dtype), weight.to(dtype)


def product(a, b, out=None, add=False):
    """a @ b, summed and returned in float32 (float64 for float64): tensor cores take half precision, give float32.

    With `out` [n, m] the result is written to it, with `add` added to what it holds: inside the matrix product, so
    that no second [n, m] exists.
    """
    kind = {"out_dtype": torch.float32} if a.dtype in HALF and a.is_cuda else {}
    if (
        a.dtype in HALF and not kind
    ):  # the interpreter on a CPU: the same products of half precision, exact in float32
        a, b = a.float(), b.float()
    return torch.addmm(out, a, b, **kind, out=out) if add else torch.mm(a, b, **kind, out=out)


def _chunks(hidden, weight, chunk):
    """Yield (slice of tokens, their logits [chunk, V] in float32, which the next ones overwrite)."""
    T, V = len(hidden), len(weight)
    buffer = hidden.new_empty(min(chunk, T), V, dtype=float_of(hidden))
    for start in range(0, T, chunk):
        rows = slice(start, min(start + chunk, T))
        yield rows, product(hidden[rows], weight.T, out=buffer[: rows.stop - start])


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, chunk, entropy, on_triton):
        h, w = factors(hidden, weight, on_triton)
        logp, lse, ent = (
            torch.empty(len(h), dtype=float_of(hidden), device=h.device) for _ in range(3)
        )
        scratch = logp.new_empty(min(chunk, len(h)), len(w)) if entropy and not on_triton else None
        for rows, logits in _chunks(h, w, chunk):
            if on_triton:
                read = read_triton(logits, targets[rows], 1 / temperature, entropy)
            else:
                read = read_torch(
                    logits if temperature == 1 else logits.div_(temperature), targets[rows], scratch
                )
            logp[rows], lse[rows] = read[:2]
            if entropy:
                ent[rows] = read[2]
        ctx.save_for_backward(hidden, weight, targets, lse)
        ctx.settings = temperature, chunk, on_triton
        ctx.mark_non_differentiable(ent)
        return logp, ent

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, _):
        hidden, weight, targets, lse = ctx.saved_tensors
        temperature, chunk, on_triton = ctx.settings
        h, w = factors(hidden, weight, on_triton)
        live = grad.nonzero()[:, 0]  # masked tokens cost nothing from here on
        if len(live) < len(h):
            h, targets, lse, grad = h[live], targets[live], lse[live], grad[live]
        grad_h = torch.empty_like(h, dtype=grad.dtype) if ctx.needs_input_grad[0] else None
        grad_w = torch.zeros_like(w, dtype=grad.dtype) if ctx.needs_input_grad[1] else None
        # The slope of -logp, softmax - onehot, has entries of size 1 whatever the loss is divided by: each token's
        # gradient multiplies the small matrices beside it instead, which saves a pass over the logits.
        coefficient = (-grad / temperature)[:, None]
        for rows, logits in _chunks(h, w, chunk):
            if on_triton:
                out = logits if h.dtype == logits.dtype else torch.empty_like(logits, dtype=h.dtype)
                slope = _slope_triton(logits, targets[rows], lse[rows], 1 / temperature, None, out)
            else:
                slope = _slope_torch(
                    logits if temperature == 1 else logits.div_(temperature),
                    targets[rows],
                    lse[rows],
                )
                slope = slope.to(h.dtype)
            if grad_h is not None:
                grad_h[rows] = product(slope, w).mul_(coefficient[rows])
            if grad_w is not None:
                scaled = (h[rows] * coefficient[rows]).to(h.dtype)
                product(slope.T, scaled, out=grad_w, add=True)
        if grad_h is not None:
            grad_h = grad_h.to(hidden.dtype)
            if len(live) < len(hidden):
                grad_h = torch.zeros_like(hidden).index_copy_(0, live, grad_h)
        return (
            grad_h,
            grad_w if grad_w is None else grad_w.to(weight.dtype),
            None,
            None,
            None,
            None,
            None,
        )


class _LogitsLogprob(torch.autograd.Function):
    """logprob_from_logits on Triton; elsewhere autograd differentiates the definition."""

    @staticmethod
    def forward(ctx, logits, targets, temperature, entropy):
        logits = logits if logits.stride(1) == 1 else logits.contiguous()
        logp, lse, ent = read_triton(logits, targets, 1 / temperature, entropy)
        ctx.save_for_backward(logits, targets, lse)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(ent)
        return logp, ent

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, _):
        logits, targets, lse = ctx.saved_tensors
        out = torch.empty_like(logits, memory_format=torch.contiguous_format)
        return (
            _slope_triton(logits, targets, lse, 1 / ctx.temperature, grad.contiguous(), out),
            None,
            None,
            None,
        )


def check(rows, V, targets, temperature):
    if targets.shape != (rows,) or targets.dtype != torch.int64:
        raise ValueError(
            f"targets must be int64 [{rows}], not {targets.dtype} {list(targets.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: must be above 0")
    low, high = (int(x) for x in targets.aminmax()) if rows else (0, -1)
    if low < 0 or high >= V:
        raise ValueError(f"targets reach from {low} to {high}, outside the vocabulary of {V}")


def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
    entropy: bool = True,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-prob of each token's target under softmax(hidden @ weight.T / temperature), without [T, V] logits.

    hidden [T, D], weight [V, D] (the LM head), targets [T] int64; chunk: tokens at a time (default: by CHUNK_BYTES).
    Returns (logp [T], entropy [T]) in nats, float32 (float64 for float64). Gradients reach hidden and weight through
    logp; entropy has none, and is None if not asked for. Gradients of weight are summed in float32; tokens whose logp
    has zero gradient are skipped. Raises ValueError for targets outside the vocabulary or ill-matched shapes.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {list(hidden.shape)} and weight {list(weight.shape)} must be [T, D] and [V, D]"
        )
    check(len(hidden), len(weight), targets, temperature)
    if kernels.reference and backend is None:
        dtype = float_of(hidden)
        return logprob_from_logits(
            hidden.to(dtype) @ weight.to(dtype).T, targets, temperature, entropy
        )
    chunk = chunk or max(
        1, CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cuda"]) // (4 * len(weight))
    )
    on_triton = use_triton(hidden, backend)
    logp, ent = _LinearLogprob.apply(
        hidden, weight, targets.contiguous(), temperature, chunk, entropy, on_triton
    )
    return logp, ent if entropy else None


def logprob_from_logits(
    logits: torch.Tensor,
    targets: torch.Tensor,
    temperature: float = 1.0,
    entropy: bool = True,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(logp [T], entropy [T] | None) of targets [T] int64 under softmax(logits / temperature), logits [T, V].

    The definition of linear_logprob, with its results, gradients and errors; logits of -inf (tokens ruled out) are
    allowed where they are not the target.
    """
    if logits.dim() != 2:
        raise ValueError(f"logits {list(logits.shape)} must be [T, V]")
    check(*logits.shape, targets, temperature)
    if use_triton(logits, backend):
        logp, ent = _LogitsLogprob.apply(logits, targets.contiguous(), temperature, entropy)
        return logp, ent if entropy else None
    log_p = torch.log_softmax(logits.to(float_of(logits)) / temperature, -1)
    logp = log_p.gather(1, targets[:, None])[:, 0]
    with torch.no_grad():  # 0 * -inf is NaN, hence the clamp
        return logp, -(log_p.exp() * log_p.clamp(min=-1e30)).sum(-1) if entropy else None
