"""Sampling with a KV cache: groups, ragged prompts, tool calls. Tokens in, tokens out.

How a call runs: every prompt is prefilled once, packed with others, and its keys and values are copied (forked) to its
G samples. All running samples decode one token a step in one batch. A finished row leaves the batch at once (the last
row takes its place) and a waiting sample is admitted, so no step is spent on a row that is done.

A sample's random numbers depend on (seed, key of its prompt, number of the sample, position) alone: the same seed gives
the same samples whatever the batch size, the order of the prompts or the number of processes.

    python generate.py --model runs/demo/grpo/model --prompt "Question: ..." --samples 4
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data import InputError
from model import KVCache, Layout, Transformer


@dataclass
class Sampling:
    """How to sample. temperature 0 is greedy; top_p 1 keeps the whole distribution (what RL rollouts need)."""

    samples: int = 1  # G
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        if self.samples < 1 or self.max_new_tokens < 1:
            raise InputError("samples and max_new_tokens must be at least 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise InputError(f"temperature {self.temperature} must be >= 0 and top_p {self.top_p} in (0, 1]")
        if not all(self.stop):
            raise InputError("a stop string must not be empty")


@dataclass
class Sample:
    """One completion. `ids` end with EOS when finish is "eos"; `mask` is False where a tool, not the model, wrote it.

    logprobs are float32 log-probs of each id under the distribution it was drawn from (temperature and top_p applied;
    under temperature 1 when greedy), 0 where mask is False. finish: "eos", "stop" (a stop string) or "length".
    """

    ids: list[int]
    logprobs: list[float]
    mask: list[bool]
    finish: str


# Called with [(prompt index, sample number, ids so far)] of the rows that just wrote a stop string; returns for each
# the ids to append (a tool's output: the row goes on from the same cache) or None (the row is finished).
ToolHook = Callable[[list[tuple[int, int, list[int]]]], list[list[int] | None]]


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


def sample_tokens(logits: Tensor, temperature: float, top_p: float, u: Tensor) -> tuple[Tensor, Tensor]:
    """Draw by inverting the cumulative distribution: logits [B, V] float32 (lost), u [B] -> ids [B], log-probs [B]."""
    if temperature == 0:
        ids = logits.argmax(dim=-1)
        return ids, logits.gather(1, ids[:, None])[:, 0] - torch.logsumexp(logits, dim=-1)
    if temperature != 1:
        logits.div_(temperature)
    logits.sub_(logits.amax(dim=-1, keepdim=True))
    if top_p < 1:
        ordered, order = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= top_p  # the token that crosses top_p still belongs
        logits.masked_fill_(torch.zeros_like(beyond).scatter_(1, order, beyond), -torch.inf)
    cumulative = logits.exp().cumsum(dim=-1)  # [B, V]
    total = cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, (u[:, None] * total.double()).to(total.dtype), right=True)
    # u * total can round up to total itself: the last id with any probability is meant then
    ids = torch.minimum(ids, (cumulative < total).sum(dim=-1, keepdim=True))
    return ids[:, 0], (logits.gather(1, ids) - total.log())[:, 0]


class _StopStrings:
    """Finds stop strings in what a row wrote; only ids whose bytes could end one are looked at closely."""

    def __init__(self, tokenizer, stop: tuple[str, ...], vocab_size: int, device):
        self.tokenizer, self.stop = tokenizer, tuple(s.encode() for s in stop)
        last = {s[-1] for s in self.stop}
        ends = [any(b in last for b in tokenizer.decode_bytes([i])) for i in range(tokenizer.vocab_size)]
        self.maybe = torch.tensor(ends + [False] * (vocab_size - len(ends)), device=device)  # [V]
        self.reach = max(map(len, self.stop)) + 1  # ids to look back: each holds a byte at least

    def found(self, ids: list[int]) -> bool:
        """Did the newest id complete a stop string?"""
        before = len(self.tokenizer.decode_bytes(ids[-self.reach : -1]))
        text = self.tokenizer.decode_bytes(ids[-self.reach :])
        return any(text.find(s, max(0, before - len(s) + 1)) >= 0 for s in self.stop)


class _Rows:
    """The running samples: row b of every tensor belongs to row b of the KV cache; the first `count` are in use."""

    def __init__(self, rows: int, max_new_tokens: int, device):
        self.capacity, self.count = rows, 0
        # tokens in the cache, tokens written so far, tokens the sample may have, random stream: [rows]
        self.length, self.step, self.limit, self.stream = torch.zeros(4, rows, dtype=torch.int64, device=device)
        self.ids = torch.zeros(rows, max_new_tokens, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(rows, max_new_tokens, device=device)
        self.chosen = torch.zeros(rows, max_new_tokens, dtype=torch.bool, device=device)
        self.lengths = np.zeros(rows, dtype=np.int64)  # `length` on the host: no synchronisation to find the longest
        self.owner: list[tuple[int, int]] = [(0, 0)] * rows  # (prompt, sample number)
        self.forced: dict[int, deque[int]] = {}  # row -> a tool's output still to be fed

    def add(self, prompt: int, sample: int, length: int, limit: int, stream: Tensor) -> int:
        row, self.count = self.count, self.count + 1
        self.length[row] = self.lengths[row] = length
        self.step[row], self.limit[row], self.stream[row], self.owner[row] = 0, limit, stream, (prompt, sample)
        return row

    def record(self, start: int, ids: Tensor, logprobs: Tensor) -> None:
        """Write one drawn id for each row from `start` on; where a tool's output is pending, that instead."""
        row, step = torch.arange(start, self.count, device=ids.device), self.step[start : self.count]
        self.ids[row, step], self.logprobs[row, step] = ids, logprobs
        self.chosen[row, step] = torch.ones_like(ids, dtype=torch.bool)
        for r in [r for r in self.forced if r >= start]:  # rows before `start` write nothing now
            at = self.step[r]
            self.ids[r, at], self.logprobs[r, at], self.chosen[r, at] = self.forced[r].popleft(), 0.0, False
            if not self.forced[r]:
                del self.forced[r]
        step += 1

    def written(self, row: int) -> list[int]:
        return self.ids[row, : self.step[row]].tolist()

    def pop(self, row: int, finish: str, cache: KVCache) -> Sample:
        """Take a finished row out; the last row moves into its place."""
        n, last = int(self.step[row]), self.count - 1
        sample = Sample(
            self.ids[row, :n].tolist(), self.logprobs[row, :n].tolist(), self.chosen[row, :n].tolist(), finish
        )
        self.forced.pop(row, None)
        if row != last:
            cache.move(last, row, int(self.lengths[last]))
            for tensor in (self.length, self.lengths, self.step, self.limit, self.stream):
                tensor[row] = tensor[last]
            for tensor in (self.ids, self.logprobs, self.chosen):
                tensor[row] = tensor[last]
            self.owner[row] = self.owner[last]
            if last in self.forced:
                self.forced[row] = self.forced.pop(last)
        self.count = last
        return sample


