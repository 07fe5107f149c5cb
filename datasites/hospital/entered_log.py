"""What people entered, as the audit log tells it: agreements, parties and people, and what became of them.

The log is read once in a process and followed from there. Policies decide on agreements and parties only as the log
binds them (`bindings`), and only people whom it knows under their role and address review: what was typed into a file
or the database, changed there, or brought back by an older copy counts for nothing, at once, and `doctor` names it.
Claim: whoever may write registry, roster, or the roles and addresses of people, and neither log nor its key, makes no
decision rest on what people did not enter and confirm, or have replaced, ended or revoked since; nor leave out what
narrows it. Who may write the database as a whole writes passwords and reviews, too, and acts as anybody: that is for
the database's own rights. Assumption: the log is the newest one (`ledger_log` compares it with its anchor). Records of
older versions bind no content; of those, only that they were entered, and what became of them, is compared.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasites.hospital.bindings import FIELD, agreement_content, is_bound, party_content, person_content
from datasites.hospital.config import Home
from datasites.study.audit_chain import AuditError, Position, Record, follow
from datasites.study.identity import RosterEntry
from policies.agreements import Agreement

Version = tuple[str, int]


@dataclass(frozen=True)
class Entered:
    """What the log says up to some record; records by what they are of.

    begun, last: of a version of an agreement, the record that entered it and the last one that binds it. confirmed,
    ended: by agreement. pinned, revoked: by e-mail address. added, shut_out: by name.
    """

    begun: Mapping[Version, int] = field(default_factory=dict)
    last: Mapping[Version, Record] = field(default_factory=dict)
    confirmed: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    ended: Mapping[str, int] = field(default_factory=dict)
    pinned: Mapping[str, Record] = field(default_factory=dict)
    revoked: Mapping[str, int] = field(default_factory=dict)
    added: Mapping[str, Record] = field(default_factory=dict)
    shut_out: Mapping[str, int] = field(default_factory=dict)

    def after(self, record: Record) -> Entered:
        """What it says with one more record."""
        fields, seq = record.fields, record.seq
        match record.kind:
            case "agreement_entered" | "agreement_confirmed":
                id, version = str(fields["agreement"]), int(fields["version"])
                confirmed = self.confirmed
                if record.kind == "agreement_confirmed":
                    confirmed = {**confirmed, id: {**confirmed.get(id, {}), version: seq}}
                return replace(
                    self,
                    begun={(id, version): seq, **self.begun},
                    last={**self.last, (id, version): record},
                    confirmed=confirmed,
                )
            case "agreement_terminated":
                return replace(self, ended={**self.ended, str(fields["agreement"]): seq})
            case "initialised" | "pinned":
                return replace(self, pinned={**self.pinned, str(fields["email"]): record})
            case "unpinned":
                return replace(self, revoked={**self.revoked, str(fields["email"]): seq})
            case "person_added":
                return replace(self, added={**self.added, str(fields["person"]): record})
            case "person_deactivated":
                return replace(self, shut_out={**self.shut_out, str(fields["person"]): seq})
        return self


_lock = threading.Lock()
_read: dict[Path, tuple[Position, Entered]] = {}


def tell(home: Home) -> Entered:
    """What the log says now; raises `AuditError`."""
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
    """Where a registry that holds these differs from what the log says people confirmed and ended, in words.

    Of each version that is confirmed and not over, the content; and each version that was confirmed must be there: an
    older copy of the registry brings none back, and takes no narrower one away.
    """
    entered, found, held = tell(home), [], set()
    for agreement in agreements:
        if agreement.confirmed_on is None:
            continue
        id, version = agreement.terms.id, agreement.version
        held.add((id, version))
        if agreement.terminated_on is not None and agreement.terminated_on <= today:
            continue
        words, record = f"{id} version {version}", entered.last.get((id, version))
        if record is None:
            found.append(f"{words} was never entered, as far as the log knows")
        elif not is_bound(home, record.fields.get(FIELD), agreement_content(agreement)):
            found.append(f"{words} is not what record {record.seq} of the log binds")
        if record is not None and entered.ended.get(id, 0) > entered.begun[id, version]:
            found.append(f"{words} was ended by record {entered.ended[id]} of the log")
    for id, versions in sorted(entered.confirmed.items()):
        for version, at in sorted(versions.items()):
            if (id, version) not in held and entered.ended.get(id, 0) < at:
                found.append(f"{id} version {version}, which record {at} of the log confirms, is not there")
    return found


def pinned_by_hand(home: Home, entries: Iterable[RosterEntry]) -> list[str]:
    """Which of these parties are not whom the log says was pinned last, in words; so also those that were revoked."""
    entered, found = tell(home), []
    for entry in entries:
        pin = entered.pinned.get(entry.email)
        if pin is None:
            found.append(f"{entry.email} was never pinned, as far as the log knows")
        elif entered.revoked.get(entry.email, 0) > pin.seq:
            found.append(f"{entry.email} was revoked by record {entered.revoked[entry.email]} of the log")
        elif pin.fields.get("fingerprint") != entry.fingerprint or not is_bound(
            home, pin.fields.get(FIELD), party_content(entry)
        ):
            found.append(f"{entry.email} is not the entry that record {pin.seq} of the log pins")
    return found


def people_by_hand(home: Home, people: Iterable[tuple[str, str, str]]) -> list[str]:
    """Which of these people (name, role, e-mail) are not as the log entered them last, or were shut out, in words."""
    entered, found = tell(home), []
    for name, role, email in people:
        added = entered.added.get(name)
        if added is None:
            found.append(f"{name} was never entered, as far as the log knows")
        elif entered.shut_out.get(name, 0) > added.seq:
            found.append(f"{name} was shut out by record {entered.shut_out[name]} of the log")
        elif not is_bound(home, added.fields.get(FIELD), person_content(name, role, email)):
            found.append(f"{name} is not the person that record {added.seq} of the log enters")
    return found
