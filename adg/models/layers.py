"""The layers of a decoder, and the windows of them whose outputs are averaged."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from adg.base.errors import InputError


class Windows(Protocol):
    """Which windows of layers are wanted, as section embedding has them."""

    layers: list[int]
    windows: dict[str, list[int]]  # further ones by name


def windows_of(settings: Windows, num_layers: int) -> list[list[int]]:
    """Layers counted from 0, ascending, of embedding.layers and then of each further window.

    Raises InputError where the model does not have a layer.
    """
    return [window_layers(settings.layers, num_layers), *(
        window_layers(layers, num_layers, f"embedding.windows.{name}")
        for name, layers in settings.windows.items())]


def window_layers(layers: list[int], num_layers: int, key: str = "embedding.layers") -> list[int]:
    """A window's layers counted from 0, ascending; negative ones count from the end.

    Raises InputError where the model does not have a layer.
    """
    for layer in layers:
        if not -num_layers <= layer < num_layers:
            raise InputError(f"{key}: no layer {layer}: the model has {num_layers} layers")
    return sorted({layer % num_layers for layer in layers})


def decoder_layers(model: Any) -> Any:
    """The list of a transformer's layers, as the model runs through it."""
    from torch.nn import ModuleList

    num_layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, ModuleList) and len(module) == num_layers:
            return module
    raise InputError(f"model.name_or_path: {type(model).__name__} has no list of {num_layers} "
                     f"layers to take hidden states from")


def watch(stack: Any, layers: Iterable[int], see: Callable[[int, Any], None]) -> None:
    """Have see(layer, its output states) called whenever one of `layers` has run."""
    def on_output(index: int, layer: Any, inputs: Any, output: Any) -> None:
        see(index, output[0] if isinstance(output, tuple) else output)

    for index in layers:
        stack[index].register_forward_hook(partial(on_output, index))
