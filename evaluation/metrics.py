"""The figures of an evaluation: accuracy, maj@k and pass@k, each with a 95 % interval over
problems.

A problem's verdicts are 0 or 1 for greedy answers and for a vote: their interval is Wilson's.
Shares of several samples (accuracy, pass@k) have a normal interval. Both say how far another set of
problems of this kind might be off, not what another training seed would give.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence

from evaluation.judge import same_answer

Z = 1.959964  # 97.5 % of the standard normal distribution


def wilson(right: float, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927).

    >>> [round(end, 3) for end in wilson(8, 10)]
    [0.49, 0.943]
    """
    share = right / total
    scale = 1 + Z**2 / total
    center = (share + Z**2 / total / 2) / scale
    variance = share * (1 - share) / total
    variance += (Z / total) ** 2 / 4
    half = Z * math.sqrt(variance) / scale
    return clamped(center - half, center + half)


def clamped(low: float, high: float) -> tuple[float, float]:
    """The part of an interval between 0 and 1."""
    return max(0.0, low), min(1.0, high)


def normal(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of shares, by the normal approximation."""
    n, center = len(values), mean(values)
    squares = [(value - center) ** 2 for value in values]
    variance = sum(squares) / max(n - 1, 1)
    half = Z * math.sqrt(variance / n)
    if half == 0:  # all right or all wrong: the approximation fails
        return wilson(sum(values), n)
    return clamped(center - half, center + half)


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that at least one of k samples is right: 1 - C(n - right, k) / C(n, k) (Chen et al.,
    2021).

    The estimate from n >= k samples, of which `right` are right, is unbiased.
    """
    all_wrong = math.comb(n - right, k) / math.comb(n, k)
    return 1.0 - all_wrong


def vote(
    predicted: Sequence[str | None], same: Callable[[str, str], bool] = same_answer
) -> list[int | None]:
    """The majority's answer among the first k samples, for k = 1 ... K, as the index of a sample.

    Equal answers count together and the first of them stands for all. The first seen wins a tie.
    None abstains: without any answer the winner is None too.
    """
    first: list[int] = []  # of each class of equal answers: its first sample
    counts: list[int] = []
    class_of: dict[str, int] = {}  # so that each different answer is compared only once
    best, winners = 0, []
    for index, answer in enumerate(predicted):
        if answer is not None:
            if answer not in class_of:
                for c, head in enumerate(first):
                    if same(predicted[head], answer):
                        class_of[answer] = c
                        break
                else:
                    class_of[answer] = len(first)
                    first.append(index)
                    counts.append(0)
            c = class_of[answer]
            counts[c] += 1
            if (counts[c], -c) > (counts[best], -best):
                best = c
        winners.append(first[best] if first else None)
    return winners


def mean_with_interval(
    values: Sequence[float], sections: Sequence[str], binary: bool
) -> tuple[float, tuple[float, float]]:
    """(mean, 95 % interval) of a value per problem, as the mean over the means of the sections.

    One section: Wilson's interval if `binary` (all values are 0 or 1), else the normal one.
    Several sections: the normal interval of a stratified sample.
    """
    groups: dict[str, list[float]] = {}
    for section, value in zip(sections, values, strict=True):
        groups.setdefault(section, []).append(value)
    if len(groups) == 1:
        interval = normal(values)
        if binary:
            interval = wilson(sum(values), len(values))
        return mean(values), interval
    center = mean([mean(group) for group in groups.values()])
    variance = 0.0
    for group in groups.values():
        low, high = normal(group)
        variance += ((high - low) / 2) ** 2
    half = math.sqrt(variance) / len(groups)
    return center, clamped(center - half, center + half)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# --------------------------------------------------------------------------------------------------
# The figures of a task


def summarize(records: list[dict], average: str = "problems") -> dict:
    """The figures of the records of one benchmark and format (see `evaluation.solve.Solver.solve`).

    problems, samples   how many problems, and samples of each
    accuracy, strict    mean over all samples; None if proofs could not be checked
    paper               accuracy by the rules of the paper's evaluation, where they apply
    maj@k, pass@k       for k = 1, 2, 4 ... K, if K > 1
    sections            accuracy of each part of the benchmark, if it has several
    reasons             how often each reason of a verdict occurs; "strict_..." says why a right
                        answer is not strictly right
    no_answer, truncated, no_room   shares of the samples; no_room: the prompt fills the context
    shots, tokens, rounds           means; programs, proofs: how often each status occurs

    accuracy, strict, paper, maj@k and pass@k have an interval beside them. With average="sections"
    they are means over the means of the sections.
    """
    K = len(records[0]["attempts"])
    attempts = []
    for record in records:
        attempts += record["attempts"]
    sections = [record["section"] for record in records]
    strata = sections
    if average == "problems":
        strata = [""] * len(records)
    checked = all(a["right"] is not None for a in attempts)
    metrics: dict = {"problems": len(records), "samples": K}

    def add(name: str, values: list[float], binary: bool) -> None:
        value, interval = mean_with_interval(values, strata, binary)
        metrics[name] = value
        key = "interval" if name == "accuracy" else f"{name}_interval"
        metrics[key] = interval

    # accuracy
    right = counts_of(records, "right")
    shares = [count / K for count in right]
    add("accuracy", shares, K == 1)
    for verdict in ("strict", "paper"):
        if verdict in attempts[0]:
            counts = counts_of(records, verdict)
            add(verdict, [count / K for count in counts], K == 1)
    if not checked:
        for name in ("accuracy", "interval", "strict", "strict_interval"):
            metrics[name] = None
    if len(set(sections)) > 1 and checked:
        metrics["sections"] = means_by(sections, shares)

    # what the attempts are like
    reasons: Counter[str] = Counter()
    for attempt in attempts:
        reasons[attempt["reason"]] += 1
        if attempt["right"] and not attempt["strict"]:
            reasons[f"strict_{attempt['strict_reason']}"] += 1
    metrics["reasons"] = dict(sorted(reasons.items()))
    no_answer = [a["answer"] is None for a in attempts]
    metrics["no_answer"] = mean(no_answer)
    for name, finish in (("truncated", "length"), ("no_room", "prompt")):
        ended = [a["finish"] == finish for a in attempts]
        metrics[name] = mean(ended)
    metrics["shots"] = mean([record["shots"] for record in records])
    metrics["tokens"] = mean([a["tokens"] for a in attempts])
    for name, key in (("programs", "program"), ("proofs", "proof")):
        statuses = Counter(a[key] for a in attempts if key in a)
        if statuses:
            metrics[name] = dict(sorted(statuses.items()))
    rounds = [a["rounds"] for a in attempts if "rounds" in a]
    if rounds:
        metrics["rounds"] = mean(rounds)

    # several samples: votes and pass@k
    if K > 1 and checked:
        voting = [record for record in records if can_vote(record)]
        votes = [vote_curve(record) for record in voting]
        for k in sorted({*powers_of_two(K), K}):
            if votes:
                add(f"maj@{k}", [curve[k - 1] for curve in votes], True)
            chances = [pass_at_k(K, count, k) for count in right]
            add(f"pass@{k}", chances, False)
    return metrics


def counts_of(records: list[dict], verdict: str) -> list[int]:
    """For each record, the number of its attempts with this verdict."""
    counts = []
    for record in records:
        verdicts = [bool(a[verdict]) for a in record["attempts"]]
        counts.append(sum(verdicts))
    return counts


def means_by(sections: list[str], values: list[float]) -> dict[str, float]:
    """Section -> the mean of its values."""
    groups: dict[str, list[float]] = {}
    for section, value in zip(sections, values, strict=True):
        groups.setdefault(section, []).append(value)
    return {section: mean(group) for section, group in groups.items()}


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4 ... up to `most`."""
    return [2**i for i in range(most.bit_length())]


def can_vote(record: dict) -> bool:
    """True if the answers can be counted: programs and proofs cannot."""
    return record["kind"] not in ("code", "proof")


def vote_curve(record: dict) -> list[float]:
    """1.0 or 0.0 for k = 1 ... K: is the majority's answer among the first k samples right?"""
    attempts, kind = record["attempts"], record["kind"]
    answers = [attempt["answer"] for attempt in attempts]
    winners = vote(answers, lambda a, b: same_answer(a, b, kind))
    curve = []
    for winner in winners:
        right = winner is not None and attempts[winner]["right"]
        curve.append(float(right))
    return curve
