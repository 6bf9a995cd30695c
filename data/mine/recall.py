"""Recall and rank (paper 2.1): every page gets a score, and the best are collected, up to a number of tokens.

The score at which to cut is found exactly and without holding the scores: each shard counts its tokens by the upper 16
bits of the score, the counts are summed, then each counts those of the one range in which the limit falls by the lower
16 bits.
"""

import functools
import heapq
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data.io import InputError, atomic_write, read_jsonl
from data.mine import classifier
from data.mine.ngrams import unit_hashes

# Of a page: log(p / (1 - p)), and its words and CJK characters.
SCORES = np.dtype([("margin", "<f4"), ("tokens", "<i8")])
BINS = 2**16
EDGES = np.arange(-10, 11)  # of the histogram of margins; pages beyond them count in the outer bins
NEAREST = 3  # pages shown on either side of the cut


def batches(path: Path, characters: int = 2**22) -> Iterator[list[dict]]:
    """The pages of a shard, so many characters of text at a time."""
    pages, size = [], 0
    for _, page in read_jsonl(path):
        pages.append(page)
        size += len(page["text"])
        if size >= characters:
            yield pages
            pages, size = [], 0
    if pages:
        yield pages


@functools.lru_cache(maxsize=1)
def _classifier(path: Path, changed: int) -> classifier.Classifier:
    return classifier.load(path)


def score_shard(shard: Path, model: Path, target: Path) -> dict:
    """A shard of pages -> SCORES [pages]. Counts: pages, tokens, and the histogram of margins [20]."""
    known = _classifier(model, model.stat().st_mtime_ns)
    parts = [np.zeros(0, SCORES)]
    for pages in batches(shard):
        texts = [page["text"] for page in pages]
        part = np.zeros(len(pages), SCORES)
        part["margin"] = known.margins(texts) + np.float32(0)  # no -0, which is another key than 0
        part["tokens"] = unit_hashes(texts).counts
        parts.append(part)
    found = np.concatenate(parts)
    if not np.isfinite(found["margin"]).all():
        raise InputError(
            f"{model}: its scores are not finite: the training diverged; give a lower --rate"
        )
    save(target, found)
    histogram = np.histogram(np.clip(found["margin"], EDGES[0], EDGES[-1]), EDGES)[0]
    return {
        "pages": len(found),
        "tokens": int(found["tokens"].sum()),
        "histogram": histogram.tolist(),
    }


def save(target: Path, values: np.ndarray) -> None:
    with atomic_write(target, "wb") as file:
        np.save(file, values)


# ---- The cut ---------------------------------------------------------------------------------------------------------


def keys(margins: np.ndarray) -> np.ndarray:
    """uint32 in the same order as the float32 margins."""
    bits = np.ascontiguousarray(margins, np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(2**31))


def margin(key: int) -> float:
    """The margin with this key."""
    bits = key ^ 2**31 if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))


def tokens_by_key(scores: Path, upper: int | None, target: Path) -> dict:
    """Scores -> int64 [2, K]: bins and their tokens. The bins are the upper halves of the keys or, with `upper`, the
    lower halves of the keys that have it as their upper half."""
    found = np.load(scores)
    key = keys(found["margin"])
    chosen = np.ones(len(key), bool) if upper is None else key >> 16 == upper
    bins = (key[chosen] >> 16 if upper is None else key[chosen] & 0xFFFF).astype(np.int64)
    used, index = np.unique(bins, return_inverse=True)
    tokens = np.zeros(len(used), np.int64)
    np.add.at(tokens, index, found["tokens"][chosen])
    save(target, np.stack([used, tokens]))
    return {"bins": len(used)}


def sum_bins(paths: Iterable[Path]) -> np.ndarray:
    """int64 [BINS]: the sum of what tokens_by_key wrote."""
    total = np.zeros(BINS, np.int64)
    for path in paths:
        used, tokens = np.load(path)
        total[used] += tokens
    return total


def fill(tokens: np.ndarray, limit: int) -> tuple[int, int]:
    """Taking bins from the last one down while all that was taken is at most `limit`: (the first bin that does not fit
    or -1, the tokens taken)."""
    taken = np.cumsum(tokens[::-1])
    count = int(np.searchsorted(taken, limit, side="right"))
    return len(tokens) - 1 - count, int(taken[count - 1]) if count else 0


def cutoff(coarse: np.ndarray, fine, limit: int) -> float:
    """The least margin of the pages to collect: those with it and above have at most `limit` tokens, and would have
    more with the next one. `coarse` is the sum of tokens_by_key, `fine(upper)` that of one range. Raises InputError
    where all pages would be collected, or none."""
    upper, taken = fill(coarse, limit)
    if upper < 0:
        raise InputError(
            f"--keep_tokens {limit}: the pages have {taken} tokens, so all would be collected; give less"
        )
    lower, within = fill(fine(upper), limit - taken)
    if not taken + within:
        raise InputError(f"--keep_tokens {limit}: the best page alone has more tokens; give more")
    return margin((upper << 16) + lower + 1)


def collect_shard(
    shard: Path, scores: Path, least: float, before: Path | None, target: Path
) -> dict:
    """A shard -> bool [pages]: those with a margin of at least `least`. Counts: pages, collected, those of them that
    were collected in the round before, tokens, and the pages nearest to the cut on either side."""
    found = np.load(scores)
    kept = found["margin"] >= np.float32(least)
    save(target, kept)
    nearest = {}
    for name, side in (("kept", kept), ("dropped", ~kept)):
        rows = np.flatnonzero(side)
        nearest[name] = set(
            rows[
                np.argsort(np.abs(found["margin"][rows] - least), kind="stable")[:NEAREST]
            ].tolist()
        )
    shown = {name: [] for name in nearest}
    for line, page in read_jsonl(shard):
        for name in shown:
            if line - 1 in nearest[name]:
                value, start = (
                    float(found["margin"][line - 1]),
                    " ".join(page["text"].split())[:200],
                )
                shown[name].append([value, page["url"], start])
    again = int((kept & np.load(before)).sum()) if before else 0
    return {
        "pages": len(kept),
        "collected": int(kept.sum()),
        "again": again,
        "tokens": int(found["tokens"][kept].sum()),
        "nearest": shown,
    }


def nearest(parts: Iterable[dict], least: float) -> dict[str, list]:
    """The pages nearest to the cut, of several shards' counts."""
    found: dict[str, list] = {"kept": [], "dropped": []}
    for part in parts:
        for name, rows in part["nearest"].items():
            found[name] = heapq.nsmallest(
                NEAREST, found[name] + rows, key=lambda row: (abs(row[0] - least), row[1])
            )
    return found


def probability(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
