"""What code would hold and compute, counted by running it on the meta device: shapes without
numbers.

    ledger = Ledger(vocabulary)
    with tracing(ledger, gpu=True):                                  # tools/fast_path.py
        model = Model(ledger, config, 8, torch.bfloat16).module      # tools/sharded.py
        with ledger.phase("update"):
            loss(model).backward()
    ledger.phases["update"]      bytes by kind at the moment when most is held
    ledger.flops                 of matrix products and attention

A storage counts from the operation that makes it until Python and autograd have released it. So
what autograd saves, what activation checkpointing drops and what a kernel needs in between come
from the code, not from a formula. An operation whose result depends on numbers answers as if every
token counted: `nonzero` finds all, `item` gives 0.

Not counted: the CUDA context, NCCL's buffers, and what the allocator loses to fragmentation.
"""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward
ELSEWHERE = "elsewhere"  # the kind of tensors that are not held, but give a computation its shapes

_makes_new: dict = {}  # operation -> True if its results are new tensors
_results: dict = {}  # operation and shapes of its arguments -> shapes of its results


class Ledger(TorchDispatchMode):
    """Bytes of live meta tensors by kind, the most at once in each phase, and the arithmetic."""

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
        self._storages: dict[int, tuple[str, int]] = {}  # storage -> its kind and bytes

    def __torch_dispatch__(
        self,
        func,
        types,
        args=(),
        kwargs=None,
    ):
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():  # the ledger's calls are not part of the traced code
            x = args[0] if args else None
            if isinstance(x, Tensor) and x.is_meta:
                # results that depend on numbers
                if func is aten._local_scalar_dense.default:
                    return 0
                if func is aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
                    return torch.zeros(x.shape, dtype=kwargs.get("dtype") or x.dtype)
                if func is aten.nonzero.default:
                    func, args = aten.empty.memory_format, ([x.numel(), x.dim()],)
                    kwargs = {"device": x.device, "dtype": torch.int64}
            self.flops += self._flops(func.overloadpacket, args)
            result = self._run(func, args, kwargs)
            # a copy of a weight in bf16
            copied = func is aten._to_copy.default and self._kind_of(args[0]) == ELSEWHERE
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.is_meta:
                    self._add(leaf, "gathered" if copied else self.kind)
            return result

    def _run(self, func, args, kwargs):
        """func(*args, **kwargs).

        Quick if it has made new tensors from such shapes before: most of PyTorch's rules for meta
        tensors are written in Python.
        """
        if func not in _makes_new:
            schema = func._schema
            values = [*schema.arguments, *schema.returns]
            aliased = any(value.alias_info is not None for value in values)
            _makes_new[func] = not aliased and bool(schema.returns)
        if not _makes_new[func]:
            return func(*args, **kwargs)
        key = func, _outline(args), _outline(tuple(sorted(kwargs.items())))
        if key not in _results:
            result = func(*args, **kwargs)
            _results[key] = _outline(result)
            return result
        return _from_outline(_results[key])

    def _flops(self, operation, args) -> float:
        if operation is aten.mm or operation is aten.bmm:
            return 2.0 * args[0].numel() * args[1].shape[-1]
        if operation is aten.addmm or operation is aten.addmm_:
            return 2.0 * args[1].numel() * args[2].shape[-1]
        if operation is ATTENTION:  # queries [N, H, L, E], keys [N, K, S, E]: two products
            return 4.0 * args[0].numel() * args[1].shape[2] * self.density
        if operation is ATTENTION_BACKWARD:  # five: the scores are computed again
            return 10.0 * args[1].numel() * args[2].shape[2] * self.density
        return 0.0

    def count(self, flops: float) -> None:
        """Add arithmetic that no operation shows."""
        self.flops += flops

    # ---- storages

    def _kind_of(self, tensor: Tensor) -> str | None:
        return self._storages.get(tensor.untyped_storage()._cdata, (None, 0))[0]

    def _add(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        size = storage.nbytes()
        if kind == "activations" and self.vocabulary in tensor.shape:
            kind = "logits"  # of some tokens, or a gradient of head and embedding on its way
        self._storages[key] = kind, size
        self._change(kind, size)
        weakref.finalize(storage, self._drop, key).atexit = False

    def _drop(self, key: int) -> None:
        kind, size = self._storages.pop(key)
        self._change(kind, -size)

    def _change(self, kind: str, size: int) -> None:
        self.live[kind] += size
        self.most[kind] = max(self.most[kind], self.live[kind])
        if kind == ELSEWHERE:
            return
        self.held += size
        if self.held > self.peak:
            self.peak = self.held
            self.at_peak = {name: held for name, held in self.live.items() if held}
            self.at_peak.pop(ELSEWHERE, None)

    def relabel(self, tensor: Tensor, kind: str) -> None:
        """Count a tensor as another kind."""
        key = tensor.untyped_storage()._cdata
        before, size = self._storages[key]
        self._storages[key] = kind, size
        self._change(before, -size)
        self._change(kind, size)

    def new(
        self,
        count: int,
        dtype: torch.dtype,
        kind: str,
    ) -> Tensor:
        """`count` numbers, held as long as the tensor is."""
        with self.of_kind(kind):
            return torch.empty(count, dtype=dtype, device="meta")

    @contextmanager
    def of_kind(self, kind: str) -> Iterator[None]:
        """All tensors that are made inside are of this kind."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note the peak of what runs inside. What was held before is part of it."""
        self.peak = 0
        self._change("activations", 0)
        yield
        self.phases[name] = dict(self.at_peak)


class _Shape(tuple):
    """(shape, strides, dtype, device) of a tensor."""


def _outline(value):
    """Arguments or results with a _Shape for each tensor. Equal outlines give equal results."""
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
