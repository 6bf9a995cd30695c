"""The device's side of sampling: random numbers, draws, the rows of a batch, a step that asks the device nothing.

All that a step reads and writes lies in tensors of fixed shape (`Rows`), stopping included: a row that wrote EOS or its
last token stands still until somebody looks. So the host need look only every few steps (POLL), and on a GPU a step is
a CUDA graph, one for each batch size of 1, 2, 4, 8 ... rows, replayed. There the prompt of a group is stored once and
read once for all of its rows (kernels/decode_attention.py).
On a CPU a step is two calls of C++ (kernels/cpu/decoder.py), where rows lie scattered in the cache.

A sample's random numbers depend on (its stream, position) alone: neither on the batch nor on how often one looks.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.decoder import CpuDecoder
from model import KVCache, Transformer

POLL = {
    "cpu": 1,
    "cuda": 8,
}  # steps between two looks at the rows; a row that ends in between waits


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical, not arithmetic


def mix64(x: Tensor) -> Tensor:
    """splitmix64's step on int64 tensors (arithmetic wraps): a counter-based random generator needs nothing more."""
    x = x + -7046029254386353131
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def uniform(stream: Tensor, position: Tensor) -> Tensor:
    """One float64 in [0, 1) per row: stream [B] int64 names the sample, position [B] counts its tokens."""
    return _shift(mix64(stream + mix64(position)), 11).double() * 2.0**-53


