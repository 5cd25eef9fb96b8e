"""What a file, folder or model is: a SHA-256, by which stages know their inputs."""

import hashlib
from functools import reduce
from pathlib import Path
from typing import Any

from adg.base import distributed
from adg.base.errors import InputError
from adg.base.hashes import HashCache, sha256_of_first
from adg.base.paths import looked_in
from adg.config import Config
from adg.models import folders
from adg.pipeline.stages import model_key, model_of

_PATHS = ("pool.path", "train.deepspeed", "eval.data_dir")  # inputs that go by their keys


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


def differ(known: dict | None, now: dict | None) -> bool:
    """Whether two identities are of different things: also of models whose samples are the same,
    where both have been hashed whole."""
    if known is None or now is None:
        return known is not now
    return known["sha256"] != now["sha256"] or (
        "whole" in known and "whole" in now and known["whole"] != now["whole"])


class Identities:
    """The identity of everything that a stage of one run folder reads or writes."""

    def __init__(self, folder: Path, config: Config, *, cached: bool = True) -> None:
        """`cached`: a file whose size and times have not changed is not read again."""
        self.folder, self._config = folder, config
        self._hashes = HashCache(folder / "provenance" / ("sha256.json" if cached else "none"))

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

    def models(self) -> tuple[str, ...]:
        """The inputs outside the run folder that are models."""
        return ("model", "train.model", *self._config.selection.facts().models)

    def source(self, name: str) -> str | None:
        """The name or path that the configuration gives an input outside the run folder; None
        where it is not asked for."""
        facts = self._config.selection.facts()
        if name in self.models():
            return model_of(name, self._config)
        if name == "train.subset":
            file = self._config.train.subset_file()
            return file and str(file)
        key = name if name in _PATHS else facts.files.get(name)
        return key and reduce(getattr, key.split("."), self._config)

    def outside(self, name: str, *, whole: bool = True) -> dict | None:
        """{"name", "sha256"} of an input outside the run folder; None where it is not asked for.

        A model's has "whole" too, if asked for, on rank 0: the other ranks need not read it all.
        Raises InputError where it is not there.
        """
        facts, source = self._config.selection.facts(), self.source(name)
        if source is None:
            return None
        if name in self.models():
            hashes = self._hashes if whole and distributed.rank() == 0 else None
            return folders.identity(source, model_key(name, self._config), hashes)
        if name == "pool.path" and (found := self._pool()) is not None:
            return found
        path = Path(source)
        if name == "eval.data_dir":
            if not path.is_dir():
                raise InputError(f"eval.data_dir: {path}/ is not there{looked_in(path)}")
            return {"name": path.name, "sha256": self._hashes.tree(path, visible_files(path))}
        if name in facts.files and (files := _beside(path)):
            return {"name": path.name, "sha256": self._hashes.tree(path.parent, files)}
        if not path.is_file():
            raise InputError(f"{facts.files.get(name, name)}: {path} is not there{looked_in(path)}")
        return {"name": path.name, "sha256": self._hashes.file(path)}

    def _pool(self) -> dict | None:
        """What a pool is that is a hub data set or a folder; None where it is a file."""
        settings = self._config.pool
        if settings.on_hub():
            text = f"{settings.path} {settings.split} {settings.revision}"
            return {"name": settings.path, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        folder = Path(settings.path)
        if not folder.is_dir():
            return None
        return {"name": folder.name, "sha256": self._hashes.tree(folder, visible_files(folder))}

    def save(self) -> None:
        """Keep the hashes for later runs."""
        self._hashes.save()
