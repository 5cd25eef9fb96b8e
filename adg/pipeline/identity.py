"""What a file, folder or model is: a SHA-256, by which stages know their inputs."""

import hashlib
from pathlib import Path
from typing import Any

from adg.base import distributed
from adg.base.errors import InputError
from adg.base.hashes import HashCache, sha256_of_first
from adg.base.paths import looked_in
from adg.config import Config
from adg.models import folders
from adg.pipeline.record import HASHES
from adg.pipeline.sources import Source, model_key, path_of, sources


def visible_files(folder: Path) -> list[Path]:
    """Every file below `folder` that is not written aside or hidden."""
    return [path for path in folder.rglob("*") if path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _beside(path: Path) -> list[Path]:
    """The files of a folder, or a .npy and the .json beside it; none where it is a file alone."""
    names = path.with_suffix(".json")
    if path.suffix == ".npy" and path.is_file() and names.is_file():
        return [path, names]
    return visible_files(path) if path.is_dir() else []


def _of_hub(config: Config) -> dict:
    """What a pool is that is a hub data set: its name, split and revision."""
    pool = config.pool
    text = f"{pool.path} {pool.split} {pool.revision}"
    return {"name": pool.path, "sha256": hashlib.sha256(text.encode()).hexdigest()}


class Identities:
    """The identity of everything that a stage of one run folder reads or writes."""

    def __init__(self, folder: Path, config: Config | None, *, cached: bool = True) -> None:
        """`config`: None where nothing outside the run folder is asked for. `cached`: a file whose
        size and times have not changed is not read again."""
        self.folder, self._config = folder, config
        self._hashes = HashCache(folder / "provenance" / (HASHES if cached else "none"))

    def files(self, name: str) -> list[Path]:
        """The files of a file, folder or pattern in the run folder."""
        return (visible_files(self.folder / name) if name.endswith("/")
                else [path for path in self.folder.glob(name) if path.is_file()])

    def edited(self, name: str) -> str:
        """Which of the files of an artefact were seen to change since the last stage, for a note.
        """
        names = sorted(str(path.relative_to(self.folder)) for path in self.files(name)
                       if path in self._hashes.edited)
        return f" ({', '.join(names)} changed)" if names else ""

    def sha256(self, path: Path) -> str:
        """The SHA-256 of a file, in hex."""
        return self._hashes.file(path)

    def artefact(self, name: str) -> dict[str, Any] | None:
        """{"sha256", "files"} of a file, folder or pattern in the run folder; None where absent."""
        files = self.files(name)
        if not files:
            return None
        found = {"sha256": self._hashes.tree(self.folder, files), "files": len(files)}
        return found | ({"bytes": files[0].stat().st_size} if name == files[0].name else {})

    def starts_with(self, name: str, known: dict[str, Any]) -> bool:
        """Whether a file or folder of the run folder is what it was when it was `known`, and more.

        A folder's new files come after the old ones in the order of their names.
        """
        path = self.folder / name
        if name.endswith("/"):
            files = sorted(visible_files(path))
            return (len(files) > known["files"] and
                    self._hashes.tree(self.folder, files[: known["files"]]) == known["sha256"])
        if "bytes" not in known or path.stat().st_size <= known["bytes"]:
            return False
        with path.open("rb") as file:
            digest = sha256_of_first(file, known["bytes"])
        return hashlib.sha256(f"{name} {digest}\n".encode()).hexdigest() == known["sha256"]

    def outside(self, name: str, *, whole: bool = True) -> dict | None:
        """{"name", "sha256"} of an input outside the run folder; None where it is not asked for.

        A model's has "whole" too, if asked for, on rank 0: the other ranks need not read it all.
        Raises InputError where it is not found.
        """
        named = path_of(name, self._config)
        if named is None:
            return None
        source = sources(self._config)[name]
        if source.kind == "model":
            hashes = self._hashes if whole and distributed.rank() == 0 else None
            return folders.identity(named, model_key(name, self._config), hashes)
        if source.kind == "pool" and self._config.pool.on_hub():
            return _of_hub(self._config)
        return self._on_disk(Path(named), source)

    def _on_disk(self, path: Path, source: Source) -> dict:
        if source.kind == "files" and (files := _beside(path)):
            return {"name": path.name, "sha256": self._hashes.tree(path.parent, files)}
        if source.kind in ("folder", "pool") and path.is_dir():
            try:
                files = visible_files(path)
            except OSError as error:
                raise InputError(f"{source.key}: {path}/ cannot be read ({error})") from None
            return {"name": path.name, "sha256": self._hashes.tree(path, files)}
        if source.kind == "folder" or not path.is_file():
            shown = f"{path}/" if source.kind == "folder" else path
            raise InputError(f"{source.key}: {shown} not found{looked_in(path)}")
        return {"name": path.name, "sha256": self._hashes.file(path)}

    def save(self) -> None:
        """Keep the hashes for later runs."""
        self._hashes.save()
