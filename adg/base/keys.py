"""How a configuration key is declared, with its limits, and checked."""

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import Field, field, fields, is_dataclass
from typing import Any, NamedTuple, get_args

from adg.base.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of a folder, and of a file in provenance/
NAME_RULE = "up to 100 letters, digits, dots, - and _, the first a letter or digit"
DTYPES = ("bfloat16", "float16", "float32")
MAX_SEED = 2**32 - 1  # NumPy's largest


class Limits(NamedTuple):
    """What a value must be; None: no such limit. For a list, choices are of its items; for a
    mapping, of its names."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Collection[str] | None = None

    def hold(self, value: Any) -> bool:
        """Whether a value other than None is allowed."""
        return ((self.least is None or value >= self.least)
                and (self.most is None or value <= self.most)
                and (self.above is None or value > self.above)
                and (self.below is None or value < self.below)
                and (self.choices is None or value in self.choices))

    def describe(self) -> str:
        """In words, as in "2 or more"; empty where every value is allowed."""
        if self.choices is not None:
            return listed(self.choices)
        low = f"above {self.above:g}" if self.above is not None else ""
        if self.most is None and self.below is None:
            return low if self.least is None else f"{self.least} or more"
        high = f"at most {self.most}" if self.most is not None else f"below {self.below}"
        if self.least is not None:
            return f"from {self.least} to {high.removeprefix('at most ')}"
        return f"{low} and {high}" if low else high


def key(default: Any, about: str, *, tuning: bool = False, path: bool = False,
        least: float | None = None, most: float | None = None, above: float | None = None,
        below: float | None = None, choices: Collection[str] | None = None,
        compared: bool = True) -> Any:
    """A key with its default and what it is, units included, and what limits its value.

    `tuning`: no result depends on it. `path`: it names an input, which may be a file or folder
    (adg.base.paths). `compared`: a difference in it makes a table's row differ from the paper's.
    The limits are those of `Limits`; a key whose type allows None may also be None.
    """
    limits = Limits(least, most, above, below, choices)
    metadata = {"about": about, "tuning": tuning, "path": path, "compared": compared,
                "limits": limits}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def allowed(item: Field) -> str:
    """What a key's value may be, in words; empty where its type says all."""
    limits: Limits = item.metadata["limits"]
    if type(None) not in get_args(item.type) or limits == Limits():
        return limits.describe()
    return listed(("null", *(limits.choices or [limits.describe()])))


def check(section: Any, prefix: str = "") -> None:
    """InputError where a key of a section, or of a section in it, is outside its limits."""
    for item in fields(section):
        name, value = prefix + item.name, getattr(section, item.name)
        if is_dataclass(value):
            check(value, f"{name}.")
        elif value is not None:
            limits: Limits = item.metadata["limits"]
            require(not isinstance(value, float) or math.isfinite(value), name, value, "finite")
            several = isinstance(value, list | dict) and limits.choices is not None
            for part in value if several else [value]:
                require(limits.hold(part), name, part, allowed(item))


def require(holds: bool, key: str, value: Any, allowed: str) -> None:
    """InputError that names the key and what is allowed, where a condition does not hold."""
    if not holds:
        raise InputError(f"{key} is {value!r}; it must be {allowed}")


def listed(words: Iterable[str]) -> str:
    """"a, b or c"."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def is_name(value: str) -> bool:
    """Whether a value can name a folder of the run (NAME_RULE)."""
    return _NAME.fullmatch(value) is not None
