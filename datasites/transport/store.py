"""The shared store: named byte strings on somebody else's disk, and waiting for them.

`Store(url)` serves a local folder (or a network share mounted as one) and any fsspec filesystem: SFTP, S3, WebDAV.
It promises very little, because the store is not trusted: a `put` is seen whole or not at all, a `get` returns at
most as many bytes as the caller allows, and an error says what it was. It may not interpret what it carries;
signatures, encryption and replay are the business of `mailroom` and `syft`.

What an honest store must give for messages to arrive at all: a name that was put stays until it is deleted. Nothing
here or above relies on listings being complete, on clocks, or on the order in which names appear.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import watchfiles

from datasites.study.addresses import shown
from datasites.transport.filesystems import MOST_NAMES, FolderFiles, StoreFiles, local_path
from datasites.transport.remote_files import RemoteFiles
from datasites.transport.store_errors import (
    WHOLE_STORE,
    BadKey,
    NotAFile,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreMissing,
    StoreUnreachable,
    TooLarge,
    diagnose,
)

__all__ = [
    "WHOLE_STORE",
    "BadKey",
    "NotAFile",
    "Store",
    "StoreDenied",
    "StoreError",
    "StoreFull",
    "StoreMissing",
    "StoreUnreachable",
    "TooLarge",
]

logger = logging.getLogger(__name__)

PART = re.compile(r"[A-Za-z0-9_%+=@-][A-Za-z0-9._%+=@-]{0,199}")
MAX_DEPTH = 12
RETRY_DELAYS = (0.05, 0.2, 0.8, 2.0, 5.0)

# A waiting party looks often while a round is likely to be in full swing and rarely after that.
# (until seconds, milliseconds between looks at the event queue, seconds between looks without any event)
LOCAL_PACE = ((0.5, 1, 0.5), (3.0, 5, 0.5), (30.0, 20, 2.0), (float("inf"), 50, 5.0))
REMOTE_PACE = (0.1, 1.5, 5.0)

#: Seconds after which a file that was being written is whole, and one that is still no message will never be one.
#: Share clients and sync tools write in place, some kilobytes at a time.
SETTLES = 1.0

Snapshot = dict[str, tuple[str, ...]]
"""Names by folder."""

Result = TypeVar("Result")


class Listing(NamedTuple):
    """Names in a folder, sorted. is_whole: False where more lie there than anybody looks at."""

    names: list[str]
    is_whole: bool


def checked_key(key: str) -> str:
    """Return `key` itself if it is a safe relative name, parts joined by "/"; raise `BadKey` otherwise.

    Safe means: no empty, "." or ".." part, none that starts with a dot (those are ours, for files in flight), only
    letters, digits and . _ % + = @ -, at most 12 parts of at most 200 characters.
    """
    parts = key.split("/")
    if len(parts) > MAX_DEPTH or not all(PART.fullmatch(part) for part in parts):
        raise BadKey(
            f"store key {key[:200]!r}: parts hold letters, digits and . _ % + = @ - and don't start with a dot"
        )
    return key


class Store:
    """Byte strings by key on a folder or any fsspec URL.

    `url`: a path, `file://…`, or an fsspec URL such as `s3://bucket/prefix`, `ssh://user@host/folder`,
    `webdav://host/folder` (extras `s3`, `sftp`, `webdav`). `options` go to the fsspec filesystem. `fsync` makes a
    put on a local folder survive a power cut, at some milliseconds each. `create` makes the folder when absent.
    `settles`: seconds that a reader gives a file which may be half written (see `second_look`).

    Transient errors are retried with back-off (about 8 s in all) and then raised as `StoreUnreachable`; permanent
    ones are raised at once: `StoreDenied`, `StoreMissing`, `StoreFull`, or plain `StoreError`.
    """

    def __init__(
        self, url: str | Path, *, fsync: bool = False, create: bool = True, settles: float = SETTLES, **options: Any
    ) -> None:
        self.url, self.settles = str(url), settles
        folder = local_path(self.url)
        self.files: StoreFiles
        if folder is not None:
            self.files = FolderFiles(folder, fsync=fsync)
        else:
            self.files = self._retried("open", "", lambda: RemoteFiles(self.url, options))
        self.local: Path | None = folder
        if create:
            self._retried("open", "", self.files.make_root)

    def __repr__(self) -> str:
        return f"Store({self.shown!r})"

    @property
    def shown(self) -> str:
        """Return the address without its secrets."""
        return shown(self.url)

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Write `data` under `key`, replacing what is there; a reader sees the old or the new, never a part."""
        checked_key(key)
        self._retried("put", key, lambda: self.files.write(key, data))

    def get(self, key: str, limit: int | None = None) -> bytes | None:
        """Return the bytes under `key`, or None when there are none.

        `limit`: the most bytes that the caller accepts; `TooLarge` is raised without reading more than that.
        """
        checked_key(key)
        return self._retried("get", key, lambda: self.files.read(key, limit))

    def size(self, key: str) -> int | None:
        """Return the size in bytes of what is under `key`, or None when there is nothing."""
        checked_key(key)
        return self._retried("look for", key, lambda: self.files.size(key))

    def exists(self, key: str) -> bool:
        """Return whether there is something under `key` now."""
        return self.size(key) is not None

    def holds(self, key: str, data: bytes) -> bool:
        """Return whether `data` lies under `key`, byte for byte; raises only for trouble with the whole store."""
        try:
            return self.get(key, limit=len(data)) == data
        except WHOLE_STORE:
            raise
        except StoreError:
            return False  # too large, not a file, or not readable: not what we put

    def look(self, folder: str) -> Listing:
        """Names directly in `folder`, at most `MOST_NAMES`; none when it is absent. Names that no put makes are left
        out. Where the listing isn't whole, what is wanted is looked for by its name."""
        checked_key(folder)
        names = self._retried("list", folder, lambda: list(itertools.islice(self.files.walk(folder), MOST_NAMES)))
        return Listing(sorted(name for name in names if PART.fullmatch(name)), len(names) < MOST_NAMES)

    def list(self, folder: str) -> list[str]:
        """Return the names of `look`."""
        return self.look(folder).names

    def walk(self, folder: str) -> Iterator[str]:
        """Yield all names in `folder` in any order, whoever made them, read as they are asked for; for `sweep`."""
        checked_key(folder)

        def begun() -> tuple[str | None, Iterator[str]]:
            names = self.files.walk(folder)
            return next(names, None), names

        first, names = self._retried("list", folder, begun)
        if first is not None:
            yield first
            with self._named("list", folder):
                yield from names

    def clear(self, folder: str, names: Iterable[str], at_once: bool = True) -> Iterator[bool]:
        """Remove files of these names, which no put need have made, as the answers are asked for: whether each is gone.

        What has something in it stays, and so does what may be in flight: what begins with a dot, and all where not
        `at_once`, until it is known to be old.
        """
        checked_key(folder)
        with self._named("clear", folder):
            yield from self.files.clear(folder, names, at_once)

    def delete(self, key: str) -> None:
        """Remove `key`, whatever lies there; fine when it is gone already."""
        checked_key(key)
        self._retried("delete", key, lambda: self.files.remove(key))

    def delete_folder(self, folder: str) -> int:
        """Remove all that lies in `folder` (files in flight too), and the folder; returns how many lay directly in it.

        Raises `StoreError` where something stays.
        """
        checked_key(folder)
        return self._retried("delete", folder, lambda: self.files.remove_folder(folder))

    def changes(self, folders: Iterable[str], timeout: float, stop: threading.Event | None = None) -> Iterator[None]:
        """Yield whenever it is worth looking at `folders` again: now, on each file event, and now and then.

        Ends after `timeout` seconds or when `stop` is set. On a local folder it sleeps on file events; looks
        without an event (0.5 s apart at first, 5 s later) are for network shares, where another machine's write
        raises none. Elsewhere it polls, 0.1 s apart at first and 5 s later.
        """
        wanted = sorted({checked_key(folder) for folder in folders})
        yield
        if self.local is not None and isinstance(self.files, FolderFiles):
            yield from _file_events(self._watchable(wanted), timeout, stop)
        else:
            yield from _polls(timeout, stop)

    def snapshot(self, folders: Iterable[str]) -> Snapshot:
        """Return the names in `folders` now. Taken *before* looking there and given to `wait`, nothing is missed.

        A folder that somebody has made unreadable counts as empty: it must not end the wait for all others.
        """
        return {folder: self._names_or_none(folder) for folder in folders}

    def _names_or_none(self, folder: str) -> tuple[str, ...]:
        try:
            return tuple(self.list(folder))
        except WHOLE_STORE:
            raise
        except StoreError as error:
            logger.debug("%s", error)
            return ()

    def _watchable(self, folders: Iterable[str]) -> Sequence[Path]:
        """Return the folders as paths, made when absent; without those that can't be watched, which are only polled."""
        paths = []
        for folder in folders:
            try:
                paths.append(self._retried("watch", folder, partial(self.files.make_folder, folder)))
            except WHOLE_STORE:
                raise
            except StoreError as error:
                logger.debug("%s", error)
        return paths

    def wait(
        self,
        folders: Iterable[str],
        timeout: float,
        stop: threading.Event | None = None,
        since: Snapshot | None = None,
    ) -> bool:
        """Sleep until the names in `folders` differ from `since` (by default those at the call).

        False when `timeout` seconds were over, or `stop` was set, first.
        """
        wanted = list(folders)
        known = self.snapshot(wanted) if since is None else {folder: since.get(folder, ()) for folder in wanted}
        return any(self.snapshot(wanted) != known for _ in self.changes(wanted, timeout, stop))

    @contextlib.contextmanager
    def _named(self, verb: str, key: str) -> Iterator[None]:
        """Turn what a filesystem raises into a `StoreError`."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            raise self._problem(error, verb, key) from error

    def _problem(self, error: Exception, verb: str, key: str) -> StoreError:
        store = f"store {self.shown}"
        problem = diagnose(error, f"{store}: cannot {verb} {key or 'it'}", self.url)
        if key and isinstance(problem, StoreMissing) and self._is_there():
            problem = diagnose(error, f"{store}: cannot {verb} {key}", self.url, is_there=True)
        problem.store = store
        return problem

    def _is_there(self) -> bool:
        """Return whether what is missing is missing inside the store, and not the store."""
        with contextlib.suppress(Exception):
            return self.files.is_there()
        return False

    def _retried(self, verb: str, key: str, operation: Callable[[], Result]) -> Result:
        for delay in (*RETRY_DELAYS, None):
            try:
                return operation()
            except StoreError:
                raise
            except Exception as error:
                problem = self._problem(error, verb, key)
                if delay is None or not isinstance(problem, StoreUnreachable):
                    raise problem from error
                time.sleep(delay * random.uniform(0.7, 1.3))
        raise AssertionError("unreachable")


def _stopped(stop: threading.Event | None) -> bool:
    return stop is not None and stop.is_set()


def _file_events(paths: Sequence[Path], timeout: float, stop: threading.Event | None) -> Iterator[None]:
    start = time.monotonic()
    if not paths:
        yield from _polls(timeout, stop)
        return
    for until, step, seconds in LOCAL_PACE:
        looked = 0.0  # the first turn of each watch looks, since a name may have come before the watch was set
        length = min(until, timeout)
        if time.monotonic() - start >= length:
            continue
        wake = int(min(10 * step, 500))
        try:
            watch = watchfiles.watch(
                *paths,
                watch_filter=lambda _, path: not path.rpartition("/")[2].startswith("."),
                step=step,
                debounce=step,
                rust_timeout=wake,
                yield_on_timeout=True,
                recursive=False,
                stop_event=stop,
            )
            for events in watch:
                now = time.monotonic()
                if events or now - looked >= seconds:
                    looked = now
                    yield
                if now - start >= length:
                    break
        except (OSError, RuntimeError):
            # No watches left (fs.inotify.max_user_watches), a folder was removed, or somebody made a file whose name
            # is no text: poll instead.
            yield from _polls(timeout - (time.monotonic() - start), stop)
            return
        if _stopped(stop):
            return


def _polls(timeout: float, stop: threading.Event | None) -> Iterator[None]:
    deadline = time.monotonic() + timeout
    pause, growth, longest = REMOTE_PACE
    while (left := deadline - time.monotonic()) > 0 and not _stopped(stop):
        sleep = min(pause, left)
        if stop is not None:
            stop.wait(sleep)
        else:
            time.sleep(sleep)
        yield
        pause = min(pause * growth, longest)
