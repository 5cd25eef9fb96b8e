"""The loss of a record's output with and without a prompt, of which several methods make IFD."""

from collections.abc import Callable
from typing import NamedTuple

from adg.methods.method import VECTOR
from adg.models.causal import CausalModel, Text
from adg.models.encoder import TextEncoder
from adg.prompts import ALPACA, ALPACA_WITH_INPUT, fill

HEADER = "### Response:"
_WIZ = ("{instruction}\nInput:{input}\n\n" + HEADER, "{instruction}\n\n" + HEADER)
TEMPLATES = {"alpaca": (ALPACA_WITH_INPUT, ALPACA), "wiz": _WIZ}  # (with input, without)
PROMPT = "template around a record: alpaca, or wiz (Vicuna's short form)"  # of these


class Pair(NamedTuple):
    """A record's output after its prompt, and by itself."""

    given: Text
    direct: Text
    room: int  # tokens that the prompt leaves for the output


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


def filled(templates: tuple[str, str], records: list[dict]) -> list[str]:
    """The template of each record, filled in."""
    with_input, without = templates
    return [fill(with_input if record["input"] else without, record) for record in records]


def pairs_of(records: list[dict], model: CausalModel, prompts: list[str], *, header: str,
             start: int, limit: int, allowed: int) -> list[Pair]:
    """Each prompt with the record's output, cut to `limit` tokens, and `header` with the output.

    `start` is the first token that is scored after `header`, `allowed` what it may take beside the
    room that the prompt leaves.
    """
    outputs = [record["output"] for record in records]
    starts = [len(ids) for ids in model.ids(prompts)]
    rooms = [max(0, limit - length) for length in starts]
    given = model.ids([a + b for a, b in zip(prompts, outputs, strict=True)], [limit] * len(rooms))
    direct = model.ids([header + output for output in outputs], [room + allowed for room in rooms])
    return [Pair(Text(after_prompt, first), Text(alone, start), room)
            for after_prompt, first, alone, room in zip(given, starts, direct, rooms, strict=True)]
