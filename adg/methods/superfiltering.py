"""Methods superfiltering and superfiltering_d: IFD by a small model (Li et al. 2024).

Shapes: N records of the pool, n of them candidates, H dimensions of a vector.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adg.base.errors import InputError
from adg.base.keys import DTYPES, key
from adg.methods.losses import LossMeasurer, Pair, filled, pairs_of
from adg.methods.measures import Measures
from adg.methods.method import (
    Choice,
    Measure,
    Method,
    Task,
    at_most,
    check_enough,
    measured,
    sift,
    with_controls,
    without_divergence,
)
from adg.models.causal import CausalModel

if TYPE_CHECKING:
    from adg.models.encoder import TextEncoder
    from adg.models.loader import Loader

_CANDIDATES = 0.2  # of the pool, as the release has it
_SHORT = ("{instruction}\n{input}\n", "{instruction}\n")  # (with input, without)
_HIGHEST = 700.0  # logarithm that a float64 can hold, about
_TIED = 1e-9  # relative difference below which two gains are equal
_NEAR = 1e-6  # squared distance, relative to the squared lengths, from which it is subtracted out
_AT_ONCE = 16  # gains computed together
_ROWS = 512  # of the similarities that are computed at once


@dataclass
class SuperfilteringConfig:
    model_name_or_path: str = key("openai-community/gpt2", "model that measures: a hub name, "
                                                            "folder or GGUF file", path=True)
    dtype: str = key("float32", "dtype of its weights (float32 in the release)", choices=DTYPES)
    max_length: int = key(1024, "maximum tokens of instruction and output; longer ones are "
                                 "truncated at the end", least=2)
    threshold: float = key(1.0, "keep only records with a lower IFD", above=0)
    candidates: int | None = key(None, "superfiltering_d: records with the highest IFD to pick "
                                        "from; null: a fifth of the pool", least=1)
    encoder: str = key("sentence-transformers/all-MiniLM-L6-v2", "superfiltering_d: encoder of "
                                                                  "the records",
                       path=True)
    text: str = key("all", "superfiltering_d: text for the encoder: all (instruction, input and "
                            "output), instruction or output",
                      choices=("all", "instruction", "output"))

    def count_candidates(self, num_records: int) -> int:
        """Candidates of superfiltering_d in a pool, if so many are kept."""
        return self.candidates or int(_CANDIDATES * num_records)


def load(loader: "Loader", settings: SuperfilteringConfig,
         encoder: "TextEncoder | None" = None) -> LossMeasurer:
    """What measures the two losses of an output; with an encoder, vectors of the records too."""
    model = loader.causal("measure.model", settings.dtype, settings.max_length,
                          "selection.superfiltering.max_length")
    return LossMeasurer(model, lambda records: superfiltering_pairs(
        records, model, limit=settings.max_length), encoder)


def load_with_encoder(loader: "Loader", settings: SuperfilteringConfig) -> LossMeasurer:
    """What measures losses and vectors, for superfiltering_d."""
    return load(loader, settings, loader.encoder("measure.encoder", settings.text))


def superfiltering_pairs(records: list[dict], model: CausalModel, *, limit: int) -> list[Pair]:
    """SuperFiltering's texts: instruction, input and output a line each, and the output alone."""
    return pairs_of(records, model, filled(_SHORT, records), header="", start=1, limit=limit,
                    allowed=1)


class _Ranked(NamedTuple):
    """What both methods know before they choose."""

    measures: Measures
    columns: dict[str, np.ndarray]
    ranking: np.ndarray  # the kept records, highest IFD first, ties in pool order
    dropped: dict[str, int]


def choose_by_superfiltering(task: Task) -> Choice:
    """Method superfiltering: the highest IFD below the threshold, highest first."""
    ranked = _rank(task)
    check_enough("selection.budget", task.budget, len(ranked.ranking), ranked.dropped)
    return without_divergence(
        task.pool, with_controls(ranked.ranking, task.budget),
        {"kept": len(ranked.ranking), "dropped": ranked.dropped}, **ranked.columns)


