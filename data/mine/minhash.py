"""MinHash signatures of texts, and bands of them for locality-sensitive hashing (LSH).

The Jaccard similarity of two texts is |A & B| / |A | B| of their sets A and B of word n-grams. Two
signatures agree at a place with this probability, so the share of equal places estimates it.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

from data.mine.ngrams import MULTIPLIER, Hashes, batches, mix, ngram_hashes, unit_hashes

EMPTY = np.uint32(0xFFFFFFFF)  # a place without an n-gram; all places of a text without words


def signatures(
    texts: Sequence[str], permutations: int = 128, ngram: int = 5, seed: int = 0
) -> np.ndarray:
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
        places = ((values >> np.uint64(32)) * np.uint64(permutations)) >> np.uint64(32)
        places = places.astype(np.int64) + owners * permutations
        least = np.full((len(batch), permutations), EMPTY)
        np.minimum.at(least.reshape(-1), places, values.astype(np.uint32))

        # Empty places copy from another place: the first in their order that has a value.
        filled = least.copy()
        empty = least == EMPTY
        rows, places = np.nonzero(empty & ~empty.all(1, keepdims=True))
        for turn in range(permutations):
            if not len(places):
                break
            copied = least[rows, order[places, turn]]
            filled[rows, places] = copied
            still_empty = copied == EMPTY
            rows, places = rows[still_empty], places[still_empty]
        result[start : start + len(batch)] = filled
        start += len(batch)
    return result


def _ngrams(texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """(the text it belongs to, int64 [N]; the hash, uint64 [N]) for every word n-gram.

    A text of fewer than n words has a single n-gram, made of all its words.
    """
    units = unit_hashes(texts, "word")
    ngrams = ngram_hashes(units, n)
    owners, values = [ngrams.owners], [ngrams.values]
    for size in range(1, n):
        short = units.counts == size
        if short.any():
            words = units.values[np.repeat(short, units.counts)]
            whole = Hashes(words, np.arange(short.sum() + 1) * size)
            owners.append(np.flatnonzero(short))
            values.append(ngram_hashes(whole, size).values)
    return np.concatenate(owners), np.concatenate(values)


def _key(seed: int) -> np.ndarray:
    return mix(np.array([seed], np.uint64) * MULTIPLIER + MULTIPLIER)


@functools.lru_cache
def _order(permutations: int, seed: int) -> np.ndarray:
    """[permutations, permutations]: the places from which each empty place copies, in order."""
    numbers = np.arange(permutations**2, dtype=np.uint64) * MULTIPLIER
    random = mix(numbers ^ mix(_key(seed)))
    return np.argsort(random.reshape(permutations, permutations), axis=1)


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The estimated Jaccard similarity of signatures, row by row: float64 [rows]."""
    return (a == b).mean(1)


def acceptance(threshold: float, permutations: int) -> float:
    """The estimate from which a pair counts as near: one standard error below the threshold.

    This finds 84 % of the pairs at the threshold and 99 % of those 0.05 above it. The price is some
    pairs that lie a little below the threshold.
    """
    return threshold - math.sqrt(threshold * (1 - threshold) / permutations)


def banding(threshold: float, permutations: int, probability: float = 0.99) -> tuple[int, int]:
    """(bands, rows) for LSH: as many rows as possible, so that few pairs meet by chance.

    A pair at the threshold shares a band with probability 1 - (1 - threshold^rows)^bands. This must
    be at least `probability`.

    >>> banding(0.8, 128)
    (21, 6)
    """
    best = 1
    for rows in range(2, permutations + 1):
        bands = permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= probability:
            best = rows
    return permutations // best, best


def band_keys(signature: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """uint64 [texts, bands] of signatures [texts, permutations].

    Two keys are equal if all rows of the band are equal.
    """
    parts = signature[:, : bands * rows].reshape(-1, bands, rows).astype(np.uint64)
    keys = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64), parts.shape[:2])
    for row in range(rows):
        keys = mix(keys * MULTIPLIER + parts[:, :, row])
    return keys
