"""Chunks of answers in the making: what their records lack, and what a sampler gives them.

Shapes: K answers of a record, W windows of layers, H hidden.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np

from adg.base import process
from adg.config import Config
from adg.prompts import Prompter
from generation.samplers import DrawnAnswer, Request, Sampler

TOO_LONG = "prompt_too_long"  # finish reason of the empty answers to a prompt that leaves no room
_COLUMNS = ("generated_answers", "finish_reasons", "num_tokens")


class Draft:
    """A chunk of answers in the making: its rows, and the requests for those that have no answers.

    `kept` has the row of each record that has its answers already, None for the others; the first
    `num_on_disk` of them stand in the chunk's file. A prompt that leaves no room for max_new_tokens
    (generation.long_prompts) gets K empty answers with the finish reason `prompt_too_long`: its
    record has no vectors, is not scored, and is listed by the select stage. `notes` lists the ids
    of such records, and of cut ones.
    """

    def __init__(self, index: int, records: list[dict], prompter: Prompter, config: Config, *,
                 kept: Sequence[dict | None] | None = None, num_on_disk: int = 0,
                 first_row: int = 0) -> None:
        self.index, self.first_row, self.num_on_disk = index, first_row, num_on_disk
        self.kept = kept or [None] * len(records)
        self._config = config
        self._columns = _COLUMNS + ("token_ids",) * config.generation.keep_token_ids
        self._num_checked = -(-config.embedding.check_answers // config.generation.num_answers)
        self.rows = [{name: record[name] for name in ("id", "instruction", "input", "output")}
                     for record in records]
        self.vectors: dict[int, np.ndarray] = {}  # [K, W, H] by the number of the row
        self.token_ids: dict[int, list[list[int]]] = {}  # of the rows that are to be checked
        self.notes: dict[str, Any] = {"cut_prompts": [], "rejected_prompts": []}
        self.requests: dict[int, Request] = {}  # by the number of the row
        self.num_rejected = 0  # rows that get empty answers now
        for number, record in enumerate(records):
            self._begin(number, record, prompter)

    def _begin(self, number: int, record: dict, prompter: Prompter) -> None:
        ids, how = prompter.fitted(record)
        if how != "whole":
            self.notes["cut_prompts" if how == "cut" else "rejected_prompts"].append(record["id"])
        num_answers = self._config.generation.num_answers
        if (row := self.kept[number]) is not None:
            self.rows[number] |= {name: row[name] for name in self._columns}
        elif how == "too_long":
            self._fill(number, [DrawnAnswer("", TOO_LONG, [])] * num_answers)
            self.num_rejected += 1
        else:
            seed = seed_of(record["id"], self._config.seed)
            self.requests[number] = Request(ids, seed, num_answers)

    def put(self, number: int, answers: list[DrawnAnswer]) -> None:
        """Take the answers to one request."""
        del self.requests[number]
        self._fill(number, answers)

    def _fill(self, number: int, answers: list[DrawnAnswer]) -> None:
        strip = str.strip if self._config.generation.strip_answers else str
        values = {"generated_answers": [strip(answer.text) for answer in answers],
                  "finish_reasons": [answer.finish_reason for answer in answers],
                  "num_tokens": [len(answer.token_ids) for answer in answers],
                  "token_ids": [answer.token_ids for answer in answers]}
        self.rows[number] |= {name: values[name] for name in self._columns}
        if self.is_checked(number):
            self.token_ids[number] = values["token_ids"]
        if all(answer.vectors is not None for answer in answers):
            self.vectors[number] = np.stack([answer.vectors for answer in answers])

    def is_checked(self, number: int) -> bool:
        """Whether a row is among the first of the pool, whose vectors the embed stage checks."""
        return self.first_row + number < self._num_checked


def draw(drafts: Iterator[Draft], sampler: Sampler | None,
         update: Callable[[int], Any] = lambda number: None) -> Iterator[Draft]:
    """Each draft as soon as it is whole; `update` hears how many more records have been answered.

    Drafts that lack nothing need no sampler. The next chunk's requests are handed over while the
    last ones of this are being answered.
    """
    places: dict[int, tuple[Draft, int]] = {}  # of each request that is being answered
    numbers = count()
    empty: list[Draft] = []  # drafts that lack nothing the sampler could give

    def requests() -> Iterator[Request]:
        for draft in drafts:
            update(draft.num_rejected)
            if not draft.requests:
                empty.append(draft)
            for number, request in list(draft.requests.items()):
                places[next(numbers)] = draft, number
                yield request

    for place, answers in sampler.stream(requests()) if sampler else requests():
        process.beat()
        draft, number = places.pop(place)
        draft.put(number, answers)
        update(1)
        if not draft.requests:
            yield draft
        while empty:
            yield empty.pop()
    yield from empty


def seed_of(record_id: str, seed: int) -> int:
    """The seed of a record's first answer, below 2**62: its own whatever else is in the pool."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{record_id}".encode()).digest()[:8]) >> 2
