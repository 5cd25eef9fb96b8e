"""One program that a model wrote, executed: a script for `eval.programs`, which holds the protocol.

    python -I -S eval/run_program.py SANDBOX RESULT SECONDS FOLDER PACKAGES [READABLE ...] < REQUEST

SANDBOX is none, unshare or inside (within bwrap, which has done the confining), RESULT the number
of the open pipe for the verdict, SECONDS the time limit, FOLDER the working folder, PACKAGES the
folders of installed packages (a:b), READABLE what `unshare` shows of the file system. REQUEST is
marshal's form of (marker, program), the former bytes, the latter a string.

The standard library alone: the interpreter starts without site-packages, which takes a few ms.
"""

import builtins
import contextlib
import ctypes
import importlib
import io
import marshal
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

STARTED, READY = b"s", b"r"  # what comes over the pipe before the marker
SPACE = 64 << 20  # bytes of one file, and of the sandbox's /tmp
WORKING_FOLDER = "/tmp/program"  # in a sandbox
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_MEMORY = 2 << 30  # bytes of address space
_SPARE_SECONDS = 300  # after which a supervisor that nobody ends gives up

# What code_eval takes away, and with which a program fails there: it is part of the verdict
_TAKEN = {
    os: "kill system putenv remove removedirs rmdir fchdir setuid fork forkpty killpg rename "
        "renames truncate replace unlink fchmod fchown chmod chown chroot lchflags lchmod lchown "
        "getcwd chdir",
    shutil: "rmtree move chown",
    subprocess: "Popen",
    builtins: "exit quit help",
}
_ABSENT = ("ipdb", "joblib", "resource", "psutil", "tkinter")
_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import|import[ \t]+([\w., \t]+))", re.M)

# <sys/prctl.h>, <sched.h>, <sys/mount.h>, <sys/syscall.h>
_PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 3, 4, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_NAMESPACES = {"mount": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000,
               "pid": 0x20000000, "network": 0x40000000}
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 0x1000, 0x4000, 0x40000
_MNT_DETACH, _AT_FDCWD, _AT_RECURSIVE = 2, -100, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID = 1, 2
_LAST_CAPABILITY = 63
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_SYSCALLS = {"x86_64": {"capset": 126, "pivot_root": 155, "mount_setattr": 442},
             "aarch64": {"capset": 91, "pivot_root": 41, "mount_setattr": 442}}
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    sandbox, result, seconds, folder, packages, *readable = sys.argv[1:]
    result = int(result)
    os.chdir(folder)

    def program() -> None:
        execute(result, float(seconds), packages)

    if sandbox == "inside":
        program()
    elif sandbox == "none":
        supervise(program, result)
    else:
        enter_namespaces()
        supervise(lambda: confine(program, result, folder, readable), result)


# Executing: what decides the verdict


