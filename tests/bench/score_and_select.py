"""Select at a million records: the whole stage, and its scoring against loops over the records.

Builds a run folder of N records (K = 5, 1,000 bins of unlike sizes, 500 records per chunk) and
prints, as medians over rounds that alternate within one run:
  stage      seconds and peak memory of `python -m adg.score_and_select` in a process of its own
  scoring    seconds for reading, checking and scoring all Grams
  choosing   seconds for top, middle and bottom
  loop       the scoring's own functions, called for one record after the other
  bare loop  only NumPy's trace and eigvalsh for one record after the other: no check, no record
             with a missing answer
Both loops are measured on some of the records, already in memory, and scaled up.

    python tests/bench/score_and_select.py [--records 1000000] [--rounds 3]
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from adg import geometry  # noqa: E402
from adg.base import arrays, artifacts  # noqa: E402
from adg.geometry import centred_grams  # noqa: E402
from adg.methods import divergence  # noqa: E402
from adg.selection import select_paper  # noqa: E402

K, BINS, CHUNK, LOOPED = 5, 1000, 500, 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    n, budget = arguments.records, arguments.records // 10
    with tempfile.TemporaryDirectory() as folder:
        config = build(Path(folder), n, budget)
        grams, bins = Path(folder) / "run/answer_grams", np.load(Path(folder) / "run/bins.npy")
        files = artifacts.chunk_files(grams, "npy")[: LOOPED // CHUNK]
        sample = np.concatenate([np.load(path) for path in files])
        scores = divergence.score_grams(grams, n, geometry.divergence_score)["score"]
        command = [sys.executable, "-m", "adg.score_and_select", config, "--overwrite"]
        work = {
            "stage": lambda: subprocess.run(command, cwd=ROOT, check=True,
                                            stdout=subprocess.DEVNULL),
            "scoring": lambda: divergence.score_grams(grams, n, geometry.divergence_score),
            "choosing": lambda: select_paper(scores, bins, budget),
            "loop": lambda: score_one_by_one(sample),
            "bare loop": lambda: score_barely(sample),
        }
        times = {name: [] for name in work}
        for _ in range(arguments.rounds):
            for name, call in work.items():
                times[name].append(seconds(call))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{n:,} records, K = {K}, {BINS:,} bins, budget {budget:,}; "
          f"medians of {arguments.rounds} rounds")
    print(f"stage      {median['stage']:8.2f} s, peak memory {peak:.2f} GiB")
    print(f"scoring    {median['scoring']:8.2f} s")
    print(f"choosing   {median['choosing']:8.2f} s")
    for name in ("loop", "bare loop"):
        scaled = median[name] * n / len(sample)
        print(f"{name:10} {scaled:8.2f} s (from {len(sample):,} records): "
              f"{scaled / median['scoring']:.1f} times the scoring")


def build(folder: Path, n: int, budget: int) -> Path:
    """A run folder with a pool, bins and Grams of n records; the path of its configuration."""
    rng = np.random.default_rng(0)
    run = folder / "run"
    text = "Explain in a few sentences why the sky is blue and why sunsets are red. " * 2
    artifacts.write_jsonl(run / "pool.jsonl", ({"id": str(i), "instruction": text, "input": "",
                                                "output": text} for i in range(n)))
    share = rng.dirichlet(np.full(BINS, 2.0))
    arrays.write_array(run / "bins.npy", rng.choice(BINS, n, p=share).astype(np.int32))
    for number, rows in enumerate(artifacts.chunk_bounds(n, CHUNK)):
        vectors = rng.normal(size=(len(rows), 1, 16)) + rng.normal(size=(len(rows), K, 16)) / 4
        arrays.write_array(run / "answer_grams" / artifacts.chunk_name(number, "npy"),
                              centred_grams(vectors).astype(np.float32))
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({
        "output_dir": str(run), "model": {"name_or_path": "none"}, "pool": {"path": "none"},
        "selection": {"budget": budget}}))
    return config


def score_one_by_one(grams: np.ndarray) -> list[float]:
    """The score of each Gram [K, K], with the functions that score whole blocks."""
    place = [(Path("sample"), range(1))]
    scores = []
    for gram in grams:
        divergence.check_grams(gram[None], place)
        geometry.num_answers(gram)
        scores.append(float(geometry.divergence_score(geometry.dispersion(gram),
                                                      geometry.anisotropy(gram))))
    return scores


def score_barely(grams: np.ndarray) -> list[float]:
    """The score of each Gram [K, K] with as few calls as will do."""
    scores = []
    for gram in grams.astype(np.float64):
        eigenvalues = np.maximum(np.linalg.eigvalsh(gram), 0.0)
        total = eigenvalues.sum()
        anisotropy = 1 - eigenvalues[-1] / total if total >= 1e-12 else 0.0
        scores.append(0.6 * np.trace(gram) / len(gram) + 0.4 * anisotropy)
    return scores


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
