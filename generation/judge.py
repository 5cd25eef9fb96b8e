"""Which of a pool's raw records become records of the pool, and why the others do not."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from adg.base.errors import InputError
from adg.config import Config
from adg.records import normalise, problem_of
from generation.contamination import Benchmarks
from generation.raw import Raw
from generation.schemas import Unusable, check_mapped, converter

_SHOWN = 8  # reasons that are listed when too many records are unusable


class Verdict(NamedTuple):
    """A record of the pool, or why there is none; neither for a duplicate that is dropped."""

    record: dict | None
    reason: str | None = None


class Judge:
    """Raw records to records of the pool, one after the other, and the tally of what is not.

    Of a record only its id, its place and, where duplicates matter, a hash stay in memory.
    """

    def __init__(self, config: Config, schema: str) -> None:
        self._settings, self._schema = config.pool, schema
        self._benchmarks = (Benchmarks(Path(config.eval.data_dir))
                            if config.compares_with_benchmarks() else None)
        self._convert = converter(schema, config.pool)
        self._raw_fields: dict[str, None] = {}  # of all records, where pool.fields names some
        self.ids = 0  # records that bring an id of their own
        self.usable = self.dropped = self.rejected = self._broken = self._seen = 0
        self.fields: dict[str, None] = {}  # of the usable records, in the order of their appearance
        self.overlaps: list[dict] = []  # a row for each record that shares words with a question
        self._places: dict[str, str] = {}  # of each id
        self._hashes: set[bytes] = set()
        self.reasons: Counter[str] = Counter()  # of all that are rejected
        self._first: dict[str, str] = {}  # place of the first unusable record with each reason

    def __call__(self, raw: Raw) -> Verdict:
        """What becomes of the next record."""
        record, reason = self._read(raw, self._seen)
        self._seen += 1
        if reason is not None:
            self._broken += 1
            self._first.setdefault(_kind(reason), raw.place())
        elif self._settings.duplicates != "keep" and self._is_duplicate(record):
            if self._settings.duplicates == "drop":
                self.dropped += 1
                return Verdict(None)
            reason = "a duplicate, word for word"
        else:
            reason = self._contamination(record)
        if reason is not None:
            self.rejected += 1
            self.reasons[_kind(reason)] += 1
            return Verdict(None, reason)
        self._places[record["id"]] = raw.place()
        self.usable += 1
        if not record.keys() <= self.fields.keys():
            self.fields |= dict.fromkeys(record)
        return Verdict(record)

    def _read(self, raw: Raw, position: int) -> Verdict:
        """The normalised record, or why it is unusable."""
        if raw.problem is not None:
            return Verdict(None, raw.problem)
        if not isinstance(raw.value, dict):
            return Verdict(None, f"a {type(raw.value).__name__}, not an object")
        if self._settings.fields and not raw.value.keys() <= self._raw_fields.keys():
            self._raw_fields |= dict.fromkeys(raw.value)
        try:
            record = self._convert(raw.value)
            problem = problem_of(record)
        except Unusable as error:
            problem = str(error)
        if problem is not None:
            if raw.separator and problem.endswith("is missing"):
                problem += f", the separator is {raw.separator}"
            return Verdict(None, problem)
        self.ids += record.get("id") is not None
        record = normalise(record, position)
        if (place := self._places.get(record["id"])) is not None:
            return Verdict(None, f"its id is another's (the id {record['id']!r} is that of {place} "
                                 f"too)")
        return Verdict(record)

    def _is_duplicate(self, record: dict) -> bool:
        text = "\0".join(record[name] for name in ("instruction", "input", "output"))
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        is_known = digest in self._hashes
        self._hashes.add(digest)
        return is_known

    def _contamination(self, record: dict) -> str | None:
        """Why a record that shares words with a benchmark's question is left out, where it is."""
        overlap = self._benchmarks.overlap(record) if self._benchmarks else None
        if overlap is None:
            return None
        self.overlaps.append({"id": record["id"]} | overlap._asdict())
        if self._settings.decontaminate != "drop":
            return None
        return (f"overlaps with {overlap.benchmark} {overlap.task}:{overlap.question} "
                f"({overlap.words})")

    def check(self) -> None:
        """InputError where pool.fields names what no record has, nothing is usable, or too much is
        not."""
        check_mapped(self._settings, self._raw_fields)
        path, limit = self._settings.path, self._settings.max_rejected
        if self.usable and self._broken <= limit * self._seen:
            return
        unusable = [(kind, number) for kind, number in self.reasons.most_common()
                    if kind in self._first]
        reasons = "; ".join(f"{number} x {kind} (first: {self._first[kind]})"
                            for kind, number in unusable[:_SHOWN])
        if not self._seen:
            raise InputError(f"pool.path: {path} holds no record")
        if not self.usable:
            raise InputError(f"pool.path: {path}, read as schema {self._schema}, holds no usable "
                             f"record among {self._seen}: {reasons}")
        raise InputError(f"pool.path: {self._broken} of {self._seen} records of {path} cannot be "
                         f"used (schema {self._schema}), more than pool.max_rejected ({limit:g}): "
                         f"{reasons}")


def _kind(reason: str) -> str:
    """A reason without what is particular to one record."""
    return reason.split(" (")[0]
