import math
from types import SimpleNamespace

import pytest
import torch
from test_logprob import Largest

import kernels
import train_grpo
import train_pretrain
from batch import logprobs
from kernels import head_loss, logprob
from train_grpo import token_weights

NORMALIZATIONS = ("grpo", "dapo", "dr_grpo")


def example(dtype=torch.float64, seed=0, normalization="grpo", D=6, V=53, lengths=(9, 1, 0, 14, 6)):
    """A batch of completions with masked tokens, one of them without any tokens and one without tokens of its own.

    Returns hidden, weight and the other tensors by name. Ratios leave the clip range on both sides.
    """
    g = torch.Generator().manual_seed(seed)
    T, completion = sum(lengths), torch.repeat_interleave(torch.tensor(lengths))
    exact = torch.promote_types(dtype, torch.float32)
    hidden, weight = (torch.randn(n, D, generator=g).to(dtype).requires_grad_() for n in (T, V))
    mask = torch.rand(T, generator=g) < 0.8
    mask[completion == 4] = False
    count = torch.bincount(completion[mask], minlength=len(lengths))
    weights = token_weights(count, mask, completion, normalization, 4, int(mask.sum()), 16).to(
        exact
    )
    advantage = torch.randn(len(lengths), generator=g)[completion].to(exact)
    tokens = dict(targets=torch.randint(V, (T,), generator=g), advantage=advantage, weights=weights)
    with torch.no_grad():
        logp = logprobs(hidden, weight, tokens["targets"])[0]
    for name in ("old_logp", "ref_logp"):
        tokens[name] = logp + 0.4 * torch.randn(T, generator=g)
    return hidden, weight, tokens


@pytest.fixture
def chunks(monkeypatch):
    """chunks(tokens, V): logits of so many tokens exist at once."""
    return lambda tokens, V: monkeypatch.setitem(logprob.CHUNK_BYTES, "cpu", 4 * V * tokens)


def arguments(
    hidden, weight, targets, advantage, weights, old_logp=None, ref_logp=None, **settings
):
    """What policy_loss takes: hidden, head, micro, config."""
    micro = SimpleNamespace(
        targets=targets, advantage=advantage, weight=weights, old_logp=old_logp, ref_logp=ref_logp
    )
    usual = dict(temperature=1.0, clip_low=0.2, clip_high=0.2, beta=0.04)
    return hidden, weight, micro, SimpleNamespace(**{**usual, **settings})


def head_policy_loss(*args, **settings):
    return head_loss.grpo(*arguments(*args, **settings))


def two_calls(*args, **settings):
    """The definition: log-probs, then the loss on them."""
    with kernels.plain():
        return train_grpo.policy_loss(*arguments(*args, **settings))


def results(function, hidden, weight, tokens, **settings):
    """Everything a loss gives, by name: value, gradients, sums, log-probs."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    loss, stats, logp = function(hidden, weight, **tokens, **settings)
    (3 * loss).backward()
    assert not logp.requires_grad and not any(x.requires_grad for x in stats.values())
    return {
        "loss": loss.detach(),
        "hidden": hidden.grad,
        "weight": weight.grad,
        "logp": logp,
        **stats,
    }


def assert_same(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        assert found[name].dtype == x.dtype, name
        scale = x.abs().max().clamp(min=1e-3).item()
        torch.testing.assert_close(
            found[name], x, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("old, ref", [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_as_two_calls(dtype, tolerance, old, ref, normalization, chunks):
    hidden, weight, tokens = example(dtype, normalization=normalization)
    tokens["old_logp"], tokens["ref_logp"] = (
        tokens["old_logp"] if old else None,
        tokens["ref_logp"] if ref else None,
    )
    for temperature, chunk in ((1.0, 1000), (0.7, 4), (1.3, 1)):
        chunks(chunk, len(weight))
        settings = dict(clip_low=0.1, clip_high=0.3, beta=0.2 * ref, temperature=temperature)
        wanted = results(two_calls, hidden, weight, tokens, **settings)
        found = results(head_policy_loss, hidden, weight, tokens, **settings)
        assert_same(found, wanted, tolerance)
        assert not old or temperature != 1 or wanted["clip"] > 2


@pytest.mark.parametrize(
    "cross_entropy", [head_loss.pretrain, train_pretrain.cross_entropy.definition]
)
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_cross_entropy(dtype, tolerance, cross_entropy, chunks):
    """Value and gradients against autograd through log_softmax of all logits, in float64."""
    hidden, weight, tokens = example(dtype, V=97, D=16)
    h, w = (x.detach().double().requires_grad_() for x in (hidden, weight))
    expected = -(h @ w.T).log_softmax(-1).gather(1, tokens["targets"][:, None]).sum() / 40
    (3 * expected).backward()
    for chunk in (1000, 7):
        chunks(chunk, len(weight))
        h2, w2 = (x.detach().requires_grad_() for x in (hidden, weight))
        loss = cross_entropy(h2, w2, tokens["targets"], 40)
        (3 * loss).backward()
        assert loss.dtype == torch.promote_types(dtype, torch.float32)
        exact = 1e-12 if dtype == torch.float64 else 1e-5
        assert loss.item() == pytest.approx(expected.item(), rel=exact)
        for found, wanted in ((h2.grad, h.grad), (w2.grad, w.grad)):
            assert (found.double() - wanted).abs().max() <= tolerance * wanted.abs().max()
        with torch.no_grad():
            again = cross_entropy(h2, w2, tokens["targets"], 40)
        assert again.item() == pytest.approx(loss.item())


def test_large_vocabularies_alone(monkeypatch):
    """A small vocabulary's head is no share of a step. Windows of nothing but EOS have no token."""
    calls, apply = [], head_loss._HeadLoss.apply
    monkeypatch.setattr(head_loss._HeadLoss, "apply", lambda *a: calls.append(1) or apply(*a))
    for vocabulary, taken in ((4095, 0), (4096, 1)):
        weight, hidden = torch.zeros(vocabulary, 2), torch.zeros(3, 2)
        loss = train_pretrain.cross_entropy(hidden, weight, torch.tensor([0, 5, 4094]), 3)
        assert loss.item() == pytest.approx(math.log(vocabulary)) and len(calls) == taken
    nothing = torch.zeros(0, 2, requires_grad=True), weight, torch.zeros(0, dtype=torch.int64)
    empty = train_pretrain.cross_entropy(*nothing, 3)
    empty.backward()
    assert empty.item() == 0


