"""Decisions of two people that are not about a case: one reviewer enters it, a reviewer of the other role confirms it.

Entered here: a wider budget, a larger delta whose risk people accept, that two populations are different people, and
that a withdrawal is undone. Nothing counts before it is confirmed. Each effect is logged last, when nothing can refuse
it any more, and before it counts (`population`): killed in between, it is confirmed again. Who entered which figures is
read in the audit log, which binds them (`audit.entered`), and not in the database alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from django.db import IntegrityError, transaction

from datasites.hospital.audit.bindings import bind, proposal_content
from datasites.hospital.audit.entered import require_asked
from datasites.hospital.budget import population, promises, reconcile
from datasites.hospital.data import withdrawal
from datasites.hospital.data.patients import listed
from datasites.hospital.models import LedgerEntry, Population, Proposal
from datasites.hospital.people.accounts import REVIEWERS, Actor, ReviewError, require_reviewer
from datasites.hospital.people.second_person import settle_entry, waiting_entry
from datasites.hospital.proposals.restored import Lost, LostStudy, require_enough, settle
from datasites.hospital.site import Site
from datasites.study.errors import InputError
from datasites.study.identity import same_identity

Effect = Callable[[Site, Proposal, tuple[str, str]], None]


def propose_widening(site: Site, person: Actor, name: str, reason: str) -> Proposal:
    """Enter that a population's caps become what `datasite.toml` says now, which is wider; raises `ReviewError`."""
    asked = population.asked_caps(population.dataset_of(site.home, name))
    agreed = population.agreed_caps(name)
    if agreed is None or not asked.is_wider_than(agreed):
        raise ReviewError(
            f"population {name}: datasite.toml asks for no wider budget ({asked.summary}); write the wider figures "
            "there first"
        )
    return _propose(site, person, "widen", name, {"epsilon": asked.epsilon, "delta": asked.delta}, reason)


def propose_delta(site: Site, person: Actor, name: str, delta: float, reason: str) -> Proposal:
    """Enter that releases on a population may have a delta up to this one, though the rule wants a smaller one."""
    population.dataset_of(site.home, name)
    if not (0 < delta < 1) or not math.isfinite(delta):
        raise InputError(f"delta: {delta} is outside (0, 1)")
    return _propose(site, person, "accept_delta", name, {"delta": delta}, reason)


def propose_other_patients(site: Site, person: Actor, one: str, other: str, reason: str) -> Proposal:
    """Enter that two populations are different people, though pseudonyms of one stand in the other."""
    known = {dataset.population for dataset in site.home.settings.datasets}
    # Also those that only their list of patients or their charges tell of: what `require_others` names can be answered.
    known |= set(Population.objects.values_list("name", flat=True)) | listed(site.home)
    known |= set(LedgerEntry.objects.values_list("population", flat=True))
    for name in (one, other):
        if name not in known:
            raise InputError(f"population {name!r}: is not known here (known: {', '.join(sorted(known))})")
    if one == other:
        raise InputError(f"population {one}: name two different ones")
    names = sorted((one, other))
    return _propose(site, person, "other_patients", " ".join(names), {"populations": names}, reason)


def propose_restored(site: Site, person: Actor, lost: tuple[LostStudy, ...], reason: str) -> Proposal:
    """Enter that this home, or a part of it, came back from a backup, and what was approved after that backup.

    Raises `ReviewError` where nothing differs, `InputError` where something here shows that there was more.
    """
    if not any(reconcile.differences(site.home)):
        raise ReviewError("database, audit log and anchor agree; there is nothing to settle")
    require_enough(site, lost)
    details = {"lost": [study.model_dump(mode="json") for study in lost]}
    return _propose(site, person, "restored", "this datasite", details, reason)


def propose_undoing(site: Site, person: Actor, dataset: str, patient: str, reason: str) -> Proposal:
    """Enter that a withdrawal is taken back before a round was held without the patient; raises `NotToUndo`.

    Database and log know the patient by the commitments that the withdrawal was logged with, and by no name.
    """
    _check_role(person)
    details = withdrawal.to_undo(site.home, dataset, patient)
    return _propose(site, person, "undo_withdrawal", f"{dataset} {details['commitments'][0]}", details, reason)


