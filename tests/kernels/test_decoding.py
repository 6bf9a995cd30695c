"""kernels/decoding.py: the check at the start of a run accepts the decoders, and finds each of these mistakes."""

import time
from types import SimpleNamespace

import pytest

import kernels
from generate import Decoder, make_decoder
from kernels import Setting, cpu, small
from kernels.cpu.decoder import make_decoder as cpu_decoder
from kernels.decoding import sampling_error
from kernels.triton.decoder import make_decoder as gpu_decoder
from presets import preset

FAMILIES = {
    "llama": dict(),
    "qwen2": dict(qkv_bias=True, tied=True),
    "qwen3": dict(qk_norm=True, head_width=32),
    "llama3": dict(
        out_bias=True,
        rope_scaling=dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    ),
    "smollm3": dict(
        layer_kinds=["full", "nope"],
        rope_scaling=dict(
            rope_type="yarn",
            factor=4.0,
            original_max_position_embeddings=16,
            beta_fast=8.0,
            beta_slow=1.0,
            truncate=True,
            attention_factor=1.2,
        ),
    ),
}


def error(decoder, where):
    return sampling_error(SimpleNamespace(function=decoder, takes=lambda *args: True), where)


def setting(family="llama", bf16=False):
    return Setting(small(preset("1m", 300, **FAMILIES[family])), bf16=bf16)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_are_right(family, bf16):
    """Of CPUs, of GPUs (here on a CPU), and the plain one against a forward pass, in well under a second."""
    decoders = [make_decoder.definition, gpu_decoder] + [cpu_decoder] * (cpu.native() is not None)
    where = setting(family, bf16)
    for decoder in decoders:
        began = time.process_time()
        assert error(decoder, where) < where.tolerance
        assert time.process_time() - began < 2


def no_temperature(patch):
    draw = Decoder.draw_tokens
    patch.setattr(Decoder, "draw_tokens", lambda self, logits, *rest: draw(self, 2 * logits, *rest))


def other_random_numbers(patch):
    draw = Decoder.draw_tokens
    patch.setattr(
        Decoder, "draw_tokens", lambda self, x, *where: draw(self, x, where[0] + 1, where[1])
    )


def keys_of_other_prompts(patch):
    fork = Decoder.fork

    def wrong(self, running, start):
        saved = dict(self.prompts)
        for prompt, other in zip(saved, list(saved.values())[::-1], strict=True):
            self.prompts[prompt] = *other[:2], saved[prompt][2]
        result = fork(self, running, start)
        self.prompts.update(saved)
        return result

    patch.setattr(Decoder, "fork", wrong)


def a_position_too_far(patch):
    step = Decoder.forward_step
    patch.setattr(
        Decoder, "forward_step", lambda self, ids, n, longest: step(self, ids, n + 1, longest + 1)
    )


def rows_that_are_not_moved(patch):
    patch.setattr(Decoder, "remove", lambda self, row, running: None)


@pytest.mark.parametrize(
    "mistake",
    [
        no_temperature,
        other_random_numbers,
        keys_of_other_prompts,
        a_position_too_far,
        rows_that_are_not_moved,
    ],
)
def test_mistakes_are_found(mistake, monkeypatch):
    """The same mistake as an accelerator would make it: it computes with a class that differs from the definition's."""

    class Wrong(Decoder):
        pass

    names = [name for name, value in vars(Decoder).items() if callable(value)]
    before = {name: getattr(Decoder, name) for name in names}
    with monkeypatch.context() as patch:
        mistake(patch)
        for name in names:
            if getattr(Decoder, name) is not before[name]:
                setattr(Wrong, name, getattr(Decoder, name))

    def make(*args):
        with kernels.plain():
            decoder = make_decoder(*args)
        decoder.__class__ = Wrong
        return decoder

    for bf16 in (False, True):
        where = setting(bf16=bf16)
        if bf16 and mistake is other_random_numbers:
            continue  # in bfloat16 other ids are no mistake
        assert not error(make, where) < where.tolerance
