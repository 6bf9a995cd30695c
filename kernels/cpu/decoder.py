"""Sampling on a CPU in C++ (decoder.cpp): a prefill, a decoding step and a draw are one call each."""

import ctypes
from ctypes import c_float, c_int64, c_void_p

import numpy as np
import torch
from torch import Tensor

from generate import Decoder, Sampling, Sequence
from kernels import accelerator
from kernels.cpu import available, native
from kernels.decoding import DEFINITIONS, is_plain, sampling_error
from model import ModelConfig, Transformer

# Weights of the largest model. Of a larger one a step is mostly arithmetic, and the copy of its weights takes memory.
LARGEST = 400_000_000

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


def suits(config: ModelConfig) -> bool:
    """Is there C++ for a model of this shape? Its heads must be whole vectors wide."""
    if config.score or config.flops(1, 1, 0) / 2 > LARGEST or native() is None:
        return False
    return config.head_width % native().lanes() == 0


def takes(model: Transformer, sampling: Sampling, rows: int, sequences: list[Sequence]) -> bool:
    weight = model.embed.weight
    float32 = weight.dtype == torch.float32 and model.compute_dtype in (None, torch.float32)
    on_cpu = weight.device.type == "cpu"
    if not (on_cpu and float32 and suits(model.config) and is_plain(model)):
        return False
    # The matrices of the blocks are copied, in the type of their products. The rest is read as it is.
    matrices = {
        id(x)
        for part in model.layers.modules()
        if hasattr(part, "multiply")
        for x in part.parameters()
    }
    return all(x.dtype == torch.float32 for x in model.parameters() if id(x) not in matrices)


@accelerator(
    "generate.make_decoder",
    stands_for=DEFINITIONS,
    available=available,
    takes=takes,
    error=sampling_error,
)
def make_decoder(
    model: Transformer, sampling: Sampling, rows: int, sequences: list[Sequence]
) -> "CpuDecoder":
    capacity = max(s.prompt_tokens + s.limit for s in sequences)
    cache = BlockCache(model.config, rows, capacity, dtype=cache_dtype(model))
    return CpuDecoder(model, sampling, cache)


def cache_dtype(model: Transformer) -> torch.dtype:
    """The type of keys and values: bfloat16 where matrix products are in it."""
    rounded = model.layers[0].attn.qkv.multiply == torch.bfloat16
    return torch.bfloat16 if rounded else torch.float32


class BlockCache:
    """A KV cache for C++: the keys of a head lie as [capacity / lanes, E, lanes], `lanes` tokens side by side.

    place [rows]: where each row lies. To move a row, only its place is changed.
    """

    def __init__(self, config: ModelConfig, rows: int, capacity: int, device="cpu", dtype=None):
        capacity += -capacity % native().lanes()
        shape = config.layers, rows, config.kv_heads, capacity, config.head_width
        self.rows, self.capacity = rows, capacity
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.place = np.arange(rows)

    def put(self, start: int, stop: int, keys: Tensor, values: Tensor) -> None:
        """As KVCache.put; keys in blocks."""
        place = self.place[start:stop]
        # A copy of one piece is several times as fast.
        together = (np.diff(place) == 1).all()
        rows = slice(place[0], place[0] + stop - start) if together else torch.from_numpy(place)
        L = keys.shape[2]
        self.keys[:, rows, :, :L] = keys[:, None]
        self.values[:, rows, :, :L] = values[:, None]

    def move(self, source: int, target: int, length: int) -> None:
        self.place[[source, target]] = self.place[[target, source]]


