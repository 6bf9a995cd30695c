"""What code would hold and compute, counted by running it on the meta device: shapes without numbers.

    ledger = Ledger(vocabulary)
    with ledger.tracing(gpu=True):
        model = Model(ledger, config, processes=8, dtype=torch.bfloat16).module
        with ledger.phase("update"):
            loss(model).backward()
    ledger.phases["update"]      bytes by kind at the moment when most is held
    ledger.flops                 of matrix products and attention

A storage counts from the operation that makes it until Python and autograd have let go of it. So what autograd saves,
what activation checkpointing drops and what a kernel needs in between are what the code itself says, not a formula. An
operation whose result hangs on numbers answers as if every token counted: `nonzero` finds all, `item` gives 0.

What no meta tensor shows: the CUDA context, NCCL's buffers, and memory that the allocator cannot use for fragmentation.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kernels.cpu
import kernels.cpu.attention
import kernels.cpu.block
import kernels.logprob
import kernels.triton.head_loss
import kernels.triton.logprob
from kernels import head_loss, packed_attention
from kernels.logprob import CHUNK_BYTES
from model import ModelConfig, Transformer, rotate

aten = torch.ops.aten
ATTENTION, ATTENTION_BACKWARD = (
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
)
_makes_new: dict = {}  # operation -> are its results new tensors?
_results: dict = {}  # operation and shapes of its arguments -> shapes of its results
ELSEWHERE = "elsewhere"  # the kind of what is not held, but gives a computation its shapes


class Ledger(TorchDispatchMode):
    """Bytes of live meta tensors by kind, the most at once in each phase, and the arithmetic done."""

    def __init__(self, vocabulary: int = 0):
        super().__init__()
        self.vocabulary, self.kind = vocabulary, "activations"
        self.live: Counter[str] = Counter()
        self.most: Counter[str] = Counter()  # of each kind at any time
        self.held = self.peak = 0
        self.at_peak: dict[str, int] = {}
        self.phases: dict[str, dict[str, int]] = {}
        self.flops = 0.0
        self.density = 1.0  # share of the pairs of tokens of an attention that see each other
        self._found: dict[int, tuple[str, int]] = {}  # storage -> its kind and bytes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with (
            torch._C.DisableTorchFunction()
        ):  # what is asked here is not asked by the code that is traced
            kwargs = kwargs or {}
            if args and isinstance(args[0], Tensor) and args[0].is_meta:
                x = args[0]
                if func is aten._local_scalar_dense.default:
                    return 0
                if func is aten.nonzero.default:
                    func, args, kwargs = (
                        aten.empty.memory_format,
                        ([x.numel(), x.dim()],),
                        {"device": x.device},
                    )
                    kwargs["dtype"] = torch.int64
                elif func is aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
                    return torch.zeros(x.shape, dtype=kwargs.get("dtype") or x.dtype)
            self.flops += self._flops(func.overloadpacket, args)
            result = self._run(func, args, kwargs)
            copied = (
                func is aten._to_copy.default and self._kind_of(args[0]) == ELSEWHERE
            )  # a weight in bf16
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.is_meta:
                    self._add(leaf, "gathered" if copied else self.kind)
            return result

    def _run(self, func, args, kwargs):
        """func(*args, **kwargs), quickly where it has made new tensors from such shapes before: most of PyTorch's own
        rules for meta tensors are written in Python."""
        if func not in _makes_new:
            schema = func._schema
            aliased = any(
                value.alias_info is not None for value in [*schema.arguments, *schema.returns]
            )
            _makes_new[func] = not aliased and bool(schema.returns)
        if not _makes_new[func]:
            return func(*args, **kwargs)
        key = func, _outline(args), _outline(tuple(sorted(kwargs.items())))
        if key not in _results:
            _results[key] = _outline(result := func(*args, **kwargs))
            return result
        return _from_outline(_results[key])

    def _flops(self, operation, args) -> float:
        if operation is aten.mm or operation is aten.bmm:
            return 2.0 * args[0].numel() * args[1].shape[-1]
        if operation is aten.addmm or operation is aten.addmm_:
            return 2.0 * args[1].numel() * args[2].shape[-1]
        if operation is ATTENTION:  # queries [N, H, L, E], keys [N, K, S, E]: two products
            return 4.0 * args[0].numel() * args[1].shape[2] * self.density
        if operation is ATTENTION_BACKWARD:  # five: the scores are made again
            return 10.0 * args[1].numel() * args[2].shape[2] * self.density
        return 0.0

    def _count(self, flops: float) -> None:
        self.flops += flops

    def _kind_of(self, tensor: Tensor) -> str | None:
        return self._found.get(tensor.untyped_storage()._cdata, (None, 0))[0]

    def _add(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        if (key := storage._cdata) in self._found:
            return
        size = storage.nbytes()
        if kind == "activations" and self.vocabulary in tensor.shape:
            kind = (
                "logits"  # of a chunk of tokens; and gradients of head and embedding on their way
            )
        self._found[key] = kind, size
        self._change(kind, size)
        weakref.finalize(storage, self._drop, key).atexit = False

    def _drop(self, key: int) -> None:
        kind, size = self._found.pop(key)
        self._change(kind, -size)

    def _change(self, kind: str, size: int) -> None:
        self.live[kind] += size
        self.most[kind] = max(self.most[kind], self.live[kind])
        if kind != ELSEWHERE:
            self.held += size
            if self.held > self.peak:
                self.peak = self.held
                self.at_peak = {
                    name: held for name, held in self.live.items() if held and name != ELSEWHERE
                }

    def relabel(self, tensor: Tensor, kind: str) -> None:
        key = tensor.untyped_storage()._cdata
        before, size = self._found[key]
        self._found[key] = kind, size
        self._change(before, -size)
        self._change(kind, size)

    def new(self, count: int, dtype: torch.dtype, kind: str) -> Tensor:
        """`count` numbers that are held as long as the tensor is."""
        with self.of_kind(kind):
            return torch.empty(count, dtype=dtype, device="meta")

    @contextmanager
    def of_kind(self, kind: str) -> Iterator[None]:
        """What is made in here is of this kind."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note the peak of what runs in here; what was held before is part of it."""
        self.peak = 0
        self._change("activations", 0)
        yield
        self.phases[name] = dict(self.at_peak)

    @contextmanager
    def tracing(self, gpu: bool) -> Iterator[None]:
        """Code in here, on the meta device, goes the ways that it goes on a GPU, or on a CPU."""
        lanes = kernels.cpu.native().lanes() if kernels.cpu.native() is not None else None
        longest = kernels.cpu.attention.LONGEST

        def pairs(layout) -> float:
            """Number of pairs of tokens that see each other."""
            seen = layout.prefix + (layout.lengths + 1) / 2
            return float((layout.lengths * seen).sum())

        def attention(qkv, rope, layout, heads):
            E = qkv.shape[2]
            if gpu:
                # FlexAttention keeps for its backward q, k, v, the output, and a log-sum-exp a row, as this does
                self.density = pairs(layout) / layout.tokens**2
                kv_heads = (qkv.shape[1] - heads) // 2
                cos, sin = rope[:, layout.positions, None]
                q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
                parts = rotate(q, cos, sin), rotate(k, cos, sin), v
                out = ATTENTION(*(x.transpose(0, 1)[None] for x in parts))[0]
                return out[0].transpose(0, 1).flatten(1)
            if (
                not lanes
                or E % lanes
                or layout.max_position * E > longest
                or qkv.dtype != torch.float32
            ):
                blocks = packed_attention.buckets(layout)[0]
                self.density = pairs(layout) / sum(q.numel() * k.shape[1] for q, k, _ in blocks)
                return packed_attention.attention(qkv, rope, layout, heads)
            product = 2.0 * heads * E * pairs(layout)
            self.flops += 2 * product
            if qkv.requires_grad:  # five products: the scores are made again
                qkv = _Counted.apply(qkv, lambda: self._count(5 * product))
            return kernels.cpu.attention.attention(qkv, rope, layout, heads)

        functions = {"model.attention": attention}
        heads = kernels.triton.head_loss if gpu else head_loss
        logprobs = kernels.triton.logprob if gpu else kernels.logprob
        functions["batch.logprobs"] = logprobs.logprobs
        if gpu or self.vocabulary >= head_loss.LARGE:
            functions["train_grpo.policy_loss"] = heads.grpo
            functions["train_ppo.policy_loss"] = heads.ppo
            functions["train_pretrain.cross_entropy"] = heads.pretrain
            functions["train_sft.cross_entropy"] = heads.sft
        with ExitStack() as stack:

            def put(module, name: str, value) -> None:
                stack.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, value)

            size = CHUNK_BYTES["cuda" if gpu else "cpu"]
            put(kernels.logprob, "CHUNK_BYTES", CHUNK_BYTES | {"meta": size})
            if not gpu:
                if lanes:
                    put(kernels.cpu, "native", _NotNative)
                    functions["model.rms_norm"] = kernels.cpu.block.rms_norm
                    functions["model.swiglu"] = kernels.cpu.block.swiglu
            else:
                put(kernels.triton.head_loss, "multiprocessors", lambda tensor: 1)
                for module in [
                    module for name, module in sys.modules.items() if name.startswith("kernels.")
                ]:
                    for name, value in list(vars(module).items()):
                        if type(value).__module__.startswith("triton."):
                            put(module, name, _NoLaunch())
            stack.enter_context(kernels.using(functions))
            stack.enter_context(_As(gpu))
            stack.enter_context(self)
            yield


