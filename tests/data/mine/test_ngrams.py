"""ngrams.py against a simple split in Python, on random text in many scripts."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.mine import ngrams
from data.mine.ngrams import batches, ngram_hashes, normalize, unit_hashes, units

CJK = "[\u3040-\u9fff]"
LETTERS = "aAzZ09é ß\u0431Ωअ한"
ALPHABET = LETTERS + "_-.,$\\{}^=+ \n\t\r\x00∑“数学题カ、。１Ａ．𝑥🙂"
text = st.text(st.sampled_from(ALPHABET), max_size=40)


def plain_units(text: str, kind: str) -> list[str]:
    """The definition of units, one character at a time."""
    if kind == "word":
        text = normalize(text)
    units, word = [], ""
    for c in text + " ":
        alone = (
            re.fullmatch(CJK, c)
            or ord(c) > 0xFFFF
            or (kind == "space" and "\u3000" <= c <= "\u303f")
        )
        if kind == "space":
            part = c not in " \t\n\r\x0b\x0c"
        else:
            part = c.isalnum() and not (c.isascii() and not c.isalnum())
        if word and (alone or not part):
            units.append(word)
            word = ""
        if alone:
            units.append(c)
        elif part:
            word += c
    return units


@pytest.mark.parametrize("kind", ["space", "word"])
@given(texts=st.lists(text, max_size=6))
def test_unit_hashes_are_those_of_a_plain_split(kind, texts):
    hashes = unit_hashes(texts, kind)
    wanted = [plain_units(text, kind) for text in texts]
    assert hashes.counts.tolist() == [len(units) for units in wanted]
    flat = list(itertools.chain(*wanted))
    alone = {unit: unit_hashes([unit], kind).values for unit in set(flat)}
    assert all(len(values) == 1 for values in alone.values())
    assert len({int(h[0]) for h in alone.values()}) == len(
        alone
    )  # different units, different hashes
    assert hashes.values.tolist() == [int(alone[unit][0]) for unit in flat]


@given(texts=st.lists(text, max_size=6), n=st.integers(1, 5))
def test_ngrams_are_those_of_each_text_alone(texts, n):
    together = ngram_hashes(unit_hashes(texts), n)
    seen = {}
    for i, text in enumerate(texts):
        units = plain_units(text, "word")
        grams = [tuple(units[k : k + n]) for k in range(len(units) - n + 1)]
        assert len(together[i]) == len(grams)
        for gram, value in zip(grams, together[i].tolist(), strict=True):
            assert seen.setdefault(gram, value) == value
    assert len(set(seen.values())) == len(seen)
    owners = [[i] * len(together[i]) for i in range(len(texts))]
    assert together.owners.tolist() == list(itertools.chain(*owners))


def plain_mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def plain_hash(unit: str) -> int:
    """The definition of a hash, eight bytes at a time."""
    data, m = unit.encode(), 0x9E3779B97F4A7C15
    parts = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
    value = plain_mix((parts[0] + len(data) * m) * m % 2**64)
    if parts[1:]:
        further = (
            plain_mix((part + plain_mix(place)) * m % 2**64)
            for place, part in enumerate(parts[1:], 1)
        )
        value = plain_mix((value + sum(further) * m) % 2**64)
    return value


@given(
    st.lists(st.text("abc\u00e9\u0431", min_size=1, max_size=40), min_size=1), st.integers(1, 99)
)
def test_hashes_follow_the_definition_for_every_batch_size(words, batch):
    grams = ngram_hashes(unit_hashes([" ".join(words), *words]), 3).values.tolist()
    before, ngrams._BATCH = ngrams._BATCH, 8 * batch
    try:
        one, each = unit_hashes([" ".join(words)], "space"), unit_hashes(words, "space")
        assert ngram_hashes(unit_hashes([" ".join(words), *words]), 3).values.tolist() == grams
    finally:
        ngrams._BATCH = before
    assert one.values.tolist() == each.values.tolist() == [plain_hash(word) for word in words]


@given(text, st.sampled_from(["space", "word"]))
def test_units_are_those_of_a_plain_split(text, kind):
    assert units(text, kind) == plain_units(text, kind)


@given(st.lists(st.text(max_size=5)), st.integers(1, 9))
def test_batches_keep_all_texts_in_order(texts, size):
    before, ngrams._BATCH = ngrams._BATCH, size
    try:
        parts = list(batches(iter(texts)))
    finally:
        ngrams._BATCH = before
    assert list(itertools.chain(*parts)) == texts and all(parts)
    assert all(sum(map(len, part[:-1])) < size for part in parts)


def test_long_words_differ_in_every_byte():
    words = ["x" * 40, *("x" * k + "y" + "x" * (39 - k) for k in range(40)), "x" * 39, "x" * 41]
    assert len(np.unique(unit_hashes([" ".join(words)]).values)) == len(words)


def test_no_texts():
    assert len(unit_hashes([])) == 0 and len(ngram_hashes(unit_hashes([]), 3)) == 0


def test_hashes_never_change():
    """Hashes are stored on disk. A change would make stored hashes wrong without a warning."""
    assert unit_hashes(["one"]).values.tolist() == [FIXED["one"]]
    assert ngram_hashes(unit_hashes(["one two 数"]), 3).values.tolist() == [FIXED["one two 数"]]


FIXED = {"one": 1804972247423837952, "one two 数": 2419127840330204959}
