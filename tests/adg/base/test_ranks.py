"""Ranks that wait for each other through torchrun's store, and what they do where one is lost."""

import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from adg.base import distributed

_TWO_RANKS = """
import sys
from pathlib import Path
from adg.base import distributed

rank, folder = distributed.rank(), Path(sys.argv[1])
distributed.join()
assert distributed.agreed("list", lambda: [rank, "of rank 0"]) == [0, "of rank 0"]
if rank == 1:
    distributed._value("chunks/0", 0)  # rank 0 has none left, and waits
    (folder / "last chunk").touch()
distributed.barrier("chunks")
if rank == 0:
    assert (folder / "last chunk").exists()
    distributed._value("finished/1", 1)  # rank 1 waits for the end
    (folder / "record").touch()
distributed.barrier("finished")
assert (folder / "record").exists()
"""


def test_no_rank_leaves_before_the_last_one_and_the_record(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_TWO_RANKS)
    result = subprocess.run(
        [sys.executable, "-m", "adg.pipeline.launch", "--nproc_per_node=2", script, tmp_path],
        cwd=ROOT, check=False, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "record").exists()


class Ended(BaseException):
    """Instead of the end of this process."""


@pytest.fixture
def waiting(monkeypatch):
    """Rank 0 of two with a store of its own, a clock that a sleep sets forward, and a list of the
    seconds slept; `os._exit` raises Ended with the status."""
    from torch.distributed import HashStore

    store, clock, slept = HashStore(), [0.0], []

    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(distributed, "_store", lambda: store)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: (
        slept.append(seconds), clock.__setitem__(0, clock[0] + 100)))
    return store, slept


def test_a_rank_without_a_sign_of_life_ends_the_wait_for_it(waiting, capsys):
    store, slept = waiting
    store.set("host/1", "node7")
    store.add("alive/1", 3)  # and never again
    with pytest.raises(Ended, match="75"):
        distributed.barrier("chunks")
    assert len(slept) == 7  # of 100 s each
    said = capsys.readouterr()
    assert said.out == "waiting for rank 1 on node7\n"
    assert said.err == ("\nerror (rank 0): rank 1 on node7 has shown no sign of life for 600 s: it "
                        "has ended, or its node is lost. What is written is whole: the same "
                        "command goes on from there.\n")


def test_a_rank_that_lives_is_waited_for(waiting, monkeypatch):
    store, slept = waiting

    def lives(seconds: float) -> None:
        slept.append(seconds)
        store.add("alive/1", 1)
        if len(slept) == 50:
            store.set("chunks/1", "7")

    monkeypatch.setattr(time, "sleep", lives)
    assert distributed.barrier("chunks", 5) == [5, 7]
    assert len(slept) == 50 and max(slept) == 1


def test_without_torchruns_store_a_rank_ends(waiting, monkeypatch, capsys):
    from torch.distributed import DistNetworkError

    def lost() -> None:
        raise DistNetworkError("Connection was likely closed")

    monkeypatch.setattr(distributed, "_store", lost)
    monkeypatch.setenv("MASTER_ADDR", "node0")
    for act in (distributed.join, lambda: distributed.barrier("chunks"),
                lambda: distributed.agreed("start", dict)):
        with pytest.raises(Ended, match="75"):
            act()
        assert "torchrun on node0, the node of rank 0, cannot be reached" in capsys.readouterr().err


def test_missing_chunks_are_dealt_out_to_all_ranks(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    lost = [1, 3, 5, 7, 9]  # of a run whose rank 1 of 2 was lost
    shares = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(distributed.my_share(lost))
    assert shares == [[1, 5, 9], [3, 7]]
