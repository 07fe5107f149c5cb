"""An auditor has stored decisions evaluated again: what somebody changed in the database since is named (`replay`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datasites.hospital.cases import compliance
from datasites.hospital.cases.case import open_case
from datasites.hospital.cases.replay import Replay, replay
from datasites.hospital.models import Case, PolicyDecision
from datasites.study.canonical import canonical_json, sha256_hex
from policies.engine import Decision
from policies.ruleset import SCHEMA
from tests.hospital.desk import Desk, values_of
from tests.kills import Killed, kill_before

LOCAL_RULE = Path(__file__).resolve().parents[3] / "policies/examples/local_rules/small_epsilon.cedar"


@pytest.fixture
def decided(desk: Desk) -> Desk:
    """A desk at which one approval was denied, and two were allowed."""
    case = open_case(desk.site.home, desk.row)
    assert not compliance.decide(desk.site, case, "intake").allowed  # nobody has entered an agreement
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")
    return desk


def test_decisions_that_nobody_touched_decide_alike(decided: Desk) -> None:
    stored = PolicyDecision.objects.count()
    assert replay(decided.site) == Replay(alike=stored, other_rules=0, older=0, differs=())
    assert replay(decided.site, decided.row) == Replay(alike=stored, other_rules=0, older=0, differs=())
    assert PolicyDecision.objects.count() == stored


def allow(record: dict[str, Any]) -> None:
    """An allow made from a denial, with nothing left that contradicts it."""
    record["allowed"], record["denied_by"] = True, []
    for result in record["results"]:
        result["outcome"] = "pass" if result["outcome"] == "deny" else result["outcome"]


def bare_allow(record: dict[str, Any]) -> None:
    record["allowed"] = True


def other_facts(record: dict[str, Any]) -> None:
    """As if the hospital were another, with a digest that fits."""
    record["facts"]["hospital"] = "Elsewhere"
    record["facts_digest"] = sha256_hex(canonical_json(record["facts"]))


def facts_alone(record: dict[str, Any]) -> None:
    record["facts"]["hospital"] = "Elsewhere"


def other_rules(record: dict[str, Any]) -> None:
    """So that nobody evaluates it again."""
    allow(record)
    record["ruleset"] = "ab" * 32


def oldest_format(record: dict[str, Any]) -> None:
    allow(record)
    record["format"], record["study"] = 1, record.pop("approval")


def no_decision(record: dict[str, Any]) -> None:
    record.clear()


LOG, RULES = "the audit log has no such decision", "these rules decide otherwise"


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (allow, (LOG, RULES, "it is an allow of intake")),
        (bare_allow, (LOG, "names a denial or no rule; it was changed")),
        (other_facts, (LOG,)),
        (facts_alone, (LOG, "do not have the digest that it states")),
        (other_rules, (LOG,)),
        (oldest_format, (LOG,)),
        (no_decision, (LOG, "can't be read as a decision")),
    ],
)
def test_a_decision_that_was_changed_in_the_database_is_named(
    decided: Desk, tamper: Callable[[dict[str, Any]], None], words: tuple[str, ...]
) -> None:
    row = PolicyDecision.objects.filter(allowed=False).first()
    assert row is not None
    whole = PolicyDecision.objects.count()
    tamper(row.record)
    row.allowed = bool(row.record.get("allowed"))
    row.save()
    found = replay(decided.site)
    assert (found.alike, found.other_rules, found.older) == (whole - 1, 0, 0)
    named, missing = found.differs
    assert named.startswith(f"decision {row.pk} of case {decided.row.pk}: ")
    assert all(word in named for word in words), named
    assert "which denies: the audit log has it, but it is not stored" in missing
    assert "Elsewhere" not in str(found.differs), "what facts say stays in the database"


def test_an_allow_that_is_in_the_log_too_is_named_where_the_rules_decide_otherwise(decided: Desk) -> None:
    """As by who holds the hospital's key: the log bears it out, the facts do not."""
    row = PolicyDecision.objects.filter(allowed=False).first()
    assert row is not None
    allow(row.record)
    row.pk, row.allowed = None, True
    row.save()
    decided.site.audit.append(
        "decision",
        study=decided.row.study_hash,
        action=row.action,
        allowed=True,
        controls=[],
        digest=sha256_hex(canonical_json(row.record)),
    )
    (named,) = replay(decided.site).differs
    assert RULES in named
    assert LOG not in named


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"action": "release"}, "filed as an allow of release, but is an allow of approve"),
        ({"allowed": False}, "filed as a denial of approve, but is an allow of approve"),
    ],
)
def test_a_decision_that_is_filed_as_another_is_named(decided: Desk, change: dict[str, object], words: str) -> None:
    row = PolicyDecision.objects.filter(allowed=True).last()
    assert row is not None
    PolicyDecision.objects.filter(pk=row.pk).update(**change)
    assert any(words in named for named in replay(decided.site).differs)


def test_a_decision_that_was_copied_moved_or_taken_away_is_named(decided: Desk) -> None:
    row = PolicyDecision.objects.filter(allowed=True).last()
    assert row is not None
    copy = PolicyDecision.objects.create(case=row.case, action=row.action, round=3, allowed=True, record=row.record)
    (named,) = replay(decided.site).differs
    assert named.startswith(f"decision {copy.pk} of case {decided.row.pk}, round 3: ")
    PolicyDecision.objects.filter(pk=copy.pk).delete()
    values = values_of(decided.row)
    other = Case.objects.create(**{**values, "job_name": "heart-2", "study_hash": "cd" * 32})
    PolicyDecision.objects.filter(pk=row.pk).update(case=other)
    assert len(replay(decided.site).differs) == 2
    (missing,) = replay(decided.site, decided.row).differs
    (moved,) = replay(decided.site, other).differs
    assert (LOG in moved, "it is not stored" in missing) == (True, True)
    PolicyDecision.objects.filter(pk=row.pk).delete()
    (missing,) = replay(decided.site).differs
    assert "which allows: the audit log has it, but it is not stored" in missing


