"""What IFD and SuperFiltering measure: the loss of a record's output with and without a prompt."""

import math
from collections.abc import Callable
from typing import NamedTuple

from adg.config import Config
from adg.methods.measures import VECTOR
from adg.models.causal import CausalModel, Text, load_model
from adg.models.encoder import TextEncoder, load_encoder
from adg.prompts import ALPACA, ALPACA_WITH_INPUT, fill

HEADER = "### Response:"
_WIZ = ("{instruction}\nInput:{input}\n\n" + HEADER, "{instruction}\n\n" + HEADER)
TEMPLATES = {"alpaca": (ALPACA_WITH_INPUT, ALPACA), "wiz": _WIZ}  # (with input, without)
_SHORT = ("{instruction}\n{input}\n", "{instruction}\n")  # SuperFiltering's


class Pair(NamedTuple):
    """A record's output after its prompt, and by itself."""

    given: Text
    direct: Text
    room: int  # tokens that the prompt leaves for the output


def load_ifd(config: Config) -> "LossMeasurer":
    """The measurer of method ifd."""
    settings = config.selection.ifd
    model = load_model(config, settings.dtype or config.model.dtype, settings.max_length,
                       "selection.ifd.max_length")
    return LossMeasurer(model, lambda records: ifd_pairs(
        records, model, prompt=settings.prompt, limit=settings.max_length, recipe=settings.recipe))


def load_superfiltering(config: Config) -> "LossMeasurer":
    """The measurer of methods superfiltering and, with vectors, superfiltering_d."""
    settings = config.selection.superfiltering
    model = load_model(config, settings.dtype, settings.max_length,
                       "selection.superfiltering.max_length")
    encoder = load_encoder(config) if config.selection.method == "superfiltering_d" else None
    return LossMeasurer(model, lambda records: superfiltering_pairs(
        records, model, limit=settings.max_length), encoder)


def load_pre_experience(config: Config) -> "PromptMeasurer":
    """The measurer of method pre_experience."""
    settings = config.selection.pre_experience
    model = load_model(config, settings.dtype or config.model.dtype, settings.max_length,
                       "selection.pre_experience.max_length", vectors=True)
    return PromptMeasurer(model, settings.prompt, settings.max_length)


class LossMeasurer:
    """Records to the mean losses of their outputs with and without a prompt, in nats a token."""

    def __init__(self, model: CausalModel, pairs: Callable[[list[dict]], list[Pair]],
                 encoder: TextEncoder | None = None) -> None:
        self._model, self._pairs, self._encoder = model, pairs, encoder

    def measure(self, records: list[dict]) -> list[dict]:
        """A row for each record; a loss is None where no token is scored."""
        pairs = self._pairs(records)
        losses = self._model.losses([text for pair in pairs for text in (pair.given, pair.direct)])
        rows = [{"given_loss": given, "direct_loss": direct, "room": pair.room,
                 "given_tokens": pair.given.num_scored(), "direct_tokens": pair.direct.num_scored()}
                for pair, given, direct in zip(pairs, losses[::2], losses[1::2], strict=True)]
        if self._encoder is not None:
            for row, vector in zip(rows, self._encoder.encode(records), strict=True):
                row[VECTOR] = vector
        return rows


class PromptMeasurer:
    """Records to the perplexity and the mean vector of their filled-in template, without output."""

    def __init__(self, model: CausalModel, prompt: str, limit: int) -> None:
        self._model, self._prompt, self._limit = model, prompt, limit

    def measure(self, records: list[dict]) -> list[dict]:
        """A row for each record."""
        prompts = _filled(TEMPLATES[self._prompt], records)
        texts = [Text(ids) for ids in self._model.ids(prompts, [self._limit] * len(prompts))]
        return [{"perplexity": math.exp(own.loss), VECTOR: own.vector}
                for own in self._model.read(texts)]


def ifd_pairs(records: list[dict], model: CausalModel, *, prompt: str, limit: int,
              recipe: str) -> list[Pair]:
    """IFD's texts: template and output, and the template's last line and output.

    Both keep what stands in the first `limit` tokens of the first (recipe intended). The release
    gives the second four tokens for that last line, whatever it takes.
    """
    prompts = _filled(TEMPLATES[prompt], records)
    header = len(model.ids([HEADER])[0])
    allowed = {"intended": header, "released": 4}[recipe]
    return _pairs(records, model, prompts, HEADER, header, limit, allowed)


def superfiltering_pairs(records: list[dict], model: CausalModel, *, limit: int) -> list[Pair]:
    """SuperFiltering's texts: instruction, input and output a line each, and the output alone."""
    return _pairs(records, model, _filled(_SHORT, records), "", 1, limit, 1)


def _filled(templates: tuple[str, str], records: list[dict]) -> list[str]:
    with_input, without = templates
    return [fill(with_input if record["input"] else without, record) for record in records]


def _pairs(records: list[dict], model: CausalModel, prompts: list[str], header: str, start: int,
           limit: int, allowed: int) -> list[Pair]:
    """`start` is the first token that is scored after `header`, `allowed` what it may take."""
    outputs = [record["output"] for record in records]
    starts = [len(ids) for ids in model.ids(prompts)]
    rooms = [max(0, limit - own) for own in starts]
    given = model.ids([a + b for a, b in zip(prompts, outputs, strict=True)], [limit] * len(rooms))
    direct = model.ids([header + output for output in outputs], [room + allowed for room in rooms])
    return [Pair(Text(own, first), Text(alone, start), room)
            for own, first, alone, room in zip(given, starts, direct, rooms, strict=True)]
