"""One run: a study from its submission to its account, at a hospital whose rows are the only thing that may differ."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from django.db import connections

from datasites.aggregator.gather import RunError
from datasites.aggregator.run import Run
from datasites.enclave.partition import Partition
from datasites.hospital.budget.reconcile import differences
from datasites.hospital.cases import consent, examination, review, submissions, worker
from datasites.hospital.cases.case import open_case
from datasites.hospital.cases.encoded import partitions
from datasites.hospital.evidence.export import export_evidence
from datasites.hospital.models import Case
from datasites.hospital.people.agreements import terminate_agreement
from datasites.hospital.proposals import two_people
from datasites.hospital.rounds import lifecycle, row_work
from datasites.hospital.site import Site
from datasites.privacy import accountant
from datasites.researcher.federation import Federation
from datasites.researcher.study import Study
from tests.adversarial.neighbours import leaks, parties, tables
from tests.adversarial.neighbours.doors import Doors, Passed, StandIn, description
from tests.adversarial.neighbours.laboratory import Outcome, Scenario
from tests.adversarial.neighbours.sources import Clock, Streams
from tests.adversarial.neighbours.stage import Enough, RowsThread, Stage

#: Seconds of the stage's clock within which a hospital that will answer has answered.
LONG = 30.0
#: What a price was found to be, by what it is asked for: it takes long, and rows don't come into it.
PRICES: dict[tuple[Any, ...], float] = {}
#: What looking at a row takes, of the stage's clock; an ordinary table is looked at within a tick.
SECONDS_PER_ROW = 0.0002
_MODEL = description(columns=3)


def furnish(root: Path) -> None:
    """Make all parties once, and set them aside."""
    Streams("furnished").install()
    Clock(lambda seconds: None).install()
    parties.furnish(root)
    for mode in ("local", "distributed"):
        parties.study_folder(root, mode)
    connections.close_all()
    aside = root / "furnished"
    aside.mkdir()
    for name in ("home", "researcher", "store", *parties.PEERS):
        (root / name).rename(aside / name)


def remember_prices() -> None:
    """Price by losses as the product does, each thing once."""
    price = accountant._epsilon_pld

    def remembered(*asked: Any) -> float:
        if asked not in PRICES:
            PRICES[asked] = price(*asked)
        return PRICES[asked]

    accountant._epsilon_pld = remembered


def run(root: Path, scenario: Scenario, file: str) -> tuple[Outcome, Passed]:
    """The outcome of a run from the furnished files, and what passed the doors."""
    for name in (*os.listdir(root / "furnished"), "crashed", "backup"):
        shutil.rmtree(root / name, ignore_errors=True)
    shutil.copytree(root / "furnished", root, dirs_exist_ok=True)
    before, recorded = pickle.loads(Path(scenario.replayed).read_bytes()) if scenario.replayed else (None, None)
    stage = Stage(root / "home", before.left if scenario.to_difference else None)
    (stage.home / "data" / "table.csv").write_text(tables.table(scenario.patients, scenario.unfit))
    if recorded is not None and scenario.open_doors:
        recorded |= {"train": [], "evaluate": []}
    doors = Doors(recorded, scenario.worker_dies, partial(_work, stage))
    Streams("fixed").install()
    stage.install()
    os.getpid = lambda: 4242
    stage.crash = scenario.dies_before
    if not scenario.real_worker:
        stage.worker = worker.Worker = StandIn
    doors.install(stage.worker)
    row_work.ThreadPoolExecutor = lambda *_: RowsThread(stage)
    submissions.in_a_thread = lambda act: RowsThread(stage).submit(act)
    for room, name in ((examination, "stage_records"), (row_work, "partitions")):
        setattr(room, name, _timed(stage, getattr(room, name)))
    planting = leaks.Planting(stage)
    if scenario.leak:
        planting.plant(scenario.leak)
    Study.initial_model = lambda study, sandbox=None: (np.zeros(_MODEL.count, np.float32), _MODEL)
    with Federation.open(root / "researcher") as federation:
        conduct = _Conduct(root, scenario, stage, federation)
        with suppress(Enough):
            stage.start()
            conduct.study()
            stage.end()
    row = Case.objects.first()
    state = f"{row.state}: {row.note}" if row is not None else ""
    return Outcome(stage.watch.left, conduct.ended, state, conduct.sides, file, planting.looked), doors.passed


def _work(stage: Stage) -> None:
    """Let the time pass that it takes to look at all rows, which is longer the more there are."""
    stage.clock.pass_time(SECONDS_PER_ROW * len((stage.home / "data" / "table.csv").read_text().splitlines()))


def _timed(stage: Stage, act: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*args: Any, **options: Any) -> Any:
        _work(stage)
        return act(*args, **options)

    return timed


class _Conduct:
    """What researcher and people do in one run. The hospital's service acts whenever they wait."""

    def __init__(self, root: Path, scenario: Scenario, stage: Stage, federation: Federation) -> None:
        self._root, self._scenario, self._stage, self._federation = root, scenario, stage, federation
        self._study = Study.load(root / f"study-{scenario.mode}")
        self.sides: dict[str, list[str]] = {}
        #: How the rounds ended, in words.
        self.ended: list[str] = []

    @property
    def row(self) -> Case:
        """The case as it is now."""
        return Case.objects.get()

    @property
    def _site(self) -> Site:
        return Site.open(self._stage.home)

    def study(self) -> None:
        """From submission to account and evidence, as far as it goes."""
        self._submit()
        if self.row.state == Case.State.REVIEW:
            self.sides = self._sides()
        if self._scenario.rejected:
            review.reject(self._site, self.row.pk, parties.person("ann"), "not this year", message="not this year")
        elif self.row.state == Case.State.REVIEW and not self._scenario.to_intake:
            for name in ("ann", "bob"):
                review.approve(self._site, self.row.pk, parties.person(name), "read it", self.row.approval_hash)
        self._wait(5.0)
        if self.row.state == Case.State.APPROVED:
            self._rounds()

    def _submit(self) -> None:
        control = self._federation._control
        control.add_hospital(parties.OWN)
        control.sync()
        self._wait(3.0)
        control.sync()
        control.submit(parties.OWN, self._study.job_name, self._study.package.files)
        self._wait(10.0)

    def _sides(self) -> dict[str, list[str]]:
        home = self._site.home
        return {side: self._names(part) for side, part in partitions(home, open_case(home, self.row)).items()}

    def _names(self, part: Partition) -> list[str]:
        assert part.patients is not None
        everybody = sorted(self._scenario.patients)
        return [everybody[number] for number in sorted(set(part.patients.tolist()))]

    def _rounds(self) -> None:
        federation, study = self._federation, self._study
        federation.sync()
        folder = federation.home / "runs" / study.hash
        peers = [parties.Peer(self._root, email, study.hash, folder) for email in parties.PEERS]
        self._stage.others += [peer.step for peer in peers]
        run = Run(
            federation.identity, federation.roster, federation.mailroom, folder, study,
            study.terms.cohort.hospitals, setup_patience=LONG, round_timeout=LONG, least_patience=LONG,
        )  # fmt: skip
        for number in range(1, study.terms.rounds + 2):
            self._events_before(number, run)
            try:
                record = run.next_round()
            except RunError as error:
                self.ended.append(str(error))
                break
            self.ended.append(f"{record.outcome}, abstained: {sorted(record.abstained)} {record.reason}".strip())
        run.close(LONG)
        self._wait(5.0)
        evidence = self._root / "evidence.zip"
        export_evidence(self._site, self.row.pk, evidence)
        self._stage.watch.note(self._stage.clock.now, "handed out", "evidence", evidence.read_bytes())

    def _events_before(self, number: int, run: Run) -> None:
        if number == self._scenario.backed_up:
            self._stage.back_up()
        if number == self._scenario.restored:
            self._stage.restore(self._settle)
            self._wait(5.0)
        if self.row.state == Case.State.STOPPED and self._scenario.after_stop:
            act = {"resume": lifecycle.resume, "sit_out": lifecycle.sit_out, "rejoin": lifecycle.rejoin}
            act[self._scenario.after_stop](self._site, self.row.pk, parties.person("ann"), "looked at it")
            self._wait(5.0)
            if self._scenario.after_stop == "rejoin":
                run.set_up(again=True)
        for when, patient in self._scenario.withdrawals:
            if when == number:
                # Entered whether or not the table has the patient: whoever sees that chooses what to enter.
                consent.withdraw(
                    self._site, parties.person("ann"), parties.DATASET, patient, "asked to", for_later=True
                )
        if self._scenario.agreement_ends == number:
            terminate_agreement(self._site, parties.person("ann"), "baa-storage")

    def _settle(self) -> None:
        """What two people enter after a restore, where it lost something."""
        site = Site.open(self._stage.home)
        if any(differences(site.home)):
            entered = two_people.propose_restored(site, parties.person("ann"), (), "restored")
            two_people.confirm(site, parties.person("bob"), entered.pk)

    def _wait(self, seconds: float) -> None:
        """Let the others act for that long. Nobody waits for what happens inside: people come when they come."""
        end = self._stage.clock.now + seconds
        while self._stage.clock.now < end - 1e-9:
            self._stage.turn(end)
