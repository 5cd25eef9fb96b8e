"""The SHA-256 of files, so remembered that only new and changed files are read."""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from adg.base import artifacts

_BLOCK = 1 << 20  # bytes that are read at once
_THREADS = 16  # files that are hashed at once, at most: hashlib gives up the GIL


class HashCache:
    """SHA-256 of files, remembered with size and time of change so that only new ones are read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list] = {}
        with contextlib.suppress(FileNotFoundError, ValueError):  # every file is then read
            self._known = read_cache(path)
        self._changed = False
        self.edited: set[Path] = set()  # what was met with another content than is remembered

    def file(self, path: Path) -> str:
        """The SHA-256 of a file, in hex."""
        return self.files([path])[0]

    def files(self, paths: Iterable[Path]) -> list[str]:
        """The SHA-256 of each file, in hex; new and changed ones are read several at a time."""
        stamps = {path: _stamp(path) for path in paths}
        new = [path for path, stamp in stamps.items()
               if self._known.get(str(path), [])[:3] != stamp]
        if new:
            with ThreadPoolExecutor(min(_THREADS, len(new))) as threads:
                for path, digest in zip(new, threads.map(_sha256, new), strict=True):
                    known = self._known.get(str(path))
                    if known is not None and known[3] != digest:
                        self.edited.add(path)
                    self._known[str(path)] = [*stamps[path], digest]
            self._changed = True
        return [self._known[str(path)][3] for path in stamps]

    def known(self) -> dict[str, str]:
        """{path: SHA-256} as remembered, whatever the files are now."""
        return {path: stamp[3] for path, stamp in self._known.items()}

    def tree(self, root: Path, files: Iterable[Path]) -> str:
        """One hash over the names below `root` and the contents of `files`."""
        paths = sorted(files)
        lines = [f"{path.relative_to(root)} {digest}\n"
                 for path, digest in zip(paths, self.files(paths), strict=True)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def save(self) -> None:
        """Write the hashes, where one is new."""
        if self._changed:
            artifacts.write_json(self._path, self._known)
            self._changed = False


def _stamp(path: Path) -> list[int]:
    """What changes with a file's content."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_cache(path: Path) -> dict[str, list]:
    """{path: stamp and hash} as saved; ValueError where the file is not such a cache."""
    known = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(known, dict) or not all(
            isinstance(stamp, list) and len(stamp) == 4 for stamp in known.values()):
        raise ValueError("not the hashes of files")
    return known


def sha256_of_first(file: BinaryIO, size: int) -> str:
    """The SHA-256 of the first `size` bytes of a file, in hex."""
    digest = hashlib.sha256()
    while size and (block := file.read(min(size, _BLOCK))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()
