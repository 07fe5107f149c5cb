"""What to allow on a machine that lets this user make no namespaces: derived from what the machine shows of itself.

bubblewrap's own message ("No permissions to create new namespace") names neither the rule nor who set it, and the
rule differs by distribution. Read only when a sandbox could not be made.
"""

from __future__ import annotations

import os
from pathlib import Path

_SYSCTL = "`sysctl -w {0}={1}` now, and `{0} = {1}` in /etc/sysctl.d/datasites.conf for the next start"

#: Kernel settings that forbid user namespaces: file below /proc/sys, the value that forbids, what to do about it.
_SETTINGS = (
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor (Ubuntu 24.04 and later) keeps programs without a profile from using user namespaces: give "
        "bubblewrap one (datasites/enclave/README.md), or "
        + _SYSCTL.format("kernel.apparmor_restrict_unprivileged_userns", 0),
    ),
    (
        "kernel/unprivileged_userns_clone",
        "0",
        "this kernel (Debian 10, hardened kernels) allows user namespaces to root alone: "
        + _SYSCTL.format("kernel.unprivileged_userns_clone", 1),
    ),
    (
        "user/max_user_namespaces",
        "0",
        "no user namespace is allowed (RHEL 7, hardened systems): " + _SYSCTL.format("user.max_user_namespaces", 15000),
    ),
)
_CONTAINER = (
    "this looks like a container, whose engine forbids namespaces or hides parts of /proc: Docker `--security-opt "
    "seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined`, Podman "
    "`--security-opt seccomp=unconfined --security-opt unmask=ALL`, Kubernetes `hostUsers: false`, `procMount: "
    "Unmasked` and seccompProfile Unconfined; or run outside of a container"
)
_WSL1 = "WSL 1 has no namespaces: `wsl --set-version DISTRIBUTION 2`"
_NO_NAMESPACES = "this kernel was built without user namespaces (CONFIG_USER_NS): start another kernel"
_UNKNOWN = (
    "nothing here says which rule forbids it: ask whoever runs this machine to let this user make user namespaces "
    "(datasites/enclave/README.md lists the rules by distribution)"
)


def what_to_allow(root: Path = Path("/")) -> str:
    """Say what keeps this user from making namespaces and what to allow; all that is found, the surest first.

    root: where the machine's own files are looked for.
    """
    if "-Microsoft" in _read(root / "proc/sys/kernel/osrelease"):
        return _WSL1
    if not os.path.lexists(root / "proc/self/ns/user"):
        return _NO_NAMESPACES
    found = [remedy for file, forbids, remedy in _SETTINGS if _read(root / "proc/sys" / file) == forbids]
    if any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv", "run/secrets/kubernetes.io")):
        found.append(_CONTAINER)
    return "; ".join(found) or _UNKNOWN


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
