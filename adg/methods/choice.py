"""What every method gives: columns of scores.jsonl, subsets, figures for the log."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from adg.records import Pool
from adg.selection import Subsets

ADG_COLUMNS = ("bin", "num_answers", "dispersion", "anisotropy", "score")


class Choice(NamedTuple):
    """What a method made of a pool: columns of scores.jsonl [N] (NaN: none), subsets, figures."""

    columns: dict[str, np.ndarray]
    subsets: Subsets
    report: dict[str, Any]


def all_equal(scores: np.ndarray) -> bool:
    """Whether scores [N] (NaN: none) tell none of several records from another."""
    known = scores[~np.isnan(scores)]
    return len(known) > 1 and known.min() == known.max()


def words(counts: dict[str, int]) -> str:
    """Counts by what they count, those above 0: "3 empty, 12 too long"."""
    return ", ".join(f"{number} {what}" for what, number in counts.items() if number) or "none"


def without_divergence(pool: Pool, subsets: Sequence[Sequence[int]], report: dict[str, Any],
                       **columns: np.ndarray) -> Choice:
    """The choice of a method that knows no answers: ADG's columns are empty unless given."""
    absent = np.full(len(pool), np.nan)
    return Choice(dict.fromkeys(ADG_COLUMNS, absent) | columns,
                  Subsets(*(np.array(rows, dtype=np.int64) for rows in subsets)), report)
