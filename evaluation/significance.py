"""Do two evaluations of the same problems differ by more than chance? Paired tests, problem by
problem.

`python -m evaluation.audit compare DIR_A DIR_B` prints them for two directories that eval.py wrote.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.io import CommandParser, InputError, atomic_write, read_jsonl
from evaluation.report import percent, text_table

RESAMPLES = 10_000  # of the bootstrap and of the sign-flip test


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided p of McNemar's test, from the numbers of problems that changed.

    If both directions were equally likely, the chance of a split at least as uneven:
    mcnemar(8, 2) = 2 * (1 + 10 + 45) / 2^10.

    >>> mcnemar(8, 2)
    0.109375
    """
    n, fewer = better + worse, min(better, worse)
    splits = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * splits / 2**n)


def sign_flip(differences: np.ndarray, resamples: int, seed: int) -> float:
    """Two-sided p of the hypothesis that the mean of paired differences is 0, by random flips of
    their signs.
    """
    changed = differences[differences != 0]
    if not len(changed):
        return 1.0
    shape = (resamples, len(changed))
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, shape, dtype=np.int8) * 2 - 1
    observed = abs(changed.sum()) - 1e-9
    extreme = np.abs(signs @ changed) >= observed
    count = extreme.sum() + 1
    return float(count / (resamples + 1))


def bootstrap(differences: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean, problems drawn again with replacement."""
    n = len(differences)
    # How often each value is drawn is multinomial. So a resample costs the number of values, not of
    # problems.
    values, counts = np.unique(differences, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n, counts / n, size=resamples)  # [resamples, values]
    low, high = np.percentile(drawn @ values / n, [2.5, 97.5])
    return float(low), float(high)


def difference(
    a: Sequence[float], b: Sequence[float], resamples: int = RESAMPLES, seed: int = 0
) -> dict:
    """b minus a, from a value per problem (0 or 1, or the mean over its samples).

    {"n", "a", "b", "difference", "interval", "better", "worse", "p", "test"}. p is McNemar's exact
    test if all values are 0 or 1, else a sign-flip test.
    """
    a = np.asarray(a, float)
    b = np.asarray(b, float)
    better = int((b > a).sum())
    worse = int((b < a).sum())
    binary = set(np.unique([a, b])) <= {0.0, 1.0}
    if binary:
        p = mcnemar(better, worse)
    else:
        p = sign_flip(b - a, resamples, seed)
    return {
        "n": len(a),
        "a": float(a.mean()),
        "b": float(b.mean()),
        "difference": float((b - a).mean()),
        "interval": bootstrap(b - a, resamples, seed),
        "better": better,
        "worse": worse,
        "p": p,
        "test": "McNemar, exact" if binary else "sign flip",
    }


def shares(records: list[dict], verdict: str = "right") -> list[float]:
    """For each problem the share of its samples with that verdict ("right" or "strict")."""
    values = []
    for record in records:
        verdicts = [attempt[verdict] for attempt in record["attempts"]]
        values.append(sum(verdicts) / len(verdicts))
    return values


def paired(records_a: list[dict], records_b: list[dict]) -> dict:
    """`difference` of two evaluations. Raises InputError if problems or numbers of samples differ."""
    ids_a = [record["id"] for record in records_a]
    ids_b = [record["id"] for record in records_b]
    if ids_a != ids_b:
        raise InputError(
            "the two are not of the same problems in the same order; evaluate both on one file"
        )
    for a, b in zip(records_a, records_b, strict=True):
        if (a["question"], a["answer"]) != (b["question"], b["answer"]):
            raise InputError(
                f"problem {a['id']} has another question or answer in the second evaluation"
            )
        if len(a["attempts"]) != len(b["attempts"]):
            counts = f"{len(a['attempts'])} and {len(b['attempts'])}"
            raise InputError(
                f"problem {a['id']} has {counts} samples; evaluate both with the same --samples"
            )
    return difference(shares(records_a), shares(records_b))


# Options that may differ between two evaluations that are compared
MAY_DIFFER = {"model", "to", "device", "max_rows", "chunk", "kernels"}
MAY_DIFFER |= {"benchmarks", "formats", "problems", "data"}


def compare(directory_a: str, directory_b: str) -> dict[str, dict]:
    """Task name -> `paired` of the tasks that both directories have.

    Raises InputError if settings differ or nothing is common.
    """
    first, second = read_results(directory_a), read_results(directory_b)
    names = {*first["settings"], *second["settings"]}
    for name in sorted(names - MAY_DIFFER):
        a, b = first["settings"].get(name), second["settings"].get(name)
        if a != b:
            raise InputError(
                f"--{name} is {a} in {directory_a} and {b} in {directory_b}; "
                "only evaluations with the same settings can be compared"
            )
    common = [name for name in first["results"] if name in second["results"]]
    if not common:
        raise InputError(f"{directory_a} and {directory_b} have no benchmark and format in common")
    found = {}
    for name in common:
        try:
            records_a = read_records(directory_a, name)
            records_b = read_records(directory_b, name)
            found[name] = paired(records_a, records_b)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    return found


def read_results(directory: str) -> dict:
    path = Path(directory) / "results.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path}: cannot be read ({reason}); give a directory that eval.py wrote"
        ) from None
    if "settings" not in document:
        raise InputError(f"{path}: has no settings; evaluate again with this version of eval.py")
    return document


def read_records(directory: str, name: str) -> list[dict]:
    path = Path(directory) / f"{name}.jsonl"
    return [record for _, record in read_jsonl(path)]


def change(found: dict) -> str:
    """A difference in points with its interval, e.g. "+3.0 (+1.2 to +4.8)"."""
    low, high = found["interval"]
    return f"{100 * found['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def compare_command(arguments: list[str]) -> None:
    """`python -m evaluation.audit compare`: print a table of the differences."""
    parser = CommandParser(prog="python -m evaluation.audit compare", description=__doc__)
    parser.add_argument("a", metavar="DIR_A", help="directory that eval.py wrote")
    parser.add_argument("b", metavar="DIR_B", help="another one, of the same problems")
    parser.add_argument("--to", metavar="FILE", help="JSON file for the results")
    options = parser.parse_args(arguments)

    found = compare(options.a, options.b)
    headings = ["problems", "n", "A", "B", "B - A, points (95 %)", "better", "worse", "p", "test"]
    lines = []
    for name, task in found.items():
        accuracies = [percent(task["a"]), percent(task["b"])]
        counts = [str(task["better"]), str(task["worse"])]
        line = [name, str(task["n"]), *accuracies]
        line += [change(task), *counts]
        line += [p_value(task["p"]), task["test"]]
        lines.append(line)
    print(text_table(headings, lines))
    if options.to:
        with atomic_write(options.to) as out:
            json.dump(
                {"a": options.a, "b": options.b, "results": found},
                out,
                indent=2,
            )
