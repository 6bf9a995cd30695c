"""Contamination: which problems of the benchmarks occur in the training data of a model.

The rule is that of the data engine (data/mine/decontaminate.py, paper 2.1): the data has a 10-gram
of a benchmark text, or the whole of a text with 3 to 9 grams. Nothing is removed here. The
evaluation reports the overlap beside the score, and compares the score of the problems that the
training data has with the score of the others.

    python -m data.problems.contamination --benchmarks DIR [FILE ...] --to FILE.json
        --shards DIR [DIR ...] --tokenizer DIR   token shards (data/shards.py) and their tokenizer
        --corpus FILE [FILE ...]                 JSONL of text, or of question and response

`--benchmarks` takes problem files and data folders. In a data folder it reads the benchmarks of
data/problems/benchmarks.py.
"""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data.io import (
    CommandParser,
    InputError,
    at_least,
    atomic_write,
    in_batches,
    jsonl_files,
    run_cli,
)
from data.mine.benchmark_files import Item
from data.mine.decontaminate import GRAM, SHORTEST, Index, Match
from data.mine.ngrams import Hashes, ngram_hashes, unit_hashes, units
from data.problems import benchmarks
from data.problems.problem import Problem
from data.problems.readers import load as load_problems
from data.shards import Shards, texts
from data.tokenizer import Tokenizer

_BATCH = 2**22  # characters that are looked up at a time
_TOKENS = 2**20  # tokens that are decoded at a time
_REPEAT = 256  # tokens that two parts of a long document share: more than ten words have


# ---- Overlap -------------------------------------------------------------------------------------


def overlap(
    problems: dict[str, list[Problem]], documents: Iterable[tuple[str, str]], examples: int = 5
) -> dict:
    """Which problems have something in common with the documents.

    problems: benchmark -> its problems. documents: (place, text) each; they are read once.
    Raises InputError for a benchmark without problems.

    Returns {documents, characters, benchmarks}, where benchmarks has for each name {problems,
    question: {problems, share, short, whole}, question_or_solution: {problems, share},
    overlapping: {id: [fields]}, examples: [{id, field, shared, place}]}.

    - The text of a question has no options, but the formal statement if there is any.
    - A solution is a worked solution. An answer alone ("18") says nothing.
    - `short` counts overlapping questions with 3 to 9 grams. Shorter questions never overlap.
    - `whole` counts overlapping questions of which every gram occurs somewhere.
    """
    items = []
    for name, some in problems.items():
        if not some:
            raise InputError(f"benchmark {name}: holds no problem; give a file with at least one")
        for problem in some:
            items += _texts(name, problem)
    index = Index.of(items, {})
    places: list[str] = []
    # For each gram of the index: the first place where it occurs (a row of `places`), or -1
    seen = {size: np.full(len(grams), -1, np.int64) for size, grams in index.grams.items()}
    count = characters = 0
    for batch in in_batches(documents, _BATCH, lambda document: len(document[1])):
        texts = [text for _, text in batch]
        count += len(batch)
        characters += sum(map(len, texts))
        for (place, _), matches in zip(batch, index.matches(texts), strict=True):
            if matches:
                places.append(place)
                _mark(index, matches, seen, len(places) - 1)
    return {
        "documents": count,
        "characters": characters,
        "benchmarks": _report(problems, index, seen, places, examples),
    }


def _texts(name: str, problem: Problem) -> Iterator[Item]:
    fields = [
        ("question", problem.question),
        ("question", problem.task.get("formal_statement")),
        ("solution", problem.solution),
        ("solution", problem.task.get("informal_proof")),
    ]
    for field, text in fields:
        if text:
            yield Item(name, problem.id, field, text)


def _mark(index: Index, matches: list[Match], seen: dict[int, np.ndarray], place: int) -> None:
    """Set the place of the grams in some matches. A match names only one of the texts with its
    grams; this sets the place for all of them."""
    hashes = unit_hashes([match.text for match in matches])
    for k in range(len(matches)):
        words = hashes[k]
        size = min(len(words), GRAM)
        known, first_place = index.grams[size], seen[size]
        grams = ngram_hashes(Hashes(words, np.array([0, len(words)])), size).values
        rows = np.searchsorted(known, grams)
        rows = np.minimum(rows, len(known) - 1)
        rows = rows[known[rows] == grams]
        new = rows[first_place[rows] < 0]
        first_place[new] = place


