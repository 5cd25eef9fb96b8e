"""Programs that a model wrote: verdicts as code_eval gives them, and what a sandbox keeps out."""

import functools
import os
import select
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT

from adg.base.errors import InputError
from adg.config import load_config
from adg.pipeline import checks, readiness
from eval import code_tasks, confinement, harness, programs, run_benchmarks, run_program, supervise

# Programs with the verdicts of the hub's metric code_eval (evaluate 0.4), got by running its
# execute.check_correctness(program, 3.0, 0, 0) on each of them under Python 3.11.
PASSED, FAILED = True, False
VERDICTS = [
    ("def add(a, b):\n    return a + b\nassert add(2, 3) == 5", PASSED),
    ("def add(a, b):\n    return a * b\nassert add(2, 3) == 5", FAILED),
    ("", PASSED),
    ("def f(:", FAILED),
    ("x = 1\0", FAILED),
    ("'\udc80'", FAILED),
    ("x = 1" + " " * 200_000 + "\nassert x == 1", PASSED),
    ("x = '" + "é" * 100_000 + "'\nassert len(x) == 100_000", PASSED),
    ("def f(): return 0\nexit()\nassert f() == 1", FAILED),
    ("quit()", FAILED),
    ("import sys\nsys.exit()", FAILED),
    ("import sys\nsys.exit(0)", FAILED),
    ("import os\nos._exit(0)", FAILED),
    ("raise SystemExit", FAILED),
    ("raise KeyboardInterrupt", FAILED),
    ("try:\n    raise SystemExit(1)\nexcept SystemExit:\n    pass", PASSED),
    ("try:\n    exit()\nexcept SystemExit:\n    pass", FAILED),
    ("import atexit, os\natexit.register(os._exit, 1)", PASSED),
    ("import unittest\nclass T(unittest.TestCase):\n    def test(self):\n"
     "        self.assertEqual(1, 1)\nunittest.main()\nassert False", FAILED),
    ("import unittest\nclass T(unittest.TestCase):\n    def test(self):\n"
     "        self.assertEqual(1, 1)\nif __name__ == '__main__':\n    unittest.main()", PASSED),
    ("if __name__ == '__main__':\n    raise ValueError", PASSED),
    ("assert __name__ == 'builtins' and '__file__' not in globals()", PASSED),
    ("input()", FAILED),
    ("import sys\nsys.stdin.read()", FAILED),
    ("for line in open(0): pass", PASSED),
    ("print('x' * 1_000_000)\nimport sys\nprint('y', file=sys.stderr)", PASSED),
    ("import sys\nsys.stdout.write('x')\nassert sys.stdout.getvalue() == 'x'", PASSED),
    ("import sys\nsys.stdout.buffer.write(b'x')", FAILED),
    ("import threading, time\nthreading.Thread(target=time.sleep, args=(2,)).start()", PASSED),
    ("import threading\ndef f(): raise ValueError\n"
     "t = threading.Thread(target=f)\nt.start(); t.join()", PASSED),
    ("def f(n): return f(n + 1)\nf(0)", FAILED),
    ("def f(n): return 0 if n == 0 else f(n - 1)\nassert f(900) == 0", PASSED),
    ("import sys\nsys.setrecursionlimit(10**7)\ndef f(n): return [*map(f, [n + 1])]\nf(0)", FAILED),
    ("open('a', 'w').write('x')\nassert open('a').read() == 'x'", PASSED),
    ("import os\nopen('a', 'w').close()\nos.remove('a')", FAILED),
    ("import os\nos.getcwd()", FAILED),
    ("import os\nos.environ['A'] = 'b'", FAILED),
    ("import os\nos.mkdir('a')\nassert os.listdir() == ['a']", PASSED),
    ("import shutil\nshutil.rmtree('a', ignore_errors=True)", FAILED),
    ("import subprocess\nsubprocess.run(['true'])", FAILED),
    ("import os\nos.kill(os.getpid(), 9)", FAILED),
    ("import os\nos.abort()", FAILED),
    ("import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nsignal.alarm(0)", PASSED),
    ("import signal\nsignal.raise_signal(signal.SIGTERM)", FAILED),
    ("class AssertionError(Exception): pass\nassert False", FAILED),
    ("def check(f): return True\nassert check(None), 'no'", PASSED),
    ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", FAILED),
    ("import resource", FAILED),
    ("import tkinter", FAILED),
    ("import numpy as np\nassert np.arange(3).sum() == 3", PASSED),
    ("import multiprocessing, tempfile, asyncio\nasync def f(): return 1\n"
     "assert asyncio.run(f()) == 1\nwith tempfile.NamedTemporaryFile('w') as file:\n"
     "    file.write('x')", PASSED),
    ("from multiprocessing import Pool\nPool(2).map(abs, [1])", FAILED),
    ("from dataclasses import dataclass\n@dataclass\nclass A:\n    a: int = 1\nassert A().a == 1",
     PASSED),
    ("import os\nos.write = None\nimport builtins\nbuiltins.print = None", PASSED),
    ("help(int)", FAILED),
]
ENDLESS = [  # "timed out" there
    ("while True: pass", FAILED),
    ("while True: print('x' * 1000)", FAILED),
    ("while True:\n    try:\n        while True: pass\n    except Exception: pass", FAILED),
    ("try:\n    for _ in iter(int, 1): pass\nexcept Exception: pass", PASSED),
    ("sum(iter(int, 1))", FAILED),
    ("import signal\nsignal.signal(signal.SIGALRM, signal.SIG_DFL)\nwhile True: pass", FAILED),
    ("import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: pass", FAILED),
    ("import threading\nthreading.Event().wait()", FAILED),
]


