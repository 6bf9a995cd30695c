"""The data engine (paper 2.1, figure 2): crawl files in, a decontaminated mathematical corpus out.

    python -m data.mine --config FILE.toml --to DIR [--workers 8 | --executor dask://HOST:PORT]

    pages    read the crawl files                                     TO/pages    pages.py
    clean    drop repeated URLs, repeated texts and near-duplicates   TO/clean    dedup.py
    rounds   train a classifier: positives against random pages       TO/round_K  classifier.py
             score every page, collect the best `keep_tokens` tokens              recall.py
             find the domains of which more than 10 % was collected;              domains.py
             annotated URL prefixes on them give new positives
             stop when `stop` of what a round collects was collected before
    corpus   the last collection, without benchmark text              TO/corpus   decontaminate.py
    shards   the corpus as tokens, if --tokenizer is set              TO/shards
    report   what happened, and how to repeat it                      TO/report.md, report.json,
                                                                      manifest.json

A step is a function of one shard (a crawl file) or of one partition. It writes a file, then a
marker with counts. A run that was killed continues from the markers: give the same command again,
or --config TO/options.toml. The result is the same, byte for byte, for every number of workers and
for every executor. Four options may change within a run: --workers, --executor, --tokenizer and
--rounds. URL prefixes may be annotated until the next round begins.

The shard size, the partition size and `examples` bound the memory. Only the URL prefixes of the
mathematical domains are held as a whole, because a person is to read them.

--repeat MANIFEST takes options and inputs from an earlier run. A different result is an error.
"""

import heapq
import operator
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from runtime.options import check, option, parse, to_toml

import numpy as np

from data.io import InputError, atomic_write, jsonl_files, read_jsonl
from data.mine import classifier, decontaminate, dedup, domains, recall, report, steps
from data.mine.run import Run, executor, total
from data.mine.store import read_json, run_once, shard_name, write_json


@dataclass
class Config:
    # inputs and output
    crawl: list[str] = option(
        [], "WARC, WET or JSONL files of pages, or folders of them", required=True
    )
    positives: list[str] = option(
        [], "seed corpus: JSONL files or folders of mathematical text", required=True
    )
    negatives: list[str] = option([], "JSONL files, text of other pages; empty: random crawl pages")
    benchmarks: str = option("", "folder of problem files to keep out of the corpus", required=True)
    to: str = option("", "run directory", required=True)
    repeat: str = option("", "manifest.json of a run to repeat, with its options and annotations")
    # classifier (2.1)
    examples: int = option(500_000, "maximum number of positives, and of negatives", least=1)
    width: int = option(256, "dimension of the vectors", least=1)
    rate: float = option(0.1, "learning rate", above=0)
    ngrams: int = option(3, "words in the longest n-gram", least=1)
    min_count: int = option(3, "only words seen this often have their own vector", least=1)
    epochs: int = option(3, "passes over the examples", least=1)
    buckets: int = option(2**21, "vectors that all n-grams share", least=1)
    # recall
    keep_tokens: list[int] = option(
        [40_000_000_000, 80_000_000_000, 120_000_000_000],
        "words and CJK characters to collect, for each round; the last repeats",
        required=True,
        least=1,
    )
    rounds: int = option(4, "maximum number of rounds", least=1)
    stop: float = option(0.98, "stop when this share was collected before", above=0, most=1)
    # domains
    annotate: str = option(
        "file",
        "annotate by a file, the terminal or a rule",
        choices=("file", "ask", "auto"),
    )
    annotation: str = option("", "file of mathematical URL prefixes; empty: TO/annotation.txt")
    domain_share: float = option(0.10, "a domain above this share is mathematical", above=0, most=1)
    domain_pages: int = option(10, "minimum number of pages of a mathematical domain", least=1)
    auto_share: float = option(0.25, "auto: a prefix above this share is chosen", above=0, most=1)
    # deduplication and decontamination
    threshold: float = option(0.8, "Jaccard similarity of near-duplicates", above=0, most=1)
    permutations: int = option(128, "length of a MinHash signature", least=8)
    contaminated: str = option(
        "page", "what to drop where benchmark text is found", choices=decontaminate.PARTS
    )
    # the run
    tokenizer: str = option("", "tokenizer folder: also write token shards (can be added later)")
    round_corpora: bool = option(False, "also write the corpus of every round, TO/round_K/corpus")
    truth: str = option("", "JSONL of {url, kind}: report precision and recall of kind math")
    partitions: int = option(8, "parts of every reduce; more parts need less memory", least=1)
    seed: int = option(0, "seed of the classifier and of the sampled examples", least=0)
    workers: int = option(max(1, os.cpu_count() or 1), "processes", least=1)
    executor: str = option(
        "processes", "processes, or dask://HOST:PORT of a cluster that shares TO"
    )


