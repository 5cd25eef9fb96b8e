"""The loop of a chunked stage: what is missing is shared among the ranks, and all end together."""

from collections.abc import Callable

from adg.base import artifacts, distributed
from adg.pipeline.stage_run import StageRun


class Chunks:
    """The chunks of a stage's output, each a file (or one of each kind) of chunk_size records.

    `rows` has the records of each, `is_missing(index)` says whether one is still to be made.
    """

    def __init__(self, run: StageRun, num_records: int, is_missing: Callable[[int], bool]) -> None:
        self.run, self._is_missing = run, is_missing
        self.rows = artifacts.chunk_bounds(num_records, run.chunk_size)

    def missing(self) -> list[int]:
        """The chunks that are still to be made."""
        return [index for index in range(len(self.rows)) if self._is_missing(index)]

    def to_do(self) -> list[int]:
        """The chunks that a run would make, for a dry run: with --overwrite all of them."""
        return list(range(len(self.rows))) if self.run.overwrite else self.missing()

    def complete(self, make: Callable[[list[int]], int],
                 finish: Callable[[], dict] = dict) -> None:
        """Make this rank's share of the missing chunks, and finish the stage once none is missing.

        To be called after run.start. `make` makes the chunks that it is given and returns how many
        records it did; `finish` runs on one rank when all chunks exist, and returns what else goes
        into the log. Ranks leave together.
        """
        mine = distributed.my_share(distributed.agreed("chunks to do", self.missing))
        records = make(mine) if mine else 0
        if self.run.done_by_all(self.missing, records=records):
            counts = finish()
            self.run.finish(records=self.run.records_done, **counts)
        distributed.barrier("finished")
