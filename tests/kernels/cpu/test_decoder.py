"""kernels/cpu/decoder.py: the C++ of sampling against the model in float64 and against the plain decoder."""

import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import generate as gen
import kernels
from generate import Sampling, generate, sample_tokens, uniform
from kernels import cpu
from kernels.compiled import multiply_in
from kernels.cpu import decoder as cpu_decoder
from kernels.cpu.decoder import BlockCache, CpuDecoder, cache_dtype, suits, takes
from model import MLP, ModelConfig, Transformer

pytestmark = pytest.mark.skipif(cpu.native() is None, reason="no C++ compiler")

# Widths that are no multiple of a panel, groups of 1 to 5 query heads, every kind of weight that a family has.
FAMILIES = {
    "llama": dict(vocab_size=97, width=72, layers=2, heads=4, kv_heads=2, ffn=104, head_width=16),
    "qwen2": dict(
        vocab_size=64,
        width=64,
        layers=2,
        heads=3,
        kv_heads=3,
        ffn=64,
        head_width=32,
        qkv_bias=True,
        tied=True,
    ),
    "qwen3": dict(
        vocab_size=130, width=40, layers=3, heads=5, kv_heads=1, ffn=50, head_width=48, qk_norm=True
    ),
    "bias": dict(
        vocab_size=46,
        width=128,
        layers=1,
        heads=6,
        kv_heads=2,
        ffn=320,
        head_width=64,
        out_bias=True,
    ),
    "smollm3": dict(
        vocab_size=64,
        width=64,
        layers=3,
        heads=4,
        kv_heads=2,
        ffn=64,
        head_width=16,
        layer_kinds=["nope", "full", "nope"],
    ),
}


def random_model(**shape):
    """Every weight drawn, norms and biases too."""
    model = Transformer(ModelConfig(context=128, **shape), seed=1)
    generator = torch.Generator().manual_seed(2)
    for p in model.parameters():
        if p.dim() == 1:
            p.data += 0.3 * torch.randn(p.shape, generator=generator)
        else:
            p.data.normal_(0, p.shape[1] ** -0.5, generator=generator)
    return model.requires_grad_(False)


def decoder_of(model, rows=1, capacity=60, sampling=None):
    cache = BlockCache(model.config, rows, capacity, dtype=cache_dtype(model))
    return CpuDecoder(model, sampling or Sampling(), cache)


def documents(vocabulary, lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocabulary, (n,), generator=generator) for n in lengths]


def run(decoder, cache, tokens, rows, starts):
    """Feed each row of `rows` its tokens from position starts[i] on, in one call -> logits of all of them."""
    ids = torch.cat(tokens)
    where = torch.cat([torch.full((len(t),), row) for t, row in zip(tokens, rows, strict=True)])
    positions = torch.cat(
        [torch.arange(start, start + len(t)) for t, start in zip(tokens, starts, strict=True)]
    )
    longest = int(positions.max()) + 1
    logits = decoder.run(cache, ids, where, positions, longest, torch.arange(len(ids)))
    return logits[:, : decoder.shape.V].split([len(t) for t in tokens])


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_and_steps_give_the_logits_of_the_model_in_float64(family):
    """Three rows of a cache, in any order: their prompts in one call, then the rest a token a step."""
    model = random_model(**FAMILIES[family])
    decoder, texts = decoder_of(model), documents(model.config.vocab_size, (41, 33, 25))
    exact = Transformer(model.config).double()
    exact.load_state_dict(model.state_dict())
    expected = [exact.logits(exact(text)) for text in texts]
    cache, rows, starts = BlockCache(model.config, 4, 41), [2, 0, 3], [17, 1, 16]
    for held in (cache.keys, cache.values):
        held.fill_(torch.nan)  # what a row held before must not be seen
    found = [
        [part]
        for part in run(
            decoder, cache, [t[:n] for t, n in zip(texts, starts, strict=True)], rows, [0] * 3
        )
    ]
    for step in range(24):
        active = [i for i in range(3) if starts[i] + step < len(texts[i])]
        at = [starts[i] + step for i in active]
        parts = run(
            decoder,
            cache,
            [texts[i][n : n + 1] for i, n in zip(active, at, strict=True)],
            [rows[i] for i in active],
            at,
        )
        for i, part in zip(active, parts, strict=True):
            found[i].append(part)
    for parts, logits in zip(found, expected, strict=True):
        torch.testing.assert_close(
            torch.cat(parts).double(), logits[: sum(map(len, parts))], rtol=0, atol=2e-5
        )
        assert logits.std() > 0.5


