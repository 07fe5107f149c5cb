"""What people entered, as the audit log records it: agreements, parties and people, and what became of them.

A process reads the log once and follows it from there. Policies decide on agreements, parties and approvals only as
the log binds them (`bindings`), and only people whom it knows under their role and address act, in whatever role: what
was typed into a file or the database, changed there, or brought back by an older copy counts for nothing, at once, and
`doctor` names it.

Claim: whoever may write registry, roster, what waits for a second person, the openings, and the roles and addresses of
people, and neither log nor its key, can make decisions deny, and no more of them: none rests on an agreement that not
one person entered and another confirmed with these words, on a party or an approver whom people did not enter like
that, or on what they have replaced, ended or revoked since; none leaves out what narrows, and an end that people did
not enter counts for none. Of each agreement that is so of the newest version that has taken effect, and of later ones,
which are all that policies read; an end that one person enters only narrows (`Registry.terminate`).
Assumptions: the log is the newest one (`ledger_log` compares it with its anchor) and knows somebody (where it was lost,
people of the database settle that); commitments bind. Names and passwords are the database's: who may write it as a
whole acts as anybody. A person is a name that an admin or the shell entered, so who is an admin by the log may enter
one human under two; the shell pins a party alone; and one person takes a key that the pinned one signs for. Records of
older versions bind no content: of those, who entered and who confirmed, and what became of it, is compared; what waits
from such a version is entered anew.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from datasites.hospital.audit.bindings import (
    FIELD,
    agreement_content,
    is_bound,
    party_content,
    person_content,
    proposal_content,
)
from datasites.hospital.config import Home
from datasites.study.audit_chain import AuditError, LogRecord, Position, follow
from datasites.study.errors import DatasitesError
from datasites.study.identity import same_identity
from datasites.study.roster import Roster, RosterEntry
from policies.agreements import Agreement

Version = tuple[str, int]
Key = TypeVar("Key")


class EntryRefused(DatasitesError):
    """A second person was about to stand for what the log does not know as somebody else's entry."""


@dataclass(frozen=True)
class Entered:
    """What the log says up to some record; records by what they are of.

    begun, entered, last: of a version of an agreement, the first record of it, the last one that enters it, and the
    last one that binds it. confirmed, ended: by agreement. proposed (of what waits, or was pinned and is not revoked),
    pinned, revoked: by e-mail address. spent: fingerprints of keys that were revoked or handed over. asked: of what
    else waits for a second person, by kind and subject. answered: findings on tables, in order. added, shut_out: by
    name.
    """

    begun: Mapping[Version, int] = field(default_factory=dict)
    entered: Mapping[Version, LogRecord] = field(default_factory=dict)
    last: Mapping[Version, LogRecord] = field(default_factory=dict)
    confirmed: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    ended: Mapping[str, int] = field(default_factory=dict)
    proposed: Mapping[str, LogRecord] = field(default_factory=dict)
    pinned: Mapping[str, LogRecord] = field(default_factory=dict)
    revoked: Mapping[str, int] = field(default_factory=dict)
    spent: frozenset[str] = frozenset()
    asked: Mapping[tuple[str, str], LogRecord] = field(default_factory=dict)
    answered: tuple[LogRecord, ...] = ()
    added: Mapping[str, LogRecord] = field(default_factory=dict)
    shut_out: Mapping[str, int] = field(default_factory=dict)

    def after(self, record: LogRecord) -> Entered:
        """Return what the log says with one more record."""
        fields, seq = record.fields, record.seq
        match record.kind:
            case "agreement_entered" | "agreement_confirmed":
                id, version = str(fields["agreement"]), int(fields["version"])
                entered, confirmed = self.entered, self.confirmed
                if record.kind == "agreement_confirmed":
                    confirmed = {**confirmed, id: {**confirmed.get(id, {}), version: seq}}
                else:
                    entered = {**entered, (id, version): record}
                return replace(
                    self,
                    begun={(id, version): seq, **self.begun},
                    entered=entered,
                    last={**self.last, (id, version): record},
                    confirmed=confirmed,
                )
            case "agreement_terminated":
                return replace(self, ended={**self.ended, str(fields["agreement"]): seq})
            case "initialised" | "pinned":
                spent = self.spent | ({str(fields["handed_over_by"])} if "handed_over_by" in fields else set())
                return replace(self, pinned={**self.pinned, str(fields["email"]): record}, spent=spent)
            case "party_proposed":
                return replace(self, proposed={**self.proposed, str(fields["email"]): record})
            case "party_withdrawn":
                return replace(self, proposed=_without(self.proposed, str(fields["email"])))
            case "unpinned":
                email, spent = str(fields["email"]), self.spent
                pin = self.pinned.get(email)
                if pin is not None and not fields.get("withdrawn", False):
                    spent |= {str(pin.fields["fingerprint"])}
                revoked, proposed = {**self.revoked, email: seq}, _without(self.proposed, email)
                return replace(self, revoked=revoked, spent=spent, proposed=proposed)
            case "proposed":
                return replace(self, asked={**self.asked, (str(fields["what"]), str(fields["subject"])): record})
            case "proposal_withdrawn" | "proposal_confirmed":
                return replace(self, asked=_without(self.asked, (str(fields["what"]), str(fields["subject"]))))
            case "finding_answered":
                return replace(self, answered=(*self.answered, record))
            case "person_added":
                return replace(self, added={**self.added, str(fields["person"]): record})
            case "person_deactivated":
                return replace(self, shut_out={**self.shut_out, str(fields["person"]): seq})
        return self


