"""What stays on the screen while a stage works, and what goes to a log file: engines' own output.

torch, transformers, vLLM and DeepSpeed write warnings, bars and log lines to the descriptors 1 and
2, and so do the processes that they start. From `engines_write_to` on these lead to a file. What
the pipeline says stays where it was: Python's stdout, bars of `distributed.progress`, errors.
"""

import contextlib
import functools
import io
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TextIO

from adg.base import artifacts

_stderr: TextIO | None = None  # the screen's, while descriptor 2 is a log file
_own_process = False  # a test that calls a stage's main goes on in its process


def stderr() -> TextIO:
    """Where bars and errors are shown."""
    return _stderr or sys.stderr


def stderr_descriptor() -> int:
    """The file descriptor of where errors are shown."""
    return _stderr.fileno() if _stderr else 2


def has_log() -> bool:
    """Whether engines write to a log file."""
    return _stderr is not None


def own_process() -> None:
    """Say that this process runs one script and ends with it: its descriptors may lead elsewhere.
    """
    global _own_process
    _own_process = True


def engines_write_to(path: Path) -> None:
    """Append to a file, from now to the end of this process, what is written to the descriptors 1
    and 2; nothing in a process that goes on after its stage.

    An error that nobody catches still shows on the screen, with the name of the file. Nothing is
    put back: what engines say when the interpreter ends belongs to the file too.
    """
    global _stderr
    if not _own_process or has_log():
        return
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    sys.stdout.flush()
    sys.stderr.flush()
    shown = [io.TextIOWrapper(os.fdopen(os.dup(number), "wb"), encoding=file.encoding,
                              errors=file.errors, line_buffering=file.line_buffering,
                              write_through=file.write_through)
             for number, file in ((1, sys.stdout), (2, sys.stderr))]
    with artifacts.naming(path):
        os.write(log, f"== {datetime.now(UTC).isoformat(timespec='seconds')}\n".encode())
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stdout, _stderr = shown
    sys.excepthook = functools.partial(_show, path)


def _show(path: Path, kind: type[BaseException], error: BaseException,
          where: TracebackType | None) -> None:
    """Show an error that nobody caught, and where more may stand."""
    with contextlib.redirect_stderr(stderr()):
        sys.__excepthook__(kind, error, where)
    print(f"what the engines said is in {path}", file=stderr(), flush=True)


@contextlib.contextmanager
def stdout_of_engines() -> Iterator[None]:
    """Have what engines print go to the log file, where there is one, and so what loggers write
    that keep the stdout which they meet when they are imported, as DeepSpeed's."""
    with contextlib.redirect_stdout(sys.stderr if has_log() else sys.stdout):
        yield
