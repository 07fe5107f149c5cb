"""Why a rule denies, in plain words, and what to do about it.

Explanations are for the hospital's people. They are written from the same facts that the rule saw, but they decide
nothing: a wrong word here can't change a decision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from datasites.study.identity import same_identity
from policies.controls import CONTROLS, GROUPS
from policies.facts import (
    BudgetFacts,
    CodeFacts,
    CohortFacts,
    Facts,
    ReleaseFacts,
    TermFacts,
    counted_delta,
    most_delta,
)
from policies.registry import Agreement, is_party


class Explanation(NamedTuple):
    """A reason and a remedy, each one sentence or a few."""

    reason: str
    remedy: str


_Explain = Callable[[Facts], Explanation]
_EXPLAIN: dict[str, _Explain] = {}


def _explains(rule: str) -> Callable[[_Explain], _Explain]:
    """Let a function explain a denial by `rule`: one of `CONTROLS`, each of which has exactly one such function."""
    if rule not in CONTROLS or rule in _EXPLAIN:
        raise LookupError(f"rule {rule!r} is not among the controls, or is explained twice")

    def register(explain: _Explain) -> _Explain:
        return _EXPLAIN.setdefault(rule, explain)

    return register


def explain(rule: str, facts: Facts) -> Explanation:
    """Reason and remedy of a denial by the shipped rule `rule`; raises `KeyError` for a rule that is not shipped."""
    missing = [GROUPS[group] for group in CONTROLS[rule].needs if getattr(facts, group) is None]
    if missing:
        return Explanation(
            f"Not known: {', '.join(missing)}. An action is not allowed on unknown facts.",
            "The datasite could not gather these facts; see its log, correct the cause and try again.",
        )
    return _EXPLAIN[rule](facts)


@_explains("baa")
def _baa(facts: Facts) -> Explanation:
    terms = _terms(facts)
    if not terms.services:
        return Explanation("The study names no services.", "State in study.toml who runs each service.")
    covered = facts.registry.covered(terms.services, facts.today)
    lacking: dict[str, list[str]] = {}
    for service in terms.services:
        if service not in covered:
            lacking.setdefault(service.organisation, []).append(service.kind)
    return Explanation(
        " ".join(_lacking(facts, party, kinds) for party, kinds in lacking.items()),
        _baa_remedy(facts, list(lacking)),
    )


def _lacking(facts: Facts, party: str, kinds: list[str]) -> str:
    quoted = ", ".join(f"'{kind}'" for kind in kinds)
    head = f"No agreement in force on {facts.today} with {party} covers {quoted}"
    baas = [a for a in facts.registry.agreements if a.terms.kind == "baa" and is_party(party, a)]
    if not baas:
        return f"{head} (the registry holds none with that party)."
    naming = [a for a in baas if set(kinds) & set(a.terms.services)]
    if not naming:
        named = sorted({kind for a in baas for kind in a.terms.services})
        return f"{head} (the registered agreements with that party cover only {', '.join(named)})."
    return f"{head} ({'; '.join(_standing(a, facts) for a in naming)})."


def _standing(agreement: Agreement, facts: Facts) -> str:
    name = f"{agreement.terms.id} version {agreement.version}"
    if not is_party(facts.hospital, agreement):
        return f"{name} does not name {facts.hospital} as a party"
    if agreement.confirmed_on is not None and agreement.confirmed_on > facts.today:
        return (
            f"{name} was confirmed on {agreement.confirmed_on}, which is after today, {facts.today}: correct "
            "this machine's clock"
        )
    if not agreement.confirmed(facts.today):
        return f"{name} waits for a second person to confirm it"
    if agreement.terminated_on is not None and agreement.terminated_on <= facts.today:
        return f"{name} was terminated on {agreement.terminated_on}"
    if agreement.terms.expires < facts.today:
        return f"{name} expired on {agreement.terms.expires}"
    if facts.today < agreement.terms.effective:
        return f"{name} does not take effect until {agreement.terms.effective}"
    if agreement in facts.registry.in_force(facts.today):
        return f"{name} is in force for {', '.join(agreement.terms.purposes or agreement.terms.services)}"
    return f"{name} was replaced by a newer version"


def _baa_remedy(facts: Facts, parties: list[str]) -> str:
    baas = [a for a in facts.registry.unconfirmed() if a.terms.kind == "baa"]
    waiting = [a.terms.id for a in baas if any(is_party(party, a) for party in parties)]
    if waiting:
        return f"Have a second person confirm {', '.join(waiting)} in the registry if it covers what is missing."
    return (
        f"Sign or renew a BAA with {', '.join(parties)} that names the service, enter it in the registry and have it "
        "confirmed."
    )


@_explains("baa-aggregator")
def _baa_aggregator(facts: Facts) -> Explanation:
    roster, terms = facts.roster, _terms(facts)
    assert roster is not None  # `explain` has dealt with missing facts
    if roster.aggregator is None:
        return Explanation(
            f"{terms.researcher} aggregates and distributes models, but is not pinned in the roster.",
            "Compare fingerprints by telephone and run `datasites roster pin`.",
        )
    wrong = [
        f"{kind} by {', '.join(s.organisation for s in terms.services if s.kind == kind) or 'nobody'}"
        for kind in ("aggregation", "model_distribution")
        if not any(s.kind == kind and same_identity(s.organisation, roster.aggregator) for s in terms.services)
    ]
    return Explanation(
        f"{terms.researcher} aggregates and distributes models; the roster says {roster.aggregator}, the study says "
        f"{' and '.join(wrong)}.",
        f"Name {roster.aggregator} in study.toml for both services and submit again, or pin the researcher with the "
        "organisation that the agreement is with.",
    )


@_explains("irb")
def _irb(facts: Facts) -> Explanation:
    terms = _terms(facts)
    known = [a for a in facts.registry.agreements if a.terms.kind == "irb" and a.terms.reference == terms.irb]
    if not known:
        why = "the registry holds none with that number"
    elif all(terms.purpose not in a.terms.purposes for a in known):
        named = sorted({purpose for a in known for purpose in a.terms.purposes})
        why = f"it is for {', '.join(named)}"
    else:
        why = "; ".join(_standing(a, facts) for a in known)
    return Explanation(
        f"No IRB approval {terms.irb} in force on {facts.today} names the purpose '{terms.purpose}' ({why}).",
        "Enter the IRB's approval letter for this purpose, or its renewal, in the registry and have it confirmed.",
    )


@_explains("purpose")
def _purpose(facts: Facts) -> Explanation:
    terms, requested = _terms(facts), facts.features or ()
    if not requested:
        return Explanation("The study names no features.", "List them in features.toml.")
    named = facts.registry.use_agreements(terms.purpose, facts.today)
    if named and not any(agreement.in_force(facts.today) for agreement in named):
        return Explanation(
            f"No data use agreement for '{terms.purpose}' is still in force on {facts.today} "
            f"({'; '.join(_standing(a, facts) for a in named)}). An agreement that is over permits nothing.",
            "Enter its renewal in the registry, or a new version that does not name this purpose if none is needed, "
            "and have it confirmed.",
        )
    permitted = facts.registry.permitted_features(terms.irb, terms.purpose, facts.today)
    beyond = sorted(set(requested) - set(permitted))
    return Explanation(
        f"The study asks for {', '.join(beyond)}, which the approval {terms.irb} (with any data use agreement) does "
        f"not permit for '{terms.purpose}' on {facts.today}.",
        "Ask the researcher to leave these features out, or have the approval amended and its new version confirmed.",
    )


@_explains("budget-dataset")
def _budget_dataset(facts: Facts) -> Explanation:
    b = _budget(facts)
    if b.epsilon_after < max(b.epsilon_spent, b.epsilon_reserved, b.epsilon_asked):
        return Explanation(
            f"The ledger contradicts itself: epsilon after the action ({b.epsilon_after:.10g}) is below one of its "
            f"parts (spent {b.epsilon_spent:.10g}, reserved {b.epsilon_reserved:.10g}, asked {b.epsilon_asked:.10g}).",
            "Verify the ledger against the audit log before anything else runs on this dataset.",
        )
    return Explanation(
        f"Epsilon over all studies on these patients would be {b.epsilon_after:.10g} at delta {b.delta_cap:.10g} "
        f"(spent {b.epsilon_spent:.10g}, reserved {b.epsilon_reserved:.10g}, asked {b.epsilon_asked:.10g}); its cap is "
        f"{b.epsilon_cap:.10g}.",
        "Ask the researcher for fewer rounds or more noise, or close a study that holds a reservation; what is spent "
        "is not refunded. Over all studies, epsilon is counted so that the cap holds whatever people choose to run "
        "next, and this figure is higher than a study's own: a study that uses its own cap in full needs a cap over "
        "all studies that is some 15 % higher.",
    )


@_explains("budget-study")
def _budget_study(facts: Facts) -> Explanation:
    b = _budget(facts)
    return Explanation(
        f"The study's epsilon would be {b.study_epsilon_after:.10g} at its delta {b.delta:.10g}; its cap at this "
        f"hospital is {b.study_epsilon_cap:.10g}.",
        "Ask the researcher for fewer rounds or a smaller epsilon; a larger one needs a new submission.",
    )


@_explains("budget-delta")
def _budget_delta(facts: Facts) -> Explanation:
    b = _budget(facts)
    return Explanation(
        f"The study's delta is {b.delta:.10g}; it must be above 0 and at most {counted_delta(b.delta_cap):.12g}, the "
        "delta of all studies on these patients.",
        "Ask the researcher for a smaller delta.",
    )


@_explains("budget-delta-patients")
def _budget_delta_patients(facts: Facts) -> Explanation:
    b = _budget(facts)
    found = [
        f"{what} {delta:.10g}; for {patients} patients it may be {counted_delta(most_delta(patients)):.12g} at most"
        for what, delta, patients in (
            ("The study's delta is", b.delta, b.release_patients),
            ("The delta of all studies on these patients is", b.delta_cap, b.declared_patients),
        )
        if delta > counted_delta(max(most_delta(patients), b.delta_accepted))
    ]
    return Explanation(
        ". ".join(found) + ".",
        "Delta bounds the chance that the guarantee fails a patient altogether, so it must be small against one in "
        "the number of patients: ask the researcher for a smaller one, and set a smaller one in datasite.toml. Or have "
        "two people accept the risk for these patients: "
        "`datasites budget accept-delta`, then `datasites budget confirm`.",
    )


@_explains("cohort-size")
def _cohort_size(facts: Facts) -> Explanation:
    c = _cohort(facts)
    return Explanation(
        f"{c.hospitals} hospitals with up to {c.colluders} colluding: at least 3 hospitals are needed, and at least 2 "
        "that don't collude, or the sum reveals a hospital's update.",
        "Add hospitals to the cohort, or wait until more of them take part in the round.",
    )


@_explains("cohort-threshold")
def _cohort_threshold(facts: Facts) -> Explanation:
    c = _cohort(facts)
    least = max(3, (c.hospitals + c.colluders) // 2 + 1)
    default = max(3, 2 * c.hospitals // 3 + 1)
    if least > c.hospitals:
        remedy = "No threshold is high enough: add hospitals to the cohort, or declare fewer colluders."
    elif least <= default <= c.hospitals:
        remedy = "Correct cohort.threshold in study.toml, or leave it out for the default."
    else:
        remedy = f"State a cohort.threshold of {least} or more in study.toml; the default ({default}) is not enough."
    return Explanation(
        f"The threshold is {c.threshold}; with {c.hospitals} hospitals and {c.colluders} colluding it must be at least "
        f"{least} and at most {c.hospitals}.",
        remedy,
    )


@_explains("cohort-patients")
def _cohort_patients(facts: Facts) -> Explanation:
    c = _cohort(facts)
    if c.min_patients < 1:
        return Explanation(
            "No minimum number of patients is set.", "Set it in the datasite's configuration, at least 1."
        )
    return Explanation(
        f"The dataset is declared with {c.patients} patients; at least {c.min_patients} are required.",
        "This dataset is too small for the study; take part with a larger dataset.",
    )


@_explains("code-verifier")
def _code_verifier(facts: Facts) -> Explanation:
    return Explanation(
        f"The verifier reports {_code(facts).findings} finding(s) in the submitted code.",
        "Send the findings back; the researcher corrects the code and submits again.",
    )


@_explains("code-frozen")
def _code_frozen(facts: Facts) -> Explanation:
    code = _code(facts)
    return Explanation(
        f"The frozen copy has hash {code.frozen[:12]}…, and {code.study[:12]}… was submitted: the copy was changed.",
        "Nothing of this study may run. Find out who changed the datasite's private folder, then ask for a new "
        "submission.",
    )


@_explains("code-current")
def _code_current(facts: Facts) -> Explanation:
    code = _code(facts)
    what = "; ".join(code.differs) or f"its hash is {code.approval[:12]}…, but {facts.approval[:12]}… was approved"
    return Explanation(
        f"Something that an approval binds is not as it was approved: {what}.",
        "The submitted files are unchanged. Restore what has changed, or ask the researcher to submit again and review "
        "the present state.",
    )


@_explains("code-rehearsal")
def _code_rehearsal(facts: Facts) -> Explanation:
    state = {"failed": "failed", "not_run": "has not run"}.get(_code(facts).rehearsal, "did not pass")
    return Explanation(
        f"The rehearsal on mock data {state}.", "See the rehearsal's result in the case; it must pass before approval."
    )


@_explains("people-approver")
def _people_approver(facts: Facts) -> Explanation:
    approver, terms = facts.approver, _terms(facts)
    assert approver is not None  # `explain` has dealt with missing facts
    stewards, officers = facts.people("steward"), facts.people("privacy_officer")
    if same_identity(approver.person, terms.researcher):
        return Explanation(
            f"{approver.person} is the study's researcher.", "Two of the hospital's own people must approve."
        )
    if any(same_identity(approver.person, person) for person in (*stewards, *officers)):
        return Explanation(
            f"{approver.person} has already approved this study.",
            "The second approval must come from a different person, in the other role.",
        )
    taken = stewards if approver.role == "steward" else officers
    return Explanation(
        f"{', '.join(taken)} has already approved this study as {_role(approver.role)}.",
        "The other approval must come from the other role.",
    )


@_explains("people")
def _people(facts: Facts) -> Explanation:
    stewards, officers = facts.people("steward"), facts.people("privacy_officer")
    stale = sum(a.approval != facts.approval for a in facts.approvals or ())
    note = f" ({stale} approval(s) of another version of the study do not count.)" if stale else ""
    lacking = [_role(r) for r, who in (("steward", stewards), ("privacy_officer", officers)) if not who]
    if lacking:
        return Explanation(
            f"No {' and no '.join(lacking)} has approved this study.{note}", "Have it reviewed and approved."
        )
    if any(same_identity(_terms(facts).researcher, person) for person in (*stewards, *officers)):
        return Explanation(
            "The study's researcher is among those who approved it.", "Two of the hospital's people must approve."
        )
    both = sorted(set(stewards) & set(officers)) or list(stewards)
    return Explanation(
        f"{', '.join(both)} approved in both roles; two different people are needed.{note}",
        "Reject the study and have it reviewed again by two people.",
    )


@_explains("state-open")
def _state_open(facts: Facts) -> Explanation:
    return Explanation(f"The study is {facts.state}.", _state_remedy(facts))


@_explains("state-active")
def _state_active(facts: Facts) -> Explanation:
    return Explanation(f"The study is {facts.state}, not active.", _state_remedy(facts))


def _state_remedy(facts: Facts) -> str:
    return {
        "submitted": "It becomes active when two people have approved it.",
        "paused": "A steward or privacy officer may resume it.",
        "revoked": "Revoking is final; the researcher may submit again.",
        "closed": "A closed study does not run again; the researcher may submit a new one.",
        "killed": "The datasite's kill switch is on; nothing runs until it is turned off.",
    }.get(str(facts.state), "See the case.")


@_explains("state-ends")
def _state_ends(facts: Facts) -> Explanation:
    return Explanation(
        f"The study ended on {_terms(facts).ends}; today is {facts.today}.",
        "A longer study needs a new submission with a later date, and an IRB approval that covers it.",
    )


@_explains("site-sandbox")
def _site_sandbox(facts: Facts) -> Explanation:
    return Explanation(
        "The sandbox is off and no risk acceptance for 'no_sandbox' is in force.",
        "Install bubblewrap (`datasites doctor` says how), or have two people enter and confirm a risk acceptance.",
    )


@_explains("site-roster")
def _site_roster(facts: Facts) -> Explanation:
    roster = facts.roster
    assert roster is not None  # `explain` has dealt with missing facts
    unpinned = sorted(set(roster.parties) - set(roster.pinned))
    if not unpinned:
        return Explanation("No party of the study is known.", "See the datasite's log.")
    return Explanation(
        f"Not pinned in the roster: {', '.join(unpinned)}.",
        "Compare fingerprints by telephone and run `datasites roster pin`.",
    )


@_explains("release-masked")
def _release_masked(facts: Facts) -> Explanation:
    return Explanation(
        f"The vector of round {_release(facts).round} is not masked.",
        "Nothing was released; this is a fault of the datasite: report it.",
    )


@_explains("release-noised")
def _release_noised(facts: Facts) -> Explanation:
    return Explanation(
        f"The vector of round {_release(facts).round} carries no noise.",
        "Nothing was released; this is a fault of the datasite: report it.",
    )


@_explains("release-dimension")
def _release_dimension(facts: Facts) -> Explanation:
    r = _release(facts)
    return Explanation(
        f"The vector of round {r.round} has {r.dimension} coordinates; the round manifest has {r.expected_dimension}.",
        "Nothing was released; compare the model with the round manifest.",
    )


@_explains("release-charged")
def _release_charged(facts: Facts) -> Explanation:
    return Explanation(
        f"Round {_release(facts).round} was not charged to the ledger.",
        "Nothing was released; this is a fault of the datasite: report it.",
    )


def _role(role: str) -> str:
    return {"steward": "data steward", "privacy_officer": "privacy officer"}[role]


# `explain` has dealt with missing groups before any of these is called.
def _terms(facts: Facts) -> TermFacts:
    assert facts.terms is not None
    return facts.terms


def _budget(facts: Facts) -> BudgetFacts:
    assert facts.budget is not None
    return facts.budget


def _cohort(facts: Facts) -> CohortFacts:
    assert facts.cohort is not None
    return facts.cohort


def _code(facts: Facts) -> CodeFacts:
    assert facts.code is not None
    return facts.code


def _release(facts: Facts) -> ReleaseFacts:
    assert facts.release is not None
    return facts.release


if _UNEXPLAINED := sorted(set(CONTROLS) - set(_EXPLAIN)):
    raise LookupError(f"rules without an explanation: {', '.join(_UNEXPLAINED)}")
