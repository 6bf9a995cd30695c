"""Sampling on a CPU: a prefill, a decoding step, a draw are one call of C++ each (decoder.cpp).

Transformer.decode and decoding.sample_tokens are the definitions: the same numbers up to rounding. Without a C++
compiler, and for models that it does not suit (see `block`), PyTorch does it.
"""

import ctypes
from ctypes import c_float, c_int64, c_void_p

import torch
from torch import Tensor

import kernels
from kernels.cpu import native

LARGEST = 400_000_000  # weights: of a larger model a step is mostly arithmetic anyway, and their copy takes its memory
LAYER = (
    "attn_norm",
    "qkv_bias",
    "q_norm",
    "k_norm",
    "out_bias",
    "mlp_norm",
    "qkv",
    "out",
    "gate_up",
    "down",
)


class Layer(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in LAYER]


class Model(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("D", "layers", "H", "K", "E", "F", "V", "bfloat16")),
        ("eps", c_float),
        *((name, c_void_p) for name in ("embed", "norm", "head", "layer")),
    ]


class Cache(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("keys", "values")),
        *((name, c_int64) for name in ("rows", "capacity", "bfloat16")),
    ]


def block(config) -> int:
    """Tokens whose keys lie together in the cache of a model of this shape (model.KVCache), on a CPU: the lanes of a
    vector, or 1 where PyTorch decodes because the model has no LM head, its heads are not whole vectors wide, or there
    is no compiler."""
    weights = config.flops(1, 1, 0) / 2
    if kernels.reference or config.score or weights > LARGEST or native() is None:
        return 1
    lanes = native().lanes()
    return 1 if config.head_width % lanes else lanes


def decoder(model) -> "CpuDecoder | None":
    """The decoder of a float32 model on a CPU, or None where PyTorch decodes."""
    embed = model.embed.weight
    float32 = embed.dtype == torch.float32 and model.compute_dtype in (None, torch.float32)
    return (
        CpuDecoder(model, native())
        if embed.is_cpu and float32 and block(model.config) > 1
        else None
    )