def _prefill(model: Transformer, prompts: list[list[int]], budget: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Keys and values [layers, L, K, E] and next logits [V] of each prompt, in packed forwards of ~`budget` tokens."""
    first = 0
    while first < len(prompts):
        last, tokens = first, 0
        while last < len(prompts) and (last == first or tokens + len(prompts[last]) <= budget):
            tokens += len(prompts[last])
            last += 1
        lengths, store = [len(p) for p in prompts[first:last]], []
        ids = torch.tensor([i for p in prompts[first:last] for i in p], device=model.device)
        hidden = model(ids, Layout(lengths, device=model.device), store)
        ends = torch.tensor(lengths).cumsum(0) - 1
        logits = model.logits(hidden[ends.to(hidden.device)]).float()
        keys, values = (torch.stack(part).split(lengths, dim=1) for part in zip(*store, strict=True))
        yield from zip(keys, values, logits, strict=True)
        first = last


@torch.inference_mode()
def generate(
    model: Transformer,
    tokenizer,
    prompts: list[list[int]],
    sampling: Sampling,
    max_rows: int = 256,
    keys: list[int] | None = None,
    on_stop: ToolHook | None = None,
    progress: Callable[[int], None] | None = None,
    on_sample: Callable[[int, int, Sample], None] | None = None,
) -> list[list[Sample]]:
    """Complete every prompt (token ids) `sampling.samples` times: the result is indexed [prompt][sample number].

    `keys` names the random stream of each prompt (default: its index). `max_rows` bounds the batch and with it the
    cache; the samples do not depend on it. `progress` is called with the number of samples that finished,
    `on_sample` with (prompt index, sample number, sample) of each, while others are still being written.
    Raises InputError for an empty prompt, or one that leaves no room in the model's context.
    """
    config, device, G = model.config, model.device, sampling.samples
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) < config.context:
            raise InputError(
                f"prompt {i} has {len(prompt)} tokens; it must have 1 to {config.context - 1} "
                f"(the model's context is {config.context})"
            )
    if max_rows < 1:
        raise InputError(f"max_rows {max_rows} must be at least 1")
    if not prompts:
        return []
    eos = torch.tensor(eos_ids(model, tokenizer), device=device)
    stops = _StopStrings(tokenizer, sampling.stop, config.vocab_size, device) if sampling.stop else None
    seed = mix64(torch.tensor(sampling.seed))
    keys = torch.tensor(list(range(len(prompts))) if keys is None else keys, dtype=torch.int64)
    streams = mix64(mix64(keys + seed)[:, None] + torch.arange(G)).to(device)  # [prompts, G]
    limits = [min(sampling.max_new_tokens, config.context - len(p)) for p in prompts]
    rows = _Rows(min(max_rows, len(prompts) * G), max(limits), device)
    capacity = max(len(p) + limit for p, limit in zip(prompts, limits, strict=True))
    cache = KVCache(config, rows.capacity, capacity, device, model.compute_dtype or model.embed.weight.dtype)
    results: list[list[Sample | None]] = [[None] * G for _ in prompts]
    waiting = deque((p, g) for p in range(len(prompts)) for g in range(G))
    prefilled: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def draw(start: int, logits: Tensor) -> None:
        """Draw a token for each row from `start` on, then take out the rows that are done."""
        stream, step = rows.stream[start : rows.count], rows.step[start : rows.count]
        ids, logprobs = sample_tokens(logits, sampling.temperature, sampling.top_p, uniform(stream, step))
        rows.record(start, ids, logprobs)
        ids = rows.ids[torch.arange(start, rows.count, device=device), step - 1]  # forced ones included
        ended, full = torch.isin(ids, eos), step >= rows.limit[start : rows.count]
        closer_look = ended | full | stops.maybe[ids] if stops else ended | full
        finish, called = {}, []
        for row in (closer_look.nonzero()[:, 0] + start).tolist():
            if not rows.chosen[row, rows.step[row] - 1]:  # a tool wrote it: neither EOS nor stop strings count
                pass
            elif ended[row - start]:
                finish[row] = "eos"
                continue
            elif stops and stops.found(rows.written(row)):
                finish[row] = "stop"
                if not full[row - start]:
                    called.append(row)
                continue
            if full[row - start]:
                finish[row] = "length"
        if called and on_stop is not None:
            for row, answer in zip(called, on_stop([(*rows.owner[r], rows.written(r)) for r in called]), strict=True):
                if answer is not None:
                    del finish[row]
                    if answer:
                        rows.forced[row] = deque(answer)
        for row in sorted(finish, reverse=True):
            prompt, sample = rows.owner[row]
            results[prompt][sample] = rows.pop(row, finish[row], cache)
            if on_sample:
                on_sample(prompt, sample, results[prompt][sample])
        if progress and finish:
            progress(len(finish))

    while waiting or rows.count:
        free = rows.capacity - rows.count
        if waiting and (rows.count == 0 or free >= min(len(waiting), max(1, rows.capacity // 8))):
            # Admit: prompts not seen yet are prefilled, then every sample gets a copy of its prompt's keys and values.
            start, batch = rows.count, [waiting.popleft() for _ in range(min(len(waiting), free))]
            new = [p for p in dict.fromkeys(p for p, _ in batch) if p not in prefilled]
            prefilled.update(zip(new, _prefill(model, [prompts[p] for p in new], 16_384), strict=True))
            for p, g in batch:
                row = rows.add(p, g, len(prompts[p]), limits[p], streams[p, g])
                cache.put(row, *prefilled[p][:2])
            logits = torch.stack([prefilled[p][2] for p, _ in batch])
            for p in {p for p, g in batch if g == G - 1}:
                del prefilled[p]
            draw(start, logits)
            continue
        B, length = rows.count, rows.length[: rows.count]
        newest = rows.ids[torch.arange(B, device=device), rows.step[:B] - 1]
        hidden = model.decode(newest, cache, length, int(rows.lengths[:B].max()) + 1)
        length += 1
        rows.lengths[:B] += 1
        draw(0, model.logits(hidden).float())
    return results


def eos_ids(model: Transformer, tokenizer) -> list[int]:
    """Ids that end a completion: the model's generation settings and the tokenizer's own EOS."""
    stated = model.config.eos_id
    stated = stated if isinstance(stated, list) else [] if stated is None else [stated]
    return sorted({*stated, tokenizer.eos_id})


def main() -> None:
    import argparse

    from data.tokenizer import Tokenizer
    from model import from_pretrained

    parser = argparse.ArgumentParser(description="Sample completions of a prompt from a model directory.")
    parser.add_argument("--model", required=True, help="Hugging Face model directory")
    parser.add_argument("--prompt", required=True, help="text to complete")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--stop", action="append", default=[], help="stop string; may be given several times")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer, model = Tokenizer.load(args.model), from_pretrained(args.model)
    if torch.cuda.is_available():
        model = model.to("cuda", torch.bfloat16)
    sampling = Sampling(args.samples, args.temperature, args.top_p, args.max_new_tokens, tuple(args.stop), args.seed)
    prompt = ([tokenizer.bos_id] if tokenizer.add_bos else []) + tokenizer.encode(args.prompt)
    for number, sample in enumerate(generate(model, tokenizer, [prompt], sampling)[0]):
        print(f"--- sample {number}: {len(sample.ids)} tokens, {sample.finish}, log-prob {sum(sample.logprobs):.3f}")
        print(tokenizer.decode(sample.ids))


if __name__ == "__main__":
    from data import run_cli

    run_cli(main)
