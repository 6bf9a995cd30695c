"""Data: mining, tokenizer, problems, prompts, packing, token shards, answers, sandbox. Imports nothing of ours from
outside but, for its commands, runtime/options.py."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


class InputError(ValueError):
    """Bad input from the user: one line that names the file, line or option at fault and what to do."""


def run_cli(main: Callable[[], None]) -> None:
    """Run a command: an InputError, or a file that cannot be written, becomes one line on stderr and exit code 2."""
    try:
        main()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w"):
    """Open a temporary file beside `path` and rename it on success, so that a half-written file is never seen."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_jsonl(path: str | os.PathLike) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, object) of a JSONL file; blank lines are passed over. Raises InputError."""
    try:
        file = open(path, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give the path of a JSONL file"
        ) from None
    with file:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise InputError(
                            f"{path}:{number}: not a JSON object; each line must be one"
                        )
                    yield number, row
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}:{number}: not valid JSON ({error.msg}); correct or remove the line"
            ) from None
        except UnicodeDecodeError:
            raise InputError(
                f"{path}:{number + 1}: not UTF-8 text; give a UTF-8 JSONL file"
            ) from None


def jsonl_files(paths: Iterable[str | os.PathLike]) -> Iterator[Path]:
    """The paths, a folder standing for the *.jsonl files in it, by name. Raises InputError for one that has none."""
    for path in map(Path, paths):
        found = sorted(path.glob("[!.]*.jsonl")) if path.is_dir() else [path]
        if not found:
            raise InputError(
                f"{path}: no .jsonl file in this folder; give files or a folder with some"
            )
        yield from found


def write_jsonl(path: str | os.PathLike, rows: Iterable[dict]) -> int:
    """Write objects as JSONL (atomically); returns how many."""
    count = 0
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count
