"""generate.py: decoding with a cache against forward passes, draws against the softmax, and what ends a sample."""

import itertools
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kernels
from data.io import InputError
from data.train_tokenizer import train
from generate import (
    Decoder,
    Ends,
    Sampling,
    Sequence,
    completion_text,
    generate,
    make_decoder,
    mix64,
    sample_tokens,
    uniform,
)
from kernels.triton.decoder import GpuDecoder, SharedCache
from model import ModelConfig, Transformer
from runtime.hf import save_pretrained

ROOT = Path(__file__).parents[1]
FAST = settings(max_examples=40)


def sampled(model, tokenizer, prompts, sampling, max_rows=256, **hooks):
    return generate(model, tokenizer, prompts, replace(sampling, max_rows=max_rows), **hooks)


class Pieces:
    """A tokenizer whose ids are the places of byte strings in a list; the last id is EOS."""

    def __init__(self, pieces):
        self.pieces, self.eos_id, self.vocab_size = pieces, len(pieces), len(pieces) + 1

    def decode_bytes(self, ids, special=False):
        pieces = [self.pieces[i] for i in ids if i < len(self.pieces)]
        return b"".join(p for p in pieces if special or not (p[:2] == b"<|" and p[-2:] == b"|>"))


LETTERS = Pieces([bytes([b]) for b in b"abcdefghijk"])  # 11 letters and EOS
PROMPTS = [
    [1, 2, 3],
    [7],
    [4, 4, 0, 9, 2, 5, 8, 1, 3, 6, 10, 2, 7],
    [5, 5],
    [9, 8, 7, 6, 5, 4, 3],
    [2, 3],
    [10],
]


def random_model(seed=0, context=64, **changes):
    """Weights large enough for uneven distributions that depend on the whole context."""
    shape = dict(vocab_size=12, width=32, layers=2, heads=4, kv_heads=2, ffn=48, context=context)
    model = Transformer(ModelConfig(**{**shape, **changes}), seed)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.dim() == 2:
            p.data.normal_(0, p.shape[1] ** -0.5, generator=generator)
    model.head_weight.data[11] *= 0.3  # EOS of LETTERS: rarely the most likely
    return model


def bigram_model(probabilities, vocab_size, context=64):
    """A model whose next token depends on the newest alone: probabilities {id: {next id: p}}."""
    model = Transformer(
        ModelConfig(
            vocab_size,
            width=vocab_size,
            layers=1,
            heads=1,
            kv_heads=1,
            ffn=2,
            head_width=2,
            context=context,
        )
    )
    table = torch.full((vocab_size, vocab_size), -60.0)
    for i, following in probabilities.items():
        for j, p in following.items():
            table[j, i] = math.log(p)
    with torch.no_grad():
        model.layers[0].attn.out.weight.zero_()
        model.layers[0].mlp.down.weight.zero_()
        model.embed.weight.copy_(torch.eye(vocab_size))
        model.head.weight.copy_(
            table * vocab_size**-0.5
        )  # the norm makes a one-hot row sqrt(vocab_size) long
    return model


def script_model(length):
    """Writes 1, 2, 3 ... after a prompt that ends in 0, and EOS (id `length`) after the last."""
    return bigram_model({i: {i + 1: 1.0} for i in range(length)}, length + 1)


@torch.no_grad()
def distributions(model, prompt, ids, temperature=1.0, top_p=1.0):
    """Log-probs [len(ids), V] that each id was to be drawn from, float64, by a forward without a cache."""
    logits = model.logits(model(torch.tensor(prompt + ids)))[len(prompt) - 1 : -1].double()
    logp = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
    for row in logp:
        mass = 0.0
        for i in row.argsort(descending=True).tolist():
            p = row[i].exp().item()
            if mass >= top_p:
                row[i] = -torch.inf
            mass += p
    return torch.log_softmax(logp, dim=-1)


def contents(results):
    return [[(s.ids, s.mask, s.finish) for s in group] for group in results]