def _report(
    problems: dict[str, list[Problem]],
    index: Index,
    seen: dict[int, np.ndarray],
    places: list[str],
    examples: int,
) -> dict:
    """The figures of `overlap` for each benchmark."""
    collected = {
        name: {"overlapping": {}, "short": set(), "whole": set(), "examples": []}
        for name in problems
    }
    for item, size, rows in _overlapping(index, seen):
        benchmark = collected[item.benchmark]
        fields = benchmark["overlapping"].setdefault(item.id, [])
        if item.field == "question" and size < GRAM:
            benchmark["short"].add(item.id)
        if item.field == "question" and (rows >= 0).all():
            benchmark["whole"].add(item.id)
        if item.field in fields:
            continue
        fields.append(item.field)
        if len(benchmark["examples"]) < examples:
            first = int(np.argmax(rows >= 0))
            words = units(item.text)[first : first + size]
            benchmark["examples"].append(
                {
                    "id": item.id,
                    "field": item.field,
                    "shared": " ".join(words),
                    "place": places[rows[first]],
                }
            )
    result = {}
    for name, benchmark in collected.items():
        total = len(problems[name])
        overlapping = benchmark["overlapping"]
        questions = sum("question" in fields for fields in overlapping.values())
        result[name] = {
            "problems": total,
            "question": {
                "problems": questions,
                "share": questions / total,
                "short": len(benchmark["short"]),
                "whole": len(benchmark["whole"]),
            },
            "question_or_solution": {
                "problems": len(overlapping),
                "share": len(overlapping) / total,
            },
            "overlapping": overlapping,
            "examples": benchmark["examples"],
        }
    return result


def _overlapping(
    index: Index, seen: dict[int, np.ndarray]
) -> Iterator[tuple[Item, int, np.ndarray]]:
    """(text, size of the grams, place of each gram or -1) of the texts with a gram that occurs."""
    for start in range(0, len(index.items), 4096):
        some = index.items[start : start + 4096]
        hashes = unit_hashes([item.text for item in some])
        grams = {size: ngram_hashes(hashes, size) for size in range(SHORTEST, GRAM + 1)}
        for i, item in enumerate(some):
            size = min(len(hashes[i]), GRAM)
            if size < SHORTEST:
                continue
            rows = np.searchsorted(index.grams[size], grams[size][i])
            if (seen[size][rows] >= 0).any():
                yield item, size, seen[size][rows]


def beside(records: list[dict], figures: dict) -> dict:
    """The figures beside a score: {problems, share, short, whole} of the questions that overlap,
    and {problems, accuracy} of the "clean" and of the "overlapping" problems.

    records: of eval.py, {id, attempts: [{right}]}. figures: what `overlap` says about the
    benchmark. The accuracy is the mean over problems of the share of right attempts. It is None
    without problems, and if proofs were not checked.
    """
    parts: dict[str, list[float | None]] = {"clean": [], "overlapping": []}
    for record in records:
        right = [attempt["right"] for attempt in record["attempts"]]
        share = None if None in right else sum(right) / len(right)
        overlaps = "question" in figures["overlapping"].get(record["id"], ())
        parts["overlapping" if overlaps else "clean"].append(share)
    result = dict(figures["question"])
    for name, shares in parts.items():
        known = shares and None not in shares
        accuracy = sum(shares) / len(shares) if known else None
        result[name] = {"problems": len(shares), "accuracy": accuracy}
    return result


# ---- Documents -----------------------------------------------------------------------------------


