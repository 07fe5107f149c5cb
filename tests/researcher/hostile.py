"""A whole study over a store that meddles: a researcher's run and four hospitals with their own, different updates.

`run_study` plays it with hospitals that have no database, ledger and service; given a real one
(`tests.hospital.hostile_home`), with that one in the place of its stand-in, and all tricks on its letters.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from measure import files_below

from datasites.aggregator.gather import RunError
from datasites.aggregator.run import Run
from datasites.researcher.study import Study
from tests.researcher import hospitals
from tests.researcher.hospitals import SHARE, Federation
from tests.study.studies import HEART, heart_package
from tests.transport.hostile_store import POINTS, HostileStore
from tests.transport.parties import RESEARCHER, make_parties

if TYPE_CHECKING:
    from tests.hospital.hostile_home import Cost, RealHospital

#: Training rounds of these studies, before the final evaluation.
ROUNDS = 3
#: Seconds that a hospital of these studies waits for its peers' shares; 60 in the product.
PEER_PATIENCE = 20.0
#: Seconds that the researcher waits: for everybody at each step of a setup, for enough in a round (an hour in the
#: product), and at least for the rest of them.
SETUP_PATIENCE, ROUND_TIMEOUT, LEAST_PATIENCE = 30.0, 60.0, 5.0


@dataclass(frozen=True)
class Ended:
    """How a study ended.

    same: everybody in every round. says: who was missing, or why it stopped, in the run's words. wrong: what differs
    from what it should be, given who took part. played: how often each of the tricks was. passed: of each that was not,
    why no letter came at its point ("": no reason). missed: the most rounds that one hospital was not in. quarantine:
    bytes of the largest one. cost: the real hospital's, if there was one.
    """

    same: bool
    says: str
    wrong: str
    played: tuple[int, ...]
    passed: tuple[str, ...]
    missed: int
    seconds: float
    slowest_round: float
    quarantine: int
    cost: Cost | None

    def unplayed(self) -> str:
        """What says that the tricks were not played as planned; nothing where each was, or had no letter to play on."""
        if not self.played or (any(self.played) and all(map(max, self.played, map(len, self.passed)))):
            return ""
        return f"tricks were played {self.played} times"

    def beyond(self, *, times: bool = True) -> str:
        """What of it is more than it may be; nothing where nothing is. times: seconds too.

        No round outlasts its time limit, and no trick costs a hospital more than one round. The real hospital's costs
        have their own bounds (`tests.hospital.hostile_home.bounds`).
        """
        from tests.hospital.hostile_home import bounds

        most = {"slowest_round": ROUND_TIMEOUT, "missed": len(self.played), **bounds()}
        if not times:
            del most["slowest_round"], most["stall"]
        found = asdict(self) | ({} if self.cost is None else asdict(self.cost))
        return ", ".join(f"{name} {found[name]} > {most[name]}" for name in most if found.get(name, 0) > most[name])


def short_study() -> Study:
    """The heart disease study with few rounds, and the researcher of these tests."""
    return Study(HEART, heart_package(rounds=str(ROUNDS), researcher=f'"{RESEARCHER}"'))


def run_study(root: Path, plans: Sequence[tuple[str, str]], real: RealHospital | None = None) -> Ended:
    """Run it over a store that plays these (point, trick)."""
    with ExitStack() as running:
        if real is None:
            study, url = short_study(), str(root / "store")
            parties = make_parties(root, url, study.terms.cohort.hospitals, start=False)
            store = HostileStore(url, plans)
        else:
            study, store = real.study, HostileStore(real.url, plans, about=real.email)
            parties = real.begin(store)
            running.callback(real.stop)
        for party in parties:
            running.callback(party.stop)
            party.options["settles"] = store.settles
            party.start()
            assert party.mailroom is not None
            party.mailroom.store = store
        hospitals.PEER_PATIENCE = PEER_PATIENCE
        federation, says, began = Federation(parties, study, root / "run"), "", time.monotonic()
        running.callback(federation.stop)
        for place, hospital in enumerate(federation.hospitals.values()):
            hospital.update = 0.1 * (place + 1)
        if real is not None:
            federation.folder.mkdir(parents=True)
            (federation.folder / "parameters.json").write_text(real.parameters)
        run = federation.run(
            *study.terms.cohort.hospitals,
            setup_patience=SETUP_PATIENCE,
            round_timeout=ROUND_TIMEOUT,
            least_patience=LEAST_PATIENCE,
        )
        try:
            run.complete(progress=False)
        except RunError as error:
            says = f"stopped: {error}"
        seconds = time.monotonic() - began
        store.end()
    cost = None if real is None else real.cost()
    missing = {
        email for record in run.state.rounds for email in study.terms.cohort.hospitals if email not in record.survivors
    } | ({*study.terms.cohort.hospitals} - {*run.state.accounts})
    if missing and not says:
        says = f"missing: {', '.join(sorted(missing))}"
    return Ended(
        same=not missing and not says,
        says=says,
        wrong=_wrong(federation, run, real),
        played=store.played,
        passed=tuple(
            "" if times else _why_none_came(point, run, says, real)
            for (point, _), times in zip(plans, store.played, strict=True)
        ),
        missed=max(
            sum(email not in record.survivors for record in run.state.rounds) for email in study.terms.cohort.hospitals
        ),
        seconds=seconds,
        slowest_round=max((sum(record.seconds.values()) for record in run.state.rounds), default=0.0),
        quarantine=max(files_below(party.home / "state" / "mail" / "quarantine")[1] for party in parties),
        cost=cost,
    )


def _why_none_came(point: str, run: Run, says: str, real: RealHospital | None) -> str:
    """Why the study had no letter at that point, about the real hospital if there is one; "" where it should have."""
    if says.startswith("stopped"):
        return "the study had stopped"
    if real is None or point == "close" or not run.state.rounds:
        return ""
    number = max(1, int(POINTS[point][:8]))
    record = run.state.rounds[number - 1]
    if record.outcome == "failed":
        return f"round {number} had failed"
    if real.email not in record.survivors:
        return f"round {number} went on without it"
    return f"round {number} was opened without it" if point == "unmask" else ""


def _wrong(federation: Federation, run: Run, real: RealHospital | None) -> str:
    """What differs from a mean in the clear over those whom each round names; nothing where nothing does."""
    found = np.concatenate([tensor.ravel() for tensor in run.model.values()])
    expected = np.zeros(len(found), np.float32)
    for record in run.state.rounds:
        if record.train and record.outcome == "done":
            total, weight = np.zeros(len(found)), 0.0
            for email in record.survivors:
                if real is not None and email == real.email:
                    share, update = real.share, real.update(expected)
                else:
                    share, update = SHARE, np.full(len(found), federation.hospitals[email].update)
                total, weight = total + share * update, weight + share
            expected = (expected + total / weight).astype(np.float32)
    if not np.allclose(found, expected, atol=1e-3):
        return f"the model is {found}, the mean in the clear is {expected}"
    twice = [
        hospital.email for hospital in federation.hospitals.values() if len({*hospital.charged}) != hospital.releases
    ]
    if twice:
        return f"released twice: {twice}"
    if real is None:
        return ""
    return real.wrong([record.round for record in run.state.rounds if real.email in record.survivors])
