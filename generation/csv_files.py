"""Pools in CSV, with a header; what separates the fields is detected."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from adg.base.errors import InputError
from adg.config import PoolConfig
from generation.raw import Raw
from generation.schemas import SCHEMAS
from generation.text_files import TextFile, kind

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
_NO_TEXT = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of bytes that are no text


def read_columns(path: Path, settings: PoolConfig) -> Iterator[Raw]:
    """The rows of a CSV file with a header, the line being the one where a row ends."""
    csv.field_size_limit(1 << 30)
    text = TextFile(path, settings.encoding)
    with text.open(newline="", errors="surrogateescape") as file:
        try:
            separator = "\t" if kind(path) == ".tsv" else _separator(file.readline(), settings)
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
        row = {key: _NO_TEXT.sub(lambda byte: f"\\x{ord(byte[0]) - 0xdc00:02x}", value)
               for key, value in row.items()}
    return Raw(row, str(text.path), "line", rows.line_num, problem, name)


def _separator(header: str, settings: PoolConfig) -> str:
    """What separates the fields of a header: what gives more known names, or just more."""
    known_names = {"id", "input", *settings.fields.values(),
             *(field for schema in SCHEMAS.values() for field in schema.fields)}

    def fields(separator: str) -> tuple[int, int]:
        names = next(csv.reader([header], delimiter=separator), [])
        return sum(name in known_names for name in names), len(names)

    return max(_SEPARATORS, key=fields)


def _check_header(names: Sequence[str] | None, separator: str, text: TextFile) -> None:
    """InputError where the first line of a CSV file cannot be the header of a pool."""
    if names is None:
        return  # an empty file
    if any("\0" in name or _NO_TEXT.search(name) for name in names):  # NUL: it is UTF-16
        raise InputError(f"{text.path}:1: {text.problem}")
    if len(names) == 1:
        tried = "tab" if separator == "\t" and kind(text.path) == ".tsv" else (
            "comma, semicolon or tab")
        raise InputError(f"{text.path}:1: the header is one field, {names[0]!r}: no {tried} "
                         f"separates it into instruction and output")
