"""Instruction records: read, check, normalise, and their ids."""

import json
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from adg.base import artifacts
from adg.base.errors import InputError

_BLOCK = 1 << 12  # answered records that are checked at once


def read_source(path: Path) -> Iterator[tuple[Any, dict]]:
    """(raw record, where it stands) of each record of a pool file: JSONL, or a JSON array (.json).

    `where` is {"file", "line"} or, in an array, {"file", "element"}, both from 1.
    Raises InputError on anything that is not JSON.
    """
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield artifacts.parse_record(line, f"{path}:{number}"), {"file": str(path),
                                                                             "line": number}
    elif path.suffix == ".json":
        try:
            records = json.loads(path.read_bytes())
        except ValueError as error:
            raise InputError(f"{path}: not valid JSON ({error}); fix the file") from None
        if not isinstance(records, list):
            raise InputError(f"{path}: a JSON {type(records).__name__}, not an array of records")
        for number, record in enumerate(records, start=1):
            yield record, {"file": str(path), "element": number}
    else:
        raise InputError(f"pool.path: {path} is neither .jsonl nor .json")


def problem_of(record: Any) -> str | None:
    """Why an Alpaca record cannot be used; None where it can."""
    if not isinstance(record, dict):
        return f"a {type(record).__name__}, not an object"
    for name in ("instruction", "output"):
        if not isinstance(record.get(name), str):
            return f"{name} is {'not a string' if name in record else 'missing'}"
        if not record[name].strip():
            return f"{name} is empty"
        if "\0" in record[name]:
            return f"{name} holds a NUL character"
    if not isinstance(record.get("input") or "", str):
        return "input is not a string"
    if "\0" in (record.get("input") or ""):
        return "input holds a NUL character"
    name = record.get("id")
    if not isinstance(name, str | int | float | None) or isinstance(name, bool):
        return f"id is a {type(name).__name__}, not a string or number"
    if isinstance(name, str) and not name.strip():
        return "id is empty"
    try:
        artifacts.to_line(record).encode()
    except (ValueError, TypeError) as error:  # a lone surrogate, NaN, a date of a Parquet file
        return f"cannot be written as JSON: {error}"
    return None


def normalise(record: dict, position: int) -> dict:
    """The pool's form of a usable record: id as a string (its position where it has none), then
    instruction, input and output, then its other fields untouched."""
    name = record.get("id")
    head = {"id": str(position) if name is None else str(name),
            "instruction": record["instruction"], "input": record.get("input") or "",
            "output": record["output"]}
    return head | {key: value for key, value in record.items() if key not in head}


SUBSET_FIELDS = ("generated_answers", "dispersion", "anisotropy", "score", "bin")


def subset_names(pool_fields: Container[str]) -> dict[str, str]:
    """{field that select adds to the records of a subset: its name there}.

    The name is the field's own, or `adg_` before it where the pool has a field of that name, which
    keeps it.
    """
    names = {}
    for field in SUBSET_FIELDS:
        name = field
        while name in pool_fields:
            name = f"adg_{name}"
        names[field] = name
    return names


def instruction_text(record: dict) -> str:
    """The instruction and, on a line of its own, the input where there is one."""
    return "\n".join(part for part in (record["instruction"], record["input"]) if part)


class Pool(artifacts.JsonlRows):
    """The records of a run folder's pool.jsonl by row, each checked for its four strings."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "pool.jsonl")
        if not len(self):
            raise InputError(f"{folder / 'pool.jsonl'} is empty")

    def parse(self, line: bytes, where: str) -> dict:
        record = super().parse(line, where)
        for name in ("id", "instruction", "input", "output"):
            if not isinstance(record.get(name), str):
                raise InputError(f"{where}: {name} is not a string; "
                                 f"run prepare, or fix the record")
        return record


def check_ids(pool: Pool) -> None:
    """InputError where two records of a pool have the same id."""
    lines: dict[str, str] = {}
    for record, where in pool.numbered(range(len(pool))):
        if (first := lines.setdefault(record["id"], where)) != where:
            raise InputError(f"{where}: id is {record['id']!r}, as in line "
                             f"{first.rpartition(':')[2]}: each record needs an id of its own, by "
                             f"which its answers and scores are stored; rename one, or run prepare")


class Answer(NamedTuple):
    """A generated answer: its text, and its token ids where generation.keep_token_ids kept them."""

    text: str
    token_ids: list[int] | None = None

    def is_empty(self) -> bool:
        """Whether it has no token."""
        return not (self.text if self.token_ids is None else self.token_ids)


class Answers(artifacts.JsonlRows):
    """The rows of a run folder's answers/, each checked against its record of the pool."""

    def __init__(self, folder: Path, pool: Pool) -> None:
        super().__init__(folder / "answers")
        self._pool = pool
        if len(self) != len(pool):
            raise InputError(
                f"{folder}/answers/ holds {len(self)} rows, but pool.jsonl has {len(pool)} "
                f"records: it belongs to another pool, or a chunk is missing")

    def generated(self, wanted: range, *, num_answers: int, token_ids: bool = True,
                  padded: bool = False, known_by: str = "generation.num_answers"
                  ) -> list[list[Answer]]:
        """num_answers answers of each row of `wanted`, in pool order; without ids if not asked for.

        Raises InputError with file and line where a row is of another record, or has another number
        of answers than `known_by` says (padded: fewer are made up with empty ones).
        """
        answers = []
        for record, (row, where) in zip(self._pool.rows(wanted), self.numbered(wanted),
                                        strict=True):
            texts = _checked_texts(row, where, record)
            ids = _checked_ids(row, where, len(texts)) if token_ids else [None] * len(texts)
            of_record = [Answer(*pair) for pair in zip(texts, ids, strict=True)]
            if padded:
                of_record += [Answer("")] * (num_answers - len(of_record))
            if len(of_record) != num_answers:
                raise InputError(f"{where}: {len(of_record)} answers, but {known_by} is "
                                 f"{num_answers}")
            answers.append(of_record)
        return answers

    def check(self, *, num_answers: int, padded: bool, known_by: str) -> None:
        """InputError where `generated` would raise one for any row."""
        for rows in artifacts.chunk_bounds(len(self), _BLOCK):
            self.generated(rows, num_answers=num_answers, token_ids=False, padded=padded,
                           known_by=known_by)

    def texts_of(self, index: int, record: dict) -> list[str]:
        """The generated answers of one row, checked to be those of `record`."""
        return _checked_texts(*self.row(index), record)


def _checked_texts(row: dict, where: str, record: dict) -> list[str]:
    for name in ("id", "instruction", "input"):
        if row.get(name, None if name == "id" else record[name]) != record[name]:
            raise InputError(f"{where}: {name} is {row.get(name)!r}, but {record[name]!r} in that "
                             f"row of pool.jsonl: these answers belong to another pool")
    texts = row.get("generated_answers")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: generated_answers is not a list of strings")
    return texts


def _checked_ids(row: dict, where: str, num_answers: int) -> list[list[int] | None]:
    ids = row.get("token_ids", [None] * num_answers)
    if "token_ids" in row and not (
            isinstance(ids, list) and len(ids) == num_answers
            and all(isinstance(row_ids, list) and all(type(token) is int and token >= 0
                                                      for token in row_ids) for row_ids in ids)):
        raise InputError(f"{where}: token_ids is not a list of token ids for each answer; fix or "
                         f"remove it")
    return ids