class _Shape(tuple):
    """(shape, strides, dtype, device) of a tensor."""


def _outline(value):
    """Arguments or results with a _Shape for each tensor: equal where an operation cannot tell them apart."""
    if isinstance(value, Tensor):
        return _Shape((tuple(value.shape), value.stride(), value.dtype, value.device))
    if isinstance(value, tuple | list):
        return tuple(map(_outline, value))
    return type(value), value  # 1 and 1.0 are not the same


def _from_outline(outline):
    if isinstance(outline, _Shape):
        shape, strides, dtype, device = outline
        return torch.empty_strided(shape, strides, dtype=dtype, device=device)
    if outline and isinstance(outline[0], type):
        return outline[1]
    return tuple(map(_from_outline, outline))


class _Counted(torch.autograd.Function):
    """The same tensor; `count` is called when its gradient has been made."""

    @staticmethod
    def forward(ctx, x: Tensor, count: Callable[[], None]) -> Tensor:
        ctx.count = count
        return x.view_as(x)

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor, None]:
        ctx.count()
        return slope, None


class _NotNative:
    """In place of the C++ for CPUs: its outputs are made by who calls it."""

    def __getattr__(self, name: str) -> Callable:
        return lambda *args: None


class _NoLaunch:
    """In place of a Triton kernel: its outputs are made by who launches it."""

    def __getitem__(self, grid) -> Callable:
        return lambda *args, **kwargs: None


