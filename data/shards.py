"""Token shards: documents in little-endian uint16 or uint32 files that are memory-mapped, and
weighted mixtures of them.

A folder of shards has the files `tokens-00000.bin`, ... and `manifest.json`. The manifest is
written last, so a folder without it is unfinished.

    python -m data.shards --input FILE.jsonl [FILE.jsonl ...] --tokenizer DIR --to DIR
"""

import hashlib
import itertools
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from data.io import (
    CommandParser,
    InputError,
    at_least,
    atomic_write,
    run_cli,
)

_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def write_tokens(
    documents: Iterable[list[int]],
    path,
    vocab_size: int,
    eos_id: int | None,
    source: str,
    limit: int | None = None,
    first: int = 0,
) -> dict:
    """Write documents (token ids) to a file, and `eos_id` after each unless it is None.

    limit: stop after the document with which the file has so many tokens. first: the number of the
    first document, for messages. Returns {name, documents, tokens, sha256}. Raises InputError for
    an id outside the vocabulary.
    """
    end = [] if eos_id is None else [eos_id]
    dtype, digest = _DTYPES[_dtype(vocab_size)], hashlib.sha256()
    tokens = count = 0
    with atomic_write(path, "wb") as file:
        for document in documents:
            ids = np.asarray([*document, *end], dtype=np.int64)
            if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
                raise InputError(
                    f"{source}: document {first + count} has a token id outside "
                    f"0..{vocab_size - 1}; encode it with the tokenizer of this vocabulary"
                )
            data = ids.astype(dtype).tobytes()
            file.write(data)
            digest.update(data)
            tokens += ids.size
            count += 1
            if limit is not None and tokens >= limit:
                break
    return {
        "name": Path(path).name,
        "documents": count,
        "tokens": tokens,
        "sha256": digest.hexdigest(),
    }


def _dtype(vocab_size: int) -> str:
    return "uint16" if vocab_size <= 2**16 else "uint32"


def write_manifest(
    files: list[dict],
    directory,
    tokenizer_hash: str,
    source: str,
    vocab_size: int,
    eos_id: int | None = None,
) -> dict:
    """Write the manifest of the files that `write_tokens` wrote to a folder, and remove other token
    files from it. Returns the manifest. Raises InputError if there are no tokens."""
    directory = Path(directory)
    total = sum(file["tokens"] for file in files)
    if not total:
        raise InputError(
            f"{source}: no tokens to write to {directory}; give at least one document with text"
        )
    for stale in set(directory.glob("tokens-*.bin")) - {directory / file["name"] for file in files}:
        stale.unlink()
    parts = [{name: file[name] for name in ("name", "tokens", "sha256")} for file in files]
    manifest = {
        "source": source,
        "tokenizer": tokenizer_hash,
        "vocab_size": vocab_size,
        "eos_id": eos_id,
        "dtype": _dtype(vocab_size),
        "documents": sum(file["documents"] for file in files),
        "tokens": total,
        "files": parts,
    }
    with atomic_write(directory / "manifest.json") as file:
        json.dump(manifest, file, indent=1)
    return manifest


def write_shards(
    documents: Iterable[list[int]],
    directory,
    tokenizer_hash: str,
    source: str,
    vocab_size: int,
    eos_id: int | None = None,
    shard_tokens: int = 2**28,
) -> dict:
    """Write documents (token ids) as shards, and `eos_id` after each unless it is None.

    A shard ends with the document with which it has `shard_tokens` tokens. Returns the manifest.
    Raises InputError for an id outside the vocabulary, and if there are no tokens.
    """
    directory = Path(directory)
    (directory / "manifest.json").unlink(missing_ok=True)  # the folder is unfinished until the end
    files, count = [], 0
    documents = iter(documents)
    for document in documents:
        path = directory / f"tokens-{len(files):05d}.bin"
        rest = itertools.chain([document], documents)
        files.append(write_tokens(rest, path, vocab_size, eos_id, source, shard_tokens, count))
        count += files[-1]["documents"]
    return write_manifest(files, directory, tokenizer_hash, source, vocab_size, eos_id)


