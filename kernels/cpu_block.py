"""RMSNorm and SwiGLU on a CPU, forward and backward in one pass each (cpu_block.cpp).

F.rms_norm and silu(gate) * up, differentiated by autograd, are the definitions: the same numbers up to rounding.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.cpu import native


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight, D = x.contiguous(), weight.contiguous(), x.shape[-1]
        T = x.numel() // D
        y, scale = torch.empty_like(x), x.new_empty(T)
        pointers = x.data_ptr(), weight.data_ptr(), y.data_ptr(), scale.data_ptr()
        native().rms_norm(*pointers, T, D, eps, torch.get_num_threads())
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        slope, dx, dweight = slope.contiguous(), torch.empty_like(x), torch.empty_like(weight)
        pointers = (t.data_ptr() for t in (x, weight, scale, slope, dx, dweight))
        native().rms_norm_backward(*pointers, len(scale), x.shape[-1], torch.get_num_threads())
        return dx, dweight, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x, F = x.contiguous(), x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], F)
        native().swiglu(x.data_ptr(), y.data_ptr(), y.numel() // F, F, torch.get_num_threads())
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope, dx, F = slope.contiguous(), torch.empty_like(x), x.shape[-1] // 2
        pointers = x.data_ptr(), slope.data_ptr(), dx.data_ptr()
        native().swiglu_backward(*pointers, slope.numel() // F, F, torch.get_num_threads())
        return dx


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D] / rms(x) * weight [D]."""
    return _RMSNorm.apply(x, weight, eps)


def swiglu(x: Tensor) -> Tensor:
    """x [..., 2 F], gates and then ups -> silu(gate) * up [..., F]."""
    return _SwiGLU.apply(x)
