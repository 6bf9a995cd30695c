"""The classifier beside the fastText library on the same text: training, scoring, accuracy (paper
2.1).

    python bench/classifier.py [--repeats 5] [--texts 3000] [--threads 2]

Two pairs of classes, in texts of about 3.5 kB. "documentation" is real: docstrings of sympy and
mpmath against those of other packages. "synthetic" is made by data.world.synthetic: pages of
mathematics against general ones, partly Chinese. The library gets them with spaces between
characters, so that both read the same words. A tenth of each class is held out.

In every repeat both train on the same texts with the paper's settings and threads (the library also
writes and reads its file; ours shuffles), then both score all text in one thread. They take turns
to begin. The library scores in three ways: a call for each text, a call for all of them, and a call
for a file (its `test`, which also compares labels). Seconds of training are those of a clock, with
the processor's beside them. MB/s of scoring use the processor's time. Needs fasttext-wheel.
"""

import functools
import importlib.util
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.documentation import docstrings
from data.io import CommandParser, InputError, at_least, run_cli
from data.mine.classifier import Settings, train
from data.mine.ngrams import units
from data.world.synthetic import document

LENGTH = 3500  # characters of a text
MATH = ("sympy", "mpmath")
OTHER = ("matplotlib", "networkx", "numpy", "torch", "transformers", "hypothesis", "PIL")


def documentation(packages: tuple[str, ...], count: int) -> list[str]:
    """Texts made of the docstrings of packages, with single spaces."""
    found = []
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None:
            continue
        for path in sorted(Path(spec.origin).parent.rglob("*.py")):
            text = " ".join(docstrings(path).split())
            for i in range(0, len(text), LENGTH):
                if len(text) - i > LENGTH // 4:
                    found.append(text[i : i + LENGTH])
    random.Random(0).shuffle(found)
    return found[:count]


def synthetic(kind: str, count: int) -> list[str]:
    """Texts made of synthetic documents of a kind."""
    found, index = [], 0
    for _ in range(count):
        parts, size = [], 0
        while size < LENGTH:
            parts.append(" ".join(document(index, kind).split()))
            size, index = size + len(parts[-1]) + 1, index + 1
        found.append(" ".join(parts))
    return found


def timed(function: Callable, clock: Callable[[], float] = time.process_time) -> tuple:
    """(what function() returns, its seconds)."""
    began = clock()
    result = function()
    return result, clock() - began