def test_as_the_whole_table_in_float64(chunks):
    """Autograd through the softmax of all logits, with float32 here: the project's own two calls are not the oracle."""
    hidden, weight, tokens = example(torch.float32, V=300, D=32)
    h, w = (
        hidden.detach().double().requires_grad_(),
        (0.2 * weight.detach()).double().requires_grad_(),
    )
    live = tokens["weights"] != 0
    log_p = (h @ w.T / 0.8).log_softmax(-1)
    logp = log_p.gather(1, tokens["targets"][:, None])[:, 0]
    ratio, d = (logp - tokens["old_logp"]).exp(), tokens["ref_logp"] - logp
    a = tokens["advantage"]
    terms = torch.minimum(ratio * a, ratio.clamp(0.9, 1.2) * a) - 0.1 * (d.exp() - d - 1)
    loss = -(tokens["weights"] * terms)[live].sum()
    (3 * loss).backward()
    entropy = -(log_p.exp() * log_p).sum(-1)[live].sum()
    settings = dict(clip_low=0.1, clip_high=0.2, beta=0.1, temperature=0.8)
    chunks(5, len(weight))
    found = results(head_policy_loss, hidden, 0.2 * weight, tokens, **settings)
    for name, x in dict(loss=loss, hidden=h.grad, weight=w.grad, entropy=entropy).items():
        assert (found[name] - x).abs().max() < 1e-5 * x.abs().max(), name


def test_equation_21():
    """With one update a rollout the gradient of each logit is that of -(A + beta (exp(ref - logp) - 1)) w logp."""
    hidden, weight, tokens = example()
    tokens["old_logp"] = None
    found = results(head_policy_loss, hidden, weight, tokens, beta=0.04)
    logp, _ = logprobs(hidden, weight, tokens["targets"])
    coefficient = tokens["advantage"] + 0.04 * torch.expm1(tokens["ref_logp"] - logp.detach())
    (
        -3 * (tokens["weights"] * coefficient).where(tokens["weights"] != 0, 0) * logp
    ).sum().backward()
    torch.testing.assert_close(found["hidden"], hidden.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found["weight"], weight.grad, rtol=1e-9, atol=1e-12)


