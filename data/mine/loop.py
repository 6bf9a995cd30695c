"""The data engine (paper 2.1, figure 2): crawl files in, a decontaminated mathematical corpus out.

    python -m data.mine --config FILE.toml [--workers 8 | --executor dask://HOST:PORT]

    pages      crawl files                                        -> TO/pages       pages.py
    clean      without repeated URLs, texts and near-duplicates   -> TO/clean       dedup.py
    round 1..  a classifier of positives against random pages     -> TO/round_K     classifier.py
               a score for every page; the best are collected, up to `keep_tokens`
               domains more than 10 % collected; annotated URLs   -> more positives domains.py
               until `stop` of what a round collects was collected in the round before
    corpus     the last collection, without benchmark text        -> TO/corpus      decontaminate.py
    report     what happened, and the manifest to repeat it from  -> TO/report.md, report.json, manifest.json

Every step is a function of one shard (a crawl file) or of one partition, which writes a file and then a marker with
its counts: a run that was killed goes on from the markers, and neither the number of workers nor the kind of executor
changes a byte of the result. Memory is bounded by the shard. Run with other options in the same folder it refuses.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from data import InputError, atomic_write, read_jsonl, write_jsonl
from data.mine import classifier, decontaminate, dedup, domains
from data.mine.dedup import run_once, shard_name, shard_numbers
from data.mine.ngrams import unit_hashes
from data.mine.pages import read_pages
from options import option, parse

ANNOTATE = ("file", "ask", "auto")


@dataclass
class Config:
    crawl: list[str] = option([], "WARC, WET or JSONL files of pages, or folders of them")
    positives: list[str] = option([], "the seed corpus: JSONL files with the text of mathematical pages")
    negatives: list[str] = option([], "JSONL files with the text of other pages; none: random pages of the crawl")
    benchmarks: str = option("", "folder of problem files whose text must not be in the corpus")
    to: str = option("", "run directory")
    # the classifier (2.1)
    examples: int = option(500_000, "most positives, and as many negatives")
    width: int = option(256, "dimension of the vectors")
    rate: float = option(0.1, "learning rate")
    ngrams: int = option(3, "words of the longest n-gram")
    min_count: int = option(3, "words seen fewer times have no vector of their own")
    epochs: int = option(3, "times each example is seen")
    buckets: int = option(2**21, "vectors that n-grams share")
    # recall
    keep_tokens: int = option(40_000_000_000, "tokens (words, CJK characters) that a round collects, the best first")
    rounds: int = option(4, "most rounds")
    stop: float = option(0.98, "stop when this share of what a round collects was collected in the round before")
    # domains
    annotate: str = option("file", "file: --annotation as it is; ask: on the terminal; auto: a rule does it")
    annotation: str = option("", "file of URL prefixes that hold mathematics; none: TO/annotation.txt")
    domain_share: float = option(0.10, "a domain of whose pages more than this share is collected is mathematical")
    domain_pages: int = option(10, "pages that such a domain has at least")
    auto_share: float = option(0.25, "auto: prefixes of whose pages more than this share is collected are taken")
    # deduplication
    threshold: float = option(0.8, "Jaccard similarity of word 5-grams from which pages are near-duplicates")
    permutations: int = option(128, "length of a MinHash signature")
    partitions: int = option(8, "parts of every reduce: more parts need less memory each")
    # the run
    seed: int = option(0, "seed of the classifier and of what is sampled")
    workers: int = option(max(1, os.cpu_count() or 1), "processes")
    executor: str = option("processes", "processes, or dask://HOST:PORT, the scheduler of a cluster that shares TO")


def check(config: Config) -> None:
    for name in ("crawl", "positives", "benchmarks", "to"):
        if not getattr(config, name):
            raise InputError(f"--{name} is needed")
    if config.annotate not in ANNOTATE:
        raise InputError(f"--annotate {config.annotate}: unknown; choose one of {', '.join(ANNOTATE)}")
    for name in ("examples", "keep_tokens", "rounds", "partitions", "workers", "domain_pages"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name} must be at least 1")
    for name in ("stop", "domain_share", "auto_share"):
        if not 0 < getattr(config, name) <= 1:
            raise InputError(f"--{name} {getattr(config, name)}: give a share above 0, at most 1")


# ---------------------------------------------------------------------------------------------------------------------
# Where the work runs


@contextmanager
def executor(config: Config) -> Iterator[Callable]:
    """A `map` over tasks: in this process, in processes of this machine, or on a Dask cluster."""
    if config.executor.startswith("dask://"):
        try:
            from distributed import Client
        except ImportError:
            raise InputError(f"--executor {config.executor} needs Dask; pip install 'dask[distributed]'") from None
        with Client(f"tcp://{config.executor.removeprefix('dask://')}") as client:
            yield client.get_executor().map
    elif config.executor != "processes":
        raise InputError(f"--executor {config.executor}: unknown; give processes or dask://HOST:PORT")
    elif config.workers == 1:
        yield map
    else:
        with ProcessPoolExecutor(config.workers, mp_context=get_context("spawn")) as pool:
            yield pool.map


def _run_once(task: tuple) -> dict:
    return run_once(*task)


# ---------------------------------------------------------------------------------------------------------------------
# Steps of one shard


def extract(source: Path, target: Path) -> dict:
    """A crawl file -> a shard of pages."""
    counts: Counter = Counter()
    counts["pages"] = write_jsonl(target, read_pages(source, counts))
    return dict(counts)


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


@lru_cache(maxsize=1)
def _classifier(path: Path) -> classifier.Classifier:
    return classifier.load(path)


def score_shard(shard: Path, model: Path, target: Path) -> dict:
    """A shard -> its pages' scores float32 and tokens int64, as one array [pages, 2] of float64."""
    rows = [np.zeros((0, 2))]
    for pages in batches(shard):
        texts = [page["text"] for page in pages]
        tokens = unit_hashes(texts, "space").counts
        rows.append(np.stack([_classifier(model).scores(texts), tokens], axis=1))
    found = np.concatenate(rows)
    with atomic_write(target, "wb") as file:
        np.save(file, found)
    return {"pages": len(found), "tokens": int(found[:, 1].sum())}


