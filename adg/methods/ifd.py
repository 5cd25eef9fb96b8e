"""The methods by how much an instruction helps: the loss of its output with and without it.

Shapes: N records of the pool.
"""

from pathlib import Path

import numpy as np

from adg.config import Config
from adg.errors import InputError
from adg.measures import Measures
from adg.methods.choice import Choice, without_divergence, words
from adg.records import Pool
from adg.selection import Subsets


def choose_by_ifd(folder: Path, pool: Pool, config: Config) -> Choice:
    """Method ifd: the highest instruction-following difficulty of at most 1 (Cherry_LLM)."""
    settings = config.selection
    given, direct, room, given_tokens, direct_tokens = Measures(folder, pool, config).numbers(
        "given_loss", "direct_loss", "room", "given_tokens", "direct_tokens")
    with np.errstate(divide="ignore", invalid="ignore"):
        ifd = given / direct
    reasons = {
        "prompt fills max_length": room <= 0,
        "no output token left": (given_tokens <= 0) | (direct_tokens <= 0),
        "output alone too long": (direct_tokens > room) & (settings.ifd.recipe == "released"),
        "IFD above 1": ifd > 1,
        "no finite IFD": ~np.isfinite(ifd),
    }
    kept, dropped = sift(len(pool), reasons)
    subsets = select_ifd(ifd, kept, settings.budget, dropped)
    return without_divergence(
        pool, subsets, {"kept": int(kept.sum()), "dropped": dropped},
        score=np.where(kept, ifd, np.nan), ifd=ifd, given_loss=given, direct_loss=direct)


def sift(num_records: int, reasons: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, int]]:
    """(mask [N] of what is kept, records by the first of the `reasons` that drops them).

    `reasons` maps words to masks [N].
    """
    kept, dropped = np.ones(num_records, dtype=bool), {}
    for reason, hit in reasons.items():
        dropped[reason] = int((kept & hit).sum())
        kept &= ~hit
    return kept, dropped


def select_ifd(ifd: np.ndarray, kept: np.ndarray, budget: int,
               dropped: dict[str, int]) -> Subsets:
    """The `budget` highest of the kept in pool order; of equal ones the last in the pool.

    InputError where fewer are kept.
    """
    rows = np.flatnonzero(kept)
    ranking = rows[np.argsort(ifd[rows], kind="stable")][::-1]
    top, middle, bottom = controls(ranking, budget, dropped)
    return Subsets(np.sort(top), middle, bottom)


def controls(ranking: np.ndarray, budget: int, dropped: dict[str, int]) -> Subsets:
    """Top, middle and bottom of what is kept, best first; middle and bottom share what top leaves.

    InputError where fewer than `budget` are kept.
    """
    if budget > len(ranking):
        raise InputError(f"selection.budget is {budget}, but {len(ranking)} records are kept "
                         f"(dropped: {words(dropped)}): give {len(ranking)} at most")
    rest = ranking[budget:]
    size = min(budget, len(rest) // 2)
    bottom, rest = rest[len(rest) - size:], rest[: len(rest) - size]
    start = (len(rest) - size) // 2
    return Subsets(ranking[:budget], rest[start: start + size], bottom)
