"""The datasite's end of its template: one process in a sandbox, from which all its workers are forked.

A template has imported what a worker needs and has seen nothing. A worker becomes one only after the fork (`forking`):
it gets its own user, process, IPC, network and mount namespaces within the template's sandbox, and its own limits and
filter, before it is sent a byte of a case. So a worker starts in the time of a fork, and all of them share the memory
of the libraries. One template serves one datasite and no other.

**Guarantee (apart).** Nothing that a worker holds, makes or leaves behind can be read, changed, signalled or traced by
another worker of the same template, nor can the template itself. Why: a worker sees no process other than itself, by
number or in /proc; it has nothing that its template had open or had mapped as shared; whatever it could give a name
(files, queues, shared memory, sockets, terminals) is in its own namespaces, which end with it, or can't be created; and
on files that all of them see it can leave nothing behind, neither a lock nor a hint, a mode or a time. Assumptions: the
kernel keeps its namespaces apart; the template, which reads nothing but one short request and descriptors from this
process, runs its own code. `escape.escape_check` tries all of this from one worker beside another. Not claimed:
protection against what timing on one machine shows, or what the kernel counts and keeps for the whole machine (load,
free memory, pages of files that were read); or that workers don't know the addresses of libraries in each other's
memory, which forks have in common.

**Guarantee (nothing inherited).** What a worker starts with does not depend on any case: a template is sent none, and
forks before it could be. It forks only while it has one thread and no memory that is shared and writable.

If the kernel forbids namespaces within a sandbox, if there is no filter for this processor, or if workers are given
devices (whose drivers can't be forked), each worker gets a sandbox of its own, which starts a new Python; likewise
without a sandbox (`off`), each worker is a new Python.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import signal
import socket
import subprocess
import threading
import weakref
from pathlib import Path

from datasites.enclave import cgroup
from datasites.enclave.confine import has_filter
from datasites.enclave.processes import Log, Process, Sandboxed, is_over, readable, wait_for
from datasites.enclave.sandbox import Sandbox, SandboxConfig
from datasites.study.errors import DatasitesError

#: Seconds in which a template must have imported and tried a fork; and in which a fork must be there.
_SECONDS_TO_START, _SECONDS_TO_FORK = 120.0, 30.0
_LARGEST_WORD = 64 * 1024

log = logging.getLogger(__name__)


class TemplateEnded(DatasitesError, OSError):
    """The template gave no worker. Where it is not there any more, another one gives the next."""


class Template:
    """Where a datasite's workers come from. Safe to use from any thread; starts itself when it is first needed."""

    def __init__(self, config: SandboxConfig | None = None) -> None:
        self._config = config or SandboxConfig()
        self._starting = threading.Lock()
        self._sandbox: Sandbox | None = None
        self._running: _Running | None = None
        self._closed = False
        #: Why each worker gets a sandbox of its own, in words, once that is known.
        self.fork_refusal = _fork_refusal(self._config)

    @property
    def sandbox(self) -> Sandbox:
        """Return what confines its workers; raise `SandboxUnavailable` without bubblewrap."""
        if self._sandbox is None:
            self._sandbox = Sandbox(self._config)
        return self._sandbox

    @property
    def ready(self) -> bool:
        """Return whether a worker would start in the time of a fork, or none ever would."""
        running = self._running
        return bool(self.fork_refusal) or (running is not None and running.usable)

    def start(self) -> None:
        """Start it, and wait until it is ready; does nothing where it is.

        Raises `SandboxUnavailable` where this machine can make no sandbox, and `TemplateEnded`.
        """
        with self._starting:
            if self.ready:
                return
            self.close()
            self._closed = False
            self._running = running = _Running(self.sandbox)
            try:
                running.wait()
            except OSError:
                if not self._closed:
                    self.sandbox.require()
                raise
            if running.refused:
                self.fork_refusal = running.refused
                log.warning("each worker starts anew, since none can be forked here: %s", self.fork_refusal)
                self.close()

    def warm(self) -> None:
        """Begin to start it, and wait for nothing; what fails is left to the worker that needs it."""

        def start() -> None:
            try:
                self.start()
            except Exception as error:
                if not self._closed:
                    log.warning("no template yet: %s", error)

        if not self.ready:
            threading.Thread(target=start, name="datasites-warming", daemon=True).start()

    def process(self, run: str = "worker") -> Process:
        """Start the process of a new worker, which has been sent nothing; raise as `start` does, and `OSError`.

        run: what it does; `forking` names the others.
        """
        if not self.fork_refusal:
            self.start()
        if self.fork_refusal:
            return Sandboxed(self.sandbox)
        running = self._running
        if running is None:
            raise TemplateEnded("the template was closed")
        return running.fork(run)

    def close(self) -> None:
        """End it with all its workers, as it starts, too; a later worker starts another."""
        self._closed = True
        if self._running is not None:
            self._running.close()
            self._running = None


