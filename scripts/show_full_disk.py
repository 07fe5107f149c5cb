#!/usr/bin/env python3
"""What a hospital says and does while its disk of 12 MB is full, at each of ten points of a study.

Each is a whole study of three rounds and the final evaluation among four hospitals, one of them real but for its
sandboxed worker (`tests.hospital.hostile_home`). Its home lies on a disk of its own, which is filled to the last byte
as a letter of that point passes, and stays so for some seconds. Prints, for each point, how the study ended, and what
the hospital's service said while there was no room. Exit code 1 where a round is charged, released or answered twice,
where log, ledger and journal tell different stories afterwards, where the audit log does not verify, or where the model
is not the mean of those who took part.

Usage: python scripts/show_full_disk.py [--seconds 6] [--points [POINT ...]]
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from datasites.enclave.sandbox import find_bwrap  # noqa: E402
from tests.transport import hostile_store  # noqa: E402
from tests.transport.hostile_store import POINTS, HostileStore  # noqa: E402

SIZE = 12 * 2**20
TRICK = "disk full"


def main() -> int:
    """Run each point's study; on a small disk, for which this runs itself again with one mounted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--points", nargs="*", choices=list(POINTS), default=list(POINTS))
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.root is None:
        with tempfile.TemporaryDirectory(prefix="full-disk-", ignore_cleanup_errors=True) as folder:
            (Path(folder) / "home").mkdir()
            disk = ["--size", str(SIZE), "--tmpfs", str(Path(folder) / "home")]
            again = [sys.executable, __file__, *sys.argv[1:], "--root", folder]
            return subprocess.run([str(find_bwrap()), "--dev-bind", "/", "/", *disk, *again], check=False).returncode
    return show(asked.root, asked.points, asked.seconds)


def show(root: Path, points: Sequence[str], seconds: float) -> int:
    """Show the studies, one after the other."""
    logging.basicConfig(handlers=[logging.NullHandler()])
    from tests.hospital.hostile_home import RealHospital
    from tests.researcher.hostile import run_study, short_study

    disk = root / "home"

    class OnASmallDisk(RealHospital):
        """Whose alarms are told and not counted: that its disk is full is one."""

        def wrong(self, sure: Collection[int]) -> str:
            alarms = super().wrong(sure).split("; ")
            return "; ".join(part for part in alarms if "alarm in" not in part)

        def reported(self) -> list[str]:
            """Return what the service reported, each thing once, without times and names of this run."""
            lines = [re.sub(r"^[-\d]+ [\d:,]+ ", "", line) for line in self._said.getvalue().splitlines()]
            loud = [line for line in lines if re.match(r"(WARNING|ERROR|CRITICAL)|\S*Error", line)]
            return list(dict.fromkeys(line.replace(str(root), "").replace(self.study.hash, "STUDY") for line in loud))

    def fill(store: HostileStore, path: Path, data: bytes) -> None:
        path.write_bytes(data)
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        store.later(seconds, lambda: ballast.unlink(missing_ok=True))

    hostile_store.TRICKS[TRICK] = fill
    hospital, failed = OnASmallDisk(root, short_study()), 0
    left = os.statvfs(disk)
    print(f"disk of {left.f_blocks * left.f_frsize / 2**20:.0f} MiB, full for {seconds:g} s at each point")
    for point in points:
        with tempfile.TemporaryDirectory(dir=root, ignore_cleanup_errors=True) as folder:
            try:
                ended = run_study(Path(folder), [(point, TRICK)], hospital)
                wrong = "; ".join(filter(None, (ended.wrong, ended.unplayed())))
                says = "everybody in each round, the same model" if ended.same else ended.says
            except Exception:
                wrong, says = traceback.format_exc(), ""
        failed += bool(wrong)
        print(f"\n{point}: {'FAILED: ' + wrong if wrong else says}")
        for line in hospital.reported():
            print(f"    {line[:300]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