def same(a, b):
    """Equal samples; their log-probs to rounding, which may depend on the shape of the batch."""
    assert contents(a) == contents(b)
    for x, y in zip(itertools.chain(*a), itertools.chain(*b), strict=True):
        assert x.logprobs == pytest.approx(y.logprobs, abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Cached = uncached


@pytest.mark.parametrize(
    "changes", [{}, {"qk_norm": True, "qkv_bias": True, "tied": True, "kv_heads": 1}]
)
def test_greedy_is_the_argmax_of_full_forwards(changes):
    model = random_model(3, **changes)
    results = sampled(
        model, LETTERS, PROMPTS, Sampling(2, temperature=0, max_new_tokens=30), max_rows=3
    )
    assert max(len(s.ids) for group in results for s in group) == 30
    for prompt, group in zip(PROMPTS, results, strict=True):
        for s in group:
            logp = distributions(model, prompt, s.ids)
            assert s.ids == logp.argmax(dim=-1).tolist()
            assert s.logprobs == pytest.approx(
                [row[i].item() for row, i in zip(logp, s.ids, strict=True)], abs=1e-5
            )


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.7, 1.0), (1.0, 0.5), (1.3, 0.8)]
)
def test_log_probs_are_those_of_full_forwards(temperature, top_p):
    model = random_model(1)
    sampling = Sampling(3, temperature, top_p, max_new_tokens=25, seed=5)
    for prompt, group in zip(
        PROMPTS, sampled(model, LETTERS, PROMPTS, sampling, max_rows=5), strict=True
    ):
        for s in group:
            logp = distributions(model, prompt, s.ids, temperature, top_p)
            assert s.logprobs == pytest.approx(
                [row[i].item() for row, i in zip(logp, s.ids, strict=True)], abs=1e-5
            )


def test_packed_prefill():
    model, prompts = random_model(2), dict(enumerate(PROMPTS))
    sequences = [Sequence(0, 0, 13, 7, 0, 12)]
    with kernels.plain():
        together = make_decoder(model, Sampling(), 7, sequences)
        together.prefill(prompts)
        assert list(together.prompts) == list(prompts)
        for i, prompt in prompts.items():
            alone = make_decoder(model, Sampling(), 1, sequences)
            alone.prefill({i: prompt})
            keys, values, logits = together.prompts[i]
            assert keys.shape == values.shape == (2, 2, len(prompt), 8)
            torch.testing.assert_close(together.prompts[i], alone.prompts[i])
            torch.testing.assert_close(logits, model.logits(model(torch.tensor(prompt)))[-1])


@pytest.mark.parametrize("pack", [8, 100])
def test_the_start_that_prompts_share_runs_once_a_pack(pack, monkeypatch):
    """With the same samples as without sharing. A start of few tokens, or a single prompt, shares nothing."""
    model, sampling, start = (
        random_model(2),
        Sampling(2, max_new_tokens=9, seed=1),
        [3, 1, 4, 2] * 5,
    )
    prompts = [start + prompt for prompt in PROMPTS]
    expected = [sampled(model, LETTERS, [p], sampling, keys=[i])[0] for i, p in enumerate(prompts)]
    tokens, forward = [], model.forward
    monkeypatch.setattr(Decoder, "pack", pack)
    monkeypatch.setattr(
        model, "forward", lambda ids, *a: tokens.append(len(ids)) or forward(ids, *a)
    )
    with kernels.plain():
        same(sampled(model, LETTERS, prompts, sampling), expected)
        rests = sum(map(len, PROMPTS))
        assert sum(tokens) == rests + len(tokens) * len(start)
        assert (len(tokens) == 1) == (pack == 100)
        same(
            sampled(model, LETTERS, [start, *prompts], sampling, keys=[9, *range(7)])[1:], expected
        )
        tokens.clear()
        sampled(model, LETTERS, [*prompts, [3]], sampling)
        sampled(model, LETTERS, prompts[:1], sampling)
        assert sum(tokens) == 8 * len(start) + rests + 1 + len(PROMPTS[0])


def test_prefill_in_several_packs(monkeypatch):
    model, sampling = random_model(2), Sampling(2, max_new_tokens=9, seed=1)
    with kernels.plain():
        expected = sampled(model, LETTERS, PROMPTS, sampling)
        monkeypatch.setattr(Decoder, "pack", 8)
        packs, prefill = [], Decoder.prefill
        monkeypatch.setattr(Decoder, "prefill", lambda *a: packs.append(a[1]) or prefill(*a))
        same(sampled(model, LETTERS, PROMPTS, sampling), expected)
    tokens = [sum(map(len, pack.values())) for pack in packs]
    assert len(packs) > 2 and all(
        n <= 8 for n, pack in zip(tokens, packs, strict=True) if len(pack) > 1
    )


# ---------------------------------------------------------------------------------------------------------------------
# A sample depends on seed, key and number alone


@pytest.fixture(scope="module")
def once():
    return random_model(4), Sampling(4, max_new_tokens=12, seed=11)


