"""A rank that gets nothing done for too long ends itself, so that a hang ends in a message."""

import faulthandler
import os
import threading
import time

from adg.base import screen

STALLED = 75  # exit status: a temporary failure, as sysexits.h has it

_last_beat = 0.0
_watch: threading.Event | None = None  # set to end the watch that is on


def start(what: str, seconds: int) -> None:
    """Watch this process until `stop`: `seconds` without a `beat`, and it ends. 0: no watch."""
    global _watch
    stop()
    beat()
    if seconds:
        _watch = threading.Event()
        threading.Thread(target=_guard, args=(what, seconds, _watch), daemon=True).start()


def beat() -> None:
    """Something got done: a batch, a step, an answer."""
    global _last_beat
    _last_beat = time.monotonic()


def stop() -> None:
    """End the watch, where there is one."""
    if _watch is not None:
        _watch.set()


def _guard(what: str, seconds: int, ended: threading.Event) -> None:
    while (left := _last_beat + seconds - time.monotonic()) > 0:
        if ended.wait(left):
            return
    print(f"\nerror: {what}: nothing got done for {seconds} s (stall_timeout): this rank, or "
          f"another that it waits for, hangs at the place below. What is written is whole: the "
          f"same command goes on from there.", file=screen.stderr(), flush=True)
    faulthandler.dump_traceback(screen.stderr())
    os._exit(STALLED)
