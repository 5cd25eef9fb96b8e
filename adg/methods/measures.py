"""What stage measure wrote of each record: rows in pool order, and vectors of some methods.

Shapes: N records of the pool, n of them, H dimensions of a vector.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from adg.base import arrays, artifacts
from adg.base.errors import InputError
from adg.records import Pool

_BLOCK = 1 << 13  # vectors that are read at once


class Measures(artifacts.JsonlRows):
    """The rows of measures/NAME/, each checked against its record of the pool, and vectors."""

    def __init__(self, folder: Path, pool: Pool) -> None:
        self.folder = folder
        super().__init__(folder)
        self._pool = pool
        if len(self) != len(pool):
            raise InputError(f"{folder}/ holds {len(self)} rows, but pool.jsonl has {len(pool)} "
                             f"records: it belongs to another pool, or a chunk is missing")

    def checked(self, *names: str) -> Iterator[tuple[dict, str]]:
        """(row, where it stands) of each record in pool order; InputError where a row is another
        record's, or lacks one of `names`."""
        for record, (row, where) in zip(self._pool, self.numbered(range(len(self))), strict=True):
            if row.get("id") != record["id"]:
                raise InputError(f"{where}: id is {row.get('id')!r}, but {record['id']!r} in that "
                                 f"row of pool.jsonl: this is the measure of another pool")
            for name in names:
                if name not in row:
                    raise InputError(f"{where}: {name} is missing: this is the measure of "
                                     f"another method, or the row must be fixed")
            yield row, where

    def numbers(self, *names: str) -> list[np.ndarray]:
        """The values of each of `names` in pool order, float64 [N] each; NaN where there is none.
        """
        rows = [[row[name] for name in names] for row, _ in self.checked(*names)]
        return [np.array(values, dtype=np.float64) for values in zip(*rows, strict=True)]

    def vectors(self, rows: np.ndarray | None = None) -> np.ndarray:
        """The vectors of some records, or of all, float32 [n, H]."""
        blocks = arrays.array_blocks(self.folder, len(self), row_dims=1, block_size=_BLOCK)
        if rows is None:
            return np.concatenate([arrays.read_block(block) for block in blocks])
        parts, start = [], 0
        for block in blocks:
            values = arrays.read_block(block)
            here = np.flatnonzero((rows >= start) & (rows < start + len(values)))
            parts.append((here, values[rows[here] - start]))
            start += len(values)
        order = np.concatenate([here for here, _ in parts])
        return np.concatenate([values for _, values in parts])[np.argsort(order)]
