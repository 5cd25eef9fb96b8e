"""The .npy files of a run folder: whole or absent, read in blocks, and with checks.

Row i over the files of a chunked array belongs to line i of pool.jsonl.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from adg.base.artifacts import chunk_bounds, chunk_files, written_aside
from adg.base.errors import InputError

_LARGE = 1 << 26  # bytes of a .npy file that is mapped instead of read

Block = list[tuple[Path, range]]  # some rows of each of a few files that follow each other


def write_array(path: Path, values: np.ndarray, *, after: int = 0) -> None:
    """Write a .npy file: `values`, after the first `after` rows of the file that is there."""
    if after:
        values = np.concatenate([read_array(path)[:after], values])
    with written_aside(path) as aside, aside.open("wb") as file:
        # not the file itself, whose number numpy would write to: its errors do not say what failed
        np.save(SimpleNamespace(write=file.write), values, allow_pickle=False)


def array_blocks(folder: Path, num_rows: int, *, row_dims: int, block_size: int) -> list[Block]:
    """All rows of a chunked array in order, in blocks of at most block_size rows.

    Raises InputError where the chunks hold another number of rows than num_rows, or rows that are
    unlike each other or no floats.
    """
    blocks, room, total, first = [], 0, 0, None
    for path in chunk_files(folder, "npy"):
        shape, dtype = _shape_and_type(path)
        first = shape[1:] if first is None else first
        if len(shape) != row_dims + 1 or shape[1:] != first or dtype.kind != "f":
            raise InputError(f"{path}: {dtype} of shape {shape}; expected rows of floats with "
                             f"{row_dims} dimension(s), alike in all files of the folder")
        for rows in chunk_bounds(shape[0], block_size):
            if len(rows) > room:
                blocks.append([])
                room = block_size
            blocks[-1].append((path, rows))
            room -= len(rows)
        total += shape[0]
    if total != num_rows:
        raise InputError(f"{folder}/ holds {total} rows, but pool.jsonl has {num_rows} records: "
                         f"it belongs to another pool, or a chunk is missing")
    return blocks


def read_block(block: Block) -> np.ndarray:
    """The rows of a block, in float32."""
    return np.concatenate([read_array(path)[rows.start: rows.stop] for path, rows in block],
                          dtype=np.float32, casting="same_kind")


def place_in(block: Block, index: int) -> str:
    """"file: row r" of the row that stands at `index` in a block."""
    for path, rows in block:
        if index < len(rows):
            return f"{path}: row {rows.start + index}"
        index -= len(rows)
    raise IndexError(index)


def read_array(path: Path) -> np.ndarray:
    """A .npy file, memory-mapped where it is large.

    Raises InputError where it is missing, truncated or no array.
    """
    with _named(path):
        large = path.stat().st_size > _LARGE
        values = np.load(path, mmap_mode="r" if large else None, allow_pickle=False)
        if not isinstance(values, np.ndarray):
            raise ValueError("an archive of arrays, not one")
    return values


def shape_of(path: Path) -> tuple[int, ...]:
    """The shape of a .npy file; InputError where it is truncated or no array."""
    return _shape_and_type(path)[0]


def width_of(folder: Path) -> int:
    """The length of the last axis of a chunked array."""
    return shape_of(chunk_files(folder, "npy")[0])[-1]


def _shape_and_type(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """What the header of a .npy file says, checked against the file's size."""
    with _named(path), path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0,
                       (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read_header is None:
            raise ValueError(f"version {version} of the format")
        shape, _, dtype = read_header(file)
        if path.stat().st_size - file.tell() != math.prod(shape) * dtype.itemsize:
            raise ValueError("not as long as its header says")
    return shape, dtype


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: not found") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: not a whole .npy file ({error}); remove it and run its stage "
                         f"again") from None
