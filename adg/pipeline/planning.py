"""What a stage would do, for --dry-run: counts, chunks, disk and time, with nothing written."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from adg.answer_vectors import num_bytes
from adg.base.artifacts import JsonlRows
from adg.base.distributed import my_share, say, world_size
from adg.config import Config
from adg.models.folders import describe, source_of
from adg.pipeline.record import read_log
from adg.pipeline.stage_run import StageRun

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


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
    say(f"[{run.label}] dry run, nothing is written:")
    width = max(8, *map(len, lines)) + 2
    for name, text in lines.items():
        say(f"  {name:<{width}}{text}")


def outlook(name: str, config: Config) -> list[str]:
    """What the run folder's pool and the configuration say of a stage whose inputs are not there.
    """
    pool, settings, method = Path(config.output_dir) / "pool.jsonl", config.train, config.selection
    records = len(JsonlRows(pool)) if pool.is_file() else 0
    chosen = method.budget if method.facts().heeds_budget else records
    if method.method == "pre_experience" or not records and name != "evaluate":
        return []
    steps = settings.epochs * -(-chosen // settings.batch_size)
    return {
        "embed": [f"{records:,} instructions, {records * config.generation.num_answers:,} answers",
                  *_vectors(records, config)],
        "cluster": [f"{records:,} vectors, to {config.clustering.count_bins(records):,} bins"],
        "select": [f"{chosen:,} of {records:,} records"],
        "finetune": [f"{chosen:,} records at most, {settings.epochs} epochs, {steps:,} steps"],
        "evaluate": [", ".join(config.eval.benchmarks)],
    }.get(name, [])


def _vectors(num_records: int, config: Config) -> list[str]:
    """The disk that the vectors of a pool take, where the model is a folder."""
    source = source_of(config.model.name_or_path)
    if not source.is_dir():
        return []
    width = describe(source, trust_remote_code=config.model.trust_remote_code).hidden_size
    needed = 4 * num_records * width + num_bytes(num_records, width, config)
    return [f"disk: {space(needed, Path(config.output_dir))}"]


def space(needed: int, folder: Path) -> str:
    """How many bytes a folder is to take at most, and how many it has room for."""
    free = shutil.disk_usage(nearest(folder)).free
    return (f"{size(needed)} at most, {size(free)} free"
            + (": NOT ENOUGH" if needed > free else ""))


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def size(number: float) -> str:
    """Bytes for people to read."""
    for unit in _UNITS:
        if number < 1024 or unit == _UNITS[-1]:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError


def duration(seconds: float) -> str:
    """Hours or minutes for people to read."""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _time(run: StageRun, records: int) -> str | None:
    found = _last_speed(run) or _chunk_speed(run)
    if found is None:
        return None
    speed, where = found
    return (f"about {duration(records / speed)} for {records:,} records at {speed:.2f} records/s "
            f"({where})")


def _last_speed(run: StageRun) -> tuple[float, str] | None:
    """Records/s of this stage's last line in log.jsonl, scaled to this number of ranks."""
    lines = [line for line in read_log(run.folder)
             if line["stage"] == run.name and line["records_per_second"] > 0
             and (run.name != "measure" or line["label"] == run.label)]  # each has its own speed
    if not lines:
        return None
    found = lines[-1]
    ranks = found["world_size"]
    return (found["records_per_second"] * world_size() / ranks,
            f"log.jsonl of {found['time']}, {ranks} rank(s) then")


def _chunk_speed(run: StageRun) -> tuple[float, str] | None:
    """Records/s from when the chunks of an unfinished run were written."""
    if not run.outputs[-1].endswith("/"):
        return None
    times = sorted(path.stat().st_mtime for path in (run.folder / run.outputs[-1]).glob("[0-9]*"))
    if len(times) < 2 or times[-1] == times[0]:
        return None
    speed = (len(times) - 1) * run.chunk_size / (times[-1] - times[0])
    return speed, f"from {len(times)} chunks that are there"
