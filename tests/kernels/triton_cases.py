"""The Triton kernels beside the definitions; test_triton.py runs this file in a process of its own.

By hand: TRITON_INTERPRET=1 python -m pytest tests/kernels/triton_cases.py (without the variable on a GPU).
"""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from test_decode_attention import SHAPES, by_hand, inputs

import batch
import kernels
import train_grpo
import train_pretrain
from bench import kernels_gpu
from kernels.cases import process_advantage_cases, tokens_of
from kernels.triton import advantage, head_loss, logprob, policy_loss
from kernels.triton import decode_attention as attention
from kernels.triton.decode_attention import Prefix, decode_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def both(definition, function, *inputs, grad=None):
    """What a definition, in float32, and an accelerator return: [(outputs, gradients of the inputs)]."""
    results = []
    for one, exact in ((definition, True), (function, False)):
        copies = [
            x.detach().clone().requires_grad_(x.requires_grad) if torch.is_tensor(x) else x
            for x in inputs
        ]
        leaves = [x for x in copies if torch.is_tensor(x) and x.requires_grad]
        if exact:
            copies = [
                x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in copies
            ]
        with kernels.plain():
            out, *rest = one(*copies)
        out.backward(torch.ones_like(out) if grad is None else grad.to(out.dtype))
        results.append(([out.detach(), *rest], [x.grad for x in leaves]))
    return results


def same(results, rtol=1e-5, atol=1e-6):
    torch.testing.assert_close(results[1], results[0], rtol=rtol, atol=atol)


def close(found, wanted, bound):
    for one, other in zip(found, wanted, strict=True):
        error = (one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-30)
        assert error < bound


def heads(T, D, V, dtype):
    """Hidden states, an LM head and targets."""
    hidden = randn(T, D).to(dtype).requires_grad_()
    head = (0.3 * randn(V, D, seed=1)).to(dtype).requires_grad_()
    return hidden, head, (randn(T, seed=2).abs() * V).long() % V


