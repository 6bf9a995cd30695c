"""The rows of data files: JSONL, JSON, CSV, parquet and Arrow, of this machine or of the Hugging Face Hub.

The content of a file decides what it is, not its name, except for parquet and Arrow.
"""

import contextlib
import csv
import gzip
import importlib
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from data.io import InputError, parse_json

COLUMNS = (".parquet", ".arrow")  # files of pyarrow
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".json.gz", ".csv.gz", *COLUMNS)
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_KINDS = "JSONL, a JSON list, CSV or parquet"
# An object that holds only one of these fields with a list of objects is a table of these objects.
_TABLES = ("data", "rows", "examples", "instances", "train", "validation", "test")


def read_rows(path: str | os.PathLike) -> Iterator[tuple[str, dict]]:
    """Yield ("file:line", row) of the data files that `path` stands for; see `data_files`.

    JSONL and parquet are read piece by piece, other kinds whole. In parquet the line is the number
    of the row. Raises InputError for what cannot be read, and for a row that is not an object.
    """
    for file in data_files(path):
        for line, row in read_records(file):
            if isinstance(row, InputError):
                raise row
            if not isinstance(row, dict):
                raise InputError(f"{file}:{line}: not a JSON object; each row must be one")
            yield f"{file}:{line}", row


def data_files(path: str | os.PathLike) -> list[Path]:
    """The file of `path`, the data files of a folder and of the folders below it, or the files of
    a data set on the Hugging Face Hub (`hub_files`), which are downloaded. Raises InputError."""
    if str(path).startswith("hf://"):
        return hub_files(str(path))
    folder = Path(path)
    if not folder.is_dir():
        return [folder]
    found = [file for file in folder.rglob("*") if is_data(file.name)]
    if not found:
        raise InputError(f"{path}: no data file in this folder; give {_KINDS}")
    # 2.json before 10.json
    return sorted(found, key=lambda file: re.sub(r"\d+", lambda n: n[0].zfill(9), str(file)))


def is_data(name: str) -> bool:
    """Whether a file of this name holds data, and does not describe them."""
    hidden = name.startswith((".", "cache-"))  # cache-*.arrow of `datasets`
    return name.endswith(SUFFIXES) and not hidden and name not in _NOT_DATA


def read_records(path: Path) -> Iterator[tuple[int, object]]:
    """Yield (line, record) of a file. A record is a JSON value, or for a line that is not JSON an
    InputError, so that a caller can go on with the next line.

    Raises InputError for a file that is broken as a whole.
    """
    if path.name.endswith(COLUMNS):
        yield from _column_rows(path)
        return
    first = first_line(path)
    if first.lstrip()[:1] in ("[", "{"):
        yield from _json_records(path, first)
    elif first:
        with _opened(path, newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if "\t" in first else ",")
            for row in reader:
                more = row.pop(None, None) is not None
                problem = "more cells than the header names; quote cells with commas"
                where = f"{path}:{reader.line_num}"
                yield reader.line_num, InputError(f"{where}: {problem}") if more else row


def first_line(path: Path) -> str:
    """The first line that is not blank, or "". Raises InputError."""
    with _opened(path) as file:
        return next((line for line in file if line.strip()), "")


def read_text(path: Path) -> str:
    """The text of a file, unpacked if it is gzipped. Raises InputError."""
    with _opened(path, newline="") as file:
        return file.read()


@contextlib.contextmanager
def _opened(path: Path, newline: str | None = None):
    open_file = gzip.open if path.suffix == ".gz" else open
    try:
        with open_file(path, "rt", encoding="utf-8-sig", newline=newline) as file:
            yield file
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); give {_KINDS}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; give {_KINDS}") from None


def _json_records(path: Path, first: str) -> Iterator[tuple[int, object]]:
    """The records of a JSON file: a value on each line, or one list or object in all."""
    try:
        parse_json(first)
        whole = None
    except json.JSONDecodeError:
        if first.lstrip().startswith("["):
            yield from _list_records(path, read_text(path))
            return
        whole = _json(read_text(path))  # None: lines, of which the first is broken
    with _opened(path) as file:
        lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        start = list(itertools.islice(lines, 2))
        if len(start) == 1:
            whole = _json(first)
        if whole is not None:
            yield from _table(whole, start[0][0])
            return
        for number, line in itertools.chain(start, lines):
            try:
                yield number, parse_json(line)
            except json.JSONDecodeError as error:
                problem = f"not valid JSON ({error.msg}); correct or remove the line"
                yield number, InputError(f"{path}:{number}: {problem}")


def _json(text: str):
    """The value of a JSON text; None if it is none."""
    try:
        return parse_json(text)
    except json.JSONDecodeError:
        return None


