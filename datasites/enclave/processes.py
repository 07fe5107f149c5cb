"""The processes of a worker: how one is begun, stopped, resumed and ended, with all that it has started.

Two kinds. A `Sandboxed` worker is a sandbox of its own: the first process leads a session of its own, so what
bubblewrap is just making is of its process group, and a signal to a group meets a process in the middle of a fork with
its child, or before it. What has left that group is below the first process, where it is found. A `template.Forked`
worker is the first process of a process namespace, with which the kernel ends all the others.

Assumption of `signal_all` and `end`: nobody reaps the first process meanwhile, so that its number is no other's. So who
starts one looks by `is_over` and `wait_for`, which leave it, and reaps it where no signal is being sent (`Sandboxed`).
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import selectors
import signal
import subprocess
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from datasites.enclave import cgroup
from datasites.enclave.sandbox import Sandbox

_LOG_BYTES = 64 * 1024
#: Seconds between two looks whether a process has ended that others may have left their standard error to.
_LOOKS = 0.2


class Log:
    """The last 64 KiB that a process wrote to its standard output and error."""

    def __init__(self) -> None:
        self._chunks: collections.deque[bytes] = collections.deque()
        self._size = 0

    def __str__(self) -> str:
        return b"".join(self._chunks).decode(errors="replace")

    def keep(self, chunk: bytes) -> None:
        """Add what was written last."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        while self._size - len(self._chunks[0]) > _LOG_BYTES:
            self._size -= len(self._chunks.popleft())

    def follow(self, descriptor: int, process: Process) -> None:
        """Keep what is written there, until the process ends, whoever else could write there still."""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            ended = False
            while not ended:
                ended = process.is_over
                if selector.select(0 if ended else _LOOKS):
                    # In one piece what a pipe holds, once it has ended.
                    chunk = os.read(descriptor, _LOG_BYTES if ended else 4096)
                    if not chunk:
                        break
                    self.keep(chunk)


class Process(ABC):
    """A worker's process as its datasite holds it. Safe to use from any thread.

    requests, replies: descriptors of the pipe's ends, to write to and to read from.
    """

    def __init__(self) -> None:
        self.log = Log()
        #: Signals are sent while it is held, so that nobody reaps the process meanwhile.
        self.signalling = threading.RLock()
        self.requests = self.replies = -1
        #: Exit code, negative for a signal; None before it has ended and was reaped.
        self.code: int | None = None

    @property
    @abstractmethod
    def pid(self) -> int:
        """Process id on this machine."""

    @property
    @abstractmethod
    def is_over(self) -> bool:
        """Return whether it has ended."""

    @abstractmethod
    def stop(self) -> bool:
        """Let it stand still with all that it has started; False where it could not then end with the datasite yet."""

    @abstractmethod
    def resume(self) -> None:
        """Let it go on."""

    @abstractmethod
    def end(self) -> None:
        """Kill it with all that it has started, and wait for nobody."""

    @abstractmethod
    def wait(self, seconds: float | None = None) -> None:
        """Wait until it has ended and its log and `code` are complete, at most `seconds`; without a limit when None."""


class Sandboxed(Process):
    """A sandbox that is started for one worker. Raises `OSError` where that can't be."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__()
        self._sandbox = sandbox
        self._process: subprocess.Popen[bytes] | None = None
        self._start_error: OSError | None = None
        started = threading.Event()
        self._thread = threading.Thread(target=self._own, args=(started,), name="datasites-worker", daemon=True)
        self._thread.start()
        started.wait()
        if self._start_error is not None:
            raise self._start_error

    @property
    def pid(self) -> int:
        """Of the sandbox."""
        return self._began.pid

    @property
    def is_over(self) -> bool:
        """See `Process`; doesn't reap it."""
        return is_over(self._began)

    def stop(self) -> bool:
        """See `Process`."""
        with self.signalling:
            if self._began.returncode is not None or not bound(self.pid):
                return False
            signal_all(self.pid, signal.SIGSTOP)
            return True

    def resume(self) -> None:
        """See `Process`."""
        with self.signalling:
            if self._began.returncode is None:
                signal_all(self.pid, signal.SIGCONT)

    def end(self) -> None:
        """See `Process`."""
        with self.signalling:
            if self._began.returncode is None:
                end(self.pid)

    def wait(self, seconds: float | None = None) -> None:
        """See `Process`."""
        self._thread.join(seconds)

    @property
    def _began(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def _own(self, started: threading.Event) -> None:
        # bubblewrap's --die-with-parent watches the *thread* that started it; this one lives as long as the process.
        limits = self._sandbox.limits
        arguments = ["-m", "datasites.enclave.worker_process", json.dumps(limits.model_dump(mode="json"))]
        try:
            with cgroup.around(cgroup.delegated(), cgroup.allowed(limits)) as group:
                self._process = begun = subprocess.Popen(
                    [*cgroup.entering(group), *self._sandbox.command(arguments)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={},
                    bufsize=0,
                    start_new_session=True,
                )
                assert begun.stdin is not None
                assert begun.stdout is not None
                assert begun.stderr is not None
                self.requests, self.replies = begun.stdin.fileno(), begun.stdout.fileno()
                # Not with the process, since whoever reads or writes may do so just then.
                weakref.finalize(self, _close, begun.stdin, begun.stdout)
                started.set()
                try:
                    with begun.stderr:
                        self.log.follow(begun.stderr.fileno(), self)
                except BaseException:
                    self.end()
                    raise
                finally:
                    self._reap(begun)
        except OSError as error:
            self._start_error = error
        finally:
            started.set()

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the process. Nobody else does, and its number is given up only while no signal is sent to it."""
        wait_for(process)
        with self.signalling:
            code = process.wait()
            # bubblewrap passes a signal on as exit code 128 + signal; without bubblewrap it is a negative number.
            self.code = 128 - code if code > 128 else code


def _close(*files: IO[bytes]) -> None:
    for file in files:
        file.close()


def readable(descriptor: int, seconds: float | None) -> bool:
    """Wait at most `seconds` until a descriptor can be read; of any number, where `select.select` takes small ones."""
    looked = select.poll()
    looked.register(descriptor, select.POLLIN)
    return bool(looked.poll(None if seconds is None else seconds * 1000))


def family(pid: int) -> Iterator[int]:
    """Yield a process and all below it, the eldest first. Costs a file for each of their threads."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children: list[str] = []
        with contextlib.suppress(OSError):  # a thread that has ended
            children = task.read_text().split()
        for child in children:
            yield from family(int(child))


def is_over(process: subprocess.Popen[bytes]) -> bool:
    """Return whether it has ended; doesn't reap it, as `poll` would."""
    return _waited(process, os.WNOHANG)


def wait_for(process: subprocess.Popen[bytes]) -> None:
    """Wait until it has ended, but don't reap it, as `wait` would."""
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
    """Return whether the innermost process is this Python: by then the kernel ends each of the family with its parent.

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