def execute(result: int, seconds: float, packages: str) -> None:
    """Execute the program, and write the marker to `result` when its last line has been reached."""
    write, leave = os.write, os._exit  # a program may replace them
    with open(0, "rb", closefd=False) as request:
        marker, program = marshal.load(request)
    os.environ.pop("PWD", None)  # bwrap's
    _close_standard_streams()
    for limit, value in ((resource.RLIMIT_AS, _MEMORY), (resource.RLIMIT_FSIZE, SPACE),
                         (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (value, value))
    sys.path += filter(None, packages.split(os.pathsep))
    sys.argv = [""]
    tempfile.tempdir = os.getcwd()
    write(result, STARTED)
    _import_ahead(program)
    _take_away()
    write(result, READY)
    try:
        sys.stdin = sys.stdout = sys.stderr = _Nowhere()
        signal.signal(signal.SIGALRM, _time_is_up)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        exec(program, {})
        signal.setitimer(signal.ITIMER_REAL, 0)
    except BaseException:
        leave(1)
    write(result, marker)
    leave(0)  # whatever the program's threads do


class _Nowhere(io.StringIO):
    """Standard input, output and error of a program: keeps what is written, has nothing to read."""

    def read(self, *_: object) -> str:
        raise OSError

    def readline(self, *_: object) -> str:
        raise OSError

    def readlines(self, *_: object) -> list[str]:
        raise OSError

    def readable(self) -> bool:
        return False


class _TimeIsUp(Exception):
    """Raised in a program at its time limit. A program can catch it, as it can code_eval's."""


def _time_is_up(*_: object) -> None:
    raise _TimeIsUp


def _import_ahead(program: str) -> None:
    """Import what the program will, off the clock.

    code_eval forks a process that has loaded numpy and most of the standard library. Several
    modules cannot be imported when `_take_away` has been at work.
    """
    for one, several in _IMPORT.findall(program):
        for name in (one or several).split(","):
            with contextlib.suppress(BaseException):
                importlib.import_module(name.split()[0])


def _take_away() -> None:
    for module, names in _TAKEN.items():
        for name in names.split():
            setattr(module, name, None)
    sys.modules.update(dict.fromkeys(_ABSENT))


def _close_standard_streams() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.close(null)


# Supervising: nothing is left behind


def supervise(start: Callable[[], None], result: int) -> None:
    """Run `start` in a child process until it ends, SIGTERM comes or the parent ends.

    Then every descendant is killed, also those that have made themselves independent.
    """
    ends = {signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    child = _fork(start)
    os.close(result)
    signal.alarm(_SPARE_SECONDS)
    while not (ended := _has_ended(child)) and signal.sigwait(ends) == signal.SIGCHLD:
        pass
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    _kill_descendants()


def _fork(start: Callable[[], None]) -> int:
    """A process of its own session for `start`, which dies with this one; its id."""
    child = os.fork()
    if child:
        return child
    try:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        start()
    except BaseException as error:
        print(error, file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def _has_ended(child: int) -> bool:
    """Reap what there is to reap; whether `child` was among it."""
    with contextlib.suppress(ChildProcessError):
        while (reaped := os.waitpid(-1, os.WNOHANG)[0]) not in (0, child):
            pass
        return reaped == child
    return True


def _kill_descendants() -> None:
    """Kill the children, and those that become children of this process by it, until none is left.

    Where the child was a namespace's first process they are dead already (and /proc is out of
    sight).
    """
    listing = Path("/proc/thread-self/children")
    while listing.exists() and (children := listing.read_text().split()):
        for process in children:
            os.kill(int(process), signal.SIGKILL)
        for process in children:
            os.waitpid(int(process), 0)


def prctl(option: int, value: int = 0) -> int:
    """prctl(2) with one argument; OSError where it fails."""
    return _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def _check(status: int, what: str) -> int:
    if status < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return status


# Sandbox `unshare`: namespaces by our own hand


def enter_namespaces() -> None:
    """Enter new namespaces as the user that one was; children are born into the one of processes.
    """
    maps = {"setgroups": "deny", "uid_map": f"{os.getuid()} {os.getuid()} 1",
            "gid_map": f"{os.getgid()} {os.getgid()} 1"}
    _check(_libc.unshare(sum(_NAMESPACES.values())), "unshare")
    for name, value in maps.items():
        Path("/proc/self", name).write_text(value)


def confine(start: Callable[[], None], result: int, folder: str, readable: list[str]) -> None:
    """As the first process of a namespace: show the children `readable` alone, and run `start`.

    The new file system is put together on `folder`.
    """
    _mount("none", "/", _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", folder, _MS_NOSUID | _MS_NODEV, "tmpfs", f"size={SPACE},mode=755")
    own = Path(folder + WORKING_FOLDER)
    own.parent.mkdir()
    _mount("tmpfs", str(own.parent), _MS_NOSUID | _MS_NODEV, "tmpfs", f"size={SPACE},mode=700")
    own.mkdir()
    for path in (*readable, *DEVICES):  # some may lie below the writable folder
        inside = Path(folder + path)
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.mkdir(exist_ok=True) if Path(path).is_dir() else inside.touch()
        _mount(path, str(inside), _MS_BIND | _MS_REC)
    Path(folder, "dev/shm").symlink_to(Path(WORKING_FOLDER).parent)
    _set_attributes(folder, _AT_RECURSIVE, on=_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID)
    _set_attributes(str(own.parent), 0, off=_MOUNT_ATTR_RDONLY)
    os.chdir(folder)
    _syscall("pivot_root", b".", b".")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir(WORKING_FOLDER)
    _drop_capabilities()
    child = _fork(start)
    os.close(result)
    while os.waitpid(-1, 0)[0] != child:
        pass


def _drop_capabilities() -> None:
    for capability in range(_LAST_CAPABILITY + 1):
        with contextlib.suppress(OSError):  # beyond the last one that this kernel has
            prctl(_PR_CAPBSET_DROP, capability)
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3)
    _syscall("capset", header, (ctypes.c_uint32 * 6)())


def _set_attributes(mount: str, flags: int, *, on: int = 0, off: int = 0) -> None:
    attributes = (ctypes.c_uint64 * 4)(on, off)
    _syscall("mount_setattr", _AT_FDCWD, os.fsencode(mount), flags, attributes,
             ctypes.sizeof(attributes))


def _mount(source: str, target: str, flags: int, kind: str = "none", options: str = "") -> None:
    status = _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(),
                         ctypes.c_ulong(flags), options.encode())
    _check(status, f"mount {source}")


def _syscall(name: str, *arguments: object) -> None:
    numbers = _SYSCALLS.get(os.uname().machine)
    if numbers is None:
        raise OSError(f"{name}: not known on {os.uname().machine}")
    _check(_libc.syscall(numbers[name], *arguments), name)


if __name__ == "__main__":
    main()
