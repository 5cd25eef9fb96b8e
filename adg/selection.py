"""From scores and bins to the top, middle and bottom subsets (paper, method, step 5).

Shapes: N records, B bins. Index arrays are int64 positions in the pool.
"""

from typing import NamedTuple

import numpy as np

from adg.errors import InputError


class Subsets(NamedTuple):
    """Positions of the chosen records, each array in output order."""

    top: np.ndarray
    middle: np.ndarray
    bottom: np.ndarray


def largest_remainder(sizes: np.ndarray, budget: int) -> np.ndarray:
    """Quotas in proportion to `sizes` [B], summing to `budget` exactly, none above its size.

    Whole parts first; what is left goes to the largest remainders, of equal ones to the larger bin
    and then to the earlier one. Needs budget <= sizes.sum().
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    exact, total = sizes * int(budget), int(sizes.sum())
    quotas, remainders = exact // total, exact % total
    order = np.lexsort((np.arange(len(sizes)), -sizes, -remainders))
    quotas[order[: int(budget) - int(quotas.sum())]] += 1
    return quotas


def select_paper(scores: np.ndarray, bins: np.ndarray, budget: int) -> Subsets:
    """Recipe `paper`: the best of each bin, in proportion to its size, exactly `budget` of them.

    scores [N] (NaN: not scored, never chosen), bins [N] of any labels. The controls have the size
    of top wherever 3 x budget records are scored, else each the half of what top leaves. A bin
    gives its quota of them too: bottom its lowest, middle those around the middle of what then
    remains. A bin too small for that gives each control half of what it has beyond top; what bottom
    then lacks are the lowest-scored records still free anywhere, and what middle lacks those free
    ones whose rank in the pool is nearest the middle. Top is never changed for the controls' sake.
    All three come out by score, highest first, ties in pool order. Raises InputError where fewer
    than `budget` are scored.
    """
    scores = np.asarray(scores, dtype=np.float64)
    ranking = np.argsort(-scores, kind="stable")[: np.count_nonzero(~np.isnan(scores))]
    if not 1 <= budget <= len(ranking):
        raise InputError(f"selection.budget is {budget}, but {len(ranking)} records are scored: "
                         f"it must be at least 1 and at most that")
    members = _by_bin(ranking, np.asarray(bins))
    sizes = np.array([len(bin_) for bin_ in members])
    top_quota = largest_remainder(sizes, budget)
    wanted = min(budget, (len(ranking) - budget) // 2)
    control_quota = largest_remainder(sizes, wanted)
    top, middle, bottom = [], [], []
    for bin_, quota, control in zip(members, top_quota, control_quota, strict=True):
        top.append(bin_[:quota])
        rest = bin_[quota:]
        lowest = min(control, len(rest) // 2)
        bottom.append(rest[len(rest) - lowest:])
        rest = rest[: len(rest) - lowest]
        central = min(control, len(rest))
        start = (len(rest) - central) // 2
        middle.append(rest[start: start + central])
    chosen = Subsets(*(np.concatenate(parts) for parts in (top, middle, bottom)))
    return _fill_controls(chosen, ranking, wanted)


def _by_bin(ranking: np.ndarray, bins: np.ndarray) -> list[np.ndarray]:
    """The ranked records of each bin, best first; bins in order of first appearance in the pool."""
    _, first, label = np.unique(bins, return_index=True, return_inverse=True)
    appearance = np.argsort(np.argsort(first))[label]
    grouped = ranking[np.argsort(appearance[ranking], kind="stable")]
    sizes = np.bincount(appearance[ranking])
    return [part for part in np.split(grouped, np.cumsum(sizes)[:-1]) if len(part)]


def _fill_controls(chosen: Subsets, ranking: np.ndarray, wanted: int) -> Subsets:
    rank = np.empty(ranking.max() + 1, dtype=np.int64)
    rank[ranking] = np.arange(len(ranking))
    free = np.setdiff1d(rank[ranking], rank[np.concatenate(chosen)])  # ranks, best first
    lacking = wanted - len(chosen.bottom)
    bottom = np.append(rank[chosen.bottom], free[len(free) - lacking:])
    free = free[: len(free) - lacking]
    nearest = np.argsort(np.abs(2 * free - (len(ranking) - 1)), kind="stable")
    middle = np.append(rank[chosen.middle], free[nearest[: wanted - len(chosen.middle)]])
    return Subsets(*(ranking[np.sort(ranks)] for ranks in (rank[chosen.top], middle, bottom)))


RECIPES = {"paper": select_paper}