# Options that may differ between two commands of the same run. The manifest keeps only `rounds`.
FREE = ("rounds", "to", "repeat", "workers", "executor", "tokenizer")


def fixed_options(config: Config) -> dict:
    """The options that cannot change within a run."""
    options = asdict(config)
    for name in FREE:
        del options[name]
    return options


def check_config(config: Config) -> None:
    """Raise InputError for an option out of range or an input file that does not exist."""
    check(config)
    paths = [("positives", path) for path in config.positives]
    paths += [("negatives", path) for path in config.negatives]
    paths += [(name, getattr(config, name)) for name in ("annotation", "tokenizer", "truth")]
    for name, path in paths:
        if path and not Path(path).exists():
            raise InputError(f"--{name} {path}: does not exist")


# ---- Inputs ----------------------------------------------------------------------------------


def crawl_files(paths: Iterable[str]) -> list[tuple[str, Path]]:
    """(source, file) for every file of --crawl, where source is a file or a folder of the option.

    A folder stands for all files below it, in the order of their names. Raises InputError.
    """
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(
                f"--crawl {path}: does not exist; give files or folders of WARC, WET or JSONL pages"
            )
        if path.is_dir():
            below = sorted(file for file in path.rglob("*") if file.is_file())
            files += [(str(path), file) for file in below]
        else:
            files.append((str(path), path))
    if not files:
        raise InputError(
            f"--crawl {', '.join(paths)}: no file there; give files of WARC, WET or JSONL pages"
        )
    return files


def sample_texts(
    paths: Iterable[Path],
    count: int,
    seed: int,
    option: str,
) -> list[str]:
    """At most `count` texts of JSONL files, drawn without repetition and in random order.

    Only `count` texts are in memory. Raises InputError for a line without text, and for no text.
    """

    def rows() -> Iterator[tuple[int, str]]:
        for path in paths:
            for number, row in read_jsonl(path):
                if not isinstance(row.get("text"), str):
                    raise InputError(f"{path}:{number}: no text; each line needs a 'text' field")
                yield steps.random_bits(seed, path.name, number), row["text"]

    first = operator.itemgetter(0)
    chosen = heapq.nsmallest(count, rows(), key=first)
    if not chosen:
        raise InputError(f"{option}: no text; the classifier needs examples of both kinds")
    return [text for _, text in chosen]


def classifier_settings(config) -> classifier.Settings:
    """The settings of the classifier, from options with the same names."""
    return classifier.Settings(
        width=config.width,
        rate=config.rate,
        ngrams=config.ngrams,
        min_count=config.min_count,
        epochs=config.epochs,
        buckets=config.buckets,
    )


# ---- A round ---------------------------------------------------------------------------------


def train_classifier(run: Run, number: int) -> dict:
    """Train the classifier of a round; return how many examples of each kind it has.

    Positives: the seed corpus, and pages under annotated prefixes. Negatives: random other pages.
    """
    config, folder = run.config, run.round_folder(number)
    kept = added = annotation = None
    if number > 1:
        kept = run.files(f"round_{number - 1}/kept", ".npy")
        added = run.files(f"round_{number - 1}/examples", ".npy")
        annotation = freeze_annotations(run, number - 1)

    # Sample more pages than necessary, because some are annotated or collected.
    share = min(1.0, 4.0 * config.examples / run.pages)
    targets = run.files(f"round_{number}/examples", ".npy")
    columns = (kept, added, annotation, share, config.seed, targets)
    sampled = total(run.over_shards(f"examples_{number}", steps.sample_shard, *columns))

    def train() -> dict:
        files = [*jsonl_files(config.positives)]
        files += [target.with_suffix(".positives.jsonl") for target in targets]
        where = f"--positives {', '.join(config.positives)}"
        positives = sample_texts(files, config.examples, config.seed, where)

        files = [*jsonl_files(config.negatives)]
        where = f"--negatives {', '.join(config.negatives)}"
        if not files:
            files = [target.with_suffix(".negatives.jsonl") for target in targets]
            where = f"round {number}: remaining pages"
        negatives = sample_texts(files, len(positives), config.seed, where)

        threads = min(config.workers, os.cpu_count() or 1)
        settings = classifier_settings(config)
        model = classifier.train(positives, negatives, settings, config.seed, threads)
        model.save(folder / "classifier.npz")
        return {
            "positives": len(positives),
            "from_sites": sampled["positives"],
            "negatives": len(negatives),
        }

    start = time.perf_counter()
    counts = run_once(run.marker(f"classifier_{number}"), train)
    run.log_time(f"classifier_{number}", start)
    return counts