def test_samples_do_not_depend_on_the_batch(once):
    model, sampling = once
    whole = sampled(model, LETTERS, PROMPTS, sampling)
    for max_rows in (1, 3, 7, 64):
        same(sampled(model, LETTERS, PROMPTS, sampling, max_rows), whole)
    order = [4, 0, 6, 2, 5, 1, 3]
    shuffled = sampled(model, LETTERS, [PROMPTS[i] for i in order], sampling, 5, keys=order)
    same(shuffled, [whole[i] for i in order])
    for i, prompt in enumerate(PROMPTS):
        same(sampled(model, LETTERS, [prompt], sampling, keys=[i]), [whole[i]])
    fewer = Sampling(2, max_new_tokens=12, seed=11)
    same(sampled(model, LETTERS, PROMPTS, fewer), [group[:2] for group in whole])


def test_seeds_keys_and_numbers_give_different_samples(once):
    model, sampling = once
    first = sampled(model, LETTERS, [PROMPTS[0]] * 3, sampling)
    assert len({tuple(s.ids) for group in first for s in group}) == 12
    other = sampled(model, LETTERS, [PROMPTS[0]] * 3, Sampling(4, max_new_tokens=12, seed=12))
    assert not {tuple(s.ids) for group in first for s in group} & {
        tuple(s.ids) for group in other for s in group
    }
    equal_keys = sampled(model, LETTERS, [PROMPTS[0]] * 2, sampling, keys=[2, 2])
    assert contents(equal_keys) == contents([first[2]] * 2)


def test_sampled_pairs_have_the_frequencies_of_the_model():
    """Chi-square over first and second token together: the draws of a sample are independent."""
    model, prompt, n = random_model(6), [3, 1, 4], 6000
    first = distributions(model, prompt, [0])[0].exp()
    expected = {}
    for i, p in enumerate(first.tolist()):
        if i == LETTERS.eos_id:
            expected[i,] = n * p
        else:
            second = distributions(model, [*prompt, i], [0])[0].exp()
            expected.update({(i, j): n * p * q for j, q in enumerate(second.tolist())})
    assert sum(expected.values()) == pytest.approx(n)
    (group,) = sampled(
        model, LETTERS, [prompt], Sampling(n, max_new_tokens=2, seed=1), max_rows=2500
    )
    found = Counter(tuple(s.ids) for s in group)
    assert set(found) <= set(expected)
    cells = {ids for ids in expected if expected[ids] >= 5}
    rest = n - sum(expected[ids] for ids in cells)
    chi = sum((found[ids] - expected[ids]) ** 2 / expected[ids] for ids in cells)
    chi += (n - sum(found[ids] for ids in cells) - rest) ** 2 / rest
    assert len(cells) > 60
    assert abs(chi - len(cells)) < 4 * math.sqrt(2 * len(cells))


# ---------------------------------------------------------------------------------------------------------------------
# What a call costs


def count_calls(decoder, monkeypatch):
    """(prompts that were prefilled, rows of each decoding step), filled while a decoder of this class runs."""
    prefilled, steps = [], []
    prefill, name = decoder.prefill, "advance" if decoder is GpuDecoder else "forward_step"
    step = getattr(decoder, name)

    def counting_prefill(self, prompts):
        prefilled.extend(map(tuple, prompts.values()))
        return prefill(self, prompts)

    def counting_step(self, rows, *rest):
        steps.append(rows if isinstance(rows, int) else len(rows))
        return step(self, rows, *rest)

    monkeypatch.setattr(decoder, "prefill", counting_prefill)
    monkeypatch.setattr(decoder, name, counting_step)
    return prefilled, steps


@pytest.mark.parametrize("max_rows", [1, 4, 6, 32, 1000])
def test_no_step_is_spent_on_a_finished_row(max_rows, monkeypatch):
    model, sampling, finished = (
        random_model(7),
        Sampling(5, max_new_tokens=9, stop=("e",), seed=3),
        [],
    )
    prefilled, steps = count_calls(Decoder, monkeypatch)
    with kernels.plain():
        results = sampled(
            model,
            LETTERS,
            PROMPTS,
            sampling,
            max_rows,
            on_sample=lambda *sample: finished.append(sample),
        )
    lengths = [len(s.ids) for group in results for s in group]
    assert len(set(lengths)) > 5 and 1 in lengths
    assert sorted(prefilled) == sorted(
        map(tuple, PROMPTS)
    )  # each once, though groups are split over admissions
    assert sum(steps) == sum(n - 1 for n in lengths)  # the last token of a sample is never fed
    assert max(steps) <= max_rows
    if max_rows < 16:  # a free row is taken at once (many rows wait until an eighth is free)
        assert all(n == max_rows for n in steps[: -max(lengths)])
    assert len(finished) == len(lengths)


# ---------------------------------------------------------------------------------------------------------------------
# What ends a sample


