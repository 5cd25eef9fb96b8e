"""What a process does to the files below a folder: each operation met before it is done.

Seen are files opened for writing, writes, truncations, fsync, renames, removals and new folders by
Python, and, each file as one write, what torch and safetensors write by themselves (not what the
tokenizer does: one file beside them). A write is met twice: before its first half, and between its
halves. What Python buffers is written when the buffer is; what stands in a buffer when a process is
killed is lost, as in any kill.
"""

import builtins
import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_WRITING = os.O_WRONLY | os.O_RDWR


class Operation(NamedTuple):
    """One step that changes files, about to be done."""

    kind: str  # open, write, second half of write, truncate, fsync, rename, remove, mkdir
    path: str  # relative to the folder

    def __str__(self) -> str:
        return f"{self.kind} of {self.path}"


def watch(folder: Path, meet: Callable[[Operation], None]) -> None:
    """From now on have `meet` called before each operation of this process below `folder`.

    Nothing is put back: for a process that ends with its stage.
    """
    root = os.path.abspath(folder)

    def inside(target: Any, dir_fd: int | None = None) -> str | None:
        if isinstance(target, int):
            target = os.readlink(f"/proc/self/fd/{target}")
        if dir_fd is not None:
            target = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), target)
        path = os.path.abspath(target)
        return os.path.relpath(path, root) if f"{path}/".startswith(f"{root}/") else None

    def met(kind: str, target: Any, dir_fd: int | None = None) -> None:
        name = inside(target, dir_fd)
        if name is not None:
            meet(Operation(kind, name))

    _watch_open(inside, met)
    _watch_os(met)
    if "torch" in sys.modules:
        _watch_native(inside, met)


def _watch_open(inside: Callable, met: Callable) -> None:
    plain_open = io.open

    class Watched(io.FileIO):
        def write(self, data: Any) -> int:
            met("write", self.name)
            half = memoryview(data).nbytes // 2
            written = super().write(data[:half])
            met("second half of write", self.name)
            return written + super().write(data[half:])

        def truncate(self, size: int | None = None) -> int:
            met("truncate", self.name)
            return super().truncate(size)

    def watched_open(file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None,
                     errors: str | None = None, newline: str | None = None,
                     closefd: bool = True, opener: Any = None) -> Any:
        if not set(mode) & set("wax+") or inside(file) is None:
            return plain_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        met("open", file)
        raw = Watched(os.fspath(file), mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        kind = io.BufferedRandom if "+" in mode else io.BufferedWriter
        buffered = kind(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    builtins.open = io.open = watched_open


def _watch_os(met: Callable) -> None:
    def before(kind: str, plain: Callable) -> Callable:
        def watched(target: Any, *others: Any, **options: Any) -> Any:
            met(kind, target, options.get("dir_fd"))
            return plain(target, *others, **options)

        return watched

    for name, kind in (("fsync", "fsync"), ("replace", "rename"), ("rename", "rename"),
                       ("unlink", "remove"), ("remove", "remove"), ("rmdir", "remove")):
        setattr(os, name, before(kind, getattr(os, name)))
    plain_open, plain_mkdir = os.open, os.mkdir

    def watched_open(target: Any, flags: int, *others: Any, **options: Any) -> int:
        if flags & _WRITING:
            met("open", target, options.get("dir_fd"))
        return plain_open(target, flags, *others, **options)

    def watched_mkdir(target: Any, *others: Any, **options: Any) -> None:
        if not os.path.isdir(target):
            met("mkdir", target, options.get("dir_fd"))
        plain_mkdir(target, *others, **options)

    os.open, os.mkdir = watched_open, watched_mkdir


def _watch_native(inside: Callable, met: Callable) -> None:
    import safetensors.torch
    import torch

    def whole_file(plain: Callable) -> Callable:
        def watched(content: Any, path: Any, *others: Any, **options: Any) -> None:
            if not isinstance(path, str | os.PathLike) or inside(path) is None:
                plain(content, path, *others, **options)
                return
            met("write", path)
            plain(content, path, *others, **options)
            _tear(path, lambda: met("second half of write", path))

        return watched

    torch.save = whole_file(torch.save)
    safetensors.torch.serialize_file = whole_file(safetensors.torch.serialize_file)


def _tear(path: Any, seen: Callable[[], None]) -> None:
    """Have `seen` called while a file that was written natively is half there."""
    content = Path(path).read_bytes()
    os.truncate(path, len(content) // 2)
    with contextlib.closing(io.FileIO(path, "a")) as file:
        seen()
        io.FileIO.write(file, content[len(content) // 2:])
