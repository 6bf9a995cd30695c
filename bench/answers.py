"""Answer comparison beside Math-Verify on the same cases: which verdicts are right, and the time.

    python bench/answers.py --cases FILE.jsonl [--repeats 5] [--all]

Lines of FILE.jsonl are {"gold", "pred", "equal", "category", "gold_form", "pred_form", "flags"}. A
form is "answer" or "text" (an answer somewhere in a text). Cases with flags, on which graders
differ by choice, need --all. Both graders find the answer in texts and compare. Math-Verify has all
its ways of reading (LaTeX, expressions, letters); where it reads nothing in a bare answer, that
answer between dollars. Each round clears the caches of both and runs every case with both in turn.
Times are of the
processor: the median over a category's cases of each case's median over the rounds.
"""

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
from data.io import CommandParser, InputError, at_least, read_jsonl, run_cli

try:
    import math_verify
except ImportError:
    math_verify = None


def ours(case: dict) -> bool:
    sides = []
    for side in ("gold", "pred"):
        answer = None
        if case[f"{side}_form"] == "text":
            answer = answers.extract(case[side], fallback_last_number=True)
        sides.append(answer or case[side])
    return answers.compare(*sides).equal


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
    """Pairs of plain numbers, the most frequent case in rewards."""
    cases = []
    for n in range(100, 1100, 25):
        gold, pred = str(n), str(n + n % 2)
        case = {"gold": gold, "pred": pred, "equal": gold == pred, "category": "plain numbers"}
        cases.append(case | {"gold_form": "answer", "pred_form": "answer"})
    return cases


def outcome(verdict: bool | str, equal: bool) -> str:
    """What a verdict is worth; a text is the name of an error."""
    if isinstance(verdict, str):
        return "failed"
    if verdict == equal:
        return "right"
    return "wrongly accepted" if verdict else "wrongly rejected"


def measure(cases: list[dict], graders: dict, repeats: int) -> tuple[dict, dict]:
    """(grader -> case number -> seconds of each round, grader -> case number -> verdict)."""
    seconds = {name: defaultdict(list) for name in graders}
    verdicts: dict[str, dict] = {name: {} for name in graders}
    for repeat in range(repeats):
        reading.read.cache_clear()
        values.values.cache_clear()
        order = list(graders)[:: 1 if repeat % 2 else -1]
        for number, case in enumerate(cases):
            for name in order:
                began = time.process_time()
                try:
                    verdict = graders[name](case)
                except Exception as error:
                    verdict = type(error).__name__
                seconds[name][number].append(time.process_time() - began)
                verdicts[name][number] = verdict
    return seconds, verdicts


def main() -> None:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", required=True, help="JSONL of graders' test cases")
    parser.add_argument("--repeats", type=at_least(1), default=5)
    parser.add_argument("--all", action="store_true", help="also the cases with flags")
    options = parser.parse_args()
    if math_verify is None:
        raise InputError("math-verify is not installed; pip install math-verify")
    cases = [case for _, case in read_jsonl(options.cases) if options.all or not case["flags"]]
    everything = cases + plain_pairs()
    graders = {"ours": ours, "Math-Verify": theirs}
    seconds, verdicts = measure(everything, graders, options.repeats)

    # which verdicts are right
    found: dict = {"cases": len(cases)}
    print(f"{len(cases)} cases, {options.repeats} rounds")
    for name in graders:
        counts = dict.fromkeys(("right", "wrongly accepted", "wrongly rejected", "failed"), 0)
        for number, case in enumerate(cases):
            counts[outcome(verdicts[name][number], case["equal"])] += 1
        found[name] = counts
        shown = "   ".join(f"{what} {count}" for what, count in counts.items())
        print(f"{name:12} right {counts['right'] / len(cases):6.1%}   {shown}")

    # the time
    heading = "microseconds a case, median"
    print(f"\n{heading:32}{'cases':>6}{'ours':>10}{'Math-Verify':>14}{'ratio':>8}")
    found["microseconds"] = {}
    for category in [*sorted({case["category"] for case in everything}), "all"]:
        numbers = [k for k, case in enumerate(everything) if category in (case["category"], "all")]
        row = []
        for name in graders:
            medians = [statistics.median(seconds[name][k]) for k in numbers]
            row.append(1e6 * statistics.median(medians))
        found["microseconds"][category] = dict(zip(graders, map(round, row), strict=True))
        print(f"{category:32}{len(numbers):6}{row[0]:10.0f}{row[1]:14.0f}{row[1] / row[0]:8.1f}")

    packages = ("math-verify", "latex2sympy2_extended", "sympy", "mpmath")
    found["versions"] = {package: version(package) for package in packages}
    found["versions"] |= {"python": platform.python_version(), "machine": platform.machine()}
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    run_cli(main)
