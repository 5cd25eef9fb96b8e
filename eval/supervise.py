"""Runs a command of which nothing is left behind: a script for `eval.confinement`.

    python -I -S eval/supervise.py none|unshare RESULT FOLDER READABLE COMMAND ...

With `unshare` it builds the sandbox by namespaces of the kernel: READABLE (a:b) is what the command
sees of the file system, and FOLDER what the new one is mounted on. RESULT is the number of the open
pipe that only the command keeps.

The standard library alone, as in run_program.py.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

SPACE = 64 << 20  # bytes of the sandbox's /tmp
WORKING_FOLDER = "/tmp/program"  # in a sandbox
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_SPARE_SECONDS = 300  # after which a supervisor that nobody ends gives up

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
    sandbox, result, folder, readable, *command = sys.argv[1:]

    def start() -> None:
        os.execv(command[0], command)

    if sandbox == "none":
        supervise(start, int(result))
    else:
        enter_namespaces()
        supervise(lambda: confine(start, int(result), folder, readable.split(os.pathsep)),
                  int(result))


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
    working = Path(folder + WORKING_FOLDER)
    working.parent.mkdir()
    _mount("tmpfs", str(working.parent), _MS_NOSUID | _MS_NODEV, "tmpfs", f"size={SPACE},mode=700")
    working.mkdir()
    for path in (*readable, *DEVICES):  # some may lie below the writable folder
        inside = Path(folder + path)
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.mkdir(exist_ok=True) if Path(path).is_dir() else inside.touch()
        _mount(path, str(inside), _MS_BIND | _MS_REC)
    Path(folder, "dev/shm").symlink_to(Path(WORKING_FOLDER).parent)
    _set_attributes(folder, _AT_RECURSIVE, on=_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID)
    _set_attributes(str(working.parent), 0, off=_MOUNT_ATTR_RDONLY)
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
        raise OSError(f"{name}: unknown on {os.uname().machine}")
    _check(_libc.syscall(numbers[name], *arguments), name)


if __name__ == "__main__":
    main()
