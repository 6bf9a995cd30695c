"""Do two evaluations of the same problems differ by more than chance? Paired tests: problem by problem.

python -m evaluation.audit compare DIR_A DIR_B [--to FILE.json]     (directories that eval.py wrote)
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.io import InputError, atomic_write, read_jsonl


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided p of McNemar's test, from the pairs that changed: were both directions equally likely, the chance
    of a split at least as uneven. mcnemar(8, 2) = 2 * (1 + 10 + 45) / 2^10 = 0.109."""
    n, fewer = better + worse, min(better, worse)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def sign_flip(differences: np.ndarray, resamples: int, seed: int) -> float:
    """Two-sided p that the mean of paired differences is 0, by flipping their signs at random."""
    changed = differences[differences != 0]
    if not len(changed):
        return 1.0
    signs = (
        np.random.default_rng(seed).integers(0, 2, (resamples, len(changed)), dtype=np.int8) * 2 - 1
    )
    extreme = np.abs(signs @ changed) >= abs(changed.sum()) - 1e-9
    return float((extreme.sum() + 1) / (resamples + 1))


def bootstrap(differences: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean of paired differences, problems drawn anew with replacement."""
    n = len(differences)
    values, counts = np.unique(differences, return_counts=True)
    # how often each value is drawn is multinomial, so a resample costs the number of different values, not of problems
    drawn = np.random.default_rng(seed).multinomial(
        n, counts / n, size=resamples
    )  # [resamples, values]
    low, high = np.percentile(drawn @ values / n, [2.5, 97.5])
    return float(low), float(high)


def difference(
    a: Sequence[float], b: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> dict:
    """b against a, a value per problem (0 or 1, or the mean over its samples): {"n", "a", "b", "difference",
    "interval", "better", "worse", "p", "test"}; p by McNemar's exact test where all values are 0 or 1, else by
    sign_flip."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    better, worse = int((b > a).sum()), int((b < a).sum())
    binary = set(np.unique([a, b])) <= {0.0, 1.0}
    return {
        "n": len(a),
        "a": float(a.mean()),
        "b": float(b.mean()),
        "difference": float((b - a).mean()),
        "interval": bootstrap(b - a, resamples, seed),
        "better": better,
        "worse": worse,
        "p": mcnemar(better, worse) if binary else sign_flip(b - a, resamples, seed),
        "test": "McNemar, exact" if binary else "sign flip",
    }


def paired(
    records_a: list[dict], records_b: list[dict], resamples: int = 10_000, seed: int = 0
) -> dict:
    """`difference` of two evaluations. Raises InputError where they are not of the same problems, or not of as many
    samples of each."""
    if [r["id"] for r in records_a] != [r["id"] for r in records_b]:
        raise InputError(
            "the two are not of the same problems in the same order; evaluate both on one file"
        )
    for one, other in zip(records_a, records_b, strict=True):
        if (one["question"], one["answer"]) != (other["question"], other["answer"]):
            raise InputError(
                f"problem {one['id']} has another question or answer in the second evaluation"
            )
        if len(one["attempts"]) != len(other["attempts"]):
            counts = f"{len(one['attempts'])} and {len(other['attempts'])}"
            raise InputError(
                f"problem {one['id']} has {counts} samples; evaluate both with the same --samples"
            )
    return difference(shares(records_a), shares(records_b), resamples, seed)


def shares(records: list[dict], verdict: str = "right") -> list[float]:
    """Per problem, the share of its samples with that verdict ("right" or "strict")."""
    return [
        sum(a[verdict] for a in record["attempts"]) / len(record["attempts"]) for record in records
    ]


# Options that may differ between two evaluations that are compared: whose, where and how fast
_OWN = {
    "model",
    "to",
    "device",
    "max_rows",
    "chunk",
    "benchmarks",
    "formats",
    "problems",
    "data",
    "audit",
}


def compare(directory_a: str, directory_b: str) -> dict[str, dict]:
    """NAME.FORMAT -> `paired` of what both directories hold. Raises InputError where settings differ."""
    documents = []
    for directory in (directory_a, directory_b):
        path = Path(directory) / "results.json"
        try:
            documents.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: cannot be read ({error}); give a directory that eval.py wrote"
            ) from None
        if "settings" not in documents[-1]:
            raise InputError(
                f"{path}: says nothing of its settings; evaluate again with this version of eval.py"
            )
    first, second = documents
    for name in sorted({*first["settings"], *second["settings"]} - _OWN):
        values = first["settings"].get(name), second["settings"].get(name)
        if values[0] != values[1]:
            raise InputError(
                f"--{name} is {values[0]} in {directory_a} and {values[1]} in {directory_b}; "
                "only evaluations with the same settings can be compared"
            )
    common = [name for name in first["results"] if name in second["results"]]
    if not common:
        raise InputError(f"{directory_a} and {directory_b} have no benchmark and format in common")
    found = {}
    for name in common:
        records = [
            [row for _, row in read_jsonl(Path(d) / f"{name}.jsonl")]
            for d in (directory_a, directory_b)
        ]
        try:
            found[name] = paired(*records)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    return found


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def small(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def table(headings: list[str], lines: list[list[str]], markdown: bool = False) -> str:
    if markdown:
        return "\n".join(
            f"| {' | '.join(line)} |" for line in [headings, ["---"] * len(headings), *lines]
        )
    widths = [max(len(line[i]) for line in [headings, *lines]) for i in range(len(headings))]
    return "\n".join(
        "  ".join(map(str.ljust, line, widths)).rstrip() for line in [headings, *lines]
    )


def compare_command(arguments: list[str]) -> None:
    target = arguments[3] if len(arguments) == 4 and arguments[2] == "--to" else None
    if len(arguments) != 2 and target is None:
        raise InputError(
            "give two directories that eval.py wrote: evaluation/audit.py compare DIR_A DIR_B [--to FILE.json]"
        )
    found = compare(*arguments[:2])
    lines = []
    for name, one in found.items():
        ends = " to ".join(f"{100 * end:+.1f}" for end in one["interval"])
        change = f"{100 * one['difference']:+.1f} ({ends})"
        counts = [str(one[key]) for key in ("better", "worse")]
        accuracies = [percent(one["a"]), percent(one["b"])]
        lines.append(
            [name, str(one["n"]), *accuracies, change, *counts, small(one["p"]), one["test"]]
        )
    print(
        table(
            ["problems", "n", "A", "B", "B - A, points (95 %)", "better", "worse", "p", "test"],
            lines,
        )
    )
    if target:
        with atomic_write(target) as out:
            json.dump({"a": arguments[0], "b": arguments[1], "results": found}, out, indent=2)
