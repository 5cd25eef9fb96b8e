"""What a stage counts or lists as it runs: a file per chunk, over ranks and restarts."""

import json
from collections import Counter
from pathlib import Path

from adg.base import artifacts


def keep(folder: Path, chunk: int, counts: dict[str, int | list]) -> None:
    """Keep the counts of a chunk, in place of those of an earlier run."""
    path = folder / artifacts.chunk_name(chunk, "json")
    if any(counts.values()):
        artifacts.write_json(path, counts)
    else:
        path.unlink(missing_ok=True)


def total(folder: Path) -> dict[str, int]:
    """Sums over all chunks, those above 0; a list counts for its length."""
    totals: Counter[str] = Counter()
    for path in folder.glob("*.json"):
        for name, counted in json.loads(path.read_text(encoding="utf-8")).items():
            totals[name] += len(counted) if isinstance(counted, list) else counted
    return {name: number for name, number in totals.items() if number}
