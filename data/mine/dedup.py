"""Deduplication of a store of pages (paper 2.1): by URL, by exact text, then near-duplicates.

Each of the three works on the pages that the one before has left. Of pages that count as the same,
the first one stays: the order is (shard number, line). Near-duplicates are pages whose sets of word
5-grams have a Jaccard similarity of at least the threshold. MinHash and LSH find them (minhash.py).
A page near to a page near to a third belongs to the same cluster, so the clusters are the connected
components of the near pairs.

Every step is a function of one shard, or of one partition by hash. It writes a file and needs
memory only for its shard or partition. This is also true for the connected components, which a
single process could not hold for a large crawl: they come from the large-star and small-star steps
of Kiveris et al. 2014 (Connected Components in MapReduce and Beyond).

    shards -> URL hashes -> drops -> text hashes -> drops -> band keys -> near pairs -> stars
           -> drops -> clean shards

Two URLs or texts count as equal if their 64-bit hashes are equal. Among n pages, about n^2 / 2^65
pairs are merged wrongly: 0.0003 for 100 million pages, 43 for the 40 billion pages of the paper.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.io import InputError, write_jsonl
from data.mine.minhash import EMPTY, acceptance, band_keys, banding, signatures, similarity
from data.mine.ngrams import MULTIPLIER, mix
from data.mine.store import read_pages, run_once, run_task, save_array, shard_name, shard_numbers
from data.mine.urls import normalize_url


@dataclass(frozen=True)
class Settings:
    permutations: int = 128  # length of a signature
    ngram: int = 5  # words in an n-gram
    threshold: float = 0.8  # Jaccard similarity from which pages are near-duplicates
    partitions: int = (
        8  # parts of every reduce; more parts need less memory, the result is the same
    )
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.threshold <= 1:
            raise InputError(f"threshold {self.threshold}: must be above 0 and at most 1")
        for name, least in {"permutations": 8, "ngram": 1, "partitions": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)}: must be {least} or more")


# ---- Files of rows ---------------------------------------------------------------------------
# A row is a pair of uint64. A file of rows has a part for each of its readers. It starts with the
# bounds of the parts, so that a reader maps only its part. The id of a page is
# shard number << 32 | line from 0.

SHIFT, LINE = np.uint64(32), np.uint64(0xFFFFFFFF)


def page_ids(number: int, lines: np.ndarray) -> np.ndarray:
    """uint64 ids of pages in shard `number`."""
    return lines.astype(np.uint64) + (np.uint64(number) << SHIFT)


def _write_rows(path: Path, rows: np.ndarray, parts: np.ndarray, count: int) -> None:
    """Write rows [N, 2]; parts [N], each from 0 to count - 1, says for which reader a row is."""
    rows = rows[np.argsort(parts, kind="stable")]
    sizes = np.bincount(parts.astype(np.int64), minlength=count)
    bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint64)
    save_array(path, np.concatenate([bounds, rows.astype(np.uint64).ravel()]))


def _write_by_key(plan: "Plan", path: Path, rows: np.ndarray) -> None:
    """Write rows [N, 2] for the partitions; a hash of the first column assigns them."""
    count = plan.settings.partitions
    _write_rows(path, rows, mix(rows[:, 0] * MULTIPLIER) % np.uint64(count), count)


def _read_rows(paths: Iterable[Path], part: int, count: int) -> np.ndarray:
    """The rows [N, 2] of a part, from all files."""
    rows = [np.zeros((0, 2), np.uint64)]
    for path in paths:
        data = np.load(path, mmap_mode="r")
        begin, end = (count + 1 + 2 * int(bound) for bound in data[part : part + 2])
        rows.append(np.array(data[begin:end]).reshape(-1, 2))
    return np.concatenate(rows)


def _sorted_unique(rows: np.ndarray) -> np.ndarray:
    """Rows [N, 2] in order, each of them once."""
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    changed = (rows[1:] != rows[:-1]).any(1)
    return rows[np.concatenate([[True], changed])[: len(rows)]]


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For sorted keys [N]: (index of the first equal key [N], is it the first? bool [N])."""
    begins = np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)]
    return np.flatnonzero(begins)[np.cumsum(begins) - 1], begins