def test_masked_rows_leave_no_trace(chunks):
    """NaN and infinities in every tensor of a masked token: nothing of it is read."""
    hidden, weight, tokens = example(torch.float32)
    chunks(5, len(weight))
    clean = results(head_policy_loss, hidden, weight, tokens)
    masked = tokens["weights"] == 0
    dirty = {
        name: x.where(~masked, math.nan)
        for name, x in tokens.items()
        if name not in ("targets", "weights")
    }
    dirty = {**tokens, **dirty}
    infinite = hidden.detach().where(~masked[:, None], math.inf)
    found = results(head_policy_loss, infinite, weight, dirty)
    assert_same(found, clean, 1e-6)
    assert (found["hidden"][masked] == 0).all() and (found["logp"][masked] == 0).all()


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the rows of logits that matrix products make (of V columns), and those of gradients they take."""

    def __init__(self, V):
        super().__init__()
        self.V, self.made, self.taken = V, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if "mm" in str(function) and out.dim() == 2:
            self.made += out.shape[0] * (out.shape[1] == self.V)
            self.taken += args[0].shape[0] * (args[0].shape[1] == self.V)
        return out


@pytest.mark.parametrize("ref", [True, False])
def test_only_rows_with_a_gradient_are_multiplied(ref, chunks):
    """Rows without loss are dropped; those without advantage are read alone, where there is no KL either."""
    hidden, weight, tokens = example(torch.float32)
    tokens["advantage"][:9] = 0
    tokens["old_logp"], tokens["ref_logp"] = None, tokens["ref_logp"] if ref else None
    live = tokens["weights"] != 0
    wanted = results(two_calls, hidden, weight, tokens, beta=0.04 * ref)
    chunks(4, len(weight))
    with Products(53) as seen:
        found = results(head_policy_loss, hidden, weight, tokens, beta=0.04 * ref)
    assert seen.made == live.sum() < len(live)
    assert seen.taken == (live if ref else live & (tokens["advantage"] != 0)).sum()
    assert_same(found, wanted, 1e-5)


def test_no_logits_are_made_twice_or_all_at_once(chunks):
    """6TDV, not 8: three products of a chunk's logits. No tensor is larger than a chunk's."""
    hidden, weight, tokens = example(torch.float32, D=4, V=50, lengths=(40, 24))
    tokens["weights"] = torch.full((64,), 1 / 64)
    chunks(8, len(weight))
    with Largest() as largest, Products(50) as seen:
        head_policy_loss(hidden, weight, **tokens)[0].backward()
    assert largest.elements == 8 * 50 and (seen.made, seen.taken) == (64, 64)


def test_without_gradients_it_only_reads():
    hidden, weight, tokens = example(torch.float32)
    wanted = head_policy_loss(hidden, weight, **tokens)
    with Products(53) as seen, torch.no_grad():
        found = head_policy_loss(hidden, weight, **tokens)
    assert seen.taken == 0 and not found[0].requires_grad
    torch.testing.assert_close(
        found, tuple(x if isinstance(x, dict) else x.detach() for x in wanted)
    )


def test_only_what_needs_a_gradient_gets_one():
    hidden, weight, tokens = example(torch.float32)
    head_policy_loss(hidden, weight.detach(), **tokens)[0].backward()
    only_hidden, hidden.grad = hidden.grad, None
    head_policy_loss(hidden.detach(), weight, **tokens)[0].backward()
    only_weight, weight.grad = weight.grad, None
    head_policy_loss(hidden, weight, **tokens)[0].backward()
    assert torch.equal(only_hidden, hidden.grad) and torch.equal(only_weight, weight.grad)


def test_bf16(chunks):
    """bf16 inputs: log-probs are float32 from the dot product on, gradients come back in bf16, summed in float32."""
    hidden, weight, tokens = example(torch.bfloat16, D=32, V=300)
    weight = (0.2 * weight.detach()).requires_grad_()
    chunks(3, len(weight))
    found = results(head_policy_loss, hidden, weight, tokens)
    assert found["loss"].dtype == found["logp"].dtype == torch.float32
    assert found["hidden"].dtype == found["weight"].dtype == torch.bfloat16
    exact = results(head_policy_loss, hidden.double(), weight.double(), tokens)
    assert (found["logp"] - exact["logp"]).abs().max() < 1e-5
    for name in ("hidden", "weight"):
        torch.testing.assert_close(
            found[name].double(), exact[name], rtol=1e-2, atol=1e-2 * exact[name].abs().max()
        )


def test_a_chain_before_and_a_second_use_of_the_weight():
    """Gradients flow on into what made hidden, and add to the weight's from elsewhere (a tied embedding)."""
    hidden, weight, tokens = example()
    first = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    for function in (two_calls, head_policy_loss):
        loss, _, _ = function(
            (hidden.detach() + weight[tokens["targets"]]) @ first, weight, **tokens
        )
        (loss + weight.square().sum()).backward()
        if function is two_calls:
            wanted = weight.grad, first.grad
            weight.grad = first.grad = None
    torch.testing.assert_close((weight.grad, first.grad), wanted, rtol=1e-10, atol=1e-12)


def test_gradients_are_handed_over_once():
    hidden, weight, tokens = example()
    loss, _, _ = head_policy_loss(hidden, weight, **tokens)
    loss.backward(retain_graph=True)
    kept = weight.grad.clone()
    with pytest.raises(RuntimeError, match="call the loss again"):
        loss.backward()
    assert torch.equal(weight.grad, kept)


@pytest.mark.parametrize("T", [0, 5])
def test_nothing_to_learn(T):
    hidden, weight, tokens = example(torch.float32, lengths=(T,))
    tokens["weights"].zero_()
    found = results(head_policy_loss, hidden, weight, tokens)
    assert found["loss"] == found["count"] == found["entropy"] == 0 and (found["weight"] == 0).all()
    assert found["hidden"].shape == (T, 6) and (found["hidden"] == 0).all()
