"""The life of a stage's process: how it begins, ends, and is ended where it hangs."""

import ctypes
import faulthandler
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from adg.base import screen
from adg.base.distributed import rank
from adg.base.errors import InputError, printable

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_GRACE = 5  # seconds

_limit = 0  # seconds without a `beat` after which this process ends; 0: no limit


# A process that hangs


def watch(seconds: int) -> None:
    """End this process, with a stack trace of every thread, once `seconds` pass without a `beat`.

    The interpreter need not run for that: C code that never returns is ended too. 0: no limit.
    """
    global _limit
    unwatch()
    _limit = seconds
    beat()


def beat() -> None:
    """Report progress: a batch, a step, an answer."""
    if _limit:
        faulthandler.dump_traceback_later(_limit, exit=True, file=screen.stderr_descriptor())


def unwatch() -> None:
    """End the watch, if there is one."""
    global _limit
    _limit = 0
    faulthandler.cancel_dump_traceback_later()


# A process that ends


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
