"""Writes into a party's own folders: whole or not at all, whoever reads, fails or is killed meanwhile.

Claim: what was begun and not put in place is gone when the call ends, however it ends; what a kill leaves of a folder
goes at the next start (`clear_incoming`), and of a file it leaves the part that was written, under a hidden name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

#: Where folders are put together, in the SyftBox.
INCOMING = Path(".cache", "incoming")


def write_file(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step; makes the folder when absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def staged(syftbox: Path) -> Iterator[Path]:
    """Make a new folder to fill and then to rename to its place; remove it at the end if it was not renamed."""
    folder = syftbox / INCOMING / uuid4().hex
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear_incoming(syftbox: Path) -> None:
    """Remove what a killed process has put together by halves; where it came from, it still is."""
    shutil.rmtree(syftbox / INCOMING, ignore_errors=True)
