"""The other end of `isolated.process`: takes its pipe and its limits, imports a module, and serves requests.

Started as `main` in the sandbox, where no other code of the datasite runs. An error is reported by its kind, and
with its message only where that is ours: a message of others may quote what was read.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable

from datasites.enclave.confine import WorkerLimits, confine, end_with_parent
from datasites.hospital.isolated.frames import (
    FAILED,
    LONGEST_MESSAGE,
    READY,
    Numbers,
    WorkFailed,
    framed,
    packed,
    pieces,
    whole,
)
from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError

#: Answers a request by a message and arrays; may read a file's content first.
Answer = Callable[[bytes, Callable[[], bytes]], tuple[Agreed, Numbers]]


def main() -> None:
    """Answer until the pipe ends; arguments are as `process.Apart` gives them."""
    _, room, limits, *options = sys.argv[1:]
    requests, replies = os.dup(0), os.dup(1)
    end_with_parent()
    answer: Answer = importlib.import_module(f"datasites.hospital.{room}").answering(*options)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # whatever libraries print may hold rows
        os.dup2(nothing, standard)
    os.close(nothing)
    confine(WorkerLimits.model_validate_json(limits))
    _write(replies, READY)

    def read(count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            if not (chunk := os.read(requests, min(count - len(received), 1 << 20))):
                raise EOFError
            received += chunk
        return bytes(received)

    while True:
        try:
            request = whole(read)
        except EOFError:
            return
        try:
            reply = _reply_to(answer, request, lambda: pieces(read))
        except MemoryError:
            _write(replies, framed(packed(WorkFailed(failure="memory", error="MemoryError").canonical(), {}, FAILED)))
            return  # maybe in the midst of a file
        _write(replies, framed(reply))


def _reply_to(answer: Answer, request: bytes, content: Callable[[], bytes]) -> bytes:
    try:
        message, arrays = answer(request, content)
        return packed(message.model_dump_json(by_alias=True).encode(), arrays)
    except MemoryError:
        raise
    except DatasitesError as error:
        failed = WorkFailed(failure="refused", error=type(error).__name__[:100], message=str(error)[:LONGEST_MESSAGE])
    except Exception as error:
        where = "".join(traceback.format_tb(error.__traceback__))
        failed = WorkFailed(failure="unexpected", error=type(error).__name__[:100], where=where[-LONGEST_MESSAGE:])
    return packed(failed.canonical(), {}, FAILED)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
