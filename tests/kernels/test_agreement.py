"""When an accelerator may stand in for a definition: unedited always, wrong or edited never."""

import functools
import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import batch
import kernels
import model
import train_grpo
from kernels import Setting
from kernels.__main__ import settings
from kernels.decoding import is_plain
from kernels.fingerprint import NoSource, _text, expand
from model import Layout, ModelConfig, Transformer
from presets import preset

ROOT = Path(__file__).parents[2]
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
YARN |= dict(beta_fast=8.0, beta_slow=1.0, truncate=True, attention_factor=1.2)
OLMO = dict(family="olmo3", qk_norm=True, post_norm=True, rope_scaling=YARN)
LAYOUT = [9, 5, 1, 12, 20, 1, 16], [-1, 0, 0, 0, -1, 4, -1]  # questions with completions, 64 tokens


@pytest.mark.parametrize("setting", list(settings()), ids=str)
def test_unedited_nothing_is_set_aside(setting):
    kernels._right.clear()
    began = time.process_time()
    choice = kernels.use("fast", setting)
    assert not choice.set_aside
    assert {"model.attention", "batch.logprobs", "train_grpo.policy_loss"} <= choice.in_use.keys()
    assert time.process_time() - began < 3  # 0.2 seconds


def test_the_record_is_of_the_code_as_it_is():
    """In a process of its own: other tests of this one may have loaded more or less."""
    program = """
import sys, kernels, kernels.__main__ as main, importlib
for name in main.DEFINED:
    importlib.import_module(name)
kernels.load()
import json
recorded = json.loads(kernels.FINGERPRINTS.read_text())
for one in kernels.accelerators:
    if one.computes in kernels.definitions:
        assert not kernels._edited(one.stands_for, recorded.get(one.name, {})), one.name
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"record it with: python -m kernels\n{done.stderr}"


@pytest.mark.parametrize(
    "changes",
    [
        dict(family="llama", rope_scaling={"rope_type": "linear", "factor": 2.0}),
        dict(family="qwen2", qkv_bias=True, tied=True, kv_heads=4),
        dict(family="qwen3", qk_norm=True, head_width=32),
        dict(family="smollm3", layer_kinds=["full", "nope"], rope_scaling=YARN),
        dict(layer_kinds=["sliding", "full"], window=8, **OLMO),  # shorter than the segments
        dict(layer_kinds=["sliding", "full"], window=99, **OLMO),
    ],
)
def test_a_model_learns_as_by_definitions(changes):
    """Hidden states and all gradients of a small model, with segments that share a parent."""
    shape = dict(vocab_size=50, width=64, layers=2, heads=4, kv_heads=2, ffn=96) | changes
    ids = torch.randint(50, (64,), generator=torch.Generator().manual_seed(0))
    upstream = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    found = []
    for mode in ("plain", "fast"):
        kernels.use(mode, Setting(ModelConfig(**shape)))
        one = Transformer(ModelConfig(**shape), seed=3)
        hidden = one(ids, Layout(*LAYOUT))
        (hidden * upstream).sum().backward()
        found.append([hidden, *(p.grad for p in one.parameters() if p.grad is not None)])
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=0, atol=2e-5 * plain.abs().max().item())


def test_an_edit_takes_effect(monkeypatch):
    """A definition that was replaced is what runs, and a line names what was set aside."""

    before = model.rms_norm.definition

    def rms_norm(x, weight, eps):
        return 2 * before(x, weight, eps)

    edited = kernels.definition(rms_norm)
    monkeypatch.setitem(kernels.definitions, "model.rms_norm", rms_norm)
    monkeypatch.setattr(model, "rms_norm", edited)
    choice = kernels.use("fast", Setting(preset("1m", 300)))
    aside = choice.set_aside["kernels.cpu.block.rms_norm"]
    assert "model.rms_norm was edited: running model.rms_norm as it stands" in aside
    assert "model.rms_norm" not in choice.in_use and "model.attention" in choice.in_use


def test_code_without_source_takes_effect(monkeypatch):
    space = {}
    exec("def kl_estimate(logp, ref_logp): return (ref_logp - logp) ** 2 / 2", space)
    monkeypatch.setattr(train_grpo, "kl_estimate", space["kl_estimate"])
    choice = kernels.use("fast", Setting(preset("1m", 300)))
    assert "no source" in choice.set_aside["kernels.head_loss.grpo"]
    assert "batch.logprobs" in choice.in_use


def test_a_model_that_is_wrong_as_a_whole_runs_by_definitions(monkeypatch):
    """Each accelerator agrees on its cases, and a block hands one of them something else."""
    real = model.Block.before

    def before(self, x):
        return real(self, x) if not kernels._table else 1.01 * real(self, x)

    monkeypatch.setattr(model.Block, "before", before)
    monkeypatch.setattr(kernels, "_right", set())
    choice = kernels.use("fast", Setting(preset("1m", 300)))
    assert "a small model is off by" in choice.set_aside["model"]
    assert not [name for name in choice.in_use if name.startswith("model.")]
    assert "batch.logprobs" in choice.in_use


@pytest.mark.parametrize("wrong", ["value", "gradient", "nan", "crash"])
def test_wrong_numbers_are_found(wrong, monkeypatch):
    one = next(a for a in kernels.accelerators if a.name == "kernels.logprob.logprobs")
    right = one.function

    def spoiled(*args):
        logp, entropy = right(*args)
        if wrong == "crash":
            raise OSError("a driver fails")
        if wrong == "gradient":
            return 2 * logp - logp.detach(), entropy
        return logp * (1.001 if wrong == "value" else torch.nan), entropy

    spoiled.__module__, spoiled.__qualname__ = right.__module__, right.__qualname__
    monkeypatch.setattr(one, "function", spoiled)
    monkeypatch.setattr(kernels, "_right", set())
    monkeypatch.setattr(kernels, "_failed", {})
    choice = kernels.use("fast", Setting(preset("1m", 300)))
    assert list(choice.set_aside) == [one.name]
    assert "batch.logprobs" not in choice.in_use
    expected = "a driver fails" if wrong == "crash" else "is off by"
    assert expected in choice.set_aside[one.name]


def test_plain_and_without():
    setting = Setting(preset("1m", 300))
    assert kernels.use("plain", setting).in_use == {} and not kernels._table
    fast = kernels.use("fast", setting)
    name = "kernels.cpu.attention.attention"
    fewer = kernels.use("fast", setting, without=[name])
    assert name not in fewer.in_use["model.attention"]
    if name in fast.in_use["model.attention"]:
        assert kernels._table["model.attention"][0].name == "kernels.packed_attention.attention"
    with kernels.plain():
        assert not kernels._table
    assert kernels._table


def test_each_line_is_said_once(monkeypatch):
    monkeypatch.setattr(kernels, "_said", set())
    choice = kernels.use("fast", Setting(preset("1m", 300)))
    assert choice.news()[-1].startswith("accelerators: ") and not choice.news()
    kernels.begin()
    assert choice.news(), "the next run of the process says it again"


def test_a_function_around_a_definition_takes_effect(monkeypatch):
    """functools.wraps copies the attributes of a definition, and does not make it one."""
    old = train_grpo.grpo_loss

    @functools.wraps(old)
    def doubled(*args, **kwargs):
        loss, sums = old(*args, **kwargs)
        return 2 * loss, sums

    monkeypatch.setattr(train_grpo, "grpo_loss", doubled)
    choice = kernels.use("fast", Setting(preset("1m", 300)))
    assert "train_grpo.grpo_loss was edited" in choice.set_aside["kernels.head_loss.grpo"]


def test_a_line_names_what_was_replaced(monkeypatch):
    def my_estimate(logp, ref_logp):
        return train_grpo.bounded(ref_logp - logp)

    monkeypatch.setattr(train_grpo, "kl_estimate", my_estimate)
    choice = kernels.use("fast", Setting(preset("1m", 300)))
    assert "train_grpo.kl_estimate was edited" in choice.set_aside["kernels.head_loss.grpo"]


def test_code_is_compared_with_its_file(tmp_path, monkeypatch):
    """A file may change before the code is loaded again, and after it was read once."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "some_loss.py"
    file.write_text("def loss(x):\n    return x\n")
    module = importlib.import_module("some_loss")
    before = expand("some_loss.loss")
    file.write_text("def loss(x):\n    return 2 * x\n")
    with pytest.raises(NoSource, match="changed since"):
        expand("some_loss.loss")
    importlib.invalidate_caches()
    for compiled in tmp_path.glob("__pycache__/*"):  # its time has no more than a second's digits
        compiled.unlink()
    importlib.reload(module)
    assert expand("some_loss.loss") != before


