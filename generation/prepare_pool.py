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

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from adg.base import artifacts
from adg.base.distributed import say
from adg.base.errors import InputError
from adg.base.process import run_script
from adg.config import Config
from adg.pipeline import planning, stage_run
from adg.pipeline.command import parse_command
from adg.records import normalise, problem_of, subset_names
from generation.contamination import Benchmarks
from generation.marks import Marks
from generation.schemas import SCHEMAS, Unusable, converter, detect
from generation.sources import Raw, read_pool

_SHOWN = 8  # reasons that are told when too many records are unusable
_FIRST = 100  # records that the schema is told by
_NAMED = 20  # fields that are named


def main() -> None:
    command = parse_command(__doc__)
    config = command.config
    run = stage_run.begin("prepare", config, overwrite=command.overwrite,
                           dry_run=command.dry_run)
    if run is None:
        return
    if command.dry_run:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            found = sort_out(config, nowhere, nowhere, [])
        planning.show(run, {"schema": found.schema,
                            "records": f"{found.usable:,} usable, {found.rejected:,} rejected"},
                      records=found.usable, disk=found.size)
        return
    with artifacts.written_aside(run.folder / "pool.jsonl") as pool, \
            pool.open("w", encoding="utf-8", newline="\n") as usable, \
            artifacts.written_aside(run.folder / "rejected.jsonl") as rejects, \
            rejects.open("w", encoding="utf-8", newline="\n") as rejected:
        found = sort_out(config, usable, rejected, overlaps := [], marks := Marks(config))
        run.start()
        run.count(0, marks.found)
        if config.compares_with_benchmarks():
            artifacts.write_jsonl(run.folder / "contamination.jsonl", overlaps)
    say(f"[prepare] schema: {found.schema}"
        + (", told by the first records" if config.pool.schema == "auto" else ""))
    say(f"[prepare] {found.usable} records in the pool, {found.rejected} rejected"
        + (f": see {run.folder / 'rejected.jsonl'}" if found.rejected else "")
        + (f"; {found.dropped} duplicates dropped" if found.dropped else ""))
    for line in describe_fields(found) + marks.told(run.counts_path):
        say(f"[prepare] {line}")
    if overlaps:
        say(f"[prepare] {len(overlaps)} records share 13 words in a row with a question of a "
            f"benchmark ({'left out' if config.pool.decontaminate == 'drop' else 'kept'}): see "
            f"{run.folder / 'contamination.jsonl'}")
    run.finish(records=found.usable, rejected=found.rejected, dropped_duplicates=found.dropped,
               schema=found.schema, contaminated=len(overlaps))


class Found(NamedTuple):
    """What became of a pool: numbers of records, bytes of both files, the schema."""

    usable: int
    rejected: int
    dropped: int
    size: int
    schema: str
    fields: list[str]  # of the usable records


def describe_fields(found: Found) -> list[str]:
    """What a person should know of the records' other fields, a line each."""
    sources = SCHEMAS[found.schema].fields if found.schema in SCHEMAS else ()
    unused = [name for name in found.fields
              if name not in ("id", "instruction", "input", "output", *sources)]
    lines = []
    if unused:
        lines.append(f"fields not used in prompts: {', '.join(unused[:_NAMED])}"
                     + (f" and {len(unused) - _NAMED} more" if len(unused) > _NAMED else "")
                     + (f"; pool.fields.input={unused[0]} would make one the input"
                        if found.schema in ("alpaca", "fields") else ""))
    renamed = {field: name for field, name in subset_names(found.fields).items() if name != field}
    if renamed:
        lines.append(f"fields that select writes too: {', '.join(renamed)}; in the subsets these "
                     f"stay the pool's, and those of select are {', '.join(renamed.values())}")
    return lines


def sort_out(config: Config, usable: TextIO, rejected: TextIO, overlaps: list[dict],
             marks: Marks | None = None) -> Found:
    """Write each record of the pool to one of two files, and say what became of them.

    `overlaps` takes a row for each record that shares words with a benchmark's question, `marks`
    the ids of those that hold parts of a prompt.

    Raises InputError where nothing is usable, or more than pool.max_rejected is not. Of a record
    only its id, place and, where duplicates matter, a hash stay in memory.
    """
    schema, raws = _with_schema(config)
    judge = Judge(config, schema, overlaps)
    size = 0
    for raw in raws:
        record = judge(raw)
        if record is not None:
            text, file = artifacts.to_line(record), usable
            if marks is not None:
                marks.look_at(record)
        elif judge.reason:
            text, file = _rejection(raw, judge.reason), rejected
        else:
            continue
        artifacts.put(file, text + "\n")
        size += len(text) + 1
        if judge.usable == config.pool.limit:
            break
    judge.check()
    return Found(judge.usable, judge.rejected, judge.dropped, size, schema, list(judge.fields))


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


