"""Log-probs of given tokens from hidden states: the logits of all tokens never exist at once.

Logits are made for a chunk of tokens at a time. One number is kept for each token, the log-sum-exp of its logits, and
the backward makes the logits of the chunk again. That is one more matrix product in exchange for [N, V] floats of
memory: 0.4 GB for every 1,000 tokens at V = 102,400.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import accelerator, onednn
from kernels.cases import logprob_cases

# Bytes of logits in a chunk. A CPU wants them in its caches, a GPU wants matrix products of thousands of rows.
CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 1 << 30}
HALF = (torch.bfloat16, torch.float16)


def float_of(tensor: Tensor) -> torch.dtype:
    """The type of log-probs and losses: float32, and float64 for float64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def chunk_size(hidden: Tensor, V: int) -> int:
    """Tokens whose float32 logits exist at once."""
    return max(1, CHUNK_BYTES[hidden.device.type] // (4 * V))


def product(a: Tensor, b: Tensor, out: Tensor | None = None, add: bool = False) -> Tensor:
    """a @ b in float32 (float64 for float64): tensor cores take half precision and sum in float32.

    With `out` [n, m] the result may be written to it; with `add` it is added inside the matrix product, so that no second
    [n, m] exists.
    """
    kind = {}
    if a.dtype in HALF and a.is_cuda:
        kind = {"out_dtype": torch.float32}
    elif (
        a.dtype in HALF
    ):  # Triton's interpreter on a CPU: products of half precision are exact in float32
        a, b = a.float(), b.float()
    elif not add and onednn.multiplies(a, b.T):
        return onednn.product(a, b.T)
    return torch.addmm(out, a, b, **kind, out=out) if add else torch.mm(a, b, **kind, out=out)


@dataclass(frozen=True)
class Rows:
    """How logits [n, V] in float32 are read; both functions may write over them."""

    read: Callable  # (logits, targets, temperature, entropy) -> (logp, log-sum-exp, entropy or None), [n] each
    slope: (
        Callable  # (logits, targets, log-sum-exp, temperature, dtype) -> softmax - onehot, [n, V]
    )
    half: bool = False  # multiply in half precision if hidden states are


def read(logits: Tensor, targets: Tensor, temperature: float, entropy: bool):
    if temperature != 1:
        logits.div_(temperature)
    target = logits.gather(1, targets[:, None])[:, 0]
    log_p = torch.log_softmax(logits, -1, out=logits)  # in place: one pass over memory
    logp = log_p.gather(1, targets[:, None])[:, 0]
    spread = -torch.linalg.vecdot(log_p.exp(), log_p) if entropy else None
    return logp, target - logp, spread


def slope(logits: Tensor, targets: Tensor, lse: Tensor, temperature: float, dtype: torch.dtype):
    if temperature != 1:
        logits.div_(temperature)
    p = logits.sub_(lse[:, None]).exp_()
    return p.scatter_add_(1, targets[:, None], p.new_full((len(p), 1), -1)).to(dtype)


class _Logprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, targets, temperature: float, entropy: bool, rows: Rows):
        h, w = _factors(hidden, head, rows)
        logp, lse, spread = (h.new_empty(len(h), dtype=float_of(h)) for _ in range(3))
        for some, logits in _chunks(h, w):
            logp[some], lse[some], found = rows.read(logits, targets[some], temperature, entropy)
            if entropy:
                spread[some] = found
        ctx.save_for_backward(hidden, head, targets, lse)
        ctx.settings = temperature, rows
        ctx.mark_non_differentiable(spread)
        return logp, spread

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        hidden, head, targets, lse = ctx.saved_tensors
        temperature, rows = ctx.settings
        h, w = _factors(hidden, head, rows)
        live = grad.nonzero()[:, 0]  # masked tokens cost nothing from here on
        if len(live) < len(h):
            h, targets, lse, grad = h[live], targets[live], lse[live], grad[live]
        grad_h = torch.empty_like(h, dtype=grad.dtype) if ctx.needs_input_grad[0] else None
        grad_w = torch.zeros_like(w, dtype=grad.dtype) if ctx.needs_input_grad[1] else None
        # softmax - onehot has entries of size 1, whatever the loss is divided by. The gradient of each token
        # multiplies the small matrices beside it, which saves a pass over the logits.
        coefficient = (-grad / temperature)[:, None]
        for some, logits in _chunks(h, w):
            part = rows.slope(logits, targets[some], lse[some], temperature, h.dtype)
            if grad_h is not None:
                grad_h[some] = product(part, w).mul_(coefficient[some])
            if grad_w is not None:
                product(part.T, (h[some] * coefficient[some]).to(h.dtype), out=grad_w, add=True)
        if grad_h is not None:
            grad_h = grad_h.to(hidden.dtype)
            if len(live) < len(hidden):
                grad_h = torch.zeros_like(hidden).index_copy_(0, live, grad_h)
        if grad_w is not None:
            grad_w = grad_w.to(head.dtype)
        return grad_h, grad_w, None, None, None, None


def _factors(hidden: Tensor, head: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Both in the type they are multiplied in."""
    dtype = hidden.dtype if rows.half and hidden.dtype in HALF else float_of(hidden)
    return hidden.to(dtype), head.to(dtype)


def _chunks(hidden: Tensor, head: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(tokens, their logits [n, V], which the next ones overwrite)."""
    N, size = len(hidden), chunk_size(hidden, len(head))
    buffer = hidden.new_empty(min(size, N), len(head), dtype=float_of(hidden))
    for start in range(0, N, size):
        some = slice(start, min(start + size, N))
        yield some, product(hidden[some], head.T, out=buffer[: some.stop - start])


def chunked(hidden, head, targets, temperature: float, entropy: bool, rows: Rows):
    logp, spread = _Logprobs.apply(hidden, head, targets, temperature, entropy, rows)
    return logp, spread if entropy else None


def learned(*values) -> bool:
    """Does one of these, or an attribute of one, want a gradient? An accelerator gives none to a temperature, a weight
    or an advantage."""
    for value in values:
        parts = [value] if isinstance(value, Tensor) else getattr(value, "__dict__", {}).values()
        if any(isinstance(part, Tensor) and part.requires_grad for part in parts):
            return True
    return False


PYTORCH = Rows(read, slope)


def takes(hidden: Tensor, head: Tensor, targets: Tensor, temperature=1.0, entropy=False) -> bool:
    return not learned(temperature)


@accelerator("batch.logprobs", takes=takes, cases=logprob_cases)
def logprobs(
    hidden: Tensor, head: Tensor, targets: Tensor, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    return chunked(hidden, head, targets, temperature, entropy, PYTORCH)