def collect(run: Run, number: int) -> tuple[list[Path], dict]:
    """Score all pages, find the cutoff, and collect the pages above it.

    Returns the files that say which pages are collected, and the counts for the report.
    """
    limits = run.config.keep_tokens
    limit = limits[min(number, len(limits)) - 1]
    model_file = run.round_folder(number) / "classifier.npz"
    scores = run.files(f"round_{number}/scores", ".npy")
    scored = run.over_shards(f"scores_{number}", recall.score_shard, model_file, scores)

    def bins(name: str, upper: int | None) -> np.ndarray:
        targets = run.files(f"round_{number}/{name}", ".npy")
        tasks = zip(scores, [upper] * len(scores), targets, strict=True)
        run.step(f"{name}_{number}", recall.tokens_by_key, tasks)
        return recall.sum_bins(targets)

    cutoff = recall.cutoff(bins("upper", None), partial(bins, "lower"), limit)
    kept = run.files(f"round_{number}/kept", ".npy")
    before = run.files(f"round_{number - 1}/kept", ".npy") if number > 1 else None
    columns = (scores, cutoff, before, kept)
    collected = run.over_shards(f"kept_{number}", recall.collect_shard, *columns)

    sums, pages = total(collected), total(scored)
    histograms = [row["histogram"] for row in scored]
    return kept, {
        "limit": limit,
        "cutoff": cutoff,
        "collected": sums["collected"],
        "tokens": sums["tokens"],
        "of_pages": pages["pages"],
        "of_tokens": pages["tokens"],
        "collected_before": sums["again"] / sums["collected"] if number > 1 else None,
        "histogram": np.sum(histograms, axis=0).tolist(),
        "nearest": recall.nearest(collected, cutoff),
    }


def annotate(run: Run, number: int, kept: list[Path]) -> dict:
    """Find the mathematical domains, list their URL prefixes, and have the prefixes annotated.

    The list is round_K/domains.txt. Returns the counts and the table for the report.
    """
    config, folder = run.config, run.round_folder(number)

    # Count pages by domain, and choose the mathematical domains.
    tables = run.files(f"round_{number}/domains")
    run.over_shards(f"domains_{number}", steps.domains_shard, kept, config.partitions, tables)
    parts = [folder / "domains" / f"math-{part:05d}.json" for part in range(config.partitions)]
    rule = (config.domain_share, config.domain_pages)
    tasks = []
    for part, path in enumerate(parts):
        tasks.append((tables, part, *rule, path))
    sums = total(run.step(f"math_domains_{number}", steps.domains_part, tasks))
    counts = {}
    for path in parts:
        counts.update(read_json(path))
    names = folder / "math_domains.json"
    run_once(names, lambda: domains.math_domains(counts, share=0))

    # Count pages by URL prefix on these domains.
    targets = run.files(f"round_{number}/prefixes", ".json")
    run.over_shards(f"prefixes_{number}", steps.prefix_shard, kept, names, targets)
    prefixes = domains.merge_prefixes(map(domains.read_prefixes, targets))
    table = domains.domain_table(counts, prefixes, read_json(names))
    with atomic_write(folder / "domains.txt") as file:
        file.write(domains.table_text(table))

    # Annotate, unless the next round has begun.
    if not (folder / "annotation.txt").exists():
        path = annotation_file(run)
        if config.annotate == "auto":
            known = domains.read_annotations(path) if path.exists() else []
            chosen = domains.auto_annotate(table, config.auto_share)
            comment = (
                f"Chosen by a rule (more than {100 * config.auto_share:.0f} % collected), "
                "read by no person."
            )
            domains.write_annotations(path, dict.fromkeys(known + chosen), comment)
        elif config.annotate == "ask":
            domains.annotate(table, path)
    annotated = annotations(run, number)
    return sums | {"annotated": len(annotated), "table": domains.table_rows(table)}


