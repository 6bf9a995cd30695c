"""MinHash signatures of texts, and bands of them for locality-sensitive hashing (LSH).

The Jaccard similarity of two texts is |A & B| / |A | B| of their sets A and B of word n-grams. Two
signatures agree at a place with this probability, so the share of equal places estimates it.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

from data.mine.ngrams import (
    MULTIPLIER,
    Array,
    Hashes,
    batches,
    mix,
    ngram_hashes,
    unit_hashes,
)

HALF = np.uint64(32)  # bits
EMPTY = np.uint32(0xFFFFFFFF)  # a place without an n-gram; all places of a text without words


def signatures(
    texts: Sequence[str],
    permutations: int = 128,
    ngram: int = 5,
    seed: int = 0,
) -> Array:
    """MinHash signatures of the sets of word n-grams: uint32 [texts, permutations].

    The standard error of an estimate from them is about sqrt(J (1 - J) / permutations). A text
    without words has the largest value everywhere.

    One-permutation hashing (Li, Owen and Zhang 2012): the hash of an n-gram chooses a place and a
    value, and a place keeps the least value. A place without an n-gram copies the value of the
    first place that has one, in an order that depends on the place (densification, Shrivastava
    2017). This keeps the estimate unbiased for short texts.
    """
    result = np.empty((len(texts), permutations), np.uint32)
    key, order = _key(seed), _order(permutations, seed)
    start = 0
    for batch in batches(texts):
        # The least value at each place.
        owners, values = _ngrams(batch, ngram)
        values = mix(values ^ key)
        places = (values >> HALF) * np.uint64(permutations) >> HALF  # by the upper half
        cells = owners * permutations + places.astype(np.int64)
        least = np.full((len(batch), permutations), EMPTY)
        lower = values.astype(np.uint32)
        np.minimum.at(least.reshape(-1), cells, lower)

        # Empty places copy from another place: the first in their order that has a value.
        filled = least.copy()
        empty = least == EMPTY
        without_words = empty.all(1, keepdims=True)
        rows, places = np.nonzero(empty & ~without_words)
        for turn in range(permutations):
            if not len(places):
                break
            sources = order[places, turn]
            copied = least[rows, sources]
            filled[rows, places] = copied
            still_empty = copied == EMPTY
            rows, places = rows[still_empty], places[still_empty]
        end = start + len(batch)
        result[start:end] = filled
        start = end
    return result


def _ngrams(texts: Sequence[str], n: int) -> tuple[Array, Array]:
    """(the text it belongs to, int64 [N]; the hash, uint64 [N]) for every word n-gram.

    A text of fewer than n words has a single n-gram, made of all its words.
    """
    units = unit_hashes(texts, "word")
    ngrams = ngram_hashes(units, n)
    owners, values = [ngrams.owners], [ngrams.values]
    for size in range(1, n):
        short = units.counts == size
        if short.any():
            inside = np.repeat(short, units.counts)
            offsets = size * np.arange(short.sum() + 1)
            words = Hashes(units.values[inside], offsets)
            owners.append(np.flatnonzero(short))
            values.append(ngram_hashes(words, size).values)
    return np.concatenate(owners), np.concatenate(values)


def _key(seed: int) -> Array:
    number = np.array([seed], np.uint64)
    return mix(number * MULTIPLIER + MULTIPLIER)


@functools.lru_cache
def _order(permutations: int, seed: int) -> Array:
    """[permutations, permutations]: the places from which each empty place copies, in order."""
    numbers = np.arange(permutations**2, dtype=np.uint64)
    random = mix(numbers * MULTIPLIER ^ mix(_key(seed)))
    square = random.reshape(permutations, permutations)
    return np.argsort(square, axis=1)


def similarity(a: Array, b: Array) -> Array:
    """The estimated Jaccard similarity of signatures, row by row: float64 [rows]."""
    return (a == b).mean(1)


def acceptance(threshold: float, permutations: int) -> float:
    """The estimate from which a pair counts as near: one standard error below the threshold.

    This finds 84 % of the pairs at the threshold and 99 % of those 0.05 above it. The price is some
    pairs that lie a little below the threshold.
    """
    variance = threshold * (1 - threshold)
    return threshold - math.sqrt(variance / permutations)


def banding(
    threshold: float,
    permutations: int,
    probability: float = 0.99,
) -> tuple[int, int]:
    """(bands, rows) for LSH: as many rows as possible, so that few pairs meet by chance.

    A pair at the threshold shares a band with probability 1 - (1 - threshold^rows)^bands. This must
    be at least `probability`.

    >>> banding(0.8, 128)
    (21, 6)
    """
    best = 1
    for rows in range(2, permutations + 1):
        bands = permutations // rows
        misses = (1 - threshold**rows) ** bands
        if 1 - misses >= probability:
            best = rows
    return permutations // best, best


def band_keys(signature: Array, bands: int, rows: int) -> Array:
    """uint64 [texts, bands] of signatures [texts, permutations].

    Two keys are equal if all rows of the band are equal.
    """
    used = signature[:, : bands * rows].astype(np.uint64)
    parts = used.reshape(-1, bands, rows)
    keys = np.arange(1, bands + 1, dtype=np.uint64)
    for row in range(rows):
        keys = mix(keys * MULTIPLIER + parts[:, :, row])
    return keys
