"""From evaluated run folders to a table: which rows, which columns, what is said below them."""

from pathlib import Path
from typing import Any

from adg.base.errors import InputError
from adg.benchmarks import BENCHMARKS, groups
from eval import paired
from eval.formats import Table, latex_text
from eval.paired import Difference
from eval.published import beside, published_rows, read_paper, with_deltas
from eval.results import rows_of
from eval.rows import Cell, Row, as_records, best_cells, by_cell, columns, named

_LABELS = ("", "method", "backbone", "pool", "budget", "")
_METRICS = {"exact_match": "exact match", "acc": "accuracy", "pass_at_1": "pass@1"}


def collect(runs: list[Path], *, names: list[str] | None = None, paper: bool | None = None
            ) -> tuple[list[Row], list[str]]:
    """(the rows of the table, ours and then the paper's; what is to be said of them below it).

    `names`: only these of ours, in this order. `paper`: whether the paper's are wanted; None: those
    of our backbones and pools.
    """
    reference = read_paper()
    published = published_rows(reference)
    ours = with_deltas(by_cell(row for run in runs for row in rows_of(run, reference)), published)
    if names is not None:
        ours = list({row.names: row for name in names for row in named(ours, name)}.values())
    shown = [] if paper is False else beside(ours, published, some=bool(paper))
    notes = _on_settings(ours)
    if paper is None and not shown:
        notes.append("None of the paper's rows is of this backbone and pool: --paper shows some.")
    return ours + shown, notes


def _on_settings(ours: list[Row]) -> list[str]:
    """Which rows compare with nothing of the paper's, and why."""
    by_difference: dict[tuple[str, ...], list[str]] = {}
    for row in ours:
        by_difference.setdefault(row.differs, []).extend(row.names)
    return [
        f"{', '.join(names)}: settings other than those of configs/base/paper.yaml (in brackets), "
        f"so that no difference is shown: {', '.join(differs)}."
        for differs, names in by_difference.items() if differs]


def columns_of(rows: list[Row], *, with_papers: bool = False) -> list[str]:
    """The columns in which there is a number of ours; `with_papers`: or of the paper's."""
    return [name for name in columns()
            if any(name in row.cells for row in rows if with_papers or row.source == "ours")]


def as_table(rows: list[Row], notes: list[str], *, wanted: list[str] | None = None,
             against: str | None = None) -> Table:
    """The table of rows, without the paper's that have no number in its columns.

    `wanted`: the columns that are asked for. `against`: the row that the others are compared with.
    """
    names = wanted or columns_of(rows)
    rows = [row for row in rows if row.source == "ours" or any(name in row.cells for name in names)]
    differences = compare_with(against, rows) if against is not None else {}
    notes = [*_on_marks(rows, names, differences), *notes]
    best, lines, marks, records = best_cells(rows), [], set(), as_records(rows)
    for place, row in enumerate(rows):
        marks |= {(len(lines), len(_LABELS) + column) for column, name in enumerate(names)
                  if (place, name) in best}
        lines.append([", ".join(row.names) if row.source == "ours" else "paper", *row.design,
                      *(_shown(row.cells.get(name)) for name in names)])
        if place in differences:
            lines.append([f"less {against}", *[""] * len(row.design), *(
                _shown_difference(differences[place].get(name)) for name in names)])
            records[place]["against"] = _as_record(against, differences[place])
    if differences:
        notes = [*notes, f"less {against}: difference of the row above to that row, question by "
                         f"question (of several seeds by their mean), with its 95% interval."]
    table = Table([*_LABELS, *(columns()[name] for name in names)], lines, len(names), notes,
                  records, caption_of(rows, names, against), frozenset(marks))
    return _without_empty_labels(table)


def _on_marks(rows: list[Row], names: list[str],
              differences: dict[int, dict[str, Difference]]) -> list[str]:
    """What the marks mean that stand in the columns of these names."""
    cells = _cells(rows, names)
    text, has_delta = "In percent.", any(cell.delta is not None for cell in cells)
    if has_delta:
        text += " In brackets: difference to the published number of the same cell."
    if any(cell.stderr is not None for cell in cells):
        text += " se: standard error of a single run over its questions" + (
            ", and so of its difference, as the paper gives none of its own." if has_delta else ".")
    if any(cell.deviation is not None for cell in cells):
        text += " ±: standard deviation over seeds."
    if any(name not in row for name in names
           for row in (*(row.cells for row in rows), *differences.values())):
        text += " –: not given or not run" + (
            "; the paper gives groups only." if any(row.source == "paper" for row in rows) else ".")
    parts = _parts(rows, names)
    return [text, *([
        f"* on a part of the benchmark (questions: {parts}): this shows that the pipeline runs, "
        f"not how good a model is, and compares with nothing."] if parts else [])]


