"""A case as text for the command line, from the same view that the console shows."""

from __future__ import annotations

from datasites.hospital.budget.population import caps_of, order_of
from datasites.hospital.cases.case import OpenCase
from datasites.hospital.cases.lookup import find_case
from datasites.hospital.cases.views import CaseView, Examined, view_case
from datasites.hospital.data.sources import in_words
from datasites.hospital.site import Site
from datasites.study.visible import one_line, quoted, visible


def describe(site: Site, case_id: int) -> str:
    """Return the case as plain text; raises `ReviewError` when there is none, `FrozenCopyChanged` when it was changed.

    Somebody's line ends can't pass for lines of ours: those of the description are marked, and all others spelt out.
    """
    view = view_case(site.home, find_case(case_id))
    row, examined = view.row, view.examined
    head = [
        f"case {row.pk}: {row.study_name}, {row.state}{': ' + row.remark if row.remark else ''}",
        f"submitted by {row.submitted_by} on {row.received_at:%Y-%m-%d %H:%M} UTC as {row.job_name}",
        f"study hash     {row.study_hash}",
        f"approval hash  {row.approval_hash or '(not examined yet)'}",
    ]
    if examined is None:
        return "\n".join(map(one_line, [*head, *_readiness(view)]))
    lines = [
        *head,
        *filter(None, [in_words(site.home, row, rows=True)]),
        *_terms(examined),
        *_budget(examined),
        *_decision(examined),
        *_findings(view),
        *_readiness(view),
        *_reviews(view),
        "",
        "--- model.py (frozen copy) ---",
    ]
    return "\n".join([*map(one_line, lines), visible(examined.case.package.source)])


def _terms(examined: Examined) -> list[str]:
    case = examined.case
    study, plan = case.study, case.plan
    return [
        "",
        f"{study.title}",
        *quoted(study.description.strip()),
        f"purpose {study.purpose}, IRB {study.irb}, ends {study.ends}",
        "hospitals: " + ", ".join(study.cohort.hospitals),
        "services: " + ", ".join(f"{service.kind} by {service.organisation}" for service in examined.services),
        f"label {study.label}; features: " + ", ".join(feature.name for feature in case.package.data_model.features),
        "",
        f"What leaves: {study.rounds} masked vectors of noised updates, and noised counts; nothing else.",
        f"Training here: {plan.rounds} rounds x {plan.steps_per_round} steps, clip {plan.clip:g}, noise multiplier "
        f"{plan.noise_multiplier:g}, sampling rate {plan.sampling_rate:g}, mode {plan.mode}, unit {plan.unit}",
        _patients(case),
        f"Threshold of the secure sum: {study.cohort.survivors_needed} of {len(study.cohort.hospitals)}, "
        f"{study.cohort.colluders} may collude; every sum holds {case.honest} honest hospitals or more",
        *case.study_plan.sharing(),
    ]


def _patients(case: OpenCase) -> str:
    approval_terms, identity = case.approval_terms, case.approval_terms.identity
    apart = f"identified by column {identity!r}" if identity else "each row is one patient"
    both = "; all of it is charged to both sides, since a patient may be on either" if approval_terms.both_sides else ""
    return f"Patients of population {approval_terms.population}: {apart}{both}"


def _budget(examined: Examined) -> list[str]:
    dataset = examined.case.dataset
    caps = caps_of(dataset)
    lines = [
        "",
        *(f"{title}: {text}" for title, text in examined.privacy),
        examined.case.delta_in_words,
        f"Budget of population {caps.population} over all studies: epsilon at delta {caps.delta:g} (Renyi order "
        f"{order_of(dataset)}); the cap is guaranteed, the rest is a reading:",
    ]
    return lines + [
        f"  {line.partition:9} spent so far {line.spent:.3f}, spent or reserved {line.committed:.3f}, "
        f"{'now' if examined.is_over else 'with this study'} {line.after:.3f} of {line.cap:g}"
        for line in examined.budget
    ]


def _decision(examined: Examined) -> list[str]:
    decision = examined.decision
    when = "now" if examined.asked_now else f"as last asked, before {decision.action}"
    lines = ["", f"Policies {when}: {'allow' if decision.allowed else 'DENY'}"]
    lines += [f"  {result.outcome:14} {result.title} ({result.law})" for result in decision.results]
    return lines + [f"  {denial}" for denial in decision.denied_by]


def _findings(view: CaseView) -> list[str]:
    found = view.row.findings
    lines = ["", f"Findings in model.py: {len(found)}"]
    lines += [f"  line {finding['line']}: {finding['rule']}: {finding['reason']}" for finding in found]
    rehearsal = view.rehearsal
    lines.append(f"Rehearsal on mock data: {rehearsal}")
    for failure in rehearsal.failures:
        if failure.text != failure.message:
            lines += [f"  {line}" for line in failure.text.splitlines()]
    return lines + [f"  {rehearsal.remedy}"] * bool(rehearsal.failures)


def _readiness(view: CaseView) -> list[str]:
    late, all_features = view.late_features, view.row.readiness
    lines = [f"Data readiness: {len(all_features) - len(late)} of {len(all_features)} features ready"]
    return lines + [f"  {report['name']}: {report['reason']}" for report in late]


def _reviews(view: CaseView) -> list[str]:
    return [f"{r.verdict} by {r.person} ({r.role}) on {r.at:%Y-%m-%d %H:%M}: {r.reason}" for r in view.reviews]
