"""The former place of adg.models.batches."""

from typing import Any

from adg.config import Config
from adg.models import batches
from adg.models.batches import plan_batches, within_memory

__all__ = ["budget", "plan_batches", "within_memory"]


def budget(model: Any, config: Config) -> int:
    """As adg.models.batches.budget."""
    return batches.budget(model, config.embedding.tokens_per_batch)
