"""Stage prepare: read the instruction pool, check and normalise its records.

Reads   pool.path             records of any schema in generation/schemas.py, in any kind of file in
                              generation/sources.py
Writes  pool.jsonl            N usable records, each with an id
        rejected.jsonl        the others: the raw record, its place and the reason
        contamination.jsonl   with eval.data_dir: records that share words with a benchmark, where
        provenance/prepare.counts/    ids of the records that hold control tokens of the backbone's
                              tokenizer or markers of the prompt template, where there are any

    python -m generation.prepare_pool configs/demo.yaml
"""

import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from adg.base import artifacts
from adg.base.distributed import say
from adg.base.process import run_script
from adg.config import Config
from adg.pipeline import planning, stage_run
from adg.pipeline.command import parse_command
from adg.records import subset_names
from generation import ids
from generation.judge import Judge
from generation.marks import Marks
from generation.raw import Raw
from generation.schemas import SCHEMAS, detect
from generation.sources import read_pool

_FIRST = 100  # records that the schema is inferred from
_NAMED = 20  # fields that are named


def main() -> None:
    command = parse_command(__doc__)
    config = command.config
    run = stage_run.begin("prepare", config, overwrite=command.overwrite,
                          dry_run=command.dry_run)
    if run is None:
        return
    if command.dry_run:
        plan(run)
        return
    marks = Marks(config)
    with artifacts.written_aside(run.folder / "pool.jsonl") as pool, \
            pool.open("w", encoding="utf-8", newline="\n") as usable, \
            artifacts.written_aside(run.folder / "rejected.jsonl") as rejects, \
            rejects.open("w", encoding="utf-8", newline="\n") as rejected:
        outcome = sort_out(config, usable, rejected, marks)
        usable.flush()
        kept = keep_previous_ids(run, pool, outcome, marks)
        run.start()
        run.count(0, marks.ids)
        if config.compares_with_benchmarks():
            artifacts.write_jsonl(run.folder / "contamination.jsonl", outcome.overlaps)
    if kept.changed:
        say(f"[prepare] {kept.records} records keep the ids they had")
    say_outcome(outcome, marks, run)
    run.finish(records=outcome.usable, rejected=outcome.rejected,
               dropped_duplicates=outcome.dropped, schema=outcome.schema,
               contaminated=len(outcome.overlaps))


class Outcome(NamedTuple):
    """What became of a pool: numbers of records, bytes of both files, the schema."""

    usable: int
    rejected: int
    dropped: int
    size: int
    schema: str
    fields: list[str]  # of the usable records
    overlaps: list[dict]  # a row for each record that shares words with a benchmark's question
    ids: int  # records that bring an id of their own
    reason: str | None  # why most of the rejected ones are


