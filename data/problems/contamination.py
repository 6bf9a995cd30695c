"""Contamination: which problems of the benchmarks stand in what a model was trained on.

The rule is the data engine's (data/mine/decontaminate.py, paper 2.1): a 10-gram of a benchmark text, or a text of 3 to
9 grams as a whole. Here nothing is dropped; the overlap is reported beside the score, and the score of the problems
that the training data lacks beside that of those it has.

    python -m data.problems.contamination --benchmarks DIR [FILE ...] --to FILE.json
        --shards DIR [DIR ...] --tokenizer DIR   token shards (of data/shards.py) and the tokenizer they were made with
        --corpus FILE [FILE ...]                 JSONL of text, or of question and response

`--benchmarks` takes problem files and data folders, of which the benchmarks of data/problems/benchmarks.py are read.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data.io import InputError, atomic_write, jsonl_files, run_cli
from data.mine.benchmark_files import Item
from data.mine.decontaminate import GRAM, SHORTEST, Index, Match
from data.mine.ngrams import Hashes, ngram_hashes, unit_hashes, units
from data.problems import benchmarks
from data.problems.problem import Problem
from data.problems.readers import load as load_problems
from data.shards import Shards, texts
from data.tokenizer import Tokenizer

_BATCH = 2**22  # characters looked up at a time
_TOKENS = 2**20  # tokens decoded at a time
_REPEAT = (
    256  # tokens of a document's part that its next part begins with, more than ten words have
)


# ---- Overlap ---------------------------------------------------------------------------------------------------------


def overlap(
    problems: dict[str, list[Problem]], documents: Iterable[tuple[str, str]], examples: int = 5
) -> dict:
    """Which problems of each benchmark, by name, have something in common with the documents: (place, text) each, read
    once and not kept.

    Returns {documents, characters, benchmarks: {name: {problems, question: {problems, share, short, whole},
    question_or_solution: {problems, share}, overlapping: {id: [fields]}, examples: [{id, field, shared, place}]}}}.
    A question is its text without options, and the formal statement where it has one; a solution the worked one that
    the benchmark gives: an answer alone ("18") says nothing. Of the questions that are found, `short` ones have 3 to 9
    grams, and `whole` ones have nothing that was not seen, be it in several places; shorter questions are never
    found."""
    if empty := next((name for name, some in problems.items() if not some), None):
        raise InputError(f"benchmark {empty}: holds no problem; give one with at least one")
    items = [
        item
        for name, some in problems.items()
        for problem in some
        for item in _texts(name, problem)
    ]
    index = Index.of(items, {})
    places: list[str] = []
    # for every gram of the index the first place where it was seen, as a row of `places`
    seen = {size: np.full(len(grams), -1, np.int64) for size, grams in index.grams.items()}
    count = characters = 0
    for batch in _batches(documents):
        count, characters = count + len(batch), characters + sum(len(text) for _, text in batch)
        for (place, _), found in zip(
            batch, index.matches([text for _, text in batch]), strict=True
        ):
            if found:
                places.append(place)
                _mark(index, found, seen, len(places) - 1)
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


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document[1])
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _mark(index: Index, found: list[Match], seen: dict[int, np.ndarray], place: int) -> None:
    """Note the place of the grams in some matches. A match names one text that has them; this marks them for all."""
    hashes = unit_hashes([match.text for match in found])
    for own in map(hashes.__getitem__, range(len(found))):
        size = min(len(own), GRAM)
        grams = ngram_hashes(Hashes(own, np.array([0, len(own)])), size).values
        rows = np.minimum(np.searchsorted(index.grams[size], grams), len(seen[size]) - 1)
        rows = rows[index.grams[size][rows] == grams]
        seen[size][rows[seen[size][rows] < 0]] = place


def _report(
    problems: dict[str, list[Problem]],
    index: Index,
    seen: dict[int, np.ndarray],
    places: list[str],
    examples: int,
) -> dict:
    result = {
        name: {"overlapping": {}, "short": set(), "whole": set(), "examples": []}
        for name in problems
    }
    for item, size, rows in _found(index, seen):
        benchmark = result[item.benchmark]
        fields = benchmark["overlapping"].setdefault(item.id, [])
        if item.field == "question":
            benchmark["short"].update([item.id] * (size < GRAM))
            benchmark["whole"].update([item.id] * bool((rows >= 0).all()))
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
    for name, found in result.items():
        total, questions = (
            len(problems[name]),
            sum("question" in fields for fields in found["overlapping"].values()),
        )
        result[name] = {
            "problems": total,
            "question": {
                "problems": questions,
                "share": questions / total,
                "short": len(found["short"]),
                "whole": len(found["whole"]),
            },
            "question_or_solution": {
                "problems": len(found["overlapping"]),
                "share": len(found["overlapping"]) / total,
            },
            "overlapping": found["overlapping"],
            "examples": found["examples"],
        }
    return result


def _found(index: Index, seen: dict[int, np.ndarray]) -> Iterator[tuple[Item, int, np.ndarray]]:
    """(text, size of its grams, the place of each or -1) of the index's texts of which a gram was seen."""
    for start in range(0, len(index.items), 4096):
        some = index.items[start : start + 4096]
        hashes = unit_hashes([item.text for item in some])
        grams = {size: ngram_hashes(hashes, size) for size in range(SHORTEST, GRAM + 1)}
        for i, item in enumerate(some):
            size = min(len(hashes[i]), GRAM)
            if size < SHORTEST:
                continue
            own = grams[size][i]
            rows = np.searchsorted(index.grams[size], own)
            if (seen[size][rows] >= 0).any():
                yield item, size, seen[size][rows]