def confirm(site: Site, person: Actor, entry_id: int) -> Proposal:
    """Confirm what somebody of the other role entered, and let it count.

    Raises `ReviewError`, `InputError`, or `EntryRefused` for what is not as somebody else entered it by the log.
    """
    _check_role(person)
    with transaction.atomic():
        proposal = waiting_entry(Proposal, entry_id, "see `datasites budget waiting`")
        if same_identity(person.name, proposal.proposed_by) or person.role == proposal.proposed_role:
            raise ReviewError(
                f"entry {entry_id}: {proposal.proposed_by} ({proposal.proposed_role}) entered it; a different person "
                f"of the other role confirms it ({' and '.join(REVIEWERS)})"
            )
        asked = require_asked(site.home, proposal.kind, proposal.subject, proposal.details, person.name, person.role)
        proposal.reason = str(asked.fields["reason"])
        settle_entry(proposal, person, "confirmed")
        EFFECTS[proposal.kind](site, proposal, (str(asked.fields["person"]), person.name))
        # From here on it waits for nobody, whatever the database says.
        site.audit.append("proposal_confirmed", what=proposal.kind, subject=proposal.subject, person=person.name)
    return proposal


def withdraw(site: Site, person: Actor, entry_id: int) -> None:
    """Drop an entry that waits; one person is enough, since it only narrows."""
    _check_role(person)
    with transaction.atomic():
        proposal = waiting_entry(Proposal, entry_id, "see `datasites budget waiting`")
        settle_entry(proposal, person, "withdrawn")
        site.audit.append("proposal_withdrawn", what=proposal.kind, subject=proposal.subject, person=person.name)


def waiting() -> list[Proposal]:
    """Return the entries that wait for a second person, newest first."""
    return list(Proposal.objects.filter(outcome=""))


def in_words(proposal: Proposal) -> str:
    """Say what confirming it does."""
    details = proposal.details
    if proposal.kind == "restored":
        lost = [study.summary for study in Lost.model_validate({"study": details["lost"]}).study]
        return "the larger loss counts; approved after the backup: " + ("; ".join(lost) or "nothing")
    if proposal.kind == "undo_withdrawal":
        return (
            f"the withdrawal of record {details['record']} of the log (dataset {proposal.subject.split()[0]}) is "
            "undone: the patient is back from the next round on"
        )
    if proposal.kind == "other_patients":
        return f"populations {' and '.join(details['populations'])} are different people"
    if proposal.kind == "widen":
        return f"population {proposal.subject}: epsilon up to {details['epsilon']:g} at delta {details['delta']:g}"
    return f"population {proposal.subject}: releases with a delta up to {details['delta']:g}"


def _widen(site: Site, proposal: Proposal, by: tuple[str, str]) -> None:
    name, details = proposal.subject, proposal.details
    caps = population.Caps(name, details["epsilon"], details["delta"])
    asked = population.asked_caps(population.dataset_of(site.home, name))
    if asked != caps:
        raise ReviewError(
            f"entry {proposal.pk}: datasite.toml now says {asked.summary}, the entry says {caps.summary}; withdraw it "
            "and enter it again"
        )
    with promises.budget_lock(name):
        population.widen(site, name, caps, by, proposal.reason)


def _accept_delta(site: Site, proposal: Proposal, by: tuple[str, str]) -> None:
    with promises.budget_lock(proposal.subject):
        population.accept_delta(site, proposal.subject, proposal.details["delta"], by, proposal.reason)


def _other_patients(site: Site, proposal: Proposal, by: tuple[str, str]) -> None:
    one, other = proposal.details["populations"]
    population.say_other_patients(site, (one, other), by, proposal.reason)


def _restored(site: Site, proposal: Proposal, by: tuple[str, str]) -> None:
    lost = Lost.model_validate({"study": proposal.details["lost"]}).study
    require_enough(site, lost)
    settle(site, lost, by, proposal.reason)


def _undo_withdrawal(site: Site, proposal: Proposal, by: tuple[str, str]) -> None:
    details = proposal.details
    withdrawal.undo(site, details["populations"], details["commitments"], details["record"], by, proposal.reason)


EFFECTS: dict[str, Effect] = {
    "widen": _widen,
    "accept_delta": _accept_delta,
    "other_patients": _other_patients,
    "restored": _restored,
    "undo_withdrawal": _undo_withdrawal,
}


def _propose(site: Site, person: Actor, kind: str, subject: str, details: dict[str, Any], reason: str) -> Proposal:
    _check_role(person)
    if not reason.strip():
        raise ReviewError("an entry needs a reason; the second person and the audit log keep it")
    try:
        with transaction.atomic():
            proposal = Proposal.objects.create(
                kind=kind,
                subject=subject,
                details=details,
                reason=reason,
                proposed_by=person.name,
                proposed_role=person.role,
            )
            record_fields = {
                "what": kind,
                "subject": subject,
                "person": person.name,
                "role": person.role,
                "reason": reason,
            }
            site.audit.append(
                "proposed", **record_fields, commitment=bind(site.home, proposal_content(kind, subject, details))
            )
    except IntegrityError as error:
        raise ReviewError(f"{subject}: an entry of this kind waits already; confirm or withdraw it first") from error
    return proposal


def _check_role(person: Actor) -> None:
    require_reviewer(person, f"this needs {' and '.join(REVIEWERS)}")
