"""Whom this hospital trusts: entries of other parties, entered by one person and pinned by a second; revocation by one.

A researcher who changes its key hands over from the pinned one, which signs; that is accepted by one person.

Both people compare the fingerprint with the party by telephone; what they confirm is that, and not the file. Who
entered which entry is read in the audit log, which binds it (`audit.entered`), and not in the database. The roster file
is read and written under a lock, so that two people at once can't undo one another.

Claim: wherever the process is killed, and whatever the roster file holds, an entry that people have withdrawn, and a
party that they have revoked, is not pinned as the log says, so that who may write the roster file brings nobody in.
Proof: a revocation is logged before the file is written, a withdrawal wherever the log, and not the file, has the entry
as pinned; until either is logged it is not over, and can be done again. A pinning that was interrupted after the log
knew of it counts once somebody puts it into the roster; what people do then is to pin it again or to withdraw it, which
takes it back in the log, too. A key that was handed over to is pinned only where the log knew the entry before, and is
logged before the file is written. Nor is a key ever pinned again that was revoked or handed over, whatever the file
says of it: the log knows of each which key was pinned then, and is asked before anything is pinned. Assumes the newest
log, which decisions are compared with (`audit.entered`). Not claimed: of who may write the database, too, that what
people withdraw is what was entered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.db import IntegrityError, transaction
from pydantic import ValidationError

from datasites.hospital.audit.bindings import bind, party_content
from datasites.hospital.audit.entered import pinned_by_hand, require_proposed, tell
from datasites.hospital.models import PartyProposal
from datasites.hospital.people.accounts import REVIEWERS, Actor, ReviewError, require_reviewer
from datasites.hospital.people.second_person import settle_entry, waiting_entry
from datasites.hospital.site import Site
from datasites.study.errors import InputError, describe_validation
from datasites.study.files import held
from datasites.study.identity import IdentityError, same_identity
from datasites.study.roster import HandOver, Roster, RosterEntry
from datasites.study.visible import require_plain


def propose_party(site: Site, person: Actor, entry_json: str) -> PartyProposal:
    """Enter a party's roster entry (the text of its roster-entry.json). It is trusted once a second person pins it.

    Raises `InputError` for text that is no entry, `IdentityError` where the roster would refuse it, `ReviewError`.
    """
    _check_role(person)
    entry = read_entry(entry_json)
    _check_complete(entry)
    _require_unspent(site, entry)
    roster = Roster.load(site.home.roster)
    if roster.pin(entry) == roster:
        raise ReviewError(f"party {entry.email}: is pinned with this key already; nothing to enter")
    try:
        with transaction.atomic():
            proposal = PartyProposal.objects.create(
                email=entry.email, entry=entry.model_dump(mode="json"), proposed_by=person.name
            )
            record_fields = {"email": entry.email, "fingerprint": entry.fingerprint, "person": person.name}
            site.audit.append("party_proposed", **record_fields, commitment=bind(site.home, party_content(entry)))
    except IntegrityError as error:
        raise ReviewError(f"party {entry.email}: another entry waits already; pin it or withdraw it first") from error
    return proposal


def read_entry(entry_json: str) -> RosterEntry:
    """Read a party's roster-entry.json; raises `InputError`, which names the key that is wrong."""
    try:
        return RosterEntry.model_validate(json.loads(entry_json))
    except ValidationError as error:
        wrong = describe_validation(error, RosterEntry, quote=False)
        raise InputError(f"roster entry: {wrong}; ask the party for its roster-entry.json again") from error
    except (ValueError, RecursionError) as error:
        raise InputError("roster entry: not the text of a party's roster-entry.json; ask them for it again") from error


def pin_party(site: Site, person: Actor, entry_id: int, fingerprint: str) -> RosterEntry:
    """Pin what somebody else entered, naming the fingerprint that the party read out.

    Raises `ReviewError` for the same person, another fingerprint, or an entry that is not open any more, and
    `EntryRefused` for one that is not what somebody else entered, as the log says.
    """
    _check_role(person)
    with transaction.atomic(), _roster(site) as change:
        proposal = waiting_entry(PartyProposal, entry_id, "look at the roster again")
        entry = RosterEntry.model_validate(proposal.entry)
        if same_identity(person.name, proposal.proposed_by):
            raise ReviewError(f"party {entry.email}: {person.name} entered it; a second person compares and pins it")
        if "".join(fingerprint.split()).lower() != entry.fingerprint.replace(" ", ""):
            raise ReviewError(
                f"party {entry.email}: that is not the fingerprint of this entry; if the party read it to you, the "
                "entry is somebody else's: withdraw it"
            )
        _check_complete(entry)
        require_proposed(site.home, entry, person.name)
        change(lambda roster: _pinned(site, roster, entry, person.name))
        settle_entry(proposal, person, "pinned")
    return entry


def pin_compared(site: Site, entry: RosterEntry) -> None:
    """Pin an entry whose fingerprint was compared by whoever has this machine's shell, as when a datasite is set up.

    Raises `InputError` for an incomplete entry, `IdentityError` where the roster refuses it.
    """
    _check_complete(entry)
    with _roster(site) as change:
        change(lambda roster: _pinned(site, roster, entry, "command line"))


def _pinned(site: Site, roster: Roster, entry: RosterEntry, by: str) -> Roster:
    _require_unspent(site, entry)
    after = roster.pin(entry)
    # Logged before it counts: killed in between, nobody is trusted whom the log does not know.
    commitment = bind(site.home, party_content(entry))
    site.audit.append("pinned", email=entry.email, fingerprint=entry.fingerprint, person=by, commitment=commitment)
    return after