def cutoff(scores: Iterable[Path], keep_tokens: int) -> tuple[float, dict]:
    """The score from which pages are collected: the lowest whose pages, with all better ones, have at most
    `keep_tokens` tokens. Holds a number for each different score, not each page. And a histogram of the scores."""
    values, tokens, histogram = np.zeros(0), np.zeros(0), np.zeros(20, int)
    for path in scores:
        found = np.load(path)
        histogram += np.histogram(found[:, 0], 20, (0, 1))[0]
        score = np.round(found[:, 0], 5)
        values, index = np.unique(np.concatenate([values, score]), return_inverse=True)
        tokens = np.bincount(index, np.concatenate([tokens, found[:, 1]]), len(values))
    best_first = np.cumsum(tokens[::-1])
    chosen = int((best_first <= keep_tokens).sum())
    if chosen == len(values):
        held = int(best_first[-1])
        raise InputError(f"--keep_tokens {keep_tokens}: the crawl has {held} tokens, so all would be kept; give less")
    if chosen == 0:
        raise InputError(f"--keep_tokens {keep_tokens}: the best page alone has more tokens; give more")
    return float(values[::-1][chosen - 1]), {"histogram": histogram.tolist()}


def collect_shard(shard: Path, scores: Path, least: float, before: Path | None, target: Path) -> dict:
    """A shard -> which of its pages are collected, bool [pages], and its domains {domain: [pages, collected]}; in the
    counts, how many were collected in the round before, and the pages nearest the cutoff on either side."""
    found = np.load(scores)
    kept = np.round(found[:, 0], 5) >= least
    urls, nearest = [], {"kept": [], "dropped": []}
    for (_, page), score, chosen in zip(read_jsonl(shard), found[:, 0].tolist(), kept.tolist(), strict=True):
        urls.append((page["url"], chosen))
        some = nearest["kept" if chosen else "dropped"]
        some.append([abs(score - least), score, page["url"], " ".join(page["text"].split())[:200]])
        if len(some) > 100:
            some[:] = sorted(some)[:3]
    with atomic_write(target.with_suffix(".json")) as file:
        json.dump(domains.domain_counts(urls), file)
    with atomic_write(target, "wb") as file:
        np.save(file, kept)
    again = int((kept & np.load(before)).sum()) if before else 0
    counts = {"pages": len(kept), "collected": int(kept.sum()), "again": again}
    counts["tokens"] = int(found[kept, 1].sum())
    return counts | {"nearest": {name: sorted(some)[:3] for name, some in nearest.items()}}


