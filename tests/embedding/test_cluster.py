"""Bins: scikit-learn's, whatever the chunks and the threads; where the copy of the vectors goes."""

import errno
import tempfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import RECORDS, command
from sklearn.cluster import MiniBatchKMeans

from adg.base import arrays, artifacts
from adg.base.errors import InputError
from adg.config import load_config
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
    expected = cluster.cluster(vectors(), SETTINGS["num_bins"], load_config(path, []))
    assert (np.load(folder / "bins.npy") == expected).all()


def test_a_row_that_is_not_finite_is_named(config_file, stage, folder):
    write_chunks(folder, 250)
    path = folder / "instruction_embeddings/00001.npy"
    spoilt = np.load(path)
    spoilt[17, 3] = np.inf
    arrays.write_array(path, spoilt)
    with pytest.raises(InputError, match="00001.npy: row 17 is not finite"):
        stage(cluster, config_file(clustering=SETTINGS, selection={"budget": 5}))
    assert not (folder / "bins.npy").exists()


Mount = namedtuple("Mount", "mountpoint fstype")


@pytest.fixture
def scratch(monkeypatch) -> list[Path]:
    """Every folder that a scratch file was made in."""
    folders, make = [], tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile",
                        lambda dir: folders.append(Path(dir)) or make(dir=dir))
    return folders


@pytest.mark.parametrize(("kind", "free", "expected"), [
    ("ext4", 10**9, "tmp"), ("ext4", 4 * N * H, "run"), ("tmpfs", 10**9, "run")])
def test_the_copy_goes_to_tmpdir_where_that_is_on_a_disk_with_room(
        config_file, stage, folder, monkeypatch, tmp_path, scratch, kind, free, expected):
    write_chunks(folder, 250)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [
        Mount("/", "ext4"), Mount(str(tmp_path.resolve()), kind)])
    usage = cluster.shutil.disk_usage("/")
    monkeypatch.setattr(cluster.shutil, "disk_usage", lambda path: usage._replace(free=free))
    stage(cluster, config_file(clustering=SETTINGS, selection={"budget": 5}))
    assert scratch == [tmp_path / expected] and not list((tmp_path / "tmp").iterdir())


def test_a_folder_that_is_given_is_taken_and_said(config_file, stage, folder, tmp_path, monkeypatch,
                                                  scratch, capsys):
    write_chunks(folder, 250)
    path = config_file(clustering=SETTINGS, selection={"budget": 5})
    given = f"clustering.scratch_dir={tmp_path / 'fast'}"
    with pytest.raises(InputError, match="clustering.scratch_dir: .*fast/ not found"):
        stage(cluster, path, given)
    (tmp_path / "fast").mkdir()
    stage(cluster, path, given, "--dry-run")
    lines = capsys.readouterr().out.splitlines()
    assert any(f"scratch   in {tmp_path}/fast/: 28.1 KiB at most, " in line for line in lines)
    assert any("disk      2.3 KiB at most" in line for line in lines)
    stage(cluster, path, "--dry-run")  # in the run folder
    assert "disk      30.5 KiB at most" in capsys.readouterr().out
    monkeypatch.setattr(cluster, "_LARGE", 4 * N * H - 1)
    stage(cluster, path, given)
    assert f"a copy of the vectors: 28.1 KiB in {tmp_path}/fast/" in capsys.readouterr().out
    assert scratch == [tmp_path / "fast"]
    stage(cluster, path)  # speed only: done
    assert scratch == [tmp_path / "fast"]


def test_a_full_disk_names_the_folder_and_the_key(config_file, stage, folder, monkeypatch):
    write_chunks(folder, 250)

    make = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: FullFile(make(dir=dir)))
    with pytest.raises(InputError, match=rf"{folder}/: No space left on device: k-means needs .*"
                                         r"\(28.1 KiB\); set clustering.scratch_dir to a folder"):
        stage(cluster, config_file(clustering=SETTINGS, selection={"budget": 5}))
    assert not (folder / "bins.npy").exists()


class FullFile:
    """A file on a full disk."""

    def __init__(self, file) -> None:
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")
