"""The data engine: the whole loop, or a single step.

    python -m data.mine --config FILE.toml --to DIR      the whole loop (python -m data.mine --help)
    python -m data.mine STEP --help                      a single step, and its options

    pages          crawl files -> a store
    dedup          a store -> a store without repeated URLs, repeated texts and near-duplicates
    train          texts of two kinds -> a classifier
    score          a store -> every page with its score, best first
    domains        a round of a run -> its mathematical domains; asks about their URL prefixes
    decontaminate  a store -> a store without benchmark text

A store is a folder of pages in part-00000.jsonl, part-00001.jsonl, ... A page is one line,
{url, text, lang, date}.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from runtime.options import option, parse

from data.io import InputError, jsonl_files, run_cli, write_jsonl
from data.mine import classifier, decontaminate, dedup, domains, loop, recall, steps
from data.mine.run import executor
from data.mine.store import page_batches, shard_name, shard_numbers


def store_shards(store: str, name: str) -> list[Path]:
    """The shards of the store that the option `name` gives. Raises InputError if it has none."""
    numbers = shard_numbers(Path(store)) if Path(store).is_dir() else []
    if not numbers:
        raise InputError(
            f"--{name} {store}: no part-00000.jsonl, ... in this folder; give a folder of pages"
        )
    return [Path(store) / shard_name(number) for number in numbers]


# ---- pages -----------------------------------------------------------------------------------


@dataclass
class Pages:
    crawl: list[str] = option(
        [], "WARC, WET or JSONL files of pages, or folders of them", required=True
    )
    to: str = option("", "folder of the store to write", required=True)


def extract_pages(config: Pages) -> None:
    for i, (source, file) in enumerate(loop.crawl_files(config.crawl)):
        target = Path(config.to) / shard_name(i)
        counts = steps.extract(file, str(file) == source, target)
        del counts["sha256"]
        texts = (f"{count} {name}" for name, count in sorted(counts.items()))
        print(f"{file} -> {target}: {', '.join(texts)}")


# ---- dedup -----------------------------------------------------------------------------------


@dataclass
class Dedup:
    store: str = option("", "folder of pages", required=True)
    to: str = option("", "folder for the pages that are left; TO/drops: the others", required=True)
    work: str = option("", "folder for intermediate files (default TO/work)")
    threshold: float = option(0.8, "Jaccard similarity of near-duplicates", above=0, most=1)
    permutations: int = option(128, "length of a MinHash signature", least=8)
    partitions: int = option(8, "parts of every reduce; more parts need less memory", least=1)
    workers: int = option(1, "processes", least=1)
    executor: str = option("processes", "processes, or dask://HOST:PORT")


def deduplicate(config: Dedup) -> None:
    settings = dedup.Settings(
        permutations=config.permutations,
        threshold=config.threshold,
        partitions=config.partitions,
    )
    work = config.work or f"{config.to}/work"
    with executor(config.executor, config.workers) as map:
        counts = dedup.deduplicate(config.store, config.to, work, settings, map)["clean"]
    print(
        f"{counts['in']} pages: {counts['url']} repeated URLs, {counts['exact']} repeated texts, "
        f"{counts['near']} near-duplicates, {counts['out']} left in {config.to}"
    )


# ---- train -----------------------------------------------------------------------------------


@dataclass
class Train:
    positives: list[str] = option(
        [], "JSONL files or folders, text of mathematical pages", required=True
    )
    negatives: list[str] = option([], "JSONL files or folders, text of other pages", required=True)
    to: str = option("", "file of the classifier to write (.npz)", required=True)
    examples: int = option(500_000, "maximum number of examples of each kind", least=1)
    width: int = option(256, "dimension of the vectors", least=1)
    rate: float = option(0.1, "learning rate", above=0)
    ngrams: int = option(3, "words in the longest n-gram", least=1)
    min_count: int = option(3, "only words seen this often have their own vector", least=1)
    epochs: int = option(3, "passes over the examples", least=1)
    buckets: int = option(2**21, "vectors that all n-grams share", least=1)
    seed: int = option(0, "seed of the vectors and of the order", least=0)
    workers: int = option(1, "threads; the result does not depend on their number", least=1)


def train(config: Train) -> None:
    texts = {}
    for name in ("positives", "negatives"):
        files = jsonl_files(getattr(config, name))
        texts[name] = loop.sample_texts(files, config.examples, config.seed, f"--{name}")
    positives, negatives = texts["positives"], texts["negatives"]
    settings = loop.classifier_settings(config)
    model = classifier.train(positives, negatives, settings, config.seed, config.workers)
    model.save(Path(config.to))
    right = (model.margins(positives) > 0).sum()
    right += (model.margins(negatives) <= 0).sum()
    count = len(positives) + len(negatives)
    print(
        f"{config.to}: trained on {len(positives)} positives and {len(negatives)} negatives; "
        f"{100 * right / count:.1f} % of them are classified correctly"
    )


# ---- score -----------------------------------------------------------------------------------


@dataclass
class Score:
    model: str = option("", "file of a classifier", required=True)
    store: str = option("", "folder of pages", required=True)
    to: str = option("", "JSONL file of {score, margin, url, text} to write", required=True)
    explain: int = option(0, "also write this many of the n-grams that weighed most", least=0)


def score(config: Score) -> None:
    model = classifier.load(Path(config.model))
    rows = []
    for shard in store_shards(config.store, "store"):
        for batch in page_batches(shard):
            texts = [page["text"] for _, page in batch]
            margins = model.margins(texts).tolist()
            for (_, page), margin in zip(batch, margins, strict=True):
                row = {
                    "score": recall.probability(margin),
                    "margin": margin,
                    "url": page["url"],
                    "text": page["text"],
                }
                if config.explain:
                    row["why"] = model.explain(page["text"], config.explain)
                rows.append(row)
    rows.sort(key=lambda row: -row["margin"])
    write_jsonl(Path(config.to), rows)
    count = sum(row["margin"] > 0 for row in rows)
    print(f"{config.to}: {len(rows)} pages, {count} with a score above 0.5")


# ---- domains ---------------------------------------------------------------------------------


@dataclass
class Domains:
    run: str = option("", "run directory of python -m data.mine", required=True)
    round: int = option(1, "round whose collection is counted", least=1)
    annotation: str = option("", "file of URL prefixes to add answers to; empty: only print")
    share: float = option(0.10, "a domain above this share is mathematical", above=0, most=1)
    pages: int = option(10, "minimum number of pages of a mathematical domain", least=1)


def list_domains(config: Domains) -> None:
    clean = store_shards(f"{config.run}/clean", "run")
    folder = Path(config.run) / f"round_{config.round}" / "kept"
    kept = [folder / f"{path.stem}.npy" for path in clean]
    for path in kept:
        if not path.exists():
            raise InputError(
                f"--round {config.round}: {path} does not exist; this round has no collection yet"
            )

    def rows() -> Iterator[tuple[str, bool, str]]:
        for shard, collected in zip(clean, kept, strict=True):
            yield from steps.read_kept(shard, collected)

    counts = domains.domain_counts((url, collected) for url, collected, _ in rows())
    names = domains.math_domains(counts, config.share, config.pages)
    prefixes = domains.prefix_counts(rows(), names)
    table = domains.domain_table(counts, prefixes, names)
    if config.annotation:
        answers = domains.annotate(table, config.annotation)
        texts = (f"{count} {name}" for name, count in answers.items())
        print(f"{config.annotation}: {', '.join(texts)}")
    else:
        print(domains.table_text(table))


# ---- decontaminate ---------------------------------------------------------------------------


@dataclass
class Decontaminate:
    store: str = option("", "folder of pages", required=True)
    benchmarks: str = option("", "folder of problem files to keep out", required=True)
    to: str = option("", "folder for the pages that are left; TO/drops: the matches", required=True)
    contaminated: str = option(
        "page", "what to drop where benchmark text is found", choices=decontaminate.PARTS
    )


def remove_benchmarks(config: Decontaminate) -> None:
    to = Path(config.to)
    index = to / "benchmarks.npz"
    decontaminate.Index.build(config.benchmarks).save(index)
    total: Counter = Counter()
    for shard in store_shards(config.store, "store"):
        targets = (to / shard.name, to / "drops" / shard.name)
        counts = decontaminate.decontaminate_shard(shard, index, *targets, config.contaminated)
        total.update(counts)
    print(
        f"{total['in']} pages: {total['dropped']} dropped, {total['cut']} cut, "
        f"{total['out']} left in {config.to}"
    )


STEPS = {
    "pages": (Pages, extract_pages),
    "dedup": (Dedup, deduplicate),
    "train": (Train, train),
    "score": (Score, score),
    "domains": (Domains, list_domains),
    "decontaminate": (Decontaminate, remove_benchmarks),
}


def main() -> None:
    words = sys.argv[1:]
    if not words or words[0].startswith("-"):
        loop.main()
    elif words[0] in STEPS:
        Config, function = STEPS[words[0]]
        function(parse(Config, words[1:], f"python -m data.mine {words[0]}"))
    else:
        raise InputError(
            f"{words[0]}: no such step; the steps are {', '.join(STEPS)}; "
            "without a step, --config FILE runs the whole loop"
        )


if __name__ == "__main__":
    run_cli(main)
