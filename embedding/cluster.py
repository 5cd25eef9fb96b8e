"""Stage cluster: instruction vectors to semantic bins by mini-batch k-means.

Reads   pool.jsonl                        N records
        instruction_embeddings/*.npy      float32 [n, H]
Writes  bins.npy                          int32 [N]

    python -m embedding.cluster configs/demo.yaml
"""

import tempfile
from pathlib import Path
from typing import IO

import numpy as np

from adg import arrays, artifacts, planning, provenance
from adg.checks import check_bins
from adg.command import parse_command
from adg.config import Config
from adg.distributed import run_script, say
from adg.errors import InputError
from adg.records import Pool

_BLOCK = 4096  # vectors that are copied at once


def main() -> None:
    command = parse_command(__doc__)
    config = command.config
    run = provenance.begin("cluster", config, overwrite=command.overwrite)
    if run is None:
        return
    num_records = len(Pool(run.folder))
    check_bins(config, num_records)
    if command.dry_run:
        plan(run, num_records)
        return
    with artifacts.naming(run.folder), tempfile.TemporaryFile(dir=run.folder) as scratch:
        vectors = one_matrix(run.folder / "instruction_embeddings", num_records, scratch)
        bins = cluster(vectors, config)
    run.start()
    arrays.write_array(run.folder / "bins.npy", bins)
    filled = np.unique(bins)
    say(f"[cluster] {len(filled)} of {config.clustering.num_bins} bins hold a record")
    run.finish(records=num_records, filled_bins=len(filled))


def plan(run: provenance.StageRun, num_records: int) -> None:
    """Say what there is to do."""
    folder = run.folder / "instruction_embeddings"
    blocks = arrays.array_blocks(folder, num_records, row_dims=1, block_size=_BLOCK)
    width = arrays.read_block(blocks[0]).shape[1]
    planning.show(run, {
        "vectors": f"{num_records:,} of {width:,} numbers, to "
                   f"{run.config.clustering.num_bins:,} bins",
    }, records=num_records, disk=4 * num_records * (width + 1))


def one_matrix(folder: Path, num_records: int, scratch: IO[bytes]) -> np.ndarray:
    """The chunks of vectors as one memory-mapped matrix [N, H], copied into a scratch file.

    scikit-learn then reads the rows that it asks for; the matrix is never in memory as a whole.
    Raises InputError where a row is not finite.
    """
    width = 0
    for block in arrays.array_blocks(folder, num_records, row_dims=1, block_size=_BLOCK):
        vectors = arrays.read_block(block)
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise InputError(f"{arrays.place_in(block, bad[0])} is not finite; remove the file "
                             f"and run embed again")
        scratch.write(vectors.tobytes())
        width = vectors.shape[1]
    scratch.flush()
    return np.memmap(scratch, np.float32, mode="r", shape=(num_records, width))


def cluster(vectors: np.ndarray, config: Config) -> np.ndarray:
    """Bins of unit vectors [N, H] -> int32 [N]: what MiniBatchKMeans.fit_predict gives.

    The same for the same seed, whatever the number of threads: the fit compares sums whose last
    bits depend on it, so it has one.
    """
    from sklearn import config_context
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    settings = config.clustering
    largest = max(1, int(settings.max_batch_share * len(vectors)))
    kmeans = MiniBatchKMeans(
        n_clusters=settings.num_bins, batch_size=min(settings.batch_size, largest),
        n_init=settings.num_init, max_iter=settings.max_iter, random_state=config.seed,
        compute_labels=False,
    )
    with config_context(assume_finite=True):
        with threadpool_limits(1):
            kmeans.fit(vectors)
        return kmeans.predict(vectors).astype(np.int32)


if __name__ == "__main__":
    run_script(main)
