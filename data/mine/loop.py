"""The data engine (paper 2.1, figure 2): crawl files in, a decontaminated mathematical corpus out.

    python -m data.mine --config FILE.toml --to DIR [--workers 8 | --executor dask://HOST:PORT]

    pages      crawl files                                        -> TO/pages       pages.py
    clean      without repeated URLs, texts and near-duplicates   -> TO/clean       dedup.py
    round 1..  a classifier of positives against random pages     -> TO/round_K     classifier.py
               a score for every page; the best are collected, up to `keep_tokens`  recall.py
               domains more than 10 % collected; annotated URLs   -> more positives domains.py
               until `stop` of what a round collects was collected in the round before
    corpus     the last collection, without benchmark text        -> TO/corpus      decontaminate.py
    shards     the corpus as tokens, with --tokenizer             -> TO/shards      for train_pretrain.py
    report     what happened, and how to repeat it                -> TO/report.md, report.json, manifest.json

Every step is a function of one shard (a crawl file) or of one partition, which writes a file and then a marker with
its counts: a run that was killed goes on from the markers with the same command, or --config TO/options.toml. Neither
the number of workers nor the kind of executor changes a byte of the result; these, the tokenizer and the number of
rounds may change within a run, and URL prefixes may be annotated until the next round begins. Memory is bounded by the
shard, the partition and `examples`; only the URL prefixes of mathematical domains, which are for a person to read, are
held whole.

With --repeat MANIFEST the options and inputs are those of an earlier run; the result must be the same, and it is an
error if it is not.
"""

import heapq
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from data.io import InputError, atomic_write, jsonl_files, read_jsonl
from data.mine import classifier, decontaminate, dedup, domains, recall, report, steps
from data.mine.dedup import run_once, run_task, shard_name, shard_numbers
from data.mine.steps import draw, read_json, write_json
from runtime.options import option, parse, to_toml

ANNOTATE = ("file", "ask", "auto")


@dataclass
class Config:
    crawl: list[str] = option([], "WARC, WET or JSONL files of pages, or folders of them")
    positives: list[str] = option(
        [], "the seed corpus: JSONL files (or folders) with the text of mathematical pages"
    )
    negatives: list[str] = option(
        [], "JSONL files with the text of other pages; none: random pages of the crawl"
    )
    benchmarks: str = option("", "folder of problem files whose text must not be in the corpus")
    to: str = option("", "run directory")
    repeat: str = option(
        "", "manifest.json of a run to repeat: its options, its inputs, its annotations"
    )
    # the classifier (2.1)
    examples: int = option(500_000, "most positives, and as many negatives")
    width: int = option(256, "dimension of the vectors")
    rate: float = option(0.1, "learning rate")
    ngrams: int = option(3, "words of the longest n-gram")
    min_count: int = option(3, "words seen fewer times have no vector of their own")
    epochs: int = option(3, "times each example is seen")
    buckets: int = option(2**21, "vectors that n-grams share")
    # recall
    keep_tokens: list[int] = option(
        [40_000_000_000, 80_000_000_000, 120_000_000_000],
        "tokens (words, CJK characters) that each round collects, the best first; later rounds take the last number",
    )
    rounds: int = option(4, "most rounds")
    stop: float = option(
        0.98, "stop when this share of what a round collects was collected in the round before"
    )
    # domains
    annotate: str = option(
        "file", "file: --annotation as it is; ask: on the terminal; auto: a rule does it"
    )
    annotation: str = option(
        "", "file of URL prefixes that hold mathematics; none: TO/annotation.txt"
    )
    domain_share: float = option(
        0.10, "a domain of whose pages more than this share is collected is mathematical"
    )
    domain_pages: int = option(10, "pages that such a domain has at least")
    auto_share: float = option(
        0.25, "auto: prefixes of whose pages more than this share is collected are taken"
    )
    # deduplication and decontamination
    threshold: float = option(
        0.8, "Jaccard similarity of word 5-grams from which pages are near-duplicates"
    )
    permutations: int = option(128, "length of a MinHash signature")
    contaminated: str = option("page", "what goes where benchmark text is found: page or paragraph")
    # the run
    tokenizer: str = option(
        "", "folder of a tokenizer: the corpus is written as token shards too; may be given later"
    )
    round_corpora: bool = option(
        False, "write the corpus of every round, not only the last, as TO/round_K/corpus"
    )
    truth: str = option(
        "", "JSONL of {url, kind}: the report tells how much of kind math each round found"
    )
    partitions: int = option(8, "parts of every reduce: more parts need less memory each")
    seed: int = option(0, "seed of the classifier and of what is sampled")
    workers: int = option(max(1, os.cpu_count() or 1), "processes")
    executor: str = option(
        "processes", "processes, or dask://HOST:PORT, the scheduler of a cluster that shares TO"
    )


