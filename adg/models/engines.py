"""The engines that read prompts for annotation: vLLM, or transformers (slow, runs any model).

Both take token ids, complete them greedily, and say how likely each of a few tokens comes next.

Shapes: B prompts, C choices.
"""

from typing import Any, Protocol

import numpy as np

from adg.models.batches import Batcher, budget, padded
from adg.models.loading import LocalModel
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
        values = [[output.logprobs[0][token].logprob for token in choices] for output in outputs]
        return _softmax(np.array(values, dtype=np.float64))

    def _run(self, prompts: list[list[int]], **parameters: Any) -> list[Any]:
        from vllm import SamplingParams

        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts],
                                     SamplingParams(temperature=0, **parameters), use_tqdm=False)
        return [output.outputs[0] for output in outputs]

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


class TransformersEngine:
    """transformers, in batches of prompts of like length with left padding."""

    def __init__(self, source: LocalModel, dtype: str, tokens_per_batch: int | None = None) -> None:
        from transformers import AutoModelForCausalLM

        self._model = source.load(AutoModelForCausalLM, dtype)
        self._tokens_per_batch = budget(self._model, tokens_per_batch)
        self._tokenizer = source.tokenizer()

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
            ids, mask = (padded(rows, side="left", value=value).to(self._model.device)
                         for rows, value in ((batch, _PADDING), ([[1] * len(row) for row in batch],
                                                                 0)))
            with torch.inference_mode():
                return of({"input_ids": ids, "attention_mask": mask})

        batcher = Batcher(read, self._tokens_per_batch)
        results = batcher.read(prompts)
        self._tokens_per_batch = batcher.tokens_per_batch
        return results

    def close(self) -> None:
        import torch

        del self._model
        torch.cuda.empty_cache()


_PADDING = 0  # any token: it is masked


def _softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values - values.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def start(engine: str, source: LocalModel, dtype: str, *, max_length: int, seed: int,
          gpu_memory_utilization: float, tokens_per_batch: int | None = None) -> Engine:
    """An engine by its name: on this rank's first GPU, or on the CPU.

    vLLM gets a process of its own, which gives all its memory back when it ends.
    """
    if engine == "transformers":
        return TransformersEngine(source, dtype, tokens_per_batch)
    options = engine_options(dtype, seed=seed, trust_remote_code=source.trust_remote_code,
                               gpu_memory_utilization=gpu_memory_utilization, own_process=True)
    import vllm

    return VllmEngine(vllm.LLM(str(source.folder), disable_log_stats=True, max_model_len=max_length,
                               **options))
