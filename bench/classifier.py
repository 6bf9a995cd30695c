"""The classifier beside the fastText library on the same text: training, scoring, held-out accuracy (paper 2.1).

    python bench/classifier.py [--repeats 5] [--texts 3000] [--threads 2]

Two pairs of classes, in texts of about 3.5 kB. "documentation" is real: the docstrings of installed packages, those of
sympy and mpmath against the others'. "synthetic" is made by data.synthetic: pages of mathematics against general ones.
A tenth of each class is held out. In every repeat both train on the same texts with the paper's settings and the same
number of threads (the library also writes and reads its file, and ours shuffles), then both score all of the text in
one thread, the one that begins alternating. Seconds of training are those of a clock; MB/s of scoring are by the
processor's time, so that what else runs on the machine counts less. Needs the fasttext package (pip install fasttext).
"""

import argparse
import ast
import importlib.util
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data import InputError, run_cli
from data.mine.classifier import Settings, train
from data.synthetic import document

LENGTH = 3500  # characters of a text
MATH, OTHER = ("sympy", "mpmath"), ("matplotlib", "networkx", "numpy", "torch", "transformers", "hypothesis", "PIL")


def docstrings(packages: tuple[str, ...], count: int) -> list[str]:
    """Texts made of the docstrings of packages, white space made single spaces."""
    found, specs = [], [importlib.util.find_spec(package) for package in packages]
    for spec in filter(None, specs):
        for path in sorted(Path(spec.origin).parent.rglob("*.py")):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    tree = ast.parse(path.read_text(encoding="utf-8"))
            except (SyntaxError, ValueError, RecursionError):
                continue
            nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
            text = " ".join(" ".join(filter(None, map(ast.get_docstring, nodes))).split())
            found += [text[i : i + LENGTH] for i in range(0, len(text), LENGTH) if len(text) - i > LENGTH // 4]
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


def library_train(fasttext, positives: list[str], negatives: list[str], settings: Settings, threads: int, seed: int):
    rows = [f"__label__math {text}" for text in positives] + [f"__label__other {text}" for text in negatives]
    random.Random(seed).shuffle(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        began = time.perf_counter()
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        model = fasttext.train_supervised(
            str(path), dim=settings.width, lr=settings.rate, wordNgrams=settings.ngrams, minCount=settings.min_count,
            epoch=settings.epochs, bucket=settings.buckets, thread=threads, seed=seed, verbose=0,
        )
        return model, time.perf_counter() - began


def measure(fasttext, positives: list[str], negatives: list[str], repeats: int, threads: int) -> dict:
    """Medians over the repeats, of ours and the library's."""
    settings, texts = Settings(), positives + negatives
    kept = [len(part) * 9 // 10 for part in (positives, negatives)]
    given = positives[: kept[0]], negatives[: kept[1]]
    held, labels = positives[kept[0] :] + negatives[kept[1] :], np.repeat([True, False], [
        len(positives) - kept[0], len(negatives) - kept[1]
    ])
    lines = [text + "\n" for text in texts]
    size, rows = sum(len(text.encode()) for text in texts) / 1e6, []
    for repeat in range(repeats):
        row = {}
        for name in ("ours", "library") if repeat % 2 else ("library", "ours"):
            if name == "ours":
                began = time.perf_counter()
                model = train(*given, settings, repeat, threads)
                seconds = time.perf_counter() - began
                scores = model.scores(held)
                began = time.process_time()
                model.scores(texts)
            else:
                model, seconds = library_train(fasttext, *given, settings, threads, repeat)
                # the method of the library's Python class fails under NumPy 2; the one that it calls does not
                found = (dict((b, a) for a, b in model.f.predict(text + "\n", 2, 0.0, "strict")) for text in held)
                scores = np.array([one.get("__label__math", 0.0) for one in found])
                began = time.process_time()
                for line in lines:
                    model.f.predict(line, 1, 0.0, "strict")
            rate = size / (time.process_time() - began)
            row[name] = {"train": seconds, "score": rate, "accuracy": float(((scores > 0.5) == labels).mean())}
            del model
        rows.append(row)
    middle = {
        name: {what: statistics.median(row[name][what] for row in rows) for what in ("train", "score", "accuracy")}
        for name in ("ours", "library")
    }
    return {"texts": len(texts), "megabytes": size, **middle}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--texts", type=int, default=3000, help="of each class, at most")
    parser.add_argument("--threads", type=int, default=2, help="of training")
    options = parser.parse_args()
    try:
        import fasttext
    except ImportError:
        raise InputError("the fasttext package is missing; pip install fasttext") from None
    import torch  # before the clock runs

    corpora = {
        "documentation": (docstrings(MATH, options.texts), docstrings(OTHER, options.texts)),
        "synthetic": (synthetic("math", options.texts), synthetic("general", options.texts)),
    }
    for name, parts in corpora.items():
        if min(map(len, parts)) < 10:
            raise InputError(f"{name}: fewer than 10 texts of a class; install sympy and matplotlib")
    results = {}
    for name, (positives, negatives) in corpora.items():
        results[name] = found = measure(fasttext, positives, negatives, options.repeats, options.threads)
        ours, library = found["ours"], found["library"]
        print(f"{name}: {len(positives)} + {len(negatives)} texts, {found['megabytes']:.1f} MB, "
              f"medians of {options.repeats}")
        print(f"{'':26}{'ours':>10}{'fastText':>10}{'ratio':>8}")
        for what, unit in (("train", f"s, {options.threads} threads"), ("score", "MB/s, one core")):
            ratio = library[what] / ours[what] if what == "train" else ours[what] / library[what]
            print(f"{what + ' (' + unit + ')':26}{ours[what]:10.2f}{library[what]:10.2f}{ratio:8.2f}")
        print(f"{'accuracy, held out':26}{ours['accuracy']:10.4f}{library['accuracy']:10.4f}", flush=True)
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version(),
               "numpy": np.__version__, "torch": torch.__version__}
    print(json.dumps({**results, **machine}))


if __name__ == "__main__":
    run_cli(main)
