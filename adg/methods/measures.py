"""What stage measure wrote of each record: rows in pool order, and vectors of some methods."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from adg.base import arrays, artifacts
from adg.base.errors import InputError
from adg.config import Config
from adg.records import Pool

_BLOCK = 1 << 13  # vectors that are read at once
VECTOR = "vector"  # key of what a measurer finds out that is kept as an array, a row of [H] each


def folder_of(run: Path, config: Config) -> Path:
    """The folder of the configured measure."""
    return run / "measures" / config.selection.measure


class Measures(artifacts.JsonlRows):
    """The rows of measures/NAME/, each checked against its record of the pool."""

    def __init__(self, run: Path, pool: Pool, config: Config) -> None:
        self.folder = folder_of(run, config)
        super().__init__(self.folder)
        self._pool = pool
        if len(self) != len(pool):
            raise InputError(f"{self.folder}/ holds {len(self)} rows, but pool.jsonl has "
                             f"{len(pool)} records: it belongs to another pool, or a chunk is "
                             f"missing")

    def checked(self, *names: str) -> Iterator[tuple[dict, str]]:
        """(row, where it stands) of each record in pool order; InputError where a row is another
        record's, or lacks one of `names`."""
        for record, (row, where) in zip(self._pool, self.numbered(range(len(self))), strict=True):
            if row.get("id") != record["id"]:
                raise InputError(f"{where}: id is {row.get('id')!r}, but {record['id']!r} in that "
                                 f"row of pool.jsonl: this is the measure of another pool")
            for name in names:
                if name not in row:
                    raise InputError(f"{where}: {name} is not there: this is the measure of "
                                     f"another method, or mend the row")
            yield row, where

    def columns(self, *names: str) -> list[list[Any]]:
        """The values [N] of each of `names`, in pool order; InputError where a row lacks one."""
        rows = [[row[name] for name in names] for row, _ in self.checked(*names)]
        return [list(values) for values in zip(*rows, strict=True)]

    def numbers(self, *names: str) -> list[np.ndarray]:
        """Columns of numbers, float64 [N] each; NaN where there is none."""
        return [np.array(values, dtype=np.float64) for values in self.columns(*names)]

    def vectors(self, rows: np.ndarray | None = None) -> np.ndarray:
        """The vectors of some records, or of all, float32 [n, H]."""
        blocks = arrays.array_blocks(self.folder, len(self), row_dims=1, block_size=_BLOCK)
        if rows is None:
            return np.concatenate([arrays.read_block(block) for block in blocks])
        found, start = [], 0
        for block in blocks:
            own = arrays.read_block(block)
            here = np.flatnonzero((rows >= start) & (rows < start + len(own)))
            found.append((here, own[rows[here] - start]))
            start += len(own)
        order = np.concatenate([here for here, _ in found])
        return np.concatenate([own for _, own in found])[np.argsort(order)]
