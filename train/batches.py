"""The order of training: which records each optimiser step learns from, and how ranks share them.

A step's gradient is the sum over its response tokens divided by their number, so that batches
within a step decide nothing but rounding, how much padding is computed, and how long ranks wait for
each other. Records of like length share a forward pass, few long ones or many short ones, and every
pass of every rank has about as many tokens, padding included.
"""

from bisect import bisect_left
from typing import NamedTuple


class Order(NamedTuple):
    """The records of a run by step, pass and rank."""

    lengths: list[int]  # tokens of each record
    steps: list[list[list[int]]]  # of each step the batches: pass p of rank r is p x ranks + r
    ranks: int

    def batches(self, rank: int) -> list[list[int]]:
        """A rank's records in each of its forward passes; where a pass has none for it, the index
        after the last record's."""
        return [batch or [len(self.lengths)] for step in self.steps
                for batch in step[rank:: self.ranks]]

    def records(self, step: int) -> int:
        """How many records a step has over all ranks."""
        return sum(map(len, self.steps[step]))

    def tokens(self, step: int) -> int:
        """How many tokens they have, without padding."""
        return sum(self.lengths[record] for batch in self.steps[step] for record in batch)

    def largest(self) -> int:
        """The most tokens of a forward pass, padding included."""
        return max(self._padded(batch) for step in self.steps for batch in step)

    def slowest(self) -> int:
        """The tokens of all passes, padding included, each by the rank that has most."""
        return sum(max(map(self._padded, step[first: first + self.ranks]))
                   for step in self.steps for first in range(0, len(step), self.ranks))

    def _padded(self, batch: list[int]) -> int:
        return len(batch) * self.lengths[batch[0]] if batch else 1


def passes(batch_size: int, per_device: int, ranks: int) -> int:
    """A rank's forward passes in a step, so that it has `per_device` records in one on average."""
    return -(-batch_size // (per_device * ranks))


def plan_order(lengths: list[int], *, batch_size: int, per_device: int, epochs: int, seed: int,
               ranks: int) -> Order:
    """Each epoch takes all records once, shuffled, `batch_size` a step, in its last what is left.
    """
    import torch

    steps = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed + epoch)
        shuffled = torch.randperm(len(lengths), generator=generator).tolist()
        for start in range(0, len(shuffled), batch_size):
            step = sorted(shuffled[start: start + batch_size],
                          key=lambda record: (-lengths[record], record))
            sizes = share([lengths[record] for record in step],
                          ranks * passes(batch_size, per_device, ranks))
            rest = iter(step)
            steps.append([[next(rest) for _ in range(size)] for size in sizes])
    return Order(lengths, steps, ranks)


def share(lengths: list[int], batches: int) -> list[int]:
    """How many of the records of `lengths`, longest first, each batch takes in turn, so that the
    largest batch, padded to its longest record, is smallest. None is empty that need not be."""
    number = len(lengths)
    if number <= batches:
        return [1] * number + [0] * (batches - number)

    def sizes(limit: int) -> list[int]:
        taken, start = [], 0
        for later in reversed(range(batches)):
            taken.append(min(limit // lengths[start], number - start - later))
            start += taken[-1]
        return taken

    return sizes(bisect_left(range(lengths[0] * number), number, lo=lengths[0],
                             key=lambda limit: sum(sizes(limit))))
