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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.io import InputError, write_jsonl
from data.mine.minhash import EMPTY, acceptance, band_keys, banding, signatures, similarity
from data.mine.ngrams import MULTIPLIER, Array, mix, offsets_from
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

Counts = dict[str, int]
SHIFT = np.uint64(32)
LINE = np.uint64(0xFFFFFFFF)


def page_ids(number: int, lines: Array) -> Array:
    """uint64 ids of pages in shard `number`."""
    first = np.uint64(number) << SHIFT
    return first + lines.astype(np.uint64)


def line_numbers(ids: Array) -> Array:
    """int64 lines of pages."""
    return (ids & LINE).astype(np.int64)


def shards_of(ids: Array) -> Array:
    """int64 shard numbers of pages."""
    return (ids >> SHIFT).astype(np.int64)


def pair_up(first: Array, second: Array) -> Array:
    """Rows [N, 2] of two columns [N]."""
    return np.stack([first, second], axis=1)


def _write_rows(
    path: Path,
    rows: Array,
    parts: Array,
    count: int,
) -> None:
    """Write rows [N, 2]; parts [N], each from 0 to count - 1, says for which reader a row is."""
    order = np.argsort(parts, kind="stable")
    sizes = np.bincount(parts, minlength=count)
    bounds = offsets_from(sizes)
    data = rows[order].astype(np.uint64).ravel()
    save_array(path, np.concatenate([bounds.astype(np.uint64), data]))


def _read_rows(paths: Iterable[Path], part: int, count: int) -> Array:
    """The rows [N, 2] of a part, from all files."""
    rows = [np.zeros((0, 2), np.uint64)]
    start = count + 1  # the rows follow the bounds
    for path in paths:
        data = np.load(path, mmap_mode="r")
        begin = start + 2 * int(data[part])
        end = start + 2 * int(data[part + 1])
        rows.append(np.array(data[begin:end]).reshape(-1, 2))
    return np.concatenate(rows)


def _begins(differs: Array, count: int) -> Array:
    """bool [count]: where a group begins, if differs [count - 1] compares neighbors."""
    return np.concatenate([[True], differs])[:count]


def _sorted_unique(rows: Array) -> Array:
    """Rows [N, 2] in order, each of them once."""
    first, second = rows.T
    order = np.lexsort((second, first))
    rows = rows[order]
    differs = (rows[1:] != rows[:-1]).any(1)
    begins = _begins(differs, len(rows))
    return rows[begins]


def _groups(keys: Array) -> tuple[Array, Array]:
    """For sorted keys [N]: (index of the first equal key [N], is it the first? bool [N])."""
    begins = _begins(keys[1:] != keys[:-1], len(keys))
    group = np.cumsum(begins) - 1
    return np.flatnonzero(begins)[group], begins


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

    def write_partitions(
        self,
        kind: str,
        index: int,
        rows: Array,
    ) -> None:
        """Write rows [N, 2] for the partitions. A hash of the first column assigns them."""
        count = self.settings.partitions
        keys, _ = rows.T
        parts = mix(keys * MULTIPLIER) % np.uint64(count)
        path = self.file(kind, index)
        _write_rows(path, rows, parts.astype(np.int64), count)

    def read_partition(self, kind: str, part: int) -> Array:
        """The rows [N, 2] of a partition, sorted, each of them once."""
        count = self.settings.partitions
        by_shard = kind in ("urls", "texts", "bands")
        indices = self.numbers if by_shard else range(count)
        files = [self.file(kind, index) for index in indices]
        rows = _read_rows(files, part, count)
        return _sorted_unique(rows)

    def write_drops(
        self,
        kind: str,
        part: int,
        drops: Array,
    ) -> None:
        """Write drops [N, (dropped, kept)] for the shards of the dropped pages."""
        dropped, _ = drops.T
        path = self.file(kind, part)
        positions = np.searchsorted(self.numbers, shards_of(dropped))
        _write_rows(path, drops, positions, len(self.numbers))

    def read_drops(self, kind: str, number: int) -> Array:
        """The drops [N, (dropped, kept)] of a kind in shard `number`."""
        parts = range(self.settings.partitions)
        files = [self.file(kind, part) for part in parts]
        position = self.numbers.index(number)
        return _read_rows(files, position, len(self.numbers))


