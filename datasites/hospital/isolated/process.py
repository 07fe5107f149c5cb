"""Runs work in a separate process that holds no key, no connection and no descriptor of the datasite's, and then ends.

Reading an untrusted format and loading large libraries are done there: it is started in the sandbox of the workers
(`enclave.sandbox`), which shows it neither the home nor a network, and limits itself as they do (`enclave.confine`).
What it works on comes through its pipe. `isolated.child` is its other end.

**Guarantee.** Whatever such a process does, it costs the caller an `ApartFailed` that says what happened and what to
do. It ends when its `with` block does, when its time is over, and when the datasite ends, by kill -9, too; a reply is
at most as long as the memory that it may have, of which a message is 16 MiB at most, is read as JSON and arrays of
numbers and runs no code. Assumes what `enclave.worker_client` does of the sandbox; where that is off, the process runs
as this user.

Starting takes a time that follows from nothing that is read: what depends on rows is what is asked afterwards.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import subprocess
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

from pydantic import ValidationError

import datasites.hospital
from datasites.enclave.sandbox import Sandbox, SandboxConfig
from datasites.hospital.isolated.frames import CHUNK, END, READY, BadFrame, Numbers, WorkFailed, framed, unpacked
from datasites.privacy.plan import PlanError
from datasites.study.canonical import Agreed
from datasites.study.errors import InputError
from datasites.study.rounds import RingRefused
from datasites.study.schema import SchemaError

log = logging.getLogger(__name__)

#: Seconds in which it must have started, and in which it must have answered.
_TO_START, _TO_ANSWER = 120.0, 3600.0
#: Files that it may have open at a time; it writes none.
_OPEN_FILES = 128
_NOT_STARTED = "no process was started to work in"
#: This room's code without what its package imports: the sandbox shows the folder, and no other part of the datasite.
_BEGIN = (
    "import sys, types, datasites; room = types.ModuleType('datasites.hospital'); room.__path__ = [sys.argv[1]]; "
    "sys.modules[room.__name__] = room; import datasites.hospital.isolated.child as child; child.main()"
)


#: Errors of ours that mean something else than that a file is not what it must be.
_KINDS = {kind.__name__: kind for kind in (SchemaError, PlanError, RingRefused)}
Reply = TypeVar("Reply", bound=Agreed)


class ApartFailed(InputError):
    """The process gave no answer. The message says why, and holds nothing of what it worked on."""


class Apart:
    """One such process, for the thread that starts it; raises `ApartFailed`, or `SandboxUnavailable` at the start."""

    def __init__(self, config: SandboxConfig, room: str, *options: str, remedy: str) -> None:
        """Start it with one module of this room, which answers; options are its own.

        remedy: what to do about what it can't work on, as errors state it.
        """
        self._remedy = remedy
        self._sandbox = Sandbox(config.model_copy(update={"devices": ()}))
        self._memory = config.limits.memory
        limits = self._sandbox.limits.model_copy(
            update={"file_size": 0, "open_files": _OPEN_FILES, "cpu_seconds": int(_TO_ANSWER)}
        )
        code = Path(datasites.hospital.__file__).parent
        arguments = ["-c", _BEGIN, str(self._sandbox.seen_path(code)), room, limits.model_dump_json(), *options]
        try:
            self._process = subprocess.Popen(
                self._sandbox.command(arguments, code),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={}, bufsize=0, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise ApartFailed(
                f"{_NOT_STARTED}: {error.strerror}; check whether this machine is out of memory"
            ) from error
        # Where nobody closes it, since its thread or the process itself has ended.
        weakref.finalize(self, _close, self._process)
        try:
            self._await_ready()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Use as a context manager: it ends with the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """See `close`."""
        self.close()

    @property
    def alive(self) -> bool:
        """Say whether it can be asked. One that could not answer is ended, and another may be started."""
        return self._process.poll() is None

    def ask(
        self, what: str, request: Agreed, reply: type[Reply], content: BinaryIO | None = None
    ) -> tuple[Reply, Numbers]:
        """Return the reply to a request, with its arrays, of any shape; `what` is how errors name what it works on.

        content: what is sent after the request, to its end. Raises what the other end has refused, too.
        """
        deadline = time.monotonic() + _TO_ANSWER
        try:
            try:
                self._write(framed(request.model_dump_json(by_alias=True).encode()), deadline)
                for chunk in _chunks(content):
                    self._write(chunk, deadline)
            except BrokenPipeError:
                pass  # it may have said why
            size = int.from_bytes(self._read(8, deadline), "little")
            if size > self._memory:
                raise BadFrame("too long")
            message, arrays = unpacked(self._read(size, deadline))
            if isinstance(message, WorkFailed):
                raise self._failure(what, message)
            return reply.model_validate_json(message), arrays
        except ValidationError:
            raise self.garbled(what, "another message") from None
        except BadFrame as error:
            raise self.garbled(what, str(error)) from None
        except TimeoutError:
            self.close()
            raise ApartFailed(
                f"{what}: the process that works on it gave no answer in {_TO_ANSWER:.0f} s, and was ended; "
                f"{self._remedy}, or try again when this machine is less busy"
            ) from None
        except (EOFError, ConnectionResetError):
            raise self._ended(what) from None

    def garbled(self, what: str, how: str) -> ApartFailed:
        """End the process and return the error to raise where its answer is not valid."""
        self.close()
        return ApartFailed(
            f"{what}: the process that works on it gave an invalid answer ({how}), and was ended; "
            f"{self._remedy}, or check whether this installation was changed"
        )

    def kill(self) -> None:
        """End it from another thread; who waits for an answer gets `ApartFailed`."""
        self._process.kill()

    def close(self) -> None:
        """End it, whatever it does."""
        if self._process.returncode is None:
            self._process.kill()
        self._process.wait()
        _close(self._process)

    def _await_ready(self) -> None:
        try:
            ready = self._read(len(READY), time.monotonic() + _TO_START) == READY
        except (EOFError, TimeoutError):
            ready = False
        if not ready:
            self._process.kill()
            self._sandbox.require()  # which says what is missing where none can be made
            assert self._process.stderr is not None
            # It has seen nothing yet, so it can have printed nothing of it.
            lines = self._process.stderr.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise ApartFailed(f"{_NOT_STARTED}: {lines[-1][:500]}; repair this Python, or its packages")

    def _failure(self, what: str, failed: WorkFailed) -> Exception:
        if failed.failure == "refused":
            return _KINDS.get(failed.error, InputError)(failed.message)
        if failed.failure == "memory":
            self.close()
            return ApartFailed(
                f"{what}: needs more than the {self._memory} bytes of memory that a process may have here; "
                f"{self._remedy}, or raise `memory` under [sandbox.limits] in datasite.toml"
            )
        log.error("%s, in a separate process\n%s", failed.error, failed.where)
        return ApartFailed(
            f"{what}: an unexpected {failed.error} in the process that works on it; {self._remedy}; the "
            "service's log says where it arose"
        )

    def _ended(self, what: str) -> ApartFailed:
        self._process.kill()
        code = self._process.wait()
        number = -code if code < 0 else code - 128 if code > 128 else 0
        if number == signal.SIGKILL:
            how, remedy = "was killed", f"as by a machine without memory left: free some, or {self._remedy}"
        else:
            how = f"ended with {signal.Signals(number).name if number in set(signal.Signals) else f'exit code {code}'}"
            remedy = self._remedy
        return ApartFailed(f"{what}: the process that works on it {how} before it had answered; {remedy}")

    def _write(self, data: bytes | memoryview, deadline: float) -> None:
        assert self._process.stdin is not None
        descriptor, place = self._process.stdin.fileno(), 0
        os.set_blocking(descriptor, False)
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_WRITE)
            while place < len(data):
                _wait(selector, deadline)
                place += os.write(descriptor, data[place : place + CHUNK])

    def _read(self, count: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        descriptor, received = self._process.stdout.fileno(), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while len(received) < count:
                _wait(selector, deadline)
                chunk = os.read(descriptor, min(CHUNK, count - len(received)))
                if not chunk:
                    raise EOFError
                received += chunk
        return bytes(received)


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def _wait(selector: selectors.BaseSelector, deadline: float) -> None:
    if not selector.select(max(0.0, deadline - time.monotonic())):
        raise TimeoutError


def _chunks(content: BinaryIO | None) -> Iterator[bytes]:
    while content is not None and (chunk := content.read(CHUNK)):
        yield framed(chunk)
    yield framed(END)
