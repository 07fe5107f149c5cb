"""Real parties over a store, for the tests of this room: keys, roster, controls and mailrooms; nothing is faked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasites.control.sealer import open_keys, syft_fingerprint
from datasites.control.syft import HospitalControl, ResearcherControl
from datasites.study.identity import Identity
from datasites.study.roster import Roster, RosterEntry
from datasites.transport.mailroom import LetterLimits, Mailroom
from datasites.transport.store import Store
from tests.study.entries import entry_of

RESEARCHER = "rita@uni.example"
HOSPITALS = ("hannover@clinic.example", "harlem@clinic.example", "huelva@clinic.example")
STUDY = "a" * 64


@dataclass
class Party:
    email: str
    role: Literal["hospital", "researcher"]
    home: Path
    store_url: str
    identity: Identity
    options: dict[str, Any] = field(default_factory=dict)
    roster: Roster = field(default_factory=Roster)
    #: Of its role; None while it is stopped.
    control: Any = None
    mailroom: Any = None

    def entry(self) -> RosterEntry:
        keys = open_keys(self.email, self.home / "state" / "syft_keys.json")
        name = self.email.split("@")[0]
        return entry_of(self.identity, self.role, organisation=name, syft_fingerprint=syft_fingerprint(keys))

    def start(self, limits: LetterLimits | None = None) -> Party:
        # Refused at the first look, so that a test need not wait for the second; tests of that set `settles`.
        store = Store(self.store_url, **{"settles": 0.0, **self.options})
        if self.role == "hospital":
            self.control = HospitalControl.open(
                self.identity, self.home / "SyftBox", store, self.home / "state", self.roster
            )
        else:
            self.control = ResearcherControl.open(
                self.email, self.home / "SyftBox", store, self.home / "state", self.roster
            )
        self.mailroom = Mailroom(self.email, store, self.control.sealer(), self.home / "state" / "mail", limits=limits)
        return self

    def stop(self) -> None:
        if self.control is not None:
            self.control.close()
            self.mailroom.close()
            self.control = self.mailroom = None

    def restart(self) -> Party:
        self.stop()
        return self.start()


def make_parties(
    root: Path,
    store_url: str,
    hospitals: tuple[str, ...] = HOSPITALS,
    start: bool = True,
    options: dict[str, Any] | None = None,
) -> list[Party]:
    """[researcher, *hospitals], each with the full roster pinned, started."""
    parties = []
    for email in (RESEARCHER, *hospitals):
        role: Literal["hospital", "researcher"] = "researcher" if email == RESEARCHER else "hospital"
        parties.append(Party(email, role, root / email, store_url, Identity.generate(email), options or {}))
    roster = Roster(entries=tuple(party.entry() for party in parties))
    for party in parties:
        party.roster = roster
        if start:
            party.start()
    return parties


def befriend(researcher: Party, hospitals: list[Party]) -> None:
    """Researcher and hospitals become peers."""
    for hospital in hospitals:
        hospital.control.accept_peers([researcher.email])
        researcher.control.add_hospital(hospital.email)
    for party in (researcher, *hospitals):
        party.control.sync()


def study_files(canary: str = "CANARY_CODE") -> dict[str, bytes]:
    return {
        "study.toml": b'name = "heart"\n',
        "features.toml": b"format = 1\n",
        "model.py": f"# {canary}\ndef build_model(n):\n    return n\n".encode(),
    }


def settle(party: Party, seconds: float = 0.2) -> Party:
    """Give files that may be half written that long."""
    party.stop()
    party.options["settles"] = seconds
    return party.start()
