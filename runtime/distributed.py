"""The processes of a run: how they start, talk, share a model (FSDP2) and draw random numbers."""

import dataclasses
import datetime
import hashlib
import os
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

import kernels
from data.io import InputError
from kernels.compiled import compile_blocks
from kernels.cpu import compiler
from runtime.options import local_main


@dataclasses.dataclass
class World:
    """The processes of a run. Every method is a collective: all processes call it, in the same order."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    local_rank: int = 0
    bf16: bool | None = None  # multiply matrices in bfloat16; None: on a GPU
    compile: bool | None = None  # fuse blocks with torch.compile; None: on a GPU
    kernels: str = "fast"  # or "plain": definitions alone

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def dtype(self) -> torch.dtype:
        """What all but sums and losses are computed in, and a model that is not trained is kept in: bfloat16 on GPUs,
        float32 on CPUs, where at most the matrix products are in bfloat16. Trained weights are float32 on both."""
        return (
            torch.bfloat16
            if self.device.type == "cuda" and self.bf16 is not False
            else torch.float32
        )

    def all_sum(self, value):
        """Sum over processes of a number, or of a tensor (element by element; a new tensor)."""
        if not isinstance(value, torch.Tensor):
            return self.all_sum(torch.tensor(float(value), dtype=torch.float64)).item()
        total = value.detach().to(self.device, copy=True)
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def all_gather_objects(self, value) -> list:
        """[the value of process 0, of process 1, ...] on every process."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast_object(self, value):
        """Process 0's value, on every process."""
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
    """The processes that torchrun started (gloo on CPUs, NCCL on GPUs), or this one alone.

    kernels, bf16, compile: see World. Raises InputError.
    """
    if compile and compiler() is None:
        raise InputError(
            "--compile true: torch.compile finds no C++ compiler; install g++, or leave it out"
        )
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {device}: unknown; use auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda: PyTorch finds no GPU; use --device cpu, or install a CUDA build of torch"
        )
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    rank, size, local = (
        int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    )
    size = max(size, 1)
    if cuda:
        if local >= torch.cuda.device_count():
            raise InputError(
                f"torchrun --nproc_per_node: this machine has {torch.cuda.device_count()} GPUs; lower it"
            )
        torch.cuda.set_device(local)
    where = torch.device("cuda", local) if cuda else torch.device("cpu")
    if size > 1 and not dist.is_initialized():
        # Processes wait for each other while one of them decodes long completions: an hour, not NCCL's ten minutes.
        timeout = datetime.timedelta(hours=1)
        dist.init_process_group(
            "nccl" if cuda else "gloo", timeout=timeout, device_id=where if cuda else None
        )
    return World(rank, size, where, local, bf16, compile, kernels)


def is_first(message: str) -> bool:
    """True on one of the processes that call this with the same message; none waits for another."""
    if not dist.is_initialized():
        return local_main()
    store = dist.distributed_c10d._get_default_store()
    return store.add(f"message {message}", 1) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Random numbers


def seeded(*key) -> int:
    """A seed in [0, 2^63) from names and numbers: `seeded(config.seed, "rollout", step)`.

    Randomness that hangs on a step's name, not on what was drawn before it, needs no state to resume. The same on every
    machine and Python (sha256 of the key's repr).
    """
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def generator(*key) -> torch.Generator:
    """A CPU generator started from `seeded(*key)`."""
    return torch.Generator().manual_seed(seeded(*key))


def shuffled(count: int, seed: int) -> Iterator[int]:
    """Endless numbers below `count`: each once an epoch, in a new order every epoch."""
    epoch = 0
    while True:
        yield from np.random.default_rng([seed, epoch]).permutation(count).tolist()
        epoch += 1


# ---------------------------------------------------------------------------------------------------------------------
# FSDP2


def use_kernels(shape, world: World) -> None:
    """Choose what computes the definitions for models of this ModelConfig, the same on all processes. A collective.

    Prints what is used, and what was set aside and why (see kernels/__init__.py).
    """
    setting = kernels.Setting(shape, world.device, bool(world.bf16))
    choice = kernels.use(world.kernels, setting)
    if world.size > 1:
        aside = {name for names in world.all_gather_objects([*choice.set_aside]) for name in names}
        choice = kernels.use(world.kernels, setting, without=aside)
    if world.is_main and (lines := choice.news()):
        print(*lines, sep="\n", flush=True)


def prepare(model: nn.Module, world: World, trained: bool = True) -> nn.Module:
    """How the model computes: blocks compiled, and on a CPU products in bfloat16, where the run asks for it. A copy
    that is not `trained`, a sampler's, keeps its matrices in bfloat16."""
    use_kernels(model.config, world)
    cpu = world.device.type == "cpu"
    if world.kernels == "fast" and (not cpu if world.compile is None else world.compile):
        compile_blocks(model)
    if cpu and world.bf16:
        model.multiply_in(torch.bfloat16, store=not trained)
    return model


def shard(model: nn.Module, world: World) -> nn.Module:
    """Split the weights over the processes, one unit for each block in `model.layers` and one for the rest.

    Gradients are the *sum* over processes (FSDP's default is the mean): losses are divided by global counts before
    backward. Weights are float32; on GPUs they are gathered and multiplied in bfloat16, gradients reduced in float32. A
    single process keeps the plain module; in bfloat16 its `compute_dtype` is set.
    """
    dtype = world.dtype
    prepare(model, world)
    if world.size == 1:
        if dtype != torch.float32:
            model.compute_dtype = dtype
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (  # half a second, where it is used
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
    )

    mesh = init_device_mesh(world.device.type, (world.size,))
    # Inputs are not cast: the rotary angles are float32 and must stay so.
    low = {"param_dtype": dtype, "reduce_dtype": torch.float32} if dtype != torch.float32 else {}
    policy = MixedPrecisionPolicy(**low, cast_forward_inputs=False)
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # The root stays whole after forward: the log-prob kernel uses the LM head between forward and backward.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # a plain sum: gloo has no scaled one
    return model


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that may be split over processes. A collective."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def full_state(model: nn.Module, device=None, keep: bool = True) -> dict[str, torch.Tensor]:
    """The state dict with whole tensors, on `device` (default: where they are; not copied if unsharded). A collective;
    where `keep` is false it only takes part and returns {}."""
    state = {}
    for name, tensor in model.state_dict().items():
        whole = whole_tensor(tensor.detach())
        if keep:
            state[name] = whole.to(device or whole.device)
    return state


@torch.no_grad()
def gather_into(model: nn.Module, target: nn.Module) -> None:
    """Copy the weights of a (sharded) model into an unsharded module on every process, one tensor at a time."""
    state = target.state_dict()
    for name, tensor in model.state_dict().items():
        state[name].copy_(whole_tensor(tensor))
