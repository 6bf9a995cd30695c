"""Sampling with a KV cache. Tokens in, tokens out.

    waiting --- admit ---> running --- retire ---> finished

Each prompt goes through the model once, packed with others (prefill). Its keys and values are copied to its G samples
(fork). Then all running samples get one token a step, in one batch. A finished sample leaves, and a waiting one takes
its place. `Scheduler` decides who runs. `Decoder` computes the tokens; the decoders in kernels/ repeat it faster.

The random numbers of a sample depend only on the seed, the key of its prompt, its number and the position. So the same
seed gives the same samples for every batch size, order of prompts and number of processes.

    python generate.py --model runs/demo/grpo/model --prompt "Question: ..." --samples 4
    python generate.py --model DIR --chat                       # talk to a chat model in the terminal
"""

from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import accumulate
from os.path import commonprefix
from runtime.options import check, option, parse

import torch
from torch import Tensor

from batch import micro_batches
from data.io import InputError, run_cli
from data.prompts import TEMPLATES
from kernels import definition
from model import KVCache, Layout, Transformer

Draws = tuple[list[list[int]], list[list[float]]]  # ids and log-probs, [B][n] each


@dataclass
class Sampling:
    """How to sample. top_p 1 keeps the whole distribution, as RL rollouts need. Raises InputError."""

    samples: int = option(1, "completions of each prompt", least=1)  # G
    temperature: float = option(1.0, "0 is greedy", least=0)
    top_p: float = option(1.0, "share of the probability that is kept", above=0, most=1)
    max_new_tokens: int = option(256, "most tokens of a completion", least=1)
    stop: Collection[str] = ()
    seed: int = option(0, "seed of the random numbers", least=0)
    max_rows: int = option(256, "samples that run at the same time", least=1)

    def __post_init__(self):
        check(self, partial=True)
        if not all(self.stop):
            raise InputError("a stop string must not be empty")


@dataclass
class Sample:
    """One completion. Where a tool wrote an id, mask is False and its log-prob 0."""

    ids: list[int]  # with EOS at the end when finish is "eos"
    logprobs: list[float]  # as drawn, after temperature and top_p; temperature 1 when greedy
    mask: list[bool]
    finish: str  # "eos", "stop" (a stop string) or "length"


# Called with (index of the prompt, number of the sample, ids so far) of all samples that just wrote a stop string.
# Returns for each the output of a tool, as ids, after which the sample continues, or None: the sample is finished.
ToolHook = Callable[[list[tuple[int, int, list[int]]]], list[list[int] | None]]


# ---------------------------------------------------------------------------------------------------------------------
# Random numbers and draws


def mix64(x: Tensor) -> Tensor:
    """A step of splitmix64 on int64 tensors, whose arithmetic wraps: random numbers without a state."""
    x = x + -7046029254386353131
    x = (x ^ shift(x, 30)) * -4658895280553007687
    x = (x ^ shift(x, 27)) * -7723592293110705685
    return x ^ shift(x, 31)


def shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical, not arithmetic


def uniform(streams: Tensor, positions: Tensor) -> Tensor:
    """Float64 numbers in [0, 1), [B]: streams [B] names the samples, positions [B] counts their tokens."""
    return shift(mix64(streams + mix64(positions)), 11).double() * 2.0**-53


