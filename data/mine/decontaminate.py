"""Decontamination (paper 2.1): pages that contain a benchmark's questions or answers are dropped.

A page goes if it has a 10-gram of any benchmark text, or a benchmark text of 3 to 9 grams as a whole; shorter texts
("18") say nothing and are only counted. Units are those of ngrams.py: words in lower case without punctuation, and
each CJK character by itself, so that case, line breaks and punctuation hide nothing.

The benchmarks are a folder of problem files. Their grams are looked up by 64-bit hash, a batch of pages at a time, and
what is found is compared unit by unit, so a page is never dropped for a collision.

A short answer is matched wherever it stands, as the paper has it, and that can cost much: an answer 2\\sqrt{3} drops
every page with that number. Of 3,322 pieces of source code, most of it of a computer algebra system, 196 went by the
paper's rule with AGIEval's answers among the benchmarks, and 25 with `short_answers=False`, which leaves short texts to
the questions. The counts by benchmark and the record of matches show such cases.
"""

import csv
import functools
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.io import InputError, atomic_write, read_jsonl, write_jsonl
from data.mine.ngrams import Hashes, ngram_hashes, normalize, unit_hashes
from data.problems import readers

GRAM, SHORTEST = 10, 3
PARTS = ("page", "paragraph")
_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".csv", ".tsv")
_QUESTIONS = {
    "question",
    "problem",
    "input",
    "prompt",
    "query",
    "content",
    "text",
    "passage",
    "informal_statement",
    "formal_statement",
}
_ANSWERS = {
    "answer",
    "answers",
    "solution",
    "target",
    "output",
    "completion",
    "response",
    "golden",
    "rationale",
    "ground_truth",
    "proof",
    "informal_proof",
    "canonical_solution",
    "code",
}
_IDS = ("id", "ID", "unique_id", "task_id", "problem_name", "idx")


class Item(NamedTuple):
    """A text of a benchmark."""

    benchmark: str  # the file, below the folder
    id: str
    field: str
    text: str


class Match(NamedTuple):
    """What of a page is in a benchmark: `text` is the page's, normalised."""

    benchmark: str
    id: str
    field: str
    text: str


# ---- Benchmarks ------------------------------------------------------------------------------------------------------


def read_benchmarks(folder) -> tuple[list[Item], dict[str, int]]:
    """(texts, counts of files, problems, texts and files passed over) of a folder and those below it.

    Read are .jsonl, .json (gzip too), .csv and .tsv: what data.readers.load reads, and otherwise objects with a
    question (question, problem, input, prompt, ...) and answers (answer, solution, target, output, ...), one a line, in
    a list or one a file, and tables with such a header or, without, the question first and the answer last. Files with
    other endings are passed over. Raises InputError for a folder without files, and for one that is not understood."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; give the folder of the benchmarks to decontaminate against"
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    read = [path for path in files if path.name.endswith(_SUFFIXES)]
    if not read:
        raise InputError(
            f"{folder}: holds no benchmark; give a folder of {', '.join(_SUFFIXES)} files of problems"
        )
    items, count = [], 0
    for path in read:
        name, before = path.relative_to(folder).as_posix(), len(items)
        for id, texts in _problems(path):
            count += 1
            items += [Item(name, id, field, text) for field, text in texts]
        if len(items) == before:
            raise InputError(
                f"{path}: holds no problem; give a file with at least one, or remove it"
            )
    return items, {
        "files": len(read),
        "passed_over": len(files) - len(read),
        "problems": count,
        "texts": len(items),
    }


def _problems(path: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(id, its texts by field) of every problem of a file."""
    text = _read(path)
    if path.suffix in (".csv", ".tsv"):
        rows = list(
            csv.reader(
                io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ","
            )
        )
        header = rows[0] if rows else []
        lower = {cell.lower() for cell in header}
        if {"question", "numbers", "equation"} <= lower:
            yield from _loaded(path)
        elif _QUESTIONS & lower and _ANSWERS & lower:
            for line, row in enumerate(rows[1:], 2):
                yield _problem(dict(zip(header, row, strict=False)), line, path)
        else:
            for line, row in enumerate(rows, 1):
                if row:
                    yield (
                        str(line),
                        [("question", row[0]), *([("answer", row[-1])] if len(row) > 1 else [])],
                    )
        return
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        data = [
            _line(line, number, path)
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip()
        ]
    if isinstance(data, dict) and not any(key.lower() in _QUESTIONS for key in data):
        lists = [
            value
            for value in data.values()
            if isinstance(value, list) and value and isinstance(value[0], dict)
        ]
        data = [row for rows in lists for row in rows]
    rows = data if isinstance(data, list) else [data]
    if rows and isinstance(rows[0], dict) and {"Body", "Question", "Answer"} <= set(rows[0]):
        yield from _loaded(path)
        return
    for number, row in enumerate(rows, 1):
        yield _problem(row, number, path)


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({error}); correct or remove the file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; correct or remove the file") from None


