"""Decontamination (paper 2.1): pages that contain a question or answer of a benchmark are dropped.

A page is dropped if it contains a 10-gram of any benchmark text, or a whole benchmark text of 3 to
9 units. Shorter texts ("18") say nothing; they are only counted. Units are those of ngrams.py:
words in lower case without punctuation, and single CJK characters. So a page cannot hide a match by
case, line breaks or punctuation.

The benchmarks are a folder of problem files. n-grams are looked up by 64-bit hash, for a batch of
pages at a time. Then every match is compared unit by unit, so no page is dropped because of a hash
collision.

A short answer matches wherever it stands, as in the paper. This can cost much: the answer
2\\sqrt{3} drops every page with this number. Of 3,322 pieces of source code, most of it from a
computer algebra system, the rule dropped 196 when AGIEval's answers were among the benchmarks, and
would have dropped 25 without the short answers. The counts by benchmark and the record of matches
show such cases.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.io import InputError, atomic_write, write_jsonl
from data.mine.benchmark_files import Item, read_benchmarks
from data.mine.ngrams import Array, Hashes, ngram_hashes, normalize, offsets_from, unit_hashes
from data.mine.store import page_batches

GRAM, SHORTEST = 10, 3  # units
PARTS = ("page", "paragraph")


class Match(NamedTuple):
    """A piece of a page that is also in a benchmark. `text` is from the normalized page."""

    benchmark: str
    id: str
    field: str
    text: str


# ---- The index -------------------------------------------------------------------------------

# The "word" units of ngrams.py as a regular expression, to check what the hashes found.
_UNIT = re.compile(
    "[0-9A-Za-z\u00c0-\u1fff\ua000-\ud7ff\U00040000-\U0010ffff]+"
    "|[\u3040-\u9fff\U00010000-\U0003ffff]"
)


@functools.lru_cache(maxsize=4096)
def _units(text: str) -> list[str]:
    return _UNIT.findall(normalize(text))


class _HashSet:
    """A set of hashes. A table of the leading bits rejects nearly all hashes that are not in it."""

    def __init__(self, values: Array):
        self.values = values  # uint64 [N], sorted and distinct
        slots = max(16 * len(values), 2**16)
        bits = min(slots.bit_length(), 26)
        self.shift = np.uint64(64 - bits)
        self.table = np.zeros(2**bits, bool)
        self.table[values >> self.shift] = True

    def find(self, hashes: Array) -> tuple[Array, Array]:
        """(indices of the hashes that are in the set; for each, its index in the set)."""
        which = np.flatnonzero(self.table[hashes >> self.shift])
        wanted = hashes[which]
        rows = np.searchsorted(self.values, wanted)
        right = rows < len(self.values)
        found = self.values[rows[right]]
        right[right] = found == wanted[right]
        return which[right], rows[right]


@dataclass
class Index:
    """The n-grams of benchmark texts. An n-gram of several texts belongs to the first of them."""

    items: list[Item]
    counts: dict[str, int]
    # For n = 10: hashes of all 10-grams. For n = 3 .. 9: hashes of whole texts. uint64, sorted.
    grams: dict[int, Array]
    # For each n: int64 [grams, 2], the item and the place in the item.
    where: dict[int, Array]
    # Hashes of the first 3-grams of the whole texts: uint64, sorted.
    starts: Array

    def __post_init__(self):
        self._sets = {}
        for size, values in self.grams.items():
            self._sets[size] = _HashSet(values)
        self._starts = _HashSet(self.starts)

    @classmethod
    def build(cls, folder) -> "Index":
        """The index of the benchmarks in a folder (see read_benchmarks)."""
        return cls.of(*read_benchmarks(folder))

    @classmethod
    def of(
        cls,
        items: list[Item],
        counts: dict[str, int],
    ) -> "Index":
        """The index of texts.

        Adds to the counts how many texts are looked up by their 10-grams (long), how many as a
        whole (short), how many not at all (ignored), and the number of hashes (grams).
        """
        units = unit_hashes([item.text for item in items])
        long = units.counts >= GRAM
        short = (units.counts >= SHORTEST) & ~long
        grams = {}
        where = {}
        starts = [np.zeros(0, np.uint64)]
        for size in range(SHORTEST, GRAM + 1):
            chosen = long if size == GRAM else short & (units.counts == size)
            owners = np.flatnonzero(chosen)
            hashes = ngram_hashes(_select(units, owners), size)
            grams[size], first = np.unique(hashes.values, return_index=True)
            texts, places = _places(hashes, first)
            where[size] = np.stack([owners[texts], places], axis=1)
            if size < GRAM:
                beginnings = _select(units, owners, SHORTEST)
                starts.append(ngram_hashes(beginnings, SHORTEST).values)
        counts = counts | {
            "long": int(long.sum()),
            "short": int(short.sum()),
            "ignored": int((~long & ~short).sum()),
            "grams": sum(map(len, grams.values())),
        }
        starts = np.unique(np.concatenate(starts))
        return cls(items, counts, grams, where, starts)

    def save(self, path) -> None:
        texts = {"items": self.items, "counts": self.counts}
        data = json.dumps(texts).encode()
        arrays = {
            "starts": self.starts,
            "texts": np.frombuffer(data, np.uint8),
        }
        arrays |= {f"grams{size}": values for size, values in self.grams.items()}
        arrays |= {f"where{size}": values for size, values in self.where.items()}
        with atomic_write(path, "wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path) -> "Index":
        """Read what `save` wrote. Raises InputError."""
        sizes = range(SHORTEST, GRAM + 1)
        try:
            with np.load(path) as file:
                arrays = dict(file)
            texts = json.loads(arrays["texts"].tobytes())
            items = [Item(*item) for item in texts["items"]]
            grams = {size: arrays[f"grams{size}"] for size in sizes}
            where = {size: arrays[f"where{size}"] for size in sizes}
            return cls(items, texts["counts"], grams, where, arrays["starts"])
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); build the index again"
            ) from None
        except (ValueError, KeyError, TypeError, EOFError):
            raise InputError(f"{path}: not an index of benchmarks; build it again") from None

    # ---- Lookup ----

    def matches(self, texts: Sequence[str]) -> list[list[Match]]:
        """The matches of each text with the benchmarks, in order.

        Neighboring n-grams of the same item are a single match.
        """
        # Sort the hits by text, then by place, then by n.
        hits = np.concatenate(list(self._hits(texts)))
        owners, places, sizes, _ = hits.T
        order = np.lexsort((sizes, places, owners))
        hits_of: dict[int, list] = {}
        for text, *hit in hits[order].tolist():
            hits_of.setdefault(text, []).append(hit)

        result: list[list[Match]] = [[] for _ in texts]
        for text, rows in hits_of.items():
            result[text] = self._check_hits(texts[text], rows)
        return result

    def _hits(self, texts: Sequence[str]) -> Iterator[Array]:
        """Yield hits by hash: arrays [N, 4] of (text, place in the text, n, row of where[n])."""
        units = unit_hashes(texts)
        ngrams = ngram_hashes(units, GRAM)
        which, rows = self._sets[GRAM].find(ngrams.values)
        owners, places = _places(ngrams, which)
        yield _hit_rows(owners, places, GRAM, rows)

        # Whole texts: first look where a text may begin, by 3-grams; then try every length.
        ngrams = ngram_hashes(units, SHORTEST)
        which, _ = self._starts.find(ngrams.values)
        owners, places = _places(ngrams, which)
        for size in range(SHORTEST, GRAM):
            fits = places + size <= units.counts[owners]
            texts, begins = owners[fits], places[fits]
            first = units.offsets[texts] + begins
            at = first[:, None] + np.arange(size)
            values = units.values[at].ravel()
            offsets = size * np.arange(len(at) + 1)
            ngrams = ngram_hashes(Hashes(values, offsets), size)
            which, rows = self._sets[size].find(ngrams.values)
            yield _hit_rows(texts[which], begins[which], size, rows)

    def _check_hits(
        self,
        text: str,
        hits: list[list[int]],
    ) -> list[Match]:
        """The matches of a text from its hits (place, n, row), without hash collisions."""
        text = normalize(text)
        spans = [unit.span() for unit in _UNIT.finditer(text)]
        units = [text[begin:end] for begin, end in spans]
        # Runs of neighboring n-grams: (item, offset between text and item) -> [first, last] unit.
        runs: dict[tuple[int, int], list[int]] = {}
        matches = []
        for place, size, row in hits:
            item, place_in_item = self.where[size][row].tolist()
            wanted = _units(self.items[item].text)
            wanted = wanted[place_in_item : place_in_item + size]
            if units[place : place + size] != wanted:
                continue  # a hash collision
            key, last = (item, place - place_in_item), place + size - 1
            run = runs.get(key)
            if run and place <= run[1] + 1:
                run[1] = max(run[1], last)
            else:
                runs[key] = run = [place, last]
                matches.append((item, run))
        result = []
        for item, (first, last) in matches:
            benchmark, id, field, _ = self.items[item]
            begin, _ = spans[first]
            _, end = spans[last]
            piece = text[begin:end]
            result.append(Match(benchmark, id, field, piece))
        return result


def _places(ngrams: Hashes, which: Array) -> tuple[Array, Array]:
    """(the text, the place in the text) of n-grams with these indices: int64 [N] each."""
    owners = np.searchsorted(ngrams.offsets, which, side="right") - 1
    return owners, which - ngrams.offsets[owners]


def _hit_rows(
    owners: Array,
    places: Array,
    size: int,
    rows: Array,
) -> Array:
    """int64 [N, 4]"""
    sizes = np.full(len(rows), size)
    return np.stack([owners, places, sizes, rows], axis=1)


def _select(
    units: Hashes,
    texts: Array,
    first: int | None = None,
) -> Hashes:
    """The units of some of the texts; with `first`, only so many units of each."""
    counts = units.counts[texts]
    if first is not None:
        counts = np.full(len(texts), first)
    offsets = offsets_from(counts)
    shifts = units.offsets[texts] - offsets[:-1]
    at = np.arange(offsets[-1])
    at += np.repeat(shifts, counts)
    return Hashes(units.values[at], offsets)


# ---- Shards ----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _load_index(path: Path, modified: int) -> Index:
    return Index.load(path)


def decontaminate_shard(
    source,
    index_file,
    to,
    drops,
    part: str = "page",
) -> dict[str, int]:
    """Write the pages of a shard that have no match to the file `to`.

    For every other page, the file `drops` gets {line (from 1), url, page (true if all of it went),
    matches: [{benchmark, id, field, text}]}.

    If `part` is "paragraph", a page loses only the paragraphs (between blank lines) with a match.
    The whole page goes if nothing is left, or if what is left still has a match, across paragraphs.

    Returns counts: in, out, dropped pages, cut pages, and for each benchmark the pages with a
    match. Raises InputError for a line that is not a page.
    """
    if part not in PARTS:
        raise InputError(f"part {part!r}: unknown; choose one of {', '.join(PARTS)}")
    path = Path(index_file)
    modified = path.stat().st_mtime_ns if path.exists() else 0
    index = _load_index(path, modified)
    names = ("in", "out", "dropped", "cut")
    counts = Counter(dict.fromkeys(names, 0))
    dropped = []

    def left() -> Iterator[dict]:
        for batch in page_batches(source):
            texts = [page["text"] for _, page in batch]
            rows = zip(batch, index.matches(texts), strict=True)
            for (line, page), matches in rows:
                counts["in"] += 1
                text = page["text"]
                if matches:
                    text = _clean_paragraphs(index, text) if part == "paragraph" else ""
                    dropped.append(
                        {
                            "line": line,
                            "url": page.get("url", ""),
                            "page": not text,
                            "matches": [match._asdict() for match in matches],
                        }
                    )
                    benchmarks = {f"benchmark {match.benchmark}" for match in matches}
                    counts["cut" if text else "dropped"] += 1
                    counts.update(sorted(benchmarks))
                if text or not matches:
                    counts["out"] += 1
                    yield page | {"text": text}

    write_jsonl(to, left())
    write_jsonl(drops, dropped)
    return dict(counts)


def _clean_paragraphs(index: Index, text: str) -> str:
    """The paragraphs without a match, or "" if they match together."""
    paragraphs = re.split(r"\n\s*\n", text)
    clean = []
    results = index.matches(paragraphs)
    for paragraph, matches in zip(paragraphs, results, strict=True):
        if not matches:
            clean.append(paragraph)
    rest = "\n\n".join(clean).strip()
    return rest if rest and not index.matches([rest])[0] else ""
