"""Programs that a model wrote (HumanEval, MBPP): what counts as passed, and how they are confined.

Verdict. A program is an answer followed by its tests. It has passed when its last line was reached
within 3 seconds: only then does a random word, new for each program, come back over a pipe. What it
exits with says nothing. It is executed as the hub's metric `code_eval`, which lm-eval would use,
does it: by `exec` in an empty namespace (`__name__` is "builtins"); nothing to read on stdin, and
stdout and stderr kept in memory; the same functions taken away (os.getcwd, os.remove, exit,
subprocess.Popen ...), so that a program that calls one fails; at the time limit an exception, which
a program can catch, and a second later a kill. Other than there: 2 GiB of memory and files of 64
MiB; nothing of the environment, and no arguments in sys.argv; a program that closes all open files
has not passed; in a sandbox, what the sandbox keeps out.

The word holds against accidents: an exit, a test runner of the program's own, output of any kind.
It does not hold against malice, and no other sign would: answer and tests share an interpreter, so
an answer can look for the word in its caller's frame, or return objects that equal everything.

Confinement. A sandbox has its own user, processes, mounts and network. Its programs see the
interpreter, the installed packages and the system's libraries, read-only, and a /tmp of 64 MiB that
goes with them; they do not see the home folder, data, other processes or the network. `bwrap`
(bubblewrap) builds it where it is installed and works, else run_program.py does, by unshare(2).
Without a sandbox a program has a folder of its own, but the user's rights and the network. In
either case what a program has started is killed when it ends (without a sandbox, unless it kills
its supervisor first), and while programs run the memory and environment of this process are closed
to others of its user, unless that is root. How many processes a program starts is not limited.

    python -m eval.programs auto|require|off    prints the one that is used: bwrap, unshare or none
"""

import contextlib
import functools
import marshal
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from adg.base.distributed import say
from adg.base.errors import InputError
from adg.base.process import beat, run_script
from eval import run_program

SANDBOXES = ("bwrap", "unshare")  # the first that works is taken
NO_SANDBOX = "none"
_SECONDS = 3.0  # for one program, as in code_eval
_GRACE = 1.0  # seconds until a program that goes on is killed, as there
_PATIENCE = 60  # seconds to start the interpreter, and to import: not the program's
_PROGRAMS = 8  # at once at most: what waits for the disk or a core is not to be timed out
_PROBE = "import hashlib, numpy\nassert numpy.arange(3).sum() == 3"
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # buffers of numpy per thread
_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store",
           "/etc/ld.so.cache", "/etc/localtime")  # what an interpreter may need libraries from

_sandbox: str | None = None  # the chosen one


class RunnerError(RuntimeError):
    """No program could be run, whatever its text: the machine's fault, not the model's."""


# Which sandbox


def choose(wanted: str) -> str:
    """Choose the sandbox of the programs to come: bwrap, unshare or none; its name.

    `wanted` is eval.sandbox. InputError where it is `require` and no sandbox works here, or where
    not even a program without one runs.
    """
    global _sandbox
    _sandbox = _find(wanted)
    return _sandbox


def _find(wanted: str) -> str:
    if (problem := _problem(NO_SANDBOX)) is not None:
        raise InputError(f"programs that a model writes cannot be run on this machine: {problem}")
    if wanted == "off":
        return NO_SANDBOX
    problems = []
    for sandbox in SANDBOXES:
        if (problem := _problem(sandbox)) is None:
            return sandbox
        problems.append(f"{sandbox}: {problem}")
    found = "; ".join(problems)
    if wanted == "require":
        raise InputError(
            f"eval.sandbox is require, but no sandbox works on this machine ({found}). Install "
            f"bubblewrap, or allow unprivileged user namespaces (sysctl user.max_user_namespaces, "
            f"kernel.apparmor_restrict_unprivileged_userns), or set eval.sandbox to off")
    say(f"[evaluate] warning: no sandbox works on this machine ({found}): the programs that the "
        f"model writes can read your home folder and all else that you can, write where you can, "
        f"and use the network; eval.sandbox=require would refuse to run them")
    return NO_SANDBOX


def _problem(sandbox: str) -> str | None:
    """What keeps a sandbox from working here, by trying it; None where it works."""
    if sandbox == "bwrap" and shutil.which("bwrap") is None:
        return "not installed"
    try:
        works = passes(_PROBE, sandbox, seconds=_PATIENCE)
    except RunnerError as error:
        return str(error)
    return None if works else "numpy cannot be imported"


# Running programs


def submit(program: str) -> Future:
    """The promise of whether a program passes; programs run side by side."""
    assert _sandbox is not None, "choose a sandbox first"
    return _workers().submit(passes, program, _sandbox)


@functools.cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_PROGRAMS, len(os.sched_getaffinity(0))))


