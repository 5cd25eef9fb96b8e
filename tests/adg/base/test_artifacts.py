import errno
import hashlib
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from adg.base import arrays, artifacts, hashes
from adg.base.errors import InputError
from adg.base.hashes import HashCache
from adg.pipeline import identity


def test_a_writer_killed_at_any_step_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "x.json"
    artifacts.write_json(path, {"old": True})
    program = ("import os, sys, adg.base.artifacts as a\n"
               "step, real = sys.argv[2], getattr(os, sys.argv[2])\n"
               "setattr(os, step, lambda *_: os.kill(os.getpid(), 9))\n"
               "a.write_json(a.Path(sys.argv[1]), {'new': 'x' * 100000})\n")
    for step in ("fsync", "replace"):
        killed = subprocess.run([sys.executable, "-c", program, path, step], check=False)
        assert killed.returncode == -9
        assert path.read_text() == '{\n "old": true\n}\n'
    artifacts.write_json(path, {"new": True})
    assert sorted(os.listdir(tmp_path)) == ["x.json"]  # what was written aside is gone


def test_rows_of_a_file_and_of_a_folder_are_the_same(tmp_path: Path):
    rows = [{"i": i, "text": "line\u2028separator é"} for i in range(5000)]
    artifacts.write_jsonl(tmp_path / "one.jsonl", rows)
    for index, chunk in enumerate(artifacts.chunk_bounds(5000, 1700)):
        artifacts.write_jsonl(tmp_path / "many" / artifacts.chunk_name(index, "jsonl"),
                              [rows[i] for i in chunk])
    one = artifacts.JsonlRows(tmp_path / "one.jsonl")
    many = artifacts.JsonlRows(tmp_path / "many")
    for wanted in (range(0), range(0, 3), range(1023, 1026), range(1690, 3500), range(4990, 5000)):
        assert one.rows(wanted) == many.rows(wanted) == [rows[i] for i in wanted]
    for i in (0, 4999, 1700, 1699, 3400):
        assert one.row(i)[0] == many.row(i)[0] == rows[i]
    assert many.row(1700)[1] == f"{tmp_path}/many/00001.jsonl:1"
    assert [where for _, where in many.numbered(range(1699, 1701))] == [
        f"{tmp_path}/many/00000.jsonl:1700", f"{tmp_path}/many/00001.jsonl:1"]


@pytest.mark.parametrize("line", ["{broken", "[1]", '"text"', "", '{"a": "\udc80"}'])
def test_a_broken_line_is_named(tmp_path: Path, line: str):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(InputError, match=rf"{path}:2: "):
        list(artifacts.JsonlRows(path))


def test_arrays_are_checked(tmp_path: Path):
    folder = tmp_path / "a"
    arrays.write_array(folder / "00000.npy", np.ones((2, 3), np.float32))
    arrays.write_array(folder / "00001.npy", np.zeros((1, 3), np.float32))
    for size, expected in ((1, [[[1] * 3], [[1] * 3], [[0] * 3]]),
                           (2, [[[1] * 3, [1] * 3], [[0] * 3]]),
                           (9, [[[1] * 3, [1] * 3, [0] * 3]])):
        blocks = arrays.array_blocks(folder, 3, row_dims=1, block_size=size)
        assert [arrays.read_block(block).tolist() for block in blocks] == expected
    assert arrays.place_in(blocks[0], 2) == f"{folder}/00001.npy: row 0"
    with pytest.raises(InputError, match="holds 3 rows, but pool.jsonl has 4"):
        arrays.array_blocks(folder, 4, row_dims=1, block_size=9)
    with pytest.raises(InputError, match="00000.npy"):
        arrays.array_blocks(folder, 3, row_dims=2, block_size=9)
    arrays.write_array(folder / "00001.npy", np.zeros((1, 4), np.float32))
    with pytest.raises(InputError, match="00001.npy"):
        arrays.array_blocks(folder, 3, row_dims=1, block_size=9)
    (folder / "00001.npy").write_bytes((folder / "00000.npy").read_bytes()[:-4])
    with pytest.raises(InputError, match="00001.npy: not a whole"):
        arrays.array_blocks(folder, 3, row_dims=1, block_size=9)


