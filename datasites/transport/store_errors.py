"""What can go wrong with a store, told apart: worth another try, or a thing that somebody must mend.

Pure: it looks at an exception of whatever library and names it; it does no I/O and imports no storage library.
"""

from __future__ import annotations

import asyncio
import errno

from datasites.study.addresses import hidden
from datasites.study.errors import DatasitesError


class StoreError(DatasitesError):
    """The store refused or failed in a way that another try doesn't mend; the message says what to do.

    store: which one, as its message begins; empty where that is not known.
    """

    store = ""

    def outage(self, store: str = "", *, waited: bool = False) -> tuple[str, str]:
        """Return the store, and what is wrong with it without its name. waited: it is tried again by itself."""
        store = self.store or store
        reason = str(self).removeprefix(f"{store}: ")
        return store, reason.replace(_THEN, "") if waited else reason


class BadKey(StoreError, ValueError):
    """A key that could leave the store or that some filesystem can't hold."""


class StoreDenied(StoreError):
    """Credentials or permissions don't suffice."""


class StoreMissing(StoreError):
    """The bucket, host or folder of the URL does not exist: of a store that is there, nothing is missing so."""


class StoreFull(StoreError):
    """No space or quota left."""


class StoreUnreachable(StoreError):
    """A transient error that lasted through all tries."""


class TooLarge(StoreError):
    """The object is larger than the reader accepts; it was not read."""


class NotAFile(StoreError):
    """What lies where a message or its folder belongs is none, or goes meanwhile; somebody does that on purpose."""


#: Concern the store as a whole: another key will fare no better. Any other `StoreError` is the fault of one key.
WHOLE_STORE = (StoreFull, StoreMissing, StoreUnreachable)

_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ENODEV}
_TRANSIENT = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EINTR,
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ENETDOWN,
}
# By class name, so that no storage library need be installed; looked up along the exception's bases.
_NAMED: dict[str, type[StoreError]] = {
    "NoCredentialsError": StoreDenied,
    "PartialCredentialsError": StoreDenied,
    "PermissionDenied": StoreDenied,
    "HostKeyNotVerifiable": StoreDenied,
    "SFTPPermissionDenied": StoreDenied,
    "SFTPNoSuchPath": StoreMissing,
    "SFTPNoSuchFile": StoreMissing,
    "SFTPNoSpaceOnFilesystem": StoreFull,
    "SFTPQuotaExceeded": StoreFull,
    "SFTPConnectionLost": StoreUnreachable,
    "SFTPNoConnection": StoreUnreachable,
    "ConnectionLost": StoreUnreachable,
    "DisconnectError": StoreUnreachable,
    "ChannelOpenError": StoreUnreachable,
    "EndpointConnectionError": StoreUnreachable,
    "ConnectTimeoutError": StoreUnreachable,
    "ReadTimeoutError": StoreUnreachable,
    "ClientConnectionError": StoreUnreachable,
    "TransportError": StoreUnreachable,
    "FSTimeoutError": StoreUnreachable,
}
#: What a person does after mending a store that failed for a while; whoever waits for it does that by itself.
_THEN = ", then try again"
_REMEDY: dict[type[StoreError], str] = {
    StoreDenied: "check the credentials, and that this party may read and write there",
    StoreMissing: "check the URL, and create the bucket or folder first",
    StoreFull: f"free some space or raise the quota{_THEN}; nothing is lost",
    StoreUnreachable: f"tried several times; check the network and the store{_THEN}; nothing is lost",
    NotAFile: "remove what lies there or in place of its folder, and find out who made it",
    StoreError: "see the cause above",
}


def diagnose(error: BaseException, what: str, address: str = "", *, is_there: bool = False) -> StoreError:
    """Make the `StoreError` that `error` amounts to. `what` opens the message: which store, which act, which key.

    address: the store's, whose secrets a library's words may quote. is_there: the store's root is; what is missing is
    one key's folder.
    """
    kind = _kind(error)
    if is_there and kind is StoreMissing:
        kind = NotAFile
    lines = hidden(str(error).strip(), address).splitlines()
    return kind(f"{what}: {type(error).__name__}: {lines[0][:300] if lines else ''}; {_REMEDY[kind]}")


def _kind(error: BaseException) -> type[StoreError]:
    status = _http_status(error)
    if status is not None:
        return _kind_of_status(status)
    for base in type(error).__mro__:
        if base.__name__ in _NAMED:
            return _NAMED[base.__name__]
    # ELOOP: a link; ENXIO: a socket, or a pipe without a writer.
    if isinstance(error, IsADirectoryError) or (
        isinstance(error, OSError) and error.errno in (errno.ELOOP, errno.ENXIO)
    ):
        return NotAFile
    if isinstance(error, PermissionError):
        return StoreDenied
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return StoreMissing
    if isinstance(error, TimeoutError | ConnectionError | EOFError | asyncio.TimeoutError):
        return StoreUnreachable
    if isinstance(error, OSError) and error.errno is not None:
        for numbers, kind in (
            (_DENIED, StoreDenied),
            (_FULL, StoreFull),
            (_MISSING, StoreMissing),
            (_TRANSIENT, StoreUnreachable),
        ):
            if error.errno in numbers:
                return kind
    return StoreError


def _http_status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(error, "status_code", None) or getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _kind_of_status(status: int) -> type[StoreError]:
    if status in (401, 403):
        return StoreDenied
    if status in (404, 410):
        return StoreMissing
    if status in (413, 507):
        return StoreFull
    if status in (408, 423, 425, 429) or status >= 500:
        return StoreUnreachable
    return StoreError