def keys_of(cache):
    """The keys of a cache in the order of tokens, [layers, rows, K, capacity, E]."""
    E, lanes = cache.keys.shape[-1], cpu.native().lanes()
    return (
        cache.keys.unflatten(3, (-1, lanes))
        .flatten(4)
        .unflatten(4, (E, lanes))
        .transpose(4, 5)
        .flatten(3, 4)
    )


class Rounded(torch.nn.Module):
    """A linear layer of float64 whose factors are rounded to bfloat16."""

    def __init__(self, linear):
        super().__init__()
        self.weight = linear.weight.bfloat16().double()
        self.bias = 0 if linear.bias is None else linear.bias.double()

    def forward(self, x):
        return x.bfloat16().double() @ self.weight.T + self.bias


@pytest.mark.parametrize("family", ["qwen2", "bias"])  # widths that are multiples of 32
def test_products_of_bfloat16(family):
    """On the matrix unit weights and activations are rounded, elsewhere the weights alone. An activation that lies
    beside the middle of two bfloat16 is sometimes rounded the other way than in float64: hence a mean."""
    model = random_model(**FAMILIES[family])
    (text,) = documents(model.config.vocab_size, (60,))
    exact = Transformer(model.config).double()
    exact.load_state_dict(model.state_dict())
    plain = exact.logits(exact(text))
    multiply_in(model, torch.bfloat16)
    decoder = decoder_of(model)
    for block, ours in zip(exact.layers, model.layers, strict=True):
        block.attn.qkv, block.attn.out = Rounded(ours.attn.qkv), Rounded(ours.attn.out)
        block.mlp.gate_up, block.mlp.down = Rounded(ours.mlp.gate_up), Rounded(ours.mlp.down)
    rounded = exact.logits(exact(text))
    found = run(decoder, BlockCache(model.config, 1, 60), [text], [0], [0])[0]
    if decoder.panels.kind == 2 or cpu.native().rounds_inputs():
        assert (found - rounded).abs().mean() < 0.1 * (rounded - plain).abs().mean()
        assert (found - rounded).abs().max() < 0.05
    assert 0 < (found - plain).abs().mean() < 0.03
    cache = decoder.cache
    assert cache.keys.dtype == torch.bfloat16
    again = run(decoder, cache, [text], [0], [0])[0]
    assert 0 < (again - found).abs().mean() < 0.03
    store = []
    model(text, store=store)
    keys, values = store[0]
    for stored, expected in ((cache.values[0, 0], values), (keys_of(cache)[0, 0], keys)):
        torch.testing.assert_close(
            stored[:, :60].float(), expected.transpose(0, 1), rtol=2**-6, atol=2**-6
        )


@pytest.mark.parametrize(
    "family, dtype",
    [("llama", torch.float32), ("bias", torch.bfloat16), ("llama", torch.bfloat16)],
)
def test_a_row_has_the_same_bits_alone_among_others_and_with_more_threads(family, dtype):
    model = random_model(**FAMILIES[family])
    multiply_in(model, dtype)
    decoder, texts = decoder_of(model), documents(46, range(1, 41))
    decoder.threads = 1
    rows = list(range(40))

    def fresh():
        return BlockCache(model.config, 40, 48, dtype=cache_dtype(model))

    alone = [run(decoder, fresh(), [text], [row], [0])[0] for row, text in enumerate(texts)]
    for decoder.threads in (1, 2, 3):
        for row, part in enumerate(run(decoder, fresh(), texts, rows, [0] * 40)):
            assert torch.equal(part, alone[row])
    cache, last = fresh(), []
    for n in range(40):  # a token a step
        last.append(
            run(decoder, cache, [text[n : n + 1] for text in texts[n:]], rows[n:], [n] * (40 - n))
        )
    for row in rows:
        assert torch.equal(torch.cat([last[n][row - n] for n in range(row + 1)]), alone[row])


