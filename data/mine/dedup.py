"""Deduplication of a store of pages (paper 2.1): by URL, by exact text, then near-duplicates by MinHash and LSH.

The three follow one another, each on the pages that the one before has left, and each keeps the first page by id
(shard number, line) of those it takes for the same. Near-duplicates are pages whose sets of word 5-grams have a
Jaccard similarity |A & B| / |A | B| of at least the threshold; what is near to something near belongs with it, so
clusters are the connected components of the near pairs.

Every step is a function of one shard, or of one partition by hash, that writes a file and holds no more than that in
memory; `deduplicate` gives them in order to any `map`, such as an executor's. That goes for the union of the near
pairs too, which one process could not hold for a large crawl: it is found by the large-star and small-star steps of
Kiveris et al. 2014 (Connected Components in MapReduce and Beyond).

    shards -> URL hashes -> drops -> text hashes -> drops -> band keys -> near pairs -> stars -> drops -> clean shards

Pages are told apart by 64-bit hashes of URL and text, which merge about n^2 / 2^65 pairs of n pages wrongly: 0.0003
at 100 million pages, 43 at the 40 billion of the paper.
"""

import functools
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np

from data.io import InputError, atomic_write, read_jsonl, write_jsonl
from data.mine.ngrams import Hashes, mix, ngram_hashes, unit_hashes

_M = np.uint64(0x9E3779B97F4A7C15)
_NONE = np.uint32(0xFFFFFFFF)  # a bin that no n-gram fell into; all bins of a text without units


@dataclass(frozen=True)
class Settings:
    permutations: int = 128  # length of a signature
    ngram: int = 5  # words to an n-gram
    threshold: float = 0.8  # Jaccard similarity from which pages are near-duplicates
    partitions: int = (
        8  # parts of every reduce: more parts need less memory each, the result stays the same
    )
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.threshold <= 1:
            raise InputError(f"threshold {self.threshold}: must be above 0 and at most 1")
        for name, least in {"permutations": 8, "ngram": 1, "partitions": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)}: must be {least} or more")


# ---- URLs ------------------------------------------------------------------------------------------------------------

_TRACKING = re.compile(
    r"(?:utm_\w*|fbclid|gclid|gclsrc|dclid|wbraid|gbraid|msclkid|yclid|ttclid|twclid|igshid|mc_cid|mc_eid|mkt_tok|_ga"
    r"|_gl|_hsenc|_hsmi|spm|ref_src|sessionid|session_id|sessid|phpsessid|jsessionid|asp\.net_sessionid|cfid|cftoken"
    r")(?:=.*)?|sid=[0-9a-f]{32}",
    re.IGNORECASE,
)
_SESSION = re.compile(
    r";(?:jsessionid|phpsessid|sessionid|sid)=[^/;]*", re.IGNORECASE
)  # within a path
_INDEX = re.compile(r"/(?:index|default)\.(?:html?|php|aspx?|jsp)$", re.IGNORECASE)


def _percent(text: str, safe: str = "") -> str:
    """One spelling of percent-encoding: unreserved characters plain, others as they are or, if they need it, as %XX."""

    def plain(match):
        character = chr(int(match[1], 16))
        return (
            character
            if character.isascii() and (character.isalnum() or character in "-._~")
            else match[0].upper()
        )

    text = re.sub("%(?![0-9A-Fa-f]{2})", "%25", text)
    return quote(
        re.sub("%([0-9A-Fa-f]{2})", plain, text), safe="%!$&'()*+,;=:@/[]" + safe, errors="replace"
    )


def _path(path: str) -> str:
    """Without dot segments, session, index page and slash at the end; begins with a slash or is empty."""
    parts: list[str] = []
    for part in _SESSION.sub("", _percent(path)).split("/")[1:]:
        if part == "..":
            del parts[-1:]
        elif part != ".":
            parts.append(part)
    path = "".join("/" + part for part in parts)
    while (shorter := _INDEX.sub("", path.rstrip("/"))) != path:
        path = shorter
    return path


