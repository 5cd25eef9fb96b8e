"""What is read in batches by a token budget, that shrink where the memory is too small."""

from collections.abc import Callable, Sequence
from typing import Any

from adg.base import distributed, process
from adg.base.errors import InputError
from adg.models.batching import plan_batches, within_memory


class Batcher:
    """Reads items in batches of like length; out of memory halves a batch and the budget."""

    def __init__(self, read: Callable[[list[Any]], Sequence[Any]], tokens_per_batch: int) -> None:
        """`read` takes the items of a batch and gives what it found in each."""
        self._read, self.tokens_per_batch = read, tokens_per_batch

    def read(self, items: Sequence[Any], lengths: list[int]) -> list[Any]:
        """What was found in each of the items, in order."""
        found: list[Any] = [None] * len(items)
        for batch in plan_batches(lengths, self.tokens_per_batch):
            longest = lengths[batch[0]]
            for position, own in zip(batch, self._batch([items[i] for i in batch], longest),
                                     strict=True):
                found[position] = own
            process.beat()
        return found

    def _batch(self, batch: list[Any], longest: int) -> list[Any]:
        found = within_memory(lambda: list(self._read(batch)))
        if found is not None:
            return found
        if len(batch) == 1:
            raise InputError(f"a text of {longest} tokens does not fit this device's memory: lower "
                             f"the method's max_length, or raise embedding.gpus_per_model")
        self.tokens_per_batch = max(1, len(batch) * longest // 2)
        distributed.warn(f"[measure] out of memory with {len(batch)} x {longest} tokens: split; "
                         f"embedding.tokens_per_batch is {self.tokens_per_batch} from here on")
        half = len(batch) // 2
        return self._batch(batch[:half], longest) + self._batch(batch[half:], longest)
