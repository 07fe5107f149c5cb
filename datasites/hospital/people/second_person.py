"""Entries that one person makes and that wait for a second one: the row, locked, and what became of it.

What a second person confirms, and who may, is the matter of `people.roster` and `proposals.two_people`.
"""

from __future__ import annotations

from typing import TypeVar

from django.utils import timezone

from datasites.hospital.models import PartyProposal, Proposal
from datasites.hospital.people.accounts import Actor, ReviewError

Entry = TypeVar("Entry", Proposal, PartyProposal)


def waiting_entry(kind: type[Entry], entry_id: int, where: str) -> Entry:
    """Return the entry with this id, locked until the transaction ends; `where` says where those that wait are seen.

    Raises `ReviewError` where it doesn't wait.
    """
    entry = kind.objects.select_for_update().filter(pk=entry_id, outcome="").first()
    if entry is None:
        raise ReviewError(f"entry {entry_id}: does not wait for anybody (any more); {where}")
    return entry


def settle_entry(entry: Proposal | PartyProposal, person: Actor, outcome: str) -> None:
    """Write down what this person made of it."""
    entry.outcome, entry.decided_by, entry.decided_at = outcome, person.name, timezone.now()
    entry.save(update_fields=["outcome", "decided_by", "decided_at"])
