"""The service goes on whatever one study, one party or one submission does; what has ended keeps no secrets."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from datasites.control import mocks
from datasites.control.syft import HospitalControl
from datasites.hospital import service as service_module
from datasites.hospital.cases import examination
from datasites.hospital.cases.case import records_folder
from datasites.hospital.config import Home
from datasites.hospital.evidence.export import export_evidence
from datasites.hospital.models import Case, Round
from datasites.hospital.rounds import lifecycle
from datasites.hospital.rounds.journals import destroy_secrets, give_up_keys, journal_of
from datasites.hospital.rounds.run import StudyRun
from datasites.hospital.service import LONGEST_REST, REVOKED, Service
from datasites.hospital.setup import open_control
from datasites.hospital.site import Site
from datasites.privacy import plan
from datasites.secagg.errors import JournalRolledBack
from datasites.secagg.journal import Journal
from datasites.study import manifest
from datasites.study.audit_chain import AuditError, records
from datasites.study.errors import InputError
from datasites.study.roster import Roster, RosterEntry
from datasites.transport.store import Store
from policies.ruleset import RuleError
from tests.hospital.desk import Desk, end, job, turn
from tests.hospital.running import Running
from tests.polling import until
from tests.study.entries import stranger
from tests.transport.clock import Hands


@pytest.mark.parametrize(("folder", "early"), [("p2p", True), ("mail", False)])
def test_what_comes_for_syft_is_not_kept_waiting_for_the_next_sync(
    desk: Desk, service: Service, monkeypatch: pytest.MonkeyPatch, folder: str, early: bool
) -> None:
    """But a flood of it makes no more than four syncs of one."""
    clock, syncs = Hands(monkeypatch, service_module), []

    def wait(store: Store, folders: list[str], *_: object, **__: object) -> bool:
        (control,) = [name for name in folders if name.startswith("p2p/")]
        store.put(f"{control if folder == 'p2p' else folder}/something-{clock.now}", b"new")
        return True

    monkeypatch.setattr(HospitalControl, "sync", lambda _: syncs.append(clock.now))
    monkeypatch.setattr(Store, "wait", wait)
    began, pace = clock.now, desk.site.home.settings.control_seconds
    for part in (0.0, 0.1, 0.24, 0.26, 1.1):
        clock.now = began + part * pace
        turn(service, sync=False)
    assert syncs == [began + part * pace for part in ((0.0, 0.26, 1.1) if early else (0.0, 1.1))]


def contained(home: Home, what: str) -> list[str]:
    found = [r.fields for r in records(home.audit) if r.kind == "contained"]
    return [str(fields["reason"]) for fields in found if str(fields["what"]).startswith(what)]


def offering(desk: Desk, *names: str) -> Site:
    """The same datasite with a mock of its own, under each of these names."""
    settings = desk.site.home.settings
    (desk.site.home.root / "mock.csv").write_bytes(b"age\n50\n")
    datasets = [settings.datasets[0].model_copy(update={"name": name, "mock": Path("mock.csv")}) for name in names]
    return replace(desk.site, home=replace(desk.site.home, settings=settings.model_copy(update={"datasets": datasets})))


def published(desk: Desk) -> list[Path]:
    """Folders of this hospital's mocks in its store."""
    return sorted(Path(desk.site.home.settings.store, "collections", desk.site.identity.email).iterdir())


