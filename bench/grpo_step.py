"""Seconds of one GRPO step at a small, fixed shape: sampling, reference and update, by phase.

    python bench/grpo_step.py [--repeats 10]

The shape: 0.6 M parameters (D 128, 3 layers, 4 heads, 2 KV heads, FFN 320, V 46) with random weights, 16 questions x 16
samples, at most 48 new tokens (EOS ends them at random: mean about 29), beta 0.04, mu 1. Rewards are random numbers, so
that no reward's own time is in the figure.
"""

import argparse
import copy
import json
import platform
import random
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runtime
from data.problems import Problem
from generate import Sampling, generate
from kernels.advantage import group_advantage
from model import ModelConfig, Transformer
from train_grpo import Config, Rollout, update


class Bytes:
    """The smallest thing that `generate` takes for a tokenizer: 46 ids, the first of them EOS."""

    eos_id, vocab_size = 0, 46


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    shape = ModelConfig(46, width=128, layers=3, heads=4, kv_heads=2, ffn=320, context=256)
    model = Transformer(shape)
    reference = copy.deepcopy(model)
    config = Config(questions=16, samples=16, max_new_tokens=48, lr=1e-6)
    world, optimizer, draw = runtime.World(), runtime.adamw(model, config.lr, (0.9, 0.95), 0.0), random.Random(0)
    rows = []
    for step in range(repeats + 2):  # two steps to warm up
        prompts = [[draw.randrange(1, 46) for _ in range(draw.randrange(15, 30))] for _ in range(16)]
        began = time.perf_counter()
        groups = generate(model, Bytes(), prompts, Sampling(16, 1.0, 1.0, 48, seed=step))
        sampled = time.perf_counter()
        rewards = torch.rand(16, 16, dtype=torch.float64)
        advantages = group_advantage(rewards).tolist()
        rollouts = [
            Rollout(Problem(str(i), "", ""), "cot", prompts[i], groups[i], rewards[i].tolist(), advantages[i])
            for i in range(16)
        ]
        update(model, optimizer, rollouts, config, reference, world)
        ended = time.perf_counter()
        tokens = sum(len(sample.ids) for group in groups for sample in group)
        rows.append({"step": ended - began, "rollout": sampled - began, "update": ended - sampled, "tokens": tokens})
    rows = rows[2:]
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    spread = max(row["step"] for row in rows) - min(row["step"] for row in rows)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{millions:.2f} M parameters, median of {repeats} steps: {median['step']:.3f} s (spread {spread:.3f}),")
    print(f"rollout {median['rollout']:.3f}, update {median['update']:.3f}; mean length {median['tokens'] / 256:.1f}")
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "machine": platform.machine()}
    print(json.dumps({**median, **machine}))


if __name__ == "__main__":
    main()
