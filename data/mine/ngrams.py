"""Hashes of word n-grams, for whole batches of text at once.

The classifier, deduplication and decontamination are built on this file. A text is a sequence of
units: words, and single CJK characters (the paper does not say how it splits Chinese). The hash of
a unit has 64 bits and depends on the unit's bytes. The hash of an n-gram depends on n units in a
row. numpy computes both over the bytes of many texts together, without a Python loop over texts or
words.

There are two kinds of units:

    "space"  text between spaces, unchanged: for the classifier, to which "x^2" and "=" are signals
    "word"   runs of letters and digits, in lower case after NFKC, without punctuation: to compare
             texts (outside ASCII, the first byte of a character decides for a whole Unicode block)
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.io import in_batches

Array = np.ndarray
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_BATCH = 2**18  # characters in a batch; intermediate arrays then stay in the processor's cache
_KEEP = np.array([256**n - 1 for n in range(9)], np.uint64)  # keeps n bytes of eight


@dataclass(frozen=True)
class Hashes:
    """Hashes of many texts, one text after the other.

    The hashes of text i are values[offsets[i] : offsets[i + 1]].
    """

    values: Array  # uint64 [N]
    offsets: Array  # int64 [texts + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Array:
        begin, end = self.offsets[i : i + 2]
        return self.values[begin:end]

    @property
    def counts(self) -> Array:
        """The number of hashes of each text: int64 [texts]."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> Array:
        """The text of each hash: int64 [N]."""
        texts = np.arange(len(self))
        return np.repeat(texts, self.counts)

    def ngram_counts(self, n: int) -> Array:
        """The number of n-grams of each text: int64 [texts]."""
        return np.maximum(self.counts - n + 1, 0)


def offsets_from(counts: Array) -> Array:
    """The offsets of texts with these counts of hashes: int64 [texts + 1].

    >>> offsets_from(np.array([2, 3])).tolist()
    [0, 2, 5]
    """
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def mix(x: Array) -> Array:
    """A bijection of 64-bit integers: every output bit depends on all input bits (splitmix64)."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in order, in lists of a size that is processed fast."""
    return in_batches(texts, _BATCH)


# ---- Units -----------------------------------------------------------------------------------


