"""Hidden states to vectors: token weights, window of layers, masked mean (paper, step 2).

Shapes: S rows of a batch, K texts of a row, T tokens, H hidden.
"""

import re
from collections.abc import Callable
from typing import Any

from adg.errors import InputError

# The weight of a token

_FILLER = re.compile(r"""[\s,.;:!?()\[\]{}"'`~\-_/\\]+""")
_FIGURE = re.compile(r"[\d%℃°]")
_FIGURE_WEIGHT = 1.2998046875  # 1.3 in half precision, in which the release holds its weights


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
    return _FIGURE_WEIGHT if _FIGURE.search(text) else 1.0


def uniform_weights(tokenizer: Any) -> None:
    """No table: every pooled token counts the same."""


TOKEN_WEIGHTS = {"uniform": uniform_weights, "content": content_weights}


# The window of layers


def window_layers(layers: list[int], num_layers: int) -> list[int]:
    """The window's layers counted from 0, ascending (given negative: from the end).

    Raises InputError where the model has no such layer.
    """
    for layer in layers:
        if not -num_layers <= layer < num_layers:
            raise InputError(f"embedding.layers: there is no layer {layer}: "
                             f"the model has {num_layers}")
    return sorted({layer % num_layers for layer in layers})


class LayerWindow:
    """Pools the window's layers as a model computes them; the layers after it are removed.

    A layer counts with its output, the last one with the model's, after the final norm: these are
    entries of transformers' hidden_states. Nothing of a layer is kept but its mean over tokens.
    """

    def __init__(self, model: Any, layers: list[int]) -> None:
        stack = decoder_layers(model)
        wanted = window_layers(layers, len(stack))
        self._num_layers, self._to_the_end = len(wanted), wanted[-1] == len(stack) - 1
        for index in wanted[: -1 if self._to_the_end else None]:
            stack[index].register_forward_hook(self._on_layer)
        del stack[wanted[-1] + 1:]
        self._weights = self._sum = None

    def _on_layer(self, layer: Any, inputs: Any, output: Any) -> None:
        self._add(output[0] if isinstance(output, tuple) else output)

    def _add(self, states: Any) -> None:
        """Add the weighted sum over tokens, [S, K, T] x [S, T, H], in float32."""
        added = self._weights.to(states.device) @ states.float()                       # [S, K, H]
        self._sum = added if self._sum is None else self._sum.to(states.device) + added

    def mean(self, run: Callable[[], Any], weights: Any) -> Any:
        """Mean over window and weighted tokens [S, K, T] of what `run` has the model read.

        Returns [S, K, H] float32; NaN for a text without weight.
        """
        self._weights, self._sum = weights, None
        output = run()
        if self._to_the_end:
            self._add(output.last_hidden_state)
        total = weights.sum(2, keepdim=True).to(self._sum.device) * self._num_layers    # [S, K, 1]
        return self._sum / total


def decoder_layers(model: Any) -> Any:
    """The list of a transformer's layers, as the model runs through it."""
    from torch.nn import ModuleList

    num_layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, ModuleList) and len(module) == num_layers:
            return module
    raise InputError(f"model.name_or_path: {type(model).__name__} has no list of {num_layers} "
                     f"layers to take hidden states from")
