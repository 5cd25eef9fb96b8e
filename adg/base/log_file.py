"""Logs: files that grow by a line, open as "a+b" and unbuffered."""

import os
from io import FileIO


def drop_torn_line(log: FileIO) -> list[bytes]:
    """Cut off a last line without an end, which a writer that was killed left; the whole lines.

    No second handle is opened: closing one would give up a lock on the log.
    """
    log.seek(0)
    content = log.read()
    lines = content[: content.rfind(b"\n") + 1]
    if lines != content:
        log.truncate(len(lines))
    return lines.splitlines()


def append_line(log: FileIO, line: str) -> None:
    """Append a line, or nothing of it: on a full disk OSError that names the log."""
    size, left = log.seek(0, os.SEEK_END), memoryview(line.encode() + b"\n")
    try:
        while left:
            left = left[log.write(left):]
    except OSError as error:
        log.truncate(size)
        raise OSError(error.errno, error.strerror, str(log.name)) from error
