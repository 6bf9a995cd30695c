"""Attention over packed segments on a CPU in C++ (attention.cpp): rotary embedding included, nothing padded."""

import ctypes
from ctypes import c_int64, c_void_p

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import accelerator, cpu
from kernels.cases import attention_cases
from kernels.packed_attention import takes_layout

# Tokens seen times width of a head. With more, keys and values leave the cache of a core, and PyTorch is faster.
LONGEST = 2**15


class Packed(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("T", "families", "longest")),
        *(
            (name, c_void_p)
            for name in ("position", "start", "length", "parent", "members", "first")
        ),
    ]


class Heads(ctypes.Structure):
    _fields_ = [*((name, c_int64) for name in ("H", "K", "E", "positions")), ("rope", c_void_p)]


def families(layout) -> tuple[np.ndarray, ...]:
    """What the C++ reads of a layout, int64: positions [T]; starts, lengths, parents of segments; the segments
    with each parent before its children; where each such family begins there, with the end."""
    if "families" not in layout.cache:
        parents = layout.parents
        root = np.where(parents < 0, np.arange(len(parents)), parents)
        members = np.lexsort((parents >= 0, root))
        first = np.append(np.flatnonzero(parents[members] < 0), len(members))
        positions = np.zeros(layout.tokens, dtype=np.int64)
        if not layout.positions.is_meta:  # else a plan: it has no data
            positions = np.ascontiguousarray(layout.positions.numpy())
        found = positions, layout.starts, layout.lengths, parents, members, first
        layout.cache["families"] = found
    return layout.cache["families"]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv: Tensor, rope: Tensor, layout, H: int) -> Tensor:
        T, heads, E = qkv.shape
        arrays = families(layout)
        pointers = (array.ctypes.data for array in arrays)
        packed = Packed(T, len(arrays[-1]) - 1, layout.max_position, *pointers)
        rope = rope.contiguous()
        shape = Heads(H, (heads - H) // 2, E, rope.shape[1], rope.data_ptr())
        qkv, out, lse = qkv.contiguous(), qkv.new_empty(T, H * E), qkv.new_empty(T, H)
        cpu.native().attention(
            ctypes.addressof(packed),
            ctypes.addressof(shape),
            qkv.data_ptr(),
            out.data_ptr(),
            lse.data_ptr(),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(qkv, out, lse)
        ctx.held = packed, shape, arrays, rope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor) -> tuple[Tensor, None, None, None]:
        qkv, out, lse = ctx.saved_tensors
        slope, result = slope.contiguous(), torch.empty_like(qkv)
        packed, shape = ctx.held[:2]
        cpu.native().attention_backward(
            ctypes.addressof(packed),
            ctypes.addressof(shape),
            qkv.data_ptr(),
            out.data_ptr(),
            lse.data_ptr(),
            slope.data_ptr(),
            result.data_ptr(),
            torch.get_num_threads(),
        )
        return result, None, None, None


def takes(qkv: Tensor, rope: Tensor, layout, heads: int, window: int = 0) -> bool:
    """Heads must be whole vectors, and tokens see so few others that keys and values stay in a core's cache."""
    E = qkv.shape[2]
    whole = E % cpu.native().lanes() == 0
    if not (cpu.takes(qkv, rope) and whole and takes_layout(layout, window)):
        return False
    return not rope.requires_grad and fits(rope, layout, E)


def fits(rope: Tensor, layout, E: int) -> bool:
    """Are all positions in the table, and so few that keys and values stay in the cache?"""
    if "positions" not in layout.cache:
        low, high = layout.positions.aminmax() if layout.tokens else (torch.tensor(0),) * 2
        layout.cache["positions"] = int(low), int(high)
    low, high = layout.cache["positions"]
    return 0 <= low and high < rope.shape[1] and layout.max_position * E <= LONGEST


@accelerator(
    "model.attention",
    stands_for=["model.Layout"],
    takes=takes,
    available=cpu.available,
    cases=attention_cases,
)
def attention(qkv: Tensor, rope: Tensor, layout, heads: int, window: int = 0) -> Tensor:
    return _Attention.apply(qkv, rope, layout, heads)
