"""Files that people choose in a form: hashed as they pass, bounded, and kept nowhere.

Claim: no file that is sent to the console is written by it under any name, or held beyond its request. Django's own
handlers, which write larger files into a temporary folder, are replaced for all pages (`settings`); this one passes
pieces on to a hash, and holds the text of a small file only, which some forms read. Assumes that what takes requests
in (Django under ASGI) spools a large one to an unnamed file, which ends with the request, and that nobody sends more
than `bounded` lets through.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Any

from django.core.exceptions import ValidationError
from django.core.files.uploadedfile import UploadedFile
from django.core.files.uploadhandler import FileUploadHandler

#: Bytes of a document that is hashed, and of a file whose text a form reads, at most.
MOST_DOCUMENT = 50 * 2**20
MOST_TEXT = 64 * 2**10
#: Bytes of a request, at most: a document with the rest of its form, and any other form.
MOST_WITH_DOCUMENT = MOST_DOCUMENT + 10 * 2**20
MOST_REQUEST = 2**20
#: Pages on which a document may be chosen.
WITH_DOCUMENTS = "/agreements/"

#: An ASGI application, of whatever framework.
Application = Callable[[Any, Any, Any], Awaitable[None]]

TOO_LARGE = (
    f"The file is larger than this console takes ({MOST_DOCUMENT // 2**20} MiB for a document). Work out its SHA-256 "
    "yourself (`sha256sum FILE`) and type that. Nothing was changed; go back to find what you had typed."
)


class HashedFile(UploadedFile):  # type: ignore[type-arg]  # generic for checkers only
    """A file that has passed. digest: its SHA-256, up to `MOST_DOCUMENT`; its content is there for a small one only."""

    def __init__(self, name: str, size: int, digest: str, content: bytes) -> None:
        super().__init__(BytesIO(content), name, size=size)
        self.digest = digest
        self.content = content


def text_of(file: HashedFile) -> str:
    """Return the text of a small file; raises `ValidationError` where it is larger, or no text."""
    if not file.content:
        raise ValidationError(f"The file has more than {MOST_TEXT // 2**10} KiB; choose another one.")
    try:
        return file.content.decode()
    except UnicodeDecodeError as error:
        raise ValidationError("The file is not UTF-8 text; choose another one.") from error


class HashingHandler(FileUploadHandler):
    """Takes every file in place of Django's handlers."""

    def new_file(self, *arguments: Any, **values: Any) -> None:
        """Begin another file."""
        super().new_file(*arguments, **values)
        self._hash, self._size, self._content = hashlib.sha256(), 0, b""

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        """Hash a piece, and pass nothing on."""
        self._size += len(raw_data)
        if self._size <= MOST_DOCUMENT:
            self._hash.update(raw_data)
        self._content = self._content + raw_data if self._size <= MOST_TEXT else b""

    def file_complete(self, file_size: int) -> HashedFile:
        """Return what is known of the file."""
        return HashedFile(self.file_name or "", self._size, self._hash.hexdigest(), self._content)


def bounded(application: Application) -> Application:
    """Refuse requests that are too large, or don't say how large they are, before anything of them is kept."""

    async def respond(scope: Any, receive: Any, send: Any) -> None:
        status = _refusal(scope) if scope["type"] == "http" else 0
        if not status:
            await application(scope, receive, send)
            return
        text = TOO_LARGE if status == 413 else "Say how long the request is (Content-Length)."
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"x-content-type-options", b"nosniff")]
        headers += [(b"cache-control", b"no-store"), (b"content-length", str(len(text.encode())).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})

    return respond


def _refusal(scope: Any) -> int:
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return 411
    most = MOST_WITH_DOCUMENT if scope["path"].startswith(WITH_DOCUMENTS) else MOST_REQUEST
    length = headers.get(b"content-length", b"0")
    return 413 if not length.isdigit() or int(length[:20]) > most else 0
