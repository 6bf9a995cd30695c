"""Sampling on a GPU: the prompt of a group is stored once, and a step is a CUDA graph.

All that a step reads and writes lies in tensors of fixed shapes, so the steps of a batch size are recorded once and
then replayed. Batch sizes are powers of two. The host reads the tokens of several steps at once: a row that ends in
between runs on, and what it writes is dropped.
"""

from collections import Counter

import torch
from torch import Tensor

from generate import Decoder, Sampling, Sequence, sample_tokens, uniform
from kernels import accelerator
from kernels.decoding import DEFINITIONS, is_plain, sampling_error, windows_hide
from kernels.triton import triton
from kernels.triton.decode_attention import (
    Prefix,
    append,
    decode_attention,
    prefix_tiles,
    rows_per_tile,
)
from model import ModelConfig, Transformer


def available(device: torch.device) -> bool:
    return device.type == "cuda" and triton is not None


def takes(model: Transformer, sampling: Sampling, rows: int, sequences: list[Sequence]) -> bool:
    weight = model.embed.weight
    on_gpu = weight.device.type == "cuda" and weight.dtype != torch.float64
    takes_model = on_gpu and not model.config.score and is_plain(model)
    return takes_model and not windows_hide(model, sequences)


@accelerator(
    "generate.make_decoder",
    stands_for=DEFINITIONS,
    available=available,
    takes=takes,
    error=sampling_error,
)
def make_decoder(
    model: Transformer, sampling: Sampling, rows: int, sequences: list[Sequence]
) -> "GpuDecoder":
    dtype = model.compute_dtype or model.embed.weight.dtype
    cache = SharedCache(model.config, rows, sampling.samples, sequences, model.device, dtype)
    return GpuDecoder(model, sampling, cache)