def _fork_refusal(config: SandboxConfig) -> str:
    if config.mode == "off":
        return "the sandbox is off"
    if config.devices:
        return "workers are given devices"
    if not has_filter():
        return f"no system call filter is known for {platform.machine()}"
    return ""


class _Running:
    """The process of a template."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self.log = Log()
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        self._asking = threading.Lock()
        #: Signals are sent while it is held, so that nobody reaps the process meanwhile.
        self._signalling = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._own, args=(theirs, started), name="datasites-template", daemon=True
        )
        self._thread.start()
        started.wait()
        #: Why it can fork no workers here, in words, or "" where it can; None before that is known.
        self.refused: str | None = None

    def wait(self) -> None:
        """Wait until it serves, or has said that it can't; raises `OSError` if neither happens."""
        try:
            if self._error is not None:
                raise self._error
            self._control.settimeout(_SECONDS_TO_START)
            reply = self._control.recv(_LARGEST_WORD)
            if not reply:
                self._thread.join(_SECONDS_TO_FORK)
                raise TemplateEnded(f"the template ended as it started: {str(self.log).strip()[-2000:]}")
            self.refused = str(json.loads(reply)["refused"])
        except BaseException:
            self.close()
            raise

    @property
    def usable(self) -> bool:
        process, control = self._process, self._control.fileno()
        if self.refused != "" or process is None or is_over(process) or control < 0:
            return False
        return not readable(control, 0)  # it says nothing more; its end shows here first

    def fork(self, run: str) -> Process:
        limits = self._sandbox.limits
        with contextlib.ExitStack() as pipe, contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            requests, to_requests = _pipe(theirs, pipe)
            from_replies, replies = _pipe(pipe, theirs)
            from_log, written = _pipe(ours, theirs)
            life, lent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.callback(life.close)
            theirs.callback(lent.close)
            life.settimeout(_SECONDS_TO_FORK)
            try:
                with self._asking:
                    handed = [requests, replies, written, lent.fileno()]
                    socket.send_fds(self._control, [run.encode()], handed)
                theirs.close()
                reply, descriptors, _, _ = socket.recv_fds(life, _LARGEST_WORD, 1)
            except OSError as error:
                raise TemplateEnded(f"the template gave no worker: {error}") from error
            if len(descriptors) != 1:
                raise TemplateEnded(
                    f"the template gave no worker: {reply.decode(errors='replace') or 'it said nothing'}"
                )
            ours.callback(os.close, descriptors[0])
            os.set_inheritable(descriptors[0], False)
            group = ours.enter_context(cgroup.around(cgroup.delegated(), cgroup.allowed(limits)))
            forked = Forked(to_requests, from_replies, from_log, life, descriptors[0])
            try:
                if group is not None:
                    cgroup.enter(group, forked.pid)
                forked.begin(ours.pop_all())
                # Not with the process, since whoever reads or writes may do so just then: it would be another file's
                # number, or nobody would hear that it has ended.
                weakref.finalize(forked, pipe.pop_all().close)
            except BaseException:
                forked.end()
                raise
            return forked

    def close(self) -> None:
        process = self._process
        with self._signalling, contextlib.suppress(ProcessLookupError):
            if process is not None and not is_over(process):
                # All that it has forked ends with it: it is the first process of a process namespace.
                os.killpg(process.pid, signal.SIGKILL)
        self._thread.join()
        with self._asking:
            self._control.close()

    def _own(self, theirs: socket.socket, started: threading.Event) -> None:
        # bubblewrap's --die-with-parent watches the *thread* that started it; this one lives as long as the process.
        limits = json.dumps(self._sandbox.limits.model_dump(mode="json"))
        command = self._sandbox.command(["-m", "datasites.enclave.worker_process", limits, "template"], template=True)
        try:
            with cgroup.around(cgroup.delegated(), cgroup.allowed(self._sandbox.limits)) as group:
                self._process = begun = subprocess.Popen(
                    [*cgroup.entering(group), *command],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env={},
                    bufsize=0,
                    start_new_session=True,
                )
                theirs.close()
                started.set()
                assert begun.stderr is not None
                try:
                    while chunk := os.read(begun.stderr.fileno(), 4096):
                        self.log.keep(chunk)
                finally:
                    wait_for(begun)
                    with self._signalling:
                        begun.wait()
                    begun.stderr.close()
        except OSError as error:
            self._error = error
        finally:
            theirs.close()
            started.set()