def normalize_url(url: str) -> str:
    """The URL that all spellings of a page's address have in common; idempotent.

    Lower-case scheme and host; http for https; no "www.", user, default port, fragment, trailing slash, index page,
    dot segment; no parameters that track visitors or name sessions, the others sorted; one spelling of
    percent-encoding. An address without a scheme counts as http; other schemes than http(s) are left as they are but
    for the fragment, and so is what cannot be parsed.

    >>> normalize_url("HTTPS://www.Example.com:443/a/%7Eb/index.html?utm_source=x&z=1&y=2#top")
    'http://example.com/a/~b?y=2&z=1'
    """
    url = "".join(url.split())
    if url.startswith("//"):
        url = "http:" + url
    elif not re.match(
        r"[A-Za-z][A-Za-z0-9+.-]*:(?!\d)", url
    ):  # "host:80/" has a port, not a scheme
        url = "http://" + url
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            return url.partition("#")[0]
        labels, port = re.split(r"[.\u3002\uff0e\uff61]+", parts.hostname or ""), parts.port
    except ValueError:
        return url
    host = ".".join(filter(None, labels))
    try:
        encoded = host.encode("idna").decode().lower()
        host = encoded if re.fullmatch(r"[a-z0-9_.-]*", encoded) else host
    except UnicodeError:
        pass  # a label that is too long, as crawls have them
    while host.startswith("www.") and "." in host[4:]:
        host = host[4:]
    if ":" in host:  # IPv6
        host = f"[{host}]"
    if port not in (None, 80, 443):
        host += f":{port}"
    query = (
        piece
        for piece in _percent(parts.query, "?").split("&")
        if piece and not _TRACKING.fullmatch(piece)
    )
    query = "&".join(sorted(query))
    return f"http://{host}{_path(parts.path)}" + (f"?{query}" if query else "")


# ---- MinHash ---------------------------------------------------------------------------------------------------------