@functools.cache
def problem(sandbox: str) -> str | None:
    return programs._problem(sandbox)


@pytest.fixture(params=[programs.NO_SANDBOX, *programs.SANDBOXES])
def any_sandbox(request) -> str:
    """Every way to run programs that works here."""
    if problem(request.param) is not None:
        pytest.skip(f"{request.param}: {problem(request.param)}")
    return request.param


@pytest.fixture(params=programs.SANDBOXES)
def sandbox(request) -> str:
    """Every sandbox that works here."""
    if problem(request.param) is not None:
        pytest.skip(f"{request.param}: {problem(request.param)}")
    return request.param


@pytest.fixture
def unchosen(monkeypatch):
    """No sandbox has been chosen, and what the test chooses is forgotten after it."""
    monkeypatch.setattr(programs, "_sandbox", None)


# Verdicts


@pytest.mark.parametrize("sandbox", [programs.NO_SANDBOX, "the first that works"])
def test_verdicts_are_those_of_code_eval(sandbox, unchosen):
    if sandbox != programs.NO_SANDBOX:
        sandbox = programs.choose("auto")
    with ThreadPoolExecutor(2) as workers:
        verdicts = workers.map(lambda row: programs.passes(row[0], sandbox), VERDICTS)
        wrong = [(program[:80], verdict) for (program, expected), verdict
                 in zip(VERDICTS, verdicts, strict=True) if verdict is not expected]
        assert not wrong
        verdicts = workers.map(lambda row: programs.passes(row[0], sandbox, seconds=0.3), ENDLESS)
        assert list(verdicts) == [expected for _, expected in ENDLESS]