# ---- Hashes and signatures -------------------------------------------------------------------


def _pages(path: Path) -> Iterator[dict]:
    for line, page in read_pages(path):
        if not isinstance(page.get("url"), str):
            raise InputError(f"{path}:{line}: not a page; a page needs 'url' and 'text'")
        yield page


def _hash(text: str) -> int:
    data = text.encode("utf-8", "replace")
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return int.from_bytes(digest, "little")


def hash_shard(plan: Plan, number: int) -> Counts:
    """Shard -> URL hashes for the partitions; text hashes and signatures of all pages."""
    settings = plan.settings
    texts: list[str] = []  # not signed yet
    hashes: list[int] = []  # of texts
    signed: list[Array] = []
    rows: list[list[int]] = []  # (hash of the URL, id)

    def sign() -> None:
        hashes.extend(map(_hash, texts))
        signed.append(
            signatures(
                texts,
                permutations=settings.permutations,
                ngram=settings.ngram,
                seed=settings.seed,
            )
        )
        texts.clear()

    size = pages = 0
    shard = plan.store / shard_name(number)
    for line, page in enumerate(_pages(shard)):
        pages += 1
        size += len(page["text"])
        texts.append(page["text"])
        if page["url"]:
            url = normalize_url(page["url"])
            rows.append([_hash(url), number << 32 | line])
        if size > 2**22:
            sign()
            size = 0
    sign()
    save_array(
        plan.file("hashes", number),
        np.array(hashes, np.uint64),
    )
    save_array(
        plan.file("signatures", number),
        np.concatenate(signed),
    )
    urls = np.array(rows, np.uint64).reshape(-1, 2)
    plan.write_partitions("urls", number, urls)
    return {
        "pages": pages,
        "without_url": pages - len(rows),
    }


# ---- Repeated URLs and texts -----------------------------------------------------------------


def drop_repeats(
    plan: Plan,
    part: int,
    keys: str,
    kind: str,
) -> Counts:
    """Partition of (hash, id) -> (dropped, kept): drop all but the first of each hash."""
    rows = plan.read_partition(keys, part)
    hashes, ids = rows.T
    first, begins = _groups(hashes)
    drops = pair_up(ids, ids[first])
    plan.write_drops(kind, part, drops[~begins])
    return {
        "in": len(rows),
        "out": int(begins.sum()),
    }


def _lines_left(
    plan: Plan,
    number: int,
    pages: int,
    kinds: Iterable[str],
) -> Array:
    """Lines int64 [N] of a shard of `pages` pages without drops of these kinds."""
    alive = np.ones(pages, bool)
    for kind in kinds:
        dropped, _ = plan.read_drops(kind, number).T
        lines = line_numbers(dropped)
        alive[lines] = False
    return np.flatnonzero(alive)


def text_keys(plan: Plan, number: int) -> Counts:
    """Shard -> (text hash, id) of the pages that the drops by URL have left."""
    hashes = np.load(plan.file("hashes", number))
    lines = _lines_left(plan, number, len(hashes), ["url"])
    rows = pair_up(hashes[lines], page_ids(number, lines))
    plan.write_partitions("texts", number, rows)
    return {
        "in": len(hashes),
        "out": len(rows),
    }


# ---- Near pairs ------------------------------------------------------------------------------


def shard_band_keys(plan: Plan, number: int) -> Counts:
    """Shard -> (band key, id) of the pages that the drops by URL and text have left.

    Pages without words have no keys.
    """
    settings = plan.settings
    signed = np.load(plan.file("signatures", number))
    lines = _lines_left(plan, number, len(signed), ["url", "exact"])
    has_words = (signed[lines] != EMPTY).any(1)
    lines = lines[has_words]

    bands, rows = banding(settings.threshold, settings.permutations)
    keys = band_keys(signed[lines], bands, rows)
    ids = np.repeat(page_ids(number, lines), bands)
    plan.write_partitions("bands", number, pair_up(keys.ravel(), ids))
    return {
        "in": len(signed),
        "out": len(lines),
    }


