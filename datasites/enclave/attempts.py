"""The attempts to get out of the sandbox, made in earnest where a worker runs; `escape` starts them and reads on.

The first run before the worker's own confinement, so that the namespaces are tested alone; the others after it. Each is
made with plain system calls by trusted code: it shows what the sandbox stops, not what the verifier would refuse.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import signal
import socket
import stat
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from datasites.enclave.confine import WorkerLimits, confine, refused_calls

_PTRACE_TRACEME, _PTRACE_ATTACH = 0, 16
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP = 1, 22
_CLONE_NEWUSER = 0x10000000


_CAPABILITY_VERSION = 0x20080522


_F_SET_RW_HINT = 1036


_GROWING = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100


Targets = dict[str, object]


@dataclass(frozen=True)
class Attempt:
    """One try to get out: its name, what came of it, and what was seen or why it could not be made."""

    name: str
    outcome: Literal["held", "got out", "not tried"]
    detail: str

    @property
    def held(self) -> bool:
        """Return whether it was made, and the wall held."""
        return self.outcome == "held"


def _opened(path: str, mode: str = "rb") -> str | None:
    """Return what happened if a file could be opened, else None."""
    try:
        with open(path, mode) as file:
            if "r" in mode:
                file.read(1)
        return f"opened {path}"
    except OSError:
        return None


def _host_file(targets: Targets) -> str | None:
    return _opened(str(targets["bait"]))


def _home(targets: Targets) -> str | None:
    # Folders on the way to this Python may be visible; what a person keeps there may not be.
    home = Path(str(targets["home"]))
    prefixes = (Path(sys.prefix), Path(sys.base_prefix))
    with contextlib.suppress(OSError):
        seen = [p.name for p in home.iterdir() if not any(prefix.is_relative_to(p) for prefix in prefixes)]
        if seen:
            return f"listed {seen[:5]} in {home}"
    return None


def _accounts(_: Targets) -> str | None:
    return _opened("/etc/passwd") or _opened("/etc/shadow") or _opened("/etc/hosts")


def _environment(targets: Targets) -> str | None:
    token = str(targets["token"]).encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                found = Path(f"/proc/{entry}/environ").read_bytes()
                # Of another process, any: where a template stands between, none has the host's variable.
                if token in found or (found and int(entry) != os.getpid()):
                    return f"found the variables of process {entry}"
    return None


def _write(targets: Targets) -> str | None:
    for folder in (targets["folder"], targets["home"], "/", "/usr/lib", "/etc", "/dev", os.path.dirname(__file__)):
        if seen := _opened(f"{folder}/escaped", "wb"):
            return seen
    return None


def _shown(targets: Targets) -> str | None:
    return _opened(f"{targets['shown']}/bait.txt", "ab")


def _network(targets: Targets) -> str | None:
    for address, family in (
        (("127.0.0.1", targets["port"]), socket.AF_INET),
        ("\0" + str(targets["socket"]), socket.AF_UNIX),
    ):
        with contextlib.suppress(OSError), socket.socket(family) as connection:
            connection.settimeout(2)
            connection.connect(address)
            return f"connected by {family.name}"
    return None


def _interfaces(_: Targets) -> str | None:
    with contextlib.suppress(OSError):
        names = [name for _, name in socket.if_nameindex() if name != "lo"]
        if names:
            return f"sees {names}"
    return None


def _processes(targets: Targets) -> str | None:
    entries = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    return f"sees {len(entries)} processes" if len(entries) > 1 else None


def _signal(targets: Targets) -> str | None:
    pid = int(str(targets["pid"]))
    if pid == 1:
        return None  # inside, that number is this process: `_processes` tells
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return "could signal the datasite"
    return None


def _devices(_: Targets) -> str | None:
    known = {
        "core",
        "fd",
        "full",
        "null",
        "ptmx",
        "pts",
        "random",
        "shm",
        "stderr",
        "stdin",
        "stdout",
        "tty",
        "urandom",
        "zero",
        "console",
    }
    other = set(os.listdir("/dev")) - known
    other = {name for name in other if not name.startswith("nvidia")}
    return f"sees {sorted(other)[:5]}" if other else None


def _kernel_files() -> Iterator[str]:
    """Yield regular files of the kernel that belong to no process; device files are `_devices`' matter."""
    for top in ("/proc", "/sys", "/dev"):
        for folder, folders, names in os.walk(top):
            if folder == "/proc":
                folders[:] = [name for name in folders if not name.isdigit()]
            for path in (f"{folder}/{name}" for name in names):
                with contextlib.suppress(OSError):
                    if stat.S_ISREG(os.lstat(path).st_mode):
                        yield path