def test_eos_ends_a_sample_and_belongs_to_it():
    model = random_model(8, eos_id=[4, 6])
    for stated, ids in (([4, 6], {4, 6, 11}), (6, {6, 11}), (None, {None, 11})):
        assert Ends(random_model(8, eos_id=stated), LETTERS, ()).eos == ids
    samples = [
        s for g in sampled(model, LETTERS, PROMPTS, Sampling(8, max_new_tokens=12)) for s in g
    ]
    for s in samples:
        assert not {4, 6, 11} & set(s.ids[:-1])
        assert (s.finish == "eos") == (s.ids[-1] in (4, 6, 11))
        assert s.finish == "eos" or (s.finish, len(s.ids)) == ("length", 12)
        assert s.mask == [True] * len(s.ids) and len(s.logprobs) == len(s.ids)
    assert {s.ids[-1] for s in samples if s.finish == "eos"} == {4, 6, 11}
    assert {s.finish for s in samples} == {"eos", "length"}


def test_length_is_bounded_by_max_new_tokens_and_context():
    model = bigram_model({i: {0: 0.5, 1: 0.5} for i in range(3)}, 3, context=10)
    tokenizer = Pieces([b"a", b"b"])
    results = sampled(
        model, tokenizer, [[0] * n for n in range(1, 10)], Sampling(2, max_new_tokens=4), max_rows=5
    )
    for n, group in enumerate(results, 1):
        assert {(len(s.ids), s.finish) for s in group} == {(min(4, 10 - n), "length")}
    (alone,) = sampled(model, tokenizer, [[1]], Sampling(max_new_tokens=1000))
    assert len(alone[0].ids) == 9


def occurrences(pieces, stop):
    """Numbers (from 1) of the pieces in which an occurrence of a stop string ends."""
    ends = list(itertools.accumulate(map(len, pieces)))
    text = b"".join(pieces)
    found = {at + len(s) for s in stop for at in range(len(text)) if text.startswith(s, at)}
    starts = [0, *ends[:-1]]
    return [
        n
        for n, start, end in zip(itertools.count(1), starts, ends)
        if found & {*range(start + 1, end + 1)}
    ]


PIECE = st.text("ab", min_size=1, max_size=3).map(str.encode)


@FAST
@given(
    st.lists(PIECE, min_size=1, max_size=9),
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=2),
)
@example([b"a", b"b", b"a", b"b", b"a", b"b"], ["abab"])  # overlaps, over four pieces
@example(
    ["问题".encode()[i : i + 1] for i in range(6)] + [b"a"], ["题"]
)  # a letter over three pieces
def test_stop_strings(pieces, stop):
    model, tokenizer = script_model(len(pieces) + 1), Pieces([b"?", *pieces])
    sampling = Sampling(temperature=0, max_new_tokens=40, stop=tuple(stop))
    whole = [*range(1, len(pieces) + 1), tokenizer.eos_id]
    expected = occurrences(pieces, [s.encode() for s in stop])
    ((s,),) = sampled(model, tokenizer, [[0]], sampling)
    if expected:
        assert (s.ids, s.finish) == (whole[: expected[0]], "stop")
    else:
        assert (s.ids, s.finish) == (whole, "eos")

    calls = []

    def go_on(stopped):
        calls.extend(len(ids) for _, _, ids in stopped)
        assert all(ids == whole[: len(ids)] for _, _, ids in stopped)
        return [[] for _ in stopped]

    ((s,),) = sampled(model, tokenizer, [[0]], sampling, on_stop=go_on)
    assert calls == expected  # a stop string that was there before is not found again
    assert (s.ids, s.finish) == (whole, "eos")


@pytest.mark.parametrize(
    "pieces, ids, text",
    [
        ([b"4", b".", b"<|im_end|>", b"user", b"4"], 3, "4."),  # by its id
        ([b"4.", b"<|", b"im_", b"end|> ", b"user"], 4, "4."),  # by ordinary ids that spell it
        ([b"<|think|>", b"4", b".\nUser", b"<|sep|>", b"5"], 4, "4."),  # its end is a special token
        ([b"4", b"<|think|>", b"\nUser", b"6"], 5, "4\nUser6"),  # others end nothing
    ],
)
def test_a_special_token_may_be_a_stop_string(pieces, ids, text):
    """A model whose EOS is another token than the one that ends its turns."""
    model, tokenizer = script_model(len(pieces) + 1), Pieces([b"?", *pieces])
    stop = ("<|im_end|>", "\nUser<|sep|>")
    sampling = Sampling(temperature=0, max_new_tokens=40, stop=stop)
    ((sample,),) = sampled(model, tokenizer, [[0]], sampling)
    assert sample.ids == [*range(1, ids + 1)]
    assert sample.finish == ("stop" if ids <= len(pieces) else "eos")
    assert completion_text(tokenizer, sample, stop) == text


