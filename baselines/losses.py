"""What IFD and SuperFiltering measure: the loss of a record's output with and without a prompt.

Shapes: N records, S texts of a batch, T tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

from adg.config import Config
from adg.prompts import ALPACA, ALPACA_WITH_INPUT, fill
from baselines.causal import CausalModel, Text, load_model

HEADER = "### Response:"
_WIZ = ("{instruction}\nInput:{input}\n\n" + HEADER, "{instruction}\n\n" + HEADER)
TEMPLATES = {"alpaca": (ALPACA_WITH_INPUT, ALPACA), "wiz": _WIZ}  # (with input, without)


class Pair(NamedTuple):
    """A record's output after its prompt, and by itself."""

    given: Text
    direct: Text
    room: int  # tokens that the prompt leaves for the output


def load_ifd(config: Config) -> "LossMeasurer":
    """The measurer of method ifd."""
    settings = config.selection.ifd
    model = load_model("measure.model", config, config.model.dtype, settings.max_length,
                       "selection.ifd.max_length")

    def pairs(records: list[dict]) -> list[Pair]:
        return ifd_pairs(records, model, prompt=settings.prompt, limit=settings.max_length,
                         recipe=settings.recipe)

    return LossMeasurer(model, pairs)


class LossMeasurer:
    """Records to the mean losses of their outputs with and without a prompt, in nats a token."""

    def __init__(self, model: CausalModel, pairs: Callable[[list[dict]], list[Pair]]) -> None:
        self._model, self._pairs = model, pairs

    def measure(self, records: list[dict]) -> list[dict]:
        """A row for each record; a loss is None where no token is scored."""
        pairs = self._pairs(records)
        losses = self._model.losses([text for pair in pairs for text in (pair.given, pair.direct)])
        return [{"given_loss": given, "direct_loss": direct, "room": pair.room,
                 "given_tokens": pair.given.num_scored(), "direct_tokens": pair.direct.num_scored()}
                for pair, given, direct in zip(pairs, losses[::2], losses[1::2], strict=True)]


def ifd_pairs(records: list[dict], model: CausalModel, *, prompt: str, limit: int,
              recipe: str) -> list[Pair]:
    """IFD's texts: template and output, and the template's last line and output.

    Both keep what stands in the first `limit` tokens of the first (recipe intended). The release
    gives the second four tokens for that last line, whatever it takes.
    """
    with_input, without = TEMPLATES[prompt]
    prompts = [fill(with_input if record["input"] else without, record) for record in records]
    outputs = [record["output"] for record in records]
    starts = [len(ids) for ids in model.ids(prompts)]
    header = len(model.ids([HEADER])[0])
    rooms = [max(0, limit - start) for start in starts]
    allowed = {"intended": header, "released": 4}[recipe]
    given = model.ids([a + b for a, b in zip(prompts, outputs, strict=True)], [limit] * len(rooms))
    direct = model.ids([HEADER + output for output in outputs], [room + allowed for room in rooms])
    return [Pair(Text(own, start), Text(alone, header), room)
            for own, start, alone, room in zip(given, starts, direct, rooms, strict=True)]