class SharedCache:
    """A KV cache that stores a prompt once, for all rows that continue it.

    keys, values [layers, rows, K, capacity, E]: what the rows wrote themselves.
    prompt_keys, prompt_values [layers, prompts, K, prompt_capacity, E], prompt_lengths [prompts].
    prompt_of [rows]: the place of each row's prompt.
    """

    def __init__(
        self, config: ModelConfig, rows: int, samples: int, sequences: list[Sequence], device, dtype
    ):
        """Room for `rows` sequences at the same time, of groups of `samples`."""
        # Four times as many prompts as fill the rows: the last samples of a group keep theirs to the end.
        filling = -(-rows // samples)
        prompts = min(len({s.prompt for s in sequences}), rows, 4 * filling)
        self.rows, self.prompts = rows, prompts
        self.capacity = max(s.limit for s in sequences)
        self.prompt_capacity = max(s.prompt_tokens for s in sequences)
        shape = config.layers, rows, config.kv_heads, self.capacity, config.head_width
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        shape = config.layers, prompts, config.kv_heads, self.prompt_capacity, config.head_width
        self.prompt_keys = torch.zeros(shape, device=device, dtype=dtype)
        self.prompt_values = torch.zeros(shape, device=device, dtype=dtype)
        self.prompt_lengths = torch.zeros(prompts, device=device, dtype=torch.int64)
        self.prompt_of = torch.zeros(rows, device=device, dtype=torch.int64)

    def put_prompt(self, place: int, keys: Tensor, values: Tensor) -> None:
        """Store a prompt of L tokens, [layers, K, L, E] each."""
        L = keys.shape[2]
        self.prompt_lengths[place] = L
        self.prompt_keys[:, place, :, :L] = keys
        self.prompt_values[:, place, :, :L] = values

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row, which has written `length` tokens, to another row."""
        self.prompt_of[target] = self.prompt_of[source]
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]


class GpuDecoder(Decoder):
    steps = 8  # between two looks of the host

    def __init__(self, model: Transformer, sampling: Sampling, cache: SharedCache):
        super().__init__(model, sampling, cache)
        rows, device = cache.rows, self.device
        # [rows] each: the next token to feed, tokens in the cache, the most tokens that it may hold, tokens of the
        # prompt, random stream
        self.state = torch.zeros(5, rows, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(rows, device=device)  # of the newest draw
        # What tools wrote, by position in the completion; -1 elsewhere. The model's draws are dropped there.
        self.tool_ids = torch.full((rows, cache.capacity + 1), -1, device=device)
        self.index = torch.arange(rows, device=device)
        self.longest = cache.prompt_capacity + cache.capacity
        self.places = list(range(cache.prompts))  # free places for prompts
        self.place: dict[int, int] = {}  # prompt -> its place
        self.readers: Counter = Counter()  # prompt -> rows that read it
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}  # batch size -> its step

    def free_prompts(self) -> int:
        return len(self.places)

    def prefill(self, prompts: dict[int, list[int]]) -> None:
        super().prefill(prompts)
        for prompt in prompts:
            keys, values, logits = self.prompts[prompt]
            self.place[prompt] = self.places.pop()
            self.cache.put_prompt(self.place[prompt], keys, values)
            self.prompts[prompt] = None, None, logits

    def fork(self, running: list[Sequence], start: int) -> tuple[list, list]:
        new, rows = running[start:], slice(start, len(running))
        self.readers.update(s.prompt for s in new)
        state = [
            (0, s.cached, s.prompt_tokens + s.limit - 1, s.prompt_tokens, s.stream) for s in new
        ]
        self.state[:, rows] = torch.tensor(state).T.to(self.device)
        places = torch.tensor([self.place[s.prompt] for s in new])
        self.cache.prompt_of[rows] = places.to(self.device)
        self.tool_ids[rows] = -1
        self.draw_rows(rows, self.next_logits(new))
        return self.state[0, rows, None].tolist(), self.logprobs[rows, None].tolist()

    def step(self, running: list[Sequence]) -> tuple[list, list]:
        """As Decoder.step; of several steps, but not more than the rows can use."""
        B = len(running)
        size = min(1 << (B - 1).bit_length(), self.cache.rows)
        self.state[:, B:size] = 0  # for rows that are not in use no key is read
        left = max(s.prompt_tokens + s.limit - 1 - s.cached for s in running)
        steps = min(self.steps, left)
        ids = self.state.new_empty(steps, B)
        logprobs = self.logprobs.new_empty(steps, B)
        for i in range(steps):
            self.replay(size)
            ids[i], logprobs[i] = self.state[0, :B], self.logprobs[:B]
        return ids.T.tolist(), logprobs.T.tolist()

    def replay(self, B: int) -> None:
        """`advance` as a CUDA graph.

        The first step of a batch size runs as it is, which compiles and loads kernels, and is then recorded.
        """
        if B in self.graphs:
            return self.graphs[B].replay()
        self.advance(B)
        if self.device.type == "cuda":
            # Only one graph runs at a time: they share memory.
            pool = next((graph.pool() for graph in self.graphs.values()), None)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self.advance(B)
            self.graphs[B] = graph

    def advance(self, B: int) -> None:
        """A token more for each of the first B rows. Shapes depend on B alone, and the host reads no value."""
        model, cache = self.model, self.cache
        newest, cached = self.state[0, :B], self.state[1, :B]
        x = model.embedded(newest)  # [B, D]
        tables = {block.kind: model.rope_table(self.longest, block.kind) for block in model.layers}
        ropes = {kind: table[:, cached, None] for kind, table in tables.items()}  # [2, B, 1, E/2]
        prompt_of = cache.prompt_of[:B]
        written = (cached - cache.prompt_lengths[prompt_of]).clamp(
            min=0
        )  # 0: rows that are not in use
        after = written + 1
        rows = rows_per_tile(B, model.config.heads, model.config.kv_heads)
        tiles = prefix_tiles(prompt_of, cache.prompts, rows)
        for layer, block in enumerate(model.layers):
            keys, values = cache.keys[layer], cache.values[layer]
            prompts = cache.prompt_keys[layer], cache.prompt_values[layer], cache.prompt_lengths
            q = append(block.before(x), *ropes[block.kind], written, keys, values)  # [B, H, E]
            attended = decode_attention(q, keys, values, after, Prefix(*prompts, prompt_of, tiles))
            x = block.after(x, attended.flatten(1))
        self.draw_rows(slice(0, B), model.logits(model.norm(x)).float())

    def draw_rows(self, rows: slice, logits: Tensor) -> None:
        """Draw a token for each row, or take what a tool wrote in its place.

        A row that has its last token writes over the same place again and again.
        """
        newest, cached, most, prompt_tokens, streams = self.state[:, rows]
        positions = cached + 1 - prompt_tokens  # of the token in the completion
        u = uniform(streams, positions)
        ids, logprobs = sample_tokens(logits, self.sampling.temperature, self.sampling.top_p, u)
        tool_ids = self.tool_ids[self.index[rows], positions]
        newest.copy_(torch.where(tool_ids < 0, ids, tool_ids))
        cached.copy_(torch.minimum(cached + 1, most))
        self.logprobs[rows] = logprobs

    def rewind(self, row: int, sequence: Sequence) -> None:
        n = sequence.cached + 1 - sequence.prompt_tokens  # ids in front of the tool's output
        self.state[0, row], self.state[1, row] = sequence.ids[n - 1], sequence.cached
        output = torch.tensor(sequence.ids[n:], dtype=torch.int64, device=self.device)
        self.tool_ids[row, n : len(sequence.ids)] = output

    def remove(self, row: int, running: list[Sequence]) -> None:
        last, prompt = len(running) - 1, running[row].prompt
        if row != last:
            moved = running[last]
            self.cache.move(last, row, moved.cached - moved.prompt_tokens)
            self.state[:, row] = self.state[:, last]
            self.tool_ids[row] = self.tool_ids[last]
        self.readers[prompt] -= 1
        if not self.readers[prompt] and prompt not in self.prompts:  # no sequence waits for it
            self.places.append(self.place.pop(prompt))
