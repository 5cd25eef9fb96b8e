"""What a sampler is asked for, what it gives, and what must hold of an answer's hidden states.

With embedding.source=sampling an answer carries its vectors, averaged over the hidden states that
drawing it computes anyway. A token's state exists once the token is fed to the model, so a token
more is drawn than is kept.

Shapes: W windows of layers, H hidden.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adg.base.errors import InputError
from adg.config import Config
from adg.models import folders
from adg.models.layers import windows_of


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


def sampling_windows(folder: Path, config: Config) -> list[list[int]]:
    """The windows of layers whose states are averaged while sampling; none with source forward."""
    if config.embedding.source != "sampling":
        return []
    described = folders.describe(folder, trust_remote_code=config.model.trust_remote_code)
    return windows_of(config.embedding, described.num_hidden_layers)
