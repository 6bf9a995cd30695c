"""The classifier that finds mathematical pages (paper 2.1): the supervised fastText model, from scratch.

A text is the bag of its words, word 2-grams and word 3-grams, each CJK character a word and the end of the text
another. Words seen `min_count` times in the training texts have a vector of their own; n-grams, also those with rarer
words in them, share `buckets` vectors by hash. The mean of a text's vectors goes through a linear softmax over two
classes, trained by SGD, one text at a time, with a rate that falls linearly to zero.

Of the two output vectors only the difference d counts, which is the logit's gradient: with g = rate * (label -
probability), a step adds g / n * d to the vectors of the text's n features and 2 g * (mean vector) to d. So within a
block of texts all steps follow from the texts' mean vectors at its beginning and from how many features any two texts
share; vectors are read once and written once a block. This is plain SGD in another order of additions, whatever
the size of a block. Once trained, only the product of each vector with d matters: one number a feature, and the
logit of a text is the mean of its features' numbers.

What differs from the fastText library: it lets threads write over each other's updates, in an order that changes from
run to run, and goes through the texts in the order of the file; here texts are shuffled anew in each epoch, and the
result depends on the seed alone. A bucket that no training text has used keeps its random vector there, and counts
as zero here. None of it shows: over six seeds the mean accuracies on made-up texts differ by 0.1 points, and the
scores of 600 pages of documentation correlate by 0.999.
"""

import functools
import json
import os
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from data.io import InputError, atomic_write
from data.mine.ngrams import Hashes, batches, crossing, rollings, unit_hashes, units

_BLOCK = 64  # texts whose steps are taken together
_SLICE = 1024  # vectors that a thread sets or updates at a time
_COUNTED = 2**22  # words counted at a time
_END = " </s>"  # the library's word for the end
_FORMAT = "word n-gram classifier 1"


@dataclass(frozen=True)
class Settings:
    width: int = 256  # of the vectors
    ngrams: int = 3  # words of the longest n-gram
    min_count: int = 3  # a word seen fewer times has no vector of its own
    buckets: int = 2**21  # vectors that the n-grams of two words and more share
    epochs: int = 3
    rate: float = 0.1  # learning rate of the first step

    def check(self) -> None:
        for name in ("width", "ngrams", "min_count", "buckets", "epochs"):
            if not 1 <= getattr(self, name) < 2**32:
                raise InputError(
                    f"classifier: {name} is {getattr(self, name)}; give a whole number of 1 or more"
                )
        if not 0 < self.rate < float("inf"):
            raise InputError(f"classifier: rate is {self.rate}; give a number above 0")


def read_words(texts: Iterable[str]) -> Hashes:
    """The words of texts, and after those of each the mark of its end."""
    return unit_hashes([text + _END for text in texts], "space")


