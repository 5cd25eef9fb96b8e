"""How a configuration key is declared and checked."""

import re
from dataclasses import field
from typing import Any

from adg.base.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of a folder, and of a file in provenance/
NAME_RULE = "up to 100 letters, digits, dots, - and _, the first a letter or digit"
DTYPES = ("bfloat16", "float16", "float32")


def key(default: Any, about: str, *, tuning: bool = False, path: bool = False) -> Any:
    """A key with its default and what it is, units included; `tuning`: no result depends on it;
    `path`: it names an input, which may be a file or folder (adg.base.paths)."""
    metadata = {"about": about, "tuning": tuning, "path": path}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def require(holds: bool, key: str, value: Any, allowed: str) -> None:
    """InputError that names the key and what is allowed, where a condition does not hold."""
    if not holds:
        raise InputError(f"{key} is {value!r}; it must be {allowed}")


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """InputError where a value is none of the allowed ones."""
    require(value in allowed, key, value, " or ".join(allowed))


def positive_or_none(key: str, value: int | None) -> None:
    """InputError where a number is neither null nor 1 or more."""
    require(value is None or value >= 1, key, value, "null or 1 or more")


def seed_or_none(key: str, value: int | None) -> None:
    """InputError where a value is neither null nor a seed."""
    require(value is None or 0 <= value < 2**32, key, value, "from 0 to below 2**32")


def dtype_or_none(key: str, value: str | None) -> None:
    """InputError where a value is neither null nor a type of weights."""
    require(value is None or value in DTYPES, key, value, "null or " + " or ".join(DTYPES))


def is_name(value: str) -> bool:
    """Whether a value can name a folder of the run (NAME_RULE)."""
    return _NAME.fullmatch(value) is not None
