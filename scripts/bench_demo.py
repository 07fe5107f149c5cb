"""What the demo costs once it is installed: time and processor by phase, processes, and memory of a datasite.

Runs `demo.py` several times, one after the other, and shows medians. The demo says itself when each phase began
(`result.json`); its processes are looked at `LOOKS` seconds apart, so those that lived shorter may be missed in their
number, and processor by phase is exact to that. Then one datasite of the last run is started twice by itself, as
`datasites serve`: for its memory when idle, and for the modules that it has imported. Memory is the proportional set
size, so what processes share is shared out among them: among four datasites that is less than for one alone.

Prints a table; `--json FILE` writes [{name, value, unit, target, met}]. Give it a machine with nothing else to do.

    python scripts/bench_demo.py [--repeat 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench_secagg import Table
from measure import proportional

from datasites.enclave.processes import family

DEMO = Path(__file__).resolve().parent / "demo.py"
#: Seconds between two looks at the demo's processes, and at the memory of its datasites.
LOOKS, MEMORY_LOOKS = 0.05, 1.0
#: Seconds after which a datasite that is by itself has done what it does at a start.
SETTLES = 5.0
#: Targets: seconds, processor seconds, MB.
DEMO_SECONDS, DEMO_PROCESSOR, FIRST_ROUND_SECONDS, STOP_SECONDS = 25.0, 40.0, 0.6, 1.0
IDLE_MB, WORKING_MB = 160.0, 600.0
MB = 1024 * 1024
_TICKS = os.sysconf("SC_CLK_TCK")


class Processor:
    """Seconds of processor of a process and of all that it has started, gone or not.

    What somebody has waited for is what the kernel adds to their own; who was killed with its parent was waited for by
    nobody, and counts as it was seen last.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._own: dict[int, float] = {}
        self._waited: dict[int, float] = {}
        self._children: dict[int, list[int]] = defaultdict(list)
        self._gone: set[int] = set()

    @property
    def processes(self) -> int:
        """How many were seen."""
        return len(self._own)

    def look(self, pids: list[int]) -> float:
        """Seconds until now."""
        alive = set()
        for pid in pids:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            alive.add(pid)
            if pid not in self._own:
                self._children[int(fields[1])].append(pid)
            own, waited = (sum(map(int, part)) / _TICKS for part in (fields[11:13], fields[13:15]))
            self._own[pid], self._waited[pid] = own, waited
        self._gone = set(self._own) - alive
        return self._of(self._root)

    def _of(self, pid: int) -> float:
        below = {child: self._of(child) for child in self._children[pid]}
        gone = sum(seconds for child, seconds in below.items() if child in self._gone)
        there = sum(seconds for child, seconds in below.items() if child not in self._gone)
        return self._own.get(pid, 0.0) + there + max(gone, self._waited.get(pid, 0.0))


@dataclass
class Looked:
    """What was seen of a demo's processes: processor seconds so far at each moment, and MB of each datasite by home.

    memory: (moment, the datasite's own process, that with all that it has started).
    """

    processor: list[tuple[float, float]] = field(default_factory=list)
    processes: int = 0
    memory: dict[str, list[tuple[float, float, float]]] = field(default_factory=lambda: defaultdict(list))

    def processor_at(self, moment: float) -> float:
        """Processor seconds until then."""
        after = bisect_left(self.processor, (moment, 0.0))
        if after in (0, len(self.processor)):
            return self.processor[min(after, len(self.processor) - 1)][1]
        (t, before), (u, later) = self.processor[after - 1 : after + 1]
        return before + (later - before) * (moment - t) / (u - t)


@contextlib.contextmanager
def looking(process: subprocess.Popen[bytes]) -> Iterator[Looked]:
    """Look at a process and all below it until the block ends."""
    looked, over = Looked(), threading.Event()
    processor = Processor(process.pid)

    def look() -> None:
        for turn in itertools.count():
            with contextlib.suppress(OSError):
                found = list(family(process.pid))
                before = looked.processor[-1][1] if looked.processor else 0.0
                # What ended between two readings is counted a moment later.
                looked.processor.append((time.time(), max(before, processor.look(found))))
                looked.processes = processor.processes
                if turn % round(MEMORY_LOOKS / LOOKS) == 0:
                    _look_at_memory(found, looked)
            if over.wait(LOOKS):
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield looked
    finally:
        over.set()
        thread.join()


def _look_at_memory(pids: list[int], looked: Looked) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if "datasites.cli" in arguments and "serve" in arguments:
                below = list(family(pid))
                own, *others = (proportional(one) / MB for one in below)
                looked.memory[arguments[arguments.index("--home") + 1]].append((time.time(), own, own + sum(others)))


