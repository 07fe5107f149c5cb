"""Files that hold what must survive: after a crash all of the new content is there, or all of the old.

For a party's own state. What the shared store holds is written by `transport`.
"""

from __future__ import annotations

import os
from pathlib import Path


def replace_durably(path: Path, data: bytes | memoryview, *, mode: int = 0o600) -> None:
    """Replace `path` by `data` in one step; it is on the disk when this returns. For one writer at a time.

    Makes the folder (0700) when absent. mode: of the file, before the process's mask.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    # The name as well: without this, a power cut can leave the old file under it.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