def test_a_case_whose_row_was_given_another_study_still_lacks_what_was_decided_on_it(decided: Desk) -> None:
    """Its decisions deleted, and its study typed over: nothing of the case in the database points at them any more."""
    decided.site.audit.append(
        "received", case=decided.row.pk, job="heart-1", submitted_by="r", study=decided.row.study_hash
    )
    gone = PolicyDecision.objects.count()
    assert replay(decided.site, decided.row).differs == ()
    PolicyDecision.objects.all().delete()
    Case.objects.filter(pk=decided.row.pk).update(study_hash="cd" * 32)
    decided.row.refresh_from_db()
    assert len(replay(decided.site, decided.row).differs) == len(replay(decided.site).differs) == gone


def test_a_decision_that_was_put_under_a_second_case_of_the_same_study_is_named(decided: Desk) -> None:
    decided.site.audit.append(
        "received", case=decided.row.pk, job="heart-1", submitted_by="r", study=decided.row.study_hash
    )
    row = PolicyDecision.objects.filter(allowed=True).last()
    assert row is not None
    values = values_of(decided.row)
    other = Case.objects.create(**{**values, "job_name": "heart-2"})
    PolicyDecision.objects.filter(pk=row.pk).update(case=other)
    moved, missing = replay(decided.site, other).differs
    assert replay(decided.site, decided.row).differs == (missing,)
    assert moved.startswith(f"decision {row.pk} of case {other.pk}: ")
    assert (LOG in moved, "it is not stored" in missing) == (True, True)
    assert len(replay(decided.site).differs) == 2


def without_words_on_differences(facts: dict[str, Any]) -> None:
    """Which no rule reads, and so no rule set tells from today's facts."""
    del facts["code"]["differs"]


def without_patients(facts: dict[str, Any]) -> None:
    """Before the rule on delta."""
    for name in ("release_patients", "declared_patients", "delta_accepted"):
        del facts["budget"][name]


@pytest.mark.parametrize(
    ("older", "rules"), [(without_words_on_differences, ""), (without_patients, "ab" * 32)], ids=["alike", "other"]
)
def test_a_decision_of_an_older_version_which_knew_fewer_facts_raises_no_alarm(
    decided: Desk, older: Callable[[dict[str, Any]], None], rules: str
) -> None:
    row = PolicyDecision.objects.filter(allowed=True).last()
    assert row is not None
    older(row.record["facts"])
    row.record["facts_digest"] = sha256_hex(canonical_json(row.record["facts"]))
    row.record["ruleset"] = rules or row.record["ruleset"]
    row.pk = None
    row.save()
    digest = sha256_hex(canonical_json(row.record))
    decided.site.audit.append(
        "decision", study=decided.row.study_hash, action=row.action, allowed=True, controls=[], digest=digest
    )
    found, total = replay(decided.site), PolicyDecision.objects.count()
    assert (found.differs, found.alike, found.other_rules) == ((), total - bool(rules), int(bool(rules)))


def test_decisions_by_other_rules_and_of_the_oldest_format_are_counted_and_not_evaluated(decided: Desk) -> None:
    row = PolicyDecision.objects.filter(allowed=True).last()
    assert row is not None
    oldest_format(row.record)
    # The names in facts meant other things then.
    row.record["facts"] = {"study": "ef" * 32}
    row.pk = None
    row.save()
    decided.site.audit.append(
        "decision",
        study=decided.row.study_hash,
        action=row.action,
        allowed=True,
        controls=[],
        digest=sha256_hex(canonical_json(row.record)),
    )
    before = PolicyDecision.objects.count()
    rule = decided.site.home.local_rules / LOCAL_RULE.name
    rule.write_bytes(LOCAL_RULE.read_bytes())
    try:
        compliance.decide(decided.site, open_case(decided.site.home, decided.row), "intake")
        assert replay(decided.site) == Replay(alike=1, other_rules=before - 1, older=1, differs=())
    finally:
        rule.unlink()


def test_decisions_from_before_the_shipped_rules_changed_are_counted_and_new_ones_rest_on_the_new_rules(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As at an upgrade in the middle of a review: the first approval stands, and the second is decided anew."""
    desk.agree()
    earlier = tmp_path / SCHEMA.name
    earlier.write_text(SCHEMA.read_text().replace("Approval]", "Study]").replace("entity Approval;", "entity Study;"))
    with monkeypatch.context() as patch:
        patch.setattr("policies.ruleset.SCHEMA", earlier)
        patch.setattr("policies.engine.PRINCIPAL", "Study")
        desk.approve("ann")
    assert desk.approve("bob").state == Case.State.APPROVED
    assert replay(desk.site) == Replay(alike=1, other_rules=1, older=0, differs=())


def test_a_decision_that_was_interrupted_differs_from_nothing(decided: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    case = open_case(decided.site.home, decided.row)
    with monkeypatch.context() as patch:
        kill_before(PolicyDecision.objects, "create")(patch)
        with pytest.raises(Killed):
            compliance.decide(decided.site, case, "intake")
    assert replay(decided.site).differs == ()


def test_what_is_stored_reads_as_it_was_decided(decided: Desk) -> None:
    for row in PolicyDecision.objects.all():
        assert Decision.model_validate_json(json.dumps(row.record)).digest() == sha256_hex(canonical_json(row.record))
