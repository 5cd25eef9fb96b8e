"""One run at a time: the first rank of a stage holds a lock, which its end or death gives up.

`provenance/<stage>.lock` stays; whether it is held is what the file system says, and its text names
the last holder and what that reads. Where the file system has no locks, markers take their place.
"""

import contextlib
import errno
import fcntl
import functools
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from adg.base import artifacts, distributed, markers
from adg.base.errors import InputError

_WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # Lustre without flock, NFS alike
_POLL = 0.2  # seconds between two looks at a lock that is waited for
PIPELINE = "ADG_PIPELINE_LOCK"  # in the environment of a pipeline's stages: its lock

_held: dict[Path, Callable[[], None]] = {}  # what gives each up: closing a file gives its lock up


def take(folder: Path, label: str, reads: Iterable[str], writes: Iterable[str]) -> None:
    """Hold the lock of stage `label` of a run folder until `release` or this process's end.

    InputError that names the holder where another process runs this stage, or one that reads what
    this one is about to write.
    """
    own = _path(folder, label)
    own.parent.mkdir(parents=True, exist_ok=True)
    for path in sorted(own.parent.glob("*.lock")):
        if (path not in (own, *_held) and str(path) != os.environ.get(PIPELINE)
                and (held := _is_held(path))):
            touched = sorted(set(held.get("reads", ())) & set(writes))
            if touched:
                raise InputError(f"{label} would write {', '.join(touched)}, which {_name(held)} "
                                 f"is reading: wait for it, or give another output_dir")
    if own not in _held and (holder := _hold(own, label, reads)) is not None:
        raise InputError(f"{_name(holder, label)} is already at work in {folder}: wait for it, or "
                         f"give another output_dir")


def take_for_pipeline(folder: Path, reads: Iterable[str]) -> Path:
    """Hold one of the locks of pipelines, of which several may run in a folder; its path.

    Nobody else writes what this one's stages read. They themselves do: PIPELINE in their
    environment names this lock.
    """
    (folder / "provenance").mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        path = _path(folder, f"pipeline {number}")
        if path not in _held and _hold(path, "a pipeline", reads) is None:
            return path
    raise AssertionError


def _path(folder: Path, label: str) -> Path:
    return (folder / "provenance" / f"{label.replace(' ', '-')}.lock").absolute()


def _hold(own: Path, label: str, reads: Iterable[str]) -> dict | None:
    """Hold a lock from now on; what its holder wrote where another process does."""
    file = own.open("a+b", buffering=0)
    give_up = _attempt(file)
    if give_up is None:
        holder = _holder(file)
        file.close()
        return holder

    def release_and_close() -> None:
        give_up()
        file.close()

    _held[own] = release_and_close
    with artifacts.naming(own):
        file.truncate(0)
        file.write(json.dumps({
            "stage": label, **markers.here(), "reads": [*reads]}).encode())
    return None


def release(folder: Path, label: str) -> None:
    """Give the lock up, where this process has it."""
    path = _path(folder, label)
    if path in _held:
        _held.pop(path)()


@contextlib.contextmanager
def held(file: BinaryIO) -> Iterator[None]:
    """Hold the lock on an open file, which is waited for."""
    while (give_up := _attempt(file)) is None:
        time.sleep(_POLL)
    try:
        yield
    finally:
        give_up()


def _attempt(file: BinaryIO) -> Callable[[], None] | None:
    """Lock an open file: what gives the lock up, or None where another process has it."""
    locked = _locked(file)
    if locked is None:
        return markers.mark(markers.marker_of(file))
    return (lambda: fcntl.lockf(file, fcntl.LOCK_UN)) if locked else None


def _is_held(path: Path) -> dict:
    """What the holder of a lock wrote; {} where nobody holds it."""
    with path.open("r+b") as file:
        locked = _locked(file)
        free = not markers.is_live(markers.marker_of(file)) if locked is None else locked
        return {} if free else _holder(file)


def _locked(file: BinaryIO) -> bool | None:
    """Whether this process has got the file system's lock on a file; None where it has no locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # what POSIX allows for "another has it"
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise OSError(error.errno, error.strerror, file.name) from error
        _note(error.strerror)
        return None
    return True


@functools.cache
def _note(reason: str) -> None:
    distributed.say(f"note: this file system has no locks ({reason}): files with the name of their "
                    f"holder, touched every {markers.TOUCH} s, take their place")


def _holder(file: BinaryIO) -> dict:
    file.seek(0)
    try:
        return json.loads(file.read()) | {}
    except (ValueError, TypeError):  # it has not been written yet
        return {"stage": "a stage"}


def _name(holder: dict, label: str | None = None) -> str:
    return (f"{label or holder.get('stage')} (process {holder.get('process', 'unknown')} on "
            f"{holder.get('host', 'an unknown host')}, since "
            f"{holder.get('since', 'a moment ago')})")
