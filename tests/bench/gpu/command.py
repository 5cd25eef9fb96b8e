"""A command as a user starts it, with its output in a log and its end in time."""

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

from adg.base.process import die_with_parent

_ERROR = re.compile(r"(?:^|\s)(error(?: \(rank \d+\))?: .*|[\w.]*(?:Error|Exception)(?:: .*|$))")
_LONGEST = 300  # characters of an error in a table


class Failed(Exception):
    """A command that ended badly, or was ended: in one line, why."""


def run(command: list[str], log: Path, seconds: float) -> str:
    """Run a command, end whatever it started, and give its output, which the log keeps.

    Failed where its status is not 0, and where it is still running after so many seconds.
    """
    with log.open("ab") as file:
        file.write(f"\n$ {' '.join(command)}\n".encode())
        file.flush()
        start = file.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=die_with_parent,
            env={**os.environ, "PYTHONWARNINGS": "ignore"})
        try:
            status = process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            raise Failed(f"ended after {seconds:.0f} s: the time is up (--minutes)") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # an engine outlives what started it
            process.wait()
    with log.open("rb") as file:
        file.seek(start)
        output = file.read().decode(errors="replace")
    if status:
        raise Failed(last_error(output) or f"status {status}")
    return output


def last_error(output: str) -> str:
    """The last line that names an error, else the last one, cut to fit a table."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", output) if line.strip()]
    errors = [found[1] for line in lines if (found := _ERROR.search(line))]
    return (errors or lines or [""])[-1][:_LONGEST]
