"""A sentence encoder: texts to unit vectors (SuperFiltering.D).

A text is cut at the tokenizer's own limit, as the release does: 512 tokens for all-MiniLM-L6-v2,
where sentence-transformers would take 256.

Shapes: S texts of a batch, T tokens of the longest, H hidden.
"""

from typing import Any

import numpy as np

from adg.control_tokens import ControlTokens
from adg.models.batches import Batcher, budget, padded
from adg.models.loading import LocalModel, max_positions

_FIELDS = {"all": ("instruction", "input", "output"), "instruction": ("instruction",),
           "output": ("output",)}


class TextEncoder:
    """An encoder whose vector of a text is the mean over its tokens, of unit length."""

    def __init__(self, model: Any, tokenizer: Any, fields: str, *, tokens_per_batch: int,
                 control_tokens: str | None = None) -> None:
        self._model, self._fields = model, _FIELDS[fields]
        self._control_tokens = ControlTokens(tokenizer, control_tokens)
        self._limit = min(tokenizer.model_max_length, max_positions(model.config))
        self._batcher = Batcher(self._forward, tokens_per_batch)

    def encode(self, records: list[dict]) -> list[np.ndarray]:
        """The unit vector of each record's fields, a line each (an empty one too); float32 [H]."""
        texts = ["\n".join(record[name] for name in self._fields) for record in records]
        ids = self._control_tokens.encode(texts, truncation=True,
                                          max_length=self._limit)["input_ids"]
        return self._batcher.read(ids)

    def _forward(self, batch: list[list[int]]) -> np.ndarray:
        import torch

        ids, mask = (padded(rows).to(self._model.device)
                     for rows in (batch, [[1] * len(ids) for ids in batch]))
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)        # [S, H]
            return torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()


def load(source: LocalModel, fields: str, *, gpus: int = 1, tokens_per_batch: int | None = None,
         control_tokens: str | None = None) -> TextEncoder:
    """The encoder in a folder, in float32, on this rank's device or over `gpus` of its GPUs."""
    from transformers import AutoModel

    model = source.load(AutoModel, "float32", gpus=gpus)
    return TextEncoder(model, source.tokenizer(), fields,
                       tokens_per_batch=budget(model, tokens_per_batch),
                       control_tokens=control_tokens)
