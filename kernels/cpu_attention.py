"""Attention over packed segments on a CPU in C++ (cpu_attention.cpp), rotary embedding included, nothing padded.

model.attend after model.rotate is the definition: the same numbers up to rounding, forward and backward.
"""

import ctypes
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.cpu import native

LONGEST = (
    2**15
)  # tokens seen times width of a head; with more, keys and values leave a core's cache: PyTorch is faster


def suits(E: int, longest: int) -> bool:
    """Whether heads of width E are whole vectors, and the tokens that any token sees so few that this pays."""
    return E % native().lanes() == 0 and longest * E <= LONGEST


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


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv: Tensor, table: Tensor, layout, H: int) -> Tensor:
        T, heads, E = qkv.shape
        arrays = layout.families
        packed = Packed(
            T, len(arrays[-1]) - 1, layout.max_position, *(array.ctypes.data for array in arrays)
        )
        shape = Heads(H, (heads - H) // 2, E, table.shape[1], table.data_ptr())
        qkv, out, lse = qkv.contiguous(), qkv.new_empty(T, H * E), qkv.new_empty(T, H)
        pointers = ctypes.addressof(packed), ctypes.addressof(shape), qkv.data_ptr()
        native().attention(*pointers, out.data_ptr(), lse.data_ptr(), torch.get_num_threads())
        ctx.save_for_backward(qkv, out, lse)
        ctx.held = packed, shape, arrays, table
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor) -> tuple[Tensor, None, None, None]:
        qkv, out, lse = ctx.saved_tensors
        slope, result = slope.contiguous(), torch.empty_like(qkv)
        tensors = (x.data_ptr() for x in (qkv, out, lse, slope, result))
        native().attention_backward(
            *map(ctypes.addressof, ctx.held[:2]), *tensors, torch.get_num_threads()
        )
        return result, None, None, None


def attention(qkv: Tensor, table: Tensor, layout, heads: int) -> Tensor:
    """Of H `heads` that are whole vectors wide: qkv [T, H + 2 K, E] before rotation, table [2, positions, E / 2] of
    cosines and sines -> [T, H E]."""
    return _Attention.apply(qkv, table, layout, heads)
