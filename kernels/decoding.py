"""What the decoders in this folder stand for, and the check of their numbers."""

import torch
from torch import Tensor, nn

import kernels
from batch import pack_completions, token_logprobs
from generate import Sample, Sampling, Sequence, generate
from kernels import Accelerator, Setting
from kernels.compiled import is_compiled, multiply_in
from model import MLP, Attention, Block, Linear, ModelConfig, RMSNorm, Transformer

# The definitions that a decoder repeats. What these use is found from their code.
DEFINITIONS = (
    "generate.Decoder",
    "model.Transformer.__init__",
    "model.Transformer.__call__",
    "model.Transformer.forward",
    "model.Transformer.decode",
    "model.Transformer.embedded",
    "model.Transformer.rope_table",
    "model.Transformer.logits",
    "model.Transformer.head_weight",
    "model.Block",
    "model.Attention",
    "model.MLP",
    "model.RMSNorm",
    "model.Linear",
)

CLASSES = {Transformer, Block, Attention, MLP, RMSNorm, Linear, nn.Embedding, nn.ModuleList}


_shapes: dict[str, dict[str, tuple[int, ...]]] = {}  # those of each configuration


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the weights of a model of this configuration."""
    key = repr(config)
    if key not in _shapes:
        with torch.device("meta"):
            weights = Transformer(config).named_parameters()
        _shapes[key] = {name: tuple(x.shape) for name, x in weights}
    return _shapes[key]


def is_plain(model: Transformer) -> bool:
    """Is each part of the model as model.py makes it: of a class of the file and no subclass, without hooks, without
    methods of its own, and with the sizes and the eps of the configuration?"""
    config = model.config
    if {name: tuple(x.shape) for name, x in model.named_parameters()} != shapes(config):
        return False
    if len({part.multiply for part in model.layers.modules() if type(part) is Linear}) != 1:
        return False
    sizes = dict(eps=config.norm_eps, H=config.heads, K=config.kv_heads, E=config.head_width)
    sizes |= dict(post_norm=config.post_norm)
    sizes |= dict(max_norm=None)  # of the embedding
    for part in model.modules():
        if type(part) not in CLASSES or part._forward_hooks or part._forward_pre_hooks:
            return False
        for name, value in vars(part).items():
            if callable(getattr(type(part), name, None)) and not is_compiled(value):
                return False
            if name in sizes and value != sizes[name]:
                return False
    return True


def windows_hide(model: Transformer, sequences: list[Sequence]) -> bool:
    """Is a sequence longer than the window of a layer?"""
    longest = max((s.prompt_tokens + s.limit for s in sequences), default=0)
    return any(block.window and longest > block.window for block in model.layers)


PROMPTS = [[5], [3, 1, 4, 1, 5, 9, 2, 6, 5], [7, 8, 9, 7, 8]]
STARTING_ALIKE = [[*range(20, 39), *prompt] for prompt in PROMPTS]  # `generate` shares the start
SAMPLINGS = (  # samples, temperature, top_p, new tokens
    Sampling(3, 1.0, 1.0, 9, seed=1, max_rows=4),
    Sampling(2, 0.7, 0.8, 4, seed=2, max_rows=4),
    Sampling(2, 0.0, 1.0, 5, max_rows=4),
)


class Ids:
    """The least that `generate` needs of a tokenizer."""

    eos_id = -1


def sampling_error(accelerator: Accelerator, setting: Setting) -> float:
    """The largest error of sampled log-probs, as a share of the largest value.

    They are compared with those of a forward pass. In float32 the plain decoder must also draw the same ids.
    """

    def make_decoder(*args):
        plain = kernels.definitions["generate.make_decoder"]
        return (accelerator.function if accelerator.takes(*args) else plain)(*args)

    model = random_model(setting)
    worst = 0.0
    for sampling in SAMPLINGS:
        prompts = PROMPTS if sampling.top_p == sampling.temperature == 1 else STARTING_ALIKE
        with kernels.using({"generate.make_decoder": make_decoder}):
            groups = generate(model, Ids(), prompts, sampling)
        found = sampled_logprobs(groups)
        right = [found]
        with kernels.plain(), torch.no_grad():
            if sampling.top_p == 1:
                right.append(forward_logprobs(model, prompts, groups, sampling.temperature or 1.0))
            if setting.device.type == "cpu" and not setting.bf16:
                plain = generate(model, Ids(), prompts, sampling)
                if sampled_ids(plain) != sampled_ids(groups):
                    return float("inf")
                right.append(sampled_logprobs(plain))
        for expected in right:
            worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst if worst == worst else float("inf")


def sampled_ids(groups: list[list[Sample]]) -> list[list[list[int]]]:
    return [[sample.ids for sample in group] for group in groups]


def sampled_logprobs(groups: list[list[Sample]]) -> Tensor:
    samples = sum(groups, [])
    return torch.cat([torch.tensor(sample.logprobs) for sample in samples])


def forward_logprobs(model: Transformer, prompts: list, groups: list, temperature: float) -> Tensor:
    """Log-probs of the same ids from a forward pass without a cache."""
    pairs = list(zip(prompts, sampled_ids(groups), strict=True))
    batch = pack_completions(pairs, shared=False, device=model.device)
    return token_logprobs(model, batch, temperature)[0].cpu()


def random_model(setting: Setting) -> Transformer:
    """A small model whose distributions are uneven and depend on the whole context."""
    model = Transformer(setting.shape).requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        noise = torch.randn(weight.shape, generator=draw)
        if weight.dim() == 1:
            weight += 0.3 * noise
        else:
            weight.copy_(noise * weight.shape[1] ** -0.5)
    model.config.eos_id = list(range(16))  # samples of different lengths: rows leave and move
    if setting.device.type == "cpu" and setting.bf16:
        multiply_in(model, torch.bfloat16, store=True)
    elif setting.bf16:
        model.to(torch.bfloat16)
    return model.to(setting.device)
