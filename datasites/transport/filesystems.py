"""How a store's names become files in an ordinary folder, and what a store needs of any filesystem.

Only `store.Store` and `remote_files` use this; the store checks keys and turns exceptions into `StoreError`. A folder
is shared with parties who may be hostile, so links are not followed and only regular files are read. Claim: a folder
that lies in a file's place is set aside by whoever writes the file, and a file, pipe or device that lies in a folder's
place goes; where that is not allowed, or a link lies there, what is below it can't be written, and nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from datasites.study.addresses import fault_of, shown
from datasites.transport.store_errors import NotAFile, StoreError, StoreUnreachable, TooLarge, diagnose

logger = logging.getLogger(__name__)

IN_FLIGHT = ".tmp-"
#: A folder that lay where a message belongs is renamed to this: emptying it may take for ever.
ASIDE = ".aside-"
#: Seconds after which a file in flight to which nobody has written is taken to have been left there.
IN_FLIGHT_SECONDS = 3600.0
#: Names that are looked at in one folder at a time. A mailbox of a study of 255 hospitals holds some 300 for each epoch
#: of a year; to read so many takes some 20 ms, and whoever lays more than that can delay nobody further.
MOST_NAMES = 20_000


class StoreFiles(Protocol):
    """What `Store` needs of a filesystem. Keys are checked already; any exception may be raised."""

    def make_root(self) -> None:
        """Create the store's root when absent."""

    def is_there(self) -> bool:
        """Return whether the store's root exists."""

    def write(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Write whole or not at all."""

    def read(self, key: str, limit: int | None) -> bytes | None:
        """Read, or None when absent; `TooLarge` above `limit`."""

    def size(self, key: str) -> int | None:
        """Return the size in bytes, or None when absent."""

    def walk(self, folder: str) -> Iterator[str]:
        """Yield all names in one folder, in any order, read as they are asked for."""

    def clear(self, folder: str, names: Iterable[str], at_once: bool) -> Iterator[bool]:
        """Remove files of these names, links and empty folders, each as it is asked for; whether it is gone. What may
        be in flight stays unless it is known to be old: what begins with a dot, and all where not `at_once`."""

    def remove(self, key: str) -> None:
        """Delete when present."""

    def remove_folder(self, folder: str) -> int:
        """Delete a folder with all that is in it; raises `StoreError` where something stays."""

    def make_folder(self, folder: str) -> Path:
        """Create a folder, so that it can be watched; local only."""


def check_address(url: str) -> None:
    """Raise `StoreError` for an address that is none, without what is secret in it."""
    if "://" not in url:
        if half := re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(?=/|$)", url):
            raise StoreError(
                f"store {shown(url)}: write {half[0]}//… for a URL, or ./ before it for a folder of that name"
            )
        if shown(url) != url:
            raise StoreError(f"store {shown(url)}: no address; write a folder's path, or a URL such as ssh://…, s3://…")
    elif fault := fault_of(url):
        raise StoreError(f"store {shown(url)}: {fault}")
    elif re.search(r"[?#]", url):
        raise StoreError(
            f"store {shown(url)}: has an option or a fragment (? or #), and none is taken here; what a store's library "
            "takes besides its address goes into its own files and environment"
        )


def local_path(url: str) -> Path | None:
    """Return the folder that `url` names, or None for a URL of another kind; raise `StoreError` for half a URL."""
    check_address(url)
    if "://" not in url:
        return Path(url).absolute()
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme in ("file", "local") else None


def too_large(key: str, size: int | None, limit: int) -> TooLarge:
    """Return the error for an object above the reader's limit."""
    return TooLarge(
        f"{key}: {'more than ' if size is None else ''}{size or limit} bytes, the limit is {limit}; it was not read"
    )


class FolderFiles:
    """A folder on this machine or on a mounted share."""

    def __init__(self, root: Path, fsync: bool = False) -> None:
        self.root = root
        self.fsync = fsync
        self._real_root = ""

    def make_root(self) -> None:
        """See `StoreFiles`."""
        if not self.root.is_dir():
            logger.warning("store %s: no such folder; it is made now. Is the share mounted?", self.root)
        self.root.mkdir(parents=True, exist_ok=True)
        self._real_root = os.path.realpath(self.root)

    def is_there(self) -> bool:
        """See `StoreFiles`."""
        return self.root.is_dir()

    def _folder(self, key: str) -> str:
        """Return the real path of the folder that holds `key`; refuse one that a link leads out of the store."""
        self._real_root = self._real_root or os.path.realpath(self.root)
        plain = os.path.join(self._real_root, *key.split("/")[:-1])
        if os.path.realpath(plain) != plain:
            raise StoreError(f"{plain}: a link inside the store leads elsewhere; remove it and find out who made it")
        return plain

    def _path(self, key: str) -> str:
        return os.path.join(self._folder(key), key.rpartition("/")[2])

    def write(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """See `StoreFiles`."""
        path = self._path(key)
        folder = os.path.dirname(path)
        temporary = os.path.join(folder, f"{IN_FLIGHT}{secrets.token_hex(8)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            descriptor = os.open(temporary, flags, 0o666)
        except (FileNotFoundError, NotADirectoryError):
            self._make(folder)
            descriptor = os.open(temporary, flags, 0o666)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                rest = memoryview(data).cast("B")
                while rest:
                    rest = rest[file.write(rest) :]
                if self.fsync:
                    os.fsync(file.fileno())
            try:
                os.replace(temporary, path)
            except IsADirectoryError:
                _set_aside(path)  # somebody made a folder of that name to keep the message out
                os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        if self.fsync:
            directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def read(self, key: str, limit: int | None) -> bytes | None:
        """See `StoreFiles`."""
        try:
            # Without O_NONBLOCK, a named pipe laid in the store would stop the reader for good.
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise NotAFile(f"{key}: not a regular file; remove it and find out who made it")
            if limit is not None and status.st_size > limit:
                raise too_large(key, status.st_size, limit)
            return file.read(status.st_size)

    def size(self, key: str) -> int | None:
        """See `StoreFiles`."""
        try:
            return os.lstat(self._path(key)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def walk(self, folder: str) -> Iterator[str]:
        """See `StoreFiles`. The directory is open until the end; what lies there all the while comes once."""
        try:
            with self._opened(folder) as descriptor:
                entries = os.scandir(descriptor)
        except (FileNotFoundError, NotADirectoryError):
            return
        with entries:
            for entry in entries:
                yield entry.name

    def clear(self, folder: str, names: Iterable[str], at_once: bool) -> Iterator[bool]:
        """See `StoreFiles`. The directory is opened once, so that nobody can lead what follows elsewhere."""
        try:
            with self._opened(folder) as descriptor:
                now: float | None = None
                for name in names:
                    if not at_once or name.startswith("."):
                        now = _time_in(descriptor) if now is None else now
                        if not _is_older(descriptor, name, now - IN_FLIGHT_SECONDS):
                            yield False
                            continue
                    yield _unlinked(descriptor, name)
        except (FileNotFoundError, NotADirectoryError):
            return

    @contextlib.contextmanager
    def _opened(self, folder: str) -> Iterator[int]:
        """Open a descriptor of `folder`, to which no link led, whoever changes the store meanwhile."""
        self._folder(f"{folder}/x")  # says what is wrong with a link
        descriptor = os.open(self._real_root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in folder.split("/"):
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def remove(self, key: str) -> None:
        """See `StoreFiles`."""
        path = self._path(key)
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except (IsADirectoryError, PermissionError):
            if not os.path.isdir(path) or os.path.islink(path):
                raise
            _set_aside(path)

    def remove_folder(self, folder: str) -> int:
        """See `StoreFiles`."""
        path = self._folder(f"{folder}/x")
        names = list(itertools.islice(self.walk(folder), MOST_NAMES))
        try:
            os.unlink(path)  # a file in its place
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except (IsADirectoryError, PermissionError):
            shutil.rmtree(path, ignore_errors=True)  # follows no links; somebody may put a new file there meanwhile
        if os.path.lexists(path):
            raise StoreError(f"{path}: not all in it can be deleted; remove it and find out who made it")
        return len(names)

    def make_folder(self, folder: str) -> Path:
        """See `StoreFiles`."""
        path = self._folder(f"{folder}/x")
        self._make(path)
        return Path(path)

    def _make(self, folder: str) -> None:
        """Make `folder`, a real path; what lies in its place or in that of one above it, and is none, goes."""
        place = self._real_root
        for part in os.path.relpath(folder, self._real_root).split("/"):
            place = os.path.join(place, part)
            try:
                if stat.S_ISDIR(os.lstat(place).st_mode):
                    continue
                os.unlink(place)  # never a folder, which another party may have made there meanwhile
                logger.warning("%s: not a folder, and removed; find out who made it", place)
            except FileNotFoundError:
                break
            except PermissionError as error:
                raise NotAFile(f"{place}: not a folder; remove it and find out who made it") from error
        os.makedirs(folder, exist_ok=True)


def _set_aside(path: str) -> None:
    """Free a name on which somebody has put a folder: one rename, whatever is in it. Nobody looks at it again."""
    os.rename(path, os.path.join(os.path.dirname(path), f"{ASIDE}{secrets.token_hex(8)}"))


def _unlinked(descriptor: int, name: str) -> bool:
    """Return whether `name` is gone from an open directory. A folder with something in it stays."""
    try:
        try:
            os.unlink(name, dir_fd=descriptor)
        except (IsADirectoryError, PermissionError):
            os.rmdir(name, dir_fd=descriptor)
    except FileNotFoundError:
        return True
    except OSError as error:
        if isinstance(diagnose(error, name), StoreUnreachable):
            raise
        return False
    return True


def _time_in(descriptor: int) -> float:
    """Return the time by the clock that stamps files of an open directory; long ago where no file can be made."""
    name = f"{IN_FLIGHT}{secrets.token_hex(8)}"
    try:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=descriptor)
    except OSError:
        return 0.0
    try:
        return os.fstat(file).st_ctime
    finally:
        os.close(file)
        _unlinked(descriptor, name)


def _is_older(descriptor: int, name: str, moment: float) -> bool:
    """Return whether nothing was written to a file since, by the time that its owner can't set."""
    try:
        return os.lstat(name, dir_fd=descriptor).st_ctime < moment
    except OSError:
        return False
