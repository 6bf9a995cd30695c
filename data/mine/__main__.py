"""The data engine, whole or a step at a time.

    python -m data.mine --config FILE.toml --to DIR      the whole loop (python -m data.mine --help)
    python -m data.mine STEP --help                      a step alone, with its options

A *store* is a folder of pages, {url, text, lang, date} a line, in part-00000.jsonl, part-00001.jsonl, ...

    pages          crawl files -> a store
    dedup          a store -> a store without repeated URLs, texts and near-duplicates
    train          texts of two kinds -> a classifier
    score          a store -> each page with its score, the best first
    domains        a round of a finished or stopped run -> its mathematical domains; asks about their URL prefixes
    decontaminate  a store -> a store without the text of benchmarks
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.io import InputError, jsonl_files, read_jsonl, run_cli, write_jsonl
from data.mine import classifier, decontaminate, dedup, domains, loop, recall, steps
from data.mine.dedup import shard_name, shard_numbers
from runtime.options import option, parse


def shards(store: str, name: str) -> list[Path]:
    """The shards of a store. Raises InputError where there are none."""
    numbers = shard_numbers(Path(store)) if Path(store).is_dir() else []
    if not numbers:
        raise InputError(
            f"--{name} {store or '(empty)'}: no part-00000.jsonl, ... in it; give a folder of pages"
        )
    return [Path(store) / shard_name(number) for number in numbers]


def needed(config, *names: str) -> None:
    for name in names:
        if not getattr(config, name):
            raise InputError(f"--{name} is needed (--help lists the options)")


@dataclass
class Pages:
    crawl: list[str] = option([], "WARC, WET or JSONL files of pages, or folders of them")
    to: str = option("", "folder of the store")


def pages(config: Pages) -> None:
    needed(config, "crawl", "to")
    for i, (source, file) in enumerate(loop.crawl_files(config.crawl)):
        target = Path(config.to) / shard_name(i)
        counts = steps.extract(file, str(file) == source, target)
        del counts["sha256"]
        print(
            f"{file} -> {target}: "
            + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        )


@dataclass
class Dedup:
    store: str = option("", "folder of pages")
    to: str = option(
        "",
        "folder of those that are left; TO/drops says for each other page why, and what was kept",
    )
    work: str = option("", "folder of what is in between (default TO/work)")
    threshold: float = option(
        0.8, "Jaccard similarity of word 5-grams from which pages are near-duplicates"
    )
    permutations: int = option(128, "length of a MinHash signature")
    partitions: int = option(8, "parts of every reduce: more parts need less memory each")
    workers: int = option(1, "processes")
    executor: str = option("processes", "processes, or dask://HOST:PORT")


def deduplicate(config: Dedup) -> None:
    needed(config, "store", "to")
    settings = dedup.Settings(
        config.permutations, threshold=config.threshold, partitions=config.partitions
    )
    with loop.executor(config) as map:
        found = dedup.deduplicate(
            config.store, config.to, config.work or f"{config.to}/work", settings, map
        )["clean"]
    print(
        f"{found['in']} pages: {found['url']} repeated URLs, {found['exact']} repeated texts, {found['near']} "
        f"near-duplicates, {found['out']} left in {config.to}"
    )


@dataclass
class Train:
    positives: list[str] = option(
        [], "JSONL files (or folders) with the text of mathematical pages"
    )
    negatives: list[str] = option([], "JSONL files (or folders) with the text of other pages")
    to: str = option("", "file of the classifier (.npz)")
    examples: int = option(500_000, "most of each kind")
    width: int = option(256, "dimension of the vectors")
    rate: float = option(0.1, "learning rate")
    ngrams: int = option(3, "words of the longest n-gram")
    min_count: int = option(3, "words seen fewer times have no vector of their own")
    epochs: int = option(3, "times each example is seen")
    buckets: int = option(2**21, "vectors that n-grams share")
    seed: int = option(0, "seed of the vectors and of the order")
    workers: int = option(1, "threads; the classifier does not depend on them")


def train(config: Train) -> None:
    needed(config, "positives", "negatives", "to")
    kinds = [
        loop.some_texts(
            jsonl_files(getattr(config, name)), config.examples, config.seed, f"--{name}"
        )
        for name in ("positives", "negatives")
    ]
    model = classifier.train(*kinds, loop.settings(config), config.seed, config.workers)
    model.save(Path(config.to))
    right = [
        (model.margins(texts) > 0) == positive
        for texts, positive in zip(kinds, (True, False), strict=True)
    ]
    print(
        f"{config.to}: {len(kinds[0])} positives and {len(kinds[1])} negatives, of which it tells "
        f"{100 * np.concatenate(right).mean():.1f} %"
    )


@dataclass
class Score:
    model: str = option("", "file of a classifier")
    store: str = option("", "folder of pages")
    to: str = option("", "JSONL file of {score, url, text} to write, the best first")
    explain: int = option(0, "so many n-grams that weighed most, with each page")


def score(config: Score) -> None:
    needed(config, "model", "store", "to")
    model, rows = classifier.load(Path(config.model)), []
    for shard in shards(config.store, "store"):
        for some in recall.batches(shard):
            texts = [page["text"] for page in some]
            for page, margin in zip(some, model.margins(texts).tolist(), strict=True):
                row = {
                    "score": recall.probability(margin),
                    "margin": margin,
                    "url": page["url"],
                    "text": page["text"],
                }
                rows.append(
                    row
                    | (
                        {"why": model.explain(page["text"], config.explain)}
                        if config.explain
                        else {}
                    )
                )
    rows.sort(key=lambda row: -row["margin"])
    write_jsonl(Path(config.to), rows)
    print(
        f"{config.to}: {len(rows)} pages, {sum(row['margin'] > 0 for row in rows)} with a score above 0.5"
    )


@dataclass
class Domains:
    run: str = option("", "run directory of python -m data.mine")
    round: int = option(1, "round whose collection is counted")
    annotation: str = option(
        "", "file of URL prefixes to add answers to; none: print the table, ask nothing"
    )
    share: float = option(
        0.10, "a domain of whose pages more than this share was collected is mathematical"
    )
    pages: int = option(10, "pages that such a domain has at least")


def list_domains(config: Domains) -> None:
    needed(config, "run")
    clean = shards(f"{config.run}/clean", "run")
    kept = [
        Path(config.run) / f"round_{config.round}" / "kept" / f"{path.stem}.npy" for path in clean
    ]
    if missing := next((path for path in kept if not path.exists()), None):
        raise InputError(
            f"--round {config.round}: {missing} is not there; that round has collected nothing yet"
        )

    def rows():
        for shard, chosen in zip(clean, kept, strict=True):
            for (_, page), one in zip(read_jsonl(shard), np.load(chosen).tolist(), strict=True):
                yield page["url"], one, page["text"].strip().partition("\n")[0]

    counts = domains.domain_counts((url, one) for url, one, _ in rows())
    chosen = domains.math_domains(counts, config.share, config.pages)
    table = domains.domain_table(counts, domains.prefix_counts(rows(), chosen), chosen)
    if config.annotation:
        answers = domains.annotate(table, config.annotation)
        print(
            f"{config.annotation}: "
            + ", ".join(f"{count} {name}" for name, count in answers.items())
        )
    else:
        print(domains.table_text(table))


@dataclass
class Decontaminate:
    store: str = option("", "folder of pages")
    benchmarks: str = option("", "folder of problem files whose text must not be left")
    to: str = option(
        "", "folder of the pages that are left; TO/drops names what was found in the others"
    )
    contaminated: str = option("page", "what goes where benchmark text is found: page or paragraph")


def remove_benchmarks(config: Decontaminate) -> None:
    needed(config, "store", "benchmarks", "to")
    index = Path(config.to) / "benchmarks.npz"
    decontaminate.Index.build(config.benchmarks).save(index)
    total: Counter = Counter()
    for shard in shards(config.store, "store"):
        files = shard, index, Path(config.to) / shard.name, Path(config.to) / "drops" / shard.name
        total.update(decontaminate.decontaminate_shard(*files, part=config.contaminated))
    print(
        f"{total['in']} pages: {total['dropped']} dropped, {total['cut']} cut, {total['out']} left in {config.to}"
    )


STEPS = {
    "pages": (Pages, pages),
    "dedup": (Dedup, deduplicate),
    "train": (Train, train),
    "score": (Score, score),
    "domains": (Domains, list_domains),
    "decontaminate": (Decontaminate, remove_benchmarks),
}


def main() -> None:
    words = sys.argv[1:]
    if not words or words[0].startswith("--"):
        loop.main()
    elif words[0] in STEPS:
        Config, function = STEPS[words[0]]
        function(parse(Config, words[1:], description=f"python -m data.mine {words[0]}"))
    else:
        raise InputError(
            f"{words[0]}: no such step; there are {', '.join(STEPS)}, or --config FILE for the whole"
        )


if __name__ == "__main__":
    run_cli(main)