def prefix_shard(shard: Path, kept: Path, chosen: Path, target: Path) -> dict:
    """The URL prefixes of a shard's pages on mathematical domains, whose names are in the file `chosen`."""
    pairs = zip(read_jsonl(shard), np.load(kept).tolist(), strict=True)
    rows = ((page["url"], k, page["text"].strip().partition("\n")[0]) for (_, page), k in pairs)
    found = domains.prefix_counts(rows, json.loads(chosen.read_text(encoding="utf-8")))
    with atomic_write(target) as file:
        json.dump({name: asdict(prefix) for name, prefix in found.items()}, file)
    return {"prefixes": len(found)}


def sample_shard(
    shard: Path, kept: Path | None, annotation: Path | None, share: float, seed: int, target: Path
) -> dict:
    """Examples of a shard for the classifier: target.positives, the pages under annotated prefixes that were not
    collected, and target.negatives, a share, drawn by a hash of seed and place, of the pages that are neither under
    them nor collected."""
    names = domains.read_annotations(annotation) if annotation else []
    collected = np.load(kept) if kept else None
    counts: Counter = Counter(positives=0, negatives=0)

    def chosen(kind: str) -> Iterator[dict]:
        for line, page in read_jsonl(shard):
            annotated = bool(names) and domains.under(names, [page["url"]])[0]
            before = collected is not None and bool(collected[line - 1])
            draw = int.from_bytes(blake2b(f"{seed} {shard.name} {line}".encode(), digest_size=8).digest(), "big")
            take = annotated and not before if kind == "positives" else not annotated and not before
            if take and (kind == "positives" or draw < share * 2**64):
                counts[kind] += 1
                yield {"text": page["text"]}

    for kind in ("positives", "negatives"):
        write_jsonl(target.with_suffix(f".{kind}.jsonl"), chosen(kind))
    return dict(counts)


def corpus_shard(shard: Path, kept: Path, index: Path, target: Path, drops: Path) -> dict:
    """The collected pages of a shard without those that hold benchmark text."""
    collected = target.with_name(f".{target.name}.collected")
    chosen = np.load(kept)
    write_jsonl(collected, (page for (_, page), k in zip(read_jsonl(shard), chosen, strict=True) if k))
    try:
        return decontaminate.decontaminate_shard(collected, index, target, drops)
    finally:
        collected.unlink()


# ---------------------------------------------------------------------------------------------------------------------
# The whole


class Run:
    """The folders of a run, its shards, and the map that its steps go through."""

    def __init__(self, config: Config, map: Callable):
        self.config, self.map, self.to = config, map, Path(config.to)
        self.report: dict = {"rounds": []}

    def step(self, name: str, function: Callable, tasks: Iterable[tuple]) -> dict:
        """The counts of a step over all shards, summed; what has a marker is not run again."""
        tasks = [(self.to / "done" / f"{name}-{i:05d}.json", function, *own) for i, own in enumerate(tasks)]
        total: Counter = Counter()
        for counts in self.map(_run_once, tasks):
            total.update({key: value for key, value in counts.items() if isinstance(value, int)})
        return dict(total)

    def files(self, folder: str, suffix: str) -> list[Path]:
        """One file a shard of clean pages."""
        return [self.to / folder / f"part-{number:05d}{suffix}" for number in shard_numbers(self.to / "clean")]

    @property
    def clean(self) -> list[Path]:
        return [self.to / "clean" / shard_name(number) for number in shard_numbers(self.to / "clean")]


def crawl_files(paths: Iterable[str]) -> list[Path]:
    """The files, and those in the folders, in the order of their names."""
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"--crawl {path}: does not exist; give files or folders of WARC, WET or JSONL pages")
        found += sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    if not found:
        raise InputError(f"--crawl {', '.join(map(str, paths))}: no file in it; give files of WARC, WET or JSONL pages")
    return found


def texts(paths: Iterable[str | Path]) -> Iterator[str]:
    """The texts of JSONL files. Raises InputError for a line without one."""
    for path in paths:
        for number, row in read_jsonl(path):
            if not isinstance(row.get("text"), str):
                raise InputError(f"{path}:{number}: no text in it; each line must be an object with 'text'")
            yield row["text"]


