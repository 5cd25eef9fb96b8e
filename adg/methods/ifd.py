"""Method ifd: how little the instruction helps with the output (Cherry_LLM, Li et al. 2024).

Shapes: N records of the pool.
"""

from pathlib import Path

import numpy as np

from adg.config import Config
from adg.methods.choice import Choice, without_divergence
from adg.methods.kept import check_enough, sift, with_controls
from adg.methods.measures import Measures
from adg.records import Pool
from adg.selection import Subsets


def choose_by_ifd(folder: Path, pool: Pool, config: Config) -> Choice:
    """Method ifd: the highest IFD of at most 1, in pool order.

    IFD is the mean loss of the output after the prompt, divided by that of the output alone.
    """
    settings = config.selection
    given, direct, room, given_tokens, direct_tokens = Measures(folder, pool, config).numbers(
        "given_loss", "direct_loss", "room", "given_tokens", "direct_tokens")
    ifd = np.divide(given, direct, out=np.full(len(pool), np.nan), where=direct != 0)
    reasons = {
        "whose prompt fills max_length": room <= 0,
        "without a token of the output": (given_tokens <= 0) | (direct_tokens <= 0),
        "cut by max_length": (direct_tokens > room) & (settings.ifd.recipe == "released"),
        "of IFD above 1": ifd > 1,
        "without an IFD": np.isnan(ifd),
    }
    kept, dropped = sift(len(pool), reasons)
    check_enough("selection.budget", settings.budget, int(kept.sum()), dropped)
    return without_divergence(
        pool, select_ifd(ifd, kept, settings.budget),
        {"kept": int(kept.sum()), "dropped": dropped},
        score=np.where(kept, ifd, np.nan), ifd=ifd, given_loss=given, direct_loss=direct)


def select_ifd(ifd: np.ndarray, kept: np.ndarray, budget: int) -> Subsets:
    """Top: the `budget` highest ifd [N] of those in the mask `kept` [N], in pool order.

    Of equal ones those later in the pool go first. The controls are by rank, highest first.
    """
    rows = np.flatnonzero(kept)
    ranking = rows[np.argsort(ifd[rows], kind="stable")][::-1]
    subsets = with_controls(ranking, budget)
    return subsets._replace(top=np.sort(subsets.top))
