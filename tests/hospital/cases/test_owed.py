"""What people decide on a case is logged once it is decided, once, and before anything is done by it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from datasites.control.syft import HospitalControl
from datasites.hospital import service as service_module
from datasites.hospital.audit.log import AuditLog
from datasites.hospital.budget import ledger
from datasites.hospital.budget.ledger import BudgetExceeded
from datasites.hospital.cases import consent, review
from datasites.hospital.cases.compliance import is_killed
from datasites.hospital.cases.owed import settle_all
from datasites.hospital.data.withdrawal import withdrawn
from datasites.hospital.evidence.export import export_evidence
from datasites.hospital.models import Case, Round
from datasites.hospital.rounds import lifecycle
from datasites.hospital.rounds.closing import closing_step
from datasites.hospital.rounds.failures import MOST, Failures
from datasites.hospital.rounds.run import StudyRun
from datasites.hospital.service import Service
from datasites.secagg.journal import Anchor
from datasites.study import letters
from datasites.study.audit_chain import AuditError, records
from tests.hospital.desk import Desk, turn
from tests.hospital.running import Running
from tests.kills import Killed, kill_before

KINDS = ("paused", "resumed", "rejoined", "revoked", "rejected")
#: What is done, in which state of the case, what the log says, and what becomes of the case.
ACTS: dict[str, tuple[Callable[..., Case], str, str]] = {
    "paused": (lifecycle.pause, "running", "paused"),
    "resumed": (lifecycle.resume, "stopped", "running"),
    "rejoined": (lifecycle.rejoin, "stopped", "running"),
    "revoked": (lifecycle.revoke, "running", "revoked"),
    "rejected": (partial(review.reject, message="not here"), "review", "rejected"),
}


def stands(desk: Desk, state: str) -> None:
    if state != "review":
        desk.agree()
        desk.approve("ann")
        desk.approve("bob")
    Case.objects.filter(pk=desk.row.pk).update(state=state, recorded_in_syft=True)


def said(desk: Desk) -> list[str]:
    """What the log says that people decided on the case; other tests wrote to the same log."""
    opened = [r for r in records(desk.site.home.audit) if r.seq > desk.begins]  # type: ignore[attr-defined]
    return [r.kind for r in opened if r.kind in KINDS and r.fields["case"] == desk.row.pk]


@pytest.fixture
def at(desk: Desk) -> Desk:
    desk.begins = desk.site.audit.head().seq  # type: ignore[attr-defined]
    return desk


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_log_says_was_decided_is_so_where_the_process_is_killed_right_then(
    at: Desk, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    act, before, after = ACTS[kind]
    stands(at, before)
    with monkeypatch.context() as patch:
        for name in ("append", "append_once"):
            inner = getattr(AuditLog, name)

            def dying(log: AuditLog, what: str, /, *, inner: Any = inner, **fields: Any) -> Any:
                found = inner(log, what, **fields)
                if what == kind:
                    raise Killed
                return found

            patch.setattr(AuditLog, name, dying)
        with pytest.raises(Killed):
            act(at.site, at.row.pk, at.login("ann"), "we said so")
    assert said(at) == [kind]
    assert Case.objects.get(pk=at.row.pk).state == after


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_decided_is_logged_by_the_service_where_that_was_interrupted(
    at: Desk,
    service: Service,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    act, before, after = ACTS[kind]
    stands(at, before)
    interrupted(at, act, monkeypatch)
    assert (said(at), Case.objects.get(pk=at.row.pk).state) == ([], after)
    for _ in range(2):
        turn(service)
    assert said(at) == [kind]


def interrupted(at: Desk, act: Callable[..., Case], monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the record."""
    with monkeypatch.context() as patch:
        kill_before(AuditLog, "append_once")(patch)
        with pytest.raises(Killed):
            act(at.site, at.row.pk, at.login("ann"), "we said so")