def some(rows: list, most: int, seed: int) -> list:
    """At most so many, drawn without repetition, in their order."""
    if len(rows) <= most:
        return rows
    return [rows[i] for i in sorted(np.random.default_rng(seed).choice(len(rows), most, replace=False).tolist())]


def annotation_file(config: Config) -> Path:
    return Path(config.annotation or Path(config.to) / "annotation.txt")


def learn(run: Run, number: int, before: list[Path]) -> dict:
    """Train the round's classifier: the seed corpus and what was annotated, against random other pages."""
    config, folder = run.config, run.to / f"round_{number}"
    annotated = run.to / f"round_{number - 1}" / "annotation.txt" if number > 1 else None
    share = min(1.0, 2.0 * config.examples / max(run.report["clean"]["out"], 1))
    targets = run.files(f"round_{number}/examples", "")
    kept = before or [None] * len(targets)
    tasks = [(s, k, annotated, share, config.seed, t) for s, k, t in zip(run.clean, kept, targets, strict=True)]
    run.step(f"examples_{number}", sample_shard, tasks)

    def train() -> dict:
        found = [t.with_suffix(".positives.jsonl") for t in targets]
        new, seed = list(texts(found)), list(texts(config.positives))
        positives = some(seed + new, config.examples, config.seed)
        others = config.negatives or [t.with_suffix(".negatives.jsonl") for t in targets]
        negatives = some(list(texts(others)), max(len(positives), 1), config.seed + 1)
        names = ("width", "rate", "ngrams", "min_count", "epochs", "buckets")
        settings = classifier.Settings(**{name: getattr(config, name) for name in names})
        model = classifier.train(positives, negatives, settings, config.seed, threads=config.workers)
        model.save(folder / "classifier.npz")
        return {"positives": len(positives), "from_sites": len(new), "negatives": len(negatives)}

    return run_once(run.to / "done" / f"classifier_{number}.json", train)


def annotate(run: Run, number: int, kept: list[Path]) -> dict:
    """Find the mathematical domains, have their URL prefixes annotated; leaves round_K/domains.json and
    round_K/annotation.txt, the prefixes that the next round uses."""
    config, folder = run.config, run.to / f"round_{number}"
    tables = (json.loads(k.with_suffix(".json").read_text(encoding="utf-8")) for k in kept)
    counts = domains.merge_domains(tables)
    chosen = domains.math_domains(counts, config.domain_share, config.domain_pages)
    names = folder / "math_domains.json"
    run_once(names, lambda: chosen)
    targets = run.files(f"round_{number}/prefixes", ".json")
    tasks = [(s, k, names, t) for s, k, t in zip(run.clean, kept, targets, strict=True)]
    run.step(f"prefixes_{number}", prefix_shard, tasks)

    def parts() -> Iterator[dict]:
        for path in targets:
            rows = json.loads(path.read_text(encoding="utf-8"))
            yield {name: domains.Prefix(**prefix) for name, prefix in rows.items()}

    table = domains.domain_table(counts, domains.merge_prefixes(parts()), chosen)
    with atomic_write(folder / "domains.txt") as file:
        file.write(domains.table_text(table))
    own = annotation_file(config)
    done = folder / "annotation.txt"
    if not done.exists():
        if config.annotate == "auto":
            earlier = domains.read_annotations(own) if own.exists() else []
            found = domains.auto_annotate(table, config.auto_share)
            comment = f"Chosen by a rule (more than {100 * config.auto_share:.0f} % collected), read by no person."
            domains.write_annotations(own, dict.fromkeys(earlier + found), comment)
        elif config.annotate == "ask":
            domains.annotate(table, own)
        prefixes = domains.read_annotations(own) if own.exists() else []
        domains.write_annotations(done, prefixes, f"{own} after round {number}")
    rows = domains.table_rows(table)
    return {"domains": len(counts), "math_domains": len(chosen), "table": rows,
            "annotated": len(domains.read_annotations(done))}  # fmt: skip


