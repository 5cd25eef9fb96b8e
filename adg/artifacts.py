"""The files of a run folder: whole or absent, and read with checks.

A file is written aside, flushed to disk and renamed, so a process killed at any moment leaves the
old file or the new one. Row i of every array and line i of every JSONL belongs to line i of
pool.jsonl.

Shapes: N records.
"""

import contextlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from adg.errors import InputError

_INDEX_STRIDE = 1024  # lines between two remembered offsets of a JSONL file


# Writing


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a hidden path beside `path`; what stands there at the end takes the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    yield aside
    flush(aside)
    os.replace(aside, path)
    flush(path.parent)


def flush_tree(folder: Path) -> None:
    """Have every file below a folder on disk, before a rename makes it count."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file. ValueError where JSON cannot hold the value (NaN)."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def to_line(row: Any) -> str:
    """One line of JSONL, without its end. ValueError where JSON cannot hold it (NaN)."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Write a JSON object a line."""
    with written_aside(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(to_line(row) + "\n")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file."""
    with written_aside(path) as aside, aside.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def drop_torn_line(log: BinaryIO) -> None:
    """Cut off a last line without an end, which a writer that was killed left in a log.

    The log is open as "a+b". No second handle is opened: closing one would give up a lock on it.
    """
    log.seek(0)
    log.truncate(log.read().rfind(b"\n") + 1)


# Chunks


def chunk_bounds(num_rows: int, chunk_size: int) -> list[range]:
    """The rows of each chunk: [0, chunk_size), [chunk_size, 2 chunk_size), ... up to num_rows."""
    return [range(start, min(start + chunk_size, num_rows))
            for start in range(0, num_rows, chunk_size)]


def chunk_name(index: int, suffix: str) -> str:
    """The name of chunk `index`: 00000.npy, 00001.npy, ..."""
    return f"{index:05d}.{suffix}"


def chunk_files(folder: Path, suffix: str) -> list[Path]:
    """The files of a chunked artefact in row order: by number, then other names by their letters.

    Raises InputError where there is none.
    """
    files = [path for path in folder.glob(f"*.{suffix}") if not path.name.startswith(".")]
    if not files:
        raise InputError(f"{folder}/ holds no .{suffix} file")
    return sorted(files, key=_by_number)


def _by_number(path: Path) -> tuple[int, int, str]:
    number = path.stem if path.stem.isdecimal() else ""
    return (0, int(number), "") if number else (1, 0, path.name)


class JsonlRows:
    """The records of one JSONL file, or of all those of a folder in the order of their names.

    Only byte offsets are kept in memory; rows are read when they are asked for.
    """

    def __init__(self, path: Path) -> None:
        self._marks: list[tuple[int, Path, int, int]] = []  # row, file, its line (from 0), its byte
        self._length = 0
        for file in chunk_files(path, "jsonl") if path.is_dir() else [path]:
            self._index(file)

    def _index(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                offset = 0
                for number, line in enumerate(file):
                    if number % _INDEX_STRIDE == 0:
                        self._marks.append((self._length, path, number, offset))
                    offset += len(line)
                    self._length += 1
        except FileNotFoundError:
            raise InputError(f"{path}: there is no such file") from None

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict]:
        return (row for row, _ in self.numbered(range(len(self))))

    def rows(self, wanted: range) -> list[dict]:
        return [row for row, _ in self.numbered(wanted)]

    def numbered(self, wanted: range) -> Iterator[tuple[dict, str]]:
        """(record, "file:line") of each row of `wanted`, of step 1; InputError on bad JSON."""
        mark = bisect_right(self._marks, wanted.start, key=lambda entry: entry[0]) - 1
        while wanted and mark < len(self._marks):
            row, path, number, offset = self._marks[mark]
            mark += 1
            while mark < len(self._marks) and self._marks[mark][1] == path:
                mark += 1
            with path.open("rb") as file:
                file.seek(offset)
                for number, line in enumerate(file, start=number + 1):  # noqa: B020  lines from 1
                    if row == wanted.stop:
                        return
                    if row >= wanted.start:
                        where = f"{path}:{number}"
                        yield parse_record(line, where), where
                    row += 1


def parse_record(line: bytes, where: str) -> dict:
    """One JSON object; InputError that names `where` otherwise."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # broken JSON or UTF-8, or thousands of brackets
        raise InputError(f"{where}: not valid JSON ({error}); mend or remove the line") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: a {type(record).__name__}, not a JSON object; "
                         f"mend or remove it")
    return record


def read_arrays(folder: Path, num_rows: int, *, row_dims: int) -> np.ndarray:
    """All rows of a chunked array, [num_rows, ...] in float32.

    Raises InputError where the chunks hold another number of rows, or rows of unlike shapes.
    """
    arrays = [(path, read_array(path)) for path in chunk_files(folder, "npy")]
    first = arrays[0][1].shape[1:]
    for path, array in arrays:
        if array.ndim != row_dims + 1 or array.shape[1:] != first or array.dtype.kind != "f":
            raise InputError(f"{path}: {array.dtype} of shape {array.shape}; expected rows of "
                             f"floats with {row_dims} dimension(s), alike in all files of "
                             f"the folder")
    total = sum(len(array) for _, array in arrays)
    if total != num_rows:
        raise InputError(f"{folder}/ holds {total} rows, but pool.jsonl has {num_rows} records: "
                         f"it belongs to another pool, or a chunk is missing")
    return np.concatenate([array for _, array in arrays], dtype=np.float32, casting="same_kind")


def read_array(path: Path) -> np.ndarray:
    """A memory-mapped .npy file; InputError where it is missing, truncated or no array."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: not a whole .npy file ({error}); remove it and run its stage "
                         f"again") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: an archive of arrays, not one .npy array")
    return array
