"""The engine denies whatever it can't decide, and refuses to start on rules that could allow too much (I3, I14)."""

import datetime
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import explain
from policies.controls import CONTROLS, Control
from policies.engine import VALIDITY, Decision, Engine, PolicyDenied, read_decision
from policies.facts import ACTIONS, Action, context
from policies.ruleset import SHIPPED, RuleError
from tests.policies.facts_of import (
    APPROVAL,
    HOSPITAL,
    NOW,
    OTHER_APPROVAL,
    SERVICES,
    TODAY,
    baa,
    day,
    dua,
    facts_of,
    irb,
    registry,
)

EXAMPLES = Path(SHIPPED).parent / "examples"


def engine(local: Path | None = None) -> Engine:
    return Engine(local_dir=local, clock=lambda: NOW)


def local_rules(folder: Path, text: str, name: str = "own.cedar") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder


def shipped_with(folder: Path, file: str, change: Callable[[str], str]) -> Path:
    folder.mkdir(exist_ok=True)
    for path in SHIPPED.glob("*.cedar"):
        text = path.read_text()
        (folder / path.name).write_text(change(text) if path.name == file else text)
    return folder


# -- facts that can't be decided on


@pytest.mark.parametrize("action", ACTIONS)
def test_a_plain_mapping_of_good_facts_is_decided_like_the_typed_ones(action: Action) -> None:
    facts = facts_of(action)
    decision = engine().decide(json.loads(facts.canonical()))
    assert decision.allowed
    assert decision.facts == facts


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("mood",), "good", "mood is not a known fact"),
        (("budget", "epsilon_bonus"), 1.0, "budget.epsilon_bonus is not a known fact"),
        (("budget", "delta"), None, "budget.delta"),
        (("budget", "epsilon_after"), "NaN", "budget.epsilon_after"),
        (("budget", "epsilon_after"), -1.0, "budget.epsilon_after"),
        (("cohort", "patients"), "many", "cohort.patients"),
        (("state",), "running", "state"),
        (("release", "masked"), "yes", "release.masked"),
        (("release", "masked"), 1, "release.masked"),
        (("action",), "train", "action"),
        (("approval",), "short", "approval"),
    ],
)
def test_an_unknown_or_malformed_fact_denies_and_is_named(path: tuple[str, ...], value: Any, words: str) -> None:
    raw = json.loads(facts_of("release").canonical())
    place = raw
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    decision = engine().decide(raw)
    assert not decision.allowed
    assert decision.controls == ("facts",)
    assert words in decision.denied_by[0].reason
    assert read_decision(decision.canonical()) == decision


@pytest.mark.parametrize("path", [("approval",), ("today",), ("hospital",), ("action",), ("budget", "delta")])
def test_a_fact_left_out_of_a_mapping_denies_and_is_named(path: tuple[str, ...]) -> None:
    raw = json.loads(facts_of("run_round").canonical())
    place = raw
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    decision = engine().decide(raw)
    assert not decision.allowed
    assert f"{'.'.join(path)} is missing" in decision.denied_by[0].reason


@pytest.mark.parametrize("junk", [{}, {"action": float("nan")}, {"action": object()}, {"facts": {1, 2}}])
def test_junk_denies_and_does_not_raise(junk: dict[str, Any]) -> None:
    assert engine().decide(junk).controls == ("facts",)
    assert engine().decide(junk).allowed is False


@pytest.mark.parametrize("days", [-400, -2, 2, 400])
def test_facts_of_another_day_deny(days: int) -> None:
    # An agreement that has expired would still be in force in facts that were gathered before.
    decision = engine().decide(facts_of("run_round", today=TODAY + datetime.timedelta(days)))
    assert decision.controls == ("facts",)
    assert "Gather the facts again" in decision.denied_by[0].remedy


def test_release_and_approver_facts_belong_to_their_action() -> None:
    raw = json.loads(facts_of("run_round").canonical())
    raw["release"] = json.loads(facts_of("release").canonical())["release"]
    assert engine().decide(raw).controls == ("facts",)


