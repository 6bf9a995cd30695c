"""The processes of a run: how they start and communicate, random numbers, kernels, and FSDP2."""

import datetime
import hashlib
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from runtime.options import local_main

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import kernels
from data.io import InputError
from kernels import begin
from kernels.compiled import compile_blocks, multiply_in
from kernels.cpu import compiler
from model import Linear, ModelConfig, Transformer

# ----------------------------------------------------------------------------------------------------
# Processes


@dataclass
class World:
    """The processes of a run, and how they compute.

    Every method is a collective: all processes call it, in the same order.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    local_rank: int = 0
    bf16: bool | None = None  # matrix products in bfloat16; None: on GPUs (a Run may set it)
    compile: bool | None = None  # torch.compile for the blocks; None: on GPUs
    kernels: str = "fast"  # or "plain": definitions alone
    accelerators: dict[str, list[str]] = field(default_factory=dict)  # in use: {definition: names}

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations, and of the weights of models that are not trained.

        bfloat16 on GPUs; float32 on CPUs, where --bf16 concerns matrix products only. Trained
        weights, sums and losses are float32 on both.
        """
        low = self.device.type == "cuda" and self.bf16 is not False
        return torch.bfloat16 if low else torch.float32

    def all_sum(self, value: Any) -> Any:
        """Sum over processes: of a number, or of a tensor element by element (a new tensor)."""
        if not isinstance(value, Tensor):
            return self.all_sum(torch.tensor(float(value), dtype=torch.float64)).item()
        total = value.detach().to(self.device, copy=True)
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def all_gather_objects(self, value: Any) -> list:
        """[the value of process 0, of process 1, ...] on every process."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def gather_dict(self, value: dict) -> dict:
        """The entries of the dictionaries of all processes, on every process."""
        parts = self.all_gather_objects(value)
        return {key: item for part in parts for key, item in part.items()}

    def broadcast_object(self, value: Any) -> Any:
        """The value of process 0, on every process."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, device=self.device)
        return values[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def setup(
    device: str = "auto",
    kernels: str = "fast",
    bf16: bool | None = None,
    compile: bool | None = None,
) -> World:
    """The processes that torchrun started (gloo on CPUs, NCCL on GPUs), or this process alone.

    device: auto, cpu or cuda. kernels, bf16, compile: see World. Raises InputError.
    """
    if compile and compiler() is None:
        raise InputError(
            "--compile true: torch.compile finds no C++ compiler; install g++, or leave it out"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda: PyTorch finds no GPU; use --device cpu, or install a CUDA build of torch"
        )
    cuda = device != "cpu" and torch.cuda.is_available()
    rank = int(os.environ.get("RANK", 0))
    size = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if cuda:
        gpus = torch.cuda.device_count()
        if local_rank >= gpus:
            raise InputError(f"torchrun --nproc_per_node: this machine has {gpus} GPUs; lower it")
        torch.cuda.set_device(local_rank)
    where = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    begin()
    if size > 1 and not dist.is_initialized():
        # Some processes wait while another decodes long completions. NCCL allows ten minutes.
        timeout = datetime.timedelta(hours=1)
        backend, gpu = ("nccl", where) if cuda else ("gloo", None)
        dist.init_process_group(backend, timeout=timeout, device_id=gpu)
    return World(rank, size, where, local_rank, bf16, compile, kernels)


def is_first(message: str) -> bool:
    """True on one of the processes that call this with the same message. None waits for another."""
    if not dist.is_initialized():
        return local_main()
    store = dist.distributed_c10d._get_default_store()
    return store.add(f"message {message}", 1) == 1


# ----------------------------------------------------------------------------------------------------
# Random numbers


def seeded(*key) -> int:
    """A seed in [0, 2^63) from names and numbers: `seeded(config.seed, "rollout", step)`.

    The seed depends on the key alone, so that a resumed run needs no saved state. It is the same on
    every machine and Python (sha256 of the key's repr).
    """
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def generator(*key) -> torch.Generator:
    """A CPU generator started from `seeded(*key)`."""
    return torch.Generator().manual_seed(seeded(*key))


def shuffled(count: int, seed: int) -> Iterator[int]:
    """Endless numbers below `count`: each once in an epoch, in a new order every epoch."""
    epoch = 0
    while True:
        yield from np.random.default_rng([seed, epoch]).permutation(count).tolist()
        epoch += 1


# ----------------------------------------------------------------------------------------------------
# How a model computes


def use_kernels(shape: ModelConfig, world: World) -> None:
    """Choose what computes the definitions, for models of this ModelConfig. A collective.

    An accelerator that one process sets aside is set aside on all. The main process prints what is
    used, and what was set aside and why (see kernels/__init__.py), on standard error.
    """
    bf16 = world.dtype == torch.bfloat16 or bool(world.bf16)
    setting = kernels.Setting(shape, world.device, bf16)
    choice = kernels.use(world.kernels, setting)
    if world.size > 1:
        reasons: dict[str, str] = {}
        for part in world.all_gather_objects(choice.set_aside):
            reasons |= part
        choice = kernels.use(world.kernels, setting, without=reasons)
        choice.set_aside |= reasons
    world.accelerators |= choice.in_use
    if world.is_main and (lines := choice.news()):
        print(*lines, sep="\n", file=sys.stderr, flush=True)  # what a command prints stays clean


def choose_bf16(shape: ModelConfig, world: World) -> tuple[bool, str]:
    """Should a CPU multiply in bfloat16 for models of this ModelConfig, and why. A collective.

    Yes where a product of the feed-forward layer, forward and backward, is at least 1.5 times as
    fast as in float32, and differs from it by at most 1 % (norms). Process 0 decides by its times.
    """
    use_kernels(shape, world)
    rows = max(64, min(512, 2**29 // (shape.width * shape.ffn)))
    layer = Linear(shape.width, 2 * shape.ffn, bias=False)
    x = torch.randn(rows, shape.width, generator=generator("bf16"))
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    results: dict = {}
    for _ in range(4):
        for dtype in seconds:
            layer.multiply = None if dtype == torch.float32 else dtype
            layer.weight.grad = None
            began = time.process_time()
            layer(x).square().sum().backward()
            seconds[dtype] = min(seconds[dtype], time.process_time() - began)
            results[dtype] = layer.weight.grad
    exact, rounded = results.values()
    error = float((rounded - exact).norm() / exact.norm())
    ratio = seconds[torch.float32] / seconds[torch.bfloat16]
    ratio, error = world.broadcast_object((ratio, error))
    on = ratio >= 1.5 and error <= 0.01
    why = f"products are {ratio:.1f} times as fast as in float32 and differ by {error:.1%}"
    return on, why


def prepare(model: Transformer, world: World, trained: bool = True) -> Transformer:
    """Make the model compute as the run's options say: kernels, compiled blocks, bfloat16.

    Compiled blocks are torch.compile's. bfloat16 here is for matrix products on a CPU; a model that
    is not `trained` (the sampler's) also keeps its matrices in bfloat16.
    """
    use_kernels(model.config, world)
    on_cpu = world.device.type == "cpu"
    compiled = not on_cpu if world.compile is None else world.compile
    if compiled and world.kernels == "fast":
        compile_blocks(model)
    if on_cpu and world.bf16:
        multiply_in(model, torch.bfloat16, store=not trained)
    return model


def shard(model: Transformer, world: World) -> Transformer:
    """Prepare a model to be trained, and split its weights over the processes (FSDP2).

    Each block in `model.layers` is a unit, and the rest is one. Gradients are the *sum* over the
    processes, not FSDP's mean: losses are divided by global counts before backward. Weights are
    float32. On GPUs they are gathered and multiplied in bfloat16; gradients are reduced in float32.
    A single process keeps the plain module; on a GPU its `compute_dtype` is set.
    """
    dtype = world.dtype
    prepare(model, world)
    if world.size == 1:
        if dtype != torch.float32:
            model.compute_dtype = dtype
        return model
    # These imports take half a second.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    # Inputs are not cast: the angles of RoPE stay float32.
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if dtype != torch.float32:
        policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # The rest stays whole after forward: the loss uses the LM head between forward and backward.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows sums only
    return model


def whole_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be split over processes. A collective."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def full_state(model: nn.Module, device=None, keep: bool = True) -> dict[str, Tensor]:
    """The state dict with whole tensors, on `device` (None: where they are). A collective.

    keep: False takes part in the collective and returns {}. A tensor that is not split is not copied.
    """
    state = {}
    for name, tensor in model.state_dict().items():
        whole = whole_tensor(tensor.detach())
        if keep:
            state[name] = whole.to(device or whole.device)
    return state


@torch.no_grad()
def gather_into(model: nn.Module, target: nn.Module) -> None:
    """Copy the weights of a (split) model into a whole one on every process, tensor by tensor."""
    state = target.state_dict()
    for name, tensor in model.state_dict().items():
        state[name].copy_(whole_tensor(tensor))