def draws(logits, temperature, streams, positions):
    """A decoder's draws from logits [B, V]: behind them stands what must never be drawn."""
    shape = dict(width=32, layers=1, heads=1, kv_heads=1, ffn=16, head_width=32)
    model = Transformer(ModelConfig(logits.shape[1], **shape))
    decoder = decoder_of(model, sampling=Sampling(temperature=temperature))
    padded = torch.full((len(logits), decoder.width), 1e9)
    padded[:, : logits.shape[1]] = logits
    return decoder.draw_tokens(padded, streams, positions)


@settings(max_examples=60)
@given(
    st.integers(1, 300),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.integers(0, 2**31),
    st.sampled_from([0.1, 3.0, 60.0]),
)
def test_a_draw_is_where_the_cumulative_distribution_passes_the_random_number(
    vocabulary, temperature, seed, spread
):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(20, vocabulary, generator=generator)
    streams = torch.randint(-(2**63), 2**63 - 1, (20,), generator=generator)
    positions = torch.randint(0, 4096, (20,), generator=generator)
    ids, logprobs = draws(logits, temperature, streams, positions)
    p = (logits.double() / temperature).softmax(-1)
    reached, u = p.cumsum(-1).gather(1, ids[:, None])[:, 0], uniform(streams, positions)
    drawn = p.gather(1, ids[:, None])[:, 0]
    assert ((reached - drawn - 1e-6 <= u) & (u <= reached + 1e-6)).all()
    torch.testing.assert_close(logprobs.double(), drawn.log(), rtol=1e-6, atol=1e-6)
    greedy, of = draws(logits, 0.0, streams, positions)
    assert torch.equal(greedy, logits.argmax(-1))
    torch.testing.assert_close(of, logits.log_softmax(-1).amax(-1), rtol=1e-6, atol=1e-6)


def test_draws_are_those_of_sample_tokens():
    generator = torch.Generator().manual_seed(0)
    logits, positions = torch.randn(4000, 61, generator=generator), torch.arange(4000)
    streams = torch.full((4000,), 77)
    ids, logprobs = draws(logits, 0.8, streams, positions)
    expected, of = sample_tokens(logits.clone(), 0.8, 1.0, uniform(streams, positions))
    assert torch.equal(ids, expected)
    torch.testing.assert_close(logprobs, of, rtol=0, atol=2e-6)


def test_ids_without_probability_are_never_drawn():
    """Probability on ids 3 and 40 alone, whatever the random number; ties go to the first when greedy."""
    logits = torch.full((5000, 70), -torch.inf)
    logits[:, 3], logits[:, 40] = 0.0, 0.0
    streams, positions = torch.zeros(5000, dtype=torch.int64), torch.arange(5000)
    ids, logprobs = draws(logits, 1.0, streams, positions)
    assert set(ids.tolist()) == {3, 40} and 2300 < (ids == 3).sum() < 2700
    assert logprobs.tolist() == pytest.approx([-0.6931472] * 5000, abs=1e-6)
    assert set(draws(logits, 0.0, streams, positions)[0].tolist()) == {3}


@pytest.mark.parametrize("wrong", [-1, 97])
def test_an_id_that_the_model_has_not(wrong):
    model = random_model(**FAMILIES["llama"])
    with pytest.raises(IndexError, match=f"token id {wrong} is not among the 97"):
        generate(model, Letters(), [[1, 2], [3, wrong]], Sampling(2, max_new_tokens=4))


class Letters:
    """A tokenizer of one letter an id; the last id is EOS."""

    eos_id, vocab_size = 96, 97

    def decode_bytes(self, ids, special=False):
        return bytes(ids)


