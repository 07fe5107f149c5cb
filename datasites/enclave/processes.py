"""The processes of one worker: who they are, and how all of them are stopped, resumed and ended.

The first one leads a session of its own (`worker`), so what bubblewrap is just making is of its process group, and a
signal to a group meets a process in the middle of a fork with its child, or before it. What has left that group is
below the first process, where it is found.

Assumption of `signal_all` and `end`: nobody reaps the first process meanwhile, so that its number is no other's. So who
starts one looks by `is_over` and `wait_for`, which leave it, and reaps it where no signal is being sent (`worker`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def family(pid: int) -> Iterator[int]:
    """A process and all below it, the eldest first. Costs a file for each of their threads."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children: list[str] = []
        with contextlib.suppress(OSError):  # a thread that has ended
            children = task.read_text().split()
        for child in children:
            yield from family(int(child))


def is_over(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended; doesn't reap it, as `poll` would."""
    return _waited(process, os.WNOHANG)


def wait_for(process: subprocess.Popen[bytes]) -> None:
    """Until it has ended; doesn't reap it, as `wait` would."""
    _waited(process, 0)


def _waited(process: subprocess.Popen[bytes], how: int) -> bool:
    if process.returncode is not None:
        return True
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | how) is not None
    except ChildProcessError:
        return True  # reaped by now


def signal_all(pid: int, number: signal.Signals) -> None:
    """Send a signal to all of the family."""
    _send(family(pid), number)


def end(pid: int) -> None:
    """Kill all of the family, and wait for nobody; `pid` must lead its process group and not be reaped yet."""
    with contextlib.suppress(ProcessLookupError):
        # Stopped first: who ends loses its children, who could then not be found, and nobody leaves a group meanwhile.
        os.killpg(pid, signal.SIGSTOP)
        found: list[int] = []
        # With no descriptor free nobody can be looked for: the group is killed, and the kernel does the rest.
        with contextlib.suppress(OSError):
            found.extend(family(pid))
        os.killpg(pid, signal.SIGKILL)
        _send(found, signal.SIGKILL)


def bound(pid: int) -> bool:
    """Whether the innermost process is this Python: by then the kernel ends each of the family with its parent.

    bubblewrap sees to that before it starts Python, and `setpriv` where there is no sandbox. One whose program can't be
    read counts: it can't hide so from being stopped.
    """
    *_, innermost = family(pid)
    try:
        return os.path.samestat(os.stat(f"/proc/{innermost}/exe"), os.stat(sys.executable))
    except PermissionError:
        return True
    except OSError:
        return False  # it has ended


def _send(processes: Iterator[int] | list[int], number: signal.Signals) -> None:
    for one in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, number)