def _kernel_settings(_: Targets) -> str | None:
    # Asked and not opened: without a sandbox, opening some of them (the tracer's) does something already.
    found = [path for path in _kernel_files() if os.access(path, os.W_OK)]
    return f"may write {len(found)} files of the kernel, such as {', '.join(found[:3])}" if found else None


def _kernel_secrets(_: Targets) -> str | None:
    found = [path for path in _kernel_files() if not os.stat(path).st_mode & 0o004 and os.access(path, os.R_OK)]
    return f"may read {len(found)} files that are root's alone, such as {', '.join(found[:3])}" if found else None


def _entries_of_devices(_: Targets) -> str | None:
    for name in sorted(os.listdir("/dev")):
        path = f"/dev/{name}"
        with contextlib.suppress(OSError):
            found = os.lstat(path)
            if stat.S_ISCHR(found.st_mode):
                os.utime(path)
                return f"changed the times of {path}"
    return None


def _namespace(_: Targets) -> str | None:
    libc = ctypes.CDLL(None, use_errno=True)
    return "made a user namespace" if libc.unshare(_CLONE_NEWUSER) == 0 else None


def _mount(_: Targets) -> str | None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) != 0:
        return None
    libc.umount2(b"/tmp", 2)  # at once, and whoever uses it: it hides the host's from everybody
    return "mounted a file system"


def _privileges(_: Targets) -> str | None:
    with contextlib.suppress(OSError):
        os.setuid(0)
        return "became root"
    held = ctypes.create_string_buffer(24)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(struct.pack("=Ii", _CAPABILITY_VERSION, 0), held) != 0:
        raise OSError(ctypes.get_errno(), "can't ask which capabilities are held")
    first, second = (struct.unpack_from("=I", held.raw, at)[0] for at in (0, 12))
    return f"holds capabilities {second << 32 | first:x}" if first or second else None


def _program(_: Targets) -> str | None:
    with contextlib.suppress(OSError):
        os.posix_spawn(sys.executable, [sys.executable, "-c", "pass"], {})
        return "started a program"
    return None


def _any_refused(_: Targets) -> str | None:
    """Each call that the filter names, with arguments of which the kernel itself says something else."""
    libc, nonsense = ctypes.CDLL(None, use_errno=True), [ctypes.c_long(-1)] * 6
    for name, number in refused_calls(platform.machine(), devices=True).items():
        # Theirs are right with any; `_fork` tries them.
        if name not in ("fork", "vfork") and (
            libc.syscall(ctypes.c_long(number), *nonsense) != -1
            or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS)
        ):
            return f"may call {name}"
    return None


def _fork(_: Targets) -> str | None:
    with contextlib.suppress(OSError):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        return "started a process"
    return None


def _memory(_: Targets) -> str | None:
    for flags in (mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS):
        with contextlib.suppress(OSError, ValueError), mmap.mmap(-1, 16 << 30, flags=flags):
            return "mapped 16 GiB"
    return None


def _scratch(_: Targets) -> str | None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0] + (1 << 20)
    for folder in ("/tmp", "/dev/shm"):
        path = f"{folder}/fill"
        with contextlib.suppress(OSError):
            with open(path, "wb") as file:
                for _step in range(limit // (1 << 20)):
                    file.write(bytes(1 << 20))
            return f"wrote {limit >> 20} MiB to {folder}"
        with contextlib.suppress(OSError):
            os.unlink(path)
    return None


def _mq_open() -> Callable[..., int]:
    # In the C library itself since glibc 2.34.
    libc = ctypes.CDLL(None, use_errno=True)
    return getattr(libc, "mq_open", None) or ctypes.CDLL("librt.so.1", use_errno=True).mq_open


def _memory_of_the_kernel(_: Targets) -> str | None:
    """Memory that no limit of a process counts; one piece of each kind, of which there may be any number."""
    libc = ctypes.CDLL(None, use_errno=True)
    for name, got in (
        ("System V shared memory", lambda: libc.shmget(0, 1 << 20, 0o1600) >= 0),
        ("a System V semaphore", lambda: libc.semget(0, 250, 0o1600) >= 0),
        ("a System V message queue", lambda: libc.msgget(0, 0o1600) >= 0),
        ("a POSIX message queue", lambda: _mq_open()(b"/kept", os.O_RDWR | os.O_CREAT, 0o600, None) >= 0),
        ("a larger pipe", lambda: fcntl.fcntl(os.pipe()[1], fcntl.F_SETPIPE_SZ, 1 << 20) > 0),
        ("a shared mapping", lambda: bool(mmap.mmap(-1, 1 << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS))),
        ("a growing mapping", lambda: bool(mmap.mmap(-1, 1 << 20, flags=_GROWING))),
        ("a new file", lambda: os.open("/tmp/kept", os.O_WRONLY | os.O_CREAT) > 0),
        ("a new folder", lambda: bool(tempfile.mkdtemp(dir="/tmp"))),
        ("an attribute of a folder", lambda: libc.setxattr(b"/tmp", b"user.kept", b"1", 1, 0) == 0),
        ("a filter of its own", lambda: libc.prctl(_PR_SET_SECCOMP, 2, _one_filter()) == 0),
        ("a watch", lambda: libc.inotify_init1(0) >= 0),
        ("a lock", lambda: fcntl.lockf(os.open("/proc/version", os.O_RDONLY), fcntl.LOCK_SH) is None),
    ):
        with contextlib.suppress(OSError):
            if got():
                return f"has {name}"
    return None


def _one_filter() -> ctypes.Array[ctypes.c_char]:
    """Return a filter that allows every call, as prctl takes it."""
    program = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000), 8)
    return ctypes.create_string_buffer(struct.pack("@HP", 1, ctypes.addressof(program)))


