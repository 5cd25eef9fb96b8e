"""What a sampler is asked for and what it gives; what must hold of an answer's hidden states.

Both samplers take token ids, a seed and a number of answers per request. Answer k of a prompt is
drawn with seed + k, so it does not depend on the batch, the order or the rank it is drawn in.

With embedding.source=sampling an answer carries its vectors, averaged over the hidden states that
drawing it computes anyway. A token's state exists once the token is fed to the model, so one token
more is drawn than is kept.

Shapes: W windows of layers, H hidden.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from adg.base.errors import InputError
from adg.config import Config, GenerationConfig
from adg.models.layers import windows_of
from adg.models.loading import LocalModel

# What generation_config.json can ask for besides, by the values that ask for nothing
_NEUTRAL = {"min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
            "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": None,
            "suppress_tokens": None, "begin_suppress_tokens": None, "sequence_bias": None}


class Request(NamedTuple):
    """A prompt, and how many answers to draw to it, the first with `seed`, each next with one more.
    """

    prompt: list[int]  # token ids
    seed: int
    num_answers: int


class DrawnAnswer(NamedTuple):
    """One answer: its text without special tokens, "stop" or "length", the ids of its tokens
    without the one that ended it, and its vectors [W, H] (not unit; NaN without a token)."""

    text: str
    finish_reason: str
    token_ids: list[int]
    vectors: Any = None


class Sampler(Protocol):
    """What the stage needs of an engine."""

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[DrawnAnswer]]]:
        """(number of the request, its answers) as they get done; requests are taken as there is
        room for them."""


def check_states(counts: list[int], kept: list[int], means: Any) -> None:
    """InputError where an answer has not as many states as tokens, or a mean that is not finite."""
    for count, number, mean in zip(counts, kept, means, strict=True):
        if count != number:
            raise InputError(f"the engine gave {count} hidden states for an answer of {number} "
                             f"tokens: vectors from sampling would be wrong; use "
                             f"embedding.source=forward")
        if count and not np.isfinite(mean).all():
            raise InputError("model.dtype: an answer's hidden states are NaN or infinite; use "
                             "bfloat16 or float32")


def sampling_windows(source: LocalModel, config: Config) -> list[list[int]]:
    """The windows of layers whose states are averaged while sampling; none with source forward."""
    if config.embedding.source != "sampling":
        return []
    return windows_of(config.embedding, source.described.num_hidden_layers)


def left_unused(folder: Path, settings: GenerationConfig) -> dict[str, Any]:
    """What a model's generation_config.json says of sampling and is not done here.

    transformers' generate would do it where it is not told otherwise: Qwen2.5-7B-Instruct's file
    asks for top-k 20 and a repetition penalty of 1.05.
    """
    path = folder / "generation_config.json"
    asked = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    used = {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p,
            **_NEUTRAL}
    return {name: asked[name] for name, value in used.items()
            if asked.get(name) not in (None, value)}
