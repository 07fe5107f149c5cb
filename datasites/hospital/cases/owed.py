"""What people decide on a case is decided in the database, then logged, and only then acted on.

Log and database can't be written at once. So the transaction of a decision keeps the record of it, which the log is
owed; whoever decided writes it then, or, where that was interrupted, the service or whoever decides next.

Claim: killed anywhere, the audit log holds `paused`, `resumed`, `rejoined`, `revoked` and `rejected` of a case only as
the database has decided, each once and in that order; and the service takes no step of a case, and tells nobody of a
decision, before the log holds it. Proof: a record is written once its transaction is over, or under the case's lock,
before the next decision; each step of a study and each turn of the service begins with what is owed, and a turn acts on
no case that it reads later before what that one owes is logged. Records are told apart by `after`, the log's position
when it was decided, which no two decisions on a case share. Assumes the newest log and database (`reconcile`). Not
claimed: of a step that had begun when people decided, that it ends otherwise. An approval is logged before it counts,
as is all that opens something: killed in between, it is given again.

Claim: whoever may write what a case owes, and neither log nor its key, has the service sign no record but one of these
five, of this case, in a state that such a decision leads to, and stops it by none. Proof: anything else is dropped, and
named in the service's log. Not claimed: that such a record names who decided, and why, or when, nor that the record of
a decision isn't taken away there before it is logged; who may write the database as a whole decides as anybody.
"""

from __future__ import annotations

import logging

from django.db import transaction

from datasites.hospital.audit.log import Value
from datasites.hospital.models import Case
from datasites.hospital.site import Site
from datasites.study.audit_chain import AuditError

#: In which states a case may be once this has been decided of it and before the next decision: a study that people have
#: not ended may be stopped or closed in between, without them.
_LEADS_TO: dict[str, tuple[str, ...]] = {
    "paused": (Case.State.PAUSED, Case.State.STOPPED, Case.State.CLOSED),
    "resumed": (Case.State.RUNNING, Case.State.STOPPED, Case.State.CLOSED),
    "rejoined": (Case.State.RUNNING, Case.State.STOPPED, Case.State.CLOSED),
    "revoked": (Case.State.REVOKED,),
    "rejected": (Case.State.REJECTED,),
}
#: What a record says, and as what; of a case that had been approved also the state before.
_FIELDS: dict[str, type] = {"kind": str, "case": int, "person": str, "role": str, "reason": str, "after": int}

log = logging.getLogger(__name__)


def owe(site: Site, row: Case, kind: str, /, **fields: Value) -> None:
    """Keep the record of a decision on this case, in its transaction; raises `AuditError` for one that can't be."""
    fields["after"] = site.audit.head().seq
    site.audit.require_fit(kind, **fields)
    row.owed = {"kind": kind, **fields}
    row.save(update_fields=["owed"])


def log_owed(site: Site, row: Case) -> None:
    """Write what the log is owed of this case, whose row is locked; drop what no decision on it owes."""
    if row.owed:
        if _is_owed(site, row):
            fields = dict(row.owed)
            site.audit.append_once(fields.pop("kind"), **fields)
        else:
            log.error(
                "case %d: the record that it has pending for the audit log is of no decision on it, and is not logged",
                row.pk,
            )
        row.owed = {}
        row.save(update_fields=["owed"])


def _is_owed(site: Site, row: Case) -> bool:
    """Say whether this is the record of a decision on this case, as `owe` keeps them, that its state bears out."""
    if not isinstance(row.owed, dict):
        return False
    fields = dict(row.owed)
    kind = fields.get("kind")
    # What an older version owed of a rejection was sent as its reason, and has no `told`.
    wanted = [_FIELDS | {"told": str}, _FIELDS] if kind == "rejected" else [_FIELDS | {"before": str}]
    if {name: type(value) for name, value in fields.items()} not in wanted:
        return False
    if fields["case"] != row.pk or row.state not in _LEADS_TO.get(fields.pop("kind"), ()):
        return False
    try:
        site.audit.require_fit(str(kind), **fields)
    except AuditError:
        return False
    return True


def settle(site: Site, case_id: int) -> None:
    """Write what the log is owed of this case, if anything."""
    with transaction.atomic():
        log_owed(site, Case.objects.select_for_update().get(pk=case_id))


def settle_all(site: Site) -> None:
    """Write what the log is owed of any case."""
    for case_id in Case.objects.exclude(owed={}).values_list("pk", flat=True):
        settle(site, case_id)
