"""The loop of a chunked stage: what is missing, whose it is, and when the stage is finished."""

import pytest
from conftest import Ranks

from adg.base import distributed
from adg.pipeline.chunks import Chunks


class Run:
    """Stands for a StageRun: notes what it is asked for."""

    chunk_size, overwrite, records_done = 4, False, 0

    def __init__(self) -> None:
        self.finished: list[dict] = []

    def done_by_all(self, missing, *, records: int) -> bool:
        self.records_done = sum(distributed.barrier("chunks", records))
        return distributed.rank() == 0 and not missing()

    def finish(self, **counts: object) -> None:
        self.finished.append(counts)


def test_what_is_missing_is_made_once_and_then_the_stage_is_finished():
    run, made, there = Run(), [], {1}
    chunks = Chunks(run, 10, lambda index: index not in there)
    assert chunks.rows == [range(0, 4), range(4, 8), range(8, 10)]

    def make(mine: list[int]) -> int:
        made.extend(mine)
        there.update(mine)
        return sum(len(chunks.rows[index]) for index in mine)

    for _ in range(2):
        chunks.complete(make, lambda: {"made": list(made)})
    assert made == [0, 2]
    assert run.finished == [{"records": 6, "made": [0, 2]}, {"records": 0, "made": [0, 2]}]


def test_ranks_share_what_is_missing_and_one_finishes(monkeypatch):
    run, made = Run(), {}
    chunks = Chunks(run, 20, lambda index: index != 3 and index not in sum(made.values(), []))

    def make(mine: list[int]) -> int:
        made[distributed.rank()] = mine
        return len(mine)

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    Ranks(range(3), monkeypatch).run(lambda: chunks.complete(make))
    assert made == {0: [0, 4], 1: [1], 2: [2]}
    assert run.finished == [{"records": 4}]


@pytest.mark.parametrize(("overwrite", "expected"), [(False, [1]), (True, [0, 1, 2])])
def test_a_dry_run_counts_what_an_overwrite_removes(overwrite, expected):
    run = Run()
    run.overwrite = overwrite
    assert Chunks(run, 9, lambda index: index == 1).to_do() == expected