@pytest.mark.parametrize(
    "temperature, top_p, stop", [(1.0, 1.0, ()), (0.8, 0.7, ()), (0.0, 1.0, ()), (1.0, 1.0, ("A",))]
)
def test_samples_are_those_of_pytorch(temperature, top_p, stop, monkeypatch):
    """With few rows, so that rows leave, others move and wait for a place; a stop string calls a tool."""
    model = random_model(**FAMILIES["llama"])
    model.head_weight[96] *= 1.2
    prompts = [text.tolist() for text in documents(97, (3, 17, 1, 30, 16, 8))]
    sampling = Sampling(5, temperature, top_p, 24, stop, seed=3)

    def samples(rows):
        def tool(stopped):
            return [[1, 2, 3] if number % 2 else None for _, number, _ in stopped]

        return [
            s
            for group in generate(
                model, Letters(), prompts, replace(sampling, max_rows=rows), on_stop=tool
            )
            for s in group
        ]

    forwards, run = [], CpuDecoder.run
    monkeypatch.setattr(CpuDecoder, "run", lambda *a: forwards.append(1) or run(*a))
    found = samples(7)
    assert forwards
    for rows in (1, 30):
        again = samples(rows)
        assert [(s.ids, s.logprobs) for s in again] == [(s.ids, s.logprobs) for s in found], (
            "bit for bit"
        )
    forwards.clear()
    with kernels.plain():
        plain = samples(7)
    for ours, other in zip(found, plain, strict=True):
        assert (ours.ids, ours.mask, ours.finish) == (other.ids, other.mask, other.finish)
        assert ours.logprobs == pytest.approx(other.logprobs, abs=2e-5)
    assert not forwards
    assert len({s.finish for s in found}) > 1 or not temperature
    assert any(not all(s.mask) for s in found) == bool(stop)


@pytest.mark.parametrize("length", [16, 29])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_start_that_prompts_share_runs_once_a_call(dtype, length, monkeypatch):
    """Whatever its place among vectors, and with the same bits as without sharing."""
    model, sampling = random_model(**FAMILIES["llama"]), Sampling(2, max_new_tokens=9, seed=1)
    multiply_in(model, dtype)
    start, *rests = [text.tolist() for text in documents(96, (length, 3, 17, 1, 30))]
    prompts, fed, feed = (
        [start + [96 - i] + rest for i, rest in enumerate(rests)],
        [],
        CpuDecoder.feed,
    )
    alone = [generate(model, Letters(), [p], sampling, [i])[0] for i, p in enumerate(prompts)]
    monkeypatch.setattr(CpuDecoder, "pack", 8)
    monkeypatch.setattr(
        CpuDecoder,
        "feed",
        lambda self, cache, parts, at: fed.append(parts) or feed(self, cache, parts, at),
    )
    assert generate(model, Letters(), prompts, sampling) == alone
    assert fed[0] == [start] and len(fed) > 3
    assert sum(len(part) for parts in fed[1:] for part in parts) == 55


def test_which_models_it_takes(monkeypatch):
    def taken(model):
        return takes(model, None, 1, [])

    shape = FAMILIES["llama"]
    assert taken(random_model(**shape))
    assert not taken(random_model(**{**shape, "head_width": 6})), "heads of no whole vectors"
    assert not taken(random_model(**shape, score="outcome"))
    assert not taken(random_model(**shape).double())
    half = random_model(**shape)
    half.compute_dtype = torch.bfloat16
    assert not taken(half)
    changed = random_model(**shape)
    changed.layers[1].mlp.__class__ = type("OtherMLP", (MLP,), {})
    assert not taken(changed), "a part of another class"
    monkeypatch.setattr(cpu_decoder, "LARGEST", 1000)
    assert not suits(half.config)


def optimizer_step(weight):
    weight.requires_grad_().grad = torch.randn(weight.shape)
    torch.optim.SGD([weight], lr=0.3).step()
    weight.requires_grad_(False)


