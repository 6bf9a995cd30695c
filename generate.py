"""Sampling with a KV cache: groups, ragged prompts, tool calls. Tokens in, tokens out.

How a call runs: every prompt is prefilled once, packed with others, and its keys and values are copied (forked) to its
G samples; on a GPU they are stored once and shared. All running samples decode one token a step in one batch. A
finished row leaves the batch (the last row takes its place) and a waiting sample is admitted: at once on a CPU, so that
no step is spent on a row that is done; on a GPU every few steps (decoding.py, the device's side of a step). What a CPU
computes, from ids to the drawn token, is C++ where there is a compiler (kernels/cpu/decoder.py), else PyTorch.

A sample's random numbers depend on (seed, key of its prompt, number of the sample, position) alone: the same seed gives
the same samples whatever the batch size, the order of the prompts or the number of processes.

    python generate.py --model runs/demo/grpo/model --prompt "Question: ..." --samples 4
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import kernels
from data.io import InputError
from decoding import Rows, Running, mix64
from kernels.cpu.decoder import CpuDecoder
from kernels.cpu.decoder import decoder as cpu_decoder
from model import KVCache, Layout, ModelConfig, Transformer
from runtime.hf import from_pretrained

PACK, PACK_CPU = (
    16_384,
    512,
)  # tokens of prompts in one forward; in C++ so few that they stay in a core's cache
SHARED = (
    "cuda",
)  # devices whose cache holds the prompt of a group once, which makes steps of fixed shapes possible


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
            raise InputError(
                f"temperature {self.temperature} must be >= 0 and top_p {self.top_p} in (0, 1]"
            )
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


class _StopStrings:
    """Finds stop strings in what a row wrote; only ids whose bytes could end one are looked at closely."""

    def __init__(self, tokenizer, stop: tuple[str, ...], vocab_size: int):
        self.tokenizer, self.stop = tokenizer, tuple(s.encode() for s in stop)
        last = {s[-1] for s in self.stop}
        ends = [
            any(b in last for b in tokenizer.decode_bytes([i])) for i in range(tokenizer.vocab_size)
        ]
        self.maybe = ends[:vocab_size] + [False] * (vocab_size - len(ends))  # [V]
        self.reach = (
            max(map(len, self.stop), default=0) + 1
        )  # ids to look back: each holds a byte at least

    def found(self, ids: list[int], n: int) -> bool:
        """Did the n-th id complete a stop string?"""
        if not self.maybe[ids[n - 1]]:
            return False
        near = ids[max(0, n - self.reach) : n]
        before, text = (
            len(self.tokenizer.decode_bytes(near[:-1])),
            self.tokenizer.decode_bytes(near),
        )
        return any(text.find(s, max(0, before - len(s) + 1)) >= 0 for s in self.stop)


def _prefill(
    model: Transformer, decoder: CpuDecoder | None, prompts: list[list[int]], budget: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Keys and values [layers, K, L, E] and next logits [V] of each prompt, in packed forwards of ~`budget` tokens."""
    first = 0
    while first < len(prompts):
        last, tokens = first, 0
        while last < len(prompts) and (last == first or tokens + len(prompts[last]) <= budget):
            tokens += len(prompts[last])
            last += 1
        lengths, store = [len(p) for p in prompts[first:last]], []
        ids = torch.tensor([i for p in prompts[first:last] for i in p], device=model.device)
        layout, ends = Layout(lengths, device=model.device), torch.tensor(lengths).cumsum(0) - 1
        if decoder:
            dtype = decoder.cache_dtype
            cache = KVCache(
                model.config, len(lengths), max(lengths), dtype=dtype, block=decoder.block
            )
            logits = decoder.forward(
                cache, ids, layout.document, layout.positions, max(lengths), ends
            )
            keys, values = cache.keys.unbind(1), cache.values.unbind(1)
        else:
            logits = model.logits(model(ids, layout, store)[ends.to(ids.device)]).float()
            parts = (torch.stack(part).transpose(1, 2) for part in zip(*store, strict=True))
            keys, values = (part.split(lengths, dim=2) for part in parts)
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
    eos = set(eos_ids(model, tokenizer))
    stops = _StopStrings(tokenizer, sampling.stop, config.vocab_size) if sampling.stop else None
    seed = mix64(torch.tensor(sampling.seed))
    keys = torch.tensor(list(range(len(prompts))) if keys is None else keys, dtype=torch.int64)
    streams = mix64(mix64(keys + seed)[:, None] + torch.arange(G))  # [prompts, G]
    limits = [min(sampling.max_new_tokens, config.context - len(p)) for p in prompts]
    dtype, lengths = model.compute_dtype or model.embed.weight.dtype, [len(p) for p in prompts]
    shared = device.type in SHARED and not kernels.reference
    decoder = None if shared else cpu_decoder(model)
    dtype, block = (decoder.cache_dtype, decoder.block) if decoder else (dtype, 1)
    cache = make_cache(
        config, min(max_rows, len(prompts) * G), G, lengths, limits, device, dtype, shared, block
    )
    ends = torch.tensor([i in eos for i in range(config.vocab_size)], device=device)
    watch = ends | torch.tensor(stops.maybe, device=device) if stops else ends
    longest = max(map(sum, zip(lengths, limits, strict=True)))
    rows = Rows(model, cache, sampling, ends, watch, longest, max(limits), decoder)
    results: list[list[Sample | None]] = [[None] * G for _ in prompts]
    waiting = deque((p, g) for p in range(len(prompts)) for g in range(G))
    prefilled: dict[int, tuple[Tensor | None, Tensor | None, Tensor]] = {}
    places = list(range(cache.prompts or len(prompts)))  # for prompts in the cache: those not taken
    place: dict[int, int] = {}  # of the prompts with samples that run or will
    left = [G] * len(prompts)  # samples that have not finished

    def ending(owner: Running, ids: list[int]) -> tuple[int, str] | None:
        """(tokens, finish) of a row that has written ids; None if it goes on."""
        for n in range(owner.seen + 1, len(ids) + 1):
            if ids[n - 1] in eos:
                return n, "eos"
            if stops and stops.found(ids, n):
                return n, "stop"
        owner.seen = len(ids)
        return (len(ids), "length") if len(ids) >= owner.limit else None

    def collect() -> None:
        """Look at what was written since the last time: rows that are done leave, tools are run, their rows go on."""
        flagged, finish, called = rows.flagged(), {}, []
        for row, ids in flagged:
            if end := ending(rows.owner[row], ids):
                finish[row] = ids[: end[0]], end[1]
                if end[1] == "stop" and end[0] < rows.owner[row].limit:
                    called.append(row)
        if called and on_stop is not None:
            asked = [
                (rows.owner[row].prompt, rows.owner[row].sample, finish[row][0]) for row in called
            ]
            for row, answer in zip(called, on_stop(asked), strict=True):
                if answer is not None:
                    n = len(finish.pop(row)[0])
                    rows.give(row, n, answer[: rows.owner[row].limit - n])
        if not finish:
            return
        done = sorted(finish, reverse=True)
        for row, logp in zip(done, rows.logprobs[done].tolist(), strict=True):
            owner, (ids, why) = rows.owner[row], finish[row]
            sample = Sample(ids, logp[: len(ids)], owner.mask(len(ids)), why)
            results[owner.prompt][owner.sample] = sample
            left[owner.prompt] -= 1
            if not left[owner.prompt]:
                places.append(place.pop(owner.prompt))
            if on_sample:
                on_sample(owner.prompt, owner.sample, sample)
        rows.remove(done)
        if progress:
            progress(len(finish))

    def admit() -> list[tuple[int, int]]:
        """(prompt, sample) of those whose turn it is: as many as there are free rows, and places for their prompts."""
        batch, free = [], rows.capacity - rows.count
        if rows.count and free < min(len(waiting), max(1, rows.capacity // 8)):
            return batch
        while waiting and len(batch) < free:
            prompt = waiting[0][0]
            if prompt not in place:
                if not places:
                    break
                place[prompt] = places.pop()
            batch.append(waiting.popleft())
        return batch

    while waiting or rows.count:
        if waiting and (batch := admit()):
            # Prompts not seen yet are prefilled; every sample gets a copy of its keys and values, or shares them.
            new = [p for p in dict.fromkeys(p for p, _ in batch) if p not in prefilled]
            packed = _prefill(
                model, decoder, [prompts[p] for p in new], PACK_CPU if decoder else PACK
            )
            for p, (k, v, logits) in zip(new, packed, strict=True):
                if cache.prompts:
                    cache.put_prompt(place[p], k, v)
                    k = v = None
                prefilled[p] = k, v, logits
            start = rows.count
            if not cache.prompts:
                row = start
                for p, n in Counter(
                    p for p, _ in batch
                ).items():  # a prompt's samples stand side by side
                    cache.put(row, row + n, *prefilled[p][:2])
                    row += n
            else:
                cache.prompt_of[start : start + len(batch)] = torch.tensor(
                    [place[p] for p, _ in batch], device=device
                )
            owners = [Running(p, g, len(prompts[p]), limits[p]) for p, g in batch]
            rows.add(owners, torch.stack([streams[p, g] for p, g in batch]))
            logits = torch.stack([prefilled[p][2] for p, _ in batch])
            for p in {p for p, g in batch if g == G - 1}:
                del prefilled[p]
            rows.draw(start, rows.count, logits)
        else:
            rows.run()
        collect()
    return results


def make_cache(
    config: ModelConfig,
    rows: int,
    samples: int,
    lengths: list[int],
    limits: list[int],
    device,
    dtype,
    shared: bool,
    block: int = 1,
) -> KVCache:
    """The KV cache of a call: `rows` running samples of prompts of these lengths, each with its limit of new tokens.

    A row holds its prompt and what it writes; or, `shared`, a prompt is stored once, in one of four times the places
    that prompts need to fill the batch: the last samples of a group keep theirs to the end.
    """
    if not shared:
        return KVCache(
            config,
            rows,
            max(map(sum, zip(lengths, limits, strict=True))),
            device,
            dtype,
            block=block,
        )
    prompts = min(len(lengths), rows, 4 * -(-rows // samples))
    return KVCache(config, rows, max(limits), device, dtype, prompts, max(lengths))


def eos_ids(model: Transformer, tokenizer) -> list[int]:
    """Ids that end a completion: the model's generation settings and the tokenizer's own EOS."""
    stated = model.config.eos_id
    stated = stated if isinstance(stated, list) else [] if stated is None else [stated]
    return sorted({*stated, tokenizer.eos_id})


def main() -> None:
    import argparse

    from data.tokenizer import Tokenizer

    parser = argparse.ArgumentParser(
        description="Sample completions of a prompt from a model directory."
    )
    parser.add_argument("--model", required=True, help="Hugging Face model directory")
    parser.add_argument("--prompt", required=True, help="text to complete")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument(
        "--stop", action="append", default=[], help="stop string; may be given several times"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer, model = Tokenizer.load(args.model), from_pretrained(args.model)
    if torch.cuda.is_available():
        model = model.to("cuda", torch.bfloat16)
    sampling = Sampling(
        args.samples, args.temperature, args.top_p, args.max_new_tokens, tuple(args.stop), args.seed
    )
    prompt = ([tokenizer.bos_id] if tokenizer.add_bos else []) + tokenizer.encode(args.prompt)
    for number, sample in enumerate(generate(model, tokenizer, [prompt], sampling)[0]):
        print(
            f"--- sample {number}: {len(sample.ids)} tokens, {sample.finish}, log-prob {sum(sample.logprobs):.3f}"
        )
        print(tokenizer.decode(sample.ids))


if __name__ == "__main__":
    from data.io import run_cli

    run_cli(main)
