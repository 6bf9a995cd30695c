"""Named sizes of new models."""

from data.io import InputError
from model import ModelConfig

# name: (width, layers, heads, kv heads, ffn, tied)
# The two largest are DeepSeek-Coder-Base 1.3B and DeepSeek-LLM 7B (paper 2.2, 2.3).
PRESETS = {
    "1m": (128, 4, 4, 2, 384, True),
    "2m": (192, 4, 6, 3, 512, True),
    "4m": (256, 5, 8, 4, 704, True),
    "10m": (320, 8, 10, 5, 896, True),
    "30m": (512, 10, 8, 4, 1408, True),
    "125m": (768, 14, 12, 4, 2048, True),
    "350m": (1024, 24, 16, 8, 2816, True),
    "1.3b": (2048, 24, 16, 16, 5504, False),
    "7b": (4096, 30, 32, 32, 11008, False),
}


def preset(name: str, vocab_size: int, **changes) -> ModelConfig:
    """A named size (see PRESETS), e.g. preset("1m", vocab_size=2048, context=512)."""
    if name not in PRESETS:
        raise InputError(f"unknown model size {name!r}; choose one of {', '.join(PRESETS)}")
    width, layers, heads, kv_heads, ffn, tied = PRESETS[name]
    shape = dict(width=width, layers=layers, heads=heads, kv_heads=kv_heads, ffn=ffn, tied=tied)
    return ModelConfig(vocab_size=vocab_size, **{**shape, **changes})
