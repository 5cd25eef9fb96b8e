"""Method zip at the size of Alpaca: the whole stage, and its trials against compressing all anew.

Builds a run folder of N records from a pool file (records after the first pass over it join the
first half of one output with the second half of another) and prints
  stage      seconds and peak memory of `python -m adg.score_and_select`, in a process of its own
  trial      milliseconds for one candidate of a round, and for one of the greedy choice from the
             shortlist, on one processor: medians over some rounds from first to last
  anew       the same where all that was picked is compressed again for each candidate, as the
             release does; scaled up over the rounds (between those measured, linearly) it gives the
             hours that the whole would take on one processor
Trials and compressing anew alternate on the same candidates, and must agree.

    python tests/bench/zip.py POOL.json [--records 52002] [--budget 10000]
"""

import argparse
import itertools
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from adg.base import artifacts  # noqa: E402
from adg.methods.compression import Prefix, as_sharegpt  # noqa: E402
from adg.records import read_source  # noqa: E402

CANDIDATES, SHORTLIST, PICKS = 10_000, 200, 100
MEASURED, EACH = 5, 5  # rounds that are looked at, candidates of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--records", type=int, default=52_002)
    parser.add_argument("--budget", type=int, default=10_000)
    parser.add_argument("--no-stage", action="store_true", help="the trials only")
    arguments = parser.parse_args()
    records = grow([record for record, _ in read_source(arguments.pool)], arguments.records)
    print(f"{len(records):,} records, budget {arguments.budget:,}")
    if not arguments.no_stage:
        with tempfile.TemporaryDirectory() as folder:
            took = run_stage(Path(folder), records, arguments.budget)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(f"stage      {took:9.1f} s, peak memory {peak:.2f} GiB", flush=True)
    shown = [as_sharegpt(record, row, "bench") for row, record in enumerate(records)]
    random.Random(1).shuffle(shown)
    rounds = -(-arguments.budget // PICKS)
    looked_at = np.linspace(0, rounds - 1, MEASURED).astype(int)
    whole = compare(shown, [number * PICKS for number in looked_at])
    inner = compare(shown, list(range(0, PICKS, PICKS // MEASURED)))
    for name, found in (("candidate", whole), ("shortlist", inner)):
        ours, anew = (statistics.median(times) * 1e3 for times in zip(*found.values(), strict=True))
        print(f"{name:10} trial {ours:8.3f} ms, anew {anew:8.3f} ms: {anew / ours:.0f} times; anew "
              f"at the last {list(found.values())[-1][1] * 1e3:.1f} ms")
    totals = [len(records) * statistics.median(first) + CANDIDATES * over(whole, side, [
        number * PICKS for number in range(rounds)]) + rounds * sum(
            (SHORTLIST - pick) * over(inner, side, [pick]) for pick in range(PICKS))
        for side, first in enumerate(zip(*alone(shown), strict=True))]
    print(f"in all     trials {totals[0] / 60:.1f} minutes, anew {totals[1] / 3600:.1f} hours, on "
          f"one processor: {totals[1] / totals[0]:.0f} times")


def grow(pool: list[dict], number: int) -> list[dict]:
    """`number` records: the pool's, then mixtures of two of them each."""
    draw, grown = random.Random(0), []
    for row in range(number):
        own, other = pool[row % len(pool)], draw.choice(pool)
        output = own["output"]
        if row >= len(pool):
            first, second = (re.split(r"(?<=[.!?\n]) ", text) for text in (output, other["output"]))
            output = " ".join(first[: -(-len(first) // 2)] + second[len(second) // 2:])
        grown.append({"id": str(row), "instruction": own["instruction"],
                      "input": own.get("input") or "", "output": output})
    return grown


def run_stage(folder: Path, records: list[dict], budget: int) -> float:
    """Seconds of the stage in a process of its own."""
    artifacts.write_jsonl(folder / "run/pool.jsonl", records)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({
        "output_dir": str(folder / "run"), "model": {"name_or_path": "none"},
        "pool": {"path": "none"}, "selection": {"method": "zip", "budget": budget}}))
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "adg.score_and_select", config], cwd=ROOT, check=True)
    return time.perf_counter() - start


def compare(shown: list[dict], sizes: list[int]) -> dict[int, tuple[float, float]]:
    """{records picked: seconds of (a trial, compressing anew)}, medians over some candidates."""
    found = {}
    for size in sizes:
        picked, prefix = shown[:size], Prefix()
        for record in picked:
            prefix.add(repr(record).encode())
        times = []
        for record in itertools.islice(shown, size, size + EACH):
            start = time.perf_counter()
            ratio = prefix.ratio_with(repr(record).encode())
            middle = time.perf_counter()
            text = str([*picked, record]).encode()
            assert ratio == len(text) / len(zlib.compress(text, level=9))
            times.append((middle - start, time.perf_counter() - middle))
        found[size] = tuple(map(statistics.median, zip(*times, strict=True)))
    return found


def alone(shown: list[dict]) -> list[tuple[float, float]]:
    """Seconds of (a trial, compressing anew) of records alone."""
    return [tuple(compare([record], [0])[0]) for record in shown[:50]]


def over(found: dict[int, tuple[float, float]], side: int, sizes: list[int]) -> float:
    """Seconds over trials at these sizes, read between the measured ones."""
    return float(np.interp(sizes, list(found), [times[side] for times in found.values()]).sum())


if __name__ == "__main__":
    main()
