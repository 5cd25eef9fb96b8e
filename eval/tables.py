"""Stage tables: show benchmark results of finished runs beside the paper's published numbers.

Reads   RUN_DIR/eval/NAME/scores.json     of each run folder given
        RUN_DIR/provenance/               which method, backbone, pool, budget and seed each is
Writes  RUN_DIR/tables.md                 the table without options, where one run folder is given

    python -m eval.tables runs/demo
    python -m eval.tables runs/demo runs/llama3_alpaca_gpt4 --format latex > table.tex
    python -m eval.tables runs/mine --rows adg-top random-top --benchmarks gsm8k mmlu Average \\
        --against random-top

Only the table is printed. With --against, the line below each row is its difference from the row
named, question by question, with a 95% interval.

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
from eval.formats import FORMATS, Table, as_markdown
from eval.layout import as_table, collect, columns_of
from eval.rows import columns


def main() -> None:
    arguments = read_arguments()
    if arguments.paired:
        print_table(paired.compare(*arguments.runs), arguments)
        return
    # stdout is the table's, where there is one
    said = sys.stdout if arguments.quiet else sys.stderr
    runs = list({run.resolve(): run for run in arguments.runs}.values())
    default = as_table(*collect(runs))
    run = None
    with contextlib.redirect_stdout(said):
        if len(runs) == 1 and (runs[0] / "config.yaml").is_file():
            config = load_config(runs[0] / "config.yaml", [])
            config.output_dir = str(runs[0])
            run = stage_run.begin("tables", config, dry_run=arguments.dry_run)
    if not arguments.quiet:
        rows, notes = collect(runs, names=arguments.rows, paper=arguments.paper)
        print_table(as_table(rows, notes, wanted=arguments.benchmarks or columns_of(
            rows, with_papers=bool(arguments.paper)), against=arguments.against), arguments)
    if run is not None and not arguments.dry_run:
        with contextlib.redirect_stdout(said):
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
                        help="format of the printed table; tables.md is always Markdown")
    parser.add_argument("--rows", nargs="+", metavar="NAME",
                        help="only these rows, in this order: RUN: NAME, NAME or a method's title")
    parser.add_argument("--benchmarks", nargs="+", type=_column, metavar="NAME",
                        help="only these columns, in this order; by default those with a number of "
                             f"these runs. Of {', '.join(columns())}")
    parser.add_argument("--paper", action=argparse.BooleanOptionalAction,
                        help="the paper's rows; by default those of the same backbone and pool")
    parser.add_argument("--against", metavar="NAME",
                        help="each row's difference to this one, with its 95%% interval")
    parser.add_argument("--caption", metavar="LATEX", help="latex: instead of the caption that "
                        "says what the numbers are")
    parser.add_argument("--label", help="latex: label of the table; default: tab:results")
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
                raise InputError(f"--{name} has no meaning with --paired: remove it")
    for name in ("caption", "label"):
        if getattr(arguments, name) is not None and arguments.format != "latex":
            raise InputError(f"--{name} needs --format latex")
    return arguments


def _column(text: str) -> str:
    """The key of a column, by itself or by its title."""
    names = {alias.lower(): name for name, title in columns().items() for alias in (name, title)}
    if text.lower() not in names:
        raise argparse.ArgumentTypeError(f"unknown column {text}; one of {', '.join(columns())}")
    return names[text.lower()]


def print_table(table: Table, arguments: argparse.Namespace) -> None:
    """Print a table in the format that is asked for."""
    print(FORMATS[arguments.format](table._replace(
        caption=table.caption if arguments.caption is None else arguments.caption,
        label=arguments.label or table.label)))

if __name__ == "__main__":
    run_script(main)
