"""Products by oneDNN: values and gradients are those of float64, and only large products go there."""

import pytest
import torch

from kernels import onednn
from model import Linear

pytestmark = pytest.mark.skipif(
    not onednn.available(torch.device("cpu")), reason="this torch has no oneDNN beside MKL"
)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(7,), (3, 5)])
def test_linear(bias, size):
    torch.manual_seed(0)
    module = Linear(512, 640, bias=bias)
    x = torch.randn(*size, 512, requires_grad=True)
    slope = torch.randn(*size, 640)
    onednn.linear(module, x).backward(slope)
    found = [x.grad, *(p.grad for p in module.parameters())]

    exact = Linear(512, 640, bias=bias).double()
    exact.load_state_dict(module.state_dict())
    wide = x.detach().double().requires_grad_()
    exact(wide).backward(slope.double())
    expected = [wide.grad, *(p.grad for p in exact.parameters())]
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_only_large_products_in_float32():
    x, module = torch.randn(3, 512), Linear(512, 512, bias=False)
    assert onednn.takes(module, x)
    assert not onednn.takes(Linear(64, 64, bias=False), torch.randn(3, 64))
    assert not onednn.takes(module, x[0])
    assert not onednn.takes(module.double(), x.double())
    module.float().multiply = torch.bfloat16
    assert not onednn.takes(module, x)