@dataclass(frozen=True)
class Corpus:
    positives: list[str]
    negatives: list[str]

    @property
    def training(self) -> tuple[list[str], list[str]]:
        """Nine tenths of each class."""
        positives = self.positives[: len(self.positives) * 9 // 10]
        negatives = self.negatives[: len(self.negatives) * 9 // 10]
        return positives, negatives

    @property
    def held_out(self) -> tuple[list[str], np.ndarray]:
        """(the other texts, True for those about mathematics)."""
        positives = self.positives[len(self.positives) * 9 // 10 :]
        negatives = self.negatives[len(self.negatives) * 9 // 10 :]
        labels = np.repeat([True, False], [len(positives), len(negatives)])
        return positives + negatives, labels

    @functools.cached_property
    def texts(self) -> list[str]:
        return self.positives + self.negatives

    @functools.cached_property
    def spaced(self) -> "Corpus":
        """The same words with spaces: the library takes a run of Chinese characters for a word."""
        positives = [" ".join(units(text, "space")) for text in self.positives]
        negatives = [" ".join(units(text, "space")) for text in self.negatives]
        return Corpus(positives, negatives)

    @functools.cached_property
    def megabytes(self) -> float:
        return sum(len(text.encode()) for text in self.texts) / 1e6


def measure_ours(corpus: Corpus, threads: int, seed: int) -> dict[str, float]:
    used = time.process_time()
    model, train_seconds = timed(
        lambda: train(*corpus.training, Settings(), seed, threads), time.perf_counter
    )
    used = time.process_time() - used
    texts, labels = corpus.held_out
    accuracy = float(((model.margins(texts) > 0) == labels).mean())
    score = corpus.megabytes / timed(lambda: model.margins(corpus.texts))[1]
    return {"train": train_seconds, "train_cpu": used, "score": score, "accuracy": accuracy}


def measure_library(fasttext, corpus: Corpus, threads: int, seed: int) -> dict[str, float]:
    settings, megabytes, corpus = Settings(), corpus.megabytes, corpus.spaced
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.txt"

        def write_rows(positives: list[str], negatives: list[str]) -> None:
            rows = [f"__label__math {text}" for text in positives]
            rows += [f"__label__other {text}" for text in negatives]
            random.Random(seed).shuffle(rows)
            path.write_text("\n".join(rows) + "\n", encoding="utf-8")

        def library_train():
            write_rows(*corpus.training)
            return fasttext.train_supervised(
                str(path),
                dim=settings.width,
                lr=settings.rate,
                wordNgrams=settings.ngrams,
                minCount=settings.min_count,
                epoch=settings.epochs,
                bucket=settings.buckets,
                thread=threads,
                seed=seed,
                verbose=0,
            )

        used = time.process_time()
        model, train_seconds = timed(library_train, time.perf_counter)
        row = {"train": train_seconds, "train_cpu": time.process_time() - used}

        # model.f is what the library's Python methods call; those fail under NumPy 2
        texts, labels = corpus.held_out
        predicted = []
        for text in texts:
            shares = {
                label: share for share, label in model.f.predict(f"{text}\n", 2, 0.0, "strict")
            }
            predicted.append(shares.get("__label__math", 0.0) > 0.5)
        row["accuracy"] = float((np.array(predicted) == labels).mean())

        lines = [text + "\n" for text in corpus.texts]
        write_rows(corpus.positives, corpus.negatives)
        ways = {
            "score": lambda: [model.f.predict(line, 1, 0.0, "strict") for line in lines],
            "score_list": lambda: model.f.multilinePredict(lines, 1, 0.0, "strict"),
            "score_file": lambda: model.f.test(str(path), 1, 0.0),
        }
        for name, way in ways.items():
            row[name] = megabytes / timed(way)[1]
        return row


def measure(fasttext, corpus: Corpus, repeats: int, threads: int) -> dict[str, dict[str, float]]:
    """Medians over the repeats, of ours and of the library."""
    functions = {"ours": measure_ours, "library": functools.partial(measure_library, fasttext)}
    rows: dict[str, list] = {"ours": [], "library": []}
    for repeat in range(repeats):
        for name in sorted(functions, reverse=repeat % 2 == 1):
            rows[name].append(functions[name](corpus, threads, repeat))
    medians: dict[str, dict[str, float]] = {}
    for name, found in rows.items():
        medians[name] = {key: statistics.median(row[key] for row in found) for key in found[0]}
    return medians


def report(found: dict[str, dict[str, float]], threads: int) -> None:
    """Print the medians; a ratio above 1 says that ours is faster."""
    ours, library = found["ours"], found["library"]
    print(f"{'':30}{'ours':>10}{'fastText':>10}{'ratio':>8}")
    for label, key in ((f"train (s, {threads} threads)", "train"), ("  processor", "train_cpu")):
        a, b = ours[key], library[key]
        print(f"{label:30}{a:10.2f}{b:10.2f}{b / a:8.2f}")
    labels = {"score": "score (MB/s), a call for a text", "score_list": "  a call for all"}
    labels["score_file"] = "  a call for a file"
    for key, label in labels.items():
        a, b = ours["score"], library[key]
        print(f"{label:30}{a:10.2f}{b:10.2f}{a / b:8.2f}")
    a, b = ours["accuracy"], library["accuracy"]
    print(f"{'accuracy, held out':30}{a:10.4f}{b:10.4f}", flush=True)


def main() -> None:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=at_least(1), default=5)
    parser.add_argument("--texts", type=at_least(1), default=3000, help="of each class, at most")
    parser.add_argument("--threads", type=at_least(1), default=2, help="of training")
    options = parser.parse_args()
    try:
        import fasttext
    except ImportError:
        raise InputError("fastText is missing: pip install fasttext-wheel") from None
    import torch  # before the clock runs

    count = options.texts
    corpora = {
        "documentation": Corpus(documentation(MATH, count), documentation(OTHER, count)),
        "synthetic": Corpus(synthetic("math", count), synthetic("general", count)),
    }
    results = {}
    for name, corpus in corpora.items():
        counts = len(corpus.positives), len(corpus.negatives)
        if min(counts) < 10:
            raise InputError(f"{name}: too few texts; install sympy and matplotlib")
        results[name] = measure(fasttext, corpus, options.repeats, options.threads)
        size = f"{counts[0]} + {counts[1]} texts, {corpus.megabytes:.1f} MB"
        print(f"{name}: {size}, medians of {options.repeats}")
        report(results[name], options.threads)
    machine = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
    print(json.dumps({**results, **machine}))


if __name__ == "__main__":
    run_cli(main)
