"""What the worker gives up before it reads a line of model code: resources and system calls.

Runs inside the sandbox, as trusted code, once. Limits are set hard, so that nothing in the process can raise them. The
system call filter is a classic BPF program (seccomp mode 2, all threads): it refuses sockets, new programs, new
processes, new namespaces, mounts, tracing, kernel keys, io_uring and the other calls that a training loop never makes
and that kernel exploits commonly use; and any change of the signal by which the kernel ends this process with its
parent. Filters exist for x86-64 and AArch64; elsewhere `confine` says that there is none, and bubblewrap's namespaces
remain.

**Guarantee (memory).** If no devices are given, the process can keep at most `WorkerLimits.memory` of private, writable
memory, and of kernel memory at most 256 pipes of 64 KiB, whose descriptors are limited too. System V shared memory,
semaphores and queues, POSIX queues, shared and growing mappings, larger pipes, new files, attributes of files, watches
on them, locks on parts of them, further filters, Landlock rules and asynchronous I/O are refused, since none of them
counts as the process's own memory. Memory that it has written and then made read-only doesn't count either, and is
bounded by address space: together with everything else, at most `WorkerLimits.memory`, `_ADDRESS_SLACK` and what was
mapped when it was confined (some 0.7 GiB, most of it libraries). Assumptions: there is a filter for this processor; the
kernel counts RLIMIT_DATA and RLIMIT_AS as documented. A cgroup (`cgroup`), if this service was given one, counts all of
it again, and also the threads of a worker that is root.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
from typing import Annotated

from pydantic import Field

from datasites.study.canonical import Agreed

GIB = 1024**3
MIB = 1024**2


class WorkerLimits(Agreed):
    """Hard limits of one worker. Bytes unless the name says otherwise; `parameters` are a model's, at most.

    Memory of the datasite's own process grows with `parameters`: a vector of 32 million is 128 MB.
    """

    memory: Annotated[int, Field(ge=512 * MIB)] = 4 * GIB
    processes: Annotated[int, Field(ge=1)] = 256
    file_size: Annotated[int, Field(ge=0)] = 16 * MIB
    open_files: Annotated[int, Field(ge=32)] = 256
    scratch: Annotated[int, Field(ge=MIB)] = 16 * MIB
    cpu_seconds: Annotated[int, Field(ge=1)] = 24 * 3600
    parameters: Annotated[int, Field(ge=1)] = 32_000_000
    devices: bool = False


#: Address space beyond `memory` and what is mapped already: libraries that come later, and what the C library sets
#: aside for threads (`sandbox` tells it how little).
_ADDRESS_SLACK = GIB

#: Of the first thread, which counts as no data and could grow without this; others' are mapped, and count.
_STACK = 8 * MIB

#: Seconds between the signal that the processor time is used up and the kernel's kill.
_CPU_GRACE = 30

# Kernel constants (linux/bpf_common.h, linux/seccomp.h, linux/audit.h, linux/sched.h, sys/prctl.h).
_LD_ABS, _JEQ, _JSET, _JGE, _RET = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_ARGUMENTS = 0, 4, 16
_CLONE_THREAD = 0x00010000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 38, 22
_SECCOMP_SET_MODE_FILTER, _TSYNC = 1, 1
_X32_BIT = 0x40000000

# Refused calls: name -> (x86-64 number, AArch64 number); None where the machine has no such call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # network
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # programs and processes
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    # other processes' memory and descriptors
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # modes, owners and times of files: bubblewrap can't show the host's devices read-only
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "file_setattr": (469, 469),
    # memory that is the kernel's, and outlives or exceeds what a process is limited to
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "mq_timedsend": (242, 182),
    "mq_timedreceive": (243, 183),
    "mq_notify": (244, 184),
    "mq_getsetattr": (245, 185),
    "io_setup": (206, 0),
    "io_destroy": (207, 1),
    "io_submit": (209, 2),
    "io_cancel": (210, 3),
    "io_getevents": (208, 4),
    "io_pgetevents": (333, 292),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "seccomp": (317, 277),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
    "map_shadow_stack": (453, 453),
    # kernel interfaces that a training loop has no use for
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "vmsplice": (278, 75),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "iopl": (172, None),
    "ioperm": (173, None),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}


# Refused besides where no devices are given; drivers need them, and memory is not limited there. No file is made new:
# the scratch folder bounds the bytes of files, and not how many there are.
_REFUSED_WITHOUT_DEVICES: dict[str, tuple[int | None, int | None]] = {
    "creat": (85, None),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    # a lock on a file that others have, too, by which they could be told something
    "flock": (73, 32),
}
_MAP_SHARED, _MAP_GROWSDOWN, _O_CREAT, _O_TMPFILE = 0x1, 0x100, 0o100, 0o20000000
#: Calls with flags that are refused there: name, numbers as above, which argument, flags.
_REFUSED_FLAGS: tuple[tuple[str, tuple[int | None, int | None], int, int], ...] = (
    ("mmap", (9, 222), 3, _MAP_SHARED | _MAP_GROWSDOWN),
    ("open", (2, None), 1, _O_CREAT | _O_TMPFILE),
    ("openat", (257, 56), 2, _O_CREAT | _O_TMPFILE),
)
#: Calls whose flags lie behind a pointer; ENOSYS makes the C library fall back to one that can be judged.
_UNREADABLE: dict[str, tuple[int, int]] = {"clone3": (435, 435), "openat2": (437, 437)}
_FCNTL, _F_SETPIPE_SZ, _PRCTL = (72, 25), 1031, (157, 167)
#: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_GETPIPE_SZ. Others leave something at a file that is
#: everybody's (locks, leases, notices, hints): the kernel keeps as many as are asked for, and shows them to others.
_F_ALLOWED = (0, 1, 2, 3, 4, 1030, 1032)


class _Machine:
    """Numbers that differ by processor: column in `_REFUSED` and the like, audit architecture, clone, seccomp."""

    def __init__(self, column: int, audit: int, clone: int, seccomp: int) -> None:
        self.column, self.audit, self.clone, self.seccomp = column, audit, clone, seccomp


_MACHINES = {
    "x86_64": _Machine(0, 0xC000003E, 56, 317),
    "aarch64": _Machine(1, 0xC00000B7, 220, 277),
}


def confine(limits: WorkerLimits, size: int | None = None) -> tuple[str, ...]:
    """Apply resource limits and the system call filter to this process; returns what could not be applied, in words.

    size: bytes of addresses that this process has taken, where it can't ask any more; see `mapped`.
    Irrevocable. Call after imports and before any model code. Raises `OSError` when the kernel has seccomp and
    refuses the filter: a filter that was meant to be there and isn't is not a warning.
    """
    for kind, value in _resources(limits, mapped() if size is None else size):
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    # The soft limit sends SIGXCPU, which the worker turns into an error with a name; the hard one kills.
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    kill = limits.cpu_seconds + _CPU_GRACE
    kill = kill if hard == resource.RLIM_INFINITY else min(kill, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (min(limits.cpu_seconds, kill), kill))
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return (f"no system call filter for {platform.machine()}: only x86-64 and AArch64 are known",)
    _install(machine, limits.devices)
    return ()


def has_filter() -> bool:
    """Return whether a system call filter is known for this processor."""
    return platform.machine() in _MACHINES


def end_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends. Call before `confine`, which seals it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PDEATHSIG) was refused")


def _resources(limits: WorkerLimits, size: int) -> list[tuple[int, int]]:
    chosen = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits.file_size),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_NPROC, limits.processes),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, 256),
        (resource.RLIMIT_STACK, _STACK),
    ]
    if not limits.devices:
        # DATA counts private writable memory, which is what tensors are; AS also what is made read-only once written.
        # GPU drivers reserve address space by the terabyte, so neither limit is set where devices are given.
        addresses = size + limits.memory + _ADDRESS_SLACK
        chosen += [(resource.RLIMIT_DATA, limits.memory), (resource.RLIMIT_AS, addresses)]
    return chosen


def mapped() -> int:
    """Return the bytes of address space that this process has taken."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def filter_program(machine_name: str, *, devices: bool = False) -> bytes:
    """Return the BPF program for "x86_64" or "aarch64", as an array of 8-byte `struct sock_filter`. Raise `KeyError`.

    devices: for a worker that is given some (see `_REFUSED_WITHOUT_DEVICES`).
    """
    machine = _MACHINES[machine_name]
    column = machine.column
    program: list[tuple[int, int, int, int]] = [
        (_LD_ABS, 0, 0, _OFFSET_ARCH),
        (_JEQ, 1, 0, machine.audit),
        (_RET, 0, 0, _KILL),
        (_LD_ABS, 0, 0, _OFFSET_NUMBER),
    ]
    if machine_name == "x86_64":
        # The x32 interface has its own numbers for the same calls: refuse all of it.
        program += [(_JGE, 0, 1, _X32_BIT), (_RET, 0, 0, _ERRNO | errno.EPERM)]
    for pair in _UNREADABLE.values():
        program += [(_JEQ, 0, 1, pair[column]), (_RET, 0, 0, _ERRNO | errno.ENOSYS)]
    for refused in sorted(refused_calls(machine_name, devices=devices).values()):
        program += [(_JEQ, 0, 1, refused), (_RET, 0, 0, _ERRNO | errno.EPERM)]
    # A new thread is allowed, a new process is not.
    program += _judged(machine.clone, 0, [(_JSET, 1, 0, _CLONE_THREAD)])
    allowed = [(_JEQ, len(_F_ALLOWED) - place, 0, one) for place, one in enumerate(_F_ALLOWED)]
    program += _judged(_FCNTL[column], 1, [(_JEQ, 0, 1, _F_SETPIPE_SZ)] if devices else allowed)
    program += _judged(_PRCTL[column], 0, [(_JEQ, 1, 0, _PR_SET_PDEATHSIG), (_JEQ, 0, 1, _PR_SET_SECCOMP)])
    if not devices:
        for _, numbers, argument, flags in _REFUSED_FLAGS:
            if (number := numbers[column]) is not None:
                program += _judged(number, argument, [(_JSET, 0, 1, flags)])
    program.append((_RET, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", code, yes, no, value) for code, yes, no, value in program)


def refused_calls(machine_name: str, *, devices: bool) -> dict[str, int]:
    """Return the numbers of the calls that are refused whatever their arguments, by name."""
    calls = _REFUSED if devices else {**_REFUSED, **_REFUSED_WITHOUT_DEVICES}
    column = _MACHINES[machine_name].column
    return {name: number for name, pair in calls.items() if (number := pair[column]) is not None}


def _judged(number: int, argument: int, rules: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Refuse call `number` by the low word of one argument: the rules jump over the refusal or into it."""
    return [
        (_JEQ, 0, 3 + len(rules), number),
        (_LD_ABS, 0, 0, _OFFSET_ARGUMENTS + 8 * argument),
        *rules,
        (_RET, 0, 0, _ERRNO | errno.EPERM),
        (_RET, 0, 0, _ALLOW),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _install(machine: _Machine, devices: bool) -> None:
    program = filter_program(platform.machine(), devices=devices)
    buffer = ctypes.create_string_buffer(program, len(program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(NO_NEW_PRIVS) was refused")
    described = _Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    # TSYNC applies the filter to threads that libraries have already started.
    if libc.syscall(machine.seccomp, _SECCOMP_SET_MODE_FILTER, _TSYNC, ctypes.byref(described)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"the kernel refused the system call filter: {os.strerror(code)}")
