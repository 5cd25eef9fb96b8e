"""Where a pool comes from: files of any of these kinds, a folder of them, or a hub data set.

.jsonl  .json (an array, or an object a line)  .parquet  .csv and .tsv, each but Parquet also
compressed as .gz and in any encoding (pool.encoding); `hf:owner/name`.
What cannot be read as a record is given too, with the reason: nothing is passed over in silence.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adg.base.errors import InputError
from adg.config import HUB, PoolConfig
from generation.schemas import SCHEMAS
from generation.text_files import UTF_8, TextFile, opened

_BLOCK = 1 << 20  # characters of a JSON array that are read at once
_ROWS = 1000  # of a Parquet file that are read at once
_BOM = b"\xef\xbb\xbf"
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
_NO_TEXT = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of bytes that are no text


class Raw(NamedTuple):
    """A record as it stands in its source, or what stands there instead and why it is none."""

    value: Any
    file: str
    unit: str  # what `number` counts, from 1: line, element or row
    number: int
    problem: str | None = None
    separator: str | None = None  # what stands between the fields of a CSV file

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
            yield from READERS[_kind(path)](path, settings)
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


def _lines(path: Path, settings: PoolConfig) -> Iterator[Raw]:
    text = TextFile(path, settings.encoding)
    parse = _Parser()
    if not text.splits_at_newlines():
        yield from _lines_of_text(text, parse)
        return
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and text.encoding == UTF_8:
                line = line.removeprefix(_BOM)
            if not line.strip():
                continue
            try:
                content = line.decode("utf-8" if text.encoding == UTF_8 else text.encoding)
            except UnicodeDecodeError as error:
                shown = line.decode(error.encoding, errors="backslashreplace").rstrip("\r\n")
                yield Raw(shown, str(path), "line", number, f"{text.problem} ({error.reason})")
                continue
            yield parse.line(content, str(path), number)


def _lines_of_text(text: TextFile, parse: "_Parser") -> Iterator[Raw]:
    """Lines of an encoding like UTF-16, whose bytes cannot be split before they are decoded."""
    with text.open(newline="\n") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield parse.line(line, str(text.path), number)
        except UnicodeDecodeError as error:
            raise InputError(f"{text.path}: {text.problem} ({error})") from None


class _Parser:
    """JSON to values, where no object may have a key twice: of such, all but the last are lost."""

    def __init__(self) -> None:
        self._repeated: str | None = None  # a key that the last value has twice
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            self._repeated = next(name for name in names if names.count(name) > 1)
        return found

    def problem(self) -> str | None:
        """What is wrong with the last value, though it is JSON."""
        return None if self._repeated is None else f"a key twice in one object ({self._repeated})"

    def line(self, text: str, file: str, number: int) -> Raw:
        """The value of a line."""
        self._repeated = None
        try:
            value = self._decoder.decode(text)
        except (ValueError, RecursionError) as error:
            return Raw(text.rstrip("\r\n"), file, "line", number, f"not valid JSON ({error})")
        if self._repeated is None:
            return Raw(value, file, "line", number)
        return Raw(text.rstrip("\r\n"), file, "line", number, self.problem())

    def first(self, buffer: str, start: int) -> tuple[Any, int]:
        """(the value that begins at `start`, where it ends); ValueError or RecursionError."""
        self._repeated = None
        return self._decoder.raw_decode(buffer, start)


def _array(path: Path, settings: PoolConfig) -> Iterator[Raw]:
    """The elements of a JSON array, one at a time, so that it need not fit the memory."""
    text = TextFile(path, settings.encoding)
    try:
        yield from _elements(text, settings)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {text.problem} ({error})") from None


def _elements(text: TextFile, settings: PoolConfig) -> Iterator[Raw]:
    path, parse = text.path, _Parser()
    with text.open() as file:
        buffer, place, number = _more(file, "", 0), 0, 0
        place = _after_space(buffer, 0)
        first, _, others = buffer[place:].partition("\n")
        if others.strip() and _is_object(first):  # JSON Lines under this name
            yield from _lines(path, settings)
            return
        if buffer[place: place + 1] != "[":
            raise InputError(f"{path}: not a JSON array of records, nor an object a line")
        place, first = place + 1, True
        while True:
            buffer, place = _filled(file, buffer, place)
            sign = buffer[place: place + 1]
            if sign == "]":
                break
            if not first and sign == ",":
                buffer, place = _filled(file, buffer, place + 1)
            elif not first or not sign:
                raise InputError(_broken(path, number, "another element or the end"))
            number, first = number + 1, False
            while True:
                try:
                    value, end = parse.first(buffer, place)
                except (ValueError, RecursionError) as error:
                    longer = _more(file, buffer, place)
                    if len(longer) == len(buffer) - place:
                        raise InputError(_broken(path, number - 1, f"element {number} ({error})")
                                         ) from None
                    buffer, place = longer, 0
                    continue
                if end == len(buffer) and (longer := _more(file, buffer, place)) and (
                        len(longer) > len(buffer) - place):
                    buffer, place = longer, 0  # a number may go on in the next block
                    continue
                break
            problem = parse.problem()
            yield Raw(buffer[place:end] if problem else value, str(path), "element", number,
                      problem)
            place = end
        buffer, place = _filled(file, buffer, place + 1)
        if buffer[place:].strip():
            raise InputError(_broken(path, number, "the end of the file"))


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _broken(path: Path, number: int, expected: str) -> str:
    return f"{path}: not valid JSON: after element {number} should stand {expected}; fix the file"


def _filled(file: io.TextIOWrapper, buffer: str, place: int) -> tuple[str, int]:
    """(buffer, place of its next sign that is no space), read on where there is none."""
    place = _after_space(buffer, place)
    while place == len(buffer):
        buffer, place = _more(file, "", 0), 0
        if not buffer:
            break
        place = _after_space(buffer, 0)
    return buffer, place


def _more(file: io.TextIOWrapper, buffer: str, place: int) -> str:
    """What of the buffer is left, and as much again of the file."""
    return buffer[place:] + file.read(max(_BLOCK, len(buffer) - place))


def _after_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _table(path: Path, settings: PoolConfig) -> Iterator[Raw]:
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


def _columns(path: Path, settings: PoolConfig) -> Iterator[Raw]:
    """The rows of a CSV file with a header, the line being the one where a row ends."""
    csv.field_size_limit(1 << 30)
    text = TextFile(path, settings.encoding)
    with text.open(newline="", errors="surrogateescape") as file:
        try:
            separator = "\t" if _kind(path) == ".tsv" else _separator(file.readline(), settings)
            file.seek(0)
            rows = csv.DictReader(file, strict=True, delimiter=separator)
            _check_header(rows.fieldnames, separator, text)
            for row in rows:
                yield _row(row, rows, separator, text)
        except csv.Error as error:
            raise InputError(f"{path}:{rows.line_num}: not valid CSV ({error}); fix the file"
                             ) from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: {text.problem} ({error})") from None


def _row(row: dict, rows: csv.DictReader, separator: str, text: TextFile) -> Raw:
    name, problem, surplus = _SEPARATORS[separator], None, row.pop(None, None)
    if surplus or None in row.values():
        how_many = "more" if surplus else "fewer"
        problem = f"{how_many} fields than the header, the separator is {name}"
    elif any(not value.isascii() and _NO_TEXT.search(value) for value in row.values()):
        problem = text.problem
        row = {key: _NO_TEXT.sub(lambda found: f"\\x{ord(found[0]) - 0xdc00:02x}", value)
               for key, value in row.items()}
    return Raw(row, str(text.path), "line", rows.line_num, problem, name)


def _separator(header: str, settings: PoolConfig) -> str:
    """What separates the fields of a header: with which more of them are known, or just more."""
    known = {"id", "input", *settings.fields.values(),
             *(field for schema in SCHEMAS.values() for field in schema.fields)}

    def fields(separator: str) -> tuple[int, int]:
        names = next(csv.reader([header], delimiter=separator), [])
        return sum(name in known for name in names), len(names)

    return max(_SEPARATORS, key=fields)


def _check_header(names: Sequence[str] | None, separator: str, text: TextFile) -> None:
    """InputError where the first line of a CSV file cannot be the header of a pool."""
    if names is None:
        return  # an empty file
    if any("\0" in name or _NO_TEXT.search(name) for name in names):  # NUL: it is UTF-16
        raise InputError(f"{text.path}:1: {text.problem}")
    if len(names) == 1:
        tried = "tab" if separator == "\t" and _kind(text.path) == ".tsv" else (
            "comma, semicolon or tab")
        raise InputError(f"{text.path}:1: the header is one field, {names[0]!r}: no {tried} "
                         f"separates it into instruction and output")


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


READERS: dict[str, Callable[[Path, PoolConfig], Iterator[Raw]]] = {
    ".jsonl": _lines, ".json": _array, ".parquet": _table, ".csv": _columns, ".tsv": _columns}
