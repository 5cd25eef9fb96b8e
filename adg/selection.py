"""From scores and bins to the top, middle and bottom subsets (paper, method, step 5).

Shapes: N records, B bins. Index arrays are int64 positions in the pool.
"""

from typing import NamedTuple

import numpy as np

from adg.base.errors import InputError


class Subsets(NamedTuple):
    """Positions of the chosen records, each array in output order."""

    top: np.ndarray
    middle: np.ndarray
    bottom: np.ndarray


def largest_remainder(sizes: np.ndarray, budget: int) -> np.ndarray:
    """Quotas in proportion to `sizes` [B], summing to `budget` exactly, none above its size.

    Each bin gets the whole part of its share; the seats that are left go to the largest remainders,
    with ties to the larger bin and then to the earlier one. Needs budget <= sizes.sum().
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    exact, total = sizes * int(budget), int(sizes.sum())
    quotas, remainders = exact // total, exact % total
    order = np.lexsort((np.arange(len(sizes)), -sizes, -remainders))
    quotas[order[: int(budget) - int(quotas.sum())]] += 1
    return quotas


def select_paper(scores: np.ndarray, bins: np.ndarray, budget: int) -> Subsets:
    """Recipe `paper`: the best of each bin, in proportion to its size, exactly `budget` of them.

    scores [N] (NaN: not scored, never chosen), bins [N] of any labels.

    1. Each bin gets a quota of the budget by `largest_remainder`; of two bins with an equal claim,
       the one whose best record scores higher comes first. Top takes that many of its best.
    2. Each control is as large as top, or half of what top leaves if fewer than 3 x budget records
       are scored. Each bin gets a quota of that size too: bottom takes its lowest, and middle those
       around the middle of what then remains.
    3. A bin too small for this gives each control half of what it has beyond top.
    4. Bottom is filled up with the lowest-scored records that are still free anywhere, then middle
       with the free records whose rank in the pool is nearest the middle.

    Each subset is sorted by score, highest first, ties in pool order. Raises InputError where fewer
    than `budget` records are scored.
    """
    ranking = rank_scored(scores, budget)
    members = _by_bin(ranking, np.asarray(bins)[ranking])
    sizes = np.array([len(bin_) for bin_ in members])
    wanted = min(budget, (len(ranking) - budget) // 2)
    top, middle, bottom = [], [], []
    for bin_, quota, control in zip(members, largest_remainder(sizes, budget),
                                    largest_remainder(sizes, wanted), strict=True):
        top.append(bin_[:quota])
        rest = bin_[quota:]
        lowest = min(control, len(rest) // 2)
        bottom.append(rest[len(rest) - lowest:])
        middle.append(_central(rest[: len(rest) - lowest], control))
    chosen = Subsets(*(np.concatenate(parts) for parts in (top, middle, bottom)))
    return _fill_controls(chosen, ranking, wanted)


def select_released(scores: np.ndarray, bins: np.ndarray, budget: int) -> Subsets:
    """Recipe `released`: the quotas of the authors' release, with other sizes than asked.

    scores [N] (NaN: as if not in the pool), bins [N] of any labels.

    1. A bin gives max(1, floor(size x budget / N)) records to each subset: its best to top, its
       lowest to bottom, and those around the middle of the others to middle.
    2. A bin too small for three quotas gives a third to top, a third to bottom, the rest to middle.
    3. A bin of fewer than 3 records goes to middle as a whole, in pool order.
    4. A subset that exceeds the budget is sorted by score (bottom: lowest first) and cut; one that
       falls short of it is not filled up.

    Bins come in order of first appearance, their records by score, highest first, ties in pool
    order. Raises InputError where fewer than `budget` records are scored.
    """
    ranking = rank_scored(scores, budget)
    scored = np.sort(ranking)
    top, middle, bottom = [], [], []
    for bin_ in _by_bin(ranking, np.asarray(bins)[scored], scored):
        if len(bin_) < 3:
            middle.append(np.sort(bin_))
            continue
        quota = central = max(1, len(bin_) * int(budget) // len(ranking))
        if 3 * quota > len(bin_):
            quota = len(bin_) // 3
            central = len(bin_) - 2 * quota
        top.append(bin_[:quota])
        middle.append(_central(bin_[quota: len(bin_) - quota], central))
        bottom.append(bin_[len(bin_) - quota:])
    scores = np.asarray(scores, dtype=np.float64)
    return Subsets(_cut(top, -scores, budget), _cut(middle, -scores, budget),
                   _cut(bottom, scores, budget))


def rank_scored(scores: np.ndarray, budget: int) -> np.ndarray:
    """Positions of the scored records (not NaN), best first, ties in pool order.

    Raises InputError where there are fewer than `budget`.
    """
    scores = np.asarray(scores, dtype=np.float64)
    ranking = np.argsort(-scores, kind="stable")[: np.count_nonzero(~np.isnan(scores))]
    if not 1 <= budget <= len(ranking):
        raise InputError(f"selection.budget is {budget}, but {len(ranking)} records are scored: "
                         f"it must be at least 1 and at most that")
    return ranking


def _by_bin(ranking: np.ndarray, labels: np.ndarray, order: np.ndarray | None = None
            ) -> list[np.ndarray]:
    """The ranked records of each bin, best first; bins in order of first appearance in `labels`.

    labels[i] is the bin of record order[i], and of ranking[i] without `order`.
    """
    _, first, label = np.unique(labels, return_index=True, return_inverse=True)
    appearance = np.argsort(np.argsort(first))[label]
    if order is not None:
        of_record = np.empty(order[-1] + 1, dtype=np.int64)
        of_record[order] = appearance
        appearance = of_record[ranking]
    grouped = ranking[np.argsort(appearance, kind="stable")]
    return np.split(grouped, np.cumsum(np.bincount(appearance))[:-1])


def _central(ranked: np.ndarray, count: int) -> np.ndarray:
    """The `count` records around the middle of some (all, where there are fewer)."""
    start = max(0, (len(ranked) - count) // 2)
    return ranked[start: start + count]


def _cut(parts: list[np.ndarray], keys: np.ndarray, budget: int) -> np.ndarray:
    """The parts in one; where they exceed the budget, those of the smallest keys, ascending."""
    chosen = np.concatenate([*parts, np.empty(0, dtype=np.int64)])
    if len(chosen) > budget:
        chosen = chosen[np.argsort(keys[chosen], kind="stable")[:budget]]
    return chosen.astype(np.int64)


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


RECIPES = {"paper": select_paper, "released": select_released}