# What may differ between two commands of one run; all but `rounds` is no matter of the manifest either.
FREE = ("rounds", "to", "repeat", "workers", "executor", "tokenizer")


def check(config: Config) -> None:
    for name in ("crawl", "positives", "benchmarks", "to", "keep_tokens"):
        if not getattr(config, name):
            raise InputError(f"--{name} is needed (python -m data.mine --help)")
    for name, choices in {"annotate": ANNOTATE, "contaminated": decontaminate.PARTS}.items():
        if getattr(config, name) not in choices:
            raise InputError(
                f"--{name} {getattr(config, name)}: unknown; choose one of {', '.join(choices)}"
            )
    for name in ("examples", "rounds", "partitions", "workers", "domain_pages"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name} must be at least 1")
    if min(config.keep_tokens) < 1:
        raise InputError(f"--keep_tokens {min(config.keep_tokens)}: must be at least 1")
    for name in ("stop", "domain_share", "auto_share"):
        if not 0 < getattr(config, name) <= 1:
            raise InputError(f"--{name} {getattr(config, name)}: give a share above 0, at most 1")
    inputs = {
        "positives": config.positives,
        "negatives": config.negatives,
        **{name: [getattr(config, name)] for name in ("annotation", "tokenizer", "truth")},
    }
    for name, path in ((name, path) for name, paths in inputs.items() for path in paths if path):
        if not Path(path).exists():
            raise InputError(f"--{name} {path}: does not exist")


# ---- Where the work runs ---------------------------------------------------------------------------------------------


@contextmanager
def executor(config: Config) -> Iterator[Callable]:
    """A `map` over tasks: in this process, in processes of this machine, or on a Dask cluster."""
    if config.executor.startswith("dask://"):
        try:
            from distributed import Client
        except ImportError:
            raise InputError(
                f"--executor {config.executor} needs Dask: pip install 'dask[distributed]'"
            ) from None
        try:
            client = Client(f"tcp://{config.executor.removeprefix('dask://')}", timeout=5)
        except (OSError, ValueError) as error:
            raise InputError(
                f"--executor {config.executor}: no scheduler answers there ({error})"
            ) from None
        with client, client.get_executor(pure=False) as pool:
            yield pool.map
    elif config.executor != "processes":
        raise InputError(
            f"--executor {config.executor}: unknown; give processes or dask://HOST:PORT"
        )
    elif config.workers == 1:
        yield map
    else:
        with ProcessPoolExecutor(config.workers, mp_context=get_context("spawn")) as pool:
            yield pool.map


# ---- The whole -------------------------------------------------------------------------------------------------------