def one_round(run: Run, number: int, before: list[Path]) -> list[Path]:
    """A round; returns the files that say what was collected, and adds to the report."""
    config, folder = run.config, run.to / f"round_{number}"
    row = {"round": number, **learn(run, number, before)}
    scores = run.files(f"round_{number}/scores", ".npy")
    model = folder / "classifier.npz"
    scored = run.step(f"scores_{number}", score_shard, [(s, model, t) for s, t in zip(run.clean, scores, strict=True)])
    least, shape = cutoff(scores, config.keep_tokens)
    kept = run.files(f"round_{number}/kept", ".npy")
    previous = before or [None] * len(kept)
    tasks = [(s, c, least, p, k) for s, c, p, k in zip(run.clean, scores, previous, kept, strict=True)]
    found = run.step(f"kept_{number}", collect_shard, tasks)
    marks = [run.to / "done" / f"kept_{number}-{i:05d}.json" for i in range(len(kept))]
    nearest: dict[str, list] = {"kept": [], "dropped": []}
    for mark in marks:
        for name, rows in json.loads(mark.read_text(encoding="utf-8"))["nearest"].items():
            nearest[name] = sorted(nearest[name] + rows)[:3]
    row |= {"cutoff": least, **shape, **found, "of_pages": scored["pages"], "of_tokens": scored["tokens"]}
    row |= {"collected_before": found["again"] / found["collected"] if before else None, "nearest": nearest}
    row |= annotate(run, number, kept)
    run.report["rounds"].append(row)
    share = row["collected_before"]
    again = f" ({100 * share:.1f} % of them before)" if before else ""
    print(f"round {number}: {row['positives']} positives, {found['collected']} of {scored['pages']} pages{again}, "
          f"{row['math_domains']} mathematical domains, {row['annotated']} URL prefixes", flush=True)  # fmt: skip
    return kept


def mine(config: Config, map: Callable) -> dict:
    """The whole run; returns the report."""
    run = Run(config, map)
    files = crawl_files(config.crawl)
    shaping = {k: v for k, v in asdict(config).items() if k not in ("workers", "executor", "to")}
    setup = {"options": shaping, "crawl": [[str(file), file.stat().st_size] for file in files]}
    if run_once(run.to / "setup.json", lambda: setup) != json.loads(json.dumps(setup)):
        raise InputError(f"{run.to}: holds a run with other options or files; give another --to, or remove it")
    pages = run.to / "pages"
    run.report["pages"] = run.step("pages", extract, [(f, pages / shard_name(i)) for i, f in enumerate(files)])
    if not run.report["pages"]["pages"]:
        raise InputError(f"--crawl: no page in {len(files)} files ({run.report['pages']}); give files of web pages")
    print(f"{run.report['pages']['pages']} pages of {len(files)} files", flush=True)
    settings = dedup.Settings(config.permutations, threshold=config.threshold, partitions=config.partitions)
    counts = dedup.deduplicate(pages, run.to / "clean", run.to / "dedup", settings, map)
    run.report["clean"] = counts["clean"]
    print(f"{counts['clean']['out']} left without repeated URLs ({counts['clean']['url']}), texts "
          f"({counts['clean']['exact']}) and near-duplicates ({counts['clean']['near']})", flush=True)  # fmt: skip
    index = run.to / "benchmarks.npz"
    if not index.exists():  # now, so that a missing folder is said before the work is done
        decontaminate.Index.build(config.benchmarks).save(index)
    kept: list[Path] = []
    for number in range(1, config.rounds + 1):
        kept = one_round(run, number, kept)
        share = run.report["rounds"][-1]["collected_before"]
        if share is not None and share >= config.stop:
            break
    run.report["stopped"] = "rule" if share is not None and share >= config.stop else "rounds"
    shards, drops = run.files("corpus", ".jsonl"), run.files("corpus/drops", ".jsonl")
    tasks = [(s, k, index, t, d) for s, k, t, d in zip(run.clean, kept, shards, drops, strict=True)]
    run.report["corpus"] = run.step("corpus", corpus_shard, tasks)
    if not run.report["corpus"]["out"]:
        raise InputError(f"--benchmarks {config.benchmarks}: every page holds text of it; is the crawl in that folder?")
    return run.report


def main() -> None:
    config = parse(Config, description=__doc__)
    check(config)
    with executor(config) as map:
        report = mine(config, map)
    with atomic_write(Path(config.to) / "report.json") as file:
        json.dump(report, file, indent=1, ensure_ascii=False)
    print(f"wrote {Path(config.to) / 'report.json'}")
