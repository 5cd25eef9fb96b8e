"""Rank, world size, device and the life of a stage's process. No other module asks for the rank."""

import atexit
import contextlib
import ctypes
import functools
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any, TextIO

from adg.base import screen
from adg.base.errors import InputError, printable

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_GRACE = 5  # seconds
_DEVICE = re.compile(r"\d+|(GPU|MIG)-.+")  # an entry of CUDA_VISIBLE_DEVICES
_BEAT = 10  # seconds between a rank's signs of life
_SILENT = 600  # seconds without one, after which a rank that others wait for counts as lost
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


def local_world_size() -> int:
    """Processes of the stage on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def my_share(chunks: Sequence[int]) -> list[int]:
    """The chunks that are this rank's of those to do, dealt out in turn."""
    return list(chunks[rank()::world_size()])


def say(text: str) -> None:
    """Text for people, from rank 0 only."""
    if rank() == 0:
        print(printable(text), flush=True)


def warn(text: str) -> None:
    """A line for people that any rank may have to say."""
    print(f"{printable(text)} (rank {rank()})" if world_size() > 1 else printable(text),
          file=screen.stderr(), flush=True)


def count_gpus() -> int:
    """GPUs that this process may use, found without touching CUDA."""
    if shutil.which("nvidia-smi") is None:
        return 0
    visible = _visible_devices()
    if visible is not None:
        return len(visible)
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _visible_devices() -> list[str] | None:
    """Entries of CUDA_VISIBLE_DEVICES up to the first that is none, as CUDA reads them (-1 and
    NoDevFiles mean no device); None where it is not set."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    return list(takewhile(_DEVICE.fullmatch, (entry.strip() for entry in text.split(","))))


def claim_gpus(number: int, key: str) -> None:
    """Leave this process its own GPUs only, `number` of them as `key` says; nothing without a GPU.

    To be called before anything touches CUDA, which reads CUDA_VISIBLE_DEVICES once.
    """
    count = count_gpus()
    if count:
        entries = _visible_devices() or list(map(str, range(count)))
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


def shows_bars() -> bool:
    """Whether this rank draws progress bars: rank 0, unless tqdm's own variable forbids them."""
    return rank() == 0 and not os.environ.get("TQDM_DISABLE")


def progress(stage: str, total: int, done: int = 0) -> Any:
    """A progress bar over rank 0's records, with records/s and the time left."""
    from tqdm import tqdm

    return tqdm(total=total, initial=done, unit=" records", desc=f"[{stage}]", bar_format=_BAR,
                disable=not shows_bars(), file=screen.stderr())


def on_gpu() -> bool:
    """Whether models run on GPUs here. Touches CUDA; False only where there is no GPU to use.

    Where they do, attention is not left to cuDNN, which torch prefers on H100 and later: it plans
    anew, for tenths of a second, at every shape of a batch that it has not seen.
    Raises InputError where there is one that torch cannot use, so that no model falls back to the
    CPU unasked.
    """
    import torch

    if torch.cuda.is_available():
        torch.backends.cuda.enable_cudnn_sdp(False)
        return True
    count = count_gpus()
    if count == 0:
        return False
    try:
        torch.cuda.init()  # is_available() gives no reason
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"{count} GPU(s) are listed (nvidia-smi, CUDA_VISIBLE_DEVICES), but torch "
            f"{torch.__version__} cannot use them: {str(error).splitlines()[0].rstrip('.')}. It "
            f"needs NVIDIA driver 580 or newer and a .venv for GPUs (bash run.sh setup gpu); set "
            f"CUDA_VISIBLE_DEVICES= (empty) to run models on the CPU") from None
    return True


def device() -> str:
    """This rank's torch device: its own GPU where there is one, else the CPU."""
    if not on_gpu():
        return "cpu"
    import torch

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


# What ranks tell each other through torchrun's store, without a process group: vLLM makes the
# process's default group its own


def join() -> None:
    """Show the other ranks from now on that this one lives; nothing with one rank."""
    if world_size() > 1:
        with _reaching():
            _store()


def agreed(name: str, make: Callable[[], Any]) -> Any:
    """What `make` gives on rank 0, on every rank; JSON must hold it. Each name serves once."""
    if world_size() == 1:
        return make()
    with _reaching():
        if rank() > 0:
            return json.loads(_value(name, 0))
    value = make()
    with _reaching():
        _store().set(name, json.dumps(value))
    return value