@dataclass(frozen=True)
class Plan:
    """What every step needs: the settings, the numbers of the shards, and where files are."""

    store: Path
    to: Path
    work: Path
    settings: Settings
    numbers: tuple[int, ...]  # of the shards

    def file(self, kind: str, index: int) -> Path:
        return self.work / kind / f"{index:05d}.npy"

    def read_partition(self, kind: str, part: int) -> np.ndarray:
        """The rows [N, 2] of a partition, sorted, each of them once."""
        by_shard = kind in ("urls", "texts", "bands")
        count = self.settings.partitions
        indices = self.numbers if by_shard else range(count)
        return _sorted_unique(_read_rows([self.file(kind, i) for i in indices], part, count))

    def write_drops(self, kind: str, part: int, drops: np.ndarray) -> None:
        """Write drops [N, (dropped, kept)] for the shards of the dropped pages."""
        shards = (drops[:, 0] >> SHIFT).astype(np.int64)
        positions = np.searchsorted(np.array(self.numbers), shards)
        _write_rows(self.file(kind, part), drops, positions, len(self.numbers))

    def read_drops(self, kind: str, number: int) -> np.ndarray:
        """The drops [N, (dropped, kept)] of a kind in shard `number`."""
        files = [self.file(kind, part) for part in range(self.settings.partitions)]
        return _read_rows(files, self.numbers.index(number), len(self.numbers))


# ---- Steps -----------------------------------------------------------------------------------


def _pages(path: Path) -> Iterator[dict]:
    for line, page in read_pages(path):
        if not isinstance(page.get("url"), str):
            raise InputError(f"{path}:{line}: not a page; a page needs 'url' and 'text'")
        yield page


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def hash_shard(plan: Plan, number: int) -> dict[str, int]:
    """Shard -> URL hashes for the partitions; text hashes and signatures of all pages."""
    settings = plan.settings
    texts: list[str] = []  # not signed yet
    rows, hashes, signed = [], [], []

    def sign() -> None:
        hashes.extend(map(_hash, texts))
        signed.append(signatures(texts, settings.permutations, settings.ngram, settings.seed))
        texts.clear()

    size = pages = 0
    for line, page in enumerate(_pages(plan.store / shard_name(number))):
        pages += 1
        texts.append(page["text"])
        size += len(page["text"])
        if page["url"]:
            rows.append([_hash(normalize_url(page["url"])), number << 32 | line])
        if size > 2**22:
            sign()
            size = 0
    sign()
    save_array(plan.file("hashes", number), np.array(hashes, np.uint64))
    save_array(plan.file("signatures", number), np.concatenate(signed))
    _write_by_key(plan, plan.file("urls", number), np.array(rows, np.uint64).reshape(-1, 2))
    return {"pages": pages, "without_url": pages - len(rows)}


def drop_repeats(plan: Plan, part: int, keys: str, kind: str) -> dict[str, int]:
    """Partition of (hash, id) -> (dropped, kept): drop all but the first of each hash."""
    rows = plan.read_partition(keys, part)
    first, begins = _groups(rows[:, 0])
    drops = np.stack([rows[:, 1], rows[first, 1]], axis=1)[~begins]
    plan.write_drops(kind, part, drops)
    return {"in": len(rows), "out": int(begins.sum())}


def _lines_left(plan: Plan, number: int, pages: int, kinds: Iterable[str]) -> np.ndarray:
    """Lines int64 [N] of a shard of `pages` pages without drops of these kinds."""
    alive = np.ones(pages, bool)
    for kind in kinds:
        dropped = plan.read_drops(kind, number)[:, 0] & LINE
        alive[dropped.astype(np.int64)] = False
    return np.flatnonzero(alive)


def text_keys(plan: Plan, number: int) -> dict[str, int]:
    """Shard -> (text hash, id) of the pages that the drops by URL have left."""
    hashes = np.load(plan.file("hashes", number))
    lines = _lines_left(plan, number, len(hashes), ["url"])
    rows = np.stack([hashes[lines], page_ids(number, lines)], axis=1)
    _write_by_key(plan, plan.file("texts", number), rows)
    return {"in": len(hashes), "out": len(rows)}


