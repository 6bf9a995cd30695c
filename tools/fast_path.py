"""Accelerators on the meta device: code takes the path that it takes on a GPU or on a CPU.

Kernels in Triton and C++ do not run on meta tensors. Their wrappers do, which make the outputs and
save what the backward pass needs; the kernels between are replaced by functions that do nothing.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import kernels
import kernels.cpu.attention
import kernels.cpu.block
import kernels.logprob
import kernels.triton.head_loss
import kernels.triton.logprob
from kernels import head_loss, packed_attention
from model import rotate
from tools.ledger import ATTENTION, Ledger


@contextmanager
def tracing(ledger: Ledger, gpu: bool) -> Iterator[None]:
    """Inside, meta tensors take the path of a GPU, or of a CPU, and the ledger counts."""
    native = kernels.cpu.native()
    lanes = native.lanes() if native is not None else 0
    functions = losses(gpu, ledger.vocabulary)
    functions["model.attention"] = gpu_attention(ledger) if gpu else cpu_attention(ledger, lanes)
    if lanes and not gpu:
        functions["model.rms_norm"] = kernels.cpu.block.rms_norm
        functions["model.swiglu"] = kernels.cpu.block.swiglu

    with ExitStack() as stack:

        def put(module, name: str, value) -> None:
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)

        sizes = kernels.logprob.CHUNK_BYTES
        put(
            kernels.logprob,
            "CHUNK_BYTES",
            sizes | {"meta": sizes["cuda" if gpu else "cpu"]},
        )
        if gpu:
            put(kernels.triton.head_loss, "multiprocessors", lambda tensor: 1)
            names = [name for name in sys.modules if name.startswith("kernels.")]
            for module in map(sys.modules.get, names):
                for name, value in list(vars(module).items()):
                    if type(value).__module__.startswith("triton."):
                        put(module, name, NoKernel())
        elif lanes:
            put(kernels.cpu, "native", NoLibrary)
        stack.enter_context(kernels.using(functions))
        stack.enter_context(Device(gpu))
        stack.enter_context(ledger)
        yield


def losses(gpu: bool, vocabulary: int) -> dict[str, Callable]:
    """The accelerators of log-probs and losses, by the names of their definitions."""
    heads = kernels.triton.head_loss if gpu else head_loss
    logprobs = kernels.triton.logprob if gpu else kernels.logprob
    functions = {"batch.logprobs": logprobs.logprobs}
    if gpu or vocabulary >= head_loss.LARGE:
        functions["train_grpo.policy_loss"] = heads.grpo
        functions["train_ppo.policy_loss"] = heads.ppo
        functions["train_pretrain.cross_entropy"] = heads.pretrain
        functions["train_sft.cross_entropy"] = heads.sft
    return functions


# --------------------------------------------------------------------------------------------------
# Attention


def pairs(layout) -> float:
    """Number of pairs of tokens that see each other."""
    seen = layout.prefix + (layout.lengths + 1) / 2
    return float((layout.lengths * seen).sum())


def gpu_attention(ledger: Ledger) -> Callable:
    """In place of FlexAttention: saves the same tensors (q, k, v, output, a log-sum-exp a row)."""

    def attention(
        qkv: Tensor,
        rope: Tensor,
        layout,
        heads: int,
        window: int = 0,
    ) -> Tensor:
        ledger.density = pairs(layout) / layout.tokens**2
        kv_heads = (qkv.shape[1] - heads) // 2
        cos, sin = rope[:, layout.positions, None]
        q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
        parts = rotate(q, cos, sin), rotate(k, cos, sin), v
        out = ATTENTION(*(x.transpose(0, 1)[None] for x in parts))[0]
        return out[0].transpose(0, 1).flatten(1)

    return attention


def cpu_attention(ledger: Ledger, lanes: int) -> Callable:
    """The attention in C++ where it would be used, else the one of PyTorch."""
    longest = kernels.cpu.attention.LONGEST
    in_cpp = kernels.cpu.attention.attention

    def attention(
        qkv: Tensor,
        rope: Tensor,
        layout,
        heads: int,
        window: int = 0,
    ) -> Tensor:
        E = qkv.shape[2]
        whole = lanes and E % lanes == 0 and qkv.dtype == torch.float32
        if not whole or layout.max_position * E > longest:
            blocks = packed_attention.buckets(layout)[0]
            computed = sum(q.numel() * k.shape[1] for q, k, _ in blocks)
            ledger.density = pairs(layout) / computed
            return packed_attention.attention(qkv, rope, layout, heads)
        product = 2.0 * heads * E * pairs(layout)
        ledger.count(2 * product)
        if qkv.requires_grad:  # five products: the scores are computed again
            qkv = WithBackward.apply(qkv, lambda: ledger.count(5 * product))
        return in_cpp(qkv, rope, layout, heads)

    return attention


class WithBackward(torch.autograd.Function):
    """The same tensor. `count` is called when its gradient has been made."""

    @staticmethod
    def forward(ctx, x: Tensor, count: Callable[[], None]) -> Tensor:
        ctx.count = count
        return x.view_as(x)

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor, None]:
        ctx.count()
        return slope, None


# --------------------------------------------------------------------------------------------------
# In place of kernels and devices


class NoLibrary:
    """In place of the C++ library: its callers make the outputs."""

    def __getattr__(self, name: str) -> Callable:
        return lambda *args: None


class NoKernel:
    """In place of a Triton kernel: its callers make the outputs."""

    def __getitem__(self, grid) -> Callable:
        return lambda *args, **kwargs: None


class Device(TorchFunctionMode):
    """Meta tensors pass as tensors of a GPU, or of a CPU, whose attention has no [T, T] scores."""

    def __init__(self, gpu: bool):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(
        self,
        func,
        types,
        args=(),
        kwargs=None,
    ):
        kwargs = kwargs or {}
        if func is Tensor.backward:
            # A mode is off inside its own call. The backward pass runs code that needs it.
            with self:
                one = torch.ones_like(args[0])
                engine = torch.autograd.Variable._execution_engine
                return engine.run_backward(
                    (args[0],),
                    (one,),
                    False,
                    False,
                    (),
                    True,
                    True,
                )
        if self.gpu and func == Tensor.is_cuda.__get__:
            return args[0].device.type == "meta"
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            mask = kwargs.get("attn_mask")
            if mask is not None and mask.dtype == torch.bool:  # as PyTorch does before its kernel
                zero = torch.zeros((), device="meta")
                mask = torch.where(mask, zero, zero)
            return ATTENTION(*args, is_causal=mask is None, attn_mask=mask)[0]
        return func(*args, **kwargs)