def sample_tokens(
    logits: Tensor, temperature: float, top_p: float, u: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw by inverting the cumulative distribution: logits [B, V] float32 (lost), u [B] -> ids [B], log-probs [B]."""
    if temperature == 0:
        ids = logits.argmax(dim=-1)
        return ids, logits.gather(1, ids[:, None])[:, 0] - torch.logsumexp(logits, dim=-1)
    if temperature != 1:
        logits.div_(temperature)
    logits.sub_(logits.amax(dim=-1, keepdim=True))
    if top_p < 1:
        ordered, order = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True)
        beyond = (
            ordered.cumsum(dim=-1) - ordered >= top_p
        )  # the token that crosses top_p still belongs
        logits.masked_fill_(torch.zeros_like(beyond).scatter_(1, order, beyond), -torch.inf)
    cumulative = logits.exp().cumsum(dim=-1)  # [B, V]
    total = cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, (u[:, None] * total.double()).to(total.dtype), right=True)
    # u * total can round up to total itself: the last id with any probability is meant then
    ids = torch.minimum(ids, (cumulative < total).sum(dim=-1, keepdim=True))
    return ids[:, 0], (logits.gather(1, ids) - total.log())[:, 0]


@dataclass
class Running:
    """What the host knows of a row."""

    prompt: int
    sample: int
    length: int  # tokens of the prompt
    limit: int  # tokens it may write
    seen: int = 0  # tokens written that need not be looked at again
    given: list[tuple[int, int]] = field(default_factory=list)  # [start, end) of what tools wrote

    def mask(self, n: int) -> list[bool]:
        """Which of the first n tokens the model chose."""
        mask = [True] * n
        for start, end in self.given:
            mask[start:end] = [False] * len(mask[start:end])
        return mask


class Rows:
    """The running samples: row b of every tensor belongs to row b of the KV cache; the first `count` are in use.

    `ends` [V] bool: ids that end a sample. `watch` [V] bool: ids, those included, after which the host has to look.
    `longest`: tokens of the longest sample with its prompt, `new`: those that one may write.
    """

    def __init__(
        self,
        model: Transformer,
        cache: KVCache,
        sampling,
        ends: Tensor,
        watch: Tensor,
        longest: int,
        new: int,
        decoder: CpuDecoder | None = None,
    ):
        rows, device = cache.rows, model.device
        self.model, self.cache, self.sampling, self.ends, self.watch = (
            model,
            cache,
            sampling,
            ends,
            watch,
        )
        self.capacity, self.count, self.longest, self.decoder = rows, 0, longest, decoder
        self.poll = POLL.get(device.type, 1)
        self.fixed = (
            cache.prompts > 0
        )  # steps have the shapes of a batch size and of the whole cache
        # [rows] each: tokens in the cache (the prompt's included), tokens written so far, end of what a tool wrote,
        # tokens the sample may have, random stream, 1 while it goes on
        self.state = torch.zeros(6, rows, dtype=torch.int64, device=device)
        self.length, self.step, self.given, self.limit, self.stream, self.going = self.state
        self.look = torch.zeros(
            rows, dtype=torch.bool, device=device
        )  # watched id or last token since the last look
        # one place more than tokens, where a row that stands still behind its last may write
        self.ids = torch.zeros(rows, new + 1, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(rows, new + 1, device=device)
        self.index = torch.arange(rows, device=device)
        self.lengths = np.zeros(
            rows, dtype=np.int64
        )  # `length` on the host, for rows that stand still perhaps more
        self.most = np.zeros(rows, dtype=np.int64)  # what `length` comes to
        self.owner: list[Running] = []
        self.giving = 0  # steps in which some row has a tool's output to read
        self.graphs: dict[
            int, torch.cuda.CUDAGraph | None
        ] = {}  # batch size -> its step (None: not on this device)

    def add(self, owners: list[Running], streams: Tensor) -> None:
        """New rows behind the others, whose prompts are in the cache; streams [len(owners)] int64 on the host."""
        start, self.count = self.count, self.count + len(owners)
        self.owner += owners
        columns = torch.zeros(6, len(owners), dtype=torch.int64)
        columns[0], columns[3] = (
            torch.tensor([getattr(o, name) for o in owners]) for name in ("length", "limit")
        )
        columns[4], columns[5] = streams, 1
        self.state[:, start : self.count] = columns.to(self.state.device)
        self.lengths[start : self.count] = columns[0].numpy()
        self.most[start : self.count] = (columns[0] + columns[3] - 1).numpy()

    def draw(self, start: int, stop: int, logits: Tensor) -> None:
        """Write a token for each row in [start, stop): drawn from its logits, or what a tool has put there."""
        rows, sampling = slice(start, stop), self.sampling
        step, index, going = self.step[rows], self.index[rows], self.going[rows]
        if self.decoder and (sampling.top_p == 1 or sampling.temperature == 0):
            ids, logprobs = self.decoder.draw(logits, sampling.temperature, self.stream[rows], step)
        else:
            u = uniform(self.stream[rows], step)
            logits = logits[:, : len(self.ends)]
            ids, logprobs = sample_tokens(logits, sampling.temperature, sampling.top_p, u)
        given = step < self.given[rows] if self.fixed or self.giving else None
        if given is not None:
            ids = torch.where(given, self.ids[index, step], ids)
            logprobs = logprobs.masked_fill(given, 0)
        self.ids[index, step], self.logprobs[index, step] = ids, logprobs
        step += going
        done, look = self.ends[ids], self.watch[ids]
        if given is not None:  # a tool wrote it: neither EOS nor stop strings count
            done, look = done & ~given, look & ~given
        full = step >= self.limit[rows]
        going &= ~(done | full)
        self.look[rows] |= look | full

    def advance(self, B: int, longest: int) -> None:
        """One token more for each of the first B rows that goes on; `longest` as in Transformer.decode.

        Shapes depend on B and `longest` alone and no value leaves the device, so this can be a CUDA graph. Rows that
        stand still are computed too: they write over the same place of ids and cache again and again, behind their end.
        """
        length = self.length[:B]
        newest = self.ids[self.index[:B], self.step[:B] - 1]
        if self.decoder:
            place = torch.from_numpy(self.cache.place[:B])
            logits = self.decoder.forward(
                self.cache, newest, place, length, longest, self.index[:B]
            )
        else:
            logits = self.model.logits(
                self.model.decode(newest, self.cache, length, longest)
            ).float()
        length += self.going[:B]
        self.draw(0, B, logits)

    def run(self) -> None:
        """Steps until the next look: POLL, or fewer where all rows will have their last token before."""
        left = int((self.most - self.lengths)[: self.count].max())
        if left < 1:
            raise RuntimeError("every row has its last token, and none was taken out")
        for _ in range(min(self.poll, left)):
            lengths = self.lengths[: self.count]
            if self.fixed:
                self.replay(min(1 << (self.count - 1).bit_length(), self.capacity))
            else:
                self.advance(self.count, int(lengths.max()) + 1)
            np.minimum(lengths + 1, self.most[: self.count], out=lengths)
            self.giving -= self.giving > 0

    def replay(self, B: int) -> None:
        """`advance` at a fixed shape. The first step of a batch size runs as it is, which compiles and loads kernels,
        and is then recorded; the others are one launch each."""
        if self.graphs.get(B):
            return self.graphs[B].replay()
        self.advance(B, self.longest)
        if self.state.is_cuda:
            pool = next(
                (graph.pool() for graph in self.graphs.values()), None
            )  # one runs at a time: memory is shared
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self.advance(B, self.longest)
            self.graphs[B] = graph

    def flagged(self) -> list[tuple[int, list[int]]]:
        """[(row, ids written)] of the rows to be looked at: the only place where the host waits for the device."""
        rows = self.look[: self.count].nonzero()[:, 0]
        found = rows.tolist()
        if not found:
            return []
        self.look.zero_()
        written = zip(found, self.ids[rows].tolist(), self.step[rows].tolist(), strict=True)
        return [(row, ids[:step]) for row, ids, step in written]

    def give(self, row: int, n: int, answer: list[int]) -> None:
        """The row goes on behind its first n tokens (what it wrote beyond them is lost), with `answer`, then freely."""
        length = self.owner[row].length + n - 1
        self.ids[row, n : n + len(answer)] = torch.tensor(
            answer, dtype=torch.int64, device=self.ids.device
        )
        self.length[row], self.step[row], self.given[row], self.going[row] = (
            length,
            n,
            n + len(answer),
            1,
        )
        self.lengths[row] = length
        self.giving = max(self.giving, len(answer))
        self.owner[row].seen = n + len(answer)
        self.owner[row].given.append((n, n + len(answer)))

    def remove(self, rows: list[int]) -> None:
        """Take rows out: the last ones move into their places."""
        before, place = (
            self.count,
            list(range(self.count)),
        )  # place[b]: where the row that comes to b is now
        for row in sorted(rows, reverse=True):
            place[row] = place[-1]
            place.pop()
        self.count = len(place)
        if moved := [(source, target) for target, source in enumerate(place) if source != target]:
            for source, target in moved:
                own = self.lengths[source] - (
                    self.owner[source].length if self.cache.prompts else 0
                )
                self.cache.move(source, target, int(own))
            source, target = torch.tensor(moved, device=self.state.device).T
            self.state[:, target] = self.state[:, source]
            self.ids[target], self.logprobs[target] = self.ids[source], self.logprobs[source]
        self.lengths[: self.count], self.most[: self.count] = self.lengths[place], self.most[place]
        self.owner = [self.owner[b] for b in place]
        self.state[:, self.count : before] = (
            0  # nothing is drawn and no key read for a row that is not in use
        )
