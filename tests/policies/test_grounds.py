"""What people are shown of agreements and studies is what the rules say: grounds, standing, and differences."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasites.study.manifest import ServiceEntry
from policies.engine import Engine
from policies.grounds import StudyNeeds, ended, grounds, lacks, starts, stops, supports
from policies.registry import Agreement, AgreementTerms, Registry, RegistryError, term_changes
from tests.policies.facts_of import (
    FEATURES,
    HOSPITAL,
    NOW,
    OFFICER,
    SERVICES,
    TODAY,
    baa,
    day,
    dua,
    facts_of,
    irb,
    registry,
)

CLERK = "clerk@general.example"
NEEDS = StudyNeeds(services=SERVICES, irb="IRB-17", purpose="heart-risk", features=FEATURES)
ON = day("2026-06-01")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(clock=lambda: NOW)


DAYS = st.sampled_from([day("2025-06-01"), day("2026-01-01"), day("2026-11-24"), day("2026-11-25"), day("2027-06-01")])
TERMS = st.one_of(
    st.builds(
        lambda id, parties, services: baa(id=id, parties=parties, services=services),
        st.sampled_from(["baa-centre", "baa-2"]),
        st.sampled_from([(HOSPITAL, "Centre"), (HOSPITAL, "CENTRE "), (HOSPITAL, "Other"), ("Elsewhere", "Centre")]),
        st.sampled_from([("transport",), ("aggregation", "model_distribution"), tuple(s.kind for s in SERVICES)]),
    ),
    st.builds(
        lambda number, purposes, features: irb(reference=number, purposes=purposes, features=features),
        st.sampled_from(["IRB-17", "IRB-18"]),
        st.sampled_from([("heart-risk",), ("billing",)]),
        st.sampled_from([FEATURES, ("age",), (*FEATURES, "bmi")]),
    ),
    st.builds(
        lambda purposes, features: dua(purposes=purposes, features=features),
        st.sampled_from([("heart-risk",), ("billing",)]),
        st.sampled_from([FEATURES, ("age",)]),
    ),
)
STEPS = st.lists(st.tuples(TERMS, DAYS, DAYS, st.sampled_from(["enter", "confirm", "end"])), max_size=7)


def built(steps: list[tuple[AgreementTerms, datetime.date, datetime.date, str]]) -> Registry:
    """A registry to which people have done all of this, as far as it lets them."""
    value = Registry(organisation=HOSPITAL)
    for terms, effective, on, what in steps:
        dated = terms.model_copy(update={"effective": min(effective, terms.expires)})
        try:
            value = value.enter(dated, CLERK, on)
            if what != "enter":
                value = value.confirm(terms.id, value.latest(terms.id).version, OFFICER, on)
            if what == "end":
                value = value.terminate(terms.id, CLERK, on)
        except RegistryError:
            continue
    return value


@settings(max_examples=120, deadline=None, derandomize=True)
@given(STEPS)
def test_a_study_lacks_nothing_exactly_where_the_rules_on_agreements_pass(
    engine: Engine, steps: list[tuple[Any, Any, Any, str]]
) -> None:
    """So that what is shown as resting on an agreement is what the policies would deny without it."""
    value = built(steps)
    decision = engine.decide(facts_of("intake", agreements=value.relevant(SERVICES, "IRB-17", "heart-risk")))
    denied = {"baa", "irb", "purpose"} & set(decision.controls)
    assert lacks(value, NEEDS, TODAY) == bool(denied)
    for id in {a.terms.id for a in value.agreements}:
        then = ended(value, id, TODAY)
        after = engine.decide(facts_of("intake", agreements=then.relevant(SERVICES, "IRB-17", "heart-risk")))
        more = {"baa", "irb", "purpose"} & set(after.controls) - denied
        assert not more or stops(value, then, NEEDS, TODAY), (id, more)
        assert not starts(value, then, NEEDS, TODAY), "an end permits nothing"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(STEPS, DAYS)
def test_a_version_stands_in_force_exactly_where_it_counts(steps: list[tuple[Any, Any, Any, str]], on: Any) -> None:
    value = built(steps)
    counts = set(value.in_force(on))
    waiting = set(value.unconfirmed())
    for agreement in value.agreements:
        standing = value.standing(agreement, on)
        assert (standing == "in_force") == (agreement in counts)
        if standing == "waiting":
            assert agreement in waiting or agreement.confirmed_on is not None or agreement.terminated_on is not None


def test_what_stops_and_what_others_permit_as_well() -> None:
    one = registry(baa(), irb())
    assert stops(one, ended(one, "baa-centre", ON), NEEDS, ON) == (
        "Centre may no longer run aggregation, model_distribution, transport",
    )
    assert stops(one, ended(one, "irb-heart", ON), NEEDS, ON) == (
        "IRB approval IRB-17 for heart-risk is over",
        "no longer permitted: age, sex, chol, heart_disease",
    )
    two = registry(baa(), baa(id="baa-again"), irb())
    assert stops(two, ended(two, "baa-again", ON), NEEDS, ON) == ()
    assert supports(two, "baa-again", NEEDS, ON)
    assert not supports(registry(baa(parties=(HOSPITAL, "Other")), irb()), "baa-centre", NEEDS, ON)


def test_a_service_that_the_hospital_runs_itself_rests_on_no_agreement() -> None:
    own = StudyNeeds(services=(ServiceEntry(kind="transport", organisation=HOSPITAL),), irb="X", purpose="other")
    assert not supports(registry(baa()), "baa-centre", own, ON)
    assert grounds(Registry(organisation=HOSPITAL), own, ON).services == own.services


def test_the_end_of_a_data_use_agreement_takes_features_and_gives_none() -> None:
    value = registry(irb(), dua(features=("age", "sex")))
    then = ended(value, "dua-heart", ON)
    assert stops(value, then, NEEDS, ON) == ("no longer permitted: age, sex",)
    assert starts(value, then, NEEDS, ON) == ()


def test_a_risk_is_needed_only_where_it_is_taken() -> None:
    accepted = baa(id="risk", kind="risk_acceptance", parties=(HOSPITAL,), services=("no_sandbox",))
    value, taken = registry(baa(), irb(), accepted), NEEDS.model_copy(update={"risks": ("no_sandbox",)})
    then = ended(value, "risk", ON)
    assert stops(value, then, NEEDS, ON) == ()
    assert stops(value, then, taken, ON) == ("the risk no_sandbox is no longer accepted",)
    assert lacks(then, taken, ON)


def test_a_difference_is_said_field_by_field() -> None:
    new = irb(features=("age", "bmi"), expires=day("2028-01-31"))
    changes = {change.field: change for change in term_changes(irb(), new)}
    assert set(changes) == {"features", "expires"}
    assert changes["features"].removed == ("chol", "heart_disease", "sex", "thalach")
    assert changes["features"].added == ("bmi",)
    assert (changes["expires"].before, changes["expires"].after) == (("2027-01-31",), ("2028-01-31",))
    assert term_changes(new, new) == ()
    first = {change.field for change in term_changes(None, new)}
    assert first == {"kind", "reference", "parties", "purposes", "features", "effective", "expires", "document"}


def test_no_field_of_an_agreement_is_left_out_of_a_difference() -> None:
    from policies.registry import FIELD_NAMES

    assert {*FIELD_NAMES, "id"} == set(AgreementTerms.model_fields)


def test_a_version_is_compared_with_one_that_people_confirmed_and_never_with_one_in_between() -> None:
    """Else a wide version that nobody confirms, and a small change after it, would pass for a small change."""
    value = registry(baa(services=("transport",)))
    value = value.enter(baa(services=("transport", "aggregation")), CLERK, ON)
    value = value.enter(baa(services=("transport", "aggregation"), reference="no. 2"), CLERK, ON)
    before = value.confirmed_before("baa-centre", 3)
    assert before is not None
    assert before.version == 1
    assert [c.field for c in term_changes(before.terms, value.latest("baa-centre").terms)] == ["reference", "services"]
    assert value.confirmed_before("baa-centre", 1) is None
    assert value.confirmed_before("baa-centre") == before


def test_standings() -> None:
    value = registry(baa(), irb(parties=("Elsewhere",)))
    value = value.enter(baa(services=("transport",), effective=day("2026-08-01")), CLERK, ON)

    def standing(version: int, on: datetime.date, of: Registry) -> str:
        return of.standing(next(a for a in of.versions("baa-centre") if a.version == version), on)

    assert (standing(1, ON, value), standing(2, ON, value)) == ("in_force", "waiting")
    confirmed = value.confirm("baa-centre", 2, OFFICER, ON)
    assert standing(2, ON, confirmed) == "later"
    assert (standing(1, day("2026-08-01"), confirmed), standing(2, day("2026-08-01"), confirmed)) == (
        "replaced",
        "in_force",
    )
    assert standing(2, day("2027-01-01"), confirmed) == "expired"
    ends = confirmed.terminate("baa-centre", CLERK, ON)
    assert (standing(1, ON, ends), standing(2, ON, ends)) == ("ended", "ended")
    again = value.enter(baa(services=("aggregation",)), CLERK, ON)
    assert (standing(2, ON, again), standing(3, ON, again)) == ("replaced", "waiting")
    assert value.standing(value.latest("irb-heart"), ON) == "not_a_party"
    assert isinstance(value.latest("irb-heart"), Agreement)
