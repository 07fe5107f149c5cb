"""Evaluates stored policy decisions again, from the facts that are stored with them, for an auditor.

A decision is compared with two things that whoever may write the database can't change along with it: the rules, which
decide on the same facts as before, and the audit log, which has a digest of each decision in a signed chain.

Claim: while the log is this hospital's and whole (`audit verify`), each decision that was changed, added, removed, or
put under another case or action since it was made is named; of one case, each of the study that the log knows under its
id, whatever the database says of the case. Proof: under the lock of those who decide, the log has each decision
exactly once, with its study, action and outcome beside a digest of all of it; and under which case id it took a study
in. Of decisions by the same rules, also one is named that was wrong when it was made. Not claimed: to which round of a
study a decision belongs, which the database alone knows; the case id of a study that this log has not taken in
(it begins later); and of other rule sets and of format 1, that the rules said so then.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from django.db.models import Q

from datasites.hospital.cases.compliance import at_rest
from datasites.hospital.models import Case, PolicyDecision
from datasites.hospital.site import Site
from datasites.study.audit_chain import LogRecord, records
from datasites.study.canonical import canonical_json, sha256_hex
from policies.engine import Decision, Engine, read_decision

#: What the log says of a decision: study hash, action, whether it allows, and the digest of all of it.
Entry = tuple[str, str, bool, str]


@dataclass(frozen=True)
class Replay:
    """The result: how many decide alike, were made by other rules, or are of format 1; and what differs, in words.

    One that differs in any way counts among none of the others.
    """

    alike: int
    other_rules: int
    older: int
    differs: tuple[str, ...]


@dataclass
class _LoggedDecisions:
    """What the log has of decisions, and the ids of the cases under which it took in each study."""

    decisions: Counter[Entry] = field(default_factory=Counter)
    cases: dict[str, set[int]] = field(default_factory=dict)

    def studies_of(self, row: Case) -> set[str]:
        """Return the studies that are this case's by the database or by the log."""
        return {row.study_hash, *(study for study, case_ids in self.cases.items() if row.pk in case_ids)}

    def has(self, entry: Entry, case_id: int | None) -> bool:
        """Say whether it has a decision that is not accounted for yet, and its study under that case id."""
        case_ids = self.cases.get(entry[0])
        return self.decisions[entry] > 0 and (case_ids is None or case_id in case_ids)


def replay(site: Site, row: Case | None = None) -> Replay:
    """Evaluate all stored decisions again, or those of one case; raises `AuditError` where the log can't be read."""
    with at_rest(site):
        log = _logged(records(site.home.audit))
        decisions = PolicyDecision.objects.select_related("case").order_by("pk")
        if row is not None:
            # All cases of its study, since the log tells decisions apart by study.
            studies = log.studies_of(row)
            decisions = decisions.filter(Q(case__study_hash__in=studies) | Q(case=row))
            log.decisions = Counter({entry: count for entry, count in log.decisions.items() if entry[0] in studies})
        return _held_against(log, decisions, Engine(local_dir=site.home.local_rules), row)


def _held_against(
    log: _LoggedDecisions, decisions: Iterable[PolicyDecision], engine: Engine, row: Case | None
) -> Replay:
    """Hold stored decisions against what the log has of them and what these rules decide; `row`: report this case's."""
    left = log.decisions
    counts: Counter[str] = Counter()
    differs = []
    for stored in decisions:
        entry = _entry_of(stored)
        logged = log.has(entry, stored.case_id)
        left[entry] -= logged
        if row is not None and stored.case_id != row.pk:
            continue
        outcome, faults = _evaluated(stored, engine)
        if not logged:
            faults = [
                *faults,
                "the audit log has no such decision under its digest: it was changed, moved or added afterwards",
            ]
        if faults:
            differs.append(f"{_name(stored)}: {'; '.join(faults)}")
        else:
            counts[outcome] += 1
    for (study, action, allowed, digest), missing in sorted(left.items()):
        if missing > 0:
            verdict = "allows" if allowed else "denies"
            differs.append(
                f"decision {digest[:12]}… on {action} of study {study[:12]}…, which {verdict}: the audit log has it, "
                "but it is not stored: it was changed or removed afterwards"
            )
    return Replay(counts["alike"], counts["other rules"], counts["older"], tuple(differs))


def _evaluated(stored: PolicyDecision, engine: Engine) -> tuple[str, list[str]]:
    """Say where a decision belongs, and what is wrong with it."""
    try:
        decision = read_decision(json.dumps(stored.record).encode())
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # whatever stands there
        problem = str(error) if str(error).startswith("decision: ") else "it can't be read as a decision"
        return "alike", [problem.removeprefix("decision: ")]
    faults = []
    if (stored.action, stored.allowed) != (decision.action, decision.allowed):
        faults.append(f"it is filed as {_outcome_text(stored.action, stored.allowed)}, but is {_outcome(decision)}")
    if decision.format == 1:
        return "older", faults
    if decision.ruleset != engine.ruleset:
        return "other rules", faults
    if not engine.reproduces(decision):
        faults.append(f"it is {_outcome(decision)}, but these rules decide otherwise on its facts")
    return "alike", faults


def _logged(log: Iterable[LogRecord]) -> _LoggedDecisions:
    found = _LoggedDecisions()
    for record in log:
        fields = record.fields
        if record.kind == "decision":
            entry = str(fields["study"]), str(fields["action"]), bool(fields["allowed"]), str(fields["digest"])
            found.decisions[entry] += 1
        elif record.kind == "received":
            found.cases.setdefault(str(fields["study"]), set()).add(int(fields["case"]))
    return found


def _entry_of(stored: PolicyDecision) -> Entry:
    study = "" if stored.case is None else stored.case.study_hash
    return study, stored.action, stored.allowed, sha256_hex(canonical_json(stored.record))


def _name(stored: PolicyDecision) -> str:
    where = "of no case" if stored.case_id is None else f"of case {stored.case_id}"
    return f"decision {stored.pk} {where}" + ("" if stored.round is None else f", round {stored.round}")


def _outcome(decision: Decision) -> str:
    return _outcome_text(decision.action, decision.allowed)


def _outcome_text(action: str, allowed: bool) -> str:
    return f"{'an allow' if allowed else 'a denial'} of {action}"
