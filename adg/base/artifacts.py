"""The files of a run folder: whole or absent; JSON and JSONL, chunks. Arrays: adg.base.arrays.

A file is written aside, flushed to disk and renamed, so a process killed at any moment leaves the
old file or the new one. Line i over the files of every JSONL belongs to line i of pool.jsonl.
"""

import contextlib
import errno
import json
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from adg.base.errors import InputError

# Writing


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a hidden path beside `path`; what stands there at the end takes the place of `path`.

    Raises OSError that names `path` where it cannot be written; nothing is then left aside.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    with contextlib.ExitStack() as on_error, naming(path, aside):
        on_error.callback(_discard, aside)
        yield aside
        flush(aside)
        os.replace(aside, path)
        flush(path.parent)
        on_error.pop_all()


def _discard(aside: Path) -> None:
    with contextlib.suppress(OSError):  # not there, or in a folder that has become read-only
        aside.unlink()


@contextlib.contextmanager
def naming(path: Path, *also: Path) -> Iterator[None]:
    """Have an OSError that names no file, as that of a full disk does, or one of `also`, name
    `path`."""
    try:
        yield
    except OSError as error:
        if error.filename not in (None, *map(str, also)):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def put(file: TextIO, text: str) -> None:
    """Write to one of several open files, so that an OSError says to which."""
    try:
        file.write(text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from error


def flush_tree(folder: Path) -> None:
    """Have every file below a folder on disk, before a rename makes it count."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on disk; some FUSE file systems flush no folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file. ValueError where JSON cannot hold the value (NaN)."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def to_line(row: Any) -> str:
    """One line of JSONL, without its end. ValueError where JSON cannot hold it (NaN)."""
    return _ENCODER.encode(row)


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Write a JSON object a line."""
    write_lines(path, (to_line(row) + "\n" for row in rows))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines, each with its end."""
    with written_aside(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)


def write_json_array(path: Path, rows: Iterable[dict]) -> None:
    """Write a JSON array, an object a line."""
    with written_aside(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        file.write("[")
        for number, row in enumerate(rows):
            file.write((",\n" if number else "\n") + to_line(row))
        file.write("\n]\n")


# Chunks


def chunk_bounds(num_rows: int, chunk_size: int) -> list[range]:
    """The rows of each chunk: [0, chunk_size), [chunk_size, 2 chunk_size), ... up to num_rows."""
    return [range(start, min(start + chunk_size, num_rows))
            for start in range(0, num_rows, chunk_size)]


def chunk_size_for(num_rows: int) -> int:
    """Records of a chunk where the configuration is silent: up to a million records an even share
    of 64 chunks, from 8 to 500; then 500 for each million or part of one, so that a folder has at
    most 2,000 files."""
    if num_rows > 1_000_000:
        return 500 * -(-num_rows // 1_000_000)
    return min(500, max(8, -(-num_rows // 64)))


def chunk_name(index: int, suffix: str) -> str:
    """The name of chunk `index`: 00000.npy, 00001.npy, ..."""
    return f"{index:05d}.{suffix}"


def chunk_files(folder: Path, suffix: str) -> list[Path]:
    """The files of a chunked artefact in row order: by number, or where none has one, by letters.

    Raises InputError where there is none, and where one of numbered files has no number, or a
    number is missing or there twice.
    """
    files = [path for path in folder.glob(f"*.{suffix}") if not path.name.startswith(".")]
    if not files:
        raise InputError(f"{folder}/ holds no .{suffix} file")
    odd = sorted(path for path in files if not path.stem.isdecimal())
    if len(odd) == len(files):
        return odd
    if odd:
        raise InputError(f"{odd[0]}: no number, unlike the other .{suffix} files in its folder, so "
                         f"its place among them is not known: move it away, or number them all")
    files.sort(key=lambda path: (int(path.stem), path.name))
    for before, after in pairwise(files):
        if (step := int(after.stem) - int(before.stem)) != 1:
            raise InputError(f"{after}: comes after {before.name}, and " + (
                "a file between them is missing: make it again, or number the files one after "
                "another" if step else "has the same number: move one of them away"))
    return files


class JsonlRows:
    """The records of one JSONL file, or of all those of a folder in the order of their names.

    Only byte offsets are kept in memory; rows are read when they are asked for.
    """

    def __init__(self, path: Path) -> None:
        self._files = chunk_files(path, "jsonl") if path.is_dir() else [path]
        self._offsets = [_line_offsets(file) for file in self._files]  # bytes, the file's end last
        self._starts = [0, *accumulate(len(offsets) - 1 for offsets in self._offsets)]
        self._opened: tuple[Path, BinaryIO] | None = None  # by the last call of `row`

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[dict]:
        return (row for row, _ in self.numbered(range(len(self))))

    def rows(self, wanted: range) -> list[dict]:
        return [row for row, _ in self.numbered(wanted)]

    def numbered(self, wanted: range) -> Iterator[tuple[dict, str]]:
        """(record, "file:line") of each row of `wanted`, of step 1; InputError on bad JSON."""
        row = wanted.start
        while row < min(wanted.stop, len(self)):
            number, line = self._locate(row)
            name = str(self._files[number])
            with self._files[number].open("rb") as file:
                file.seek(self._offsets[number][line])
                for content in islice(file, min(wanted.stop, self._starts[number + 1]) - row):
                    where = f"{name}:{line + 1}"
                    yield self.parse(content, where), where
                    row, line = row + 1, line + 1

    def row(self, index: int) -> tuple[dict, str]:
        """(record, "file:line") of one row, the file kept open; InputError on bad JSON."""
        number, line = self._locate(index)
        path, offsets = self._files[number], self._offsets[number]
        if self._opened is None or self._opened[0] != path:
            if self._opened is not None:
                self._opened[1].close()
            self._opened = (path, path.open("rb"))
        content = os.pread(self._opened[1].fileno(), offsets[line + 1] - offsets[line],
                           offsets[line])
        where = f"{path}:{line + 1}"
        return self.parse(content, where), where

    def parse(self, line: bytes, where: str) -> dict:
        """The record of a line; InputError where it is none."""
        return parse_record(line, where)

    def _locate(self, row: int) -> tuple[int, int]:
        number = bisect_right(self._starts, row) - 1
        return number, row - self._starts[number]


def _line_offsets(path: Path) -> array:
    offsets = array("q", [0])
    try:
        with path.open("rb") as file:
            for line in file:
                offsets.append(offsets[-1] + len(line))
    except FileNotFoundError:
        raise InputError(f"{path}: not found") from None
    return offsets


_DECODER = json.JSONDecoder()


def parse_record(line: bytes, where: str) -> dict:
    """One JSON object; InputError that names `where` otherwise."""
    try:
        text = line.strip(b" \t\r\n").decode("utf-8")
        record, end = _DECODER.raw_decode(text)
        if end != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except (ValueError, RecursionError) as error:  # broken JSON or UTF-8, or thousands of brackets
        raise InputError(f"{where}: not valid JSON ({error}); fix or remove the line") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: a {type(record).__name__}, not a JSON object; fix or remove it")
    return record
