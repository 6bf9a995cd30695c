"""Files in and out: JSON and JSONL, writing a file whole or not at all, and the errors of commands."""

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


class InputError(ValueError):
    """Bad input from the user. The message is one line: the file, line or option, and what to
    do."""


def run_cli(main: Callable[[], object]) -> None:
    """Run a command. An InputError, or a file that cannot be written, becomes a line on stderr and
    exit code 2."""
    try:
        main()
    except (InputError, OSError) as error:
        print(f"error: {in_a_line(error)}", file=sys.stderr)
        sys.exit(2)


def in_a_line(error: Exception) -> str:
    """The message of an error. Where the system refused a file, it names the file and what to do."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}; give another path"
    return " ".join(text.splitlines())  # a name or a value of the user may have several


class CommandParser(argparse.ArgumentParser):
    """A parser of a command line. Errors are InputErrors, which `run_cli` prints in a line. An
    option that comes twice is an error."""

    def __init__(self, **settings):
        super().__init__(**{"allow_abbrev": False, "formatter_class": _wide_help} | settings)
        self.register("action", None, _StoreOnce)
        self.seen: set[str] = set()

    def error(self, message: str):
        raise InputError(f"{message}; --help lists the options")


class _StoreOnce(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        if self.dest in parser.seen:
            parser.error(f"{option_string} is given twice; give it once")
        parser.seen.add(self.dest)
        setattr(namespace, self.dest, values)


def _wide_help(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=32, width=100)


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option of a CommandParser that takes integers from `least` on."""

    def integer(text: str) -> int:
        if not re.fullmatch(r"[-+]?\d{1,18}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {least}")
        return int(text)

    return integer


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w"):
    """Open a temporary file beside `path`, and rename it to `path` on success. So nobody ever sees
    a half-written file."""
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


def find_model(file: Path) -> None:
    """Raise InputError where a file of a model directory, such as config.json, is not there.

    The message says where in the directory a model is, if there is one: a run has it in model/.
    """
    if file.is_file():
        return
    directory = file.parent
    places = [directory / "model", *directory.glob("step_*"), *directory.glob("snapshots/*")]
    places = [place for place in places if (place / file.name).is_file()]
    if not directory.exists():
        reason = "no such directory; give a model directory on this machine"
    elif not directory.is_dir():
        reason = "a file; give a Hugging Face model directory"
    elif places and places[0].name.startswith("step_"):
        newest = max(places, key=lambda place: (len(place.name), place.name))
        reason = f"a run that has not finished; its last checkpoint is {newest}"
    elif places:
        reason = f"its model is {places[0]}; give that"
    elif (directory / "adapter_config.json").is_file():
        reason = "an adapter (LoRA); merge it into its base model, and give the merged model"
    elif (directory / "config.toml").exists():
        reason = "a run without a checkpoint; start it again to finish it, then give its model/"
    else:
        raise InputError(f"{file}: not found; give a directory that has it")
    raise InputError(f"{directory}: {reason}")


def read_json(path: Path) -> dict:
    """The object of a JSON file. Raises InputError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); give a directory with a {path.name}"
        raise InputError(f"{path}: {reason}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); download or write it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object; download or write it again")
    return value


def parse_json(text: str, start: int | None = None):
    """The value of a JSON text. With `start`: the value that begins there, and its end.

    Half a character (a surrogate without the other one) becomes U+FFFD, as in the tokenizer: it
    cannot be written. Raises JSONDecodeError, also for what Python refuses in valid JSON.
    """
    decoder = json.JSONDecoder()
    try:
        if start is None:
            value, end = decoder.decode(text), len(text)
        else:
            value, end = decoder.raw_decode(text, start)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        reason = "too deep" if deep else "a number with too many digits"
        raise json.JSONDecodeError(reason, text, start or 0) from None
    if re.search(r"\\u[dD]", text[start or 0 : end]):
        whole = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass")
        value = json.loads(whole.decode("utf-16", "replace"))
    return value if start is None else (value, end)


def read_jsonl(path: str | os.PathLike) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, object) of a JSONL file. Blank lines are skipped.

    Raises InputError if the file cannot be read, or if a line is not a JSON object.
    """
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
                    row = parse_json(line)
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
    """The paths. A folder gives the *.jsonl files in it, sorted by name.

    Raises InputError for a folder without such a file.
    """
    for path in map(Path, paths):
        found = sorted(path.glob("[!.]*.jsonl")) if path.is_dir() else [path]
        if not found:
            raise InputError(
                f"{path}: no .jsonl file in this folder; give files or a folder with some"
            )
        yield from found


def in_batches(
    items: Iterable, characters: int, length: Callable[..., int] = len
) -> Iterator[list]:
    """The items in order, in lists of about `characters` characters. length: those of an item."""
    batch: list = []
    size = 0
    for item in items:
        batch.append(item)
        size += length(item)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def write_jsonl(path: str | os.PathLike, rows: Iterable[dict]) -> int:
    """Write objects as JSONL, the whole file or nothing. Returns how many."""
    count = 0
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count
