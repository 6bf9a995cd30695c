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
        alone = re.fullmatch(CJK, c) or ord(c) > 0xFFFF
        if kind == "space":
            alone = alone or "\u3000" <= c <= "\u303f"
            part = c not in " \t\n\r\x0b\x0c"
        else:
            part = c.isalnum()
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
    hash_of = {}
    flat = list(itertools.chain(*wanted))
    for unit in flat:
        (hash_of[unit],) = unit_hashes([unit], kind).values.tolist()
    assert len(set(hash_of.values())) == len(hash_of)  # different units, different hashes
    assert hashes.values.tolist() == [hash_of[unit] for unit in flat]


@given(texts=st.lists(text, max_size=6), n=st.integers(1, 5))
def test_ngrams_are_those_of_each_text_alone(texts, n):
    together = ngram_hashes(unit_hashes(texts), n)
    seen = {}
    for i, text in enumerate(texts):
        units = plain_units(text, "word")
        grams = [tuple(units[k : k + n]) for k in range(len(units) - n + 1)]
        values = together[i].tolist()
        for gram, value in zip(grams, values, strict=True):
            assert seen.setdefault(gram, value) == value
    assert len(set(seen.values())) == len(seen)
    owners = np.repeat(np.arange(len(texts)), together.counts)
    assert np.array_equal(together.owners, owners)


def plain_mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def plain_hash(unit: str) -> int:
    """The definition of a hash, eight bytes at a time."""
    data = unit.encode()
    m = 0x9E3779B97F4A7C15
    parts = []
    for i in range(0, len(data), 8):
        parts.append(int.from_bytes(data[i : i + 8], "little"))
    first, *others = parts
    value = plain_mix((first + len(data) * m) * m % 2**64)
    total = 0
    for place, part in enumerate(others, 1):
        total += plain_mix((part + plain_mix(place)) * m % 2**64)
    if others:
        value = plain_mix((value + total * m) % 2**64)
    return value


@given(
    st.lists(st.text("abc\u00e9\u0431", min_size=1, max_size=40), min_size=1), st.integers(1, 99)
)
def test_hashes_follow_the_definition_for_every_batch_size(words, batch):
    joined = " ".join(words)

    def trigrams():
        units = unit_hashes([joined, *words])
        return ngram_hashes(units, 3).values.tolist()

    whole = trigrams()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "_BATCH", 8 * batch)
        together = unit_hashes([joined], "space").values.tolist()
        each = unit_hashes(words, "space").values.tolist()
        assert trigrams() == whole
    assert together == each == [plain_hash(word) for word in words]


@given(text, st.sampled_from(["space", "word"]))
def test_units_are_those_of_a_plain_split(text, kind):
    assert units(text, kind) == plain_units(text, kind)


@given(st.lists(st.text(max_size=5)), st.integers(1, 9))
def test_batches_keep_all_texts_in_order(texts, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "_BATCH", size)
        parts = list(batches(iter(texts)))
    assert list(itertools.chain(*parts)) == texts
    for part in parts:
        assert part
        assert sum(map(len, part[:-1])) < size


def test_long_words_differ_in_every_byte():
    words = ["x" * 39, "x" * 40, "x" * 41]
    for k in range(40):
        words.append("x" * k + "y" + "x" * (39 - k))
    values = unit_hashes(words).values
    assert len(np.unique(values)) == len(words)


def test_no_texts():
    hashes = unit_hashes([])
    assert len(hashes) == len(ngram_hashes(hashes, 3)) == 0


def test_hashes_never_change():
    """Hashes are stored on disk. A change would make stored hashes wrong without a warning."""
    (word,) = unit_hashes(["one"]).values.tolist()
    assert word == 1804972247423837952
    (trigram,) = ngram_hashes(unit_hashes(["one two 数"]), 3).values.tolist()
    assert trigram == 2419127840330204959
