"""Methods random, longest and all: controls that need the pool only."""

import random
from dataclasses import dataclass

import numpy as np

from adg.base.keys import MAX_SEED, key
from adg.methods.method import Choice, Method, Task, without_divergence
from adg.selection import select_paper


@dataclass
class RandomConfig:
    """Keys of selection itself."""

    seed: int | None = key(None, "random: seed of the draw; null: seed", least=0, most=MAX_SEED,
                            compared=False)


def choose_at_random(task: Task) -> Choice:
    """Top, middle and bottom are disjoint draws without replacement, by the seed."""
    draw, pool, budget = random.Random(task.seed), task.pool, task.budget
    top = draw.sample(range(len(pool)), budget)
    rest = np.setdiff1d(np.arange(len(pool)), top).tolist()
    size = min(budget, len(rest) // 2)
    controls = draw.sample(rest, 2 * size)
    return without_divergence(pool, (top, controls[:size], controls[size:]), {})


def choose_longest(task: Task) -> Choice:
    """The score is the length of the record's output in characters; no bins."""
    lengths = np.array([len(record["output"]) for record in task.pool], dtype=np.float64)
    subsets = select_paper(lengths, np.zeros(len(lengths), dtype=int), task.budget)
    return without_divergence(task.pool, subsets, {}, score=lengths)


def choose_all(task: Task) -> Choice:
    """Top is the whole pool, whatever the budget; the controls are empty."""
    return without_divergence(task.pool, (range(len(task.pool)), (), ()), {})


RANDOM = Method("Random", lambda told: "Drawn at random, without replacement.", choose_at_random,
                settings=RandomConfig, keys=("selection.seed",))
LONGEST = Method("Longest", lambda told: "The records with the longest outputs, in characters.",
                 choose_longest)
ALL = Method("All Data", lambda told: "The whole pool.", choose_all, heeds_budget=False)
