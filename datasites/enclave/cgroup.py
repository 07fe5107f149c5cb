"""A cgroup around each worker, where this service was given a subtree of its own: the kernel's count of all it takes.

bubblewrap makes none, and limits that a process sets on itself (`confine`) count neither the kernel's memory for it
nor, for root, its threads. Version 2 only. A service manager gives the subtree: systemd with `Delegate=memory pids`,
and then `take_over` at the start of `datasites serve`, or `DelegateSubgroup=datasite`, where systemd does the same.
Elsewhere there is none, `around` adds nothing, and `datasites doctor` says so.

**Guarantee.** Where `delegated` is not None, a worker with all that it starts takes `memory.max` bytes, page cache and
the kernel's memory included, and nothing of the swap, and has `pids.max` threads; it begins within, or does not begin.
One that was forked (`template`) is put there before it is sent anything; what it had by then counts with its template.
Assumption: whoever gave the subtree lets nobody else change it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from datasites.enclave.confine import MIB, WorkerLimits

#: Name of the group that the service itself moves to, so that its siblings may hold workers.
SUBGROUP = "datasite"
CONTROLLERS = ("memory", "pids")

#: Beyond `WorkerLimits.memory` and the scratch folders: pages of programs and libraries, stacks, what the kernel keeps.
_SLACK = 512 * MIB
#: Into the group first, then become the worker; where that fails, there is no worker.
_ENTER = 'echo 0 > "$0/cgroup.procs" && exec "$@"'
_SECONDS_TO_EMPTY = 5.0


def own_group(pid: int | None = None) -> Path | None:
    """Return the folder of a process's cgroup, of this one's unless `pid` is given; None without version 2."""
    try:
        process = Path("/proc") / (str(pid) if pid else "self")
        lines = (process / "cgroup").read_text().splitlines()
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return None
    group = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    for fields in mounts:
        root, at = fields[3], fields[4]
        if group is not None and fields[fields.index("-") + 1] == "cgroup2" and Path(group).is_relative_to(root):
            return Path(at) / Path(group).relative_to(root)
    return None


def delegated(pid: int | None = None, controllers: tuple[str, ...] = CONTROLLERS) -> Path | None:
    """Return the folder in which workers get groups; None if this service (or that of `pid`) was given none."""
    own = own_group(pid)
    if own is None or own.name != SUBGROUP:
        return None
    subtree = own.parent
    ready = set(controllers) <= set(_entries(subtree / "cgroup.subtree_control"))
    return subtree if ready and os.access(subtree / "cgroup.procs", os.W_OK) else None


def take_over(controllers: tuple[str, ...] = CONTROLLERS) -> Path | None:
    """Make room for workers in the group that this process was given alone; returns `delegated`.

    Does nothing where the group is not this user's to write, lacks a controller, or holds other processes.
    """
    own = own_group()
    if own is None or delegated(None, controllers) is not None:
        return delegated(None, controllers)
    # systemd's own subgroup: moved already, and the controllers are still to be passed on.
    subtree = own.parent if own.name == SUBGROUP else own
    with contextlib.suppress(OSError):
        is_own = own.name == SUBGROUP or _entries(own / "cgroup.procs") == [str(os.getpid())]
        if is_own and set(controllers) <= set(_entries(subtree / "cgroup.controllers")):
            (subtree / SUBGROUP).mkdir(exist_ok=True)
            (subtree / SUBGROUP / "cgroup.procs").write_text(str(os.getpid()))
            for controller in controllers:
                (subtree / "cgroup.subtree_control").write_text(f"+{controller}")
    return delegated(None, controllers)


def allowed(limits: WorkerLimits) -> dict[str, str]:
    """Return what a worker's group allows, by file; the whole group ends where memory does."""
    memory = limits.memory + limits.scratch + _SLACK
    return {
        "memory.max": str(memory),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": str(limits.processes),
    }


@contextlib.contextmanager
def around(subtree: Path | None, values: Mapping[str, str]) -> Iterator[Path | None]:
    """Make a group for one worker, which ends with the context; yield None without a subtree.

    Raises `OSError` where the group can't be made.
    """
    if subtree is None:
        yield None
        return
    folder = subtree / f"worker-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        for file, value in values.items():
            (folder / file).write_text(value)
        yield folder
    finally:
        _remove(folder)


def entering(group: Path | None) -> list[str]:
    """Return words to put before a command that is to run in this group."""
    return [] if group is None else ["/bin/sh", "-c", _ENTER, str(group)]


def enter(group: Path, pid: int) -> None:
    """Put a process that runs already into this group; what it takes from then on counts there. Raises `OSError`."""
    (group / "cgroup.procs").write_text(str(pid))


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):  # a kernel before 5.14 has no such file; bubblewrap's own end has killed all
        (folder / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + _SECONDS_TO_EMPTY
    while folder.exists() and time.monotonic() < deadline:
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.02)  # the kernel still takes its processes away


def _entries(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
