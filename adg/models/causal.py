"""A causal language model that gives the losses of texts, many at once.

Shapes: S texts of a batch, T tokens of the longest, P positions whose next token is scored, V ids,
H hidden.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from adg.base.errors import InputError
from adg.config import Config
from adg.control_tokens import ControlTokens
from adg.models import folders, loading
from adg.models.batches import Batcher
from adg.models.batching import budget
from adg.pipeline.sources import model_of

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
        self.batcher = Batcher(self._forward, tokens_per_batch)
        self._wanted: Any = None  # positions [P] of a flattened batch
        self._states: Any = None  # [S, T, H] of a batch
        model.get_output_embeddings().register_forward_pre_hook(self._keep_wanted)

    def ids(self, texts: list[str], limits: Sequence[int] | None = None) -> list[list[int]]:
        """Token ids of each text with the tokenizer's special tokens, cut to its limit."""
        found = self.control_tokens.encode(texts)["input_ids"] if texts else []
        for i, limit in enumerate(limits or ()):
            if len(found[i]) > limit:
                found[i], = self.control_tokens.encode([texts[i]], truncation=True,
                                                       max_length=limit)["input_ids"]
        return found

    def losses(self, texts: list[Text]) -> list[float | None]:
        """The mean loss of each text's scored tokens, in nats; None: there is no such token."""
        return [own and own.loss for own in self.read(texts)]

    def read(self, texts: list[Text]) -> list[Reading | None]:
        """A reading of each text; None where no token is scored.

        InputError where a loss is no finite number.
        """
        chosen = [i for i, text in enumerate(texts) if text.num_scored()]
        readings = self.batcher.read([texts[i] for i in chosen],
                                     [len(texts[i].ids) for i in chosen])
        if not np.isfinite([own.loss for own in readings]).all():
            raise InputError("a text's loss is no finite number: use bfloat16 or float32 weights")
        found: list[Reading | None] = [None] * len(texts)
        for i, own in zip(chosen, readings, strict=True):
            found[i] = own
        return found

    def _forward(self, batch: list[Text]) -> list[Reading]:
        """Padded on the right, where a causal model needs no mask."""
        import torch

        longest = max(len(text.ids) for text in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, text in enumerate(batch):
            ids[row, : len(text.ids)] = torch.tensor(text.ids)
        places = [torch.arange(max(1, text.start), len(text.ids)) + row * longest
                  for row, text in enumerate(batch)]
        targets = torch.cat(places)
        with torch.inference_mode():
            self._wanted = targets - 1
            logits = self.model(input_ids=ids.to(self.model.device), use_cache=False).logits[0]
            found = _negative_log_likelihoods(logits, ids.flatten()[targets])             # [P]
            vectors = self._means(batch) if self._vectors else [None] * len(batch)
        self._states = None
        return [Reading(own.mean().item(), vector) for own, vector in zip(
            found.split([len(own) for own in places]), vectors, strict=True)]

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
    """Of targets [P] under logits [P, V]: float64 [P] on the processor."""
    import torch

    return torch.cat([
        torch.nn.functional.cross_entropy(own.float(), wanted.to(own.device), reduction="none")
        .double().cpu()
        for own, wanted in zip(logits.split(_POSITIONS), targets.split(_POSITIONS), strict=True)])


def load_model(config: Config, dtype: str, max_length: int, key: str, *,
               vectors: bool = False) -> CausalModel:
    """The model that measures by the configured method, on this rank's device or GPUs.

    InputError where it takes fewer than max_length tokens, which configuration key `key` asks for.
    """
    from transformers import AutoModelForCausalLM

    folder = folders.local_folder(model_of("measure.model", config), config.output_dir)
    trust = config.model.trust_remote_code
    longest = loading.max_positions(folders.describe(folder, trust_remote_code=trust))
    if longest < max_length:
        raise InputError(f"{key} is {max_length}, but {folder} takes {longest} tokens at most")
    tokenizer = folders.load_tokenizer(folder, trust_remote_code=trust)
    tokenizer.truncation_side = "right"
    loading.check_room(AutoModelForCausalLM, folder, dtype, config)
    model = loading.load(AutoModelForCausalLM, folder, dtype, config)
    return CausalModel(model, tokenizer, tokens_per_batch=budget(model, config), vectors=vectors,
                       control_tokens=config.generation.control_tokens)
