"""Equation 3: values and gradients by hand, against its formula, equation 21 and TRL."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train_grpo import grpo_loss, token_weights


def policy_loss(logp, old_logp, ref_logp, advantage, weight, low=0.2, high=0.2, beta=0.04):
    """Equation 3; old_logp None: the policy itself sampled."""
    old_logp = logp.detach() if old_logp is None else old_logp
    return grpo_loss(logp, old_logp, ref_logp, advantage, weight, (low, high), beta)


LENGTHS = [3, 1, 5, 2]  # policy-chosen tokens of four completions


def example(dtype=torch.float64, seed=0, spread=0.4):
    """Packed tokens of LENGTHS: (logp, old_logp, ref_logp, advantage by token, mask, completion index)."""
    g = torch.Generator().manual_seed(seed)
    completion = torch.repeat_interleave(torch.tensor(LENGTHS))
    T = len(completion)
    logp = (-3 * torch.rand(T, generator=g)).to(dtype).requires_grad_()
    old, ref = ((logp.detach() + spread * torch.randn(T, generator=g)).to(dtype) for _ in range(2))
    advantage = torch.randn(len(LENGTHS), generator=g).to(dtype)[completion]
    return logp, old, ref, advantage, torch.ones(T, dtype=torch.bool), completion


def weights(mask, completion, normalization="grpo", max_tokens=8):
    lengths = torch.bincount(completion[mask], minlength=len(LENGTHS))
    return token_weights(
        lengths, mask, completion, normalization, len(LENGTHS), int(mask.sum()), max_tokens
    )


def equation_3(logp, old, ref, advantage, completion, low=0.2, high=0.2, beta=0.04):
    """Minus the objective, written completion by completion and token by token."""
    total = 0
    for i in range(len(LENGTHS)):
        inner = 0
        for t in (completion == i).nonzero()[:, 0].tolist():
            ratio = torch.exp(logp[t] - old[t])
            clipped = torch.clamp(ratio, 1 - low, 1 + high)
            k3 = torch.exp(ref[t] - logp[t]) - (ref[t] - logp[t]) - 1
            inner = inner + torch.min(ratio * advantage[t], clipped * advantage[t]) - beta * k3
        total = total + inner / (completion == i).sum()
    return -total / len(LENGTHS)


def test_equation_3_and_its_gradient():
    logp, old, ref, advantage, mask, completion = example()
    loss, _ = policy_loss(logp, old, ref, advantage, weights(mask, completion).double())
    (got,) = torch.autograd.grad(loss, logp)
    other = equation_3(logp, old, ref, advantage, completion)
    (want,) = torch.autograd.grad(other, logp)
    assert loss.item() == pytest.approx(other.item(), rel=1e-6)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
    assert (got[advantage != 0] != 0).all()  # clipped tokens still feel the KL


def test_equation_21_is_the_gradient_of_equation_3():
    """With mu = 1: -(A + beta (exp(ref - logp) - 1)) / (|o| N), by autograd of equation 3 and by ours, exactly."""
    logp, _, ref, advantage, mask, completion = example()
    w = torch.tensor([1 / (n * len(LENGTHS)) for n in LENGTHS], dtype=torch.float64)[completion]
    coefficient = -(advantage + 0.04 * (torch.exp(ref - logp.detach()) - 1)) * w
    (autograd,) = torch.autograd.grad(
        equation_3(logp, logp.detach(), ref, advantage, completion), logp
    )
    (ours,) = torch.autograd.grad(policy_loss(logp, None, ref, advantage, w)[0], logp)
    torch.testing.assert_close(autograd, coefficient, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(ours, coefficient, rtol=1e-13, atol=1e-15)


def test_one_update_has_a_gradient_and_ratio_one():
    logp, _, _, advantage, mask, completion = example(torch.float32)
    w = weights(mask, completion)
    loss, stats = policy_loss(logp, None, None, advantage, w, beta=0.0)
    loss.backward()
    torch.testing.assert_close(logp.grad, -advantage * w)
    torch.testing.assert_close(loss, -(advantage * w).sum())
    assert stats["ratio"] == stats["count"] == len(logp) and stats["clip"] == stats["kl"] == 0
    explicit = policy_loss(logp, logp.detach(), None, advantage, w, beta=0.0)[0]
    assert torch.equal(torch.autograd.grad(explicit, logp)[0], logp.grad)


@pytest.mark.parametrize(
    "ratio, advantage, value, slope, clipped",
    [  # clip at 0.8 and 1.2; both signs of A, on both sides
        (1.1, 2.0, -2.2, -2.2, 0),
        (1.5, 2.0, -2.4, 0.0, 1),
        (0.5, 2.0, -1.0, -1.0, 0),
        (1.5, -2.0, 3.0, 3.0, 0),
        (0.5, -2.0, 1.6, 0.0, 1),
        (0.9, -2.0, 1.8, 1.8, 0),
        (1.5, 0.0, 0.0, 0.0, 0),
    ],
)
def test_clip_by_hand(ratio, advantage, value, slope, clipped):
    logp = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    loss, stats = policy_loss(logp, 0 * one, None, advantage * one, one)
    loss.backward()
    assert (loss.item(), logp.grad.item(), stats["clip"].item()) == pytest.approx(
        (value, slope, clipped)
    )
    assert stats["ratio"].item() == pytest.approx(ratio)


def test_clip_higher():
    logp = torch.tensor([math.log(1.25)], requires_grad=True)
    one = torch.ones(1)
    assert policy_loss(logp, 0 * one, None, one, one, 0.2, 0.28)[0].item() == pytest.approx(-1.25)
    assert policy_loss(logp, 0 * one, None, one, one)[0].item() == pytest.approx(-1.2)


@pytest.mark.parametrize("has_old, has_ref", [(True, True), (False, True), (True, False)])
def test_gradcheck(has_old, has_ref):
    """Finite differences; with mu = 1 the stand-in for the detached old log-prob is the same number held fixed."""
    logp, old, ref, advantage, mask, completion = example(seed=1)
    w, ref = weights(mask, completion).double(), ref if has_ref else None
    if has_old:
        assert torch.autograd.gradcheck(
            lambda x: policy_loss(x, old, ref, advantage, w)[0], (logp,)
        )
    else:
        (got,) = torch.autograd.grad(policy_loss(logp, None, ref, advantage, w)[0], logp)
        fixed = logp.detach().clone()
        (want,) = torch.autograd.grad(policy_loss(logp, fixed, ref, advantage, w)[0], logp)
        torch.testing.assert_close(got, want)


def test_incoming_gradient_scales():
    logp, old, ref, advantage, mask, completion = example()
    w = weights(mask, completion).double()
    (one,) = torch.autograd.grad(policy_loss(logp, old, ref, advantage, w)[0], logp)
    (three,) = torch.autograd.grad(3 * policy_loss(logp, old, ref, advantage, w)[0], logp)
    torch.testing.assert_close(three, 3 * one)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
def test_masked_tokens_leave_no_trace(junk):
    logp, old, ref, advantage, mask, completion = example(torch.float32)
    mask = torch.arange(len(logp)) % 3 != 1
    w = weights(mask, completion)
    clean, clean_stats = policy_loss(logp, old, ref, advantage, w)
    (clean_grad,) = torch.autograd.grad(clean, logp)
    dirty = [x.detach().where(mask, junk) for x in (logp, old, ref, advantage)]
    dirty[0].requires_grad_()
    loss, stats = policy_loss(*dirty, w)
    loss.backward()
    assert torch.equal(loss, clean) and torch.equal(dirty[0].grad, clean_grad)
    assert (dirty[0].grad[~mask] == 0).all()
    assert stats == clean_stats and stats["count"] == mask.sum()


def test_stats_are_sums_over_policy_tokens():
    logp, old, ref, advantage, mask, completion = example()
    mask[2] = mask[6] = False
    _, stats = policy_loss(logp, old, ref, advantage, weights(mask, completion).double())
    x, ratio = logp.detach()[mask], torch.exp(logp.detach() - old)[mask]
    assert stats["kl"].item() == pytest.approx(
        (torch.exp(ref[mask] - x) - (ref[mask] - x) - 1).sum().item(), rel=1e-6
    )
    assert stats["ratio"].item() == pytest.approx(ratio.sum().item())
    a = advantage[mask]
    assert stats["clip"] == (((ratio > 1.2) & (a > 0)) | ((ratio < 0.8) & (a < 0))).sum() > 0
    assert all(not x.requires_grad for x in stats.values())


def test_extreme_ratios_are_finite():
    logp = torch.tensor([0.0, 0.0, -200.0, -200.0], requires_grad=True)
    old, advantage = torch.tensor([-200.0, -200.0, 0.0, 0.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss, stats = policy_loss(logp, old, torch.full((4,), -1.0), advantage, torch.full((4,), 0.25))
    loss.backward()
    assert (
        loss.isfinite() and logp.grad.isfinite().all() and all(x.isfinite() for x in stats.values())
    )


def trl(logp, old, ref, advantage, mask, beta, low, high, loss_type, max_length):
    """The losses of TRL's GRPO trainer on a padded [N, L] batch, advantage [N], restated."""
    ratio = torch.exp(logp - old)
    loss = -torch.min(
        ratio * advantage[:, None], ratio.clamp(1 - low, 1 + high) * advantage[:, None]
    )
    loss = loss + beta * (torch.exp(ref - logp) - (ref - logp) - 1)
    if loss_type == "grpo":
        return ((loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
    if loss_type == "dapo":
        return (loss * mask).sum() / mask.sum().clamp(min=1.0)
    return (loss * mask).sum() / (len(loss) * max_length)


@pytest.mark.parametrize("normalization", ["grpo", "dapo", "dr_grpo"])
def test_as_trl_on_padded_rows(normalization):
    """The same batch, packed here and padded there; one completion has no policy tokens and counts in the mean."""
    torch.manual_seed(3)
    N, L = 5, 7
    mask = torch.rand(N, L) < 0.6
    mask[2] = False
    logp = (-torch.rand(N, L, dtype=torch.float64)).requires_grad_()
    old, ref = (logp.detach() + 0.3 * torch.randn(N, L) for _ in range(2))
    advantage = torch.randn(N, dtype=torch.float64)
    want = trl(logp, old, ref, advantage, mask, 0.04, 0.2, 0.28, normalization, 16)
    (want_grad,) = torch.autograd.grad(want, logp)
    index = torch.arange(N)[:, None].expand(N, L).reshape(-1)
    w = token_weights(mask.sum(1), mask.reshape(-1), index, normalization, N, int(mask.sum()), 16)
    x = logp.detach().reshape(-1).requires_grad_()
    loss, _ = policy_loss(
        x, old.reshape(-1), ref.reshape(-1), advantage[index], w.double(), 0.2, 0.28
    )
    loss.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    torch.testing.assert_close(x.grad.view(N, L), want_grad, rtol=1e-6, atol=1e-9)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 5))
