"""For every rule, the fact that flips it from allow to deny, and only it.

If these fail, a control can be met by facts that don't meet it, or a denial names the wrong control.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import cedarpy
import pytest

from datasites.study.manifest import ServiceEntry
from policies.engine import Engine
from policies.facts import ACTIONS, Action, Approval, Facts, Reviewer
from policies.ruleset import PERMIT, SHIPPED
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
    SERVICES,
    STEWARD,
    baa,
    day,
    dua,
    facts_of,
    irb,
    registry,
)


class Row(NamedTuple):
    """Changing `changes` in facts that all rules allow makes `rule`, and no other, deny each of `actions`."""

    rule: str
    actions: tuple[Action, ...]
    changes: dict[str, Any]
    words: str


ALL: tuple[Action, ...] = ACTIONS
TRAINING: tuple[Action, ...] = ("intake", "approve", "run_round")
REHEARSED: tuple[Action, ...] = ("approve", "run_round")
REVIEWED: tuple[Action, ...] = ("run_round", "release")
APPROVE: tuple[Action, ...] = ("approve",)
RELEASE: tuple[Action, ...] = ("release",)


def agreements(*terms: Any) -> dict[str, Any]:
    return {"agreements": registry(*terms).agreements}


def approvals(*triples: tuple[str, str, str]) -> dict[str, Any]:
    return {"approvals": tuple(Approval.model_validate({"person": p, "role": r, "approval": s}) for p, r, s in triples)}


BY_THE_HOSPITAL = (ServiceEntry(kind="aggregation", organisation=HOSPITAL), *SERVICES[1:])
MODEL_BY_THE_HOSPITAL = (SERVICES[0], ServiceEntry(kind="model_distribution", organisation=HOSPITAL), SERVICES[2])
WITH_CLOUD = (*SERVICES[:2], ServiceEntry(kind="transport", organisation="Cloud"))
UNCONFIRMED = registry(irb(), dua()).enter(baa(), "clerk@general.example", day("2026-01-02")).agreements
NEW_VERSION_NARROWER = (
    registry(baa(), irb(), dua())
    .enter(baa(services=("aggregation",)), "clerk@general.example", day("2026-02-02"))
    .confirm("baa-centre", 2, OFFICER, day("2026-02-02"))
)
TERMINATED = registry(baa(), irb(), dua()).terminate("baa-centre", OFFICER, day("2026-11-24"))
DUA_ENDED = registry(baa(), irb(), dua()).terminate("dua-heart", OFFICER, day("2026-11-24"))

TABLE = [
    # business associate agreements
    Row("baa", ALL, agreements(baa(expires=day("2026-11-23")), irb(), dua()), "expired on 2026-11-23"),
    Row("baa", ALL, agreements(baa(effective=day("2026-11-25")), irb(), dua()), "does not take effect until 2026"),
    Row("baa", ALL, agreements(baa(services=("aggregation", "transport")), irb(), dua()), "'model_distribution'"),
    Row("baa", ALL, agreements(baa(parties=("Other Hospital", "Centre")), irb(), dua()), "does not name General"),
    Row("baa", ALL, agreements(baa(parties=(HOSPITAL, "Elsewhere")), irb(), dua()), "holds none with that party"),
    Row("baa", ALL, agreements(irb(), dua()), "holds none with that party"),
    Row("baa", ALL, {"agreements": UNCONFIRMED}, "waits for a second person"),
    Row("baa", ALL, {"agreements": TERMINATED.agreements}, "terminated on 2026-11-24"),
    Row("baa", ALL, {"agreements": NEW_VERSION_NARROWER.agreements}, "replaced by a newer version"),
    Row("baa", ALL, {"terms__services": WITH_CLOUD}, "with Cloud covers 'transport'"),
    Row("baa", ALL, agreements(baa(parties=(HOSPITAL, "University")), irb(), dua()), "holds none with that party"),
    # who aggregates is the pinned researcher's organisation, whatever the study declares
    Row("baa-aggregator", ALL, {"roster__aggregator": None}, "is not pinned"),
    Row("baa-aggregator", ALL, {"roster__aggregator": "University"}, "aggregation by Centre and model_distribution by"),
    Row("baa-aggregator", ALL, {"terms__services": BY_THE_HOSPITAL}, "aggregation by General Hospital"),
    Row("baa-aggregator", ALL, {"terms__services": MODEL_BY_THE_HOSPITAL}, "the study says model_distribution by"),
    # IRB
    Row("irb", ALL, {"terms__irb": "IRB-18"}, "holds none with that number"),
    Row("irb", ALL, agreements(baa(), dua(), irb(purposes=("stroke-risk",))), "it is for stroke-risk"),
    Row("irb", ALL, agreements(baa(), dua(), irb(expires=day("2026-11-23"))), "expired on 2026-11-23"),
    # minimum necessary
    Row("purpose", ALL, {"features": (*FEATURES, "zip")}, "asks for zip"),
    Row("purpose", ALL, {"features": ()}, "names no features"),
    Row("purpose", ALL, agreements(baa(), irb(features=("age",)), dua()), "chol, heart_disease, sex"),
    Row("purpose", ALL, agreements(baa(), irb(), dua(features=("age", "sex", "chol"))), "asks for heart_disease"),
    Row("purpose", ALL, {"agreements": DUA_ENDED.agreements}, "dua-heart version 1 was terminated on 2026-11-24"),
    Row("purpose", ALL, agreements(baa(), irb(), dua(expires=day("2026-11-23"))), "No data use agreement for"),
    # budget
    Row("budget-dataset", TRAINING, {"budget__epsilon_after": 2.900001}, "would be 2.9"),
    Row("budget-dataset", TRAINING, {"budget__epsilon_cap": 2.8999999}, "its cap is 2.8999999"),
    Row("budget-dataset", TRAINING, {"budget__epsilon_after": 2.9000000001}, "would be 2.9"),
    Row("budget-study", TRAINING, {"budget__study_epsilon_after": 2.0000000001}, "study's epsilon would be"),
    Row("budget-delta", TRAINING, {"budget__delta": 1.00000001e-5}, "study's delta is 1.00000001e-05"),
    Row("budget-dataset", TRAINING, {"budget__epsilon_after": 1.9}, "contradicts itself"),
    Row("budget-dataset", TRAINING, {"budget__epsilon_spent": 3.0}, "contradicts itself"),
    Row("budget-dataset", TRAINING, {"budget__epsilon_reserved": 3.0}, "contradicts itself"),
    Row("budget-study", TRAINING, {"budget__study_epsilon_after": 2.000001}, "study's epsilon would be"),
    Row("budget-study", TRAINING, {"budget__study_epsilon_cap": 1.9999999}, "cap at this hospital is 1.9999999"),
    Row("budget-delta", TRAINING, {"budget__delta": 1.01e-5}, "study's delta is 1.01e-05"),
    Row("budget-delta", TRAINING, {"budget__delta": 0.0}, "above 0"),
    Row(
        "budget-delta-patients",
        TRAINING,
        {"budget__release_patients": 1001},
        "study's delta is 1e-05; for 1001 patients",
    ),
    Row(
        "budget-delta-patients", TRAINING, {"budget__declared_patients": 1001}, "all studies on these patients is 1e-05"
    ),
    Row("budget-delta-patients", TRAINING, {"budget__release_patients": 0}, "for 0 patients it may be 0 at most"),
    Row("budget-delta-patients", TRAINING, {"budget__delta_cap": 1.2e-5}, "1.2e-05; for 900 patients"),
    Row(
        "budget-delta-patients",
        TRAINING,
        {"budget__release_patients": 5000, "budget__delta_accepted": 0.9999999e-5},
        "for 5000 patients it may be 2e-06 at most",
    ),
    # Each rounded up where it is printed, it would not fit.
    Row(
        "budget-delta-patients", TRAINING, {"budget__release_patients": 1504}, "1504 patients it may be 6.648936e-06 at"
    ),
    Row(
        "budget-delta-patients",
        TRAINING,
        {"budget__release_patients": 1504, "budget__delta": 0.01 / 1504},
        "1504 patients it may be 6.648936e-06 at most",
    ),
    Row(
        "budget-delta",
        TRAINING,
        {"budget__delta_cap": 0.01 / 1303, "budget__delta": 0.01 / 1303},
        "at most 7.674597e-06, the delta of all",
    ),
    # cohort
    Row("cohort-size", ALL, {"cohort__hospitals": 5, "cohort__threshold": 5, "cohort__colluders": 4}, "4 colluding"),
    Row("cohort-threshold", ALL, {"cohort__threshold": 5}, "at most 4"),
    Row("cohort-threshold", ALL, {"cohort__colluders": 2}, "at least 4"),
    Row("cohort-threshold", ALL, {"cohort__hospitals": 6}, "at least 4"),
    Row("cohort-threshold", ALL, {"cohort__hospitals": 3, "cohort__colluders": 0, "cohort__threshold": 2}, "least 3"),
    Row("cohort-patients", ALL, {"cohort__patients": 299}, "declared with 299"),
    Row("cohort-patients", ALL, {"cohort__min_patients": 0}, "No minimum number"),
    # code
    Row("code-verifier", ALL, {"code__findings": 1}, "1 finding(s)"),
    Row("code-frozen", ALL, {"code__frozen": OTHER_STUDY}, "was submitted: the copy was changed"),
    Row("code-current", ALL, {"code__approval": OTHER_APPROVAL}, "is not as it was approved"),
    Row("code-rehearsal", REHEARSED, {"code__rehearsal": "failed"}, "mock data failed"),
    Row("code-rehearsal", REHEARSED, {"code__rehearsal": "not_run"}, "has not run"),
    # two people
    Row("people-approver", APPROVE, {"approver": Reviewer(person=STEWARD, role="privacy_officer")}, "already approved"),
    Row(
        "people-approver",
        APPROVE,
        {"approver": Reviewer(person=STEWARD.title(), role="privacy_officer")},
        "already approved",
    ),
    Row("people-approver", APPROVE, {"approver": Reviewer(person="new@x.example", role="steward")}, "as data steward"),
    Row(
        "people-approver",
        APPROVE,
        approvals((STEWARD, "privacy_officer", APPROVAL)) | {"approver": Reviewer(person=STEWARD, role="steward")},
        "has already approved",
    ),
    Row(
        "people-approver",
        APPROVE,
        approvals((STEWARD, "privacy_officer", APPROVAL)),
        "as privacy officer",
    ),
    Row(
        "people-approver",
        APPROVE,
        {"approver": Reviewer(person=RESEARCHER.upper(), role="privacy_officer")},
        "is the study's researcher",
    ),
    Row("people", REVIEWED, approvals((STEWARD, "steward", APPROVAL)), "No privacy officer has approved"),
    Row("people", REVIEWED, approvals((OFFICER, "privacy_officer", APPROVAL)), "No data steward has approved"),
    Row("people", REVIEWED, approvals(), "No data steward and no privacy officer"),
    Row(
        "people",
        REVIEWED,
        approvals((STEWARD, "steward", APPROVAL), (STEWARD.upper(), "privacy_officer", APPROVAL)),
        "both roles",
    ),
    Row(
        "people",
        REVIEWED,
        approvals((STEWARD, "steward", APPROVAL), (OFFICER, "privacy_officer", OTHER_APPROVAL)),
        "another version of the study",
    ),
    Row(
        "people",
        REVIEWED,
        approvals((STEWARD, "steward", APPROVAL), (RESEARCHER, "privacy_officer", APPROVAL)),
        "researcher is among",
    ),
    Row(
        "people",
        REVIEWED,
        approvals((RESEARCHER, "steward", APPROVAL), (OFFICER, "privacy_officer", APPROVAL)),
        "researcher is among",
    ),
    # state
    *(
        Row("state-open", TRAINING[:2], {"state": state}, f"is {state}")
        for state in ("paused", "revoked", "closed", "killed")
    ),
    Row("state-active", RELEASE, {"state": "paused"}, "paused, not active"),
    Row("state-active", REVIEWED, {"state": "submitted"}, "submitted, not active"),
    Row("state-ends", ALL, {"terms__ends": day("2026-11-23")}, "ended on 2026-11-23"),
    # the datasite
    Row("site-sandbox", REHEARSED, {"sandbox": "off"}, "sandbox is off"),
    Row("site-roster", ALL, {"roster__pinned": (RESEARCHER, *HOSPITALS[1:])}, HOSPITALS[0]),
    Row("site-roster", ALL, {"roster__parties": (), "roster__pinned": ()}, "No party"),
    # release
    Row("release-masked", RELEASE, {"release__masked": False}, "not masked"),
    Row("release-noised", RELEASE, {"release__noised": False}, "no noise"),
    Row("release-charged", RELEASE, {"release__charged": False}, "not charged"),
    Row("release-dimension", RELEASE, {"release__dimension": 43}, "43 coordinates"),
    Row("release-dimension", RELEASE, {"release__dimension": 0, "release__expected_dimension": 0}, "0 coordinates"),
]

# These can't be told apart by any fact: a study without services names nobody who aggregates, fewer than three
# hospitals also leave no valid threshold, and a running study that stops being active is no longer open for review.
TOGETHER: list[tuple[dict[str, Any], tuple[Action, ...], set[str]]] = [
    ({"terms__services": ()}, ALL, {"baa", "baa-aggregator"}),
    ({"cohort__hospitals": 2}, ALL, {"cohort-size", "cohort-threshold"}),
    (
        {"cohort__hospitals": 2, "cohort__colluders": 0, "cohort__threshold": 2},
        ALL,
        {"cohort-size", "cohort-threshold"},
    ),
    ({"state": "paused"}, ("run_round",), {"state-active", "state-open"}),
    ({"state": "revoked"}, ("run_round",), {"state-active", "state-open"}),
    ({"state": "killed"}, ("run_round",), {"state-active", "state-open"}),
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(clock=lambda: NOW)


@pytest.mark.parametrize("action", ACTIONS)
def test_facts_that_meet_every_control_are_allowed(engine: Engine, action: Action) -> None:
    decision = engine.decide(facts_of(action))
    assert decision.allowed
    assert decision.denied_by == ()
    assert decision.summary == "allowed"
    assert {result.outcome for result in decision.results} <= {"pass", "not_applicable"}


@pytest.mark.parametrize("patients", [6, 7, 1303, 1504, 130_001])
def test_the_delta_that_a_denial_names_is_allowed(engine: Engine, patients: int) -> None:
    limits = {"budget__release_patients": patients, "budget__delta_cap": 0.01, "budget__declared_patients": 1}
    denied = engine.decide(facts_of("approve", budget__delta=0.01, **limits)).denied_by[0].reason
    named = float(denied.split("it may be ")[1].split(" at most")[0])
    assert engine.decide(facts_of("approve", budget__delta=named, **limits)).allowed


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.rule}: {row.words}")
def test_one_fact_flips_one_rule_and_only_it(engine: Engine, row: Row) -> None:
    for action in row.actions:
        decision = engine.decide(facts_of(action, **row.changes))
        assert not decision.allowed
        assert [denial.rule for denial in decision.denied_by] == [row.rule]
        assert row.words in decision.denied_by[0].reason
        assert decision.denied_by[0].remedy
        outcomes = {result.rule: result.outcome for result in decision.results}
        assert {rule for rule, outcome in outcomes.items() if outcome == "deny"} == {row.rule}
        assert decision.controls == (row.rule.partition("-")[0],)


@pytest.mark.parametrize(("changes", "actions", "rules"), TOGETHER)
def test_facts_that_several_rules_mind(
    engine: Engine, changes: dict[str, Any], actions: tuple[Action, ...], rules: set[str]
) -> None:
    for action in actions:
        assert {denial.rule for denial in engine.decide(facts_of(action, **changes)).denied_by} == rules


def test_the_table_has_every_rule_at_every_action_where_it_applies(engine: Engine) -> None:
    shown = {(row.rule, action) for row in TABLE for action in row.actions}
    shown |= {(rule, action) for _, actions, rules in TOGETHER for action in actions for rule in rules}
    applies = {
        (result.rule, action)
        for action in ACTIONS
        for result in engine.decide(facts_of(action)).results
        if result.outcome == "pass"
    }
    assert applies == shown


@pytest.mark.parametrize("action", ACTIONS)
def test_every_missing_fact_denies_by_the_rules_that_need_it(engine: Engine, action: Action) -> None:
    base = facts_of(action)
    present = [name for name in Facts.model_fields if name not in ("action", "approval", "hospital", "today")]
    for name in present:
        if getattr(base, name) is None:
            continue
        decision = engine.decide(base.model_copy(update={name: None}))
        if decision.allowed:
            # Nothing may need it at this action; then no value of it may matter either.
            assert (action, name) in {("intake", "approvals"), ("release", "budget"), ("release", "sandbox")}
            continue
        for denial in decision.denied_by:
            assert denial.reason.startswith("Not known:")
            assert denial.remedy


@pytest.mark.parametrize("file", sorted(path.name for path in SHIPPED.glob("*.cedar")))
def test_without_any_one_rule_file_there_is_no_engine(tmp_path: Path, file: str) -> None:
    for path in SHIPPED.glob("*.cedar"):
        if path.name != file:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="missing; restore the shipped rule files"):
        Engine(tmp_path)


def conjuncts(expression: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every part of a condition that is joined by && or ||, but for guards (`context has …`)."""
    for operator in ("&&", "||"):
        if operator in expression:
            left, right = expression[operator]["left"], expression[operator]["right"]
            return conjuncts(left, (*path, operator, "left")) + conjuncts(right, (*path, operator, "right"))
    return [] if "has" in expression else [path]


