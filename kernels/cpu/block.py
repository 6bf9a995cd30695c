"""RMSNorm and SwiGLU on a CPU in C++ (block.cpp): forward and backward in one pass over memory each."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import accelerator, cpu
from kernels.cases import rms_norm_cases, swiglu_cases


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight, D = x.contiguous(), weight.contiguous(), x.shape[-1]
        T = x.numel() // D
        y, scale = torch.empty_like(x), x.new_empty(T)
        pointers = x.data_ptr(), weight.data_ptr(), y.data_ptr(), scale.data_ptr()
        cpu.native().rms_norm(*pointers, T, D, eps, torch.get_num_threads())
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        slope, dx, dweight = slope.contiguous(), torch.empty_like(x), torch.empty_like(weight)
        pointers = (t.data_ptr() for t in (x, weight, scale, slope, dx, dweight))
        threads = torch.get_num_threads()
        cpu.native().rms_norm_backward(*pointers, len(scale), x.shape[-1], threads)
        return dx, dweight, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x, F = x.contiguous(), x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], F)
        rows, threads = y.numel() // F, torch.get_num_threads()
        cpu.native().swiglu(x.data_ptr(), y.data_ptr(), rows, F, threads)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope, dx, F = slope.contiguous(), torch.empty_like(x), x.shape[-1] // 2
        pointers = x.data_ptr(), slope.data_ptr(), dx.data_ptr()
        cpu.native().swiglu_backward(*pointers, slope.numel() // F, F, torch.get_num_threads())
        return dx


@accelerator(
    "model.rms_norm",
    takes=lambda x, weight, eps: cpu.takes(x, weight),
    available=cpu.available,
    cases=rms_norm_cases,
)
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _RMSNorm.apply(x, weight, eps)


@accelerator(
    "model.swiglu",
    takes=lambda gate_up: cpu.takes(gate_up),
    available=cpu.available,
    cases=swiglu_cases,
)
def swiglu(gate_up: Tensor) -> Tensor:
    return _SwiGLU.apply(gate_up)