def bucket_numbers(
    hashes: np.ndarray, ngrams: int, buckets: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(n, the bucket of every n words in a row, also of those from two texts: int64 [N - n + 1]), n = 2 .. ngrams."""
    for n, rolled in rollings(hashes, ngrams):
        numbers = rolled >> np.uint64(32)
        numbers *= np.uint64(buckets)
        numbers >>= np.uint64(32)
        yield n, numbers.view(np.int64)


class Table:
    """From hashes (uint64 [V], distinct) to values [V] of any type: open addressing with 4 to 8 slots for each. No
    hash is 0, which marks a free slot (and one in 2**64 words has it)."""

    def __init__(self, hashes: np.ndarray, values: np.ndarray):
        bits = (4 * len(hashes)).bit_length() or 1
        self._shift, self._mask = np.uint64(64 - bits), 2**bits - 1
        self._keys, self._values = np.zeros(2**bits, np.uint64), np.zeros(2**bits, values.dtype)
        left, at = np.arange(len(hashes)), (hashes >> self._shift).view(np.int64)
        while len(left):
            free = self._keys[at] == 0
            self._keys[at[free]] = hashes[left[free]]  # of several for one slot one gets it
            placed = self._keys[at] == hashes[left]
            self._values[at[placed]] = values[left[placed]]
            left, at = left[~placed], (at[~placed] + 1) & self._mask

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the value of each hash, 0 for one that is not there; bool [N] whether it is there)."""
        at = (hashes >> self._shift).view(np.int64)
        keys = self._keys.take(at, mode="clip")
        known = keys == hashes
        left = np.flatnonzero((keys != 0) & ~known)
        while len(left):
            at[left] = next = (at[left] + 1) & self._mask
            keys = self._keys[next]
            hit = keys == hashes[left]
            known[left[hit]] = True
            left = left[(keys != 0) & ~hit]
        return self._values.take(
            at, mode="clip"
        ), known  # `at` is a free slot where it is not known


def _sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The sum of each text's values, values[offsets[i] : offsets[i + 1]]; 0 for a text without any."""
    result = np.zeros(len(offsets) - 1, values.dtype)
    full = np.flatnonzero(offsets[1:] > offsets[:-1])
    if len(full):
        result[full] = np.add.reduceat(values, offsets[full])
    return result


def _sigmoid(x):
    return 0.5 * np.tanh(0.5 * x) + 0.5


@dataclass(frozen=True)
class Classifier:
    """A number for each feature; made by `train` or `load`."""

    settings: Settings
    words: np.ndarray  # uint64 [V]: hashes of the words with a number of their own
    word_weights: np.ndarray  # float32 [V]
    bucket_weights: np.ndarray  # float32 [buckets]

    def scores(self, texts: Iterable[str]) -> np.ndarray:
        """The probability that each text is mathematical: float32 [texts]. Above a margin of 17 it is 1."""
        return _sigmoid(self.margins(texts))

    def margins(self, texts: Iterable[str]) -> np.ndarray:
        """The log-odds of that, log(p / (1 - p)): float32 [texts]. They tell apart also the pages that it is sure of.
        A text's margin does not depend on the texts around it."""
        return np.concatenate([np.zeros(0, np.float32), *map(self._margins, batches(texts))])

    def _margins(self, texts: Sequence[str]) -> np.ndarray:
        hashes = read_words(texts)
        weights, known = self._table.find(hashes.values)
        count = _sums(known.astype(np.float32), hashes.offsets)
        for n, numbers in bucket_numbers(
            hashes.values, self.settings.ngrams, self.settings.buckets
        ):
            grams = self.bucket_weights.take(
                numbers, mode="clip"
            )  # all are within: this spares checking each
            grams[crossing(hashes, n)] = 0
            weights[: len(grams)] += grams  # each with its first word
            count += np.maximum(hashes.counts - n + 1, 0).astype(np.float32)
        return _sums(weights, hashes.offsets) / np.maximum(count, np.float32(1))

    @functools.cached_property
    def _table(self) -> Table:
        return Table(self.words, self.word_weights)

    def explain(self, text: str, count: int = 10) -> list[tuple[str, float]]:
        """The n-grams that weigh most in a text's logit, with their shares of it; positive ones speak for mathematics.
        All shares together are the margin."""
        hashes, strings = read_words([text]), units(text + _END, "space")
        weights, known = self._table.find(hashes.values)
        found = [(strings[i], weights[i]) for i in np.flatnonzero(known)]
        for n, numbers in bucket_numbers(
            hashes.values, self.settings.ngrams, self.settings.buckets
        ):
            found += [
                (" ".join(strings[i : i + n]), self.bucket_weights[k])
                for i, k in enumerate(numbers)
            ]
        shares: dict[str, float] = {}
        for string, weight in found:
            shares[string] = shares.get(string, 0.0) + float(weight) / len(found)
        return sorted(shares.items(), key=lambda item: (-abs(item[1]), item[0]))[:count]

    def save(self, path: str | os.PathLike) -> None:
        """Write one .npz file (atomically): settings as JSON, the words' hashes, the weights."""
        about = json.dumps({"format": _FORMAT, "settings": asdict(self.settings)})
        with atomic_write(path, "wb") as file:
            np.savez(
                file,
                about=np.array(about),
                words=self.words,
                word_weights=self.word_weights,
                bucket_weights=self.bucket_weights,
            )


def load(path: str | os.PathLike) -> Classifier:
    """Read what `save` wrote. Raises InputError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            words, word_weights, bucket_weights = (
                file[k] for k in ("words", "word_weights", "bucket_weights")
            )
        if about["format"] != _FORMAT:
            raise ValueError
        settings = Settings(**about["settings"])
        if (words.dtype, word_weights.dtype, bucket_weights.dtype) != (
            np.uint64,
            np.float32,
            np.float32,
        ):
            raise ValueError
        if not len(words) == len(word_weights) or len(bucket_weights) != settings.buckets:
            raise ValueError
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); give the file of a trained classifier"
        ) from None
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        raise InputError(f"{path}: not a classifier, or not whole; train it again") from None
    return Classifier(settings, words, word_weights, bucket_weights)


# ---- Training --------------------------------------------------------------------------------------------------------


def count_words(values: np.ndarray, min_count: int) -> np.ndarray:
    """The distinct hashes that occur `min_count` times or more, sorted. Counted in pieces: memory for the distinct."""
    words, counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    for i in range(0, len(values), _COUNTED):
        new, times = np.unique(values[i : i + _COUNTED], return_counts=True)
        words, where = np.unique(np.concatenate([words, new]), return_inverse=True)
        counts = np.bincount(where, weights=np.concatenate([counts, times])).astype(np.int64)
    return words[counts >= min_count]


def initial_vectors(start: int, count: int, width: int, seed: int) -> np.ndarray:
    """The vectors start .. start + count - 1 before training, uniform within 1 / width of 0 (16 random bits for each
    number); `start` is a whole number of slices, `count` at most one. float32 [count, width]."""
    bits = (
        np.random.PCG64([seed, 1, start])
        .random_raw((count * width + 3) // 4)
        .view(np.int16)[: count * width]
    )
    return bits.reshape(count, width) * np.float32(2**-15 / width)


def schedule(
    counts: np.ndarray, settings: Settings, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(which texts, the rate of each) of every block. The rate falls with the words passed, `counts` in each text."""
    total = settings.epochs * counts.sum()
    for epoch in range(settings.epochs):
        order = np.random.default_rng([seed, 0, epoch]).permutation(len(counts))
        passed = np.cumsum(counts[order]) - counts[order] + epoch * counts.sum()
        rates = settings.rate * (1 - passed / total)
        for i in range(0, len(order), _BLOCK):
            yield order[i : i + _BLOCK], rates[i : i + _BLOCK]


@dataclass(frozen=True)
class Features:
    """From hashes of words to numbers of vectors: first those of words, then those of the buckets in use."""

    settings: Settings
    words: Table
    rows: np.ndarray  # int32 [buckets]: the vector of each bucket

    def __call__(self, hashes: Hashes) -> list[Hashes]:
        """The vectors of texts, a Hashes of int64 for each n."""
        places, known = self.words.find(hashes.values)
        found = [Hashes(places[known], np.concatenate([[0], np.cumsum(known)])[hashes.offsets])]
        for n, numbers in bucket_numbers(
            hashes.values, self.settings.ngrams, self.settings.buckets
        ):
            rows = self.rows[numbers].astype(np.int64)
            rows[crossing(hashes, n)] = -1
            counts = np.maximum(hashes.counts - n + 1, 0)
            found.append(Hashes(rows[rows >= 0], np.concatenate([[0], np.cumsum(counts)])))
        return found


@dataclass(frozen=True)
class Block:
    """A few texts made ready for their steps. N features in all, R distinct ones."""

    ids: np.ndarray  # int64 [N]: vectors, those of each bag one after the other
    bags: np.ndarray  # int64 [kinds of n-gram * texts]: where each bag begins
    sizes: np.ndarray  # int64 [texts]: features of each
    shared: np.ndarray  # float32 [texts, texts]: pairs of equal features, for any two texts
    rows: np.ndarray  # int64 [R]: the distinct vectors, in order
    owners: np.ndarray  # int64 [N]: the texts that the features belong to, sorted by vector
    starts: np.ndarray  # int64 [R]: where each vector's owners begin


def make_block(features: Features, hashes: Hashes) -> Block:
    found, texts = features(hashes), len(hashes)
    ids = np.concatenate([one.values for one in found])
    ends = np.cumsum([len(one.values) for one in found])
    bags = np.concatenate(
        [one.offsets[:-1] + end - len(one.values) for one, end in zip(found, ends, strict=True)]
    )
    bits = texts.bit_length()
    keys = np.sort((ids << bits) | np.concatenate([one.owners for one in found]))
    rows, owners = keys >> bits, keys & (2**bits - 1)
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    sizes = sum(one.counts for one in found)
    # texts share only vectors with more than one owner; counts are whole numbers, so their products are exact
    times = np.diff(starts, append=len(rows))
    column = np.repeat(np.cumsum(times > 1) - 1, times)
    often = np.repeat(times > 1, times)
    columns = int((times > 1).sum())
    counts = np.bincount(owners[often] * columns + column[often], minlength=texts * columns)
    counts = counts.reshape(texts, columns).astype(np.float32)
    return Block(ids, bags, sizes, counts @ counts.T, rows[starts], owners, starts)


def steps(
    means: np.ndarray,
    shared: np.ndarray,
    sizes: np.ndarray,
    labels: np.ndarray,
    rates: np.ndarray,
    d: np.ndarray,
) -> np.ndarray:
    """Take the steps of a block: changes d [width] in place, returns what each text adds to its features' vectors,
    [texts, width] (to a feature it has twice, twice). `means` are the texts' mean vectors before the block.

    Before step t the mean is means[t] + sum over s < t of shared[t, s] / sizes[t] * added[s]."""
    added = np.zeros_like(means)
    for t in range(len(means)):
        if sizes[t]:
            mean = means[t] + (shared[t, :t] / sizes[t]) @ added[:t]
            g = rates[t] * (labels[t] - _sigmoid(d @ mean))
            added[t] = g / sizes[t] * d
            d += 2 * g * mean
    return added


def _ahead(pool: ThreadPoolExecutor, function, items: Iterable, count: int) -> Iterator:
    """function(item) of each item in order, at most `count` of them begun before they are asked for."""
    pending: deque = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > count:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def read_texts(texts: Iterable[str], name: str) -> list[Hashes]:
    """The words of all texts. Raises InputError where there is not one word."""
    hashes = [read_words(batch) for batch in batches(texts)]
    if not any(len(one.values) > len(one) for one in hashes):
        raise InputError(f"classifier: {name} have no text; give some of both kinds")
    return hashes


def train(
    positives: Iterable[str],
    negatives: Iterable[str],
    settings: Settings | None = None,
    seed: int = 0,
    threads: int = 1,
) -> Classifier:
    """The classifier of two sets of texts (the paper has 500,000 of each). Depends on the seed, not on `threads`.

    Memory: 8 bytes for each word of the texts, 4 * width bytes for each vector in use. Raises InputError."""
    settings = settings or Settings()
    settings.check()
    if threads < 1:
        raise InputError(f"classifier: threads is {threads}; give a whole number of 1 or more")
    parts = [read_texts(positives, "the positives"), read_texts(negatives, "the negatives")]
    texts = [sum(map(len, part)) for part in parts]
    labels = np.repeat([1.0, 0.0], texts)
    parts = parts[0] + parts[1]
    hashes = Hashes(
        np.concatenate([one.values for one in parts]),
        np.concatenate([[0], np.cumsum(np.concatenate([one.counts for one in parts]))]),
    )
    words = count_words(hashes.values, settings.min_count)
    used = np.zeros(settings.buckets, bool)
    for one in parts:
        for n, numbers in bucket_numbers(one.values, settings.ngrams, settings.buckets):
            numbers[crossing(one, n)] = -1
            used[numbers[numbers >= 0]] = True
    del parts
    rows = (np.cumsum(used, dtype=np.int64) - 1 + len(words)).astype(np.int32)
    vectors, d = _fit(
        Features(settings, Table(words, np.arange(len(words))), rows),
        len(words) + int(used.sum()),
        hashes,
        labels,
        seed,
        threads,
    )
    weights = np.einsum("rw,w->r", vectors, d.astype(np.float32))
    buckets = np.zeros(settings.buckets, np.float32)
    buckets[used] = weights[len(words) :]
    return Classifier(settings, words, weights[: len(words)].copy(), buckets)


def _fit(
    features: Features, count: int, hashes: Hashes, labels: np.ndarray, seed: int, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """(vectors float32 [count, width], d float64 [width]) after all steps."""
    import torch  # its sums of rows picked from a matrix read them at the speed of memory; numpy copies them first
    import torch.nn.functional as F

    settings = features.settings
    vectors = np.empty((count, settings.width), np.float32)
    matrix, d = torch.from_numpy(vectors), np.zeros(settings.width)

    def initialise(start: int) -> None:
        vectors[start : start + _SLICE] = initial_vectors(
            start, min(count - start, _SLICE), settings.width, seed
        )

    def prepare(item: tuple[np.ndarray, np.ndarray]) -> tuple[Block, np.ndarray, np.ndarray]:
        texts, rates = item
        values = np.concatenate([hashes[i] for i in texts])
        offsets = np.concatenate([[0], np.cumsum(hashes.counts[texts])])
        return make_block(features, Hashes(values, offsets)), labels[texts], rates

    def read(block: Block, start: int, end: int) -> np.ndarray:
        """The sums of the bags start..end - 1: float32 [end - start, width]."""
        last = block.bags[end] if end < len(block.bags) else len(block.ids)
        ids, bags = block.ids[block.bags[start] : last], block.bags[start:end] - block.bags[start]
        return F.embedding_bag(
            torch.from_numpy(ids), matrix, torch.from_numpy(bags), mode="sum"
        ).numpy()

    def write(block: Block, added: torch.Tensor, start: int) -> None:
        """Update the vectors rows[start : start + _SLICE]."""
        rows, starts = block.rows[start : start + _SLICE], block.starts[start : start + _SLICE + 1]
        last = starts[-1] if len(starts) > len(rows) else len(block.owners)
        owners = torch.from_numpy(block.owners[starts[0] : last])
        change = F.embedding_bag(
            owners, added, torch.from_numpy(starts[: len(rows)] - starts[0]), mode="sum"
        )
        matrix.index_add_(0, torch.from_numpy(rows), change)

    plan = schedule(hashes.counts, settings, seed)
    inside = torch.get_num_threads()
    torch.set_num_threads(1)  # each of ours works alone
    try:
        with ThreadPoolExecutor(threads) as pool, torch.no_grad():
            list(pool.map(initialise, range(0, count, _SLICE)))
            for block, wanted, rates in _ahead(pool, prepare, plan, 2 * threads):
                texts = len(wanted)
                cuts = range(0, len(block.bags), max(texts // 4, 1))
                ends = [*cuts[1:], len(block.bags)]
                sums = np.concatenate(
                    list(pool.map(lambda a, b, block=block: read(block, a, b), cuts, ends))
                )
                sums = sums.reshape(-1, texts, settings.width).sum(0, dtype=np.float64)
                means = sums / np.maximum(block.sizes, 1)[:, None]
                added = torch.from_numpy(
                    steps(means, block.shared, block.sizes, wanted, rates, d).astype(np.float32)
                )
                list(
                    pool.map(
                        lambda start, block=block, added=added: write(block, added, start),
                        range(0, len(block.rows), _SLICE),
                    )
                )
    finally:
        torch.set_num_threads(inside)
    return vectors, d
