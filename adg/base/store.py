"""torchrun's store, through which ranks wait for each other and notice that one is lost."""

import atexit
import contextlib
import functools
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from adg.base import screen

_BEAT = 10  # seconds between a rank's signs of life
_SILENT = 600  # seconds without one, after which a rank that others wait for counts as lost


@functools.cache
def connect(rank: int) -> Any:
    """The store of all ranks, which see from now on that this one lives."""
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, *_ = next(rendezvous("env://"))
    store = PrefixStore(f"adg/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    store.set(f"host/{rank}", socket.gethostname())
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(store.clone(), rank, ended), daemon=True)
    thread.start()
    atexit.register(thread.join, 1)  # a thread within the store would abort the interpreter's end
    atexit.register(ended.set)
    return store


def _beat(store: Any, rank: int, ended: threading.Event) -> None:
    with reaching(rank):
        while not ended.is_set():
            store.add(f"alive/{rank}", 1)
            ended.wait(_BEAT)


def value(store: Any, key: str, other: int, rank: int) -> bytes:
    """What rank `other` puts into the store under `key`, once it has; this `rank` ends if that one
    shows no sign of life."""
    pause, beats, said = 0.02, -1, False
    began = heard = time.monotonic()
    while not store.check([key]):
        now, beat = time.monotonic(), store.add(f"alive/{other}", 0)
        if beat != beats:
            beats, heard = beat, now
        elif now - heard > _SILENT:
            _end(rank, f"{_name(store, other)} has shown no sign of life for {_SILENT} s: it has "
                       f"ended, or its node is lost")
        if now - began > _BEAT and not said:
            said = True
            if rank == 0:
                print(f"waiting for {_name(store, other)}", flush=True)
        time.sleep(pause)
        pause = min(1.0, 1.5 * pause)
    return store.get(key)


def _name(store: Any, other: int) -> str:
    key = f"host/{other}"
    return f"rank {other}" + (f" on {store.get(key).decode()}" if store.check([key]) else "")


@contextlib.contextmanager
def reaching(rank: int) -> Iterator[None]:
    """End this `rank` if torchrun's store is gone: so is rank 0, which holds the stage's lock."""
    from torch.distributed import DistNetworkError

    try:
        yield
    except DistNetworkError:
        _end(rank, f"torchrun on {os.environ.get('MASTER_ADDR')}, the node of rank 0, cannot be "
                   f"reached: it has ended, or its node is lost")


def _end(rank: int, reason: str) -> None:
    print(f"\nerror (rank {rank}): {reason}. What is written is whole: the same command goes on "
          f"from there.", file=screen.stderr(), flush=True)
    os._exit(os.EX_TEMPFAIL)  # a thread may be what has found it
