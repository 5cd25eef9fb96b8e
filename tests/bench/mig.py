"""Method mig at the size of Alpaca: the whole stage, and its picks against dense matrices.

Builds N records with 1 to 7 of L tags each (frequencies fall as 1 / rank), scores, and vectors of
the tags [L, H] of which some are near each other, and prints
  stage    seconds and peak memory of `python -m adg.score_and_select`, in a process of its own
  sparse   seconds of the picks from a queue, on a smaller pool
  dense    the same picks with every gain computed at every pick from a dense matrix (float64)
The last two alternate within the run, medians of three rounds, and must agree.

    python tests/bench/mig.py [--records 52002] [--tags 4500] [--hidden 4096] [--budget 10000]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from adg.base import artifacts  # noqa: E402
from adg.methods.mig.annotations import Annotation  # noqa: E402
from adg.methods.mig.gain import (  # noqa: E402
    label_rows,
    pick_by_gain,
    propagation,
    slope_of_power,
)

THRESHOLD, ROUNDS = 0.9, 3
SMALL, SMALL_TAGS, SMALL_BUDGET = 5_200, 1_500, 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=52_002)
    parser.add_argument("--tags", type=int, default=4_500)
    parser.add_argument("--hidden", type=int, default=4_096)
    parser.add_argument("--budget", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        took, log = run_stage(Path(folder), arguments)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{arguments.records:,} records, {log['labels']:,} tags in use, {log['edges']:,} pairs "
          f"of like ones, vectors of {arguments.hidden:,}, budget {arguments.budget:,}")
    print(f"stage    {took:8.2f} s, peak memory {peak:.2f} GiB")
    values = small_pool()
    dense = values.toarray()
    slope = slope_of_power(1e-6, 0.8)
    times: dict[str, list[float]] = {"sparse": [], "dense": []}
    for _ in range(ROUNDS):
        start = time.perf_counter()
        rows, _ = pick_by_gain(values, SMALL_BUDGET, slope)
        middle = time.perf_counter()
        assert rows.tolist() == pick_densely(dense, SMALL_BUDGET)
        times["sparse"].append(middle - start)
        times["dense"].append(time.perf_counter() - middle)
    sparse, full = (statistics.median(own) for own in times.values())
    print(f"{SMALL:,} records, {dense.shape[1]:,} tags, budget {SMALL_BUDGET:,}; medians of "
          f"{ROUNDS} rounds")
    held = values.data.nbytes + values.indices.nbytes
    print(f"sparse   {sparse:8.2f} s, {held / 2**20:.1f} MiB")
    print(f"dense    {full:8.2f} s, {dense.nbytes / 2**20:.1f} MiB: {full / sparse:.0f} times")


def draw_tags(rng: np.random.Generator, records: int, tags: int) -> list[list[str]]:
    share = 1 / np.arange(1, tags + 1)
    numbers = rng.choice(tags, size=(records, 7), p=share / share.sum())
    return [[f"tag {tag}" for tag in own[:count]]
            for own, count in zip(numbers.tolist(), rng.integers(1, 8, records), strict=True)]


def draw_vectors(rng: np.random.Generator, tags: int, hidden: int) -> np.ndarray:
    """Groups of four tags around a centre: some near it, some not, [tags, hidden]."""
    centres = rng.normal(size=(-(-tags // 4), hidden))
    spread = rng.choice([0.1, 0.3, 1.0], size=(tags, 1))
    return (np.repeat(centres, 4, axis=0)[:tags]
            + spread * rng.normal(size=(tags, hidden))).astype(np.float32)


def run_stage(folder: Path, arguments: argparse.Namespace) -> tuple[float, dict]:
    """(seconds of the stage in a process of its own, its line in the log)."""
    rng = np.random.default_rng(0)
    text = "Explain in a few sentences why the sky is blue and why sunsets are red. " * 2
    tags = draw_tags(rng, arguments.records, arguments.tags)
    scores = rng.uniform(1, 6, size=(arguments.records, 2)).tolist()
    artifacts.write_jsonl(folder / "run/pool.jsonl", (
        {"id": str(row), "instruction": text, "input": "", "output": text * 3, "tags": own,
         "quality_scores": scores[row][:1], "complexity_scores": scores[row][1:]}
        for row, own in enumerate(tags)))
    np.save(folder / "tags.npy", draw_vectors(rng, arguments.tags, arguments.hidden))
    (folder / "tags.json").write_text(json.dumps([f"tag {i}" for i in range(arguments.tags)]))
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({
        "output_dir": str(folder / "run"), "model": {"name_or_path": "none"},
        "pool": {"path": "none"}, "selection": {
            "method": "mig", "budget": arguments.budget, "mig": {
                "tag_vectors": str(folder / "tags.npy"), "threshold": THRESHOLD}}}))
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "adg.score_and_select", config], cwd=ROOT, check=True)
    took = time.perf_counter() - start
    return took, json.loads((folder / "run/log.jsonl").read_text().splitlines()[-1])


def small_pool():
    """Information [SMALL, tags in use] of a smaller pool, sparse."""
    rng = np.random.default_rng(1)
    annotations = [Annotation(own, score) for own, score in zip(
        draw_tags(rng, SMALL, SMALL_TAGS), rng.uniform(1, 36, SMALL).tolist(), strict=True)]
    labels = sorted({tag for own in annotations for tag in own.tags})
    vectors = draw_vectors(rng, SMALL_TAGS, 64)[[int(label[4:]) for label in labels]]
    return label_rows(annotations, labels, norm=False) @ propagation(vectors, threshold=THRESHOLD,
                                                                     weight=1.0)


def pick_densely(values: np.ndarray, number: int) -> list[int]:
    """The picks with the gain of every record computed at every pick."""
    slope, gathered, picked = slope_of_power(1e-6, 0.8), np.zeros(values.shape[1]), []
    for _ in range(number):
        gains = values @ slope(gathered)
        gains[picked] = -1.0
        picked.append(int(gains.argmax()))
        gathered += values[picked[-1]]
    return picked


if __name__ == "__main__":
    main()