def _shingles(texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """(text that it belongs to int64 [N], hash uint64 [N]) of every n-gram; a text of fewer than n units has one gram,
    of all of them."""
    units = unit_hashes(texts, "word")
    grams = ngram_hashes(units, n)
    owners, values = [grams.owners], [grams.values]
    for size in range(1, n):
        short = units.counts == size
        if short.any():
            those = Hashes(
                units.values[np.repeat(short, units.counts)], np.arange(short.sum() + 1) * size
            )
            owners.append(np.flatnonzero(short))
            values.append(ngram_hashes(those, size).values)
    return np.concatenate(owners), np.concatenate(values)


def _chunks(texts: Sequence[str], characters: int = 2**18) -> Iterator[Sequence[str]]:
    """Texts in runs short enough for their hashes to stay in the processor's cache."""
    start = size = 0
    for i, text in enumerate(texts):
        size += len(text)
        if size >= characters:
            yield texts[start : i + 1]
            start, size = i + 1, 0
    if start < len(texts):
        yield texts[start:]


def _key(seed: int) -> np.ndarray:
    return mix(np.array([seed], np.uint64) * _M + _M)


@functools.lru_cache
def _order(permutations: int, seed: int) -> np.ndarray:
    """[place, turn]: where an empty place looks for a value first, second, ..."""
    random = mix(np.arange(permutations**2, dtype=np.uint64) * _M ^ mix(_key(seed)))
    return np.argsort(random.reshape(permutations, permutations), axis=1)


def signatures(
    texts: Sequence[str], permutations: int = 128, ngram: int = 5, seed: int = 0
) -> np.ndarray:
    """MinHash signatures uint32 [texts, permutations] of the sets of word n-grams: two texts have the same value at a
    place with the probability of their Jaccard similarity, so the share of equal places estimates it, with a standard
    error of about sqrt(J (1 - J) / permutations). A text without units has the largest value everywhere.

    One-permutation hashing (Li, Owen and Zhang 2012): the hash of an n-gram picks its place and its value there, the
    least value stays. A place that no n-gram fell into takes the value of the first other place that has one, in an
    order of its own (densification as in Shrivastava 2017), which keeps the estimate free of bias for short texts."""
    result = np.empty((len(texts), permutations), np.uint32)
    key = _key(seed)
    order = _order(permutations, seed)
    start = 0
    for chunk in _chunks(texts):
        owners, values = _shingles(chunk, ngram)
        values = mix(values ^ key)
        found = np.full((len(chunk), permutations), _NONE)
        places = ((values >> np.uint64(32)) * np.uint64(permutations)) >> np.uint64(32)
        places = places.astype(np.int64) + owners * permutations
        np.minimum.at(found.reshape(-1), places, values.astype(np.uint32))
        texts_left, left = np.nonzero((found == _NONE) & (found != _NONE).any(1, keepdims=True))
        filled = found.copy()
        for turn in range(permutations):
            if not len(left):
                break
            taken = found[texts_left, order[left, turn]]
            filled[texts_left, left] = taken
            still = taken == _NONE
            texts_left, left = texts_left[still], left[still]
        result[start : start + len(chunk)] = filled
        start += len(chunk)
    return result


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The estimated Jaccard similarity of signatures, row by row: float [rows]."""
    return (a == b).mean(1)


def acceptance(threshold: float, permutations: int) -> float:
    """The estimate from which a pair counts as near: a standard error below the threshold, so that 84 % of pairs right
    at the threshold are found, and 99 % of those 0.05 above it. The price is pairs that lie a little below it."""
    return threshold - math.sqrt(threshold * (1 - threshold) / permutations)


def banding(threshold: float, permutations: int, found: float = 0.99) -> tuple[int, int]:
    """(bands, rows) for LSH: the most rows (so the fewest chance candidates) with which a pair at the threshold shares
    a band, 1 - (1 - threshold^rows)^bands, with a probability of at least `found`."""
    rows = max(
        r
        for r in range(1, permutations + 1)
        if r == 1 or 1 - (1 - threshold**r) ** (permutations // r) >= found
    )
    return permutations // rows, rows


def band_keys(signature: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """uint64 [texts, bands] of signatures [texts, permutations]: equal where all rows of a band are."""
    parts = signature[:, : bands * rows].reshape(-1, bands, rows).astype(np.uint64)
    keys = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64), parts.shape[:2])
    for row in range(rows):
        keys = mix(keys * _M + parts[:, :, row])
    return keys


# ---- Files -----------------------------------------------------------------------------------------------------------
# Rows are pairs of uint64. A file of them holds, before the rows, where the part for each of its readers begins, so
# that a reader maps its own part only. An id is shard number << 32 | line from 0.


def _scatter(path: Path, rows: np.ndarray, parts: np.ndarray, count: int) -> None:
    """Write rows [N, 2] ordered by the part, 0 to count - 1, that each is for."""
    rows = rows[np.argsort(parts, kind="stable")]
    bounds = np.concatenate(
        [[0], np.cumsum(np.bincount(parts.astype(np.int64), minlength=count))]
    ).astype(np.uint64)
    with atomic_write(path, "wb") as file:
        np.save(file, np.concatenate([bounds, rows.astype(np.uint64).ravel()]))


def _gather(paths: Iterable[Path], part: int, count: int) -> np.ndarray:
    """The rows [N, 2] for a part from all files."""
    found = [np.zeros((0, 2), np.uint64)]
    for path in paths:
        data = np.load(path, mmap_mode="r")
        begin, end = (count + 1 + 2 * int(bound) for bound in data[part : part + 2])
        found.append(np.array(data[begin:end]).reshape(-1, 2))
    return np.concatenate(found)


def _partition(keys: np.ndarray, count: int) -> np.ndarray:
    return mix(keys * _M) % np.uint64(count)


def _sorted_unique(rows: np.ndarray) -> np.ndarray:
    """Rows [N, 2] in order, each once."""
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    return rows[np.concatenate([[True], (rows[1:] != rows[:-1]).any(1)])[: len(rows)]]


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of sorted keys [N]: (where each row's group begins [N], which rows begin one: bool [N])."""
    begins = np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)]
    return np.flatnonzero(begins)[np.cumsum(begins) - 1], begins


@dataclass(frozen=True)
class Plan:
    """What every step knows: the shards, by number, and where things lie."""

    store: Path
    to: Path
    work: Path
    settings: Settings
    numbers: tuple[int, ...]  # of the shards

    def file(self, kind: str, index: int) -> Path:
        return self.work / kind / f"{index:05d}.npy"

    def files(self, kind: str) -> list[Path]:
        shards = kind in ("urls", "texts", "bands")
        return [
            self.file(kind, i)
            for i in (self.numbers if shards else range(self.settings.partitions))
        ]

    def to_shards(self, kind: str, part: int, drops: np.ndarray) -> None:
        """Write drops [N, (dropped, kept)] for the shards of the dropped pages."""
        shard = np.searchsorted(
            np.array(self.numbers), (drops[:, 0] >> np.uint64(32)).astype(np.int64)
        )
        _scatter(self.file(kind, part), drops, shard, len(self.numbers))

    def drops(self, kind: str, number: int) -> np.ndarray:
        """The drops [N, (dropped, kept)] of a kind from the shard of a number."""
        return _gather(self.files(kind), self.numbers.index(number), len(self.numbers))