def _without(records: Mapping[Key, LogRecord], key: Key) -> Mapping[Key, LogRecord]:
    return {name: record for name, record in records.items() if name != key}


_lock = threading.Lock()
_read: dict[Path, tuple[Position, Entered]] = {}


def tell(home: Home) -> Entered:
    """Return what the log says now; raises `AuditError`."""
    with _lock:
        known = _read.get(home.audit, (Position(), Entered()))
        try:
            known = _catch_up(home.audit, *known)
        except AuditError:
            # Another log lies there than was read before; whether that may be is for the ledger to say.
            known = _catch_up(home.audit, Position(), Entered())
        _read[home.audit] = known
        return known[1]


def _catch_up(log: Path, at: Position, entered: Entered) -> tuple[Position, Entered]:
    for position, record in follow(log, at):
        at, entered = position, entered.after(record)
    return at, entered


def agreements_by_hand(home: Home, agreements: Iterable[Agreement], today: datetime.date) -> list[str]:
    """Say where a registry that holds these differs from what the log says people entered, confirmed and ended.

    Each version that was confirmed must be there, with the content that one person entered and another confirmed, and
    with its end, if it has one: an older copy of the registry brings none back, and takes no narrower one away. Of
    each agreement the newest version that has taken effect, and later ones; those that it replaced decide nothing.
    """
    entered, found = tell(home), []
    confirmed = [agreement for agreement in agreements if agreement.confirmed_on is not None]
    held = {(one.terms.id, one.version) for one in confirmed}
    counts: dict[str, int] = {}
    for one in confirmed:
        if one.confirmed(today) and one.terms.effective <= today:
            counts[one.terms.id] = max(one.version, counts.get(one.terms.id, 0))
    for one in confirmed:
        if one.version >= counts.get(one.terms.id, 0) and (difference := _by_hand(home, entered, one, today)):
            found.append(f"{one.terms.id} version {one.version} {difference}")
    for id, versions in sorted(entered.confirmed.items()):
        for version, at in sorted(versions.items()):
            if (id, version) not in held and version >= counts.get(id, 0):
                found.append(f"{id} version {version}, which record {at} of the log confirms, is not there")
    return found


def _by_hand(home: Home, entered: Entered, agreement: Agreement, today: datetime.date) -> str:
    """Say how a confirmed version differs from what the log says of it, or ""."""
    key = (agreement.terms.id, agreement.version)
    record, entry, end = entered.last.get(key), entered.entered.get(key), entered.ended.get(agreement.terms.id, 0)
    if record is None:
        return "was never entered, according to the log"
    if not is_bound(home, record.fields.get(FIELD), agreement_content(agreement)):
        return f"is not what record {record.seq} of the log binds"
    if record.kind != "agreement_confirmed":
        return "was never confirmed, according to the log"
    if entry is None or same_identity(str(entry.fields["person"]), str(record.fields["person"])):
        return f"was entered by nobody but the person who confirmed it, according to the log (record {record.seq})"
    waiting = agreement.model_copy(update={"confirmed_by": None, "confirmed_on": None})
    if not is_bound(home, entry.fields.get(FIELD), agreement_content(waiting)):
        return f"is not what was entered by record {entry.seq} of the log"
    over = agreement.terminated_on is not None and agreement.terminated_on <= today
    if end > entered.begun[key] and not over:
        return f"was ended by record {end} of the log"
    if agreement.terminated_on is not None and end <= entered.begun[key]:
        return "has an end that nobody entered, according to the log"
    return ""