def beside(records: list[dict], found: dict) -> dict:
    """What stands beside a score: {problems, share, short, whole} of `overlap`'s questions of that benchmark, and the
    accuracy of the "clean" problems and of the "overlapping" ones, {problems, accuracy} each.

    records are eval.py's ({id, attempts: [{right}]}). The accuracy is the mean over problems of the share of right
    attempts; None where there is no problem, or where proofs were not checked."""
    parts: dict[str, list[float | None]] = {"clean": [], "overlapping": []}
    for record in records:
        right = [attempt["right"] for attempt in record["attempts"]]
        share = None if None in right else sum(right) / len(right)
        parts[
            "overlapping" if "question" in found["overlapping"].get(record["id"], ()) else "clean"
        ].append(share)
    return found["question"] | {
        name: {
            "problems": len(shares),
            "accuracy": None if None in shares or not shares else sum(shares) / len(shares),
        }
        for name, shares in parts.items()
    }


# ---- Documents -------------------------------------------------------------------------------------------------------


def shard_documents(directory, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """(place, text) of the documents of token shards, whose end is the manifest's eos_id. A document longer than
    2^20 tokens comes in parts that overlap. Raises InputError for shards of another tokenizer."""
    shards = Shards(directory)
    shards.check(tokenizer.hash)
    size, eos = shards.manifest["vocab_size"], shards.manifest["eos_id"]
    piece = [tokenizer.decode_bytes([id]) for id in range(size)].__getitem__

    def text(ids: np.ndarray) -> str:  # what tokenizer.decode gives, faster
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
    """(place, text) of the lines of JSONL files, or folders of them: text, or question and response."""
    for path in jsonl_files(paths):
        for number, text in enumerate(texts(path), 1):
            yield f"{path}, document {number}", text


def documents(
    shards: Iterable, tokenizer: Tokenizer | None, corpus: Iterable = ()
) -> Iterator[tuple[str, str]]:
    """Those of folders of token shards, then those of JSONL files: what `overlap` reads."""
    for directory in shards:
        yield from shard_documents(directory, tokenizer)
    yield from corpus_documents(corpus)


def read_problems(paths: Iterable) -> dict[str, list[Problem]]:
    """Problems by name: of a data folder those benchmarks of data/problems/benchmarks.py that are there, of another folder or a
    file its problems under the name of the path. Raises InputError."""
    result: dict[str, list[Problem]] = {}
    for path in map(Path, paths):
        names = [
            name for name in benchmarks.BENCHMARKS if path.is_dir() and benchmarks.find(name, path)
        ]
        found = {name: benchmarks.load(name, path) for name in names} or {
            path.stem: load_problems(path)
        }
        if twice := result.keys() & found.keys():
            raise InputError(
                f"{path}: {sorted(twice)[0]} was given already; name every benchmark once"
            )
        result |= found
    return result


# ---- Command ---------------------------------------------------------------------------------------------------------


def table(result: dict) -> str:
    """A line for each benchmark."""
    lines = [
        f"{'benchmark':<20} {'problems':>8} {'question':>8} {'share':>7} {'(short)':>7} {'(whole)':>7} "
        f"{'or solution':>11} {'share':>7}"
    ]
    for name, row in result["benchmarks"].items():
        question, both = row["question"], row["question_or_solution"]
        lines.append(
            f"{name:<20} {row['problems']:>8} {question['problems']:>8} {question['share']:>7.2%} "
            f"{question['short']:>7} {question['whole']:>7} "
            f"{both['problems']:>11} {both['share']:>7.2%}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(
        prog="python -m data.problems.contamination", description="Benchmarks in training data."
    )
    parser.add_argument(
        "--benchmarks", nargs="+", required=True, help="problem files, or data folders"
    )
    parser.add_argument("--shards", nargs="+", default=[], help="folders of token shards")
    parser.add_argument(
        "--tokenizer", help="folder of the tokenizer.json of the shards, such as the model's"
    )
    parser.add_argument(
        "--corpus", nargs="+", default=[], help="JSONL of text, or question and response; folders"
    )
    parser.add_argument(
        "--examples", type=int, default=5, help="examples to give of each benchmark"
    )
    parser.add_argument("--to", required=True, help="file to write")
    options = parser.parse_args(arguments)
    if not options.shards and not options.corpus:
        raise InputError("nothing to look in: give --shards DIR or --corpus FILE")
    if options.shards and not options.tokenizer:
        raise InputError("--shards needs --tokenizer DIR, to turn tokens into text")
    problems = read_problems(options.benchmarks)
    tokenizer = Tokenizer.load(options.tokenizer) if options.shards else None
    began = time.perf_counter()
    result = overlap(
        problems, documents(options.shards, tokenizer, options.corpus), options.examples
    )
    seconds = time.perf_counter() - began
    with atomic_write(options.to) as file:
        json.dump(result, file, ensure_ascii=False, indent=1)
    print(
        f"{result['documents']} documents, {result['characters'] / 1e6:.1f} million characters in {seconds:.1f} s"
    )
    print(table(result))
    return result


if __name__ == "__main__":
    run_cli(main)
