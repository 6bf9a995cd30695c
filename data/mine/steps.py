"""Steps of the mining loop that concern one shard of pages, or one partition of domains: each writes its files
atomically and returns its counts, which loop.py sums and reports. Those of recall are in recall.py."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import numpy as np

from data.io import atomic_write, read_jsonl, write_jsonl
from data.mine import decontaminate, domains, recall, report
from data.mine.ngrams import unit_hashes
from data.mine.pages import NotACrawl, read_pages


def extract(source: Path, named: bool, target: Path) -> dict:
    """A crawl file -> a shard of pages. Counts: of pages and of records that are none; the file's SHA-256. A file of
    another kind is an error if it was `named`, and has no pages if it lay in a folder."""
    counts: Counter = Counter()
    try:
        counts["pages"] = write_jsonl(target, read_pages(source, counts))
    except NotACrawl:
        if named:
            raise
        counts = Counter(pages=write_jsonl(target, ()), files_of_no_crawl=1)
    return counts | {"sha256": report.sha256(source)}


def draw(seed: int, *place) -> int:
    """64 bits that depend on the seed and the place alone."""
    return int.from_bytes(blake2b(repr((seed, *place)).encode(), digest_size=8).digest(), "big")


def sample_shard(
    shard: Path,
    kept: Path | None,
    added: Path | None,
    annotation: Path | None,
    share: float,
    seed: int,
    target: Path,
) -> dict:
    """Examples of a shard for the classifier, beside the seed corpus: target.positives.jsonl, the pages under annotated
    prefixes that the round before did not collect, and those of earlier rounds (`added`, bool [pages]; target.npy is
    the new one); target.negatives.jsonl, a share, drawn by a hash of seed and place, of the pages that are neither
    annotated nor collected."""
    pages = [page["url"] for _, page in read_jsonl(shard)]
    collected = np.load(kept) if kept else np.zeros(len(pages), bool)
    annotated = np.array(
        domains.under(domains.read_annotations(annotation) if annotation else [], pages), bool
    )
    positive = annotated & ~collected | (np.load(added) if added else False)
    negative = ~(annotated | collected | positive)
    counts = Counter(positives=0, negatives=0)

    def chosen(kind: str) -> Iterator[dict]:
        for line, page in read_jsonl(shard):
            if (
                positive[line - 1]
                if kind == "positives"
                else (negative[line - 1] and draw(seed, shard.name, line) < share * 2**64)
            ):
                counts[kind] += 1
                yield {"text": page["text"]}

    for kind in counts:
        write_jsonl(target.with_suffix(f".{kind}.jsonl"), chosen(kind))
    recall.save(target, positive)
    return dict(counts)


def domains_shard(shard: Path, kept: Path, partitions: int, target: Path) -> dict:
    """The domains of a shard, {domain: [pages, collected]}: a line for each partition of them."""
    pairs = zip((page["url"] for _, page in read_jsonl(shard)), np.load(kept).tolist(), strict=True)
    parts: list[dict] = [{} for _ in range(partitions)]
    for name, counts in domains.domain_counts(pairs).items():
        parts[draw(0, name) % partitions][name] = counts
    return {"domains": write_jsonl(target, parts) and sum(map(len, parts))}


def domains_part(tables: list[Path], part: int, share: float, minimum: int, target: Path) -> dict:
    """The mathematical domains of a partition: {domain: [pages, collected]}."""

    def lines() -> Iterator[dict]:
        for path in tables:
            with open(path, encoding="utf-8") as file:
                yield next(json.loads(line) for i, line in enumerate(file) if i == part)

    counts = domains.merge_domains(lines())
    chosen = domains.math_domains(counts, share, minimum)
    write_json(target, {name: counts[name] for name in chosen})
    return {"domains": len(counts), "math_domains": len(chosen)}


def prefix_shard(shard: Path, kept: Path, chosen: Path, target: Path) -> dict:
    """The URL prefixes of a shard's pages on the mathematical domains, whose names are in the file `chosen`."""
    pairs = zip(read_jsonl(shard), np.load(kept).tolist(), strict=True)
    rows = ((page["url"], k, page["text"].strip().partition("\n")[0]) for (_, page), k in pairs)
    found = domains.prefix_counts(rows, read_json(chosen))
    write_json(target, {name: asdict(prefix) for name, prefix in found.items()})
    return {"prefixes": len(found)}


def corpus_shard(
    shard: Path, kept: Path, index: Path, part: str, target: Path, drops: Path
) -> dict:
    """The collected pages of a shard without benchmark text. Counts: those of decontaminate_shard, pages, tokens and
    characters by language, and the SHA-256 of what is left."""
    collected = target.with_name(f".{target.name}.collected")
    chosen = np.load(kept)
    write_jsonl(
        collected, (page for (_, page), k in zip(read_jsonl(shard), chosen, strict=True) if k)
    )
    try:
        counts = decontaminate.decontaminate_shard(collected, index, target, drops, part)
    finally:
        collected.unlink()
    languages: dict[str, Counter] = {}
    for pages in recall.batches(target):
        for page, tokens in zip(
            pages, unit_hashes([page["text"] for page in pages]).counts.tolist(), strict=True
        ):
            row = {"pages": 1, "tokens": tokens, "characters": len(page["text"])}
            languages.setdefault(page["lang"], Counter()).update(row)
    by_name = {name: dict(row) for name, row in sorted(languages.items())}
    return counts | {"languages": by_name, "sha256": report.sha256(target)}


def tokens_shard(source: Path, tokenizer: str, target: Path) -> dict:
    """A shard of the corpus -> a file of tokens, each document ended by the end-of-text token."""
    from data.shards import encode_documents, texts, write_tokens
    from data.tokenizer import Tokenizer

    known = Tokenizer.load(tokenizer)
    documents = encode_documents(texts(source), known)
    return write_tokens(documents, target, known.vocab_size, known.eos_id, str(source))


def write_json(path: Path, value) -> None:
    with atomic_write(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False)


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))
