"""Prove the accelerators, then record the fingerprints of the definitions that they repeat.

    python -m kernels             numbers for several shapes, then tests/kernels (minutes)
    python -m kernels --numbers   numbers alone (seconds)

Run it after an edit of a definition and of its accelerators. Where definition and accelerator disagree, it says where,
records nothing and ends with exit code 1. Without a GPU, Triton's interpreter runs the Triton kernels.
"""

import argparse
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

import kernels
from kernels import Setting, small

# Files with definitions.
DEFINED = (
    "model",
    "batch",
    "generate",
    "train_pretrain",
    "train_sft",
    "train_reward",
    "train_grpo",
    "train_dpo",
    "train_ppo",
)


def settings() -> Iterator[Setting]:
    """Shapes of every family, tied or not, in float32 and with products in bfloat16."""
    from presets import preset

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = preset("1m", 2048)
    families = {
        "llama": dict(head_width=32, rope_scaling={"rope_type": "linear", "factor": 2.0}),
        "qwen2": dict(head_width=64, qkv_bias=True, norm_eps=1e-5),
        "qwen3": dict(head_width=128, qk_norm=True, rope_theta=1e6, heads=8, kv_heads=1),
    }
    for family, changes in families.items():
        for tied in (True, False):
            for bf16 in (False, True):
                one = replace(shape, family=family, tied=tied, **changes)
                yield Setting(one, device, bf16)
    yarn = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
    yarn |= dict(beta_fast=8.0, beta_slow=1.0, truncate=True, attention_factor=1.2)
    kinds = ["nope", "full"]
    yield Setting(replace(shape, family="smollm3", layer_kinds=kinds, rope_scaling=yarn), device)
    olmo = dict(qk_norm=True, post_norm=True, rope_scaling=yarn)
    for window in (8, 4096):  # it hides tokens of the cases, or none
        olmo |= dict(layer_kinds=["sliding", "full"], window=window)
        yield Setting(replace(shape, family="olmo3", **olmo), device)


def numbers() -> list[str]:
    """Accelerators whose numbers are wrong, a line each."""
    wrong, seen = [], set()
    for setting in settings():
        setting = replace(setting, shape=small(setting.shape))
        for one in kernels.accelerators:
            slow = "triton" in one.name and setting.device.type == "cpu"  # the interpreter: once
            if one.computes not in kernels.definitions or (slow and one.name in seen):
                continue
            seen.add(one.name)
            if one.available(setting.device) is True and (why := kernels._wrong(one, setting)):
                wrong.append(why)
    return list(dict.fromkeys(wrong))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", action="store_true", help="leave out the tests")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported
    for name in DEFINED:
        importlib.import_module(name)
    wrong = list(kernels.load().values()) or numbers()
    print(*wrong, sep="\n", end="\n" if wrong else "")
    if wrong:
        return 1
    # The tests refuse accelerators that are set aside: they run with the new fingerprints.
    before = kernels.FINGERPRINTS.read_text()
    recorded = kernels.record()
    if not given.numbers:
        tests = Path(__file__).parents[1] / "tests" / "kernels"
        environment = {**os.environ, "TRITON_INTERPRET": "0"}
        command = [sys.executable, "-m", "pytest", "-q", str(tests)]
        if subprocess.run(command, env=environment).returncode:
            kernels.FINGERPRINTS.write_text(before)
            return 1
    print(f"recorded {len(recorded)} accelerators in {kernels.FINGERPRINTS.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