def test_an_error_in_a_rule_denies_although_cedar_ignores_that_rule(tmp_path: Path) -> None:
    # The sum overflows 64 bits, so Cedar skips this forbid and says Allow.
    folder = local_rules(
        tmp_path / "local",
        '@id("sum") @title("t") @remedy("r") forbid (principal, action, resource)'
        " when { context has cohort && context.cohort.patients + 9223372036854775807 < 0 };",
    )
    decision = engine(folder).decide(facts_of("run_round"))
    assert not decision.allowed
    assert decision.controls == ("evaluation",)
    assert "local/sum" in decision.denied_by[0].reason
    assert {result.outcome for result in decision.results} == {"error"}


@pytest.mark.parametrize(
    "break_it",
    [
        lambda record: record.update(mood="good"),
        lambda record: record["budget"].update(cap="3"),
        lambda record: record["budget"].update(cap=2**63),
        lambda record: record["budget"].pop("cap"),
        lambda record: record.pop("approval"),
        lambda record: record.update(state=None),
    ],
)
def test_a_record_that_does_not_fit_the_schema_denies(
    monkeypatch: pytest.MonkeyPatch, break_it: Callable[[dict[str, Any]], Any]
) -> None:
    decider = engine()

    def broken(facts: Any) -> dict[str, Any]:
        record = context(facts)
        break_it(record)
        return record

    monkeypatch.setattr("policies.engine.context", broken)
    decision = decider.decide(facts_of("run_round"))
    assert not decision.allowed
    assert decision.controls == ("evaluation",)


def test_an_exception_while_deciding_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    decider = engine()

    def failing(facts: Any) -> dict[str, Any]:
        raise RuntimeError("out of paper")

    monkeypatch.setattr("policies.engine.context", failing)
    decision = decider.decide(facts_of("run_round"))
    assert not decision.allowed
    assert "out of paper" in decision.denied_by[0].reason


# -- decisions


def test_a_decision_counts_for_its_action_and_study_and_a_short_while() -> None:
    decision = engine().decide(facts_of("run_round"))
    decision.require("run_round", APPROVAL, NOW + VALIDITY)
    for action, approval, when, words in [
        ("release", APPROVAL, NOW, "is about run_round"),
        ("run_round", OTHER_APPROVAL, NOW, "is about run_round"),
        ("run_round", APPROVAL, NOW + VALIDITY + datetime.timedelta(seconds=1), "no longer valid"),
        ("run_round", APPROVAL, NOW - datetime.timedelta(seconds=1), "no longer valid"),
    ]:
        with pytest.raises(PolicyDenied, match=words):
            decision.require(action, approval, when)
    denied = engine().decide(facts_of("run_round", state="paused", code__findings=3))
    with pytest.raises(PolicyDenied, match=r"(?s)CODE: .*STATE: "):
        denied.require("run_round", APPROVAL, NOW)


def test_a_stored_decision_reads_back_and_can_be_evaluated_again() -> None:
    decider = engine()
    for action in ACTIONS:
        for changes in ({}, {"state": "paused"}, {"features": None}):
            stored = decider.decide(facts_of(action, **changes)).canonical()
            assert decider.reproduces(read_decision(stored))


def test_a_denial_in_the_words_of_another_version_decides_alike_again() -> None:
    decider = engine()
    raw = json.loads(decider.decide(facts_of("run_round", state="paused")).canonical())
    raw["denied_by"][0] |= {"reason": "Paused.", "remedy": "Resume it."}
    assert decider.reproduces(read_decision(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()))
    raw["denied_by"][0]["rule"] = "baa"
    assert not decider.reproduces(read_decision(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()))


def test_a_denial_because_of_old_facts_decides_alike_again() -> None:
    decider = engine()
    denied = decider.decide(facts_of("run_round", today=TODAY - datetime.timedelta(2)))
    assert denied.controls == ("facts",)
    assert decider.reproduces(read_decision(denied.canonical()))


