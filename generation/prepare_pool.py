"""Stage prepare: check and normalise the instruction pool.

Reads   pool.path             Alpaca records (instruction, input, output), .jsonl or a .json array
Writes  pool.jsonl            N usable records, each with an id
        rejected.jsonl        the others: the raw record, its place and the reason

    python -m generation.prepare_pool configs/demo.yaml
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from adg import artifacts, provenance
from adg.checks import check_bins, check_budget
from adg.command import parse_command
from adg.config import Config
from adg.distributed import run_script, say
from adg.errors import InputError
from adg.records import normalise, problem_of, read_source


def main() -> None:
    config, overwrite = parse_command(__doc__)
    run = provenance.begin("prepare", config, overwrite=overwrite)
    if run is None:
        return
    records, rejected = read_pool(config)
    check_bins(config, len(records))
    check_budget(config, len(records))
    run.start()
    artifacts.write_jsonl(run.folder / "rejected.jsonl", rejected)
    artifacts.write_jsonl(run.folder / "pool.jsonl", records)
    say(f"[prepare] {len(records)} records in the pool, {len(rejected)} rejected"
        + (f": see {run.folder / 'rejected.jsonl'}" if rejected else ""))
    run.finish(records=len(records), rejected=len(rejected))


def read_pool(config: Config) -> tuple[list[dict], list[dict]]:
    """(usable records, rejected ones) of pool.path; at most pool.limit usable ones.

    Raises InputError on broken JSON, on two records of one id, and where nothing is usable.
    """
    rejected: list[dict] = []
    places: dict[str, dict] = {}
    records = []
    for record, where in islice(_usable(Path(config.pool.path), rejected), config.pool.limit):
        if record["id"] in places:
            raise InputError(f"{_place(where)}: the id {record['id']!r} is that of "
                             f"{_place(places[record['id']])} too; give every record its own")
        places[record["id"]] = where
        records.append(record)
    if not records:
        reason = f"; the first was rejected because {rejected[0]['reason']}" if rejected else ""
        raise InputError(f"{config.pool.path}: no usable record among {len(rejected)}{reason}")
    return records, rejected


def _usable(path: Path, rejected: list[dict]) -> Iterator[tuple[dict, dict]]:
    for position, (raw, where) in enumerate(read_source(path)):
        problem = problem_of(raw)
        if problem is None:
            yield normalise(raw, position), where
        else:
            rejected.append({**where, "reason": problem, "record": _writable(raw)})


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
