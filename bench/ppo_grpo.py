"""A step of PPO beside a step of GRPO on the same completions: seconds and memory (4.1.1).

    python bench/ppo_grpo.py [--repeats 10]

The shape is that of bench/grpo_step.py: 16 questions x 16 samples of at most 48 new tokens, beta
0.04, mu 1, random rewards. Every repeat samples once; then both learn from the same completions in
turn, each with its own models. Learning is, for GRPO, advantages, a pass of the reference and the
update; for PPO, passes of the reference and the value model, advantages and both updates.

Bytes are counted from the tensors after a step. The models are those of figure 4: weights of
policy, reference and reward model (and value model), gradients and optimizer state of what is
trained. The sampler's copy of the policy is left out on both sides. Peak memory is that of a
process that makes two steps, above what it held after its imports.
"""

import argparse
import copy
import json
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train_grpo
import train_ppo
from batch import pack_rollouts, token_logprobs
from data.io import CommandParser, at_least, run_cli
from data.problems.problem import Problem
from generate import Sampling, generate
from model import ModelConfig, Transformer
from rollout import Rollout
from runtime.distributed import World, use_kernels
from runtime.optim import adamw

SHAPE = dict(vocab_size=46, width=128, layers=3, heads=4, kv_heads=2, ffn=320, context=256)
METHODS = ("grpo", "ppo")


class Ids:
    """The least that `generate` needs of a tokenizer: 46 ids, the first is EOS."""

    eos_id, vocab_size = 0, 46


class Learner:
    """A method with its models. The reward model is only held in memory."""

    def __init__(self, method: str):
        self.world, self.method = World(), method
        self.model, self.value = Transformer(ModelConfig(**SHAPE)), None
        self.optimizer = adamw(self.model, 1e-6, (0.9, 0.95), 0.0)
        use_kernels(self.model.config, self.world)
        if method == "ppo":
            self.config = train_ppo.Config(max_new_tokens=48)
            self.value = Transformer(ModelConfig(**SHAPE, score="value"))
            self.value_optimizer = adamw(self.value, 1e-5, (0.9, 0.95), 0.0)
        else:
            self.config = train_grpo.Config(max_new_tokens=48)
        self.reference = copy.deepcopy(self.model)
        self.reward = Transformer(ModelConfig(**SHAPE, score="outcome"))

    def learn(self, rollouts: list[Rollout]) -> float:
        """One step's learning from the rollouts; returns its seconds."""
        began = time.perf_counter()
        if self.method == "grpo":
            for one in rollouts:
                one.advantages = train_grpo.advantages(one, self.config)
            micro_batches = pack_rollouts(rollouts, self.config.micro_tokens, self.world)
            train_grpo.set_weights(micro_batches, rollouts, self.config)
            with torch.no_grad():
                for micro in micro_batches:
                    logp, _ = token_logprobs(self.reference, micro, self.config.temperature)
                    micro.ref_logp = logp
            train_grpo.update(self.model, self.optimizer, micro_batches, self.config, self.world)
        else:
            train_ppo.assess(self.config, rollouts, self.reference, self.value, self.world)
            train_ppo.estimate(self.config, rollouts)
            pairs = self.model, self.optimizer, self.value, self.value_optimizer
            train_ppo.update(*pairs, rollouts, self.config, self.world)
        return time.perf_counter() - began

    def bytes(self) -> dict[str, int]:
        """Bytes of weights, gradients (as large as what is trained) and optimizer state."""
        trained = [self.model, *([self.value] if self.value else [])]
        optimizers = [self.optimizer, *([self.value_optimizer] if self.value else [])]
        state = 0
        for optimizer in optimizers:
            for values in optimizer.state.values():
                state += sum(x.nbytes for x in values.values() if torch.is_tensor(x))
        gradients = bytes_of(trained)
        weights = gradients + bytes_of([self.reference, self.reward])
        parts = {"weights": weights, "gradients": gradients, "optimizer": state}
        return parts | {"all": sum(parts.values())}


def bytes_of(models: list[Transformer]) -> int:
    return sum(p.nbytes for model in models for p in model.parameters())


def sample(model: Transformer, draw: random.Random, seed: int) -> list[Rollout]:
    """256 completions with random rewards."""
    prompts = []
    for _ in range(16):
        length = draw.randrange(15, 30)
        prompts.append([draw.randrange(1, 46) for _ in range(length)])
    groups = generate(model, Ids(), prompts, Sampling(16, 1.0, 1.0, 48, seed=seed))
    rollouts = []
    for i in range(16):
        rewards = [draw.random() for _ in range(16)]
        problem = Problem(str(i), "", "")
        rollouts.append(Rollout(problem, "cot", prompts[i], groups[i], rewards=rewards))
    return rollouts


def peak(method: str) -> None:
    """Print the bytes by which two steps of a method raise this process's peak memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    learner, draw = Learner(method), random.Random(0)
    for step in range(2):
        learner.learn(sample(learner.model, draw, step))
    print(unit * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def measure(repeats: int) -> tuple[dict[str, Learner], list[dict], float]:
    """(the learners, seconds of each step, mean length of the completions)."""
    learners = {name: Learner(name) for name in METHODS}
    draw, rows, tokens = random.Random(0), [], []
    for step in range(repeats + 2):
        began = time.perf_counter()
        rollouts = sample(learners["grpo"].model, draw, step)
        row = {"rollout": time.perf_counter() - began}
        for name in METHODS if step % 2 else reversed(METHODS):
            row[name] = learners[name].learn(copy.deepcopy(rollouts))
        rows.append(row)
        for rollout in rollouts:
            tokens += [len(one.ids) for one in rollout.samples]
    return learners, rows[2:], statistics.mean(tokens)  # two steps to warm up


def main() -> None:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=at_least(1), default=10)
    parser.add_argument("--peak", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        return peak(options.peak)

    # peaks first: a process may count what its parent holds
    peaks = {}
    for name in METHODS:
        command = [sys.executable, __file__, "--peak", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[name] = int(done.stdout.split()[-1])  # after what the run says

    learners, rows, length = measure(options.repeats)
    found = {}
    for name in METHODS:
        learning = [row[name] for row in rows]
        found[name] = {
            "rollout": statistics.median(row["rollout"] for row in rows),
            "learning": statistics.median(learning),
            "spread": max(learning) - min(learning),
            "step": statistics.median(row["rollout"] + row[name] for row in rows),
            "bytes": learners[name].bytes(),
            "peak": peaks[name],
        }

    def line(label: str, grpo: float, ppo: float, unit: str) -> None:
        ratio = f"{ppo / grpo:8.2f}" if grpo else ""
        print(f"{label:22}{grpo:10.3f}{ppo:10.3f} {unit:3}{ratio}")

    grpo, ppo = found["grpo"], found["ppo"]
    millions = sum(p.numel() for p in learners["grpo"].model.parameters()) / 1e6
    print(
        f"{millions:.2f} M parameters, mean length {length:.1f}, medians of {options.repeats} steps"
    )
    print(f"{'':22}{'GRPO':>10}{'PPO':>10}    PPO/GRPO")
    for part in ("rollout", "learning", "spread", "step"):
        line(part, grpo[part], ppo[part], "s")
    for part in ("weights", "gradients", "optimizer", "all"):
        line(f"memory: {part}", grpo["bytes"][part] / 1e6, ppo["bytes"][part] / 1e6, "MB")
    line("peak of a process", grpo["peak"] / 1e6, ppo["peak"] / 1e6, "MB")
    machine = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    print(json.dumps({**found, **machine}))


if __name__ == "__main__":
    run_cli(main)
