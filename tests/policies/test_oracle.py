"""The rules, written a second time in plain Python, agree with Cedar on random facts.

The table in test_decision_table.py changes one fact at a time; this changes any number at once. If they disagree, a
control depends on another one, or one of the two says something that nobody meant.
"""

import datetime
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from datasites.study.manifest import ServiceEntry
from policies.engine import Engine
from policies.facts import (
    ACTIONS,
    Action,
    Approval,
    BudgetFacts,
    CodeFacts,
    CohortFacts,
    Facts,
    ReleaseFacts,
    Reviewer,
    RosterFacts,
)
from tests.policies.facts_of import (
    APPROVAL,
    FEATURES,
    HOSPITAL,
    HOSPITALS,
    NOW,
    OFFICER,
    OTHER_APPROVAL,
    OTHER_STUDY,
    RESEARCHER,
    STEWARD,
    STUDY,
    TODAY,
    baa,
    dua,
    facts_of,
    irb,
    registry,
)

ENGINE = Engine(clock=lambda: NOW)
DAYS = st.sampled_from([TODAY + datetime.timedelta(n) for n in (-40, -1, 0, 1, 40)])
PEOPLE = st.sampled_from([STEWARD, OFFICER, RESEARCHER, STEWARD.upper()])
ROLES = st.sampled_from(["steward", "privacy_officer"])
# Steps of a tenth keep clear of the rounding to millionths, which has its own test.
YES: st.SearchStrategy[bool] = st.booleans()
LENGTHS = st.integers(1, 4)
EPSILON = st.integers(0, 40).map(lambda n: n / 10)


@st.composite
def agreements(draw: st.DrawFn) -> Any:
    end = draw(DAYS)
    kinds = draw(st.sets(st.sampled_from(["aggregation", "model_distribution", "transport"]), min_size=1))
    terms = [
        baa(services=tuple(kinds), expires=end, effective=min(end, draw(DAYS))),
        baa(id="baa-2", services=("transport",), parties=(draw(st.sampled_from([HOSPITAL, "North"])), "Cloud")),
        irb(
            purposes=(draw(st.sampled_from(["heart-risk", "stroke-risk"])),),
            features=FEATURES[: draw(st.integers(1, 4))],
        ),
        dua(expires=end, effective=min(end, draw(DAYS))),
    ]
    chosen = draw(st.lists(st.sampled_from(terms), unique_by=lambda t: t.id, max_size=4))
    book = registry(*chosen)
    if draw(YES) and chosen:
        book = book.terminate(chosen[0].id, OFFICER, draw(DAYS))
    return book.agreements


GROUPS: dict[str, st.SearchStrategy[Any]] = {
    "agreements": agreements(),
    "features": st.lists(st.sampled_from([*FEATURES, "zip"]), unique=True).map(tuple),
    "budget": st.builds(
        BudgetFacts,
        epsilon_spent=EPSILON,
        epsilon_reserved=EPSILON,
        epsilon_asked=EPSILON,
        epsilon_after=EPSILON,
        epsilon_cap=EPSILON,
        study_epsilon_after=EPSILON,
        study_epsilon_cap=EPSILON,
        delta=st.sampled_from([0.0, 1e-5, 1e-4]),
        delta_cap=st.sampled_from([0.0, 1e-5]),
        release_patients=st.sampled_from([0, 1, 100, 1000, 1001]),
        declared_patients=st.sampled_from([0, 1, 1000, 1001]),
        delta_accepted=st.sampled_from([0.0, 1e-6, 1e-5, 1e-4]),
    ),
    "cohort": st.builds(
        CohortFacts,
        hospitals=st.integers(0, 7),
        threshold=st.integers(0, 8),
        colluders=st.integers(0, 6),
        patients=st.integers(0, 3),
        min_patients=st.integers(0, 3),
    ),
    "code": st.builds(
        CodeFacts,
        findings=st.integers(0, 1),
        rehearsal=st.sampled_from(["passed", "failed", "not_run"]),
        study=st.just(STUDY),
        frozen=st.sampled_from([STUDY, OTHER_STUDY]),
        approval=st.sampled_from([APPROVAL, OTHER_APPROVAL]),
    ),
    "approvals": st.lists(
        st.builds(Approval, person=PEOPLE, role=ROLES, approval=st.sampled_from([APPROVAL, APPROVAL, OTHER_APPROVAL])),
        max_size=3,
    ).map(tuple),
    "state": st.sampled_from(["submitted", "active", "paused", "revoked", "closed", "killed"]),
    "sandbox": st.sampled_from(["on", "off"]),
    "roster": st.builds(
        RosterFacts,
        parties=st.sets(st.sampled_from(HOSPITALS)).map(tuple),
        pinned=st.sets(st.sampled_from(HOSPITALS)).map(tuple),
        aggregator=st.sampled_from([None, "Centre", "Cloud"]),
    ),
}


@st.composite
def facts(draw: st.DrawFn) -> Facts:
    action: Action = draw(st.sampled_from(ACTIONS))
    changes: dict[str, Any] = {}
    for name in draw(st.sets(st.sampled_from(sorted(GROUPS)), max_size=3)):
        changes[name] = draw(st.one_of(st.none(), GROUPS[name], GROUPS[name]))
    if draw(st.booleans()):
        changes["terms__ends"] = draw(DAYS)
        changes["terms__services"] = tuple(
            ServiceEntry(kind=kind, organisation=draw(st.sampled_from(["Centre", "Cloud", HOSPITAL])))
            for kind in draw(st.sets(st.sampled_from(["aggregation", "model_distribution", "transport"])))
        )
    if action == "approve" and draw(st.booleans()):
        changes["approver"] = draw(st.one_of(st.none(), st.builds(Reviewer, person=PEOPLE, role=ROLES)))
    if action == "release" and draw(st.booleans()):
        changes["release"] = draw(
            st.one_of(
                st.none(),
                st.builds(
                    ReleaseFacts,
                    round=st.just(1),
                    masked=st.booleans(),
                    noised=st.booleans(),
                    charged=st.booleans(),
                    dimension=st.integers(0, 2),
                    expected_dimension=st.integers(0, 2),
                ),
            )
        )
    return facts_of(action, **changes)


