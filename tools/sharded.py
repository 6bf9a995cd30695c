"""A model as a trainer holds it, in a ledger: weights, gradients and optimizer state, split by
FSDP2.

FSDP2 is imitated by hooks in its order of events. A unit is a block, or the module itself for what
belongs to no block (embedding, norm, head).
"""

import torch
from torch import Tensor, nn

from model import ModelConfig, Transformer
from tools.ledger import ELSEWHERE, Ledger

WHOLE = ("sampler", "reward model")  # kinds that every process has as a whole copy


class Model:
    """float32 weights, split over the processes by FSDP if there are several.

    `module` computes with its weights in `dtype`. If they are split, a block's weights are gathered
    while the block before it computes, and its gradients are summed over the processes in float32
    as soon as they are all made. What belongs to no block stays whole from the first forward to the
    end of the backward, and after a forward without gradients for good.

    kind: "weights" are trained; a "reference" is split too; a "sampler" and a "reward model" are
    whole copies in `dtype`.
    """

    def __init__(
        self,
        ledger: Ledger,
        config: ModelConfig,
        processes: int,
        dtype: torch.dtype,
        kind: str = "weights",
    ):
        trained, whole = kind == "weights", kind in WHOLE
        self.ledger, self.processes, self.dtype = ledger, processes, dtype
        self.split = processes > 1 and not whole
        with ledger.of_kind(ELSEWHERE), torch.device("meta"):
            self.module = Transformer(config)
        self.module.train(trained)

        # the weights as they are kept
        shapes = [p.shape for p in self.module.parameters()]
        kept = dtype if whole else torch.float32
        loaded = [ledger.new(shape.numel(), kept, kind) for shape in shapes]
        self.weights = loaded
        if self.split:
            self.weights = []
            for i, shape in enumerate(shapes):
                self.weights.append(
                    ledger.new(
                        share(shape, processes),
                        kept,
                        kind,
                    )
                )
                loaded[i] = None  # a whole weight is released when its share has been copied

        # the weights as the module computes with them
        inside = dtype if self.split or whole else torch.float32
        with ledger.of_kind(ELSEWHERE):
            for name, weight in list(self.module.named_parameters()):
                owner, _, leaf = name.rpartition(".")
                empty = torch.empty(weight.shape, dtype=inside, device="meta")
                parameter = nn.Parameter(empty, requires_grad=trained)
                setattr(self.module.get_submodule(owner), leaf, parameter)
        if inside != dtype:
            self.module.compute_dtype = dtype

        self.gradients: dict[nn.Module, Tensor] = {}  # unit -> this process's share
        self.optimizer: list[Tensor] = []
        self._gathered: dict[nn.Module, Tensor] = {}  # unit -> its whole weights
        self._buffer = self._summed = None  # buffers of the last gather and of the last sum
        if self.split:
            self._attach()
        elif trained:
            for weight in self.module.parameters():
                weight.register_post_accumulate_grad_hook(self._label_gradient)

    def _label_gradient(self, weight: nn.Parameter) -> None:
        self.ledger.relabel(weight.grad, "gradients")

    def add_optimizer(self) -> None:
        """AdamW's state: two float32 moments and a counter for each weight."""
        for weight in self.weights:
            for count in (weight.numel(), weight.numel(), 1):
                self.optimizer.append(self.ledger.new(count, torch.float32, "optimizer"))

    def zero_grad(self) -> None:
        self.module.zero_grad(set_to_none=True)
        self.gradients.clear()

    # ---- FSDP2

    def _attach(self) -> None:
        """Hooks that gather weights and sum gradients."""
        blocks = list(self.module.layers)
        self._owned = {block: list(block.parameters()) for block in blocks}
        inside = {id(p) for weights in self._owned.values() for p in weights}
        self._owned[self.module] = [p for p in self.module.parameters() if id(p) not in inside]
        # the unit before each unit, in the order of the forward
        self._before = dict(zip([*blocks[1:], self.module], blocks, strict=True))
        for unit, weights in self._owned.items():
            unit.register_forward_pre_hook(lambda unit, _: self._gather(unit))
            unit.register_forward_hook(self._forward_done)
            missing = [len(weights)]  # gradients of this unit that the backward has yet to make
            for weight in weights:
                if weight.requires_grad:
                    weight.register_post_accumulate_grad_hook(
                        lambda p, u=unit, m=missing: self._has_grad(p, u, m)
                    )

    def _numbers(self, unit: nn.Module) -> int:
        """Numbers in a unit's whole weights, with the padding that makes equal shares."""
        return self.processes * sum(share(p.shape, self.processes) for p in self._owned[unit])

    def _new(self, unit: nn.Module) -> Tensor:
        return self.ledger.new(self._numbers(unit), self.dtype, "gathered")

    def _gather(self, unit: nn.Module) -> None:
        if unit in self._gathered:
            return
        fetched = self._new(unit)
        self._buffer = None  # the last unit's buffer is released when this one's has come
        self._gathered[unit] = self._new(unit)
        self._buffer = fetched

    def _forward_done(
        self,
        unit: nn.Module,
        inputs,
        output: Tensor,
    ) -> None:
        if torch._C._current_graph_task_id() != -1:
            return  # activation checkpointing runs the forward again inside the backward
        if unit is not self.module:
            del self._gathered[unit]
        else:
            self._buffer = None
        if output.requires_grad:
            output.register_hook(lambda _: self._before_backward(unit))

    def _before_backward(self, unit: nn.Module) -> None:
        if unit not in self._gathered:
            self._gathered[unit] = self._new(unit)
        self._buffer = None
        if unit in self._before:  # gathered while this one computes
            self._buffer = self._new(self._before[unit])

    def _has_grad(
        self,
        weight: nn.Parameter,
        unit: nn.Module,
        missing: list[int],
    ) -> None:
        self._label_gradient(weight)
        missing[0] -= 1
        if missing[0]:
            return
        # all gradients of the unit are there: sum them over the processes, keep a share
        weights = self._owned[unit]
        missing[0] = len(weights)
        del self._gathered[unit]
        self._summed = None
        self._summed = self.ledger.new(
            self._numbers(unit),
            torch.float32,
            "gathered",
        )
        for one in weights:
            one.grad = None
        kept = self.ledger.new(
            self._numbers(unit) // self.processes,
            torch.float32,
            "gradients",
        )
        self.gradients.setdefault(unit, kept)
        if unit is self.module:  # the last
            self._summed = None


def share(shape: torch.Size, processes: int) -> int:
    """Numbers of a weight on the first process: FSDP2 cuts the first dimension, rounded up."""
    return -(-shape[0] // processes) * (shape.numel() // shape[0])
