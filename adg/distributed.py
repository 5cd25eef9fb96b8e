"""Rank, world size, device and the life of a stage's process. No other module asks for the rank."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

from adg.errors import InputError

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_GRACE = 5  # seconds
_BAR = ("{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
        "[{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]")


def rank() -> int:
    """This process among all of the stage, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process among those of its node, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Processes of the stage over all nodes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def my_share(chunks: Iterable[int]) -> list[int]:
    """The chunks that are this rank's to do: chunk i belongs to rank i mod world size."""
    return [index for index in chunks if index % world_size() == rank()]


def say(text: str) -> None:
    """A line for people, from rank 0 only."""
    if rank() == 0:
        print(text, flush=True)


def warn(text: str) -> None:
    """A line for people that any rank may have to say."""
    print(f"{text} (rank {rank()})" if world_size() > 1 else text, file=sys.stderr, flush=True)


def count_gpus() -> int:
    """GPUs that this process may use, found without touching CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shutil.which("nvidia-smi") is None:
        return 0
    if visible is not None:
        return len([entry for entry in visible.split(",") if entry.strip()])
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def claim_gpus(number: int, key: str) -> None:
    """Leave this process its own GPUs only, `number` of them as `key` says; nothing without a GPU.

    To be called before anything touches CUDA, which reads CUDA_VISIBLE_DEVICES once.
    """
    count = count_gpus()
    if count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))
        entries = [entry.strip() for entry in visible.split(",") if entry.strip()]
        mine = own_gpus(number, count, key)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(entries[gpu] for gpu in mine)


def own_gpus(number: int, count: int, key: str) -> list[int]:
    """This rank's of a node's `count` GPUs, where each rank takes `number` of them in turn.

    One each may be shared by several ranks. Raises InputError where the node has too few.
    """
    first = local_rank() * number
    if number == 1:
        return [first % count]
    if first + number > count:
        raise InputError(f"{key} is {number}: {local_rank() + 1} ranks on a node need "
                         f"{first + number} GPUs, but it has {count}: start at most "
                         f"{count // number} ranks")
    return list(range(first, first + number))


def progress(stage: str, total: int, done: int = 0) -> Any:
    """A progress bar over rank 0's records, with records/s and the time left."""
    from tqdm import tqdm

    return tqdm(total=total, initial=done, unit=" records", desc=f"[{stage}]", bar_format=_BAR,
                disable=rank() > 0)


def device() -> str:
    """This rank's torch device: its own GPU where there is one, else the processor."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    return f"cuda:{torch.cuda.current_device()}"


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """A process group of all ranks on the processor, gone afterwards; nothing with one rank."""
    if world_size() == 1:
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(hours=12))
    yield
    dist.barrier()
    dist.destroy_process_group()


def from_rank_0(value: Any) -> Any:
    """Rank 0's value on every rank, within a process group."""
    if world_size() == 1:
        return value
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def die_with_parent() -> None:
    """Have Linux kill this process when its parent ends.

    torchrun puts its workers into sessions of their own, where a kill of the launching process
    group does not reach them: they would go on writing beside the run that takes their place.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


_WATCHER = """
import os, select, sys, psutil
parent = psutil.Process(os.getppid())
children = parent.children(recursive=True)
print(flush=True)
while not select.select([sys.stdin], [], [], 2)[0]:  # readable at the end of the pipe
    try:
        children = parent.children(recursive=True) or children
    except psutil.NoSuchProcess:
        break
for child in children:
    if child.pid != os.getpid() and child.is_running():
        child.kill()
"""


def end_children_with_this_process() -> None:
    """Have the processes that this one has started, and those that it starts from now on, killed
    when it ends, however it ends (those of its last two seconds excepted).

    vLLM's engine outlives a parent that is killed, and keeps a GPU's memory.
    """
    watcher = subprocess.Popen([sys.executable, "-c", _WATCHER], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, start_new_session=True)
    watcher.stdout.readline()


def run_script(main: Callable[[], None]) -> None:
    """Run a stage's main: an input error becomes one line on stderr and exit status 2."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    try:
        main()
    except (InputError, OSError) as error:
        if not isinstance(error, InputError) and error.filename is None:
            raise
        where = f" (rank {rank()})" if rank() else ""
        if rank():
            time.sleep(_GRACE)  # what every rank finds, rank 0 says, and torchrun ends the others
            print(file=sys.stderr)  # rank 0's progress bar stands on this line
        print(f"error{where}: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
