"""Hashes of word n-grams over whole batches of text at once: what classifier, near-deduplication and decontamination
stand on.

A text is a sequence of units: words, and each CJK character by itself (the paper does not say how Chinese is split).
A unit is a 64-bit hash of its bytes, an n-gram a hash of n units in a row; both are made by numpy over the bytes of
many texts together, without a Python loop over texts or words.

    kind "space"  what stands between spaces, as it is: for the classifier, to which "x^2" and "=" say something
    kind "word"   runs of letters and digits in lower case after NFKC, punctuation left out: to compare texts
                  (outside ASCII a whole block of Unicode counts as one or the other, as the first byte tells)
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SEPARATOR, _LETTER, _CJK, _REST = 0, 1, 2, 3  # _REST: the later bytes of a character, of its first one's class
_M = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Hashes:
    """Hashes [N] uint64 of many texts one after the other; those of text i are values[offsets[i] : offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray  # int64 [texts + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    @property
    def counts(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def owners(self) -> np.ndarray:
        """The text that each hash belongs to: int64 [N]."""
        return np.repeat(np.arange(len(self)), self.counts)


def mix(x: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit integers after which every bit depends on all (splitmix64's finisher)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _classes(kind: str) -> np.ndarray:
    """The class of each byte of UTF-8, by the first byte of its character: [256]."""
    table = np.full(256, _LETTER, np.uint8)
    table[0x80:0xC0] = _REST
    if kind == "space":
        table[[0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x20]] = _SEPARATOR
    else:
        plain = np.frombuffer(bytes(range(128)), np.uint8)
        keep = [chr(b).isalnum() for b in plain]
        table[:128] = np.where(keep, _LETTER, _SEPARATOR)
        table[[0xC2, 0xE2, 0xEE, 0xEF]] = _SEPARATOR  # U+0080-00BF, U+2000-2FFF, U+E000-FFFF: signs and symbols
    table[0xE3:0xEA] = _CJK  # U+3000-9FFF; U+F900-FAFF become these by NFKC
    table[0xF0] = _CJK  # U+10000-3FFFF: rare characters, and emoji
    return table


_TABLES = {kind: _classes(kind) for kind in ("space", "word")}


def normalize(text: str) -> str:
    """What "word" units are taken from: NFKC (full-width forms become plain ones), lower case."""
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).lower()


def _borders(data: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(first byte, byte after the last) of every unit, both int64 [N] in order. `data` begins and ends in
    a separator."""
    classes = _TABLES[kind][data]
    rest = np.flatnonzero(classes == _REST)
    for _ in range(3):  # a character has at most three later bytes
        if not len(rest):
            break
        classes[rest] = classes[rest - 1]
        rest = rest[classes[rest] == _REST]
    if kind == "word":  # U+3000-303F: punctuation of Chinese and Japanese
        at = np.flatnonzero((data[:-2] == 0xE3) & (data[1:-1] == 0x80))
        for k in range(3):
            classes[at + k] = _SEPARATOR
    letter, cjk = classes == _LETTER, classes == _CJK
    starts, ends = np.zeros(len(data), bool), np.zeros(len(data), bool)
    starts[1:] = letter[1:] & ~letter[:-1]
    ends[1:] = letter[:-1] & ~letter[1:]
    if cjk.any():
        first = cjk & (data >= 0xC0)  # each character is a unit
        starts |= first
        ends[1:] |= cjk[:-1] & (first[1:] | ~cjk[1:])
    return np.flatnonzero(starts), np.flatnonzero(ends)


def unit_hashes(texts: Sequence[str], kind: str = "word") -> Hashes:
    """The units of texts. Example: unit_hashes(["A b.", "数学 a"]) has 2 and 3, the first equal to the last."""
    if kind == "word":
        texts = [normalize(text) for text in texts]
    encoded = [text.encode("utf-8", "replace") for text in texts]
    data = b"\n" + b"\n".join(encoded) + b"\n" + bytes(8)  # eight more, so that eight can be read from anywhere
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    data = np.frombuffer(data, np.uint8)
    starts, ends = _borders(data[:-8], kind)
    blocks = np.ndarray(len(data) - 7, "<u8", data.data, strides=(1,))  # the eight bytes from every place
    sizes = ends - starts
    values = np.full(len(starts), _M) * sizes.astype(np.uint64)
    left, at, which = sizes, starts, slice(None)
    while len(left):
        keep = np.uint64(0xFFFFFFFFFFFFFFFF) >> ((8 - np.minimum(left, 8)) * 8).astype(np.uint64)
        values[which] = mix((values[which] + (blocks[at] & keep)) * _M)
        more = np.flatnonzero(left > 8)
        which = more if isinstance(which, slice) else which[more]
        left, at = left[more] - 8, at[more] + 8
    begins = np.concatenate([[0], np.cumsum(lengths + 1)])
    return Hashes(values, np.searchsorted(starts, begins + 1))


def ngram_hashes(units: Hashes, n: int) -> Hashes:
    """The n-grams of each text, in order; a text of fewer than n units has none. ngram_hashes(units, 1) is `units`."""
    if n == 1:
        return units
    size = len(units.values) - n + 1
    offsets = np.concatenate([[0], np.cumsum(np.maximum(units.counts - n + 1, 0))])
    if size <= 0:
        return Hashes(np.zeros(0, np.uint64), offsets)
    values = units.values[:size].copy()
    for k in range(1, n):
        values = values * _M + units.values[k : k + size]
    whole = np.ones(size, bool)
    for k in range(1, n):  # those that would reach into the next text
        crossing = units.offsets[1:-1] - k
        whole[crossing[(crossing >= 0) & (crossing < size)]] = False
    return Hashes(mix(values[whole]), offsets)