class Judge:
    """Raw records to records of the pool, one after the other, and the tally of what is not."""

    def __init__(self, config: Config, schema: str, overlaps: list[dict]) -> None:
        self._settings, self._schema, self._overlaps = config.pool, schema, overlaps
        self._benchmarks = (Benchmarks(Path(config.eval.data_dir))
                            if config.compares_with_benchmarks() else None)
        self._convert = converter(schema, config.pool)
        self.usable = self.dropped = self.rejected = self._broken = self._seen = 0
        self.fields: dict[str, None] = {}  # of the usable records, in the order of their appearance
        self.reason: str | None = None  # why the last record was not taken; None: dropped
        self._places: dict[str, str] = {}  # of each id
        self._hashes: set[bytes] = set()
        self._reasons: Counter[str] = Counter()
        self._first: dict[str, str] = {}  # place of the first record with each reason

    def __call__(self, raw: Raw) -> dict | None:
        """The pool's record; None where it is rejected (`reason` says why) or dropped."""
        position, self._seen = self._seen, self._seen + 1
        record, self.reason = self._read(raw, position)
        if self.reason is not None:
            self._broken += 1
            kind = self.reason.split(" (")[0]
            self._reasons[kind] += 1
            self._first.setdefault(kind, raw.place())
        elif self._settings.duplicates != "keep" and self._is_duplicate(record):
            if self._settings.duplicates == "drop":
                self.dropped += 1
                return None
            self.reason = "a duplicate, word for word"
        if self.reason is None and self._benchmarks and (
                found := self._benchmarks.overlap(record)):
            self._overlaps.append({"id": record["id"]} | found._asdict())
            if self._settings.decontaminate == "drop":
                self.reason = (f"overlaps with {found.benchmark} {found.task}:{found.question} "
                               f"({found.words})")
        if self.reason is not None:
            self.rejected += 1
            return None
        self._places[record["id"]] = raw.place()
        self.usable += 1
        if not record.keys() <= self.fields.keys():
            self.fields |= dict.fromkeys(record)
        return record

    def _read(self, raw: Raw, position: int) -> tuple[dict | None, str | None]:
        """(the normalised record, None), or (None, why it is unusable)."""
        if raw.problem is not None:
            return None, raw.problem
        if not isinstance(raw.value, dict):
            return None, f"a {type(raw.value).__name__}, not an object"
        try:
            record = self._convert(raw.value)
            problem = problem_of(record)
        except Unusable as error:
            problem = str(error)
        if problem is not None:
            if raw.separator and problem.endswith("is missing"):
                problem += f", the separator is {raw.separator}"
            return None, problem
        record = normalise(record, position)
        known = self._places.get(record["id"])
        return (record, None) if known is None else (
            None, f"its id is another's (the id {record['id']!r} is that of {known} too)")

    def _is_duplicate(self, record: dict) -> bool:
        text = "\0".join(record[name] for name in ("instruction", "input", "output"))
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        known = digest in self._hashes
        self._hashes.add(digest)
        return known

    def check(self) -> None:
        """InputError where nothing is usable, or too much is not."""
        path, limit = self._settings.path, self._settings.max_rejected
        if self.usable and self._broken <= limit * self._seen:
            return
        told = "; ".join(f"{number} x {kind} (first: {self._first[kind]})"
                         for kind, number in self._reasons.most_common(_SHOWN))
        if not self._seen:
            raise InputError(f"pool.path: {path} holds no record")
        if not self.usable:
            raise InputError(f"pool.path: {path}, read as schema {self._schema}, holds no usable "
                             f"record among {self._seen}: {told}")
        raise InputError(f"pool.path: {self._broken} of {self._seen} records of {path} cannot be "
                         f"used (schema {self._schema}), more than pool.max_rejected ({limit:g}): "
                         f"{told}")


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