class Run:
    """The folders of a run, its shards of clean pages, and the map that its steps go through."""

    def __init__(self, config: Config, map: Callable):
        self.config, self.map, self.to = config, map, Path(config.to)
        self.pages = 0  # clean ones

    def step(self, name: str, function: Callable, tasks: Iterable[tuple]) -> list[dict]:
        """The counts of a step for each task, in order; what has a marker is not run again."""
        tasks = [
            (self.to / "done" / f"{name}-{i:05d}.json", function, *own)
            for i, own in enumerate(tasks)
        ]
        began = time.perf_counter()
        counts = list(self.map(run_task, tasks))
        self.took(name, began)
        return counts

    def took(self, name: str, began: float) -> None:
        with open(
            self.to / "timing.jsonl", "a", encoding="utf-8"
        ) as file:  # apart from the report, which repeats
            file.write(
                json.dumps({"step": name, "seconds": round(time.perf_counter() - began, 3)}) + "\n"
            )

    def files(self, folder: str, suffix: str = ".jsonl") -> list[Path]:
        """One file a shard of clean pages."""
        return [
            self.to / folder / f"part-{number:05d}{suffix}"
            for number in shard_numbers(self.to / "clean")
        ]

    def each(self, name: str, function: Callable, *columns) -> list[dict]:
        """A step over the shards of clean pages: a column is a list with a value a shard, or a value for all."""
        shards = self.files("clean")
        rows = [
            column if isinstance(column, list) else [column] * len(shards) for column in columns
        ]
        return self.step(name, function, zip(shards, *rows, strict=True))


def total(counts: Iterable[dict]) -> dict:
    """The sums of the counts that are whole numbers."""
    sums: Counter = Counter()
    for one in counts:
        sums.update({key: value for key, value in one.items() if isinstance(value, int)})
    return dict(sums)


def crawl_files(paths: Iterable[str]) -> list[tuple[str, Path]]:
    """(source, file): the files, and all those below the folders, in the order of their names."""
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(
                f"--crawl {path}: does not exist; give files or folders of WARC, WET or JSONL pages"
            )
        inside = (
            sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        )
        found += [(str(path), file) for file in inside]
    if not found:
        raise InputError(
            f"--crawl {', '.join(map(str, paths))}: no file in it; give files of WARC, WET or JSONL pages"
        )
    return found


def some_texts(paths: Iterable[Path], most: int, seed: int, option: str) -> list[str]:
    """At most so many texts of JSONL files, drawn without repetition, in an order drawn too; no more are held. Raises
    InputError for a line without text, and where there is none."""

    def rows() -> Iterator[tuple[int, str]]:
        for path in paths:
            for number, row in read_jsonl(path):
                if not isinstance(row.get("text"), str):
                    raise InputError(
                        f"{path}:{number}: no text in it; each line must be an object with 'text'"
                    )
                yield draw(seed, path.name, number), row["text"]

    found = [text for _, text in heapq.nsmallest(most, rows(), key=lambda row: row[0])]
    if not found:
        raise InputError(
            f"{option}: no text in it, and the classifier needs examples of both kinds; give more"
        )
    return found


def settings(config) -> classifier.Settings:
    """Those of the classifier, of options with these names."""
    names = ("width", "rate", "ngrams", "min_count", "epochs", "buckets")
    return classifier.Settings(**{name: getattr(config, name) for name in names})


def learn(run: Run, number: int) -> dict:
    """Train the round's classifier: the seed corpus and what was annotated, against random other pages."""
    config, folder = run.config, run.to / f"round_{number}"
    before, kept, added = run.to / f"round_{number - 1}", None, None
    if number > 1:
        kept, added = (
            run.files(f"{before.name}/kept", ".npy"),
            run.files(f"{before.name}/examples", ".npy"),
        )
    share = min(
        1.0, 4.0 * config.examples / run.pages
    )  # more than are needed, as some are annotated or collected
    targets = run.files(f"round_{number}/examples", ".npy")
    annotation = annotation_of(run, number - 1) if number > 1 else None
    columns = kept, added, annotation, share, config.seed, targets
    found = total(run.each(f"examples_{number}", steps.sample_shard, *columns))

    def train() -> dict:
        new = [target.with_suffix(".positives.jsonl") for target in targets]
        where = f"--positives {', '.join(config.positives)}"
        positives = some_texts(
            [*jsonl_files(config.positives), *new], config.examples, config.seed, where
        )
        others = [*jsonl_files(config.negatives)] or [
            t.with_suffix(".negatives.jsonl") for t in targets
        ]
        where = (
            f"--negatives {', '.join(config.negatives)}"
            if config.negatives
            else f"round {number}: pages left over"
        )
        negatives = some_texts(others, len(positives), config.seed, where)
        threads = min(config.workers, os.cpu_count() or 1)
        model = classifier.train(positives, negatives, settings(config), config.seed, threads)
        model.save(folder / "classifier.npz")
        return {
            "positives": len(positives),
            "from_sites": found["positives"],
            "negatives": len(negatives),
        }

    began = time.perf_counter()
    counts = run_once(run.to / "done" / f"classifier_{number}.json", train)
    run.took(f"classifier_{number}", began)
    return counts


