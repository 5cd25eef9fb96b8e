"""Stage tables: the benchmarks of finished runs beside the paper's published numbers.

Reads   RUN_DIR/eval/NAME/scores.json     of each run folder given
        RUN_DIR/provenance/               which method, backbone, pool, budget and seed each is
Writes  RUN_DIR/tables.md                 the table without options, where one run folder is given

    python -m eval.tables runs/demo
    python -m eval.tables runs/demo runs/llama3_alpaca_gpt4 --format latex > table.tex
    python -m eval.tables runs/mine --rows adg-top random-top --benchmarks gsm8k mmlu Average \\
        --against random-top

The table is printed, and nothing else is. With --against, a line below each row is its difference
to the row that is named, question by question, with a 95% interval.

With --paired, two evaluated models over the questions that both were asked: each a run folder that
holds one evaluation, or RUN_DIR/eval/NAME. It prints the difference on each benchmark, group and on
the average, its standard error and p value, and writes no file.

    python -m eval.tables runs/ours/eval/adg-top runs/ours/eval/random-top --paired
"""

import argparse
import contextlib
import sys
from pathlib import Path

from adg.base import artifacts
from adg.base.errors import InputError
from adg.base.process import run_script
from adg.config import load_config
from adg.pipeline import stage_run
from eval import paired
from eval.benchmarks import BENCHMARKS, GROUPS
from eval.formats import FORMATS, Table, as_markdown, latex_text
from eval.paired import Difference
from eval.results import (
    COLUMNS,
    Cell,
    Row,
    artifact,
    beside,
    best_cells,
    by_cell,
    named,
    paper_settings,
    published_rows,
    read_published,
    rows_of,
    with_deltas,
)

_LABELS = ("", "method", "backbone", "pool", "budget", "")
_METRICS = {"exact_match": "exact match", "acc": "accuracy", "pass_at_1": "pass@1"}


def main() -> None:
    arguments = read_arguments()
    if arguments.paired:
        print_table(paired.compare(*arguments.runs), arguments)
        return
    runs = arguments.runs
    default = as_table(*collect(runs))
    run = None
    with contextlib.redirect_stdout(sys.stderr):  # stdout is the table's
        if len(runs) == 1 and (runs[0] / "config.yaml").is_file():
            config = load_config(runs[0] / "config.yaml", [])
            config.output_dir = str(runs[0])
            run = stage_run.begin("tables", config, dry_run=arguments.dry_run)
    if not arguments.quiet:
        rows, notes = collect(runs, names=arguments.rows, paper=arguments.paper)
        print_table(as_table(rows, notes, columns=arguments.benchmarks or columns_of(
            rows, with_papers=bool(arguments.paper)), against=arguments.against), arguments)
    if run is not None and not arguments.dry_run:
        with contextlib.redirect_stdout(sys.stderr):
            run.start()
            artifacts.write_text(runs[0] / "tables.md", as_markdown(default) + "\n")
            run.finish(records=sum(row["source"] == "ours" for row in default.rows))


