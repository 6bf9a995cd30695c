"""Recall and rank (paper 2.1): score every page, then collect the best ones up to a token limit.

The cutoff score is exact, although no process holds all scores. It is found in two passes:

1. Each shard counts its tokens by the upper 16 bits of the score. The sum over shards shows in
which
   range the limit falls.
2. Each shard counts the tokens of that range by the lower 16 bits.
"""

import functools
import heapq
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from data.io import InputError, read_jsonl
from data.mine import classifier
from data.mine.ngrams import Array, unit_hashes
from data.mine.store import page_batches, save_array

# For each page: the margin log(p / (1 - p)), and the number of words and CJK characters.
SCORES = np.dtype([("margin", "<f4"), ("tokens", "<i8")])
BINS = 2**16
EDGES = np.arange(-10, 11)  # of the histogram of margins; the outer bins also count what is beyond
NEAREST = 3  # pages shown on each side of the cutoff


# ---- Scores ----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _load_classifier(path: Path, modified: int) -> classifier.Classifier:
    return classifier.load(path)


def score_shard(
    shard: Path,
    model_file: Path,
    target: Path,
) -> dict:
    """Score the pages of a shard. Writes SCORES [pages].

    Returns counts: pages, tokens, and the histogram of the margins [20].
    """
    model = _load_classifier(model_file, model_file.stat().st_mtime_ns)
    parts = [np.zeros(0, SCORES)]
    for batch in page_batches(shard):
        texts = [page["text"] for _, page in batch]
        part = np.zeros(len(batch), SCORES)
        part["margin"] = model.margins(texts) + np.float32(0)  # -0 becomes 0: they must share a key
        part["tokens"] = unit_hashes(texts).counts
        parts.append(part)
    scores = np.concatenate(parts)
    if not np.isfinite(scores["margin"]).all():
        raise InputError(
            f"{model_file}: the scores are not finite because the training diverged; "
            "give a lower --rate"
        )
    save_array(target, scores)
    margins = np.clip(scores["margin"], EDGES[0], EDGES[-1])
    return {
        "pages": len(scores),
        "tokens": int(scores["tokens"].sum()),
        "histogram": np.histogram(margins, EDGES)[0].tolist(),
    }


def probability(margin: float) -> float:
    """The probability p of a margin log(p / (1 - p)).

    >>> probability(0.0)
    0.5
    """
    if margin >= 0:
        return 1 / (1 + math.exp(-margin))
    odds = math.exp(margin)  # exp(-margin) could overflow
    return odds / (1 + odds)


# ---- The cutoff ------------------------------------------------------------------------------


def margin_keys(margins: Array) -> Array:
    """Map float32 margins to uint32 keys that have the same order."""
    bits = np.ascontiguousarray(margins, np.float32).view(np.uint32)
    is_negative = bits >> 31
    return np.where(is_negative, ~bits, bits | np.uint32(2**31))


def key_margin(key: int) -> float:
    """The margin that has this key: the inverse of margin_keys.

    >>> key_margin(int(margin_keys(np.array([-1.5]))[0]))
    -1.5
    """
    bits = key ^ 2**31 if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))


def tokens_by_key(
    scores_file: Path,
    upper: int | None,
    target: Path,
) -> dict:
    """Count the tokens of a shard by key. Writes int64 [2, K]: bins, and the tokens in each bin.

    A bin is the upper half of a key. With `upper`, only keys with this upper half are counted, and
    a bin is the lower half of a key.
    """
    scores = np.load(scores_file)
    keys, tokens = margin_keys(scores["margin"]), scores["tokens"]
    if upper is None:
        bins = keys >> 16
    else:
        inside = keys >> 16 == upper
        bins, tokens = keys[inside] & 0xFFFF, tokens[inside]
    used, index = np.unique(bins.astype(np.int64), return_inverse=True)
    sums = np.zeros(len(used), np.int64)
    np.add.at(sums, index, tokens)
    save_array(target, np.stack([used, sums]))
    return {"bins": len(used)}


def sum_bins(paths: Iterable[Path]) -> Array:
    """The sum of the counts that tokens_by_key wrote for several shards: int64 [BINS]."""
    total = np.zeros(BINS, np.int64)
    for path in paths:
        used, tokens = np.load(path)
        total[used] += tokens
    return total


def fill(tokens: Array, limit: int) -> tuple[int, int]:
    """Take bins from the last to the first while the total is at most `limit`.

    Returns (the first bin that does not fit, or -1 if all fit; the tokens taken).

    >>> fill(np.array([5, 1, 2]), 4)
    (0, 3)
    """
    taken = np.cumsum(tokens[::-1])
    count = int(np.searchsorted(taken, limit, side="right"))
    first = len(tokens) - 1 - count
    return first, int(taken[count - 1]) if count else 0


def cutoff(
    coarse: Array,
    fine: Callable[[int], Array],
    limit: int,
) -> float:
    """The lowest margin to collect.

    Pages with this margin or more have at most `limit` tokens; with the next lower margin they
    would have more. `coarse` [BINS] counts tokens by upper half, fine(upper) [BINS] by lower half.
    Raises InputError if the limit would collect all pages, or none.
    """
    upper, taken = fill(coarse, limit)
    if upper < 0:
        raise InputError(
            f"--keep_tokens {limit}: the pages have {taken} tokens, so all would be collected; "
            "give a smaller number"
        )
    lower, taken_inside = fill(fine(upper), limit - taken)
    if not taken + taken_inside:
        raise InputError(
            f"--keep_tokens {limit}: the best page alone has more tokens; give a larger number"
        )
    return key_margin((upper << 16) + lower + 1)


# ---- The collection --------------------------------------------------------------------------


def collect_shard(
    shard: Path,
    scores_file: Path,
    least: float,
    before: Path | None,
    target: Path,
) -> dict:
    """Collect the pages of a shard with a margin of at least `least`. Writes bool [pages].

    `before` is what the round before wrote. Returns counts: pages, collected pages, those of them
    that were collected in the round before, their tokens, and the pages nearest to the cutoff.
    """
    scores = np.load(scores_file)
    margins = scores["margin"]
    kept = margins >= np.float32(least)
    save_array(target, kept)
    again = kept & np.load(before) if before else np.zeros(0)

    # The lines nearest to the cutoff, on either side.
    lines = {}
    for name, side in (("kept", kept), ("dropped", ~kept)):
        rows = np.flatnonzero(side)
        distances = np.abs(margins[rows] - least)
        order = np.argsort(distances, kind="stable")
        nearest_rows = rows[order[:NEAREST]]
        lines[name] = set(nearest_rows.tolist())

    # Their margin, URL and beginning, for the report.
    shown: dict[str, list] = {name: [] for name in lines}
    for line, page in read_jsonl(shard):
        index = line - 1
        for name in shown:
            if index in lines[name]:
                words = " ".join(page["text"].split())
                row = [float(margins[index]), page["url"], words[:200]]
                shown[name].append(row)
    return {
        "pages": len(kept),
        "collected": int(kept.sum()),
        "again": int(again.sum()),
        "tokens": int(scores["tokens"][kept].sum()),
        "nearest": shown,
    }


def nearest(parts: Iterable[dict], least: float) -> dict[str, list]:
    """The pages nearest to the cutoff over all shards, from the counts of collect_shard."""
    result: dict[str, list] = {"kept": [], "dropped": []}

    def distance(row: list) -> tuple:
        margin, url, _ = row
        return abs(margin - least), url

    for part in parts:
        for name, rows in part["nearest"].items():
            both = result[name] + rows
            result[name] = heapq.nsmallest(NEAREST, both, key=distance)
    return result
