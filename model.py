"""A LLaMA-style transformer: RMSNorm, RoPE, grouped-query attention, SwiGLU (the paper's DeepSeek-LLM).

One class covers LLaMA, Mistral, Qwen2 (bias on q, k, v), Qwen3 (RMSNorm on q and k), SmolLM3 (layers
without RoPE) and OLMo (post-norm). runtime/hf.py reads and writes them. Three ideas shape it:

- Training input is *packed*: one row of T tokens, no padding. A `Layout` says which token sees which.
- The model returns hidden states. The LM head is applied in batch.py: logits [T, V] never exist.
- All is plain PyTorch. kernels/ computes the functions marked @definition faster.

B rows, T tokens, D width, H heads, K key/value heads, E head width, F feed-forward width, V words.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data.io import InputError
from kernels import definition

# ----------------------------------------------------------------------------------------------------
# Configuration


@dataclass
class ModelConfig:
    """Shape of a model. runtime/families.py translates to and from a config.json."""

    vocab_size: int
    width: int  # D
    layers: int
    heads: int  # H
    kv_heads: int  # K, a divisor of H
    ffn: int  # F
    head_width: int = 0  # E, 0 means D / H
    context: int = 4096  # longest sequence the model was made for
    rope_theta: float = 10_000.0
    rope_scaling: dict | None = None  # rope_type "linear" with a factor, "llama3" or "yarn"
    norm_eps: float = 1e-6
    tied: bool = False  # the LM head is the embedding
    qkv_bias: bool = False  # Qwen2
    out_bias: bool = False  # LLaMA with attention_bias
    qk_norm: bool = False  # Qwen3: RMSNorm on each head of q and k
    post_norm: bool = False  # OLMo: RMSNorm after attention and MLP, and on q and k as a whole
    layer_kinds: list[str] | None = None  # "full", "nope" (no RoPE: SmolLM3) or "sliding" (OLMo 3)
    window: int = 0  # a "sliding" layer sees this many tokens, the newest included
    sliding_theta: float = 0.0  # rope_theta of "sliding" layers, 0 means the same
    family: str = "llama"  # its model_type in config.json
    eos_id: int | list[int] | None = None
    bos_id: int | None = None
    score: str = ""  # "outcome", "process" or "value": a score head in place of the LM head

    def __post_init__(self):
        self.head_width = self.head_width or self.width // self.heads
        if self.heads % self.kv_heads:
            raise InputError(f"kv_heads {self.kv_heads} does not divide heads {self.heads}")
        if self.head_width < 2 or self.head_width % 2:
            raise InputError(f"head width {self.head_width} must be even: RoPE rotates pairs")


# ----------------------------------------------------------------------------------------------------
# The packed layout


class Layout:
    """Who sees whom among packed tokens.

    A token sees its own segment up to itself, and the parent of its segment whole. Plain packing is
    a list of lengths. GRPO's update packs a question once, as the parent of its G completions: the
    question goes through the model once, as in sampling (prefill, then fork).

    Example: Layout([3, 2, 2], parents=[-1, 0, 0]) has positions [0 1 2 | 3 4 | 3 4].
    Raises ValueError for a parent that has a parent itself.
    """

    def __init__(self, lengths, parents=None, device="cpu"):
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.parents = np.asarray([-1] * len(lengths) if parents is None else parents, np.int64)
        has_parent = self.parents >= 0
        if has_parent[self.parents[has_parent]].any():
            raise ValueError("a parent segment cannot have a parent itself")
        self.prefix = np.where(has_parent, self.lengths[self.parents], 0)  # tokens of the parent
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.tokens = int(self.lengths.sum())
        self.max_position = int((self.prefix + self.lengths).max(initial=0))
        self.device = torch.device(device)
        self.cache: dict = {}  # what kernels derive from the layout

        number = np.repeat(np.arange(len(self.lengths)), self.lengths)
        first = self.starts - self.prefix  # where position 0 of each segment would stand
        self.document = self.tensor(number)  # [T], the segment of each token
        self.positions = self.tensor(np.arange(self.tokens) - first[number])  # [T]

    def tensor(self, array: np.ndarray) -> Tensor:
        """On the layout's device. A layout first used in inference must serve training too."""
        with torch.inference_mode(False):
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    def segments(self) -> list[tuple[slice, slice]]:
        """(tokens, tokens of the parent) of each segment. Without a parent the second is empty."""
        spans = [slice(a, a + n) for a, n in zip(self.starts, self.lengths, strict=True)]
        parents = [spans[p] if p >= 0 else slice(0) for p in self.parents]
        return list(zip(spans, parents, strict=True))


