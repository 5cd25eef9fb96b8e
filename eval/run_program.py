"""One program that a model wrote, executed: a script for `eval.programs`, which holds the protocol.

    python -I -S eval/run_program.py RESULT SECONDS FOLDER PACKAGES < REQUEST

RESULT is the number of the open pipe for the verdict, SECONDS the time limit, FOLDER the working
folder, PACKAGES the folders of installed packages (a:b). REQUEST is marshal's form of (marker,
program), the former bytes, the latter a string.

The standard library alone: the interpreter starts without site-packages, which takes a few ms.
"""

import builtins
import contextlib
import importlib
import io
import marshal
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile

STARTED, READY = b"s", b"r"  # what comes over the pipe before the marker
FILE_BYTES = 64 << 20  # of one file
_MEMORY_BYTES = 2 << 30  # of address space

# What code_eval takes away, and with which a program fails there: it is part of the verdict
_TAKEN = {
    os: "kill system putenv remove removedirs rmdir fchdir setuid fork forkpty killpg rename "
        "renames truncate replace unlink fchmod fchown chmod chown chroot lchflags lchmod lchown "
        "getcwd chdir",
    shutil: "rmtree move chown",
    subprocess: "Popen",
    builtins: "exit quit help",
}
_ABSENT = ("ipdb", "joblib", "resource", "psutil", "tkinter")
_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import|import[ \t]+([\w., \t]+))", re.M)


def main() -> None:
    result, seconds, folder, packages = sys.argv[1:]
    os.chdir(folder)
    execute(int(result), float(seconds), packages)


def execute(result: int, seconds: float, packages: str) -> None:
    """Execute the program, and write the marker to `result` when its last line has been reached."""
    write, leave = os.write, os._exit  # a program may replace them
    with open(0, "rb", closefd=False) as request:
        marker, program = marshal.load(request)
    os.environ.pop("PWD", None)  # bwrap's
    _close_standard_streams()
    for limit, value in ((resource.RLIMIT_AS, _MEMORY_BYTES), (resource.RLIMIT_FSIZE, FILE_BYTES),
                         (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (value, value))
    sys.path += filter(None, packages.split(os.pathsep))
    sys.argv = [""]
    tempfile.tempdir = os.getcwd()
    write(result, STARTED)
    _import_ahead(program)
    _take_away()
    write(result, READY)
    try:
        sys.stdin = sys.stdout = sys.stderr = _Nowhere()
        signal.signal(signal.SIGALRM, _time_is_up)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        exec(program, {})
        signal.setitimer(signal.ITIMER_REAL, 0)
    except BaseException:
        leave(1)
    write(result, marker)
    leave(0)  # whatever the program's threads do


class _Nowhere(io.StringIO):
    """Standard input, output and error of a program: keeps what is written, has nothing to read."""

    def read(self, *_: object) -> str:
        raise OSError

    def readline(self, *_: object) -> str:
        raise OSError

    def readlines(self, *_: object) -> list[str]:
        raise OSError

    def readable(self) -> bool:
        return False


class _TimeIsUp(Exception):
    """Raised in a program at its time limit. A program can catch it, as it can code_eval's."""


def _time_is_up(*_: object) -> None:
    raise _TimeIsUp


def _import_ahead(program: str) -> None:
    """Import what the program will, off the clock.

    code_eval forks a process that has loaded numpy and most of the standard library. Several
    modules cannot be imported when `_take_away` has been at work.
    """
    for one, several in _IMPORT.findall(program):
        for name in (one or several).split(","):
            with contextlib.suppress(BaseException):
                importlib.import_module(name.split()[0])


def _take_away() -> None:
    for module, names in _TAKEN.items():
        for name in names.split():
            setattr(module, name, None)
    sys.modules.update(dict.fromkeys(_ABSENT))


def _close_standard_streams() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.close(null)


if __name__ == "__main__":
    main()