def passes(program: str, sandbox: str, *, seconds: float | None = None) -> bool:
    """Whether a Python program reaches its end within the time limit, in a process of its own.

    Never raises for what the program is or does; RunnerError where the process does not get as far
    as reading it.
    """
    seconds, marker = seconds or _SECONDS, secrets.token_bytes(16)
    with _closed_to_others(), _folder() as folder, _request(marker, program) as request:
        verdict, result = os.pipe()
        with open(verdict, "rb", buffering=0) as pipe:
            process = subprocess.Popen(
                _command(sandbox, result, seconds, folder), stdin=request,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=(result,),
                env=_environment(), start_new_session=True)
            os.close(result)
            try:
                if _next(pipe, _PATIENCE) != run_program.STARTED:
                    process.kill()
                    raise RunnerError(_last_line(process.communicate()[1]))
                return (_next(pipe, _PATIENCE) == run_program.READY
                        and _next(pipe, seconds + _GRACE, len(marker) + 1) == marker)
            finally:
                _end(process)
                beat()


def _command(sandbox: str, result: int, seconds: float, folder: str) -> list[str]:
    """The command that runs a program which it reads from stdin."""
    python, script = Path(sys.executable).resolve(), str(Path(run_program.__file__).resolve())
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    readable = _outermost([*_SYSTEM, str(python.parents[1]), sys.base_prefix, *packages, script,
                           *_environment().get("LD_LIBRARY_PATH", "").split(os.pathsep)])
    inner = [str(python), "-I", "-S", script]
    arguments = [str(result), str(seconds), folder, os.pathsep.join(packages)]
    if sandbox != "bwrap":
        return [*inner, sandbox, *arguments, *readable]
    shown = [word for path in readable for word in ("--ro-bind", path, path)]
    devices = [word for path in run_program.DEVICES for word in ("--dev-bind", path, path)]
    arguments[2] = run_program.WORKING_FOLDER
    return ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL",
            "--size", str(run_program.SPACE), "--tmpfs", "/tmp", "--dir", arguments[2], *shown,
            *devices, "--symlink", "/tmp", "/dev/shm", "--remount-ro", "/", "--", *inner, "inside",
            *arguments]


def _outermost(paths: list[str]) -> list[str]:
    """The paths that exist, without those below another, and without the home folder or what it is
    in."""
    home = Path(os.path.expanduser("~"))
    there = {Path(path) for path in paths if os.path.isabs(path) and os.path.exists(path)}
    there -= {Path("/"), home, *home.parents}
    return sorted(str(path) for path in there if there.isdisjoint(path.parents))


def _environment() -> dict[str, str]:
    """What a program is told; LD_LIBRARY_PATH is the interpreter's, which may not start without."""
    return _ENVIRONMENT | {name: os.environ[name] for name in ("LD_LIBRARY_PATH",)
                           if name in os.environ}


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """A program's working folder without a sandbox, and what `unshare` mounts its own on."""
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    try:
        yield folder.name
    finally:
        try:
            folder.cleanup()
        except RecursionError:  # folders in folders, a thousand deep
            subprocess.run(["rm", "-rf", folder.name], check=False)


@contextlib.contextmanager
def _request(marker: bytes, program: str) -> Iterator[int]:
    """A file in memory that holds what the process is to read: programs can be of any length."""
    with open(os.memfd_create("program"), "wb") as file:
        file.write(marshal.dumps((marker, program)))
        file.flush()
        file.seek(0)
        yield file.fileno()


def _next(pipe: object, seconds: float, length: int = 1) -> bytes:
    """What comes next, `length` bytes at most; empty at the end of the pipe or of the time."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return pipe.read(length) if poll.poll(seconds * 1000) else b""


def _last_line(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"the interpreter did not start within {_PATIENCE} s"


def _end(process: subprocess.Popen) -> None:
    """Have the process kill what the program started, and end; or kill it."""
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stderr.close()


# This process, as programs of the same user see it


_running, _lock, _was_dumpable = 0, threading.Lock(), 1


@contextlib.contextmanager
def _closed_to_others() -> Iterator[None]:
    """While a program runs: this process's memory and environment are closed to the same user.

    Debuggers and profilers of that user cannot attach then either.
    """
    global _running, _was_dumpable
    with _lock:
        if _running == 0:
            _was_dumpable = run_program.prctl(run_program.PR_GET_DUMPABLE)
            run_program.prctl(run_program.PR_SET_DUMPABLE, 0)
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if _running == 0 and _was_dumpable == 1:
                run_program.prctl(run_program.PR_SET_DUMPABLE, 1)


def main() -> None:
    print(choose(*sys.argv[1:]))


if __name__ == "__main__":
    run_script(main)