class CpuDecoder:
    """Prefill, steps and draws with a model as it is now: later changes of its weights do not reach it.

    A matrix [N, D] is copied into panels [ceil(N / panel), D, panel], a column an output; logits are as wide as the
    panels, [., width], and what stands behind their first V means nothing. Keys lie in blocks of tokens (KVCache).
    """

    def __init__(self, model, lib: ctypes.CDLL):
        config = model.config
        self.model, self.lib, self.panel, self.block = model, lib, lib.panel(), lib.lanes()
        self.width = -(-config.vocab_size // self.panel) * self.panel
        wide = config.width, config.heads * config.head_width, config.ffn
        rounded = model.layers[0].attn.qkv.multiply == torch.bfloat16
        self.cache_dtype = torch.bfloat16 if rounded else torch.float32
        self.tiles = (
            rounded and not any(n % 32 for n in wide) and bool(lib.tiles())
        )  # the processor's matrix unit
        self.kept: list[Tensor] = []  # what C++ points to
        self.layers = (Layer * config.layers)()
        for layer, block in zip(self.layers, model.layers, strict=True):
            attn, mlp = block.attn, block.mlp
            for name, tensor in zip(
                LAYER,
                (
                    block.attn_norm.weight,
                    self.padded(attn.qkv.bias),
                    attn.q_norm and attn.q_norm.weight,
                    attn.k_norm and attn.k_norm.weight,
                    self.padded(attn.out.bias),
                    block.mlp_norm.weight,
                    self.product(attn.qkv),
                    self.product(attn.out),
                    self.product(mlp.gate_up, gated=True),
                    self.product(mlp.down),
                ),
                strict=True,
            ):
                setattr(layer, name, self.pointer(tensor))
        self.shape = Model(
            config.width,
            config.layers,
            config.heads,
            config.kv_heads,
            config.head_width,
            config.ffn,
            config.vocab_size,
            self.tiles,
            config.norm_eps,
            self.pointer(model.embed.weight),
            self.pointer(model.norm.weight),
            self.pointer(self.panels(model.head_weight)),
            ctypes.addressof(self.layers),
        )
        self.threads = torch.get_num_threads()
        self.scratch = torch.empty(0)

    def pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self.kept.append(tensor.detach().contiguous())
        return self.kept[-1].data_ptr()

    def padded(self, x: Tensor | None, to: int = 0) -> Tensor | None:
        """x with zeros behind its first dimension, up to a multiple of `to` (default: of a panel)."""
        to = to or self.panel
        if x is None or x.shape[0] % to == 0:
            return x
        return torch.cat([x, x.new_zeros(-x.shape[0] % to, *x.shape[1:])])

    def panels(self, weight: Tensor) -> Tensor:
        return self.padded(weight).unflatten(0, (-1, self.panel)).transpose(1, 2)

    def product(self, linear, gated: bool = False) -> Tensor:
        """The panels of a layer's matrix, rounded to the dtype of the products where that is another; for the matrix
        unit in bfloat16, with pairs of inputs side by side, [., D / 2, panel, 2]. `gated`: of gate and up, [2 F, D], a
        panel holds the gates and the ups of the same outputs."""
        weight = linear.weight.detach().to(linear.multiply or linear.weight.dtype)
        if gated:
            half = self.panel // 2
            parts = (self.padded(part, half).unflatten(0, (-1, half)) for part in weight.chunk(2))
            weight = torch.stack(list(parts), dim=1).flatten(0, 2)
        if not self.tiles:
            return self.panels(weight.float())
        return self.padded(weight).view(-1, self.panel, weight.shape[1] // 2, 2).transpose(1, 2)

    def forward(
        self, cache, ids: Tensor, rows: Tensor, positions: Tensor, longest: int, last: Tensor
    ) -> Tensor:
        """ids [T] at `positions` (below `longest`) of the cache's `rows` -> logits [L, width] of the tokens `last` [L].
        Their keys and values are written into the cache, which holds those of all tokens before them. Raises IndexError
        for an id that the model has not."""
        c, table = self.model.config, self.model.rope_table(longest)  # [2, positions, E / 2]
        token = 2 * c.width + (2 * c.heads + 2 * c.kv_heads) * c.head_width + c.ffn + 5 * self.panel
        thread = 2 * cache.capacity + 48 * (
            max(c.width, c.heads * c.head_width, c.ffn) + self.panel
        )
        if self.scratch.numel() < (need := len(ids) * token + self.threads * thread):
            self.scratch = torch.empty(need)
        logits = torch.empty(len(last), self.width)
        ids, rows, positions, last = (x.contiguous() for x in (ids, rows, positions, last))
        half = cache.keys.dtype == torch.bfloat16
        where = Cache(
            cache.keys.data_ptr(), cache.values.data_ptr(), cache.rows, cache.capacity, half
        )
        wrong = self.lib.step(
            ctypes.addressof(self.shape),
            ctypes.addressof(where),
            len(ids),
            ids.data_ptr(),
            rows.data_ptr(),
            positions.data_ptr(),
            table.data_ptr(),
            table.shape[1],
            len(last),
            last.data_ptr(),
            self.scratch.data_ptr(),
            logits.data_ptr(),
            self.threads,
        )
        if wrong >= 0:
            raise IndexError(f"token id {ids[wrong]} is none of the model's {self.shape.V}")
        return logits

    def draw(
        self, logits: Tensor, temperature: float, streams: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """decoding.sample_tokens without top_p: logits [B, width] (lost) -> ids [B], log-probs [B]."""
        ids, logprobs = torch.empty(len(logits), dtype=torch.int64), torch.empty(len(logits))
        logits, streams, positions = (x.contiguous() for x in (logits, streams, positions))
        self.lib.draw(
            logits.data_ptr(),
            len(logits),
            self.shape.V,
            temperature,
            streams.data_ptr(),
            positions.data_ptr(),
            ids.data_ptr(),
            logprobs.data_ptr(),
            self.threads,
        )
        return ids, logprobs
