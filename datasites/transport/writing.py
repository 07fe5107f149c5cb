"""Folders of a party's own that are put in place whole or not at all, whoever reads, fails or is killed meanwhile.

Claim: what was begun and not put in place is gone when the call ends, however it ends; what a kill leaves goes at the
next start (`clear_incoming`). Files by themselves are written by `study.files`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

#: Where folders are put together, in the SyftBox.
INCOMING = Path(".cache", "incoming")


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
