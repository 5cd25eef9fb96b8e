"""What a stage shows while it works, and what goes to a log file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from adg.base import screen
from adg.models.vllm_options import engine_options

_STAGE = """
import logging, os, subprocess, sys
from pathlib import Path
from adg.base import distributed, process, screen
from adg.base.errors import InputError
before = logging.StreamHandler(sys.stdout)
def main():
    print("before")
    screen.engines_write_to(Path(sys.argv[1]))
    print("printed", flush=True)
    distributed.say("said")
    distributed.warn("warned")
    with distributed.progress("sample", 2) as bar:
        bar.update(2)
    os.write(1, b"descriptor 1\\n")
    os.write(2, b"descriptor 2\\n")
    print("a warning", file=sys.stderr)
    before.stream.write("an early logger\\n")
    before.flush()
    with screen.stdout_of_engines():
        print("a late logger")
    subprocess.run(["sh", "-c", "echo child; echo its errors >&2"])
    {end}
process.run_script(main)
"""
_OF_ENGINES = ["descriptor 1", "descriptor 2", "a warning", "an early logger", "a late logger",
               "child", "its errors"]


def run(log: Path, end: str = "pass") -> tuple[int, list[str], list[str]]:
    """(status, lines of stdout, lines of stderr without the bar) of a stage that ends so."""
    ended = subprocess.run([sys.executable, "-c", _STAGE.format(end=end), str(log)], cwd=ROOT,
                           capture_output=True, text=True, check=False)
    lines = [line for line in ended.stderr.splitlines() if line]
    assert any(line.startswith("[sample]: 100%") for line in lines)
    return (ended.returncode, ended.stdout.splitlines(),
            [line for line in lines if not line.startswith("[sample]: ")])


def test_engines_write_to_a_file_and_the_stage_to_the_screen(tmp_path: Path):
    log = tmp_path / "sample.0.log"
    assert run(log) == (0, ["before", "printed", "said"], ["warned"])
    head, *lines = log.read_text().splitlines()
    assert head.startswith("== 20") and lines == _OF_ENGINES
    run(log)  # a restart appends
    assert [line for line in log.read_text().splitlines() if line[:2] != "=="] == 2 * _OF_ENGINES


def test_an_error_that_nobody_caught_is_on_the_screen_and_names_the_file(tmp_path: Path):
    log = tmp_path / "sample.0.log"
    status, _, errors = run(log, "raise RuntimeError('broken')")
    assert status == 1 and errors[1] == "Traceback (most recent call last):"
    assert errors[-2:] == ["RuntimeError: broken", f"what the engines said is in {log}"]
    assert "Traceback" not in log.read_text()


def test_an_error_that_was_expected_is_one_line_on_the_screen(tmp_path: Path):
    log = tmp_path / "sample.0.log"
    status, _, errors = run(log, "raise InputError('lower it')")
    assert status == 2 and errors == ["warned", "error: lower it"]
    status, _, errors = run(log, "raise KeyboardInterrupt")
    assert status == 130 and errors == ["warned", "stopped; the same command goes on from here"]


def test_a_main_that_is_called_in_another_process_writes_where_that_does(tmp_path: Path, capfd):
    screen.engines_write_to(tmp_path / "sample.0.log")
    os.write(1, b"as ever\n")
    assert capfd.readouterr().out == "as ever\n" and not list(tmp_path.iterdir())
    assert screen.stderr() is sys.stderr


@pytest.mark.parametrize("has_log", [True, False])
def test_vllm_says_more_where_that_goes_to_a_file(monkeypatch, has_log):
    environment = {name: value for name, value in os.environ.items() if "VLLM" not in name}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(screen, "has_log", lambda: has_log)
    monkeypatch.setattr("adg.base.distributed.on_gpu", lambda: True)
    engine_options("float32", seed=0, trust_remote_code=False, gpu_memory_utilization=0.9,
                   own_process=False)
    logging = {name: value for name, value in environment.items() if "VLLM_LOGGING" in name}
    assert logging == ({"VLLM_LOGGING_STREAM": "ext://sys.stderr"} if has_log
                       else {"VLLM_LOGGING_LEVEL": "ERROR"})