def sample_tokens(
    logits: Tensor, temperature: float, top_p: float, u: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw by inverting the cumulative distribution: logits [B, V], u [B] in [0, 1) -> ids [B], log-probs [B]."""
    if temperature == 0:
        logprobs, ids = torch.log_softmax(logits, dim=-1).max(dim=-1)
        return ids, logprobs
    logprobs = torch.log_softmax(logits / temperature, dim=-1)  # [B, V]
    if top_p < 1:
        # Keep the most likely tokens, up to the one with which their sum reaches top_p.
        ordered, order = logprobs.exp().sort(dim=-1, descending=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= top_p
        removed = torch.zeros_like(beyond).scatter_(1, order, beyond)
        logprobs = torch.log_softmax(logprobs.masked_fill(removed, -torch.inf), dim=-1)
    cumulative = logprobs.exp().cumsum(dim=-1)  # [B, V]
    total = cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, (u[:, None] * total.double()).to(total.dtype), right=True)
    # u * total can round up to total. Then the last id with any probability is meant.
    ids = torch.minimum(ids, (cumulative < total).sum(dim=-1, keepdim=True))
    return ids[:, 0], logprobs.gather(1, ids)[:, 0]


# ---------------------------------------------------------------------------------------------------------------------
# The decoder


@dataclass
class Sequence:
    """A sample that waits or runs."""

    prompt: int  # index of the prompt
    number: int  # which of the G samples
    prompt_tokens: int
    limit: int  # most ids
    stream: int  # names its random numbers
    cached: int  # tokens in the cache, of prompt and ids; at first the prompt without its last
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)  # up to the last id that a tool wrote
    searched: int = 0  # ids among which no end was found

    @property
    def unread(self) -> int:
        """Ids that are not in the cache: the newest one, and more after the output of a tool."""
        return self.prompt_tokens + len(self.ids) - self.cached

    def resume(self, n: int, output: list[int]) -> None:
        """Continue after the first n ids and the output of a tool."""
        self.ids = self.ids[:n] + output
        self.logprobs = self.logprobs[:n] + [0.0] * len(output)
        self.mask += [True] * (n - len(self.mask)) + [False] * len(output)
        self.cached = self.prompt_tokens + n - 1
        self.searched = len(self.ids)

    def sample(self, n: int, finish: str) -> Sample:
        mask = self.mask + [True] * (n - len(self.mask))
        return Sample(self.ids[:n], self.logprobs[:n], mask, finish)


@definition
def make_decoder(
    model: Transformer, sampling: Sampling, rows: int, sequences: list[Sequence]
) -> "Decoder":
    """The decoder of a call of `generate`, with room for `rows` of these sequences at the same time."""
    capacity = max(s.prompt_tokens + s.limit for s in sequences)
    dtype = model.compute_dtype or model.embed.weight.dtype
    cache = KVCache(model.config, rows, capacity, model.device, dtype)
    return Decoder(model, sampling, cache)


class Decoder:
    """Computes the tokens of running sequences. Row b of the cache belongs to running[b]."""

    pack = 16_384  # most tokens of prompts in one forward
    shared = 0  # so many first tokens are the same in all prompts of the call

    def __init__(self, model: Transformer, sampling: Sampling, cache):
        self.model, self.sampling, self.cache = model, sampling, cache
        self.device = model.device
        # prompt -> keys [layers, K, L, E], values [layers, K, L, E], logits of the next token [V]
        self.prompts: dict[int, tuple] = {}

    def tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self.device)

    def free_prompts(self) -> int:
        """How many more prompts there is room for."""
        return self.cache.rows

    def prefill(self, prompts: dict[int, list[int]]) -> None:
        """Run prompts through the model in one forward, and keep what `fork` needs. What they share runs once."""
        first = next(iter(prompts.values()))[: self.shared]
        rests = [ids[self.shared :] for ids in prompts.values()]
        results = zip(*self.forward(first, rests), strict=True)
        self.prompts.update(zip(prompts, results, strict=True))

    def forward(self, first: list[int], rests: list[list[int]]) -> tuple:
        """Prompts `first` + rest -> keys and values [layers, K, L, E] and next logits [V] of each prompt."""
        lengths = [len(first), *map(len, rests)]
        parents = [-1] + [0] * len(rests) if first else None
        layout = Layout(lengths if first else lengths[1:], parents, self.device)
        store: list[tuple[Tensor, Tensor]] = []
        hidden = self.model(self.tensor(sum(rests, first)), layout, store)  # [T, D]
        ends = self.tensor(lengths).cumsum(0)[1:] - 1
        logits = self.model.logits(hidden[ends]).float()  # [prompts, V]
        results = []
        for layers in zip(*store, strict=True):  # keys, then values
            start, *parts = torch.stack(layers).transpose(1, 2).split(lengths, dim=2)
            results.append([torch.cat([start, part], dim=2) for part in parts])  # [layers, K, L, E]
        return *results, logits

    def fork(self, running: list[Sequence], start: int) -> Draws:
        """Add rows for running[start:], which copy keys and values of their prompts, and draw a token for each."""
        new, row = running[start:], start
        for prompt, count in Counter(s.prompt for s in new).items():  # its samples are neighbors
            keys, values, _ = self.prompts[prompt]
            self.cache.put(row, row + count, keys, values)
            row += count
        return self.draw(self.next_logits(new), new)

    def next_logits(self, new: list[Sequence]) -> Tensor:
        """Logits [B, V] of the first ids. A prompt is forgotten with the last of its samples."""
        logits = torch.stack([self.prompts[s.prompt][2] for s in new])
        for s in new:
            if s.number == self.sampling.samples - 1:
                del self.prompts[s.prompt]
        return logits

    def step(self, running: list[Sequence]) -> Draws:
        """Feed the next token of each row and draw one more. Returns the draws of n steps, here of one."""
        ids = self.tensor([s.ids[-s.unread] for s in running])
        lengths = self.tensor([s.cached for s in running])
        longest = max(s.cached for s in running) + 1
        return self.draw(self.forward_step(ids, lengths, longest), running)

    def forward_step(self, ids: Tensor, lengths: Tensor, longest: int) -> Tensor:
        """ids [B] after `lengths` [B] tokens -> logits [B, V]. longest: the largest length after the step."""
        hidden = self.model.decode(ids, self.cache, lengths, longest)  # [B, D]
        return self.model.logits(hidden).float()

    def draw(self, logits: Tensor, sequences: list[Sequence]) -> Draws:
        streams = self.tensor([s.stream for s in sequences])
        positions = self.tensor([s.cached + 1 - s.prompt_tokens for s in sequences])
        ids, logprobs = self.draw_tokens(logits, streams, positions)  # [B]
        return ids[:, None].tolist(), logprobs[:, None].tolist()

    def draw_tokens(self, logits: Tensor, streams: Tensor, positions: Tensor):
        u = uniform(streams, positions)
        return sample_tokens(logits, self.sampling.temperature, self.sampling.top_p, u)

    def rewind(self, row: int, sequence: Sequence) -> None:
        """The row's sequence was resumed after the output of a tool."""

    def remove(self, row: int, running: list[Sequence]) -> None:
        """The row's sequence is finished. The last row moves into its place."""
        last = len(running) - 1
        if row != last:
            self.cache.move(last, row, running[last].cached)


# ---------------------------------------------------------------------------------------------------------------------
# The scheduler


class Scheduler:
    """Which sequences wait and which run. running[b] is row b of the decoder."""

    def __init__(self, decoder: Decoder, prompts: list, waiting: list[Sequence], rows: int):
        self.decoder, self.prompts, self.rows = decoder, prompts, rows
        self.waiting = deque(waiting)
        self.running: list[Sequence] = []
        # Few-shot examples and instructions: a start of all prompts that is worth a segment.
        common = min(len(commonprefix(prompts)), min(map(len, prompts)) - 1)
        decoder.shared = common if len(prompts) > 1 and common >= 16 else 0

    def admit(self) -> list[Sequence]:
        """Waiting sequences that start now: as many as there are free rows, and room for their prompts."""
        free = self.rows - len(self.running)
        enough = max(1, self.rows // 8)  # a large batch waits for several free rows
        if self.running and free < min(len(self.waiting), enough):
            return []
        new: list[Sequence] = []
        unseen: list[int] = []  # prompts
        while self.waiting and len(new) < free:
            prompt = self.waiting[0].prompt
            if prompt not in self.decoder.prompts and prompt not in unseen:
                if len(unseen) == self.decoder.free_prompts():
                    break
                unseen.append(prompt)
            new.append(self.waiting.popleft())
        lengths = [len(self.prompts[prompt]) - self.decoder.shared for prompt in unseen]
        for members in micro_batches(lengths, self.decoder.pack)[0]:
            self.decoder.prefill({unseen[i]: self.prompts[unseen[i]] for i in members})
        return new

    def advance(self) -> range:
        """Start waiting sequences, or else run a step. Returns the rows that got tokens."""
        first = 0
        if new := self.admit():
            first = len(self.running)
            self.running += new
            ids, logprobs = self.decoder.fork(self.running, first)
        else:
            ids, logprobs = self.decoder.step(self.running)
        for sequence, draws, logps in zip(self.running[first:], ids, logprobs, strict=True):
            known = sequence.unread - 1  # ids that a tool wrote: draws in their places are dropped
            sequence.ids += draws[known:]
            sequence.logprobs += logps[known:]
            sequence.cached += len(draws)
        return range(first, len(self.running))

    def call_tool(self, on_stop: ToolHook, ended: dict[int, tuple[int, str]]) -> None:
        """Let a tool answer stop strings. Rows that continue are taken out of `ended`, row -> (number of ids, finish)."""
        rows, stopped = [], []
        for row, (n, finish) in ended.items():
            sequence = self.running[row]
            if finish == "stop" and n < sequence.limit:
                rows.append(row)
                stopped.append((sequence.prompt, sequence.number, sequence.ids[:n]))
        outputs = on_stop(stopped) if stopped else []
        for row, output in zip(rows, outputs, strict=True):
            if output is None:
                continue
            n, _ = ended.pop(row)
            sequence = self.running[row]
            sequence.resume(n, output[: sequence.limit - n])
            self.decoder.rewind(row, sequence)
            if len(sequence.ids) == sequence.limit:
                ended[row] = sequence.limit, "length"

    def retire(self, row: int) -> Sequence:
        """Take a finished sequence out. The last row moves into its place."""
        self.decoder.remove(row, self.running)
        sequence, self.running[row] = self.running[row], self.running[-1]
        self.running.pop()
        return sequence


class Ends:
    """What ends a sequence: EOS, a stop string, or its limit."""

    def __init__(self, model: Transformer, tokenizer, stop: Collection[str]):
        self.tokenizer = tokenizer
        stated = model.config.eos_id  # an id, a list or None
        self.eos = {*(stated if isinstance(stated, list) else [stated]), tokenizer.eos_id}
        self.stop = [string.encode() for string in stop]
        self.most_ids = max(map(len, self.stop), default=0) + 1  # each id holds a byte or more
        # Only ids with the last byte of a stop string can complete one.
        last = {string[-1] for string in self.stop}
        ids = range(tokenizer.vocab_size if stop else 0)
        self.watched = {i for i in ids if last & {*tokenizer.decode_bytes([i], special=True)}}

    def find(self, sequence: Sequence) -> tuple[int, str] | None:
        """(number of ids, finish) if the sequence has ended."""
        new = sequence.ids[sequence.searched : sequence.limit]
        for n, i in enumerate(new, sequence.searched + 1):
            if i in self.eos:
                return n, "eos"
            ids = sequence.ids[max(0, n - self.most_ids) : n]
            if i in self.watched and before_stop(self.tokenizer, ids, self.stop) is not None:
                return n, "stop"
        sequence.searched += len(new)
        return (sequence.limit, "length") if sequence.searched == sequence.limit else None


def before_stop(tokenizer, ids: list[int], stop: list[bytes]) -> bytes | None:
    """The text before the stop string that the last id completes; None if it completes none.

    Here a special token stands for its text: the id of `<|im_end|>` is that stop string too.
    """
    pieces = [tokenizer.decode_bytes([i], special=True) for i in ids]
    text = b"".join(pieces)
    before = len(text) - len(pieces[-1])
    found = [text.find(string, max(0, before - len(string) + 1)) for string in stop]
    start = min((place for place in found if place >= 0), default=None)
    if start is None:
        return None
    n = sum(end <= start for end in accumulate(map(len, pieces)))  # ids that end before it
    rest = start - len(b"".join(pieces[:n]))  # bytes of the next id that belong to the text
    return tokenizer.decode_bytes(ids[:n]) + tokenizer.decode_bytes([ids[n]])[:rest]


def completion_text(tokenizer, sample: Sample, stop: Collection[str] = ()) -> str:
    """The text of a completion, without the EOS or the stop string that ended it (earlier ones stay)."""
    text = tokenizer.decode_bytes(sample.ids[:-1] if sample.finish == "eos" else sample.ids)
    if sample.finish == "stop":
        kept = before_stop(tokenizer, sample.ids, [string.encode() for string in stop])
        text = text if kept is None else kept
    return text.decode("utf-8", errors="replace")


@torch.inference_mode()
def generate(
    model: Transformer,
    tokenizer,
    prompts: list[list[int]],
    sampling: Sampling,
    keys: list[int] | None = None,
    on_stop: ToolHook | None = None,
    on_sample: Callable[[int, int, Sample], None] | None = None,
) -> list[list[Sample]]:
    """Complete every prompt (token ids) `sampling.samples` times: the result is indexed [prompt][number].

    keys: names the random numbers of each prompt (default: its index).
    on_stop: a tool that may answer stop strings, see ToolHook.
    on_sample: called with (index of the prompt, number, sample) of each sample when it has finished.
    Raises InputError for an empty prompt, or one that fills the model's context.
    """
    context, G = model.config.context, sampling.samples
    if not prompts:
        return []
    keys = list(range(len(prompts))) if keys is None else keys
    names = mix64(torch.tensor(keys) + mix64(torch.tensor(sampling.seed)))  # [Q]
    streams = mix64(names[:, None] + torch.arange(G)).tolist()  # [Q][G]

    waiting = []
    for index, ids in enumerate(prompts):
        L = len(ids)
        if not 0 < L < context:
            needs = f"it must have 1 to {context - 1} (the model's context is {context})"
            raise InputError(f"prompt {index} has {L} tokens; {needs}")
        limit = min(sampling.max_new_tokens, context - L)
        for number, stream in enumerate(streams[index]):
            waiting.append(Sequence(index, number, L, limit, stream, cached=L - 1))
    rows = min(sampling.max_rows, len(waiting))
    decoder = make_decoder(model, sampling, rows, waiting)
    scheduler = Scheduler(decoder, prompts, waiting, rows)
    ends = Ends(model, tokenizer, sampling.stop)
    results: list[list] = [[None] * G for _ in prompts]  # [Q][G]

    while scheduler.waiting or scheduler.running:
        # A token more for each row. Rows that wrote EOS, a stop string or their last id have ended.
        ended = {}
        for row in scheduler.advance():
            if end := ends.find(scheduler.running[row]):
                ended[row] = end
        if on_stop:  # rows whose stop string a tool answers continue
            scheduler.call_tool(on_stop, ended)
        # Ended rows leave the batch.
        for row in sorted(ended, reverse=True):
            sequence = scheduler.retire(row)
            sample = sequence.sample(*ended[row])
            results[sequence.prompt][sequence.number] = sample
            if on_sample:
                on_sample(sequence.prompt, sequence.number, sample)
    return results


# ---------------------------------------------------------------------------------------------------------------------
# The command


@dataclass
class Config(Sampling):
    model: str = option("", "directory of a model in Hugging Face format", required=True)
    prompt: str = option("", "text to complete; the user's message in --template chat")
    template: str = option("none", "none: the prompt as it is", choices=("none", *TEMPLATES))
    system: str = option("", "system message of --template chat; empty: the template's")
    chat: bool = option(False, "talk in the terminal; an empty line ends it")
    stop: list[str] = option([], "strings that end a completion")
    kernels: str = option("fast", "plain: without accelerators", choices=("fast", "plain"))


def main() -> None:
    from data.chat import load_tokenizer, talk
    from data.prompts import encode, prompt, stop_strings
    from runtime.distributed import setup, use_kernels
    from runtime.hf import from_pretrained

    config = parse(Config, description=__doc__)
    world = setup(kernels=config.kernels)
    if not config.prompt and not config.chat:
        raise InputError("--prompt: give a text to complete, or use --chat")
    template = "chat" if config.chat else config.template
    tokenizer = load_tokenizer(config.model, template, config.system)
    model = from_pretrained(config.model, world.device, world.dtype)
    use_kernels(model.config, world)

    def answer(ids: list[int]) -> str:
        sample = generate(model, tokenizer, [ids], config)[0][0]
        return completion_text(tokenizer, sample, config.stop)

    if config.chat:
        return talk(tokenizer, answer)
    text = config.prompt
    if template not in ("none", "chat"):
        text = prompt(text, "cot", template)
        config.stop = config.stop or stop_strings("cot", template)
    prompts = encode(tokenizer, [text], template)
    for number, sample in enumerate(generate(model, tokenizer, prompts, config)[0]):
        tokens = f"{len(sample.ids)} tokens, {sample.finish}"
        print(f"--- sample {number}: {tokens}, log-prob {sum(sample.logprobs):.3f}")
        print(completion_text(tokenizer, sample, config.stop))


if __name__ == "__main__":
    run_cli(main)
