"""Relative paths to inputs: from the current folder, else from the repository, as its configs have
them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def find(name: str) -> str:
    """The path itself, or that in the repository where only the latter exists."""
    inside = ROOT / name
    return str(inside) if not Path(name).exists() and inside.exists() else name


def looked_in(path: str | Path) -> str:
    """Where a path was looked for, to end the message that it is not there; "" for an absolute one.
    """
    if Path(path).expanduser().is_absolute():
        return ""
    return f" (looked in {' and '.join(dict.fromkeys([str(Path.cwd()), str(ROOT)]))})"


def from_root(name: str) -> str:
    """A path in the repository relative to it, any other as it is: what `find` gives, the same from
    whatever folder it was called in."""
    path = Path(name)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else name
