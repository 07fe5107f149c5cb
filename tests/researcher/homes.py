"""A researcher's home, and hospitals that it has pinned and is a peer of."""

from __future__ import annotations

from pathlib import Path

from datasites.researcher import Federation
from tests.transport.parties import Party

EMAIL = "researcher@university.example.org"


def create(home: Path, store: Path | str, email: str = EMAIL) -> Federation:
    return Federation.create(home, organisation="University", email=email, store=str(store))


def befriended(tmp_path: Path, hospitals: list[Party]) -> Federation:
    federation = create(tmp_path / "home", tmp_path / "store")
    federation.pin(*(party.entry() for party in hospitals))
    for party in hospitals:
        party.roster = federation.roster
        party.start()
        party.control.accept_peers([EMAIL])
    federation.connect()
    return federation