def shard_documents(directory, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """(place, text) of the documents in token shards, which end with the manifest's eos_id.

    A document of more than 2^20 tokens comes in parts that overlap. Raises InputError for shards of
    another tokenizer.
    """
    shards = Shards(directory)
    shards.check(tokenizer.hash)
    size, eos = shards.manifest["vocab_size"], shards.manifest["eos_id"]
    piece = [tokenizer.decode_bytes([id]) for id in range(size)].__getitem__

    def text(ids: np.ndarray) -> str:  # the same as tokenizer.decode, but faster
        return b"".join(map(piece, ids.tolist())).decode("utf-8", "replace")

    document, kept = 1, np.zeros(0, np.int64)
    for begin in range(0, len(shards), _TOKENS):
        ids = np.concatenate([kept, shards.read(begin, min(_TOKENS, len(shards) - begin))])
        at = 0
        for stop in np.flatnonzero(ids == eos).tolist():
            yield f"{directory}, document {document}", text(ids[at:stop])
            at, document = stop + 1, document + 1
        kept = ids[at:]
        if len(kept) >= _TOKENS or (len(kept) and begin + _TOKENS >= len(shards)):
            yield f"{directory}, document {document}", text(kept)
            kept = kept[-_REPEAT:]


def corpus_documents(paths: Iterable) -> Iterator[tuple[str, str]]:
    """(place, text) of each line of JSONL files and folders: text, or question and response."""
    for path in jsonl_files(paths):
        for number, text in enumerate(texts(path), 1):
            yield f"{path}, document {number}", text


def documents(
    shards: Iterable, tokenizer: Tokenizer | None, corpus: Iterable = ()
) -> Iterator[tuple[str, str]]:
    """(place, text) of the documents in folders of token shards, then in JSONL files."""
    for directory in shards:
        yield from shard_documents(directory, tokenizer)
    yield from corpus_documents(corpus)


def read_problems(paths: Iterable) -> dict[str, list[Problem]]:
    """name -> problems: the benchmarks in a data folder, or the problems of a file or of another
    folder under the name of the path. Raises InputError."""
    result: dict[str, list[Problem]] = {}
    for path in map(Path, paths):
        names = benchmarks.BENCHMARKS if path.is_dir() else ()
        names = [name for name in names if benchmarks.find(name, path)]
        loaded = {name: benchmarks.load(name, path) for name in names}
        loaded = loaded or {path.stem: load_problems(path)}
        if twice := result.keys() & loaded.keys():
            raise InputError(f"{path}: {sorted(twice)[0]} comes twice; name every benchmark once")
        result |= loaded
    return result


# ---- Command -------------------------------------------------------------------------------------


def table(result: dict) -> str:
    """A result of `overlap` as a table with a line for each benchmark."""
    lines = [
        f"{'benchmark':<20} {'problems':>8} {'question':>8} {'share':>7} {'(short)':>7} "
        f"{'(whole)':>7} {'or solution':>11} {'share':>7}"
    ]
    for name, row in result["benchmarks"].items():
        question, both = row["question"], row["question_or_solution"]
        lines.append(
            f"{name:<20} {row['problems']:>8} {question['problems']:>8} "
            f"{question['share']:>7.2%} {question['short']:>7} {question['whole']:>7} "
            f"{both['problems']:>11} {both['share']:>7.2%}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict:
    parser = CommandParser(
        prog="python -m data.problems.contamination",
        description="Find problems of benchmarks in training data.",
    )
    text = "problem files, or data folders"
    parser.add_argument("--benchmarks", nargs="+", required=True, metavar="PATH", help=text)
    text = "folders of token shards"
    parser.add_argument("--shards", nargs="+", default=[], metavar="DIR", help=text)
    parser.add_argument("--tokenizer", metavar="DIR", help="tokenizer of the shards")
    text = "JSONL of text, or question and response; folders"
    parser.add_argument("--corpus", nargs="+", default=[], metavar="PATH", help=text)
    text = "number of examples for each benchmark (default: 5)"
    parser.add_argument("--examples", type=at_least(0), default=5, metavar="N", help=text)
    parser.add_argument("--to", required=True, metavar="FILE", help="file to write")
    options = parser.parse_args(arguments)
    if not options.shards and not options.corpus:
        raise InputError("nothing to search: give --shards DIR or --corpus FILE")
    if options.shards and not options.tokenizer:
        raise InputError("--shards needs --tokenizer DIR, to decode the tokens")
    problems = read_problems(options.benchmarks)
    tokenizer = Tokenizer.load(options.tokenizer) if options.shards else None
    began = time.perf_counter()
    read = documents(options.shards, tokenizer, options.corpus)
    result = overlap(problems, read, options.examples)
    seconds = time.perf_counter() - began
    with atomic_write(options.to) as file:
        json.dump(result, file, ensure_ascii=False, indent=1)
    millions = result["characters"] / 1e6
    print(f"{result['documents']} documents, {millions:.1f} million characters in {seconds:.1f} s")
    print(table(result))
    return result


if __name__ == "__main__":
    run_cli(main)