class CpuDecoder(Decoder):
    """Decodes with the weights as they are now: later changes do not reach it.

    A matrix [N, D] is copied into panels [ceil(N / panel), D, panel], a column for each output. Logits [B, width] are
    as wide as the panels; only the first V of a row have a meaning.
    """

    pack = 512  # tokens that stay in a core's cache

    def __init__(self, model: Transformer, sampling: Sampling, cache: BlockCache):
        super().__init__(model, sampling, cache)
        config, lib = model.config, native()
        self.lib, self.panel = lib, lib.panel()
        self.width = -(-config.vocab_size // self.panel) * self.panel
        # The processor's matrix unit takes widths that are multiples of 32.
        wide = config.width, config.heads * config.head_width, config.ffn
        rounded = cache_dtype(model) == torch.bfloat16
        self.tiles = rounded and not any(n % 32 for n in wide) and bool(lib.tiles())
        self.kept: list[Tensor] = []  # what C++ points to
        self.layers = (Layer * config.layers)()
        for layer, block in zip(self.layers, model.layers, strict=True):
            attn, mlp = block.attn, block.mlp
            layer.attn_norm = self.pointer(block.attn_norm.weight)
            layer.qkv_bias = self.bias(attn.qkv.bias)
            layer.q_norm = self.pointer(attn.q_norm and attn.q_norm.weight)
            layer.k_norm = self.pointer(attn.k_norm and attn.k_norm.weight)
            layer.out_bias = self.bias(attn.out.bias)
            layer.mlp_norm = self.pointer(block.mlp_norm.weight)
            layer.qkv = self.pointer(self.product(attn.qkv))
            layer.out = self.pointer(self.product(attn.out))
            layer.gate_up = self.pointer(self.product(mlp.gate_up, gated=True))
            layer.down = self.pointer(self.product(mlp.down))
        self.shape = Model(
            D=config.width,
            layers=config.layers,
            H=config.heads,
            K=config.kv_heads,
            E=config.head_width,
            F=config.ffn,
            V=config.vocab_size,
            bfloat16=self.tiles,
            eps=config.norm_eps,
            embed=self.pointer(model.embed.weight),
            norm=self.pointer(model.norm.weight),
            head=self.pointer(self.panels(model.head_weight)),
            layer=ctypes.addressof(self.layers),
        )
        self.threads = torch.get_num_threads()
        self.scratch = torch.empty(0)
        self.index = torch.arange(cache.rows)

    def pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self.kept.append(tensor.detach().contiguous())
        return self.kept[-1].data_ptr()

    def padded(self, x: Tensor, multiple: int = 0) -> Tensor:
        """x with zeros after its first dimension, up to a multiple of this number (default: of a panel)."""
        missing = -x.shape[0] % (multiple or self.panel)
        return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x

    def bias(self, x: Tensor | None) -> int | None:
        """In float32, whatever the layer keeps it in."""
        return None if x is None else self.pointer(self.padded(x.detach().float()))

    def panels(self, weight: Tensor) -> Tensor:
        return self.padded(weight).unflatten(0, (-1, self.panel)).transpose(1, 2)

    def product(self, linear, gated: bool = False) -> Tensor:
        """The panels of a layer's matrix, rounded to the type of the products.

        For the matrix unit they are in bfloat16, pairs of inputs side by side: [., D / 2, panel, 2].
        gated: of gate and up, [2 F, D], a panel holds the gates and the ups of the same outputs.
        """
        weight = linear.weight.detach().to(linear.multiply or linear.weight.dtype)
        if gated:
            half = self.panel // 2
            parts = (self.padded(part, half).unflatten(0, (-1, half)) for part in weight.chunk(2))
            weight = torch.stack(list(parts), dim=1).flatten(0, 2)
        if not self.tiles:
            return self.panels(weight.float())
        return self.padded(weight).view(-1, self.panel, weight.shape[1] // 2, 2).transpose(1, 2)

    def forward(self, ids: Tensor, lengths: list[int]):
        count, longest = len(lengths), max(lengths)
        cache = BlockCache(self.model.config, count, longest, dtype=self.cache.keys.dtype)
        counts = torch.tensor(lengths)
        rows = torch.arange(count).repeat_interleave(counts)
        ends = counts.cumsum(0)
        positions = torch.arange(len(ids)) - (ends - counts)[rows]
        logits = self.run(cache, ids, rows, positions, longest, ends - 1)
        return cache.keys.unbind(1), cache.values.unbind(1), logits

    def forward_step(self, ids: Tensor, lengths: Tensor, longest: int) -> Tensor:
        B = len(ids)
        places = torch.from_numpy(self.cache.place[:B])
        return self.run(self.cache, ids, places, lengths, longest, self.index[:B])

    def run(
        self,
        cache: BlockCache,
        ids: Tensor,
        rows: Tensor,
        positions: Tensor,
        longest: int,
        last: Tensor,
    ) -> Tensor:
        """ids [T] at `positions` (below `longest`) of the cache's `rows` -> logits [L, width] of the tokens `last` [L].

        Their keys and values are written into the cache, which holds those of all tokens before them.
        Raises IndexError for an id that is not in the vocabulary.
        """
        c = self.model.config
        table = self.model.rope_table(longest).float().contiguous()  # [2, positions, E / 2]
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
            raise IndexError(f"token id {ids[wrong]} is not among the {self.shape.V} of the model")
        return logits

    def draw_tokens(self, logits: Tensor, streams: Tensor, positions: Tensor):
        temperature = self.sampling.temperature
        if temperature and self.sampling.top_p < 1:
            return super().draw_tokens(logits[:, : self.shape.V], streams, positions)
        ids, logprobs = torch.empty(len(logits), dtype=torch.int64), torch.empty(len(logits))
        pointers = logits.data_ptr(), len(logits), self.shape.V, temperature
        inputs = streams.data_ptr(), positions.data_ptr()
        self.lib.draw(*pointers, *inputs, ids.data_ptr(), logprobs.data_ptr(), self.threads)
        return ids, logprobs
