"""Method mig: records that bring the most information on a graph of labels (MIG).

A record gives its score to each of its tags, and from there to tags of like meaning. What a label
has gathered counts less the more it is, so that the picks are good and differ.

Shapes: N records, L labels (the tags in use, sorted), H hidden.
"""

import heapq
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from adg.base.errors import InputError
from adg.config import Config
from adg.methods import measures
from adg.methods.annotations import (
    Annotation,
    annotations_of,
    read_annotation,
    read_names,
    tag_vectors,
)
from adg.methods.choice import Choice, without_divergence
from adg.records import Pool
from adg.selection_config import MigConfig

_ROWS = 256  # of the similarity matrix that are in memory at once


def label_rows(annotations: Sequence[Annotation], labels: Sequence[str], *, norm: bool
               ) -> sparse.csr_array:
    """Each record's score at each of its tags, [N, L]; `norm`: over the number of its tags.

    A tag that a record names twice is one label, but counts twice in that number.
    """
    column = {label: number for number, label in enumerate(labels)}
    rows = [sorted({column[tag] for tag in own.tags}) for own in annotations]
    values = [own.score / (len(own.tags) if norm and own.tags else 1) for own in annotations]
    lengths = [len(row) for row in rows]
    columns = np.array([number for row in rows for number in row], dtype=np.int64)
    return sparse.csr_array((np.repeat(values, lengths), columns, np.cumsum([0, *lengths])),
                            shape=(len(rows), len(labels)))


def propagation(vectors: np.ndarray, *, threshold: float, weight: float) -> sparse.csr_array:
    """What part of a label's information goes to which label, [L, L], from vectors [L, H].

    Cosine similarities of `threshold` or more, those to other labels times `weight`, each column
    divided by its sum. A label is always like itself.
    """
    size = len(vectors)
    units = np.asarray(vectors, dtype=np.float64)
    units = units / np.linalg.norm(units, axis=1, keepdims=True)
    blocks = []
    for start in range(0, size, _ROWS):
        own = np.arange(start, min(start + _ROWS, size))
        block = units[own] @ units.T                                                # [_ROWS, L]
        block[block < threshold] = 0.0
        block *= weight
        block[own - start, own] = 1.0
        blocks.append(sparse.csr_array(block))
    similar = sparse.vstack(blocks, format="csr") if blocks else sparse.csr_array((0, 0))
    return (similar / similar.sum(axis=0)).tocsr()


Slope = Callable[[np.ndarray], np.ndarray]


def slope_of_power(a: float, b: float) -> Slope:
    """The derivative of (x + a) ** b."""
    return lambda x: b * (x + a) ** (b - 1)


def slope_of_exponential(alpha: float) -> Slope:
    """The derivative of 1 - exp(-alpha x)."""
    return lambda x: alpha * np.exp(-alpha * x)


SLOPES: dict[str, Callable[[MigConfig], Slope]] = {
    "pow": lambda settings: slope_of_power(settings.phi_a, settings.phi_b),
    "exp": lambda settings: slope_of_exponential(settings.phi_alpha),
}


def pick_by_gain(values: sparse.csr_array, number: int, slope: Slope
                 ) -> tuple[np.ndarray, np.ndarray]:
    """(rows, gains) of `number` picks in order, each the record of the largest gain then.

    A record's gain is the sum over labels of its information in `values` [N, L], none negative,
    times the slope at what the picks before it have brought. The slope must not rise: then no gain
    does, and a gain of an earlier step is a bound that only the record on top of the queue has to
    renew. Ties go to the first row.
    """
    values.sort_indices()
    starts, columns, data = values.indptr.tolist(), values.indices, values.data
    gathered = np.zeros(values.shape[1])
    slopes = slope(gathered)                                                              # [L]
    renewed = [0] * values.shape[0]  # the step of each record's gain

    def gain(row: int) -> float:
        own = slice(starts[row], starts[row + 1])
        return float((data[own] * slopes[columns[own]]).sum())

    queue = [(-gain(row), row) for row in range(values.shape[0])]
    heapq.heapify(queue)
    rows, gains = [], []
    while len(rows) < number:
        bound, row = queue[0]
        if renewed[row] < len(rows):
            renewed[row] = len(rows)
            heapq.heapreplace(queue, (-gain(row), row))
            continue
        heapq.heappop(queue)
        rows.append(row)
        gains.append(-bound)
        own = slice(starts[row], starts[row + 1])
        gathered[columns[own]] += data[own]
        slopes[columns[own]] = slope(gathered[columns[own]])
    return np.array(rows, dtype=np.int64), np.array(gains)


def choose_by_information_gain(folder: Path, pool: Pool, config: Config) -> Choice:
    """Method mig: top in the order of the picks, the score the gain at the pick; no controls."""
    settings, budget = config.selection.mig, config.selection.budget
    valid = frozenset(read_names(Path(settings.valid_tags))) if settings.valid_tags else None
    if settings.tag_vectors is None:
        vectors = measures.folder_of(folder, config)
        rows = measures.Measures(folder, pool, config).checked("tags")
        annotations = [read_annotation(row, where, valid) for row, where in rows]
    else:
        vectors = Path(settings.tag_vectors)
        annotations = annotations_of(
            pool, Path(settings.annotations) if settings.annotations else None, valid)
    kept = np.array([row for row, own in enumerate(annotations) if own is not None], dtype=np.int64)
    if budget > len(kept):
        raise InputError(f"selection.budget is {budget}, but {len(kept)} of the {len(pool)} "
                         f"records have tags and scores: give {len(kept)} at most")
    annotations = [own for own in annotations if own is not None]
    labels = sorted({tag for own in annotations for tag in own.tags})
    similar = propagation(tag_vectors(vectors, labels),
                          threshold=settings.threshold, weight=settings.prop_weight)
    values = label_rows(annotations, labels, norm=settings.norm) @ similar               # [N, L]
    rows, gains = pick_by_gain(values, budget, SLOPES[settings.phi](settings))
    scores = np.full(len(pool), np.nan)
    scores[kept[rows]] = gains
    return without_divergence(pool, (kept[rows], (), ()), {
        "kept": len(kept), "dropped": {"without tags or scores": len(pool) - len(kept)},
        "without_valid_tags": sum(not own.tags for own in annotations),
        "labels": len(labels), "edges": (similar.nnz - len(labels)) // 2,
    }, score=scores)
