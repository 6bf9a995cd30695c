"""One step of PPO beside one of GRPO on the same completions: seconds and memory, of which PPO needs more (4.1.1).

    python bench/ppo_grpo.py [--repeats 10]

The shape is that of bench/grpo_step.py: 16 questions x 16 samples of at most 48 new tokens, beta 0.04, mu 1, rewards
that are random numbers. In every repeat the completions are sampled once, then the two learn from them in turn, each
with models of its own, the one that begins alternating. Learning is, for GRPO, advantages, a pass of the reference and
the policy's update; for PPO passes of the reference and the value model, advantages and both updates.

Bytes are counted from the tensors of a step that has been made. The models are those of figure 4: weights of policy,
reference and reward model (and value model), gradients and optimizer state of what is trained. The sampler's copy of
the policy is left out on both sides. Peak memory is that of a process of its own that makes two steps, above the most
it held when everything was imported: activations, completions and what the allocator keeps are in it.
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
from data.problems.problem import Problem
from generate import Sampling, generate
from model import ModelConfig, Transformer
from rollout import Rollout
from runtime.distributed import World
from runtime.optim import adamw

SHAPE = dict(vocab_size=46, width=128, layers=3, heads=4, kv_heads=2, ffn=320, context=256)
METHODS = ("grpo", "ppo")


class Bytes:
    """The smallest thing that `generate` takes for a tokenizer: 46 ids, the first of them EOS."""

    eos_id, vocab_size = 0, 46


class Learner:
    """A method with its models: the policy, the reference, a reward model that is only held, and PPO's value model."""

    def __init__(self, method: str):
        self.world, self.method = World(), method
        self.model, self.value = Transformer(ModelConfig(**SHAPE)), None
        self.optimizer = adamw(self.model, 1e-6, (0.9, 0.95), 0.0)
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
        """Of weights, gradients (as large as what is trained) and optimizer state."""
        trained = [one for one in (self.model, self.value) if one is not None]
        held = [*trained, self.reference, self.reward]
        optimizers = [self.optimizer] + ([self.value_optimizer] if self.value is not None else [])
        state = [
            x
            for one in optimizers
            for s in one.state.values()
            for x in s.values()
            if torch.is_tensor(x)
        ]
        weights, gradients = (
            sum(p.nbytes for one in models for p in one.parameters()) for models in (held, trained)
        )
        parts = {
            "weights": weights,
            "gradients": gradients,
            "optimizer": sum(x.nbytes for x in state),
        }
        return parts | {"all": sum(parts.values())}


def sample(model: Transformer, draw: random.Random, seed: int) -> list[Rollout]:
    prompts = [[draw.randrange(1, 46) for _ in range(draw.randrange(15, 30))] for _ in range(16)]
    groups = generate(model, Bytes(), prompts, Sampling(16, 1.0, 1.0, 48, seed=seed))
    rewards = [[draw.random() for _ in range(16)] for _ in range(16)]
    return [
        Rollout(Problem(str(i), "", ""), "cot", prompts[i], groups[i], rewards=rewards[i])
        for i in range(16)
    ]


def peak(method: str) -> None:
    """Print the bytes by which two steps of a method raise this process's peak memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    learner, draw = Learner(method), random.Random(0)
    for step in range(2):
        learner.learn(sample(learner.model, draw, step))
    print(unit * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--peak", choices=METHODS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        return peak(given.peak)
    # first of all: a process may count among its own what the one that started it held
    peaks = {
        name: subprocess.run(
            [sys.executable, __file__, "--peak", name], check=True, capture_output=True, text=True
        )
        for name in METHODS
    }
    learners, draw, rows, tokens = (
        {name: Learner(name) for name in METHODS},
        random.Random(0),
        [],
        [],
    )
    for step in range(given.repeats + 2):  # two steps to warm up
        began = time.perf_counter()
        rollouts = sample(learners["grpo"].model, draw, step)
        row = {"rollout": time.perf_counter() - began}
        for name in METHODS if step % 2 else reversed(METHODS):
            row[name] = learners[name].learn(copy.deepcopy(rollouts))
        rows.append(row)
        tokens.append(sum(len(sample.ids) for one in rollouts for sample in one.samples))
    rows = rows[2:]
    found = {}
    for name in METHODS:
        learning = [row[name] for row in rows]
        found[name] = {
            "rollout": statistics.median(row["rollout"] for row in rows),
            "learning": statistics.median(learning),
            "spread": max(learning) - min(learning),
            "step": statistics.median(row["rollout"] + row[name] for row in rows),
            "bytes": learners[name].bytes(),
            "peak": int(peaks[name].stdout),
        }

    def line(label: str, pick, unit: str, scale: float = 1.0) -> None:
        grpo, ppo = (pick(found[name]) / scale for name in METHODS)
        print(f"{label:22}{grpo:10.3f}{ppo:10.3f} {unit:3}{ppo / grpo:8.2f}")

    millions = sum(p.numel() for p in learners["grpo"].model.parameters()) / 1e6
    length = statistics.mean(tokens) / 256
    print(
        f"{millions:.2f} M parameters, mean length {length:.1f}, medians of {given.repeats} steps"
    )
    print(f"{'':22}{'GRPO':>10}{'PPO':>10}    PPO/GRPO")
    for part, label in {
        "rollout": "rollout",
        "learning": "learning",
        "spread": " (spread)",
        "step": "step",
    }.items():
        line(label, lambda one, part=part: one[part], "s")
    for part in ("weights", "gradients", "optimizer", "all"):
        line(f"memory: {part}", lambda one, part=part: one["bytes"][part], "MB", 1e6)
    line("peak of a process", lambda one: one["peak"], "MB", 1e6)
    machine = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    print(json.dumps({**found, **machine, "python": platform.python_version()}))


if __name__ == "__main__":
    main()
