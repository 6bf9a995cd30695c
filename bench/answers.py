"""Answer comparison beside Math-Verify on the same cases: who is right, and how long a comparison takes.

    python bench/answers.py --cases FILE.jsonl [--repeats 5] [--all]

FILE.jsonl holds {"gold", "pred", "equal", "category", "gold_form", "pred_form", "flags"} a line, a form being "answer"
or "text" (an answer somewhere in a text). Cases with flags, on which graders differ by choice, are left out without
--all. Both graders get the whole way: find the answer in texts, then compare. Math-Verify is given all its ways of
reading (LaTeX, expressions, letters) and, where it reads nothing of a bare answer, that answer between dollars. Caches
of both are emptied before each round; each round runs every case once with both in turn, the first to go changing.
Times are of the processor; the median over a category's cases of each case's median over the rounds is printed.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data import answers
from data.answers import reading, values
from data.io import InputError, read_jsonl, run_cli

try:
    import math_verify
except ImportError:
    math_verify = None


def ours(case: dict) -> bool:
    gold, prediction = (
        case[f"{side}_form"] == "text"
        and answers.extract(case[side], fallback_last_number=True)
        or case[side]
        for side in ("gold", "pred")
    )
    return answers.compare(gold, prediction).equal


def theirs(case: dict) -> bool:
    ways = [
        math_verify.LatexExtractionConfig(),
        math_verify.ExprExtractionConfig(),
        math_verify.StringExtractionConfig(),
    ]
    sides = []
    for side in ("gold", "pred"):
        found = math_verify.parse(case[side], ways)
        if not found and case[f"{side}_form"] == "answer":
            found = math_verify.parse(f"${case[side]}$", ways)
        sides.append(found)
    return bool(math_verify.verify(*sides))


def plain_pairs() -> list[dict]:
    """Pairs of plain numbers, the case that a policy's reward meets most."""
    pairs = [(str(n), str(n + n % 2)) for n in range(100, 1100, 25)]
    return [
        {
            "gold": gold,
            "pred": pred,
            "equal": gold == pred,
            "category": "plain numbers",
            "gold_form": "answer",
            "pred_form": "answer",
        }
        for gold, pred in pairs
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", required=True, help="JSONL of graders' test cases")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--all", action="store_true", help="also the cases with flags")
    given = parser.parse_args()
    if math_verify is None:
        raise InputError("math-verify is not installed; pip install math-verify")
    cases = [case for _, case in read_jsonl(given.cases) if given.all or not case["flags"]]
    graders = {"ours": ours, "Math-Verify": theirs}
    seconds = {name: defaultdict(list) for name in graders}
    verdicts = {name: {} for name in graders}
    everything = cases + plain_pairs()
    for repeat in range(given.repeats):
        reading.read.cache_clear()
        values.values.cache_clear()
        order = list(graders)[:: 1 if repeat % 2 else -1]
        for number, case in enumerate(everything):
            for name in order:
                began = time.process_time()
                try:
                    verdict = graders[name](case)
                except (
                    Exception
                ) as error:  # counted as neither right nor wrong answer given: a failure
                    verdict = f"{type(error).__name__}"
                seconds[name][number].append(time.process_time() - began)
                verdicts[name][number] = verdict
    found = {"cases": len(cases)}
    print(f"{len(cases)} cases, {given.repeats} rounds")
    for name in graders:
        counts = {"right": 0, "wrongly accepted": 0, "wrongly rejected": 0, "failed": 0}
        for number, case in enumerate(cases):
            verdict = verdicts[name][number]
            outcome = (
                "failed"
                if isinstance(verdict, str)
                else "right"
                if verdict == case["equal"]
                else "wrongly accepted"
                if verdict
                else "wrongly rejected"
            )
            counts[outcome] += 1
        found[name] = counts
        print(
            f"{name:12} right {counts['right'] / len(cases):6.1%}   "
            + "   ".join(f"{what} {count}" for what, count in counts.items())
        )
    print(
        f"\n{'microseconds a case, median':32}{'cases':>6}{'ours':>10}{'Math-Verify':>14}{'ratio':>8}"
    )
    categories = sorted({case["category"] for case in everything})
    found["microseconds"] = {}
    for category in [*categories, "all"]:
        numbers = [k for k, case in enumerate(everything) if category in (case["category"], "all")]
        row = [
            1e6 * statistics.median(statistics.median(seconds[name][k]) for k in numbers)
            for name in graders
        ]
        found["microseconds"][category] = dict(zip(graders, map(round, row), strict=True))
        print(f"{category:32}{len(numbers):6}{row[0]:10.0f}{row[1]:14.0f}{row[1] / row[0]:8.1f}")
    packages = "math-verify", "latex2sympy2_extended", "sympy", "mpmath"
    found["versions"] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{package: version(package) for package in packages},
    }
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    run_cli(main)