def shard_band_keys(plan: Plan, number: int) -> dict[str, int]:
    """Shard -> (band key, id) of the pages that the drops by URL and text have left.

    Pages without words have no keys.
    """
    settings = plan.settings
    signed = np.load(plan.file("signatures", number))
    lines = _lines_left(plan, number, len(signed), ["url", "exact"])
    lines = lines[(signed[lines] != EMPTY).any(1)]
    keys = band_keys(signed[lines], *banding(settings.threshold, settings.permutations))
    ids = np.repeat(page_ids(number, lines), keys.shape[1])
    _write_by_key(plan, plan.file("bands", number), np.stack([keys.ravel(), ids], axis=1))
    return {"in": len(signed), "out": len(lines)}


def _read_signatures(plan: Plan, ids: np.ndarray) -> np.ndarray:
    """The signatures of pages [N, permutations]; only these rows are read."""
    result = np.empty((len(ids), plan.settings.permutations), np.uint32)
    shards, lines = ids >> SHIFT, (ids & LINE).astype(np.int64)
    for shard in np.unique(shards):
        here = shards == shard
        signed = np.load(plan.file("signatures", int(shard)), mmap_mode="r")
        result[here] = signed[lines[here]]
    return result


def near_pairs(plan: Plan, part: int, window: int = 4) -> dict[str, int]:
    """Partition of (band key, id) -> edges between near pages, in both directions.

    A page is compared only with the first page of the same key and with the `window` pages before
    it. So a key that very many pages share (a template, a license) costs no more than these pages.
    A missed edge inside a cluster hardly ever breaks the cluster. The comparison uses the
    signatures.
    """
    settings = plan.settings
    rows = plan.read_partition("bands", part)
    first, begins = _groups(rows[:, 0])
    ids, index = rows[:, 1], np.arange(len(rows))

    # Candidates: (page, page before it with the same key).
    pairs = [np.zeros((0, 2), np.uint64)]
    for other in (first, *(index - back for back in range(1, window + 1))):
        inside = np.flatnonzero((other >= first) & (other < index))
        pairs.append(np.stack([ids[inside], ids[other[inside]]], axis=1))
    pairs = _sorted_unique(np.concatenate(pairs))

    # Near pairs, by the estimate from the signatures.
    least = acceptance(settings.threshold, settings.permutations)
    near = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), 2**16):
        these = slice(start, start + 2**16)
        a = _read_signatures(plan, pairs[these, 0])
        b = _read_signatures(plan, pairs[these, 1])
        near[these] = similarity(a, b) >= least
    edges = np.concatenate([pairs[near], pairs[near][:, ::-1]])
    _write_by_key(plan, plan.file("edges0", part), edges)
    return {"keys": int(begins.sum()), "candidates": len(pairs), "near": int(near.sum())}


def large_star(plan: Plan, part: int, turn: int) -> dict[str, int]:
    """Partition of edges (u, v), both directions -> edges (larger, smaller).

    Joins each neighbor of u that is larger than u to the least of u and all neighbors. `edges` and
    `checksum` describe the graph that came in. It does not change any more when every component is
    a star around the least page.
    """
    edges = plan.read_partition(f"edges{turn}", part)
    first, _ = _groups(edges[:, 0])
    u, v = edges[:, 0], edges[:, 1]
    least = np.minimum(u, edges[first, 1])
    rows = np.stack([v, least], axis=1)[v > u]
    _write_by_key(plan, plan.file(f"large{turn}", part), rows)
    checksum = mix(u * MULTIPLIER + v).sum(dtype=np.uint64)
    return {"edges": len(edges), "checksum": int(checksum)}


def small_star(plan: Plan, part: int, turn: int) -> dict[str, int]:
    """Partition of edges (larger, smaller) -> edges in both directions.

    Joins u and all neighbors smaller than u to the least of them.
    """
    edges = plan.read_partition(f"large{turn}", part)
    first, begins = _groups(edges[:, 0])
    to_least = np.stack([edges[:, 1], edges[first, 1]], axis=1)
    rows = np.concatenate([edges[begins], to_least[~begins]])
    both = np.concatenate([rows, rows[:, ::-1]])
    _write_by_key(plan, plan.file(f"edges{turn + 1}", part), both)
    return {}


def drop_near(plan: Plan, part: int, turn: int) -> dict[str, int]:
    """Partition of edges that form stars -> (dropped, kept)."""
    edges = plan.read_partition(f"edges{turn}", part)
    drops = edges[edges[:, 0] > edges[:, 1]]
    plan.write_drops("near", part, drops)
    return {"dropped": len(drops)}


