"""Folders of a party's own that are put in place whole or not at all, whoever reads, fails or is killed meanwhile.

Claim: what is in its place is on the disk, whole. What was begun and not put in place is gone when the call ends,
however it ends; what a kill leaves goes at the next start (`clear_incoming`). Files by themselves are written by
`study.files`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from datasites.study.files import move_durably, on_disk, sync_folder

#: Where folders are put together, in the SyftBox.
INCOMING = Path(".cache", "incoming")


def put_folder(syftbox: Path, target: Path, files: Mapping[str, bytes]) -> None:
    """Put a whole folder in the place of `target`; it is on the disk when this returns.

    Killed between the removal of the one before and the move of this one, there is none.
    """
    folder = syftbox / INCOMING / uuid4().hex
    folder.mkdir(parents=True)
    try:
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with on_disk(folder / path) as file:
                file.write(content)
        for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            sync_folder(inner)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        move_durably(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear_incoming(syftbox: Path) -> None:
    """Remove what a killed process has put together by halves; where it came from, it still is."""
    shutil.rmtree(syftbox / INCOMING, ignore_errors=True)
