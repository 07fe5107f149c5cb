"""WebDAV with names taken as they are: what is asked of the server concerns the file that bears just that name.

httpx takes `%2f` in a path for an escape that somebody has made already, and `?` for a query, so that a name which
holds either would stand for another file, perhaps of another folder. Claim: each name is escaped once, whole, wherever
a request names it (`Destination` too), so that a name as listed addresses the file that was listed. Assumes that the
server unescapes once, as RFC 3986 has it, and that names are UTF-8: of one that isn't, nothing is found.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from httpx import URL
from webdav4.client import Client
from webdav4.fsspec import WebdavFileSystem
from webdav4.urls import join_url_path


class ExactClient(Client):
    """All its requests ask here for the address of a path."""

    def join_url(self, path: str, add_trailing_slash: bool = False) -> URL:
        """Return the address of `path` below the base, escaped once."""
        whole = join_url_path(self.base_url.path, path) + ("/" if add_trailing_slash else "")
        return self.base_url.copy_with(path=quote(whole))


class ExactWebdav(WebdavFileSystem):
    """webdav4's filesystem with such a client. options: as `Client` takes them."""

    def __init__(self, base_url: str, **options: Any) -> None:
        options.setdefault("chunk_size", self.blocksize)
        super().__init__(base_url, client=ExactClient(base_url, **options))