def read_arguments() -> argparse.Namespace:
    """The command line; InputError where two of its options do not go together."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR",
                        help="a run folder; with --paired also RUN_DIR/eval/NAME")
    parser.add_argument("--format", choices=FORMATS, default="markdown",
                        help="of what is printed; tables.md is Markdown")
    parser.add_argument("--rows", nargs="+", metavar="NAME",
                        help="only these rows, in this order: RUN: NAME, NAME or a method's title")
    parser.add_argument("--benchmarks", nargs="+", type=_column, metavar="NAME",
                        help="only these columns, in this order; by default those with a number of "
                             f"these runs. Of {', '.join(COLUMNS)}")
    parser.add_argument("--paper", action=argparse.BooleanOptionalAction,
                        help="the paper's rows; by default those of the same backbone and pool")
    parser.add_argument("--against", metavar="NAME",
                        help="each row's difference to this one, with its 95%% interval")
    parser.add_argument("--caption", metavar="LATEX", help="latex: instead of the caption that "
                        "says what the numbers are")
    parser.add_argument("--label", default=None, help="latex: of the table, by default tab:results")
    parser.add_argument("--paired", action="store_true",
                        help="compare two evaluated models question by question")
    parser.add_argument("--quiet", action="store_true", help="do not print the table")
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no file")
    arguments = parser.parse_args()
    if arguments.paired:
        if len(arguments.runs) != 2:
            raise InputError(f"--paired compares two evaluated models; {len(arguments.runs)} given")
        for name in ("rows", "benchmarks", "paper", "against"):
            if getattr(arguments, name) is not None:
                raise InputError(f"--{name} is of the table of runs: leave it out with --paired")
    for name in ("caption", "label"):
        if getattr(arguments, name) is not None and arguments.format != "latex":
            raise InputError(f"--{name} is of --format latex")
    return arguments


def _column(text: str) -> str:
    """The key of a column, by itself or by its title."""
    names = {own.lower(): name for name, title in COLUMNS.items() for own in (name, title)}
    if text.lower() not in names:
        raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(COLUMNS)}")
    return names[text.lower()]


def print_table(table: Table, arguments: argparse.Namespace) -> None:
    """Print a table in the format that is asked for."""
    print(FORMATS[arguments.format](table._replace(
        caption=table.caption if arguments.caption is None else arguments.caption,
        label=arguments.label or table.label)))


def collect(runs: list[Path], *, names: list[str] | None = None, paper: bool | None = None
            ) -> tuple[list[Row], list[str]]:
    """(the rows of the table, ours and then the paper's; what is to be said below it).

    `names`: only these of ours, in this order. `paper`: whether the paper's are wanted; None: those
    of our backbones and pools.
    """
    published = read_published()
    recipe = paper_settings()
    theirs = published_rows(published)
    ours = with_deltas(by_cell(row for run in runs for row in rows_of(run, published, recipe)),
                       theirs)
    if names is not None:
        ours = list({row.names: row for name in names for row in named(ours, name)}.values())
    notes = ["In percent. In brackets: difference to the published number of the same cell. se: "
             "standard error of a single run over its questions, and so of its difference, as the "
             "paper gives none of its own. ± : standard deviation over seeds. – : not given or "
             "not run; the paper gives groups only."]
    if parts := _parts(ours):
        notes.append(f"* on a part of the benchmark (questions: {parts}): this shows that the "
                     f"pipeline runs, not how good a model is, and compares with nothing.")
    others: dict[tuple[str, ...], list[str]] = {}
    for row in ours:
        others.setdefault(row.differs, []).extend(row.names)
    notes += [f"{', '.join(names)}: settings other than those of configs/base/paper.yaml (in "
              f"brackets), so that no difference is shown: {', '.join(differs)}."
              for differs, names in others.items() if differs]
    shown = [] if paper is False else beside(ours, theirs, some=bool(paper))
    if paper is None and not shown:
        notes.append("None of the paper's rows is of this backbone and pool: --paper shows some.")
    return ours + shown, notes


def _parts(rows: list[Row], columns: list[str] | None = None) -> str:
    """The benchmarks of which only a part was asked, with how much."""
    return ", ".join(dict.fromkeys(
        f"{BENCHMARKS[name].title} {asked} of {BENCHMARKS[name].questions}"
        for row in rows for name, asked in row.asked.items()
        if asked < BENCHMARKS[name].questions and (columns is None or name in columns)))


def columns_of(rows: list[Row], *, with_papers: bool = False) -> list[str]:
    """The columns in which there is a number of ours; `with_papers`: or of the paper's."""
    return [name for name in COLUMNS
            if any(name in row.cells for row in rows if with_papers or row.source == "ours")]


def as_table(rows: list[Row], notes: list[str], *, columns: list[str] | None = None,
             against: str | None = None) -> Table:
    """The table of rows, without the paper's that have no number in its columns.

    `columns`: those that are asked for. `against`: the row that the others are compared with.
    """
    names = columns or columns_of(rows)
    rows = [row for row in rows if row.source == "ours" or any(name in row.cells for name in names)]
    differences = compare_with(against, rows) if against is not None else {}
    best, lines, marks, found = best_cells(rows), [], set(), artifact(rows)
    for place, row in enumerate(rows):
        marks |= {(len(lines), len(_LABELS) + column) for column, name in enumerate(names)
                  if (place, name) in best}
        lines.append([", ".join(row.names) if row.source == "ours" else "paper", *row.identity,
                      *(_shown(row.cells.get(name)) for name in names)])
        if place in differences:
            own = differences[place]
            lines.append([f"less {against}", *[""] * len(row.identity),
                          *(_shown_difference(own.get(name)) for name in names)])
            found[place]["against"] = {"name": against, "numbers": {
                name: difference._asdict() | {"difference": difference.first - difference.second,
                                              "interval": paired.interval(difference)}
                for name, difference in own.items()}}
    if differences:
        notes = [*notes, f"less {against}: difference of the row above to that row, question by "
                         f"question (of several seeds by their mean), with its 95% interval."]
    titles = [*_LABELS, *(COLUMNS[name] for name in names)]
    used = [column for column in range(len(titles))
            if column >= len(_LABELS) or any(line[column] for line in lines)]
    return Table([titles[column] for column in used],
                 [[line[column] for column in used] for line in lines], len(names), notes, found,
                 caption_of(rows, names, against),
                 frozenset((line, used.index(column)) for line, column in marks))


def compare_with(name: str, rows: list[Row]) -> dict[int, dict[str, Difference]]:
    """{row: {column: its difference to the row of this name}} of our other rows.

    InputError where the name is not of one row, or a row was asked other questions.
    """
    ours = [row for row in rows if row.source == "ours"]
    base, *more = named(ours, name)
    if more:
        raise InputError(f"--against {name}: that is {1 + len(more)} rows; give one of "
                         f"{', '.join(own for row in (base, *more) for own in row.names)}")
    if len(ours) == 1:
        raise InputError(f"--against {name}: there is no other row")
    found = {}
    for place, row in enumerate(rows):
        if row.source == "ours" and row.names != base.names:
            by_benchmark, _ = paired.by_benchmark(row.folders, base.folders)
            found[place] = by_benchmark | paired.of_groups(by_benchmark)
    return found


def caption_of(rows: list[Row], columns: list[str], against: str | None) -> str:
    """A caption in LaTeX: what the numbers are, of how many questions, runs and seeds."""
    ours = [row for row in rows if row.source == "ours"]
    behind = [name for name, own in BENCHMARKS.items() if name in columns or own.group in columns
              or "Average" in columns and own.group in GROUPS]
    parts = [f"{BENCHMARKS[name].title} ({BENCHMARKS[name].shots}-shot, "
             f"{_METRICS[BENCHMARKS[name].metric.partition(',')[0]]})" for name in behind]
    text = f"Results in percent: {', '.join(parts)}."
    if "Average" in columns:
        text += " Average: mean of the groups' means."
    if some := _parts(ours, behind):
        text += f" *: on a part of the questions ({some})."
    seeds = sorted({seed for row in ours for seed in row.seeds})
    if any(len(row.names) == 1 for row in ours):
        text += " se: standard error over the questions of a single run" + (
            f" (seed {', '.join(map(str, seeds))})." if seeds else ".")
    if runs := sorted({len(row.names) for row in ours if len(row.names) > 1}):
        text += f" ±: standard deviation over {' or '.join(map(str, runs))} seeds."
    if any(cell.delta is not None for row in ours for cell in row.cells.values()):
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


if __name__ == "__main__":
    run_script(main)
