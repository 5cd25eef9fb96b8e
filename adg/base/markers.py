"""Locks where the file system has none: a marker beside a file, there as long as its holder lives.

The holder touches it all the time, so that its death shows by the marker's age.
"""

import atexit
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from adg.base import artifacts, screen

TOUCH = 5  # seconds between two touches of a marker
_DEAD = 120  # seconds without one, after which its holder counts as dead


def marker_of(file: BinaryIO) -> Path:
    """The hidden file beside a file that stands for a lock on it."""
    path = Path(file.name)
    return path.with_name(f".{path.name.lstrip('.')}.held")


def mark(marker: Path) -> Callable[[], None] | None:
    """Make a marker and keep it young: what removes it, or None where a live process has it."""
    text = json.dumps(here()).encode()
    if not _create(marker, text):
        _remove_dead(marker)
        if not _create(marker, text):
            return None
    ended = threading.Event()
    threading.Thread(target=_keep_young, args=(marker, text, ended), daemon=True).start()

    def remove() -> None:
        atexit.unregister(remove)
        ended.set()
        marker.unlink(missing_ok=True)

    atexit.register(remove)
    return remove


def _create(path: Path, text: bytes) -> bool:
    """Whether this process, and no other, has made the file."""
    try:
        with artifacts.naming(path), path.open("xb", buffering=0) as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _remove_dead(marker: Path) -> None:
    """Remove a marker whose holder is dead.

    One process looks and removes at a time: the marker that another removes is the one it saw.
    """
    guard = marker.with_name(f"{marker.name}.removal")
    if not _create(guard, b""):
        if not is_live(guard):  # of a process that was killed right here
            guard.unlink(missing_ok=True)
        return
    try:
        if not is_live(marker):
            marker.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)


def is_live(marker: Path) -> bool:
    """Whether a marker's holder is alive: it was touched lately, and its process is not gone."""
    try:
        if time.time() - marker.stat().st_mtime > _DEAD:
            return False
        holder = json.loads(marker.read_bytes()) | {}
    except FileNotFoundError:
        return False
    except (ValueError, TypeError):  # it has not been written yet
        return True
    return holder["host"] != socket.gethostname() or _runs(holder["process"])


def _runs(process: int) -> bool:
    """Whether there is a process of this number on this host."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _keep_young(marker: Path, text: bytes, ended: threading.Event) -> None:
    """Touch a marker until `ended`; the end of this process where another has taken it over."""
    while not ended.wait(TOUCH):
        with contextlib.suppress(OSError):  # a file server that does not answer now
            if marker.read_bytes() != text:
                print(f"\nerror: {marker} belongs to another process: this one stood still for so "
                      f"long that it counted as dead. What is written is whole.",
                      file=screen.stderr(), flush=True)
                os._exit(os.EX_TEMPFAIL)
            os.utime(marker)


def here() -> dict:
    """Host, process and time, as a holder of a lock writes them down."""
    return {"host": socket.gethostname(), "process": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds")}
