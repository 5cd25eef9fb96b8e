"""What surrounds a program that a model wrote: its sandbox, environment and folder.

A sandbox has its own user, processes, mounts and network. Its programs see the interpreter, the
installed packages and the system's libraries, read-only, and a /tmp of 64 MiB that goes with them;
they do not see the home folder, data, other processes or the network. `bwrap` (bubblewrap) builds
it where it is installed and works, else supervise.py does, by unshare(2).

Without a sandbox a program has a folder of its own, but the user's rights and the network.

In either case what a program has started is killed when it ends (without a sandbox, unless it kills
or holds its supervisor first), and while programs run the memory and environment of this process
are closed to others of its user, unless that is root. How many processes a program starts is not
limited.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from eval import run_program, supervise

SANDBOXES = ("bwrap", "unshare")  # the first that works is taken
NO_SANDBOX = "none"
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # buffers of numpy per thread
_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store",
           "/etc/ld.so.cache", "/etc/localtime")  # what an interpreter may need libraries from


def command(sandbox: str, result: int, seconds: float, folder: str) -> list[str]:
    """The command that runs a program which it reads from stdin."""
    python = str(Path(sys.executable).resolve())
    script, supervisor = (str(Path(module.__file__).resolve())
                          for module in (run_program, supervise))
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    readable = outermost([
        *_SYSTEM, str(Path(python).parents[1]), sys.base_prefix, *packages, script,
        *environment().get("LD_LIBRARY_PATH", "").split(os.pathsep)])
    inner = [python, "-I", "-S", script, str(result), str(seconds),
             folder if sandbox == NO_SANDBOX else supervise.WORKING_FOLDER,
             os.pathsep.join(packages)]
    if sandbox != "bwrap":
        return [python, "-I", "-S", supervisor, sandbox, str(result), folder,
                os.pathsep.join(readable), *inner]
    shown = [word for path in readable for word in ("--ro-bind", path, path)]
    devices = [word for path in supervise.DEVICES for word in ("--dev-bind", path, path)]
    return [shutil.which("bwrap"), "--unshare-all", "--die-with-parent", "--new-session",
            "--cap-drop", "ALL", "--size", str(supervise.SPACE), "--tmpfs", "/tmp",
            "--dir", supervise.WORKING_FOLDER, *shown, *devices, "--symlink", "/tmp", "/dev/shm",
            "--remount-ro", "/", "--", *inner]


def outermost(paths: list[str]) -> list[str]:
    """The paths that exist, without those below another, and without the home folder or what it is
    in."""
    home = Path(os.path.expanduser("~"))
    existing = {Path(path) for path in paths if os.path.isabs(path) and os.path.exists(path)}
    existing -= {Path("/"), home, *home.parents}
    return sorted(str(path) for path in existing if existing.isdisjoint(path.parents))


def environment() -> dict[str, str]:
    """What a program is told; LD_LIBRARY_PATH is the interpreter's, which may not start without."""
    return _ENVIRONMENT | {name: os.environ[name] for name in ("LD_LIBRARY_PATH",)
                           if name in os.environ}


@contextlib.contextmanager
def working_folder() -> Iterator[str]:
    """A program's working folder without a sandbox, and what `unshare` mounts its own on."""
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    try:
        yield folder.name
    finally:
        try:
            folder.cleanup()
        except RecursionError:  # folders in folders, a thousand deep
            subprocess.run(["rm", "-rf", folder.name], check=False)


_running, _lock, _was_dumpable = 0, threading.Lock(), 1


@contextlib.contextmanager
def closed_to_others() -> Iterator[None]:
    """While a program runs: this process's memory and environment are closed to the same user.

    Debuggers and profilers of that user cannot attach then either.
    """
    global _running, _was_dumpable
    with _lock:
        if _running == 0:
            _was_dumpable = supervise.prctl(supervise.PR_GET_DUMPABLE)
            supervise.prctl(supervise.PR_SET_DUMPABLE, 0)
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if _running == 0 and _was_dumpable == 1:
                supervise.prctl(supervise.PR_SET_DUMPABLE, 1)
