"""Files that hold what must survive: after a crash all of the new content is there, or all of the old.

For a party's own state. What the shared store holds is written by `transport`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Hold this lock file, which is made with its folder (0700) when absent; waits for other threads and processes."""
    lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def taken(descriptor: int) -> bool:
    """Take the lock of an open file, until it is closed, unless somebody else has it; whether it was taken."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def replace_durably(path: Path, data: bytes | memoryview, *, mode: int = 0o600) -> None:
    """Replace `path` by `data` in one step; it is on the disk when this returns. For one writer at a time.

    Makes the folder (0700) when absent. mode: of the file, before the process's mask.
    """
    write_beside(path, [data], mode=mode)
    put_in_place(path)


def write_beside(path: Path, pieces: Iterable[bytes | memoryview], *, mode: int = 0o600) -> Path:
    """Write a file beside `path` and return it: the first half of `replace_durably`, which grows with the data."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def put_in_place(path: Path) -> None:
    """Put what was written beside `path` in its place: the second half; the same work whatever the size."""
    move_durably(path.with_name(path.name + ".new"), path)


def move_durably(source: Path, target: Path) -> None:
    """Put a file that is on the disk in the place of another, on one file system; it is there when this returns."""
    os.replace(source, target)
    _sync_folder(target.parent)


def write_durably(folder: Path, files: Mapping[str, bytes | memoryview]) -> None:
    """Write new files into `folder`; all are on the disk when this returns. After a crash each may be there in part.

    So it is for files that nothing relies on yet: whatever names them is written afterwards.
    """
    for name, data in files.items():
        with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    if files:
        _sync_folder(folder)


def append_durably(path: Path, start: int, data: bytes) -> None:
    """Write `data` at `start` of a file, for what counts of it ends there; it is on the disk when this returns.

    After a crash the file may be longer than it counts: whatever says how much counts is written afterwards.
    """
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "wb") as file:
        file.truncate(start)
        file.seek(start)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if start == 0:
        _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    # Names as well: without this, a power cut can lose a file, or leave the old one under its name.
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
