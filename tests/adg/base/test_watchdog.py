"""A rank that hangs ends with a message; one that works, or has ended its stage, does not."""

import subprocess
import sys

from conftest import ROOT

from adg.base import watchdog

_HANGS = """
import threading
from adg.base import watchdog
watchdog.start("sample (rank 1)", 1)
watchdog.beat()
threading.Event().wait()
"""


def test_a_rank_that_gets_nothing_done_ends():
    ended = subprocess.run([sys.executable, "-c", _HANGS], cwd=ROOT, capture_output=True, text=True,
                           timeout=60, check=False)
    assert ended.returncode == watchdog.STALLED
    assert "error: sample (rank 1): nothing got done for 1 s (stall_timeout)" in ended.stderr
    assert "the same command goes on from there" in ended.stderr
    assert "in wait" in ended.stderr and "<string>" in ended.stderr  # where it hangs


def test_work_and_the_end_of_a_stage_keep_the_process(monkeypatch):
    ended = []
    monkeypatch.setattr(watchdog.os, "_exit", ended.append)
    clock = iter([0.0, 5.0, 9.0, 20.0, 31.0])
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: next(clock))
    watchdog.beat()                                                  # at 0
    waits = []

    class Ended:
        def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            if len(waits) == 2:
                watchdog.beat()                                      # at 20
            return False

    watchdog._guard("sample", 10, Ended())                           # looks at 5, 9 and 31
    assert waits == [5.0, 1.0] and ended == [watchdog.STALLED]


def test_a_watch_that_was_stopped_does_nothing(monkeypatch):
    monkeypatch.setattr(watchdog.os, "_exit", lambda status: 1 / 0)
    watchdog.start("sample", 1000)
    watch = watchdog._watch
    watchdog.stop()
    watchdog._guard("sample", 1000, watch)
    watchdog.start("sample", 0)
    assert watch.is_set() and watchdog._watch is watch  # none was begun