def collect(run: Run, number: int) -> tuple[list[Path], dict]:
    """Score all pages, find the cut, collect what is above it."""
    limit = run.config.keep_tokens[min(number, len(run.config.keep_tokens)) - 1]
    scores = run.files(f"round_{number}/scores", ".npy")
    scored = run.each(
        f"scores_{number}",
        recall.score_shard,
        run.to / f"round_{number}" / "classifier.npz",
        scores,
    )

    def bins(name: str, upper: int | None) -> np.ndarray:
        targets = run.files(f"round_{number}/{name}", ".npy")
        tasks = [(path, upper, target) for path, target in zip(scores, targets, strict=True)]
        run.step(f"{name}_{number}", recall.tokens_by_key, tasks)
        return recall.sum_bins(targets)

    least = recall.cutoff(bins("upper", None), partial(bins, "lower"), limit)
    kept = run.files(f"round_{number}/kept", ".npy")
    before = run.files(f"round_{number - 1}/kept", ".npy") if number > 1 else None
    found = run.each(f"kept_{number}", recall.collect_shard, scores, least, before, kept)
    sums, pages = total(found), total(scored)
    share = sums["again"] / sums["collected"] if number > 1 else None
    histogram = np.sum([one["histogram"] for one in scored], axis=0).tolist()
    return kept, {
        "limit": limit,
        "cutoff": least,
        "collected": sums["collected"],
        "tokens": sums["tokens"],
        "of_pages": pages["pages"],
        "of_tokens": pages["tokens"],
        "collected_before": share,
        "histogram": histogram,
        "nearest": recall.nearest(found, least),
    }


def annotate(run: Run, number: int, kept: list[Path]) -> dict:
    """Find the mathematical domains, list them with their URL prefixes in round_K/domains.txt, and have these
    annotated."""
    config, folder = run.config, run.to / f"round_{number}"
    tables = run.files(f"round_{number}/domains")
    run.each(f"domains_{number}", steps.domains_shard, kept, config.partitions, tables)
    parts = [folder / "domains" / f"math-{part:05d}.json" for part in range(config.partitions)]
    tasks = [
        (tables, i, config.domain_share, config.domain_pages, part) for i, part in enumerate(parts)
    ]
    sums = total(run.step(f"math_domains_{number}", steps.domains_part, tasks))
    counts = {name: row for part in parts for name, row in read_json(part).items()}
    names = folder / "math_domains.json"
    run_once(names, lambda: sorted(counts, key=lambda name: (-counts[name][1], name)))
    targets = run.files(f"round_{number}/prefixes", ".json")
    run.each(f"prefixes_{number}", steps.prefix_shard, kept, names, targets)
    merged = domains.merge_prefixes(
        {name: domains.Prefix(**prefix) for name, prefix in read_json(path).items()}
        for path in targets
    )
    table = domains.domain_table(counts, merged, read_json(names))
    with atomic_write(folder / "domains.txt") as file:
        file.write(domains.table_text(table))
    own = annotation_file(run)
    if not (folder / "annotation.txt").exists():  # else the next round has begun
        if config.annotate == "auto":
            earlier = domains.read_annotations(own) if own.exists() else []
            found = domains.auto_annotate(table, config.auto_share)
            comment = f"Chosen by a rule (more than {100 * config.auto_share:.0f} % collected), read by no person."
            domains.write_annotations(own, dict.fromkeys(earlier + found), comment)
        elif config.annotate == "ask":
            domains.annotate(table, own)
    prefixes = annotations(run, number)
    return sums | {"annotated": len(prefixes), "table": domains.table_rows(table)}


