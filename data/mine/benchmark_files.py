"""Questions and answers from the files of benchmarks, in whatever layout these files have."""

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.io import InputError
from data.problems import readers

_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".csv", ".tsv")
QUESTIONS = set(
    "question problem input prompt query content text passage informal_statement "
    "formal_statement".split()
)
ANSWERS = set(
    "answer answers solution target output completion response golden rationale ground_truth "
    "proof informal_proof canonical_solution code".split()
)
_IDS = ("id", "ID", "unique_id", "task_id", "problem_name", "idx")

Texts = list[tuple[str, str]]  # (field, text) of a problem


class Item(NamedTuple):
    """A text of a benchmark."""

    benchmark: str  # the file, relative to the folder
    id: str
    field: str
    text: str


def read_benchmarks(folder) -> tuple[list[Item], dict[str, int]]:
    """Read all benchmark files in a folder and below.

    Returns (texts; counts of files read, files passed over, problems and texts).

    Files end in .jsonl or .json (also with .gz), .csv or .tsv; others are passed over. These
    layouts are understood: all that data.problems.readers reads; objects with a question field
    (question, problem, input, prompt, ...) and answer fields (answer, solution, target, output,
    ...), one on a line, one in a file, or in a list; tables with such a header, or without a
    header, with the question in the first column and the answer in the last.

    Raises InputError for a folder without such files, and for a file that is not understood.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; give the folder of the benchmarks to decontaminate against"
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    chosen = [path for path in files if path.name.endswith(_SUFFIXES)]
    if not chosen:
        raise InputError(
            f"{folder}: contains no benchmark; give a folder of {', '.join(_SUFFIXES)} files"
        )
    items: list[Item] = []
    problems = 0
    for path in chosen:
        name, before = path.relative_to(folder).as_posix(), len(items)
        for id, texts in _problems(path):
            problems += 1
            items += [Item(name, id, field, text) for field, text in texts]
        if len(items) == before:
            raise InputError(f"{path}: contains no problem; add a problem or remove the file")
    counts = {
        "files": len(chosen),
        "passed_over": len(files) - len(chosen),
        "problems": problems,
        "texts": len(items),
    }
    return items, counts


def _problems(path: Path) -> Iterator[tuple[str, Texts]]:
    """Yield (id, texts) for every problem of a file."""
    text = _read(path)
    if path.suffix in (".csv", ".tsv"):
        yield from _table_problems(text, path)
        return
    try:
        data = json.loads(text)
    except json.JSONDecodeError:  # several lines
        data = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                data.append(_parse_line(line, number, path))
    if isinstance(data, dict) and not any(key.lower() in QUESTIONS for key in data):
        data = _rows_inside(data)
    rows = data if isinstance(data, list) else [data]
    if rows and isinstance(rows[0], dict) and {"Body", "Question", "Answer"} <= set(rows[0]):
        yield from _load_problems(path)  # SVAMP
        return
    for number, row in enumerate(rows, 1):
        yield _problem(row, number, path)


def _table_problems(text: str, path: Path) -> Iterator[tuple[str, Texts]]:
    """The problems of a CSV or TSV file."""
    delimiter = "\t" if path.suffix == ".tsv" else ","
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    header = rows[0] if rows else []
    names = {cell.lower() for cell in header}
    if {"question", "numbers", "equation"} <= names:
        yield from _load_problems(path)  # MAWPS
    elif QUESTIONS & names and ANSWERS & names:
        for line, row in enumerate(rows[1:], 2):
            yield _problem(dict(zip(header, row, strict=False)), line, path)
    else:
        for line, row in enumerate(rows, 1):
            if row:
                answers = [("answer", row[-1])] if len(row) > 1 else []
                yield str(line), [("question", row[0]), *answers]


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({error}); correct or remove the file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; correct or remove the file") from None


def _parse_line(line: str, number: int, path: Path):
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{number}: not valid JSON ({error.msg}); correct or remove the line"
        ) from None


def _rows_inside(data: dict) -> list:
    """The objects of all lists in an object, as in {"canary": ..., "examples": [...]}."""
    rows = []
    for value in data.values():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows += value
    return rows


def _load_problems(path: Path) -> Iterator[tuple[str, Texts]]:
    """The problems of a file that data.problems.readers understands."""
    for problem in readers.load(path):
        texts = [
            ("question", problem.question),
            ("answer", problem.answer),
            ("solution", problem.solution),
        ]
        yield problem.id, [(field, text) for field, text in texts if text]


def _problem(row, number: int, path: Path) -> tuple[str, Texts]:
    """(id, texts) of an object. Raises InputError if it has no question."""
    texts = list(_texts(row)) if isinstance(row, dict) else []
    if not any(field in QUESTIONS for field, _ in texts):
        raise InputError(
            f"{path}: problem {number} has no question; it needs one of the fields "
            f"{', '.join(sorted(QUESTIONS))}"
        )
    id = str(number)
    for name in _IDS:
        if isinstance(row.get(name), (str, int)):
            id = str(row[name])
            break
    # Pages quote GSM8K's solutions with the calculator marks <<1+1=2>> and without.
    plain = [(field, re.sub("<<[^<>]*>>", "", text)) for field, text in texts if "<<" in text]
    return id, texts + plain


def _texts(row: dict) -> Iterator[tuple[str, str]]:
    """Yield (field, text) for the questions and answers in an object, at any depth."""
    for key, value in row.items():
        field = key.lower()
        for element in value if isinstance(value, list) else [value]:
            if isinstance(element, dict):
                yield from _texts(element)
            elif field in QUESTIONS | ANSWERS and isinstance(element, (str, int, float)):
                yield field, str(element)
