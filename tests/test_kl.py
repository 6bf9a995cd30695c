"""The estimate of the KL to the reference (eq. 4): values, gradient, rounding, bounds."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train_grpo import kl_estimate


def k3(d: float) -> float:
    """exp(d) - d - 1 of a float in all of float64's digits, by its series near 0."""
    if abs(d) < 0.1:
        return sum(d**k / math.factorial(k) for k in range(2, 12))
    return math.exp(d) - d - 1


def at(d, dtype=torch.float32):
    """(value, gradient with respect to logp) where ref_logp - logp is exactly d."""
    logp = torch.zeros(1, dtype=dtype, requires_grad=True)
    value = kl_estimate(logp, torch.tensor([d], dtype=dtype))
    value.sum().backward()
    return value.item(), logp.grad.item()


def test_by_hand():
    half = math.log(0.5)  # the reference gives the token half the policy's probability
    assert at(half) == pytest.approx((0.5 + math.log(2) - 1, 0.5))
    assert at(0.0) == (0.0, 0.0)


@given(st.floats(-30, 30))
def test_k3_matches_float64_and_is_never_negative(d):
    d = torch.tensor(d).item()  # as float32
    value, slope = at(d)
    assert value >= 0
    assert value == pytest.approx(k3(d), rel=3e-5, abs=1e-30)
    # Beyond the series the slope is exp(d) - 1 in float32, which rounds where exp(d) does.
    rounding = 1.2e-7 if abs(d) > 0.01 else 1e-37
    assert slope == pytest.approx(-math.expm1(d), rel=1e-6, abs=rounding)


def test_the_plain_formula_would_cancel():
    """What the series is for: exp(d) - d - 1 in float32 is all error at 1e-4 and 4.7 % off at 1e-3."""

    def naive_error(d):
        d = torch.tensor(d)
        return abs((d.exp() - d - 1).item() / k3(d.item()) - 1)

    assert naive_error(1e-4) > 0.9
    assert naive_error(1e-3) == pytest.approx(0.047, abs=0.002)


def test_series_is_right_to_4e_8_in_float64():
    for d in (-0.01, -0.003, 1e-5, 1e-3, 0.0099, 0.01):
        assert at(d, dtype=torch.float64)[0] == pytest.approx(k3(d), rel=4e-8)
        assert at(d)[0] == pytest.approx(k3(torch.tensor(d).item()), rel=3e-7)


def test_no_clamp_where_the_policy_lost_a_token():
    assert at(3.0)[1] == pytest.approx(-19.1, abs=0.05)  # a clamp of k3 at 10 would make this 0
    assert at(2.6)[0] < 10 < at(2.62)[0]


def test_overflow_is_finite_with_the_true_sign():
    for d in (88.7, 89.0, 1e4, math.inf):
        value, slope = at(d)
        assert math.isfinite(value) and value > 1e30
        assert math.isfinite(slope) and (slope < -1e30 or d == math.inf)
    value, slope = at(-math.inf)
    assert math.isfinite(value) and value > 9000 and math.isfinite(slope)
    assert at(-200.0) == (199.0, 1.0)


def test_gradcheck():
    logp, ref = (-torch.rand(9, dtype=torch.float64).mul_(4).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(kl_estimate, (logp, ref))


def test_estimate_and_gradient_in_expectation():
    """The estimate averages to KL(p || q) over all tokens, its gradient to that of KL(q || p)."""
    torch.manual_seed(0)
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    log_p, log_q = logits.log_softmax(0), torch.randn(7, dtype=torch.float64).log_softmax(0)
    p, q = log_p.detach().exp(), log_q.exp()  # detached: samples are held fixed
    forward = (log_p.exp() * (log_p - log_q)).sum()
    reverse = (q * (log_q - log_p)).sum()

    def gradient(x):
        return torch.autograd.grad(x, logits, retain_graph=True)[0]

    mean = (p * kl_estimate(log_p, log_q)).sum()
    torch.testing.assert_close(mean, forward)
    torch.testing.assert_close(gradient(mean), gradient(reverse))
