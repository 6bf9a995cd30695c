"""LM head and loss in one: the gradient is made in the forward pass, so that no logits are made twice.

The log-probs of a chunk of tokens are made, the definition of the loss says by autograd how the loss changes with
them (the slope), and the logits turn at once into their own gradient, slope * (onehot - softmax) / temperature. That
takes 6NDV FLOPs in place of the 8NDV of kernels/logprob.py, and the logits exist a chunk at a time.

It pays for large vocabularies. With a small one the head is no share of a step.
"""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import accelerator
from kernels.cases import cross_entropy_cases, grpo_cases, ppo_cases
from kernels.fingerprint import resolve
from kernels.logprob import chunk_size, float_of, learned, product

LARGE = 4096  # words

Loss = Callable[[Tensor, Tensor], tuple[Tensor, dict]]  # (log-probs [n], tokens [n]) -> loss, sums


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, targets, chosen, temperature, entropy, loss_of, wanted):
        """wanted: do hidden and head need a gradient?"""
        dtype = float_of(hidden)
        h, w = hidden.to(dtype), head.to(dtype)
        V, size = len(head), chunk_size(hidden, len(head))
        logp, spread = h.new_zeros(len(h)), h.new_zeros(len(h))
        grad_h = torch.zeros_like(h) if wanted[0] else None
        grad_w = torch.zeros_like(w) if wanted[1] else None
        loss, sums = h.new_zeros(()), {}
        buffer = h.new_empty(min(size, len(chosen)), V)
        for some in chosen.split(size):
            inputs, labels = h[some], targets[some, None]
            logits = product(inputs, w.T, out=buffer[: len(some)])
            if temperature != 1:
                logits.div_(temperature)
            log_p = torch.log_softmax(logits, -1, out=logits)
            logp[some] = log_p.gather(1, labels)[:, 0]
            p = log_p.exp() if entropy else None
            if entropy:
                spread[some] = -torch.linalg.vecdot(p, log_p)

            # the loss of these tokens, and its slope
            with torch.enable_grad():
                leaf = logp[some].requires_grad_()
                part, stats = loss_of(leaf, some)
                (slope,) = torch.autograd.grad(part, leaf)
            loss += part.detach()
            for name, value in stats.items():
                sums[name] = sums.get(name, 0) + value
            live = slope.nonzero()[:, 0]
            if not (len(live) and any(wanted)):
                continue

            # the gradient of the logits takes their place
            p = torch.exp(log_p, out=log_p) if p is None else p
            if len(live) < len(some):
                p, inputs, labels, some, slope = (x[live] for x in (p, inputs, labels, some, slope))
            coefficient = (slope / temperature)[:, None]
            p.mul_(-coefficient).scatter_add_(1, labels, coefficient)
            if grad_h is not None:
                grad_h[some] = product(p, w)
            if grad_w is not None:
                grad_w.addmm_(p.T, inputs)
        ctx.gradients = [
            None if grad is None else grad.to(x.dtype)
            for grad, x in ((grad_h, hidden), (grad_w, head))
        ]
        ctx.mark_non_differentiable(logp, spread)
        return loss, logp, spread, sums

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss are used up: call the loss again")
        found, ctx.gradients = ctx.gradients, None  # handed over, not copied: this works once
        for x in found:
            if x is not None and grad != 1:
                x.mul_(grad)
        return *found, *[None] * 6


def head_loss(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    chosen: Tensor,
    loss_of: Loss,
    temperature: float = 1.0,
    entropy: bool = False,
):
    """(loss, log-probs [N], entropies [N], sums) of the tokens whose numbers are in `chosen`; 0 elsewhere."""
    wanted = [torch.is_grad_enabled() and x.requires_grad for x in (hidden, head)]
    return _HeadLoss.apply(hidden, head, targets, chosen, temperature, entropy, loss_of, wanted)


def takes(hidden: Tensor, head: Tensor, *rest, **named) -> bool:
    return len(head) >= LARGE and not learned(*rest, *named.values())


def policy(hidden: Tensor, head: Tensor, micro, temperature: float, loss_of: Loss):
    """What a trainer's policy_loss returns: (loss, sums, log-probs [N]). Tokens of weight 0 are not read."""
    chosen = (micro.weight != 0).nonzero()[:, 0]
    loss, logp, spread, sums = head_loss(
        hidden, head, micro.targets, chosen, loss_of, temperature, entropy=True
    )
    if not sums:  # no token at all
        sums = loss_of(logp[chosen], chosen)[1]
    return loss, sums | {"entropy": spread.sum()}, logp


@accelerator("train_grpo.policy_loss", takes=takes, cases=grpo_cases)
def grpo(hidden: Tensor, head: Tensor, micro, config):
    grpo_loss = resolve("train_grpo.grpo_loss")

    def loss_of(logp: Tensor, some: Tensor):
        old = logp.detach() if micro.old_logp is None else micro.old_logp[some]
        ref = None if micro.ref_logp is None else micro.ref_logp[some]
        return grpo_loss(
            logp,
            old,
            ref,
            micro.advantage[some],
            micro.weight[some],
            (config.clip_low, config.clip_high),
            config.beta,
        )

    return policy(hidden, head, micro, config.temperature, loss_of)


@accelerator("train_ppo.policy_loss", takes=takes, cases=ppo_cases)
def ppo(hidden: Tensor, head: Tensor, micro, config):
    ppo_loss = resolve("train_ppo.ppo_loss")

    def loss_of(logp: Tensor, some: Tensor):
        old = logp.detach() if micro.old_logp is None else micro.old_logp[some]
        part = SimpleNamespace(advantage=micro.advantage[some], weight=micro.weight[some])
        return ppo_loss(logp, old, part, config)

    return policy(hidden, head, micro, config.temperature, loss_of)


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, tokens: int) -> Tensor:
    def loss_of(logp: Tensor, some: Tensor):
        return -logp.sum() / tokens, {}

    everything = torch.arange(len(targets), device=targets.device)
    return head_loss(hidden, head, targets, everything, loss_of)[0]


@accelerator("train_pretrain.cross_entropy", takes=takes, cases=cross_entropy_cases)
def pretrain(hidden: Tensor, head: Tensor, targets: Tensor, tokens: int) -> Tensor:
    return cross_entropy(hidden, head, targets, tokens)


@accelerator("train_sft.cross_entropy", takes=takes, cases=cross_entropy_cases)
def sft(hidden: Tensor, head: Tensor, targets: Tensor, tokens: int) -> Tensor:
    return cross_entropy(hidden, head, targets, tokens)
