"""What the records of an evaluation show beyond its accuracy: kinds of error, a second verifier,
votes, difficulty.

Records are those of `evaluation.solve.Solver.solve`.
"""

import re
import statistics
from collections import Counter
from collections.abc import Sequence

from data import answers
from data.answers import verifier
from data.answers.equations import equations
from data.problems.problem import Problem
from evaluation.judge import same_answer

EXAMPLES = 3  # of each kind of error

# A wrong attempt is of the first kind that fits.
ERRORS = {
    "truncated": "it reached the limit of tokens or of rounds, or its prompt left no room",
    "program error": "its last program failed, or printed nothing",
    "verifier mismatch": "the second verifier takes its answer for right",
    "format": "its last number or last result is right, but the answer that was read is not",
    "no answer": "it has no answer",
    "arithmetic": "an equation in it is false",
    "set-up": "all its equations hold, or there are none, and the answer is wrong",
}


def second_answer(attempt: dict, format: str) -> str | None:
    """The answer as the second verifier reads it; of a program, what it printed."""
    if format == "pot":
        return attempt["answer"]
    return verifier.stated(attempt["text"]) or attempt["answer"]


def kind_of_error(gold: str, attempt: dict, format: str) -> tuple[str, str]:
    """(kind in ERRORS, what shows it) of a wrong attempt."""
    text, answer = attempt["text"], attempt["answer"]
    if attempt["finish"] in ("length", "rounds", "prompt"):
        return "truncated", f"ended by {attempt['finish']}"
    if attempt.get("program", "none") != "none" and answer is None:
        error = attempt.get("error") or f"status {attempt['program']}, nothing printed"
        return "program error", error
    second = second_answer(attempt, format)
    if verifier.agree(gold, second):
        return "verifier mismatch", f"{gold} and {second} are equal to the second verifier"

    # the right value stands in the text
    found = equations(text)[0]
    if format != "pot":
        numbers = re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?", text)
        results = [equation.text.rpartition("= ")[2] for equation in found]
        for value in numbers[-1:] + results[-1:]:
            if not answers.compare(gold, value).equal:
                continue
            if answer is None or not answers.compare(answer, value).equal:
                return "format", f"{value} stands in the text, the answer found is {answer}"
    if answer is None:
        return "no answer", "nothing found"

    # the reasoning is wrong
    false = [equation.text for equation in found if not equation.holds()]
    if false and format != "pot":
        return "arithmetic", f"{false[0]} is false"
    return "set-up", f"{answer}, not {gold}"


def count_errors(records: list[dict], format: str) -> dict[str, dict]:
    """Kind of error -> {"count", "share" (of all attempts), "examples"}."""
    kinds = {
        kind: {
            "count": 0,
            "share": 0.0,
            "examples": [],
        }
        for kind in ERRORS
    }
    total = sum(len(record["attempts"]) for record in records)
    for record in records:
        for attempt in record["attempts"]:
            if attempt["right"]:
                continue
            name, why = kind_of_error(record["answer"], attempt, format)
            kind = kinds[name]
            kind["count"] += 1
            kind["share"] = kind["count"] / total
            if len(kind["examples"]) < EXAMPLES:
                example = {key: record[key] for key in ("id", "question", "answer")}
                example |= {
                    "why": why,
                    "found": attempt["answer"],
                    "text": attempt["text"],
                }
                kind["examples"].append(example)
    return kinds


