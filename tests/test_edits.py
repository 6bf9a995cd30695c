"""What a student edits is what runs: definitions are edited one at a time in a copy of the code, and train_grpo is run.

For each edit, two steps give the metrics and the weights of `--kernels plain`, they differ from the run of the code as
it is, and a line names what was edited and what was set aside. On a CPU the accelerators are those in C++ and PyTorch;
the loss, the advantages and the log-probs are also run in Triton's interpreter.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from training import ROOT, options

from runtime.hf import from_pretrained

# Two runs in one process, fast and plain. argv: the directory of the runs, then the options.
PROGRAM = """
import sys
import torch
import train_grpo
from runtime.options import parse

torch.set_num_threads(1)
to, *given = sys.argv[1:]
for kernels in ("fast", "plain"):
    config = parse(train_grpo.Config, [*given, "--to", f"{to}/{kernels}", "--kernels", kernels])
    train_grpo.main(config)
"""


@dataclass
class Edit:
    """A piece of a definition, which stands once in its file, and what it becomes."""

    file: str
    old: str
    new: str
    definition: str  # named in the line that the run prints
    options: dict = field(default_factory=dict)


GRPO, MODEL = "train_grpo.py", "model.py"
TIGHT = dict(clip_low=1e-5, clip_high=1e-5)  # it binds at the small rate of these runs
PROCESS = dict(reward="process_model", supervision="process")
EDITS = {
    "no clip": Edit(
        GRPO,
        "clipped = ratio.clamp(1 - low, 1 + high)",
        "clipped = ratio",
        "train_grpo.grpo_loss",
        TIGHT,
    ),
    "no KL": Edit(
        GRPO,
        "loss = weight * (beta * kl - objective)",
        "loss = weight * -objective",
        "train_grpo.grpo_loss",
    ),
    "k2 for k3": Edit(
        GRPO,
        "return k3.where(d.abs() > 0.01, d * d * series)",
        "return d * d / 2",
        "train_grpo.kl_estimate",
    ),
    "ratio of sequences": Edit(
        GRPO,
        "ratio = bounded(logp - old_logp).exp()",
        "ratio = (logp - old_logp).mean().exp().detach() * (logp - logp.detach()).exp()",
        "train_grpo.grpo_loss",
    ),
    "advantage without std": Edit(
        GRPO,
        "advantage = advantage / (std + eps)",
        "advantage = advantage / 1.0",
        "train_grpo.group_advantage",
    ),
    "process advantage centered again": Edit(
        GRPO,
        "result.append(backward.flip(0).float())",
        "result.append((backward.flip(0) - backward.mean()).float())",
        "train_grpo.process_advantage",
        PROCESS,
    ),
    "weights of all tokens alike": Edit(
        GRPO,
        "return mask.float() / divisor",
        "return mask.float() / tokens",
        "train_grpo.token_weights",
    ),
    "another eps of RMSNorm": Edit(
        MODEL, "keepdim=True) + eps)", "keepdim=True) + eps + 1e-6)", "model.rms_norm"
    ),
    "another base of RoPE": Edit(
        MODEL,
        "* theta **",
        "* (2 * theta) **",
        "model.rope_frequencies",
    ),
    "GELU for SwiGLU": Edit(MODEL, "F.silu(gate)", "F.gelu(gate)", "model.swiglu"),
    "another scale of attention": Edit(
        MODEL, "keys) / math.sqrt(qkv.shape[2])", "keys) / qkv.shape[2]", "model.attention"
    ),
    "attention with a window": Edit(
        MODEL,
        "device=qkv.device).tril(S - L)",
        "device=qkv.device).tril(S - L).triu(S - L - 5)",
        "model.attention",
    ),
    "log-probs without temperature": Edit(
        "batch.py", "head.to(dtype).T / temperature", "head.to(dtype).T", "batch.logprobs"
    ),
    "a cached step that skips a layer": Edit(
        MODEL,
        "zip(self.layers, cache.keys, cache.values, strict=True)",
        "zip(self.layers[1:], cache.keys[1:], cache.values[1:], strict=True)",
        "model.Transformer.decode",
    ),
}
IN_TRITON = [
    "no clip",
    "no KL",
    "k2 for k3",
    "ratio of sequences",
    "advantage without std",
    "process advantage centered again",
    "log-probs without temperature",
]


def copy_of_the_code(folder: Path) -> Path:
    """The program files, without tests and documents."""
    folder.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for name in ("kernels", "runtime", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def train(code: Path, root: Path, to: Path, changes: dict, triton: bool = False) -> str:
    """Two steps of GRPO with the code in a folder, fast and plain; returns what was printed.

    The rate is so small that no sign of a rounding error moves a weight by more than the test allows.
    """
    given = dict(formats="cot", iterations=1, steps=2, save_every=100, valid="", warmup=0)
    given |= dict(lr=1e-6, beta=2.0, temperature=0.7)
    given |= dict(questions=3, micro_tokens=2000)
    if changes.get("reward") == "process_model":
        given |= dict(reward_model=root / "process")
    words = options("grpo", root, to, **(given | changes))
    at = words.index("--to")
    words = words[:at] + words[at + 2 :]
    environment = {**os.environ, "PYTHONPATH": str(code), "TRITON_INTERPRET": str(int(triton))}
    command = [sys.executable, "-c", PROGRAM, str(to), *words]
    done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def results(run: Path) -> tuple[list[dict], dict[str, torch.Tensor]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], from_pretrained(run / "model").state_dict()


def assert_same(fast: Path, plain: Path) -> None:
    """Metrics and weights, to 1e-5; of clip_fraction, a count, a few tokens may lie on the very edge of the clip."""
    (rows, weights), (plain_rows, plain_weights) = results(fast), results(plain)
    assert len(rows) == len(plain_rows) == 2
    for row, other in zip(rows, plain_rows, strict=True):
        assert row.pop("clip_fraction") == pytest.approx(other.pop("clip_fraction"), abs=0.05)
        assert row == pytest.approx(other, rel=1e-5, abs=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, plain_weights[name], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def unedited(tiny, tmp_path_factory):
    """unedited(options, triton): the runs of the code as it is, and what they printed."""
    found = {}

    def run(changes: dict, triton: bool) -> tuple[Path, str]:
        key = str(changes), triton
        if key not in found:
            folder = tmp_path_factory.mktemp("unedited")
            code = copy_of_the_code(folder / "code")
            found[key] = folder, train(code, tiny.root, folder, changes, triton)
        return found[key]

    return run


CASES = [(name, False) for name in EDITS] + [(name, True) for name in IN_TRITON]


@pytest.mark.parametrize("name, triton", CASES)
def test_an_edit_is_what_runs(name, triton, tiny, unedited, tmp_path):
    if triton:
        pytest.importorskip("triton")
    edit = EDITS[name]
    before, said = unedited(edit.options, triton)
    assert "was edited" not in said
    assert_same(before / "fast", before / "plain")

    code = copy_of_the_code(tmp_path / "code")
    text = (code / edit.file).read_text(encoding="utf-8")
    assert text.count(edit.old) == 1, f"{edit.file} has this {text.count(edit.old)} times"
    (code / edit.file).write_text(text.replace(edit.old, edit.new), encoding="utf-8")
    said = train(code, tiny.root, tmp_path, edit.options, triton)

    lines = [line for line in said.splitlines() if "was edited" in line]
    assert any(f"{edit.definition} was edited" in line for line in lines), said
    assert_same(tmp_path / "fast", tmp_path / "plain")
    for kernels in ("fast", "plain"):
        rows, _ = results(tmp_path / kernels)
        assert rows != results(before / kernels)[0], "the edit changed nothing"
