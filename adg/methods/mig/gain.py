"""The graph of labels of method mig, and what a record brings to it.

A record gives its score to each of its tags, and from there to tags of like meaning. What a label
has gathered counts less the more it is, so that the picks are good and differ.

Shapes: N records, L labels (the tags in use, sorted), H hidden.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from adg.methods.mig.annotations import Annotation

if TYPE_CHECKING:
    from scipy import sparse

_ROWS = 256  # of the similarity matrix that are in memory at once


def label_rows(annotations: Sequence[Annotation], labels: Sequence[str], *, norm: bool
               ) -> "sparse.csr_array":
    """Each record's score at each of its tags, [N, L]; `norm`: over the number of its tags.

    A tag that a record names twice is one label, but counts twice in that number.
    """
    from scipy import sparse

    column = {label: number for number, label in enumerate(labels)}
    rows = [sorted({column[tag] for tag in annotation.tags}) for annotation in annotations]
    values = [annotation.score / (len(annotation.tags) if norm and annotation.tags else 1)
              for annotation in annotations]
    lengths = [len(row) for row in rows]
    columns = np.array([number for row in rows for number in row], dtype=np.int64)
    return sparse.csr_array((np.repeat(values, lengths), columns, np.cumsum([0, *lengths])),
                            shape=(len(rows), len(labels)))


def propagation(vectors: np.ndarray, *, threshold: float, weight: float) -> "sparse.csr_array":
    """What part of a label's information goes to which label, [L, L], from vectors [L, H].

    Cosine similarities of `threshold` or more, those to other labels times `weight`, each column
    divided by its sum. A label is always like itself.
    """
    from scipy import sparse

    size = len(vectors)
    units = np.asarray(vectors, dtype=np.float64)
    units = units / np.linalg.norm(units, axis=1, keepdims=True)
    blocks = []
    for start in range(0, size, _ROWS):
        rows = np.arange(start, min(start + _ROWS, size))
        block = units[rows] @ units.T                                               # [_ROWS, L]
        block[block < threshold] = 0.0
        block *= weight
        block[rows - start, rows] = 1.0
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


def pick_by_gain(values: "sparse.csr_array", number: int, slope: Slope
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
        entries = slice(starts[row], starts[row + 1])
        return float((data[entries] * slopes[columns[entries]]).sum())

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
        entries = slice(starts[row], starts[row + 1])
        gathered[columns[entries]] += data[entries]
        slopes[columns[entries]] = slope(gathered[columns[entries]])
    return np.array(rows, dtype=np.int64), np.array(gains)
