"""Method pre_experience: what IFD's pre-experienced model is fine-tuned on (Cherry_LLM).

Shapes: N records of the pool, H dimensions of a vector.
"""

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adg.base.distributed import say
from adg.base.keys import DTYPES, key, require
from adg.methods.losses import PROMPT, TEMPLATES, filled
from adg.methods.method import (
    VECTOR,
    Choice,
    Measure,
    Method,
    Task,
    at_most,
    measured,
    without_divergence,
)
from adg.models.causal import CausalModel, Text

if TYPE_CHECKING:
    from adg.models.loader import Loader


@dataclass
class PreExperienceConfig:
    model_name_or_path: str | None = key(None, "model that measures; null: the backbone", path=True)
    dtype: str | None = key("float32", "dtype of its weights (float32 in the release); null: "
                                       "model.dtype", choices=DTYPES)
    prompt: str = key("alpaca", PROMPT, choices=TEMPLATES)
    max_length: int = key(512, "maximum tokens of a filled-in template; longer ones are truncated "
                                "at the end", least=2)
    clusters: int = key(100, "k-means clusters of the instructions' vectors", least=1)
    per_cluster: int = key(10, "records per cluster; smaller clusters are taken whole", least=1)
    low_percentile: float = key(25.0, "lowest percentile of perplexity in a cluster to take",
                                least=0, most=100)
    high_percentile: float = key(75.0, "highest percentile of perplexity in a cluster to take",
                                 least=0, most=100)
    num_init: int = key(10, "initialisations of k-means; the best is kept (scikit-learn's default: "
                             "10 before 1.4, then 1)", least=1)
    random_state: int = key(0, "seed of k-means", least=0)

    def __post_init__(self) -> None:
        low, high = self.low_percentile, self.high_percentile
        require(low <= high, "selection.pre_experience.high_percentile", high,
                f"from low_percentile ({low:g}) to 100")


class PromptMeasurer:
    """Records to the perplexity and the mean vector of their filled-in template, without output."""

    def __init__(self, model: CausalModel, prompt: str, limit: int) -> None:
        self._model, self._prompt, self._limit = model, prompt, limit

    def measure(self, records: list[dict]) -> list[dict]:
        """A row for each record."""
        prompts = filled(TEMPLATES[self._prompt], records)
        texts = [Text(ids) for ids in self._model.ids(prompts, [self._limit] * len(prompts))]
        return [{"perplexity": math.exp(reading.loss), VECTOR: reading.vector}
                for reading in self._model.read(texts)]


def load(loader: "Loader", settings: PreExperienceConfig) -> PromptMeasurer:
    """What measures perplexities and vectors of instructions."""
    model = loader.causal("measure.model", settings.dtype, settings.max_length,
                          "selection.pre_experience.max_length", vectors=True)
    return PromptMeasurer(model, settings.prompt, settings.max_length)


def choose_for_pre_experience(task: Task) -> Choice:
    """Some of each cluster of the instructions, whatever the budget.

    The controls are empty; a record's bin is its cluster.
    """
    settings, measures = task.settings, task.measures()
    perplexities, = measures.numbers("perplexity")
    labels = cluster(measures.vectors(), settings.clusters, num_init=settings.num_init,
                     random_state=settings.random_state)
    top = sample_clusters(labels, perplexities, settings.per_cluster,
                          percentiles=(settings.low_percentile, settings.high_percentile))
    num_clusters = len(np.unique(labels))
    if num_clusters < settings.clusters:
        say(f"[select] note: the instructions' vectors make {num_clusters} clusters, not "
            f"{settings.clusters}: too many are the same")
    return without_divergence(task.pool, (top, (), ()), {"clusters": num_clusters}, bin=labels,
                              perplexity=perplexities)


def cluster(vectors: np.ndarray, num_clusters: int, *, num_init: int,
            random_state: int) -> np.ndarray:
    """k-means labels [N] of vectors [N, H] as they are."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():  # of fewer vectors that differ than clusters
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(num_clusters, n_init=num_init, random_state=random_state).fit(vectors).labels_


def sample_clusters(labels: np.ndarray, perplexities: np.ndarray, per_cluster: int, *,
                    percentiles: tuple[float, float]) -> np.ndarray:
    """Positions of the sampled records, cluster after cluster in the order of the labels.

    A cluster of fewer than `per_cluster` goes whole. Of another count those between the two
    percentiles of its own perplexities, ends included: every (count // per_cluster)-th in pool
    order, the first `per_cluster`; all, where there are fewer.
    """
    chosen = [np.empty(0, dtype=np.int64)]
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) >= per_cluster:
            values = perplexities[rows]
            low, high = np.percentile(values, percentiles)
            rows = rows[(values >= low) & (values <= high)]
            rows = rows[:: max(1, len(rows) // per_cluster)][:per_cluster]
        chosen.append(rows)
    return np.concatenate(chosen)


_SECTION = "selection.pre_experience"
METHOD = Method(
    "Pre-experience (IFD)",
    lambda told: (f"What IFD's pre-experienced model is fine-tuned on: some records of each of "
                  f"{told.settings.clusters} k-means clusters of the instructions' vectors, of "
                  f"middling perplexity, both of {told.model}."),
    choose_for_pre_experience, section="pre_experience", settings=PreExperienceConfig,
    keys=tuple(f"{_SECTION}.{name}" for name in (
        "clusters", "per_cluster", "low_percentile", "high_percentile", "num_init",
        "random_state")),
    reads=measured, heeds_budget=False,
    check_sizes=lambda settings, budget, num_records: at_most(
        f"{_SECTION}.clusters", settings.clusters, num_records),
    measure=Measure(
        {"": load}, models={"measure.model": f"{_SECTION}.model_name_or_path"},
        keys=("model.dtype", "model.trust_remote_code", f"{_SECTION}.dtype", f"{_SECTION}.prompt",
              f"{_SECTION}.max_length"), vectors="measure.model"))
