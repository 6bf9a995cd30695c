"""Sampling on a CPU in C++ (decoder.cpp): a prefill, a decoding step and a draw are one call each."""

import ctypes
import weakref
from ctypes import c_float, c_int64, c_void_p
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from generate import Decoder, Sampling, Sequence
from kernels import accelerator
from kernels.cpu import available, native
from kernels.decoding import DEFINITIONS, is_plain, sampling_error, windows_hide
from model import ModelConfig, Transformer
from runtime.optim import model_flops

# Weights of the largest model. Of a larger one a step is mostly arithmetic, and the copy of its weights takes memory.
LARGEST = 400_000_000

LAYER = (
    "cos",
    "sin",
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
    """Is there C++ for a model of this shape? It is pre-norm, and its heads are whole vectors wide."""
    if config.post_norm or config.score:
        return False
    if model_flops(config, 1, 1, 0) / 2 > LARGEST or native() is None:
        return False
    return config.head_width % native().lanes() == 0


def takes(model: Transformer, sampling: Sampling, rows: int, sequences: list[Sequence]) -> bool:
    weight = model.embed.weight
    float32 = weight.dtype == torch.float32 and model.compute_dtype in (None, torch.float32)
    on_cpu = weight.device.type == "cpu"
    if not (on_cpu and float32 and suits(model.config) and is_plain(model)):
        return False
    if windows_hide(model, sequences):
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


def empty(shape: tuple[int, ...], dtype: torch.dtype | None = None, device="cpu") -> Tensor:
    """As torch.empty, in large pages of memory where the system has them."""
    memory = torch.empty(shape, dtype=dtype, device=device)
    native().large_pages(memory.data_ptr(), memory.nbytes)
    return memory


class BlockCache:
    """A KV cache for C++: the keys of a head lie as [capacity / lanes, E, lanes], `lanes` tokens side by side.

    place [rows]: where each row lies. To move a row, only its place is changed.
    """

    def __init__(self, config: ModelConfig, rows: int, capacity: int, device="cpu", dtype=None):
        capacity += -capacity % native().lanes()
        shape = config.layers, rows, config.kv_heads, capacity, config.head_width
        self.rows, self.capacity = rows, capacity
        self.keys = empty(shape, dtype, device)
        self.values = empty(shape, dtype, device)
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


class Panels:
    """The matrices of a model in panels [ceil(N / panel), D, panel], a column for each output.

    kind: 0 in float32, 1 in bfloat16 with two inputs side by side, [., D / 2, panel, 2], 2 the same for the processor's
    matrix unit. The head is in float32. place: where the panels of each of `matrices` are.
    """

    def __init__(self, model: Transformer):
        config, lib = model.config, native()
        wide = config.width, config.heads * config.head_width, config.ffn
        rounded = cache_dtype(model) == torch.bfloat16
        self.kind = int(rounded and not any(n % 2 for n in wide))
        if self.kind and lib.tiles() and not any(n % 32 for n in wide):
            self.kind = 2  # the matrix unit takes widths that are multiples of 32

        # Rounded to the type of the products. Gates and ups fill whole panels each.
        weights = matrices(model)
        head = len(weights) - 1
        sizes = []
        for i, weight in enumerate(weights):
            if rounded and i != head:
                weight = weight.bfloat16()
            if i == head or not self.kind:
                weight = weight.float()
            weights[i] = weight.contiguous()
            columns = -(-len(weight) // lib.panel()) + 1
            sizes.append(columns * lib.panel() * weight.shape[1] * weight.itemsize)

        # Copied into one piece of memory.
        self.memory = empty((sum(sizes),), torch.uint8)
        self.place = [self.memory.data_ptr() + before for before in accumulate(sizes, initial=0)]
        for i, weight in enumerate(weights):
            gated = i != head and i % 4 == 2
            half = weight.dtype == torch.bfloat16
            shape = *weight.shape, gated, half
            lib.pack(weight.data_ptr(), *shape, self.place[i], torch.get_num_threads())


def matrices(model: Transformer) -> list[Tensor]:
    """qkv, out, gate_up and down of each layer, and the head."""
    weights = []
    for block in model.layers:
        for linear in (block.attn.qkv, block.attn.out, block.mlp.gate_up, block.mlp.down):
            weights.append(linear.weight.detach())
    return [*weights, model.head_weight.detach()]


# Of each model: what its weights were at the last call, and their panels if the call before found the same.
_kept: weakref.WeakKeyDictionary[Transformer, tuple] = weakref.WeakKeyDictionary()


def panels_of(model: Transformer) -> Panels:
    """The panels of a model's weights as they are now.

    They are kept for the next call where two calls in a row find the same weights. So a sampler that is trained holds
    no second copy between its calls. Each call reads all weights, which takes as long as the decoding of a token.
    """
    key: list = [cache_dtype(model)]
    for weight in map(Tensor.contiguous, matrices(model)):
        memory = weight.data_ptr(), weight.nbytes
        key += [weight.dtype, native().checksum(*memory, torch.get_num_threads())]
    before, panels = _kept.pop(model, (None, None))
    if key != before:
        panels = None  # before new ones are made
    panels = panels or Panels(model)
    _kept[model] = key, panels if key == before else None
    return panels


class CpuDecoder(Decoder):
    """Decodes with the weights as they are now: later changes do not reach it.

    Logits [B, width] are as wide as panels; only the first V of a row have a meaning.
    """

    pack = 512  # tokens that stay in a core's cache

    def __init__(self, model: Transformer, sampling: Sampling, cache: BlockCache):
        super().__init__(model, sampling, cache)
        config, lib = model.config, native()
        self.lib, self.panel = lib, lib.panel()
        self.width = -(-config.vocab_size // self.panel) * self.panel
        self.panels = panels_of(model)
        place = iter(self.panels.place)
        self.kept: list[Tensor] = []  # what else C++ points to
        self.layers = (Layer * config.layers)()
        for layer, block in zip(self.layers, model.layers, strict=True):
            attn = block.attn
            layer.attn_norm = self.pointer(block.attn_norm.weight)
            layer.qkv_bias = self.bias(attn.qkv.bias)
            layer.q_norm = self.pointer(attn.q_norm and attn.q_norm.weight)
            layer.k_norm = self.pointer(attn.k_norm and attn.k_norm.weight)
            layer.out_bias = self.bias(attn.out.bias)
            layer.mlp_norm = self.pointer(block.mlp_norm.weight)
            layer.qkv, layer.out, layer.gate_up, layer.down = (next(place) for _ in range(4))
        self.shape = Model(
            D=config.width,
            layers=config.layers,
            H=config.heads,
            K=config.kv_heads,
            E=config.head_width,
            F=config.ffn,
            V=config.vocab_size,
            bfloat16=self.panels.kind,
            eps=config.norm_eps,
            embed=self.pointer(model.embed.weight),
            norm=self.pointer(model.norm.weight),
            head=next(place),
            layer=ctypes.addressof(self.layers),
        )
        self.ropes: dict[str, Tensor] = {}  # kind of layer -> cos and sin [2, positions, E / 2]
        self.positions = 0
        self.threads = torch.get_num_threads()
        self.start: BlockCache | None = None  # what all prompts begin with
        self.scratch = torch.empty(0)
        self.index = torch.arange(cache.rows)
        self.logits = empty((cache.rows, self.width))  # of a step

    def pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self.kept.append(tensor.detach().contiguous())
        return self.kept[-1].data_ptr()

    def bias(self, x: Tensor | None) -> int | None:
        """In float32, whatever the layer keeps it in, and padded to whole panels."""
        if x is None:
            return None
        return self.pointer(F.pad(x.detach().float(), (0, -len(x) % self.panel)))

    def rotate_up_to(self, longest: int) -> None:
        """Give each layer the cos and sin of its kind, for `longest` positions."""
        if longest <= self.positions:
            return
        for kind in {block.kind for block in self.model.layers}:
            self.ropes[kind] = self.model.rope_table(longest, kind).float().contiguous()
        for layer, block in zip(self.layers, self.model.layers, strict=True):
            layer.cos, layer.sin = (part.data_ptr() for part in self.ropes[block.kind])
        self.positions = min(rope.shape[1] for rope in self.ropes.values())

    def forward(self, first: list[int], rests: list[list[int]]):
        config, dtype = self.model.config, self.cache.keys.dtype
        longest = len(first) + max(map(len, rests))
        cache = BlockCache(config, len(rests), longest, dtype=dtype)
        if first:  # computed by the first call, and copied to all rows
            if self.start is None:
                self.start = BlockCache(config, 1, len(first), dtype=dtype)
                self.feed(self.start, [first], 0)
            cache.put(0, len(rests), self.start.keys[:, 0], self.start.values[:, 0])
        logits = self.feed(cache, rests, len(first))
        return cache.keys.unbind(1), cache.values.unbind(1), logits

    def feed(self, cache: BlockCache, parts: list[list[int]], start: int) -> Tensor:
        """Tokens for each row of a cache that holds `start` tokens of each -> next logits [rows, width]."""
        lengths = torch.tensor(list(map(len, parts)))
        rows = torch.arange(len(parts)).repeat_interleave(lengths)
        ends = lengths.cumsum(0)
        ids = torch.tensor(sum(parts, []))
        positions = start + torch.arange(len(ids)) - (ends - lengths)[rows]
        return self.run(cache, ids, rows, positions, start + int(lengths.max()), ends - 1)

    def forward_step(self, ids: Tensor, lengths: Tensor, longest: int) -> Tensor:
        B = len(ids)
        places = torch.from_numpy(self.cache.place[:B])
        return self.run(self.cache, ids, places, lengths, longest, self.index[:B], self.logits[:B])

    def run(
        self,
        cache: BlockCache,
        ids: Tensor,
        rows: Tensor,
        positions: Tensor,
        longest: int,
        last: Tensor,
        logits: Tensor | None = None,
    ) -> Tensor:
        """ids [T] at `positions` (below `longest`) of the cache's `rows` -> logits [L, width] of the tokens `last` [L].

        logits: memory for them. Keys and values of the tokens are written into the cache, which holds those of all
        tokens before them.
        Raises IndexError for an id that is not in the vocabulary.
        """
        c = self.model.config
        self.rotate_up_to(longest)
        token = 2 * c.width + (2 * c.heads + 2 * c.kv_heads) * c.head_width + c.ffn + 5 * self.panel
        thread = 2 * cache.capacity + 48 * (
            max(c.width, c.heads * c.head_width, c.ffn) + self.panel
        )
        if self.scratch.numel() < (need := len(ids) * token + self.threads * thread):
            self.scratch = empty((need,))
        if logits is None:
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
