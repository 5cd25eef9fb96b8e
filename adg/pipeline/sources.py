"""What stages read from outside the run folder: each source's name, kind and configuration key."""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

from adg.config import Config

_OF_METHODS = ("measure.", "select.")  # what their names begin with


class Source(NamedTuple):
    """One input from outside the run folder."""

    kind: str  # model, pool, file, folder, or files: a file, a folder, a .npy with its .json
    key: str  # the configuration key that names it
    path: Callable[[Config], str | None] | None = None  # where that is not the key's value


SOURCES = {
    "pool.path": Source("pool", "pool.path"),
    "model": Source("model", "model.name_or_path"),
    "train.subset": Source("file", "train.subset",
                           lambda c: str(file) if (file := c.train.subset_file()) else None),
    "train.model": Source("model", "train.model_name_or_path"),
    "train.deepspeed": Source("file", "train.deepspeed"),
    "eval.data_dir": Source("folder", "eval.data_dir"),
}


def sources(config: Config) -> dict[str, Source]:
    """{name: source} of every stage, those of the selection's method included."""
    facts = config.selection.facts()
    return (SOURCES | {name: Source("model", key) for name, key in facts.models.items()}
            | {name: Source("files", key) for name, key in facts.files.items()})


def is_outside(name: str) -> bool:
    """Whether an input lies outside the run folder."""
    return name in SOURCES or is_of_method(name)


def is_of_method(name: str) -> bool:
    """Whether an input is a source of some selection method."""
    return name.startswith(_OF_METHODS)


def models(config: Config) -> list[str]:
    """The names of the sources that are models."""
    return [name for name, source in sources(config).items() if source.kind == "model"]


def path_of(name: str, config: Config) -> str | None:
    """The name or path that the configuration gives a source; None where it asks for none."""
    source = sources(config).get(name)
    if source is None:
        return None
    if source.kind == "model":
        return model_of(name, config)
    return source.path(config) if source.path else value_of(source.key, config)


def model_of(name: str, config: Config) -> str:
    """The name or path of the model that `model`, `train.model` or a method's input stands for."""
    return value_of(model_key(name, config), config)


def model_key(name: str, config: Config) -> str:
    """The configuration key that names this model: the backbone's where its own is null."""
    key = sources(config)[name].key
    return key if value_of(key, config) else SOURCES["model"].key


def value_of(key: str, config: Config) -> Any:
    """The value of a configuration key."""
    return reduce(getattr, key.split("."), config)