def _marks(_: Targets) -> str | None:
    """Return what others who can read a file can see at it, else None."""
    for name, mark in (
        ("a lock", lambda file: fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)),
        ("a hint", lambda file: fcntl.fcntl(file, _F_SET_RW_HINT, struct.pack("=Q", 0))),
    ):
        for path in (os.devnull, __file__):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                mark(file)
                return f"left {name} at {path}"
    return None


def _limits(_: Targets) -> str | None:
    for name, kind in (("memory", resource.RLIMIT_DATA), ("stack", resource.RLIMIT_STACK)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            return f"raised its limit of {name}"
    return None


def _end(_: Targets) -> str | None:
    libc = ctypes.CDLL(None, use_errno=True)
    return "may go on when the datasite ends" if libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0) == 0 else None


def _trace(targets: Targets) -> str | None:
    libc = ctypes.CDLL(None, use_errno=True)
    traced = (
        libc.ptrace(_PTRACE_TRACEME, 0, None, None) == 0 or libc.ptrace(_PTRACE_ATTACH, targets["pid"], None, None) == 0
    )
    return "traced a process" if traced else None


def _socket(_: Targets) -> str | None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET):
        return "made a socket"
    return None


#: Process ids that are tried one after the other, where they are few.
_PIDS = range(1, 4097)


def _signal_others(_: Targets) -> str | None:
    for pid in (*_PIDS, -1):
        if pid != os.getpid():
            with contextlib.suppress(OSError):
                os.kill(pid, 0)
                return f"could signal process {pid}"
    return None


def _memory_of_others(_: Targets) -> str | None:
    libc = ctypes.CDLL(None, use_errno=True)
    page = ctypes.create_string_buffer(8)
    for pid in _PIDS:
        if pid == os.getpid():
            continue
        here = struct.pack("@PN", ctypes.addressof(page), 8)
        there = struct.pack("@PN", id(None), 8)
        if libc.process_vm_readv(pid, here, 1, there, 1, 0) > 0 or _opened(f"/proc/{pid}/mem"):
            return f"could read the memory of process {pid}"
        if libc.process_vm_writev(pid, here, 1, there, 1, 0) > 0:
            return f"could write the memory of process {pid}"
    return None


def _trace_others(_: Targets) -> str | None:
    libc = ctypes.CDLL(None, use_errno=True)
    traced = [pid for pid in _PIDS if pid != os.getpid() and libc.ptrace(_PTRACE_ATTACH, pid, None, None) == 0]
    return f"could trace process {traced[0]}" if traced else None


def _shared_names(targets: Targets) -> Iterator[tuple[str, Callable[[bool], object]]]:
    """Ways to meet another by a name that both know, to be made (True) or found; one that fails raises or gives -1."""
    name, libc = str(targets["beside"]), ctypes.CDLL(None, use_errno=True)
    key = int(name[:7], 16) + 1

    def in_a_folder(folder: str) -> Callable[[bool], object]:
        return lambda make: os.open(f"{folder}/{name}", os.O_RDWR | (os.O_CREAT if make else 0), 0o666)

    def abstract_socket(make: bool) -> object:
        met = socket.socket(socket.AF_UNIX)
        (met.bind if make else met.connect)("\0" + name)
        if make:
            met.listen()
        return met.detach()

    yield "System V shared memory", lambda make: libc.shmget(key, 4096, 0o1666 if make else 0)
    yield "a System V queue", lambda make: libc.msgget(key, 0o1666 if make else 0)
    yield "a System V semaphore", lambda make: libc.semget(key, 1, 0o1666 if make else 0)
    yield "a POSIX queue", lambda make: _mq_open()(f"/{name}".encode(), os.O_RDWR | (0o100 if make else 0), 0o666, None)
    yield "an abstract socket", abstract_socket
    yield "a terminal", lambda make: os.open("/dev/ptmx" if make else "/dev/pts/0", os.O_RDWR)
    for folder in ("/tmp", "/dev/shm", "/dev", "/"):
        yield f"a file in {folder}", in_a_folder(folder)


