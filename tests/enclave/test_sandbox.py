"""The sandbox: every wall is tried, and every wall that is taken down is noticed."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from datasites.enclave import confine, escape, sandbox
from datasites.enclave.sandbox import Sandbox, SandboxConfig, SandboxUnavailable, find_bwrap
from tests.other_user import run_as_other_user

#: What only root can do where the kernel's files are not covered.
AS_ROOT = {"change the kernel's settings", "read what is root's alone"} if os.geteuid() == 0 else set()


def failed(attempts):
    assert {attempt.outcome for attempt in attempts} <= {"held", "got out"}, attempts
    return {attempt.name for attempt in attempts if not attempt.held}


def test_nothing_gets_out():
    attempts = escape.escape_check(Sandbox())
    assert len(attempts) >= 22
    assert failed(attempts) == set()


EVERYTHING = """
import os
from datasites.enclave import escape
from datasites.enclave.sandbox import Sandbox
attempts = escape.escape_check(Sandbox())
assert os.geteuid() != 0 and len(attempts) >= 22
print([attempt for attempt in attempts if not attempt.held])
"""


def test_nothing_gets_out_of_the_sandbox_of_another_user():
    done = run_as_other_user([sys.executable, "-c", EVERYTHING])
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_of_proc_only_what_was_named_holds_anything():
    code = (
        "import os\n"
        "for folder, folders, names in os.walk('/proc'):\n"
        "    if folder == '/proc':\n"
        "        folders[:] = [name for name in folders if not name.isdigit()]\n"
        "    for path in (f'{folder}/{name}' for name in names):\n"
        "        try:\n"
        "            if not os.path.islink(path) and open(path, 'rb').read(1): print(path)\n"
        "        except OSError: pass\n"
    )
    done = subprocess.run(Sandbox().command(["-c", code]), capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) == {f"/proc/{name}" for name in sandbox._SHOWN}


def test_without_a_sandbox_the_same_attempts_get_out():
    attempts = escape.escape_check(Sandbox(SandboxConfig(mode="off")))
    assert failed(attempts) >= {
        "read a file of the host", "read the host's accounts", "write outside the sandbox", "change the frozen copy",
        "reach the network", "see other processes", "signal the datasite", "the host saw no connection",
    } | AS_ROOT  # fmt: skip


class Weakened(Sandbox):
    """A sandbox with one wall changed."""

    def __init__(self, change):
        super().__init__()
        self._change = change

    def command(self, arguments, frozen=None):
        return self._change(super().command(arguments, frozen))


def without(*flags):
    return lambda command: [part for part in command if part not in flags]


def replacing(flag, *new):
    return lambda command: [part for old in command for part in (new if old == flag else (old,))]


def showing(folder):
    def change(command):
        place = len(command) - 1 - command[::-1].index("--remount-ro")
        return [*command[:place], "--ro-bind", folder, folder, *command[place:]]

    return change


def proc_as_the_kernel_shows_it(command):
    start, end = command.index("--proc"), command.index("--dev")
    return [*command[: start + 2], *command[end:]]


def proc_writable(command):
    place = command.index("--dev") - 2
    assert command[place : place + 2] == ["--remount-ro", "/proc"]
    covers = [at for at, part in enumerate(command) if part == "/proc/sys"]  # a folder and its remounting
    return [part for at, part in enumerate(command) if at not in {place, place + 1, *covers, *(c - 1 for c in covers)}]


def processes_shared(command):
    unshared = replacing("--unshare-all", "--unshare-net", "--unshare-ipc", "--unshare-uts")
    return without("--as-pid-1")(unshared(command))


def frozen_copy_writable(command):
    return [
        "--bind" if part == "--ro-bind" and command[place + 2] == "/study" else part
        for place, part in enumerate(command)
    ]


def own_environment_kept(command):
    assert command[1] == "-i"
    return without("--clearenv")(command[2:])


def confinement_left_out(command):
    place = command.index("-m")
    code = "import datasites.enclave.escape as e; e.confine = lambda limits: None; e.main()"
    return [*command[:place], "-c", code, *command[place + 2 :]]


@pytest.mark.parametrize(
    ("change", "noticed"),
    [
        (replacing("--unshare-all", "--unshare-all", "--share-net"), {"reach the network"}),
        (processes_shared, {"see other processes"}),
        (without("--disable-userns"), {"make a namespace"}),
        (without("--as-pid-1"), {"see other processes"}),
        (showing("/etc"), {"read the host's accounts"}),
        (showing("/tmp"), {"read a file of the host"}),
        (showing("/dev"), {"reach other devices"}),
        (frozen_copy_writable, {"change the frozen copy"}),
        (proc_as_the_kernel_shows_it, {"change the kernel's settings", "read what is root's alone"} & AS_ROOT),
        (proc_writable, {"change the kernel's settings"} & AS_ROOT),
        (own_environment_kept, {"read the datasite's environment"}),
        (
            confinement_left_out,
            {"open a socket", "start a process", "trace another process", "take more memory than allowed",
             "raise a limit"} - ({"raise a limit"} if os.getuid() else set()),
        ),
    ],
    ids=["net", "pid", "userns", "reaper", "etc", "tmp", "dev", "frozen", "proc", "proc-sys", "environment", "confine"],
)  # fmt: skip
def test_a_wall_taken_down_is_noticed(change, noticed):
    assert noticed <= failed(escape.escape_check(Weakened(change)))


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_ends_in_known_verdicts_and_jumps_inside(machine):
    program = confine.filter_program(machine)
    steps = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    verdicts = [value for code, _, _, value in steps if code == 0x06]
    assert set(verdicts) <= {0x7FFF0000, 0x80000000, 0x00050000 | 1, 0x00050000 | 38}
    assert verdicts.count(0x7FFF0000) == 1
    for place, (_, yes, no, _) in enumerate(steps):
        assert place + 1 + max(yes, no) < len(steps) or steps[place][0] == 0x06


def test_required_without_bubblewrap_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(sandbox.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SandboxUnavailable, match="install"):
        Sandbox()
    (tmp_path / "bwrap").write_text("not one")
    with pytest.raises(SandboxUnavailable, match="not a program"):
        Sandbox(SandboxConfig(bwrap=str(tmp_path / "bwrap")))


def test_bubblewrap_is_found_in_the_wheel(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert os.access(find_bwrap(), os.X_OK)


def test_off_is_never_silent():
    assert Sandbox().warnings == ()
    (warning,) = Sandbox(SandboxConfig(mode="off")).warnings
    assert "off" in warning
    assert SandboxConfig().mode == "required"


def test_only_what_was_named_is_seen(tmp_path):
    study = tmp_path / "study"
    study.mkdir()
    (study / "model.py").write_text("x = 1\n")
    (tmp_path / "other.csv").write_text("secret")
    code = (
        "import os; print(sorted(os.listdir('/')), os.listdir('/study'),"
        " sorted(os.listdir('/enclave/datasites')), dict(os.environ).keys() - {'LC_CTYPE'},"
        f" os.path.exists({str(tmp_path)!r}))"
    )
    command = Sandbox().command(["-c", code], study)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "['model.py'] ['__init__.py', 'enclave', 'privacy', 'study']" in done.stdout
    assert "False" in done.stdout
    assert "home" not in done.stdout.split("]")[0]
    for name in ("SSH_AUTH_SOCK", "AWS_", "TOKEN"):
        assert name not in done.stdout


def test_a_missing_frozen_copy_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="not there"):
        Sandbox().command(["-c", "pass"], tmp_path / "gone")


def test_no_programs_inside():
    code = "import os; print([p for p in ('/bin/sh', '/usr/bin/env', '/usr/bin/python3') if os.path.exists(p)])"
    done = subprocess.run(Sandbox().command(["-c", code]), capture_output=True, text=True, timeout=60, check=True)
    system_python = sys.base_prefix in ("/usr", "/usr/local") and Path("/usr/bin/python3").exists()
    assert done.stdout.strip() == ("['/usr/bin/python3']" if system_python else "[]")


def test_a_python_below_tmp_is_not_hidden() -> None:
    """A later mount on /tmp would hide a virtual environment or a study folder that lies there."""
    command = Sandbox(SandboxConfig()).command(["-c", "pass"])
    assert command.index("/tmp") < command.index("--ro-bind")
