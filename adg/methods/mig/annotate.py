"""Measure of method mig: tags of each record, its quality and its complexity, by three models.

Tags are those of InsTagger (InsTag, Lu et al. 2023), quality and complexity the expected scores of
DEITA's two scorers (Liu et al. 2024): what they write first is a digit from 1 to 6, and the score
is its expected value over these six. The models do not fit one GPU together, so they come one after
another, each over all of this rank's chunks (adg.measure). The prompts stand in
selection.mig.annotator.
"""

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from adg.base import distributed
from adg.base.errors import InputError
from adg.control_tokens import ControlTokens
from adg.methods.mig.settings import AnnotatorConfig, MigConfig
from adg.prompts import longest_fit
from adg.records import instruction_text

if TYPE_CHECKING:
    from adg.models.loader import Loader

_PLACE = re.compile(r"\{(query|output)\}")
_TAG = re.compile(r'"tag"\s*:\s*("(?:[^"\\]|\\.)*")')
_DIGITS = ("1", "2", "3", "4", "5", "6")


class Reader:
    """A model that is asked one thing about each record, in an engine, with its own prompts."""

    def __init__(self, role: str, prompt: str, num_new_tokens: int, loader: "Loader",
                 settings: AnnotatorConfig) -> None:
        """`role`: tagger, quality_scorer or complexity_scorer in selection.mig.annotator."""
        distributed.claim_gpus(1, "selection.mig.annotator")
        model = loader.local(f"measure.{role}")
        self.tokenizer = model.tokenizer()
        self._control_tokens = ControlTokens(self.tokenizer, loader.control_tokens)
        if settings.max_length > model.max_positions:
            raise InputError(f"selection.mig.annotator.max_length is {settings.max_length}, but "
                             f"the {role} takes {model.max_positions} tokens")
        self._role, self._num_cut = role, 0
        self._prompt, self._room = prompt, settings.max_length - num_new_tokens
        self.engine = loader.engine(settings.engine, model, settings.max_length)

    def prompts(self, records: list[dict]) -> list[list[int]]:
        """The token ids of the prompt about each record, each short enough to be answered.

        What is too long loses the end of the record's output, or of its query in a prompt without
        one or where that is not enough; what the prompt says around them stays.
        """
        return [self._fitted({"query": instruction_text(record), "output": record["output"]})
                for record in records]

    def _fitted(self, values: dict[str, str]) -> list[int]:
        ids = self._ids(values)
        self._num_cut += len(ids) > self._room
        for name in ("output", "query"):
            if len(ids) <= self._room:
                return ids
            values = longest_fit(self._ids, values, name, self._room)
            ids = self._ids(values)
        if len(ids) > self._room:
            raise InputError("selection.mig.annotator.max_length leaves no room for a record "
                             "beside the prompt and what is written to it")
        return ids

    def _ids(self, values: dict[str, str]) -> list[int]:
        if self._control_tokens.are_in(*values.values()):
            return self._control_tokens.ids_around(values, self._text, add_special_tokens=True)
        return self.tokenizer(self._text(values), verbose=False)["input_ids"]

    def _text(self, values: dict[str, str]) -> str:
        return _PLACE.sub(lambda place: values[place[1]], self._prompt)

    def close(self) -> None:
        """Say how many records were cut, and give the model's memory back."""
        if self._num_cut:
            distributed.warn(f"[measure] the {self._role} read {self._num_cut} records cut to "
                             f"selection.mig.annotator.max_length")
        self.engine.close()


class Tagger(Reader):
    """InsTagger: what a record asks for, in tags."""

    def __init__(self, loader: "Loader", settings: AnnotatorConfig) -> None:
        self._max_tokens = settings.max_tag_tokens
        super().__init__("tagger", settings.tagger_prompt, self._max_tokens, loader, settings)

    def measure(self, records: list[dict]) -> list[dict]:
        """A row {"tags"} for each record."""
        written = self.engine.complete(self.prompts(records), self._max_tokens)
        return [{"tags": tags_in(text)} for text in written]


class Scorer(Reader):
    """One of DEITA's scorers, whose expected digits go under `column`, for the only round."""

    def __init__(self, role: str, prompt: str, column: str, loader: "Loader",
                 settings: AnnotatorConfig) -> None:
        super().__init__(role, prompt, 1, loader, settings)
        self._column, self._digits = column, digit_tokens(self.tokenizer, role)

    def measure(self, records: list[dict]) -> list[dict]:
        """A row {column: [score from 1 to 6]} for each record."""
        shares = self.engine.probabilities(self.prompts(records), self._digits)           # [B, 6]
        return [{self._column: [score]} for score in (shares @ np.arange(1.0, 7.0)).tolist()]


def load_tagger(loader: "Loader", settings: MigConfig) -> Tagger:
    """The measurer of tags."""
    return Tagger(loader, settings.annotator)


def load_quality(loader: "Loader", settings: MigConfig) -> Scorer:
    """The measurer of quality_scores."""
    return Scorer("quality_scorer", settings.annotator.quality_prompt, "quality_scores", loader,
                  settings.annotator)


def load_complexity(loader: "Loader", settings: MigConfig) -> Scorer:
    """The measurer of complexity_scores."""
    return Scorer("complexity_scorer", settings.annotator.complexity_prompt, "complexity_scores",
                  loader, settings.annotator)


def tags_in(text: str) -> list[str]:
    """The tags in what InsTagger wrote, in order: the values under "tag", whether or not the JSON
    around them is whole."""
    tags = []
    for quoted in _TAG.findall(text):
        try:
            tag = json.loads(quoted, strict=False).strip()
        except ValueError:  # an escape that JSON does not know
            tag = quoted[1:-1].strip()
        if tag:
            tags.append(tag.encode("utf-8", "replace").decode())  # no half of a surrogate pair
    return tags


def digit_tokens(tokenizer: Any, role: str) -> list[int]:
    """The ids of the tokens 1 to 6; InputError where a digit is not a token of its own."""
    ids = [tokenizer.convert_tokens_to_ids(digit) for digit in _DIGITS]
    if None in ids or tokenizer.unk_token_id in ids:
        raise InputError(f"selection.mig.annotator.{role}: the digits 1 to 6 are not tokens of "
                         f"its tokenizer: not a scorer of DEITA's kind")
    return ids
