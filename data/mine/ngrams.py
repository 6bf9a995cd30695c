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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_M = np.uint64(0x9E3779B97F4A7C15)
_BATCH = (
    2**18
)  # characters at a time: what is made of them on the way stays in the processor's cache
_KEEP = np.array([2 ** (8 * n) - 1 for n in range(9)], np.uint64)  # of eight bytes the first n


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
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def normalize(text: str) -> str:
    """What "word" units are taken from: NFKC (full-width forms become plain ones), lower case."""
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).lower()


def _word_bytes() -> bytes:
    """A table for bytes.translate: 1 for bytes of UTF-8 that belong to a unit of kind "word", 0 for the others. What
    follows the first byte of a character that does not belong counts as belonging: _edges corrects that."""
    table = np.ones(256, np.uint8)
    table[:128] = [chr(byte).isalnum() for byte in range(128)]
    table[_SIGNS] = 0
    return table.tobytes()


_SIGNS = [
    0xC2,
    0xE2,
    0xEE,
    0xEF,
]  # U+0080-00BF, U+2000-2FFF, U+E000-FFFF: signs and symbols, by their first byte
_WORD = _word_bytes()


def _edges(raw: bytes, kind: str, ascii: bool) -> np.ndarray:
    """Where units begin and end, in turn: int64 [2 N], even ones the first byte of a unit, odd ones the byte after its
    last. `raw` begins and ends with a separator."""
    data = np.frombuffer(raw, np.uint8)
    if kind == "space":
        inside = ((data - np.uint8(9)) > 4) & (data != 32)  # not \t \n \v \f \r, nor a space
    else:
        inside = np.frombuffer(raw.translate(_WORD), bool)
    if ascii:
        return np.flatnonzero(inside[1:] != inside[:-1]) + 1
    high = np.flatnonzero(data >= 0x80)  # few in most texts: what follows is cheap for them
    byte = data[high]
    if kind == "word":
        inside = inside.copy()
        sign = high[np.isin(byte, _SIGNS)]
        inside[sign + 1] = False
        inside[sign[data[sign] != 0xC2] + 2] = False
        stop = high[
            (byte == 0xE3) & (data[high + 1] == 0x80)
        ]  # U+3000-303F: punctuation of Chinese and Japanese
        for k in range(3):
            inside[stop + k] = False
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    # CJK, each character a unit: U+3000-9FFF (U+F900-FAFF become these by NFKC), and U+10000-3FFFF: rare ones, emoji
    first = high[((byte - np.uint8(0xE3)) < 7) | (byte == 0xF0)]
    if len(first):
        last = first + 3 + (data[first] == 0xF0)
        cut = np.concatenate([first, last[:-1][last[:-1] < first[1:]], last[-1:]])
        cut = cut[
            inside[cut] & inside[cut - 1]
        ]  # where text begins or ends there is an edge already
        edges = np.sort(np.concatenate([edges, cut, cut]))  # a unit ends and the next begins
    return edges


def _eights(
    blocks: np.ndarray, starts: np.ndarray, sizes: np.ndarray, place: np.ndarray
) -> np.ndarray:
    """What the bytes 8 * place .. 8 * place + 7 of each unit say, and that they stand there: uint64 [units]."""
    parts = blocks[starts + 8 * place]
    parts &= _KEEP.take(sizes - 8 * place, mode="clip")
    parts += mix(place.view(np.uint64))  # so that their order counts
    return mix(parts * _M)