def choose_by_superfiltering_d(task: Task) -> Choice:
    """Method superfiltering_d: of the highest, those that facility location picks, in that order.

    The controls are of the records that are left, by IFD.
    """
    ranked, settings = _rank(task), task.settings
    ranking = ranked.ranking
    check_enough("selection.superfiltering.candidates", settings.candidates or 0, len(ranking),
                 ranked.dropped)
    candidates = ranking[: settings.count_candidates(len(task.pool))]
    check_enough("selection.budget", task.budget, len(candidates), ranked.dropped)
    vectors = ranked.measures.vectors(candidates)
    picked = candidates[facility_location(vectors, task.budget)]
    order = np.concatenate([picked, ranking[~np.isin(ranking, picked)]])
    return without_divergence(
        task.pool, with_controls(order, task.budget),
        {"kept": len(ranking), "dropped": ranked.dropped, "candidates": len(candidates)},
        **ranked.columns)


def check_candidates(settings: SuperfilteringConfig, budget: int, num_records: int) -> None:
    """InputError where superfiltering_d has fewer candidates than it is to pick."""
    name = "selection.superfiltering.candidates"
    at_most(name, settings.candidates or 0, num_records)
    number = settings.count_candidates(num_records)
    if budget > number:
        raise InputError(
            f"selection.budget is {budget}, but superfiltering_d picks among {number} candidates"
            f"{'' if settings.candidates else ', a fifth of the pool'}: raise {name}, or lower the "
            f"budget")


def _rank(task: Task) -> _Ranked:
    threshold, measures = task.settings.threshold, task.measures()
    given, direct = measures.numbers("given_loss", "direct_loss")
    ifd = np.exp(np.minimum(given - direct, _HIGHEST))
    kept, dropped = sift(len(ifd), {
        "without a scored token": np.isnan(ifd), f"of IFD {threshold:g} or more": ifd >= threshold})
    rows = np.flatnonzero(kept)
    columns = {"score": np.where(kept, ifd, np.nan), "ifd": ifd,
               "given_loss": given, "direct_loss": direct}
    return _Ranked(measures, columns, rows[np.argsort(-ifd[rows], kind="stable")], dropped)


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
    similarity = np.empty((len(vectors), len(vectors)))
    for start in range(0, len(vectors), _ROWS):
        rows = slice(start, start + _ROWS)
        scale = squares[rows, None] + squares
        distances = np.maximum(scale - 2 * vectors[rows] @ vectors.T, 0)
        near = np.nonzero(distances < _NEAR * scale)  # where little is left of a difference
        distances[near] = ((vectors[rows][near[0]] - vectors[near[1]]) ** 2).sum(axis=1)
        similarity[rows] = np.exp(-np.sqrt(distances) / vectors.shape[1])
    return similarity


_SECTION = "selection.superfiltering"
_MODEL = {"measure.model": f"{_SECTION}.model_name_or_path"}
_MEASURE_KEYS = ("model.trust_remote_code", f"{_SECTION}.dtype", f"{_SECTION}.max_length")
METHOD = Method(
    "SuperFiltering",
    lambda told: (f"The records of the highest instruction-following difficulty (IFD) below "
                  f"{told.settings.threshold:g}: the perplexity of the output after the "
                  f"instruction, divided by its perplexity alone, both of {told.model}."),
    choose_by_superfiltering, section="superfiltering", settings=SuperfilteringConfig,
    keys=(f"{_SECTION}.threshold",), reads=measured,
    measure=Measure({"": load}, models=_MODEL, keys=_MEASURE_KEYS))
METHOD_D = Method(
    "SuperFiltering.D",
    lambda told: (f"Of the records of the highest instruction-following difficulty (IFD) below "
                  f"{told.settings.threshold:g}, those that facility location picks; the "
                  f"perplexities and the vectors are of {told.model}."),
    choose_by_superfiltering_d, section="superfiltering", settings=SuperfilteringConfig,
    keys=(f"{_SECTION}.threshold", f"{_SECTION}.candidates"), reads=measured,
    check_sizes=check_candidates,
    measure=Measure({"": load_with_encoder},
                    models=_MODEL | {"measure.encoder": f"{_SECTION}.encoder"},
                    keys=(*_MEASURE_KEYS, f"{_SECTION}.text"), vectors="measure.encoder"))
