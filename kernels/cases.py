"""Small random arguments for the check by numbers (see kernels/__init__.py)."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from kernels import Setting
from model import Layout, ModelConfig, rope_table


def small(shape: ModelConfig) -> ModelConfig:
    """Two layers of the run's own kind: its family, head width, switches and share of key heads."""
    kv_heads = min(shape.kv_heads, 2)
    heads = kv_heads * min(shape.heads // shape.kv_heads, 4)
    return replace(
        shape, vocab_size=160, width=64, layers=2, heads=heads, kv_heads=kv_heads, ffn=96, score=""
    )


def normal(setting: Setting, *size: int, gradient: bool = False) -> Tensor:
    """Normal numbers in the run's own type."""
    dtype = torch.bfloat16 if setting.device.type == "cuda" and setting.bf16 else torch.float32
    draw = torch.Generator().manual_seed(sum(size))
    x = torch.randn(*size, generator=draw).to(setting.device, dtype)
    return x.requires_grad_(gradient)


def rms_norm_cases(setting: Setting) -> Iterator[tuple]:
    width, E = setting.shape.width, setting.shape.head_width
    for size in ((70, width), (9, 3, E)):
        weight = normal(setting, size[-1], gradient=True)
        yield normal(setting, *size, gradient=True), weight, setting.shape.norm_eps


def swiglu_cases(setting: Setting) -> Iterator[tuple]:
    yield (normal(setting, 37, 2 * setting.shape.ffn, gradient=True),)


def attention_cases(setting: Setting) -> Iterator[tuple]:
    """64 tokens: a question with three completions, and documents of several lengths."""
    shape = setting.shape
    layouts = ([9, 5, 1, 12, 20, 1, 16], [-1, 0, 0, 0, -1, 4, -1]), ([33, 31], None), ([64], None)
    rope = rope_table(shape, 64).to(setting.device)
    for lengths, parents in layouts:
        layout = Layout(lengths, parents, setting.device)
        heads = shape.heads + 2 * shape.kv_heads
        qkv = normal(setting, layout.tokens, heads, shape.head_width, gradient=True)
        yield qkv, rope, layout, shape.heads