def shard_name(number: int) -> str:
    return f"part-{number:05d}.jsonl"


def shard_numbers(store: Path) -> list[int]:
    """The numbers of the shards in a folder, in order."""
    found = (int(path.stem[5:]) for path in store.glob("part-*.jsonl") if path.stem[5:].isdecimal())
    return sorted(number for number in found if (store / shard_name(number)).exists())


def _pages(path: Path) -> Iterator[dict]:
    for line, page in read_jsonl(path):
        if not (isinstance(page.get("text"), str) and isinstance(page.get("url"), str)):
            raise InputError(f"{path}:{line}: not a page; it needs 'url' and 'text'")
        yield page


def _hash(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little"
    )


# ---- Steps -----------------------------------------------------------------------------------------------------------


def hash_shard(plan: Plan, number: int) -> dict[str, int]:
    """Shard -> its URL hashes for the partitions, text hashes [pages] and signatures [pages, permutations]."""
    settings, pages, urls, hashes, signed = plan.settings, [], [], [], []

    def sign():
        texts = [page["text"] for page in pages]
        signed.append(signatures(texts, settings.permutations, settings.ngram, settings.seed))
        hashes.extend(map(_hash, texts))
        pages.clear()

    size = 0
    for page in _pages(plan.store / shard_name(number)):
        pages.append(page)
        urls.append(_hash(normalize_url(page["url"])) if page["url"] else None)
        size += len(page["text"])
        if size > 2**22:
            sign()
            size = 0
    sign()
    lines = [line for line, url in enumerate(urls) if url is not None]
    rows = np.array([[urls[line], number << 32 | line] for line in lines], np.uint64).reshape(-1, 2)
    for kind, array in {
        "hashes": np.array(hashes, np.uint64),
        "signatures": np.concatenate(signed),
    }.items():
        with atomic_write(plan.file(kind, number), "wb") as file:
            np.save(file, array)
    _scatter(
        plan.file("urls", number),
        rows,
        _partition(rows[:, 0], settings.partitions),
        settings.partitions,
    )
    return {"pages": len(urls), "without_url": len(urls) - len(lines)}


def drop_repeats(plan: Plan, part: int, keys: str, kind: str) -> dict[str, int]:
    """Partition of (hash, id) -> (dropped, kept): all but the first of each hash."""
    rows = _sorted_unique(_gather(plan.files(keys), part, plan.settings.partitions))
    first, begins = _groups(rows[:, 0])
    plan.to_shards(kind, part, np.stack([rows[:, 1], rows[first, 1]], axis=1)[~begins])
    return {"in": len(rows), "out": int(begins.sum())}


def _survivors(plan: Plan, number: int, pages: int, *kinds: str) -> np.ndarray:
    """Lines int64 [N] of a shard of so many pages that no drop of these kinds names."""
    alive = np.ones(pages, bool)
    for kind in kinds:
        alive[(plan.drops(kind, number)[:, 0] & np.uint64(0xFFFFFFFF)).astype(np.int64)] = False
    return np.flatnonzero(alive)


def text_keys(plan: Plan, number: int) -> dict[str, int]:
    """Shard -> (text hash, id) of the pages left after the drops by URL."""
    hashes = np.load(plan.file("hashes", number))
    lines = _survivors(plan, number, len(hashes), "url")
    rows = np.stack(
        [hashes[lines], lines.astype(np.uint64) + (np.uint64(number) << np.uint64(32))], axis=1
    )
    _scatter(
        plan.file("texts", number),
        rows,
        _partition(rows[:, 0], plan.settings.partitions),
        plan.settings.partitions,
    )
    return {"in": len(hashes), "out": len(rows)}


def shard_band_keys(plan: Plan, number: int) -> dict[str, int]:
    """Shard -> (band key, id) of the pages left after the drops by URL and exact text, those without units left out."""
    settings = plan.settings
    signed = np.load(plan.file("signatures", number))
    lines = _survivors(plan, number, len(signed), "url", "exact")
    lines = lines[(signed[lines] != _NONE).any(1)]
    keys = band_keys(signed[lines], *banding(settings.threshold, settings.permutations))
    ids = np.repeat(lines.astype(np.uint64) + (np.uint64(number) << np.uint64(32)), keys.shape[1])
    rows = np.stack([keys.ravel(), ids], axis=1)
    _scatter(
        plan.file("bands", number),
        rows,
        _partition(rows[:, 0], settings.partitions),
        settings.partitions,
    )
    return {"in": len(signed), "out": len(lines)}


