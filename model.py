"""A LLaMA-style transformer by hand: RMSNorm, RoPE, grouped-query attention, SwiGLU (the paper's DeepSeek-LLM).

One class covers the LLaMA family (DeepSeek-LLM, Coder and Math among them), Qwen2 (bias on q, k, v) and Qwen3 (RMSNorm
on q and k). runtime/hf.py reads and writes them. Two ideas shape the file:

- Training input is *packed*: one row of T tokens, no padding. A `Layout` (layout.py) says which token sees which.
- The model returns hidden states. The LM head belongs to the log-prob kernel: logits of [T, V] need never exist.

Shapes: B rows, T tokens, D model width, H heads, K key/value heads, E head width, F feed-forward width, V vocabulary.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import kernels
from data.io import InputError
from kernels import cpu, cpu_attention, cpu_block
from kernels.decode_attention import Prefix, append, decode_attention, prefix_tiles, rows_per_tile
from layout import Layout

# ---------------------------------------------------------------------------------------------------------------------
# Configuration


@dataclass
class ModelConfig:
    """Shape of a model. Field names are ours; runtime/hf.py translates to and from a Hugging Face config.json."""

    vocab_size: int
    width: int  # D
    layers: int
    heads: int  # H
    kv_heads: int  # K, a divisor of H
    ffn: int  # F
    head_width: int = 0  # E, 0 means D / H
    context: int = 4096  # longest sequence the model was made for
    rope_theta: float = 10_000.0
    rope_scaling: dict | None = (
        None  # None, {"rope_type": "linear", "factor": f} or llama3's five numbers
    )
    norm_eps: float = 1e-6
    tied: bool = False  # the LM head is the embedding
    qkv_bias: bool = False  # Qwen2
    out_bias: bool = False  # LLaMA with attention_bias
    qk_norm: bool = False  # Qwen3
    family: str = "llama"  # llama | qwen2 | qwen3
    eos_id: int | list[int] | None = None
    bos_id: int | None = None
    score: str = ""  # what a linear head scores every token for, in place of the LM head: "outcome", "process", "value"

    def __post_init__(self):
        self.head_width = self.head_width or self.width // self.heads
        if self.heads % self.kv_heads:
            raise InputError(f"kv_heads {self.kv_heads} does not divide heads {self.heads}")
        if self.head_width < 2 or self.head_width % 2:
            raise InputError(
                f"head width {self.head_width} (width / heads) is not even; RoPE rotates pairs"
            )

    def flops(self, fed: int, predicted: int, pairs: float) -> float:
        """FLOPs of a forward, a multiplication and an addition each: of `fed` tokens through the blocks, `predicted`
        ones through the head (a score head's are not worth counting), and of attention, where `pairs` counts (token,
        token that it sees, itself included). A backward takes twice as many; looking up an embedding takes none."""
        attn = self.width * self.head_width * (2 * self.heads + 2 * self.kv_heads)
        block = fed * (attn + 3 * self.width * self.ffn) + pairs * 2 * self.heads * self.head_width
        return 2.0 * (
            self.layers * block + (0 if self.score else predicted * self.width * self.vocab_size)
        )

    @property
    def flops_per_token(self) -> float:
        """FLOPs of one token's forward and backward, attention over the context left out (6 N)."""
        return 3 * self.flops(1, 1, 0)


# name: (width, layers, heads, kv heads, ffn, tied). The two largest are DeepSeek-Coder-Base 1.3B and DeepSeek-LLM 7B
# (paper 2.2, 2.3).
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


# ---------------------------------------------------------------------------------------------------------------------
# The KV cache


