"""A causal language model that gives the losses of texts, many at once.

Shapes: S texts of a batch, T tokens of the longest, P positions whose next token is scored, V ids,
H hidden.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from adg.base.errors import InputError
from adg.control_tokens import ControlTokens
from adg.models.batches import Batcher, budget, padded
from adg.models.loading import LocalModel

_POSITIONS = 1024  # whose logits are in float32 at once


class Text(NamedTuple):
    """Token ids, of which those from `start` on are scored (never the first: nothing precedes it).
    """

    ids: list[int]
    start: int = 1

    def num_scored(self) -> int:
        """Tokens that are scored."""
        return max(0, len(self.ids) - max(1, self.start))


class Reading(NamedTuple):
    """What a model makes of a text."""

    loss: float  # mean negative log-likelihood of the scored tokens, in nats
    vector: np.ndarray | None  # float32 [H]: mean over all tokens of the last layer's output


class CausalModel:
    """A causal model with its tokenizer; `vectors`: readings have one.

    `control_tokens` is generation.control_tokens: what those in a text are.
    """

    def __init__(self, model: Any, tokenizer: Any, *, tokens_per_batch: int,
                 vectors: bool = False, control_tokens: str | None = None) -> None:
        self.model, self.tokenizer, self._vectors = model, tokenizer, vectors
        self.control_tokens = ControlTokens(tokenizer, control_tokens)
        self.batcher = Batcher(self._forward, tokens_per_batch,
                               length=lambda text: len(text.ids))
        self._wanted: Any = None  # positions [P] of a flattened batch
        self._states: Any = None  # [S, T, H] of a batch
        model.get_output_embeddings().register_forward_pre_hook(self._keep_wanted)

    def ids(self, texts: list[str], limits: Sequence[int] | None = None) -> list[list[int]]:
        """Token ids of each text with the tokenizer's special tokens, cut to its limit."""
        rows = self.control_tokens.encode(texts)["input_ids"] if texts else []
        for i, limit in enumerate(limits or ()):
            if len(rows[i]) > limit:
                rows[i], = self.control_tokens.encode([texts[i]], truncation=True,
                                                      max_length=limit)["input_ids"]
        return rows

    def losses(self, texts: list[Text]) -> list[float | None]:
        """The mean loss of each text's scored tokens, in nats; None where no token is scored."""
        return [reading and reading.loss for reading in self.read(texts)]

    def read(self, texts: list[Text]) -> list[Reading | None]:
        """A reading of each text; None where no token is scored.

        InputError where a loss is NaN or infinite.
        """
        readings = self.batcher.read([text for text in texts if text.num_scored()])
        if not np.isfinite([reading.loss for reading in readings]).all():
            raise InputError("a text's loss is NaN or infinite: use bfloat16 or float32 weights")
        in_order = iter(readings)
        return [next(in_order) if text.num_scored() else None for text in texts]

    def _forward(self, batch: list[Text]) -> list[Reading]:
        """Padded on the right, where a causal model needs no mask."""
        import torch

        ids = padded([text.ids for text in batch])                                      # [S, T]
        places = [torch.arange(max(1, text.start), len(text.ids)) + row * ids.shape[1]
                  for row, text in enumerate(batch)]
        targets = torch.cat(places)
        with torch.inference_mode():
            self._wanted = targets - 1
            logits = self.model(input_ids=ids.to(self.model.device), use_cache=False).logits[0]
            losses = _negative_log_likelihoods(logits, ids.flatten()[targets])            # [P]
            vectors = self._means(batch) if self._vectors else [None] * len(batch)
        self._states = None
        return [Reading(scored.mean().item(), vector) for scored, vector in zip(
            losses.split(list(map(len, places))), vectors, strict=True)]

    def _means(self, batch: list[Text]) -> np.ndarray:
        """Mean hidden states over the tokens of each text; float32 [S, H]."""
        import torch

        lengths = torch.tensor([len(text.ids) for text in batch], device=self._states.device)
        real = torch.arange(self._states.shape[1], device=lengths.device) < lengths[:, None]
        total = (self._states.float() * real[..., None]).sum(1)                        # [S, H]
        return (total / lengths[:, None]).cpu().numpy()

    def _keep_wanted(self, head: Any, inputs: tuple) -> tuple:
        """Hidden states [S, T, H] -> [1, P, H] of the wanted positions, before the model's head."""
        self._states = inputs[0]
        wanted = self._wanted.to(self._states.device)
        return (self._states.flatten(0, 1)[wanted][None], *inputs[1:])


def _negative_log_likelihoods(logits: Any, targets: Any) -> Any:
    """Of targets [P] under logits [P, V]: float64 [P] on the CPU."""
    import torch

    return torch.cat([
        torch.nn.functional.cross_entropy(part.float(), wanted.to(part.device), reduction="none")
        .double().cpu()
        for part, wanted in zip(logits.split(_POSITIONS), targets.split(_POSITIONS), strict=True)])


def load_causal(source: LocalModel, dtype: str, *, max_length: int, key: str, gpus: int = 1,
                tokens_per_batch: int | None = None, vectors: bool = False,
                control_tokens: str | None = None) -> CausalModel:
    """The model in a folder, on this rank's device or over `gpus` of its GPUs.

    InputError where it takes fewer than max_length tokens, which configuration key `key` asks for.
    """
    from transformers import AutoModelForCausalLM

    if source.max_positions < max_length:
        raise InputError(f"{key} is {max_length}, but {source.folder} takes at most "
                         f"{source.max_positions} tokens")
    tokenizer = source.tokenizer()
    tokenizer.truncation_side = "right"
    source.check_room(AutoModelForCausalLM, dtype, gpus=gpus)
    model = source.load(AutoModelForCausalLM, dtype, gpus=gpus)
    return CausalModel(model, tokenizer, tokens_per_batch=budget(model, tokens_per_batch),
                       vectors=vectors, control_tokens=control_tokens)