def clean_shard(plan: Plan, number: int) -> dict[str, int]:
    """Shard -> to/part-N.jsonl with the pages that are left, and to/drops/part-N.jsonl.

    A row of the drops is {line, url, reason: url|exact|near, kept: [shard number, line]}. Lines
    count from 1. The page that was kept for the same URL may itself have been dropped later, by
    text.
    """
    reasons = {}
    for reason in ("url", "exact", "near"):
        for dropped, kept in plan.read_drops(reason, number).tolist():
            reasons[dropped & 0xFFFFFFFF] = reason, [kept >> 32, (kept & 0xFFFFFFFF) + 1]
    pages, drops = 0, []

    def left() -> Iterator[dict]:
        nonlocal pages
        for line, page in enumerate(_pages(plan.store / shard_name(number))):
            pages += 1
            if line not in reasons:
                yield page
                continue
            reason, kept = reasons[line]
            drops.append({"line": line + 1, "url": page["url"], "reason": reason, "kept": kept})

    count = write_jsonl(plan.to / shard_name(number), left())
    write_jsonl(plan.to / "drops" / shard_name(number), drops)
    return {"in": pages, "out": count, **Counter(drop["reason"] for drop in drops)}


# ---- The whole -------------------------------------------------------------------------------


def make_plan(store: Path, to: Path, work: Path, settings: Settings) -> Plan:
    """The plan of a run. Raises InputError for an empty store, and if `work` is of another run."""
    numbers = shard_numbers(store)
    if not numbers:
        raise InputError(f"{store}: no shards part-00000.jsonl, ...; give a folder of pages")
    sizes = [[number, (store / shard_name(number)).stat().st_size] for number in numbers]
    setup = json.loads(json.dumps({"settings": asdict(settings), "shards": sizes, "to": str(to)}))
    if run_once(work / "setup.json", lambda: setup) != setup:
        raise InputError(
            f"{work / 'setup.json'}: from a run with other settings or shards; "
            "give another folder or remove this one"
        )
    return Plan(store, to, work, settings, tuple(numbers))


def deduplicate(
    store, to, work, settings: Settings | None = None, map: Callable = map
) -> dict[str, dict[str, int]]:
    """Clean the store of pages in the folder `store`; write the clean store to the folder `to`.

    `work` holds intermediate files and the markers of finished steps; a run that was killed
    continues from them. `map` runs the steps: the built-in one, or that of an executor. The result
    depends neither on `map` nor on the number of partitions.

    Returns the counts of each step, summed over shards or partitions; "clean" has in, out, url,
    exact and near. Raises InputError for a store without pages, and if `work` is of another run.
    """
    store, work, settings = Path(store), Path(work), settings or Settings()
    plan = make_plan(store, Path(to), work, settings)
    report: dict[str, dict[str, int]] = {}

    def step(name: str, function: Callable, indices: Iterable[int], *arguments) -> dict[str, int]:
        tasks = []
        for i in indices:
            tasks.append((work / "done" / f"{name}-{i:05d}.json", function, plan, i, *arguments))
        counts: Counter = Counter()
        for row in map(run_task, tasks):
            counts.update(row)
        return dict(counts)

    # Hashes and signatures
    shards, parts = plan.numbers, range(settings.partitions)
    report["hash"] = step("hash", hash_shard, shards)
    if not report["hash"]["pages"]:
        raise InputError(f"{store}: no page in its {len(shards)} shards; give a folder of pages")

    # Repeated URLs and texts
    report["url"] = step("url", drop_repeats, parts, "urls", "url")
    report["texts"] = step("texts", text_keys, shards)
    report["exact"] = step("exact", drop_repeats, parts, "texts", "exact")

    # Near pairs, and the components of their graph
    report["bands"] = step("bands", shard_band_keys, shards)
    report["pairs"] = step("pairs", near_pairs, parts)
    turn, before = 0, None
    while (graph := step(f"large{turn}", large_star, parts, turn)) != before:
        step(f"small{turn}", small_star, parts, turn)
        turn, before = turn + 1, graph
    report["components"] = {"turns": turn, "edges": graph["edges"] // 2}
    report["near"] = step("near", drop_near, parts, turn)

    # Pages that are left
    report["clean"] = {"url": 0, "exact": 0, "near": 0, **step("clean", clean_shard, shards)}
    return report
