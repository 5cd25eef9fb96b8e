"""Ids of a pool whose records bring none of their own.

Such an id is the record's position, which shifts when a record before it is removed or inserted,
while answers and vectors are kept by id. So a record whose instruction and input stand in the
pool.jsonl that a run folder already has keeps the id that it has there.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from adg.base import artifacts
from adg.base.errors import InputError


class Kept(NamedTuple):
    """What became of the ids of a pool."""

    records: int  # that keep the id that they had
    changed: dict[str, str]  # {position: id} of the records whose id is not their position


def keep_ids(pool: Path, previous: Path) -> Kept:
    """Give the records of `pool`, whose ids are positions, the ids that they have in `previous`.

    Records of the same text are matched in the order in which they stand. Any other record keeps
    its position for an id, or where that is taken, gets the next number after the largest.
    """
    previous_ids = _ids_by_text(previous)
    rows, taken, texts = [], set(), _Texts()  # rows: (position, the id that is kept or None)
    for record in artifacts.JsonlRows(pool):
        id = previous_ids.get(texts.key(record))
        rows.append((record["id"], None if id in taken else id))
        taken.add(id)
    largest = max((int(id) for id in previous_ids.values() if id.isascii() and id.isdecimal()),
                  default=0)
    largest, changed = max(largest, int(rows[-1][0])), {}
    for position, id in rows:
        if id is None and position in taken:
            largest += 1
            id = str(largest)
        if id not in (None, position):
            changed[position] = id
    if changed:
        _rewrite(pool, changed)
    return Kept(sum(id is not None for _, id in rows), changed)


class _Texts:
    """Keys of records by instruction and input; those of the same text are numbered."""

    def __init__(self) -> None:
        self._counts: Counter[bytes] = Counter()

    def key(self, record: dict) -> bytes:
        """12 bytes for the text, and 4 for how often it has occurred."""
        text = f"{record['instruction']}\0{record['input']}"
        digest = hashlib.blake2b(text.encode(), digest_size=12).digest()
        self._counts[digest] += 1
        return digest + self._counts[digest].to_bytes(4)


def _ids_by_text(pool: Path) -> dict[bytes, str]:
    texts = _Texts()
    return {texts.key(record): record["id"] for record in _readable(pool)}


def _readable(pool: Path) -> Iterator[dict]:
    """The records of a pool.jsonl, without lines that an edit by hand has broken."""
    with pool.open("rb") as file:
        for line in file:
            try:
                record = artifacts.parse_record(line, str(pool))
            except InputError:
                continue
            if all(isinstance(record.get(name), str) for name in ("id", "instruction", "input")):
                yield record


def _rewrite(pool: Path, changed: dict[str, str]) -> None:
    """Replace ids in a pool.jsonl, whose lines begin with them."""
    with artifacts.written_aside(pool) as aside, pool.open("rb") as old, aside.open("wb") as new:
        for line in old:
            head, comma, rest = line.partition(b",")
            position = head.decode().split('"')[3]
            id = artifacts.to_line(changed.get(position, position))
            new.write(f'{{"id": {id}'.encode() + comma + rest)
