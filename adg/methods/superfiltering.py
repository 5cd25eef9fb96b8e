"""Methods superfiltering and superfiltering_d: IFD by a small model (Li et al. 2024).

Shapes: N records of the pool, n of them candidates, H dimensions of a vector.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from adg.config import Config
from adg.methods.choice import Choice, without_divergence
from adg.methods.kept import check_enough, sift, with_controls
from adg.methods.measures import Measures
from adg.records import Pool

_HIGHEST = 700.0  # logarithm that a float64 can hold, about
_TIED = 1e-9  # relative difference below which two gains are equal
_NEAR = 1e-6  # squared distance, relative to the squared lengths, from which it is subtracted out
_AT_ONCE = 16  # gains computed together
_ROWS = 512  # of the similarities that are computed at once


class _Ranked(NamedTuple):
    """What both methods know before they choose."""

    measures: Measures
    columns: dict[str, np.ndarray]
    ranking: np.ndarray  # the kept records, highest IFD first, ties in pool order
    dropped: dict[str, int]


def choose_by_superfiltering(folder: Path, pool: Pool, config: Config) -> Choice:
    """Method superfiltering: the highest IFD below the threshold, highest first."""
    ranked, budget = _rank(folder, pool, config), config.selection.budget
    check_enough("selection.budget", budget, len(ranked.ranking), ranked.dropped)
    return without_divergence(
        pool, with_controls(ranked.ranking, budget),
        {"kept": len(ranked.ranking), "dropped": ranked.dropped}, **ranked.columns)


def choose_by_superfiltering_d(folder: Path, pool: Pool, config: Config) -> Choice:
    """Method superfiltering_d: of the highest, those that facility location picks, in that order.

    The controls are of the records that are left, by IFD.
    """
    ranked, settings = _rank(folder, pool, config), config.selection
    ranking, asked = ranked.ranking, settings.superfiltering.candidates
    check_enough("selection.superfiltering.candidates", asked or 0, len(ranking), ranked.dropped)
    candidates = ranking[: settings.superfiltering.count_candidates(len(pool))]
    check_enough("selection.budget", settings.budget, len(candidates), ranked.dropped)
    vectors = ranked.measures.vectors(candidates)
    picked = candidates[facility_location(vectors, settings.budget)]
    order = np.concatenate([picked, ranking[~np.isin(ranking, picked)]])
    return without_divergence(
        pool, with_controls(order, settings.budget),
        {"kept": len(ranking), "dropped": ranked.dropped, "candidates": len(candidates)},
        **ranked.columns)


def _rank(folder: Path, pool: Pool, config: Config) -> _Ranked:
    threshold = config.selection.superfiltering.threshold
    found = Measures(folder, pool, config)
    given, direct = found.numbers("given_loss", "direct_loss")
    ifd = np.exp(np.minimum(given - direct, _HIGHEST))
    kept, dropped = sift(len(pool), {
        "without a scored token": np.isnan(ifd), f"of IFD {threshold:g} or more": ifd >= threshold})
    rows = np.flatnonzero(kept)
    columns = {"score": np.where(kept, ifd, np.nan), "ifd": ifd,
               "given_loss": given, "direct_loss": direct}
    return _Ranked(found, columns, rows[np.argsort(-ifd[rows], kind="stable")], dropped)


def facility_location(vectors: np.ndarray, count: int) -> np.ndarray:
    """Positions of `count` of n vectors [n, H], picked greedily, in the order of picking.

    What is maximised is the sum over all of the similarity to the nearest picked one. Of equal
    gains (1e-9 relative) the greatest index is picked. Takes 8 n^2 bytes.
    """
    similarity = similarities(vectors)
    covered = np.zeros(len(vectors))  # similarity to the nearest picked one
    gains = similarity.sum(axis=1)  # as last computed: bounds from above, as gains never rise
    picked: list[int] = []
    for _ in range(count):
        fresh = np.isneginf(gains) if picked else np.isfinite(gains)
        while True:
            best = gains[fresh].max(initial=-np.inf)
            least = best - abs(best) * _TIED
            stale = np.flatnonzero(~fresh & (gains >= least))
            if not len(stale):
                break
            rows = stale[np.argsort(-gains[stale])[:_AT_ONCE]]
            gains[rows] = np.maximum(similarity[rows] - covered, 0).sum(axis=1)
            fresh[rows] = True
        picked.append(int(np.flatnonzero(fresh & (gains >= least))[-1]))
        covered = np.maximum(covered, similarity[picked[-1]])
        gains[picked[-1]] = -np.inf
    return np.array(picked, dtype=np.int64)


def similarities(vectors: np.ndarray) -> np.ndarray:
    """exp(-d / H) of the Euclidean distances d of all pairs of vectors [n, H]; float64 [n, n]."""
    vectors = np.asarray(vectors, dtype=np.float64)
    squares = (vectors ** 2).sum(axis=1)
    found = np.empty((len(vectors), len(vectors)))
    for start in range(0, len(vectors), _ROWS):
        own = slice(start, start + _ROWS)
        scale = squares[own, None] + squares
        distances = np.maximum(scale - 2 * vectors[own] @ vectors.T, 0)
        near = np.nonzero(distances < _NEAR * scale)  # where little is left of a difference
        distances[near] = ((vectors[own][near[0]] - vectors[near[1]]) ** 2).sum(axis=1)
        found[own] = np.exp(-np.sqrt(distances) / vectors.shape[1])
    return found
