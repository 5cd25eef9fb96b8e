"""From pool to subset with the answers' vectors from a second pass, and from sampling itself.

Every stage from prepare to select, as its own command, once with embedding.source=forward and once
with sampling, alternating over rounds. Printed are, as medians, the seconds of each stage with its
start (engine, model), records/s of the whole, the share that embed took, and, for the last round,
how far the two selections agree: without generation.keep_token_ids the forward pass reads what the
answers' texts tokenise to, with it the very ids that were sampled.

    python tests/bench/one_pass.py CONFIG [--rounds 1] [--keep DIR] [section.key=value ...]

Everything is written to DIR, else to a folder that is removed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from adg.base import artifacts  # noqa: E402
from adg.config import load_config  # noqa: E402
from adg.models import folders  # noqa: E402
from adg.tools.compare_runs import compare, describe, read_selection  # noqa: E402

SOURCES = ("forward", "sampling")
STAGES = {"prepare": "generation.prepare_pool", "sample": "generation.sample_answers",
          "embed": "embedding.embed", "cluster": "embedding.cluster",
          "select": "adg.score_and_select"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep", type=Path, metavar="DIR")
    arguments = parser.parse_intermixed_args()
    if arguments.keep:
        run(arguments, arguments.keep)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(arguments, Path(folder))


def run(arguments: argparse.Namespace, target: Path) -> None:
    config = load_config(arguments.config, arguments.overrides)
    folders.local_folder(config.model.name_or_path, str(target / "run"))  # dequantised beforehand
    seconds: dict[str, list[dict[str, float]]] = {source: [] for source in SOURCES}
    for number in range(arguments.rounds):
        for source in SOURCES if number % 2 == 0 else SOURCES[::-1]:
            own = [*arguments.overrides, f"embedding.source={source}",
                   f"output_dir={target / f'{source}-{number}'}"]
            seconds[source].append({name: time_of(module, str(arguments.config), *own)
                                    for name, module in STAGES.items()})
            print(source, seconds[source][-1], flush=True)
    run_folders = [target / f"{source}-{arguments.rounds - 1}" for source in SOURCES]
    records = len(artifacts.JsonlRows(run_folders[0] / "pool.jsonl"))
    medians = {source: {name: statistics.median(own[name] for own in found) for name in STAGES}
               for source, found in seconds.items()}
    for source, found in medians.items():
        total = sum(found.values())
        stages = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
        print(f"{source:9} {total:7.1f} s ({stages})  {records / total:.2f} records/s, "
              f"embed {found['embed'] / total:.0%}")
    totals = [sum(medians[source].values()) for source in SOURCES]
    print(f"{records} records: sampling takes {totals[1] / totals[0]:.0%} of the time")
    a, b = (read_selection(folder) for folder in run_folders)
    print("\n".join(describe(a, b, compare(a, b))))


def time_of(module: str, *arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
