"""Relative paths to inputs lead from the current folder, else from the repository (its configs)."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def find(name: str) -> str:
    """The path itself, or the one in the repository where only that exists."""
    inside = ROOT / name
    return str(inside) if not Path(name).exists() and inside.exists() else name


def looked_in(path: str | Path) -> str:
    """Where a path was looked for, to end a message "not found"; "" for an absolute one."""
    if Path(path).expanduser().is_absolute():
        return ""
    return f" (looked in {' and '.join(dict.fromkeys([str(Path.cwd()), str(ROOT)]))})"


def from_root(name: str) -> str:
    """What `find` returned, but a path in the repository relative to it: the same whatever the
    current folder was."""
    path = Path(name)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else name