def test_stop_strings_do_not_reach_into_the_prompt():
    model, tokenizer = script_model(4), Pieces([b"a", b"b", b"c", b"d"])
    ((s,),) = sampled(model, tokenizer, [[0]], Sampling(temperature=0, stop=("ab",)))
    assert (s.ids, s.finish) == ([1, 2, 3, 4], "eos")


# ---------------------------------------------------------------------------------------------------------------------
# Tools


def answers_of(stopped):
    """A tool whose answer depends on what was written: None, or zero to four ids (EOS and stop strings among them)."""
    kinds = [[11, 0], None, [], [0, 0, 11, 3], [5], [2, 7, 0]]
    return [kinds[(sum(ids) + prompt + sample) % len(kinds)] for prompt, sample, ids in stopped]


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_tool_output_is_written_and_read(temperature):
    model, sampling = (
        random_model(9),
        Sampling(4, temperature, max_new_tokens=20, stop=("a", "c"), seed=2),
    )
    answers = {}

    def hook(stopped):
        for (prompt, sample, ids), answer in zip(stopped, answers_of(stopped), strict=True):
            assert ids[-1] in (0, 2)
            answers[prompt, sample, len(ids)] = answer
        return answers_of(stopped)

    results = sampled(model, LETTERS, PROMPTS, sampling, 5, on_stop=hook)
    for p, (prompt, group) in enumerate(zip(PROMPTS, results, strict=True)):
        for g, s in enumerate(group):
            logp, forced, n = distributions(model, prompt, s.ids, temperature), [], 0
            while n < len(s.ids):
                n += 1
                assert s.mask[
                    n - 1
                ]  # chosen by the model: by the distribution that has read the tool's output
                i = s.ids[n - 1]
                assert s.logprobs[n - 1] == pytest.approx(logp[n - 1, i].item(), abs=1e-5)
                if temperature == 0:
                    assert i == logp[n - 1].argmax()
                if i in (0, 2) and n < 20:
                    forced = answers.pop((p, g, n))
                    if forced is None:
                        assert (n, s.finish) == (len(s.ids), "stop")
                        break
                    forced = forced[: 20 - n]
                    assert s.ids[n : n + len(forced)] == forced
                    assert s.mask[n : n + len(forced)] == [False] * len(forced)
                    assert s.logprobs[n : n + len(forced)] == [0.0] * len(forced)
                    n += len(forced)
                elif i == LETTERS.eos_id:
                    assert (n, s.finish) == (len(s.ids), "eos")
            if not s.mask[-1]:
                assert (len(s.ids), s.finish) == (20, "length")
    assert not answers
    assert {s.finish for group in results for s in group} == {"stop", "length"} | (
        {"eos"} if temperature else set()
    )
    assert any(
        len(s.mask) - sum(s.mask) > 4 for group in results for s in group
    )  # several calls in a sample
    for max_rows in (1, 2, 64):
        same(sampled(model, LETTERS, PROMPTS, sampling, max_rows, on_stop=answers_of), results)


def test_a_sample_goes_on_as_a_fresh_prompt_would():
    model, sampling = random_model(9), Sampling(temperature=0, max_new_tokens=30, stop=("a",))
    called = {}

    def once(stopped):
        return [
            called.setdefault(p, [8, 9, 1, 11, 10]) if p not in called else None
            for p, _, _ in stopped
        ]

    compared = 0
    for prompt, (s,) in zip(
        PROMPTS, sampled(model, LETTERS, PROMPTS, sampling, 3, on_stop=once), strict=True
    ):
        if False not in s.mask:
            continue
        end = len(s.mask) - s.mask[::-1].index(False)
        rest = Sampling(temperature=0, max_new_tokens=30 - end, stop=("a",))
        ((fresh,),) = sampled(model, LETTERS, [prompt + s.ids[:end]], rest)
        assert (s.ids[end:], s.finish) == (fresh.ids, fresh.finish)
        assert s.logprobs[end:] == pytest.approx(fresh.logprobs, abs=1e-5)
        compared += 1
    assert compared > 2