def require_entered(home: Home, agreement: Agreement, by: str) -> None:
    """Raise `EntryRefused` unless, as the log says, somebody else than `by` entered what waits for a confirmation."""
    id, version = agreement.terms.id, agreement.version
    problem = _not_of_another(home, tell(home).entered.get((id, version)), agreement_content(agreement), by)
    if problem:
        raise EntryRefused(
            f"agreement {id} version {version}: {problem}; restore the correct registry.json, or end all of {id} "
            f"(`datasites agreements terminate {id}`) and enter it again, for a second person to confirm"
        )


def require_proposed(home: Home, entry: RosterEntry, by: str) -> None:
    """Raise `EntryRefused` unless, as the log says, somebody else than `by` entered this party, which still waits."""
    problem = _not_of_another(home, tell(home).proposed.get(entry.email), party_content(entry), by)
    if problem:
        raise EntryRefused(
            f"party {entry.email}: {problem}; withdraw it and enter the party's roster-entry.json again, for a second "
            "person to pin"
        )


def require_asked(home: Home, kind: str, subject: str, details: Mapping[str, Any], by: str, role: str) -> LogRecord:
    """Return the log's record of a proposal that waits, which says who entered it and why.

    Raises `EntryRefused` unless another than `by`, of another role, entered exactly this, and nobody has decided since.
    """
    record = tell(home).asked.get((kind, subject))
    problem = _not_of_another(home, record, proposal_content(kind, subject, details), by)
    if record is None:
        problem = "was never entered or is decided already, according to the audit log"
    elif record.fields["role"] == role:
        problem = f"a {role} entered it by record {record.seq} of the log"
    if problem:
        raise EntryRefused(f"{subject}: {problem}; withdraw it and enter it again, for a second person to confirm")
    assert record is not None
    return record


def _not_of_another(home: Home, record: LogRecord | None, content: Mapping[str, object], by: str) -> str:
    """Say why the record of an entry is not of this content and by somebody else, or ""."""
    if record is None:
        return "was never entered, according to the audit log"
    if same_identity(str(record.fields["person"]), by):
        return f"{by} entered it by record {record.seq} of the log"
    if FIELD not in record.fields:
        return f"record {record.seq} of the log, which enters it, is of an earlier version and binds no content"
    if not is_bound(home, record.fields[FIELD], content):
        return f"is not what was entered by record {record.seq} of the log"
    return ""


def pinned_by_hand(home: Home, entries: Iterable[RosterEntry]) -> list[str]:
    """Say which of these parties are not those that the log says were pinned last; names those that were revoked."""
    entered, found = tell(home), []
    for entry in entries:
        pin = entered.pinned.get(entry.email)
        if pin is None:
            found.append(f"{entry.email} was never pinned, according to the log")
        elif entered.revoked.get(entry.email, 0) > pin.seq:
            found.append(f"{entry.email} was revoked by record {entered.revoked[entry.email]} of the log")
        elif pin.fields.get("fingerprint") != entry.fingerprint or not is_bound(
            home, pin.fields.get(FIELD), party_content(entry)
        ):
            found.append(f"{entry.email} is not the entry that record {pin.seq} of the log pins")
    return found


def pinned_by_people(home: Home, roster: Roster) -> Roster:
    """Return a roster without the entries that are not those that the log says were pinned last.

    For whoever speaks with the parties: nobody who may write the file alone is asked in, or gets what is for another.
    """
    entries = tuple(entry for entry in roster.entries if not pinned_by_hand(home, [entry]))
    return Roster(entries=entries, revoked=roster.revoked)


def people_by_hand(home: Home, people: Iterable[tuple[str, str, str]], *, past: bool = False) -> list[str]:
    """Say which of these people (name, role, e-mail) are not as the log entered them last, or were shut out.

    past: for what they did before; whether they were shut out later is no matter.
    """
    entered, found = tell(home), []
    for name, role, email in people:
        added = entered.added.get(name)
        if added is None:
            found.append(f"{name} was never entered, according to the log")
        elif entered.shut_out.get(name, 0) > added.seq and not past:
            found.append(f"{name} was shut out by record {entered.shut_out[name]} of the log")
        elif not is_bound(home, added.fields.get(FIELD), person_content(name, role, email)) or any(
            # In clear, too, of which records of older versions hold nothing else.
            added.fields.get(key, now) != now
            for key, now in (("role", role), ("email", email))
        ):
            found.append(f"{name} is not the person that record {added.seq} of the log enters")
    return found
