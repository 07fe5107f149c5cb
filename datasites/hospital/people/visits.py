"""What happened since somebody's last visit, from the audit log: at their account, and what people decided here.

For people to read; it checks nothing. The log is read from its end, for a bounded number of records (`MOST`), so that a
page costs the same however long the log is; where that is not all, the page says so.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass

from datasites.hospital.audit.pages import Filter, audit_page
from datasites.hospital.site import Site
from datasites.study.audit_chain import LogRecord

MOST, MOST_SHOWN = 2000, 20
_AT_ONCE = datetime.timedelta(seconds=60)
#: Kinds of records by what somebody did in them; "{}" is what they did it to (`_SUBJECTS`).
_ACCOUNTS = {
    "person_added": "entered {}",
    "invited": "issued an invitation for {}",
    "person_deactivated": "deactivated {}",
    "second_factor_reset": "took off the second factor of {}",
    "killed": "switched the kill switch on",
    "unkilled": "switched the kill switch off",
}
_DECISIONS = {
    "approved": "approved case {}",
    "rejected": "rejected case {}",
    "paused": "paused the study of case {}",
    "resumed": "resumed the study of case {}",
    "sat_out": "had the study of case {} sit a round out",
    "rejoined": "had the study of case {} rejoin",
    "revoked": "revoked the study of case {}",
    "agreement_entered": "entered the agreement {}",
    "agreement_confirmed": "confirmed the agreement {}",
    "agreement_terminated": "ended the agreement {}",
    "party_proposed": "entered the party {}",
    "pinned": "pinned the party {}",
    "unpinned": "revoked the party {}",
    "party_withdrawn": "withdrew the party {}",
    "proposed": "asked for a change of {}",
    "proposal_confirmed": "confirmed a change of {}",
    "proposal_withdrawn": "withdrew a change of {}",
    **_ACCOUNTS,
}
#: Kinds of records about a person's own account.
_OWN = {
    "invited": "issued a link by which your password can be set anew",
    "invitation_accepted": "set your password by a link",
    "password_changed": "changed your password",
    "second_factor_set_up": "set up your second factor",
    "second_factor_reset": "took off your second factor",
}
_SUBJECTS = ("case", "agreement", "email", "subject")


@dataclass(frozen=True)
class Event:
    """What somebody did, and when; 0 without a case."""

    at: datetime.datetime
    who: str
    what: str
    case_id: int = 0


@dataclass(frozen=True)
class Visit:
    """What happened since a moment.

    sign_ins: when the person signed in after that, this time among them. failed: sign-ins with a wrong password or
    code. unconfirmed: decisions with a wrong password. locked_out: lock-outs. own: what was done to the person's
    account. decisions: newest first, of them the first `MOST_SHOWN`. further: how many more. whole: whether the log was
    read back to that moment.
    """

    since: datetime.datetime
    sign_ins: tuple[datetime.datetime, ...]
    failed: int
    unconfirmed: int
    locked_out: int
    own: tuple[Event, ...]
    decisions: tuple[Event, ...]
    further: int
    whole: bool


def since(site: Site, name: str, moment: datetime.datetime, *, accounts_only: bool = False) -> Visit:
    """Return what happened since then, for the person of this name.

    accounts_only: of decisions only those about people and the kill switch, for an admin, who reads no others.
    """
    counts = dict.fromkeys(("sign_in_failed", "confirmation_failed", "locked_out"), 0)
    page = audit_page(site.home.audit, Filter(), size=MOST)
    records = list(_until(page.records, moment))
    sign_ins, own, decisions = [], [], []
    began = _began(records, name, moment)
    for record in records:
        fields = record.fields
        if record.seq <= began and record.kind in (*counts, "signed_in"):
            continue  # of before that visit, and written when it began
        if record.kind in counts and fields.get("person") == name:
            counts[record.kind] += int(fields.get("times", 1))
        elif record.kind == "signed_in" and fields.get("person") == name:
            sign_ins.append(_time(record))
        elif record.kind in _OWN and fields.get("person") == name:
            own.append(Event(_time(record), str(fields.get("by", name)), _OWN[record.kind]))
        if record.kind in (_ACCOUNTS if accounts_only else _DECISIONS):
            decisions.append(_event(record))
    whole = len(records) < len(page.records) or not page.older
    shown = tuple(decisions[:MOST_SHOWN])
    failures = (counts["sign_in_failed"], counts["confirmation_failed"], counts["locked_out"])
    return Visit(moment, tuple(sign_ins), *failures, tuple(own), shown, len(decisions) - len(shown), whole)


def _began(records: list[LogRecord], name: str, moment: datetime.datetime) -> int:
    """Return the number of the record by which the last visit began, or 0 if it is not among these.

    What had failed before is written right before it, and Django notes the moment before both.
    """
    mine = [record for record in records if record.kind == "signed_in" and record.fields.get("person") == name]
    return mine[-1].seq if mine and _time(mine[-1]) - moment < _AT_ONCE else 0


def _until(records: tuple[LogRecord, ...], moment: datetime.datetime) -> Iterator[LogRecord]:
    for record in records:  # newest first
        if _time(record) < moment:
            return
        yield record


def _event(record: LogRecord) -> Event:
    fields = record.fields
    person = str(fields.get("person", ""))
    if "by" in fields:  # a record about a person, and who did it
        who, subject = str(fields["by"]), person
    else:
        who, subject = person, next((str(fields[name]) for name in _SUBJECTS if name in fields), "")
    case = fields.get("case", 0)
    number = case if isinstance(case, int) else 0
    return Event(_time(record), who or "the datasite", _DECISIONS[record.kind].format(subject), number)


def _time(record: LogRecord) -> datetime.datetime:
    return datetime.datetime.fromisoformat(record.time)
