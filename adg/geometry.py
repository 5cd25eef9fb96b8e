"""The shape of a cloud of answers: centred Gram, dispersion, anisotropy, score (paper, method).

Shapes: K answers, H hidden; `...` any leading axes (records). All arithmetic is in float64.
A missing answer is a row of NaN: left out of the mean, and NaN in its row and column of the Gram.
"""

from collections.abc import Callable

import numpy as np

_NO_SPREAD = 1e-12  # below this sum of eigenvalues all answers coincide


def centred_grams(vectors: np.ndarray) -> np.ndarray:
    """Gram matrices Sc of unit vectors after centring: Sc_jk = (v_j - m) . (v_k - m).

    vectors [..., K, H] need not be unit: rows are normalised, a zero row stays zero, a row with a
    NaN is a missing answer. Returns [..., K, K] float64. Centring comes before the product: a Gram
    centred afterwards loses the anisotropy of near-identical answers to cancellation.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    missing = np.isnan(vectors).any(axis=-1, keepdims=True)                            # [..., K, 1]
    vectors = np.where(missing, 0.0, vectors)
    scale = np.abs(vectors).max(axis=-1, keepdims=True)  # first: no square over- or underflows
    vectors = vectors / np.where(scale > 0, scale, 1.0)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units = vectors / np.where(length > 0, length, 1.0)                                # [..., K, H]
    count = np.maximum((~missing).sum(axis=-2, keepdims=True), 1)
    centred = np.where(missing, np.nan, units - units.sum(axis=-2, keepdims=True) / count)
    return centred @ np.swapaxes(centred, -1, -2)


def first_answers(grams: np.ndarray, count: int) -> np.ndarray:
    """The Gram matrices that the first `count` answers alone have: [..., K, K] -> [..., k, k].

    Float64, centred anew on their own mean, which is exact: the other answers entered by the mean
    alone. count is from 2 to K.
    """
    grams = np.asarray(grams, dtype=np.float64)[..., :count, :count]
    missing = np.isnan(np.diagonal(grams, axis1=-2, axis2=-1))                         # [..., k]
    hidden = missing[..., :, None] | missing[..., None, :]
    filled = np.where(hidden, 0.0, grams)
    number = np.maximum((~missing).sum(axis=-1), 1)[..., None, None]
    rows = filled.sum(axis=-1, keepdims=True) / number
    centred = filled - rows - np.swapaxes(rows, -1, -2) + filled.sum(
        axis=(-2, -1), keepdims=True) / number**2
    return np.where(hidden, np.nan, centred)


def num_answers(grams: np.ndarray) -> np.ndarray:
    """How many answers of each record have a vector: [..., K, K] -> [...] int."""
    return (~np.isnan(np.diagonal(grams, axis1=-2, axis2=-1))).sum(axis=-1)


def dispersion(grams: np.ndarray) -> np.ndarray:
    """D = tr(Sc) / K, the mean squared distance to the mean answer: [..., K, K] -> [...] in [0, 1].

    0 where the answers coincide. NaN where fewer than two answers have a vector.
    """
    grams = np.asarray(grams, dtype=np.float64)
    count = num_answers(grams)
    spread = np.nansum(np.diagonal(grams, axis1=-2, axis2=-1), axis=-1)
    spread = np.where(spread >= _NO_SPREAD, spread, 0.0)
    return np.where(count >= 2, spread / np.maximum(count, 1), np.nan)


def anisotropy(grams: np.ndarray) -> np.ndarray:
    """I = 1 - lambda_1 / sum_j lambda_j, share of variance outside the first principal direction.

    [..., K, K] -> [...] in [0, 1 - 1/(K-1)]; 0 where the answers coincide or lie on a line, as two
    always do. NaN where fewer than two answers have a vector. (A high value means spread in many
    directions.)
    """
    grams = np.asarray(grams, dtype=np.float64)
    eigenvalues = np.maximum(np.linalg.eigvalsh(np.nan_to_num(grams, nan=0.0)), 0.0)   # [..., K]
    total = eigenvalues.sum(axis=-1)
    count = num_answers(grams)
    spread = (total >= _NO_SPREAD) & (count > 2)
    share = 1.0 - eigenvalues[..., -1] / np.where(spread, total, 1.0)
    return np.where(count >= 2, np.where(spread, np.maximum(share, 0.0), 0.0), np.nan)


def divergence_score(dispersion: np.ndarray, anisotropy: np.ndarray,
                     anisotropy_weight: float = 0.4) -> np.ndarray:
    """s = (1 - lambda) D + lambda I, lambda = anisotropy_weight; neither term is normalised."""
    return ((1.0 - anisotropy_weight) * np.asarray(dispersion)
            + anisotropy_weight * np.asarray(anisotropy))


Score = Callable[[np.ndarray, np.ndarray, float], np.ndarray]  # (dispersion, anisotropy, weight)
# By the values of selection.score. What a function computes is not compared when a stage decides
# whether it is done: another formula is another name.
SCORES: dict[str, Score] = {"divergence": divergence_score}


def formula(name: str, anisotropy_weight: float, dispersion: str = "D",
            anisotropy: str = "I") -> str:
    """A score of SCORES for people to read: "0.6 D + 0.4 I"."""
    if SCORES[name] is divergence_score:
        return f"{1 - anisotropy_weight:g} {dispersion} + {anisotropy_weight:g} {anisotropy}"
    return f"{name}({dispersion}, {anisotropy}; {anisotropy_weight:g})"
