"""The engines that read prompts for annotation: vLLM, or transformers (slow, runs any model).

Both take token ids, complete them greedily, and say how likely each of a few tokens comes next.

Shapes: B prompts, C choices.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from adg.config import Config
from adg.models import loading
from adg.models.batches import Batcher
from adg.models.batching import budget
from adg.models.folders import load_tokenizer
from adg.models.vllm_options import engine_options


class Engine(Protocol):
    """What annotation needs of an engine."""

    def complete(self, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
        """The most likely continuation of each prompt, without special tokens."""

    def probabilities(self, prompts: list[list[int]], choices: list[int]) -> np.ndarray:
        """[B, C]: how likely each of the tokens `choices` comes next, if one of them does."""

    def close(self) -> None:
        """Give the model's memory back."""


class VllmEngine:
    """vLLM's engine, a `vllm.LLM`."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def complete(self, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
        tokenizer = self._llm.get_tokenizer()
        return [tokenizer.decode(output.token_ids, skip_special_tokens=True)
                for output in self._run(prompts, max_tokens=max_new_tokens)]

    def probabilities(self, prompts: list[list[int]], choices: list[int]) -> np.ndarray:
        outputs = self._run(prompts, max_tokens=1, logprob_token_ids=choices)
        found = [[output.logprobs[0][token].logprob for token in choices] for output in outputs]
        return _softmax(np.array(found, dtype=np.float64))

    def _run(self, prompts: list[list[int]], **parameters: Any) -> list[Any]:
        from vllm import SamplingParams

        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts],
                                     SamplingParams(temperature=0, **parameters), use_tqdm=False)
        return [output.outputs[0] for output in outputs]

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


class TransformersEngine:
    """transformers, in batches of prompts of like length with left padding."""

    def __init__(self, folder: Path, config: Config) -> None:
        from transformers import AutoModelForCausalLM

        self._model = loading.load_on_device(
            AutoModelForCausalLM, folder, config.model.dtype, config)
        self._tokens_per_batch = budget(self._model, config)
        self._tokenizer = load_tokenizer(
            folder, trust_remote_code=config.model.trust_remote_code)

    def complete(self, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
        def of(batch: dict[str, Any]) -> list[str]:
            ids = self._model.generate(
                **batch, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1,
                temperature=None, top_p=None, top_k=None, pad_token_id=_PADDING)
            return self._tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1]:],
                                                skip_special_tokens=True)

        return self._in_batches(prompts, of)

    def probabilities(self, prompts: list[list[int]], choices: list[int]) -> np.ndarray:
        def of(batch: dict[str, Any]) -> list[np.ndarray]:
            positions = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
            logits = self._model(**batch, position_ids=positions, use_cache=False,
                                 logits_to_keep=1).logits[:, -1, choices]
            return list(logits.double().cpu().numpy())

        return _softmax(np.array(self._in_batches(prompts, of)))

    def _in_batches(self, prompts: list[list[int]], of: Any) -> list[Any]:
        import torch

        def read(batch: list[list[int]]) -> list[Any]:
            lacking = [max(map(len, batch)) - len(ids) for ids in batch]
            tensors = {
                "input_ids": [[_PADDING] * lack + ids
                              for ids, lack in zip(batch, lacking, strict=True)],
                "attention_mask": [[0] * lack + [1] * len(ids)
                                   for ids, lack in zip(batch, lacking, strict=True)]}
            with torch.inference_mode():
                return of({name: torch.tensor(rows, device=self._model.device)
                           for name, rows in tensors.items()})

        batcher = Batcher(read, self._tokens_per_batch)
        found = batcher.read(prompts, list(map(len, prompts)))
        self._tokens_per_batch = batcher.tokens_per_batch
        return found

    def close(self) -> None:
        import torch

        del self._model
        torch.cuda.empty_cache()


_PADDING = 0  # any token: it is masked


def _softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values - values.max(axis=-1, keepdims=True))
    return weights / loading.sum(axis=-1, keepdims=True)


def start_vllm(folder: Path, config: Config) -> VllmEngine:
    """vLLM on this rank's first GPU, in a process of its own, which gives all its memory back when
    it ends."""
    options = engine_options(config, own_process=True)
    import vllm

    return VllmEngine(vllm.LLM(str(folder), disable_log_stats=True, **options,
                               max_model_len=config.selection.mig.annotator.max_length))


ENGINES: dict[str, Callable[[Path, Config], Engine]] = {
    "vllm": start_vllm, "transformers": TransformersEngine}