# ----------------------------------------------------------------------------------------------------
# The KV cache


class KVCache:
    """Keys and values [layers, rows, K, capacity, E] of the tokens so far. The rows in use are the first ones."""

    def __init__(self, config: ModelConfig, rows: int, capacity: int, device="cpu", dtype=None):
        shape = config.layers, rows, config.kv_heads, capacity, config.head_width
        self.rows, self.capacity = rows, capacity
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def put(self, start: int, stop: int, keys: Tensor, values: Tensor) -> None:
        """Write the L tokens of a prompt, [layers, K, L, E] each, to the front of rows start to stop."""
        L = keys.shape[2]
        self.keys[:, start:stop, :, :L] = keys[:, None]
        self.values[:, start:stop, :, :L] = values[:, None]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a row to another row."""
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]


# ----------------------------------------------------------------------------------------------------
# The transformer


class Linear(nn.Linear):
    """A linear layer that computes in its input's type, or in `multiply`, and returns its input's type."""

    multiply: torch.dtype | None = None  # see kernels.compiled.multiply_in

    @definition
    def forward(self, x: Tensor) -> Tensor:
        dtype = self.multiply or x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(x.to(dtype), self.weight.to(dtype), bias).to(x.dtype)


@definition
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight: x [..., D], weight [D] -> [..., D]. The mean is taken in float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)  # [..., 1]
    return (wide * scale).to(x.dtype) * weight.to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rope_frequencies(config: ModelConfig, kind: str = "full") -> Tensor:
    """Rotation per position of each pair, [E/2] float32: plain, linear, llama3 or yarn scaling."""
    E, scaling, theta = config.head_width, config.rope_scaling, config.rope_theta
    if kind == "sliding":  # as OLMo 3: without scaling
        scaling, theta = None, config.sliding_theta or theta
    frequency = (kind != "nope") * theta ** (-torch.arange(0, E, 2, dtype=torch.float32) / E)
    if scaling is None:
        return frequency
    if scaling["rope_type"] == "linear":
        return frequency / scaling["factor"]
    # llama3, yarn: long wavelengths are stretched by `factor`, short ones kept, those between blended
    turns = scaling["original_max_position_embeddings"] / (2 * math.pi)  # of the first pair
    if scaling["rope_type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        keep = ((turns * frequency - low) / (high - low)).clamp(0, 1)
    else:  # yarn (arXiv 2309.00071, 3.2) blends by the number of the pair
        bounds = scaling["beta_fast"], scaling["beta_slow"]  # in turns
        low, high = (E / 2 * math.log(turns / n, theta) for n in bounds)  # in pairs
        if scaling["truncate"]:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, E - 1)
        keep = 1 - ((torch.arange(E // 2) - low) / (high - low or 0.001)).clamp(0, 1)
    return frequency * (keep + (1 - keep) / scaling["factor"])


def rope_table(config: ModelConfig, positions: int, kind: str = "full") -> Tensor:
    """cos and sin of the rotation at each position, [2, positions, E/2] float32, yarn's times a factor."""
    angle = torch.arange(positions, dtype=torch.float32)[:, None] * rope_frequencies(config, kind)
    scaling = (kind == "full" and config.rope_scaling) or {}
    return torch.stack([angle.cos(), angle.sin()]) * scaling.get("attention_factor", 1.0)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + E/2) of x [T, heads, E] by cos and sin [T, 1, E/2]."""
    a, b = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


@definition
def attention(qkv: Tensor, rope: Tensor, layout: Layout, heads: int, window: int = 0) -> Tensor:
    """Softmax(q k / sqrt(E)) v over the tokens that each token sees, a segment at a time, in float32.

    qkv [T, H + 2K, E]: queries, keys and values before rotation. rope [2, positions, E/2]: cos and sin.
    heads: H. window: a token sees the last `window` tokens up to itself, 0: all. Returns [T, H * E].
    """
    kv_heads = (qkv.shape[1] - heads) // 2
    wide = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
    q, k, v = wide.split([heads, kv_heads, kv_heads], dim=1)
    cos, sin = rope[:, layout.positions, None]  # [T, 1, E/2]
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)

    outputs = []
    for own, parent in layout.segments():
        keys = torch.cat([k[parent], k[own]]).repeat_interleave(heads // kv_heads, dim=1)
        values = torch.cat([v[parent], v[own]]).repeat_interleave(heads // kv_heads, dim=1)
        scores = torch.einsum("lhe,she->hls", q[own], keys) / math.sqrt(qkv.shape[2])
        L, S = scores.shape[1:]  # tokens of the segment, tokens that its last one sees
        seen = torch.ones(L, S, dtype=torch.bool, device=qkv.device).tril(S - L)
        seen = seen.triu(1 + S - L - window) if window else seen
        weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
        outputs.append(torch.einsum("hls,she->lhe", weights, values).flatten(1))
    return torch.cat(outputs).to(qkv.dtype)


def attend_cached(qkv: Tensor, rope: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, seen):
    """Attention of one new token a row over its cache -> [B, H * E].

    qkv [B, H + 2K, E]: queries, keys and values before rotation. rope [2, B, 1, E/2]: cos and sin.
    keys, values [rows, K, capacity, E]: receive the new key and value behind the `lengths` [B] tokens of each row.
    seen [B, longest]: which places of a row its new token sees.
    """
    (B, heads, E), K = qkv.shape, keys.shape[1]
    H = heads - 2 * K
    q, k, v = qkv.split([H, K, K], dim=1)
    q, k = rotate(q, *rope), rotate(k, *rope)
    rows, longest = torch.arange(B, device=q.device), seen.shape[1]
    keys[rows, :, lengths] = k.to(keys.dtype)
    values[rows, :, lengths] = v.to(values.dtype)
    keys, values = keys[:B, :, :longest], values[:B, :, :longest]
    q = q.reshape(B, K, H // K, E)  # the query heads that share a key head side by side
    scores = q / math.sqrt(E) @ keys.transpose(2, 3)  # [B, K, H/K, longest]
    scores = scores.to(torch.promote_types(q.dtype, torch.float32))
    weights = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(dim=-1)
    return (weights.to(values.dtype) @ values).reshape(B, H * E)


class Attention(nn.Module):
    """Weights of grouped-query attention: H query heads share K key heads. One matrix makes q, k, v."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.H, self.K, self.E = config.heads, config.kv_heads, config.head_width
        self.qkv = Linear(config.width, (self.H + 2 * self.K) * self.E, bias=config.qkv_bias)
        self.out = Linear(self.H * self.E, config.width, bias=config.out_bias)
        q, k = (self.H, self.K) if config.post_norm else (1, 1)  # heads that share a norm
        self.q_norm = RMSNorm(q * self.E, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(k * self.E, config.norm_eps) if config.qk_norm else None

    def project(self, x: Tensor) -> Tensor:
        """x [T, D] -> queries, keys and values before rotation, [T, H + 2K, E]."""
        qkv = self.qkv(x).unflatten(-1, (-1, self.E))
        if self.q_norm is None or self.k_norm is None:
            return qkv
        q, k, v = qkv.split([self.H, self.K, self.K], dim=1)
        normed_q = self.q_norm(q.reshape(-1, *self.q_norm.weight.shape)).view_as(q)
        normed_k = self.k_norm(k.reshape(-1, *self.k_norm.weight.shape)).view_as(k)
        return torch.cat([normed_q, normed_k, v], dim=1)


@definition
def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of gates and ups side by side: [..., 2F] -> [..., F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_up = Linear(config.width, 2 * config.ffn, bias=False)
        self.down = Linear(config.ffn, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up(x)))


class Block(nn.Module):
    """Residual block, pre-norm or (OLMo) post-norm. Attention stands between `before` and `after`."""

    def __init__(self, config: ModelConfig, kind: str = "full"):
        super().__init__()
        self.kind, self.window = kind, config.window if kind == "sliding" else 0
        self.post_norm = config.post_norm
        self.attn_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.attn, self.mlp = Attention(config), MLP(config)
        self.dropout = 0.0  # share of its outputs that is dropped while gradients are on

    def before(self, x: Tensor) -> Tensor:
        return self.attn.project(x if self.post_norm else self.attn_norm(x))  # [T, H + 2K, E]

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        if self.post_norm:
            x = x + self.drop(self.attn_norm(self.attn.out(attended)))
            return x + self.drop(self.mlp_norm(self.mlp(x)))
        x = x + self.drop(self.attn.out(attended))
        return x + self.drop(self.mlp(self.mlp_norm(x)))

    def forward(self, x: Tensor, rope: Tensor, layout: Layout, store: list | None = None) -> Tensor:
        qkv = self.before(x)
        if store is not None:  # copies: views would keep the queries in memory
            cos, sin = rope[:, layout.positions, None]
            k, v = qkv[:, self.attn.H :].chunk(2, dim=1)
            store.append((rotate(k, cos, sin), v.clone()))
        return self.after(x, attention(qkv, rope, layout, self.attn.H, self.window))

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and torch.is_grad_enabled() else x

    def decode(self, x: Tensor, rope: Tensor, keys: Tensor, values: Tensor, lengths, seen):
        """x [B, D] -> [B, D], one new token a row. keys, values: this layer's part of the cache."""
        if self.window:
            seen = seen & (seen.flip(1).cumsum(1).flip(1) <= self.window)  # the last ones of a row
        return self.after(x, attend_cached(self.before(x), rope, keys, values, lengths, seen))


class Transformer(nn.Module):
    """The model: `forward` for packed tokens, `decode` for one new token a row with a cache."""

    def __init__(self, config: ModelConfig, seed: int = 0):
        super().__init__()
        self.config = config
        # Not nn.Embedding's own initialization: on the meta device it imports torch for a second.
        weight = torch.empty(config.vocab_size, config.width)
        self.embed = nn.Embedding.from_pretrained(weight, freeze=False)
        kinds = config.layer_kinds or ["full"] * config.layers
        self.layers: Any = nn.ModuleList(Block(config, kind) for kind in kinds)
        self.norm = RMSNorm(config.width, config.norm_eps)
        own_head = not (config.tied or config.score)
        self.head = Linear(config.width, config.vocab_size, bias=False) if own_head else None
        self.score: Any = Linear(config.width, 1) if config.score else None
        self.compute_dtype: torch.dtype | None = None  # None: the embedding's
        self.activation_checkpointing = False
        self.source: Any = None  # the directory that runtime/hf.py read it from
        self._ropes: dict[str, Tensor] = {}  # kind of layer -> cos and sin
        if self.embed.weight.device.type != "meta":
            self.initialize(seed)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Normal weights of deviation 0.02 (embedding, head) or 1 / sqrt(fan in)."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            deviation = 0.02 if name.startswith(("embed", "head")) else weight.shape[1] ** -0.5
            if name.endswith(("attn.out.weight", "mlp.down.weight")):  # they add to the residual
                deviation /= math.sqrt(2 * self.config.layers)
            weight.normal_(0.0, deviation, generator=generator)

    @property
    def head_weight(self) -> Tensor:
        """The LM head's weight [V, D]."""
        return self.embed.weight if self.head is None else self.head.weight

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def rope_table(self, longest: int, kind: str = "full") -> Tensor:
        """cos and sin [2, positions, E/2] float32 of a kind of layer, for `longest` positions or more."""
        rope = self._ropes.get(kind)
        if rope is None or rope.shape[1] < longest or rope.device != self.device:
            size = max(longest, min(self.config.context, 8192))
            rope = self._ropes[kind] = rope_table(self.config, size, kind).to(self.device)
        return rope

    def embedded(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return x if self.compute_dtype is None else x.to(self.compute_dtype)

    def forward(
        self, ids: Tensor, layout: Layout | None = None, store: list | None = None
    ) -> Tensor:
        """Hidden states after the final norm: ids [T] -> [T, D], or documents [B, T] -> [B, T, D].

        store: a list that receives (keys, values) [T, K, E] of every layer, to fill a KV cache.
        Raises ValueError where ids and layout differ in length.
        """
        shape = ids.shape
        if layout is None:
            layout = Layout([shape[-1]] * (ids.numel() // shape[-1]), device=ids.device)
        if layout.tokens != ids.numel():
            raise ValueError(f"the layout holds {layout.tokens} tokens, ids holds {ids.numel()}")
        x = self.embedded(ids.flatten())  # [T, D]
        for block in self.layers:
            rope = self.rope_table(layout.max_position, block.kind)
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, rope, layout, use_reentrant=False)
            else:
                x = block(x, rope, layout, store)
        return self.norm(x).view(*shape, self.config.width)

    def decode(self, ids: Tensor, cache: KVCache, lengths: Tensor, longest: int) -> Tensor:
        """A step of the cache's first B rows, which hold `lengths` [B] tokens: ids [B] -> [B, D].

        Keys and values of the ids are added. longest: the largest length after the step.
        """
        x = self.embedded(ids)  # [B, D]
        seen = torch.arange(longest, device=ids.device) <= lengths[:, None]  # [B, longest]
        for block, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            rope = self.rope_table(longest, block.kind)[:, lengths, None]  # [2, B, 1, E/2]
            x = block.decode(x, rope, keys, values, lengths, seen)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D], for sampling; training uses batch.logprobs."""
        return F.linear(hidden, self.head_weight.to(hidden.dtype))
