"""Runs a command as a user who is not root: for tests of what differs between the two, started by root or not.

As root it is started as `nobody`, in a mount namespace of its own in which this Python can be reached even where it
lies in root's home; as any other user, as that user.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

_BECOME_NOBODY = """
set -e
shown=$(mktemp -d); mount --bind "$2" "$shown"
[ "$1" = / ] || { mount -t tmpfs -o mode=755 none "$1"; mkdir -p "$2"; mount --bind "$shown" "$2"; }
umount -l "$shown"; rmdir "$shown"
shift 2
exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all "$@"
"""


def run_as_other_user(command: Sequence[str], *, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `command` as a user who is not root, with this process's environment but for a home."""
    if os.geteuid() == 0:
        probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
        if probe.returncode != 0:
            pytest.skip("root may make no mount namespace here, in which nobody could reach this Python")
        python = Path(os.path.realpath(sys.executable)).parent.parent
        closed = [folder for folder in reversed(python.parents) if not folder.stat().st_mode & 0o001]
        prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _BECOME_NOBODY, "-"]
        command = [*prefix, str(closed[0] if closed else "/"), str(python), *command]
    env = {**os.environ, "HOME": "/nonexistent"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=env, cwd=cwd, check=False)