def weakened(policy: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(policy))
    place = copy["conditions"][0]
    for step in ("body", *path)[:-1]:
        place = place[step]
    place[("body", *path)[-1]] = {"Value": True}
    return copy


def test_weakening_any_part_of_any_rule_changes_the_table() -> None:
    """Mutation: each condition of each rule, replaced by true, must let some denied row of the table through."""
    static = {}
    for file in sorted(SHIPPED.glob("*.cedar")):
        for policy in json.loads(cedarpy.policies_to_json_str(file.read_text()))["staticPolicies"].values():
            static[policy["annotations"]["id"]] = policy
    denied = [facts_of(action, **row.changes) for row in TABLE for action in row.actions[:1]]
    denied += [facts_of(actions[0], **changes) for changes, actions, _ in TOGETHER]
    engine = Engine(clock=lambda: NOW)
    shipped = engine._rules
    by_rule: dict[str, list[Facts]] = {}
    for facts in denied:
        for denial in engine.decide(facts).denied_by:
            by_rule.setdefault(denial.rule, []).append(facts)
    survivors, mutants = [], 0
    for id, policy in static.items():
        if id == PERMIT:
            continue
        for path in conjuncts(policy["conditions"][0]["body"]):
            mutants += 1
            mutated = {**static, id: weakened(policy, path)}
            whole = {"staticPolicies": mutated, "templates": {}, "templateLinks": []}
            engine._rules = dataclasses.replace(shipped, policies=cedarpy.PolicySet.from_json_str(json.dumps(whole)))
            if not any(id not in {d.rule for d in engine.decide(facts).denied_by} for facts in by_rule[id]):
                survivors.append((id, path))
    assert mutants > 40
    assert survivors == []
