"""Texts of unlike length in batches of about as much work each, halved where memory runs out."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from adg.base import distributed, process
from adg.base.errors import InputError

TOKENS_PER_BATCH = {"cuda": 16384, "cpu": 1024}  # by device, where the configuration is silent


def plan_batches(lengths: list[int], tokens_per_batch: int) -> list[list[int]]:
    """Positions of each batch: longest first, padded size at most tokens_per_batch (or one)."""
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > tokens_per_batch:
            batches.append([])
        batches[-1].append(position)
    return batches


def budget(model: Any, tokens_per_batch: int | None) -> int:
    """Tokens of one batch for a loaded model; None: what suits its device."""
    return tokens_per_batch or TOKENS_PER_BATCH[model.device.type]


def padded(rows: Sequence[Sequence[float]], *, side: str = "right", value: float = 0,
           dtype: Any = None) -> Any:
    """Rows of token ids, or of what belongs to each, as one tensor [rows, longest] (int64)."""
    import torch

    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row, dtype=dtype or torch.long) for row in rows],
        batch_first=True, padding_value=value, padding_side=side)


def within_memory(compute: Callable[[], Any]) -> Any:
    """What `compute` gives; None where the device's memory ran out, which is then cleared."""
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    try:
        return compute()
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
    clear_device_cache(garbage_collection=True)
    return None


class Batcher:
    """Reads items in batches of like length; out of memory halves a batch and the budget."""

    def __init__(self, read: Callable[[list[Any]], Any], tokens_per_batch: int, *,
                 length: Callable[[Any], int] = len, split: Callable[[Any], list] | None = None,
                 stage: str = "measure", limit: str = "the method's max_length") -> None:
        """`read` takes the items of a batch; `length` is an item's, in tokens; `split` makes
        smaller items of one that does not fit alone, or gives it back. `stage` and the key `limit`
        are what messages name.
        """
        self._read, self.tokens_per_batch = read, tokens_per_batch
        self._length, self._split, self._stage, self._limit = length, split, stage, limit

    def read(self, items: Sequence[Any]) -> list[Any]:
        """What `read` gives of each item, in the items' order."""
        results: list[Any] = [None] * len(items)
        for positions, parts in self._planned(items):
            values = [value for _, result in parts for value in result]
            for position, value in zip(positions, values, strict=True):
                results[position] = value
        return results

    def batches(self, items: Sequence[Any]) -> Iterator[tuple[list[Any], Any]]:
        """(items, what `read` gives of them), batch by batch: of items that were split, the parts.
        """
        for _, parts in self._planned(items):
            yield from parts

    def _planned(self, items: Sequence[Any]) -> Iterator[tuple[list[int], Iterator]]:
        """(positions of a batch, its items and results), longest first."""
        for positions in plan_batches(list(map(self._length, items)), self.tokens_per_batch):
            yield positions, self._parts([items[i] for i in positions])
            process.beat()

    def _parts(self, batch: list[Any]) -> Iterator[tuple[list[Any], Any]]:
        """The batch and its result, or as many smaller batches as memory asks for."""
        result = within_memory(lambda: self._read(batch))
        if result is not None:
            yield batch, result
            return
        longest = max(map(self._length, batch))
        smaller = self._halves(batch, longest)
        distributed.warn(f"[{self._stage}] out of memory with {len(batch)} x {longest} tokens: "
                         f"split; embedding.tokens_per_batch is {self.tokens_per_batch} from here "
                         f"on")
        for part in smaller:
            yield from self._parts(part)

    def _halves(self, batch: list[Any], longest: int) -> list[list[Any]]:
        if len(batch) > 1:
            self.tokens_per_batch = max(1, len(batch) * longest // 2)
            return [batch[: len(batch) // 2], batch[len(batch) // 2:]]
        pieces = self._split(batch[0]) if self._split else batch
        if len(pieces) == 1:
            raise InputError(f"a text of {longest} tokens does not fit this device's memory: lower "
                             f"{self._limit}, or raise embedding.gpus_per_model")
        return [[piece] for piece in pieces]