@pytest.mark.parametrize(("names", "message"), [
    ("00000 00002", "00002.npy: comes after 00000.npy, and a file between them is missing"),
    ("00000 00001 extra_copy", "extra_copy.npy: no number, unlike the other .npy files"),
    ("1 2 02", "2.npy: comes after 02.npy, and has the same number"),
    ("", "holds no .npy file"),
    ("2 1 10 9 8 7 6 5 4 3", None), ("part-b part-a", None), ("mine", None), ("7", None),
])
def test_the_order_of_chunks_is_certain_or_refused(tmp_path: Path, names: str, message: str | None):
    for name in names.split():
        (tmp_path / f"{name}.npy").touch()
    (tmp_path / ".00000.npy.partial").touch()
    (tmp_path / "notes.txt").touch()
    if message is None:
        found = [path.stem for path in artifacts.chunk_files(tmp_path, "npy")]
        assert found == sorted(names.split(), key=lambda name: (len(name), name))
    else:
        with pytest.raises(InputError, match=message):
            artifacts.chunk_files(tmp_path, "npy")


def test_the_hash_of_a_changed_file_is_made_anew(tmp_path: Path):
    path = tmp_path / "x"
    path.write_text("one")
    cache = HashCache(tmp_path / "cache.json")
    before = cache.file(path)
    cache.save()
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    assert HashCache(tmp_path / "cache.json").file(path) != before


def test_the_hash_of_a_folder_is_made_of_several_files_at_once(tmp_path: Path, monkeypatch):
    for i in range(5):
        (tmp_path / f"a/{i}").parent.mkdir(exist_ok=True)
        (tmp_path / f"a/{i}").write_text(f"content {i}")
    files = identity.visible_files(tmp_path / "a")
    expected = hashlib.sha256("".join(
        f"a/{i} {hashlib.sha256(f'content {i}'.encode()).hexdigest()}\n" for i in range(5)
    ).encode()).hexdigest()
    together, read = threading.Barrier(2), hashes._sha256

    def read_beside_another(path: Path) -> str:
        if path.name in ("3", "4"):
            together.wait(timeout=60)  # an error where no other file is being read
        return read(path)

    monkeypatch.setattr(hashes, "_sha256", read_beside_another)
    cache = HashCache(tmp_path / "cache.json")
    assert cache.tree(tmp_path, files) == expected
    cache.save()
    monkeypatch.setattr(hashes, "_sha256", None)  # nothing is new: nothing is read
    assert HashCache(tmp_path / "cache.json").tree(tmp_path, files) == expected
    monkeypatch.setattr(hashes, "_sha256", read)
    (tmp_path / "a/3").write_text("other")
    cache = HashCache(tmp_path / "cache.json")
    assert cache.tree(tmp_path, files) != expected and cache.edited == {tmp_path / "a/3"}


@pytest.mark.parametrize(("records", "size", "chunks"), [
    (0, 8, 0), (5, 8, 1), (60, 8, 8), (512, 8, 64), (513, 9, 57), (6_400, 100, 64),
    (31_999, 500, 64), (52_002, 500, 105), (1_000_000, 500, 2000), (1_000_001, 1000, 1001),
    (2_000_001, 1500, 1334), (10_000_000, 5000, 2000),
])
def test_chunks_are_small_in_a_small_pool_and_large_in_one_of_millions(records, size, chunks):
    assert artifacts.chunk_size_for(records) == size
    assert len(artifacts.chunk_bounds(records, size)) == chunks


@pytest.mark.parametrize(("number", "of_files", "whole"), [
    (errno.EINVAL, False, True), (errno.ENOTSUP, False, True),
    (errno.EIO, False, False), (errno.EINVAL, True, False),
])
def test_a_file_system_that_flushes_no_folders_will_do(tmp_path, monkeypatch, number, of_files,
                                                       whole):
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if of_files or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    if whole:
        artifacts.write_json(tmp_path / "x.json", {})
        artifacts.flush_tree(tmp_path)
        assert (tmp_path / "x.json").read_text() == "{}\n"
    else:
        with pytest.raises(OSError, match="x.json"):
            artifacts.write_json(tmp_path / "x.json", {})