EDITS = {
    "optimizer": optimizer_step,
    "copy": lambda weight: weight.copy_(weight.flip(0)),
    "data": lambda weight: weight.data.neg_(),
    "memory": lambda weight: weight.numpy().__setitem__((-1, -1), 9.0),
    "other memory": lambda weight: setattr(weight, "data", weight.flip(0)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("edit", EDITS)
def test_panels_are_kept_while_the_weights_are_the_same(edit, dtype, monkeypatch):
    """Whoever edits a weight, and however: the next call samples with it."""
    model, other = random_model(**FAMILIES["llama"]), random_model(**FAMILIES["llama"])
    made, panels = [], cpu_decoder.Panels
    monkeypatch.setattr(cpu_decoder, "Panels", lambda model: made.append(1) or panels(model))
    multiply_in(model, dtype)
    multiply_in(other, dtype)

    def samples(model):
        groups = generate(model, Letters(), [[1, 2, 3]], Sampling(8, max_new_tokens=20, seed=5))
        return [(s.ids, s.logprobs) for s in groups[0]]

    first = samples(model)
    assert cpu_decoder._kept[model][1] is None, "held after one call"
    for _ in range(3):
        assert samples(model) == first
    assert len(made) == 2, "the second call keeps them"
    for weight in (model.layers[1].mlp.down.weight, model.layers[0].attn.qkv.weight):
        before = samples(model)
        EDITS[edit](weight)
        other.load_state_dict(model.state_dict())
        found = samples(model)
        assert found == samples(other) and found != before
        assert cpu_decoder._kept[model][1] is None
    model.load_state_dict(random_model(**FAMILIES["llama"]).state_dict())
    assert samples(model) == first


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_rounded_as_they_are_multiplied(family):
    """Stored in bfloat16 (kernels.compiled.multiply_in), or in float32 and multiplied in it: the same steps."""
    text, logits = documents(FAMILIES[family]["vocab_size"], (9,)), []
    for store in (False, True, None):
        model = random_model(**FAMILIES[family])
        for linear in model.layers.modules():
            if getattr(linear, "bias", None) is not None:
                linear.bias.copy_(linear.bias.bfloat16())
        if store is not None:
            multiply_in(model, torch.bfloat16, store=store)
        logits += run(decoder_of(model), BlockCache(model.config, 1, 9), text, [0], [0])
    assert torch.equal(logits[0], logits[1])
    assert 0 < (logits[0] - logits[2]).abs().max() < 0.1


@pytest.mark.parametrize(
    "cxx, said",
    [("", "no C++ compiler"), ("#!/bin/sh\necho broken >&2; exit 1\n", "cannot compile")],
)
def test_without_a_compiler_pytorch_samples_and_a_line_says_so(cxx, said, tmp_path):
    """With no compiler on the path, and with one that fails."""
    if cxx:
        (tmp_path / "c++").write_text(cxx)
        (tmp_path / "c++").chmod(0o755)
    code = (
        "import torch, kernels; from generate import *; from model import *; from presets import preset\n"
        "kernels.use('fast', kernels.Setting(preset('1m', 300)))\n"
        "class Ids: eos_id, vocab_size = 8, 9\n"
        "model = Transformer(ModelConfig(9, width=32, layers=1, heads=1, kv_heads=1, ffn=16))\n"
        "print(len(generate(model, Ids(), [[1]], Sampling(2, max_new_tokens=3))[0]))\n"
    )
    environment = {
        **os.environ,
        "PATH": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "CXX": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(gen.__file__).parent,
    )
    assert done.stdout == "2\n", done.stderr
    assert said in done.stderr and "PyTorch computes everything" in done.stderr


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="compiles for processors of the x86 family"
)
@pytest.mark.parametrize("target", ["haswell", "x86-64"])
def test_processors_with_shorter_vectors(target):
    """Eight lanes (AVX2) and four (SSE2), without the matrix unit: other tiles, the same logits and gradients."""
    if target == "haswell" and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this processor has no AVX2")
    code = (
        "import sys, pytest\n"
        "from kernels import cpu\n"
        f"cpu.FLAGS = [*cpu.FLAGS, '-march={target}']\n"
        "assert cpu.native().lanes() < 16 and not cpu.native().tiles()\n"
        "names = 'model_in_float64 or of_bfloat16 or are_kept or same_bits or samples_are_those or learns_as_in_float64'\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', names, 'tests/kernels/cpu/test_decoder.py',\n"
        "                      'tests/kernels/cpu/test_training.py']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(gen.__file__).parent
    )
    assert done.returncode == 0, done.stdout + done.stderr