def test_a_stored_decision_that_was_turned_into_an_allow_is_refused() -> None:
    decider = engine()
    denied = decider.decide(facts_of("run_round", agreements=registry(irb(), dua()).agreements))
    raw = json.loads(denied.canonical())
    raw["allowed"] = True
    with pytest.raises(ValueError, match="it was changed"):
        read_decision(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode())
    raw["denied_by"] = []
    for result in raw["results"]:
        result["outcome"] = "pass" if result["outcome"] == "deny" else result["outcome"]
    forged = read_decision(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode())
    assert forged.allowed
    assert not decider.reproduces(forged)
    raw["facts"]["agreements"] = json.loads(facts_of("run_round").canonical())["agreements"]
    with pytest.raises(ValueError, match="do not have the digest"):
        read_decision(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode())


def test_only_control_names_are_for_others() -> None:
    decision = engine().decide(facts_of("run_round", agreements=registry(irb(), dua()).agreements, state="paused"))
    assert decision.controls == ("baa", "state")


def test_every_rule_names_its_law_and_title() -> None:
    for rule in engine().rules:
        assert rule.title
        assert rule.law.startswith("45 CFR 164.")
        assert rule.control == rule.file.removesuffix(".cedar")


# -- a BAA that ends while a study runs, and its renewal


def test_an_agreement_that_expires_between_rounds_stops_the_next_and_renewal_lets_it_go_on() -> None:
    book = registry(baa(expires=TODAY), irb(), dua())
    today, tomorrow = TODAY, TODAY + datetime.timedelta(1)

    def at(date: datetime.date, agreements: Any) -> Decision:
        now = NOW + (date - TODAY)
        decider = Engine(clock=lambda: now)
        return decider.decide(facts_of("run_round", today=date, agreements=agreements))

    assert at(today, book.agreements).allowed
    assert at(tomorrow, book.agreements).controls == ("baa",)
    renewed = book.enter(baa(expires=day("2027-12-31")), "clerk@general.example", tomorrow)
    assert at(tomorrow, renewed.agreements).controls == ("baa",)
    assert "waits for a second person" in at(tomorrow, renewed.agreements).summary
    confirmed = renewed.confirm("baa-centre", 2, "officer@general.example", tomorrow)
    assert at(tomorrow, confirmed.agreements).allowed
    later = renewed.confirm("baa-centre", 2, "officer@general.example", tomorrow + datetime.timedelta(1))
    said = at(tomorrow, later.agreements).summary  # the clock was ahead when it was confirmed, or is behind now
    assert "which is after today" in said
    assert "correct this machine's clock" in said
    assert "second person" not in said.split("baa-centre version 2")[1].split(")")[0]


def test_a_denial_says_of_an_agreement_what_it_is_however_the_party_is_written() -> None:
    waiting = registry(irb(), dua()).enter(baa(parties=("GENERAL  hospital", "CENTRE")), "clerk@general.example", TODAY)
    said = engine().decide(facts_of("run_round", agreements=waiting.agreements)).summary
    assert "baa-centre version 1 waits for a second person" in said
    assert "holds none" not in said
    assert "Have a second person confirm baa-centre" in said


def test_a_service_run_by_the_hospital_itself_needs_no_agreement_with_itself() -> None:
    own = tuple(s.model_copy(update={"organisation": HOSPITAL}) for s in facts_of("intake").terms.services)  # type: ignore[union-attr]
    changes = {"terms__services": own, "agreements": registry(irb()).agreements}
    # … but only where the pinned researcher, who aggregates, is the hospital's own.
    assert engine().decide(facts_of("run_round", roster__aggregator=HOSPITAL, **changes)).allowed
    assert engine().decide(facts_of("run_round", **changes)).controls == ("baa",)


