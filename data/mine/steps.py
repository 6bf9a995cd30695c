"""Steps of the mining loop that work on one shard of pages or on one partition of domains.

Each step writes its files atomically and returns counts. loop.py sums the counts and reports them.
The steps of recall are in recall.py.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import numpy as np

from data.io import read_jsonl, write_jsonl
from data.mine import decontaminate, domains, pages, report
from data.mine.ngrams import unit_hashes
from data.mine.store import page_batches, read_json, save_array, write_json


def extract(source: Path, named: bool, target: Path) -> dict:
    """Read a crawl file and write its pages as a shard.

    A file that is not a crawl file is an error if the user named it (`named`); if it only lies in a
    folder that the user named, it has no pages. Returns counts of pages and of records that are not
    pages, and the file's SHA-256.
    """
    counts: Counter = Counter()
    try:
        counts["pages"] = write_jsonl(target, pages.read_pages(source, counts))
    except pages.NotACrawl:
        if named:
            raise
        counts = Counter(pages=write_jsonl(target, ()), files_of_no_crawl=1)
    return counts | {"sha256": report.sha256(source)}


def random_bits(seed: int, *place) -> int:
    """64 bits that depend only on the seed and on the place, such as (file, line)."""
    name = repr((seed, *place)).encode()
    digest = blake2b(name, digest_size=8).digest()
    return int.from_bytes(digest, "big")


# ---- Examples for the classifier -------------------------------------------------------------


def sample_shard(
    shard: Path,
    kept: Path | None,
    added: Path | None,
    annotation: Path | None,
    share: float,
    seed: int,
    target: Path,
) -> dict:
    """Choose examples for the classifier from a shard, in addition to the seed corpus.

    Positives are the pages under annotated URL prefixes that the round before did not collect
    (`kept` is what it collected), and the positives of earlier rounds (`added`, bool [pages]).
    Negatives are a random share of the pages that are neither annotated nor collected.

    Writes target.positives.jsonl and target.negatives.jsonl, and to `target` which pages are
    positives, bool [pages]. Returns counts of both.
    """
    urls = [page["url"] for _, page in read_jsonl(shard)]
    prefixes = domains.read_annotations(annotation) if annotation else []
    none = np.zeros(len(urls), bool)
    annotated = np.array(domains.under(prefixes, urls), bool)
    collected = np.load(kept) if kept else none
    earlier = np.load(added) if added else none
    positive = annotated & ~collected | earlier
    negative = ~(annotated | collected | positive)
    counts = Counter(positives=0, negatives=0)

    def is_chosen(kind: str, line: int) -> bool:
        if kind == "positives":
            return positive[line - 1]
        bits = random_bits(seed, shard.name, line)
        return negative[line - 1] and bits < share * 2**64

    def examples(kind: str) -> Iterator[dict]:
        for line, page in read_jsonl(shard):
            if is_chosen(kind, line):
                counts[kind] += 1
                yield {"text": page["text"]}

    for kind in counts:
        write_jsonl(target.with_suffix(f".{kind}.jsonl"), examples(kind))
    save_array(target, positive)
    return dict(counts)


# ---- Domains and URL prefixes ----------------------------------------------------------------


def read_kept(shard: Path, kept: Path) -> Iterator[tuple[str, bool, str]]:
    """Yield (url, collected or not, title) for every page of a shard.

    The title is the first line of the text.
    """
    rows = zip(read_jsonl(shard), np.load(kept).tolist(), strict=True)
    for (_, page), collected in rows:
        title, _, _ = page["text"].strip().partition("\n")
        yield page["url"], collected, title


def domains_shard(
    shard: Path,
    kept: Path,
    partitions: int,
    target: Path,
) -> dict:
    """Count the pages of a shard by domain: {domain: [pages, collected]}.

    The file has a line for each partition. A hash of the name assigns domains to partitions.
    """
    pages = ((url, collected) for url, collected, _ in read_kept(shard, kept))
    counts = domains.domain_counts(pages)
    lines: list[dict] = [{} for _ in range(partitions)]
    for domain, count in counts.items():
        lines[random_bits(0, domain) % partitions][domain] = count
    write_jsonl(target, lines)
    return {"domains": len(counts)}


def domains_part(
    tables: list[Path],
    part: int,
    share: float,
    minimum: int,
    target: Path,
) -> dict:
    """Write the mathematical domains of a partition: {domain: [pages, collected]}."""

    def lines() -> Iterator[dict]:
        for path in tables:
            with open(path, encoding="utf-8") as file:
                line = next(itertools.islice(file, part, None))
                yield json.loads(line)

    counts = domains.merge_domains(lines())
    chosen = domains.math_domains(counts, share, minimum)
    write_json(target, {domain: counts[domain] for domain in chosen})
    return {
        "domains": len(counts),
        "math_domains": len(chosen),
    }


def prefix_shard(
    shard: Path,
    kept: Path,
    names: Path,
    target: Path,
) -> dict:
    """Count the pages of a shard by URL prefix, on the domains that the file `names` lists."""
    pages, wanted = read_kept(shard, kept), read_json(names)
    counts = domains.prefix_counts(pages, wanted)
    write_json(target, {name: asdict(prefix) for name, prefix in counts.items()})
    return {"prefixes": len(counts)}


# ---- The corpus ------------------------------------------------------------------------------


def corpus_shard(
    shard: Path,
    kept: Path,
    index: Path,
    part: str,
    target: Path,
    drops: Path,
) -> dict:
    """Write the collected pages of a shard without benchmark text.

    Returns the counts of decontaminate_shard; pages, tokens and characters by language; and the
    SHA-256 of the result.
    """
    # The collected pages, in a file of their own for decontaminate_shard.
    collected = target.with_name(f".{target.name}.collected")
    chosen = np.load(kept)
    rows = zip(read_jsonl(shard), chosen, strict=True)
    write_jsonl(collected, (page for (_, page), is_kept in rows if is_kept))
    try:
        counts = decontaminate.decontaminate_shard(collected, index, target, drops, part)
    finally:
        collected.unlink()

    # Counts by language.
    languages: dict[str, Counter] = {}
    for batch in page_batches(target):
        texts = [page["text"] for _, page in batch]
        tokens = unit_hashes(texts).counts.tolist()
        for (_, page), count in zip(batch, tokens, strict=True):
            language = languages.setdefault(page["lang"], Counter())
            language["pages"] += 1
            language["tokens"] += count
            language["characters"] += len(page["text"])
    by_name = {name: dict(row) for name, row in sorted(languages.items())}
    return counts | {"languages": by_name, "sha256": report.sha256(target)}


def tokens_shard(source: Path, tokenizer_folder: str, target: Path) -> dict:
    """Write a shard of the corpus as tokens. Every document ends with the end-of-text token."""
    from data.shards import encode_documents, texts, write_tokens
    from data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(tokenizer_folder)
    documents = encode_documents(texts(source), tokenizer)
    return write_tokens(documents, target, tokenizer.vocab_size, tokenizer.eos_id, str(source))
