"""The methods random, longest and all: controls that need the pool only."""

import random
from pathlib import Path

import numpy as np

from adg.config import Config
from adg.methods.choice import Choice, without_divergence
from adg.records import Pool
from adg.selection import select_paper


def choose_at_random(folder: Path, pool: Pool, config: Config) -> Choice:
    """Method random: top, middle and bottom are disjoint draws without replacement, by the seed."""
    draw, budget = random.Random(config.selection_seed()), config.selection.budget
    top = draw.sample(range(len(pool)), budget)
    rest = np.setdiff1d(np.arange(len(pool)), top).tolist()
    size = min(budget, len(rest) // 2)
    controls = draw.sample(rest, 2 * size)
    return without_divergence(pool, (top, controls[:size], controls[size:]), {})


def choose_longest(folder: Path, pool: Pool, config: Config) -> Choice:
    """Method longest: the score is the length of the record's output in characters; no bins."""
    lengths = np.array([len(record["output"]) for record in pool], dtype=np.float64)
    subsets = select_paper(lengths, np.zeros(len(pool), dtype=int), config.selection.budget)
    return without_divergence(pool, subsets, {}, score=lengths)


def choose_all(folder: Path, pool: Pool, config: Config) -> Choice:
    """Method all: top is the whole pool, whatever the budget; the controls are empty."""
    return without_divergence(pool, (range(len(pool)), (), ()), {})
