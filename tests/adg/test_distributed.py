"""The life of a stage's processes."""

import os
import signal
import subprocess
import sys

import psutil
from conftest import ROOT

_PARENT = """
import subprocess, sys
from adg.distributed import end_children_with_this_process
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"],
                         start_new_session=True)
end_children_with_this_process()
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_has_started_ends_with_it():
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], cwd=ROOT, stdout=subprocess.PIPE,
                              stdin=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    child.wait(timeout=60)