def test_decorated_functions_and_sets(tmp_path, monkeypatch):
    """What a library's decorator wraps counts; a set reads the same in every process."""
    monkeypatch.syspath_prepend(tmp_path)
    text = "import functools\n\n@functools.cache\ndef loss(x):\n    return x\n"
    (tmp_path / "cached_loss.py").write_text(text)
    importlib.import_module("cached_loss")
    assert len(expand("cached_loss.loss")) == 2
    assert _text({"b", "a"}) == "{'a', 'b'}"


class Separate(Layout):
    """No segment sees its parent."""

    def segments(self):
        return [(own, slice(0)) for own, _ in super().segments()]


def changed_layouts():
    layout = Layout(*LAYOUT)
    layout.positions = layout.positions * 2
    yield layout
    layout = Layout(*LAYOUT)
    layout.segments = functools.partial(Separate.segments, Separate(*LAYOUT))
    yield layout
    yield Separate(*LAYOUT)


@pytest.mark.parametrize("layout", list(changed_layouts()))
def test_a_layout_of_ones_own_is_what_runs(layout):
    shape = ModelConfig(vocab_size=50, width=64, layers=2, heads=4, kv_heads=2, ffn=96)
    kernels.use("fast", Setting(shape))
    qkv = torch.randn(64, 8, 16, generator=torch.Generator().manual_seed(0))
    for rope in (model.rope_table(shape, 99), model.rope_table(shape, 99).double()):
        found = model.attention(qkv, rope, layout, 4)
        expected = model.attention.definition(qkv, rope, layout, 4)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