def _line(line: str, number: int, path: Path):
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{number}: not valid JSON ({error.msg}); correct or remove the line"
        ) from None


def _loaded(path: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for problem in readers.load(path):
        texts = (
            ("question", problem.question),
            ("answer", problem.answer),
            ("solution", problem.solution),
        )
        yield problem.id, [(field, text) for field, text in texts if text]


def _problem(row, number: int, path: Path) -> tuple[str, list[tuple[str, str]]]:
    texts = list(_texts(row)) if isinstance(row, dict) else []
    if not any(field in _QUESTIONS for field, _ in texts):
        raise InputError(
            f"{path}: problem {number} has no question; it needs one of the fields "
            f"{', '.join(sorted(_QUESTIONS))}"
        )
    id = next(
        (str(row[name]) for name in _IDS if isinstance(row.get(name), (str, int))), str(number)
    )
    # GSM8K's solutions are met with the marks of its calculator and without
    return id, texts + [
        (field, re.sub("<<[^<>]*>>", "", text)) for field, text in texts if "<<" in text
    ]


def _texts(row: dict) -> Iterator[tuple[str, str]]:
    """(field, text) of the questions and answers in an object, at any depth."""
    for key, value in row.items():
        values = value if isinstance(value, list) else [value]
        for one in values:
            if isinstance(one, dict):
                yield from _texts(one)
            elif key.lower() in _QUESTIONS | _ANSWERS and isinstance(one, (str, int, float)):
                yield key.lower(), str(one)


# ---- Lookup ----------------------------------------------------------------------------------------------------------

# "word" units of ngrams.py as Python finds them, for what has been found by hash
_UNIT = re.compile(
    "[0-9A-Za-z\u00c0-\u1fff\ua000-\ud7ff\U00040000-\U0010ffff]+|[\u3040-\u9fff\U00010000-\U0003ffff]"
)


class _Set:
    """Which of many hashes are in a set: a table of the leading bits answers for nearly all that are not."""

    def __init__(self, values: np.ndarray):
        self.values = values  # uint64 [N], sorted, each once
        bits = min(max(16 * len(values), 2**16).bit_length(), 26)
        self.shift = np.uint64(64 - bits)
        self.table = np.zeros(2**bits, bool)
        self.table[values >> self.shift] = True

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which of the hashes [N] are in the set, their places in it)."""
        which = np.flatnonzero(self.table[hashes >> self.shift])
        places = np.searchsorted(self.values, hashes[which])
        right = places < len(self.values)
        right[right] = self.values[places[right]] == hashes[which][right]
        return which[right], places[right]


@dataclass
class Index:
    """The grams of benchmark texts. Where several texts have a gram, it is the first one's."""

    items: list[Item]
    counts: dict[str, int]
    grams: dict[
        int, np.ndarray
    ]  # length -> hashes uint64, sorted: of all 10-grams, or of whole texts of 3 to 9
    where: dict[
        int, np.ndarray
    ]  # length -> int64 [grams, 2]: the item, and the place of the gram in it
    starts: np.ndarray  # uint64, sorted: the first 3-grams of the whole texts

    def __post_init__(self):
        self._sets = {size: _Set(values) for size, values in self.grams.items()}
        self._starts = _Set(self.starts)

    @classmethod
    def build(cls, folder, short_answers: bool = True) -> "Index":
        """Of the benchmarks in a folder (see read_benchmarks). Its counts say of how many texts 10-grams are looked up
        (long), how many as a whole (short), and how many not at all (ignored)."""
        return cls.of(*read_benchmarks(folder), short_answers)

    @classmethod
    def of(cls, items: list[Item], counts: dict[str, int], short_answers: bool = True) -> "Index":
        """Of texts; the counts of `build` are added to `counts`."""
        units = unit_hashes([item.text for item in items])
        short = (units.counts >= SHORTEST) & (units.counts < GRAM)
        if not short_answers:
            short &= np.array([item.field in _QUESTIONS for item in items])
        long = units.counts >= GRAM
        grams, where, starts = {}, {}, [np.zeros(0, np.uint64)]
        for size in range(SHORTEST, GRAM + 1):
            owners = np.flatnonzero(long if size == GRAM else short & (units.counts == size))
            found = ngram_hashes(_rows(units, owners), size)
            grams[size], first = np.unique(found.values, return_index=True)
            places = np.arange(len(found.values)) - np.repeat(found.offsets[:-1], found.counts)
            where[size] = np.stack([owners[found.owners], places], axis=1)[first]
            if size < GRAM:
                starts.append(ngram_hashes(_rows(units, owners, SHORTEST), SHORTEST).values)
        counts = counts | {
            "long": int(long.sum()),
            "short": int(short.sum()),
            "ignored": int((~long & ~short).sum()),
            "grams": sum(map(len, grams.values())),
        }
        return cls(items, counts, grams, where, np.unique(np.concatenate(starts)))

    def save(self, path) -> None:
        texts = json.dumps({"items": self.items, "counts": self.counts}).encode()
        arrays = {f"grams{size}": values for size, values in self.grams.items()}
        arrays |= {f"where{size}": values for size, values in self.where.items()}
        with atomic_write(path, "wb") as file:
            np.savez(file, starts=self.starts, texts=np.frombuffer(texts, np.uint8), **arrays)

    @classmethod
    def load(cls, path) -> "Index":
        try:
            with np.load(path) as file:
                arrays = dict(file)
            texts = json.loads(arrays["texts"].tobytes())
            grams, where = (
                {size: arrays[f"{name}{size}"] for size in range(SHORTEST, GRAM + 1)}
                for name in ("grams", "where")
            )
            return cls(
                [Item(*item) for item in texts["items"]],
                texts["counts"],
                grams,
                where,
                arrays["starts"],
            )
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); build the index again"
            ) from None
        except (ValueError, KeyError, TypeError, EOFError):
            raise InputError(f"{path}: not an index of benchmarks; build it again") from None

    def matches(self, texts: Sequence[str]) -> list[list[Match]]:
        """What each text has of the benchmarks, in order; grams in a row of the same item are one match."""
        units, hits = unit_hashes(texts), []  # hits: (text, place in it, size, row of where[size])
        found = ngram_hashes(units, GRAM)
        which, rows = self._sets[GRAM].find(found.values)
        hits.append(self._located(found, which, GRAM, rows))
        found = ngram_hashes(units, SHORTEST)
        which, _ = self._starts.find(found.values)
        owners, places, _, _ = self._located(found, which, SHORTEST, which).T
        for size in range(SHORTEST, GRAM):
            fits = np.flatnonzero(places + size <= units.counts[owners])
            begins = units.offsets[owners[fits]] + places[fits]
            windows = units.values[begins[:, None] + np.arange(size)]
            which, rows = self._sets[size].find(ngram_hashes(_windows(windows), size).values)
            at = fits[which]
            hits.append(np.stack([owners[at], places[at], np.full(len(at), size), rows], axis=1))
        hits = np.concatenate(hits)
        hits = hits[np.lexsort((hits[:, 2], hits[:, 1], hits[:, 0]))]
        result: list[list[Match]] = [[] for _ in texts]
        bounds = np.flatnonzero(np.diff(hits[:, 0], prepend=-1)).tolist() + [len(hits)]
        for begin, end in zip(bounds, bounds[1:], strict=False):
            text = int(hits[begin, 0])
            result[text] = self._verified(texts[text], hits[begin:end, 1:].tolist())
        return result

    @staticmethod
    def _located(grams: Hashes, which: np.ndarray, size: int, rows: np.ndarray) -> np.ndarray:
        owners = np.searchsorted(grams.offsets, which, side="right") - 1
        return np.stack(
            [owners, which - grams.offsets[owners], np.full(len(which), size), rows], axis=1
        )

    def _verified(self, text: str, hits: list[list[int]]) -> list[Match]:
        """The matches of a text from its hits [(place, size, row)] in order, those that are none left out."""
        text = normalize(text)
        spans = [found.span() for found in _UNIT.finditer(text)]
        units = [text[begin:end] for begin, end in spans]
        runs: dict[
            tuple[int, int], list[int]
        ] = {}  # (item, place in the text less place in the item) -> [first, last]
        matches = []
        for place, size, row in hits:
            item, offset = self.where[size][row].tolist()
            if units[place : place + size] != _units(self.items[item].text)[offset : offset + size]:
                continue  # the hashes are equal and the texts are not
            run = runs.get((item, place - offset))
            if run and place <= run[1] + 1:
                run[1] = max(run[1], place + size - 1)
            else:
                runs[item, place - offset] = run = [place, place + size - 1]
                matches.append((item, run))
        return [
            Match(*self.items[item][:3], text[spans[first][0] : spans[last][1]])
            for item, (first, last) in matches
        ]