def annotation_file(run: Run) -> Path:
    return Path(run.config.annotation or run.to / "annotation.txt")


def annotations(run: Run, number: int) -> list[str]:
    """The URL prefixes after a round: those that the next one uses, or will if it begins now."""
    done, own = run.to / f"round_{number}" / "annotation.txt", annotation_file(run)
    return next((domains.read_annotations(path) for path in (done, own) if path.exists()), [])


def annotation_of(run: Run, number: int) -> Path:
    """The file of these, which stays as it is from now on."""
    path = run.to / f"round_{number}" / "annotation.txt"
    if not path.exists():
        domains.write_annotations(path, annotations(run, number), f"After round {number}.")
    return path


def decontaminated(run: Run, kept: list[Path], name: str, folder: str) -> list[dict]:
    targets, drops = run.files(folder), run.files(f"{folder}/drops")
    index, part = run.to / "benchmarks.npz", run.config.contaminated
    return run.each(name, steps.corpus_shard, kept, index, part, targets, drops)


def one_round(run: Run, number: int) -> tuple[list[Path], dict]:
    """A round: what was collected, and its row of the report, which TO/round_K/report.json holds too."""
    learned = learn(run, number)
    kept, found = collect(run, number)
    row = {"round": number} | learned | found | annotate(run, number, kept)
    if run.config.round_corpora:
        decontaminated(run, kept, f"round_corpus_{number}", f"round_{number}/corpus")
    write_json(run.to / f"round_{number}" / "report.json", row)
    again = f" ({100 * row['collected_before']:.1f} % of them before)" if number > 1 else ""
    print(
        f"round {number}: {row['positives']} positives, {row['collected']} of {row['of_pages']} pages{again}, "
        f"{row['math_domains']} mathematical domains, {row['annotated']} URL prefixes",
        flush=True,
    )
    return kept, row


def token_shards(run: Run, number: int) -> dict:
    """TO/shards as train_pretrain.py reads them: a file of tokens for each shard of the corpus that has text."""
    from data.shards import write_manifest
    from data.tokenizer import Tokenizer

    known, folder = Tokenizer.load(run.config.tokenizer), run.to / "shards"
    made = run_once(run.to / "done" / "tokenizer.json", lambda: {"hash": known.hash})
    if made != {"hash": known.hash}:
        raise InputError(
            f"--tokenizer {run.config.tokenizer}: {folder} was made with another; remove that folder and "
            f"{run.to}/done/to*.json to make it again"
        )
    sources = [path for path in run.files("corpus") if path.stat().st_size]
    targets = [folder / f"tokens-{i:05d}.bin" for i in range(len(sources))]
    tasks = [
        (source, run.config.tokenizer, target)
        for source, target in zip(sources, targets, strict=True)
    ]
    files = run.step(f"tokens_{number}", steps.tokens_shard, tasks)
    return write_manifest(files, folder, known.hash, "mined", known.vocab_size, known.eos_id)


