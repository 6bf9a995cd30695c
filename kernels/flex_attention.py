"""Attention over packed segments on GPUs by PyTorch's FlexAttention, compiled, rotary embedding included."""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kernels import accelerator
from kernels.cases import attention_cases
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


def attend(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, mask) -> Tensor:
    """q [T, H, E], k and v [T, K, E], cos and sin [T, 1, E/2] -> [T, H, E]."""
    from torch.nn.attention.flex_attention import flex_attention

    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, heads, T, E]
    grouped = q.shape[1] != k.shape[1]
    return flex_attention(q, k, v, block_mask=mask, enable_gqa=grouped)[0].transpose(0, 1)


@functools.cache
def compiled() -> Callable:
    return torch.compile(attend, dynamic=True)


@accelerator(
    "model.attention",
    stands_for=["model.Layout"],
    takes=lambda qkv, rope, layout, heads: qkv.is_cuda and qkv.dtype != torch.float64,
    available=lambda device: device.type == "cuda",
    cases=attention_cases,
)
def attention(qkv: Tensor, rope: Tensor, layout, heads: int) -> Tensor:
    kv_heads = (qkv.shape[1] - heads) // 2
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    cos, sin = rope[:, layout.positions, None]  # [T, 1, E/2]
    return compiled()(q, k, v, cos, sin, block_mask(layout)).flatten(1)
