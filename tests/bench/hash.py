"""The hash of a chunked artefact, as a stage takes it at its end: several files at once against one
after the other.

Writes chunks of 500 vectors of 4,096 numbers (8 MB a file), hashes them anew in rounds that
alternate, all in the page cache, and prints medians: seconds, GiB/s, and how many times as fast.
The two hashes must be the same.

    python tests/bench/hash.py [--gib 2] [--rounds 5] [--folder DIR]
"""

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from adg.base import arrays, artifacts  # noqa: E402
from adg.pipeline.identity import HashCache, visible_files  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files are written; they are removed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        root = Path(name)
        vectors = np.random.default_rng(0).normal(size=(500, 4096)).astype(np.float32)
        number = max(1, int(arguments.gib * 2**30 / vectors.nbytes))
        for i in range(number):
            vectors[0] = i
            arrays.write_array(root / artifacts.chunk_name(i, "npy"), vectors)
        ways = {"one after the other": one_by_one,
                "several at once": lambda root, files: HashCache(root / "none").tree(root, files)}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            hashes = set()
            for way, of in ways.items():
                start = time.perf_counter()
                hashes.add(of(root, visible_files(root)))
                seconds[way].append(time.perf_counter() - start)
            assert len(hashes) == 1
        medians = {way: statistics.median(values) for way, values in seconds.items()}
        for way, value in medians.items():
            print(f"{way:20} {value:7.2f} s  {number * vectors.nbytes / 2**30 / value:6.2f} GiB/s")
        one, several = medians.values()
        print(f"{number} files: {one / several:.2f} times as fast")


def one_by_one(root: Path, files: list[Path]) -> str:
    lines = []
    for path in sorted(files):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{path.relative_to(root)} {digest}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


if __name__ == "__main__":
    main()
