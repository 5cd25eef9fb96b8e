"""Texts of unlike length to batches of about as much work each, and what to do where one is too
large."""

from collections.abc import Callable
from typing import Any

from adg.config import Config

TOKENS_PER_BATCH = {"cuda": 16384, "cpu": 1024}  # by device, where the configuration is silent


def plan_batches(lengths: list[int], tokens_per_batch: int) -> list[list[int]]:
    """Positions of each batch: longest first, padded size at most tokens_per_batch (or one)."""
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > tokens_per_batch:
            batches.append([])
        batches[-1].append(position)
    return batches


def budget(model: Any, config: Config) -> int:
    """Tokens of one batch for a model: embedding.tokens_per_batch."""
    return config.embedding.tokens_per_batch or TOKENS_PER_BATCH[model.device.type]


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