def test_tool_output_is_cut_at_the_limit():
    model, tokenizer = script_model(4), Pieces([b"a", b"b", b"c", b"d"])
    sampling = Sampling(temperature=0, max_new_tokens=4, stop=("b",))
    ((s,),) = sampled(model, tokenizer, [[0]], sampling, on_stop=lambda stopped: [[3, 3, 3, 3, 3]])
    assert (s.ids, s.mask, s.finish) == ([1, 3, 3, 3], [True, False, False, False], "length")
    sampling.max_new_tokens = 1  # no room for an answer: the tool is not called
    ((s,),) = sampled(
        model, tokenizer, [[0]], sampling, on_stop=lambda stopped: pytest.fail("called")
    )
    assert (s.ids, s.finish) == ([1], "stop")


# ---------------------------------------------------------------------------------------------------------------------
# The decoder of GPUs, here on a CPU: tokens of several steps at once, fixed shapes, prompts stored once


def on_gpu(monkeypatch, steps, made=None, places=None):
    """Inside: `generate` decodes as on a GPU, with so many steps at once.

    made: receives the decoders. places: how many prompts there is room for.
    """
    monkeypatch.setattr(GpuDecoder, "steps", steps)

    def make(model, sampling, rows, sequences):
        dtype = model.embed.weight.dtype
        cache = SharedCache(model.config, rows, sampling.samples, sequences, "cpu", dtype)
        decoder = GpuDecoder(model, sampling, cache)
        if places:
            decoder.places = decoder.places[:places]
        if made is not None:
            made.append(decoder)
        return decoder

    return kernels.using({"generate.make_decoder": make})


CASES = [  # Sampling's changes, max_rows, tool
    (dict(samples=4, seed=1), 5, None),
    (dict(samples=3, temperature=0.0, stop=("e", "ab")), 64, None),
    (dict(samples=3, temperature=1.3, top_p=0.8, stop=("b",), seed=4), 2, None),
    (dict(samples=4, stop=("a", "c"), seed=2), 6, answers_of),
    (dict(samples=2, temperature=0.0, stop=("a", "c")), 1, answers_of),
]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_samples_do_not_depend_on_the_decoder(case, steps, monkeypatch):
    """EOS, limits, stop strings, tools and rows that wait, over ragged prompts: ids, log-probs, masks, finishes."""
    (changes, max_rows, tool), model = CASES[case], random_model(9 + case, qk_norm=case == 1)
    sampling, finished = Sampling(max_new_tokens=21, **changes), []
    with kernels.plain():
        expected = sampled(model, LETTERS, PROMPTS, sampling, max_rows, on_stop=tool)
    with on_gpu(monkeypatch, steps):
        found = sampled(
            model,
            LETTERS,
            PROMPTS,
            sampling,
            max_rows,
            on_stop=tool,
            on_sample=lambda *sample: finished.append(sample),
        )
    same(found, expected)
    assert len(finished) == sampling.samples * len(PROMPTS)
    finishes = {s.finish for group in found for s in group}
    assert finishes >= ({"stop"} if sampling.stop else {"eos", "length"})
    if tool:
        assert any(False in s.mask for group in found for s in group)


def test_a_tool_is_called_once_whatever_was_written_beyond(monkeypatch):
    """A row that ran on for up to seven tokens behind its stop string goes back to it; the tool sees nothing else."""
    model, sampling = random_model(9), Sampling(4, 1.2, max_new_tokens=20, stop=("a", "c"), seed=2)
    calls = {}
    for steps in (1, 8):
        calls[steps] = []

        def hook(stopped, calls=calls[steps]):
            calls.extend((prompt, sample, tuple(ids)) for prompt, sample, ids in stopped)
            return answers_of(stopped)

        with on_gpu(monkeypatch, steps):
            sampled(model, LETTERS, PROMPTS, sampling, 5, on_stop=hook)
    assert sorted(calls[1]) == sorted(calls[8]) and len(set(calls[8])) == len(calls[8]) > 20
    assert all(ids[-1] in (0, 2) for _, _, ids in calls[8])


def test_steps_have_few_shapes_and_end_with_the_longest_row(monkeypatch):
    """Batch sizes are powers of two up to max_rows, and each prompt is written once."""
    model, sampling = random_model(7), Sampling(5, max_new_tokens=40, seed=3)
    prefilled, steps = count_calls(GpuDecoder, monkeypatch)
    with on_gpu(monkeypatch, 2):
        results = sampled(model, LETTERS, PROMPTS, sampling, 6)
    assert sorted(prefilled) == sorted(map(tuple, PROMPTS))
    assert set(steps) == {1, 2, 4, 6}
    assert sum(steps) >= sum(len(s.ids) - 1 for group in results for s in group)
    steps.clear()
    with on_gpu(monkeypatch, 8):
        (group,) = sampled(model, LETTERS, [[1, 2]], Sampling(temperature=0, max_new_tokens=6))
    assert len(steps) == 5 == len(group[0].ids) - 1  # not 8