def _signed(plan: Plan, ids: np.ndarray) -> np.ndarray:
    """The signatures of pages, of which only those rows are read."""
    result = np.empty((len(ids), plan.settings.permutations), np.uint32)
    shards, lines = ids >> np.uint64(32), (ids & np.uint64(0xFFFFFFFF)).astype(np.int64)
    for shard in np.unique(shards):
        at = shards == shard
        result[at] = np.load(plan.file("signatures", int(shard)), mmap_mode="r")[lines[at]]
    return result


def near_pairs(plan: Plan, part: int, window: int = 4) -> dict[str, int]:
    """Partition of (band key, id) -> edges of near pages, both ways, for the partitions of the ids.

    Of the pages with the same key each is compared with the first and the `window` before it, not all with all: a key
    that very many pages share (a template, a licence) costs no more than its pages, and an edge that is missed inside
    a cluster hardly ever breaks it. Compared is the estimate from the signatures."""
    settings = plan.settings
    rows = _sorted_unique(_gather(plan.files("bands"), part, settings.partitions))
    first, begins = _groups(rows[:, 0])
    place, ids = np.arange(len(rows)), rows[:, 1]
    pairs = [np.zeros((0, 2), np.uint64)]
    for other in (first, *(place - back for back in range(1, window + 1))):
        within = np.flatnonzero((other >= first) & (other < place))
        pairs.append(np.stack([ids[within], ids[other[within]]], axis=1))
    pairs = np.concatenate(pairs)
    pairs = _sorted_unique(pairs)
    near = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), 2**16):
        these = slice(start, start + 2**16)
        estimates = similarity(_signed(plan, pairs[these, 0]), _signed(plan, pairs[these, 1]))
        near[these] = estimates >= acceptance(settings.threshold, settings.permutations)
    edges = np.concatenate([pairs[near], pairs[near][:, ::-1]])
    _scatter(
        plan.file("edges0", part),
        edges,
        _partition(edges[:, 0], settings.partitions),
        settings.partitions,
    )
    return {"keys": int(begins.sum()), "candidates": len(pairs), "near": int(near.sum())}


def large_star(plan: Plan, part: int, turn: int) -> dict[str, int]:
    """Partition of edges (u, v), both ways -> each larger neighbour of u joined to the least of u and its neighbours,
    as (larger, smaller). `edges` and `checksum` describe the graph that came in, in which nothing changes any more
    once components are stars about their least page."""
    count = plan.settings.partitions
    edges = _sorted_unique(_gather(plan.files(f"edges{turn}"), part, count))
    first, _ = _groups(edges[:, 0])
    u, v, least = edges[:, 0], edges[:, 1], np.minimum(edges[:, 0], edges[first, 1])
    rows = np.stack([v, least], axis=1)[v > u]
    _scatter(plan.file(f"large{turn}", part), rows, _partition(rows[:, 0], count), count)
    return {"edges": len(edges), "checksum": int(mix(u * _M + v).sum(dtype=np.uint64))}


def small_star(plan: Plan, part: int, turn: int) -> dict[str, int]:
    """Partition of edges (larger, smaller) -> u and its smaller neighbours joined to the least of them, both ways."""
    count = plan.settings.partitions
    edges = _sorted_unique(_gather(plan.files(f"large{turn}"), part, count))
    first, begins = _groups(edges[:, 0])
    least = edges[first, 1]
    rows = np.concatenate([edges[begins], np.stack([edges[:, 1], least], axis=1)[~begins]])
    rows = np.concatenate([rows, rows[:, ::-1]])
    _scatter(plan.file(f"edges{turn + 1}", part), rows, _partition(rows[:, 0], count), count)
    return {}


def drop_near(plan: Plan, part: int, turn: int) -> dict[str, int]:
    """Partition of edges that are stars -> (dropped, kept)."""
    edges = _sorted_unique(_gather(plan.files(f"edges{turn}"), part, plan.settings.partitions))
    drops = edges[edges[:, 0] > edges[:, 1]]
    plan.to_shards("near", part, drops)
    return {"dropped": len(drops)}


