"""Plumbing that a reader may skip: processes, FSDP, checkpoints, metrics, interruption, schedules.

A trainer uses it like this (every name below is explained where it is defined):

    config = parse(Config)                         defaults <- TOML files <- command line
    world = setup(config.device)                   one process, or those that torchrun started
    run = Run(config, world)                       runs/NAME: config.toml, metrics.jsonl, step_*, model, summary.json
    model = shard(model, world); optimizer = adamw(model, ...)
    start, state = run.resume(model, optimizer)
    for step in range(start + 1, config.steps + 1):
        ...; clip_grad_norm(model, config.max_grad_norm); optimizer.step()
        run.log(step, metrics, timing); run.checkpoint(step, model, tokenizer, optimizer, state)
    run.finish(model, tokenizer, {...})

A resumed run repeats the uninterrupted one bit for bit on a CPU, given the same number of processes and of threads
(sums of floats depend on how they are split): random numbers come from `seeded` or a generator saved in the state.
"""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

import kernels
from data.io import InputError, atomic_write
from kernels.cpu import compiler
from runtime.hf import save_pretrained
from runtime.options import check, local_main, parse, read_toml, to_toml, toml_value

# ---------------------------------------------------------------------------------------------------------------------
# Programs


def command(main: Callable, Config) -> None:
    """Run `main(parse(Config))` as a program: InputError is one line and exit code 2; a stop by signal 130 or 143."""
    code, message, together = 0, "", True
    try:
        main(parse(Config, description=sys.modules[main.__module__].__doc__ or ""))
    except InputError as error:
        code, message, together = 2, f"error: {error}", False
    except Interrupted as stop:
        code, message = 128 + stop.signum, str(stop)
    except KeyboardInterrupt:
        code, together = 130, False
        message = (
            "interrupted; the same command continues from the last checkpoint, if there is one"
        )
    if message and local_main():
        print(message, file=sys.stderr, flush=True)
    if (
        dist.is_initialized() and together
    ):  # otherwise some may still wait in a collective: torchrun ends them
        dist.destroy_process_group()
    if code:
        sys.exit(code)


# ---------------------------------------------------------------------------------------------------------------------
# Processes


@dataclasses.dataclass
class World:
    """The processes of a run. Every method is a collective: all processes call it, in the same order."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    local_rank: int = 0
    bf16: bool | None = None  # multiply matrices in bfloat16; None: on a GPU
    compile: bool | None = None  # fuse blocks with torch.compile; None: on a GPU

    @property
    def main(self) -> bool:
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
    reference: bool = False,
    bf16: bool | None = None,
    compile: bool | None = None,
) -> World:
    """The processes that torchrun started (gloo on CPUs, NCCL on GPUs), or this one alone. `reference` takes the
    readable path (see kernels/__init__.py) from here on. bf16, compile: see World. Raises InputError."""
    kernels.reference = reference
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
    return World(rank, size, where, local, bf16, compile)


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


def prepare(model: nn.Module, world: World, trained: bool = True) -> nn.Module:
    """How the model computes: blocks compiled, and on a CPU products in bfloat16, where the run asks for it. A copy
    that is not `trained`, a sampler's, keeps its matrices in bfloat16."""
    cpu = world.device.type == "cpu"
    if not kernels.reference and (not cpu if world.compile is None else world.compile):
        model.compile_blocks()
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
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # The root stays whole after forward: the log-prob kernel uses the LM head between forward and backward.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # a plain sum: gloo has no scaled one
    return model


def _full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that may be split over processes. A collective."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def full_state(model: nn.Module, device=None, keep: bool = True) -> dict[str, torch.Tensor]:
    """The state dict with whole tensors, on `device` (default: where they are; not copied if unsharded). A collective;
    where `keep` is false it only takes part and returns {}."""
    state = {}
    for name, tensor in model.state_dict().items():
        whole = _full(tensor.detach())
        if keep:
            state[name] = whole.to(device or whole.device)
    return state


@torch.no_grad()
def gather_into(model: nn.Module, target: nn.Module) -> None:
    """Copy the weights of a (sharded) model into an unsharded module on every process, one tensor at a time."""
    state = target.state_dict()
    for name, tensor in model.state_dict().items():
        state[name].copy_(_full(tensor))