def normalize(text: str) -> str:
    """The text from which "word" units are taken: NFKC (full-width forms become plain), lower case.

    >>> normalize("Ｓin X")
    'sin x'
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return text.lower()


# First bytes of characters that are signs: U+0080-00BF, U+2000-2FFF, U+E000-FFFF.
_SIGNS = [0xC2, 0xE2, 0xEE, 0xEF]


def _word_bytes() -> bytes:
    """A table for bytes.translate: 1 for bytes that belong to a "word" unit in UTF-8, else 0.

    Later bytes of a sign count as belonging; _edges corrects this.
    """
    table = np.ones(256, np.uint8)
    for byte in range(128):
        table[byte] = chr(byte).isalnum()
    table[_SIGNS] = 0
    return table.tobytes()


_WORD = _word_bytes()


def _changes(inside: Array) -> Array:
    """The places whose value differs from the one before: int64."""
    differs = inside[1:] != inside[:-1]
    return np.flatnonzero(differs) + 1


def _edges(
    raw: bytes,
    kind: str,
    ascii: bool,
) -> Array:
    """Where units begin and end, in turn: int64 [2 N].

    An even entry is the first byte of a unit, an odd entry is the byte after the last.
    `raw` begins and ends with a separator.
    """
    data = np.frombuffer(raw, np.uint8)
    if kind == "space":
        is_control = (data - np.uint8(9)) <= 4  # \t \n \v \f \r
        inside = ~is_control & (data != 32)  # 32 is a space
    else:
        inside = np.frombuffer(raw.translate(_WORD), bool)
    if ascii:
        return _changes(inside)

    # Bytes outside ASCII. Most texts have few of them, so this part is cheap.
    high = np.flatnonzero(data >= 0x80)
    byte = data[high]
    if kind == "word":
        inside = inside.copy()
        # The later bytes of signs do not belong to a unit.
        sign = high[np.isin(byte, _SIGNS)]
        inside[sign + 1] = False
        inside[sign[data[sign] != 0xC2] + 2] = False
        # U+3000-303F: punctuation of Chinese and Japanese.
        following = data[high + 1]
        stop = high[(byte == 0xE3) & (following == 0x80)]
        for k in range(3):
            inside[stop + k] = False
    edges = _changes(inside)

    # Every CJK character is a unit: U+3000-9FFF (NFKC maps U+F900-FAFF to these), and
    # U+10000-3FFFF: rare characters and emoji.
    is_three = (byte - np.uint8(0xE3)) < 7  # begins a character of three bytes
    is_four = byte == 0xF0
    first = high[is_three | is_four]
    if len(first):
        end = first + 3 + (data[first] == 0xF0)
        next_first = np.append(first[1:], len(data))
        apart = end < next_first
        cut = np.concatenate([first, end[apart]])
        cut = cut[inside[cut] & inside[cut - 1]]  # elsewhere there is an edge already
        edges = np.concatenate([edges, cut, cut])  # a unit ends and the next begins
        edges.sort()
    return edges


def units(text: str, kind: str = "word") -> list[str]:
    """The units of a single text, as strings.

    >>> units("A b.")
    ['a', 'b']
    """
    if kind == "word":
        text = normalize(text)
    data = text.encode("utf-8", "replace")
    raw = b"\n" + data + b"\n"
    edges = _edges(raw, kind, raw.isascii())
    spans = edges.reshape(-1, 2).tolist()
    return [raw[start:end].decode() for start, end in spans]


# ---- Hashes of units -------------------------------------------------------------------------


def unit_hashes(texts: Sequence[str], kind: str = "word") -> Hashes:
    """The hashes of the units of texts.

    >>> hashes = unit_hashes(["A b.", "数学 a"])
    >>> hashes.counts.tolist(), bool(hashes[0][0] == hashes[1][2])
    ([2, 3], True)
    """
    if kind == "word":
        texts = list(map(normalize, texts))
    # Allocate and free 16 MB: glibc's malloc then keeps freed memory, which saves a third of the
    # time.
    np.empty(2**24, np.uint8)
    values = [np.zeros(0, np.uint64)]
    offsets = [np.zeros(1, np.int64)]
    total = 0
    for batch in batches(texts):
        hashes, ends = _hash_batch(batch, kind)
        values.append(hashes)
        offsets.append(ends + total)
        total += len(hashes)
    return Hashes(
        values=np.concatenate(values),
        offsets=np.concatenate(offsets),
    )


def _hash_batch(texts: Sequence[str], kind: str) -> tuple[Array, Array]:
    """(hashes of all units, uint64 [N]; units that begin before each text's end, int64 [texts])."""
    # The bytes of all texts, separated by newlines.
    joined = "\n".join(texts)
    ascii = joined.isascii()
    if ascii:
        raw, lengths = joined.encode(), map(len, texts)
    else:
        encoded = [text.encode("utf-8", "replace") for text in texts]
        raw, lengths = b"\n".join(encoded), map(len, encoded)
    raw = b"\n" + raw + b"\n" + b" " * 8  # so that eight bytes can be read from any place
    edges = _edges(raw, kind, ascii).reshape(-1, 2)
    starts, ends = np.ascontiguousarray(edges.T)
    sizes = ends - starts

    # Hash the size and the first eight bytes.
    places = len(raw) - 7
    blocks = np.ndarray(places, "<u8", raw, strides=(1,))  # the eight bytes at every place
    values = blocks[starts]
    values &= _KEEP.take(sizes, mode="clip")
    values += sizes.view(np.uint64) * MULTIPLIER
    values *= MULTIPLIER
    values = mix(values)

    # Longer units: also hash the other bytes.
    long = np.flatnonzero(sizes > 8)
    if len(long):
        other = _hash_other_bytes(blocks, starts[long], sizes[long])
        values[long] = mix(values[long] + other * MULTIPLIER)
    lengths = np.fromiter(lengths, np.int64, len(texts))
    text_ends = np.cumsum(lengths + 1)
    return values, np.searchsorted(starts, text_ends)


def _hash_eight(
    blocks: Array,
    starts: Array,
    sizes: Array,
    place: Array,
) -> Array:
    """Hash bytes 8 * place .. 8 * place + 7 of each unit, together with `place`: uint64 [units]."""
    parts = blocks[starts + 8 * place]
    parts &= _KEEP.take(sizes - 8 * place, mode="clip")
    parts += mix(place.view(np.uint64))  # so that the order of the parts matters
    return mix(parts * MULTIPLIER)


def _hash_other_bytes(
    blocks: Array,
    starts: Array,
    sizes: Array,
) -> Array:
    """Hash the bytes of units after the first eight, uint64 [units]. Every unit has such bytes."""
    second = np.ones(1, np.int64)
    sums = _hash_eight(blocks, starts, sizes, second)
    longer = np.flatnonzero(sizes > 16)  # few units: process all their blocks at once
    if len(longer):
        counts = (sizes[longer] - 9) >> 3
        begins = np.cumsum(counts) - counts
        owners = np.repeat(longer, counts)
        place = np.arange(2, len(owners) + 2)
        place -= np.repeat(begins, counts)  # 2, 3, ... in each unit
        parts = _hash_eight(
            blocks,
            starts[owners],
            sizes[owners],
            place,
        )
        sums[longer] += np.add.reduceat(parts, begins)
    return sums


# ---- N-grams ---------------------------------------------------------------------------------


def ngram_hashes(units: Hashes, n: int) -> Hashes:
    """The hashes of the n-grams of each text, in order. A text with fewer than n units has none.

    >>> ngram_hashes(unit_hashes(["a b c", "d"]), 2).counts.tolist()
    [2, 0]
    """
    if n == 1:
        return units
    size = max(len(units.values) - n + 1, 0)
    values = np.empty(size, np.uint64)
    step = _BATCH // 8
    for begin in range(0, size, step):
        end = begin + step
        some = units.values[begin : end + n - 1]
        values[begin:end] = mix(rolling(some, n))
    if len(units) > 1:
        whole = np.ones(size, bool)
        whole[crossing(units, n)] = False
        values = values[whole]
    return Hashes(values, offsets_from(units.ngram_counts(n)))


def rollings(values: Array, n: int) -> Iterator[tuple[int, Array]]:
    """For k = 2 .. n, yield (k, a number for every k units in a row: uint64 [N - k + 1]).

    Units count as a row even if they belong to different texts. The high bits of a number can
    choose a bucket; ngram_hashes mixes all bits. Do not change an array before the next is made.
    """
    rolled = values
    for k in range(2, n + 1):
        rolled = rolled[:-1] * MULTIPLIER
        rolled += values[k - 1 :]
        yield k, rolled


def rolling(values: Array, n: int) -> Array:
    """The last array of `rollings`: uint64 [N - n + 1]. For n = 1 it is `values`."""
    rolled = values
    for _, longer in rollings(values, n):
        rolled = longer
    return rolled


def crossing(units: Hashes, n: int) -> Array:
    """Where in rolling(units.values, n) an n-gram crosses into the next text: int64, may repeat."""
    ends = units.offsets[1:-1, None]
    places = (ends - np.arange(1, n)).ravel()
    last = len(units.values) - n
    exists = (places >= 0) & (places <= last)
    return places[exists]
