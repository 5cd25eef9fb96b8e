"""Stage cluster: group instruction vectors into semantic bins by mini-batch k-means.

Reads   pool.jsonl                        N records
        instruction_embeddings/*.npy      float32 [n, H]
Writes  bins.npy                          int32 [N]

    python -m embedding.cluster configs/demo.yaml
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from adg.base import arrays, units
from adg.base.distributed import say
from adg.base.errors import InputError
from adg.base.process import run_script
from adg.config import Config
from adg.pipeline import planning, stage_run
from adg.pipeline.checks import check_bins, check_scratch
from adg.pipeline.command import parse_command
from adg.records import Pool

_BLOCK = 4096  # vectors that are copied at once
_LARGE = 1 << 30  # bytes of a scratch file whose place is reported


def main() -> None:
    command = parse_command(__doc__)
    config = command.config
    run = stage_run.begin("cluster", config, overwrite=command.overwrite,
                           dry_run=command.dry_run)
    if run is None:
        return
    num_records = len(Pool(run.folder))
    check_bins(config, num_records)
    blocks = arrays.array_blocks(run.folder / "instruction_embeddings", num_records, row_dims=1,
                                 block_size=_BLOCK)
    shape = num_records, arrays.read_block(blocks[0]).shape[1]
    size = 4 * num_records * shape[1]
    folder = scratch_folder(run.folder, size, config)
    if command.dry_run:
        plan(run, shape, folder)
        return
    if size > _LARGE:
        say(f"[cluster] k-means reads a copy of the vectors: {units.size(size)} in {folder}/, "
            f"gone at the end (clustering.scratch_dir)")
    with scratch_file(folder, size) as scratch:
        bins = cluster(one_matrix(blocks, shape, scratch), run.num_bins, config)
    run.start()
    arrays.write_array(run.folder / "bins.npy", bins)
    filled = np.unique(bins)
    say(f"[cluster] {len(filled)} of {run.num_bins} bins hold a record")
    run.finish(records=num_records, filled_bins=len(filled))


def plan(run: stage_run.StageRun, shape: tuple[int, int], folder: Path) -> None:
    """Report what clustering vectors of this shape takes, with their copy in `folder`."""
    num_records, width = shape
    bins, size = 4 * num_records, 4 * num_records * width
    planning.show(run, {
        "vectors": f"{num_records:,} of {width:,} numbers, to {run.num_bins:,} bins",
        "scratch": f"in {folder}/: {units.space(size, folder)}",
    }, records=num_records, disk=bins + (size if folder == run.folder else 0))


def scratch_folder(run: Path, size: int, config: Config) -> Path:
    """Where the copy of the vectors goes, of so many bytes: clustering.scratch_dir, else $TMPDIR
    where that is on a disk with room, else the run folder."""
    check_scratch(config)
    if config.clustering.scratch_dir is not None:
        return Path(config.clustering.scratch_dir)
    folder = Path(os.environ.get("TMPDIR") or run)
    has_room = (folder.is_dir() and not _in_memory(folder)
                and shutil.disk_usage(folder).free > size)
    return folder if has_room else run


def _in_memory(folder: Path) -> bool:
    """Whether the files of a folder take up memory, as those of a tmpfs do."""
    import psutil

    kinds = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    path = folder.resolve()
    mount = next((str(place) for place in (path, *path.parents) if str(place) in kinds), None)
    return kinds.get(mount) in ("tmpfs", "ramfs")


@contextlib.contextmanager
def scratch_file(folder: Path, size: int) -> Iterator[IO[bytes]]:
    """A file in `folder` that is gone at the end, killed or not, to hold so many bytes.

    InputError that names the folder and its key where it cannot be written.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as scratch:
            yield scratch
    except OSError as error:
        path = Path(error.filename or folder).absolute()  # no name where a write fails
        if folder.absolute() not in (path, path.parent):
            raise
        raise InputError(f"{folder}/: {error.strerror}: k-means needs a copy of the vectors there "
                         f"({units.size(size)}); set clustering.scratch_dir to a folder with "
                         f"room") from None


def one_matrix(blocks: list[arrays.Block], shape: tuple[int, int],
               scratch: IO[bytes]) -> np.ndarray:
    """The chunks of vectors as one memory-mapped matrix [N, H], copied into a scratch file.

    scikit-learn then reads the rows that it asks for; the matrix is never in memory as a whole.
    Raises InputError where a row is not finite.
    """
    for block in blocks:
        vectors = arrays.read_block(block)
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise InputError(f"{arrays.place_in(block, bad[0])} is not finite; remove the file "
                             f"and run embed again")
        scratch.write(vectors.tobytes())
    scratch.flush()
    return np.memmap(scratch, np.float32, mode="r", shape=shape)


def cluster(vectors: np.ndarray, num_bins: int, config: Config) -> np.ndarray:
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
        n_clusters=num_bins, batch_size=min(settings.batch_size, largest),
        n_init=settings.num_init, max_iter=settings.max_iter, random_state=config.seed,
        compute_labels=False,
    )
    with config_context(assume_finite=True):
        with threadpool_limits(1):
            kmeans.fit(vectors)
        return kmeans.predict(vectors).astype(np.int32)


if __name__ == "__main__":
    run_script(main)
