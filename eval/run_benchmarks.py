"""Stage evaluate: run the benchmarks on a model with lm-eval.

Reads   models/NAME/                  or the backbone itself, with eval.name=base
        eval.data_dir                 the benchmarks on disk; without it lm-eval asks the hub
Writes  eval/NAME/<benchmark>.json    lm-eval's result with every question; one that exists is
                                      not run again
        eval/NAME/cache/              answers of a benchmark that was cut short, until it is whole
        eval/NAME/scores.json         the numbers in percent, three groups, their average, and the
                                      standard error of each

    python -m eval.run_benchmarks configs/demo.yaml
    torchrun --nproc_per_node=2 -m eval.run_benchmarks configs/demo.yaml
"""

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from adg.base import artifacts, distributed, process
from adg.base.distributed import say
from adg.benchmarks import BENCHMARKS, code_benchmarks
from adg.config import Config
from adg.models import folders
from adg.pipeline import planning, stage_run
from adg.pipeline.checks import check_consent
from adg.pipeline.command import parse_command
from eval import harness, programs
from eval.backends import load_model
from eval.scores import group_scores, group_stderrs

_BYTES_PER_QUESTION = 20_000  # of lm-eval's result with prompt and answer, about


def main() -> None:
    command = parse_command(__doc__)
    config = command.config
    check_consent(config)
    run = stage_run.begin("evaluate", config, overwrite=command.overwrite,
                           dry_run=command.dry_run)
    if run is None:
        return
    folder = run.folder / "eval" / config.eval.name
    harness.quiet(offline=config.eval.data_dir is not None)
    sandbox = None  # that programs run in
    if distributed.rank() == 0 and code_benchmarks(config.eval.benchmarks):
        sandbox = programs.choose(config.eval.sandbox)
    manager, tasks = find_tasks(config) if distributed.rank() == 0 else (None, {})
    if command.dry_run:
        show_plan(run, tasks)
        return
    run.start()
    model = model_folder(config)
    with distributed.process_group():
        missing = distributed.from_rank_0(
            [name for name in config.eval.benchmarks if not (folder / f"{name}.json").exists()])
        if missing:
            evaluate_missing(missing, model, folder, manager, tasks, config, sandbox)
    if distributed.rank() == 0:
        shutil.rmtree(folder / "cache", ignore_errors=True)  # of a run killed before it was removed
        summary = summarise(folder)
        artifacts.write_json(folder / "scores.json", summary)
        run.finish(records=sum(summary["questions"][name] for name in missing), benchmarks=missing,
                   scores=summary["scores"], **({"sandbox": sandbox} if sandbox else {}))


def find_tasks(config: Config) -> tuple[Any, dict[str, list[str]]]:
    """(lm-eval's task manager, the tasks of each benchmark); InputError where data is missing."""
    data_dir = Path(config.eval.data_dir) if config.eval.data_dir else None
    manager = harness.task_manager(data_dir)
    tasks = {name: harness.leaf_tasks(manager, BENCHMARKS[name].task)
             for name in config.eval.benchmarks}
    if data_dir:
        tasks = {name: harness.require_data(manager, leaves, data_dir, name)
                 for name, leaves in tasks.items()}
    return manager, tasks


def show_plan(run: stage_run.StageRun, tasks: dict[str, list[str]]) -> None:
    """Print how many questions are left, and what answering them takes."""
    limit, folder = run.config.eval.limit, run.folder / "eval" / run.config.eval.name
    missing = [name for name in tasks if not (folder / f"{name}.json").exists()]
    questions = {name: min(BENCHMARKS[name].size, limit * len(tasks[name]) if limit else
                           BENCHMARKS[name].size) for name in missing}
    planning.show(run, {"questions": ", ".join(
        f"{name} {number:,} at most" for name, number in questions.items()) or "none"},
        records=sum(questions.values()), disk=sum(questions.values()) * _BYTES_PER_QUESTION)


def evaluate_missing(missing: list[str], model_path: Path, folder: Path, manager: Any,
                     tasks: dict[str, list[str]], config: Config,
                     sandbox: str | None = None) -> None:
    """Run each benchmark of `missing` on all ranks, and write its file in `folder` on rank 0.

    `model_path` is the model's folder; `sandbox` is the one of programs.choose, which has been
    called where a benchmark runs programs.
    """
    model = load_model(model_path, config)
    if distributed.rank() > 0:
        model.serve()
        return
    for name in missing:
        benchmark, model.cache = BENCHMARKS[name], folder / "cache" / name
        say(f"[evaluate] {name}: {len(tasks[name])} task(s), {benchmark.shots}-shot")
        result = harness.evaluate(model, tasks[name], manager, shots=benchmark.shots,
                                  limit=config.eval.limit,
                                  max_new_tokens=config.eval.max_new_tokens)
        artifacts.write_json(folder / f"{name}.json", condense(
            name, tasks[name], result, config.eval.backend) | (
            {"sandbox": sandbox} if benchmark.code else {}))
        shutil.rmtree(model.cache, ignore_errors=True)
    model.dismiss()


def model_folder(config: Config) -> Path:
    """The folder of the model that is evaluated."""
    if config.eval.name == "base":
        return folders.local_folder(config.model.name_or_path, config.output_dir)
    return Path(config.output_dir) / "models" / config.eval.name


def condense(name: str, tasks: list[str], result: dict, backend: str) -> dict[str, Any]:
    """One benchmark's file: its number in percent, the questions behind it, and lm-eval's result.

    Over several tasks the number is the mean over all their questions, as lm-eval's groups have it,
    with the standard error of that mean.
    """
    benchmark, result = BENCHMARKS[name], harness.plain(result)
    counts = {task: result["n-samples"][task]["effective"] for task in tasks}
    total = sum(result["results"][task][benchmark.metric] * counts[task] for task in tasks)
    questions = sum(counts.values())
    metric, filtered = benchmark.metric.split(",")
    values = [sample[metric] for task in tasks for sample in result["samples"][task]
              if sample["filter"] == filtered]
    return {"benchmark": name, "score": 100 * total / questions,
            "stderr": 100 * statistics.stdev(values) / questions**0.5 if questions > 1 else None,
            "metric": benchmark.metric, "shots": benchmark.shots, "backend": backend,
            "questions": questions, "of_questions": benchmark.size, "tasks": tasks,
            "lm_eval": result}


def summarise(folder: Path) -> dict[str, dict]:
    """The numbers of every benchmark that has a file in `folder`, with groups and average."""
    results = {}
    for name in BENCHMARKS:
        path = folder / f"{name}.json"
        if path.exists():
            results[name] = json.loads(path.read_text(encoding="utf-8"))
    scores = {name: result["score"] for name, result in results.items()}
    stderrs = {name: result["stderr"] for name, result in results.items()}
    return {"scores": scores, "groups": group_scores(scores),
            "stderr": stderrs, "group_stderr": group_stderrs(stderrs),
            "questions": {name: result["questions"] for name, result in results.items()}}


if __name__ == "__main__":
    process.run_script(main)
