"""Ids of a pool whose records bring none of their own.

Such an id is the record's position, which shifts when a record before it is removed or inserted,
while answers and vectors are kept by id. So a record whose instruction and input stand in the
pool.jsonl that a run folder already has keeps the id that it has there.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adg.base import artifacts
from adg.base.errors import InputError

_STEP = np.uint64(0x9E3779B97F4A7C15)  # between the keys of records of the same text


class Kept(NamedTuple):
    """What became of the ids of a pool."""

    records: int  # that keep the id that they had
    changed: dict[str, str]  # {position: id} of the records whose id is not their position


def keep_ids(pool: Path, previous: Path) -> Kept:
    """Give the records of `pool`, whose ids are positions, the ids that they have in `previous`.

    Records of the same text are matched in the order in which they stand. Any other record keeps
    its position for an id, or where that is taken, gets the next number after the largest.
    """
    previous_ids, previous_keys = _ids_and_keys(_readable(previous))
    positions, keys = _ids_and_keys(artifacts.JsonlRows(pool))
    _, rows, previous_rows = np.intersect1d(keys, previous_keys, return_indices=True)
    kept = {}  # {id: position}; a file edited by hand may have an id twice
    for row, previous_row in zip(rows.tolist(), previous_rows.tolist(), strict=True):
        kept.setdefault(previous_ids[previous_row], positions[row])
    changed = {position: id for id, position in kept.items() if id != position}
    largest = max(int(id) for id in (positions[-1], *previous_ids) if _is_number(id))
    staying = set(kept.values())
    for position in positions:
        if position in kept and position not in staying:
            largest += 1
            changed[position] = str(largest)
    if changed:
        _rewrite(pool, changed)
    return Kept(len(kept), changed)


def _is_number(id: str) -> bool:
    return id.isascii() and id.isdecimal() and len(id) < 19


def _ids_and_keys(records: Iterable[dict]) -> tuple[list[str], np.ndarray]:
    """(ids, uint64 [N]): a hash of each record's instruction, input and how often these occurred.
    """
    ids, keys = [], array("Q")
    for record in records:
        text = f"{record['instruction']}\0{record['input']}"
        keys.append(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()))
        ids.append(record["id"])
    hashes = np.array(keys, np.uint64)
    order = np.argsort(hashes, kind="stable")
    ranks = np.arange(len(hashes)) - np.searchsorted(hashes[order], hashes[order])
    hashes[order] += ranks.astype(np.uint64) * _STEP
    return ids, hashes


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
