"""Files of a party's own: what must survive a crash (all of the new content is there, or all of the old), and locks.

What need not survive is put in place whole all the same (`put_whole`). What the shared store holds is written by
`transport`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Hold this lock file, which is made with its folder (0700) when absent; waits for other threads and processes."""
    descriptor = open_lock(lock)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def open_lock(lock: Path) -> int:
    """Open a lock file, which is made with its folder (0700) when absent; whoever has the lock loses it by closing."""
    lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)


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
    with on_disk(temporary, mode=mode) as file:
        for piece in pieces:
            file.write(piece)
    return temporary


def put_in_place(path: Path) -> None:
    """Put what was written beside `path` in its place: the second half; the same work whatever the size."""
    move_durably(path.with_name(path.name + ".new"), path)


def move_durably(source: Path, target: Path) -> None:
    """Put what is on the disk in the place of another, on one file system; it is there when this returns.

    A folder may be put where none is, or an empty one.
    """
    os.replace(source, target)
    sync_folder(target.parent)


@contextmanager
def on_disk(path: Path, *, mode: int = 0o600, new: bool = False) -> Iterator[BinaryIO]:
    """Give a file to write, which is on the disk at the end; its name is once the folder is (`sync_folder`).

    new: raise `FileExistsError` for one that is there, or a link, instead of writing over it.
    """
    flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL if new else os.O_TRUNC)
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_durably(
    folder: Path, files: Mapping[str, bytes | memoryview], *, mode: int = 0o600, new: bool = False
) -> None:
    """Write new files into `folder`; all are on the disk when this returns. After a crash each may be there in part.

    So it is for files that nothing relies on yet: whatever names them is written afterwards. mode, new: see `on_disk`.
    """
    for name, data in files.items():
        with on_disk(folder / name, mode=mode, new=new) as file:
            file.write(data)
    if files:
        sync_folder(folder)


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
        sync_folder(path.parent)


@contextmanager
def put_whole(path: Path) -> Iterator[Path]:
    """Give a path to write to, and put what lies there in the place of `path` in one step; nothing if that fails.

    For what may be lost in a power cut: nothing waits for the disk. Any number may write at once; the last one counts.
    Makes the folder when absent. A process that is killed leaves what it wrote, under a hidden name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Replace `path` by `content` as `put_whole` does."""
    with put_whole(path) as temporary:
        temporary.write_bytes(content)


def sync_file(path: Path) -> None:
    """Have what others wrote into a file on the disk; its name is once the folder is (`sync_folder`)."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk: without it, a power cut can lose a file, or leave the old one there."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
