"""What methods share that drop records first, then rank the others."""

import numpy as np

from adg.base.errors import InputError
from adg.methods.choice import words
from adg.selection import Subsets


def sift(num_records: int, reasons: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, int]]:
    """(mask [N] of what is kept, records by the first of the `reasons` that drops them).

    `reasons` maps words to masks [N].
    """
    kept, dropped = np.ones(num_records, dtype=bool), {}
    for reason, hit in reasons.items():
        dropped[reason] = int((kept & hit).sum())
        kept &= ~hit
    return kept, dropped


def check_enough(key: str, value: int, num_kept: int, dropped: dict[str, int]) -> None:
    """InputError where fewer records are kept than a configuration key asks for."""
    if value > num_kept:
        raise InputError(f"{key} is {value}, but {num_kept} records are kept (dropped: "
                         f"{words(dropped)}): give {num_kept} at most")


def with_controls(ranking: np.ndarray, budget: int) -> Subsets:
    """Top, middle and bottom of a ranking, best first; top is its first `budget`.

    The controls are as large, or share what top leaves.
    """
    rest = ranking[budget:]
    size = min(budget, len(rest) // 2)
    bottom, rest = rest[len(rest) - size:], rest[: len(rest) - size]
    start = (len(rest) - size) // 2
    return Subsets(ranking[:budget], rest[start: start + size], bottom)
