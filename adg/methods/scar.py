"""Method scar: the records of the highest score of a style ranker (SCAR)."""

from pathlib import Path

import numpy as np

from adg.config import Config
from adg.methods.choice import Choice, without_divergence
from adg.methods.measures import Measures
from adg.records import Pool
from adg.selection import select_paper


def choose_by_style(folder: Path, pool: Pool, config: Config) -> Choice:
    """Top in descending order of the score, equal ones in that of the pool; no bins."""
    scores, = Measures(folder, pool, config).numbers("score")
    subsets = select_paper(scores, np.zeros(len(pool), dtype=int), config.selection.budget)
    return without_divergence(pool, subsets, {}, score=scores)
