"""lm-eval as the pipeline uses it: its tasks, with their data from disk where it is there.

Touches one private function of the pinned lm-eval (load_yaml), to read a packaged task's definition
before its data set is replaced by local files.
"""

import json
import logging
import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from adg.base.errors import InputError
from eval.code_tasks import code_tasks


def quiet(*, offline: bool) -> None:
    """Leave the screen to what matters, and the network alone where all data is on disk."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


# Tasks


def task_manager(data_dir: Path | None) -> Any:
    """lm-eval's task manager; with data_dir, every task whose files are there reads them.

    data_dir has the hub's layout: <dataset>/<configuration>/<split>.jsonl.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    manager = TaskManager()
    overrides = code_tasks()
    for name, entry in manager.task_index.items():
        config = entry.cfg or {}
        data = local_files(config, data_dir)
        if name in overrides:
            config = {**config, **overrides[name]}
        elif data is None or name.startswith(tuple(overrides)):  # their code loads a metric
            continue
        else:
            config = load_yaml(entry.yaml_path, resolve_func=True)
        entry.cfg = {**config, **(data or {})}
        entry.yaml_path = None
    return manager


def local_files(config: dict, data_dir: Path | None) -> dict | None:
    """What a task's definition becomes to read data_dir; None where its files are not there."""
    path = config.get("dataset_path")
    if data_dir is None or not path:
        return None
    folder = data_folder(config, data_dir)
    files = {split: str(folder / f"{split}.jsonl") for split in splits_of(config)
             if (folder / f"{split}.jsonl").is_file()}
    needed = {config.get("test_split") or config.get("validation_split"),
              config.get("fewshot_split")} - {None}
    return {"dataset_path": "json", "dataset_name": None,
            "dataset_kwargs": {"data_files": files}} if needed <= files.keys() else None


def data_folder(config: dict, data_dir: Path) -> Path:
    """Where a task's data lies in data_dir."""
    path = config["dataset_path"]
    return data_dir / path / (config.get("dataset_name") or path.split("/")[-1])


def splits_of(config: dict) -> list[str]:
    """The splits of a data set that a task reads."""
    splits = {config.get(f"{kind}_split") for kind in ("training", "validation", "test", "fewshot")}
    return sorted(splits - {None})


def leaf_tasks(manager: Any, name: str) -> list[str]:
    """The tasks that a task, group or tag of lm-eval stands for."""
    entry = manager.task_index[name]
    if entry.kind.name == "TASK":
        return [name]
    if entry.kind.name == "GROUP":
        return [leaf for member in entry.cfg["task"] for leaf in leaf_tasks(manager, member)]
    return sorted(task for task, other in manager.task_index.items()
                  if name in other.tags and other.kind.name == "TASK")


# A benchmark


def evaluate(model: Any, tasks: list[str], manager: Any, *, shots: int, limit: int | None,
             max_new_tokens: int | None) -> dict:
    """lm-eval's result for tasks, on rank 0."""
    from lm_eval import simple_evaluate

    return simple_evaluate(
        model=model, tasks=tasks, num_fewshot=shots, limit=limit, task_manager=manager,
        bootstrap_iters=0,  # standard errors are closed formulas: see run_benchmarks
        confirm_run_unsafe_code=True,
        gen_kwargs=f"max_gen_toks={max_new_tokens}" if max_new_tokens else None,
    )


def plain(value: Any) -> Any:
    """lm-eval's result as JSON can hold it: functions by name, verdicts as numbers, NaN as null."""
    return json.loads(json.dumps(value, default=_as_json), parse_constant=lambda _: None)


def _as_json(value: Any) -> Any:
    if isinstance(value, Future):
        return float(value.result())
    if hasattr(value, "item"):
        return value.item()
    return getattr(value, "__name__", str(value))


def require_data(manager: Any, tasks: list[str], data_dir: Path, benchmark: str) -> list[str]:
    """Those of a benchmark's tasks that data_dir has files for; InputError where it has none."""
    local = [task for task in tasks if manager.task_index[task].cfg["dataset_path"] == "json"]
    if not local:
        folders = {data_folder(manager.task_index[task].cfg, data_dir) for task in tasks}
        more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
        raise InputError(f"eval.data_dir: {data_dir}/ holds no data for {benchmark} (looked in "
                         f"{min(folders)}/{more}); add it, or remove {benchmark} from "
                         f"eval.benchmarks")
    return local