def _names_of_others(targets: Targets) -> str | None:
    for what, meet in _shared_names(targets):
        with contextlib.suppress(OSError):
            if meet(False) != -1:
                return f"found {what} of another worker"
    return None


def _descriptors(targets: Targets) -> str | None:
    held = []
    for descriptor in range(4096):
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            held.append(descriptor)
    others = set(held) - {0, 1, 2, *map(int, targets["pipe"])}  # type: ignore[call-overload]
    return f"holds descriptors {sorted(others)[:5]} beside its own pipe" if others else None


#: Where a folder of the host is shown, as to no fork.
OF_A_FOLDER = "change what is shown"


#: Tried with the namespaces alone.
BEFORE: dict[str, Callable[[Targets], str | None]] = {
    "read a file of the host": _host_file,
    "read a home folder": _home,
    "read the host's accounts": _accounts,
    "read the datasite's environment": _environment,
    "write outside the sandbox": _write,
    OF_A_FOLDER: _shown,
    "reach the network": _network,
    "see network interfaces": _interfaces,
    "see other processes": _processes,
    "signal the datasite": _signal,
    "reach other devices": _devices,
    "change the kernel's settings": _kernel_settings,
    "read what is root's alone": _kernel_secrets,
    "hold privileges": _privileges,
    "make a namespace": _namespace,
    "mount a file system": _mount,
}


#: Tried then, too, by a worker beside which there is another.
BESIDE: dict[str, Callable[[Targets], str | None]] = {
    "signal another worker": _signal_others,
    "read another's memory": _memory_of_others,
    "trace another worker": _trace_others,
    "meet another by a name": _names_of_others,
    "hold what others had open": _descriptors,
}


#: Tried with the worker's own confinement on top.
AFTER: dict[str, Callable[[Targets], str | None]] = {
    "open a socket": _socket,
    "start a program": _program,
    "start a process": _fork,
    "make a call that is refused": _any_refused,
    "trace another process": _trace,
    "take more memory than allowed": _memory,
    "fill the disk": _scratch,
    "keep memory outside of the limits": _memory_of_the_kernel,
    "change the entry of a device": _entries_of_devices,
    "leave a mark at a file": _marks,
    "raise a limit": _limits,
    "outlive the datasite": _end,
}


Say = Callable[[str], object]


def _run_one(name: str, attempt: Callable[[Targets], str | None], targets: Targets, say: Say) -> None:
    try:
        seen = attempt(targets)
        result = Attempt(name, "held" if seen is None else "got out", seen or "refused")
    except Exception as error:
        result = Attempt(name, "not tried", f"the check itself failed: {error!r}")
    say(json.dumps(asdict(result)) + "\n")


def _sends_over(descriptor: int) -> Say:
    return lambda line: os.write(descriptor, line.encode())


def bait(requests: int, replies: int, _: int) -> None:
    """In a worker: make what another could find, say what could be made, and stay until nobody listens."""
    with open(requests, "rb") as pipe:
        targets: Targets = json.loads(pipe.readline())
        laid = []
        for what, meet in _shared_names(targets):
            with contextlib.suppress(OSError):
                if meet(True) != -1:
                    laid.append(what)
        _sends_over(replies)(json.dumps(laid) + "\n")
        pipe.read()


def attempt_apart(limits: WorkerLimits, requests: int, replies: int, size: int) -> None:
    """In a worker: try everything, one JSON line for each attempt."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(requests, 1 << 16) or b"\n"
    targets = {**json.loads(line), "pipe": [requests, replies]}
    say = _sends_over(replies)
    for name, attempt in (BEFORE | BESIDE).items():
        if name != OF_A_FOLDER:
            _run_one(name, attempt, targets, say)
    confine(limits.model_copy(update={"memory": 1 << 30}), size)
    for name, attempt in AFTER.items():
        _run_one(name, attempt, targets, say)


def main() -> None:
    """Inside a sandbox: try everything, one JSON line for each attempt."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits, targets = WorkerLimits.model_validate_json(sys.argv[1]), json.loads(sys.argv[2])
    say = _sends_over(1)
    for name, attempt in BEFORE.items():
        _run_one(name, attempt, targets, say)
    confine(limits)
    for name, attempt in AFTER.items():
        _run_one(name, attempt, targets, say)


if __name__ == "__main__":
    main()
