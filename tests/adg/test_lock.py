"""Two runs in one folder at once: the second is refused, until the first has ended or is dead."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from adg.config import load_config
from adg.errors import InputError
from adg.provenance import StageRun, begin
from generation import prepare_pool

_AT_WORK = """
import sys
from pathlib import Path
from adg.config import load_config
from adg.provenance import StageRun
StageRun(sys.argv[1], load_config(Path(sys.argv[2]), [])).start()
print("at work", flush=True)
sys.stdin.read()
"""


def at_work(name: str, config: Path) -> subprocess.Popen:
    """A process that has started a stage and does not end."""
    process = subprocess.Popen([sys.executable, "-c", _AT_WORK, name, config], cwd=ROOT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "at work\n"
    return process


def test_the_second_run_is_refused_until_the_first_is_dead(config_file, stage, tmp_path):
    stage(prepare_pool, config_file())
    first = at_work("sample", config_file())
    config = load_config(config_file(), [])
    with pytest.raises(InputError) as refused:
        begin("sample", config).start()
    assert f"sample (process {first.pid} on {socket.gethostname()}, since 20" in str(refused.value)
    assert f"is already at work in {tmp_path}/run: wait for it" in str(refused.value)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    run = begin("sample", config)
    run.start()
    run.start()  # what this process holds it may take again


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_running_stage_reads_is_not_written_anew(config_file, stage, tmp_path, overwrite):
    stage(prepare_pool, config_file())
    pool = (tmp_path / "run/pool.jsonl").read_bytes()
    first = at_work("sample", config_file())
    arguments = ["--overwrite"] if overwrite else ["pool.limit=5"]
    with pytest.raises(InputError, match=r"prepare would write pool.jsonl, which sample \(process "
                                         f"{first.pid} on .* is reading"):
        stage(prepare_pool, config_file(), *arguments)
    assert (tmp_path / "run/pool.jsonl").read_bytes() == pool
    first.communicate("")
    stage(prepare_pool, config_file(), *arguments)


def test_a_finished_stage_has_given_its_lock_up(config_file, stage):
    stage(prepare_pool, config_file())
    first = at_work("prepare", config_file())  # another process may start it
    with pytest.raises(InputError, match=f"prepare .process {first.pid}"):
        StageRun("prepare", load_config(config_file(), [])).start()
    first.communicate("")
