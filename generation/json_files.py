"""Pools in JSON: a record a line, or an array that need not fit in memory."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adg.base.errors import InputError
from adg.config import PoolConfig
from generation.raw import Raw
from generation.text_files import UTF_8, TextFile, opened

_BLOCK = 1 << 20  # characters of an array that are read at once
_BOM = b"\xef\xbb\xbf"


def read_lines(path: Path, settings: PoolConfig) -> Iterator[Raw]:
    """The values of the lines of a file."""
    text = TextFile(path, settings.encoding)
    parse = Parser()
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


def _lines_of_text(text: TextFile, parse: "Parser") -> Iterator[Raw]:
    """Lines of an encoding like UTF-16, whose bytes cannot be split before they are decoded."""
    with text.open(newline="\n") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield parse.line(line, str(text.path), number)
        except UnicodeError as error:
            raise InputError(f"{text.path}: {text.problem} ({error})") from None


class Parser:
    """JSON to values, where no object may have a key twice: of such, all but the last are lost."""

    def __init__(self) -> None:
        self._repeated: str | None = None  # a key that the last value has twice
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            self._repeated = next(name for name in names if names.count(name) > 1)
        return values

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


def read_array(path: Path, settings: PoolConfig) -> Iterator[Raw]:
    """The elements of an array, one at a time; the lines of a file that has an object a line."""
    text = TextFile(path, settings.encoding)
    try:
        with text.open() as file:
            reader = _ArrayReader(file, path)
            if reader.holds_lines():
                yield from read_lines(path, settings)
            else:
                yield from reader.elements()
    except UnicodeError as error:
        raise InputError(f"{path}: {text.problem} ({error})") from None


class _ArrayReader:
    """Reads the elements of a JSON array from a file, of which it holds a block and what is left of
    the one before."""

    def __init__(self, file: io.TextIOWrapper, path: Path) -> None:
        self._file, self._path, self._parse = file, path, Parser()
        self._text, self._place = "", 0  # what is held of the file, and where reading goes on in it
        self._number = 0  # of the last element, from 1
        self._next()

    def holds_lines(self) -> bool:
        """Whether the file is JSON Lines under this name."""
        first, _, others = self._text[self._place:].partition("\n")
        return bool(others.strip()) and _is_object(first)

    def elements(self) -> Iterator[Raw]:
        """The array's elements; InputError where the file is not one whole array."""
        if self._next() != "[":
            raise InputError(f"{self._path}: not a JSON array of records, nor an object a line")
        self._place += 1
        while self._goes_on():
            self._number += 1
            value, text = self._value()
            problem = self._parse.problem()
            yield Raw(text if problem else value, str(self._path), "element", self._number, problem)
        self._place += 1
        if self._next():
            raise self._broken("the end of the file")

    def _goes_on(self) -> bool:
        """Whether another element follows, at which reading goes on."""
        character = self._next()
        if character == "]":
            return False
        if self._number and character == ",":
            self._place += 1
            self._next()
        elif self._number or not character:
            raise self._broken("another element or the end")
        return True

    def _value(self) -> tuple[Any, str]:
        """The value that begins here, and its text; InputError where it is no JSON."""
        while True:
            try:
                value, end = self._parse.first(self._text, self._place)
            except (ValueError, RecursionError) as error:
                reason = str(error)
            else:
                # a number may go on in the next block
                if end < len(self._text) or not self._read_on():
                    text, self._place = self._text[self._place: end], end
                    return value, text
                continue
            if not self._read_on():
                raise self._broken(f"element {self._number} ({reason})", self._number - 1)

    def _next(self) -> str:
        """The next character that is no white space, where reading goes on; "" at the end."""
        while True:
            self._place = _after_space(self._text, self._place)
            if self._place < len(self._text) or not self._read_on():
                return self._text[self._place: self._place + 1]

    def _read_on(self) -> bool:
        """Take in as much again of the file; False at its end."""
        rest = self._text[self._place:]
        if not (more := self._file.read(max(_BLOCK, len(rest)))):
            return False
        self._text, self._place = rest + more, 0
        return True

    def _broken(self, expected: str, number: int | None = None) -> InputError:
        number = self._number if number is None else number
        return InputError(f"{self._path}: not valid JSON: {expected} should follow element "
                          f"{number}; fix the file")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _after_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place