def test_the_next_decision_is_logged_after_the_one_before_it_also_in_the_same_words(
    at: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    stands(at, "running")
    for _ in range(2):
        interrupted(at, lifecycle.pause, monkeypatch)
        lifecycle.resume(at.site, at.row.pk, at.login("ann"), "we said so")
    assert said(at) == ["paused", "resumed"] * 2


def test_an_evidence_bundle_holds_what_was_decided_before_it(
    at: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stands(at, "running")
    interrupted(at, lifecycle.pause, monkeypatch)
    export_evidence(at.site, at.row.pk, tmp_path / "bundle.zip")
    assert said(at) == ["paused"]


def test_a_study_takes_no_step_before_the_log_holds_what_people_decided(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = running.desk
    at.begins = at.site.audit.head().seq  # type: ignore[attr-defined]
    Case.objects.filter(pk=running.row.pk).update(state=Case.State.STOPPED)
    interrupted(at, lifecycle.resume, monkeypatch)
    logged: list[list[str]] = []

    def first(*arguments: Any) -> bool:
        logged.append(said(at))
        return closing_step(*arguments)

    monkeypatch.setattr("datasites.hospital.rounds.run.closing_step", first)
    running.run.step()
    assert logged == [["resumed"]]


UNLOGGABLE = ("x" * 4001, "\U0001f600" * 4000)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decision_whose_record_the_log_would_not_take_is_none(
    at: Desk, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is done by it either: no reservation ends, no round is charged, none is tried again."""
    act, before, _ = ACTS[kind]
    if kind == "rejected":
        at.agree()
        at.approve("ann")
        with monkeypatch.context() as patch:
            kill_before(review, "settle_identity")(patch)
            with pytest.raises(Killed):
                at.approve("bob")
        assert lines(at)[-1] == "reserved", "an approval that was killed half-way"
    stands(at, before)
    failures = Failures(at.site.home, at.row.study_hash)
    for _ in range(MOST):
        failures.add(1)
    anchor = at.site.home.anchors / at.row.study_hash
    anchor.parent.mkdir(exist_ok=True)
    anchor.write_bytes(Anchor(epoch=0, last_round=1).canonical())
    known = lines(at)
    try:
        for reason in UNLOGGABLE:
            with pytest.raises(AuditError, match=kind):
                act(at.site, at.row.pk, at.login("ann"), reason)
        assert (Case.objects.get(pk=at.row.pk).state, lines(at), failures.of(1)) == (before, known, MOST)
        act(at.site, at.row.pk, at.login("ann"), "in words that it takes")
        assert said(at) == [kind]
    finally:
        anchor.unlink()


def test_an_approval_whose_record_the_log_would_not_take_reserves_nothing(at: Desk) -> None:
    at.agree()
    at.approve("ann")
    known = lines(at)
    for reason in UNLOGGABLE:
        with pytest.raises(AuditError, match="approved"):
            review.approve(at.site, at.row.pk, at.login("bob"), reason, at.row.approval_hash)
    assert lines(at) == known


def test_an_approval_for_which_there_is_no_budget_names_no_patient_column(
    at: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise BudgetExceeded("budget: no room")

    at.agree()
    at.approve("ann")
    monkeypatch.setattr(ledger, "reserve", refused)
    known = lines(at)
    with pytest.raises(BudgetExceeded):
        at.approve("bob")
    assert "identity_set" not in lines(at)[len(known) :]


def test_a_withdrawal_and_the_kill_switch_leave_nothing_in_words_that_the_log_would_not_take(at: Desk) -> None:
    home = at.site.home
    try:
        for reason in UNLOGGABLE:
            with pytest.raises(AuditError, match="withdrawn"):
                consent.withdraw(at.site, at.login("ann"), "heart", "CLEVELAND-0007", reason)
            with pytest.raises(AuditError, match="killed"):
                lifecycle.kill(at.site, at.login("ann"), reason)
        assert (withdrawn(home, "heart"), is_killed(home)) == (frozenset(), False)
    finally:
        (home.root / "KILLED").unlink(missing_ok=True)
        (home.withdrawals / "heart.json").unlink(missing_ok=True)


@pytest.mark.parametrize("where", ["owe", "settle", "release_what_is_left"])
def test_a_study_that_people_have_not_ended_keeps_its_reservation_wherever_a_revocation_is_killed(
    at: Desk,
    service: Service,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stands(at, "running")
    with monkeypatch.context() as patch:
        kill_before(lifecycle, where)(patch)
        with pytest.raises(Killed):
            lifecycle.revoke(at.site, at.row.pk, at.login("ann"), "enough")
    assert "reservation_released" not in lines(at)
    assert Case.objects.get(pk=at.row.pk).state == ("running" if where == "owe" else "revoked")
    turn(service)
    ends = [kind for kind in lines(at) if kind in ("reservation_released", "revoked")]
    assert ends == ([] if where == "owe" else ["revoked", "reservation_released"])
    assert (ledger.state(at.site.home.dataset("heart"))[0].committed == 0) == (where != "owe")


def sits_out(at: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Round 1, which people sit out; killed before the record."""
    Case.objects.filter(pk=at.row.pk).update(state="stopped")
    Round.objects.create(case=at.row, round=1, epoch=0, manifest_hash="", state=Round.State.CHARGED)
    interrupted(at, lifecycle.sit_out, monkeypatch)


@pytest.mark.parametrize("kind", ["paused", "revoked"])
def test_that_a_round_is_sat_out_is_logged_before_the_next_decision(
    at: Desk, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stands(at, "running")
    sits_out(at, monkeypatch)
    known = len(lines(at))
    ACTS[kind][0](at.site, at.row.pk, at.login("bob"), "enough")
    assert lines(at)[known : known + 2] == ["sat_out", kind]


def test_that_a_round_is_sat_out_stands_in_the_evidence(
    at: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stands(at, "running")
    sits_out(at, monkeypatch)
    export_evidence(at.site, at.row.pk, tmp_path / "bundle.zip")
    assert lines(at).count("sat_out") == 1


def test_that_a_round_is_sat_out_is_logged_before_the_study_is_closed(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The account that goes to the researcher then holds the head of a log that knows of it."""
    running.set_up()
    running.desk.row = running.row
    sits_out(running.desk, monkeypatch)
    close = letters.Close(rounds=1, heads=()).model_dump(mode="json")
    running.tell(letters.SETUP_ROUND, letters.CLOSE, close)
    while Case.objects.get(pk=running.row.pk).state != "closed":
        assert running.run.step()
    kinds = [r.kind for r in records(running.site.home.audit) if r.seq > running.begins]
    assert [kind for kind in kinds if kind in ("sat_out", "reservation_released", "closed")] == [
        "sat_out",
        "reservation_released",
        "closed",
    ]


def lines(at: Desk) -> list[str]:
    return [record.kind for record in records(at.site.home.audit) if record.seq > at.begins]  # type: ignore[attr-defined]


FORGED: dict[str, Any] = {
    "a party": {"kind": "pinned", "email": "x@x.example.org", "fingerprint": "00", "person": "bob"},
    "a budget": {"kind": "budget_settled", "population": "heart", "epsilon": 99.0, "delta": 0.1},
    "what was reserved": {"kind": "reservation_released", "population": "heart", "study": "0" * 64},
    "other patients": {"kind": "other_patients", "populations": ["heart", "heart-2"]},
    "the log's own": {"kind": "checkpoint"},
    "no kind": {"person": "bob"},
    "a kind that is none": {"kind": ["paused"]},
    "no record": ["paused"],
    "another case": {"case": 10**6},
    "more": {"email": "x@x.example.org"},
    "too long": {"reason": "x" * 4001},
    "no number": {"after": True},
    "not what was decided": {"kind": "revoked"},
    "not what was decided at all": {"kind": "resumed"},
}


@pytest.mark.parametrize("forged", FORGED)
def test_what_was_written_into_what_a_case_owes_is_not_signed_and_ends_no_service(
    at: Desk,
    service: Service,
    forged: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stands(at, "paused")
    true = {
        "kind": "paused",
        "case": at.row.pk,
        "person": "bob",
        "role": "steward",
        "reason": "so",
        "before": "running",
    }
    true["after"] = at.site.audit.head().seq
    what = FORGED[forged]
    owed = true | what if forged in list(FORGED)[-6:] else what
    Case.objects.filter(pk=at.row.pk).update(owed=owed)
    before = lines(at)
    settle_all(at.site)
    assert lines(at) == before
    assert f"case {at.row.pk}: the record that it has pending for the audit log is of no decision" in caplog.text
    Case.objects.filter(pk=at.row.pk).update(owed=owed)
    turn(service)
    assert (said(at), Case.objects.get(pk=at.row.pk).owed) == ([], {})
    lifecycle.resume(at.site, at.row.pk, at.login("ann"), "we said so")
    assert said(at) == ["resumed"]


def test_a_decision_is_logged_also_where_the_study_was_stopped_before_that(
    at: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a step that had begun."""
    stands(at, "paused")
    interrupted(at, lifecycle.resume, monkeypatch)
    Case.objects.filter(pk=at.row.pk).update(state="stopped")
    settle_all(at.site)
    assert said(at) == ["resumed"]


#: Where the service first acts on what was decided while it synced.
FIRST = {
    "rejected": (HospitalControl, "record_rejection"),
    "revoked": (service_module, "destroy_secrets"),
    "rejoined": (service_module, "give_up_keys"),
}


@pytest.mark.parametrize("kind", ["revoked", "rejoined"])
def test_a_study_is_let_go_of_once_the_log_holds_what_people_decided_during_a_sync(
    at: Desk,
    service: Service,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stands(at, "running")
    turn(service)
    act, before, _ = ACTS[kind]
    Case.objects.filter(pk=at.row.pk).update(state=before)
    held: list[list[str]] = []
    close = StudyRun.close

    def synced(_: HospitalControl) -> None:
        if not held and Case.objects.get(pk=at.row.pk).state == before:
            interrupted(at, act, monkeypatch)

    def closing(run: StudyRun, **options: bool) -> None:
        held.append(said(at))
        close(run, **options)

    monkeypatch.setattr(HospitalControl, "sync", synced)
    monkeypatch.setattr(StudyRun, "close", closing)
    turn(service)
    assert held == [[kind]]


@pytest.mark.parametrize("kind", FIRST)
def test_nobody_is_told_of_what_was_decided_during_a_sync_before_the_log_holds_it(
    at: Desk,
    service: Service,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    act, before, _ = ACTS[kind]
    stands(at, before)
    Case.objects.filter(pk=at.row.pk).update(recorded_in_syft=kind != "rejected")
    held: list[list[str]] = []

    def synced(_: HospitalControl) -> None:
        if not held and Case.objects.get(pk=at.row.pk).state == before:
            interrupted(at, act, monkeypatch)

    def first(*_: Any) -> None:
        held.append(said(at))

    monkeypatch.setattr(HospitalControl, "sync", synced)
    monkeypatch.setattr(*FIRST[kind], first)
    turn(service)
    assert held == [[kind]]
    assert Case.objects.get(pk=at.row.pk).owed == {}
