"""AdamW, schedules, the limit of the gradient's norm, speed."""

import dataclasses
import math

import pytest
import torch
from toy import SHAPE

from model import Transformer
from runtime.distributed import World
from runtime.optim import (
    adamw,
    backward,
    clip_grad_norm,
    cut,
    lr_constant,
    lr_linear_decay,
    lr_multistep,
    mfu,
    peak_flops,
    set_lr,
)


def test_multistep_schedule():
    rates = {step: lr_multistep(step, 4, 100) for step in (1, 2, 4, 5, 80, 81, 90, 91, 100)}
    assert rates == {1: 0.25, 2: 0.5, 4: 1, 5: 1, 80: 1, 81: 0.316, 90: 0.316, 91: 0.1, 100: 0.1}
    assert [lr_multistep(step, 0, 10) for step in (1, 8, 9, 10)] == [1, 1, 0.316, 0.1]


def test_other_schedules():
    assert [lr_constant(step, 2) for step in (1, 2, 3)] == [
        0.5,
        1,
        1,
    ] and lr_constant(1, 0) == 1
    # The last fifth of 100 steps falls from 1 to 0.1: half-way, at step 90, 0.55.
    rates = [lr_linear_decay(step, 10, 100, 0.2) for step in (5, 10, 80, 90, 100)]
    assert rates == pytest.approx([0.5, 1, 1, 0.55, 0.1])
    assert lr_linear_decay(100, 0, 100, 0.0) == 1


def test_weight_decay_on_matrices_only():
    model = Transformer(SHAPE)
    optimizer = adamw(model, 0.1, weight_decay=0.5)
    decayed, plain = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    vectors = {id(p) for n, p in model.named_parameters() if n.endswith(("norm.weight", "bias"))}
    assert plain == vectors and decayed == {id(p) for p in model.parameters()} - vectors


def test_mfu():
    world = World(size=2)
    peak = peak_flops(world.device)
    assert 1e8 < peak < 1e15 and peak_flops(world.device) == peak
    assert mfu(peak, world) == 0.5


def test_clip_grad_norm():
    model = Transformer(SHAPE)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.head.weight.grad[0, :2] = torch.tensor([3.0, 4.0])
    assert clip_grad_norm(model, 10.0) == 5 and model.head.weight.grad[0, 1] == 4
    assert clip_grad_norm(model, 0.0) == 5 and model.head.weight.grad[0, 1] == 4  # 0: no limit
    assert clip_grad_norm(model, 1.0) == 5
    assert model.head.weight.grad[0, :2].tolist() == pytest.approx([0.6, 0.8])
    model.head.weight.grad[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="nan"):
        clip_grad_norm(model, 1.0)


def test_set_lr():
    optimizer = adamw(Transformer(SHAPE), 0.1)
    assert set_lr(optimizer, 0.5) == 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


@pytest.mark.parametrize("tied", [True, False])
def test_backward_ends_where_the_gradient_is_zero(tied):
    """Two losses, with and without a gradient: the same sums, and the blocks' backward only where it matters."""
    ids = torch.arange(12) % SHAPE.vocab_size
    for factors in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 2.0)):
        gradients, passes = [], []
        for start in (cut, lambda hidden, model: hidden):
            model = Transformer(dataclasses.replace(SHAPE, tied=tied), seed=1)
            weight = model.layers[0].attn.qkv.weight
            weight.register_hook(lambda slope, count=passes: count.append(slope))
            for factor in factors:
                hidden = start(model(ids), model)
                logits = model.logits(hidden)
                backward(logits.sin().sum() * factor, hidden, model)
            gradients.append([p.grad for p in model.parameters()])
            passes.append(None)
        assert passes.index(None) == sum(factor != 0 for factor in factors)
        for found, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected)


def test_a_head_on_frozen_blocks_learns():
    model = Transformer(dataclasses.replace(SHAPE, tied=False), seed=1)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter is model.head.weight)
    hidden = cut(model(torch.arange(5)), model)
    backward(model.logits(hidden).square().sum(), hidden, model)
    assert model.head.weight.grad.any() and model.embed.weight.grad is None


def test_another_term_of_the_loss_keeps_its_gradient():
    """A student's penalty on weights counts, also where the hidden states have no gradient."""
    model = Transformer(SHAPE, seed=1)
    hidden = cut(model(torch.arange(5)), model)
    weight = model.layers[0].mlp.down.weight
    backward(0.0 * model.logits(hidden).sum() + weight.square().sum(), hidden, model)
    assert torch.equal(weight.grad, 2 * weight)
    assert not model.norm.weight.grad.any()
