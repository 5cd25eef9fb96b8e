"""One run at a time: the first rank of a stage holds a lock, which its end or death gives up.

`provenance/<stage>.lock` stays; whether it is held is what the file system says, and its text names
the last holder and what that reads. Where the file system has no locks, a marker beside the file
says it: it is there as long as the lock is held, and touched all the time by its holder, whose
death shows by the marker's age.
"""

import atexit
import contextlib
import errno
import fcntl
import functools
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from adg.base import artifacts, distributed, screen
from adg.base.errors import InputError

_WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # Lustre without flock, NFS alike
_TOUCH = 5  # seconds between two touches of a marker
_DEAD = 120  # seconds without one, after which its holder counts as dead
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
            "stage": label, **_here(), "reads": [*reads]}).encode())
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
        return _mark(_marker(file))
    return (lambda: fcntl.lockf(file, fcntl.LOCK_UN)) if locked else None


def _is_held(path: Path) -> dict:
    """What the holder of a lock wrote; {} where nobody holds it."""
    with path.open("r+b") as file:
        locked = _locked(file)
        free = not _is_live(_marker(file)) if locked is None else locked
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
                    f"holder, touched every {_TOUCH} s, take their place")


# Where the file system has no locks


def _marker(file: BinaryIO) -> Path:
    path = Path(file.name)
    return path.with_name(f".{path.name.lstrip('.')}.held")


def _mark(marker: Path) -> Callable[[], None] | None:
    """Make a marker and keep it young: what removes it, or None where a live process has it."""
    text = json.dumps(_here()).encode()
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
        if not _is_live(guard):  # of a process that was killed right here
            guard.unlink(missing_ok=True)
        return
    try:
        if not _is_live(marker):
            marker.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)


def _is_live(marker: Path) -> bool:
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
    while not ended.wait(_TOUCH):
        with contextlib.suppress(OSError):  # a file server that does not answer now
            if marker.read_bytes() != text:
                print(f"\nerror: {marker} belongs to another process: this one stood still for so "
                      f"long that it counted as dead. What is written is whole.",
                      file=screen.stderr(), flush=True)
                os._exit(os.EX_TEMPFAIL)
            os.utime(marker)


def _here() -> dict:
    return {"host": socket.gethostname(), "process": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds")}


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
