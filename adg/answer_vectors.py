"""The answers' vectors in a run folder, which `sample` or `embed` writes chunk by chunk.

answer_grams/*.npy         float32 [n, K, K], Grams of the centred unit vectors of embedding.layers
window_grams/NAME/*.npy    the same for each further window of layers
answer_embeddings/*.npy    float32 [n, K, H], only with embedding.keep_answer_embeddings

n records of a chunk, K answers, W windows (the first is embedding.layers), H hidden.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from adg.base import arrays, artifacts
from adg.geometry import centred_grams

EMPTY_VECTORS = {"leave_out": np.nan, "zero": 0.0}  # in place of what the recipe makes of one
CHECK_FOLDER = "check_answers"  # ids and vectors of the first answers, from sampling
# In the counts of a chunk (provenance/<stage>.counts/): of how many records a stage made the
# vectors, and how many of embed's existed before it
BY_SAMPLING, BY_FORWARD, KEPT = "vectors_by_sampling", "vectors_by_forward", "vectors_kept"


class Settings(Protocol):
    """What is needed of the section `embedding`."""

    windows: dict[str, list[int]]
    keep_answer_embeddings: bool
    empty_answers: str


def chunk_paths(folder: Path, index: int, settings: Settings) -> dict[str, Path]:
    """{folder's name: file} of one chunk, in the order in which they are written."""
    names = [f"window_grams/{name}" for name in settings.windows] + ["answer_grams"]
    if settings.keep_answer_embeddings:
        names.insert(0, "answer_embeddings")
    return {name: folder / name / artifacts.chunk_name(index, "npy") for name in names}


def num_rows(folder: Path, index: int, settings: Settings, num_answers: int) -> int:
    """Records of a chunk that have all their vectors, for this K."""
    rows = []
    for path in chunk_paths(folder, index, settings).values():
        shape = arrays.shape_of(path) if path.exists() else (0, num_answers)
        rows.append(shape[0] if shape[1] == num_answers else 0)
    return min(rows)


def write(folder: Path, index: int, vectors: np.ndarray, empty: np.ndarray, settings: Settings,
          *, after: int = 0, kept: dict[int, dict[str, np.ndarray]] | None = None) -> None:
    """Write the vectors of a chunk's records after the first `after`, which exist.

    Vectors [n, K, W, H] need not be unit; `empty` [n, K] ones become what embedding.empty_answers
    says. `kept` has what is to be written of other records ({folder's name: row}) by their number
    among those after `after`; the n are the records between, in order.
    """
    if settings.empty_answers in EMPTY_VECTORS:
        vectors[empty] = EMPTY_VECTORS[settings.empty_answers]
    first = vectors[:, :, 0]                                                        # [n, K, H]
    values = {"answer_embeddings": unit(first), "answer_grams": centred_grams(first)}
    values |= {f"window_grams/{name}": centred_grams(vectors[:, :, number])
               for number, name in enumerate(settings.windows, start=1)}
    for name, path in chunk_paths(folder, index, settings).items():
        kept_rows = {number: row[name] for number, row in (kept or {}).items()}
        arrays.write_array(path, among(values[name].astype(np.float32), kept_rows), after=after)


def among(values: np.ndarray, kept: dict[int, np.ndarray]) -> np.ndarray:
    """Rows of `values` in order, with those of `kept` at their own numbers in between."""
    others = iter(values)
    rows = [kept[number] if number in kept else next(others)
            for number in range(len(values) + len(kept))]
    return np.stack(rows) if rows else values


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., H] divided by their length; zero and NaN stay."""
    with np.errstate(invalid="ignore"):
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1.0)


def num_bytes(num_records: int, width: int, settings: Settings, num_answers: int) -> int:
    """Bytes that the vectors of so many records take on disk, of a model of this hidden width."""
    kept = width * num_answers if settings.keep_answer_embeddings else 0
    return 4 * num_records * (num_answers**2 * (1 + len(settings.windows)) + kept)


def remove(folder: Path, index: int, settings: Settings) -> None:
    """Remove the vectors of a chunk whose answers are about to change."""
    for path in chunk_paths(folder, index, settings).values():
        path.unlink(missing_ok=True)


def sources(folder: Path) -> dict[str, str]:
    """{"sampling": "0-3, 5", "forward": "4-5"}: which chunks each source made, in part or whole.

    Empty where all come from the forward pass because nothing else was asked for, or no record
    that can be read says so.
    """
    try:
        record = json.loads((folder / "provenance" / "embed.json").read_text(encoding="utf-8"))
        if record["parameters"].get("embedding.source") != "sampling":
            return {}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return {}
    sampled, forward, kept = (_counted(folder, stage, name) for stage, name in (
        ("sample", BY_SAMPLING), ("embed", BY_FORWARD), ("embed", KEPT)))
    made_by = {"sampling": sampled - (forward - kept), "forward": forward}
    return {source: _as_ranges(sorted(chunks)) for source, chunks in made_by.items() if chunks}


def _counted(folder: Path, stage: str, key: str) -> set[int]:
    """The chunks in whose counts `key` stands."""
    return {int(path.stem) for path in (folder / "provenance" / f"{stage}.counts").glob("*.json")
            if json.loads(path.read_text(encoding="utf-8")).get(key)}


def _as_ranges(numbers: list[int]) -> str:
    starts = [numbers[0]] + [b for a, b in pairwise(numbers) if b > a + 1]
    ends = [a for a, b in pairwise(numbers) if b > a + 1] + [numbers[-1]]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