CHANGES = {
    "eps": lambda one: setattr(one.norm, "eps", 0.5),
    "forward": lambda one: setattr(one.layers[0].mlp, "forward", torch.relu),
    "logits": lambda one: setattr(one, "logits", torch.relu),
    "hook": lambda one: one.layers[0].mlp.register_forward_hook(print),
    "bias": lambda one: setattr(one.layers[0].mlp.down, "bias", torch.nn.Parameter(torch.ones(64))),
    "largest norm": lambda one: setattr(one.embed, "max_norm", 0.1),
    "one matrix in bfloat16": lambda one: setattr(
        one.layers[0].mlp.down, "multiply", torch.bfloat16
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_decoder_takes_plain_models_alone(change):
    one = Transformer(ModelConfig(vocab_size=50, width=64, layers=2, heads=4, kv_heads=2, ffn=96))
    assert is_plain(one)
    CHANGES[change](one)
    assert not is_plain(one)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_weight_of_another_type_is_read_as_it_is(dtype):
    kernels.use("fast", Setting(preset("1m", 300)))
    x, weight = torch.randn(3, 64), torch.ones(64, dtype=dtype)
    expected = model.rms_norm.definition(x, weight, 1e-6)
    torch.testing.assert_close(model.rms_norm(x, weight, 1e-6), expected)


def test_a_temperature_can_learn():
    kernels.use("fast", Setting(preset("1m", 300)))
    temperature = torch.tensor(0.7, requires_grad=True)
    hidden, head = torch.randn(5, 8), torch.randn(20, 8)
    batch.logprobs(hidden, head, torch.arange(5), temperature)[0].sum().backward()
    assert temperature.grad is not None


def test_arguments_by_name():
    """An accelerator takes a call however its arguments are given."""
    kernels.use("fast", Setting(preset("1m", 300)))
    x = torch.randn(3, 8)
    torch.testing.assert_close(model.swiglu(gate_up=x), model.swiglu.definition(x))
    torch.testing.assert_close(
        model.rms_norm(x=x, weight=torch.ones(8), eps=1e-6),
        model.rms_norm.definition(x, torch.ones(8), 1e-6),
    )


@pytest.mark.parametrize("record", ["", "{", None])
def test_without_a_record_definitions_run(record, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "FINGERPRINTS", tmp_path / "fingerprints.json")
    if record is not None:
        kernels.FINGERPRINTS.write_text(record)
    choice = kernels.use("fast", Setting(preset("1m", 300)))
    assert not choice.in_use
    assert "python -m kernels writes it" in choice.set_aside["kernels.logprob.logprobs"]


def test_a_helper_can_be_removed():
    """An accelerator that imports it is set aside, in a process that has not loaded it yet."""
    program = """
import batch, kernels, train_grpo
from presets import preset
del batch.token_logprobs
choice = kernels.use("fast", kernels.Setting(preset("1m", 300)))
assert "generate.make_decoder" not in choice.in_use and "batch.logprobs" in choice.in_use
print(*choice.lines(), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cannot import name 'token_logprobs' from 'batch': running without" in done.stdout


def test_a_model_may_want_other_arguments(monkeypatch):
    monkeypatch.setattr(kernels, "_right", set())
    monkeypatch.setattr(Transformer, "forward", lambda self, ids, layout, more: ids)
    choice = kernels.use("fast", Setting(preset("1m", 300)))
    assert "a small model fails (TypeError" in choice.set_aside["model"]
    assert not any(name.startswith("model.") for name in choice.in_use)
