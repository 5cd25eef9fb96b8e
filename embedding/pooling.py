"""Hidden states to vectors: token weights, windows of layers, masked mean (paper, step 2).

Shapes: S rows of a batch, K texts of a row, T tokens, W windows, H hidden.
"""

import re
from collections.abc import Callable
from typing import Any

from adg.models.layers import decoder_layers, watch

# The weight of a token

_FILLER = re.compile(r"""[\s,.;:!?()\[\]{}"'`~\-_/\\]+""")
_DIGIT = re.compile(r"[\d%℃°]")
_DIGIT_WEIGHT = 1.2998046875  # 1.3 in half precision, in which the release holds its weights


def content_weights(tokenizer: Any) -> list[float]:
    """The release's weights, one for each id of the vocabulary.

    0 where the token's text is blank or punctuation, 1.3 where it holds a digit, % or a degree
    sign, else 1 (as for a token that is part of a character).
    """
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return [_content_weight(text.strip()) for text in texts]


def _content_weight(text: str) -> float:
    if not text or _FILLER.fullmatch(text):
        return 0.0
    return _DIGIT_WEIGHT if _DIGIT.search(text) else 1.0


def uniform_weights(tokenizer: Any) -> None:
    """No table: every pooled token counts the same."""


TOKEN_WEIGHTS = {"uniform": uniform_weights, "content": content_weights}


# The windows of layers


class LayerWindows:
    """Pools windows of layers as a model computes them; the layers after the last are removed.

    A layer counts with its output, the last one with the model's, after the final norm: these are
    entries of transformers' hidden_states. Nothing of a layer is kept but its mean over tokens.
    """

    def __init__(self, model: Any, windows: list[list[int]]) -> None:
        """Windows hold layers counted from 0, ascending."""
        stack = decoder_layers(model)
        highest = max(window[-1] for window in windows)
        self._windows = windows
        self._to_the_end = highest == len(stack) - 1
        self._last = len(stack) - 1
        watch(stack, set().union(*windows) - {self._last}, self._add)
        del stack[highest + 1:]
        self._weights: Any = None
        self._sums: list[Any] = []

    def _add(self, index: int, states: Any) -> None:
        """Add the weighted sum over tokens, [S, K, T] x [S, T, H], in float32."""
        added = self._weights.to(states.device) @ states.float()                       # [S, K, H]
        for number, window in enumerate(self._windows):
            if index in window:
                total = self._sums[number]
                self._sums[number] = added if total is None else total.to(states.device) + added

    def mean(self, run: Callable[[], Any], weights: Any) -> Any:
        """Means over windows and weighted tokens [S, K, T] of what `run` has the model read.

        Returns [S, K, W, H] float32; NaN for a text without weight.
        """
        import torch

        self._weights, self._sums = weights, [None] * len(self._windows)
        output = run()
        if self._to_the_end:
            self._add(self._last, output.last_hidden_state)
        device = self._sums[0].device
        weight = weights.sum(2, keepdim=True).to(device)                               # [S, K, 1]
        return torch.stack([total.to(device) / (weight * len(window)) for total, window in
                            zip(self._sums, self._windows, strict=True)], dim=2)
