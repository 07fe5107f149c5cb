"""The template's end, in the sandbox: forks a worker for each request, and isolates it (`template`).

Between the template and a worker stands its *keeper*, which makes the namespaces, forks the worker into them, hands a
descriptor of it to the datasite, waits, and says with which code it ended. It is trusted code without a case, and the
worker, which is in a process namespace below it, has no number for it.

A worker shuts itself off in this order: it ends with its keeper; what was open is closed but for its own pipes; /proc,
/dev/pts and /dev/shm are covered by what is empty or read-only, and /tmp is only read; it drops all capabilities; its
random generators are seeded anew. Then it does its work, which begins with `confine`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import random
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

import numpy as np

from datasites.enclave.confine import end_with_parent, mapped
from datasites.enclave.sandbox import EMPTY, SHOWN_PROC

#: What a worker does, given its pipe and the bytes of addresses that were mapped before /proc was covered.
Work = Callable[[int, int, int], None]

# Kernel constants (linux/sched.h, linux/mount.h, linux/prctl.h, linux/capability.h).
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT = 1, 2, 4, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_PR_CAPBSET_DROP, _LAST_CAPABILITY, _CAPABILITY_VERSION = 24, 63, 0x20080522
#: What is covered in a worker, by what; and what is only read from then on, since this Python may lie below it.
_COVERED, _READ = (("/proc", SHOWN_PROC), ("/dev/pts", EMPTY), ("/dev/shm", EMPTY)), "/tmp"

_NOT_APART = 70


def serve(control: socket.socket, works: Mapping[str, Work]) -> None:
    """Say whether forks can be made here, then fork for each word until the socket is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are reaped by the kernel
    gc.collect()
    gc.freeze()  # so that a fork's garbage collection copies no page of this
    control.send(json.dumps({"refused": _tried()}).encode())
    while True:
        word, descriptors, _, _ = socket.recv_fds(control, 64, 4)
        if not word:
            return
        with contextlib.ExitStack() as received:
            for descriptor in descriptors:
                received.callback(os.close, descriptor)
            if len(descriptors) != 4:
                continue  # none was free here; who asked hears that the socket is closed
            requests, replies, log, life = descriptors
            try:
                _fork(works[word.decode()], requests, replies, log, life)
            except OSError as error:
                _say(life, error)  # to who asked, and the workers of others go on


def _tried() -> str:
    """Return why no worker can be forked here, after one was tried; "" where it can."""
    try:
        require_forkable()
    except RuntimeError as error:
        return str(error)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    log_read, log = os.pipe()
    with ours:
        with theirs:
            _fork(lambda *_: None, read, write, log, theirs.fileno())
        for descriptor in (read, write, log):
            os.close(descriptor)
        reply, held, _, _ = socket.recv_fds(ours, 1 << 16, 1)
        for descriptor in held:
            os.close(descriptor)
        report = reply.decode(errors="replace") if not held else ours.recv(64).decode()
    with open(log_read, "rb") as written:
        report += " " + written.read(1 << 16).decode(errors="replace").strip()[-500:]
    return "" if report.strip() == "0" else report.strip() or "it ended without a message"


def _fork(work: Work, requests: int, replies: int, log: int, life: int) -> None:
    require_forkable()
    if os.fork():
        return
    # The keeper. Nothing of it may run on into the template's loop.
    try:
        _keep(work, requests, replies, log, life)
    except BaseException as error:
        _say(life, error)
    finally:
        os._exit(_NOT_APART)


def _say(life: int, error: BaseException) -> None:
    with contextlib.suppress(OSError):
        os.write(life, f"{type(error).__name__}: {error}".encode()[:1000])


def require_forkable() -> None:
    """Raise `RuntimeError` where a fork would be a broken process, or share memory with others."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"the template has {threads} threads; something that it imports starts one")
    with open("/proc/self/maps") as file:
        shared = [line.strip() for line in file if line.split()[1][1] == "w" and line.split()[1][3] == "s"]
    if shared:
        raise RuntimeError(f"the template has memory that its workers would share: {shared[0]}")


def _keep(work: Work, requests: int, replies: int, log: int, life: int) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    _call("unshare", _NEWUSER | _NEWPID | _NEWIPC | _NEWNET | _NEWUTS)
    # Counts in the namespace that was just made: none can be made below it.
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")
    alive, held = os.pipe()  # whose end tells the worker that this process has ended
    pid = os.fork()
    if pid == 0:
        os.close(held)
        _become(work, requests, replies, log, alive)
    _close_all_but(life, held)
    process = os.pidfd_open(pid)
    with socket.socket(fileno=life) as to_datasite:
        socket.send_fds(to_datasite, [b"forked"], [process])
        os.close(process)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):
            to_datasite.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(work: Work, requests: int, replies: int, log: int, alive: int) -> NoReturn:
    """Shut this process off, then do its work; it never returns into the template's loop."""
    code = _NOT_APART
    try:
        os.setsid()
        requests, replies, alive = _arrange(requests, replies, log, alive)
        size = mapped()
        _cover()
        os.chdir("/")
        _drop_capabilities()
        end_with_parent()
        _require_keeper(alive)
        # numpy seeds its own as it is imported; Python seeds `random` anew in a fork. Nothing here draws from either,
        # nor from OpenSSL's: seeded in a template, that would give the same in each worker, since it knows a fork by
        # another process id, and all of them are 1.
        np.random.seed(list(os.urandom(16)))
        random.seed()
        code = 1
        work(requests, replies, size)
        code = 0
    except BaseException:
        traceback.print_exc()
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
    finally:
        os._exit(code)


def _arrange(requests: int, replies: int, log: int, alive: int) -> tuple[int, int, int]:
    """Put what is printed into the log, keep the other three, and close all else; gives their new numbers."""
    kept = os.dup(requests), os.dup(replies), os.dup(alive)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for at, descriptor in enumerate((nothing, log, log)):
        os.dup2(descriptor, at)
    _close_all_but(0, 1, 2, *kept)
    return kept


def _require_keeper(alive: int) -> None:
    """Raise where the keeper ended before the kernel knew that this process ends with it."""
    os.set_blocking(alive, False)
    with contextlib.suppress(BlockingIOError):
        if not os.read(alive, 1):
            raise RuntimeError("the keeper has ended")
    os.close(alive)


def _close_all_but(*kept: int) -> None:
    # The folder's own descriptor is among those listed, and closed by then.
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in kept:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _cover() -> None:
    _call("unshare", _NEWNS)  # of its own: its keeper goes on to see /proc
    _call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    for over, source in _COVERED:
        if os.path.lexists(over):
            _call("mount", str(source).encode(), over.encode(), None, _MS_BIND | _MS_REC, None)
    _call("mount", None, _READ.encode(), None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV, None)


def _drop_capabilities() -> None:
    for capability in range(_LAST_CAPABILITY + 1):
        with contextlib.suppress(OSError):  # those that this kernel doesn't have
            _call("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
    _call("capset", struct.pack("=Ii", _CAPABILITY_VERSION, 0), struct.pack("=6I", *[0] * 6))


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name} was refused: {os.strerror(number)}")