def test_places_of_prompts_are_used_again(monkeypatch):
    """Room for two prompts: the third waits until all samples of another are done, and gets its place."""
    model, sampling = random_model(4), Sampling(3, max_new_tokens=12, seed=11)
    prompts = [[i % 11, i % 7] + [1] * (i % 5) for i in range(30)]
    with kernels.plain():
        expected = sampled(model, LETTERS, prompts, sampling, 6)
    sequences = [Sequence(i, 0, 5, 7, 0, 4) for i in range(99)]
    fill = SharedCache(model.config, 64, 16, sequences, "meta", torch.float32)
    assert (fill.rows, fill.prompts, fill.capacity) == (64, 16, 7)  # four times the four that fill
    made = []
    with on_gpu(monkeypatch, 3, made, places=2):
        same(sampled(model, LETTERS, prompts, sampling, 6), expected)
    (decoder,) = made
    assert decoder.cache.prompt_keys.shape == (2, 6, 2, 6, 8)
    assert sorted(decoder.places) == [0, 1] and not decoder.prompts


def test_a_step_reads_no_value_of_the_device():
    """On the meta device no tensor has values: a step that needs one would fail. Hence a CUDA graph can hold it."""
    shape, sequences = random_model(0).config, [Sequence(i, 0, 5, 9, 0, 4) for i in range(2)]
    with torch.device("meta"):
        model = Transformer(shape)
        cache = SharedCache(shape, 4, 2, sequences, "meta", torch.float32)
    for temperature, top_p in ((1.0, 1.0), (0.7, 0.9), (0.0, 1.0)):
        GpuDecoder(model, Sampling(2, temperature, top_p), cache).advance(4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_graphs_give_the_samples_of_single_steps(monkeypatch):
    model = random_model(9, head_width=32).cuda()
    sampling = Sampling(4, 1.0, max_new_tokens=20, stop=("a", "c"), seed=2)

    def run():
        return sampled(model, LETTERS, PROMPTS, sampling, 12, on_stop=answers_of)

    kernels.use("fast", kernels.Setting(model.config, model.device))
    replayed = run()
    with monkeypatch.context() as patch:
        patch.setattr(GpuDecoder, "replay", GpuDecoder.advance)
        same(run(), replayed)
    with kernels.plain():
        same(run(), replayed)
    model.to(torch.bfloat16)
    finishes = {s.finish for group in run() for s in group}
    assert finishes <= {"eos", "stop", "length"} and len(finishes) > 1


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


LOGITS = st.lists(st.floats(-12, 6), min_size=2, max_size=12)


@FAST
@given(LOGITS, st.sampled_from([0.3, 1.0, 2.5]), st.sampled_from([0.1, 0.5, 0.9, 1.0]))
@example([0.0, 0.0], 1.0, 0.5)  # the first of two equal halves is enough
@example([5.0, -1.0, 5.0], 1.0, 0.5)
def test_draws_invert_the_distribution(logits, temperature, top_p):
    """u over an even grid: each id is drawn as often as its probability says, to one cell at either end."""
    n = 4000
    p = torch.softmax(torch.tensor(logits, dtype=torch.float64) / temperature, dim=-1)
    ordered, mass, kept = sorted(range(len(logits)), key=lambda i: (-p[i].item(), i)), 0.0, []
    for i in ordered:
        if mass >= top_p:
            break
        if abs(mass - top_p) < 1e-5:  # within rounding of the edge either side is right
            return
        kept.append(i)
        mass += p[i].item()
    edge = p[ordered[len(kept) - 1 : len(kept) + 1]]
    if len(edge) == 2 and edge[0] - edge[1] < 1e-6:  # alike in float32: either may be kept
        return
    share = torch.zeros_like(p)
    share[kept] = p[kept] / p[kept].sum()
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    ids, logp = sample_tokens(torch.tensor(logits).repeat(n, 1), temperature, top_p, u)
    counts = torch.bincount(ids, minlength=len(logits)).double()
    assert set(ids.tolist()) <= set(kept)
    torch.testing.assert_close(counts / n, share, atol=1.01 / n, rtol=0)
    torch.testing.assert_close(logp.double(), share.log()[ids], atol=1e-5, rtol=1e-5)
    assert (ids[1:] >= ids[:-1]).all()


def test_draws_with_random_numbers_have_the_right_frequencies():
    n, logits = 100_000, torch.tensor([1.0, -2.0, 0.3, 0.0, 2.0, -0.7, -5.0])
    ids, _ = sample_tokens(
        logits.repeat(n, 1), 0.8, 1.0, uniform(mix64(torch.arange(n)), torch.zeros(n).long())
    )
    expected = n * torch.softmax(logits / 0.8, dim=-1)
    chi = ((torch.bincount(ids, minlength=7) - expected) ** 2 / expected).sum()
    assert chi < 22.46  # 99.9 % of chi-square with 6 degrees of freedom


@pytest.mark.parametrize("zero", [-torch.inf, -200.0])  # exp(-200) is 0 in float32
@pytest.mark.parametrize("V", [9, 50_000])
def test_ids_without_probability_are_never_drawn(V, zero):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(V, generator=generator)
    logits[[0, 1, 3, V - 2, V - 1]] = zero
    u = torch.tensor(
        [0.0, 2.0**-53, 1e-12, 0.5, 1 - 1e-7, 1 - 2.0**-25, 1 - 2.0**-53], dtype=torch.float64
    )
    ids, logp = sample_tokens(logits.repeat(len(u), 1), 1.0, 1.0, u)
    assert ids[0] == 2 and ids[1] == 2 and V - 10 < ids[-1] <= V - 3
    assert logits[ids].min() > -10 and logp.isfinite().all()
    one = torch.full((1, 5), zero)
    one[0, 3] = -3.0
    for edge in (0.0, 1 - 2.0**-53):
        assert (
            sample_tokens(one.clone(), 1.0, 1.0, torch.tensor([edge], dtype=torch.float64))[0] == 3
        )


def test_mix64_is_splitmix64():
    """The generator's published first outputs for seed 1234567."""
    gamma = -7046029254386353131
    made = mix64(torch.tensor([1234567] * 3) + torch.arange(3) * gamma)
    assert [i % 2**64 for i in made.tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize("grid", [(1, 1, 30_000), (1, 30_000, 1), (30_000, 1, 1), (31, 31, 31)])
def test_uniform_numbers(grid):
    """Uniform over positions, over samples, over keys, and over all three; neighbors are unrelated."""
    keys, numbers, positions = (
        x.flatten() for x in torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    )
    u = uniform(mix64(mix64(keys) + numbers), positions)
    n = len(u)
    assert u.dtype == torch.float64 and 0 <= u.min() and u.max() < 1
    assert len(u.unique()) == n
    assert (u.sort().values - torch.arange(n) / n).abs().max() < 1.95 / math.sqrt(
        n
    )  # Kolmogorov, 99.9 %
    centred = u - 0.5
    for lag in (1, 2, 31, 31 * 31):
        assert (centred[lag:] * centred[:-lag]).mean().abs() * 12 < 4 / math.sqrt(n)


# ---------------------------------------------------------------------------------------------------------------------
# Errors and the command


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1], []], "prompt 1 has 0 tokens"),
        ([[1], [2], [1] * 64], r"prompt 2 has 64 tokens.*1 to 63.*context is 64"),
    ],
)
def test_prompts_that_cannot_be_completed(prompts, message):
    with pytest.raises(InputError, match=message):
        sampled(random_model(), LETTERS, prompts, Sampling())
    assert sampled(random_model(), LETTERS, [], Sampling()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        dict(samples=0),
        dict(max_new_tokens=0),
        dict(temperature=-0.1),
        dict(top_p=0.0),
        dict(top_p=1.1),
        dict(max_rows=0),
        dict(stop=("a", "")),
    ],
)
def test_wrong_sampling(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_command(tmp_path):
    tokenizer = train(["One apple and two apples are three apples."] * 3, 270, workers=1)
    model = random_model(vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    save_pretrained(model, tmp_path)
    tokenizer.save(tmp_path)
    command = [
        sys.executable,
        "generate.py",
        "--model",
        str(tmp_path),
        "--prompt",
        "One apple",
        "--samples",
        "2",
    ]
    command += [
        "--max_new_tokens",
        "5",
        "--seed",
        "3",
        "--temperature",
        "0.5",
        "--top_p",
        "0.9",
        "--stop",
        "zz",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (group,) = sampled(
        model, tokenizer, [tokenizer.encode("One apple")], Sampling(2, 0.5, 0.9, 5, ("zz",), 3)
    )
    expected = "".join(
        f"--- sample {i}: {len(s.ids)} tokens, {s.finish}, log-prob {sum(s.logprobs):.3f}\n{tokenizer.decode(s.ids)}\n"
        for i, s in enumerate(group)
    )
    assert done.stdout.decode() == expected
    assert done.stderr.decode().startswith("accelerators: ")