def _cells(rows: list[Row], names: list[str]) -> list[Cell]:
    """The cells of the rows in the columns of these names."""
    return [row.cells[name] for row in rows for name in names if name in row.cells]


def _parts(rows: list[Row], names: list[str]) -> str:
    """The benchmarks of which only a part was asked, with how much, behind the columns of these
    names."""
    members = groups()
    members["Average"] = sum(members.values(), [])
    return ", ".join(dict.fromkeys(
        f"{benchmark.title} {row.asked[name]} of {benchmark.size}"
        for row in rows for name, benchmark in BENCHMARKS.items()
        if row.asked.get(name, benchmark.size) < benchmark.size and any(
            column in row.cells and name in members.get(column, [column]) for column in names)))


def _without_empty_labels(table: Table) -> Table:
    """The table without label columns in which no line has a text."""
    used = [column for column in range(len(table.titles))
            if column >= len(_LABELS) or any(line[column] for line in table.lines)]
    return table._replace(
        titles=[table.titles[column] for column in used],
        lines=[[line[column] for column in used] for line in table.lines],
        best=frozenset((line, used.index(column)) for line, column in table.best))


def compare_with(name: str, rows: list[Row]) -> dict[int, dict[str, Difference]]:
    """{row: {column: its difference to the row of this name}} of our other rows.

    InputError where the name is not of one row, or a row was asked other questions.
    """
    ours = [row for row in rows if row.source == "ours"]
    base, *more = named(ours, name)
    if more:
        raise InputError(f"--against {name}: {1 + len(more)} rows have this name; give one of "
                         f"{', '.join(label for row in (base, *more) for label in row.names)}")
    if len(ours) == 1:
        raise InputError(f"--against {name}: there is no other row")
    differences = {}
    for place, row in enumerate(rows):
        if row.source == "ours" and row.names != base.names:
            by_benchmark, _ = paired.by_benchmark(row.folders, base.folders)
            differences[place] = by_benchmark | paired.of_groups(by_benchmark)
    return differences


def caption_of(rows: list[Row], names: list[str], against: str | None) -> str:
    """A caption in LaTeX: what the numbers are, of how many questions, runs and seeds."""
    ours = [row for row in rows if row.source == "ours"]
    cells = _cells(ours, names)
    shown = [row for name, row in BENCHMARKS.items() if name in names or row.group in names]
    metrics = [row.metric.split(",")[0] for row in shown]
    parts = [f"{row.title} ({row.shots}-shot, {_METRICS.get(metric, metric)})"
             for row, metric in zip(shown, metrics, strict=True)]
    text = f"Results in percent: {', '.join(parts)}." if parts else "Results in percent."
    if "Average" in names:
        text += " Average: mean of the groups' means."
    if partial := _parts(ours, names):
        text += f" *: on a part of the questions ({partial})."
    seeds = sorted({seed for row in ours for seed in row.seeds})
    if any(cell.stderr is not None for cell in cells):
        text += " se: standard error over the questions of a single run" + (
            f" (seed {', '.join(map(str, seeds))})." if seeds else ".")
    if any(cell.deviation is not None for cell in cells):
        runs = sorted({len(row.names) for row in ours if len(row.names) > 1})
        text += f" ±: standard deviation over {' or '.join(map(str, runs))} seeds."
    if any(cell.delta is not None for cell in cells):
        text += " In brackets: difference to the published number."
    if against is not None:
        text += f" less {against}: difference to it, with its 95% interval."
    return latex_text(text)


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    text = f"{cell.value:.2f}" + ("*" if cell.partial else "")
    if cell.deviation is not None:
        text += f" ± {cell.deviation:.2f}"
    if cell.delta is not None:
        text += f" ({cell.delta:+.2f})"
    return text + (f" se {cell.stderr:.2f}" if cell.stderr is not None else "")


def _shown_difference(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    limits = paired.interval(difference)
    return f"{difference.first - difference.second:+.2f}" + (
        f" [{limits[0]:+.2f}, {limits[1]:+.2f}]" if limits else "")


def _as_record(against: str, differences: dict[str, Difference]) -> dict[str, Any]:
    return {"name": against, "numbers": {
        name: difference._asdict() | {"difference": difference.first - difference.second,
                                      "interval": paired.interval(difference)}
        for name, difference in differences.items()}}
