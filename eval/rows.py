"""The rows of a table, ours and the paper's: their cells, their order, the best of them.

A row's design says what was tried: method, backbone, pool, budget and what else differs from the
paper's setting. Runs of one cell with several seeds become one row.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from adg.base.errors import InputError
from adg.benchmarks import BENCHMARKS, groups


class Design(NamedTuple):
    """What was tried, as the columns before the numbers say it; empty where it is not known."""

    method: str
    backbone: str = ""
    pool: str = ""
    budget: str = ""
    variant: str = ""  # what else differs from the paper's setting


class Cell(NamedTuple):
    """One number in percent: mean over the runs, their standard deviation, and what marks it."""

    value: float
    deviation: float | None = None  # over seeds, where there are several
    stderr: float | None = None  # of a single run, over the questions
    partial: bool = False  # fewer questions were asked than the benchmark has
    delta: float | None = None  # to the published number of the same cell


class Row(NamedTuple):
    """A line of a table."""

    design: Design
    cells: dict[str, Cell]
    source: str  # "ours" or "paper"
    names: tuple[str, ...] = ()  # RUN: NAME of each run behind it
    settings: str = ""  # every parameter but the seeds, and hashes of pool and models, as JSON
    seeds: tuple[int, ...] = ()  # of each stage that has one; empty where they are not known
    differs: tuple[str, ...] = ()  # settings other than the paper's, with the paper's
    folders: tuple[Path, ...] = ()  # RUN/eval/NAME of each run behind it
    asked: dict[str, int] = {}  # questions by benchmark
    whole: dict[str, str] = {}  # hashes of whole models by input, where they were taken


def columns() -> dict[str, str]:
    """{key: title} of every column: the benchmarks, the groups and the average."""
    return {name: row.title for name, row in BENCHMARKS.items()} | {
        name: name for name in (*groups(), "Average")}


def by_cell(rows: Iterable[Row]) -> list[Row]:
    """One row for runs that differ by their seed alone: means and standard deviations."""
    grouped: dict[tuple, list[Row]] = {}
    for row in rows:
        key = (row.design, row.settings)
        others = grouped.get(key, ())
        if (not row.seeds or row.seeds in [other.seeds for other in others]
                or any(_other_models(row, other) for other in others)):
            key = (*key, row.names)  # not known to be another seed: a row of its own
        grouped.setdefault(key, []).append(row)
    return [seeds[0] if len(seeds) == 1 else _averaged(key[0], seeds)
            for key, seeds in grouped.items()]


def _other_models(row: Row, other: Row) -> bool:
    """Whether two rows have models that differ as a whole, though their samples are the same."""
    return any(other.whole.get(name, value) != value for name, value in row.whole.items())


def _averaged(design: Design, rows: list[Row]) -> Row:
    cells = {}
    for name in columns():
        seeds = [row.cells[name] for row in rows if name in row.cells]
        if len(seeds) == len(rows):
            values = [cell.value for cell in seeds]
            cells[name] = Cell(statistics.fmean(values), statistics.stdev(values),
                               partial=any(cell.partial for cell in seeds))
    return Row(design, cells, "ours", tuple(name for row in rows for name in row.names),
               differs=rows[0].differs, folders=tuple(row.folders[0] for row in rows),
               asked=rows[0].asked)


def named(rows: list[Row], name: str) -> list[Row]:
    """The rows of a name: RUN: NAME, NAME alone, or a method; InputError where there is none."""
    matches = [row for row in rows if name in (
        row.design.method, ", ".join(row.names), *row.names,
        *(label.split(": ", 1)[1] for label in row.names))]
    if not matches:
        raise InputError(f"no row is called {name}; there are: "
                         + "; ".join(f"{', '.join(row.names)} ({row.design.method})"
                                     for row in rows))
    return matches


def best_cells(rows: list[Row]) -> set[tuple[int, str]]:
    """(row, column) of the highest number of each column among several rows of one backbone, by the
    digits that are printed; a number on a part of a benchmark is compared with its like."""
    compared: dict[tuple, list[tuple[float, int]]] = defaultdict(list)
    for place, row in enumerate(rows):
        for name, cell in row.cells.items():
            compared[row.design.backbone, cell.partial, name].append(
                (round(cell.value, 2), place))
    return {(place, name) for (*_, name), values in compared.items()
            for value, place in values if value == max(values)[0] > min(values)[0]}


def as_records(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows as JSON has them."""
    return [{"source": row.source, **row.design._asdict(), "runs": list(row.names),
             "other_settings": list(row.differs),
             "numbers": {name: {key: value for key, value in row.cells[name]._asdict().items()
                                if value is not None}
                         for name in columns() if name in row.cells}}
            for row in rows]
