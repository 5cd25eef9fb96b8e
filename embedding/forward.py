"""Rows of token ids to unit vectors: batches by token budget, one forward pass each.

Shapes: S rows of a batch, K texts of a row, T tokens, W windows of layers, H hidden.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from adg import distributed, watchdog
from adg.batching import plan_batches, within_memory
from adg.errors import InputError
from embedding import shared_prompts
from embedding.pooling import LayerWindows
from embedding.sequences import Row


class Embedder:
    """A backbone without its head: rows to the unit vectors of their texts.

    Out of memory, a batch is halved, and so is tokens_per_batch for those that follow.
    """

    def __init__(self, model: Any, windows: list[list[int]], *, tokens_per_batch: int,
                 share_prompts: bool = True) -> None:
        self.model, self.tokens_per_batch = model, tokens_per_batch
        # shared prompts know no sliding window: a text that is longer is left to the model's own
        self._reach = getattr(model.config, "sliding_window", None) or 2**31
        self._windows, self._num_windows = LayerWindows(model, windows), len(windows)
        self.shares = share_prompts and self._can_share()

    def embed(self, rows: list[Row]) -> np.ndarray:
        """Unit vectors of all texts of the rows, in order, float32 [texts, W, H].

        NaN where no token has weight.
        """
        parts = [part for row in rows for part in self.parts(row)]
        firsts = np.cumsum([0] + [len(part.texts) for part in parts])
        shape = (firsts[-1], self._num_windows, self.model.config.hidden_size)
        vectors = np.full(shape, np.nan, np.float32)
        for packed in (True, False):
            chosen = [i for i, part in enumerate(parts)
                      if is_packed(part) == packed and any(map(any, part.weights))]
            lengths = [length(parts[i]) for i in chosen]
            for batch in plan_batches(lengths, self.tokens_per_batch):
                members = [chosen[position] for position in batch]
                found = self._embed_batch([parts[i] for i in members])
                watchdog.beat()
                for i, own in zip(members, found, strict=True):
                    check_finite(own, parts[i])
                    vectors[firsts[i]: firsts[i + 1]] = own
        return vectors

    def parts(self, row: Row) -> list[Row]:
        """The row itself where it is read as it stands, else a row for each of its texts."""
        reach = len(row.prompt) + max(map(len, row.texts))
        return [row] if not is_packed(row) or self.shares and reach <= self._reach \
            else separate(row)

    def _embed_batch(self, batch: list[Row]) -> list[np.ndarray]:
        """[texts, W, H] of each row; halves the batch as long as it does not fit the memory."""
        found = within_memory(lambda: self._forward(batch))
        if found is not None:
            return found
        longest = max(map(length, batch))
        if len(batch) > 1:
            halves = [batch[: len(batch) // 2], batch[len(batch) // 2:]]
            self.tokens_per_batch = max(1, len(batch) * longest // 2)
        elif is_packed(batch[0]):
            halves = [[part] for part in separate(batch[0])]
        else:
            raise InputError(f"a text of {longest} tokens does not fit this device's memory: lower "
                             f"embedding.max_length, or raise embedding.gpus_per_model")
        distributed.warn(f"[embed] out of memory with {len(batch)} x {longest} tokens: split; "
                         f"embedding.tokens_per_batch is {self.tokens_per_batch} from here on")
        vectors = [own for half in halves for own in self._embed_batch(half)]
        return vectors if len(batch) > 1 else [np.concatenate(vectors)]

    def _forward(self, batch: list[Row]) -> list[np.ndarray]:
        """[texts, W, H] of each row, all packed or none."""
        if is_packed(batch[0]):
            ids, positions, weights, branches = shared_prompts.pack(batch)
            with self._shared_attention():
                vectors = self._run(ids, weights, position_ids=self._there(positions), branches=[
                    own._replace(**{name: self._there(getattr(own, name))
                                    for name in ("texts", "real", "places")})
                    for own in branches])[0]                                   # [texts, W, H]
            return np.split(vectors, np.cumsum([len(row.texts) for row in batch])[:-1])
        return list(self._run(*pad(batch)))

    def _run(self, ids: np.ndarray, weights: np.ndarray, **options: Any) -> np.ndarray:
        """Unit vectors [S, K, W, H] of ids [S, T] under weights [S, K, T]."""
        import torch

        ids, weights = self._there(ids), self._there(weights)
        with torch.inference_mode():
            mean = self._windows.mean(
                lambda: self.model(input_ids=ids, use_cache=False, **options), weights)
            return torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()

    def _there(self, array: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(array).to(self.model.device)

    @contextmanager
    def _shared_attention(self) -> Iterator[None]:
        """The model with our attention, within."""
        own = self.model.config._attn_implementation
        self.model.set_attn_implementation(shared_prompts.ATTENTION)
        try:
            yield
        finally:
            self.model.set_attn_implementation(own)

    def _can_share(self) -> bool:
        """Whether this model gives a row the vectors that it gives each of its texts alone."""
        import torch
        from transformers import AttentionInterface

        AttentionInterface.register(shared_prompts.ATTENTION, shared_prompts.attend)
        parameters = inspect.signature(self.model.forward).parameters
        if "position_ids" not in parameters or not self.model._can_set_attn_implementation():
            return False
        row = Row([1, 2, 3, 4], [[5, 6, 7], [8, 9, 5, 6]], [[1.0] * 3, [1.0] * 4])
        together = self._forward([row])[0]
        alone = np.concatenate(self._forward(separate(row)))
        bound = 1e-5 if self.model.dtype == torch.float32 else 5e-3  # cosine distance
        same = bool((1 - (together * alone).sum(-1) < bound).all())
        if not same:
            distributed.say("[embed] each answer is computed with a prompt of its own: this model "
                            "does not keep apart answers that share one")
        return same


def check_finite(vectors: np.ndarray, row: Row) -> None:
    """InputError where a text of a row that has weight has a vector that is no number."""
    weighted = np.array([any(weights) for weights in row.weights])
    if not np.isfinite(vectors[weighted]).all():
        raise InputError("model.dtype: a text's hidden states are no finite numbers; use bfloat16 "
                         "or float32")


def is_packed(row: Row) -> bool:
    """Whether the row holds several texts."""
    return len(row.texts) > 1


def length(row: Row) -> int:
    """Tokens of the row."""
    return len(row.prompt) + sum(map(len, row.texts))


def separate(row: Row) -> list[Row]:
    """A row for each text, with the prompt before it."""
    return [Row([], [row.prompt + text], [[0.0] * len(row.prompt) + weights])
            for text, weights in zip(row.texts, row.weights, strict=True)]


def pad(batch: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """(ids int64 [S, T], weights float32 [S, 1, T]) of rows of one text without prompt.

    Padded on the right, whatever side the tokenizer pads: a causal model then needs no mask.
    """
    longest = max(map(length, batch))
    ids = np.zeros((len(batch), longest), np.int64)
    weights = np.zeros((len(batch), 1, longest), np.float32)
    for s, row in enumerate(batch):
        ids[s, : length(row)], weights[s, 0, : length(row)] = row.texts[0], row.weights[0]
    return ids, weights
