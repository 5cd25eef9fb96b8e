"""The engines that draw answers: vLLM, and transformers for what vLLM does not serve.

Both take token ids, a seed and a number of answers per request. Answer k of a prompt is drawn with
seed + k, so it does not depend on the batch, the order or the rank it is drawn in.

With embedding.source=sampling they also give each answer's vectors, from the hidden states that
drawing it computes anyway. A token's state exists once the token is fed to the model, so a token
more is drawn than is kept.

Shapes: B prompts, K answers, T tokens, V vocabulary, W windows of layers, H hidden.
"""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import numpy as np

from adg import distributed, models
from adg.config import Config
from adg.errors import InputError
from adg.layers import decoder_layers, windows_of

_WORKER = "generation.vllm_worker.AnswerWorker"
_BATCH = 64  # answers that transformers draws at once, unless told otherwise


class Request(NamedTuple):
    """A prompt, and how many answers to draw to it, the first with `seed`, each next with one more.
    """

    prompt: list[int]  # token ids
    seed: int
    num_answers: int


class Answer(NamedTuple):
    """One answer: its text without special tokens, "stop" or "length", the ids of its tokens
    without the one that ended it, and its vectors [W, H] (not unit; NaN without a token)."""

    text: str
    finish_reason: str
    token_ids: list[int]
    vectors: Any = None


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
        self._windows = _windows(folder, config)
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
        if self._windows:
            # The worker hides from split prompts what they ask of the processor's generators.
            engine.pop("enable_chunked_prefill", None)
            engine |= {"max_model_len": settings.max_model_len + 1, "worker_cls": _WORKER,
                       "additional_config": {"adg_windows": self._windows}}
        try:
            self.llm = LLM(str(folder), **engine)
        except (ValueError, RuntimeError) as error:
            if not _is_about_memory(error):
                raise
            raise InputError(_what_to_lower(error, on_gpu)) from None
        if self._windows:
            self.llm.collective_rpc("forget_answers")
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
            finished = [output for output in engine.step() if output.finished]
            answers = [[self._answer(drawn, output.prompt_token_ids) for drawn in output.outputs]
                       for output in finished]
            if self._windows and finished:
                answers = self._with_vectors(finished, answers)
            for output, own in zip(finished, answers, strict=True):
                del drawing[int(output.request_id)]
                yield int(output.request_id), own

    def parameters(self, request: Request) -> Any:
        """A request's SamplingParams."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        settings = self._settings
        return SamplingParams(
            n=request.num_answers, seed=request.seed, temperature=settings.temperature,
            top_p=settings.top_p, max_tokens=settings.max_new_tokens + bool(self._windows),
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

    def _with_vectors(self, outputs: list, answers: list[list[Answer]]) -> list[list[Answer]]:
        """The answers with their vectors; InputError where a state is missing or one too many."""
        names = [f"{k}_{output.request_id}" if len(own) > 1 else output.request_id
                 for output, own in zip(outputs, answers, strict=True) for k in range(len(own))]
        kept = [len(answer.token_ids) for own in answers for answer in own]
        counts, means = self.llm.collective_rpc("fetch_answers", args=(names, kept))[0]
        check_states(counts, kept, means)
        vectors = iter(means)
        return [[answer._replace(vectors=next(vectors)) for answer in own] for own in answers]


def check_states(counts: list[int], kept: list[int], means: Any) -> None:
    """InputError where an answer has not as many states as tokens, or a mean that is no number."""
    for count, number, mean in zip(counts, kept, means, strict=True):
        if count != number:
            raise InputError(f"the engine gave {count} hidden states for an answer of {number} "
                             f"tokens: vectors from sampling would be wrong; use "
                             f"embedding.source=forward")
        if count and not np.isfinite(mean).all():
            raise InputError("model.dtype: an answer's hidden states are no finite numbers; use "
                             "bfloat16 or float32")


def _windows(folder: Path, config: Config) -> list[list[int]]:
    """The windows of layers whose states are averaged while sampling; none with source forward."""
    if config.embedding.source != "sampling":
        return []
    described = models.describe(folder, trust_remote_code=config.model.trust_remote_code)
    return windows_of(config.embedding, described.num_hidden_layers)


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
        windows = _windows(folder, config)
        self._means = AnswerMeans(self._model, windows, self._end_tokens()) if windows else None

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
        if self._means:
            self._means.start()
        with torch.inference_mode():
            output = self._model.generate(
                tokens.to(self._device), attention_mask=attended.to(self._device),
                logits_processor=self._noise([seed for _, seed in rows]),
                generation_config=GenerationConfig(
                    max_new_tokens=self._settings.max_new_tokens + bool(self._means),
                    do_sample=False,
                    min_new_tokens=self._settings.min_new_tokens, eos_token_id=ends,
                    pad_token_id=padding,
                ),
            )
        answers = [self._finish(ids, ends) for ids in output[:, longest:].tolist()]
        return self._means.give_to(answers) if self._means else answers

    def _end_tokens(self) -> list[int]:
        given = self._model.generation_config.eos_token_id
        ends = given if isinstance(given, list) else [given]
        return [end for end in ends if end is not None] or [self._tokenizer.eos_token_id]

    def _noise(self, seeds: list[int]) -> list:
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        return [TemperatureLogitsWarper(self._settings.temperature),
                TopPLogitsWarper(self._settings.top_p), _gumbel_noise(seeds)]

    def _finish(self, ids: list[int], ends: list[int]) -> Answer:
        ids = ids[: self._settings.max_new_tokens]
        stop = next((place for place, token in enumerate(ids) if token in ends), None)
        text = self._tokenizer.decode(ids[:stop], skip_special_tokens=True)
        return Answer(text, "length" if stop is None else "stop", ids[:stop])


class AnswerMeans:
    """Averages the hidden states of a batch's answers while transformers draws them."""

    def __init__(self, model: Any, windows: list[list[int]], ends: list[int]) -> None:
        stack, self._windows, self._ends = decoder_layers(model), windows, ends
        self._last = len(stack) - 1
        model.base_model.register_forward_pre_hook(self._on_tokens, with_kwargs=True)
        for index in {layer for window in windows for layer in window if layer != self._last}:
            stack[index].register_forward_hook(
                lambda layer, inputs, output, index=index: self._add(
                    index, output[0] if isinstance(output, tuple) else output))
        model.base_model.register_forward_hook(
            lambda module, inputs, output: self._add(self._last, output.last_hidden_state))

    def start(self) -> None:
        """Begin a batch, whose first forward pass reads the prompts."""
        self._alive: Any = None  # [B] whether each answer has not ended before this token
        self._counts: Any = 0
        self._sums: list[Any] = [0.0] * len(self._windows)

    def _on_tokens(self, module: Any, inputs: tuple, options: dict) -> None:
        import torch

        tokens = options["input_ids"][:, -1]                                            # [B]
        ends = torch.tensor(self._ends, device=tokens.device)
        self._fed = torch.zeros_like(tokens) if self._alive is None else (
            self._alive & ~torch.isin(tokens, ends)).long()
        self._alive = torch.ones_like(tokens, dtype=torch.bool) if self._alive is None \
            else self._fed.bool()
        self._counts = self._counts + self._fed

    def _add(self, index: int, states: Any) -> None:
        added = states[:, -1].float() * self._fed[:, None]                              # [B, H]
        for number, window in enumerate(self._windows):
            if index in window:
                self._sums[number] = self._sums[number] + added

    def give_to(self, answers: list[Answer]) -> list[Answer]:
        """The answers with their vectors; InputError where states and tokens do not match."""
        import torch

        means = torch.stack([own / (self._counts[:, None] * len(window)) for own, window in
                             zip(self._sums, self._windows, strict=True)], dim=1)       # [B, W, H]
        means = means.cpu().numpy()
        check_states(self._counts.tolist(), [len(answer.token_ids) for answer in answers], means)
        return [answer._replace(vectors=own) for answer, own in zip(answers, means, strict=True)]


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
