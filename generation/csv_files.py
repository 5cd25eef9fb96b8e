"""Pools in CSV, with a header; what separates the fields is detected."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from adg.base.errors import InputError
from adg.config import PoolConfig
from generation.raw import Raw
from generation.schemas import SCHEMAS
from generation.text_files import TextFile, kind

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
_DECLARATION = re.compile('"?sep=([^"\\s]|\t)"?\\r?\\n?')  # Excel's, before the header
_NO_TEXT = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of bytes that are no text


def read_columns(path: Path, settings: PoolConfig) -> Iterator[Raw]:
    """The rows of a CSV file with a header, the line being the one where a row ends."""
    csv.field_size_limit(1 << 30)
    text = TextFile(path, settings.encoding)
    with text.open(newline="", errors="surrogateescape") as file:
        try:
            first = file.readline()
            declared = _DECLARATION.fullmatch(first)
            separator = declared[1] if declared else (
                "\t" if kind(path) == ".tsv" else _separator(first, settings))
            file.seek(0)
            rows = csv.DictReader(file, strict=True, delimiter=separator)
            if declared:
                next(rows.reader)
            _check_header(rows, separator, text)
            unnamed = _name_columns(rows)
            for row in rows:
                yield _row(row, rows, separator, text, unnamed)
        except csv.Error as error:
            raise InputError(f"{path}:{rows.line_num}: not valid CSV ({error}); fix the file"
                             ) from None
        except UnicodeError as error:
            raise InputError(f"{path}: {text.problem} ({error})") from None


def _row(row: dict, rows: csv.DictReader, separator: str, text: TextFile, unnamed: set[str]
         ) -> Raw:
    """A row as a record, without what is empty in the columns that are `unnamed`."""
    problem, surplus = None, row.pop(None, None)
    name = _SEPARATORS.get(separator, separator)
    if surplus or None in row.values():
        how_many = "more" if surplus else "fewer"
        problem = f"{how_many} fields than the header, the separator is {name}"
    elif any(not value.isascii() and _NO_TEXT.search(value) for value in row.values()):
        problem = text.problem
        row = {key: _NO_TEXT.sub(lambda byte: f"\\x{ord(byte[0]) - 0xdc00:02x}", value)
               for key, value in row.items()}
    if unnamed:
        row = {key: value for key, value in row.items() if value or key not in unnamed}
    return Raw(row, str(text.path), "line", rows.line_num, problem, name)


def _separator(header: str, settings: PoolConfig) -> str:
    """What separates the fields of a header: what gives more known names, or just more."""
    known_names = {"id", "input", *settings.fields.values(),
             *(field for schema in SCHEMAS.values() for field in schema.fields)}

    def fields(separator: str) -> tuple[int, int]:
        names = next(csv.reader([header], delimiter=separator), [])
        return sum(name in known_names for name in names), len(names)

    return max(_SEPARATORS, key=fields)


def _check_header(rows: csv.DictReader, separator: str, text: TextFile) -> None:
    """InputError where the first line of a CSV file cannot be the header of a pool."""
    names = rows.fieldnames
    if names is None:
        return  # an empty file
    place = f"{text.path}:{rows.line_num}"
    if any("\0" in name or _NO_TEXT.search(name) for name in names):  # NUL: it is UTF-16
        raise InputError(f"{place}: {text.problem}")
    if len(names) == 1:
        tried = "tab" if separator == "\t" and kind(text.path) == ".tsv" else (
            "comma, semicolon or tab")
        raise InputError(f"{place}: the header is one field, {names[0]!r}: no {tried} "
                         f"separates it into instruction and output")
    repeated = next((name for name in names if name.strip() and names.count(name) > 1), None)
    if repeated is not None:
        raise InputError(f"{place}: the column {repeated!r} stands twice in the header; rename or "
                         f"remove one")


def _name_columns(rows: csv.DictReader) -> set[str]:
    """Tell columns without a name apart: "", then by number; the names that these have."""
    names, unnamed = list(rows.fieldnames or ()), []
    for number, name in enumerate(names):
        if not name.strip():
            unnamed.append(f"column {number + 1}" if unnamed else "")
            names[number] = unnamed[-1]
    rows.fieldnames = names
    return set(unnamed)
