"""A machine whose kernel lets this user make no namespaces: its `bwrap` says what the real one says there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from datasites.enclave.template import Template
from datasites.hospital.site import Site

NO_NAMESPACE = "No permissions to create new namespace"
_BWRAP = f"""#!/bin/sh
echo "bwrap: {NO_NAMESPACE}, likely because the kernel does not allow non-privileged user namespaces." >&2
exit 1
"""


def without_namespaces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this machine look like that to all that looks for `bwrap` from here on."""
    programs = folder / "programs"
    programs.mkdir()
    (programs / "bwrap").write_text(_BWRAP)
    (programs / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    # None that began before.
    monkeypatch.setattr(Site, "template", property(lambda site: Template(site.home.settings.sandbox)))
