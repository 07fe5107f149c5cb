"""What people decide on a case is decided in the database, then logged, and only then acted on.

Log and database can't be written at once. So the transaction of a decision keeps the record of it, which the log is
owed; whoever decided writes it then, or, where that was interrupted, the service or whoever decides next.

Claim: killed anywhere, the audit log holds `paused`, `resumed`, `rejoined`, `revoked` and `rejected` of a case only as
the database has decided, each once and in that order; and the service takes no step of a case, and tells nobody of a
decision, before the log holds it. Proof: a record is written once its transaction is over, or under the case's lock,
before the next decision; each step of a study and each turn of the service begins with what is owed. Records are told
apart by `after`, the log's position when it was decided, which no two decisions on a case share. Assumes the newest log
and database (`reconcile`). Not claimed: of a step that had begun when people decided, that it ends otherwise. An
approval is logged before it counts, as is all that opens something: killed in between, it is given again.
"""

from __future__ import annotations

from django.db import transaction

from datasites.hospital.audit import Value
from datasites.hospital.models import Case
from datasites.hospital.site import Site


def owe(site: Site, row: Case, kind: str, /, **fields: Value) -> None:
    """Keep the record of a decision on this case, in its transaction; raises `AuditError` for one that can't be."""
    fields["after"] = site.audit.head().seq
    site.audit.require_fit(kind, **fields)
    row.owed = {"kind": kind, **fields}
    row.save(update_fields=["owed"])


def log_owed(site: Site, row: Case) -> None:
    """Write what the log is owed of this case, whose row is locked."""
    if row.owed:
        fields = dict(row.owed)
        site.audit.append_once(fields.pop("kind"), **fields)
        row.owed = {}
        row.save(update_fields=["owed"])


def settle(site: Site, number: int) -> None:
    """Write what the log is owed of this case, if anything."""
    with transaction.atomic():
        log_owed(site, Case.objects.select_for_update().get(pk=number))


def settle_all(site: Site) -> None:
    """Write what the log is owed of any case."""
    for number in Case.objects.exclude(owed={}).values_list("pk", flat=True):
        settle(site, number)
