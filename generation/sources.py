"""Where a pool comes from: files of any of these kinds, a folder of them, or a hub data set.

.jsonl  .json (an array, or an object a line)  .parquet  .csv, each but Parquet also compressed as
.gz; `hf:owner/name`.
What cannot be read as a record is given too, with the reason: nothing is passed over in silence.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from adg.config import HUB, PoolConfig
from adg.errors import InputError

_BLOCK = 1 << 20  # bytes of a JSON array that are read at once
_ROWS = 1000  # of a Parquet file that are read at once
_BOM = b"\xef\xbb\xbf"


class Raw(NamedTuple):
    """A record as it stands in its source, or what stands there instead and why it is none."""

    value: Any
    file: str
    unit: str  # what `number` counts, from 1: line, element or row
    number: int
    problem: str | None = None

    def place(self) -> str:
        """file:line, or file: element n."""
        return f"{self.file}:{self.number}" if self.unit == "line" else (
            f"{self.file}: {self.unit} {self.number}")


def read_pool(settings: PoolConfig) -> Iterator[Raw]:
    """Every record of pool.path in order; InputError where a source cannot be read at all."""
    if settings.on_hub():
        yield from _from_hub(settings)
        return
    for path in pool_files(settings.path):
        try:
            yield from READERS[_kind(path)](path)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path}: the compressed file is cut short or damaged ({error}); get "
                             f"it again") from None


def pool_files(given: str) -> list[Path]:
    """The files that pool.path stands for; InputError where there is none."""
    path = Path(given)
    if path.is_dir():
        files = sorted(own for own in path.rglob("*") if own.is_file() and _kind(own) in READERS
                       and not any(part.startswith(".") for part in own.relative_to(path).parts))
        if not files:
            raise InputError(f"pool.path: {path}/ holds no file of a pool ({', '.join(READERS)}, "
                             f"also with .gz)")
        return files
    if not path.is_file():
        raise InputError(f"pool.path: {path} is not there")
    if _kind(path) not in READERS:
        raise InputError(f"pool.path: {path} is none of {', '.join(READERS)} (also with .gz), a "
                         f"folder, or hf:owner/name")
    return [path]


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _lines(path: Path) -> Iterator[Raw]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(_BOM)
            if line.strip():
                yield _parsed(line, str(path), number)


def _parsed(line: bytes, file: str, number: int) -> Raw:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        shown = line.decode("utf-8", errors="backslashreplace")
        return Raw(shown.rstrip("\r\n"), file, "line", number, f"not UTF-8 ({error.reason})")
    try:
        return Raw(json.loads(text), file, "line", number)
    except (ValueError, RecursionError) as error:
        return Raw(text.rstrip("\r\n"), file, "line", number, f"not valid JSON ({error})")


def _array(path: Path) -> Iterator[Raw]:
    """The elements of a JSON array, one at a time, so that it need not fit the memory."""
    decoder = json.JSONDecoder()
    with io.TextIOWrapper(_opened(path), encoding="utf-8-sig") as file:
        buffer, place, number = _more(file, "", 0, path), 0, 0
        place = _after_space(buffer, 0)
        first, _, others = buffer[place:].partition("\n")
        if others.strip() and _is_object(first):  # JSON Lines under this name
            yield from _lines(path)
            return
        if buffer[place: place + 1] != "[":
            raise InputError(f"{path}: not a JSON array of records, nor an object a line")
        place, first = place + 1, True
        while True:
            buffer, place = _filled(file, buffer, place, path)
            sign = buffer[place: place + 1]
            if sign == "]":
                break
            if not first and sign == ",":
                buffer, place = _filled(file, buffer, place + 1, path)
            elif not first or not sign:
                raise InputError(_broken(path, number, "another element or the end"))
            number, first = number + 1, False
            while True:
                try:
                    value, end = decoder.raw_decode(buffer, place)
                except (ValueError, RecursionError) as error:
                    longer = _more(file, buffer, place, path)
                    if len(longer) == len(buffer) - place:
                        raise InputError(_broken(path, number - 1, f"element {number} ({error})")
                                         ) from None
                    buffer, place = longer, 0
                    continue
                if end == len(buffer) and (longer := _more(file, buffer, place, path)) and (
                        len(longer) > len(buffer) - place):
                    buffer, place = longer, 0  # a number may go on in the next block
                    continue
                break
            yield Raw(value, str(path), "element", number)
            place = end
        buffer, place = _filled(file, buffer, place + 1, path)
        if buffer[place:].strip():
            raise InputError(_broken(path, number, "the end of the file"))


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _broken(path: Path, number: int, expected: str) -> str:
    return f"{path}: not valid JSON: after element {number} should stand {expected}; mend the file"


def _filled(file: io.TextIOWrapper, buffer: str, place: int, path: Path) -> tuple[str, int]:
    """(buffer, place of its next sign that is no space), read on where there is none."""
    place = _after_space(buffer, place)
    while place == len(buffer):
        buffer, place = _more(file, "", 0, path), 0
        if not buffer:
            break
        place = _after_space(buffer, 0)
    return buffer, place


def _more(file: io.TextIOWrapper, buffer: str, place: int, path: Path) -> str:
    """What of the buffer is left, and as much again of the file."""
    try:
        return buffer[place:] + file.read(max(_BLOCK, len(buffer) - place))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error}); mend the file") from None


def _after_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _table(path: Path) -> Iterator[Raw]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield Raw(row, str(path), "row", number)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})"
                         ) from None


def _columns(path: Path) -> Iterator[Raw]:
    """The rows of a CSV file with a header, the line being the one where a row ends."""
    csv.field_size_limit(1 << 30)
    with io.TextIOWrapper(_opened(path), encoding="utf-8-sig", errors="backslashreplace",
                          newline="") as file:
        rows = csv.DictReader(file, strict=True)
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                raise InputError(f"{path}:{rows.line_num}: not valid CSV ({error}); mend the file"
                                 ) from None
            if row is None:
                return
            surplus, short = row.pop(None, None), None in row.values()
            problem = ("more fields than the header" if surplus else
                       "fewer fields than the header" if short else None)
            yield Raw(row, str(path), "line", rows.line_num, problem)


def _from_hub(settings: PoolConfig) -> Iterator[Raw]:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    name = settings.path.removeprefix(HUB)
    try:
        rows = datasets.load_dataset(name, split=settings.split, revision=settings.revision)
    except (DatasetNotFoundError, ConnectionError, ValueError, OSError) as error:
        raise InputError(f"pool.path: the hub did not give {name}, split {settings.split}: "
                         f"{str(error).splitlines()[0]}") from None
    for number, row in enumerate(rows, start=1):
        yield Raw(row, settings.path, "row", number)


READERS: dict[str, Callable[[Path], Iterator[Raw]]] = {
    ".jsonl": _lines, ".json": _array, ".parquet": _table, ".csv": _columns}
