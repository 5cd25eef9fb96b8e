"""One run at a time: the first rank of a stage holds a lock, which its end or death gives up.

`provenance/<stage>.lock` stays; whether it is held is what the file system says, and its text names
the last holder and what that reads.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from adg import artifacts
from adg.errors import InputError

_held: dict[Path, BinaryIO] = {}  # open as long as they are held: closing one gives its lock up


def take(folder: Path, label: str, reads: Iterable[str], writes: Iterable[str]) -> None:
    """Hold the lock of stage `label` of a run folder until `release` or this process's end.

    InputError that names the holder where another process runs this stage, or one that reads what
    this one is about to write.
    """
    own = (folder / "provenance" / f"{label.replace(' ', '-')}.lock").absolute()
    own.parent.mkdir(parents=True, exist_ok=True)
    for path in sorted(own.parent.glob("*.lock")):
        if path != own and path not in _held and (held := _is_held(path)):
            touched = sorted(set(held.get("reads", ())) & set(writes))
            if touched:
                raise InputError(f"{label} would write {', '.join(touched)}, which {_name(held)} "
                                 f"is reading: wait for it, or give another output_dir")
    if own in _held:
        return
    file = own.open("a+b", buffering=0)
    if not _locked(file):
        holder = _holder(file)
        file.close()
        raise InputError(f"{_name(holder, label)} is already at work in {folder}: wait for it, or "
                         f"give another output_dir")
    _held[own] = file
    with artifacts.naming(own):
        file.truncate(0)
        file.write(json.dumps({
            "stage": label, "host": socket.gethostname(), "process": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"), "reads": [*reads]}).encode())


def release(folder: Path, label: str) -> None:
    """Give the lock up, where this process has it."""
    path = (folder / "provenance" / f"{label.replace(' ', '-')}.lock").absolute()
    if path in _held:
        _held.pop(path).close()


def _is_held(path: Path) -> dict:
    """What the holder of a lock wrote; {} where nobody holds it."""
    with path.open("r+b") as file:
        return {} if _locked(file) else _holder(file)


def _locked(file: BinaryIO) -> bool:
    """Whether this process has got the lock on a file; InputError where there are no locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # what POSIX allows for "another has it"
        return False
    except OSError as error:
        raise InputError(f"{file.name}: this file system gives no locks ({error}), without which "
                         f"two runs could write one folder: mount it with them") from None
    return True


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