def test_a_replaced_agreement_among_all_that_bear_on_the_study_allows_no_more() -> None:
    """What a caller hands over is what `relevant` keeps: the version that replaced another must be among it."""
    elsewhere = baa(parties=(HOSPITAL, "New Company"))
    book = registry(baa(), irb(), dua()).enter(elsewhere, "clerk@general.example", TODAY)
    services = facts_of("intake").terms.services  # type: ignore[union-attr]
    kept = book.relevant(services, "IRB-17", "heart-risk")
    assert engine().decide(facts_of("run_round", agreements=kept)).allowed
    book = book.confirm("baa-centre", 2, "officer@general.example", TODAY)
    kept = book.relevant(services, "IRB-17", "heart-risk")
    decision = engine().decide(facts_of("run_round", agreements=kept))
    assert decision.controls == ("baa",)
    assert "baa-centre version 1 was replaced by a newer version" in decision.summary


def test_features_of_a_replaced_approval_are_not_permitted() -> None:
    narrower = irb(reference="IRB-17b", features=("age", "sex"))
    book = registry(baa(), irb(), irb(id="irb-more", features=("age", "heart_disease")))
    book = book.enter(narrower, "clerk@general.example", TODAY).confirm(
        "irb-heart", 2, "officer@general.example", TODAY
    )
    services = facts_of("intake").terms.services  # type: ignore[union-attr]
    kept = book.relevant(services, "IRB-17", "heart-risk")
    decision = engine().decide(facts_of("run_round", agreements=kept))
    assert decision.controls == ("purpose",)
    assert "chol, sex" in decision.summary


def test_an_approval_in_force_for_another_purpose_is_not_called_replaced() -> None:
    other = irb(id="irb-stroke", purposes=("stroke-risk",))
    book = registry(baa(), dua(), irb(expires=day("2026-11-23")), other)
    summary = engine().decide(facts_of("run_round", agreements=book.agreements)).summary
    assert "irb-heart version 1 expired on 2026-11-23; irb-stroke version 1 is in force for stroke-risk" in summary
    assert "replaced" not in summary


@pytest.mark.parametrize(
    ("cohort", "remedy"),
    [
        ({"threshold": 2}, "leave it out for the default"),
        ({"threshold": 3, "colluders": 2}, "State a cohort.threshold of 4 or more"),
        ({"threshold": 4, "hospitals": 4, "colluders": 4}, "declare fewer colluders"),
    ],
)
def test_a_threshold_is_mended_by_what_mends_it(cohort: dict[str, int], remedy: str) -> None:
    changes = {f"cohort__{name}": value for name, value in cohort.items()}
    denials = engine().decide(facts_of("intake", **changes)).denied_by
    assert remedy in next(one.remedy for one in denials if one.rule == "cohort-threshold")


def test_no_sandbox_is_allowed_only_by_a_confirmed_risk_acceptance_in_force() -> None:
    risk = baa(id="no-sandbox", kind="risk_acceptance", parties=(HOSPITAL,), services=("no_sandbox",))
    with_risk = registry(baa(), irb(), dua(), risk)
    assert engine().decide(facts_of("run_round", sandbox="off", agreements=with_risk.agreements)).allowed
    ended = with_risk.terminate("no-sandbox", "officer@general.example", TODAY)
    decision = engine().decide(facts_of("run_round", sandbox="off", agreements=ended.agreements))
    assert decision.controls == ("site",)


# -- budget arithmetic


@given(
    cap=st.floats(0.0001, 1000, allow_nan=False),
    after=st.floats(0.0001, 1000, allow_nan=False),
    action=st.sampled_from(["intake", "approve", "run_round"]),
)
@settings(max_examples=200)
def test_rounding_never_favours_the_study(cap: float, after: float, action: Action) -> None:
    changes = {"budget__epsilon_cap": cap, "budget__epsilon_after": after}
    parts = {f"budget__epsilon_{part}": 0.0 for part in ("spent", "reserved", "asked")}
    allowed = ENGINE.decide(facts_of(action, **changes, **parts)).allowed
    if allowed:
        assert after <= cap
    if after == cap or after <= cap - 2e-6:
        equal_units = round(cap, 6) == cap
        assert allowed or (after == cap and not equal_units)


ENGINE = engine()


# -- rules that must not load


