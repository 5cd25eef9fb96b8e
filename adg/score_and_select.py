"""Stage select: from Gram matrices and bins to scores and the top, middle and bottom subsets.

Reads   pool.jsonl                            N records
        bins.npy                              int32 [N]              } selection.method=adg only
        answer_grams/*.npy                    float32 [n, K, K]      }
        answers/*.jsonl                       only copied into its subsets; may be absent
        measures/NAME/*                       what another method measured of each record
Writes  subsets/NAME/top.json, middle.json, bottom.json
                                              records of the pool with answers, dispersion,
                                              anisotropy, score and bin, as adg_score and so on
                                              where the pool has such a field itself
        subsets/NAME/scores.jsonl             a line per record: bin, dispersion, anisotropy,
                                              score, and the method's own columns
        subsets/NAME/dataset_info.json        LLaMA-Factory's
        subsets/NAME/README.md                the hub's data card

    python -m adg.score_and_select configs/demo.yaml
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from adg import card
from adg.base import arrays, artifacts
from adg.base.distributed import say
from adg.base.process import run_script
from adg.config import Config
from adg.methods import METHODS
from adg.methods.method import Choice, Task, words
from adg.pipeline import planning, stage_run
from adg.pipeline.command import Command, parse_command
from adg.pipeline.stages import inputs_of
from adg.records import SUBSET_FIELDS, Answers, Pool, subset_names

_LISTED = 10  # unscored records that are named


def main() -> None:
    select(parse_command(__doc__))


def select(command: Command) -> None:
    """The stage, as it is asked for."""
    config = command.config
    run = stage_run.begin("select", config, overwrite=command.overwrite,
                           dry_run=command.dry_run)
    if run is None:
        return
    pool = Pool(run.folder)
    config.selection.check_sizes(len(pool))
    if command.dry_run:
        plan(run, pool)
        return
    choice = METHODS[config.selection.method].choose(task_of(config, pool))
    with_answers = "answers/" in inputs_of("select", config)[1]
    with_answers = with_answers and (run.folder / "answers").is_dir()
    answers = Answers(run.folder, pool) if with_answers else None
    if answers is not None:
        check_answers(run, answers, config)
    run.start()
    folder = run.folder / "subsets" / config.selection.name
    sizes = {name: len(rows) for name, rows in choice.subsets._asdict().items()}
    names = write_subsets(folder, pool, choice, answers)
    artifacts.write_json(folder / "dataset_info.json", card.dataset_info(config, sizes))
    num_bins = stage_run.StageRun("cluster", config).num_bins
    artifacts.write_text(folder / "README.md", card.data_card(
        config, sizes, choice.report, len(pool), num_bins, names))
    unscored = []
    if "unscored" in choice.report:
        rows = np.flatnonzero(np.isnan(choice.columns["score"]))[:_LISTED]
        unscored = [pool.row(row)[0]["id"] for row in rows]
    if note := config.selection.note(choice.columns["num_answers"].max()):
        say(f"[select] note: {note}")
    show(choice, unscored)
    run.finish(records=len(pool), **choice.report, unscored_ids=unscored, subset_sizes=sizes)


def plan(run: stage_run.StageRun, pool: Pool) -> None:
    """Say what there is to do."""
    selection, num_records = run.config.selection, len(pool)
    budget = 3 * selection.budget if selection.facts().heeds_budget else num_records
    chosen = min(budget, num_records)
    stored = sum(path.stat().st_size for path in (run.folder / "pool.jsonl",
                                                  *run.folder.glob("answers/*.jsonl")))
    planning.show(run, {"records": f"{num_records:,}, of which at most {chosen:,} are chosen"},
                  records=num_records, disk=num_records * 200 + stored * chosen // num_records)


def task_of(config: Config, pool: Pool) -> Task:
    """What the configured method is to choose from."""
    selection, folder = config.selection, Path(config.output_dir)
    return Task(folder, pool, selection.settings(), selection.budget, config.selection_seed(),
                folder / "measures" / selection.measure if selection.measure else None)


def check_answers(run: stage_run.StageRun, answers: Answers, config: Config) -> None:
    """InputError where answers or Grams were made elsewhere, and some row of the answers is another
    record's than the pool's, or has not as many answers as the Grams."""
    grams = next(name for name in inputs_of("select", config)[0] if "_grams/" in name)
    if {"answers/", grams} & set(run.elsewhere):
        answers.check(num_answers=arrays.width_of(run.folder / grams),
                      padded=config.embedding.empty_answers != "leave_out",
                      known_by=f"the size of the Gram matrices in {run.folder}/{grams}")


def write_subsets(folder: Path, pool: Pool, choice: Choice,
                  answers: Answers | None) -> dict[str, str]:
    """scores.jsonl of all records, then the three subsets as Alpaca-format JSON arrays.

    Returns {field that is added to a subset's records: its name there}.
    """
    columns = {name: [None if value != value else value for value in values.tolist()]  # NaN: none
               for name, values in choice.columns.items()}
    fields: set[str] = set()  # of all records

    def ids() -> Iterator[str]:
        for record in pool:
            if not record.keys() <= fields:
                fields.update(record)
            yield artifacts.to_line(record["id"])

    line = "{{" + ", ".join(f'"{name}": {{}}' for name in ("id", *columns)) + "}}\n"
    artifacts.write_lines(folder / "scores.jsonl", map(
        line.format, ids(), *(artifacts.to_texts(values) for values in columns.values())))
    names = subset_names(fields)

    def members(rows: np.ndarray) -> Iterator[dict]:
        for row in rows.tolist():
            record, _ = pool.row(row)
            added = {} if answers is None else {"generated_answers": answers.texts_of(row, record)}
            added |= {name: columns[name][row] for name in SUBSET_FIELDS
                      if name != "generated_answers"}
            yield record | {names[name]: value for name, value in added.items()}

    for name, rows in choice.subsets._asdict().items():
        artifacts.write_json_array(folder / f"{name}.json", members(rows))
    return names


def show(choice: Choice, unscored: list[str]) -> None:
    """What a person wants to know of a selection, in a few lines."""
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in choice.subsets._asdict().items())
    report = choice.report
    say(f"[select] {sizes}" + (f"; {report['scored']} records scored, {report['unscored']} not"
                               if "unscored" in report else ""))
    if "dropped" in report:
        say(f"[select] {report['kept']} records kept, dropped: {words(report['dropped'])}")
    scores = choice.columns["score"][~np.isnan(choice.columns["score"])]
    if len(scores) > 1 and scores.min() == scores.max():
        say("[select] note: all scores are equal, so they tell no record from another")
    if not len(choice.subsets.middle):
        say("[select] note: there is neither middle nor bottom")
    elif len(choice.subsets.middle) < len(choice.subsets.top):
        say("[select] note: middle and bottom are smaller than top")
    if unscored:
        say(f"[select] not scored, for want of two answers with a vector: {', '.join(unscored)}"
            + (" ..." if report["unscored"] > len(unscored) else ""))


if __name__ == "__main__":
    run_script(main)
