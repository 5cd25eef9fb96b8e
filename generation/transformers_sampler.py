"""transformers' generate as a sampler: slow, and runs any model.

Shapes: B answers of a batch, T tokens, V vocabulary, W windows of layers, H hidden.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from adg.config import Config
from adg.models.batches import padded
from adg.models.layers import decoder_layers, watch
from adg.models.loading import LocalModel
from generation.samplers import DrawnAnswer, Request, check_states, sampling_windows

_BATCH = 64  # answers that are drawn at once, unless configured


class TransformersSampler:
    """transformers' generate, in batches with left padding and a random generator per answer."""

    def __init__(self, source: LocalModel, config: Config) -> None:
        from transformers import AutoModelForCausalLM, GenerationConfig

        self._model = source.load(AutoModelForCausalLM, config.sampling_dtype())
        self._tokenizer, self._settings = source.tokenizer(), config.generation
        self._ends = self._end_tokens()
        # generate would take what it is not told from the model's own settings
        self._model.generation_config = GenerationConfig()
        windows = sampling_windows(source, config)
        self._means = AnswerMeans(self._model, windows, self._ends) if windows else None

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[DrawnAnswer]]]:
        rows = ((number, request, k) for number, request in enumerate(requests)
                for k in range(request.num_answers))
        drawn: dict[int, list[DrawnAnswer]] = {}
        while batch := list(islice(rows, self._settings.max_num_seqs or _BATCH)):
            answers = self._draw([(request.prompt, request.seed + k) for _, request, k in batch])
            for (number, request, _), answer in zip(batch, answers, strict=True):
                drawn.setdefault(number, []).append(answer)
                if len(drawn[number]) == request.num_answers:
                    yield number, drawn.pop(number)

    def _draw(self, rows: list[tuple[list[int], int]]) -> list[DrawnAnswer]:
        import torch
        from transformers import GenerationConfig

        prompts, ends = [ids for ids, _ in rows], self._ends
        tokens = padded(prompts, side="left", value=ends[0])                            # [B, T]
        attended = padded([[1] * len(ids) for ids in prompts], side="left")
        if self._means:
            self._means.start()
        with torch.inference_mode():
            output = self._model.generate(
                tokens.to(self._model.device), attention_mask=attended.to(self._model.device),
                logits_processor=self._noise([seed for _, seed in rows]),
                generation_config=GenerationConfig(
                    max_new_tokens=self._settings.max_new_tokens + bool(self._means),
                    do_sample=False,
                    min_new_tokens=self._settings.min_new_tokens, eos_token_id=ends,
                    pad_token_id=ends[0],
                ),
            )
        answers = [self._finish(ids, ends) for ids in output[:, tokens.shape[1]:].tolist()]
        return self._means.give_to(answers) if self._means else answers

    def _end_tokens(self) -> list[int]:
        configured = self._model.generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        return [end for end in ends if end is not None] or [self._tokenizer.eos_token_id]

    def _noise(self, seeds: list[int]) -> list:
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        settings = self._settings
        return [TemperatureLogitsWarper(settings.temperature),
                *([TopKLogitsWarper(settings.top_k)] if settings.top_k else []),
                TopPLogitsWarper(settings.top_p), _gumbel_noise(seeds)]

    def _finish(self, ids: list[int], ends: list[int]) -> DrawnAnswer:
        ids = ids[: self._settings.max_new_tokens]
        stop = next((place for place, token in enumerate(ids) if token in ends), None)
        text = self._tokenizer.decode(ids[:stop], skip_special_tokens=True)
        return DrawnAnswer(text, "length" if stop is None else "stop", ids[:stop])


class AnswerMeans:
    """Averages the hidden states of a batch's answers while transformers draws them."""

    def __init__(self, model: Any, windows: list[list[int]], ends: list[int]) -> None:
        stack, self._windows, self._ends = decoder_layers(model), windows, ends
        self._last = len(stack) - 1
        model.base_model.register_forward_pre_hook(self._on_tokens, with_kwargs=True)
        watch(stack, set().union(*windows) - {self._last}, self._add)
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

    def give_to(self, answers: list[DrawnAnswer]) -> list[DrawnAnswer]:
        """The answers with their vectors; InputError where states and tokens do not match."""
        import torch

        means = torch.stack([total / (self._counts[:, None] * len(window)) for total, window in
                             zip(self._sums, self._windows, strict=True)], dim=1)       # [B, W, H]
        means = means.cpu().numpy()
        check_states(self._counts.tolist(), [len(answer.token_ids) for answer in answers], means)
        return [answer._replace(vectors=vectors)
                for answer, vectors in zip(answers, means, strict=True)]


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
            uniform = torch.stack([torch.rand(scores.shape[1], dtype=torch.float64,
                                              generator=generator)
                                   for generator in generators])                            # [B, V]
            noise = -torch.log(-torch.log(uniform.clamp_min(1e-300)))
            return scores.double() + noise.to(scores.device)

    return GumbelNoise()
