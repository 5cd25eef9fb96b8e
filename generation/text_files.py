"""Which encoding the text of a pool's file is in.

Only UTF-8 can be recognised with certainty. Everything else is a guess by charset-normalizer, which
is reported, and which pool.encoding=auto acts on only where no other encoding comes close.
"""

import codecs
import gzip
import re
from collections.abc import Iterator
from functools import cached_property
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from adg.base.errors import InputError

UTF_8 = "utf-8-sig"  # with or without a byte order mark
_BLOCK = 1 << 20  # bytes that are read at once
_SAMPLE = 1 << 16  # bytes that are guessed by
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
          codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # UTF-32's begin like these
# What is guessed at, the likelier of two equal guesses first. Not all that charset-normalizer
# knows: with a rare one like iso8859_14 in the list, common French counts as that.
_GUESSED = ("cp1252", "cp1250", "cp1251", "iso8859_2", "cp1253", "cp1254", "cp1255", "cp1256",
            "koi8_r", "mac_roman", "gb18030", "big5", "cp932", "euc_jp", "cp949", "utf_16_le",
            "utf_16_be")
_ALONE = re.compile(rb'[ ,"\n]')
_CLOSE = 0.02  # difference in charset-normalizer's mess ratio (0 to 1) that decides nothing
_COHERENT = 0.1  # its coherence (0 to 1: letters as frequent as in a language) of a sure guess
_NAMED = 3  # guesses that are named


class Guess(NamedTuple):
    """Encodings that a file may be in, the best guess first, and whether that one is certain."""

    names: list[str]
    certain: bool


class TextFile:
    """A file of text in pool.encoding; InputError where that is `auto` and is not certain."""

    def __init__(self, path: Path, encoding: str) -> None:
        self.path = path
        self.encoding = self._guessed() if encoding == "auto" else (
            UTF_8 if codecs.lookup(encoding).name in ("utf-8", UTF_8) else encoding)

    def _guessed(self) -> str:
        guess = guess_encoding(self.path)
        if not guess.certain:
            raise InputError(f"pool.encoding is auto, but the encoding of {self.path} is not "
                             f"certain ({_either(guess.names)}): {_advice(guess.names)}")
        return guess.names[0]

    def open(self, *, newline: str | None = None, errors: str = "strict") -> TextIOWrapper:
        """The file as text."""
        return TextIOWrapper(opened(self.path), encoding=self.encoding, newline=newline,
                             errors=errors)

    def splits_at_newlines(self) -> bool:
        """Whether the byte 10 is the end of a line and never a part of anything else."""
        one, two = ("\n".encode(self.encoding), "\n\n".encode(self.encoding))
        return two == one + b"\n"

    @cached_property
    def problem(self) -> str:
        """That bytes are not text in this encoding, and in which they may be."""
        name = "UTF-8" if self.encoding == UTF_8 else self.encoding
        guess = guess_encoding(self.path)
        names = [other for other in guess.names if other not in (UTF_8, self.encoding)]
        if not names:
            return f"not {name}"
        return f"not {name}, {_either(names)}: {_advice(names)}"


def kind(path: Path) -> str:
    """A file's ending, without that of its compression."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def opened(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where it is a .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _either(names: list[str]) -> str:
    return f"perhaps {' or '.join(names)}" if names else "no encoding fits it"


def _advice(names: list[str]) -> str:
    """What to do with guesses: another encoding than the right one gives wrong letters unseen."""
    if len(names) == 1:
        return f"try pool.encoding={names[0]}"
    return "find out which it is and name it in pool.encoding"


def guess_encoding(path: Path) -> Guess:
    """The encoding of a file, as far as its bytes tell."""
    with opened(path) as file:
        first = file.read(4)
        for mark, name in _MARKS.items():
            if first.startswith(mark):
                return Guess([name], True)
        blocks = chain([first], iter(lambda: file.read(_BLOCK), b""))
        if _is_utf8(blocks):
            return Guess([UTF_8], True)
    with opened(path) as file:
        return _guess(_sample(file))


def _is_utf8(blocks: Iterator[bytes]) -> bool:
    """Whether all of it is UTF-8, without a NUL: those are between the letters of UTF-16."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for block in blocks:
            if b"\0" in block:
                return False
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _sample(file: BinaryIO) -> list[bytes]:
    """Lines that are not ASCII alone; the beginning of a file that has NULs."""
    start = file.read(_SAMPLE)
    if b"\0" in start:
        return [start]
    file.seek(0)
    pieces, size = [], 0
    while size < _SAMPLE and (line := file.readline(_SAMPLE)):
        if not line.isascii():
            pieces.append(_whole_characters(line))
            size += len(pieces[-1])
    return pieces


def _whole_characters(piece: bytes) -> bytes:
    """A piece of a long line without what may be half a character at its ends: from after the
    first comma, blank or quotation mark, which are no part of a character, to the last."""
    if len(piece) < _SAMPLE and piece.endswith(b"\n"):
        return piece
    places = [place.end() for place in _ALONE.finditer(piece)]
    return piece[places[0]: places[-1]] if places else piece


def _guess(lines: list[bytes]) -> Guess:
    from charset_normalizer import from_bytes

    if 2 * sum(_is_utf8(iter([line])) for line in lines) >= len(lines):
        return Guess([UTF_8], True)  # with broken lines, which are rejected one by one
    sample = b"".join(lines)
    matches = from_bytes(sample, cp_isolation=list(_GUESSED), steps=64, chunk_size=1024,
                         preemptive_behaviour=False)
    rank = {name: number for number, name in enumerate(_GUESSED)}
    ranked = []  # (mess, -coherence, preference): one for each text that the bytes could be
    for match in matches:
        names = [name for name in match.could_be_from_charset if name in rank]
        ranked.append((round(match.chaos, 3), -round(match.coherence, 3),
                       min(rank[name] for name in names)))
    ranked.sort()
    certain = bool(ranked) and -ranked[0][1] >= _COHERENT and all(
        mess > ranked[0][0] + _CLOSE for mess, *_ in ranked[1:])
    near = [preference for mess, _, preference in ranked if mess <= ranked[0][0] + _CLOSE]
    near.sort(key=lambda preference: preference > 0)  # first cp1252, which most files are in
    return Guess([_GUESSED[preference] for preference in near][:_NAMED], certain)
