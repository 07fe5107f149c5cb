"""Entries of a roster, as parties would hand them over."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from datasites.study.identity import Identity
from datasites.study.roster import Roster, RosterEntry


def entry_of(identity: Identity, role: str = "hospital", **changed: Any) -> RosterEntry:
    """What a party hands over; its organisation is called by its address unless `changed` says how."""
    fields = {"organisation": identity.email, "email": identity.email, "public_key": identity.public_key, **changed}
    return RosterEntry(role=role, **fields)  # type: ignore[arg-type]


def roster_of(identities: Iterable[Identity], researcher: str = "") -> Roster:
    """All of these: hospitals, but for the one of this address."""
    return Roster(
        entries=tuple(entry_of(one, "researcher" if one.email == researcher else "hospital") for one in identities)
    )


def stranger(name: str = "north", role: str = "hospital", **changed: Any) -> RosterEntry:
    """A party that nobody has pinned yet, with keys of syft."""
    identity = Identity.generate(f"datasite@{name}.example.org")
    return entry_of(identity, role, **{"organisation": name.title(), "syft_fingerprint": "ab" * 20, **changed})
