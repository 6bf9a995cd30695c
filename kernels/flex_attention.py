"""Attention over packed segments on GPUs by PyTorch's FlexAttention, compiled, rotary embedding included."""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kernels import accelerator
from kernels.cases import attention_cases
from kernels.packed_attention import takes_layout
from model import rotate


def visible(layout) -> Callable:
    """FlexAttention's rule: a token sees its own segment up to itself, and the parent segment whole."""
    document = layout.document
    parent = layout.tensor(np.repeat(layout.parents, layout.lengths))  # [T], -1 without

    def rule(batch, head, query, key):
        own = (document[query] == document[key]) & (query >= key)
        return own | (parent[query] == document[key])

    return rule


def block_mask(layout):
    """FlexAttention's block mask over [T, T], made once for each layout."""
    if "block_mask" not in layout.cache:
        from torch.nn.attention.flex_attention import create_block_mask

        T = layout.tokens
        with torch.inference_mode(False):
            mask = create_block_mask(visible(layout), None, None, T, T, device=layout.device)
        layout.cache["block_mask"] = mask
    return layout.cache["block_mask"]


def attend(qkv: Tensor, rope: Tensor, layout, heads: int, rotated: Callable, flex: Callable):
    """The attention of model.attention by a function that rotates and one that attends."""
    kv_heads = (qkv.shape[1] - heads) // 2
    cos, sin = rope[:, layout.positions, None]  # [T, 1, E/2]
    qk, v = qkv.split([heads + kv_heads, kv_heads], dim=1)
    q, k = rotated(qk, cos, sin).split([heads, kv_heads], dim=1)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, heads, T, E]
    grouped = heads != kv_heads
    out = flex(q, k, v, block_mask=block_mask(layout), enable_gqa=grouped)
    return out[0].transpose(0, 1).reshape(layout.tokens, -1)


@functools.cache
def compiled() -> tuple[Callable, Callable]:
    """Compiled one by one: together, PyTorch does not compile them for every device."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(rotate, dynamic=True), torch.compile(flex_attention, dynamic=True)


def takes(qkv: Tensor, rope: Tensor, layout, heads: int, window: int = 0) -> bool:
    return qkv.is_cuda and qkv.dtype != torch.float64 and takes_layout(layout, window)


@accelerator(
    "model.attention",
    stands_for=["model.Layout"],
    takes=takes,
    available=lambda device: device.type == "cuda",
    cases=attention_cases,
)
def attention(qkv: Tensor, rope: Tensor, layout, heads: int, window: int = 0) -> Tensor:
    return attend(qkv, rope, layout, heads, *compiled())