def _table(whole, line: int) -> Iterator[tuple[int, object]]:
    """The rows of a value that is a whole file: a list, a list in an object, the columns of an
    object, or the object."""
    if isinstance(whole, list):
        yield from ((line, row) for row in whole)
        return
    lists = [whole[name] for name in _TABLES if isinstance(whole.get(name), list)]
    columns = list(whole.values())
    if len(lists) == 1 and lists[0] and all(isinstance(row, dict) for row in lists[0]):
        yield from enumerate(lists[0], 1)
    elif len(columns) > 1 and all(map(_is_column, columns)) and len({*map(len, columns)}) == 1:
        for number, cells in enumerate(zip(*columns, strict=True), 1):
            yield number, dict(zip(whole, cells, strict=True))
    else:
        yield line, whole


def _is_column(value) -> bool:
    return isinstance(value, list) and not any(isinstance(cell, dict | list) for cell in value)


def _list_records(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """The values of a JSON list. They are parsed separately, so that an error has a line."""
    position = text.index("[") + 1
    space = re.compile(r"[\s,]*")
    line, counted = 1, 0
    while True:
        position = space.match(text, position).end()
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]":
            break
        try:
            row, position = parse_json(text, position)
        except json.JSONDecodeError as error:
            problem = f"not valid JSON ({error.msg}); correct the file"
            raise InputError(f"{path}:{error.lineno}: {problem}") from None
        yield line, row
    if text[position + 1 :].strip():
        raise InputError(f"{path}:{line}: text after the end of the list; give one list or JSONL")


def _column_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """The rows of a parquet file, or of an Arrow stream, as save_to_disk of `datasets` writes it."""
    parquet = optional_module("pyarrow.parquet", "parquet")
    ipc = optional_module("pyarrow.ipc", "parquet")
    number = 0
    try:
        arrow = path.suffix == ".arrow"
        with open(path, "rb") as source:
            with ipc.open_stream(source) if arrow else parquet.ParquetFile(source) as file:
                for batch in file if arrow else file.iter_batches(batch_size=1024):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
    except (OSError, ValueError, NotImplementedError) as error:  # these are pyarrow's
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise InputError(
            f"{path}: cannot be read ({reason}); give a parquet or Arrow file"
        ) from None


def optional_module(name: str, extra: str):
    """Import a module of a package that is an extra. Raises InputError where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0]
        command = f"pip install -e .[{extra}]"
        raise InputError(f"the package {package} is missing; install it with: {command}") from None


_HUB = re.compile(
    r"hf://(?:datasets/)?(?P<repo>[^/@:]+/[^/@:]+)(?:@(?P<revision>[^/:]+))?"
    r"(?:/(?P<place>[^:]+?))?/?(?::(?P<split>[\w.-]+))?"
)


def hub_files(address: str) -> list[Path]:
    """Download the files of a data set from the Hugging Face Hub to its cache; returns their paths.

    address: hf://[datasets/]OWNER/NAME[@REVISION][/PLACE][:SPLIT]. PLACE is a file or a folder of
    the repository. A split is found by the names of files and folders (train-00000-of-00002, or
    train/0.jsonl). Without one it is train, if there is one. Raises InputError.
    """
    parts = _HUB.fullmatch(address)
    if not parts:
        form = "hf://OWNER/NAME, with /FOLDER or /FILE and :SPLIT if needed"
        raise InputError(f"{address}: not the address of a data set; write {form}")
    repo, place = parts["repo"], parts["place"] or ""
    hub = optional_module("huggingface_hub", "hub")
    where = {"repo_id": repo, "repo_type": "dataset", "revision": parts["revision"]}
    try:
        if is_data(place.rsplit("/", 1)[-1]):  # a file, which may be in the cache
            chosen = [place]
        else:
            names = sorted(hub.HfApi().list_repo_files(**where))
            names = [name for name in names if is_data(name.rsplit("/", 1)[-1])]
            if place:
                names = [name for name in names if name.startswith(f"{place}/")]
            chosen = _split_files(address, names, parts["split"])
        return [Path(hub.hf_hub_download(filename=name, **where)) for name in chosen]
    except InputError:
        raise
    except Exception as error:  # the errors of the network have no common class
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        advice = "check the name and the network"
        raise InputError(f"{address}: cannot be downloaded ({reason}); {advice}") from None


def _split_files(address: str, names: list[str], split: str | None) -> list[str]:
    """The files of a split. They must lie in one folder, because other folders hold other editions
    of the data."""

    def of_split(name: str, split: str) -> bool:
        pattern = rf"(?:^|[/_-]){re.escape(split)}(?:[/.]|[-_]\d|$)"
        return re.search(pattern, name) is not None

    chosen = [name for name in names if of_split(name, split or "train")]
    if not chosen and split is None:
        chosen = names
    if not chosen:
        found = ", ".join(names[:8]) or f"no file of {_KINDS}"
        what = f"no file of split {split}" if split else "no data"
        raise InputError(f"{address}: {what}; the repository has {found}")
    folders = sorted({name.rpartition("/")[0] for name in chosen})
    if len(folders) > 1:
        known = ", ".join(folders[:8])
        raise InputError(f"{address}: several folders have such files ({known}); add one: /FOLDER")
    return chosen
