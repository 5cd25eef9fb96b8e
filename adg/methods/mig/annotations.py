"""What method mig reads: tags and scores of each record, and the vectors of the tags.

Shapes: N records of the pool, L tags in use, H hidden.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adg.base import arrays, artifacts
from adg.base.errors import InputError
from adg.records import Pool

_SCORES = ("quality_scores", "complexity_scores")


class Annotation(NamedTuple):
    """What is known of a record: its valid tags in order, and its score (0 or more)."""

    tags: list[str]
    score: float


def annotations_of(pool: Pool, path: Path | None, valid: frozenset[str] | None
                   ) -> list[Annotation | None]:
    """The annotation of each record [N], from its own fields or from JSONL by id; None: it has
    none. Tags that are not `valid` are left out (None: all are).

    Rows of other ids are passed over; InputError where a row is not as it should be, where an id
    comes twice, and where no row has an id of the pool.
    """
    if path is None:
        return [read_annotation(record, where, valid)
                for record, where in pool.numbered(range(len(pool)))]
    by_id: dict[str, Annotation | None] = {}
    rows = artifacts.JsonlRows(path)
    for row, where in rows.numbered(range(len(rows))):
        if "id" not in row:
            raise InputError(f"{where}: has no id")
        name = str(row["id"])
        if name in by_id:
            raise InputError(f"{where}: id {name!r} is that of an earlier row too")
        by_id[name] = read_annotation(row, where, valid)
    names = [record["id"] for record in pool]
    if not by_id.keys() & set(names):
        raise InputError(f"selection.mig.annotations: {path} has no id of the pool's, whose first "
                         f"is {names[0]!r}")
    return [by_id.get(name) for name in names]


def read_annotation(record: dict, where: str, valid: frozenset[str] | None) -> Annotation | None:
    """Tags and score from the fields tags, quality_scores and complexity_scores, or from
    annotation.instag.content and annotation.deita; None where one of them is missing or null.

    The score is the mean over dialogue rounds of quality times complexity.
    """
    nested = record.get("annotation")
    if isinstance(nested, dict):
        parts = [nested.get(name) or {} for name in ("instag", "deita")]
        if not all(isinstance(part, dict) for part in parts):
            raise InputError(f"{where}: annotation.instag or annotation.deita is not an object")
        values = [parts[0].get("content"), *(parts[1].get(name) for name in _SCORES)]
    else:
        values = [record.get(name) for name in ("tags", *_SCORES)]
    if any(value is None for value in values):
        return None
    tags, *scores = values
    if not _all_of(tags, str):
        raise InputError(f"{where}: tags is not an array of strings")
    for name, numbers in zip(_SCORES, scores, strict=True):
        if not numbers or not _all_of(numbers, float) or not all(
                math.isfinite(number) and number >= 0 for number in numbers):
            raise InputError(f"{where}: {name} is not an array of numbers of 0 or more")
    if len(scores[0]) != len(scores[1]):
        raise InputError(f"{where}: {len(scores[0])} quality_scores but {len(scores[1])} "
                         f"complexity_scores; there must be one of each per round")
    return Annotation([tag for tag in tags if valid is None or tag in valid],
                      float(np.mean(np.multiply(*scores))))


def _all_of(values: Any, kind: type) -> bool:
    kinds = (float, int) if kind is float else (kind,)
    return isinstance(values, list) and all(
        isinstance(value, kinds) and not isinstance(value, bool) for value in values)


def read_names(path: Path) -> list[str]:
    """A JSON array of tags that differ."""
    try:
        names = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: file not found") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    if not _all_of(names, str):
        raise InputError(f"{path}: not a JSON array of strings")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: {twice!r} appears twice")
    return names


def vector_files(path: Path) -> tuple[Path, Path]:
    """(.npy, .json) behind a folder with vectors.npy and tags.json, or a .npy with a .json of the
    same name beside it."""
    if path.is_dir():
        return path / "vectors.npy", path / "tags.json"
    return path, path.with_suffix(".json")


def vectors_of(path: Path, labels: Sequence[str]) -> np.ndarray:
    """The vectors [L, H] of the tags in use; InputError where one is missing or has no
    direction."""
    file, names_file = vector_files(path)
    vectors, names = arrays.read_array(file), read_names(names_file)
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != len(names):
        raise InputError(f"{file}: {vectors.dtype} of shape {vectors.shape}; expected floats, a "
                         f"row for each of the {len(names)} tags of {names_file}")
    row_of = {name: row for row, name in enumerate(names)}
    missing = [label for label in labels if label not in row_of]
    if missing:
        raise InputError(f"{names_file}: no vector for {len(missing)} of the {len(labels)} tags in "
                         f"use: {_some(missing)}; add them, or leave the tags out by "
                         f"selection.mig.valid_tags")
    rows = np.asarray(vectors[[row_of[label] for label in labels]], dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    bad = [label for label, length in zip(labels, lengths, strict=True)
           if not (math.isfinite(length) and length > 0)]
    if bad:
        raise InputError(f"{file}: the vectors of {_some(bad)} have no direction (zero or not "
                         f"finite)")
    return rows


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:5])) + (" ..." if len(names) > 5 else "")
