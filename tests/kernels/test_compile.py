"""The Triton kernels compiled for GPUs that are not here: that they compile at all, and what they became.

Triton carries NVIDIA's assembler and disassembler. What can be counted without a GPU is counted: spilled registers,
shared memory, the width of loads and stores, exchanges between threads inside the loop over the vocabulary. A child
process, because one that has Triton's interpreter on cannot compile.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = '''
import json, re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels.triton import advantage, decode_attention, head_loss, logprob, policy_loss

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
FLOATS = ["old_logp", "ref_logp", "advantage", "weight", "logp", "lse", "entropy", "grad", "slope", "sums", "value",
          "factor", "x", "out", "peak", "total", "cos", "sin"]
LONGS = ["targets", "ends", "steps", "tokens", "lengths", "tiles", "order"]
SCALARS = ["scale", "low", "high", "beta", "eps"]


def described(kernel, arch, constants, pointers, warps=4):
    """The machine code of a kernel for sizes that are multiples of 16, in numbers."""
    types = {n: "*fp32" for n in FLOATS} | {n: "*i64" for n in LONGS} | {n: "fp32" for n in SCALARS} | pointers
    types |= {n: "constexpr" for n in constants}
    names = kernel.arg_names
    signature = {n: types.get(n, "i32") for n in names}
    sizes = {"V", "stride", "out_stride", "entry_stride", "head_stride"}
    known = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names)
             if n in sizes or n in pointers or n in ("x", "slope", "value")}
    source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in constants.items()}, known)
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage, code = (subprocess.run([TOOL, flag, file.name], capture_output=True, text=True, check=True).stdout
                       for flag in ("--dump-resource-usage", "--dump-sass"))
    operations = re.findall(r"/[*][0-9a-f]{4,5}[*]/ +(?:@!?U?P[0-9T]+ +)?([A-Z0-9_.]+)", code)
    found = {name.lower(): int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\\d+)", usage)}
    count = lambda *starts: sum(o.startswith(starts) for o in operations)
    return found | {
        "shared": made.metadata.shared, "warps": warps,
        "wide_loads": sum("128" in o for o in operations if o.startswith(("LDG.", "LDGSTS."))),
        "wide_stores": sum(o.startswith("STG.E.128") for o in operations),
        "exchanges": count("SHFL"), "barriers": count("BAR"), "spills": count("STL", "LDL"), "size": len(operations),
    }


found = {}
for arch in map(int, sys.argv[1:]):
    for name, logits, out in (("bf16", "*bf16", "*bf16"), ("mixed", "*fp32", "*bf16"), ("fp32", "*fp32", "*fp32")):
        blocks = logprob.row_blocks(131072, 2 if out == "*bf16" else 4, **head_loss.ROW)
        warps = blocks.pop("num_warps")
        constants = dict(OLD=True, REF=True, ENTROPY=True) | blocks
        pointers = {"logits": logits, "out": out}
        found[f"policy {name} {arch}"] = described(head_loss._policy_kernel, arch, constants, pointers, warps)
    for name, logits in (("bf16", "*bf16"), ("fp32", "*fp32")):
        blocks = logprob.row_blocks(102400, 2 if name == "bf16" else 4, **logprob.READ)
        warps = blocks.pop("num_warps")
        constants = dict(ENTROPY=True) | blocks
        found[f"read {name} {arch}"] = described(logprob._read_kernel, arch, constants, {"logits": logits}, warps)
    if arch < 90:
        continue  # of the others one is enough
    constants = dict(BLOCK=4096)
    found[f"slope {arch}"] = described(logprob._slope_kernel, arch, constants, {"logits": "*bf16", "out": "*bf16"}, 8)
    constants = dict(OLD=True, REF=True, BLOCK=1024)
    found[f"loss {arch}"] = described(policy_loss._loss_kernel, arch, constants, {})
    found[f"scale {arch}"] = described(head_loss._scale_kernel, arch, dict(BLOCK=4096), {})
    rewards = {"rewards": "*fp64"}
    found[f"group {arch}"] = described(advantage._group_kernel, arch, dict(DDOF=1, STD=True, BLOCK=64), rewards)
    constants = dict(DDOF=1, ALL=256, OWN=16, BLOCK=64)
    found[f"process {arch}"] = described(advantage._process_kernel, arch, constants, rewards)
    for name, number in (("bf16", "*bf16"), ("fp32", "*fp32")):
        pointers = dict.fromkeys(("q", "keys", "values"), number)
        for kind, queries in (("own", 1), ("prompt", 64)):
            constants = decode_attention.blocks(queries, 128, 2 if name == "bf16" else 4)
            warps = constants.pop("num_warps")
            constants |= dict(PROMPT=kind == "prompt", EXACT=False)
            kernel = decode_attention._partial_kernel
            found[f"attention {kind} {name} {arch}"] = described(kernel, arch, constants, pointers, warps)
    pointers = dict.fromkeys(("qkv", "q", "keys", "values"), "*bf16")
    constants = dict(E=128, HALF=64)
    found[f"append {arch}"] = described(decode_attention._append_kernel, arch, constants, pointers, 1)
    constants = dict(E=128, WIDTH=128, SLOTS=4)
    found[f"merge {arch}"] = described(decode_attention._merge_kernel, arch, constants, {"merged": "*bf16"})
print(json.dumps(found))
'''


@pytest.fixture(scope="module")
def compiled():
    pytest.importorskip("triton")
    root = Path(__file__).parents[2]
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM, "90", "80"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


def test_every_kernel_fits(compiled):
    """No register is spilled, and the shared memory is what the smallest supported GPUs have (99 KiB)."""
    assert len(compiled) == 5 + 16
    for name, one in compiled.items():
        assert one["stack"] == one["local"] == one["spills"] == 0, name
        assert one["shared"] <= 99 << 10 and one["reg"] * 32 * one["warps"] <= 65536, (name, one)


def test_logits_move_16_bytes_at_a_time(compiled):
    for name, one in compiled.items():
        if name.startswith(("policy", "read", "slope")):
            assert one["wide_loads"] >= 2, (name, one)
        if name.startswith(("policy", "slope")):
            assert one["wide_stores"] >= 2, (name, one)


def test_keys_and_values_move_16_bytes_at_a_time(compiled):
    """Into shared memory, one block while another is worked on: keys and values of every stage and of the loop."""
    found = {name: one for name, one in compiled.items() if name.startswith("attention")}
    assert len(found) == 4
    for name, one in found.items():
        assert one["wide_loads"] >= 16, (name, one)


def test_threads_meet_only_at_the_end(compiled):
    """Three reductions (maximum, sum, entropy) of 5 exchanges in a warp and a few among warps, all behind the loop:
    were they in it, each would come twice."""
    for name, one in compiled.items():
        if name.startswith(("policy", "read")):
            assert one["exchanges"] <= 3 * (5 + 5), (name, one)
            assert one["barriers"] <= 12, (name, one)
