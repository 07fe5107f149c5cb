#!/usr/bin/env python3
"""Shows that no test fails by chance on a busy machine: the fast tests again and again, while every core computes.

All fast tests 3 times, and those of them that wait for processes, threads, files or clocks (marked `waits`, as a rule
by what their code names: `tests/waiting.py`) 20 times.
Meanwhile one process for each core, at the usual priority, does nothing but compute. One line a run; what failed
stands below it, and the exit code is 1 if anything did. What follows `--` goes to pytest.

    python scripts/show_steady.py [--fast 3] [--waits 20] [--busy CORES] [--workers 4] [-- PYTEST ARGUMENT ...]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAST = "not slow and not e2e and not long"


@contextmanager
def busy(cores: int) -> Iterator[None]:
    """Keep as many cores busy, until the block ends or this process does."""
    code = f"import os\nwhile os.getppid() == {os.getpid()}:\n    sum(range(10**6))"
    spinning = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(cores)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def run(marked: str, workers: int, arguments: list[str]) -> tuple[bool, str]:
    """Run the tests that are marked so; whether all passed, and pytest's own last line with what failed below it."""
    several = ["-n", str(workers), "--dist", "loadfile"] if workers > 1 else []
    command = [sys.executable, "-m", "pytest", "-rfE", "-p", "no:cacheprovider", "-m", marked, *several]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
    failed = [line for line in lines if re.match(r"(FAILED|ERROR) \S", line)]
    return done.returncode == 0, "\n    ".join([lines[-1], *failed])


def main() -> int:
    """Run them as often as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", type=int, default=3, help="how often all fast tests run")
    parser.add_argument("--waits", type=int, default=20, help="how often those that wait run")
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1, help="processes that compute meanwhile")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="processes that run tests")
    parser.add_argument("arguments", nargs="*", metavar="PYTEST ARGUMENT")
    asked = parser.parse_args()
    runs = [("fast", FAST)] * asked.fast + [("waits", f"waits and {FAST}")] * asked.waits
    steady = True
    with busy(asked.busy):
        for number, (name, marked) in enumerate(runs, 1):
            began = time.monotonic()
            passed, summary = run(marked, asked.workers, asked.arguments)
            steady = steady and passed
            word = "passed" if passed else "FAILED"
            seconds = time.monotonic() - began
            print(f"{number:3} of {len(runs)}  {name:5}  {word}  {seconds:6.0f} s  {summary}", flush=True)
    return 0 if steady else 1


if __name__ == "__main__":
    sys.exit(main())