def test_weights_add_up(lengths, split):
    """Over the batch, however it is cut into micro-batches, weights of 1 a token add up to the mean's meaning."""
    N, tokens = len(lengths), sum(lengths)
    lengths, mask = torch.tensor(lengths), torch.ones(tokens, dtype=torch.bool)
    index = torch.repeat_interleave(lengths)
    for normalization, total in (
        ("grpo", (lengths > 0).sum().item() / N),
        ("dapo", float(tokens > 0)),
        ("dr_grpo", tokens / (N * 9)),
    ):
        whole = token_weights(lengths, mask, index, normalization, N, tokens, 9)
        assert whole.dtype == torch.float32 and whole.sum().item() == pytest.approx(total, rel=1e-5)
        first = (
            index < split
        )  # a micro-batch of whole completions knows its own lengths and the global counts
        parts = [
            token_weights(lengths[:split], mask[first], index[first], normalization, N, tokens, 9),
            token_weights(
                lengths[split:], mask[~first], index[~first] - split, normalization, N, tokens, 9
            ),
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_masked_tokens_weigh_nothing():
    mask = torch.tensor([False, True, True, False, False])
    index = torch.tensor([0, 0, 0, 1, 1])
    assert token_weights(torch.tensor([2, 0]), mask, index, "grpo", 2, 2, 4).tolist() == [
        0,
        0.25,
        0.25,
        0,
        0,
    ]
    nothing = token_weights(torch.tensor([0, 0]), mask & False, index, "dapo", 2, 0, 4)
    loss, stats = policy_loss(
        torch.zeros(5, requires_grad=True), None, None, torch.ones(5), nothing
    )
    assert loss == 0 and stats["count"] == 0


def test_unknown_normalization():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="normalization 'mean'"):
        token_weights(x.long(), x.bool(), x.long(), "mean", 1, 1, 1)
