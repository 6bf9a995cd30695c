"""--kernels plain and fast: the same losses, metrics and gradients in every trainer."""

import pytest
import torch
import torch.nn.functional as F
import training
from hypothesis import given, settings
from hypothesis import strategies as st
from training import all_gradients, made_up_rollouts, run, scoring

import kernels
import model as model_module
import train_grpo
import train_ppo
import train_pretrain
import train_reward
import train_sft
from batch import token_logprobs
from data.io import InputError
from data.shards import windows
from kernels import head_loss, logprob, packed_attention
from kernels.cpu import attention as cpu_attention
from kernels.cpu import block as cpu_block
from kernels.cpu import decoder as cpu_decoder
from model import Layout, attention
from runtime.distributed import World
from runtime.hf import from_pretrained


@pytest.fixture
def readable(monkeypatch):
    """Switches to definitions alone: no accelerator may be called. It ends with the test."""

    def refuse(*_, **__):
        raise AssertionError("the fast path was taken")

    def switch() -> None:
        kernels.use("plain")
        monkeypatch.setattr(F, "scaled_dot_product_attention", refuse)
        monkeypatch.setattr(packed_attention, "buckets", refuse)
        monkeypatch.setattr(torch, "compile", refuse)
        for kernel in (
            logprob._Logprobs,
            head_loss._HeadLoss,
            cpu_attention._Attention,
            cpu_block._RMSNorm,
            cpu_block._SwiGLU,
        ):
            monkeypatch.setattr(kernel, "apply", refuse)
        monkeypatch.setattr(cpu_decoder.CpuDecoder, "__init__", refuse)

    return switch


SEGMENTS = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(1, 5), max_size=4)), min_size=1, max_size=4
)


@settings(max_examples=40)
@given(SEGMENTS, st.sampled_from([(4, 4), (4, 2), (3, 1)]), st.integers(0, 9))
def test_attention_of_ragged_shared_layouts(groups, heads, seed):
    """In float64, output and gradients; and the layout without a prefix is the softmax over its own past alone."""
    lengths, parents = [], []
    for prompt, completions in groups:
        parent = len(lengths)
        lengths += [prompt, *completions]
        parents += [-1, *[parent] * len(completions)]
    layout, (H, K) = Layout(lengths, parents), heads
    draw = torch.Generator().manual_seed(seed)
    qkv = torch.randn(layout.tokens, H + 2 * K, 6, generator=draw, dtype=torch.float64)
    qkv.requires_grad_()
    config = model_module.ModelConfig(2, 6, 1, 1, 1, 2)
    rope = model_module.rope_table(config, layout.max_position).double()
    upstream = torch.randn(layout.tokens, H * 6, generator=draw, dtype=torch.float64)
    found = []
    for path in (packed_attention.attention, attention.definition):
        out = path(qkv, rope, layout, H)
        found.append([out, *torch.autograd.grad(out, qkv, upstream)])
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-11, atol=1e-12)


def test_attention_is_in_float32_where_the_model_is_not():
    draw = torch.Generator().manual_seed(0)
    qkv = torch.randn(50, 6, 8, generator=draw).to(torch.bfloat16)
    rope = model_module.rope_table(model_module.ModelConfig(2, 8, 1, 1, 1, 2), 50)
    layout = Layout([30, 20], [-1, 0])
    exact = attention.definition(qkv.double(), rope, layout, 2)
    found = attention.definition(qkv, rope, layout, 2)
    assert found.dtype == torch.bfloat16
    assert (
        found.double() - exact
    ).abs().max() <= exact.abs().max() * 2**-8  # the rounding of the result alone


def test_gradients_and_metrics_of_every_trainer(tiny, alone, readable):
    readable()
    found = all_gradients(tiny.root, World(kernels="plain"))
    assert found.keys() == alone[1].keys() and len(found) == 8
    for trainer, expected in alone[1].items():
        for name, tensor in expected.items():
            error = (found[trainer][name].double() - tensor.double()).abs().max()
            assert error <= 4e-5 * max(tensor.double().abs().max(), 1e-3), (
                f"{trainer} {name}: off by {error:.2g}"
            )