def _windows(values: np.ndarray) -> Hashes:
    return Hashes(values.ravel(), np.arange(len(values) + 1) * values.shape[1])


def _rows(units: Hashes, texts: np.ndarray, first: int | None = None) -> Hashes:
    """The units of some of the texts, or the first few of each."""
    counts = units.counts[texts] if first is None else np.full(len(texts), first)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    at = np.arange(offsets[-1]) + np.repeat(units.offsets[texts] - offsets[:-1], counts)
    return Hashes(units.values[at], offsets)


@functools.lru_cache(maxsize=4096)
def _units(text: str) -> list[str]:
    return _UNIT.findall(normalize(text))


# ---- Shards ----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _loaded_index(path: Path, changed: int) -> Index:
    return Index.load(path)


def decontaminate_shard(
    source, index, to, drops, part: str = "page", batch: int = 2**22
) -> dict[str, int]:
    """Write the pages of a shard that have nothing of the benchmarks in the index file `index` to the file `to`, and
    to the file `drops`, for each that has, {line (from 1), url, matches: [{benchmark, id, field, text}]}.

    With `part` "paragraph" a page loses only the paragraphs (between blank lines) that have a match, and goes as a
    whole if nothing is left of it or if what is left still matches, across paragraphs.

    Returns counts: in, out, dropped pages, cut pages, and for each benchmark the pages that had something of it.
    `batch` characters of pages are looked up at a time. Raises InputError for a line that is no page."""
    if part not in PARTS:
        raise InputError(f"part {part!r}: unknown; choose one of {', '.join(PARTS)}")
    index = Path(index)
    known = _loaded_index(index, index.stat().st_mtime_ns) if index.exists() else Index.load(index)
    counts, dropped = Counter({"in": 0, "out": 0, "dropped": 0, "cut": 0}), []

    def left():
        for pages in _batches(source, batch):
            for (line, page), found in zip(
                pages, known.matches([page["text"] for _, page in pages]), strict=True
            ):
                counts["in"] += 1
                rest = page["text"]
                if found:
                    rest = _without_matches(known, rest) if part == "paragraph" else ""
                    rows = [match._asdict() for match in found]
                    dropped.append(
                        {
                            "line": line,
                            "url": page.get("url", ""),
                            "page": not rest,
                            "matches": rows,
                        }
                    )
                    names = sorted({f"benchmark {match.benchmark}" for match in found})
                    counts.update(["cut" if rest else "dropped", *names])
                if rest or not found:
                    counts["out"] += 1
                    yield page | {"text": rest}

    write_jsonl(to, left())
    write_jsonl(drops, dropped)
    return dict(counts)


def _without_matches(known: Index, text: str) -> str:
    """The paragraphs without a match, if they have none together; else nothing."""
    paragraphs = re.split(r"\n\s*\n", text)
    left = [
        one for one, found in zip(paragraphs, known.matches(paragraphs), strict=True) if not found
    ]
    rest = "\n\n".join(left).strip()
    return "" if not rest or known.matches([rest])[0] else rest


def _batches(source, size: int) -> Iterator[list[tuple[int, dict]]]:
    pages, characters = [], 0
    for line, page in read_jsonl(source):
        if not isinstance(page.get("text"), str):
            raise InputError(f"{source}:{line}: not a page; it needs 'text'")
        pages.append((line, page))
        characters += len(page["text"])
        if characters >= size:
            yield pages
            pages, characters = [], 0
    if pages:
        yield pages
