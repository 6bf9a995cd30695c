"""The Triton kernels beside the references; test_triton.py runs this file in a process of its own.

By hand: TRITON_INTERPRET=1 python -m pytest tests/kernels/triton_cases.py (without the variable on a GPU).
"""

import math

import pytest
import torch
from test_decode_attention import SHAPES, by_hand, inputs

from bench.kernels_gpu import check
from kernels.advantage import group_advantage, process_advantage
from kernels.head_loss import cross_entropy, head_policy_loss, policy_loss_from_logits
from kernels.kl import kl
from kernels.logprob import linear_logprob, logprob_from_logits
from kernels.policy_loss import policy_loss
from kernels.triton import decode_attention as attention
from kernels.triton.decode_attention import Prefix, decode_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def both(function, *inputs, grad=None):
    """Run `function(backend, *inputs)` with each backend: [(outputs, gradients of the inputs that need one)]."""
    results = []
    for backend in ("torch", "triton"):
        copies = [
            x.detach().clone().requires_grad_(x.requires_grad) if torch.is_tensor(x) else x
            for x in inputs
        ]
        out, *rest = function(backend, *copies)
        out.backward(torch.ones_like(out) if grad is None else grad)
        gradients = [x.grad for x in copies if torch.is_tensor(x) and x.requires_grad]
        results.append(([out.detach(), *rest], gradients))
    return results


def same(results, rtol=1e-5, atol=1e-6):
    torch.testing.assert_close(results[1], results[0], rtol=rtol, atol=atol)