def mine(config: Config, map: Callable) -> dict:
    """The whole run; returns the report."""
    run = Run(config, map)
    files = crawl_files(config.crawl)
    options = {name: value for name, value in asdict(config).items() if name not in FREE}
    setup = {"options": options, "crawl": [[str(file), file.stat().st_size] for _, file in files]}
    options = {"rounds": config.rounds} | options
    if run_once(run.to / "setup.json", lambda: setup) != json.loads(json.dumps(setup)):
        raise InputError(
            f"{run.to}: holds a run with other options or files; give another --to, or remove it"
        )
    with atomic_write(run.to / "options.toml") as file:
        file.write(to_toml(config))
    index = run.to / "benchmarks.npz"
    if not index.exists():  # now, so that a missing folder is said before the work is done
        decontaminate.Index.build(config.benchmarks).save(index)
    pages = run.to / "pages"
    tasks = [
        (file, str(file) == source, pages / shard_name(i)) for i, (source, file) in enumerate(files)
    ]
    extracted = run.step("pages", steps.extract, tasks)
    if not total(extracted)["pages"]:
        raise InputError(
            f"--crawl: no page in {len(files)} files ({total(extracted)}); give files of web pages"
        )
    digests = {str(file): one["sha256"] for (_, file), one in zip(files, extracted, strict=True)}
    if config.repeat:
        for number, prefixes in report.compare_crawl(Path(config.repeat), digests)[
            "annotations"
        ].items():
            path = run.to / f"round_{number}" / "annotation.txt"
            domains.write_annotations(path, prefixes, f"After round {number} of {config.repeat}.")
    print(f"{total(extracted)['pages']} pages of {len(files)} files", flush=True)
    near = dedup.Settings(
        config.permutations, threshold=config.threshold, partitions=config.partitions
    )
    began = time.perf_counter()
    clean = dedup.deduplicate(pages, run.to / "clean", run.to / "dedup", near, map)["clean"]
    run.took("dedup", began)
    run.pages = clean["out"]
    print(
        f"{clean['out']} left without repeated URLs ({clean['url']}), texts ({clean['exact']}) and near-duplicates "
        f"({clean['near']})",
        flush=True,
    )
    rounds, row = [], {}
    for number in range(1, config.rounds + 1):
        kept, row = one_round(run, number)
        rounds.append(row)
        if number > 1 and row["collected_before"] >= config.stop:
            break
    corpus = decontaminated(run, kept, f"corpus_{number}", "corpus")
    if not total(corpus)["out"]:
        raise InputError(
            f"--benchmarks {config.benchmarks}: every page holds text of it; is the crawl in that folder?"
        )
    print(f"{total(corpus)['out']} pages without benchmark text in {run.to / 'corpus'}", flush=True)
    tokens = token_shards(run, number) if config.tokenizer else None
    stopped = "rule" if number > 1 and row["collected_before"] >= config.stop else "rounds"
    found = {
        "options": options,
        "pages": total(extracted),
        "clean": clean,
        "rounds": rounds,
        "stopped": stopped,
        "corpus": total(corpus),
        "languages": report.by_language(corpus),
        "sources": report.by_source([source for source, _ in files], extracted, corpus),
        "shards": tokens,
    }
    if config.truth:
        found["truth"] = report.against_truth(config.truth, config.benchmarks, run.to, len(rounds))
    report.write(run.to, found)
    made = {path.name: one["sha256"] for path, one in zip(run.files("corpus"), corpus, strict=True)}
    chosen = {number: annotations(run, number) for number in range(1, len(rounds))}
    report.write_manifest(run.to, options, digests, chosen, made, tokens)
    for pattern in (".*.tmp", ".*.collected"):  # half-written files of a run that was killed
        for path in run.to.rglob(pattern):
            path.unlink()
    return found


def main() -> None:
    config = parse(Config, description=__doc__)
    if config.repeat:
        config = replace(
            config, **report.read_manifest(Path(config.repeat))["options"], annotation=""
        )
    check(config)
    try:
        with executor(config) as map:
            mine(config, map)
    except BrokenExecutor:
        raise InputError(
            "a worker process was killed, perhaps for want of memory; the same command, with fewer "
            "--workers, goes on from what is done"
        ) from None
    if config.repeat:
        report.compare(Path(config.repeat), Path(config.to) / "manifest.json")
    print(f"wrote {Path(config.to) / 'report.md'}")
