"""Stage prepare: check and normalise the instruction pool.

Reads   pool.path             Alpaca records (instruction, input, output), .jsonl or a .json array
Writes  pool.jsonl            N usable records, each with an id
        rejected.jsonl        the others: the raw record, its place and the reason

    python -m generation.prepare_pool configs/demo.yaml
"""

from collections.abc import Iterator
from pathlib import Path

from adg import artifacts, planning, provenance
from adg.checks import check_bins, check_budget
from adg.command import parse_command
from adg.config import Config
from adg.distributed import run_script, say
from adg.errors import InputError
from adg.records import normalise, problem_of, read_source


def main() -> None:
    command = parse_command(__doc__)
    config = command.config
    run = provenance.begin("prepare", config, overwrite=command.overwrite)
    if run is None:
        return
    usable, rejected, size = survey(config)
    check_bins(config, usable)
    check_budget(config, usable)
    if command.dry_run:
        planning.show(run, {"records": f"{usable:,} usable, {rejected:,} rejected"},
                      records=usable, disk=size)
        return
    run.start()
    write(run.folder, config)
    say(f"[prepare] {usable} records in the pool, {rejected} rejected"
        + (f": see {run.folder / 'rejected.jsonl'}" if rejected else ""))
    run.finish(records=usable, rejected=rejected)


def survey(config: Config) -> tuple[int, int, int]:
    """(usable records, rejected ones, bytes that both will take) of pool.path.

    Of a record only its id and place stay in memory. Raises InputError on broken JSON, on two
    records of one id, and where nothing is usable.
    """
    places: dict[str, int] = {}  # line or element of each id
    num_rejected = size = 0
    reason = ""
    for record, rejection, where in sort_out(config):
        size += len(artifacts.to_line(record or rejection).encode()) + 1
        if record is None:
            reason = reason or f"; the first was rejected because {rejection['reason']}"
            num_rejected += 1
        elif record["id"] in places:
            earlier = dict.fromkeys(set(where) - {"file"}, places[record["id"]])
            raise InputError(f"{_place(where)}: the id {record['id']!r} is that of "
                             f"{_place({'file': where['file'], **earlier})} too; give every record "
                             f"its own")
        else:
            places[record["id"]] = where.get("line") or where["element"]
    if not places:
        raise InputError(f"{config.pool.path}: no usable record among {num_rejected}{reason}")
    return len(places), num_rejected, size


def sort_out(config: Config) -> Iterator[tuple[dict | None, dict | None, dict]]:
    """(usable record or None, rejected one with place and reason or None, its place) in order.

    Ends after pool.limit usable records.
    """
    left = config.pool.limit
    for position, (raw, where) in enumerate(read_source(Path(config.pool.path))):
        if left == 0:
            return
        problem = problem_of(raw)
        if problem is not None:
            yield None, {**where, "reason": problem, "record": _writable(raw)}, where
        else:
            left = left and left - 1
            yield normalise(raw, position), None, where


def write(folder: Path, config: Config) -> None:
    """Write both files, a record at a time; pool.jsonl, by which the stage is done, last."""
    with artifacts.written_aside(folder / "pool.jsonl") as pool, \
            artifacts.written_aside(folder / "rejected.jsonl") as rejects, \
            pool.open("w", encoding="utf-8") as usable, \
            rejects.open("w", encoding="utf-8") as rejected:
        for record, rejection, _ in sort_out(config):
            (rejected if record is None else usable).write(
                artifacts.to_line(record or rejection) + "\n")


def _writable(raw: object) -> object:
    """The record itself where JSON can hold it, else its Python form."""
    try:
        artifacts.to_line(raw).encode()
    except ValueError:
        return ascii(raw)
    return raw


def _place(where: dict) -> str:
    return f"{where['file']}:{where.get('line') or 'element ' + str(where['element'])}"


if __name__ == "__main__":
    run_script(main)