class _As(TorchFunctionMode):
    """Meta tensors pass for tensors of a GPU; or for a CPU's, whose attention never makes [T, T] scores."""

    def __init__(self, gpu: bool):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if (
            func is Tensor.backward
        ):  # a mode is off in what it is asked about; in here code runs that needs it
            with self:
                one = torch.ones_like(args[0])
                engine = torch.autograd.Variable._execution_engine
                return engine.run_backward((args[0],), (one,), False, False, (), True, True)
        if self.gpu and func == Tensor.is_cuda.__get__:
            return args[0].device.type == "meta"
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            mask = (kwargs or {}).get("attn_mask")
            if (
                mask is not None and mask.dtype == torch.bool
            ):  # as PyTorch does before it calls the kernel
                mask = torch.where(
                    mask, torch.zeros((), device="meta"), torch.zeros((), device="meta")
                )
            return ATTENTION(*args, is_causal=mask is None, attn_mask=mask)[0]
        return func(*args, **(kwargs or {}))


class Model:
    """A model as a trainer holds it: float32 weights, split over the processes by FSDP where there are several.

    `module` computes with its weights in `dtype`. Split, these are gathered for a block at a time, a block's gradients
    are summed over the processes in float32 as soon as it has them all, and what belongs to no block (embedding, norm,
    head) stays whole from the first forward to the end of the backward, after a forward without gradients for good:
    what `shard` asks of FSDP2. `kind` None: a whole copy in `dtype`, as the sampler's.
    """

    def __init__(
        self,
        ledger: Ledger,
        config: ModelConfig,
        processes: int,
        dtype: torch.dtype,
        trained: bool = True,
        kind: str = "weights",
        whole: bool = False,
    ):
        self.ledger, self.processes, self.dtype = ledger, processes, dtype
        self.split = processes > 1 and not whole
        with ledger.of_kind(ELSEWHERE), torch.device("meta"):
            self.module = Transformer(config)
        self.module.train(trained)
        shapes = [p.shape for p in self.module.parameters()]
        kept = dtype if whole else torch.float32
        read = [ledger.new(shape.numel(), kept, kind) for shape in shapes]
        self.weights = read
        if self.split:
            self.weights = []
            for number, shape in enumerate(
                shapes
            ):  # each whole weight goes when its share has been copied
                self.weights.append(ledger.new(share(shape, processes), kept, kind))
                read[number] = None
        with ledger.of_kind(ELSEWHERE):
            inside = dtype if self.split or whole else torch.float32
            for name, weight in list(self.module.named_parameters()):
                owner, _, leaf = name.rpartition(".")
                empty = torch.empty(weight.shape, dtype=inside, device="meta")
                setattr(
                    self.module.get_submodule(owner),
                    leaf,
                    nn.Parameter(empty, requires_grad=trained),
                )
        if inside != dtype:
            self.module.compute_dtype = dtype
        self.gradients: dict[nn.Module, Tensor] = {}  # of a unit: this process's share
        self.optimizer: list[Tensor] = []
        self._gathered: dict[nn.Module, Tensor] = {}  # weights of a unit, whole
        self._buffer = self._summed = None  # what the last gather, the last sum went through
        if self.split:
            self._attach()
        elif trained:
            for weight in self.module.parameters():
                weight.register_post_accumulate_grad_hook(
                    lambda p: ledger.relabel(p.grad, "gradients")
                )

    def add_optimizer(self) -> None:
        """AdamW's state, once a step has been made: two float32 moments and a counter for each weight."""
        for weight in self.weights:
            for count in (weight.numel(), weight.numel(), 1):
                self.optimizer.append(self.ledger.new(count, torch.float32, "optimizer"))

    def zero_grad(self) -> None:
        self.module.zero_grad(set_to_none=True)
        self.gradients.clear()

    # FSDP2's order of events. A unit is a block; the module itself stands for what belongs to no block.

    def _attach(self) -> None:
        blocks = list(self.module.layers)
        within = {id(p) for block in blocks for p in block.parameters()}
        self._owned = {block: list(block.parameters()) for block in blocks}
        self._owned[self.module] = [p for p in self.module.parameters() if id(p) not in within]
        self._before = dict(
            zip([*blocks[1:], self.module], blocks, strict=True)
        )  # in the forward's order
        for unit, weights in self._owned.items():
            unit.register_forward_pre_hook(lambda unit, _: self._gather(unit))
            unit.register_forward_hook(self._forward_done)
            missing = [len(weights)]  # gradients of this unit that a backward has yet to make
            for weight in weights:
                if weight.requires_grad:
                    weight.register_post_accumulate_grad_hook(
                        lambda p, u=unit, m=missing: self._has_grad(p, u, m)
                    )

    def _numbers(self, unit: nn.Module) -> int:
        """Of a unit, whole, with the padding that makes equal shares."""
        return self.processes * sum(share(p.shape, self.processes) for p in self._owned[unit])

    def _gather(self, unit: nn.Module) -> None:
        if unit in self._gathered:
            return
        fetched, self._buffer = (
            self._fetch(unit),
            None,
        )  # the last unit's buffer goes when this one's has come
        self._gathered[unit] = self.ledger.new(self._numbers(unit), self.dtype, "gathered")
        self._buffer = fetched

    def _fetch(self, unit: nn.Module) -> Tensor:
        return self.ledger.new(self._numbers(unit), self.dtype, "gathered")

    def _forward_done(self, unit: nn.Module, inputs, output: Tensor) -> None:
        if (
            torch._C._current_graph_task_id() != -1
        ):  # activation checkpointing runs it again inside the backward
            return
        if unit is not self.module:
            del self._gathered[unit]
        else:
            self._buffer = None
        if output.requires_grad:
            output.register_hook(lambda _: self._before_backward(unit))

    def _before_backward(self, unit: nn.Module) -> None:
        if unit not in self._gathered:
            self._gathered[unit] = self.ledger.new(self._numbers(unit), self.dtype, "gathered")
        self._buffer = None
        if unit in self._before:  # comes while this one computes
            self._buffer = self._fetch(self._before[unit])

    def _has_grad(self, weight: nn.Parameter, unit: nn.Module, missing: list[int]) -> None:
        self.ledger.relabel(weight.grad, "gradients")
        missing[0] -= 1
        if missing[0]:
            return
        weights = self._owned[unit]
        missing[0] = len(weights)
        del self._gathered[unit]
        self._summed = None
        self._summed = self.ledger.new(self._numbers(unit), torch.float32, "gathered")
        for one in weights:
            one.grad = None
        own = self.ledger.new(self._numbers(unit) // self.processes, torch.float32, "gradients")
        self.gradients.setdefault(unit, own)
        if unit is self.module:  # the last
            self._summed = None


def share(shape: torch.Size, processes: int) -> int:
    """Numbers of a weight that one process holds: FSDP2 cuts the first dimension, the last pieces may be smaller."""
    return -(-shape[0] // processes) * (shape.numel() // shape[0])