def _read_signatures(plan: Plan, ids: Array) -> Array:
    """The signatures of pages [N, permutations]; only these rows are read."""
    shape = (len(ids), plan.settings.permutations)
    result = np.empty(shape, np.uint32)
    shards = shards_of(ids)
    lines = line_numbers(ids)
    for number in np.unique(shards).tolist():
        here = shards == number
        path = plan.file("signatures", number)
        signed = np.load(path, mmap_mode="r")
        result[here] = signed[lines[here]]
    return result


def near_pairs(plan: Plan, part: int, window: int = 4) -> Counts:
    """Partition of (band key, id) -> edges between near pages, in both directions.

    A page is compared only with the first page of the same key and with the `window` pages before
    it. So a key that very many pages share (a template, a license) costs no more than these pages.
    A missed edge inside a cluster hardly ever breaks the cluster. The comparison uses the
    signatures.
    """
    rows = plan.read_partition("bands", part)
    keys, ids = rows.T
    first, begins = _groups(keys)

    # Candidates: (page, page before it with the same key).
    index = np.arange(len(rows))
    pairs = [np.zeros((0, 2), np.uint64)]
    others = [first]
    others += [index - back for back in range(1, window + 1)]
    for other in others:
        inside = (other >= first) & (other < index)
        pairs.append(pair_up(ids[inside], ids[other[inside]]))
    pairs = _sorted_unique(np.concatenate(pairs))

    # Near pairs, by the estimate from the signatures.
    settings = plan.settings
    least = acceptance(settings.threshold, settings.permutations)
    near = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), 2**16):
        stop = start + 2**16
        a, b = pairs[start:stop].T
        estimate = similarity(
            _read_signatures(plan, a),
            _read_signatures(plan, b),
        )
        near[start:stop] = estimate >= least
    plan.write_partitions("edges0", part, _both_directions(pairs[near]))
    return {
        "keys": int(begins.sum()),
        "candidates": len(pairs),
        "near": int(near.sum()),
    }


def _both_directions(edges: Array) -> Array:
    return np.concatenate([edges, edges[:, ::-1]])


# ---- Connected components --------------------------------------------------------------------


def large_star(plan: Plan, part: int, turn: int) -> Counts:
    """Partition of edges (u, v), both directions -> edges (larger, smaller).

    Joins each neighbor of u that is larger than u to the least of u and all neighbors. `edges` and
    `checksum` describe the graph that came in. It does not change any more when every component is
    a star around the least page.
    """
    edges = plan.read_partition(f"edges{turn}", part)
    u, v = edges.T
    first, _ = _groups(u)
    least = np.minimum(u, v[first])
    rows = pair_up(v, least)
    plan.write_partitions(f"large{turn}", part, rows[v > u])
    checksum = mix(u * MULTIPLIER + v).sum(dtype=np.uint64)
    return {
        "edges": len(edges),
        "checksum": int(checksum),
    }


def small_star(plan: Plan, part: int, turn: int) -> Counts:
    """Partition of edges (larger, smaller) -> edges in both directions.

    Joins u and all neighbors smaller than u to the least of them.
    """
    edges = plan.read_partition(f"large{turn}", part)
    u, v = edges.T
    first, begins = _groups(u)
    to_least = pair_up(v, v[first])
    rows = np.concatenate([edges[begins], to_least[~begins]])
    plan.write_partitions(f"edges{turn + 1}", part, _both_directions(rows))
    return {}


def drop_near(plan: Plan, part: int, turn: int) -> Counts:
    """Partition of edges that form stars -> (dropped, kept)."""
    edges = plan.read_partition(f"edges{turn}", part)
    u, v = edges.T
    drops = edges[u > v]
    plan.write_drops("near", part, drops)
    return {"dropped": len(drops)}


