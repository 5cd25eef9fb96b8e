"""Method ifd: how little the instruction helps with the output (Cherry_LLM, Li et al. 2024).

Shapes: N records of the pool.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adg.base.keys import DTYPES, key
from adg.methods.losses import HEADER, PROMPT, TEMPLATES, LossMeasurer, Pair, filled, pairs_of
from adg.methods.method import (
    Choice,
    Measure,
    Method,
    Task,
    check_enough,
    measured,
    sift,
    with_controls,
    without_divergence,
)
from adg.models.causal import CausalModel
from adg.selection import Subsets

if TYPE_CHECKING:
    from adg.models.loader import Loader


@dataclass
class IfdConfig:
    model_name_or_path: str | None = key(None, "model that measures: a hub name, folder or GGUF "
                                                "file, such as a pre-experienced model; null: the "
                                                "backbone",
                                         path=True)
    dtype: str | None = key("float32", "dtype of its weights (float32 in the release); null: "
                                       "model.dtype", choices=DTYPES)
    prompt: str = key("alpaca", PROMPT, choices=TEMPLATES)
    max_length: int = key(512, "maximum tokens of prompt and output; longer ones are truncated at "
                                "the end", least=2)
    recipe: str = key("intended", "output alone: intended (tokens also scored after the prompt) or "
                                   "released (cut as for the authors' tokenizer, and records "
                                   "still longer are dropped)",
                      choices=("intended", "released"))


def load(loader: "Loader", settings: IfdConfig) -> LossMeasurer:
    """What measures the two losses of an output."""
    model = loader.causal("measure.model", settings.dtype, settings.max_length,
                          "selection.ifd.max_length")
    return LossMeasurer(model, lambda records: ifd_pairs(
        records, model, prompt=settings.prompt, limit=settings.max_length, recipe=settings.recipe))


def ifd_pairs(records: list[dict], model: CausalModel, *, prompt: str, limit: int,
              recipe: str) -> list[Pair]:
    """IFD's texts: template and output, and the template's last line and output.

    Both keep what stands in the first `limit` tokens of the first (recipe intended). The release
    gives the second four tokens for that last line, whatever it takes.
    """
    prompts = filled(TEMPLATES[prompt], records)
    header = len(model.ids([HEADER])[0])
    allowed = {"intended": header, "released": 4}[recipe]
    return pairs_of(records, model, prompts, header=HEADER, start=header, limit=limit,
                    allowed=allowed)


def choose_by_ifd(task: Task) -> Choice:
    """The highest IFD of at most 1, in pool order.

    IFD is the mean loss of the output after the prompt, divided by that of the output alone.
    """
    given, direct, room, given_tokens, direct_tokens = task.measures().numbers(
        "given_loss", "direct_loss", "room", "given_tokens", "direct_tokens")
    ifd = np.divide(given, direct, out=np.full(len(given), np.nan), where=direct != 0)
    reasons = {
        "whose prompt fills max_length": room <= 0,
        "without a token of the output": (given_tokens <= 0) | (direct_tokens <= 0),
        "cut by max_length": (direct_tokens > room) & (task.settings.recipe == "released"),
        "of IFD above 1": ifd > 1,
        "without an IFD": np.isnan(ifd),
    }
    kept, dropped = sift(len(ifd), reasons)
    check_enough("selection.budget", task.budget, int(kept.sum()), dropped)
    return without_divergence(
        task.pool, select_ifd(ifd, kept, task.budget),
        {"kept": int(kept.sum()), "dropped": dropped},
        score=np.where(kept, ifd, np.nan), ifd=ifd, given_loss=given, direct_loss=direct)


def select_ifd(ifd: np.ndarray, kept: np.ndarray, budget: int) -> Subsets:
    """Top: the `budget` highest ifd [N] of those in the mask `kept` [N], in pool order.

    Of equal ones those later in the pool go first. The controls are by rank, highest first.
    """
    rows = np.flatnonzero(kept)
    ranking = rows[np.argsort(ifd[rows], kind="stable")][::-1]
    subsets = with_controls(ranking, budget)
    return subsets._replace(top=np.sort(subsets.top))


METHOD = Method(
    "IFD",
    lambda told: (f"The records of the highest instruction-following difficulty (IFD) of at most "
                  f"1: the loss of the output after the instruction, divided by its loss alone, "
                  f"both of {told.model}."),
    choose_by_ifd, section="ifd", settings=IfdConfig, keys=("selection.ifd.recipe",),
    reads=measured,
    measure=Measure(
        {"": load}, models={"measure.model": "selection.ifd.model_name_or_path"},
        keys=("model.dtype", "model.trust_remote_code", "selection.ifd.dtype",
              "selection.ifd.prompt", "selection.ifd.max_length", "selection.ifd.recipe")))
