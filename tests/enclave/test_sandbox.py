"""The sandbox: every wall is tried, and every wall that is taken down is noticed."""

import json
import os
import struct
import subprocess
import sys
import tempfile

import pytest

from datasites.enclave import confine, escape, sandbox
from datasites.enclave.sandbox import Sandbox, SandboxConfig, SandboxUnavailable, find_bwrap
from tests.enclave.walls import failed, showing
from tests.other_user import run_as_other_user

#: What only root can do where the kernel's files are not covered.
AS_ROOT = {"change the kernel's settings", "read what is root's alone"} if os.geteuid() == 0 else set()


def test_nothing_gets_out():
    attempts = escape.escape_check(Sandbox())
    assert len(attempts) >= 27
    assert failed(attempts) == set()


EVERYTHING = """
import os
from datasites.enclave import escape
from datasites.enclave.sandbox import Sandbox
attempts = escape.escape_check(Sandbox())
assert os.geteuid() != 0 and len(attempts) >= 27
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
        "read a file of the host", "read the host's accounts", "write outside the sandbox", "change what is shown",
        "reach the network", "see other processes", "signal the datasite", "the host saw no connection",
    } | AS_ROOT  # fmt: skip


class Weakened(Sandbox):
    """A sandbox with one wall changed."""

    def __init__(self, change):
        super().__init__()
        self._change = change

    def command(self, arguments, shown=None):
        return self._change(super().command(arguments, shown))


def without(*flags):
    return lambda command: [part for part in command if part not in flags]


def replacing(flag, *new):
    return lambda command: [part for old in command for part in (new if old == flag else (old,))]


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


def shown_writable(command):
    return [
        "--bind" if part == "--ro-bind" and command[place + 2] == str(sandbox.SHOWN) else part
        for place, part in enumerate(command)
    ]


def own_environment_kept(command):
    assert command[1] == "-i"
    return without("--clearenv")(command[2:])


def confinement_left_out(command):
    place = command.index("-m")
    code = "import datasites.enclave.attempts as e; e.confine = lambda limits: None; e.main()"
    return [*command[:place], "-c", code, *command[place + 2 :]]


@pytest.mark.parametrize(
    ("change", "noticed"),
    [
        (replacing("--unshare-all", "--unshare-all", "--share-net"), {"reach the network"}),
        (processes_shared, {"see other processes"}),
        (without("--disable-userns"), {"make a namespace"}),
        (without("--as-pid-1"), {"see other processes"}),
        (showing("/etc"), {"read the host's accounts"}),
        (showing(tempfile.gettempdir()), {"read a file of the host"}),
        (showing("/dev"), {"reach other devices"}),
        (shown_writable, {"change what is shown"}),
        (proc_as_the_kernel_shows_it, {"change the kernel's settings", "read what is root's alone"} & AS_ROOT),
        (proc_writable, {"change the kernel's settings"} & AS_ROOT),
        (own_environment_kept, {"read the datasite's environment"}),
        (
            confinement_left_out,
            {"open a socket", "start a process", "trace another process", "take more memory than allowed",
             "keep memory outside of the limits", "outlive the datasite", "make a call that is refused",
             "change the entry of a device", "leave a mark at a file",
             "raise a limit"} - ({"raise a limit"} if os.getuid() else set()),
        ),
    ],
    ids=["net", "pid", "userns", "reaper", "etc", "tmp", "dev", "shown", "proc", "proc-sys", "environment", "confine"],
)  # fmt: skip
def test_a_wall_taken_down_is_noticed(change, noticed):
    assert noticed <= failed(escape.escape_check(Weakened(change)))


REFUSED, ALLOWED, NO_SUCH_CALL, KILLED = 0x00050000 | 1, 0x7FFF0000, 0x00050000 | 38, 0x80000000


def verdict(machine, number, *arguments, devices=False, audit=None):
    """What the kernel would answer: the filter run over one call's data."""
    program = confine.filter_program(machine, devices=devices)
    steps = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    audit = confine._MACHINES[machine].audit if audit is None else audit
    data = struct.pack("=IIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    at, value = 0, 0
    while True:
        code, yes, no, operand = steps[at]
        at += 1
        if code == 0x20:  # load
            (value,) = struct.unpack_from("=I", data, operand)
        elif code == 0x06:  # return
            return operand
        else:
            met = {0x15: value == operand, 0x45: bool(value & operand), 0x35: value >= operand}[code]
            at += yes if met else no


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_refuses_what_it_names_and_nothing_else(machine):
    column = confine._MACHINES[machine].column
    named = {pair[column] for pair in confine._REFUSED.values()}
    scratch = {pair[column] for pair in confine._REFUSED_WITHOUT_DEVICES.values()}
    unreadable = {pair[column] for pair in confine._UNREADABLE.values()}
    clone = confine._MACHINES[machine].clone
    for number in range(500):
        wanted = NO_SUCH_CALL if number in unreadable else REFUSED if number in {*named, clone} else ALLOWED
        assert verdict(machine, number, devices=True) == wanted, number
        assert verdict(machine, number) == (REFUSED if number in scratch else wanted), number
    assert verdict(machine, 0, audit=1) == KILLED


@pytest.mark.parametrize(
    ("machine", "call"),
    [
        ("x86_64", {"clone": 56, "mmap": 9, "open": 2, "openat": 257, "fcntl": 72, "prctl": 157}),
        ("aarch64", {"clone": 220, "mmap": 222, "openat": 56, "fcntl": 25, "prctl": 167}),
    ],
)
def test_calls_are_judged_by_their_flags(machine, call):
    threads, private, shared, growing, create, unnamed = 0x3D0F00, 0x22, 0x21, 0x122, 0o101, 0o20200001
    assert verdict(machine, call["clone"], threads) == ALLOWED
    assert verdict(machine, call["clone"], 17) == REFUSED
    assert verdict(machine, call["mmap"], 0, 4096, 3, private) == ALLOWED
    assert verdict(machine, call["fcntl"], 5, 3) == ALLOWED
    assert verdict(machine, call["fcntl"], 5, 1031) == REFUSED
    assert verdict(machine, call["fcntl"], 5, 1031, devices=True) == REFUSED
    for command in range(2000):
        needed = command in (0, 1, 2, 3, 4, 1030, 1032)
        assert verdict(machine, call["fcntl"], 5, command) == (ALLOWED if needed else REFUSED), command
        wanted = REFUSED if command == 1031 else ALLOWED
        assert verdict(machine, call["fcntl"], 5, command, devices=True) == wanted
    assert verdict(machine, call["prctl"], 15) == ALLOWED
    for devices in (False, True):
        assert verdict(machine, call["prctl"], 22, 2, devices=devices) == REFUSED
        assert verdict(machine, call["prctl"], 1, 0, devices=devices) == REFUSED
        assert verdict(machine, call["prctl"], 1 << 32 | 1, 0, devices=devices) == REFUSED, "the kernel's int"
    assert verdict(machine, call["openat"], 5, 0, 0o2000000) == ALLOWED
    for flags in (shared, growing, 0x23):
        assert verdict(machine, call["mmap"], 0, 4096, 3, flags) == REFUSED
        assert verdict(machine, call["mmap"], 0, 4096, 3, flags, devices=True) == ALLOWED
    for flags in (create, unnamed):
        assert verdict(machine, call["openat"], 5, 0, flags) == REFUSED
        assert verdict(machine, call["openat"], 5, 0, flags, devices=True) == ALLOWED
        if "open" in call:
            assert verdict(machine, call["open"], 0, flags) == REFUSED
    if machine == "x86_64":
        assert verdict(machine, 0x40000000 | call["mmap"], 0, 4096, 3, private) == REFUSED


KEEPING = """
import ctypes, json, sys
from datasites.enclave.confine import WorkerLimits, confine
confine(WorkerLimits(memory=512 << 20))
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
kept = 0
for _ in range(768):
    segment = libc.shmget(0, 1 << 20, 0o1600)
    at = libc.shmat(segment, None, 0) if segment >= 0 else None
    if at in (None, ctypes.c_void_p(-1).value):
        break
    ctypes.memset(at, 1, 1 << 20)
    libc.shmdt(ctypes.c_void_p(at))
    kept += 1
print(kept)
"""


def test_no_memory_is_kept_beside_the_limit():
    """Three quarters of a gigabyte of System V shared memory, each piece let go of and kept, under a limit of half."""
    done = subprocess.run(Sandbox().command(["-c", KEEPING]), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "0\n"


ATTRIBUTES = """
import os
from datasites.enclave.confine import WorkerLimits, confine
confine(WorkerLimits(memory=512 << 20))
kept = 0
for folder in ("/tmp", "/dev/shm"):
    try:
        for number in range(100):
            os.setxattr(folder, f"user.{number}", bytes(60000))
            kept += 1
    except OSError:
        pass
print(kept)
"""


def test_no_memory_is_kept_in_attributes_of_files():
    """The kernel takes any number of them for the scratch folders, each of 64 KiB, beside their size."""
    done = subprocess.run(Sandbox().command(["-c", ATTRIBUTES]), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "0\n"


READ_ONLY = """
import ctypes
from datasites.enclave.confine import MIB, WorkerLimits, _ADDRESS_SLACK, mapped, confine
before = mapped()
confine(WorkerLimits(memory=512 << 20))
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
kept, piece = 0, 32 * MIB
while kept < 2048 * MIB:
    at = libc.mmap(None, piece, 3, 0x22, -1, 0)
    if at in (None, ctypes.c_void_p(-1).value):
        break
    ctypes.memset(at, 1, 4096)
    libc.mprotect(at, piece, 1)
    kept += piece
print(kept <= (512 << 20) + _ADDRESS_SLACK, before < 512 * MIB)
"""


def test_memory_that_was_made_read_only_is_bounded_too():
    """It is no writable memory any more, which is what the kernel counts as data."""
    done = subprocess.run(Sandbox().command(["-c", READ_ONLY]), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True True\n"


#: 48 threads that each hold a little memory, with stacks of 8 MiB.
MANY_THREADS = """
import threading
from datasites.enclave.confine import MIB, WorkerLimits, mapped, confine
confine(WorkerLimits(memory=1 << 30))
before, there = mapped(), threading.Barrier(49)
for _ in range(48):
    threading.Thread(target=lambda: (bytearray(100_000), there.wait(), there.wait()), daemon=True).start()
there.wait()
print((mapped() - before) // MIB - 48 * 8)
"""


def test_threads_leave_a_worker_the_addresses_of_its_memory():
    """The C library sets 64 MiB aside for each thread that allocates, up to eight a core, unless it is told not to."""
    command = Sandbox().command(["-c", MANY_THREADS])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 256


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
        "import os; print(sorted(os.listdir('/')), os.listdir('/shown/folder'),"
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


def test_a_missing_folder_to_show_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="not there"):
        Sandbox().command(["-c", "pass"], tmp_path / "gone")


def test_no_programs_inside():
    """But for this Python itself, where the system's is used."""
    code = "import json, os; print(json.dumps([f'{d}/{p}' for d in ('/bin', '/usr/bin') if os.path.isdir(d) "
    code += "for p in os.listdir(d)]))"
    done = subprocess.run(Sandbox().command(["-c", code]), capture_output=True, text=True, timeout=60, check=True)
    assert set(json.loads(done.stdout)) <= {os.path.realpath(sys.executable)}


def test_a_python_below_tmp_is_not_hidden() -> None:
    """A later mount on /tmp would hide a virtual environment or a study folder that lies there."""
    command = Sandbox(SandboxConfig()).command(["-c", "pass"])
    assert command.index("/tmp") < command.index("--ro-bind")


@pytest.mark.parametrize("call", ["execve", "socketpair", "io_uring_setup", "flock", "utimensat"])
def test_one_call_that_is_not_refused_is_noticed(call):
    """Each has another one behind which it would not be missed: programs are started by new processes, too."""
    code = (
        "import datasites.enclave.confine as c, datasites.enclave.attempts as e\n"
        "kept = c.filter_program\n"
        "def without(*a, **k):\n"
        f"    held = c._REFUSED.pop({call!r}, None) or c._REFUSED_WITHOUT_DEVICES.pop({call!r})\n"
        "    try: return kept(*a, **k)\n"
        f"    finally: c._REFUSED[{call!r}] = held\n"
        "c.filter_program = without\n"
        "e.main()\n"
    )

    def weaker(command):
        place = command.index("-m")
        return [*command[:place], "-c", code, *command[place + 2 :]]

    assert "make a call that is refused" in failed(escape.escape_check(Weakened(weaker)))