# ---- The result ------------------------------------------------------------------------------


def clean_shard(plan: Plan, number: int) -> Counts:
    """Shard -> to/part-N.jsonl with the pages that are left, and to/drops/part-N.jsonl.

    A row of the drops is {line, url, reason: url|exact|near, kept: [shard number, line]}. Lines
    count from 1. The page that was kept for the same URL may itself have been dropped later, by
    text.
    """
    reasons = {}  # line from 0 -> (reason, the page that is kept)
    for reason in ("url", "exact", "near"):
        dropped, kept = plan.read_drops(reason, number).T
        lines = line_numbers(dropped).tolist()
        pages = pair_up(shards_of(kept), line_numbers(kept) + 1).tolist()
        for line, page in zip(lines, pages, strict=True):
            reasons[line] = reason, page
    name = shard_name(number)
    pages, rows = 0, []

    def left() -> Iterator[dict]:
        nonlocal pages
        for line, page in enumerate(_pages(plan.store / name)):
            pages += 1
            if line not in reasons:
                yield page
                continue
            reason, kept = reasons[line]
            rows.append(
                {
                    "line": line + 1,
                    "url": page["url"],
                    "reason": reason,
                    "kept": kept,
                }
            )

    count = write_jsonl(plan.to / name, left())
    write_jsonl(plan.to / "drops" / name, rows)
    return {
        "in": pages,
        "out": count,
        **Counter(row["reason"] for row in rows),
    }


# ---- The whole -------------------------------------------------------------------------------


def make_plan(
    store: Path,
    to: Path,
    work: Path,
    settings: Settings,
) -> Plan:
    """The plan of a run. Raises InputError for an empty store, and if `work` is of another run."""
    numbers = shard_numbers(store)
    if not numbers:
        raise InputError(f"{store}: no shards part-00000.jsonl, ...; give a folder of pages")
    shards = []
    for number in numbers:
        path = store / shard_name(number)
        shards.append([number, path.stat().st_size])
    setup = {"settings": asdict(settings), "shards": shards, "to": str(to)}
    marker = work / "setup.json"
    if run_once(marker, lambda: setup) != setup:
        raise InputError(
            f"{marker}: from a run with other settings or shards; "
            "give another folder or remove this one"
        )
    return Plan(store, to, work, settings, tuple(numbers))


def deduplicate(
    store,
    to,
    work,
    settings: Settings | None = None,
    map: Callable = map,
) -> dict[str, Counts]:
    """Clean the store of pages in the folder `store`; write the clean store to the folder `to`.

    `work` holds intermediate files and the markers of finished steps; a run that was killed
    continues from them. `map` runs the steps: the built-in one, or that of an executor. The result
    depends neither on `map` nor on the number of partitions.

    Returns the counts of each step, summed over shards or partitions; "clean" has in, out, url,
    exact and near. Raises InputError for a store without pages, and if `work` is of another run.
    """
    settings = settings or Settings()
    plan = make_plan(Path(store), Path(to), Path(work), settings)
    report: dict[str, Counts] = {}

    def step(name: str, function: Callable, indices: Iterable[int], *arguments) -> Counts:
        tasks = []
        for index in indices:
            marker = plan.work / "done" / f"{name}-{index:05d}.json"
            tasks.append((marker, function, plan, index, *arguments))
        counts: Counter = Counter()
        for row in map(run_task, tasks):
            counts.update(row)
        return dict(counts)

    # Hashes and signatures
    shards = plan.numbers
    parts = range(settings.partitions)
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
    while True:
        graph = step(f"large{turn}", large_star, parts, turn)
        if graph == before:
            break
        step(f"small{turn}", small_star, parts, turn)
        turn, before = turn + 1, graph
    report["components"] = {"turns": turn, "edges": graph["edges"] // 2}
    report["near"] = step("near", drop_near, parts, turn)

    # Pages that are left
    report["clean"] = {"url": 0, "exact": 0, "near": 0}
    report["clean"] |= step("clean", clean_shard, shards)
    return report
