"""Download the benchmarks into a folder for eval.data_dir, for machines without a network.

Each split that lm-eval's tasks read becomes DIR/<dataset>/<configuration>/<split>.jsonl, the hub's
layout; a data set without configurations uses its own last name as the configuration. Existing
files are kept.

    python -m eval.fetch_benchmarks data/benchmarks
    python -m eval.fetch_benchmarks data/benchmarks --benchmarks cmmlu ceval-valid
"""

import argparse
from pathlib import Path
from typing import Any

from adg.base import artifacts
from adg.base.errors import InputError
from adg.base.process import run_script
from adg.benchmarks import BENCHMARKS
from eval import harness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--benchmarks", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS),
                        metavar="NAME", help="some of " + ", ".join(BENCHMARKS))
    arguments = parser.parse_args()
    harness.quiet(offline=False)
    manager = harness.task_manager(None)
    for name in arguments.benchmarks:
        written = 0
        for task in harness.leaf_tasks(manager, BENCHMARKS[name].task):
            written += fetch(manager.task_index[task].cfg, arguments.folder, name)
        print(f"{name}: {written} file(s) written to {arguments.folder}/")


def fetch(task: dict, folder: Path, benchmark: str) -> int:
    """Write the splits that a task reads; how many files that were."""
    configuration = task.get("dataset_name")
    target = harness.data_folder(task, folder)
    missing = [split for split in harness.splits_of(task)
               if not (target / f"{split}.jsonl").is_file()]
    for split in missing:
        artifacts.write_jsonl(target / f"{split}.jsonl",
                              _load(task["dataset_path"], configuration, split, benchmark))
    return len(missing)


def _load(path: str, configuration: str | None, split: str, benchmark: str) -> Any:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        return datasets.load_dataset(path, configuration, split=split)
    except (DatasetNotFoundError, ConnectionError, ValueError) as error:
        wanted = " ".join(filter(None, (path, configuration, split)))
        raise InputError(f"{benchmark}: the hub did not give {wanted}: "
                         f"{str(error).splitlines()[0]}") from None


if __name__ == "__main__":
    run_script(main)
