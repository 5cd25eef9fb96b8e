"""A stage in processes of its own: their number, their environment, their end."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from adg.base import distributed
from adg.base.errors import InputError
from adg.base.paths import ROOT
from adg.base.process import die_with_parent
from adg.config import Config
from adg.pipeline.stages import STAGES, label_of

_RANKS_WITHOUT_GPU = 2


def layout() -> tuple[int, dict[str, str]]:
    """(ranks per parallel stage, environment of the stages).

    On the CPU the threads of a rank are those of a default run whatever NPROC says, so that
    sums are made in the same order.
    """
    gpus = distributed.count_gpus()
    text = os.environ.get("NPROC", str(gpus or _RANKS_WITHOUT_GPU))
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"NPROC is {text!r}; it must be a number of processes, 1 or more")
    environment = dict(os.environ)
    if not gpus:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // _RANKS_WITHOUT_GPU)))
        environment.setdefault("DS_ACCELERATOR", "cpu")
    environment.setdefault("PYTHONWARNINGS", "ignore")
    return int(text), environment


def ranks_for(name: str, config: Config, ranks: int) -> int:
    """The ranks of one stage: fewer where each takes several GPUs, unless NPROC says how many."""
    return ranks if "NPROC" in os.environ else max(1, ranks // STAGES[name].gpus(config))


def say_start(name: str, ranks: int) -> None:
    """Say that a stage starts, and on how many ranks where it has several."""
    where = f" on {ranks} rank{'s' * (ranks > 1)}" if STAGES[name].torchrun else ""
    print(f"\n[{name}] starts{where}", flush=True)


def run_stage(name: str, arguments: list[str], config: Config, ranks: int,
              environment: dict[str, str], *, quiet: bool = False) -> None:
    """Run one stage; a stage that fails ends the pipeline with its exit status.

    `quiet`: a line when it is done, and its errors.
    """
    stage, label, began = STAGES[name], label_of(name, config), time.monotonic()
    launcher = ["adg.pipeline.launch", f"--nproc_per_node={ranks}", "-m"] * stage.torchrun
    command = [sys.executable, "-m", *launcher, stage.module, *stage.arguments(config, arguments)]
    status = wait_for(command, environment, quiet=quiet)
    if status:
        if status != 2:  # an input error has said what to do
            log = Path(config.output_dir) / "provenance" / f"{label.replace(' ', '-')}.0.log"
            print(f"[{name}] ended with status {status}; the same command goes on from here"
                  + (f"; {log} holds what its engines said on rank 0" if log.is_file() else ""),
                  file=sys.stderr)
        sys.exit(status)
    if quiet:
        print(f"[{label}] done in {time.monotonic() - began:.0f} s", flush=True)


def wait_for(command: list[str], environment: dict[str, str], *, quiet: bool) -> int:
    """Run a command to its end; its exit status, as a shell has it. `quiet`: it only says errors.

    On Ctrl-C it is this process that ends it: its processes, of which torchrun's ranks would not
    hear of it, take SIGTERM without a word.
    """
    process = subprocess.Popen(
        command, env=environment | {"TQDM_DISABLE": "1"} if quiet else environment,
        stdout=subprocess.DEVNULL if quiet else None, preexec_fn=_begin_stage)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    return status if status >= 0 else 128 - status


def _begin_stage() -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def hint(module: str, *folders: Path) -> str:
    """The command line that runs a module on run folders, from the current folder."""
    if Path.cwd() == ROOT:
        return shlex.join([".venv/bin/python", "-m", module, *map(str, folders)])
    command = [".venv/bin/python", "-m", module, *(str(folder.resolve()) for folder in folders)]
    return f"(cd {shlex.quote(str(ROOT))} && {shlex.join(command)})"
