"""What processes hold in memory, and folders on the disk, for benches and tests."""

from __future__ import annotations

from pathlib import Path


def begin_peak() -> None:
    """Count the peak of this process's memory from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return _status("VmRSS")


def peak() -> int:
    """Return the most bytes that the process has held, since it began or `begin_peak`."""
    return _status("VmHWM")


def proportional(pid: int) -> int:
    """Bytes of memory of a process, what it shares with others in equal parts; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def files_below(folder: Path) -> tuple[int, int]:
    """How many files, and their bytes, those of holes in them included; links are files, of their own size."""
    sizes = [path.lstat().st_size for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    return len(sizes), sum(sizes)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")