def clip_grad_norm(model: nn.Module, max_norm: float) -> float:
    """Scale the gradients to a global norm of at most `max_norm` (0: leave them). Returns the norm before.

    Raises FloatingPointError where it is not finite: going on would write NaN into every checkpoint kept.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = _full(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"the norm of the gradient is {norm.item()}; look at the data or lower --lr"
        )
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm.item()


# ---------------------------------------------------------------------------------------------------------------------
# Optimizer, schedules, speed


def adamw(
    model: nn.Module, lr: float, betas=(0.9, 0.95), weight_decay: float = 0.1
) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices, embedding and LM head included (as LLaMA's), but not on norms and biases."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=lr, betas=betas, fused=True
    )


# Factors of the peak learning rate at `step`, which counts from 1 to `total`.


def lr_constant(step: int, warmup: int) -> float:
    """Linear warm-up, then 1."""
    return min(1.0, step / max(warmup, 1))


def lr_multistep(step: int, warmup: int, total: int) -> float:
    """The paper's schedule (2.2.1): linear warm-up, 1, then 31.6 % after 80 % of the steps and 10 % after 90 %."""
    stage = 1.0 if 10 * step <= 8 * total else 0.316 if 10 * step <= 9 * total else 0.1
    return stage * lr_constant(step, warmup)


def lr_linear_decay(step: int, warmup: int, total: int, decay: float) -> float:
    """Linear warm-up, 1, then over the last share `decay` of the steps a straight line to 0.1 at the last."""
    done = max(0.0, (step - total) / (decay * total) + 1) if decay > 0 else 0.0
    return lr_constant(step, warmup) * (1 - 0.9 * done)


_GPU_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}


@functools.cache
def peak_flops(device: torch.device) -> float:
    """Dense FLOP/s of one device: bf16 by data sheet for known GPUs, else what a matrix product reaches."""
    cuda = device.type == "cuda"
    if cuda:
        for name, peak in _GPU_PEAKS.items():
            if name in torch.cuda.get_device_name(device):
                return peak
    n, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    a, b = torch.ones(2, n, n, device=device, dtype=dtype)
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def mfu(flops_per_second: float, world: World) -> float:
    """Model FLOPs utilisation: the model's arithmetic per second, over all processes, as a share of their peak."""
    return flops_per_second / (peak_flops(world.device) * world.size)


def speed(tokens: int, flops: float, seconds: float, world: World) -> dict:
    """What every trainer writes to timing.jsonl of its optimizer steps: tokens_per_second and mfu.

    tokens: of the batch over all processes, no padding, a question with several completions counted once, each time
    the batch is learned from. flops: what the mathematics needs for them (`batch.forward_flops`): a forward, of a
    trained model a backward, twice as much. What the program does again (activations, logits, a question in several
    micro-batches) or for nothing (padding) counts in the seconds alone.
    """
    return {"tokens_per_second": tokens / seconds, "mfu": mfu(flops / seconds, world)}


