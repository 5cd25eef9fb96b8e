"""The engines that draw answers: vLLM, and transformers for what vLLM does not serve.

Both take token ids, a seed and a number of answers per request. Answer k of a prompt is drawn with
seed + k, so it does not depend on the batch, the order or the rank it is drawn in.
"""

import json
import os
import traceback
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from adg.base import distributed, process, screen
from adg.base.errors import InputError
from adg.config import Config, GenerationConfig
from adg.models.vllm_options import engine_options
from generation.answers import Answer, Request, check_states, sampling_windows
from generation.transformers_sampler import TransformersSampler

_VERSION = "0.32.0"  # of vLLM, for vectors from sampling
_WORKER = "generation.vllm_worker.AnswerWorker"
# Requests that have ended before their vectors are fetched together: a fetch waits for the GPU,
# which has the next step to do already, and the step after that is not prepared meanwhile.
_FETCHED = 256


# What generation_config.json can ask for besides, by the values that ask for nothing
_NEUTRAL = {"min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
            "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": None,
            "suppress_tokens": None, "begin_suppress_tokens": None, "sequence_bias": None}


class Sampler(Protocol):
    """What a stage needs of an engine."""

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Answer]]]:
        """(number of the request, its answers) as they get done; requests are taken as there is
        room for them."""


class VllmSampler:
    """vLLM on this rank's GPUs or on the CPU, in this process or beside it."""

    def __init__(self, folder: Path, config: Config) -> None:
        settings = config.generation
        engine = engine_options(config, own_process=settings.engine_process,
                                dtype=config.sampling_dtype())
        on_gpu = distributed.on_gpu()
        if settings.batch_invariant and not on_gpu:
            raise InputError("generation.batch_invariant is for GPUs, and there is none; on a "
                             "processor in float32 answers do not depend on the batch")
        if settings.batch_invariant:
            os.environ["VLLM_BATCH_INVARIANT"] = "1"
        self._windows = sampling_windows(folder, config)
        import vllm

        engine |= {"max_model_len": settings.max_model_len, "disable_log_stats": True,
                   "enable_prefix_caching": settings.prefix_caching,
                   "tensor_parallel_size": config.model.tensor_parallel_size}
        engine |= {name: value for name in ("max_num_seqs", "max_num_batched_tokens")
                   if (value := getattr(settings, name)) is not None}
        if not on_gpu:
            # The processor's random generators cannot be rewound, as split prompts would ask.
            engine |= {"enable_chunked_prefill": False,
                       "max_num_batched_tokens": max(settings.max_num_batched_tokens or 8192,
                                                     settings.max_model_len)}
        if self._windows:
            check_version(vllm.__version__)
            from generation import vllm_worker

            vllm_worker.check_before_start(str(folder), engine)
            # The worker hides from split prompts what they ask of the processor's generators.
            engine.pop("enable_chunked_prefill", None)
            engine |= {"max_model_len": settings.max_model_len + 1, "worker_cls": _WORKER,
                       "additional_config": {vllm_worker.WINDOWS: self._windows}}
        try:
            self.llm = vllm.LLM(str(folder), **engine)
        except (ValueError, RuntimeError) as error:
            if not _is_about_memory(error):
                raise
            raise InputError(_what_to_lower(error, on_gpu)) from None
        if self._windows:
            self.llm.collective_rpc("forget_answers")
        self._settings, self._on_gpu = settings, on_gpu
        # twice what runs at once: when an answer ends, the next one has been there for long
        self._in_flight = 2 * self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Answer]]]:
        engine, waiting, drawing = self.llm.llm_engine, enumerate(requests), {}
        ended: list[tuple[Any, list[Answer]]] = []  # outputs of vLLM, whose vectors it still has
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
            finished = [output for output in self._step() if output.finished]
            for output in finished:
                del drawing[int(output.request_id)]
                ended.append((output, [self._answer(drawn, output.prompt_token_ids)
                                       for drawn in output.outputs]))
            if self._windows and drawing and len(ended) < _FETCHED:
                continue
            yield from self._fetched(ended)
            ended.clear()

    def _step(self) -> list:
        """What one step of the engine gave; InputError that says how to go on where it failed."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            outputs = self.llm.llm_engine.step()
        except (RuntimeError, TimeoutError, EngineDeadError) as error:
            traceback.print_exc(file=screen.stderr())
            advice = _what_to_lower(error, self._on_gpu) \
                if _is_about_memory(error) else f"vLLM failed ({type(error).__name__}: {error})"
            raise InputError(f"{advice}. The chunks in answers/ are whole, and the same command "
                             f"goes on with the others") from None
        process.beat()
        return outputs

    def parameters(self, request: Request) -> Any:
        """A request's SamplingParams."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        settings = self._settings
        return SamplingParams(
            n=request.num_answers, seed=request.seed, temperature=settings.temperature,
            top_k=settings.top_k or 0, top_p=settings.top_p,
            max_tokens=settings.max_new_tokens + bool(self._windows),
            min_tokens=settings.min_new_tokens, output_kind=RequestOutputKind.FINAL_ONLY)

    def _answer(self, drawn: Any, prompt: list[int]) -> Answer:
        ids, limit = list(drawn.token_ids), self._settings.max_new_tokens
        if len(ids) > limit:  # drawn for the state of the token before it
            text = drawn.text if drawn.finish_reason == "stop" else self._text_of(
                ids[:limit], prompt)
            return Answer(text, "length", ids[:limit])
        ended = drawn.finish_reason == "stop"
        return Answer(drawn.text, drawn.finish_reason, ids[: len(ids) - ended])

    def _text_of(self, ids: list[int], prompt: list[int]) -> str:
        """The text that vLLM itself makes of an answer's token ids."""
        from vllm.v1.engine.detokenizer import IncrementalDetokenizer

        request = SimpleNamespace(request_id="", prompt_token_ids=prompt, prompt_embeds=None,
                                  sampling_params=self.parameters(Request(prompt, 0, 1)))
        detokenizer = IncrementalDetokenizer.from_new_request(self.llm.get_tokenizer(), request)
        detokenizer.update(ids, False)
        return detokenizer.get_next_output_text(True, False)

    def _fetched(self, ended: list[tuple[Any, list[Answer]]]
                 ) -> Iterator[tuple[int, list[Answer]]]:
        """(number of the request, its answers), with their vectors where these are asked for.

        InputError where a hidden state is missing or one too many.
        """
        vectors: Iterator[Any] = repeat(None)
        if self._windows and ended:
            names = [f"{k}_{output.request_id}" if len(own) > 1 else output.request_id
                     for output, own in ended for k in range(len(own))]
            kept = [len(answer.token_ids) for _, own in ended for answer in own]
            counts, content = self.llm.collective_rpc("fetch_answers", args=(names, kept))[0]
            means = np.frombuffer(content, np.float32).reshape(len(kept), len(self._windows), -1)
            check_states(counts, kept, means)
            vectors = iter(means)
        for output, own in ended:
            yield int(output.request_id), [answer._replace(vectors=next(vectors))
                                           for answer in own]