def second_opinion(records: list[dict], format: str) -> dict:
    """How the second verifier judges the attempts.

    "counts": how often each pair of verdicts occurs; "agreement": share of equal verdicts among
    those that the second verifier can give; "disputed": attempts where they differ; "right but not
    strictly": right by the relaxed rules alone.
    """
    words = {True: "right", False: "wrong", None: "unread"}
    counts, disputed, loose = Counter(), [], []
    for record in records:
        if record.get("kind", "answer") != "answer":
            continue
        for attempt in record["attempts"]:
            first = bool(attempt["right"])
            second = verifier.agree(record["answer"], second_answer(attempt, format))
            counts[f"{words[first]}, second {words[second]}"] += 1
            shown = {
                "id": record["id"],
                "answer": record["answer"],
                "found": attempt["answer"],
            }
            if second is not None and second != first:
                disputed.append(shown | {"text": attempt["text"]})
            if first and not attempt["strict"]:
                loose.append(shown | {"reason": attempt.get("strict_reason", "")})
    read = sum(count for name, count in counts.items() if not name.endswith("unread"))
    return {
        "counts": dict(sorted(counts.items())),
        "agreement": (read - len(disputed)) / read if read else None,
        "disputed": len(disputed),
        "disputed_examples": disputed[:EXAMPLES],
        "right but not strictly": len(loose),
        "loose_examples": loose[:EXAMPLES],
    }


# Bins of the majority's share: above the first, up to the second; the last is the share 1
BINS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0 - 1e-9), (1.0 - 1e-9, 1.0))


def votes(records: list[dict]) -> dict:
    """Self-consistency of K samples.

    samples            K
    agreement          mean share of the samples that give the majority's answer
    accuracy           of the majority
    distinct_answers   mean number per problem
    distinct_texts     mean share of K: 1 / K if all samples are the same text
    bins               by the majority's share: n, mean share, accuracy
    calibration_error  mean distance of share and accuracy over the bins
    """
    majority, distinct_answers, distinct_texts = [], [], []
    for record in records:
        attempts = record["attempts"]
        classes: list[list[dict]] = []  # attempts with equal answers
        for attempt in attempts:
            if attempt["answer"] is None:
                continue
            for members in classes:
                kind = record.get("kind", "answer")
                if same_answer(members[0]["answer"], attempt["answer"], kind):
                    members.append(attempt)
                    break
            else:
                classes.append([attempt])
        largest = max(classes, key=len, default=[])
        right = bool(largest and largest[0]["right"])
        majority.append((len(largest) / len(attempts), right))
        distinct_answers.append(len(classes))
        texts = {" ".join(attempt["text"].split()) for attempt in attempts}
        distinct_texts.append(len(texts) / len(attempts))

    bins, error = [], 0.0
    for low, high in BINS:
        inside = [row for row in majority if low < row[0] <= high or low == row[0] == 0]
        if inside:
            n = len(inside)
            share = sum(share for share, _ in inside) / n
            accuracy = sum(right for _, right in inside) / n
            row = {
                "above": round(low, 2),
                "to": round(high, 2),
                "n": n,
            }
            bins.append(row | {"share": share, "accuracy": accuracy})
            error += n * abs(accuracy - share) / len(majority)
    return {
        "samples": len(records[0]["attempts"]),
        "agreement": statistics.mean(share for share, _ in majority),
        "accuracy": statistics.mean(right for _, right in majority),
        "distinct_answers": statistics.mean(distinct_answers),
        "distinct_texts": statistics.mean(distinct_texts),
        "bins": bins,
        "calibration_error": error,
    }


def halves(problems: Sequence[Problem], records: list[dict]) -> dict[str, list[dict]]:
    """The records of short and of long questions, and, where solutions are known, of few and of
    many steps.

    The lower half goes up to the median. There is no pair of halves where all problems are alike.
    """
    lengths = [len(problem.question) for problem in problems]
    steps: list[int | None] = []
    for problem in problems:
        count = len(equations(problem.solution)[0]) if problem.solution else 0
        steps.append(count or None)

    found = {}
    for low_name, high_name, sizes in (
        ("short", "long", lengths),
        ("few steps", "many steps", steps),
    ):
        known = [pair for pair in zip(sizes, records, strict=True) if pair[0] is not None]
        if not known:
            continue
        middle = statistics.median_low(size for size, _ in known)
        low = [record for size, record in known if size <= middle]
        high = [record for size, record in known if size > middle]
        if low and high:
            found[f"{low_name} (up to {middle})"] = low
            found[f"{high_name} (more than {middle})"] = high
    return found
