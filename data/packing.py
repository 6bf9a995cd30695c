"""Packing without padding: sequences into rows of a fixed length, and into micro batches of a token budget."""

from collections.abc import Sequence

import numpy as np

from data.io import InputError


def pack(
    lengths: Sequence[int], capacity: int, rng: np.random.Generator | None = None
) -> list[list[int]]:
    """Rows of item indices whose lengths sum to at most `capacity` (section 3.2: examples are concatenated at random).

    Items are taken in a random order (as they come without `rng`) and a row is closed by the first item that does not
    fit; nothing is split, so that no example loses its beginning. O(n). Raises InputError for an item that is too long.
    """
    order = range(len(lengths)) if rng is None else rng.permutation(len(lengths)).tolist()
    rows: list[list[int]] = []
    room = -1
    for item in order:
        length = int(lengths[item])
        if length > capacity:
            raise InputError(
                f"item {item} has {length} tokens and the context holds {capacity}; "
                "raise the context length or leave the item out"
            )
        if length > room:
            rows.append([])
            room = capacity
        rows[-1].append(item)
        room -= length
    return rows


def micro_batches(costs: Sequence[float], budget: float, world: int = 1) -> list[list[list[int]]]:
    """[rank][micro][item index]: every item once, the same number of micro batches on each rank (some may be empty, so
    that all ranks run the same collectives). Deterministic.

    Items go longest first to the rank with the least cost so far, then into the rank's first micro batch with room
    for them: the largest micro batch runs first, where running out of memory costs least. A micro batch's cost is at
    most `budget`, except that an item above it is alone in its own.
    """
    if budget <= 0 or world < 1:
        raise InputError(
            f"a budget of {budget} tokens on {world} processes; both must be above zero"
        )
    costs = np.asarray(costs, dtype=np.float64)
    ranks: list[list[int]] = [[] for _ in range(world)]
    totals = np.zeros(world)
    for item in np.argsort(-costs, kind="stable").tolist():
        rank = int(totals.argmin())
        ranks[rank].append(item)
        totals[rank] += costs[item]

    batches: list[list[list[int]]] = []
    for items in ranks:
        micros: list[list[int]] = []
        room = np.full(len(items), float(budget))  # of micro batches, those not yet begun included
        for item in items:
            cost = costs[item]
            # An item above the budget finds no room: it opens the next micro batch and leaves none there.
            micro = int((room >= cost).argmax()) if cost <= budget else len(micros)
            if micro == len(micros):
                micros.append([])
            micros[micro].append(item)
            room[micro] = room[micro] - cost if cost <= budget else -1
        batches.append(micros)
    count = max(len(micros) for micros in batches)
    return [micros + [[] for _ in range(count - len(micros))] for micros in batches]
