"""A toy trainer for the tests of runtime/: small enough to train in a blink.

This file is also the program that the tests start in other processes.
It computes in float64, so that one and two processes agree after many steps too:
rounding grows with every step, and float32 leaves little room.
"""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from runtime.options import option, parse

import torch
import torch.nn.functional as F

from data.io import InputError
from model import ModelConfig, Transformer
from runtime.distributed import gather_into, setup, shard
from runtime.distributed import generator as torch_generator
from runtime.optim import Work, adamw, clip_grad_norm
from runtime.run import Run, command

ROOT = Path(__file__).parents[2]

# Uneven sizes: 5 and 7 do not divide by two processes. The head is used outside forward.
SHAPE = ModelConfig(
    7, width=5, layers=2, heads=1, kv_heads=1, ffn=7, head_width=2, qkv_bias=True, family="qwen2"
)


class ToyTokenizer:
    eos_id = None

    def save(self, directory):
        (Path(directory) / "tokenizer.json").write_text("{}")


@dataclass
class ToyConfig:
    to: str = option("", "run directory")
    steps: int = option(12, "steps")
    lr: float = option(0.05, "learning rate")
    save_every: int = option(3, "steps between checkpoints")
    keep: int = option(2, "checkpoints kept")
    # for the tests
    kill_at: int = option(0, "the step that ends in `kill_with`")
    kill_with: int = option(int(signal.SIGKILL), "signal")
    kill_rank: int = option(0, "the process that receives it")
    fail: bool = option(False, "raise an InputError")
    device: str = option("cpu", "auto, cpu or cuda")


def toy_batch(step: int):
    generator = torch_generator("batch", step)
    ids = torch.randint(0, 7, (8, 4), generator=generator)
    return ids, (3 * ids + 1) % 7


def toy_gradient(model, world, step: int) -> float:
    """Half of the batch on each of two processes, all of it on one; divided by the global count."""
    ids, targets = (part[world.rank :: world.size] for part in toy_batch(step))
    logits = model.logits(model(ids)).flatten(0, 1)
    loss = F.cross_entropy(logits, targets.flatten(), reduction="sum") / 32
    loss.backward()
    return world.all_sum(loss.item())


def toy_main(config: ToyConfig) -> None:
    world = setup(config.device)
    run = Run(config, world)
    if config.fail:
        raise InputError("data.jsonl:3: no answer")
    model = shard(Transformer(SHAPE).double(), world)
    optimizer = adamw(model, config.lr)
    start, state = run.resume(model, optimizer)
    noise = torch.Generator()
    noise.set_state(state["noise"]) if state else noise.manual_seed(1)
    for step in range(start + 1, config.steps + 1):
        run.phase("update")
        loss = toy_gradient(model, world, step)
        norm = clip_grad_norm(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] *= 0.98  # state that is not a tensor
        if step == config.kill_at and world.rank == config.kill_rank:
            os.kill(os.getpid(), config.kill_with)
        draw = torch.rand((), generator=noise).item()
        run.log(step, {"loss": loss, "norm": norm, "draw": draw}, Work(tokens=32, flops=1e4))
        run.checkpoint(step, model, ToyTokenizer(), optimizer, {"noise": noise.get_state()})
    run.finish(model, ToyTokenizer(), {"toy": True})


def grads_main(config: ToyConfig) -> None:
    """Two processes: gradients, clipping and gathering, saved by the first for comparison with one process."""
    world = setup("cpu")
    assert world.size == 2 and world.all_sum(world.rank + 1) == 3.0
    assert world.all_gather_objects(world.rank) == [0, 1]
    assert world.broadcast_object({"from": world.rank}) == {"from": 0}
    target = Transformer(SHAPE).double()
    model = shard(Transformer(SHAPE).double(), world)
    with torch.no_grad():
        model(toy_batch(0)[0])  # leaves the root whole, as a validation loss does
    toy_gradient(model, world, 1)
    toy_gradient(model, world, 2)  # a second micro-batch adds up
    grads = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    norm = clip_grad_norm(model, 0.1)
    clipped = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    optimizer = adamw(model, 0.05)
    optimizer.step()
    with torch.no_grad():
        model(toy_batch(0)[0])
    gather_into(model, target)
    mine = [weight.tolist() for weight in target.state_dict().values()]
    assert world.all_gather_objects(mine) == [mine, mine]
    if world.is_main:
        torch.save((grads, norm, clipped, target.state_dict()), Path(config.to) / "grads.pt")


def both_main(config: ToyConfig) -> None:
    """All that two processes have to show, in one start: they cost seconds. Rank 1 alone receives the signal."""
    grads_main(config)
    toy_main(config)


def start(*arguments, processes: int = 1) -> subprocess.Popen:
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        if processes > 1
        else []
    )
    command = [sys.executable, *launcher, __file__, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


def run_toy(to, *arguments) -> None:
    toy_main(parse(ToyConfig, ["--to", str(to), *arguments]))


def lines(directory, name="metrics") -> list[str]:
    path = Path(directory) / f"{name}.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


if __name__ == "__main__":
    command(both_main if "RANK" in os.environ else toy_main, ToyConfig)
