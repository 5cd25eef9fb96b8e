"""Stage cluster: instruction vectors to semantic bins by mini-batch k-means.

Reads   pool.jsonl                        N records
        instruction_embeddings/*.npy      float32 [n, H]
Writes  bins.npy                          int32 [N]

    python -m embedding.cluster configs/demo.yaml
"""

import numpy as np

from adg import artifacts, provenance
from adg.checks import check_bins
from adg.command import parse_command
from adg.config import Config
from adg.distributed import run_script, say
from adg.errors import InputError
from adg.records import Pool


def main() -> None:
    config, overwrite = parse_command(__doc__)
    run = provenance.begin("cluster", config, overwrite=overwrite)
    if run is None:
        return
    num_records = len(Pool(run.folder))
    check_bins(config, num_records)
    vectors = artifacts.read_arrays(run.folder / "instruction_embeddings", num_records, row_dims=1)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise InputError(f"{run.folder / 'instruction_embeddings'}/: row {bad[0]} "
                         f"(of {len(bad)} such) is not finite; remove its chunk and run "
                         f"embed again")
    bins = cluster(vectors, config)
    run.start()
    artifacts.write_array(run.folder / "bins.npy", bins)
    filled = np.unique(bins)
    say(f"[cluster] {len(filled)} of {config.clustering.num_bins} bins hold a record")
    run.finish(records=num_records, filled_bins=len(filled))


def cluster(vectors: np.ndarray, config: Config) -> np.ndarray:
    """Bins of unit vectors [N, H] -> int32 [N], the same for the same seed."""
    from sklearn.cluster import MiniBatchKMeans

    settings = config.clustering
    kmeans = MiniBatchKMeans(
        n_clusters=settings.num_bins, batch_size=settings.batch_size, n_init=settings.num_init,
        max_iter=settings.max_iter, random_state=config.seed,
    )
    return kmeans.fit_predict(vectors).astype(np.int32)


if __name__ == "__main__":
    run_script(main)