def barrier(name: str, value: int = 0) -> list[int]:
    """Wait until every rank has come here; what each brings along. Each name serves once.

    A stage that shares chunks ends in one: torchrun gives ranks on other nodes five minutes from
    when those of its own node have ended, and takes the rendezvous away then.
    """
    if world_size() == 1:
        return [value]
    with _reaching():
        _store().set(f"{name}/{rank()}", str(value))
        return [int(_value(f"{name}/{other}", other)) for other in range(world_size())]


@functools.cache
def _store() -> Any:
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, *_ = next(rendezvous("env://"))
    store = PrefixStore(f"adg/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    store.set(f"host/{rank()}", socket.gethostname())
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(store.clone(), ended), daemon=True)
    thread.start()
    atexit.register(thread.join, 1)  # a thread within the store would abort the interpreter's end
    atexit.register(ended.set)
    return store


def _beat(store: Any, ended: threading.Event) -> None:
    with _reaching():
        while not ended.is_set():
            store.add(f"alive/{rank()}", 1)
            ended.wait(_BEAT)


def _value(key: str, other: int) -> bytes:
    """What rank `other` puts into the store under `key`, once it has; this rank ends where that one
    gives no sign of life."""
    store, pause, beats, said = _store(), 0.02, -1, False
    began = heard = time.monotonic()
    while not store.check([key]):
        now, beat = time.monotonic(), store.add(f"alive/{other}", 0)
        if beat != beats:
            beats, heard = beat, now
        elif now - heard > _SILENT:
            _end(f"{_name(other)} has given no sign of life for {_SILENT} s: it has ended, or its "
                 f"node is lost")
        if now - began > _BEAT and not said:
            say(f"waiting for {_name(other)}")
            said = True
        time.sleep(pause)
        pause = min(1.0, 1.5 * pause)
    return store.get(key)


def _name(other: int) -> str:
    store, key = _store(), f"host/{other}"
    return f"rank {other}" + (f" on {store.get(key).decode()}" if store.check([key]) else "")


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    """End this rank where torchrun's store is gone: so is rank 0, which holds the stage's lock."""
    from torch.distributed import DistNetworkError

    try:
        yield
    except DistNetworkError:
        _end(f"torchrun on {os.environ.get('MASTER_ADDR')}, the node of rank 0, cannot be reached: "
             f"it has ended, or its node is lost")


def _end(reason: str) -> None:
    print(f"\nerror (rank {rank()}): {reason}. What is written is whole: the same command goes on "
          f"from there.", file=screen.stderr(), flush=True)
    os._exit(os.EX_TEMPFAIL)  # a thread may be what has found it


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
    """Run a stage's main: an input error becomes one line on stderr and exit status 2, Ctrl-C one
    line and 130; where nobody reads stdout any more (`| head`), it ends quietly with 141.

    The interpreter's folder comes first on PATH, where torch, DeepSpeed and vLLM look for ninja:
    .venv need not be activated.
    """
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH") or os.defpath])
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    if main.__module__ == "__main__":
        screen.own_process()
    try:
        try:
            _run_or_say_why(main)
        finally:
            sys.stdout.flush()  # here, where it can be seen to fail
    except BrokenPipeError:
        if not _is_unread(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to flush
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        if rank() == 0:
            print("\nstopped; the same command goes on from here", file=screen.stderr(),
                  flush=True)
        sys.exit(128 + signal.SIGINT)


def _is_unread(file: TextIO) -> bool:
    """Whether a file is a pipe whose other end has been closed."""
    poll = select.poll()
    poll.register(file, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run_or_say_why(main: Callable[[], None]) -> None:
    try:
        main()
    except (InputError, OSError) as error:
        if not isinstance(error, InputError) and error.filename is None:
            raise
        where = f" (rank {rank()})" if rank() else ""
        if rank():
            time.sleep(_GRACE)  # what every rank finds, rank 0 says, and torchrun ends the others
            print(file=screen.stderr())  # rank 0's progress bar stands on this line
        print(f"error{where}: {printable(str(error))}", file=screen.stderr(), flush=True)
        sys.exit(2)
