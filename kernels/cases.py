"""Small random arguments for the check by numbers (see kernels/__init__.py)."""

from collections.abc import Iterator
from types import SimpleNamespace

import torch
from torch import Tensor

from kernels import Setting
from model import Layout, Linear, Transformer, rope_table


def normal(setting: Setting, *size: int, gradient: bool = False) -> Tensor:
    """Normal numbers in the run's own type."""
    dtype = torch.bfloat16 if setting.device.type == "cuda" and setting.bf16 else torch.float32
    draw = torch.Generator().manual_seed(sum(size))
    x = torch.randn(*size, generator=draw).to(setting.device, dtype)
    return x.requires_grad_(gradient)


def rms_norm_cases(setting: Setting) -> Iterator[tuple]:
    width, E = setting.shape.width, setting.shape.head_width
    for size in ((70, width), (9, 3, E)):
        weight = normal(setting, size[-1], gradient=True)
        yield normal(setting, *size, gradient=True), weight, setting.shape.norm_eps


def linear_cases(setting: Setting) -> Iterator[tuple]:
    """With a bias and without, large enough to be accelerated."""
    for bias in (True, False):
        module = Linear(512, 640, bias=bias, device=setting.device)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(normal(setting, *parameter.shape))
        yield module, normal(setting, 3, 5, 512, gradient=True)


def swiglu_cases(setting: Setting) -> Iterator[tuple]:
    yield (normal(setting, 37, 2 * setting.shape.ffn, gradient=True),)


def attention_cases(setting: Setting) -> Iterator[tuple]:
    """64 tokens: a question with three completions, and documents of several lengths."""
    shape = setting.shape
    layouts = ([9, 5, 1, 12, 20, 1, 16], [-1, 0, 0, 0, -1, 4, -1]), ([33, 31], None), ([64], None)
    rope = rope_table(shape, 64).to(setting.device)
    for lengths, parents in layouts:
        layout = Layout(lengths, parents, setting.device)
        heads = shape.heads + 2 * shape.kv_heads
        qkv = normal(setting, layout.tokens, heads, shape.head_width, gradient=True)
        yield qkv, rope, layout, shape.heads


def model_case(setting: Setting) -> tuple[Transformer, Tensor, Layout]:
    """A whole small model and 64 tokens: a question with three completions, and documents of several lengths."""
    model = Transformer(setting.shape, seed=1).to(setting.device)
    ids = torch.arange(64, device=setting.device) * 7 % setting.shape.vocab_size
    layout = Layout([9, 5, 1, 12, 20, 1, 16], [-1, 0, 0, 0, -1, 4, -1], setting.device)
    return model, ids, layout


def head_cases(setting: Setting, V: int, N: int = 48) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [N, D], an LM head [V, D] and targets [N]; the first and the last word are among these."""
    hidden = normal(setting, N, 16, gradient=True)
    head = normal(setting, V, 16, gradient=True)
    targets = (torch.arange(N, device=setting.device) * 7919) % V
    targets[-1] = V - 1
    return hidden, head, targets


def logprob_cases(setting: Setting) -> Iterator[tuple]:
    for temperature, entropy in ((1.0, False), (0.7, True)):
        yield *head_cases(setting, setting.shape.vocab_size), temperature, entropy


def cross_entropy_cases(setting: Setting) -> Iterator[tuple]:
    yield *head_cases(setting, 4100), 60


def tokens_of(logp: Tensor, old: bool, ref: bool) -> SimpleNamespace:
    """What eq. 3 knows of each token: a third is masked, where all the rest is NaN or infinite."""
    draw = torch.Generator().manual_seed(len(logp))
    noise = torch.randn(4, len(logp), generator=draw).to(logp.device)
    weight = (noise[0] + 0.5).relu() / len(logp)
    masked = weight == 0
    advantage = noise[1].masked_fill(masked, torch.inf)
    advantage[::5] = 0  # no signal
    old_logp = (logp + 0.4 * noise[2]).masked_fill(masked, torch.nan)
    ref_logp = (logp + 0.5 * noise[3]).masked_fill(masked, -torch.inf)
    return SimpleNamespace(
        advantage=advantage,
        weight=weight,
        old_logp=old_logp if old else None,
        ref_logp=ref_logp if ref else None,
    )


def grpo_loss_cases(setting: Setting) -> Iterator[tuple]:
    """With the KL and without; both sides are clipped."""
    for ref, beta in ((True, 0.3), (False, 0.0)):
        logp = -3 * torch.rand(300, generator=torch.Generator().manual_seed(1))
        logp = logp.to(setting.device)
        micro = tokens_of(logp, True, ref)
        tensors = micro.old_logp, micro.ref_logp, micro.advantage, micro.weight
        logp = logp.masked_fill(micro.weight == 0, torch.nan).requires_grad_()
        yield logp, *tensors, (0.1, 0.2), beta


def grpo_cases(setting: Setting) -> Iterator[tuple]:
    """First and later updates, with the KL and without."""
    for old, ref in ((False, True), (True, True), (False, False)):
        hidden, head, targets = head_cases(setting, 4100)
        with torch.no_grad():
            log_p = (hidden.float() @ head.float().T / 0.8).log_softmax(-1)
        micro = tokens_of(log_p.gather(1, targets[:, None])[:, 0], old, ref)
        micro.targets = targets
        config = SimpleNamespace(temperature=0.8, clip_low=0.1, clip_high=0.2, beta=0.3 * ref)
        yield hidden, head, micro, config


def ppo_cases(setting: Setting) -> Iterator[tuple]:
    for hidden, head, micro, config in grpo_cases(setting):
        micro.ref_logp = None
        yield hidden, head, micro, config


def group_advantage_cases(setting: Setting) -> Iterator[tuple]:
    """Rewards without a signal, and rewards that are not finite."""
    rewards = normal(setting, 7, 5).double()
    rewards[1] = 0.1
    rewards[2, 3], rewards[3, 0], rewards[4] = torch.nan, torch.inf, torch.nan
    for ddof, scale, eps in ((1, "std", 1e-4), (0, "std", 0.0), (1, "none", 1e-4)):
        yield rewards, ddof, scale, eps


def process_advantage_cases(setting: Setting) -> Iterator[tuple]:
    """Several steps that end at one token, completions without steps and without tokens."""
    lengths, ends = [130, 1, 0, 64, 7], ([3, 64, 65, 129], [0], [], [10, 20, 20], [])
    ends = [torch.tensor(e, dtype=torch.int64, device=setting.device) for e in ends]
    rewards = [normal(setting, len(e) + 1)[1:].double() for e in ends]
    yield rewards, ends, lengths, 1, 1e-4
    yield [torch.full_like(r, 0.1) for r in rewards], ends, lengths, 0, 0.0
