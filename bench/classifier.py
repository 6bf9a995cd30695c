"""The classifier beside the fastText library on the same text: training, scoring, held-out accuracy (paper 2.1).

    python bench/classifier.py [--repeats 5] [--texts 3000] [--threads 2]

Two pairs of classes, in texts of about 3.5 kB. "documentation" is real: the docstrings of installed packages, those of
sympy and mpmath against the others'. "synthetic" is made by data.world.synthetic: pages of mathematics against general ones,
partly Chinese, which the library is given with spaces between characters, so that both have the same words to read.
A tenth of each class is held out. In every repeat both train on the same texts with the paper's settings and the same
number of threads (the library also writes and reads its file, and ours shuffles), then both score all of the text in
one thread, the one that begins alternating. The library scores in three ways: a call a text from Python, one call for
all of them, and one call for a file of them (its `test`, which also compares labels); ours is compared with each.
Seconds of training are those of a clock, their processor time beside them; MB/s of scoring are by the processor's
time, so that what else runs on the machine counts less. Needs the fasttext package (pip install fasttext).
"""

import argparse
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

from documentation import docstrings

from data.io import InputError, run_cli
from data.mine.classifier import Settings, train
from data.mine.ngrams import units
from data.world.synthetic import document

LENGTH = 3500  # characters of a text
MATH, OTHER = (
    ("sympy", "mpmath"),
    ("matplotlib", "networkx", "numpy", "torch", "transformers", "hypothesis", "PIL"),
)


def documentation(packages: tuple[str, ...], count: int) -> list[str]:
    """Texts made of the docstrings of packages, white space made single spaces."""
    found, specs = [], [importlib.util.find_spec(package) for package in packages]
    for spec in filter(None, specs):
        for path in sorted(Path(spec.origin).parent.rglob("*.py")):
            text = " ".join(docstrings(path).split())
            found += [
                text[i : i + LENGTH]
                for i in range(0, len(text), LENGTH)
                if len(text) - i > LENGTH // 4
            ]
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
    def given(self) -> tuple[list[str], list[str]]:
        return tuple(part[: len(part) * 9 // 10] for part in (self.positives, self.negatives))

    @property
    def held(self) -> tuple[list[str], np.ndarray]:
        """Texts, and whether each is mathematical."""
        positives, negatives = (
            part[len(part) * 9 // 10 :] for part in (self.positives, self.negatives)
        )
        return positives + negatives, np.repeat([True, False], [len(positives), len(negatives)])

    @functools.cached_property
    def texts(self) -> list[str]:
        return self.positives + self.negatives

    @functools.cached_property
    def spaced(self) -> "Corpus":
        """The same words with a space between any two: for the library, to which a run of CJK is one word."""
        return Corpus(
            *(
                [" ".join(units(text, "space")) for text in part]
                for part in (self.positives, self.negatives)
            )
        )

    @functools.cached_property
    def megabytes(self) -> float:
        return sum(len(text.encode()) for text in self.texts) / 1e6


def measure_ours(corpus: Corpus, threads: int, seed: int) -> dict[str, float]:
    used = time.process_time()
    model, train_seconds = timed(
        lambda: train(*corpus.given, Settings(), seed, threads), time.perf_counter
    )
    used = time.process_time() - used
    texts, labels = corpus.held
    accuracy = float(((model.margins(texts) > 0) == labels).mean())
    score = corpus.megabytes / timed(lambda: model.margins(corpus.texts))[1]
    return {"train": train_seconds, "train_cpu": used, "score": score, "accuracy": accuracy}


def measure_library(fasttext, corpus: Corpus, threads: int, seed: int) -> dict[str, float]:
    settings, megabytes, corpus = Settings(), corpus.megabytes, corpus.spaced
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.txt"

        def write_rows(positives: list[str], negatives: list[str]) -> None:
            rows = [f"__label__math {text}" for text in positives] + [
                f"__label__other {text}" for text in negatives
            ]
            random.Random(seed).shuffle(rows)
            path.write_text("\n".join(rows) + "\n", encoding="utf-8")

        def library_train():
            write_rows(*corpus.given)
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
        call = (
            model.f
        )  # what the methods of the library's Python class call: those fail under NumPy 2
        texts, labels = corpus.held
        found = [
            dict((b, a) for a, b in call.predict(text + "\n", 2, 0.0, "strict")) for text in texts
        ]
        row["accuracy"] = float(
            (([one.get("__label__math", 0.0) > 0.5 for one in found]) == labels).mean()
        )
        lines = [text + "\n" for text in corpus.texts]
        write_rows(corpus.positives, corpus.negatives)
        for way, function in (
            ("score", lambda: [call.predict(line, 1, 0.0, "strict") for line in lines]),
            ("score_list", lambda: call.multilinePredict(lines, 1, 0.0, "strict")),
            ("score_file", lambda: call.test(str(path), 1, 0.0)),
        ):
            row[way] = megabytes / timed(function)[1]
        return row


def measure(fasttext, corpus: Corpus, repeats: int, threads: int) -> dict[str, dict[str, float]]:
    """Medians over the repeats, of ours and the library's."""
    functions = {"ours": measure_ours, "library": functools.partial(measure_library, fasttext)}
    rows: dict[str, list] = {"ours": [], "library": []}
    for repeat in range(repeats):
        for name in sorted(functions, reverse=repeat % 2 == 1):
            rows[name].append(functions[name](corpus, threads, repeat))
    return {
        name: {what: statistics.median(row[what] for row in found) for what in found[0]}
        for name, found in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--texts", type=int, default=3000, help="of each class, at most")
    parser.add_argument("--threads", type=int, default=2, help="of training")
    options = parser.parse_args()
    try:
        import fasttext
    except ImportError:
        raise InputError("fastText is missing: pip install fasttext-wheel") from None
    import torch  # before the clock runs

    corpora = {
        "documentation": Corpus(
            documentation(MATH, options.texts), documentation(OTHER, options.texts)
        ),
        "synthetic": Corpus(synthetic("math", options.texts), synthetic("general", options.texts)),
    }
    results = {}
    for name, corpus in corpora.items():
        if min(len(corpus.positives), len(corpus.negatives)) < 10:
            raise InputError(
                f"{name}: fewer than 10 texts of a class; install sympy and matplotlib"
            )
        results[name] = found = measure(fasttext, corpus, options.repeats, options.threads)
        ours, library = found["ours"], found["library"]
        print(
            f"{name}: {len(corpus.positives)} + {len(corpus.negatives)} texts, {corpus.megabytes:.1f} MB, "
            f"medians of {options.repeats}"
        )
        print(f"{'':30}{'ours':>10}{'fastText':>10}{'ratio':>8}")
        for label, mine, its in (
            (f"train (s, {options.threads} threads)", "train", "train"),
            ("  processor seconds", "train_cpu", "train_cpu"),
            ("score (MB/s), a call a text", "score", "score"),
            ("  one call for all", "score", "score_list"),
            ("  one call for a file", "score", "score_file"),
        ):
            a, b = ours[mine], library[its]
            print(f"{label:30}{a:10.2f}{b:10.2f}{(a / b if 'score' in mine else b / a):8.2f}")
        print(
            f"{'accuracy, held out':30}{ours['accuracy']:10.4f}{library['accuracy']:10.4f}",
            flush=True,
        )
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