@pytest.mark.parametrize("T, V", [(1, 1), (5, 7), (3, 1000), (2, 8193)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rows_of_logits(T, V, dtype, temperature):
    """Log-prob, log-sum-exp, entropy and slope of logits that are there already."""
    logits, targets = (3 * randn(T, V)).to(dtype), (randn(T, seed=1).abs() * V).long() % V
    if V > 99:
        logits[0, 50:90] = -math.inf  # tokens that are ruled out
        targets[0] = 99
    logp, lse, entropy = logprob.read(logits, targets, temperature, True)
    log_p = (logits.double() / temperature).log_softmax(-1)
    close([logp], [log_p.gather(1, targets[:, None])[:, 0]], 1e-5)
    wanted = torch.special.entr(log_p.exp()).sum(-1)
    torch.testing.assert_close(entropy.double(), wanted, rtol=1e-5, atol=1e-5)
    slope = logprob.slope(logits, targets, lse, temperature, torch.float32)
    onehot = torch.nn.functional.one_hot(targets, V)
    torch.testing.assert_close(slope.double(), log_p.exp() - onehot, rtol=1e-5, atol=1e-6)


def test_the_largest_logit_comes_last():
    """Sums over earlier blocks of the vocabulary shrink when a later one brings a larger logit."""
    logits = torch.linspace(-3, 3, 20_000, device=DEVICE).repeat(2, 1)
    targets = torch.tensor([0, 19_999], device=DEVICE)
    logp, _, entropy = logprob.read(logits, targets, 0.5, True)
    log_p = (logits.double() / 0.5).log_softmax(-1)
    close([logp], [log_p.gather(1, targets[:, None])[:, 0]], 1e-5)
    close([entropy], [torch.special.entr(log_p.exp()).sum(-1)], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("T, D, V, chunk", [(11, 6, 37, 4), (3, 16, 130, 9), (9, 5, 2, 9)])
def test_logprobs(T, D, V, chunk, dtype, monkeypatch):
    monkeypatch.setitem(kernels.logprob.CHUNK_BYTES, DEVICE, 4 * V * chunk)
    hidden, head, targets = heads(T, D, V, dtype)
    grad = randn(T, seed=3)
    grad[::4] = 0
    for temperature in (1.0, 1.3):
        (values, wanted), (found, gradients) = both(
            batch.logprobs, logprob.logprobs, hidden, head, targets, temperature, True, grad=grad
        )
        torch.testing.assert_close(found, values, rtol=2e-5, atol=2e-5)
        close(gradients, wanted, 1e-5 if dtype == torch.float32 else 1e-2)
    assert logprob.logprobs(hidden, head, targets)[1] is None
    assert logprob.logprobs(hidden[:0], head, targets[:0])[0].shape == (0,)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        logprob.logprobs(hidden, head, targets + V)


@pytest.mark.parametrize("old, ref", [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("T, D, V, chunk", [(23, 6, 37, 2), (5, 16, 16384 + 9, 9)])
def test_policy_loss_with_the_head(T, D, V, chunk, dtype, old, ref, monkeypatch):
    """Chunks, groups of chunks with a short last one, vocabularies that fill no block, dropped and silent rows."""
    monkeypatch.setattr(head_loss, "CHUNK_BYTES", 4 * V * chunk)
    hidden, head, targets = heads(T, D, V, dtype)
    logp = batch.logprobs(hidden.float(), head.float(), targets, 0.8)[0].detach()
    micro = tokens_of(logp, old, ref)
    micro.targets = targets
    config = SimpleNamespace(temperature=0.8, clip_low=0.1, clip_high=0.2, beta=0.1 * ref)
    (values, wanted), (found, gradients) = both(
        train_grpo.policy_loss,
        head_loss.grpo,
        hidden,
        head,
        micro,
        config,
        grad=torch.tensor(3.0, device=DEVICE),
    )
    for name, value in values[1].items():
        torch.testing.assert_close(found[1][name].double(), value.double(), rtol=2e-5, atol=2e-5)
    torch.testing.assert_close((found[0], found[2]), (values[0], values[2]), rtol=2e-5, atol=2e-5)
    assert gradients[0].dtype == gradients[1].dtype == dtype
    close(gradients, wanted, 1e-5 if dtype == torch.float32 else 1e-2)
    assert T < 20 or not old or found[1]["clip"] > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy(dtype, monkeypatch):
    monkeypatch.setattr(head_loss, "CHUNK_BYTES", 4 * 37 * 5)

    def one(function):
        return lambda *args: (function(*args),)

    (values, wanted), (found, gradients) = both(
        one(train_pretrain.cross_entropy), one(head_loss.pretrain), *heads(23, 6, 37, dtype), 40
    )
    torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-6)
    close(gradients, wanted, 1e-5 if dtype == torch.float32 else 1e-2)


def test_the_kl_is_accurate_everywhere():
    """Eq. 4 and its slope alone: no advantage, a weight of 1. One token a call, for the loss is a sum."""
    one, none = torch.ones(1, device=DEVICE), torch.zeros(1, device=DEVICE)
    for d in [0.0, 1e-7, -1e-5, 1e-4, -1e-3, 0.0101, 0.3, -0.49, 0.51, 3.0, 20.0, -200.0]:
        d = torch.tensor([d], device=DEVICE)
        value, slope, sums = policy_loss.loss_and_slope(none, None, d, none, one, 0.2, 0.2, 1.0)
        x = d.double().item()
        near = sum(x**k / math.factorial(k) for k in range(2, 12))
        exact = near if abs(x) < 0.1 else math.exp(x) - x - 1
        assert value.item() == sums[0].item() == pytest.approx(exact, rel=3e-6)
        assert slope.item() == pytest.approx(-math.expm1(x), rel=3e-6)
    for d in (89.0, 1e5, -1e5):
        d = torch.tensor([d], device=DEVICE)
        value, slope, _ = policy_loss.loss_and_slope(none, None, d, none, one, 0.2, 0.2, 1.0)
        assert value.isfinite() and slope.isfinite()


@pytest.mark.parametrize("old, ref", [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("T", [1, 1027])
def test_policy_loss(old, ref, T):
    logp = (-randn(T).abs()).requires_grad_()
    micro = tokens_of(logp.detach(), True, ref)
    old_logp = micro.old_logp if old else logp.detach()
    tensors = old_logp, micro.ref_logp, micro.advantage, micro.weight
    results = both(
        train_grpo.grpo_loss,
        policy_loss.grpo_loss,
        logp,
        *tensors,
        (0.2, 0.3),
        0.1,
        grad=torch.tensor(2.0, device=DEVICE),
    )
    (values, wanted), (found, gradients) = results
    torch.testing.assert_close((found[0], gradients), (values[0], wanted), rtol=1e-5, atol=1e-7)
    for name, value in values[1].items():
        torch.testing.assert_close(found[1][name].double(), value.double(), rtol=1e-5, atol=1e-6)
    if T > 1:
        assert (found[1]["clip"] > 0) == old


def test_no_tokens():
    nothing = torch.zeros(0, device=DEVICE, requires_grad=True)
    loss, stats = policy_loss.grpo_loss(nothing, nothing, None, nothing, nothing)
    loss.backward()
    assert loss == 0 and stats["count"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ddof, scale, eps", [(1, "std", 0.0), (0, "std", 1e-4), (1, "none", 0.0)])
def test_group_advantage(dtype, ddof, scale, eps):
    rewards = randn(7, 5).to(dtype)
    rewards[1] = 0.1
    rewards[2, 3], rewards[3, 0], rewards[3, 4] = math.nan, math.inf, -math.inf
    rewards[4] = math.nan
    rewards[5, 1:] = math.nan
    want = train_grpo.group_advantage.definition(rewards, ddof, scale, eps)
    got = advantage.group_advantage(rewards, ddof, scale, eps)
    torch.testing.assert_close(got, want)
    assert (got[[1, 4, 5]] == 0).all()
    for one in (
        *(torch.full((1, G), 0.1, dtype=dtype, device=DEVICE) for G in (3, 7, 64)),
        rewards[:, :1],
    ):
        assert (advantage.group_advantage(one, ddof, scale, eps) == 0).all()
    assert advantage.group_advantage(rewards[:0]).shape == (0, 5)


def test_process_advantage():
    setting = kernels.Setting(None, torch.device(DEVICE))
    for rewards, ends, lengths, _, eps in process_advantage_cases(setting):
        rewards[3][1] = math.nan
        for ddof in (0, 1):
            want = train_grpo.process_advantage.definition(rewards, ends, lengths, ddof, eps)
            got = advantage.process_advantage(rewards, ends, lengths, ddof, eps)
            torch.testing.assert_close(got, want)


def on_host(*tensors, prefix):
    return by_hand(*(x.cpu() for x in tensors), prefix and Prefix(*(x.cpu() for x in prefix[:4])))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decode_attention(name, dtype):
    """What is not in use is NaN: no key beyond a length is ever read."""
    q, keys, values, lengths, prefix = inputs(name, dtype, device=DEVICE)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for shared in (True, False):
        if not shared:
            prefix, lengths, keys, values = (
                None,
                lengths.clamp(min=1),
                keys.nan_to_num(),
                values.nan_to_num(),
            )
        exact = on_host(q, keys, values, lengths, prefix=prefix)
        found = decode_attention(q, keys, values, lengths, prefix, backend="triton")
        assert found.dtype == dtype
        torch.testing.assert_close(found.double().cpu(), exact, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_pieces_of_the_keys_are_merged(pieces, monkeypatch):
    """However many programs share the keys, the shortest rows leave most of them empty."""
    q, keys, values, lengths, prefix = inputs("long", device=DEVICE)
    exact = on_host(q, keys, values, lengths, prefix=prefix)
    monkeypatch.setattr(attention, "_splits", lambda programs, longest: pieces)
    found = decode_attention(q, keys, values, lengths, prefix, backend="triton")
    torch.testing.assert_close(found.double().cpu(), exact, atol=1e-5, rtol=1e-5)


def test_splits_fill_the_device_and_no_more():
    """One row of a long cache: as many pieces as there are 128 keys; 512 rows of 16 heads: none is split."""
    assert attention._splits(16, 4096) == 32 and attention._splits(16, 100_000) == 33
    assert attention._splits(512 * 16, 4096) == 1 and attention._splits(1, 100) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("H, K, E", [(6, 2, 12), (1, 1, 64)])
def test_append(H, K, E, dtype):
    qkv, angle, lengths = (
        randn(5, H + 2 * K, E).to(dtype),
        randn(5, 1, E // 2, seed=1),
        torch.tensor([0, 8, 3, 3, 1]),
    )
    found = {}
    for backend in ("torch", "triton"):
        keys, values = (randn(7, K, 9, E, seed=seed).to(dtype) for seed in (2, 3))
        q = attention.append(
            qkv, angle.cos(), angle.sin(), lengths.to(DEVICE), keys, values, backend
        )
        found[backend] = q, keys, values
    tolerance = dict(rtol=1e-5, atol=1e-6) if dtype == torch.float32 else dict(rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found["triton"], found["torch"], **tolerance)


def test_the_bench_runs(tmp_path, capsys):
    """Every kernel against float64, then figures."""
    arguments = [
        "--small",
        "--device",
        DEVICE,
        "--repeats",
        "1",
        "--to",
        str(tmp_path / "out"),
    ]
    assert kernels_gpu.main(arguments) == 0
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "kernels.jsonl").read_text().splitlines()
    ]
    assert rows[0]["name"] == "correctness" and rows[0]["wrong"] == 0 and rows[0]["checks"] > 70
    assert not [row for row in rows if row.get("failed")]
    timed = {row["name"]: row["ms"] for row in rows if "ms" in row}
    assert any(name.startswith("fused head") for name in timed) and min(timed.values()) > 0
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) >= 3 and losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 1


@pytest.mark.parametrize("spoil", [lambda x: 1.001 * x, lambda x: x * torch.nan])
def test_a_wrong_kernel_ends_the_bench(spoil, monkeypatch, capsys):
    right = advantage.group_advantage
    monkeypatch.setattr(advantage, "group_advantage", lambda *a: spoil(right(*a)))
    assert kernels_gpu.main(["--small", "--device", DEVICE]) == 1
    out = capsys.readouterr().out
    assert "WRONG: group_advantage" in out and "copy" not in out