def left_unused(folder: Path, settings: GenerationConfig) -> dict[str, Any]:
    """What a model's generation_config.json says of sampling and is not done here.

    transformers' generate would do it where it is not told otherwise: Qwen2.5-7B-Instruct's file
    asks for top-k 20 and a repetition penalty of 1.05.
    """
    path = folder / "generation_config.json"
    given = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    used = {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p,
            **_NEUTRAL}
    return {name: given[name] for name, value in used.items()
            if given.get(name) not in (None, value)}


def _is_about_memory(error: Exception) -> bool:
    return any(word in str(error).lower() for word in ("memory", "kv cache"))


def _what_to_lower(error: Exception, on_gpu: bool) -> str:
    room = "raise generation.gpu_memory_utilization" if on_gpu else (
        "raise VLLM_CPU_KVCACHE_SPACE (GiB, in the environment)")
    return (f"vLLM has not enough memory: {' '.join(str(error).split())} -- lower "
            f"generation.max_model_len or generation.max_num_seqs, {room}, or spread the model "
            f"over more GPUs with model.tensor_parallel_size")


def check_version(found: str) -> None:
    """InputError where this vLLM is not the one whose private parts vllm_worker relies on.

    To be called before that module is imported: what it imports is private too.
    """
    if found.split("+")[0] != _VERSION:
        raise InputError(f"embedding.source=sampling is made for vLLM {_VERSION}, and this is "
                         f"{found}: install that version, or use embedding.source=forward")


SAMPLERS = {"vllm": VllmSampler, "transformers": TransformersSampler}
