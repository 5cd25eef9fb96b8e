"""Bytes and seconds for people to read, and how many bytes are free."""

import shutil
from pathlib import Path

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def space(needed: int, folder: Path) -> str:
    """How many bytes a folder is to take at most, and how many are free."""
    free = shutil.disk_usage(nearest(folder)).free
    return (f"{size(needed)} at most, {size(free)} free"
            + (": NOT ENOUGH" if needed > free else ""))


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def size(number: float) -> str:
    """Bytes for people to read."""
    power = 0
    while number >= 1024 and power < len(_UNITS) - 1:
        number, power = number / 1024, power + 1
    return f"{number:.{min(power, 1)}f} {_UNITS[power]}"


def duration(seconds: float) -> str:
    """Hours or minutes for people to read."""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