def annotation_file(run: Run) -> Path:
    return Path(run.config.annotation or run.to / "annotation.txt")


def annotations(run: Run, number: int) -> list[str]:
    """The URL prefixes after a round: frozen ones if the next round has begun, else the current."""
    for path in (run.round_folder(number) / "annotation.txt", annotation_file(run)):
        if path.exists():
            return domains.read_annotations(path)
    return []


def freeze_annotations(run: Run, number: int) -> Path:
    """Copy the URL prefixes to round_K/annotation.txt, unless done before; return this file."""
    path = run.round_folder(number) / "annotation.txt"
    if not path.exists():
        domains.write_annotations(path, annotations(run, number), f"After round {number}.")
    return path


def write_corpus(
    run: Run,
    kept: list[Path],
    name: str,
    folder: str,
) -> list[dict]:
    """Write the collected pages without benchmark text to a folder of the run."""
    targets, drops = run.files(folder), run.files(f"{folder}/drops")
    index = run.to / "benchmarks.npz"
    columns = (kept, index, run.config.contaminated, targets, drops)
    return run.over_shards(name, steps.corpus_shard, *columns)


def run_round(run: Run, number: int) -> tuple[list[Path], dict]:
    """Run a round. Returns the files of `collect`, and the row for the report."""
    examples = train_classifier(run, number)
    kept, collected = collect(run, number)
    row = {"round": number} | examples | collected | annotate(run, number, kept)
    if run.config.round_corpora:
        write_corpus(run, kept, f"round_corpus_{number}", f"round_{number}/corpus")
    write_json(run.round_folder(number) / "report.json", row)

    before = f" ({100 * row['collected_before']:.1f} % of them before)" if number > 1 else ""
    print(
        f"round {number}: {row['positives']} positives, "
        f"{row['collected']} of {row['of_pages']} pages{before}, "
        f"{row['math_domains']} mathematical domains, {row['annotated']} URL prefixes",
        flush=True,
    )
    return kept, row


# ---- The whole run ---------------------------------------------------------------------------


def begin(run: Run, files: list[tuple[str, Path]]) -> None:
    """Create the run directory, or check that it belongs to a run with the same options."""
    sizes = []
    for _, file in files:
        sizes.append([str(file), file.stat().st_size])
    setup = {"options": fixed_options(run.config), "crawl": sizes}
    if run_once(run.to / "setup.json", lambda: setup) != setup:
        raise InputError(
            f"{run.to}: contains a run with other options or files; "
            "give another --to, or remove this folder"
        )
    with atomic_write(run.to / "options.toml") as file:
        file.write(to_toml(run.config))
    # Read the benchmarks now, so that a mistake shows before the long work.
    index = run.to / "benchmarks.npz"
    if not index.exists():
        decontaminate.Index.build(run.config.benchmarks).save(index)


def extract_pages(run: Run, files: list[tuple[str, Path]]) -> list[dict]:
    """Read the crawl files into TO/pages."""
    tasks = []
    for i, (source, file) in enumerate(files):
        is_named = str(file) == source
        target = run.to / "pages" / shard_name(i)
        tasks.append((file, is_named, target))
    extracted = run.step("pages", steps.extract, tasks)
    pages = total(extracted)
    if not pages["pages"]:
        raise InputError(
            f"--crawl: no page in {len(files)} files ({pages}); give files of web pages"
        )
    print(f"{pages['pages']} pages of {len(files)} files", flush=True)
    return extracted