class Shards:
    """A folder of shards as a sequence of `len(shards)` tokens, memory-mapped.

    The sizes must be those in the manifest. `verify=True` reads everything and checks the sha256
    too. Raises InputError.
    """

    def __init__(self, directory, verify: bool = False):
        self.directory = Path(directory)
        path = self.directory / "manifest.json"
        try:
            self.manifest = json.loads(path.read_text(encoding="utf-8"))
            files, dtype = self.manifest["files"], _DTYPES[self.manifest["dtype"]]
            self._parts = [self._map(file, dtype, verify) for file in files]
        except OSError as error:
            raise InputError(
                f"{error.filename}: cannot be read ({error.strerror}); "
                "make the shards again with python -m data.shards"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            raise InputError(
                f"{path}: not a manifest of token shards; "
                "make the shards again with python -m data.shards"
            ) from None
        self._starts = np.cumsum([0, *map(len, self._parts)])

    def _map(self, file: dict, dtype: np.dtype, verify: bool) -> np.ndarray:
        path = self.directory / file["name"]
        size, expected = path.stat().st_size, file["tokens"] * dtype.itemsize
        if size != expected:
            raise InputError(
                f"{path}: {size} bytes where the manifest says {expected}; make the shards again"
            )
        if verify:
            with open(path, "rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() != file["sha256"]:
                    raise InputError(
                        f"{path}: the sha256 is not the manifest's; make the shards again"
                    )
        return np.memmap(path, dtype=dtype, mode="r") if size else np.empty(0, dtype)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, length: int) -> np.ndarray:
        """The tokens from start to start + length, int64 [length]. Raises IndexError outside the
        sequence."""
        if not 0 <= start <= start + length <= len(self):
            raise IndexError(f"{self.directory}: tokens {start}..{start + length} of {len(self)}")
        result, filled = np.empty(length, dtype=np.int64), 0
        part = int(np.searchsorted(self._starts, start, side="right")) - 1
        while filled < length:
            offset = start + filled - int(self._starts[part])
            piece = self._parts[part][offset : offset + length - filled]
            result[filled : filled + len(piece)] = piece
            filled, part = filled + len(piece), part + 1
        return result

    def check(self, tokenizer_hash: str) -> None:
        """Raise InputError if the shards were made with another tokenizer."""
        used = self.manifest["tokenizer"]
        if used != tokenizer_hash:
            raise InputError(
                f"{self.directory}: made with tokenizer {used[:12]}, not with "
                f"{tokenizer_hash[:12]} of this model; make the shards again with that tokenizer"
            )


def _window_count(shards: Shards, context: int) -> int:
    """The number of windows of context + 1 tokens. A window begins with the last token of the
    window before, so every token but the first is a target once."""
    count = (len(shards) - 1) // context
    if count < 1:
        raise InputError(
            f"{shards.directory}: {len(shards)} tokens are fewer than one window of {context + 1}; "
            "give more text or a smaller context"
        )
    return count


def windows(directory, context: int, limit: int | None = None) -> np.ndarray:
    """The first windows in order, at most `limit`, for validation. int64 [N, context + 1]."""
    shards = Shards(directory)
    count = min(_window_count(shards, context), limit or len(shards))
    return np.stack([shards.read(i * context, context + 1) for i in range(count)])


def _hash64(*key) -> int:
    """64 bits that depend only on the key: the same on every machine, without state."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


class Mixture:
    """Endless training windows from several folders of shards, by weight (section 2.2.2).

    A hash of (seed, r) picks the source of row r. In a source, a permutation from (seed, source,
    epoch) orders the windows, so no window repeats before all have been seen. The rows do not
    depend on the batch size, and the state is a few integers. All processes draw the same rows,
    and each takes its share of a batch.
    """

    def __init__(
        self,
        sources: Mapping[str, str | Path],
        weights: dict[str, float],
        context: int,
        seed: int = 0,
    ):
        if set(sources) != set(weights) or not sources:
            names = ", ".join(sorted(set(sources) ^ set(weights))) or "none"
            raise InputError(
                f"mixture: sources and weights must name the same data; unmatched: {names}"
            )
        if bad := [name for name, weight in weights.items() if not 0 <= weight < float("inf")]:
            raise InputError(
                f"mixture: the weight of {bad[0]} is {weights[bad[0]]}; give a number of 0 or more"
            )
        if sum(weights.values()) <= 0:
            raise InputError("mixture: all weights are 0; give at least one above 0")
        self.names = [name for name in sorted(sources) if weights[name] > 0]
        self.shards = {name: Shards(sources[name]) for name in self.names}
        self.counts = {name: _window_count(self.shards[name], context) for name in self.names}
        share = np.array([weights[name] for name in self.names], dtype=np.float64)
        self._bounds = np.cumsum(share / share.sum())
        self.context, self.seed = context, seed
        self.row = 0  # rows drawn so far
        self.taken = dict.fromkeys(self.names, 0)  # windows taken so far, all epochs together
        self._orders: dict[str, tuple[int, np.ndarray]] = {}  # source -> (epoch, permutation)

    def check(self, tokenizer_hash: str) -> None:
        """Raise InputError if any of the shards was made with another tokenizer."""
        for shards in self.shards.values():
            shards.check(tokenizer_hash)

    def _window(self, name: str, position: int) -> int:
        epoch, place = divmod(position, self.counts[name])
        if self._orders.get(name, (None,))[0] != epoch:
            rng = np.random.default_rng(_hash64(self.seed, name, epoch))
            self._orders[name] = epoch, rng.permutation(self.counts[name])
        return int(self._orders[name][1][place])

    def next_batch(self, rows: int) -> tuple[np.ndarray, list[str]]:
        """(tokens int64 [rows, context + 1], the source of each row)."""
        batch, names = np.empty((rows, self.context + 1), dtype=np.int64), []
        for i in range(rows):
            uniform = _hash64(self.seed, "row", self.row) / 2**64
            source = int(np.searchsorted(self._bounds, uniform, side="right"))
            name = self.names[
                min(source, len(self.names) - 1)
            ]  # rounding: the last bound may be < 1
            window = self._window(name, self.taken[name])
            batch[i] = self.shards[name].read(window * self.context, self.context + 1)
            names.append(name)
            self.row += 1
            self.taken[name] += 1
        return batch, names

    def state_dict(self) -> dict:
        return {
            "row": self.row,
            "taken": dict(self.taken),
            "seed": self.seed,
            "context": self.context,
            "counts": dict(self.counts),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state`. Raises InputError if data, context or seed are different."""
        for name in ("seed", "context", "counts"):
            current = getattr(self, name)
            if state[name] != current:
                raise InputError(
                    f"mixture: {name} is {state[name]} in the checkpoint and {current} now; "
                    "resume with the data and the options of the run's start"
                )
        self.row, self.taken = state["row"], dict(state["taken"])


# ---- Command -------------------------------------------------------------------------------------

_worker_tokenizer = None


def _start_worker(directory: str) -> None:
    global _worker_tokenizer
    from data.tokenizer import Tokenizer

    _worker_tokenizer = Tokenizer.load(directory)


def _encode(texts: list[str]) -> list[list[int]]:
    return _worker_tokenizer.encode_batch(texts)


TEXTS = ("text", "content", "raw_content", "document")


def texts(path) -> Iterator[str]:
    """The document of each row: `text` (or `content` ...), or the question followed by the response
    or the solution. path: see data.rows.data_files."""
    from data.rows import read_rows  # a trainer reads token files alone

    for where, row in read_rows(path):
        text = next((row[name] for name in TEXTS if row.get(name)), None)
        question = row.get("question")
        if text is None and isinstance(question, str):
            answers = [row.get("response"), row.get("solution")]
            answers = [answer for answer in answers if isinstance(answer, str)]
            text = answers and answers[0] and f"{question}\n{answers[0]}"
        if not isinstance(text, str) or not text:
            needed = f"{', '.join(TEXTS)}, or 'question' and 'response'"
            raise InputError(f"{where}: no document; a row needs {needed}")
        yield text


def _inputs(paths: list[str]) -> Iterator[str | Path]:
    """The paths, and of a folder with .jsonl files these."""
    for path in paths:
        found = sorted(Path(path).glob("[!.]*.jsonl"))
        yield from found or [path]


def encode_documents(
    documents: Iterable[str],
    tokenizer,
    directory: str | None = None,
    workers: int = 1,
    batch: int = 256,
) -> Iterator[list[int]]:
    """The token ids of each document, in order. With workers > 1, each process loads the tokenizer
    of `directory`."""
    documents = iter(documents)
    batches = iter(lambda: list(itertools.islice(documents, batch)), [])
    if workers <= 1:
        for group in batches:
            yield from tokenizer.encode_batch(group)
        return
    with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(directory,)) as pool:
        pending: deque = deque()
        for group in batches:
            pending.append(pool.submit(_encode, group))
            if len(pending) > 2 * workers:  # read ahead, but do not keep the whole corpus
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(prog="python -m data.shards", description="Encode text as token shards.")
    files = "rows with text: JSONL, JSON, CSV, parquet; folders; hf://OWNER/NAME"
    parser.add_argument("--input", nargs="+", required=True, metavar="FILE", help=files)
    parser.add_argument(
        "--tokenizer", required=True, metavar="DIR", help="folder of tokenizer.json"
    )
    parser.add_argument("--to", required=True, metavar="DIR", help="folder to write to")
    source = "name of the source (default: the name of the first file)"
    parser.add_argument("--source", metavar="NAME", help=source)
    workers = "number of processes (default: 1)"
    parser.add_argument("--workers", type=at_least(1), default=1, metavar="N", help=workers)
    size = "tokens in a file (default: 2^28)"
    parser.add_argument("--shard_tokens", type=at_least(1), default=2**28, metavar="N", help=size)
    options = parser.parse_args(arguments)

    from data.tokenizer import Tokenizer

    began = time.perf_counter()
    tokenizer = Tokenizer.load(options.tokenizer)
    documents = itertools.chain.from_iterable(map(texts, _inputs(options.input)))
    rows = encode_documents(documents, tokenizer, options.tokenizer, options.workers)
    manifest = write_shards(
        rows,
        options.to,
        tokenizer.hash,
        options.source or Path(options.input[0]).stem,
        tokenizer.vocab_size,
        tokenizer.eos_id,
        options.shard_tokens,
    )
    seconds = time.perf_counter() - began
    print(
        f"{options.to}: {manifest['documents']} documents, {manifest['tokens']} tokens "
        f"in {len(manifest['files'])} files ({manifest['dtype']}), {seconds:.1f} s"
    )


if __name__ == "__main__":
    run_cli(main)
