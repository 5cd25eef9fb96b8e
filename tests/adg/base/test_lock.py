"""Two runs in one folder at once: the second is refused, until the first has ended or is dead."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, tree

from adg.base import lock
from adg.base.errors import InputError
from adg.config import load_config
from adg.pipeline.stage_run import StageRun, begin
from generation import prepare_pool

_AT_WORK = """
import fcntl
import sys
from pathlib import Path
from adg.base import lock
from adg.config import load_config
from adg.pipeline.stage_run import StageRun
def refuse(*arguments):
    raise OSError(38, "Function not implemented")
if sys.argv[3:]:
    fcntl.lockf = refuse
config = load_config(Path(sys.argv[2]), [])
if sys.argv[1] == "pipeline":
    lock.take_for_pipeline(Path(config.output_dir), ["pool.jsonl", "answers/"])
else:
    StageRun(sys.argv[1], config).start()
print("at work", flush=True)
sys.stdin.read()
"""


def at_work(name: str, config: Path, *without_locks: str) -> subprocess.Popen:
    """A process that has started a stage and does not end."""
    process = subprocess.Popen([sys.executable, "-c", _AT_WORK, name, config, *without_locks],
                               cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    while (line := process.stdout.readline()) != "at work\n":
        assert line
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


def test_what_a_running_pipeline_reads_is_written_by_its_own_stages_alone(config_file, stage,
                                                                         tmp_path, monkeypatch):
    run = tmp_path / "run"
    stage(prepare_pool, config_file())
    first, second = (at_work("pipeline", config_file()) for _ in range(2))
    pool = (run / "pool.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"prepare would write pool.jsonl, which a pipeline "
                                         rf"\(process {first.pid} on .* is reading"):
        stage(prepare_pool, config_file(), "pool.limit=5")
    assert (run / "pool.jsonl").read_bytes() == pool
    second.communicate("")
    monkeypatch.setenv(lock.PIPELINE, str(run / "provenance/pipeline-0.lock"))  # as its own stage
    stage(prepare_pool, config_file(), "pool.limit=5")
    monkeypatch.delenv(lock.PIPELINE)
    first.communicate("")
    stage(prepare_pool, config_file())


def test_a_finished_stage_has_given_its_lock_up(config_file, stage):
    stage(prepare_pool, config_file())
    first = at_work("prepare", config_file())  # another process may start it
    with pytest.raises(InputError, match=f"prepare .process {first.pid}"):
        StageRun("prepare", load_config(config_file(), [])).start()
    first.communicate("")


# Where the file system has no locks


@pytest.fixture(params=["ENOSYS", "EOPNOTSUPP", "ENOLCK"])
def without_locks(request, monkeypatch) -> None:
    def refuse(*arguments: object) -> None:
        number = getattr(errno, request.param)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    lock._note.cache_clear()


@pytest.fixture
def lock_file(tmp_path: Path):
    with (tmp_path / "x.lock").open("a+b", buffering=0) as file:
        yield file


def mark(marker: Path, *, age: float, **holder: object) -> None:
    """A marker of a process on another host."""
    marker.write_text(json.dumps({"host": "elsewhere", "process": 1} | holder))
    os.utime(marker, (time.time() - age,) * 2)


@pytest.mark.parametrize("without_locks", ["ENOSYS"], indirect=True)
def test_runs_exclude_each_other_without_locks_too(config_file, stage, tmp_path, without_locks,
                                                   capsys):
    stage(prepare_pool, config_file())
    notes = [line for line in capsys.readouterr().out.splitlines() if "no locks" in line]
    assert notes == ["note: this file system has no locks (Function not implemented): files with "
                     "the name of their holder, touched every 5 s, take their place"]
    assert not [name for name in tree(tmp_path / "run") if name.endswith(".held")]
    first = at_work("sample", config_file(), "without locks")
    run = begin("sample", load_config(config_file(), []))
    with pytest.raises(InputError, match=f"sample .process {first.pid} on {socket.gethostname()}, "
                                         f"since 20.* is already at work"):
        run.start()
    with pytest.raises(InputError, match=f"prepare would write pool.jsonl, which sample .process "
                                         f"{first.pid}"):
        stage(prepare_pool, config_file(), "pool.limit=5")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    marker = tmp_path / "run/provenance/.sample.lock.held"
    assert json.loads(marker.read_text())["process"] == first.pid
    run.start()
    assert json.loads(marker.read_text())["process"] == os.getpid()
    lock.release(run.folder, "sample")
    assert not marker.exists()


def test_a_marker_counts_as_long_as_it_is_young(without_locks, lock_file):
    marker = lock._marker(lock_file)
    mark(marker, age=lock._DEAD - 60)
    assert lock._attempt(lock_file) is None
    mark(marker, age=lock._DEAD + 60)
    give_up = lock._attempt(lock_file)
    assert json.loads(marker.read_text())["process"] == os.getpid()
    assert lock._attempt(lock_file) is None
    give_up()
    assert [path.name for path in marker.parent.iterdir()] == ["x.lock"]


@pytest.mark.parametrize("without_locks", ["ENOSYS"], indirect=True)
def test_one_process_at_a_time_removes_a_dead_ones_marker(without_locks, lock_file):
    marker = lock._marker(lock_file)
    mark(marker, age=lock._DEAD + 60)
    removal = marker.with_name(".x.lock.held.removal")
    removal.touch()  # another is at it
    assert lock._attempt(lock_file) is None and marker.exists()
    os.utime(removal, (0, 0))  # it was killed right there
    assert lock._attempt(lock_file) is None and not removal.exists()
    lock._attempt(lock_file)()
    removal.touch()
    assert lock._attempt(lock_file) is not None  # nothing is to be removed


class EndsAfterOneTouch:
    """In place of an event."""

    def __init__(self) -> None:
        self.waits = iter([False, True])

    def wait(self, seconds: float) -> bool:
        return next(self.waits)


def test_a_holder_keeps_its_marker_young_and_ends_where_it_is_anothers(tmp_path, monkeypatch,
                                                                       capsys):
    ended, marker = [], tmp_path / ".x.lock.held"
    monkeypatch.setattr(os, "_exit", ended.append)
    for text, status in ((b"mine", []), (b"another's", [75])):
        marker.write_bytes(text)
        os.utime(marker, (0, 0))
        lock._keep_young(marker, b"mine", EndsAfterOneTouch())
        assert ended == status
        assert ended or time.time() - marker.stat().st_mtime < lock._DEAD
    assert "belongs to another process" in capsys.readouterr().err


def test_an_error_that_says_nothing_of_locks_names_the_file(monkeypatch, lock_file):
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(OSError, match=f"Input/output error: '{lock_file.name}'"):
        lock._attempt(lock_file)
