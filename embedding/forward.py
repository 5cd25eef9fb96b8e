"""Rows of token ids to unit vectors: batches by token budget, one forward pass each.

Shapes: S rows of a batch, K texts of a row, T tokens, W windows of layers, H hidden.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from adg.base import distributed
from adg.base.errors import InputError
from adg.config import Config
from adg.models.batches import Batcher, budget, padded
from adg.models.layers import windows_of
from adg.models.loading import LocalModel
from embedding import shared_prompts
from embedding.pooling import LayerWindows
from embedding.sequences import Row
from embedding.shared_prompts import on_device, put


def load_embedder(source: LocalModel, config: Config) -> "Embedder":
    """The backbone without its head, on this rank's device or over embedding.gpus_per_model GPUs.
    """
    from transformers import AutoModel

    model = source.load(AutoModel, config.embedding_dtype(), gpus=config.embedding.gpus_per_model)
    return Embedder(
        model, windows_of(config.embedding, model.config.get_text_config().num_hidden_layers),
        share_prompts=config.embedding.share_prompts,
        tokens_per_batch=budget(model, config.embedding.tokens_per_batch))


class Placed(NamedTuple):
    """A row, and the place of its first text among all."""

    first: int
    row: Row


class Embedder:
    """A backbone without its head: rows to the unit vectors of their texts.

    Out of memory, a batch is halved, and so is tokens_per_batch for those that follow. With
    `one_call`, attention over shared prompts is one call a layer where the device has a kernel
    that does so rightly.
    """

    def __init__(self, model: Any, windows: list[list[int]], *, tokens_per_batch: int,
                 share_prompts: bool = True, one_call: bool = True) -> None:
        self.model = model
        self.batcher = Batcher(
            lambda batch: self._forward([placed.row for placed in batch]), tokens_per_batch,
            length=lambda placed: length(placed.row), split=split, stage="embed",
            limit="embedding.max_length")
        # shared prompts know no sliding window: a text that is longer is left to the model's own
        self._reach = getattr(model.config, "sliding_window", None) or 2**31
        self._windows, self._num_windows = LayerWindows(model, windows), len(windows)
        self.one_call = False
        self.shares = share_prompts and self._can_share(one_call)

    def embed(self, rows: list[Row]) -> np.ndarray:
        """Unit vectors of all texts of the rows, in order, float32 [texts, W, H].

        NaN where no token has weight.
        """
        parts = [part for row in rows for part in self.parts(row)]
        firsts = [0, *accumulate(len(part.texts) for part in parts)]
        shape = (firsts[-1], self._num_windows, self.model.config.hidden_size)
        vectors, computed = np.full(shape, np.nan, np.float32), []
        for packed in (True, False):
            chosen = [Placed(*pair) for pair in zip(firsts, parts, strict=False)
                      if is_packed(pair[1]) == packed and any(map(any, pair[1].weights))]
            for batch, result in self.batcher.batches(chosen):                     # [texts, W, H]
                places = np.concatenate([np.arange(first, first + len(row.texts))
                                         for first, row in batch])
                computed.append((places, result.to("cpu", non_blocking=True)))
                device = result.device
        if computed:
            wait_for(device)
        for places, result in computed:
            vectors[places] = result.numpy()
        check_finite(vectors, [any(weights) for part in parts for weights in part.weights])
        return vectors

    def parts(self, row: Row) -> list[Row]:
        """The row itself where it is read as it stands, else a row for each of its texts."""
        reach = len(row.prompt) + max(map(len, row.texts))
        return [row] if not is_packed(row) or self.shares and reach <= self._reach \
            else separate(row)

    def _forward(self, batch: list[Row]) -> Any:
        """[texts, W, H] of all rows, all packed or none."""
        if not is_packed(batch[0]):
            return self._run(*pad(batch))
        ids, positions, weights = shared_prompts.pack(batch)
        layout_of = shared_prompts.sequences_of if self.one_call else shared_prompts.branches_of
        device = self.model.device
        with self._shared_attention():
            return self._run(ids, weights, position_ids=put(positions, device),
                             layout=on_device(layout_of(batch), device))

    def _run(self, ids: Any, weights: Any, **options: Any) -> Any:
        """Unit vectors [S K, W, H] of ids [S, T] under weights [S, K, T], on the model's device."""
        import torch

        ids, weights = put(ids, self.model.device), put(weights, self.model.device)
        with torch.inference_mode():
            mean = self._windows.mean(
                lambda: self.model(input_ids=ids, use_cache=False, **options), weights)
            return torch.nn.functional.normalize(mean, dim=-1).flatten(0, 1)

    @contextmanager
    def _shared_attention(self) -> Iterator[None]:
        """The model with our attention, within."""
        implementation = self.model.config._attn_implementation
        self.model.set_attn_implementation(shared_prompts.ATTENTION)
        try:
            yield
        finally:
            self.model.set_attn_implementation(implementation)

    def _can_share(self, one_call: bool) -> bool:
        """Whether this model gives a row the vectors that it gives each of its texts alone."""
        from transformers import AttentionInterface

        AttentionInterface.register(shared_prompts.ATTENTION, shared_prompts.attend)
        parameters = inspect.signature(self.model.forward).parameters
        if "position_ids" not in parameters or not self.model._can_set_attn_implementation():
            return False
        self.one_call = one_call and has_kernel(self.model) and self._can_do_in_one_call()
        same = self._gives_the_same()
        if not same:
            distributed.say("[embed] each answer is computed with a prompt of its own: this model "
                            "does not keep apart answers that share one")
        return same

    def _can_do_in_one_call(self) -> bool:
        """Whether one call gives what row by row does, for random states and for this model."""
        self.one_call, fault = True, ""
        try:
            deviation = shared_prompts.deviation_in_one_call(self.model)
            if not deviation < 0.02:  # rounding gives 0.004, another alignment of the keys 0.9
                fault = f"deviates by {deviation:.1e}"
            elif not self._gives_the_same():
                fault = "gives this model other vectors"
        except (RuntimeError, TypeError, ValueError) as error:  # no kernel for this GPU or shape
            fault = f"fails ({str(error).split(chr(10))[0]})"
        if fault:
            distributed.warn(f"[embed] attention is computed row by row, which is slower for short "
                             f"answers: one call a layer {fault}")
        return not fault

    def _gives_the_same(self) -> bool:
        """Whether a row has the vectors that each of its texts has alone."""
        import torch

        row = Row([1, 2, 3, 4], [[5, 6, 7], [8, 9, 5, 6]], [[1.0] * 3, [1.0] * 4])
        together, alone = self._forward([row]), self._forward(separate(row))
        bound = 1e-5 if self.model.dtype == torch.float32 else 5e-3  # cosine distance
        return bool((1 - (together * alone).sum(-1) < bound).all())


