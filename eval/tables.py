"""Stage tables: the benchmarks of finished runs beside the paper's published numbers.

Reads   RUN_DIR/eval/NAME/scores.json     of each run folder given
Writes  RUN_DIR/tables.md                 the table, where one run folder is given; always printed

    python -m eval.tables runs/demo
    python -m eval.tables runs/demo runs/llama3_alpaca_gpt4
"""

import argparse
import json
from pathlib import Path

from adg import artifacts, provenance
from adg.config import load_config
from adg.distributed import run_script
from adg.errors import InputError
from eval.benchmarks import BENCHMARKS, GROUPS

_PUBLISHED = Path(__file__).with_name("published.json")
_SHOWN = ("Random", "ADG")  # rows of the paper's table that stand beside ours
_POOL = "Alpaca-GPT4"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="a run folder")
    parser.add_argument("--quiet", action="store_true", help="do not print the table")
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no file")
    arguments = parser.parse_args()
    runs = arguments.runs
    text = render(runs)
    run = None
    if len(runs) == 1 and (runs[0] / "config.yaml").is_file():
        config = load_config(runs[0] / "config.yaml", [])
        config.output_dir = str(runs[0])
        run = provenance.begin("tables", config)
    if not arguments.quiet:
        print(text)
    if run is not None and not arguments.dry_run:
        run.start()
        artifacts.write_text(runs[0] / "tables.md", text + "\n")
        run.finish(records=len(results_of(runs[0])))


def results_of(run: Path) -> dict[str, dict]:
    """{NAME: scores.json} of the models that a run has evaluated; InputError where none is."""
    paths = sorted(run.glob("eval/*/scores.json"))
    if not paths:
        raise InputError(f"{run}/eval/ holds no scores.json: run evaluate first")
    return {path.parent.name: _read_scores(path) for path in paths}


def _read_scores(path: Path) -> dict[str, dict]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); remove it and run evaluate again"
                         ) from None
    if not isinstance(result, dict) or not {"scores", "groups", "questions"} <= result.keys():
        raise InputError(f"{path}: not what evaluate writes; remove it and run evaluate again")
    return result


def render(runs: list[Path]) -> str:
    """The table in Markdown: six benchmarks, three groups, average; ours, then the paper's."""
    titles = [benchmark.title for benchmark in BENCHMARKS.values()]
    lines = [["", *titles, *GROUPS, "Average"]]
    partial: dict[str, str] = {}
    for run in runs:
        for name, result in results_of(run).items():
            lines.append([f"{run.name}: {name}", *_own_cells(result, partial)])
    published = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
    for backbone, methods in published["main"].items():
        for method in _SHOWN:
            numbers = [f"{number:.2f}" for number in methods[method][_POOL]]
            lines.append([f"paper: {backbone}, {method}", *["–"] * len(titles), *numbers])
    notes = [f"In percent. Rows marked paper are the published numbers for {_POOL}, budget 10,000; "
             f"the paper gives groups only. – : not given or not run."]
    if partial:
        counts = ", ".join(f"{title} {count}" for title, count in partial.items())
        notes.append(f"* on a part of the benchmark (questions: {counts}): this shows that the "
                     f"pipeline runs, not how good a model is, and compares with nothing.")
    return "\n".join([_markdown(lines), "", *notes])


def _own_cells(result: dict, partial: dict[str, str]) -> list[str]:
    """The cells of one evaluated model; a * where fewer questions were asked than there are."""
    cells, partly = [], {}
    for name, benchmark in BENCHMARKS.items():
        asked = result["questions"].get(name)
        partly[benchmark.group] = partly.get(benchmark.group, False) or (
            asked is not None and asked < benchmark.questions)
        if asked is not None and asked < benchmark.questions:
            partial[benchmark.title] = f"{asked} of {benchmark.questions}"
        mark = "*" if asked is not None and asked < benchmark.questions else ""
        cells.append(_cell(result["scores"].get(name), mark))
    partly["Average"] = any(partly.values())
    return cells + [_cell(result["groups"][group], "*" if partly[group] else "")
                    for group in (*GROUPS, "Average")]


def _cell(score: float | None, mark: str) -> str:
    return "–" if score is None else f"{score:.2f}{mark}"


def _markdown(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]

    def row(cells: list[str]) -> str:
        padded = [cells[0].ljust(widths[0])] + [cell.rjust(width) for cell, width
                                                in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * widths[0])] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join([row(lines[0]), row(rule), *map(row, lines[1:])])


if __name__ == "__main__":
    run_script(main)