def _pipe(reading: contextlib.ExitStack, writing: contextlib.ExitStack) -> tuple[int, int]:
    """Open a pipe whose ends are closed with these stacks."""
    read, write = os.pipe()
    reading.callback(os.close, read)
    writing.callback(os.close, write)
    return read, write


class Forked(Process):
    """A worker that a template has forked; held by a descriptor of the process, which no other can ever take over."""

    def __init__(self, requests: int, replies: int, written: int, life: socket.socket, process: int) -> None:
        super().__init__()
        self.requests, self.replies = requests, replies
        self._written, self._life, self._held = written, life, process
        self._open = contextlib.ExitStack()
        self._pid = _pid_of(process)

    def begin(self, holding: contextlib.ExitStack) -> None:
        """Follow it until it ends, and then close what is held."""
        self._open = holding
        self._thread = threading.Thread(target=self._own, name="datasites-worker", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self.end()
            self._let_go(-signal.SIGKILL)
            raise

    @property
    def pid(self) -> int:
        """See `Process`."""
        return self._pid

    @property
    def is_over(self) -> bool:
        """See `Process`."""
        with self.signalling:
            return self.code is not None or readable(self._held, 0)

    def stop(self) -> bool:
        """See `Process`; the kernel ends a fork with its template, stopped or not."""
        self._signal(signal.SIGSTOP)
        return True

    def resume(self) -> None:
        """See `Process`."""
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        """See `Process`: the first of a process namespace, with which the kernel ends all others."""
        self._signal(signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> None:
        """See `Process`."""
        self._thread.join(seconds)

    def _signal(self, number: signal.Signals) -> None:
        with self.signalling, contextlib.suppress(ProcessLookupError):
            if self.code is None:
                signal.pidfd_send_signal(self._held, number)

    def _own(self) -> None:
        try:
            self.log.follow(self._written, self)
            readable(self._held, None)
        except BaseException:
            self.end()  # nobody could, once it is let go of
            raise
        finally:
            self._let_go(self._exit_code())

    def _let_go(self, code: int) -> None:
        with self.signalling:
            self.code = code  # from now on no signal is sent
        self._open.close()  # which may wait for the end of its group

    def _exit_code(self) -> int:
        """Return the exit code as its keeper reports it; that of a killed process if the keeper was killed."""
        self._life.settimeout(_SECONDS_TO_FORK)
        with contextlib.suppress(OSError, ValueError):
            return int(self._life.recv(_LARGEST_WORD))
        return -signal.SIGKILL


def _pid_of(descriptor: int) -> int:
    """Return the number, in this namespace, of the process that a descriptor stands for."""
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
        if line.startswith("Pid:") and (pid := int(line.split()[1])) > 0:
            return pid
    raise TemplateEnded("the worker ended as it was forked")
