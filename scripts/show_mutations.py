#!/usr/bin/env python3
"""Shows that tests notice when code that protects patients is changed: one wrong line at a time.

For each mutation in `scripts/mutations.py`, the changed file is put into a copy of this tree and the tests named beside
it run there: of a file those that aren't slow, and any that is named by itself, but long ones and e2e. Prints the first
test that fails, or SURVIVED; exit code 1 if any survives, or if a mutation can't be judged: its tests fail on the tree
as it is, or can't run at all. `--json FILE` writes [{name, file, outcome, test, seconds}].

    python scripts/show_mutations.py [NAME ...] [--json FILE] [--seconds 300]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]
#: What pytest's exit codes say; any other one means that no test has judged the code.
PASSED, FAILED = 0, 1
Outcome = Literal["caught", "SURVIVED", "not judged"]


@dataclass(frozen=True)
class Verdict:
    """What became of one mutation. test: the first one that failed, or why there is no verdict."""

    name: str
    file: str
    outcome: Outcome
    test: str
    seconds: float


def copy_of_tree(folder: Path) -> Path:
    """Copy all files that git knows or would add, without what git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def run_tests(tree: Path, tests: Sequence[str], seconds: float) -> tuple[int, str]:
    """Exit code of `tests`, as above, up to the first that fails, and what they printed."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m"]
    files, named = [test for test in tests if "::" not in test], [test for test in tests if "::" in test]
    printed, deadline = "", time.monotonic() + seconds
    for some, marked in ((files, "not slow and not e2e and not long"), (named, "not e2e and not long")):
        if some:
            line, left = [*command, marked, *some], max(1.0, deadline - time.monotonic())
            try:
                done = subprocess.run(
                    line, cwd=tree, env=environment, capture_output=True, text=True, timeout=left, check=False
                )
            except subprocess.TimeoutExpired:
                return -1, f"no end after {seconds:g} s"
            printed += done.stdout
            if done.returncode != PASSED:
                return done.returncode, printed
    return PASSED, printed


def judge(tree: Path, mutation: Mutation, seconds: float) -> Verdict:
    """Apply one mutation to the copy, run its tests, and take it back."""
    path, began = tree / mutation.file, time.monotonic()
    original = path.read_text(encoding="utf-8")
    path.write_text(mutation.applied_to(original), encoding="utf-8")
    try:
        code, printed = run_tests(tree, mutation.tests, seconds)
    finally:
        path.write_text(original, encoding="utf-8")
    failed = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", printed, re.MULTILINE)
    outcome: Outcome = "SURVIVED" if code == PASSED else "caught" if code == FAILED and failed else "not judged"
    test = failed[1] if failed else "" if code == PASSED else printed.strip()[-200:]
    return Verdict(mutation.name, mutation.file, outcome, test, round(time.monotonic() - began, 1))


def main() -> int:
    """Judge the mutations that were asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *(m.name for m in MUTATIONS)])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--seconds", type=float, default=300.0, help="the longest that the tests of one may take")
    arguments = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if not arguments.names or mutation.name in arguments.names]
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = copy_of_tree(Path(folder))
        everything = sorted({test for mutation in chosen for test in mutation.tests})
        code, printed = run_tests(tree, everything, arguments.seconds * max(1, len(chosen)))
        if code != PASSED:
            print(f"the tests fail on the tree as it is, so they can judge nothing:\n{printed[-2000:]}")
            return 1
        for mutation in chosen:
            verdict = judge(tree, mutation, arguments.seconds)
            verdicts.append(verdict)
            print(f"{verdict.outcome:10} {verdict.name:40} {verdict.seconds:6.1f} s  {verdict.test}", flush=True)
    caught = sum(verdict.outcome == "caught" for verdict in verdicts)
    print(f"{caught} of {len(verdicts)} mutations are caught")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1) + "\n")
    return 0 if caught == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
