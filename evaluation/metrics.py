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
    scale = 1 + Z * Z / total
    center = (share + Z * Z / (2 * total)) / scale
    half = Z * math.sqrt(share * (1 - share) / total + Z * Z / (4 * total * total)) / scale
    return max(0.0, center - half), min(1.0, center + half)


def normal(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of shares, by the normal approximation."""
    n = len(values)
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / max(n - 1, 1)
    half = Z * math.sqrt(variance / n)
    if half == 0:  # all right or all wrong: the approximation fails
        return wilson(sum(values), n)
    return max(0.0, mean - half), min(1.0, mean + half)


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that at least one of k samples is right: 1 - C(n - right, k) / C(n, k) (Chen et al.,
    2021).

    The estimate from n >= k samples, of which `right` are right, is unbiased.
    """
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


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
                equal = (c for c, head in enumerate(first) if same(predicted[head], answer))
                class_of[answer] = next(equal, len(first))
            c = class_of[answer]
            if c == len(first):
                first.append(index)
                counts.append(0)
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
        interval = wilson(sum(values), len(values)) if binary else normal(values)
        return sum(values) / len(values), interval
    center = sum(sum(group) / len(group) for group in groups.values()) / len(groups)
    variance = 0.0
    for group in groups.values():
        low, high = normal(group)
        variance += ((high - low) / 2) ** 2
    half = math.sqrt(variance) / len(groups)
    return center, (max(0.0, center - half), min(1.0, center + half))


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
    n, K = len(records), len(records[0]["attempts"])
    sections = [record["section"] for record in records]
    strata = sections if average == "sections" else [""] * n
    attempts = [attempt for record in records for attempt in record["attempts"]]
    checked = all(attempt["right"] is not None for attempt in attempts)

    def count(verdict: str) -> list[int]:
        return [sum(bool(a[verdict]) for a in record["attempts"]) for record in records]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    metrics: dict = {"problems": n, "samples": K}

    def add(name: str, values: list[float], binary: bool) -> None:
        interval = "interval" if name == "accuracy" else f"{name}_interval"
        metrics[name], metrics[interval] = mean_with_interval(values, strata, binary)

    # accuracy
    right = count("right")
    add("accuracy", [c / K for c in right], K == 1)
    add("strict", [c / K for c in count("strict")], K == 1)
    if not checked:
        metrics |= dict.fromkeys(("accuracy", "interval", "strict", "strict_interval"))
    if "paper" in attempts[0]:
        add("paper", [c / K for c in count("paper")], K == 1)
    if len(set(sections)) > 1 and checked:
        shares: dict[str, list[float]] = {}
        for section, c in zip(sections, right, strict=True):
            shares.setdefault(section, []).append(c / K)
        metrics["sections"] = {section: mean(values) for section, values in shares.items()}

    # what the attempts are like
    reasons = Counter(a["reason"] for a in attempts)
    reasons.update(
        f"strict_{a['strict_reason']}" for a in attempts if a["right"] and not a["strict"]
    )
    metrics["reasons"] = dict(sorted(reasons.items()))
    metrics["no_answer"] = mean([a["answer"] is None for a in attempts])
    metrics["truncated"] = mean([a["finish"] == "length" for a in attempts])
    metrics["no_room"] = mean([a["finish"] == "prompt" for a in attempts])
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
        votes = [vote_curve(record) for record in records if can_vote(record)]
        for k in sorted({2**i for i in range(K.bit_length())} | {K}):
            if votes:
                add(f"maj@{k}", [curve[k - 1] for curve in votes], True)
            add(f"pass@{k}", [pass_at_k(K, c, k) for c in right], False)
    return metrics


def can_vote(record: dict) -> bool:
    """True if the answers can be counted: programs and proofs cannot."""
    return record["kind"] not in ("code", "proof")


def vote_curve(record: dict) -> list[float]:
    """1.0 or 0.0 for k = 1 ... K: is the majority's answer among the first k samples right?"""
    attempts = record["attempts"]
    answers = [attempt["answer"] for attempt in attempts]
    winners = vote(answers, lambda a, b: same_answer(a, b, record["kind"]))
    return [float(w is not None and attempts[w]["right"]) for w in winners]
