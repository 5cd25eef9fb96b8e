"""Stage tables: the benchmarks of finished runs beside the paper's published numbers.

Reads   RUN_DIR/eval/NAME/scores.json     of each run folder given
        RUN_DIR/provenance/               which method, backbone, pool, budget and seed each is
Writes  RUN_DIR/tables.md                 the table, where one run folder is given; always printed

    python -m eval.tables runs/demo
    python -m eval.tables runs/demo runs/llama3_alpaca_gpt4 --format latex
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from adg import artifacts, provenance
from adg.config import load_config
from adg.distributed import run_script
from eval.benchmarks import BENCHMARKS
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
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="a run folder")
    parser.add_argument("--format", choices=FORMATS, default="markdown",
                        help="of what is printed; tables.md is Markdown")
    parser.add_argument("--quiet", action="store_true", help="do not print the table")
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no file")
    arguments = parser.parse_args()
    runs = arguments.runs
    rows, notes = collect(runs)
    run = None
    if len(runs) == 1 and (runs[0] / "config.yaml").is_file():
        config = load_config(runs[0] / "config.yaml", [])
        config.output_dir = str(runs[0])
        run = provenance.begin("tables", config)
    if not arguments.quiet:
        print(FORMATS[arguments.format](rows, notes))
    if run is not None and not arguments.dry_run:
        run.start()
        artifacts.write_text(runs[0] / "tables.md", as_markdown(rows, notes) + "\n")
        run.finish(records=sum(row.source == "ours" for row in rows))


def collect(runs: list[Path]) -> tuple[list[Row], list[str]]:
    """(the rows of the table, ours and then the paper's; what is to be said below it)."""
    published = read_published()
    recipe = paper_settings()
    found = [own for run in runs for own in rows_of(run, published, recipe)]
    paper = published_rows(published)
    ours = with_deltas(by_cell(row for row, _ in found), paper)
    notes = ["In percent. In brackets: difference to the published number of the same cell. ± : "
             "standard deviation over seeds. – : not given or not run; the paper gives groups "
             "only."]
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


def _lines(rows: list[Row],
           show: Callable[[Cell | None], str]) -> tuple[list[str], list[list[str]]]:
    """(titles, the texts of each row)."""
    shown = {row.cells.get(name) is not None and name for row in rows for name in _OPTIONAL}
    names = [name for name in COLUMNS if name not in _OPTIONAL or name in shown]
    lines = [[", ".join(row.names) if row.source == "ours" else "paper", *row.identity,
              *(show(row.cells.get(name)) for name in names)] for row in rows]
    titles = [*_LABELS, *(COLUMNS[name] for name in names)]
    used = [column for column in range(len(titles))
            if column >= len(_LABELS) or any(line[column] for line in lines)]
    return [titles[column] for column in used], [[line[column] for column in used]
                                                 for line in lines]


def _plain(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    text = f"{cell.value:.2f}" + ("*" if cell.partial else "")
    if cell.deviation is not None:
        text += f" ± {cell.deviation:.2f}"
    return text + (f" ({cell.delta:+.2f})" if cell.delta is not None else "")


def _padded(titles: list[str], lines: list[list[str]]) -> list[list[str]]:
    """Titles and lines with every column as wide as its widest cell, numbers to the right."""
    numbers = len([title for title in titles if title in COLUMNS.values()])
    table = [titles, *lines]
    widths = [max(len(line[column]) for line in table) for column in range(len(titles))]
    return [[cell.ljust(width) if column < len(titles) - numbers else cell.rjust(width)
             for column, (cell, width) in enumerate(zip(line, widths, strict=True))]
            for line in table]


def as_markdown(rows: list[Row], notes: list[str]) -> str:
    """A Markdown table."""
    head, *lines = _padded(*_lines(rows, _plain))
    rule = [("-" * (len(cell) - 1) + ":" if cell.strip() in COLUMNS.values() else "-" * len(cell))
            for cell in head]
    table = [f"| {' | '.join(line)} |" for line in (head, rule, *lines)]
    return "\n".join([*table, "", *notes])


def as_text(rows: list[Row], notes: list[str]) -> str:
    """Columns for a terminal."""
    return "\n".join([*("  ".join(line).rstrip() for line in _padded(*_lines(rows, _plain))), "",
                      *notes])


def as_latex(rows: list[Row], notes: list[str]) -> str:
    """A tabular for the package booktabs."""
    titles, lines = _lines(rows, _plain)
    kinds = "".join("r" if title in COLUMNS.values() else "l" for title in titles)

    def line(cells: list[str]) -> str:
        return " & ".join(map(_latex, cells)) + r" \\"

    return "\n".join([rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", line(titles), r"\midrule",
                      *map(line, lines), r"\bottomrule", r"\end{tabular}",
                      *(f"% {note}" for note in notes)])


def _latex(text: str) -> str:
    for plain, escaped in (("\\", r"\textbackslash{}"), ("&", r"\&"), ("%", r"\%"), ("_", r"\_"),
                           ("#", r"\#"), (" ± ", r" $\pm$ "), ("–", "--"), ("(-", "($-$")):
        text = text.replace(plain, escaped)
    return text


def as_json(rows: list[Row], notes: list[str]) -> str:
    """Every number with its standard error, deviation and difference."""
    return json.dumps({"rows": artifact(rows), "notes": notes}, ensure_ascii=False, indent=1)


FORMATS = {"markdown": as_markdown, "text": as_text, "latex": as_latex, "json": as_json}


if __name__ == "__main__":
    run_script(main)
