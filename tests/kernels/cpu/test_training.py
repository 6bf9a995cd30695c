"""kernels/cpu/attention.py and block.py: the C++ of training on a CPU against the definitions in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import model as model_module
from kernels import cpu
from kernels.cpu import attention as cpu_attention
from kernels.cpu import block as cpu_block
from model import Layout, ModelConfig, Transformer

pytestmark = pytest.mark.skipif(
    cpu.native() is None, reason="no C++ compiler that takes the sources"
)

FAMILIES = st.lists(
    st.tuples(st.integers(1, 40), st.lists(st.integers(1, 35), max_size=4)), min_size=1, max_size=4
)


def layout_of(groups):
    """Each group a segment and its children, packed in an order of kinds that families must find again."""
    lengths, parents = [prompt for prompt, _ in groups], [-1] * len(groups)
    for number, (_, children) in enumerate(groups):
        lengths += children
        parents += [number] * len(children)
    return Layout(lengths, parents)


def table_of(E, positions):
    config = ModelConfig(2, width=E, layers=1, heads=1, kv_heads=1, ffn=2)
    return model_module.rope_table(config, positions)


def defined(qkv, table, layout, H):
    """The definition in float64."""
    qkv = qkv.detach().double().requires_grad_()
    return qkv, model_module.attention.definition(qkv, table.double(), layout, H)


@settings(max_examples=40)
@given(
    FAMILIES,
    st.sampled_from([(4, 4), (4, 2), (3, 1), (5, 1)]),
    st.sampled_from([16, 32, 48]),
    st.integers(0, 9),
)
def test_attention_of_ragged_shared_layouts(groups, heads, E, seed):
    layout, (H, K), draw = layout_of(groups), heads, torch.Generator().manual_seed(seed)
    qkv = torch.randn(layout.tokens, H + 2 * K, E, generator=draw, requires_grad=True)
    upstream, table = (
        torch.randn(layout.tokens, H * E, generator=draw),
        table_of(E, layout.max_position + 3),
    )
    out = cpu_attention.attention(qkv, table, layout, H)
    (slope,) = torch.autograd.grad(out, qkv, upstream)
    exact, expected = defined(qkv, table, layout, H)
    (of,) = torch.autograd.grad(expected, exact, upstream.double())
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=4e-6)
    torch.testing.assert_close(slope.double(), of, rtol=1e-5, atol=2e-5)


def test_scores_that_are_far_apart():
    """Weights that vanish and weights of one: nothing overflows, and slopes stay those of the definition."""
    layout = Layout([50])
    qkv = (30 * torch.randn(50, 4, 16, generator=torch.Generator().manual_seed(0))).requires_grad_()
    table = table_of(16, 50)
    out = cpu_attention.attention(qkv, table, layout, 2)
    (slope,) = torch.autograd.grad(out.sum(), qkv)
    exact, expected = defined(qkv, table, layout, 2)
    (of,) = torch.autograd.grad(expected.sum(), exact)
    assert out.isfinite().all() and slope.isfinite().all()
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=0.02)
    assert (slope.double() - of).abs().mean() < 1e-3 * of.abs().mean()


def test_threads_change_no_bit():
    layout, table = layout_of([(30, [20, 7]), (5, []), (33, [1, 2, 40])]), table_of(32, 80)
    qkv = torch.randn(layout.tokens, 8, 32, requires_grad=True)
    x, weight = torch.randn(300, 70, requires_grad=True), torch.randn(70, requires_grad=True)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = cpu_attention.attention(qkv, table, layout, 4)
            normed = cpu_block.rms_norm(x, weight, 1e-6)
            found.append(
                [
                    out,
                    *torch.autograd.grad(out.square().sum(), qkv),
                    *torch.autograd.grad(normed.square().sum(), (x, weight)),
                ]
            )
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@settings(max_examples=40)
@given(
    st.integers(0, 200), st.integers(4, 140), st.integers(0, 9), st.sampled_from([1e-3, 1.0, 40.0])
)
def test_norm_and_swiglu(T, D, seed, spread):
    """Widths with tails, and no tokens at all. (A norm over one number has the slope 0, of which nothing is left.)"""
    draw = torch.Generator().manual_seed(seed)
    x, weight = spread * torch.randn(T, D, generator=draw), torch.randn(D, generator=draw)
    wide, upstream = (
        spread * torch.randn(T, 2 * D, generator=draw),
        torch.randn(T, D, generator=draw),
    )
    for ours, defined, inputs in (
        (
            lambda x, w: cpu_block.rms_norm(x, w, 1e-6),
            lambda x, w: F.rms_norm(x, (D,), w, 1e-6),
            (x, weight),
        ),
        (cpu_block.swiglu, lambda x: F.silu(x[:, :D]) * x[:, D:], (wide,)),
    ):
        inputs = [t.requires_grad_() for t in inputs]
        exact = [t.detach().double().requires_grad_() for t in inputs]
        out, expected = ours(*inputs), defined(*exact)
        torch.testing.assert_close(out.double(), expected, rtol=2e-6, atol=2e-6 * spread)
        slopes = torch.autograd.grad(out, inputs, upstream)
        for slope, of in zip(
            slopes, torch.autograd.grad(expected, exact, upstream.double()), strict=True
        ):
            scale = of.abs().max().item() if of.numel() else 0
            torch.testing.assert_close(slope.double(), of, rtol=1e-5, atol=1e-5 * scale + 1e-12)


def test_long_documents_are_left_to_pytorch(monkeypatch):
    """Their attention is faster there; the same hidden states."""
    called, apply = [], cpu_attention._Attention.apply
    monkeypatch.setattr(cpu_attention._Attention, "apply", lambda *a: called.append(1) or apply(*a))
    model = Transformer(
        ModelConfig(50, width=32, layers=1, heads=2, kv_heads=1, ffn=32)
    ).requires_grad_(False)
    ids, found = torch.randint(50, (200,), generator=torch.Generator().manual_seed(0)), []
    for longest in (200 * 16, 199 * 16):
        monkeypatch.setattr(cpu_attention, "LONGEST", longest)
        found.append(model(ids))
    assert called == [1]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    "changes", [dict(qk_norm=True), dict(qkv_bias=True, kv_heads=4), dict(head_width=6)]
)
def test_a_model_learns_as_in_float64(changes, monkeypatch):
    """Hidden states and every gradient; heads of six are left to PyTorch, norms and SwiGLU are not."""
    called = []
    for kernel in (cpu_attention._Attention, cpu_block._RMSNorm, cpu_block._SwiGLU):
        monkeypatch.setattr(
            kernel, "apply", lambda *a, k=kernel, f=kernel.apply: called.append(k.__name__) or f(*a)
        )
    shape = dict(vocab_size=50, width=64, layers=2, heads=4, kv_heads=2, ffn=90) | changes
    model, layout = Transformer(ModelConfig(**shape)), layout_of([(9, [5, 7]), (30, [])])
    ids = torch.randint(50, (layout.tokens,), generator=torch.Generator().manual_seed(0))
    upstream = torch.randn(layout.tokens, 64, generator=torch.Generator().manual_seed(1))
    exact = Transformer(ModelConfig(**shape)).double()
    exact.load_state_dict(model.state_dict())
    found = []
    for one in (model, exact):
        hidden = one(ids, layout)
        (hidden * upstream).sum().backward()
        found.append([hidden, *(p.grad for p in one.parameters() if p.grad is not None)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(
            ours.double(), expected, rtol=0, atol=2e-5 * expected.abs().max().item()
        )
    assert set(called) == {"_RMSNorm", "_SwiGLU"} | (
        set() if "head_width" in changes else {"_Attention"}
    )
