"""What each command loads. Never how long it takes: what is not loaded takes no time on any machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from every_command import Run

from tests.cli.command_line import commands
from tests.hospital.conftest import DATABASE, SCRIPTS

ROOT = SCRIPTS.parent

#: No command has a use for these: models are trained in the sandbox, and nobody plots.
NEVER = {"torch", "opacus", "matplotlib"}
#: What costs a command more than all of its own work: only those of `MAY` load any of it.
DEAR = {"scipy", "dp_accounting", "pandas", "pyarrow", "IPython", "syft", "syft_rds", "watchfiles", "fsspec"}
#: Loaded by who sets a password, or shows a secret; by nobody else.
LATE = {"zxcvbn": {"person accept", "person password"}, "segno": {"person second-factor"}}
#: By which work is given to a process of its own.
APART = "datasites.hospital.isolated.process"
PRICES, STORE = {"scipy", "dp_accounting"}, {"syft", "syft_rds", "IPython", "watchfiles", "fsspec"}
#: By command, of the dear ones those that it may load: who speaks to the store does what it was asked for, and a
#: researcher prices here. A hospital reads tables and prices in processes of their own.
MAY: dict[str, set[str]] = {
    "budget what-if": set(),
    "dataset accept": set(),
    "dataset check": set(),
    "dataset withdraw": set(),
    "doctor": STORE,
    "evidence": set(),
    "init": STORE,
    "review recheck": set(),
    "study check": set(),
    "study plan": PRICES,
}
#: Runs until it is stopped; what its process holds is looked at elsewhere.
STAYS = {"serve"}


def loaded(groups: list[list[Run]]) -> list[dict[str, Any]]:
    """Run each group in a process of its own; what is said of each command, in order."""
    asked = [[[run.line, run.password] for run in group] for group in groups]
    script = Path(__file__).with_name("run_commands.py")
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(asked), capture_output=True, text=True, cwd=ROOT, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_command_is_run(runs: list[Run]) -> None:
    """A new one can't be forgotten here."""
    assert {run.command for run in runs} == {name for name, _ in commands()} - STAYS
    assert set(MAY) == {run.command for run in runs if run.apart}
    assert not any(modules & NEVER for modules in MAY.values())


@pytest.mark.slow
@pytest.mark.skipif(DATABASE != "sqlite", reason="the commands' own imports, whatever the database")
def test_a_command_that_prices_nothing_loads_nothing_to_price_with(runs: list[Run]) -> None:
    """Nor PySyft or what reads a store; all such commands together, and so each."""
    chosen = [run for run in runs if not run.apart]
    found = loaded([chosen])
    assert len(found) == len(chosen)
    before: set[str] = set()
    for run, told in zip(chosen, found, strict=True):
        assert told["code"] == run.code, (run.command, told["said"])
        modules = set(told["modules"])
        late = {name for name, commands in LATE.items() if run.command not in commands}
        assert not (modules - before) & (DEAR | NEVER | late | {APART}), run.command
        before = modules


@pytest.mark.slow
@pytest.mark.skipif(DATABASE != "sqlite", reason="the commands' own imports, whatever the database")
def test_a_command_loads_no_more_than_its_work_needs(runs: list[Run]) -> None:
    chosen = [run for run in runs if run.apart]
    for run, told in zip(chosen, loaded([[run] for run in chosen]), strict=True):
        assert told["code"] in ((0, 1) if run.code is None else (run.code,)), (run.command, told["said"])
        assert not set(told["modules"]) & ((DEAR | NEVER) - MAY[run.command]), run.command