def test_a_rule_weakened_to_allow_without_facts_stops_the_engine(tmp_path: Path) -> None:
    def reads_facts_that_may_be_absent(text: str) -> str:
        return text.replace("context has code &&", "!(context has code) ||")

    def passes_without_facts(text: str) -> str:
        return text.replace("context.code.findings == 0", "context.code.findings == 0 || !(context has code)")

    with pytest.raises(RuleError, match="unable to guarantee safety of access to optional attribute `code`"):
        Engine(shipped_with(tmp_path, "code.cedar", reads_facts_that_may_be_absent))
    with pytest.raises(RuleError, match="code-verifier does not deny intake, .* when its facts are missing"):
        Engine(shipped_with(tmp_path, "code.cedar", passes_without_facts))


def test_a_rule_that_no_longer_applies_to_its_actions_stops_the_engine(tmp_path: Path) -> None:
    def narrower(text: str) -> str:
        return text.replace('Action::"everything"', 'Action::"reviewed"')

    words = "baa applies to run_round, release instead of intake, approve, run_round, release"
    with pytest.raises(RuleError, match=words):
        Engine(shipped_with(tmp_path, "baa.cedar", narrower))


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("permit.cedar", lambda t: t + t, "twice"),
        ("baa.cedar", lambda t: t.replace("forbid (", "permit ("), "only permit.cedar permits"),
        ("baa.cedar", lambda t: t.replace('@id("baa")', ""), "lacks @id"),
        ("baa.cedar", lambda t: t.replace('@id("baa")', '@id("irb")'), "must be"),
        ("baa.cedar", lambda t: t.replace("@law", "@lore"), "lacks @law"),
        ("baa.cedar", lambda t: t.replace("context.terms.services", "context.terms.servces"), "does not fit schema"),
        ("baa.cedar", lambda t: t.replace("forbid", "forbidden"), "not valid Cedar"),
        ("baa.cedar", lambda t: "// nothing\n", "holds no rule"),
        ("baa.cedar", lambda t: t + t.replace('@id("baa', '@id("baa-more'), "unknown rule"),
        ("permit.cedar", lambda t: t.replace(";\n", "when { false };\n"), "the one permit"),
    ],
)
def test_a_damaged_shipped_file_stops_the_engine_by_name(
    tmp_path: Path, file: str, change: Callable[[str], str], words: str
) -> None:
    with pytest.raises(RuleError, match=words):
        Engine(shipped_with(tmp_path, file, change))


def test_no_rules_at_all_stop_the_engine(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="missing"):
        Engine(tmp_path)
    with pytest.raises(RuleError, match="no folder of shipped rules"):
        Engine(tmp_path / "gone")
    with pytest.raises(RuleError, match="no folder of local rules"):
        engine(tmp_path / "gone")


# -- a hospital's own rules


def test_the_example_of_a_local_rule_narrows() -> None:
    decider = engine(EXAMPLES / "local_rules")
    assert decider.decide(facts_of("run_round")).allowed
    decision = decider.decide(facts_of("run_round", budget__study_epsilon_after=2.5, budget__study_epsilon_cap=3.0))
    assert decision.controls == ("local/small_epsilon",)
    assert decision.denied_by[0].remedy == "Ask the researcher for fewer rounds or more noise."
    assert (
        engine().decide(facts_of("run_round", budget__study_epsilon_after=2.5, budget__study_epsilon_cap=3.0)).allowed
    )
    assert decider.ruleset != engine().ruleset


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('@id("a") @title("t") @remedy("r") permit (principal, action, resource);', "may only forbid"),
        (
            '@id("a") @title("t") @remedy("r") forbid (principal, action, resource) when { context.approval == "" };\n'
            '@id("b") @title("t") @remedy("r") permit (principal, action, resource);',
            "may only forbid",
        ),
        ('@title("t") @remedy("r") forbid (principal, action, resource);', "lacks @id"),
        ('@id("a") @remedy("r") forbid (principal, action, resource);', "lacks @title"),
        ('@id("a") @title("t") forbid (principal, action, resource);', "lacks @remedy"),
        ('@id("a") @title("t") @remedy("r") forbid (principal == ?principal, action, resource);', "templates"),
        (
            '@id("a") @title("t") @remedy("r") forbid (principal, action, resource) when { context.mood == "x" };',
            "does not fit schema",
        ),
        (
            '@id("a") @title("t") @remedy("r") forbid (principal, action, resource) when { context.budget.cap < 5 };',
            "does not fit schema",
        ),
    ],
)
def test_a_local_file_that_could_widen_or_is_malformed_stops_the_engine(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RuleError, match=words):
        engine(local_rules(tmp_path, text))