def plan(run: stage_run.StageRun) -> None:
    """Report what would become of the pool, which is read for that."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        outcome = sort_out(run.config, nowhere, nowhere)
    mostly = f" (mostly: {outcome.reason})" if outcome.reason else ""
    planning.show(run, {
        "schema": describe_schema(outcome, run.config),
        "records": f"{outcome.usable:,} usable, {outcome.rejected:,} rejected{mostly}"},
        records=outcome.usable, disk=outcome.size)
    for line in describe_fields(outcome):
        say(f"  {line}")


def say_outcome(outcome: Outcome, marks: Marks, run: stage_run.StageRun) -> None:
    """Say what became of the pool."""
    settings = run.config.pool
    say(f"[prepare] schema: {describe_schema(outcome, run.config)}")
    say(f"[prepare] {outcome.usable} records in the pool, {outcome.rejected} rejected"
        + (f": see {run.folder / 'rejected.jsonl'}" if outcome.rejected else "")
        + (f"; {outcome.dropped} duplicates dropped" if outcome.dropped else ""))
    for line in describe_fields(outcome) + marks.notes(run.counts_path):
        say(f"[prepare] {line}")
    if outcome.overlaps:
        say(f"[prepare] {len(outcome.overlaps)} records share 13 words in a row with a question of "
            f"a benchmark ({'left out' if settings.decontaminate == 'drop' else 'kept'}): see "
            f"{run.folder / 'contamination.jsonl'}")


def describe_schema(outcome: Outcome, config: Config) -> str:
    """The schema, and where it is from."""
    if config.pool.fields:
        return "that of pool.fields"
    inferred = ", inferred from the first records" if config.pool.schema == "auto" else ""
    return f"{outcome.schema}{inferred}"


def describe_fields(outcome: Outcome) -> list[str]:
    """What is worth knowing of the records' other fields, a line each."""
    sources = SCHEMAS[outcome.schema].fields if outcome.schema in SCHEMAS else ()
    unused = [name for name in outcome.fields
              if name not in ("id", "instruction", "input", "output", *sources)]
    lines = []
    if unused:
        lines.append(f"fields not used in prompts: {', '.join(unused[:_NAMED])}"
                     + (f" and {len(unused) - _NAMED} more" if len(unused) > _NAMED else "")
                     + (f"; pool.fields.input={unused[0]} would make one the input"
                        if outcome.schema in ("alpaca", "fields") else ""))
    renamed = {field: name for field, name in subset_names(outcome.fields).items() if name != field}
    if renamed:
        lines.append(f"fields that select writes too: {', '.join(renamed)}; in the subsets these "
                     f"stay the pool's, and those of select are {', '.join(renamed.values())}")
    return lines


def sort_out(config: Config, usable: TextIO, rejected: TextIO,
             marks: Marks | None = None) -> Outcome:
    """Write each record of the pool to one of two files, and return what became of them.

    `marks` notes the usable records that hold parts of a prompt. Raises InputError where nothing is
    usable, or more than pool.max_rejected is not.
    """
    schema, raws = _with_schema(config)
    judge, size = Judge(config, schema), 0
    for raw in raws:
        record, reason = judge(raw)
        if record is not None:
            text, file = artifacts.to_line(record), usable
            if marks is not None:
                marks.look_at(record)
        elif reason is not None:
            text, file = _rejection(raw, reason), rejected
        else:
            continue
        artifacts.put(file, text + "\n")
        size += len(text) + 1
        if judge.usable == config.pool.limit:
            break
    judge.check()
    return Outcome(judge.usable, judge.rejected, judge.dropped, size, schema, list(judge.fields),
                   judge.overlaps, judge.ids,
                   next((reason for reason, _ in judge.reasons.most_common(1)), None))


def keep_previous_ids(run: stage_run.StageRun, pool: Path, outcome: Outcome,
                      marks: Marks) -> ids.Kept:
    """Where no record brings an id, have those that the run folder has already keep theirs."""
    previous = run.folder / "pool.jsonl"
    if outcome.ids or run.overwrite or not previous.is_file():
        return ids.Kept(0, {})
    kept = ids.keep_ids(pool, previous)
    marks.rename(kept.changed)
    for row in outcome.overlaps:
        row["id"] = kept.changed.get(row["id"], row["id"])
    return kept


def _with_schema(config: Config) -> tuple[str, Iterator[Raw]]:
    """(the schema of the pool's records, the records)."""
    raws = read_pool(config.pool)
    if config.pool.fields:
        return "fields", raws
    if config.pool.schema != "auto":
        return config.pool.schema, raws
    first = list(islice(raws, _FIRST))
    readable = [raw for raw in first if raw.problem is None]
    if not readable:
        return "alpaca", chain(first, raws)  # each will say what is wrong with it
    return (detect((raw.value for raw in readable), readable[0].separator), chain(first, raws))


def _rejection(raw: Raw, reason: str) -> str:
    """The line of a rejected record."""
    place = {"file": raw.file, raw.unit: raw.number, "reason": reason}
    return artifacts.to_line(place | {"record": _writable(raw.value)})


def _writable(value: Any) -> Any:
    """The record itself where JSON can hold it, else its Python form."""
    try:
        artifacts.to_line(value).encode()
    except (ValueError, TypeError):
        return ascii(value)
    return value


if __name__ == "__main__":
    run_script(main)