def memory_limit(world: World) -> float | None:
    """Bytes that this process may hold on its GPU, but for a tenth kept free: what is free now and what it holds
    already. None on a CPU."""
    if world.device.type != "cuda":
        return None
    return 0.9 * (
        torch.cuda.mem_get_info(world.device)[0] + torch.cuda.memory_reserved(world.device)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Interruption


class Interrupted(Exception):
    """The run was asked to stop and has saved itself."""

    def __init__(self, signum: int, saved: Path):
        super().__init__(
            f"{signal.Signals(signum).name}: saved {saved}; the same command continues from there"
        )
        self.signum = signum


class Interrupt:
    """Turns the first SIGINT (Ctrl-C) or SIGTERM into a flag; a second one, later, acts as usual."""

    def __init__(self):
        self.signum, self._at, self._before = 0, 0.0, {}

    def start(self) -> "Interrupt":
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Python handles signals nowhere else
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def stop(self, *_) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    __enter__, __exit__ = start, stop

    def _handle(self, signum, frame) -> None:
        # torchrun passes on a Ctrl-C that the terminal has already sent: within two seconds it is the same one.
        if self.signum and time.monotonic() - self._at > 2:
            self.stop()
            os.kill(os.getpid(), signum)
        elif not self.signum:
            self.signum, self._at = signum, time.monotonic()
            if local_main():
                os.write(2, b"stopping after this step; once more stops at once\n")

    def requested(self, world: World) -> int:
        """The number of the signal that any process has received, or 0. A collective: all stop at the same step."""
        wanted = [float(self.signum == signum) for signum in (signal.SIGINT, signal.SIGTERM)]
        sigint, sigterm = world.all_sum(torch.tensor(wanted)).tolist()
        return signal.SIGINT if sigint else signal.SIGTERM if sigterm else 0


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints, metrics, and the run that holds them

Others = (
    dict[str, tuple[nn.Module, torch.optim.Optimizer]] | None
)  # trained beside the model: PPO's value model


class Checkpoints:
    """run_dir/step_000123/: a Hugging Face model directory with, in trainer/, what only a resume needs.

    trainer/ holds float32 weights and optimizer state as torch.distributed.checkpoint, which any number of processes
    may read, and state.pt. A directory is written under a hidden name and renamed: one that can be seen is complete.
    """

    def __init__(self, run_dir, world: World | None = None, keep: int = 2):
        self.directory, self.world, self.keep = Path(run_dir), world or World(), max(keep, 1)

    def complete(self) -> list[Path]:
        """The checkpoints, oldest first."""
        found = [path for path in self.directory.glob("step_*") if path.name[5:].isdigit()]
        return sorted(found, key=lambda path: int(path.name[5:]))

    def save(
        self,
        step: int,
        model,
        tokenizer,
        optimizer,
        state: dict | None = None,
        others: Others = None,
    ) -> Path:
        """Write a step's checkpoint and remove the oldest beyond `keep`. `state`: plain values and tensors, the same on
        every process. `others`: what else is trained, by name; it goes into trainer/ alone."""
        path = self.directory / f"step_{step:06d}"
        self.write(path, model, tokenizer, optimizer, {"step": step, **(state or {})}, others)
        if self.world.main:
            for old in self.complete()[: -self.keep]:
                _remove(old)
        return path

    def load_latest(self, model, optimizer, others: Others = None) -> tuple[int, dict] | None:
        """Load the newest checkpoint into models and optimizers: (its step, its state), or None where there is none."""
        path = self.world.broadcast_object(next(reversed(self.complete()), None))
        if path is None:
            return None
        state = self.read(path, model, optimizer, others)
        return state.pop("step"), state

    def write(
        self,
        path: Path,
        model,
        tokenizer,
        optimizer=None,
        state: dict | None = None,
        others: Others = None,
    ) -> None:
        """A model directory; with trainer/ where an optimizer or a state is given. A collective."""
        temporary = path.with_name(f".{path.name}.tmp")
        if self.world.main:
            shutil.rmtree(temporary, ignore_errors=True)
            (temporary / "trainer").mkdir(parents=True)
        self.world.barrier()
        weights = full_state(model, "cpu", keep=self.world.main)
        if self.world.main:
            save_pretrained(model, temporary, state_dict=weights, dtype=self.world.dtype)
            tokenizer.save(temporary)
        del weights
        if state is not None:
            import torch.distributed.checkpoint as dcp

            with _quiet():
                dcp.save(
                    _training_state(model, optimizer, others), checkpoint_id=temporary / "trainer"
                )
            if self.world.main:
                torch.save(state, temporary / "trainer" / "state.pt")
        self.world.barrier()
        if self.world.main:
            if state is None:
                (temporary / "trainer").rmdir()
            if path.exists():
                _remove(path)
            temporary.rename(path)
        self.world.barrier()

    def read(self, path: Path, model, optimizer=None, others: Others = None) -> dict:
        """Load what `write` put into trainer/; returns the state. Raises InputError for a damaged directory."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        try:
            tensors = _training_state(model, optimizer, others)
            with _quiet():
                dcp.load(tensors, checkpoint_id=path / "trainer")
            if optimizer is not None:
                set_optimizer_state_dict(model, optimizer, tensors["optimizer"])
            for name, (other, its_optimizer) in (others or {}).items():
                set_optimizer_state_dict(other, its_optimizer, tensors[name]["optimizer"])
            # A full unpickle, as dcp's own metadata is: resume only from runs of your own.
            return torch.load(path / "trainer" / "state.pt", map_location="cpu", weights_only=False)
        except (Exception, CheckpointException) as error:
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise InputError(
                f"{path}: not resumable ({reason[0]}); remove it to go on from the one before"
            ) from error


@contextlib.contextmanager
def _quiet():
    """Without the warning that a checkpoint is written or read by a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _training_state(model, optimizer, others: Others = None) -> dict:
    """The tensors of a resume, by name and sharded as they are; loading writes into them."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    state = {"model": model.state_dict()} | {
        name: _training_state(*pair) for name, pair in (others or {}).items()
    }
    return (
        state
        if optimizer is None
        else state | {"optimizer": get_optimizer_state_dict(model, optimizer)}
    )


def _remove(directory: Path) -> None:
    """Remove a directory that is never seen half removed."""
    hidden = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    directory.rename(hidden)
    shutil.rmtree(hidden)


class Metrics:
    """metrics.jsonl: {"step": n, ...} a line a step, alike in every repetition; timing.jsonl: what the clock says."""

    def __init__(self, run_dir, world: World, total_steps: int):
        self.directory, self.world, self.total = Path(run_dir), world, total_steps
        self.began, self.first, self.printed = time.monotonic(), None, -math.inf

    def truncate(self, step: int) -> None:
        """Drop the lines after `step`, and a half-written last one: what a resumed run will write again."""
        if not self.world.main:
            return
        for path in (self.directory / "metrics.jsonl", self.directory / "timing.jsonl"):
            if path.exists():
                whole = path.read_text(encoding="utf-8").split("\n")[:-1]
                with atomic_write(path) as file:
                    file.writelines(
                        line + "\n" for line in whole if json.loads(line)["step"] <= step
                    )

    def write(self, step: int, metrics: dict, timing: dict) -> None:
        """Append to both files and, at most once a second, print a line with the time left."""
        if not self.world.main:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        for name, row in (("metrics", metrics), ("timing", timing)):
            with open(self.directory / f"{name}.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")
        now = time.monotonic()
        self.first = max(step - 1, 0) if self.first is None else self.first
        if now - self.printed >= 1 or step >= self.total:
            self.printed = now
            shown = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
            text = "  ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()
            )
            left = (now - self.began) / max(step - self.first, 1) * max(self.total - step, 0)
            print(f"step {step}/{self.total}  {text}  | {_clock(left)} left", flush=True)

    def summary(self, values: dict) -> None:
        """Write summary.json."""
        if self.world.main:
            with atomic_write(self.directory / "summary.json") as file:
                json.dump(values, file, indent=2)

    def rows(self, name: str = "metrics") -> list[dict]:
        path = self.directory / f"{name}.jsonl"
        return (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if path.exists()
            else []
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class Run:
    """The run directory `config.to` of one trainer. `config` also has steps (and iterations), save_every and keep.

    Raises InputError where the directory holds a run with other options, but for those that do not change its results
    and for a larger number of steps.
    """

    FREE = (
        "keep",
        "save_every",
        "device",
        "max_rows",
        "keep_rollouts",
        "to",
        "patience",
        "reference",
        "compile",
        "activation_checkpointing",
    )

    def __init__(self, config, world: World):
        check(config)
        self.config, self.world, self.directory = config, world, Path(config.to)
        self.total = config.steps * getattr(config, "iterations", 1)
        self.checkpoints = Checkpoints(self.directory, world, config.keep)
        self.metrics = Metrics(self.directory, world, self.total)
        self.interrupt = Interrupt()
        self._check_config()

    def _check_config(self) -> None:
        path = self.directory / "config.toml"
        if not path.exists() or not (
            self.checkpoints.complete() or (self.directory / "rollouts").exists()
        ):
            return  # nothing here yet that the options have shaped
        before, now = read_toml(path), tomllib.loads(to_toml(self.config))
        grows = (
            "iterations" if getattr(self.config, "iterations", 1) > 1 else "steps"
        )  # else an iteration's own length
        for name, value in now.items():
            old = before.get(name, value)
            if old != value and name not in self.FREE and not (name == grows and value > old):
                change = f"{name} was {toml_value(old)}, now {toml_value(value)}"
                raise InputError(f"{path}: {change}; give the same value, or another --to")

    def say(self, text: str) -> None:
        if self.world.main:
            print(text, flush=True)

    def checkpointing(self, stage: str, shape) -> bool:
        """Whether blocks compute their activations again in the backward: what the option says or, where it is None, on
        a GPU whose memory a step would not fit without, by tools/plan.py's count; then a line says so. Kept in the config.

        shape: the model's ModelConfig; stage: the trainer's name in tools/plan.py. A collective.
        """
        if self.config.activation_checkpointing is None:
            self.config.activation_checkpointing = False
            if (limit := memory_limit(self.world)) is not None:
                from tools import plan  # it imports the trainers

                needed = plan.learning_peak(stage, self.config, shape, self.world.size)
                on = self.world.all_sum(float(needed > limit)) > 0  # the same on every process
                self.config.activation_checkpointing = on
                why = f"without it a step takes {needed / 1e9:.1f} GB, by tools/plan.py, of {limit / 1e9:.1f} GB"
                self.say(f"activation checkpointing {'on' if on else 'off'}: {why}")
        return self.config.activation_checkpointing

    def resume(self, model, optimizer, others: Others = None) -> tuple[int, dict]:
        """(last finished step, its state) with models and optimizers as they were then; (0, {}) at the start.

        From here on Ctrl-C and SIGTERM are answered by `checkpoint`.
        """
        found = self.checkpoints.load_latest(model, optimizer, others)
        step, state = found or (0, {})
        self.metrics.truncate(step if found else -1)
        if self.world.main:
            with atomic_write(self.directory / "config.toml") as file:
                file.write(to_toml(self.config))
        if found:
            self.say(f"{self.directory}: continuing after step {step} of {self.total}")
        self.interrupt.start()
        return step, state

    def log(self, step: int, metrics: dict, timing: dict) -> None:
        self.metrics.write(step, metrics, timing)

    def checkpoint(
        self,
        step: int,
        model,
        tokenizer,
        optimizer,
        state: dict | None = None,
        others: Others = None,
    ) -> None:
        """Save every `save_every` steps, at the last one, and when asked to stop: then it raises Interrupted."""
        signum = self.interrupt.requested(self.world)
        if signum or step % self.config.save_every == 0 or step == self.total:
            path = self.checkpoints.save(step, model, tokenizer, optimizer, state, others)
            if signum:
                self.interrupt.stop()
                raise Interrupted(signum, path)

    def save_reference(self, iteration: int, model, tokenizer) -> None:
        """Keep the policy at the start of an outer iteration, exactly, as reference_I/. The one before stays too, and
        those of the iterations that the checkpoints are in: a run resumed from one needs its reference."""
        self.checkpoints.write(
            self.directory / f"reference_{iteration}", model, tokenizer, state={}
        )
        if self.world.main:
            needed = {
                int(path.name[5:]) // self.config.steps for path in self.checkpoints.complete()
            }
            for old in self.directory.glob("reference_*"):
                if (number := int(old.name[10:])) < iteration - 1 and number not in needed:
                    _remove(old)

    def load_reference(self, iteration: int, reference) -> None:
        self.checkpoints.read(self.directory / f"reference_{iteration}", reference)

    def finish(self, model, tokenizer, values: dict) -> None:
        """Write the result: model/ and summary.json (steps, seconds, last metrics, and `values`)."""
        self.interrupt.stop()
        self.checkpoints.write(self.directory / "model", model, tokenizer)
        last = (self.metrics.rows() or [{}])[-1]
        seconds = sum(row.get("seconds", 0.0) for row in self.metrics.rows("timing"))
        self.metrics.summary({"steps": self.total, "seconds": seconds, "metrics": last, **values})
        self.say(f"wrote {self.directory / 'model'} ({self.total} steps, {_clock(seconds)})")
