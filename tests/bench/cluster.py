"""Cluster at 100,000 vectors of 2,048: time and memory, beside scikit-learn with all in memory.

For N / 2 and N vectors, as medians over rounds that alternate within one run:
  stage       seconds of `python -m embedding.cluster`, its own memory (anonymous) and its peak with
              the mapped file's pages, which the system takes back when it needs them
  in memory   for N vectors, the same of MiniBatchKMeans.fit_predict on the whole matrix
and, by the slope from N / 2 to N, what 1,000,000 x 4,096 would take: a part that depends on the
width only (the starts of k-means, on a sample) and one that grows with N x width.

    python tests/bench/cluster.py [--records 100000] [--width 2048] [--rounds 3]
"""

import argparse
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

from adg.base import arrays, artifacts  # noqa: E402

BINS, CHUNK, KINDS = 1000, 500, 3000
IN_MEMORY = """
import sys, numpy
from pathlib import Path
from sklearn.cluster import MiniBatchKMeans
files = sorted(Path(sys.argv[1]).glob("*.npy"))
MiniBatchKMeans(n_clusters=int(sys.argv[2]), batch_size=4096, n_init=3, max_iter=100,
                random_state=42).fit_predict(numpy.concatenate([numpy.load(f) for f in files]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found = {}
    for n in (arguments.records // 2, arguments.records):
        with tempfile.TemporaryDirectory() as folder:
            config = build(Path(folder), n, arguments.width)
            commands = {"stage": ["-m", "embedding.cluster", str(config), "--overwrite"]}
            if n == arguments.records:
                commands["in memory"] = ["-c", IN_MEMORY, f"{folder}/run/instruction_embeddings",
                                         str(BINS)]
            runs = {name: [] for name in commands}
            for _ in range(arguments.rounds):
                for name, command in commands.items():
                    runs[name].append(measure([sys.executable, *command]))
        found[n] = {name: tuple(map(statistics.median, zip(*values, strict=True)))
                    for name, values in runs.items()}
        for name, (seconds, own, peak) in found[n].items():
            print(f"{n:9,} x {arguments.width:,}  {name:10} {seconds:7.1f} s, own memory "
                  f"{own:5.2f} GiB, peak {peak:5.2f} GiB", flush=True)
    half, whole = (found[n]["stage"] for n in (arguments.records // 2, arguments.records))
    wider = 4096 / arguments.width
    more = 1_000_000 / (arguments.records / 2) - 1  # times the step from N / 2 to N
    seconds, own = (wider * (half[i] + (whole[i] - half[i]) * more) for i in (0, 1))
    print(f"1,000,000 x 4,096 by the slope: {seconds / 60:.0f} min, own memory {own:.1f} GiB, and "
          f"{1_000_000 * 4096 * 4 / 2**30:.1f} GiB of disk for the scratch file")


def build(folder: Path, n: int, width: int) -> Path:
    """A run folder with n unit vectors around KINDS centres; the path of its configuration."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(KINDS, width)).astype(np.float32)
    artifacts.write_jsonl(folder / "run/pool.jsonl", (
        {"id": str(i), "instruction": "x", "input": "", "output": "x"} for i in range(n)))
    for number, rows in enumerate(artifacts.chunk_bounds(n, CHUNK)):
        drawn = centres[rng.integers(0, KINDS, len(rows))]
        drawn = drawn + rng.normal(size=drawn.shape).astype(np.float32)
        arrays.write_array(
            folder / "run/instruction_embeddings" / artifacts.chunk_name(number, "npy"),
            drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({
        "output_dir": str(folder / "run"), "model": {"name_or_path": "none"},
        "pool": {"path": "none"}, "clustering": {"num_bins": BINS}, "selection": {"budget": 1}}))
    return config


def measure(command: list[str]) -> tuple[float, float, float]:
    """(seconds, largest anonymous memory, largest resident memory, both in GiB) of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    own = peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines()
                 if line.startswith(("RssAnon", "VmHWM"))}
        own, peak = max(own, sizes.get("RssAnon", 0)), max(peak, sizes.get("VmHWM", 0))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return time.perf_counter() - start, own / 2**20, peak / 2**20


if __name__ == "__main__":
    main()