class KVCache:
    """Keys and values of decoding rows: per layer two tensors [rows, K, capacity, E].

    Rows in use are always the first ones: who drops a row moves the last one into its place (`move`). With `prompts`, a
    prompt lies once in prompt_keys, prompt_values [layers, prompts, K, prompt_capacity, E] however many rows belong to
    it (prompt_of [rows]), and rows hold only what comes after. With a `block` of more than one token, for
    kernels/cpu_decoder.py, the keys of a head lie as [capacity / block, E, block], and `place` [rows] says where a row
    lies: to move it is to say so.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        device="cpu",
        dtype=torch.float32,
        prompts: int = 0,
        prompt_capacity: int = 0,
        block: int = 1,
    ):
        def zeros(*size, dtype=dtype):
            return torch.zeros(size, device=device, dtype=dtype)

        capacity += -capacity % block
        shape = config.layers, rows, config.kv_heads, capacity, config.head_width
        self.rows, self.capacity, self.prompts = rows, capacity, prompts
        self.place = np.arange(rows) if block > 1 else None
        new = zeros if block == 1 else functools.partial(torch.empty, device=device, dtype=dtype)
        self.keys, self.values = new(*shape), new(*shape)
        if prompts:
            shape = config.layers, prompts, config.kv_heads, prompt_capacity, config.head_width
            self.prompt_keys, self.prompt_values = zeros(*shape), zeros(*shape)
            self.prompt_lengths, self.prompt_of = (
                zeros(n, dtype=torch.int64) for n in (prompts, rows)
            )

    def put(self, start: int, stop: int, keys: Tensor, values: Tensor) -> None:
        """Write a prefilled prompt, [layers, K, L, E] each, to the front of rows: the fork of a group is this copy."""
        rows = slice(start, stop)
        if self.place is not None and (np.diff(place := self.place[rows]) == 1).all():
            rows = slice(
                place[0], place[0] + stop - start
            )  # a copy of one piece is several times as fast
        elif self.place is not None:
            rows = torch.from_numpy(place)
        self.keys[:, rows, :, : keys.shape[2]] = keys[:, None]
        self.values[:, rows, :, : values.shape[2]] = values[:, None]

    def put_prompt(self, place: int, keys: Tensor, values: Tensor) -> None:
        """Write a prefilled prompt, [layers, K, L, E] each, where all of its rows read it."""
        self.prompt_lengths[place] = keys.shape[2]
        self.prompt_keys[:, place, :, : keys.shape[2]] = keys
        self.prompt_values[:, place, :, : values.shape[2]] = values

    def move(self, source: int, target: int, length: int) -> None:
        """Put a row, its first `length` tokens, in the place of another, and say which prompt is its."""
        if self.place is not None:
            self.place[[source, target]] = self.place[[target, source]]
            return
        if self.prompts:
            self.prompt_of[target] = self.prompt_of[source]
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]


# ---------------------------------------------------------------------------------------------------------------------
# The transformer


class Linear(nn.Linear):
    """A linear layer that computes in its input's dtype, or in `multiply` (`Transformer.multiply_in`), and returns its
    input's: float32 weights under bf16 activations need no autocast."""

    multiply: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.multiply or x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(x.to(dtype), self.weight.to(dtype), bias).to(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in float32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        if cpu.takes(x):
            return cpu_block.rms_norm(x, self.weight, self.eps)
        if x.dtype in (torch.float32, torch.float64):
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return F.rms_norm(x.float(), x.shape[-1:], None, self.eps).to(x.dtype) * self.weight.to(
            x.dtype
        )


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Rotation per position of each of the E/2 pairs, [E/2] float32: plain, linear (positions / factor) or llama3."""
    E, scaling = config.head_width, config.rope_scaling
    frequency = config.rope_theta ** (-torch.arange(0, E, 2, dtype=torch.float32) / E)
    if scaling is None:
        return frequency
    if scaling["rope_type"] == "linear":
        return frequency / scaling["factor"]
    # llama3: long wavelengths are stretched by `factor`, short ones kept, those between blended
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency * (keep + (1 - keep) / scaling["factor"])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + E/2) of x [T, heads, E] by cos, sin [T, 1, E/2] (the Hugging Face half-split convention)."""
    a, b = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


_flex_attention = None  # compiled at first use on CUDA


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Attention inside a layout: q [T, H, E], k and v [T, K, E] -> [T, H * E]."""
    if kernels.reference:
        return attend_reference(q, k, v, layout)
    if q.is_cuda:
        global _flex_attention
        if _flex_attention is None:
            from torch.nn.attention.flex_attention import flex_attention

            _flex_attention = torch.compile(flex_attention, dynamic=True)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, heads, T, E]
        out = _flex_attention(
            q, k, v, block_mask=layout.block_mask, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out[0].transpose(0, 1).reshape(layout.tokens, -1)
    blocks, inverse = layout.buckets
    outputs = []
    for queries, keys, mask in blocks:
        if inverse is None:
            qb, kb, vb = (x.unflatten(0, queries.shape).transpose(1, 2) for x in (q, k, v))
        else:  # [N, heads, L or P + L, E]; index_select, for its backward is twice as fast as that of indexing
            qb, kb, vb = (
                x.index_select(0, rows.flatten()).unflatten(0, rows.shape).transpose(1, 2)
                for x, rows in ((q, queries), (k, keys), (v, keys))
            )
        out = F.scaled_dot_product_attention(
            qb,
            kb,
            vb,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=qb.shape[1] != kb.shape[1],
        )
        outputs.append(out.transpose(1, 2).reshape(queries.numel(), -1))
    out = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return out if inverse is None else out.index_select(0, inverse)


def attend_reference(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """The definition of `attend`, a segment at a time, in float32: softmax(q k / sqrt(E)) v over the tokens seen."""
    H, K, E = q.shape[1], k.shape[1], q.shape[2]
    dtype = torch.promote_types(q.dtype, torch.float32)
    outputs = []
    for start, length, parent in zip(layout.starts, layout.lengths, layout.parents, strict=True):
        rows = torch.arange(start, start + length, device=q.device)  # [L]
        seen = rows  # [S]: the parent's tokens and its own
        if parent >= 0:
            first = layout.starts[parent]
            seen = torch.cat(
                [torch.arange(first, first + layout.lengths[parent], device=q.device), rows]
            )
        keys, values = (
            x[seen].to(dtype).repeat_interleave(H // K, dim=1) for x in (k, v)
        )  # [S, H, E]
        scores = torch.einsum("lhe,she->hls", q[rows].to(dtype), keys) / math.sqrt(E)
        visible = layout.mask_mod(0, 0, rows[:, None], seen[None])  # [L, S]
        weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
        outputs.append(torch.einsum("hls,she->lhe", weights, values).flatten(1))
    return torch.cat(outputs).to(q.dtype)


class Attention(nn.Module):
    """Grouped-query attention: H query heads share K key/value heads; q, k and v come from one matrix product."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.H, self.K, self.E = config.heads, config.kv_heads, config.head_width
        self.qkv = Linear(config.width, (self.H + 2 * self.K) * self.E, bias=config.qkv_bias)
        self.out = Linear(self.H * self.E, config.width, bias=config.out_bias)
        self.q_norm = RMSNorm(self.E, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.E, config.norm_eps) if config.qk_norm else None

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, D] -> q [T, H, E], k and v [T, K, E], q and k rotated."""
        H, K = self.H, self.K
        qk, v = self.qkv(x).view(-1, H + 2 * K, self.E).split([H + K, K], dim=1)
        if self.q_norm is not None:
            return rotate(self.q_norm(qk[:, :H]), *rope), rotate(self.k_norm(qk[:, H:]), *rope), v
        return *rotate(qk, *rope).split([H, K], dim=1), v

    def products(self, x: Tensor) -> Tensor:
        """`project` without the rotation: q, k and v side by side, [T, H + 2 K, E]."""
        H, K = self.H, self.K
        qkv = self.qkv(x).view(-1, H + 2 * K, self.E)
        if self.q_norm is None:
            return qkv
        return torch.cat(
            [self.q_norm(qkv[:, :H]), self.k_norm(qkv[:, H : H + K]), qkv[:, H + K :]], dim=1
        )

    def attend_cached(
        self, q: Tensor, k: Tensor, v: Tensor, cache: KVCache, layer: int, places, mask
    ) -> Tensor:
        """One new token a row, q [B, H, E], k and v [B, K, E]: writes its key and value at `places` [B * K] of the
        layer's cache, seen as [rows * K * capacity, E], and attends over the row -> [B, H * E]."""
        B, longest = q.shape[0], mask.shape[-1]
        for whole, new in ((cache.keys[layer], k), (cache.values[layer], v)):
            whole.view(-1, self.E).index_copy_(0, places, new.reshape(-1, self.E).to(whole.dtype))
        keys, values = cache.keys[layer, :B, :, :longest], cache.values[layer, :B, :, :longest]
        q = q.view(
            B, self.K, self.H // self.K, self.E
        )  # heads of a group side by side: no key is ever repeated
        scores = (
            torch.matmul(q * self.E**-0.5, keys.transpose(2, 3)).float().add_(mask)
        )  # [B, K, H/K, longest]
        out = torch.matmul(torch.softmax(scores, dim=-1).to(values.dtype), values)
        return out.reshape(B, -1)

    def attend_shared(
        self, qkv: Tensor, rope, cache: KVCache, layer: int, prefix: tuple, own: Tensor
    ) -> Tensor:
        """`attend_cached` of `products` where prompts are stored once: rows have written own[0] [B] tokens, own[1] with
        the new one; prefix: (prompt of each row [B], prefix_tiles)."""
        q = append(qkv, *rope, own[0], cache.keys[layer], cache.values[layer])
        prompts = Prefix(
            cache.prompt_keys[layer], cache.prompt_values[layer], cache.prompt_lengths, *prefix
        )
        return decode_attention(q, cache.keys[layer], cache.values[layer], own[1], prompts).flatten(
            1
        )


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)); gate and up are one matrix product."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_up = Linear(config.width, 2 * config.ffn, bias=False)
        self.down = Linear(config.ffn, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate_up(x)
        if cpu.takes(x):
            return self.down(cpu_block.swiglu(x))
        gate, up = x.chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm residual block: what is computed token by token before attention, attention, what comes after it."""

    compiled = False  # the two parts by torch.compile, see Transformer.compile_blocks

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attn_norm, self.mlp_norm = (RMSNorm(config.width, config.norm_eps) for _ in range(2))
        self.attn, self.mlp = Attention(config), MLP(config)
        self.dropout = 0.0

    def products(self, x: Tensor) -> Tensor:
        return self.attn.products(self.attn_norm(x))

    def before(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.attn.project(self.attn_norm(x), (cos, sin))

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.drop(self.attn.out(attended))
        return x + self.drop(self.mlp(self.mlp_norm(x)))

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], layout: Layout, store: list | None = None
    ) -> Tensor:
        """`rope`: cos and sin at the positions, or their table (Transformer.forward)."""
        products, before, after = compiled_parts() if self.compiled else PARTS
        if torch.is_tensor(rope):
            return after(
                self, x, cpu_attention.attention(products(self, x), rope, layout, self.attn.H)
            )
        q, k, v = before(self, x, *rope)
        if (
            store is not None
        ):  # copies: views would keep the queries, and with them twice the memory, alive
            store.append((k.contiguous(), v.clone()))
        return after(self, x, attend(q, k, v, layout))

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and torch.is_grad_enabled() else x

    def decode(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache, *given) -> Tensor:
        products, before, after = compiled_parts() if self.compiled else PARTS
        if cache.prompts:
            return after(self, x, self.attn.attend_shared(products(self, x), rope, cache, *given))
        return after(self, x, self.attn.attend_cached(*before(self, x, *rope), cache, *given))


PARTS = Block.products, Block.before, Block.after


@functools.cache
def compiled_parts() -> tuple[Callable, ...]:
    """PARTS with what stands between the matrix products fused: one pass over memory in place of ten. Compiled when
    first used, once for all layers and numbers of tokens."""
    return tuple(torch.compile(part, dynamic=True) for part in PARTS)


class Transformer(nn.Module):
    """The model. `forward` gives hidden states of packed tokens, `decode` of one new token a row through a cache."""

    def __init__(self, config: ModelConfig, seed: int = 0):
        super().__init__()
        self.config = config
        # Without nn.Embedding's own initialisation, which on the meta device imports a second's worth of torch.
        self.embed = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.width), freeze=False
        )
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = (
            None
            if config.tied or config.score
            else Linear(config.width, config.vocab_size, bias=False)
        )
        self.score = Linear(config.width, 1) if config.score else None
        self.compute_dtype: torch.dtype | None = None  # None: the embedding's own dtype
        self.activation_checkpointing = False
        self._rope: Tensor | None = None
        if self.embed.weight.device.type != "meta":
            self.initialize(seed)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Normal weights: deviation 0.02 for embedding and head, else 1/sqrt(fan in); residuals / sqrt(2 layers)."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            deviation = 0.02 if name.startswith(("embed", "head")) else weight.shape[1] ** -0.5
            if name.endswith(("attn.out.weight", "mlp.down.weight")):
                deviation /= math.sqrt(2 * self.config.layers)
            weight.normal_(0.0, deviation, generator=generator)

    @property
    def head_weight(self) -> Tensor:
        """The LM head's weight [V, D], for the log-prob kernel."""
        return self.embed.weight if self.head is None else self.head.weight

    def set_dropout(self, share: float) -> None:
        """Drop this share of every block's output while gradients are on: for small data seen many times over."""
        for block in self.layers:
            block.dropout = share

    def multiply_in(self, dtype: torch.dtype, store: bool = False) -> None:
        """The blocks' matrix products in this dtype, everything between them and the head as it was: for CPUs, some of
        which multiply bfloat16 several times as fast (AMX) and all of which are slow at anything else in it. With
        `store` the weights are kept in it too, which suits a copy that is not trained."""
        for module in self.layers.modules():
            if isinstance(module, Linear):
                module.multiply = dtype
                if store:
                    module.requires_grad_(False).to(dtype)

    def compile_blocks(self) -> None:
        """Fuse what stands between the matrix products of a block with torch.compile (on a CPU it needs g++)."""
        for block in self.layers:
            block.compiled = True

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def rope_table(self, longest: int) -> Tensor:
        """cos and sin [2, positions, E/2] float32; grows with the longest position seen."""
        if self._rope is None or self._rope.shape[1] < longest or self._rope.device != self.device:
            size = max(longest, min(self.config.context, 8192))
            angle = torch.arange(size, dtype=torch.float32)[:, None] * rope_frequencies(
                self.config
            )  # [size, E/2]
            self._rope = torch.stack([angle.cos(), angle.sin()]).to(self.device)
        return self._rope

    def rope(self, positions: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """cos and sin [T, 1, E/2] float32 at the positions."""
        cos, sin = self.rope_table(longest)[:, positions, None]
        return cos, sin

    def embedded(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return x if self.compute_dtype is None else x.to(self.compute_dtype)

    def forward(
        self, ids: Tensor, layout: Layout | None = None, store: list | None = None
    ) -> Tensor:
        """Hidden states after the final norm: ids [T] -> [T, D], or ids [B, T] (B documents of length T) -> [B, T, D].

        `store`, a list, receives (keys [T, K, E], values [T, K, E]) of every layer: the prefill of a cache.
        """
        shape = ids.shape
        if layout is None:
            layout = Layout([shape[-1]] * (ids.numel() // shape[-1]), device=ids.device)
        ids = ids.reshape(-1)
        if layout.tokens != ids.numel():
            raise ValueError(f"the layout holds {layout.tokens} tokens, ids holds {ids.numel()}")
        x = self.embedded(ids)
        if (
            store is None
            and cpu.takes(x)
            and cpu_attention.suits(self.config.head_width, layout.max_position)
        ):
            rope = self.rope_table(layout.max_position)
        else:
            rope = self.rope(layout.positions, layout.max_position)
        for block in self.layers:
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, rope, layout, use_reentrant=False)
            else:
                x = block(x, rope, layout, store)
        hidden = self.norm(x)
        return hidden if len(shape) == 1 else hidden.view(*shape, -1)

    def decode(self, ids: Tensor, cache: KVCache, lengths: Tensor, longest: int) -> Tensor:
        """One decoding step: ids [B] of the cache's first B rows, which hold `lengths` [B] tokens -> hidden [B, D].

        `longest` is the largest length after the step (a plain int: no synchronisation with the device).
        """
        x = self.embedded(ids)
        rope = self.rope(lengths, longest)
        if cache.prompts:
            of = cache.prompt_of[: len(ids)]
            own = (lengths - cache.prompt_lengths[of]).clamp(min=0)  # 0: rows not in use
            tiles = prefix_tiles(
                of, cache.prompts, rows_per_tile(len(ids), self.config.heads, self.config.kv_heads)
            )
            for layer, block in enumerate(self.layers):
                x = block.decode(x, rope, cache, layer, (of, tiles), (own, own + 1))
            return self.norm(x)
        K, capacity = self.config.kv_heads, cache.capacity
        head = torch.arange(ids.shape[0] * K, device=ids.device).view(
            -1, K
        )  # row * K + number of the head
        places = (head * capacity + lengths[:, None]).flatten()
        seen = (
            torch.arange(longest, device=ids.device) <= lengths[:, None]
        )  # the new token included
        mask = torch.zeros(seen.shape, device=ids.device).masked_fill_(~seen, -torch.inf)[
            :, None, None
        ]
        for layer, block in enumerate(self.layers):
            x = block.decode(x, rope, cache, layer, places, mask)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D], for sampling and tests; training uses the log-prob kernel."""
        return F.linear(hidden, self.head_weight.to(hidden.dtype))
