"""Stage select: score records and choose the top, middle and bottom subsets.

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
from adg.methods.method import Choice, Task, Told, words
from adg.pipeline import planning, stage_run
from adg.pipeline.command import Command, parse_command
from adg.pipeline.sources import model_of
from adg.pipeline.stages import inputs_of
from adg.records import SUBSET_FIELDS, Answers, Pool, subset_names

_LISTED = 10  # unscored records that are named


def main() -> None:
    select(parse_command(__doc__))


def select(command: Command) -> None:
    """Run the stage with a parsed command line, also from another module."""
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
    answers = answers_of(run, pool)
    run.start()
    folder = run.folder / "subsets" / config.selection.name
    sizes = {name: len(rows) for name, rows in choice.subsets._asdict().items()}
    names = write_subsets(folder, pool, choice, answers)
    write_card(folder, config, choice, sizes, names)
    unscored = (np.flatnonzero(np.isnan(choice.columns["score"]))[:_LISTED]
                if "unscored" in choice.report else ())
    unscored_ids = [pool.row(row)[0]["id"] for row in unscored]
    if note := config.selection.note(choice.columns["num_answers"].max()):
        say(f"[select] note: {note}")
    show(choice, unscored_ids)
    run.finish(records=len(pool), **choice.report, unscored_ids=unscored_ids, subset_sizes=sizes)


def plan(run: stage_run.StageRun, pool: Pool) -> None:
    """Report how many records there are and the disk that is needed, for --dry-run."""
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


def answers_of(run: stage_run.StageRun, pool: Pool) -> Answers | None:
    """The answers that are copied into the subsets; None where the method reads none.

    InputError where answers or Grams were made elsewhere, and some row of the answers is another
    record's than the pool's, or has another number of answers than the Grams.
    """
    required, optional = inputs_of("select", run.config)
    if "answers/" not in optional or not (run.folder / "answers").is_dir():
        return None
    answers = Answers(run.folder, pool)
    grams = next(name for name in required if "_grams/" in name)
    if {"answers/", grams} & set(run.elsewhere):
        answers.check(num_answers=arrays.width_of(run.folder / grams),
                      padded=run.config.embedding.empty_answers != "leave_out",
                      known_by=f"the size of the Gram matrices in {run.folder}/{grams}")
    return answers


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
        line.format, ids(), *(_to_texts(values) for values in columns.values())))
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


def write_card(folder: Path, config: Config, choice: Choice, sizes: dict[str, int],
               names: dict[str, str]) -> None:
    """dataset_info.json and README.md; `names` as from write_subsets."""
    num_records = len(choice.columns["score"])
    selection, pool, facts = config.selection, config.pool, config.selection.facts()
    how = facts.about(Told(
        selection.settings(), config.generation, stage_run.StageRun("cluster", config).num_bins,
        [card.public(model_of(name, config)) for name in facts.models]))
    subject = card.Subject(
        selection.name, how, pool.path if pool.on_hub() else Path(pool.path).name, num_records,
        pool.limit == num_records, card.public(config.model.name_or_path),
        config.selection_seed() if "selection.seed" in facts.keys else config.seed)
    artifacts.write_json(folder / "dataset_info.json", card.dataset_info(selection.name, sizes))
    artifacts.write_text(folder / "README.md", card.data_card(
        subject, sizes, names, choice.report.get("quantiles")))


def show(choice: Choice, unscored: list[str]) -> None:
    """Report the sizes of the subsets, and what is unusual about them."""
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in choice.subsets._asdict().items())
    report = choice.report
    say(f"[select] {sizes}" + (f"; {report['scored']} records scored, {report['unscored']} not"
                               if "unscored" in report else ""))
    if "dropped" in report:
        say(f"[select] {report['kept']} records kept, dropped: {words(report['dropped'])}")
    scores = choice.columns["score"][~np.isnan(choice.columns["score"])]
    if len(scores) > 1 and scores.min() == scores.max():
        say("[select] note: all scores are equal, so they rank no record above another")
    if not len(choice.subsets.middle):
        say("[select] note: there is neither middle nor bottom")
    elif len(choice.subsets.middle) < len(choice.subsets.top):
        say("[select] note: middle and bottom are smaller than top")
    if unscored:
        say(f"[select] not scored: fewer than two answers have a vector: {', '.join(unscored)}"
            + (" ..." if report["unscored"] > len(unscored) else ""))


def _to_texts(values: list[int | float | None]) -> list[str]:
    """Each number as JSON has it, at once for all."""
    return artifacts.to_line(values)[1:-1].split(", ")


if __name__ == "__main__":
    run_script(main)
