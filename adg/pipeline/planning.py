"""What a stage would do, for --dry-run: counts, chunks, disk and time, with nothing written."""

from collections.abc import Sequence

from adg.base.distributed import my_share, say, world_size
from adg.base.units import duration, space
from adg.pipeline.record import read_log
from adg.pipeline.stage_run import StageRun


def show(run: StageRun, work: dict[str, str], *, records: int, disk: int,
         chunks: Sequence[range] = (), missing: Sequence[int] = (),
         by_arithmetic: str | None = None) -> None:
    """Print what a stage would do: its own lines of `work`, then what all stages have.

    `records` are those still to do, `disk` the bytes they will take at most, `missing` the chunks
    still to do of all `chunks`, `by_arithmetic` the time where no speed is known.
    """
    lines = dict(work)
    if chunks:
        most = max((len(chunks[i]) for i in my_share(missing)), default=0)
        lines["chunks"] = (f"{len(missing):,} of {len(chunks):,} to do; this rank, of "
                           f"{world_size()}, has {len(my_share(missing)):,}"
                           + (f" of at most {most:,} records" if most else ""))
    lines["disk"] = space(disk, run.folder)
    lines["time"] = _time(run, records) or by_arithmetic or (
        "unknown: this run folder holds no speed of this stage yet")
    say(f"[{run.label}] dry run, nothing is written to output_dir:")
    width = max(8, *map(len, lines)) + 2
    for name, text in lines.items():
        say(f"  {name:<{width}}{text}")


def _time(run: StageRun, records: int) -> str | None:
    known = _last_speed(run) or _chunk_speed(run)
    if known is None:
        return None
    speed, where = known
    return (f"about {duration(records / speed)} for {records:,} records at {speed:.2f} records/s "
            f"({where})")


def _last_speed(run: StageRun) -> tuple[float, str] | None:
    """Records/s of this stage's last line in log.jsonl, scaled to this number of ranks."""
    lines = [line for line in read_log(run.folder)
             if line["stage"] == run.name and line["records_per_second"] > 0
             and (not run.stage.speed_by_name or line["label"] == run.label)]
    if not lines:
        return None
    ranks = lines[-1]["world_size"]
    return (lines[-1]["records_per_second"] * world_size() / ranks,
            f"log.jsonl of {lines[-1]['time']}, {ranks} rank(s) then")


def _chunk_speed(run: StageRun) -> tuple[float, str] | None:
    """Records/s from when the chunks of an unfinished run were written."""
    if not run.outputs[-1].endswith("/"):
        return None
    times = sorted(path.stat().st_mtime for path in (run.folder / run.outputs[-1]).glob("[0-9]*"))
    if len(times) < 2 or times[-1] == times[0]:
        return None
    speed = (len(times) - 1) * run.chunk_size / (times[-1] - times[0])
    return speed, f"from {len(times)} chunks already written"
