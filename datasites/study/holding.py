"""One process at a time in a folder of a party's own: the lock on it, and who has it.

Claim: of all who ask through `hold` on one machine, one at a time has the folder, and whoever is refused is told which
process has it, on which machine, since when. A lock that a dead process left is taken over: the system frees it when
the process ends, however it ends. Assumes `flock` as Linux keeps it on the machine's own disks. A process forked from
the one that holds it holds it, too. Not claimed: on a network share (NFS, SMB, sshfs, folders of a virtual machine's
host), where a lock may count on each machine by itself, or outlive a machine that died. There each start warns, and
what a process of another machine has not given back is not taken over before a person says that it ended. Machines are
told apart by their host names.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import re
import socket
import weakref
from pathlib import Path
from typing import Annotated

from pydantic import Field

from datasites.study.canonical import Agreed
from datasites.study.errors import InputError
from datasites.study.files import open_lock, taken

MOUNTS = Path("/proc/self/mountinfo")
#: File systems of one machine's own disks and memory, whose locks all of its processes see, and no other machine does.
_OWN = {
    *("bcachefs", "btrfs", "ecryptfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "jfs", "nilfs2", "ntfs3"),
    *("overlay", "ramfs", "reiserfs", "tmpfs", "vfat", "xfs", "zfs"),
}

log = logging.getLogger(__name__)


class Held(InputError):
    """Another process, or another part of this one, has the folder; the message names it and the remedy."""


class Holder(Agreed):
    """Who has a folder, as written into its lock."""

    process: Annotated[int, Field(ge=1)]
    machine: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,255}$")]
    since: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2} UTC$")]

    @classmethod
    def here(cls) -> Holder:
        """Return this process, from now on."""
        now = datetime.datetime.now(datetime.UTC)
        return cls(process=os.getpid(), machine=_machine(), since=f"{now:%Y-%m-%d %H:%M} UTC")

    def __str__(self) -> str:
        """In words."""
        if (self.process, self.machine) == (os.getpid(), _machine()):
            return f"this very process, since {self.since}"
        return f"process {self.process} on {self.machine} since {self.since}"


class Hold:
    """A folder that is held until `release`, or until the process ends."""

    def __init__(self, file: int) -> None:
        self._end = weakref.finalize(self, _let_go, file, os.getpid())

    def release(self) -> None:
        """Let others have the folder; safe to repeat."""
        self._end()

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def hold(lock: Path, what: str, remedy: str) -> Hold:
    """Take the folder of this lock file, which is made with its folder (0700) when absent.

    what: what the folder is in use for, and remedy: what to do, in words for whoever is refused. Raises `Held`, and
    `InputError` where its file system keeps no locks.
    """
    file = open_lock(lock)
    try:
        _take(file, lock, what, remedy)
    except BaseException:
        os.close(file)
        raise
    return Hold(file)


def _take(file: int, lock: Path, what: str, remedy: str) -> None:
    kind = file_system(lock.parent)
    try:
        if not taken(file):
            raise Held(f"{what} ({_holder(file) or 'by another process'}); {remedy}")
    except OSError as error:
        raise InputError(
            f"{lock}: this file system ({kind}) keeps no locks ({error.strerror}); move the folder to a disk of this "
            "machine"
        ) from error
    if kind not in _OWN:
        before = _holder(file)
        if before is not None and before.machine != _machine():
            raise Held(
                f"{what} ({before}), or that ended without giving it back, which a lock on a network share ({kind}) "
                f"does not tell; {remedy}; where it has ended, remove {lock}"
            )
        log.warning(
            "%s lies on a network share (%s), where a lock need not keep other machines out: use it from one machine "
            "at a time, or move it to a disk of this machine", lock.parent, kind,
        )  # fmt: skip
    with contextlib.suppress(OSError):  # a full disk; the lock holds, and says less
        os.ftruncate(file, 0)
        os.pwrite(file, Holder.here().canonical(), 0)


def _let_go(file: int, process: int) -> None:
    with contextlib.suppress(OSError):
        if os.getpid() == process:  # else a process that was forked from it ends
            os.ftruncate(file, 0)
    os.close(file)


def _holder(file: int) -> Holder | None:
    try:
        return Holder.parse(os.pread(file, 1000, 0))
    except (OSError, ValueError):
        return None


def _machine() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:255] or "unnamed"


def file_system(folder: Path) -> str:
    """Return the type of the file system that a folder lies on; "unknown" where the system doesn't say."""
    real, best, kind = os.path.realpath(folder), "", "unknown"
    try:
        mounts = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return kind
    for mount in mounts:
        place, _, how = mount.partition(" - ")
        # Blanks and backslashes of a name are written in octal.
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), place.split(" ")[4])
        is_below = real == point or real.startswith(point.rstrip("/") + "/")
        if is_below and len(point) >= len(best):  # of two at one place, the later one lies on top
            best, kind = point, how.split(" ")[0]
    return kind