def _further(blocks: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """What the bytes after the first eight of units say, of which each has some: uint64 [units]."""
    sums = _eights(blocks, starts, sizes, np.ones(1, np.int64))
    longer = np.flatnonzero(sizes > 16)  # few; all eights of all of them at once
    if len(longer):
        counts = (sizes[longer] - 9) >> 3
        begins = np.cumsum(counts) - counts
        place = np.arange(2, counts.sum() + 2) - np.repeat(
            begins, counts
        )  # 2, 3, ... within each unit
        owners = np.repeat(longer, counts)
        sums[longer] += np.add.reduceat(
            _eights(blocks, starts[owners], sizes[owners], place), begins
        )
    return sums


def _hash_batch(texts: Sequence[str], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of all units, uint64 [N]; how many units begin before the end of each text, int64 [texts])."""
    joined = "\n".join(texts)
    if ascii := joined.isascii():
        raw, lengths = joined.encode(), map(len, texts)
    else:
        encoded = [text.encode("utf-8", "replace") for text in texts]
        raw, lengths = b"\n".join(encoded), map(len, encoded)
    raw = b"\n" + raw + b"\n" + b" " * 8  # eight more, so that eight can be read from anywhere
    edges = _edges(raw, kind, ascii).reshape(-1, 2)
    starts = np.ascontiguousarray(edges[:, 0])
    sizes = edges[:, 1] - starts
    blocks = np.ndarray(len(raw) - 7, "<u8", raw, strides=(1,))  # the eight bytes from every place
    values = blocks[starts]
    values &= _KEEP.take(sizes, mode="clip")
    values += sizes.view(np.uint64) * _M
    values *= _M
    values = mix(values)
    long = np.flatnonzero(sizes > 8)
    if len(long):
        values[long] = mix(values[long] + _further(blocks, starts[long], sizes[long]) * _M)
    ends = np.cumsum(np.fromiter(lengths, np.int64, len(texts)) + 1)
    return values, np.searchsorted(starts, ends)


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in order, in lists of about as many characters as are best handled at a time."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def units(text: str, kind: str = "word") -> list[str]:
    """The units of one text themselves. Example: units("A b.") is ["a", "b"]."""
    raw = b"\n" + (normalize(text) if kind == "word" else text).encode("utf-8", "replace") + b"\n"
    edges = _edges(raw, kind, raw.isascii()).tolist()
    return [raw[start:end].decode() for start, end in zip(edges[::2], edges[1::2], strict=True)]


def unit_hashes(texts: Sequence[str], kind: str = "word") -> Hashes:
    """The units of texts. Example: unit_hashes(["A b.", "数学 a"]) has 2 and 3, the first equal to the last."""
    if kind == "word":
        texts = [normalize(text) for text in texts]
    np.empty(
        2**24, np.uint8
    )  # freed at once: glibc's malloc then keeps what is freed below, for a third less time
    values, offsets, total = [np.zeros(0, np.uint64)], [np.zeros(1, np.int64)], 0
    for batch in batches(texts):
        hashes, ends = _hash_batch(batch, kind)
        values.append(hashes)
        offsets.append(ends + total)
        total += len(hashes)
    return Hashes(np.concatenate(values), np.concatenate(offsets))


def ngram_hashes(units: Hashes, n: int) -> Hashes:
    """The n-grams of each text, in order; a text of fewer than n units has none. ngram_hashes(units, 1) is `units`."""
    if n == 1:
        return units
    offsets = np.concatenate([[0], np.cumsum(np.maximum(units.counts - n + 1, 0))])
    size = max(len(units.values) - n + 1, 0)
    values = np.empty(size, np.uint64)
    for i in range(0, size, _BATCH // 8):
        values[i : i + _BATCH // 8] = mix(rolling(units.values[i : i + _BATCH // 8 + n - 1], n))
    if len(units) > 1:
        whole = np.ones(size, bool)
        whole[crossing(units, n)] = False
        values = values[whole]
    return Hashes(values, offsets)


def rollings(values: np.ndarray, n: int) -> Iterator[tuple[int, np.ndarray]]:
    """(k, a number for every k units in a row, whatever texts they belong to: uint64 [N - k + 1]) for k = 2 .. n. Its
    high bits serve to pick a bucket; ngram_hashes mixes all of them. Not to be changed before the next is made."""
    rolled = values
    for k in range(2, n + 1):
        rolled = rolled[:-1] * _M
        rolled += values[k - 1 :]
        yield k, rolled


def rolling(values: np.ndarray, n: int) -> np.ndarray:
    """The last of `rollings`: uint64 [N - n + 1]. For n = 1 it is `values`."""
    rolled = values
    for _, longer in rollings(values, n):
        rolled = longer
    return rolled


def crossing(units: Hashes, n: int) -> np.ndarray:
    """Where in `rolling` of units.values an n-gram reaches into another text: int64, some of them several times."""
    places = (units.offsets[1:-1, None] - np.arange(1, n)).ravel()
    return places[(places >= 0) & (places <= len(units.values) - n)]
