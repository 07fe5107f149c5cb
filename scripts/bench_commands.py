#!/usr/bin/env python3
"""What each command of `datasites` costs: processor and wall seconds, modules imported, and the most memory.

Every command is run in a process of its own, in an order in which each has something to do (`every_command`), on a
small home with an examined case; medians over `--repeat` such homes. Targets are for two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent
sys.path.insert(0, str(SCRIPTS))
from consortium import OFFICER, STEWARD, LocalConsortium  # noqa: E402
from every_command import Desk, Run, every_command  # noqa: E402

#: Processor seconds of a command that prices nothing, reads no table and speaks to no store; and of an approval.
LIGHT, APPROVAL = 0.6, 1.8
#: Runs a command and leaves in a file how many modules it has loaded and the most memory it has held: what the system
#: counts for a child begins with what its parent held.
COUNTED = """
import atexit, sys
from pathlib import Path
def count(file=Path(sys.argv.pop())):
    loaded = len(sys.modules)
    sys.path.insert(0, sys.argv.pop())
    from measure import peak
    file.write_text(f"{loaded} {peak()}")
atexit.register(count)
from datasites.cli import app
app(sys.argv[1:-1], standalone_mode=False)
"""


@dataclass(frozen=True)
class Cost:
    """What one run of a command cost."""

    cpu: float
    wall: float
    modules: int
    peak: int


def prepare(folder: Path) -> tuple[Path, Desk]:
    """Make a hospital's home with two cases that wait for people, as the demo's are made."""
    consortium = LocalConsortium.open(SCRIPTS / "heart_disease" / "consortium.toml", folder / "state")
    consortium.set_up()
    home, passwords = consortium.home("cleveland"), consortium.passwords()
    from datasites.hospital.site import Site

    site = Site.open(home)
    from datasites.control.syft import SubmittedJob
    from datasites.hospital.cases import examination
    from datasites.hospital.models import Case

    files = {path.name: path.read_bytes() for path in consortium.study_folder.iterdir() if path.is_file()}
    row = examination.admit(site, SubmittedJob("bench", consortium.settings.researcher.email, files, "pending", ""))
    values = {field.attname: getattr(row, field.attname) for field in Case._meta.concrete_fields if field.name != "id"}
    second = Case.objects.create(**{**values, "job_name": "bench-2"})
    dataset = site.home.settings.datasets[0]
    return home, Desk(
        home=home,
        study=consortium.study_folder,
        steward=STEWARD,
        officer=OFFICER,
        passwords=(passwords[STEWARD], passwords[OFFICER]),
        case_id=row.pk,
        hash=row.approval_hash,
        second=second.pk,
        dataset=dataset.name,
        population=dataset.population,
        organisation=site.home.settings.organisation,
    )


def measure(run: Run, folder: Path) -> Cost:
    """Run one command in a process of its own."""
    counted = folder / "modules"
    counted.unlink(missing_ok=True)
    before = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", COUNTED, *run.line, str(SCRIPTS), str(counted)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    process.stdin.write(f"{run.password}\n".encode())
    process.stdin.close()
    _, _, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - before
    process.returncode = 0
    loaded, peak = counted.read_text().split()
    return Cost(used.ru_utime + used.ru_stime, wall, int(loaded), int(peak))


def target_of(run: Run) -> float | None:
    """Processor seconds that a command may take; None for one that does more than look something up or enter it."""
    return APPROVAL if run.command == "review approve" else None if run.apart else LIGHT


def results(repeat: int, folder: Path) -> tuple[list[dict[str, Any]], dict[str, list[Cost]]]:
    """Figures by command, and what they are medians of."""
    home, desk = prepare(folder)
    aside = folder / "aside"
    home.rename(aside)
    costs: dict[str, list[Cost]] = {}
    targets: dict[str, float | None] = {}
    for number in range(repeat):
        shutil.copytree(aside, home)
        beside = folder / f"run-{number}"
        beside.mkdir()
        for run in every_command(desk, beside):
            costs.setdefault(run.command, []).append(measure(run, beside))
            targets[run.command] = target_of(run)
        shutil.rmtree(home)
    figures = []
    for command, found in costs.items():
        target = targets[command]
        for name, value, unit, most in (
            ("cpu", statistics.median(cost.cpu for cost in found), "s", target),
            ("wall", statistics.median(cost.wall for cost in found), "s", None),
            ("modules", statistics.median(cost.modules for cost in found), "", None),
            ("peak memory", statistics.median(cost.peak for cost in found), "bytes", None),
        ):
            met = None if most is None else value <= most
            figures.append({"name": f"{command}: {name}", "value": value, "unit": unit, "target": most, "met": met})
    return figures, costs


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures, costs = results(options.repeat, Path(folder))
    by_name = {figure["name"]: figure for figure in figures}
    print(f"{'command':<24} {'CPU s':>7} {'wall s':>7} {'modules':>8} {'MiB':>6}  target")
    for command in costs:
        cpu, wall, modules, peak = (by_name[f"{command}: {name}"] for name in ("cpu", "wall", "modules", "peak memory"))
        met = {True: "met", False: "NOT met", None: ""}[cpu["met"]]
        target = "" if cpu["target"] is None else f"<= {cpu['target']:g} {met}"
        print(
            f"{command:<24} {cpu['value']:>7.2f} {wall['value']:>7.2f} {modules['value']:>8.0f} "
            f"{peak['value'] / 2**20:>6.0f}  {target}"
        )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
