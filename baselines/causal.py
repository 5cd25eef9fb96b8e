"""A causal language model that gives the losses of texts, many at once.

Shapes: S texts of a batch, T tokens of the longest, P positions whose next token is scored, V ids.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from adg import distributed, models
from adg.batching import TOKENS_PER_BATCH, plan_batches
from adg.config import Config
from adg.errors import InputError
from adg.stages import model_of

_POSITIONS = 1024  # whose logits are in float32 at once


class Text(NamedTuple):
    """Token ids, of which those from `start` on are scored (never the first: nothing precedes it).
    """

    ids: list[int]
    start: int

    def num_scored(self) -> int:
        """Tokens that are scored."""
        return max(0, len(self.ids) - max(1, self.start))


class CausalModel:
    """A causal model with its tokenizer.

    Out of memory, a batch is halved, and so is tokens_per_batch for those that follow.
    """

    def __init__(self, model: Any, tokenizer: Any, *, tokens_per_batch: int) -> None:
        self.model, self.tokenizer, self.tokens_per_batch = model, tokenizer, tokens_per_batch
        self._wanted: Any = None  # positions [P] of a flattened batch
        model.get_output_embeddings().register_forward_pre_hook(self._keep_wanted)

    def ids(self, texts: list[str], limits: Sequence[int] | None = None) -> list[list[int]]:
        """Token ids of each text with the tokenizer's special tokens, cut to its limit."""
        found = self.tokenizer(texts, verbose=False)["input_ids"] if texts else []
        for i, limit in enumerate(limits or ()):
            if len(found[i]) > limit:
                found[i] = self.tokenizer(texts[i], truncation=True,
                                          max_length=limit)["input_ids"]
        return found

    def losses(self, texts: list[Text]) -> list[float | None]:
        """The mean negative log-likelihood of each text's scored tokens, in nats; None: no token.

        InputError where one is no finite number.
        """
        found: list[float | None] = [None] * len(texts)
        chosen = [i for i, text in enumerate(texts) if text.num_scored()]
        lengths = [len(texts[i].ids) for i in chosen]
        for batch in plan_batches(lengths, self.tokens_per_batch):
            members = [chosen[position] for position in batch]
            for i, value in zip(members, self._batch([texts[i] for i in members]), strict=True):
                found[i] = value
        if not np.isfinite([value for value in found if value is not None]).all():
            raise InputError("a text's loss is no finite number: use bfloat16 or float32 weights")
        return found

    def _batch(self, batch: list[Text]) -> list[float]:
        """The losses of a batch, halved as long as it does not fit the memory."""
        from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

        try:
            return self._forward(batch)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        clear_device_cache(garbage_collection=True)
        longest = max(len(text.ids) for text in batch)
        if len(batch) == 1:
            raise InputError(f"a text of {longest} tokens does not fit this device's memory: lower "
                             f"the method's max_length")
        self.tokens_per_batch = max(1, len(batch) * longest // 2)
        distributed.warn(f"[measure] out of memory with {len(batch)} x {longest} tokens: split; "
                         f"{self.tokens_per_batch} tokens per batch from here on")
        half = len(batch) // 2
        return self._batch(batch[:half]) + self._batch(batch[half:])

    def _forward(self, batch: list[Text]) -> list[float]:
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
            self._wanted = (targets - 1).to(self.model.device)
            logits = self.model(input_ids=ids.to(self.model.device), use_cache=False).logits[0]
            found = self._negative_log_likelihoods(logits, ids.flatten()[targets])        # [P]
            return [own.mean().item() for own in found.split([len(own) for own in places])]

    def _keep_wanted(self, head: Any, inputs: tuple) -> tuple:
        """Hidden states [S, T, H] -> [1, P, H] of the wanted positions, before the model's head."""
        return (inputs[0].flatten(0, 1)[self._wanted][None], *inputs[1:])

    def _negative_log_likelihoods(self, logits: Any, targets: Any) -> Any:
        """Of targets [P] under logits [P, V]: float64 [P] on the processor."""
        import torch

        parts = [torch.nn.functional.cross_entropy(own.float(), wanted.to(own.device),
                                                   reduction="none").double().cpu()
                 for own, wanted in zip(logits.split(_POSITIONS), targets.split(_POSITIONS),
                                        strict=True)]
        return torch.cat(parts)


def load_model(name: str, config: Config, dtype: str, max_length: int, key: str) -> CausalModel:
    """The model that the input `name` of stage measure stands for, on this rank's device.

    InputError where it takes fewer than max_length tokens, which configuration key `key` asks for.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder = models.local_folder(model_of(name, config), config.output_dir)
    trust = config.model.trust_remote_code
    longest = getattr(models.describe(folder, trust_remote_code=trust),
                      "max_position_embeddings", None) or max_length
    if longest < max_length:
        raise InputError(f"{key} is {max_length}, but {folder} takes {longest} tokens at most")
    tokenizer = models.load_tokenizer(folder, trust_remote_code=trust)
    tokenizer.truncation_side = "right"
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), trust_remote_code=trust).to(distributed.device())
    tokens = config.embedding.tokens_per_batch or TOKENS_PER_BATCH[model.device.type]
    return CausalModel(model.eval(), tokenizer, tokens_per_batch=tokens)