def clean_pages(run: Run) -> dict:
    """Deduplicate TO/pages into TO/clean."""
    config = run.config
    settings = dedup.Settings(
        permutations=config.permutations,
        threshold=config.threshold,
        partitions=config.partitions,
    )
    start = time.perf_counter()
    folders = (run.to / "pages", run.to / "clean", run.to / "dedup")
    counts = dedup.deduplicate(*folders, settings, run.map)["clean"]
    run.log_time("dedup", start)
    print(
        f"{counts['out']} left without repeated URLs ({counts['url']}), "
        f"texts ({counts['exact']}) and near-duplicates ({counts['near']})",
        flush=True,
    )
    return counts


def write_token_shards(run: Run, number: int) -> dict:
    """Write TO/shards for train_pretrain.py: a file of tokens for each corpus shard with text."""
    from data.shards import write_manifest
    from data.tokenizer import Tokenizer

    folder, name = run.to / "shards", run.config.tokenizer
    tokenizer = Tokenizer.load(name)
    made_with = run_once(run.marker("tokenizer"), lambda: {"hash": tokenizer.hash})
    if made_with != {"hash": tokenizer.hash}:
        raise InputError(
            f"--tokenizer {name}: {folder} was made with another tokenizer; "
            f"to make it again, remove that folder and {run.to}/done/to*.json"
        )
    tasks = []
    for source in run.files("corpus"):
        if source.stat().st_size:
            tasks.append((source, name, folder / f"tokens-{len(tasks):05d}.bin"))
    files = run.step(f"tokens_{number}", steps.tokens_shard, tasks)
    vocab_size, eos_id = tokenizer.vocab_size, tokenizer.eos_id
    return write_manifest(files, folder, tokenizer.hash, "mined", vocab_size, eos_id)


def mine(config: Config, map: Callable) -> None:
    """Run the whole engine. Raises InputError."""
    run = Run(config, map)
    files = crawl_files(config.crawl)
    begin(run, files)

    # Pages
    extracted = extract_pages(run, files)
    digests = {}
    for (_, file), row in zip(files, extracted, strict=True):
        digests[str(file)] = row["sha256"]
    if config.repeat:
        manifest = report.compare_crawl(Path(config.repeat), digests)
        for number, prefixes in manifest["annotations"].items():
            path = run.round_folder(number) / "annotation.txt"
            domains.write_annotations(path, prefixes, f"After round {number} of {config.repeat}.")

    # Deduplication
    clean = clean_pages(run)
    run.pages = clean["out"]

    # Rounds, until the pages hardly change
    rounds, stopped = [], "rounds"
    for number in range(1, config.rounds + 1):
        kept, row = run_round(run, number)
        rounds.append(row)
        if number > 1 and row["collected_before"] >= config.stop:
            stopped = "rule"
            break

    # Corpus and token shards
    corpus = write_corpus(run, kept, f"corpus_{number}", "corpus")
    if not total(corpus)["out"]:
        raise InputError(
            f"--benchmarks {config.benchmarks}: every page contains benchmark text; "
            "is the crawl in that folder?"
        )
    print(f"{total(corpus)['out']} pages without benchmark text in {run.to / 'corpus'}", flush=True)
    tokens = write_token_shards(run, number) if config.tokenizer else None

    # Report and manifest
    options = {"rounds": config.rounds} | fixed_options(config)
    result = {
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
        truth = report.against_truth(config.truth, config.benchmarks, run.to, len(rounds))
        result["truth"] = truth
    report.write(run.to, result)
    output = {}
    for path, row in zip(run.files("corpus"), corpus, strict=True):
        output[path.name] = row["sha256"]
    used = {number: annotations(run, number) for number in range(1, len(rounds))}
    report.write_manifest(run.to, options, digests, used, output, tokens)

    # Half-written files of a run that was killed
    for pattern in (".*.tmp", ".*.collected"):
        for path in run.to.rglob(pattern):
            path.unlink()


def main() -> None:
    config = parse(Config, description=__doc__, partial=True)
    if config.repeat:
        options = report.read_manifest(Path(config.repeat))["options"]
        config = replace(config, **options, annotation="")
    check_config(config)
    try:
        with executor(config.executor, config.workers) as map:
            mine(config, map)
    except BrokenExecutor:
        raise InputError(
            "a worker process was killed, perhaps because memory ran out; give the same command "
            "again with fewer --workers, and the run continues"
        ) from None
    if config.repeat:
        report.compare(Path(config.repeat), Path(config.to) / "manifest.json")
    print(f"wrote {Path(config.to) / 'report.md'}")