def test_pretraining_and_sft_with_the_head_in_one(tiny, alone, monkeypatch):
    """What large vocabularies and GPUs take: the same gradients and losses, cut into micro-batches or not."""
    monkeypatch.setattr(head_loss, "LARGE", 0)
    monkeypatch.setattr(logprob._Logprobs, "apply", None)
    model, world = from_pretrained(tiny.root / "base"), World()
    for micro in (1, 4):
        rows = windows(tiny.root / "a", 32, 7)
        loss = train_pretrain.batch_loss(model, rows, tiny.tokenizer.eos_id, 8 // micro, world)
        training.assert_close(
            training.gradients(model) | {"loss": torch.tensor(loss)}, alone[1]["pretrain"]
        )
        examples = train_sft.load_examples([f"{tiny.root}/sft.jsonl"], tiny.tokenizer, "plain", 96)[
            0
        ][:7]
        loss = train_sft.batch_loss(model, examples, 320 // micro, world)
        training.assert_close(
            training.gradients(model) | {"loss": torch.tensor(loss)}, alone[1]["sft"]
        )


def test_float64(tiny, readable):
    """Every loss in float64, with ratio, clip and KL at work, completions that share a prompt, and tool output."""
    rollouts = made_up_rollouts(tiny.tokenizer)
    config = train_grpo.Config(
        beta=0.3, temperature=0.7, clip_low=0.1, clip_high=0.2, micro_tokens=200
    )
    values = train_ppo.Config(micro_tokens=200, clip_value=0.5)
    draw = torch.Generator().manual_seed(3)
    for one in rollouts:
        sizes = [len(sample.ids) for sample in one.samples]
        one.values, one.returns = (
            [torch.randn(n, generator=draw).tolist() for n in sizes] for _ in range(2)
        )
    rows = windows(tiny.root / "a", 32, 5)
    labelled, _ = train_reward.load_labeled(
        f"{tiny.root}/samples.jsonl",
        train_reward.Config(kind="process", init=str(tiny.root / "base"), context=96),
        tiny.tokenizer,
    )

    def everything() -> list[torch.Tensor]:
        model, world = from_pretrained(tiny.root / "base").double(), World()
        value, reference = (
            scoring(tiny.root / "model").double(),
            from_pretrained(tiny.root / "model").double(),
        )
        found = [
            torch.tensor(train_pretrain.batch_loss(model, rows, tiny.tokenizer.eos_id, 3, world))
        ]
        batches = training.micro_batches(rollouts, config, reference, world)
        noise = torch.Generator().manual_seed(4)
        for micro in batches:
            logp = token_logprobs(model, micro, config.temperature)[0].detach()
            micro.old_logp = logp + 0.3 * torch.randn(len(logp), generator=noise)
        sums = train_grpo.grpo_gradient(model, batches, config)
        assert sums["clip"] > 3
        sums |= train_ppo.value_gradient(value, batches, rollouts, values)
        scores = train_reward.reward_scores(value, labelled)
        F.binary_cross_entropy_with_logits(
            scores.double(), train_reward.label_tensor(labelled, "soft").double()
        ).backward()
        found += [sums[name].double() for name in sorted(sums)]
        return found + [p.grad for one in (model, value) for p in one.parameters()]

    fast = everything()
    readable()
    for one, two in zip(fast, everything(), strict=True):
        scale = max(float(two.abs().max()), 1e-6)
        assert (one - two).abs().max() <= 3e-7 * scale if one.dim() == 0 else 1e-7 * scale


@pytest.mark.parametrize("trainer", training.TRAINERS)
def test_a_run(trainer, tiny, tmp_path, readable):
    """The first step of a run by definitions alone says what that of a fast run says."""
    short = dict(steps=1, valid="", decay=0.0)
    short |= (
        {"iterations": 1 if trainer == "grpo" else 2} if trainer in ("grpo", "iterative") else {}
    )
    short |= {"steps": 1} if trainer == "iterative" else {}
    if trainer == "pretrain":
        del short["decay"]
    fast = run(trainer, tiny.root, tmp_path / "fast", **short)
    readable()
    slow = run(trainer, tiny.root, tmp_path / "slow", kernels="plain", **short)
    one, two = (training.metrics(directory) for directory in (fast, slow))
    training.assert_same_start(one, two, later=("clip_fraction", "value_clip_fraction", "ratio"))


def test_a_run_may_go_on_with_other_kernels(tiny, tmp_path):
    to = run("sft", tiny.root, tmp_path / "run", steps=2, valid="", decay=0.0)
    run("sft", tiny.root, to, steps=3, valid="", decay=0.0, kernels="plain")
    assert [row["step"] for row in training.metrics(to)] == [1, 2, 3]
    with pytest.raises(InputError, match="lr was"):
        run("sft", tiny.root, to, steps=3, valid="", decay=0.0, lr=1e-5)
