"""AdamW, the limit of the gradient's norm, learning rates; speed and memory of learning."""

import functools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model import ModelConfig, Transformer
from runtime.distributed import World, whole_tensor

# ----------------------------------------------------------------------------------------------------
# The optimizer


def adamw(
    model: nn.Module, lr: float, betas=(0.9, 0.95), weight_decay: float = 0.1
) -> torch.optim.AdamW:
    """AdamW. Weight decay is for matrices, as LLaMA's: also embedding and LM head, no norms, no biases."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() >= 2]
    vectors = [p for p in trained if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def cut(hidden: Tensor, model: Transformer) -> Tensor:
    """Hidden states as a leaf, at which `backward` can look before it goes on into the blocks.

    A model that is split over processes stays whole, because all processes must go the whole way.
    """
    whole = hidden.is_meta or hasattr(model, "reshard")  # tools.plan; FSDP2
    if whole or not hidden.requires_grad:
        return hidden
    leaf = hidden.detach().requires_grad_()
    leaf.before = hidden  # type: ignore[attr-defined]
    return leaf


def backward(loss: Tensor, hidden: Tensor, model: Transformer) -> None:
    """`loss.backward()` for a loss of hidden states that went through `cut`.

    Where the gradient of the hidden states is exactly 0, the blocks have gradients of 0 and need no
    backward. So it is for groups without a signal while the policy is the reference, or without one.
    """
    loss.backward()
    if not hasattr(hidden, "before"):
        return
    if hidden.grad is not None and hidden.grad.any():
        hidden.before.backward(hidden.grad)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def clip_grad_norm(model: nn.Module, max_norm: float) -> float:
    """Scale the gradients to a global norm of at most `max_norm` (0: leave them).

    Returns the norm before. Raises FloatingPointError if it is not finite: the next step would write
    NaN into the weights.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]  # again, for the type checker
    norm = whole_tensor(torch.nn.utils.get_total_norm(gradients))
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"the norm of the gradient is {norm.item()}; look at the data or lower --lr"
        )
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm.item()


def set_lr(optimizer: torch.optim.Optimizer, rate: float) -> float:
    """Set the learning rate of all parameters; returns it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


# ----------------------------------------------------------------------------------------------------
# Learning rates, as shares of the peak, at `step`, which counts from 1 to `total`


def lr_constant(step: int, warmup: int) -> float:
    """Linear warm-up, then 1."""
    return min(1.0, step / max(warmup, 1))


def lr_multistep(step: int, warmup: int, total: int) -> float:
    """The paper's schedule (2.2.1): warm-up, 1, 31.6 % after 80 % of the steps, 10 % after 90 %."""
    stage = 1.0
    if 10 * step > 8 * total:
        stage = 0.316
    if 10 * step > 9 * total:
        stage = 0.1
    return stage * lr_constant(step, warmup)


def lr_linear_decay(step: int, warmup: int, total: int, decay: float) -> float:
    """Linear warm-up, 1, and over the last share `decay` of the steps a line down to 0.1."""
    rate = lr_constant(step, warmup)
    length = decay * total
    if length > 0:
        done = max(0.0, (step - total + length) / length)
        rate *= 1 - 0.9 * done
    return rate


# ----------------------------------------------------------------------------------------------------
# Speed

_GPU_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}


@dataclass
class Work:
    """What a step computed, over all processes.

    tokens: those learned from, without padding. A question counts once for all its completions,
    and each update on the same batch counts again.
    flops: what the mathematics of learning needs (`forward_flops`; a backward is two forwards).
    sampled, sampling_flops: tokens sampled, and what sampling and scoring need.
    What the program repeats (activations, logits) or wastes (padding) counts in seconds only.
    """

    tokens: int
    flops: float
    sampled: int = 0
    sampling_flops: float = 0.0


