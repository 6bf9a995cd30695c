import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from batch import logprobs as definition
from kernels import logprob
from kernels.logprob import logprobs, product


@pytest.fixture
def chunks(monkeypatch):
    """chunks(tokens, V): logits of so many tokens exist at once."""
    return lambda tokens, V: monkeypatch.setitem(logprob.CHUNK_BYTES, "cpu", 4 * V * tokens)


def example(T=13, D=5, V=11, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(T, D, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(V, (T,), generator=g), torch.randn(T, generator=g)


def oracle(hidden, weight, targets, temperature, grad):
    """(logp, entropy, gradients of hidden and weight) by autograd through the whole table in float64."""
    h, w = (x.detach().double().requires_grad_() for x in (hidden, weight))
    dist = torch.distributions.Categorical(logits=h @ w.T / temperature)
    logp = dist.log_prob(targets)
    logp.backward(grad.double())
    return logp.detach(), dist.entropy().detach(), h.grad, w.grad


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("chunk", [None, 1, 4, 13, 100])
def test_against_float64(temperature, chunk, chunks):
    hidden, weight, targets, grad = example()
    if chunk:
        chunks(chunk, len(weight))
    logp, entropy = logprobs(hidden, weight, targets, temperature, entropy=True)
    logp.backward(grad)
    assert logp.dtype == entropy.dtype == torch.float32 and not entropy.requires_grad
    got = (logp.detach(), entropy, hidden.grad, weight.grad)
    for a, b in zip(got, oracle(hidden, weight, targets, temperature, grad), strict=True):
        torch.testing.assert_close(a, b.float(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("function", [logprobs, definition.definition])
def test_uniform_and_certain_by_hand(function):
    """With an LM head of ones and zeros, hidden states are logits."""
    logits = torch.tensor([[0.0] * 4, [100.0, 0, 0, 0], [math.log(3), 0, -1e9, -1e9]])
    logp, entropy = function(logits, torch.eye(4), torch.tensor([2, 0, 1]), entropy=True)
    assert logp.tolist() == pytest.approx([-math.log(4), 0.0, -math.log(4)])
    assert entropy.tolist() == pytest.approx(
        [math.log(4), 0.0, math.log(4) - 0.75 * math.log(3)], abs=1e-6
    )


def test_gradcheck(chunks):
    hidden, weight, targets, _ = example(dtype=torch.float64)
    chunks(3, len(weight))
    for function in (logprobs, definition.definition):
        assert torch.autograd.gradcheck(
            lambda h, w, f=function: f(h, w, targets, 0.8)[0], (hidden, weight)
        )


def test_masked_tokens_are_skipped_without_a_trace(chunks):
    """A zero incoming gradient: the rest has the same gradients as alone, and NaN in a masked row does not spread."""
    hidden, weight, targets, grad = example()
    grad[[0, 3, 4, 12]] = 0
    live = grad != 0
    h, w = hidden.detach()[live].requires_grad_(), weight.detach().clone().requires_grad_()
    logprobs(h, w, targets[live])[0].backward(grad[live])
    with torch.no_grad():
        hidden[3] = math.nan
    chunks(3, len(weight))
    logprobs(hidden, weight, targets)[0].backward(grad)
    torch.testing.assert_close(hidden.grad[live], h.grad)
    assert (hidden.grad[~live] == 0).all()
    torch.testing.assert_close(weight.grad, w.grad, rtol=1e-5, atol=1e-6)


def test_all_masked_and_empty():
    hidden, weight, targets, grad = example()
    logprobs(hidden, weight, targets)[0].backward(torch.zeros_like(grad))
    assert (hidden.grad == 0).all() and (weight.grad == 0).all()
    logp, entropy = logprobs(hidden[:0], weight, targets[:0], entropy=True)
    assert logp.shape == entropy.shape == (0,)
    logp.sum().backward()


def test_only_what_needs_a_gradient_gets_one():
    hidden, weight, targets, grad = example()
    logprobs(hidden, weight.detach(), targets)[0].backward(grad)
    only_hidden, hidden.grad = hidden.grad, None
    logprobs(hidden.detach(), weight, targets)[0].backward(grad)
    only_weight, weight.grad = weight.grad, None
    logprobs(hidden, weight, targets)[0].backward(grad)
    assert torch.equal(only_hidden, hidden.grad) and torch.equal(only_weight, weight.grad)


def test_entropy_only_when_asked():
    hidden, weight, targets, _ = example()
    logp, entropy = logprobs(hidden, weight, targets)
    assert entropy is None
    assert torch.equal(logp, logprobs(hidden, weight, targets)[0])
    assert definition.definition(hidden, weight, targets)[1] is None


def test_large_logits_stay_finite():
    hidden, weight, targets, _ = example()
    logp, entropy = logprobs(hidden * 1e4, weight, targets, entropy=True)
    assert logp.isfinite().all() and entropy.isfinite().all() and (entropy >= -1e-6).all()


def test_bf16_inputs_give_float32_log_probs():
    """The dot product is not rounded to bf16 on its way: that would be off by nearly 1e-2 nats."""
    hidden, weight, targets, grad = example(64, 32, 300, torch.bfloat16)
    with torch.no_grad():
        weight *= 0.2
    want = oracle(hidden, weight, targets, 1.0, grad)
    logp, entropy = logprobs(hidden, weight, targets, entropy=True)
    logp.backward(grad)
    torch.testing.assert_close(logp, want[0].float(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(entropy, want[1].float(), rtol=1e-5, atol=1e-5)
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(weight.grad.float(), want[3].float(), rtol=1e-2, atol=1e-3)
    rounded = (hidden @ weight.T).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert (rounded - want[0]).abs().max() > 4e-3


class Largest(TorchDispatchMode):
    """Records the most elements of any tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("add", [False, True])
def test_products_of_half_precision(add):
    """Exact products, summed in float32, written or added to `out`. GPUs do it inside the matrix product: PyTorch's
    operations for that (a float32 result of bf16 factors, in place) are there, though not for a CPU."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, generator=draw).bfloat16() for n in ((5, 300), (300, 4)))
    out = torch.ones(5, 4)
    found = product(a, b, out=out, add=add)
    assert found is out or found.data_ptr() == out.data_ptr()
    torch.testing.assert_close(
        out.double(), a.double() @ b.double() + float(add), rtol=1e-5, atol=1e-5
    )
    inputs = (out, a, b) if add else (a, b)
    with pytest.raises(NotImplementedError, match="dtype_out"):
        (torch.addmm if add else torch.mm)(*inputs, out_dtype=torch.float32, out=out)


def test_logits_of_all_tokens_never_exist(chunks):
    hidden, weight, targets, grad = example(T=64, D=4, V=50)
    with Largest() as largest:
        chunks(8, len(weight))
        logprobs(hidden, weight, targets)[0].backward(grad)
    assert largest.elements == 8 * 50  # a chunk of logits, and nothing above it
    with Largest() as largest:
        definition.definition(hidden, weight, targets)[0].backward(grad)
    assert largest.elements == 64 * 50


def test_weight_gradient_adds_up_over_many_chunks(chunks):
    """The sum over tokens is the same whatever the chunk, because it runs in float32 for bf16 weights too."""
    hidden, weight, targets, _ = example(400, 4, 6, torch.bfloat16)
    grad = torch.full((400,), 1.0)
    chunks(1, len(weight))
    logprobs(hidden, weight, targets)[0].backward(grad)
    ones, weight.grad = weight.grad, None
    chunks(400, len(weight))
    logprobs(hidden, weight, targets)[0].backward(grad)
    torch.testing.assert_close(ones, weight.grad, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(
        ones.double(), oracle(hidden, weight, targets, 1.0, grad)[3], rtol=1e-2, atol=1e-2
    )


def test_gradient_of_a_sum():
    """An expanded incoming gradient (stride 0), as sum() gives, and inputs that are not contiguous."""
    hidden, weight, targets, _ = example()
    logprobs(hidden, weight, targets)[0].sum().backward()
    want = oracle(hidden, weight, targets, 1.0, torch.ones(13))
    torch.testing.assert_close(hidden.grad, want[2].float(), rtol=2e-5, atol=2e-6)
    h = hidden.detach().T.contiguous().T.requires_grad_()
    logp, _ = logprobs(h, weight.detach().T.contiguous().T, torch.stack([targets] * 2, 1)[:, 0])
    torch.testing.assert_close(logp, want[0].float(), rtol=2e-5, atol=2e-6)
