"""Stage tables: the benchmarks of finished runs beside the paper's published numbers.

Reads   RUN_DIR/eval/NAME/scores.json     of each run folder given
        RUN_DIR/provenance/               which method, backbone, pool, budget and seed each is
Writes  RUN_DIR/tables.md                 the table, where one run folder is given; always printed

    python -m eval.tables runs/demo
    python -m eval.tables runs/demo runs/llama3_alpaca_gpt4 --format latex

With --paired, two evaluated models over the questions that both were asked: each a run folder that
holds one evaluation, or RUN_DIR/eval/NAME. It prints the difference on each benchmark, group and on
the average, its standard error and p value, and writes no file.

    python -m eval.tables runs/ours/eval/adg-top runs/ours/eval/random-top --paired
"""

import argparse
from pathlib import Path

from adg import artifacts, provenance
from adg.config import load_config
from adg.distributed import run_script
from adg.errors import InputError
from eval import paired
from eval.benchmarks import BENCHMARKS
from eval.formats import FORMATS, Table, as_markdown
from eval.results import (
    COLUMNS,
    Cell,
    Row,
    artifact,
    beside,
    by_cell,
    paper_settings,
    published_rows,
    read_published,
    rows_of,
    with_deltas,
)

_LABELS = ("", "method", "backbone", "pool", "budget", "")
_OPTIONAL = ("cmmlu", "ceval-valid")  # columns that are there only if some row has them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR",
                        help="a run folder; with --paired also RUN_DIR/eval/NAME")
    parser.add_argument("--paired", action="store_true",
                        help="compare two evaluated models question by question")
    parser.add_argument("--format", choices=FORMATS, default="markdown",
                        help="of what is printed; tables.md is Markdown")
    parser.add_argument("--quiet", action="store_true", help="do not print the table")
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no file")
    arguments = parser.parse_args()
    runs = arguments.runs
    if arguments.paired:
        if len(runs) != 2:
            raise InputError(f"--paired compares two evaluated models; {len(runs)} given")
        print(FORMATS[arguments.format](paired.compare(*runs)))
        return
    table = as_table(*collect(runs))
    run = None
    if len(runs) == 1 and (runs[0] / "config.yaml").is_file():
        config = load_config(runs[0] / "config.yaml", [])
        config.output_dir = str(runs[0])
        run = provenance.begin("tables", config)
    if not arguments.quiet:
        print(FORMATS[arguments.format](table))
    if run is not None and not arguments.dry_run:
        run.start()
        artifacts.write_text(runs[0] / "tables.md", as_markdown(table) + "\n")
        run.finish(records=sum(row["source"] == "ours" for row in table.rows))


def collect(runs: list[Path]) -> tuple[list[Row], list[str]]:
    """(the rows of the table, ours and then the paper's; what is to be said below it)."""
    published = read_published()
    recipe = paper_settings()
    found = [own for run in runs for own in rows_of(run, published, recipe)]
    paper = published_rows(published)
    ours = with_deltas(by_cell(row for row, _ in found), paper)
    notes = ["In percent. In brackets: difference to the published number of the same cell. se: "
             "standard error of a single run over its questions, and so of its difference, as the "
             "paper gives none of its own. ± : standard deviation over seeds. – : not given or "
             "not run; the paper gives groups only."]
    parts = {BENCHMARKS[name].title: f"{asked} of {BENCHMARKS[name].questions}"
             for _, questions in found for name, asked in questions.items()
             if asked < BENCHMARKS[name].questions}
    if parts:
        counts = ", ".join(f"{title} {count}" for title, count in parts.items())
        notes.append(f"* on a part of the benchmark (questions: {counts}): this shows that the "
                     f"pipeline runs, not how good a model is, and compares with nothing.")
    others: dict[tuple[str, ...], list[str]] = {}
    for row in ours:
        others.setdefault(row.differs, []).extend(row.names)
    notes += [f"{', '.join(names)}: settings other than those of configs/base/paper.yaml (in "
              f"brackets), so that no difference is shown: {', '.join(differs)}."
              for differs, names in others.items() if differs]
    return ours + beside(ours, paper), notes


def as_table(rows: list[Row], notes: list[str]) -> Table:
    """The table of rows: only the columns that some row fills, and every benchmark of the paper's.
    """
    shown = {row.cells.get(name) is not None and name for row in rows for name in _OPTIONAL}
    names = [name for name in COLUMNS if name not in _OPTIONAL or name in shown]
    lines = [[", ".join(row.names) if row.source == "ours" else "paper", *row.identity,
              *(_shown(row.cells.get(name)) for name in names)] for row in rows]
    titles = [*_LABELS, *(COLUMNS[name] for name in names)]
    used = [column for column in range(len(titles))
            if column >= len(_LABELS) or any(line[column] for line in lines)]
    return Table([titles[column] for column in used],
                 [[line[column] for column in used] for line in lines], len(names), notes,
                 artifact(rows))


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    text = f"{cell.value:.2f}" + ("*" if cell.partial else "")
    if cell.deviation is not None:
        text += f" ± {cell.deviation:.2f}"
    if cell.delta is not None:
        text += f" ({cell.delta:+.2f})"
    return text + (f" se {cell.stderr:.2f}" if cell.stderr is not None else "")


if __name__ == "__main__":
    run_script(main)