@pytest.mark.parametrize("T, V", [(1, 1), (5, 7), (3, 1000), (2, 8193)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprob_from_logits(T, V, dtype, temperature):
    logits = (3 * randn(T, V)).to(dtype).requires_grad_()
    targets = (randn(T, seed=1).abs() * V).long() % V
    same(
        both(
            lambda backend, x: logprob_from_logits(x, targets, temperature, backend=backend),
            logits,
            grad=randn(T, seed=2),
        ),
        *((1e-5, 1e-5) if dtype == torch.float32 else (1e-2, 1e-5)),
    )


def test_the_largest_logit_comes_last():
    """Sums over earlier blocks of the vocabulary shrink when a later one brings a larger logit."""
    logits = torch.linspace(-3, 3, 20_000, device=DEVICE).repeat(2, 1).requires_grad_()
    targets = torch.tensor([0, 19_999], device=DEVICE)
    same(
        both(lambda backend, x: logprob_from_logits(x, targets, 0.5, backend=backend), logits),
        atol=1e-5,
    )


def test_ruled_out_tokens_and_strides():
    logits = randn(6, 40)[:, ::2]
    logits[:, 3:9] = -math.inf
    targets = torch.tensor([0, 1, 2, 10, 18, 19], device=DEVICE)
    results = both(
        lambda backend, x: logprob_from_logits(x, targets, backend=backend), logits.requires_grad_()
    )
    assert results[1][0][1].isfinite().all()
    same(results)
    column = randn(20, 6).T  # stride 1 along the rows
    same(
        both(
            lambda backend, x: logprob_from_logits(x.T, targets, backend=backend),
            column.T.requires_grad_(),
        )
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("T, D, V, chunk", [(11, 6, 37, 4), (3, 16, 130, None), (9, 5, 2, 9)])
def test_linear_logprob(T, D, V, chunk, dtype):
    hidden, weight = (
        randn(T, D).to(dtype).requires_grad_(),
        randn(V, D, seed=1).to(dtype).requires_grad_(),
    )
    targets = (randn(T, seed=2).abs() * V).long() % V
    grad = randn(T, seed=3)
    grad[::4] = 0
    for temperature in (1.0, 1.3):
        results = both(
            lambda backend, h, w, t=temperature: linear_logprob(
                h, w, targets, t, chunk, backend=backend
            ),
            hidden,
            weight,
            grad=grad,
        )
        same(results, *((2e-5, 2e-6) if dtype == torch.float32 else (2e-2, 2e-2)))
        torch.testing.assert_close(results[1][0], results[0][0], rtol=2e-5, atol=2e-5)
    assert linear_logprob(hidden, weight, targets, entropy=False, backend="triton")[1] is None
    assert linear_logprob(hidden[:0], weight, targets[:0], backend="triton")[0].shape == (0,)


def tokens_of(logp, old, ref, seed=0):
    """What the loss knows of each token of log-probs [T], by name, clipped on both sides; a third of them masked, with
    NaN in all that is not read."""
    T = len(logp)
    own = dict(
        advantage=randn(T, seed=seed + 3), weights=(randn(T, seed=seed + 4) + 0.5).relu() / T
    )
    own["old_logp"] = logp + 0.4 * randn(T, seed=seed + 1) if old else None
    own["ref_logp"] = logp + 0.5 * randn(T, seed=seed + 2) if ref else None
    for name, x in own.items():
        if name != "weights" and x is not None:
            x[own["weights"] == 0] = math.nan
    return own


@pytest.mark.parametrize("old, ref", [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("T, D, V, chunk", [(23, 6, 37, 2), (5, 16, 16384 + 9, None)])
def test_head_policy_loss(T, D, V, chunk, dtype, old, ref):
    """Chunks, groups of chunks with a short last one, vocabularies that fill no block, dropped and silent rows."""
    hidden, weight = (
        randn(T, D).to(dtype).requires_grad_(),
        (0.3 * randn(V, D, seed=1)).to(dtype).requires_grad_(),
    )
    targets = (randn(T, seed=2).abs() * V).long() % V
    tokens = tokens_of(
        linear_logprob(hidden, weight, targets, 0.8, backend="torch")[0].detach(), old, ref
    )
    tokens["advantage"][1::4] = 0
    settings = dict(clip_low=0.1, clip_high=0.2, beta=0.1, temperature=0.8, chunk=chunk)
    results = both(
        lambda backend, h, w: head_policy_loss(
            h, w, targets, **tokens, **settings, backend=backend
        ),
        hidden,
        weight,
        grad=torch.tensor(3.0, device=DEVICE),
    )
    (values, gradients), (found, found_gradients) = results
    torch.testing.assert_close(found, values, rtol=2e-5, atol=2e-5)
    for one, wanted in zip(found_gradients, gradients, strict=True):
        assert one.dtype == dtype and wanted.abs().max() > 0
        error = (one.double() - wanted.double()).norm() / wanted.double().norm()
        assert error < (1e-5 if dtype == torch.float32 else 1e-2)
    if T > 20:
        assert not old or found[1]["clip"] > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy(dtype):
    hidden, weight = (
        randn(23, 6).to(dtype).requires_grad_(),
        (0.3 * randn(37, 6, seed=1)).to(dtype).requires_grad_(),
    )
    targets = (randn(23, seed=2).abs() * 37).long() % 37
    (values, wanted), (found, gradients) = both(
        lambda backend, h, w: (cross_entropy(h, w, targets, 40, True, 5, backend),), hidden, weight
    )
    torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-6)
    for one, other in zip(gradients, wanted, strict=True):
        error = (one.double() - other.double()).norm() / other.double().norm()
        assert error < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("T, V", [(1, 1), (9, 7), (5, 1000), (3, 16384 + 9)])
def test_policy_loss_from_logits(T, V, dtype, inplace):
    """The gradient takes the place of the logits, row by row; masked rows (of NaN) get 0."""
    logits, targets = (3 * randn(T, V)).to(dtype), (randn(T, seed=1).abs() * V).long() % V
    tokens = tokens_of(
        logprob_from_logits(logits, targets, 0.7, backend="torch")[0], True, True, seed=5
    )
    logits[tokens["weights"] == 0] = math.nan
    if V > 99:
        logits[0, 50:90] = -math.inf
        targets[0] = 99
    settings = dict(clip_low=0.1, clip_high=0.2, beta=0.1, temperature=0.7, inplace=inplace)
    x = logits.clone().requires_grad_()
    loss, stats, logp = policy_loss_from_logits(x, targets, **tokens, **settings, backend="triton")
    (2 * loss).backward()
    exact = logits.double().nan_to_num(0, neginf=-math.inf).requires_grad_()
    wanted = policy_loss_from_logits(exact, targets, **tokens, **settings, backend="torch")
    (2 * wanted[0]).backward()
    torch.testing.assert_close(
        (loss.double(), logp.double()), (wanted[0], wanted[2]), rtol=1e-5, atol=1e-5
    )
    for name, value in wanted[1].items():
        torch.testing.assert_close(stats[name].double(), value.double(), rtol=1e-5, atol=1e-5)
    bound = 1e-5 if dtype == torch.float32 else 5e-3
    assert (x.grad.double() - exact.grad).norm() <= bound * exact.grad.norm() + 1e-12
    assert torch.equal(x.detach().nan_to_num(), (x.grad if inplace else logits).nan_to_num())


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kl(kind, dtype):
    special = [0, 1e-4, -1e-3, 0.0101, 0.49, 0.51, 3, 89, 1e5, -200, -1e5]
    ref = torch.cat([randn(1500), torch.tensor(special, device=DEVICE)])
    logp = torch.zeros_like(ref).to(dtype).requires_grad_()
    results = both(
        lambda backend, a, b: (kl(a, b, kind, backend),), logp, ref.to(dtype).requires_grad_()
    )
    same(results, rtol=3e-5, atol=0)
    assert all(x.isfinite().all() for part in results[1] for x in part)


def test_k3_is_accurate_everywhere():
    d = torch.logspace(-7, 1.5, 400, device=DEVICE)
    d = torch.cat([d, -d])
    exact = torch.where(
        d.abs() < 0.1,
        sum(d.double() ** k / math.factorial(k) for k in range(2, 12)),
        d.double().exp() - d - 1,
    )
    got = kl(torch.zeros_like(d), d, backend="triton")
    torch.testing.assert_close(got.double(), exact, rtol=3e-6, atol=0)


@pytest.mark.parametrize("old, ref", [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("T", [1, 1027])
def test_policy_loss(old, ref, T):
    logp = (-randn(T).abs()).requires_grad_()
    old = logp.detach() + 0.3 * randn(T, seed=1) if old else None
    ref = logp.detach() + 0.5 * randn(T, seed=2) if ref else None
    advantage, weight = randn(T, seed=3), randn(T, seed=4).relu() / T
    bad = weight == 0
    for x in (old, ref, advantage):
        if x is not None:
            x[bad] = math.nan

    def loss(backend, x):
        return policy_loss(x, old, ref, advantage, weight, 0.2, 0.3, 0.1, backend=backend)  # noqa: E731

    results = both(loss, logp, grad=torch.tensor(2.0, device=DEVICE))
    same(results, rtol=1e-5, atol=1e-7)
    if T > 1:
        stats = results[1][0][1]
        assert stats["count"] == (~bad).sum() and (stats["clip"] > 0) == (old is not None)


def test_policy_loss_bf16_kinds_and_nothing():
    logp, old, ref, advantage = (randn(70, seed=i).to(torch.bfloat16) for i in range(4))
    weight = torch.full((70,), 1 / 70, device=DEVICE)
    for kind in ("k1", "k2", "k3"):
        same(
            both(
                lambda backend, x, k=kind: policy_loss(
                    x, old, ref, advantage, weight, kl_kind=k, backend=backend
                ),
                logp.requires_grad_(),
            ),
            rtol=1e-2,
        )
    empty = logp[:0].detach().requires_grad_()
    loss, stats = policy_loss(empty, None, None, advantage[:0], weight[:0], backend="triton")
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
    want, got = (
        group_advantage(rewards, ddof, scale, eps, backend) for backend in ("torch", "triton")
    )
    torch.testing.assert_close(got, want)
    assert (got[[1, 4, 5]] == 0).all()
    for one in (
        *(torch.full((1, G), 0.1, dtype=dtype, device=DEVICE) for G in (3, 7, 64)),
        rewards[:, :1],
    ):
        assert (group_advantage(one, ddof, scale, eps, "triton") == 0).all()
    assert group_advantage(rewards[:0], backend="triton").shape == (0, 5)


@pytest.mark.parametrize("ddof", [0, 1])
def test_process_advantage(ddof):
    lengths = [130, 1, 0, 64, 7]
    ends = [[3, 64, 65, 129], [0], [], [10, 20, 20], []]
    ends = [torch.tensor(e, dtype=torch.int64, device=DEVICE) for e in ends]
    rewards = [randn(len(e), seed=i) for i, e in enumerate(ends)]
    for _ in range(2):
        want, got = (
            process_advantage(rewards, ends, lengths, ddof, backend)
            for backend in ("torch", "triton")
        )
        torch.testing.assert_close(got, want)
        rewards[3][1] = math.nan  # and once more
    equal = [torch.full_like(r, 0.1) for r in rewards]
    assert all((a == 0).all() for a in process_advantage(equal, ends, lengths, ddof, "triton"))


def test_every_kernel_against_float64():
    """The checks that bench/kernels_gpu.py begins with."""
    rows = check(torch.device(DEVICE), True, 3, "triton")
    assert len(rows) > 80 and not [row for row in rows if not row["error"] <= row["bound"]]


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
