"""MinHash signatures beside datasketch: words in lower case, 5-grams, 128 permutations, one core.

    python bench/minhash.py [--texts FILE.jsonl] [--megabytes 4] [--repeats 5]

Without --texts the text is the source of Python's standard library, in pieces of 3.9 kB. Each
repeat signs all texts with every method in turn and begins with another one. datasketch is used in
its fastest way, all n-grams of a text at once (update_batch), with its own hash and with a C hash
of Python (zlib.crc32); its words come from the simplest regular expression. Times are of the
processor: medians, and the ratio of medians. The estimates of all methods are compared with the
exact similarity of neighboring texts, of which every second is an edited copy of the one before.
"""

import json
import platform
import random
import re
import statistics
import sys
import sysconfig
import time
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.io import CommandParser, InputError, at_least, read_jsonl, run_cli
from data.mine.minhash import _ngrams, signatures, similarity
from data.mine.ngrams import batches, unit_hashes

try:
    import datasketch
except ImportError:
    datasketch = None


def load(path: str | None, megabytes: float) -> list[str]:
    if path:
        texts, size = [], 0
        for _, row in read_jsonl(path):
            texts.append(row["text"])
            size += len(texts[-1].encode())
            if size > megabytes * 1e6:
                break
        return texts
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = "\n".join(file.read_text(errors="replace") for file in files)[: int(megabytes * 1e6)]
    return [text[i : i + 3900] for i in range(0, len(text), 3900)]


def edited(texts: list[str], rng: random.Random) -> list[str]:
    """Every second text becomes a copy of the one before with some words replaced."""
    result = list(texts)
    for i in range(1, len(texts), 2):
        words = re.split(r"(\W+)", texts[i - 1])
        for _ in range(max(1, len(words) // rng.choice([20, 60, 200]))):
            words[rng.randrange(0, len(words), 2)] = "word"
        result[i] = "".join(words)
    return result


def grams(text: str) -> set[bytes]:
    words = re.findall(r"[^\W_]+", text.lower())
    return {" ".join(words[i : i + 5]).encode() for i in range(len(words) - 4)}


def sketch(texts: list[str], hash=None) -> np.ndarray:
    options = {} if hash is None else {"hashfunc": hash}
    made = datasketch.MinHash.generator(map(grams, texts), num_perm=128, **options)
    return np.array([one.digest() for one in made])


def measure(methods: dict, repeats: int) -> tuple[dict[str, list[float]], dict]:
    """(method -> seconds of each repeat, method -> its last result)."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    results, names = {}, list(methods)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            began = time.process_time()
            results[name] = methods[name]()
            seconds[name].append(time.process_time() - began)
    return seconds, results


def main() -> None:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", help="JSONL of pages")
    parser.add_argument("--megabytes", type=float, default=4, help="of text to sign")
    parser.add_argument("--repeats", type=at_least(1), default=5)
    options = parser.parse_args()
    if datasketch is None:
        raise InputError("datasketch is not installed; pip install datasketch")
    texts = edited(load(options.texts, options.megabytes), random.Random(0))
    size = sum(len(text.encode()) for text in texts) / 1e6
    methods = {
        "ours": lambda: signatures(texts),
        "of which words": lambda: [unit_hashes(batch) for batch in batches(texts)],
        "of which 5-grams": lambda: [_ngrams(batch, 5) for batch in batches(texts)],
        "datasketch": lambda: sketch(texts),
        "datasketch, crc32": lambda: sketch(texts, zlib.crc32),
        "its 5-grams": lambda: [grams(text) for text in texts],
    }
    seconds, results = measure(methods, options.repeats)

    # exact similarities
    sets = [grams(text) for text in texts]
    pairs = [(i - 1, i) for i in range(1, len(texts), 2) if sets[i - 1] | sets[i]]
    exact = np.array([len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for i, j in pairs])
    first, second = np.array(pairs).T

    # report
    print(
        f"{len(texts)} texts, {size:.1f} MB; seconds of the processor, median of {options.repeats} "
        "(least to most)"
    )
    ours, found = statistics.median(seconds["ours"]), {}
    for name, times in seconds.items():
        median = statistics.median(times)
        row = {"seconds": median, "MB/s": size / median, "texts/s": len(texts) / median}
        row["ratio"] = median / ours
        error = ""
        if name in ("ours", "datasketch", "datasketch, crc32"):
            estimates = similarity(results[name][first], results[name][second])
            row["rms error"] = float(np.sqrt(np.mean((estimates - exact) ** 2)))
            error = f"   rms error {row['rms error']:.4f}"
        found[name] = row
        print(
            f"{name:18} {median:7.3f} s ({min(times):.3f} to {max(times):.3f}) "
            f"{row['MB/s']:7.1f} MB/s {row['texts/s']:8.0f} texts/s   "
            f"{row['ratio']:6.2f} x ours{error}"
        )
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    versions["datasketch"] = datasketch.__version__
    values = {"MB": size, "texts": len(texts), "methods": found, "versions": versions}
    print(json.dumps(values | {"machine": platform.machine()}))


if __name__ == "__main__":
    run_cli(main)
