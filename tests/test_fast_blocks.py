"""--compile and --bf16: the same model, its blocks fused, or its matrix products in bfloat16 on a CPU."""

import shutil

import pytest
import torch
from training import metrics, run, weights

from batch import pack_completions, token_logprobs
from data.io import InputError
from generate import Sampling, generate
from kernels import cpu
from kernels.compiled import compile_blocks, multiply_in
from kernels.cpu import decoder as cpu_decoder
from model import ModelConfig, Transformer
from runtime.distributed import World, gather_into, prepare, setup

SHAPE = dict(vocab_size=50, width=64, layers=2, heads=4, kv_heads=2, ffn=96, context=64)
GROUPS = [([3, 4, 5], [[6, 7, 8, 9], [1, 2]]), ([11, 12], [[13], [14, 15, 16], [17, 18]])]


class Ids:
    """The smallest thing that `generate` takes for a tokenizer."""

    eos_id, vocab_size = 0, 50


def learned(model: Transformer) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of GROUPS and the gradient of their sum, all parameters in one."""
    logp, _ = token_logprobs(model, pack_completions(GROUPS))
    gradients = torch.autograd.grad(logp.sum(), list(model.parameters()))
    return logp.detach(), torch.cat([g.flatten() for g in gradients])


def sampled(model: Transformer) -> list:
    sampling = Sampling(5, max_new_tokens=12, seed=3, max_rows=4)
    samples = generate(model, Ids(), [prompt for prompt, _ in GROUPS], sampling)
    return [sample for group in samples for sample in group]


@pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler")
def test_compiled_blocks_learn_and_sample_alike(monkeypatch):
    monkeypatch.setattr(cpu_decoder, "native", lambda: None)  # which decodes without the blocks
    model = Transformer(ModelConfig(**SHAPE, family="qwen3", qk_norm=True), seed=1)
    before, samples = learned(model), sampled(model)
    compile_blocks(model)
    for mine, theirs in zip(learned(model), before, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)
    again = sampled(model)
    assert [s.ids for s in again] == [s.ids for s in samples]
    for mine, theirs in zip(again, samples, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


def test_bfloat16_products():
    """Only the blocks' products are rounded: log-probs stay within what bfloat16's 8 bits leave, gradients point the
    same way, and what is sampled has the log-probs that a forward pass gives."""
    model = Transformer(ModelConfig(**SHAPE), seed=1)
    exact, slope = learned(model)
    multiply_in(model, torch.bfloat16)
    logp, rounded = learned(model)
    assert logp.dtype == rounded.dtype == torch.float32
    assert 0 < (logp - exact).abs().max() < 0.02
    assert torch.nn.functional.cosine_similarity(rounded, slope, dim=0) > 0.999
    hidden = torch.randn(7, 64)
    assert torch.equal(model.logits(hidden), hidden @ model.head_weight.T)  # the head is left alone
    stored = Transformer(ModelConfig(**SHAPE), seed=1)
    multiply_in(stored, torch.bfloat16, store=True)
    with torch.no_grad():
        assert torch.equal(token_logprobs(stored, pack_completions(GROUPS))[0], logp)
    assert {p.dtype for p in stored.layers.parameters()} == {torch.float32, torch.bfloat16}
    gather_into(model, stored)  # as a rollout takes the trained weights over
    samples = sampled(stored)
    assert [s.ids for s in samples] == [s.ids for s in sampled(model)]
    with torch.no_grad():
        batch = pack_completions(
            [(p, [s.ids for s in samples[5 * i : 5 * i + 5]]) for i, (p, _) in enumerate(GROUPS)]
        )
        again = token_logprobs(model, batch)[0]
    assert again.tolist() == pytest.approx([p for s in samples for p in s.logprobs], abs=0.02)


def test_prepare(monkeypatch):
    def prepared(trained=True, **options):
        model = prepare(Transformer(ModelConfig(**SHAPE)), World(**options), trained)
        products = {m.multiply for m in model.layers.modules() if hasattr(m, "multiply")}
        return "before" in vars(model.layers[0]), products, model.layers[0].attn.qkv.weight.dtype

    assert prepared() == prepared(bf16=False, compile=False) == (False, {None}, torch.float32)
    assert prepared(bf16=True, compile=True) == (True, {torch.bfloat16}, torch.float32)
    assert prepared(bf16=True, trained=False) == (False, {torch.bfloat16}, torch.bfloat16)
    assert not prepared(compile=True, kernels="plain")[0], "definitions alone are not compiled"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="--compile true: .* install g\\+\\+"):
        setup("cpu", compile=True)


def test_a_run_in_bfloat16(tiny, tmp_path):
    """Numbers near those of float32, and float32 weights in what is saved. GRPO samples other completions: it runs."""
    runs = [run("pretrain", tiny.root, tmp_path / x, steps=1, bf16=x) for x in ("false", "true")]
    exact, rounded = (metrics(directory)[-1] for directory in runs)
    assert 0 < abs(exact["grad_norm"] - rounded["grad_norm"]) < 0.05 * exact["grad_norm"]
    runs.append(run("grpo", tiny.root, tmp_path / "grpo", steps=1, bf16="true"))
    assert {w.dtype for directory in runs for w in weights(directory / "model").values()} == {
        torch.float32
    }


def test_a_reward_model_that_learns_on_computes_as_the_run_does(tiny, tmp_path):
    to = run("iterative", tiny.root, tmp_path / "run", steps=1, iterations=2, bf16="true")
    assert "bf16 = true" in (to / "reward_1" / "config.toml").read_text()
