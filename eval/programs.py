"""Run programs that a model wrote (HumanEval, MBPP), and decide which pass.

A program is an answer followed by its tests. It has passed when its last line was reached
within 3 seconds: only then does a random word, new for each program, come back over a pipe. What it
exits with says nothing. It is executed as the hub's metric `code_eval`, which lm-eval would use,
does it: by `exec` in an empty namespace (`__name__` is "builtins"); nothing to read on stdin, and
stdout and stderr kept in memory; the same functions taken away (os.getcwd, os.remove, exit,
subprocess.Popen ...), so that a program that calls one fails; at the time limit an exception, which
a program can catch, and a second later a kill. Other than there: 2 GiB of memory and files of 64
MiB; nothing of the environment, and no arguments in sys.argv; a program that closes all open files
or holds its supervisor has not passed; in a sandbox, what the sandbox keeps out.

The word holds against accidents: an exit, a test runner of the program's own, output of any kind.
It does not hold against malice, and no other sign would: answer and tests share an interpreter, so
an answer can look for the word in its caller's frame, or return objects that equal everything.

    python -m eval.programs auto|require|off    prints the one that is used: bwrap, unshare or none
"""

import argparse
import contextlib
import functools
import marshal
import os
import secrets
import select
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from adg.base.distributed import say
from adg.base.errors import InputError
from adg.base.process import beat, run_script
from adg.config_sections import SANDBOX_CHOICES
from eval import run_program
from eval.confinement import (
    NO_SANDBOX,
    SANDBOXES,
    closed_to_others,
    command,
    environment,
    working_folder,
)

_SECONDS = 3.0  # for one program, as in code_eval
_GRACE = 1.0  # seconds until a program that goes on is killed, as there
_PATIENCE = 60  # seconds to start the interpreter, and to import: not the program's
_LEAVE = 5.0  # seconds until its supervisor, told to end, counts as held by the program
_PROGRAMS = 8  # at once at most: what waits for the disk or a core is not to be timed out
_PROBE = "import hashlib, numpy\nassert numpy.arange(3).sum() == 3"

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
    problem = "; ".join(problems)
    if wanted == "require":
        raise InputError(
            f"eval.sandbox is require, but no sandbox works on this machine ({problem}). Install "
            f"bubblewrap, or allow unprivileged user namespaces (sysctl user.max_user_namespaces, "
            f"kernel.apparmor_restrict_unprivileged_userns), or set eval.sandbox to off")
    say(f"[evaluate] warning: no sandbox works on this machine ({problem}): the programs that the "
        f"model writes can read and write whatever you can, your home folder too, and use the "
        f"network; eval.sandbox=require would refuse to run them")
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
    with closed_to_others(), working_folder() as folder, _request(marker, program) as request:
        verdict, result = os.pipe()
        with open(verdict, "rb", buffering=0) as pipe:
            process = subprocess.Popen(
                command(sandbox, result, seconds, folder), stdin=request,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=(result,),
                env=environment(), start_new_session=True)
            os.close(result)
            try:
                if _next(pipe, _PATIENCE) != run_program.STARTED:
                    process.kill()
                    raise RunnerError(_last_line(process.communicate()[1]))
                passed = (_next(pipe, _PATIENCE) == run_program.READY
                          and _next(pipe, seconds + _GRACE, len(marker) + 1) == marker)
            finally:
                ended = _end(process)
                beat()
            return passed and ended


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


def _end(process: subprocess.Popen) -> bool:
    """Have the process kill what the program started, and end; whether it did so unforced.

    Without a sandbox a program can stop or trace its supervisor, which is then killed.
    """
    process.terminate()
    try:
        process.wait(_LEAVE)
        return True
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    finally:
        process.stderr.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sandbox", choices=SANDBOX_CHOICES, help="as eval.sandbox")
    print(choose(parser.parse_args().sandbox))


if __name__ == "__main__":
    run_script(main)
