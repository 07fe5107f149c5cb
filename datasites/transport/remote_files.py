"""How a store's names become files on a filesystem that fsspec reaches: SFTP, S3, WebDAV.

Only `store.Store` uses this; see `filesystems`. Its libraries fetch a listing whole, so what is bounded is what is made
of it. Files in flight that somebody left are not removed here. Claim: a name as listed addresses the file that was
listed, or nothing is done to it. Libraries read more into some names (`?versionId=`, `%2f`; see `webdav`), so where
anybody may have chosen a name, a file goes only if its library finds that very name.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasites.study.addresses import hidden, shown
from datasites.transport.filesystems import IN_FLIGHT, MOST_NAMES, too_large
from datasites.transport.store_errors import StoreError, StoreMissing, StoreUnreachable, diagnose

# Filesystems where an upload appears only when complete; elsewhere a temporary name is moved into place.
ATOMIC_UPLOAD = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"})


class RemoteFiles:
    """Any fsspec filesystem, its listing caches off."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        import fsspec

        scheme = url.partition("://")[0]
        configured = {name for part in ("ssh", "sftp") for name in fsspec.config.conf.get(part, {})}
        if scheme in ("ssh", "sftp") and "known_hosts" not in configured:
            # sshfs would take any host's key; take the ones that this user knows.
            options = {"known_hosts": str(Path.home() / ".ssh" / "known_hosts"), **options}
        if scheme in ("ssh", "sftp"):
            # Else one name that is no text hides the whole folder.
            text = {"path_errors": "surrogateescape", **options.get("sftp_client_kwargs", {})}
            options = {**options, "sftp_client_kwargs": text}
        if scheme in ATOMIC_UPLOAD:
            options = {"use_listings_cache": False, **options}
        try:
            self.fs, root = _opened(url, options)
        except ImportError as error:
            extra = {"s3": "s3", "s3a": "s3", "sftp": "sftp", "ssh": "sftp", "webdav": "webdav", "dav": "webdav"}
            remedy = f"run `pip install 'datasites[{extra.get(scheme, scheme)}]'`"
            raise StoreError(f"store {shown(url)}: {hidden(str(error), url)}; {remedy}") from error
        self.root = root.rstrip("/")
        protocols = {self.fs.protocol} if isinstance(self.fs.protocol, str) else set(self.fs.protocol)
        self.atomic = bool(protocols & ATOMIC_UPLOAD)
        self._webdav = "webdav" in protocols
        self._known_folders: set[str] = set()

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"

    def make_root(self) -> None:
        """See `StoreFiles`; a bucket isn't made, since a mistyped name would become a new one."""
        if self.atomic:
            self.fs.ls(self.root.partition("/")[0], refresh=True)
        else:
            self.fs.makedirs(self.root, exist_ok=True)

    def is_there(self) -> bool:
        """See `StoreFiles`."""
        if self.atomic:
            self.make_root()  # raises where there is no bucket
            return True
        return bool(self.fs.exists(self.root))

    def write(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """See `StoreFiles`."""
        path = self._path(key)
        if self.atomic:
            self.fs.pipe_file(path, bytes(data))
            return
        folder = path.rpartition("/")[0]
        if folder not in self._known_folders:
            self.fs.makedirs(folder, exist_ok=True)
            self._known_folders.add(folder)
        temporary = f"{folder}/{IN_FLIGHT}{secrets.token_hex(8)}"
        try:
            with self.fs.open(temporary, "wb") as file:
                file.write(data)
            self._replace(temporary, path)
        except Exception:
            self._known_folders.discard(folder)  # perhaps somebody removed it; the next try makes it again
            with contextlib.suppress(Exception):
                self.fs.rm_file(temporary)
            raise

    def _replace(self, temporary: str, path: str) -> None:
        if self._webdav:
            self.fs.client.move(temporary, path, overwrite=True)  # its `mv` refuses to replace
        else:
            self.fs.mv(temporary, path)

    def read(self, key: str, limit: int | None) -> bytes | None:
        """See `StoreFiles`. The size that the store states is not relied on."""
        path = self._path(key)
        try:
            if limit is None:
                return bytes(self.fs.cat_file(path))
            if self.atomic:
                data = bytes(self.fs.cat_file(path, start=0, end=limit + 1))
            else:
                with self.fs.open(path, "rb") as file:
                    data = bytes(file.read(limit + 1))
        except Exception as error:
            # Some WebDAV servers replace in two steps, and their client reports what is absent in its own way.
            if isinstance(diagnose(error, key), StoreMissing):
                return None
            raise
        if len(data) > limit:
            raise too_large(key, None, limit)
        return data

    def size(self, key: str) -> int | None:
        """See `StoreFiles`."""
        try:
            return int(self.fs.info(self._path(key)).get("size") or 0)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def walk(self, folder: str) -> Iterator[str]:
        """See `StoreFiles`. The library fetches the whole listing; what is made of it is up to the caller."""
        self.fs.invalidate_cache()
        path = self._path(folder)
        try:
            found = self.fs.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in found:
            place, _, name = str(entry).rstrip("/").rpartition("/")
            if name and place.strip("/") == path.strip("/"):  # S3 lists `x//` as well, which is no name in a folder
                yield name

    def clear(self, folder: str, names: Iterable[str], at_once: bool) -> Iterator[bool]:
        """See `StoreFiles`. How old a file is can't be asked of every kind of store: what may be in flight stays."""
        for name in names:
            is_removed = False
            try:
                if at_once and not name.startswith("."):
                    is_removed = self._is_removed(self._path(f"{folder}/{name}"))
            except Exception as error:
                if isinstance(diagnose(error, name), StoreUnreachable):
                    raise
            yield is_removed

    def _is_removed(self, path: str) -> bool:
        """Remove a file whose name anybody may have chosen; whether it is gone. A folder stays."""
        if self.atomic:  # its library may read more into the name than a name, and says then what it took it for
            info = self.fs.info(path)
            if info["type"] != "file" or info["name"] != path:
                return False
        elif self._webdav and self.fs.isdir(path):  # it would remove a folder with all that is in it
            return False
        self.fs.rm_file(path)
        return not self.fs.exists(path)

    def remove(self, key: str) -> None:
        """See `StoreFiles`."""
        try:
            self.fs.rm_file(self._path(key))
        except (FileNotFoundError, NotADirectoryError):
            return

    def remove_folder(self, folder: str) -> int:
        """See `StoreFiles`."""
        names = list(itertools.islice(self.walk(folder), MOST_NAMES))
        if self.atomic:
            removed = sum(self._is_removed(self._path(f"{folder}/{name}")) for name in names)
            if removed < len(names):
                raise StoreError(f"{folder}: not all in it can be deleted; remove it and find out who made it")
            return removed
        if names:
            self._known_folders.discard(self._path(folder))
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm(self._path(folder), recursive=True)
        return len(names)

    def make_folder(self, folder: str) -> Path:
        """See `StoreFiles`."""
        raise StoreError(f"{folder}: only a local folder can be watched")


def _opened(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """Return the filesystem that `url` names, and the path in it; raise `ImportError` where its library is missing."""
    import fsspec

    if url.partition("://")[0] in ("webdav", "dav"):
        from datasites.transport.webdav import ExactWebdav

        return ExactWebdav(**options), str(ExactWebdav._strip_protocol(url))
    filesystem, root = fsspec.core.url_to_fs(url, **options)
    return filesystem, root