def one_run(folder: Path) -> dict[str, float]:
    """Run the demo into `folder`; returns its figures by name."""
    started = time.time()
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen([sys.executable, str(DEMO), "--out", str(folder)], stdout=printed, stderr=printed)
        with looking(process) as looked:
            code = process.wait()
        ended = time.time()
        if code != 0:
            printed.seek(0)
            sys.exit(f"{printed.read().decode(errors='replace')}\nbench_demo: the demo ended with code {code}")
    result = json.loads((folder / "result.json").read_text())
    began = {one["phase"]: one["began"] for one in result["phases"]}
    rounds = [sum(one["seconds"].values()) for one in result["rounds"]]
    setup_ends = began["training and protocol"] + result["seconds"]["setup"]
    borders = [
        ("start of the demo", started),
        ("launch", began["launch"]),
        ("submission and approval", began["submission and approval"]),
        ("setup", began["training and protocol"]),
        ("first round", setup_ends),
        ("later rounds", setup_ends + rounds[0]),
        ("evaluation and report", setup_ends + sum(rounds)),
        ("stop", began["stop"]),
        ("end of the demo", began["end"]),
    ]
    figures: dict[str, float] = {}
    for (name, moment), (_, until) in zip(borders, [*borders[1:], ("", ended)], strict=True):
        figures[f"{name}, wall"] = until - moment
        figures[f"{name}, processor"] = looked.processor_at(until) - looked.processor_at(moment)
    figures["first round, wall"] = rounds[0]
    figures["a later round, wall"] = statistics.median(rounds[1:])
    figures["whole demo, wall"] = ended - started
    figures["whole demo, processor"] = looked.processor_at(ended)
    figures["processes"] = looked.processes
    working = [
        statistics.median(every for moment, _, every in seen if setup_ends <= moment <= began["stop"])
        for seen in looked.memory.values()
        if any(setup_ends <= moment <= began["stop"] for moment, *_ in seen)
    ]
    figures["a datasite with its workers in rounds"] = max(working, default=float("nan"))
    figures["a datasite with its workers, most"] = max(every for seen in looked.memory.values() for _, _, every in seen)
    return figures


def idle_datasite(home: Path) -> dict[str, float]:
    """Memory of one datasite that is by itself and has nothing to do, and modules that a start imports."""
    with _served(home) as process:
        time.sleep(SETTLES)
        own, *others = (proportional(pid) / MB for pid in family(process.pid))
        before = Processor(process.pid).look([process.pid])
        time.sleep(SETTLES)
        idles = (Processor(process.pid).look([process.pid]) - before) / SETTLES
    with tempfile.TemporaryFile() as errors:
        with _served(home, errors.fileno(), PYTHONPROFILEIMPORTTIME="1") as process:
            started = Processor(process.pid).look([process.pid])
        errors.seek(0)
        modules = sum(line.startswith(b"import time:") for line in errors) - 1  # less its heading
    return {
        "an idle datasite's own process": own,
        "an idle datasite with what it has started": own + sum(others),
        "an idle datasite, processor": 1000 * idles,
        "a datasite's start, processor": started,
        "modules": modules,
    }


@contextlib.contextmanager
def _served(home: Path, errors: int = subprocess.DEVNULL, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "datasites.cli", "serve", "--home", str(home)]
    process = subprocess.Popen(
        command, stderr=errors, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, start_new_session=True
    )
    try:
        while not (home / "run" / "ready.json").exists():
            if process.poll() is not None:
                sys.exit(f"bench_demo: the datasite ended with code {process.returncode}")
            time.sleep(LOOKS)
        yield process
    finally:
        process.terminate()
        process.wait()


#: What is shown of all figures, in order: name, unit, target.
_SHOWN: tuple[tuple[str, str, float | None], ...] = (
    ("whole demo, wall", "s", DEMO_SECONDS),
    ("whole demo, processor", "s", DEMO_PROCESSOR),
    *(
        (f"{name}, {kind}", "s", target if kind == "wall" else None)
        for name, target in (
            ("start of the demo", None),
            ("launch", None),
            ("submission and approval", None),
            ("setup", None),
            ("first round", FIRST_ROUND_SECONDS),
            ("later rounds", None),
            ("evaluation and report", None),
            ("stop", STOP_SECONDS),
            ("end of the demo", None),
        )
        for kind in ("wall", "processor")
    ),
    ("a later round, wall", "s", None),
    ("processes", "processes", None),
    ("a datasite's start, processor", "s", None),
    ("modules", "modules", None),
    ("an idle datasite, processor", "ms/s", None),
    ("an idle datasite's own process", "MB", IDLE_MB),
    ("an idle datasite with what it has started", "MB", None),
    ("a datasite with its workers in rounds", "MB", WORKING_MB),
    ("a datasite with its workers, most", "MB", None),
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="runs of the demo (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    runs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        for number in range(options.repeat):
            shutil.rmtree(out, ignore_errors=True)
            runs.append(one_run(out))
            took = f"{runs[-1]['whole demo, wall']:.1f} s, {runs[-1]['whole demo, processor']:.1f} s of processor"
            print(f"run {number + 1} of {options.repeat}: {took}", flush=True)
        idle = idle_datasite(out / "state" / "hospitals" / "cleveland")
    table = Table()
    for name, unit, target in _SHOWN:
        table.add(name, idle[name] if name in idle else statistics.median(run[name] for run in runs), unit, target)
    table.finish(options.json)


if __name__ == "__main__":
    main()
