"""The engines that draw answers: vLLM, and transformers for what vLLM does not serve.

Both take token ids, a seed and a number of answers per request. Answer k of a prompt is drawn with
seed + k, so it does not depend on the batch, the order or the rank it is drawn in.

Shapes: B prompts, K answers, V vocabulary.
"""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from adg import distributed
from adg.config import Config
from adg.errors import InputError

_BATCH = 64  # answers that transformers draws at once, unless told otherwise


class Request(NamedTuple):
    """A prompt, and how many answers to draw to it, the first with `seed`, each next with one more.
    """

    prompt: list[int]  # token ids
    seed: int
    num_answers: int


class Answer(NamedTuple):
    """One answer: its text without special tokens, "stop" or "length", and its tokens without the
    one that ended it."""

    text: str
    finish_reason: str
    num_tokens: int


class Sampler(Protocol):
    """What a stage needs of an engine."""

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Answer]]]:
        """(number of the request, its answers) as they get done; requests are taken as there is
        room for them."""


class VllmSampler:
    """vLLM in this process, on this rank's GPUs or on the processor."""

    def __init__(self, folder: Path, config: Config) -> None:
        on_gpu = distributed.count_gpus() > 0
        settings = config.generation
        if settings.batch_invariant and not on_gpu:
            raise InputError("generation.batch_invariant is for GPUs, and there is none; on a "
                             "processor in float32 answers do not depend on the batch")
        _set_up_environment(on_gpu, config)
        from vllm import LLM

        engine: dict[str, Any] = {
            "dtype": config.model.dtype, "trust_remote_code": config.model.trust_remote_code,
            "max_model_len": settings.max_model_len, "seed": config.seed, "disable_log_stats": True,
            "enable_prefix_caching": settings.prefix_caching,
            "tensor_parallel_size": config.model.tensor_parallel_size,
        }
        engine |= {name: value for name in ("max_num_seqs", "max_num_batched_tokens")
                   if (value := getattr(settings, name)) is not None}
        if on_gpu:
            engine["gpu_memory_utilization"] = settings.gpu_memory_utilization
        else:
            # The processor's random generators cannot be rewound, as split prompts would ask of
            # them; compiling costs more than it wins there.
            engine |= {"enable_chunked_prefill": False, "enforce_eager": True,
                       "max_num_batched_tokens": max(settings.max_num_batched_tokens or 8192,
                                                     settings.max_model_len)}
        try:
            self.llm = LLM(str(folder), **engine)
        except (ValueError, RuntimeError) as error:
            if not _is_about_memory(error):
                raise
            raise InputError(_what_to_lower(error, on_gpu)) from None
        self._settings = settings
        # twice what runs at once: when an answer ends, the next one has been there for long
        self._in_flight = 2 * self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Answer]]]:
        engine, waiting, drawing = self.llm.llm_engine, enumerate(requests), {}
        while True:
            while sum(drawing.values()) < self._in_flight:
                number, request = next(waiting, (None, None))
                if request is None:
                    break
                drawing[number] = request.num_answers
                engine.add_request(str(number), {"prompt_token_ids": request.prompt},
                                   self.parameters(request))
            if not drawing:
                return
            for output in engine.step():
                if output.finished:
                    del drawing[int(output.request_id)]
                    yield int(output.request_id), [_answer(drawn) for drawn in output.outputs]

    def parameters(self, request: Request) -> Any:
        """A request's SamplingParams."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        settings = self._settings
        return SamplingParams(
            n=request.num_answers, seed=request.seed, temperature=settings.temperature,
            top_p=settings.top_p, max_tokens=settings.max_new_tokens,
            min_tokens=settings.min_new_tokens, output_kind=RequestOutputKind.FINAL_ONLY)


def _answer(drawn: Any) -> Answer:
    ended = drawn.finish_reason == "stop"
    return Answer(drawn.text, drawn.finish_reason, len(drawn.token_ids) - ended)


def _is_about_memory(error: Exception) -> bool:
    return any(word in str(error).lower() for word in ("memory", "kv cache"))


def _what_to_lower(error: Exception, on_gpu: bool) -> str:
    room = "raise generation.gpu_memory_utilization" if on_gpu else (
        "raise VLLM_CPU_KVCACHE_SPACE (GiB, in the environment)")
    return (f"vLLM did not start for lack of memory: {' '.join(str(error).split())} -- lower "
            f"generation.max_model_len or generation.max_num_seqs, {room}, or spread the model "
            f"over more GPUs with model.tensor_parallel_size")


def _set_up_environment(on_gpu: bool, config: Config) -> None:
    """vLLM's own switches, which it reads when it is imported; what is set already stays."""
    if config.generation.batch_invariant:
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
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

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Answer]]]:
        rows = ((number, request, k) for number, request in enumerate(requests)
                for k in range(request.num_answers))
        drawn: dict[int, list[Answer]] = {}
        while batch := list(islice(rows, self._settings.max_num_seqs or _BATCH)):
            answers = self._draw([(request.prompt, request.seed + k) for _, request, k in batch])
            for (number, request, _), own in zip(batch, answers, strict=True):
                drawn.setdefault(number, []).append(own)
                if len(drawn[number]) == request.num_answers:
                    yield number, drawn.pop(number)

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
        return Answer(text, "length" if stop is None else "stop", len(ids[:stop]))


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
