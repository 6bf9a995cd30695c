"""The cost model of experiments/cost.py: predictions, fits, bends of a curve, and what explains
them.

A point is a dict of a measured step: "seconds" (phase -> repeats), "bytes" (phase -> measured
peak), "counted" (phase -> kind -> bytes by tools/plan.py), "work" (phase -> what its time is
predicted from), "terms" (phase -> term of the cost model -> count) and "micro_batches".
"""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from tools.step import KINDS

PHASES = ("rollout", "learning")

# --------------------------------------------------------------------------------------------------
# Curves


def bends(
    x: Sequence[float], y: Sequence[float], tolerance: float = 0.1, change: float = 0.25
) -> tuple[list[int], list[float]]:
    """(indices of the bends of y over x, slopes of the pieces between them), on logarithmic axes.

    The curve is continuous and straight between bends, which are inner points. There are as few
    bends as possible so that no point is off by more than `tolerance` (of log y), and at most one
    for each two points after the second. Slopes that differ by less than `change` are one.
    """
    x = np.asarray(x, dtype=float)
    y = np.asarray(y, dtype=float)
    x, y = np.log(x), np.log(y)

    def fit(places: tuple[int, ...]) -> tuple[float, np.ndarray, float]:
        """(squared error, slope and its changes, largest error) of the curve with these bends."""
        hinges = [np.maximum(0, x - x[place]) for place in places]
        line = [np.ones_like(x), x - x[0]]
        columns = np.stack(line + hinges, axis=1)
        solution = np.linalg.lstsq(columns, y, rcond=None)[0]
        errors = y - columns @ solution
        squared = float(errors @ errors)
        largest = float(np.abs(errors).max())
        return squared, solution[1:], largest

    # add bends until the curve is near enough
    inner = range(1, len(x) - 1)
    most = max(0, (len(x) - 2) // 2)
    chosen: tuple[int, ...] = ()
    for count in range(most + 1):
        candidates = itertools.combinations(inner, count)
        chosen = min(candidates, key=lambda places: fit(places)[0])
        if fit(chosen)[2] <= tolerance:
            break

    # remove bends that hardly change the slope
    while chosen:
        _, slopes, _ = fit(chosen)
        changes = np.abs(slopes[1:])
        if changes.min() >= change:
            break
        least = changes.argmin()
        chosen = chosen[:least] + chosen[least + 1 :]
    _, slopes, _ = fit(chosen)
    return list(chosen), np.cumsum(slopes).tolist()


def nonnegative(features, values) -> np.ndarray:
    """Coefficients >= 0 [F] so that features [N, F] come nearest to values [N] > 0.

    Minimizes the relative squared error. Tries every set of features that may be above 0: there are
    few.
    """
    features = np.asarray(features, dtype=float)
    values = np.asarray(values, dtype=float)
    scale = np.maximum(features.max(axis=0), 1e-300)  # FLOPs and counts: columns of similar size
    A = features / scale / values[:, None]
    F = A.shape[1]
    best, least = np.zeros(F), float(len(values))
    for count in range(1, F + 1):
        for columns in itertools.combinations(range(F), count):
            part, ones = A[:, columns], np.ones(len(A))
            solution = np.linalg.lstsq(part, ones, rcond=None)[0]
            errors = part @ solution - 1
            error = float(errors @ errors)
            if error < least - 1e-12 and (solution >= 0).all():
                least = error
                best = np.zeros(F)
                best[list(columns)] = solution
    return best / scale


# --------------------------------------------------------------------------------------------------
# Points


def seconds(point: dict, phase: str) -> list[float]:
    """The seconds of a phase, or of the whole "step", in each repeat."""
    if phase == "step":
        repeats = zip(*point["seconds"].values(), strict=True)
        return [sum(repeat) for repeat in repeats]
    return point["seconds"][phase]


def median_seconds(point: dict, phase: str) -> float:
    return statistics.median(seconds(point, phase))


def predicted(point: dict, base: dict, phase: str) -> float:
    """Seconds of a phase, or of the "step", at the rate of the base point."""
    if phase == "step":
        return sum(predicted(point, base, part) for part in PHASES)
    ratio = point["work"][phase] / base["work"][phase]
    return median_seconds(base, phase) * ratio


def held(point: dict, phase: str, counted: bool = False) -> float:
    """Peak bytes of a phase, or of the "step", measured or counted."""
    if phase == "step":
        return max(held(point, part, counted) for part in PHASES)
    if counted:
        return sum(point["counted"][phase].values())
    return point["bytes"][phase]


def fit_units(points: list[dict]) -> dict[str, dict[str, float]]:
    """Phase -> term -> seconds of one unit of that term, fitted to the medians of all points."""
    units = {}
    for phase in PHASES:
        names = list(points[0]["terms"][phase])
        rows = []
        for point in points:
            terms = point["terms"][phase]
            rows.append([terms[name] for name in names])
        medians = [median_seconds(point, phase) for point in points]
        solution = nonnegative(rows, medians).tolist()
        units[phase] = dict(zip(names, solution, strict=True))
    return units


def term_seconds(point: dict, units: dict[str, dict[str, float]]) -> dict[str, float]:
    """The seconds of each term of the cost model in a step."""
    parts = {}
    for phase in PHASES:
        for name, count in point["terms"][phase].items():
            parts[name] = units[phase][name] * count
    return parts


def time_shares(point: dict, units: dict[str, dict[str, float]]) -> dict[str, float]:
    """The share of each term in the seconds of a step."""
    parts = term_seconds(point, units)
    total = sum(parts.values())
    return {name: part / total for name, part in parts.items()}


def memory_shares(point: dict) -> dict[str, float]:
    """The share of each kind in the counted bytes, in the phase that holds most."""
    phase = max(
        PHASES,
        key=lambda part: held(
            point,
            part,
            counted=True,
        ),
    )
    total = held(point, phase, counted=True)
    sizes = point["counted"][phase]
    return {KINDS[kind]: size / total for kind, size in sizes.items()}


# --------------------------------------------------------------------------------------------------
# Words


def short(number: float) -> str:
    """A number as 1,024, 0.85M or 1.3B."""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if number >= size / 10:
            return f"{number / size:.3g}{letter}"
    return f"{number:,.0f}"


def reasons(points: list[dict], shares: Callable[[dict], dict[str, float]]) -> str:
    """The largest shares, as means over the points: at most three, each at least a tenth."""
    total: dict[str, float] = {}
    for point in points:
        for name, share in shares(point).items():
            total[name] = total.get(name, 0.0) + share / len(points)
    largest = sorted(total, key=total.get, reverse=True)[:3]
    parts = [f"{name} {total[name]:.0%}" for name in largest if total[name] >= 0.1]
    return ", ".join(parts)


def sweep_bends(points: list[dict], x: list[float], what: str) -> tuple[list[int], list[float]]:
    """The `bends` of a sweep's "time" or "memory". The spread of the repeats is no bend."""
    if what == "memory":
        sizes = [held(point, "step") for point in points]
        return bends(x, sizes)
    times = [seconds(point, "step") for point in points]
    medians = [statistics.median(row) for row in times]
    spreads = [math.log(max(row) / min(row)) for row in times]
    noise = statistics.median(spreads) / 2
    return bends(x, medians, max(0.1, noise))


def story(
    points: list[dict],
    x: list[float],
    what: str,
    units: dict,
) -> str:
    """The "time" or "memory" of a sweep as a sentence: slopes, bends, and what takes most."""

    def shares(point: dict) -> dict[str, float]:
        return memory_shares(point) if what == "memory" else time_shares(point, units)

    places, slopes = sweep_bends(points, x, what)
    starts, ends = [0, *places], [*places, len(x) - 1]
    parts = []
    for first, last, slope in zip(starts, ends, slopes, strict=True):
        piece = points[first : last + 1]
        text = f"{short(x[first])} to {short(x[last])} slope {round(slope, 2) + 0.0:.2f}"
        why = reasons(piece, shares)
        micro_batches = sorted({point["micro_batches"] for point in piece})
        if micro_batches[-1] > 1:
            least, most = micro_batches[0], micro_batches[-1]
            number = str(most) if least == most else f"{least} to {most}"
            why += f"; {number} micro-batches"
        parts.append(f"{text} ({why})")
    return f"{what}: " + "; then ".join(parts)
