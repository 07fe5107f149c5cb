"""Runs whole studies, one after the other, each in a process of its own that begins from the same files.

`Laboratory` is the test's end. It starts one process that imports everything and furnishes the parties once; for each
run that process puts the files back and forks. Only the table and the planted leak differ between two runs.
"""

from __future__ import annotations

import importlib
import os
import pickle
import pkgutil
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.adversarial.neighbours import tables
from tests.adversarial.neighbours.watch import Left

#: What a study needs of the product.
_ROOMS = ("datasites.hospital", "datasites.transport", "datasites.secagg", "datasites.study", "datasites.researcher")
REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Scenario:
    """One run. All public events are part of it, so that two runs differ in nothing but `patients` and `replayed`.

    withdrawals: (round before which, patient). worker_dies: numbers of the trainings in which the worker is killed.
    dies_before: the datasite is killed when it is about to put a name that matches, or to mask a round ("mask 1"), and
    starts again from its files. backed_up, restored: the rounds before which the home is copied, without its anchors,
    and put back. after_stop: what people do before the next round where the study has stopped.
    rejected: people reject the case. agreement_ends: the round before which a person ends an agreement that it needs.
    unfit: `SOMEBODY` has a value without a meaning, for which a gate holds the whole table back.
    replayed: file of the recorded run whose outputs are taken at the doors; open_doors: of commitments only.
    to_difference: the run ends where something else leaves than in the recorded one.
    """

    patients: tuple[str, ...] = field(default_factory=tables.everybody)
    mode: str = "local"
    withdrawals: tuple[tuple[int, str], ...] = ()
    worker_dies: tuple[int, ...] = ()
    dies_before: str = ""
    real_worker: bool = True
    leak: str = ""
    replayed: str = ""
    open_doors: bool = False
    to_difference: bool = False
    backed_up: int = 0
    restored: int = 0
    after_stop: str = ""
    rejected: bool = False
    agreement_ends: int = 0
    unfit: bool = False
    to_intake: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a run has shown: all that left, how the rounds ended, how far the case came, whose side everybody is on.

    file: where the recorded outputs of the doors lie. looked: how often a planted leak has looked at rows.
    """

    left: list[Left]
    rounds: list[str]
    state: str
    sides: dict[str, list[str]]
    file: str
    looked: int = 0


class Laboratory:
    """Runs scenarios in `folder`, which must stay its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs = 0
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=REPOSITORY,
        )

    def run(self, scenario: Scenario) -> Outcome:
        """Run a whole study; raises `RuntimeError` with the traceback where the run itself broke."""
        self._runs += 1
        file = self._folder / f"run-{self._runs}.pickle"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((scenario, str(file)), self._process.stdin)
        self._process.stdin.flush()
        if self._process.stdout.readline() != b"done\n":
            raise RuntimeError("the laboratory has ended")
        with file.open("rb") as stored:
            found = pickle.load(stored)
        if isinstance(found, str):
            raise RuntimeError(found)
        outcome, _ = found
        return outcome

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def in_a_fork(act: Callable[[], None]) -> None:
    """Do something in a process that begins as this one is, and wait for its end."""
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def _investigate(root: Path, scenario: Scenario, file: str) -> None:
    from tests.adversarial.neighbours import experiment

    try:
        found: object = experiment.run(root, scenario, file)
    except BaseException:
        found = traceback.format_exc()
    Path(file).write_bytes(pickle.dumps(found))
    _prices(root).write_bytes(pickle.dumps(experiment.PRICES))


def _prices(root: Path) -> Path:
    return root / "prices.pickle"


def load(root: Path) -> None:
    """Load all code that a run uses: runs are forks of this process, and their clock replaces what is loaded."""
    from datasites.hospital.database import connect

    home = root / "home"
    home.mkdir(parents=True)
    # Django wants a home before its models can be imported; the hospital's own setup makes it anew.
    (home / "datasite.toml").write_text(f'organisation = "x"\nemail = "x@example.org"\nstore = "{root / "store"}"\n')
    connect(home)
    from django.db import connections

    connections.close_all()
    shutil.rmtree(home)
    for room in _ROOMS:
        package = importlib.import_module(room)
        for module in pkgutil.iter_modules(package.__path__, f"{room}."):
            if not module.ispkg:
                importlib.import_module(module.name)
    importlib.import_module("tests.adversarial.neighbours.experiment")


def main(root: Path) -> None:
    """The laboratory's process."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    load(root)
    from tests.adversarial.neighbours import experiment

    experiment.remember_prices()
    in_a_fork(partial(experiment.furnish, root))
    while True:
        try:
            scenario, file = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        in_a_fork(partial(_investigate, root, scenario, file))
        experiment.PRICES.update(pickle.loads(_prices(root).read_bytes()))
        answers.write(b"done\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