def has_kernel(model: Any) -> bool:
    """Whether a model is in half precision on a GPU, for which there is varlen attention."""
    import torch

    return model.device.type == "cuda" and model.dtype in (torch.bfloat16, torch.float16)


def wait_for(device: Any) -> None:
    """Wait until what a GPU was asked for has been done."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_finite(vectors: np.ndarray, weighted: list[bool]) -> None:
    """InputError where a text that has weight has a vector that is not finite."""
    if not np.isfinite(vectors[np.array(weighted, bool)]).all():
        raise InputError("model.dtype: a text's hidden states are NaN or infinite; use bfloat16 or "
                         "float32")


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


def split(placed: Placed) -> list[Placed]:
    """A row that is too large in smaller ones, each of one text, or as it is."""
    if not is_packed(placed.row):
        return [placed]
    return [Placed(placed.first + k, row) for k, row in enumerate(separate(placed.row))]


def pad(batch: list[Row]) -> tuple[Any, Any]:
    """(ids int64 [S, T], weights float32 [S, 1, T]) of rows of one text without prompt.

    Padded on the right, whatever side the tokenizer pads: a causal model then needs no mask.
    """
    import torch

    return (padded([row.texts[0] for row in batch]),
            padded([row.weights[0] for row in batch], dtype=torch.float32)[:, None])