def test_limits_hold_and_the_environment_is_not_inherited(any_sandbox, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert not programs.passes("x = bytearray(8 << 30)", any_sandbox)
    write = "file = open('a', 'wb')\nfor _ in range({}): file.write(bytes(16 << 20))"
    assert programs.passes(write.format(1), any_sandbox)
    assert not programs.passes(write.format(5), any_sandbox)
    assert programs.passes("import os; assert dict(os.environ, LC_CTYPE='') == {'LC_CTYPE': '', "
                           "'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}", any_sandbox)


def test_the_end_of_a_program_counts_and_not_what_it_writes(any_sandbox):
    guess = ("import os\nfor n in range(3, 1024):\n    try: os.write(n, b'x' * 16)\n"
             "    except OSError: pass")
    assert not programs.passes(guess, any_sandbox)
    assert not programs.passes(f"{guess}\nos._exit(0)", any_sandbox)


def test_a_program_that_cannot_be_started_is_an_error_and_no_verdict(monkeypatch):
    monkeypatch.setattr(programs, "command", lambda *_: ["sh", "-c", "echo no shell >&2; exit 1"])
    with pytest.raises(programs.RunnerError, match="no shell"):
        programs.passes("assert True", programs.NO_SANDBOX)
    with pytest.raises(InputError, match="cannot be run on this machine: no shell"):
        programs.choose("off")


def test_programs_run_side_by_side_and_their_verdicts_stay_in_place(monkeypatch, tmp_path: Path,
                                                                   unchosen):
    monkeypatch.setattr(programs.os, "sched_getaffinity", lambda process: {0, 1})
    programs._workers.cache_clear()
    programs.choose("off")
    os.mkfifo(tmp_path / "pipe")  # to open either end waits for the other
    texts = [f"assert open({str(tmp_path / 'pipe')!r}).read() == 'x'", "assert False",
             f"with open({str(tmp_path / 'pipe')!r}, 'w') as file: file.write('x')"]
    verdicts = [code_tasks.pass_at_1("", [program]) for program in texts]
    assert harness.plain(verdicts) == [1.0, 0.0, 1.0]
    assert code_tasks._solved(verdicts) == pytest.approx(2 / 3)
    assert code_tasks.pass_at_1(["assert f() == 1"], [["def f():\n    return 1"]]).result()
    assert not code_tasks.pass_at_1("assert f() == 1", ["def f():\n    return 2"]).result()
    programs._workers.cache_clear()


# Confinement


def test_a_sandbox_shows_nothing_of_the_machine(sandbox, tmp_path: Path):
    """Each of these does what it tries where there is no sandbox, which is seen here too."""
    secret = tmp_path / "secret.txt"
    interpreter = Path(sys.executable).resolve()
    home = [str(path) for path in Path.home().iterdir() if path not in interpreter.parents]
    attempts = [
        f"assert open({str(secret)!r}).read() == 'secret'",
        f"import os\nassert 'secret.txt' in os.listdir({str(tmp_path)!r})",
        f"import os\nos.listdir({str(ROOT / 'adg')!r})",
        *[f"import os\nassert any(map(os.path.lexists, {home}))"] * bool(home),
        f"import posix\nposix.kill({os.getpid()}, 0)",
        f"open('/proc/{os.getpid()}/status')",
        f"open({str(tmp_path / 'new')!r}, 'w').write('x')",
        f"import posix\nposix.unlink({str(secret)!r})",
    ]
    for attempt in attempts:
        secret.write_text("secret")
        assert not programs.passes(attempt, sandbox), attempt
        assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"]
        assert programs.passes(attempt, programs.NO_SANDBOX), attempt
        (tmp_path / "new").unlink(missing_ok=True)
    assert not secret.exists()


def test_an_interpreter_below_the_home_folder_is_shown_without_it(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".venv/lib").mkdir(parents=True)
    paths = ["/", str(tmp_path), f"{tmp_path}/.venv/lib", f"{tmp_path}/.venv", "/nowhere", "eval"]
    assert confinement.outermost(paths) == [f"{tmp_path}/.venv"]


def test_a_sandbox_is_read_only_but_for_a_small_folder(sandbox):
    script = str(Path(run_program.__file__).resolve())
    for path in (script, os.__file__, "/usr/new", "/new", "/dev/new"):
        text = Path(path).read_bytes() if Path(path).exists() else None
        assert not programs.passes(f"open({path!r}, 'a')", sandbox)
        assert (Path(path).read_bytes() if Path(path).exists() else None) == text
    assert programs.passes("for path in ('a', '/tmp/a', '/dev/shm/b', '/dev/null'):\n"
                           "    open(path, 'w').write('x')", sandbox)
    assert not programs.passes("for i in range(3):\n"
                               "    open(str(i), 'wb').write(bytes(30 << 20))", sandbox)


def test_a_program_cannot_undo_its_sandbox(sandbox):
    remount = ("import ctypes\nlibc = ctypes.CDLL(None)\n{}\n"
               "assert libc.mount(b'none', b'/usr', None, 4096 | 32, None) == 0")
    assert not programs.passes(remount.format(""), sandbox)
    assert not programs.passes(remount.format("libc.unshare(0x10000000 | 0x20000)"), sandbox)
    assert programs.passes("import ctypes\nassert ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) == 1",
                           sandbox)  # no new privileges


def test_a_sandbox_has_no_network(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        send = (f"import socket\nwith socket.create_connection({server.getsockname()}) as s:\n"
                f"    s.sendall(b'data')")
        assert not programs.passes(send, sandbox)
        with pytest.raises(BlockingIOError):
            server.accept()
        assert programs.passes(send, programs.NO_SANDBOX)
        with server.accept()[0] as connection:
            assert connection.recv(10) == b"data"


def test_a_sandbox_keeps_the_parents_memory_and_environment_closed(sandbox):
    for name in ("environ", "mem"):
        assert not programs.passes(f"open('/proc/{os.getpid()}/{name}', 'rb')", sandbox)
        assert not programs.passes("import os, glob\n"
                                   f"open(f'/proc/{{os.getppid()}}/{name}', 'rb')", sandbox)


def test_this_process_is_closed_to_others_while_a_program_runs(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    wait = f"assert open({str(tmp_path / 'pipe')!r}).read() == 'x'"
    with ThreadPoolExecutor(2) as workers:
        waits = workers.submit(programs.passes, wait, programs.NO_SANDBOX)
        with open(tmp_path / "pipe", "w") as pipe:  # is open when the program has opened it
            assert supervise.prctl(supervise.PR_GET_DUMPABLE) == 0
            assert programs.passes("", programs.NO_SANDBOX)
            assert supervise.prctl(supervise.PR_GET_DUMPABLE) == 0
            pipe.write("x")
        assert waits.result()
    assert supervise.prctl(supervise.PR_GET_DUMPABLE) == 1


@pytest.mark.parametrize("end", ["", "while True: pass", "posix._exit(0)"])
def test_nothing_that_a_program_starts_outlives_it(any_sandbox, monkeypatch, end):
    """A daemon holds a pipe of this test open: the end of the pipe is the daemon's end."""
    reading, writing = os.pipe()
    start = subprocess.Popen
    monkeypatch.setattr(programs.subprocess, "Popen", lambda *words, pass_fds, **options: start(
        *words, pass_fds=(*pass_fds, writing), **options))
    daemon = (f"import posix, signal\nreading, ready = posix.pipe()\nif posix.fork() == 0:\n"
              f"    posix.setsid()\n    if posix.fork() == 0:\n"
              f"        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n"
              f"        posix.write({writing}, b'alive')\n        posix.write(ready, b'x')\n"
              f"        while True: signal.pause()\n    posix._exit(0)\n"
              f"posix.read(reading, 1)\n")
    assert programs.passes(daemon + end, any_sandbox, seconds=1) is (end == "")
    os.close(writing)
    assert os.read(reading, 10) == b"alive"
    poll = select.poll()
    poll.register(reading)
    assert poll.poll(20_000) and os.read(reading, 1) == b""
    os.close(reading)


@pytest.mark.parametrize("hold", [
    "import posix, signal\nposix.kill(posix.getppid(), signal.SIGSTOP)",
    "import ctypes, posix\nctypes.CDLL(None).ptrace(16, posix.getppid(), 0, 0)"])  # PTRACE_ATTACH
@pytest.mark.parametrize("end", ["", "\nwhile True: pass"])
def test_a_program_that_holds_its_supervisor_has_failed_and_costs_no_more(monkeypatch, hold, end):
    monkeypatch.setattr(programs, "_LEAVE", 0.3)
    waited = []
    wait = subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", lambda process, timeout=None: (
        waited.append(timeout), wait(process, timeout))[1])
    assert not programs.passes(hold + end, programs.NO_SANDBOX, seconds=0.3)
    assert waited[0] == 0.3


def test_folders_in_folders_are_removed(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(confinement.tempfile, "tempdir", str(tmp_path))
    deep = "import posix\nfor _ in range(1200):\n    posix.mkdir('a')\n    posix.chdir('a')"
    try:
        assert programs.passes(deep, programs.NO_SANDBOX)
        assert not list(tmp_path.iterdir())
    finally:
        subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)


# The choice


def test_the_choice_follows_the_key_and_auto_says_what_is_open(unchosen, monkeypatch, capsys):
    monkeypatch.setattr(programs, "_problem", {"none": None, "bwrap": "no", "unshare": None}.get)
    assert programs.choose("auto") == programs.choose("require") == "unshare"
    assert programs.choose("off") == "none"
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(programs, "_problem", {"none": None, "bwrap": "no", "unshare": "shut"}.get)
    assert programs.choose("auto") == "none"
    said = capsys.readouterr().out
    assert "bwrap: no; unshare: shut" in said and "home folder" in said and "network" in said
    with pytest.raises(InputError, match="require, but no sandbox .*bwrap: no; unshare: shut"):
        programs.choose("require")


def test_the_command_takes_what_the_key_does(unchosen, monkeypatch, stage, capsys):
    monkeypatch.setattr(programs, "_problem", {"none": None, "bwrap": None}.get)
    stage(programs, "auto")
    assert capsys.readouterr().out == "bwrap\n"
    for arguments in ((), ("bogus",), ("auto", "off")):
        with pytest.raises(SystemExit, match="2"):
            stage(programs, *arguments)
        assert "usage: " in capsys.readouterr().err


def test_off_can_be_written_as_yaml_reads_it(config_file):
    assert load_config(config_file(eval={"sandbox": False}), []).eval.sandbox == "off"
    with pytest.raises(InputError, match="eval.sandbox is 'on'; it must be auto, require or off"):
        load_config(config_file(eval={"sandbox": "on"}), [])


def test_require_is_refused_before_a_model_is_loaded(config_file, stage, monkeypatch, unchosen):
    monkeypatch.setattr(programs, "_problem", {"none": None, "bwrap": "no", "unshare": "no"}.get)
    monkeypatch.setattr(run_benchmarks, "load_model", None)
    with pytest.raises(InputError, match="eval.sandbox is require"):
        stage(run_benchmarks, config_file(), "eval.name=base", "eval.sandbox=require")


def without_sandboxes(*command: str) -> subprocess.CompletedProcess:
    """Runs a command where user namespaces are not to be had, and no bwrap."""
    shut = 'echo 0 > /proc/sys/user/max_user_namespaces && PATH=/nonexistent exec "$0" "$@"'
    if shutil.which("unshare") is None or subprocess.run(
            ["unshare", "-Ur", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace, in which there could be none")
    return subprocess.run(["unshare", "-Ur", "sh", "-c", shut, *command], cwd=ROOT, check=False,
                          capture_output=True, text=True)


def test_a_machine_without_sandboxes_is_noticed():
    result = without_sandboxes(sys.executable, "-m", "eval.programs", "require")
    assert result.returncode == 2 and "bwrap: not installed; unshare: " in result.stderr
    result = without_sandboxes(sys.executable, "-m", "eval.programs", "auto")
    assert result.returncode == 0 and result.stdout.endswith("\nnone\n")


def test_the_pipeline_asks_for_the_sandbox_before_its_first_stage(config_file, monkeypatch):
    run, asked = subprocess.run, []

    def probe(command: list[str], **options: object) -> subprocess.CompletedProcess:
        asked.append(command[1:])
        return run([sys.executable, "-c", "import sys; sys.exit('error: no sandbox')"], **options)

    monkeypatch.setattr(checks.subprocess, "run", probe)
    config = load_config(config_file(), ["eval.sandbox=require"])
    with pytest.raises(InputError, match="^no sandbox$"):
        readiness.check_ahead(["evaluate"], config)
    assert asked == [["-m", "eval.programs", "require"]]
    readiness.check_ahead(["evaluate"], load_config(config_file(), []))
    config.eval.benchmarks = ["gsm8k"]
    readiness.check_ahead(["evaluate"], config)
    assert len(asked) == 1
