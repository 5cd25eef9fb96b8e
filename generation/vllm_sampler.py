"""vLLM as a sampler: on this rank's GPUs or on the CPU, in this process or beside it."""

import os
import traceback
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from adg.base import distributed, process, screen
from adg.base.errors import InputError
from adg.config import Config
from adg.models.loading import LocalModel
from adg.models.vllm_options import check_version, engine_options
from generation.samplers import DrawnAnswer, Request, check_states, sampling_windows

_WORKER = "generation.vllm_worker.AnswerWorker"
# Requests that have ended before their vectors are fetched together: a fetch waits for the GPU,
# which has the next step to do already, and the step after that is not prepared meanwhile.
_FETCHED = 256


class VllmSampler:
    """vLLM on this rank's GPUs or on the CPU, in this process or beside it."""

    def __init__(self, source: LocalModel, config: Config) -> None:
        self._settings, settings = config.generation, config.generation
        arguments = engine_options(
            config.sampling_dtype(), seed=config.seed, own_process=settings.engine_process,
            trust_remote_code=source.trust_remote_code,
            gpu_memory_utilization=settings.gpu_memory_utilization)
        self._on_gpu = distributed.on_gpu()
        if settings.batch_invariant:
            self._be_batch_invariant()
        self._windows = sampling_windows(source, config)
        arguments |= _limits(config, self._on_gpu)
        if self._windows:
            arguments = _with_worker(source, arguments, self._windows)
        self.llm = self._start(source.folder, arguments)
        # twice what runs at once: when an answer ends, the next one has been waiting for a while
        self._in_flight = 2 * self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs

    def _be_batch_invariant(self) -> None:
        if not self._on_gpu:
            raise InputError("generation.batch_invariant is for GPUs, and there is none; on a CPU "
                             "in float32 answers do not depend on the batch")
        os.environ["VLLM_BATCH_INVARIANT"] = "1"

    def _start(self, folder: Path, arguments: dict[str, Any]) -> Any:
        """The engine; InputError that says what to lower where its memory is too small."""
        import vllm

        try:
            llm = vllm.LLM(str(folder), **arguments)
        except (ValueError, RuntimeError) as error:
            if not _is_about_memory(error):
                raise
            raise InputError(_what_to_lower(error, self._on_gpu)) from None
        if self._windows:
            llm.collective_rpc("forget_answers")
        return llm

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[DrawnAnswer]]]:
        engine, waiting, drawing = self.llm.llm_engine, enumerate(requests), {}
        ended: list[tuple[Any, list[DrawnAnswer]]] = []  # whose vectors vLLM still has
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

    def _answer(self, drawn: Any, prompt: list[int]) -> DrawnAnswer:
        ids, limit = list(drawn.token_ids), self._settings.max_new_tokens
        if len(ids) > limit:  # drawn for the state of the token before it
            text = drawn.text if drawn.finish_reason == "stop" else self._text_of(
                ids[:limit], prompt)
            return DrawnAnswer(text, "length", ids[:limit])
        ended = drawn.finish_reason == "stop"
        return DrawnAnswer(drawn.text, drawn.finish_reason, ids[: len(ids) - ended])

    def _text_of(self, ids: list[int], prompt: list[int]) -> str:
        """The text that vLLM itself makes of an answer's token ids."""
        from vllm.v1.engine.detokenizer import IncrementalDetokenizer

        request = SimpleNamespace(request_id="", prompt_token_ids=prompt, prompt_embeds=None,
                                  sampling_params=self.parameters(Request(prompt, 0, 1)))
        detokenizer = IncrementalDetokenizer.from_new_request(self.llm.get_tokenizer(), request)
        detokenizer.update(ids, False)
        return detokenizer.get_next_output_text(True, False)

    def _fetched(self, ended: list[tuple[Any, list[DrawnAnswer]]]
                 ) -> Iterator[tuple[int, list[DrawnAnswer]]]:
        """(number of the request, its answers), with their vectors where these are asked for.

        InputError where a hidden state is missing or one too many.
        """
        vectors: Iterator[Any] = repeat(None)
        if self._windows and ended:
            names = [f"{k}_{output.request_id}" if len(answers) > 1 else output.request_id
                     for output, answers in ended for k in range(len(answers))]
            kept = [len(answer.token_ids) for _, answers in ended for answer in answers]
            counts, content = self.llm.collective_rpc("fetch_answers", args=(names, kept))[0]
            means = np.frombuffer(content, np.float32).reshape(len(kept), len(self._windows), -1)
            check_states(counts, kept, means)
            vectors = iter(means)
        for output, answers in ended:
            yield int(output.request_id), [answer._replace(vectors=next(vectors))
                                           for answer in answers]


def _limits(config: Config, on_gpu: bool) -> dict[str, Any]:
    """What the engine takes at once, as its arguments."""
    settings = config.generation
    limits = {"max_model_len": settings.max_model_len, "disable_log_stats": True,
              "enable_prefix_caching": settings.prefix_caching,
              "tensor_parallel_size": config.model.tensor_parallel_size}
    limits |= {name: value for name in ("max_num_seqs", "max_num_batched_tokens")
               if (value := getattr(settings, name)) is not None}
    if not on_gpu:  # the CPU's random generators cannot be rewound, as split prompts would ask
        limits |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(
            settings.max_num_batched_tokens or 8192, settings.max_model_len)}
    return limits


def _with_worker(source: LocalModel, arguments: dict[str, Any],
                 windows: list[list[int]]) -> dict[str, Any]:
    """The arguments for the worker that averages hidden states; InputError where it cannot."""
    import vllm

    check_version(vllm.__version__)
    from generation import vllm_worker

    vllm_worker.check_before_start(str(source.folder), arguments)
    # The worker hides from split prompts what they ask of the CPU's generators.
    kept = {name: value for name, value in arguments.items() if name != "enable_chunked_prefill"}
    return kept | {"max_model_len": arguments["max_model_len"] + 1, "worker_cls": _WORKER,
                   "additional_config": {vllm_worker.WINDOWS: windows}}


def _is_about_memory(error: Exception) -> bool:
    return any(word in str(error).lower() for word in ("memory", "kv cache"))


def _what_to_lower(error: Exception, on_gpu: bool) -> str:
    room = "raise generation.gpu_memory_utilization" if on_gpu else (
        "raise VLLM_CPU_KVCACHE_SPACE (GiB, in the environment)")
    return (f"vLLM does not have enough memory: {' '.join(str(error).split())} -- lower "
            f"generation.max_model_len or generation.max_num_seqs, {room}, or spread the model "
            f"over more GPUs with model.tensor_parallel_size")
