"""Rank, world size, device, and what ranks tell each other. No other module asks for the rank."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import takewhile
from typing import Any

from adg.base import screen, store
from adg.base.errors import InputError, printable

_DEVICE = re.compile(r"\d+|(GPU|MIG)-.+")  # an entry of CUDA_VISIBLE_DEVICES
_PATIENCE = 120  # seconds until files of other nodes must show: NFS keeps what it saw for up to 60
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


def progress(stage: str, total: int, done: int = 0, *, unit: str = "records") -> Any:
    """A progress bar over rank 0's records, with records/s and the time left."""
    from tqdm import tqdm

    return tqdm(total=total, initial=done, unit=f" {unit}", desc=f"[{stage}]", bar_format=_BAR,
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
    """A process group of all ranks on the CPU, gone afterwards; nothing with one rank."""
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
        with store.reaching(rank()):
            _store()


def agreed(name: str, make: Callable[[], Any]) -> Any:
    """What `make` gives on rank 0, on every rank; JSON must hold it. Each name serves once."""
    if world_size() == 1:
        return make()
    with store.reaching(rank()):
        if rank() > 0:
            return json.loads(_value(name, 0))
    value = make()
    with store.reaching(rank()):
        _store().set(name, json.dumps(value))
    return value


def barrier(name: str, value: int = 0) -> list[int]:
    """Wait until every rank has come here; what each brings along. Each name serves once.

    A stage that shares chunks ends in one: torchrun gives ranks on other nodes five minutes from
    when those of its own node have ended, and takes the rendezvous away then.
    """
    if world_size() == 1:
        return [value]
    with store.reaching(rank()):
        _store().set(f"{name}/{rank()}", str(value))
        return [int(_value(f"{name}/{other}", other)) for other in range(world_size())]


def _store() -> Any:
    return store.connect(rank())


def _value(key: str, other: int) -> bytes:
    return store.value(_store(), key, other, rank())


def settled(look: Callable[[], list]) -> list:
    """What `look` finds: of several ranks, what it still finds when files of other nodes must show.
    """
    deadline = time.monotonic() + (_PATIENCE if world_size() > 1 else 0)
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(1)
    return left
