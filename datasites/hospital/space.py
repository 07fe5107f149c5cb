"""Free space on the file systems that a datasite writes to: for people, and for errors that don't say that it is full.

Looks, and writes nothing. SQLite says "disk I/O error" where no room is left, and Django calls it an outage: it is one,
since nothing is lost and all goes on once there is room; but people must be told where to make room.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasites.hospital.config import Home

MiB = 2**20
#: Below these, people should look, and the datasite can't be sure to finish a round.
LITTLE, NONE = 1024 * MiB, 64 * MiB
#: With less than this, what fails has failed for want of room.
_FULL = 256 * 1024


@dataclass(frozen=True)
class Room:
    """What is left for this user on the file system of a folder. files: how many more, where it counts them."""

    what: str
    folder: Path
    free: int
    files: int | None

    @property
    def summary(self) -> str:
        """The file system and its free room in one line, for people."""
        files = "" if self.files is None or self.files > 1000 else f" and for {self.files} files"
        return f"{self.what} {self.folder}: room for {self.free / MiB:,.1f} MiB{files}"

    @property
    def is_full(self) -> bool:
        """Say whether hardly anything can be written there."""
        return self.free < _FULL or self.files == 0


def rooms(home: Home) -> Iterator[Room]:
    """Yield home, store (where it is a folder of this machine) and temporary files; each file system once."""
    places = [("home", home.root), ("temporary files", Path(tempfile.gettempdir()))]
    if (store := home.settings.store).startswith(("/", "file:///")):
        places.insert(1, ("store", Path(store.removeprefix("file://"))))
    seen = set()
    for what, folder in places:
        try:
            device, left = folder.stat().st_dev, os.statvfs(folder)
        except OSError:
            continue  # a folder that is gone is told by what needs it
        if device not in seen:
            seen.add(device)
            yield Room(what, folder, left.f_bavail * left.f_frsize, left.f_favail if left.f_files else None)


def full_in_words(home: Home) -> str:
    """Say where no room is left, with the remedy; "" where there is some."""
    full = [room.summary for room in rooms(home) if room.is_full]
    return f"no room is left ({', '.join(full)}), make room there" if full else ""