def in_force(f: Facts, kind: str) -> list[Any]:
    ended = [a.terms for a in f.agreements or () if a.terminated_on and a.terminated_on <= f.today]
    return [terms for terms in begun(f, kind) if f.today <= terms.expires and terms not in ended]


def begun(f: Facts, kind: str) -> list[Any]:
    """One version only of each agreement here, confirmed on 2 January, so the newest is the only one."""
    return [
        a.terms
        for a in f.agreements or ()
        if a.terms.kind == kind and a.terms.effective <= f.today and f.hospital in a.terms.parties
    ]


def expected(f: Facts) -> set[str]:
    """Rules that must deny, by what README.md says of them."""
    denied: set[str] = set()

    def must(rule: str, actions: str, holds: bool) -> None:
        if f.action in actions.split() and not holds:
            denied.add(rule)

    every, training = "intake approve run_round release", "intake approve run_round"
    t, b, c, k, r = f.terms, f.budget, f.cohort, f.code, f.release
    assert t is not None
    covered = f.agreements is not None and all(
        s.organisation == f.hospital
        or any(s.kind in a.services and s.organisation in a.parties for a in in_force(f, "baa"))
        for s in t.services
    )
    approvals = [a for a in in_force(f, "irb") if a.reference == t.irb and t.purpose in a.purposes]
    duas = [a for a in in_force(f, "dua") if t.purpose in a.purposes]
    # A data use agreement that has begun narrows for good, also once it is over.
    over = [a for a in begun(f, "dua") if t.purpose in a.purposes and a not in duas]
    lists = [{x for a in group for x in a.features} for group in (approvals, duas) if group]
    permitted = set.intersection(*lists) if lists and (duas or not over) else set()
    must("baa", every, covered and len(t.services) > 0)
    runs = {(s.kind, s.organisation) for s in t.services}
    who = f.roster.aggregator if f.roster else None
    must("baa-aggregator", every, who is not None and {("aggregation", who), ("model_distribution", who)} <= runs)
    must("irb", every, bool(approvals))
    must("purpose", every, bool(f.agreements is not None and f.features and set(f.features) <= permitted))
    parts = max(b.epsilon_spent, b.epsilon_reserved, b.epsilon_asked) if b else 0
    must("budget-dataset", training, b is not None and parts <= b.epsilon_after <= b.epsilon_cap)
    must("budget-study", training, b is not None and b.study_epsilon_after <= b.study_epsilon_cap)
    must("budget-delta", training, b is not None and 0 < b.delta <= b.delta_cap)
    within = b is not None and all(
        delta <= b.delta_accepted or 100 * delta * patients <= 1 and patients > 0
        for delta, patients in ((b.delta, b.release_patients), (b.delta_cap, b.declared_patients))
    )
    must("budget-delta-patients", training, within)
    must("cohort-size", every, c is not None and c.hospitals >= 3 and c.hospitals - c.colluders >= 2)
    must(
        "cohort-threshold",
        every,
        c is not None and 3 <= c.threshold <= c.hospitals and 2 * c.threshold > c.hospitals + c.colluders,
    )
    must("cohort-patients", every, c is not None and c.patients >= c.min_patients > 0)
    must("code-verifier", every, k is not None and k.findings == 0)
    must("code-frozen", every, k is not None and k.frozen == k.study)
    must("code-current", every, k is not None and k.approval == f.approval)
    must("code-rehearsal", "approve run_round", k is not None and k.rehearsal == "passed")
    people = {
        role: {a.person.lower() for a in f.approvals or () if a.role == role and a.approval == f.approval}
        for role in ("steward", "privacy_officer")
    }
    everyone = people["steward"] | people["privacy_officer"]
    me = f.approver
    must(
        "people-approver",
        "approve",
        f.approvals is not None
        and me is not None
        and me.person.lower() not in everyone | {t.researcher}
        and not people[me.role],
    )
    must(
        "people",
        "run_round release",
        bool(people["steward"] and people["privacy_officer"])
        and not people["steward"] & people["privacy_officer"]
        and t.researcher not in everyone,
    )
    must("state-open", training, f.state in ("submitted", "active"))
    must("state-active", "run_round release", f.state == "active")
    must("state-ends", every, f.today <= t.ends)
    must("site-sandbox", "approve run_round", f.sandbox == "on")
    must("site-roster", every, bool(f.roster and f.roster.parties and set(f.roster.parties) <= set(f.roster.pinned)))
    must("release-masked", "release", r is not None and r.masked)
    must("release-noised", "release", r is not None and r.noised)
    must("release-charged", "release", r is not None and r.charged)
    must("release-dimension", "release", r is not None and 0 < r.dimension == r.expected_dimension)
    return denied


@pytest.mark.slow
@given(facts())
@settings(max_examples=600)
def test_cedar_and_plain_python_agree(f: Facts) -> None:
    decision = ENGINE.decide(f)
    wanted = expected(f)
    event(f"{f.action}: {'allowed' if not wanted else 'denied'}")
    assert {denial.rule for denial in decision.denied_by} == wanted
    assert decision.allowed == (not wanted)
    assert all(denial.reason and denial.remedy for denial in decision.denied_by)
