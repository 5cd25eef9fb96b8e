"""A run folder's earlier/: answers and vectors of records, as the pool held them before.

Answers depend on a record's id and prompt, the model and the parameters, vectors on these and the
answers; not on what else is in the pool, nor in which order. Where pool.jsonl changes otherwise
than by records added at its end, `sample` sets aside each chunk of answers/ that no longer has the
pool's records in the pool's order, with its vectors. Whatever lacks those of a record looks here
first. Once all is in place again, `embed` removes the chunks whose records are all in the pool.

earlier/keys/N.npy                    uint64 [n], a hash of each record's id, instruction and input
earlier/answers/N.jsonl               a chunk of answers/
earlier/instruction_embeddings/N.npy  its vectors, under the names that they have in the run folder;
earlier/answer_grams/N.npy            likewise window_grams/ and answer_embeddings/
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adg import answer_vectors
from adg.base import arrays, artifacts
from adg.config import Config
from adg.records import Pool

FOLDER = "earlier"
INSTRUCTIONS = "instruction_embeddings"
_VECTORS = (INSTRUCTIONS, "answer_grams", "answer_embeddings", "window_grams/*")
_PROMPT = ("id", "instruction", "input")  # what answers depend on
_OPEN = 32  # files of each kind that are held open, at most


def unfit_chunks(folder: Path, pool: Pool, chunk_size: int) -> list[int]:
    """The chunks of answers/ that do not hold the pool's records in the pool's order."""
    unfit = []
    for index in _numbers(folder):
        rows = artifacts.JsonlRows(_answers_path(folder, index))
        start = index * chunk_size
        records = pool.rows(range(start, start + len(rows)))
        if len(rows) > min(len(records), chunk_size) or any(
                row.get(name) != record[name] for row, record in zip(rows, records, strict=True)
                for name in (*_PROMPT, "output")):
            unfit.append(index)
    return unfit


def set_aside(folder: Path, chunks: Sequence[int]) -> None:
    """Move chunks of answers/ and their vectors to earlier/, where each gets a number of its own.

    The answers go last. One that was killed on its way is moved by the next call, and only loses
    vectors that had gone ahead of their answers.
    """
    aside = folder / FOLDER
    for index in chunks:
        number = max(_numbers(aside), default=-1) + 1
        for left in aside.rglob(artifacts.chunk_name(number, "npy")):
            left.unlink()
        rows = artifacts.JsonlRows(_answers_path(folder, index))
        arrays.write_array(_keys_path(aside, number), _keys_of(rows))
        vectors = [path for name in _VECTORS
                   for path in folder.glob(f"{name}/{artifacts.chunk_name(index, 'npy')}")]
        for path in vectors:
            _move(path, (aside / path.relative_to(folder)).with_stem(f"{number:05d}"))
        for name, suffix in (("provenance/sample.counts", "json"),
                             ("provenance/embed.counts", "json"),
                             (answer_vectors.CHECK_FOLDER, "jsonl")):
            (folder / name / artifacts.chunk_name(index, suffix)).unlink(missing_ok=True)
        _move(_answers_path(folder, index), _answers_path(aside, number))


def prune(folder: Path, pool: Pool) -> None:
    """Remove the chunks of earlier/ whose records are all in the pool: they are in place."""
    aside = folder / FOLDER
    if not (numbers := _numbers(aside)):
        return
    present = _keys_of(pool)
    for number in numbers:
        if np.isin(arrays.read_array(_keys_path(aside, number)), present).all():
            _answers_path(aside, number).unlink()
            for path in aside.rglob(artifacts.chunk_name(number, "npy")):
                path.unlink()


class Match(NamedTuple):
    """A record's row among the earlier answers, and where it stands."""

    row: dict
    root: Path  # the folder that holds answers/ and the vectors
    index: int  # of its chunk
    line: int  # in the chunk, from 0


class Earlier:
    """What earlier/ holds of a record.

    `unmoved`: chunks of the run folder itself that are about to be set aside, for a dry run.
    """

    def __init__(self, folder: Path, unmoved: Sequence[int] = ()) -> None:
        aside = folder / FOLDER
        self._places = ([(aside, number) for number in _numbers(aside)]
                        + [(folder, index) for index in unmoved])
        keys = [arrays.read_array(_keys_path(*place)) if place[0] == aside
                else _keys_of(artifacts.JsonlRows(_answers_path(*place))) for place in self._places]
        self._starts = [0, *accumulate(map(len, keys))]
        together = np.concatenate([np.empty(0, np.uint64), *keys])
        self._order = np.argsort(together, kind="stable")
        self._keys = together[self._order]
        self._rows = lru_cache(_OPEN)(artifacts.JsonlRows)
        self._array = lru_cache(_OPEN)(arrays.read_array)

    def find(self, record: dict) -> Iterator[Match]:
        """Every row of this very prompt, the one that was set aside last first."""
        if not len(self._keys):
            return
        key = _key(record)
        first, after = (int(np.searchsorted(self._keys, key, side)) for side in ("left", "right"))
        for position in sorted(self._order[first:after].tolist(), reverse=True):
            number = int(np.searchsorted(self._starts, position, "right")) - 1
            root, index = self._places[number]
            line = position - self._starts[number]
            row, _ = self._rows(_answers_path(root, index)).row(line)
            if all(row.get(name) == record[name] for name in _PROMPT):
                yield Match(row, root, index, line)

    def row(self, record: dict, num_answers: int) -> dict | None:
        """The row of answers/ with so many answers to a record's prompt."""
        return next((match.row for match in self.find(record)
                     if len(match.row["generated_answers"]) == num_answers), None)

    def instruction(self, record: dict) -> np.ndarray | None:
        """The vector [H] of a record's instruction."""
        return next((vector for match in self.find(record)
                     if (vector := self._vector(match, INSTRUCTIONS)) is not None), None)

    def vectors(self, row: dict, config: Config) -> dict[str, np.ndarray] | None:
        """{folder's name: row} of the vectors of the answers in a row of answers/."""
        for match in self.find(row):
            if all(match.row.get(name) == row.get(name)
                   for name in ("generated_answers", "token_ids")):
                vectors = {name: self._vector(match, name)
                           for name in answer_vectors.chunk_paths(match.root, match.index,
                                                                  config.embedding)}
                if all(values is not None and len(values) == config.generation.num_answers
                       for values in vectors.values()):
                    return vectors
        return None

    def _vector(self, match: Match, name: str) -> np.ndarray | None:
        path = match.root / name / artifacts.chunk_name(match.index, "npy")
        if not path.is_file():
            return None
        values = self._array(path)
        return values[match.line] if match.line < len(values) else None


def _numbers(root: Path) -> list[int]:
    """The chunks of answers/ in a folder."""
    return sorted(int(path.stem) for path in (root / "answers").glob("*.jsonl")
                  if path.stem.isdecimal())


def _answers_path(root: Path, index: int) -> Path:
    return root / "answers" / artifacts.chunk_name(index, "jsonl")


def _keys_path(root: Path, index: int) -> Path:
    return root / "keys" / artifacts.chunk_name(index, "npy")


def _keys_of(rows: artifacts.JsonlRows) -> np.ndarray:
    return np.fromiter(map(_key, rows), np.uint64, len(rows))


def _key(record: dict) -> int:
    text = "\0".join(record[name] for name in _PROMPT)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _move(path: Path, target: Path) -> None:
    """Rename a file into a folder that may not exist yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)
    artifacts.flush(target.parent)
    artifacts.flush(path.parent)
