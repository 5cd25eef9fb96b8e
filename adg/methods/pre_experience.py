"""Method pre_experience: what IFD's pre-experienced model is fine-tuned on (Cherry_LLM).

Shapes: N records of the pool, H dimensions of a vector.
"""

import warnings
from pathlib import Path

import numpy as np

from adg.base.distributed import say
from adg.config import Config
from adg.methods.choice import Choice, without_divergence
from adg.methods.measures import Measures
from adg.records import Pool


def choose_for_pre_experience(folder: Path, pool: Pool, config: Config) -> Choice:
    """Method pre_experience: some of each cluster of the instructions, whatever the budget.

    The controls are empty; a record's bin is its cluster.
    """
    settings = config.selection.pre_experience
    measures = Measures(folder, pool, config)
    perplexities, = measures.numbers("perplexity")
    labels = cluster(measures.vectors(), settings.clusters, num_init=settings.num_init,
                     random_state=settings.random_state)
    top = sample_clusters(labels, perplexities, settings.per_cluster,
                          percentiles=(settings.low_percentile, settings.high_percentile))
    found = len(np.unique(labels))
    if found < settings.clusters:
        say(f"[select] note: the instructions' vectors make {found} clusters, not "
            f"{settings.clusters}: too many are the same")
    return without_divergence(pool, (top, (), ()), {"clusters": found}, bin=labels,
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
            own = perplexities[rows]
            low, high = np.percentile(own, percentiles)
            rows = rows[(own >= low) & (own <= high)]
            rows = rows[:: max(1, len(rows) // per_cluster)][:per_cluster]
        chosen.append(rows)
    return np.concatenate(chosen)