def accept_hand_over(site: Site, person: Actor, change: HandOver) -> RosterEntry:
    """Pin a party's new key, for which the pinned one signs; returns the new entry. One person is enough.

    It brings nobody in: the same party, under its name and organisation, by whoever holds the key that two people have
    compared. Whoever has stolen that key signs for the party as long as it is pinned, here as everywhere; it is ended
    by revoking the party, by one person, which ends the new key as well. Raises `IdentityError` where the roster
    refuses the change or the log doesn't know the entry that it replaces, `InputError` for an incomplete entry, and
    `ReviewError`.
    """
    _check_role(person)
    entry = change.entry
    _check_complete(entry)

    def handed_over(roster: Roster) -> Roster:
        replaced, after = roster.get(entry.email), roster.hand_over(change)
        # Who may write the roster file must not name whose signature counts. Or it was interrupted: the log knows then.
        by_hand = pinned_by_hand(site.home, [replaced])
        if by_hand and pinned_by_hand(site.home, [entry]):
            raise IdentityError(f"{site.home.roster}: {by_hand[0]}; `datasites doctor` says what to do")
        if by_hand:
            return after
        _require_unspent(site, entry)
        # Logged before it counts, as above; from then on the log takes the old entry for nobody's.
        record_fields = {"email": entry.email, "fingerprint": entry.fingerprint, "person": person.name}
        commitment = bind(site.home, party_content(entry))
        site.audit.append("pinned", **record_fields, handed_over_by=replaced.fingerprint, commitment=commitment)
        return after

    with _roster(site) as change_roster:
        change_roster(handed_over)
    return entry


def withdraw_party(site: Site, person: Actor, entry_id: int) -> None:
    """Drop an entry that waits; one person is enough, since it only narrows.

    Where its pinning was interrupted after the log knew of it, the log records that nobody is pinned, too. Raises
    `ReviewError` where the roster had it by then.
    """
    _check_role(person)
    with transaction.atomic(), _roster(site):
        proposal = waiting_entry(PartyProposal, entry_id, "look at the roster again")
        email, entry = proposal.email, RosterEntry.model_validate(proposal.entry)
        if entry in Roster.load(site.home.roster).entries:
            raise ReviewError(
                f"party {email}: is pinned with this key already, and only recording that was interrupted; pin "
                "it again, or revoke the party"
            )
        # By the log: the file may hold anything under this address, and something else tomorrow.
        if not pinned_by_hand(site.home, [entry]):
            reason = "withdrawn, while its pinning was interrupted"
            site.audit.append("unpinned", email=email, reason=reason, person=person.name, withdrawn=True)
        settle_entry(proposal, person, "withdrawn")
        site.audit.append("party_withdrawn", email=email, person=person.name)


def revoke_party(site: Site, person: Actor, email: str, reason: str) -> None:
    """Stop trusting a party, from the next round on, and never take its key again; one person is enough.

    One that the log alone has as pinned is revoked there. Raises `IdentityError` or `ReviewError`.
    """
    _check_role(person)
    if same_identity(email, site.home.settings.email):
        raise ReviewError(f"party {email}: is this hospital itself; use the kill switch to stop it")

    def revoked(roster: Roster) -> Roster:
        held = any(entry.email == email for entry in roster.entries)
        after = roster.revoke(email) if held or not _is_pinned(site, email) else roster
        # Logged before it counts: killed in between, nothing rests on the party, and it is revoked again.
        site.audit.append("unpinned", email=email, reason=reason, person=person.name)
        return after

    with _roster(site) as change:
        change(revoked)


def _is_pinned(site: Site, email: str) -> bool:
    """Say whether the log says that somebody is pinned under this address, whatever the roster holds."""
    entered = tell(site.home)
    pin = entered.pinned.get(email)
    return pin is not None and entered.revoked.get(email, 0) < pin.seq


def _require_unspent(site: Site, entry: RosterEntry) -> None:
    """Raise `IdentityError` for a key that was revoked or handed over, which an older or edited roster file forgets."""
    if entry.fingerprint in tell(site.home).spent:
        raise IdentityError(
            f"roster: the key {entry.fingerprint} of {entry.email} was revoked or handed over, as the log says; ask "
            "for an entry with a new key"
        )


def open_proposals() -> list[tuple[PartyProposal, RosterEntry]]:
    """Return the entries that wait for a second person, newest first."""
    return [(row, RosterEntry.model_validate(row.entry)) for row in PartyProposal.objects.filter(outcome="")]


def _check_complete(entry: RosterEntry) -> None:
    require_plain(entry, f"roster entry of {entry.email}")
    if not entry.syft_fingerprint:
        raise InputError(
            f"roster entry of {entry.email}: has no syft fingerprint, so no letter could go to them; ask the party for "
            "the roster-entry.json that their `datasites init` wrote"
        )


def _check_role(person: Actor) -> None:
    require_reviewer(person, f"the roster is kept by {' and '.join(REVIEWERS)}")


@contextmanager
def _roster(site: Site) -> Iterator[Callable[[Callable[[Roster], Roster]], None]]:
    """Yield a function that applies a change to the roster file, while nobody else does."""
    path = site.home.roster
    with held(path.with_suffix(".lock")):
        yield lambda change: change(Roster.load(path)).save(path)
