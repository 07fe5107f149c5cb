"""Really tries to get out of the sandbox, and says what held: for `datasites doctor`.

`escape_check` lays out bait on the host (a file in a temporary folder, an environment variable, a listening port, an
abstract socket, this very process), starts this file inside the sandbox, and lets it try. The first attempts run
before the worker's own confinement, so that the namespaces are tested alone; the others after it. Each attempt is
made with plain system calls by trusted code: it shows what the walls do, not what the verifier would say.

An attempt that could not be made is never told as one that got out, and never as one that was held: only a sandbox of
which every attempt was held is sound.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import resource
import secrets
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from datasites.enclave.confine import Limits, confine
from datasites.enclave.sandbox import Sandbox

_SECONDS = 120
_CLONE_NEWUSER = 0x10000000
_PTRACE_TRACEME, _PTRACE_ATTACH = 0, 16
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP = 1, 22
_GROWING = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100


@dataclass(frozen=True)
class Attempt:
    """One try to get out: its name, what came of it, and what was seen or why it could not be made."""

    name: str
    outcome: Literal["held", "got out", "not tried"]
    detail: str

    @property
    def held(self) -> bool:
        """Whether it was made, and the wall held."""
        return self.outcome == "held"


def escape_check(sandbox: Sandbox) -> list[Attempt]:
    """Try every escape in `sandbox`, about a second; the sandbox is sound when every attempt was held."""
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="datasites-escape-") as folder, _ports() as (port, name, reached):
        bait = Path(folder) / "bait.txt"
        bait.write_text(token)
        study = Path(folder) / "study"
        study.mkdir()
        (study / "model.py").write_text("# bait\n")
        targets = {
            "token": token, "bait": str(bait), "home": str(Path.home()), "folder": folder, "port": port,
            "socket": name, "pid": os.getpid(), "study": str(sandbox.inside(study)),
        }  # fmt: skip
        limits = json.dumps(sandbox.limits.model_copy(update={"memory": 1 << 30}).model_dump(mode="json"))
        command = sandbox.command(["-m", "datasites.enclave.escape", limits, json.dumps(targets)], study)
        try:
            done = subprocess.run(
                command, env={"DATASITES_BAIT": token}, capture_output=True, timeout=_SECONDS, check=False
            )
            results = [Attempt(**json.loads(line)) for line in done.stdout.splitlines()]
            ended = "" if done.returncode == 0 else done.stderr.decode(errors="replace")[-2000:]
        except (OSError, subprocess.TimeoutExpired, ValueError, TypeError) as error:
            results, ended = [], str(error)
        left = sorted(path.name for path in Path(folder).iterdir())
        new_file, met = left != ["bait.txt", "study"], reached()
    known = {attempt.name for attempt in results}
    missing = [name for name in (*_BEFORE, *_AFTER) if name not in known]
    results += [Attempt(name, "not tried", ended or "no answer") for name in missing]
    for name, seen, detail in (
        ("the host saw no new file", new_file, f"{len(left)} file(s)"),
        ("the host saw no connection", met, "listened on TCP and an abstract socket"),
    ):
        results.append(Attempt(name, "got out" if seen else "not tried" if not known else "held", detail))
    return results


@contextlib.contextmanager
def _ports() -> Iterator[tuple[int, str, Callable[[], bool]]]:
    """A TCP port on the loopback interface and an abstract Unix socket of the host; and whether anyone came."""
    name = f"datasites-{secrets.token_hex(8)}"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as local:
        tcp.bind(("127.0.0.1", 0))
        local.bind("\0" + name)
        for listener in (tcp, local):
            listener.listen()
            listener.setblocking(False)

        def reached() -> bool:
            for listener in (tcp, local):
                with contextlib.suppress(BlockingIOError):
                    listener.accept()[0].close()
                    return True
            return False

        yield tcp.getsockname()[1], name, reached


Targets = dict[str, object]


def _opened(path: str, mode: str = "rb") -> str | None:
    """What happened if a file could be opened, else None."""
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
                if token in Path(f"/proc/{entry}/environ").read_bytes():
                    return f"found the host's variable in process {entry}"
    return None


def _write(targets: Targets) -> str | None:
    for folder in (targets["folder"], targets["home"], "/", "/usr/lib", "/etc", "/dev", os.path.dirname(__file__)):
        if seen := _opened(f"{folder}/escaped", "wb"):
            return seen
    return None


def _frozen_copy(targets: Targets) -> str | None:
    return _opened(f"{targets['study']}/model.py", "ab")


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
    """Regular files of the kernel that belong to no process; device files are `_devices`' matter."""
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


def _namespace(_: Targets) -> str | None:
    libc = ctypes.CDLL(None, use_errno=True)
    return "made a user namespace" if libc.unshare(_CLONE_NEWUSER) == 0 else None


def _mount(_: Targets) -> str | None:
    libc = ctypes.CDLL(None, use_errno=True)
    return "mounted a file system" if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0 else None


def _privileges(_: Targets) -> str | None:
    with contextlib.suppress(OSError):
        os.setuid(0)
        return "became root"
    status = Path("/proc/self/status").read_text()
    held = [line for line in status.splitlines() if line.startswith("CapEff") and int(line.split()[1], 16)]
    return f"holds {held[0]}" if held else None


def _program(_: Targets) -> str | None:
    with contextlib.suppress(OSError):
        os.posix_spawn(sys.executable, [sys.executable, "-c", "pass"], {})
        return "started a program"
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
    """A filter that allows every call, as prctl takes it."""
    program = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000), 8)
    return ctypes.create_string_buffer(struct.pack("@HP", 1, ctypes.addressof(program)))


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


#: Tried with the namespaces alone.
_BEFORE: dict[str, Callable[[Targets], str | None]] = {
    "read a file of the host": _host_file,
    "read a home folder": _home,
    "read the host's accounts": _accounts,
    "read the datasite's environment": _environment,
    "write outside the sandbox": _write,
    "change the frozen copy": _frozen_copy,
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
#: Tried with the worker's own confinement on top.
_AFTER: dict[str, Callable[[Targets], str | None]] = {
    "open a socket": _socket,
    "start a program": _program,
    "start a process": _fork,
    "trace another process": _trace,
    "take more memory than allowed": _memory,
    "fill the disk": _scratch,
    "keep memory outside of the limits": _memory_of_the_kernel,
    "raise a limit": _limits,
    "outlive the datasite": _end,
}


def _try(name: str, attempt: Callable[[Targets], str | None], targets: Targets) -> None:
    try:
        seen = attempt(targets)
        result = Attempt(name, "held" if seen is None else "got out", seen or "refused")
    except Exception as error:
        result = Attempt(name, "not tried", f"the check itself failed: {error!r}")
    sys.stdout.write(json.dumps(asdict(result)) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Inside the sandbox: try everything, one JSON line for each attempt."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits, targets = Limits.model_validate_json(sys.argv[1]), json.loads(sys.argv[2])
    for name, attempt in _BEFORE.items():
        _try(name, attempt, targets)
    confine(limits)
    for name, attempt in _AFTER.items():
        _try(name, attempt, targets)


if __name__ == "__main__":
    main()
