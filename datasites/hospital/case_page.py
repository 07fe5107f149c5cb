"""A case in words for the command line: what a reviewer decides on, in the order in which a reviewer asks."""

from __future__ import annotations

from datasites.hospital import compliance, ledger
from datasites.hospital.cases import OpenCase, open_case
from datasites.hospital.models import Case
from datasites.hospital.review import find_case
from datasites.hospital.site import Site
from policies.engine import Decision


def describe(site: Site, number: int) -> str:
    """The case as plain text; raises `ReviewError` when there is none, `FrozenCopyChanged` when it was changed."""
    row = find_case(number)
    head = [
        f"case {row.pk}: {row.study_name}, {row.state}{': ' + row.note if row.note else ''}",
        f"submitted by {row.submitted_by} on {row.received_at:%Y-%m-%d %H:%M} UTC as {row.job_name}",
        f"study hash     {row.study_hash}",
        f"approval hash  {row.approval_hash or '(not examined yet)'}",
    ]
    if not row.terms:
        return "\n".join([*head, *_readiness(row)])
    case = open_case(site.home, row)
    decision = compliance.preview(site.home, case)
    return "\n".join(
        [
            *head,
            *_terms(case),
            *_budget(case),
            *_decision(decision),
            *_findings(row),
            *_readiness(row),
            *_reviews(row),
            "",
            "--- model.py (frozen copy) ---",
            case.package.source,
        ]
    )


def _terms(case: OpenCase) -> list[str]:
    study, plan = case.study, case.plan
    return [
        "",
        f"{study.title}",
        study.description.strip(),
        f"purpose {study.purpose}, IRB {study.irb}, ends {study.ends}",
        "hospitals: " + ", ".join(study.cohort.hospitals),
        "services: " + ", ".join(f"{service.kind} by {service.organisation}" for service in study.services),
        f"label {study.label}; features: " + ", ".join(feature.name for feature in case.package.data_model.features),
        "",
        f"What leaves: {study.rounds} masked vectors of noised updates, and noised counts; nothing else.",
        f"Training here: {plan.rounds} rounds x {plan.steps_per_round} steps, clip {plan.clip:g}, noise multiplier "
        f"{plan.noise_multiplier:g}, sampling rate {plan.sampling_rate:g}, mode {plan.mode}, unit {plan.unit}",
        f"Threshold of the secure sum: {study.cohort.survivors_needed} of {len(study.cohort.hospitals)}, "
        f"{study.cohort.colluders} may collude",
    ]


def _budget(case: OpenCase) -> list[str]:
    dataset = case.dataset
    after = ledger.epsilon_after(dataset, case.asked(), case.row.study_hash)
    lines = ["", f"Privacy budget of dataset {dataset.name} (epsilon at delta {dataset.delta:g}, by RDP):"]
    for state in ledger.state(dataset):
        lines.append(
            f"  {state.partition:9} spent {state.spent_rdp:.3f}, committed {state.committed_rdp:.3f}, "
            f"with this study {after[state.partition]:.3f} of {state.cap:g}"
        )
    return lines


def _decision(decision: Decision) -> list[str]:
    lines = ["", f"Policies now: {'allow' if decision.allowed else 'DENY'}"]
    lines += [f"  {result.outcome:14} {result.title} ({result.law})" for result in decision.results]
    return lines + [f"  {denial}" for denial in decision.denied_by]


def _findings(row: Case) -> list[str]:
    lines = ["", f"Findings in model.py: {len(row.findings)}"]
    lines += [f"  line {finding['line']}: {finding['rule']}: {finding['reason']}" for finding in row.findings]
    rehearsal = row.rehearsal
    said = rehearsal.get("outcome", "not run")
    if said == "passed":
        said += f", {rehearsal['seconds_per_round']:.2f} s a round, {rehearsal['peak_memory_bytes'] / 2**20:.0f} MiB"
    elif said == "failed":
        said += f": {rehearsal.get('reason') or rehearsal.get('findings')}"
    return [*lines, f"Rehearsal on mock data: {said}"]


def _readiness(row: Case) -> list[str]:
    late = [report for report in row.readiness if not report["ready"]]
    lines = [f"Data readiness: {len(row.readiness) - len(late)} of {len(row.readiness)} features ready"]
    return lines + [f"  {report['name']}: {report['reason']}" for report in late]


def _reviews(row: Case) -> list[str]:
    return [
        f"{review.verdict} by {review.person.username} ({review.role}) on {review.at:%Y-%m-%d %H:%M}: {review.reason}"
        for review in row.reviews.select_related("person")
    ]
