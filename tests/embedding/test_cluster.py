"""Bins: scikit-learn's, whatever the chunks and the threads."""

from pathlib import Path

import numpy as np
import pytest
from conftest import RECORDS, command
from sklearn.cluster import MiniBatchKMeans

from adg import arrays, artifacts
from adg.config import load_config
from adg.errors import InputError
from embedding import cluster

N, H = 600, 12
SETTINGS = {"num_bins": 20, "batch_size": 100, "max_batch_share": 0.1, "num_init": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with a pool of N records, and a configuration of 20 bins beside it."""
    artifacts.write_jsonl(tmp_path / "run/pool.jsonl",
                          (RECORDS[0] | {"id": str(i)} for i in range(N)))
    return tmp_path / "run"


def vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(30, H))[rng.integers(0, 30, N)] + 0.3 * rng.normal(size=(N, H))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def write_chunks(folder: Path, size: int) -> None:
    for path in (folder / "instruction_embeddings").glob("*"):
        path.unlink()
    for number, rows in enumerate(artifacts.chunk_bounds(N, size)):
        arrays.write_array(folder / f"instruction_embeddings/{number:05d}.npy",
                              vectors()[rows.start: rows.stop])


def test_bins_are_those_of_fit_predict_on_the_whole_matrix(config_file, stage, folder):
    expected = MiniBatchKMeans(n_clusters=20, random_state=42, batch_size=min(100, N // 10),
                               n_init=3, max_iter=100).fit_predict(vectors())
    for size in (N, 37):
        write_chunks(folder, size)
        stage(cluster, config_file(clustering=SETTINGS, selection={"budget": 5}))
        bins = np.load(folder / "bins.npy")
        assert bins.dtype == np.int32 and (bins == expected).all()
    assert sorted(path.name for path in folder.iterdir()) == [
        "bins.npy", "config.yaml", "instruction_embeddings", "log.jsonl", "pool.jsonl",
        "provenance"]


@pytest.mark.parametrize("threads", ["1", "3"])
def test_bins_do_not_depend_on_the_threads(config_file, folder, threads):
    write_chunks(folder, 250)
    path = config_file(clustering=SETTINGS, selection={"budget": 5})
    result = command("embedding.cluster", path, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads,
                     OPENBLAS_NUM_THREADS=threads)
    assert result.returncode == 0, result.stderr
    assert (np.load(folder / "bins.npy") == cluster.cluster(vectors(), load_config(path, []))).all()


def test_a_row_that_is_not_finite_is_named(config_file, stage, folder):
    write_chunks(folder, 250)
    path = folder / "instruction_embeddings/00001.npy"
    spoilt = np.load(path)
    spoilt[17, 3] = np.inf
    arrays.write_array(path, spoilt)
    with pytest.raises(InputError, match="00001.npy: row 17 is not finite"):
        stage(cluster, config_file(clustering=SETTINGS, selection={"budget": 5}))
    assert not (folder / "bins.npy").exists()
