"""A rank that hangs ends with a stack trace; one that works, or has ended its stage, does not."""

import faulthandler
import subprocess
import sys

import pytest
from conftest import ROOT

from adg.base import process

_HANGS = """
import threading
from adg.base import process
process.watch(1)
process.beat()
threading.Event().wait()
"""


def test_a_rank_without_progress_ends_with_a_stack_trace():
    ended = subprocess.run([sys.executable, "-c", _HANGS], cwd=ROOT, capture_output=True, text=True,
                           timeout=60, check=False)
    assert ended.returncode == 1
    assert "Timeout (0:00:01)!" in ended.stderr
    assert "in wait" in ended.stderr and "<string>" in ended.stderr  # where it hangs


@pytest.fixture
def armed(monkeypatch) -> list[object]:
    """What faulthandler is told: (seconds, whether it ends the process), or None to give up."""
    process.unwatch()  # what another test may have left
    told: list[object] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later",
                        lambda seconds, *, exit, file: told.append((seconds, exit)))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: told.append(None))
    return told


def test_each_beat_begins_the_time_anew_until_the_watch_ends(armed):
    process.beat()
    assert armed == []  # no watch, nothing to begin
    process.watch(10)
    process.beat()
    process.unwatch()
    process.beat()
    assert armed == [None, (10, True), (10, True), None]


def test_a_limit_of_0_is_no_limit(armed):
    process.watch(0)
    process.beat()
    assert armed == [None]