def serve_once(site: Site, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Start the service, let it have one turn, once `meanwhile` has happened, and end it."""
    stop, step = threading.Event(), Service.step

    def last(service: Service, stop: threading.Event) -> None:
        meanwhile()
        stop.set()
        step(service, stop, sync=True)

    with monkeypatch.context() as patch:
        patch.setattr(Service, "step", last)
        Service(site).serve(stop)


def test_the_mock_of_a_dataset_that_is_no_longer_in_the_settings_leaves_the_store(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_once(offering(desk, "heart", "old"), monkeypatch)
    assert sum("_old_" in folder.name for folder in published(desk)) == 1
    serve_once(offering(desk, "heart"), monkeypatch)
    (left,) = published(desk)
    assert "_old_" not in left.name


@pytest.mark.parametrize("obstructed", ["the mock's place", "another version"])
def test_a_mock_that_can_not_be_put_keeps_no_hospital_from_starting(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, obstructed: str
) -> None:
    clock = Hands(monkeypatch, mocks)
    site = offering(desk, "heart")
    serve_once(site, monkeypatch)
    (mock,) = published(desk)
    link = mock
    if obstructed == "another version":
        link = mock.with_name(mock.name[:-12] + 12 * "0")
    else:
        shutil.rmtree(mock)
    link.symlink_to(tmp_path)

    def free() -> None:
        link.unlink()
        clock.now += mocks.LOOKS_EVERY

    try:
        serve_once(site, monkeypatch, free)
    finally:
        if link.is_symlink():
            link.unlink()
    assert (mock / "mock.csv").read_bytes() == b"age\n50\n"
    assert list(tmp_path.iterdir()) == []


def test_a_researcher_is_told_that_an_approval_was_revoked_and_not_why(
    desk: Desk,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")
    told: list[tuple[str, str]] = []
    for kind in ("approval", "revocation"):
        monkeypatch.setattr(
            HospitalControl, f"record_{kind}", lambda _, job, reason, by, kind=kind: told.append((kind, reason))
        )
    turn(service)
    lifecycle.pause(desk.site, desk.row.pk, desk.login("ann"), "a question")
    turn(service)
    lifecycle.revoke(desk.site, desk.row.pk, desk.login("ann"), "for our own eyes")
    for _ in range(2):
        turn(service)
    assert told == [("approval", f"approved {desk.row.approval_hash}"), ("revocation", REVOKED)]


def test_what_is_decided_while_a_researcher_is_told_is_told_next(
    desk: Desk,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")
    told: list[str] = []

    def approved(*_: object) -> None:
        told.append("approval")
        lifecycle.revoke(desk.site, desk.row.pk, desk.login("ann"), "over")

    monkeypatch.setattr(HospitalControl, "record_approval", approved)
    monkeypatch.setattr(HospitalControl, "record_revocation", lambda *_: told.append("revocation"))
    for _ in range(2):
        turn(service)
    assert told == ["approval", "revocation"]


def test_an_entry_without_syft_fingerprint_costs_that_party_only(desk: Desk, service: Service) -> None:
    turn(service)
    assert "no syft fingerprint" in contained(desk.site.home, "party researcher@university.example.org")[-1]


def test_an_error_in_one_study_is_written_once_without_its_words_and_the_study_rests(
    desk: Desk,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")
    Case.objects.filter(pk=desk.row.pk).update(recorded_in_syft=True)
    steps, value = [], "Mrs Smith"

    def broken(run: StudyRun) -> bool:
        steps.append(1)
        raise TypeError(f"could not convert {value!r}")

    monkeypatch.setattr(StudyRun, "step", broken)
    clock = Hands(monkeypatch, service_module)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            clock.now += LONGEST_REST
            turn(service)
    assert not contained(desk.site.home, f"case {desk.row.pk}"), (
        "heads leave, and where rows are at work errors may tell of them"
    )
    assert len(steps) == 3, "once in each turn, when it has rested"
    assert "Smith" not in caplog.text
    assert "in broken" in caplog.text
    turn(service)
    turn(service)
    assert len(steps) == 3, "it rests after an error"


def test_a_damaged_audit_log_still_ends_the_service(
    desk: Desk,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")

    def damaged(run: StudyRun) -> bool:
        raise AuditError("record 7 is not the one that its head signs")

    monkeypatch.setattr(StudyRun, "step", damaged)
    with pytest.raises(AuditError):
        turn(service)


def test_a_submission_that_can_not_be_admitted_holds_up_no_other(
    desk: Desk, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    jobs = [dataclasses.replace(job(), name=f"job-{number}") for number in range(3)]
    monkeypatch.setattr(
        HospitalControl,
        "next_job",
        lambda _, known, order: next((j for j in jobs if (j.name, j.submitted_by) not in known), None),
    )
    seen: list[str] = []

    def admit(site: Site, submitted: object, halt: object) -> Case:
        name = submitted.name  # type: ignore[attr-defined]
        seen.append(name)
        if name == "job-0":
            raise RecursionError
        return Case.objects.create(study_hash="0" * 64, job_name=name, submitted_by=jobs[0].submitted_by)

    monkeypatch.setattr(examination, "admit", admit)
    until(lambda: turn(service) or len(seen) == len(jobs))
    assert seen == ["job-0", "job-1", "job-2"]
    assert contained(desk.site.home, "submission job-0")


def test_a_mock_that_is_not_there_is_named(desk: Desk, service: Service) -> None:
    mock = desk.site.home.root / "data" / "mock.csv"
    aside = mock.rename(mock.with_suffix(".aside"))
    try:
        with pytest.raises(InputError, match=r"mock\.csv: no such file"):
            service.serve(threading.Event())
    finally:
        aside.rename(mock)


def test_a_rule_that_permits_keeps_the_datasite_from_starting(desk: Desk) -> None:
    rule = desk.site.home.local_rules / "open.cedar"
    rule.write_text("permit (principal, action, resource);")
    try:
        with pytest.raises(RuleError):
            Service(desk.site)
    finally:
        rule.unlink()


def test_a_study_that_was_approved_before_a_bound_was_set_goes_on(
    desk: Desk,
    service: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")
    for module in (manifest, examination, plan):
        monkeypatch.setattr(module, "MOST_STEPS", 10)
    turn(service)
    assert Case.objects.get(pk=desk.row.pk).state in Case.ACTIVE
    assert [check.found for check in export_evidence(desk.site, desk.row.pk, tmp_path / "b.zip") if not check.ok] == []


def test_a_study_that_has_ended_keeps_no_keys_and_no_rows(desk: Desk, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    running = Running(desk, tmp_path)
    rows = records_folder(desk.site.home, running.study_hash) / "records.npz"
    kept = rows.read_bytes()
    journal, anchor = journal_of(desk.site.home, running.study_hash)
    try:
        running.set_up()
        running.run.close()
        assert any((journal / "parts").iterdir())
        assert lifecycle.revoke(desk.site, desk.row.pk, desk.login("ann"), "over").state == Case.State.REVOKED
        assert destroy_secrets(desk.site, desk.row)
        assert not rows.exists()
        assert [path.name for path in journal.rglob("*") if path.is_file()] == ["lock"]
        assert not destroy_secrets(desk.site, desk.row)
        assert len(running.logged("secrets_destroyed")) == 1
        with Journal(journal, anchor) as again:
            assert again.floor[0] == 0, "no epoch that was reached can be set up again"
    finally:
        running.end()
        rows.write_bytes(kept)


@pytest.mark.parametrize("typed", ["a stranger", "other keys of syft"])
def test_what_is_typed_into_the_roster_file_makes_nobody_a_peer(
    desk: Desk, service: Service, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    """Neither while the datasite runs nor at its next start; a party whose keys were typed over gets nothing."""
    home = desk.site.home
    before = home.roster.read_bytes()
    roster = Roster.parse(before)
    honest = next(entry for entry in roster.entries if entry.role == "researcher")
    peers: list[set[RosterEntry]] = []
    pin = HospitalControl.pin

    def noted(control: HospitalControl, roster: Roster) -> None:
        peers.append(set(roster.entries))
        pin(control, roster)

    def opened(identity: object, box: object, store: object, state: object, roster: Roster) -> None:
        peers.append(set(roster.entries))

    monkeypatch.setattr(HospitalControl, "pin", noted)
    turn(service)
    pinned = peers[-1]
    assert honest in pinned
    try:
        if typed == "a stranger":
            Roster(entries=(*roster.entries, stranger())).save(home.roster)
        else:
            other = honest.model_copy(update={"syft_fingerprint": "ab" * 20})
            Roster(entries=(*roster.without(honest.email).entries, other)).save(home.roster)
            pinned = pinned - {honest}
        turn(service)
        assert peers[-1] == pinned
        with monkeypatch.context() as patch:
            patch.setattr(HospitalControl, "open", opened)
            open_control(desk.site)
        assert peers[-1] == pinned
        Roster.parse(before).save(home.roster)
        turn(service)
        assert honest in peers[-1]
    finally:
        home.roster.write_bytes(before)


def test_a_stopped_study_rejoins_in_a_new_epoch(desk: Desk, tmp_path, service: Service) -> None:  # type: ignore[no-untyped-def]
    """A backup without anchors: the study stops, resuming stops it again, and rejoining is the way back."""
    running = Running(desk, tmp_path)
    try:
        running.set_up()
        running.open(1)
        running.steps()
        running.run.close()
        _, anchor = journal_of(desk.site.home, running.study_hash)
        anchor.unlink()
        with pytest.raises(JournalRolledBack):
            running.restart()
        turn(service)
        assert Case.objects.get(pk=desk.row.pk).state == Case.State.STOPPED
        lifecycle.resume(desk.site, desk.row.pk, desk.login("ann"), "once more")
        turn(service)
        assert Case.objects.get(pk=desk.row.pk).state == Case.State.STOPPED
        lifecycle.rejoin(desk.site, desk.row.pk, desk.login("ann"), "restored from the backup")
        turn(service)
        row = Case.objects.get(pk=desk.row.pk)
        assert (row.state, row.rejoins) == (Case.State.RUNNING, False)
        end(service)
        running.restart()
        assert running.journal.floor == (0, 1)
        running.set_up(epoch=1, first_round=2)
        running.open(2)
        running.steps()
        assert running.heard(2, "masked")
        assert Round.objects.get(round=1).state == Round.State.RELEASED
    finally:
        running.end()


def test_keys_that_an_unknown_anchor_guards_are_given_up_above_all_known_rounds(desk: Desk) -> None:
    Round.objects.create(case=desk.row, round=7, epoch=2, manifest_hash="")
    journal, anchor = journal_of(desk.site.home, desk.row.study_hash)
    try:
        give_up_keys(desk.site.home, desk.row.study_hash)
        with Journal(journal, anchor) as again:
            assert again.floor == (2, 7)
    finally:
        anchor.unlink()
