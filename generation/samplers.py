"""The engines that draw answers: vLLM, and transformers for what vLLM does not serve.

Both take token ids and a seed per prompt, and give K answers each. Answer k of a prompt is drawn
with seed + k, so it does not depend on the batch, the order or the rank it is drawn in.

Shapes: B prompts, K answers, V vocabulary.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from adg import distributed
from adg.config import Config

_ROWS_AT_ONCE = 64  # answers that the transformers sampler draws in one batch


class Answer(NamedTuple):
    """One answer: its text without special tokens, and "stop" or "length"."""

    text: str
    finish_reason: str


class Sampler(Protocol):
    """What a stage needs of an engine."""

    def sample(self, prompts: list[list[int]], seeds: list[int]) -> list[list[Answer]]:
        """K answers to each prompt (token ids), answer k drawn with its seed + k."""


class VllmSampler:
    """vLLM in this process, on this rank's GPU or on the processor."""

    def __init__(self, folder: Path, config: Config) -> None:
        on_gpu = distributed.count_gpus() > 0
        _set_up_environment(on_gpu)
        from vllm import LLM

        settings = config.generation
        engine: dict[str, Any] = {
            "dtype": config.model.dtype, "trust_remote_code": config.model.trust_remote_code,
            "max_model_len": settings.max_model_len, "seed": config.seed, "disable_log_stats": True,
        }
        if on_gpu:
            engine["gpu_memory_utilization"] = settings.gpu_memory_utilization
        else:
            # The processor's random generators cannot be rewound, as split prompts would ask of
            # them; compiling costs more than it wins there.
            engine |= {"enable_chunked_prefill": False, "enforce_eager": True,
                       "max_num_batched_tokens": max(8192, settings.max_model_len)}
        self._engine = LLM(str(folder), **engine)
        self._settings = settings

    def sample(self, prompts: list[list[int]], seeds: list[int]) -> list[list[Answer]]:
        from vllm import SamplingParams

        settings = self._settings
        parameters = [SamplingParams(
            n=settings.num_answers, temperature=settings.temperature, top_p=settings.top_p,
            max_tokens=settings.max_new_tokens, min_tokens=settings.min_new_tokens, seed=seed,
        ) for seed in seeds]
        requests = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = self._engine.generate(requests, parameters, use_tqdm=False)
        return [[Answer(answer.text, answer.finish_reason) for answer in output.outputs]
                for output in outputs]


def _set_up_environment(on_gpu: bool) -> None:
    """vLLM's own switches, which it reads when it is imported; what is set already stays."""
    defaults = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1",
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if not on_gpu:
        defaults |= {"VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
                     "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # ranks share the cores
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


class TransformersSampler:
    """transformers' generate, in batches with left padding and a random generator per answer."""

    def __init__(self, folder: Path, config: Config) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from adg.models import load_tokenizer

        self._device = distributed.device()
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, config.model.dtype),
            trust_remote_code=config.model.trust_remote_code,
        ).to(self._device).eval()
        self._tokenizer = load_tokenizer(folder, trust_remote_code=config.model.trust_remote_code)
        self._settings = config.generation

    def sample(self, prompts: list[list[int]], seeds: list[int]) -> list[list[Answer]]:
        num_answers = self._settings.num_answers
        rows = [(ids, seed + k) for ids, seed in zip(prompts, seeds, strict=True)
                for k in range(num_answers)]
        answers: list[Answer] = []
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            answers += self._draw(rows[start: start + _ROWS_AT_ONCE])
        return [answers[i: i + num_answers] for i in range(0, len(answers), num_answers)]

    def _draw(self, rows: list[tuple[list[int], int]]) -> list[Answer]:
        import torch
        from transformers import GenerationConfig

        ends = self._end_tokens()
        longest = max(len(ids) for ids, _ in rows)
        padding = ends[0]
        tokens = torch.tensor([[padding] * (longest - len(ids)) + ids for ids, _ in rows])  # [B, T]
        attended = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in rows])
        with torch.inference_mode():
            output = self._model.generate(
                tokens.to(self._device), attention_mask=attended.to(self._device),
                logits_processor=self._noise([seed for _, seed in rows]),
                generation_config=GenerationConfig(
                    max_new_tokens=self._settings.max_new_tokens, do_sample=False,
                    min_new_tokens=self._settings.min_new_tokens, eos_token_id=ends,
                    pad_token_id=padding,
                ),
            )
        return [self._finish(ids, ends) for ids in output[:, longest:].tolist()]

    def _end_tokens(self) -> list[int]:
        given = self._model.generation_config.eos_token_id
        ends = given if isinstance(given, list) else [given]
        return [end for end in ends if end is not None] or [self._tokenizer.eos_token_id]

    def _noise(self, seeds: list[int]) -> list:
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        return [TemperatureLogitsWarper(self._settings.temperature),
                TopPLogitsWarper(self._settings.top_p), _gumbel_noise(seeds)]

    def _finish(self, ids: list[int], ends: list[int]) -> Answer:
        stop = next((place for place, token in enumerate(ids) if token in ends), None)
        text = self._tokenizer.decode(ids[:stop], skip_special_tokens=True)
        return Answer(text, "length" if stop is None else "stop")


def _gumbel_noise(seeds: list[int]) -> Any:
    """A logits processor after which the largest logit of a row is a draw from its distribution.

    Adding Gumbel noise and taking the maximum samples from the softmax; each row has a generator of
    its own, so that it does not matter what else is in the batch.
    """
    import torch
    from transformers import LogitsProcessor

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    class GumbelNoise(LogitsProcessor):
        def __call__(self, input_ids: torch.LongTensor,
                     scores: torch.FloatTensor) -> torch.FloatTensor:
            uniform = torch.stack([torch.rand(scores.shape[1], dtype=torch.float64, generator=own)
                                   for own in generators])                                  # [B, V]
            noise = -torch.log(-torch.log(uniform.clamp_min(1e-300)))
            return scores.double() + noise.to(scores.device)

    return GumbelNoise()


SAMPLERS = {"vllm": VllmSampler, "transformers": TransformersSampler}
