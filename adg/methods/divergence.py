"""Method adg: the answers' divergence.

Shapes: N records of the pool, K answers each, B of them in a block.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adg import geometry
from adg.base import arrays
from adg.base.errors import InputError
from adg.base.keys import key
from adg.geometry import SCORES, formula
from adg.methods.method import Choice, Method, Reads, Task, Told
from adg.selection import RECIPES

_BLOCK = 8192  # Gram matrices that one thread has at hand
_ROUNDING = 1e-6  # share of D, and of the whole range of I, that float32 Grams leave uncertain
_OFF_CENTRE = 1e-3  # of the sizes in a row, what rounding may leave of its sum: float16 does half
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass
class DivergenceConfig:
    """Keys of selection itself."""

    window: str | None = key(None, "adg: window of embedding.windows to score with; null: "
                                    "embedding.layers", compared=False)
    recipe: str = key("paper", "adg: how bins share the budget: paper (largest remainder, exact) "
                                "or released (the release's quotas, whose total can differ)",
                      choices=RECIPES, compared=False)
    num_answers: int | None = key(None, "adg: use only the first N answers, as if only N had been "
                                        "drawn; null: all of generation.num_answers", least=2,
                                   compared=False)
    anisotropy_weight: float = key(0.4, "adg: lambda in score = (1 - lambda) D + lambda I; "
                                         "0: D alone, 1: I alone", least=0, most=1,
                                   compared=False)
    score: str = key("divergence", "adg: function in adg.geometry.SCORES that computes the score "
                                   "from D, I and lambda", choices=SCORES, compared=False)


def choose_by_divergence(task: Task) -> Choice:
    """The highest scores of each bin (paper, method)."""
    settings, pool = task.settings, task.pool

    def score(dispersion: np.ndarray, anisotropy: np.ndarray) -> np.ndarray:
        return SCORES[settings.score](dispersion, anisotropy, settings.anisotropy_weight)

    bins = read_bins(task.folder / "bins.npy", len(pool))
    grams = task.folder / _grams(settings)
    columns = score_grams(grams, len(pool), score, first=settings.num_answers)
    check_told_apart(columns, score, grams)
    select = RECIPES[settings.recipe]
    subsets = select(columns["score"], bins, task.budget)
    alone = {f"{term}_alone": len(np.intersect1d(
        subsets.top, select(columns[term], bins, task.budget).top))
        for term in ("dispersion", "anisotropy")}
    return Choice({"bin": bins} | columns, subsets,
                  describe_scores(columns, score) | {"top_shared_with": alone})


def _grams(settings: DivergenceConfig) -> str:
    return f"window_grams/{settings.window}/" if settings.window else "answer_grams/"


def tell(told: Told) -> str:
    """How records were chosen, for the data card."""
    drawn, settings = told.generation, told.settings
    top_k = f"top-k {drawn.top_k}, " if drawn.top_k else ""
    score = formula(settings.score, settings.anisotropy_weight)
    return (f"Chosen by answer divergence (ADG): the backbone answered each instruction "
            f"{settings.num_answers or drawn.num_answers} times (temperature "
            f"{drawn.temperature:g}, {top_k}top-p {drawn.top_p:g}, at most "
            f"{drawn.max_new_tokens} tokens); dispersion D and anisotropy I of the answers' hidden "
            f"states make the score s = {score}, and each of {told.num_bins} semantic bins gives "
            f"in proportion to its size (recipe {settings.recipe}).")


def note_on_two_answers(settings: DivergenceConfig, num_answers: float) -> str | None:
    """What anisotropy is worth where there are two answers; None for more, or where it does not
    count."""
    weight = settings.anisotropy_weight
    if num_answers != 2 or weight == 0:
        return None
    return ("the anisotropy of two answers is 0 by construction (they lie on a line): "
            + ("with selection.anisotropy_weight=1 all scores are 0, and select refuses them"
               if weight == 1 else f"dispersion alone decides, and selection.anisotropy_weight "
               f"({weight:g}) only scales the score"))


def read_bins(path: Path, num_records: int) -> np.ndarray:
    """The bin of each record, int [N]; InputError where the file is something else."""
    bins = np.array(arrays.read_array(path))
    if bins.shape != (num_records,) or bins.dtype.kind not in "iu":
        raise InputError(f"{path}: {bins.dtype} of shape {bins.shape}; expected integers of shape "
                         f"({num_records},), one for each record of pool.jsonl")
    return bins


Score = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of dispersion and anisotropy


def score_grams(folder: Path, num_records: int, score: Score, *,
                first: int | None = None) -> dict[str, np.ndarray]:
    """{"num_answers", "dispersion", "anisotropy", "score"}, each [N], from a folder of Grams.

    Block by block, in as many threads as there are CPUs. `first`: of the first so many
    answers alone.
    """
    blocks = arrays.array_blocks(folder, num_records, row_dims=2, block_size=_BLOCK)

    def measure(block: arrays.Block) -> tuple[np.ndarray, ...]:
        grams = arrays.read_block(block)                                             # [B, K, K]
        check_grams(grams, block)
        if first is not None:
            grams = geometry.first_answers(grams, first)
        return geometry.num_answers(grams), geometry.dispersion(grams), geometry.anisotropy(grams)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:
        counts, dispersion, anisotropy = (np.concatenate(parts) for parts in
                                          zip(*workers.map(measure, blocks), strict=True))
    return {"num_answers": counts, "dispersion": dispersion, "anisotropy": anisotropy,
            "score": score(dispersion, anisotropy)}


def check_told_apart(columns: dict[str, np.ndarray], score: Score, folder: Path) -> None:
    """InputError where several records are scored and all scores are equal, which select nothing.

    They count as equal where they differ by no more than the rounding of float32 Grams, which is
    relative in D and absolute in I.
    """
    scored = ~np.isnan(columns["score"])
    scores, spread, anisotropy = (columns[name][scored]
                                  for name in ("score", "dispersion", "anisotropy"))
    if len(scores) < 2 or np.ptp(scores) > _ROUNDING * abs(score(spread.max(), 1.0)):
        return
    why = "make the vectors again, or choose by another selection.method"
    if not spread.any():
        why = ("the answers to each record all have the same vector: draw others, as with a higher "
               "generation.temperature")
    elif np.array_equal(scores, score(0.0, anisotropy)):
        why = ("the anisotropy of two answers is 0 by construction" if (
                   columns["num_answers"].max() == 2) else "the anisotropy is the same everywhere")
        why += (", and selection.anisotropy_weight=1 leaves nothing else: lower it, or have more "
                "answers")
    raise InputError(f"{folder}/: the scores of all {len(scores)} records are equal "
                     f"({scores[0]:.4g}), so they select nothing: {why}")


def check_grams(grams: np.ndarray, block: arrays.Block) -> None:
    """InputError where [B, K, K] cannot be Gram matrices of centred unit vectors.

    Each is symmetric with a trace from 0 to K, no negative value on its diagonal, and rows that sum
    to 0; a missing answer is NaN in its whole row and column.
    """
    num_answers = grams.shape[1]
    if grams.shape[1] != grams.shape[2] or num_answers < 2:
        raise InputError(f"{block[0][0]} has rows of shape {grams.shape[1:]}; expected K x K with "
                         f"K of 2 or more")
    missing = np.isnan(np.diagonal(grams, axis1=1, axis2=2))                            # [B, K]
    hidden = missing[:, :, None] | missing[:, None, :]
    filled = np.where(hidden, 0.0, grams)
    with np.errstate(invalid="ignore", over="ignore"):
        trace = np.trace(filled, axis1=1, axis2=2)
        uneven = np.abs(filled - np.swapaxes(filled, 1, 2)).max(axis=(1, 2))
        rest = np.abs(filled.sum(axis=2)) - _OFF_CENTRE * np.abs(filled).sum(axis=2)     # [B, K]
    stray = (~np.isnan(grams) & hidden).any(axis=(1, 2))
    good = {
        "a missing answer is NaN in its whole row and column": ~stray,
        "its values are finite": np.isfinite(filled).all(axis=(1, 2)),
        "it is symmetric": uneven <= 1e-4,
        "its diagonal has no negative value": (
            np.diagonal(filled, axis1=1, axis2=2) >= -1e-6).all(axis=1),
        f"its trace is at most {num_answers}": trace <= num_answers * (1 + 1e-4),
        "its rows sum to 0, as vectors less their mean give": (rest <= 1e-6).all(axis=1),
    }
    bad = ~np.logical_and.reduce([*good.values()])                                      # [B]
    if bad.any():
        row = np.flatnonzero(bad)[0]
        rule = next(rule for rule, holds in good.items() if not holds[row])
        raise InputError(f"{arrays.place_in(block, row)} is not a Gram matrix of centred unit "
                         f"vectors ({rule}): delete that file and rerun embed")


def describe_scores(columns: dict[str, np.ndarray], score: Score) -> dict:
    """Counts, quantiles, correlations, and the share of the score's variance that each term brings.

    A term's share is its covariance with the score over the score's variance; the two sum to 1. A
    score that is not a sum of a term of each has no shares. Shares and correlations are None where
    there is no variance.
    """
    scored = ~np.isnan(columns["score"])
    values = {name: columns[name][scored] for name in ("dispersion", "anisotropy", "score")}
    terms = {"dispersion": score(values["dispersion"], 0.0),
             "anisotropy": score(0.0, values["anisotropy"])}
    is_sum = np.allclose(sum(terms.values()), values["score"], rtol=1e-9, atol=1e-12)
    pairs = (("dispersion", "anisotropy"), ("dispersion", "score"), ("anisotropy", "score"))
    most = columns["num_answers"].max()
    return {
        "scored": int(scored.sum()), "unscored": int((~scored).sum()),
        "incomplete": int((scored & (columns["num_answers"] < most)).sum()),
        "quantiles": {name: dict(zip(map(str, _QUANTILES), np.quantile(own, _QUANTILES).tolist(),
                                     strict=True)) for name, own in values.items()},
        **({"variance_share": {name: _variance_share(term, values["score"])
                               for name, term in terms.items()}} if is_sum else {}),
        "correlation": {f"{a}-{b}": correlation(values[a], values[b]) for a, b in pairs},
    }


def _variance_share(term: np.ndarray, score: np.ndarray) -> float | None:
    if not (variance := score.var()) > 0:
        return None
    return float(np.mean((term - term.mean()) * (score - score.mean())) / variance)


def correlation(left: np.ndarray, right: np.ndarray) -> float | None:
    """Pearson's correlation, of ranks Spearman's; None where there is none."""
    if len(left) < 2 or left.std() == 0 or right.std() == 0:
        return None
    return float(np.corrcoef(left, right)[0, 1])


METHOD = Method(
    "ADG", tell, choose_by_divergence, settings=DivergenceConfig,
    keys=("selection.window", "selection.recipe", "selection.num_answers",
          "selection.anisotropy_weight"),
    later_keys={"selection.score": "divergence"},
    reads=lambda settings: Reads(("bins.npy", _grams(settings)), ("answers/",)),
    note=note_on_two_answers)
