"""Denials: each refuses with its rule's name, and nothing is charged or released (I1, I2, I3, I14)."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from datasites.control.syft import SubmittedJob
from datasites.hospital.audit.log import AuditLog
from datasites.hospital.budget import ledger
from datasites.hospital.budget.ledger import BudgetExceeded
from datasites.hospital.cases import compliance, examination, review
from datasites.hospital.cases.case import open_case
from datasites.hospital.cases.compliance import Denied
from datasites.hospital.cases.freeze import FrozenCopyChanged
from datasites.hospital.cases.review import ReviewError
from datasites.hospital.config import Home
from datasites.hospital.models import Case, LedgerEntry, PolicyDecision, Review
from datasites.hospital.people.accounts import PersonError, identify
from datasites.hospital.people.agreements import terminate_agreement
from datasites.hospital.rounds import lifecycle
from datasites.hospital.site import Site
from datasites.privacy.accountant import epsilon_at_order, epsilon_pld
from policies.registry import RegistryFile
from tests.hospital.conftest import HEART
from tests.hospital.desk import PASSWORD, Desk, job
from tests.hospital.invited import enter


def test_two_people_of_two_roles_approve_and_the_budget_is_reserved(desk: Desk) -> None:
    desk.agree()
    assert desk.approve("ann").state == Case.State.REVIEW
    assert not LedgerEntry.objects.exists()
    assert desk.approve("bob").state == Case.State.APPROVED
    case = open_case(desk.site.home, desk.row)
    training = ledger.state(case.dataset)[0]
    assert training.spent == 0
    assert 2.99 < epsilon_pld([case.asked()["training"].event], case.study.privacy.delta) <= 3.0
    assert training.committed == epsilon_at_order([case.plan.event()], training.order, training.delta) <= training.cap
    kinds = [r["kind"] for r in audit_lines(desk) if r["kind"] in ("decision", "approved")]
    assert kinds[-4:] == ["decision", "approved", "decision", "approved"]


def audit_lines(desk: Desk) -> list[dict]:
    import json

    return [json.loads(line) for line in desk.site.home.audit.read_text().splitlines()]


def denied_by(desk: Desk, name: str) -> tuple[str, ...]:
    with pytest.raises(Denied) as caught:
        desk.approve(name)
    desk.nothing_happened()
    stored = PolicyDecision.objects.filter(action="approve").last()
    assert stored is not None
    assert not stored.allowed
    return caught.value.controls


def test_no_agreement_at_all(desk: Desk) -> None:
    assert set(denied_by(desk, "ann")) == {"baa", "irb", "purpose"}


def test_an_expired_baa(desk: Desk) -> None:
    yesterday = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1)
    desk.agree(expires=yesterday.isoformat())
    assert denied_by(desk, "ann") == ("baa",)


def test_a_service_that_no_baa_covers(desk: Desk) -> None:
    desk.agree(transport="backup")
    assert denied_by(desk, "ann") == ("baa",)


def test_an_agreement_that_nobody_confirmed(desk: Desk) -> None:
    desk.agree()
    registry = RegistryFile(desk.site.home.registry, "Cleveland")
    terms = registry.load().latest("baa-storage").terms.model_copy(update={"id": "baa-storage-2"})
    terminate_agreement(desk.site, desk.login("ann"), "baa-storage")
    registry.update(lambda r: r.enter(terms, "ann", datetime.date(2026, 1, 3)))
    assert denied_by(desk, "ann") == ("baa",)


def test_a_feature_beyond_the_minimum_necessary(desk: Desk) -> None:
    desk.agree(features=["age", "sex", "disease"])
    assert denied_by(desk, "ann") == ("purpose",)


def test_one_approver_twice(desk: Desk) -> None:
    desk.agree()
    desk.approve("ann")
    assert denied_by(desk, "ann") == ("people",)
    assert Review.objects.count() == 1


def test_two_approvers_of_one_role(desk: Desk) -> None:
    desk.agree()
    desk.approve("ann")
    assert denied_by(desk, "cyd") == ("people",)


def test_an_auditor_cannot_approve_and_a_wrong_password_is_nobody(desk: Desk) -> None:
    desk.agree()
    with pytest.raises(ReviewError, match="auditor"):
        desk.approve("dee")
    with pytest.raises(PersonError):
        identify("ann", "guess")
    desk.nothing_happened()


def test_a_changed_byte_in_the_frozen_copy(desk: Desk) -> None:
    desk.agree()
    desk.approve("ann")
    model = desk.site.home.frozen / desk.row.study_hash / "model.py"
    original = model.read_bytes()
    model.chmod(0o600)
    try:
        model.write_bytes(original.replace(b"tanh", b"relu"))
        with pytest.raises(FrozenCopyChanged, match="not what was approved"):
            desk.approve("bob")
        desk.nothing_happened()
        model.write_bytes(original)
        extra = model.with_name("run.sh")
        model.parent.chmod(0o700)
        extra.write_text("curl")
        with pytest.raises(FrozenCopyChanged):
            desk.approve("bob")
        extra.unlink()
        desk.nothing_happened()
    finally:
        model.write_bytes(original)
        model.chmod(0o400)
    assert desk.approve("bob").state == Case.State.APPROVED


def test_records_that_changed_since_they_were_shown(desk: Desk) -> None:
    """Another data version is another approval hash: the frozen control denies."""
    desk.agree()
    prepared = desk.site.home.prepared / desk.row.study_hash / "prepared.json"
    original = prepared.read_text()
    try:
        prepared.write_text(swapped(original))
        assert denied_by(desk, "ann") == ("code",)
    finally:
        prepared.write_text(original)


def swapped(text: str) -> str:
    import json

    value = json.loads(text)
    value["content_hash"] = "0" * 64
    return json.dumps(value)


def test_an_exhausted_budget(desk: Desk) -> None:
    desk.agree()
    case = open_case(desk.site.home, desk.row)
    ledger.reserve(desk.site, case.dataset, "e" * 64, case.asked())
    with pytest.raises(Denied) as caught:
        desk.approve("ann")
    assert caught.value.controls == ("budget",)
    assert LedgerEntry.objects.exclude(study_hash="e" * 64).count() == 0


def test_a_budget_that_runs_out_between_the_two_approvals(desk: Desk) -> None:
    desk.agree()
    desk.approve("ann")
    case = open_case(desk.site.home, desk.row)
    before = compliance.decide
    ledger.reserve(desk.site, case.dataset, "e" * 64, case.asked())
    with pytest.raises((Denied, BudgetExceeded)):
        desk.approve("bob")
    assert compliance.decide is before
    assert Review.objects.count() == 1
    desk.row.refresh_from_db()
    assert desk.row.state == Case.State.REVIEW


def test_an_approval_of_a_hash_that_was_not_shown(desk: Desk) -> None:
    desk.agree()
    with pytest.raises(ReviewError, match="changed since you read it"):
        review.approve(desk.site, desk.row.pk, desk.login("ann"), "read it", "0" * 64)
    desk.nothing_happened()


def test_pause_resume_revoke_and_kill(desk: Desk) -> None:
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")
    assert lifecycle.pause(desk.site, desk.row.pk, desk.login("bob"), "question").state == Case.State.PAUSED
    assert lifecycle.resume(desk.site, desk.row.pk, desk.login("ann"), "answered").state == Case.State.RUNNING
    lifecycle.kill(desk.site, desk.login("ann"), "incident")
    assert compliance.is_killed(desk.site.home)
    row = Case.objects.get(pk=desk.row.pk)
    decision = compliance.decide(desk.site, open_case(desk.site.home, row), "run_round")
    assert "state" in decision.controls
    with pytest.raises(ReviewError):
        lifecycle.unkill(desk.site, desk.login("dee"), "over")
    lifecycle.unkill(desk.site, desk.login("bob"), "over")
    assert lifecycle.revoke(desk.site, desk.row.pk, desk.login("bob"), "withdrawn").state == Case.State.REVOKED
    assert ledger.state(desk.site.home.dataset("heart"))[0].committed == 0
    with pytest.raises(ReviewError):
        lifecycle.resume(desk.site, desk.row.pk, desk.login("ann"), "no")


def test_a_rejection_needs_a_reason_and_is_final(desk: Desk) -> None:
    with pytest.raises(ReviewError, match="reason"):
        review.reject(desk.site, desk.row.pk, desk.login("ann"), " ", message="not here")
    for told in (" ", "x" * 1901):
        with pytest.raises(ReviewError, match="a message for the researcher"):
            review.reject(desk.site, desk.row.pk, desk.login("ann"), "too broad", message=told)
    rejected = review.reject(desk.site, desk.row.pk, desk.login("ann"), "too broad", message="not here")
    assert rejected.state == Case.State.REJECTED
    desk.agree()
    with pytest.raises(ReviewError):
        desk.approve("bob")


@pytest.mark.parametrize(
    ("submitted", "words"),
    [
        (lambda: job(**{"run.sh": b"curl"}), "run.sh"),
        (lambda: job(**{"study.toml": b"name = 1"}), "study.toml"),
        (lambda: job(**{"study.toml": job().files["study.toml"].replace(b'title = "', b'title = "\\u202e')}), "U+202E"),
        (lambda: job(**{"../../keys": b"x"}), "keys"),
        (lambda: SubmittedJob("heart-9", "stranger@x.org", job().files, "pending", ""), "stranger@x.org"),
    ],
)
def test_what_is_not_a_study_of_this_hospital_is_refused_with_its_reason(
    furnished: Home, database: Home, submitted: Any, words: str
) -> None:
    row = examination.admit(Site.open(furnished.root), submitted())
    assert row.state == Case.State.REFUSED
    assert words in row.note


def test_code_with_a_finding_is_shown_but_can_not_be_approved(database: Home, furnished: Home) -> None:
    source = b"import os\n" + (HEART / "study" / "model.py").read_bytes()
    site = Site.open(furnished.root)
    row = examination.admit(site, job(**{"model.py": source}))
    assert row.state == Case.State.REVIEW
    assert row.findings
    assert row.rehearsal == {}
    assert "code" in row.note


def test_nobody_reviews_their_own_submission_under_another_name(desk: Desk) -> None:
    """The policies compare addresses: a person's name says nothing of who they are."""
    desk.agree()
    enter(desk.site, "gil", "steward", PASSWORD, "Researcher@University.example.org")
    with pytest.raises(Denied, match="PEOPLE: .*is the study's researcher"):
        desk.approve("gil")
    desk.nothing_happened()


def test_the_kill_switch_is_on_the_disk_before_the_log_says_so(
    desk: Desk, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves no datasite running that its log calls killed."""
    home, append, before = desk.site.home, AuditLog.append, list[Path]()

    def noted(log: AuditLog, kind: str, /, **fields: Any) -> Any:
        if kind == "killed":
            before.extend(map(Path, synced))
        return append(log, kind, **fields)

    monkeypatch.setattr(AuditLog, "append", noted)
    try:
        lifecycle.kill(desk.site, desk.login("ann"), "stop")
        assert (home.root / "KILLED").read_text() == "ann: stop\n"
        file, folder = before
        assert (file.parent, folder) == (home.root, home.root)
        assert file.name.startswith("KILLED")
    finally:
        (home.root / "KILLED").unlink(missing_ok=True)
