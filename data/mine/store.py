"""Files of the data engine: stores of pages, arrays, and the markers of finished steps.

A store is a folder of pages in shards: part-00000.jsonl, part-00001.jsonl, ... A line of a shard is
one page, {url, text, lang, date}.

A step writes its files first and then a marker, a JSON file with the step's counts. A step whose
marker exists is not run again, so a run that was killed continues where it stopped.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data.io import InputError, atomic_write, in_batches, read_jsonl

# ---- Pages -----------------------------------------------------------------------------------


def shard_name(number: int) -> str:
    """
    >>> shard_name(7)
    'part-00007.jsonl'
    """
    return f"part-{number:05d}.jsonl"


def shard_numbers(store: Path) -> list[int]:
    """The numbers of the shards in a store, in ascending order."""
    numbers = []
    for path in store.glob("part-*.jsonl"):
        digits = path.stem.removeprefix("part-")
        if digits.isdecimal() and path.name == shard_name(int(digits)):
            numbers.append(int(digits))
    return sorted(numbers)


def read_pages(shard: Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, page). Raises InputError for a line without text."""
    for line, page in read_jsonl(shard):
        if not isinstance(page.get("text"), str):
            raise InputError(f"{shard}:{line}: not a page; a page needs 'text'")
        yield line, page


def page_batches(shard: Path, characters: int = 2**22) -> Iterator[list[tuple[int, dict]]]:
    """The (line, page) pairs of a shard, in lists of about `characters` characters of text."""
    return in_batches(read_pages(shard), characters, lambda row: len(row[1]["text"]))


# ---- Arrays and JSON -------------------------------------------------------------------------


def save_array(path: Path, values: np.ndarray) -> None:
    with atomic_write(path, "wb") as file:
        np.save(file, values)


def write_json(path: Path, value) -> None:
    with atomic_write(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False)


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


# ---- Markers ---------------------------------------------------------------------------------


def run_once(marker: Path, function: Callable, *arguments):
    """Run a step and write what it returns to the marker; if the marker exists, only read it."""
    if marker.exists():
        return json.loads(marker.read_text())
    counts = function(*arguments)
    with atomic_write(marker) as file:
        json.dump(counts, file)
    return counts


def run_task(task: tuple) -> dict:
    """run_once(*task), in a form that `map` can call.

    Raises InputError, which names the marker, if a file cannot be read or written.
    """
    try:
        return run_once(*task)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        reason = f"{error.strerror or error}{where}"
        raise InputError(
            f"{task[0]}: step stopped: {reason}; correct this, then run the same command again"
        ) from None
