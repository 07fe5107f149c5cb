"""A whole study over a store that meddles: a researcher's run and four hospitals with their own, different updates."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasites.researcher.gather import RunError
from datasites.researcher.run import Run
from datasites.researcher.study import Study
from datasites.study.package import StudyPackage
from tests.researcher import hospitals
from tests.researcher.hospitals import Federation
from tests.transport.hostile_store import HostileStore
from tests.transport.parties import make_parties

HEART = Path(__file__).resolve().parents[2] / "scripts" / "heart_disease" / "study"
#: Seconds that a hospital of these studies waits for its peers' shares; 60 in the product.
PEER_PATIENCE = 20.0


@dataclass(frozen=True)
class Ended:
    """How a study ended.

    same: everybody in every round. says: who was missing, or why it stopped, in the run's words. wrong: what differs
    from what it should be, given who took part. played: tricks. quarantine: bytes of the largest one.
    """

    same: bool
    says: str
    wrong: str
    played: int
    seconds: float
    slowest_round: float
    quarantine: int


def short_study(rounds: int = 3) -> Study:
    """The heart disease study with few rounds."""
    files = dict(StudyPackage.read(HEART).files)
    files["study.toml"] = re.sub(rb"(?m)^rounds = 15$", b"rounds = %d" % rounds, files["study.toml"])
    return Study(HEART, StudyPackage(files))


def run_study(root: Path, plans: Sequence[tuple[str, str]]) -> Ended:
    """Run it over a store that plays these (point, trick)."""
    study, url = short_study(), str(root / "store")
    parties = make_parties(root, url, study.terms.cohort.hospitals, start=False)
    store = HostileStore(url, plans)
    for party in parties:
        party.options["settles"] = store.settles
        party.start()
        assert party.mailroom is not None
        party.mailroom.store = store
    hospitals.PEER_PATIENCE = PEER_PATIENCE
    federation, says, began = Federation(parties, study, root / "run"), "", time.monotonic()
    for place, hospital in enumerate(federation.hospitals.values()):
        hospital.update = 0.1 * (place + 1)
    run = federation.run(setup_patience=30.0, round_timeout=60.0, least_patience=5.0)
    try:
        run.complete(progress=False)
    except RunError as error:
        says = f"stopped: {error}"
    seconds = time.monotonic() - began
    store.end()
    federation.stop()
    for party in parties:
        party.stop()
    missing = {
        email for record in run.state.rounds for email in federation.hospitals if email not in record.survivors
    } | ({*federation.hospitals} - {*run.state.accounts})
    if missing and not says:
        says = f"missing: {', '.join(sorted(missing))}"
    return Ended(
        same=not missing and not says,
        says=says,
        wrong=_wrong(federation, run),
        played=store.played,
        seconds=seconds,
        slowest_round=max((sum(record.seconds.values()) for record in run.state.rounds), default=0.0),
        quarantine=max(_size(party.home / "state" / "mail" / "quarantine") for party in parties),
    )


def _wrong(federation: Federation, run: Run) -> str:
    """What differs from a mean in the clear over those whom each round names; nothing where nothing does."""
    expected = 0.0
    for record in run.state.rounds:
        if record.train and record.outcome == "done":
            expected += float(np.mean([federation.hospitals[email].update for email in record.survivors]))
    found = run.model["weight"]
    if not np.allclose(found, expected, atol=1e-3):
        return f"the model is {found[0]:.4f}, the mean in the clear is {expected:.4f}"
    twice = [
        hospital.email for hospital in federation.hospitals.values() if len({*hospital.charged}) != hospital.releases
    ]
    return f"released twice: {twice}" if twice else ""


def _size(folder: Path) -> int:
    return sum(os.lstat(file).st_size for file in folder.rglob("*"))