def model_flops(config: ModelConfig, fed: int, predicted: int, pairs: float) -> float:
    """FLOPs of a forward; a multiplication and an addition count one each.

    fed: tokens through the blocks. predicted: tokens through the LM head. pairs: number of (token, token that it
    sees), as without windows. A backward takes twice as many. A score head is left out.
    """
    heads = config.heads + config.kv_heads
    weights = 2 * config.width * config.head_width * heads + 3 * config.width * config.ffn
    scores = 2 * config.heads * config.head_width  # products of a pair of tokens
    head = 0 if config.score else config.width * config.vocab_size
    return 2.0 * (config.layers * (fed * weights + pairs * scores) + predicted * head)


def forward_flops(config, groups: Iterable, last: bool = False) -> float:
    """FLOPs of a forward of a model of this ModelConfig that predicts all completion tokens.

    groups: (prompt, completions), ids. It is what the mathematics needs: a prompt is read once, however it is packed.
    last: the last tokens are read too, as `batch.token_scores` does.

    Example: prompt [5 6 7], completions [8 9] and [4 3 2]. 3 + 1 + 2 tokens are fed and 5 predicted. They see
    1 + 2 + 3, 4 and 4 + 5 tokens: `model_flops(config, 6, 5, 19)`.
    """
    fed = predicted = pairs = 0
    for prompt, completions in groups:
        fed += len(prompt)
        pairs += len(prompt) * (len(prompt) + 1) // 2
        for ids in completions:
            read = len(ids) if last else len(ids) - 1
            fed += read
            predicted += len(ids)
            pairs += read * len(prompt) + read * (read + 1) // 2
    return model_flops(config, fed, predicted, pairs)


def speed(tokens: int, flops: float, seconds: float, world: World) -> dict:
    """tokens_per_second and mfu of learning."""
    return {"tokens_per_second": tokens / seconds, "mfu": mfu(flops / seconds, world)}


def mfu(flops_per_second: float, world: World) -> float:
    """Model FLOPs utilization: arithmetic per second as a share of the peak of all processes."""
    return flops_per_second / (peak_flops(world.device) * world.size)


@functools.cache
def peak_flops(device: torch.device) -> float:
    """Dense FLOP/s of a device: bf16 by data sheet for known GPUs, else those of a matrix product."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        name = torch.cuda.get_device_name(device)
        for known, peak in _GPU_PEAKS.items():
            if known in name:
                return peak
    n = 8192 if on_gpu else 1024
    dtype = torch.bfloat16 if on_gpu else torch.float32
    a = torch.ones(n, n, device=device, dtype=dtype)
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


# ----------------------------------------------------------------------------------------------------
# Memory


def memory_left(world: World) -> float | None:
    """Bytes that this process may still take on its GPU if a tenth stays free. None on a CPU."""
    if world.device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(world.device)
    usable = free + torch.cuda.memory_reserved(world.device)
    return 0.9 * usable - torch.cuda.memory_allocated(world.device)


def learning_bytes(models: Sequence[Transformer], tokens: int, dtype: torch.dtype) -> float:
    """An estimate of the bytes that learning takes beside the weights, if nothing is recomputed.

    models: those that are trained, one after the other. tokens: of one forward and backward pass.
    dtype: of the matrix products.
    """
    held = 0
    for model in models:
        for parameter in model.parameters():
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            held += local.numel()
    # For each weight a gradient and Adam's two moments, in float32.
    activations = [activation_bytes(model.config, tokens, dtype) for model in models]
    return 12 * held + max(activations)


def activation_bytes(shape: ModelConfig, tokens: int, dtype: torch.dtype) -> float:
    """An estimate of the bytes of activations that a backward of `tokens` needs.

    shape: a ModelConfig. Of each token, a block keeps inputs of norms and matrix products (4 D),
    queries and attention's output (3 H E), keys and values (2 K E), the feed-forward layer (3 F);
    and in its norms 4 D in float32. The head keeps a part of the logits.
    """
    queries = shape.heads * shape.head_width
    keys = shape.kv_heads * shape.head_width
    numbers = 4 * shape.width + 3 * queries + 2 * keys + 3 * shape.ffn
    block = dtype.itemsize * numbers + 4 * 4 * shape.width
    logits = 0 if shape.score else min(4 * tokens * shape.vocab_size, 2e9)
    return tokens * shape.layers * block + logits
