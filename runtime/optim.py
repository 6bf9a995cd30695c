"""AdamW, schedules of the learning rate, the limit of the gradient's norm, and the speed of learning."""

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from runtime.distributed import World, whole_tensor


def adamw(
    model: nn.Module, lr: float, betas=(0.9, 0.95), weight_decay: float = 0.1
) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices, embedding and LM head included (as LLaMA's), but not on norms and biases."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=lr, betas=betas, fused=True
    )


def clip_grad_norm(model: nn.Module, max_norm: float) -> float:
    """Scale the gradients to a global norm of at most `max_norm` (0: leave them). Returns the norm before.

    Raises FloatingPointError where it is not finite: going on would write NaN into every checkpoint kept.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = whole_tensor(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
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


# Factors of the peak learning rate at `step`, which counts from 1 to `total`.


def lr_constant(step: int, warmup: int) -> float:
    """Linear warm-up, then 1."""
    return min(1.0, step / max(warmup, 1))


def lr_multistep(step: int, warmup: int, total: int) -> float:
    """The paper's schedule (2.2.1): linear warm-up, 1, then 31.6 % after 80 % of the steps and 10 % after 90 %."""
    stage = 1.0 if 10 * step <= 8 * total else 0.316 if 10 * step <= 9 * total else 0.1
    return stage * lr_constant(step, warmup)


def lr_linear_decay(step: int, warmup: int, total: int, decay: float) -> float:
    """Linear warm-up, 1, then over the last share `decay` of the steps a straight line to 0.1 at the last."""
    done = max(0.0, (step - total) / (decay * total) + 1) if decay > 0 else 0.0
    return lr_constant(step, warmup) * (1 - 0.9 * done)


_GPU_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}


@functools.cache
def peak_flops(device: torch.device) -> float:
    """Dense FLOP/s of one device: bf16 by data sheet for known GPUs, else what a matrix product reaches."""
    cuda = device.type == "cuda"
    if cuda:
        for name, peak in _GPU_PEAKS.items():
            if name in torch.cuda.get_device_name(device):
                return peak
    n, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    a, b = torch.ones(2, n, n, device=device, dtype=dtype)
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def mfu(flops_per_second: float, world: World) -> float:
    """Model FLOPs utilisation: the model's arithmetic per second, over all processes, as a share of their peak."""
    return flops_per_second / (peak_flops(world.device) * world.size)


@dataclass
class Work:
    """What a step computed, over all processes.

    tokens: those learned from, without padding; a question counts once for all its completions,
    and each update on the same batch counts again. flops: what the mathematics of this learning
    needs (`batch.forward_flops`; a backward takes twice a forward).
    sampled, sampling_flops: the same of sampling, if the step sampled.
    Work that the program repeats (activations, logits) or wastes (padding) counts in seconds only.
    """

    tokens: int
    flops: float
    sampled: int = 0
    sampling_flops: float = 0.0


def speed(tokens: int, flops: float, seconds: float, world: World) -> dict:
    """Speed of learning: tokens_per_second and mfu."""
    return {"tokens_per_second": tokens / seconds, "mfu": mfu(flops / seconds, world)}


def memory_left(world: World) -> float | None:
    """Bytes that this process may still take on its GPU if a tenth stays free. None on a CPU."""
    if world.device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(world.device)
    usable = free + torch.cuda.memory_reserved(world.device)
    return 0.9 * usable - torch.cuda.memory_allocated(world.device)


def learning_bytes(models: Sequence[nn.Module], tokens: int, dtype: torch.dtype) -> float:
    """Bytes that learning takes beside the weights, if no activation is recomputed; an estimate.

    models: those that are trained, one after the other. tokens: of one forward and backward pass.
    dtype: of the matrix products.
    """
    # Adam's two moments and the gradient, in float32, of the part that this process holds.
    parameters = [p for model in models for p in model.parameters() if p.requires_grad]
    held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in parameters)
    return 12 * held + max(activation_bytes(model.config, tokens, dtype) for model in models)


def activation_bytes(shape, tokens: int, dtype: torch.dtype) -> float:
    """Bytes of the activations that a backward of `tokens` needs, for a model of this ModelConfig.

    A block keeps, of each token: 4 vectors of width D (the inputs of two norms and of two matrix
    products), queries and the output of attention three times H * E, keys and values 2 K * E,
    the feed-forward layer 3 F; and the norms 4 D in float32. The head keeps parts of the logits.
    """
    heads, kv_heads = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    block = dtype.itemsize * (4 * shape.width + 3 * heads + 2 * kv_heads + 3 * shape.ffn)
    block += 4 * 4 * shape.width
    logits = 0 if shape.score else min(4 * tokens * shape.vocab_size, 2e9)
    return tokens * shape.layers * block + logits