def test_a_misnamed_local_file_is_not_silently_ignored(tmp_path: Path) -> None:
    folder = local_rules(tmp_path, '@id("a") @title("t") @remedy("r") forbid (principal, action, resource);', "own.txt")
    with pytest.raises(RuleError, match="only .cedar files"):
        engine(folder)


def test_a_local_rule_can_take_no_shipped_id_and_replace_nothing(tmp_path: Path) -> None:
    folder = local_rules(
        tmp_path,
        '@id("baa") @title("t") @remedy("r") forbid (principal, action, resource) when { false };',
        "baa.cedar",
    )
    decision = engine(folder).decide(facts_of("run_round", agreements=registry(irb(), dua()).agreements))
    assert decision.controls == ("baa",)
    assert [r.rule for r in decision.results if r.control == "local/baa"] == ["local/baa"]


def test_a_local_rule_may_be_about_one_approval_only(tmp_path: Path) -> None:
    folder = local_rules(
        tmp_path,
        f'@id("not-this") @title("We declined this study.") @remedy("None.") '
        f'forbid (principal == Approval::"{APPROVAL}", action, resource);',
    )
    decider = engine(folder)
    assert decider.decide(facts_of("run_round")).controls == ("local/own",)
    other = json.loads(facts_of("run_round").canonical().replace(APPROVAL.encode(), OTHER_APPROVAL.encode()))
    assert decider.decide(other).allowed


@pytest.mark.parametrize(
    "rule",
    [
        f'(principal == Study::"{APPROVAL}", action, resource)',
        "(principal is Study, action, resource)",
        "(principal, action, resource) when { principal is Study }",
        f'(principal, action, resource) unless {{ [Study::"{APPROVAL}"].contains(principal) }}',
    ],
)
def test_a_local_rule_by_the_earlier_name_of_the_principal_is_refused_with_what_to_write(
    rule: str, tmp_path: Path
) -> None:
    folder = local_rules(tmp_path, f'@id("old") @title("t") @remedy("r") forbid {rule};')
    with pytest.raises(RuleError) as refused:
        engine(folder)
    assert str(refused.value) == (
        "own.cedar: names the entity type Study, which is called Approval now: its id always was the approval hash. "
        'Write `Approval::"…"` and `principal is Approval` instead; nothing else in the rule changes'
    )
    (tmp_path / "own.cedar").write_text(
        f'@id("old") @title("t") @remedy("r") forbid {rule.replace("Study", "Approval")};'
    )
    engine(folder)


def test_a_rule_names_an_organisation_as_the_hospital_writes_it_whatever_the_study_writes() -> None:
    loud = tuple(service.model_copy(update={"organisation": "CENTRE"}) for service in SERVICES)
    facts = facts_of("approve", terms__services=loud, roster__aggregator="centre")
    assert engine().decide(facts).allowed
    written = {service["organisation"] for service in context(facts)["terms"]["services"]}
    assert (written, context(facts)["roster"]["aggregator"]) == ({"Centre"}, "Centre")


def test_a_rule_is_explained_once_and_only_if_it_is_a_control() -> None:
    for rule in ("baa", "no-such-rule"):
        with pytest.raises(LookupError, match=f"rule '{rule}' is not among the controls, or is explained twice"):
            explain._explains(rule)


def test_no_control_is_without_an_explanation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTROLS, "new-rule", Control((), ("intake",)))
    with pytest.raises(LookupError, match="rules without an explanation: new-rule"):
        runpy.run_path(explain.__file__)
