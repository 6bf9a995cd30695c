"""Attention of training on a CPU: ours in C++ beside PyTorch's fused one, in turn, by length of the documents.

    python bench/attention_cpu.py [--repeats 5] [--threads 2]

Rotation, attention and its gradient over 2,048 packed tokens (4,096 for the longest), as a block of the model calls
them. kernels.cpu.attention.LONGEST, from which on PyTorch's is taken, rests on this.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from data.io import run_cli
from kernels import packed_attention
from kernels.cpu import attention as cpu_attention
from model import Layout, ModelConfig, rope_table

HEADS = [(8, 4, 32), (8, 4, 64), (16, 16, 128)]  # H, K, E
LENGTHS = [32, 256, 1024, 4096]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(
        "| heads, key heads, width | documents | C++ | PyTorch | ratio | chosen |\n"
        + "| --- " * 6
        + "|"
    )
    for H, K, E in HEADS:
        for length in LENGTHS:
            layout = Layout([length] * max(1, 2048 // length))
            qkv = torch.randn(layout.tokens, H + 2 * K, E, requires_grad=True)
            slope = torch.randn(layout.tokens, H * E)
            table = rope_table(ModelConfig(2, E, 1, 1, 1, 2), length)
            seconds: dict = {cpu_attention.attention: [], packed_attention.attention: []}
            for number in range(given.repeats + 1):
                for one, found in seconds.items():
                    began = time.perf_counter()
                    torch.autograd.grad(one(qkv, table, layout, H), qkv, slope)
                    if number:  # the first is to warm up
                        found.append(time.perf_counter() - began)
            mine, theirs = (1e3 * statistics.median(found) for found in seconds.values())
            chosen = "C++" if cpu_attention.takes(qkv, table, layout, H) else "PyTorch"
            count = f"{len(layout.lengths)} of {length:,}"
            print(
                f"| {H}, {K}, {E} | {count} | {mine:.1f} ms | {theirs:.1f} ms | {theirs / mine:.2f} | {chosen} |"
            )


if __name__ == "__main__":
    run_cli(main)