def clean_shard(plan: Plan, number: int) -> dict[str, int]:
    """Shard -> to/part-N.jsonl with the pages that are left, and to/drops/part-N.jsonl with, for each that is not,
    {line, url, reason: url|exact|near, kept: [shard number, line]}. Lines count from 1. What a page was dropped for
    by URL may itself have been dropped by text."""
    drops = {}
    for reason in ("url", "exact", "near"):
        for dropped, kept in plan.drops(reason, number).tolist():
            drops[dropped & 0xFFFFFFFF] = reason, [kept >> 32, (kept & 0xFFFFFFFF) + 1]
    pages, dropped = 0, []

    def left():
        nonlocal pages
        for line, page in enumerate(_pages(plan.store / shard_name(number))):
            pages += 1
            if line in drops:
                reason, kept = drops[line]
                dropped.append(
                    {"line": line + 1, "url": page["url"], "reason": reason, "kept": kept}
                )
            else:
                yield page

    kept = write_jsonl(plan.to / shard_name(number), left())
    write_jsonl(plan.to / "drops" / shard_name(number), dropped)
    return {"in": pages, "out": kept, **Counter(one["reason"] for one in dropped)}


# ---- The whole -------------------------------------------------------------------------------------------------------


def run_once(marker: Path, function: Callable[..., dict], *arguments) -> dict:
    """The counts of a step, which is run unless its marker, a file with its counts, says that it has been."""
    if marker.exists():
        return json.loads(marker.read_text())
    counts = function(*arguments)
    with atomic_write(marker) as file:
        json.dump(counts, file)
    return counts


def run_task(task: tuple) -> dict:
    """run_once(*task), for `map`. Raises InputError, with the marker's name, where a file cannot be read or written."""
    try:
        return run_once(*task)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        reason = f"{error.strerror or error}{where}"
        raise InputError(
            f"{task[0]}: step stopped: {reason}; when that is mended, the same command goes on"
        ) from None


def deduplicate(
    store, to, work, settings: Settings | None = None, map: Callable = map
) -> dict[str, dict[str, int]]:
    """Clean the store of pages at `store` into `to`, with intermediate files and markers of finished steps in `work`;
    a run that was killed goes on from them. `map` runs the steps: the builtin, or that of an executor. The result
    depends neither on it nor on the number of partitions.

    Returns the counts of each step summed over shards or partitions; "clean" has in, out, url, exact and near.
    Raises InputError for a store without pages and a `work` of other data or settings."""
    store, to, work, settings = Path(store), Path(to), Path(work), settings or Settings()
    numbers = tuple(shard_numbers(store))
    if not numbers:
        raise InputError(f"{store}: no shards part-00000.jsonl, ...; give a folder of pages")
    plan = Plan(store, to, work, settings, numbers)
    sizes = [[number, (store / shard_name(number)).stat().st_size] for number in numbers]
    setup = json.loads(json.dumps({"settings": asdict(settings), "shards": sizes, "to": str(to)}))
    written = work / "setup.json"
    if run_once(written, lambda: setup) != setup:
        raise InputError(
            f"{written}: of a run with other settings or shards; give another folder or remove this one"
        )
    report: dict[str, dict[str, int]] = {}

    def step(name: str, function: Callable, indices: Iterable[int], *arguments) -> dict[str, int]:
        tasks = [
            (work / "done" / f"{name}-{i:05d}.json", function, plan, i, *arguments) for i in indices
        ]
        counts = Counter()
        for one in map(run_task, tasks):
            counts.update(one)
        return dict(counts)

    parts = range(settings.partitions)
    report["hash"] = step("hash", hash_shard, numbers)
    if not report["hash"]["pages"]:
        raise InputError(f"{store}: no page in its {len(numbers)} shards; give a folder of pages")
    report["url"] = step("url", drop_repeats, parts, "urls", "url")
    report["texts"] = step("texts", text_keys, numbers)
    report["exact"] = step("exact", drop_repeats, parts, "texts", "exact")
    report["bands"] = step("bands", shard_band_keys, numbers)
    report["pairs"] = step("pairs", near_pairs, parts)
    turn, before = 0, None
    while (graph := step(f"large{turn}", large_star, parts, turn)) != before:
        step(f"small{turn}", small_star, parts, turn)
        turn, before = turn + 1, graph
    report["components"] = {"turns": turn, "edges": graph["edges"] // 2}
    report["near"] = step("near", drop_near, parts, turn)
    report["clean"] = {"url": 0, "exact": 0, "near": 0, **step("clean", clean_shard, numbers)}
    return report
