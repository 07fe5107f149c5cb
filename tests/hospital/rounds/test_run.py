"""A running study under bad luck and bad neighbours: outages, kills, forged files, revoked parties, failed probes."""

from __future__ import annotations

import dataclasses
import datetime
import json
from types import SimpleNamespace
from typing import Any

import pytest

from datasites.enclave.worker_client import Worker, WorkerRefused
from datasites.hospital.audit.log import AuditLog
from datasites.hospital.budget import ledger, ledger_log, pending
from datasites.hospital.cases.case import OpenCase, open_case
from datasites.hospital.cases.worker import start_worker
from datasites.hospital.models import Case, Round
from datasites.hospital.people.agreements import terminate_agreement
from datasites.hospital.rounds.journals import destroy_secrets
from datasites.hospital.rounds.row_work import RowWork
from datasites.secagg.journal import Journal
from datasites.study import letters
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.manifest import RoundManifest
from datasites.transport.mailroom import Mailroom, letter_folder
from datasites.transport.store import Store, StoreError
from datasites.transport.store_errors import StoreUnreachable
from tests.hospital.running import OWN, RESEARCHER, Running, killed, killed_in, today
from tests.kills import Killed

pytestmark = pytest.mark.waits


class Outage:
    """Puts of letters whose name holds `part` fail until `over`."""

    def __init__(self, patch: pytest.MonkeyPatch, part: str) -> None:
        self.part, self.over = part, False
        put = Store.put

        def failing(store: Store, key: str, *arguments: object, **options: object) -> object:
            if not self.over and self.part in key:
                raise StoreUnreachable("the share is not mounted")
            return put(store, key, *arguments, **options)  # type: ignore[arg-type]

        patch.setattr(Store, "put", failing)


def test_a_round_from_setup_to_account(running: Running) -> None:
    running.set_up()
    manifest = running.open(1)
    running.steps()
    running.survive(manifest)
    running.steps()
    assert running.heard(1, letters.UNMASK)
    (unmasked,) = running.logged("unmasked")
    assert unmasked.fields["survivors"] == 4
    running.tell(0, letters.CLOSE, {"rounds": 1})
    running.steps()
    assert running.heard(0, letters.ACCOUNT)
    assert Case.objects.get(pk=running.row.pk).state == Case.State.CLOSED


def test_what_is_logged_before_it_is_done_is_logged_once_however_that_is_killed(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.set_up()
    manifest = running.open(1)
    running.steps()
    running.survive(manifest)
    killed_in(running, monkeypatch, "datasites.hospital.rounds.release.Journal.commit")
    assert running.heard(1, letters.UNMASK)
    running.tell(0, letters.CLOSE, {"rounds": 1})
    killed_in(running, monkeypatch, "datasites.hospital.rounds.closing.letters.PrivacyStatement")
    assert running.heard(0, letters.ACCOUNT)
    running.run.close(wait=True)
    row = Case.objects.get(pk=running.row.pk)
    monkeypatch.setattr(
        "datasites.hospital.rounds.journals.PREPARED_FILE", "of this test alone"
    )  # others need the rows
    with monkeypatch.context() as patch:
        patch.setattr("datasites.hospital.rounds.journals.give_up_keys", killed)
        with pytest.raises(KeyboardInterrupt):
            destroy_secrets(running.site, row)
    assert destroy_secrets(running.site, row)
    for kind in ("released", "unmasked", "closed", "secrets_destroyed"):
        assert len(running.logged(kind)) == 1, kind


def test_a_round_is_charged_before_it_trains(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends a round from then on, the ledger and the audit log hold its price (I5)."""
    trained, charged_by_then = RowWork._train, []

    def train(
        work: RowWork, worker: Worker, case: OpenCase, manifest: RoundManifest, parameters: Any, key: bytes
    ) -> Any:
        paid = ledger.is_charged(
            ledger.study_account(case.dataset, running.study_hash), manifest.round, case.round_asked(manifest)
        )
        charged_by_then.append((paid, len(running.logged("charged"))))
        return trained(work, worker, case, manifest, parameters, key)

    monkeypatch.setattr(RowWork, "_train", train)
    running.set_up()
    running.open(1)
    running.steps()
    assert charged_by_then == [(True, 1)]
    assert running.heard(1, letters.MASKED)


def test_a_frozen_copy_that_was_changed_between_two_rounds_runs_no_more(running: Running) -> None:
    """What was approved is looked at again before each round is charged (I1)."""
    running.set_up()
    running.open(1)
    running.steps()
    assert running.heard(1, letters.MASKED)
    model = running.site.home.frozen / running.study_hash / "model.py"
    original = model.read_bytes()
    try:
        model.chmod(0o600)
        model.write_bytes(original.replace(b"tanh", b"relu"))
        running.open(2)
        running.steps()
    finally:
        model.write_bytes(original)
        model.chmod(0o400)
    answer = running.heard(2, letters.ABSTAINED)
    assert answer is not None
    assert answer.body == {"outcome": "denied", "controls": ["code-frozen"]}, "the control, and no word of why"
    assert running.heard(2, letters.MASKED) is None
    assert len(running.logged("charged")) == 1
    assert "not what was approved" in Round.objects.get(round=2).reason


@pytest.mark.parametrize("name", ["99999999.round", "00000017.round", "00000001.round", "00000000.offer-9", "x.round"])
def test_a_file_that_is_no_letter_stops_nothing(running: Running, name: str) -> None:
    running.store.put(f"{letter_folder(running.study_hash, OWN)}/{name}.{RESEARCHER}", b"no letter")
    running.set_up()
    running.open(1)
    running.steps()
    assert running.heard(1, letters.MASKED)


def test_a_researcher_who_is_not_trusted_any_more_costs_only_their_letters(running: Running) -> None:
    running.set_up()
    running.open(1)
    running.sealers[OWN].pin(running.roster.without(RESEARCHER))
    for _ in range(3):
        running.steps()
    assert len(running.logged("letter_rejected")) <= 3
    size = running.site.home.audit.stat().st_size
    running.steps()
    assert running.site.home.audit.stat().st_size == size
    running.sealers[OWN].pin(running.roster)
    running.steps()
    assert running.heard(1, letters.MASKED)


def test_a_peer_whose_keys_were_replaced_gets_no_shares_and_stops_nobody(running: Running) -> None:
    va = "datasite@va.example.org"
    good, running.bundles[va] = running.bundles[va], running.bundles[RESEARCHER]
    with pytest.raises(AssertionError):
        running.set_up()
    assert running.heard(0, letters.shares_kind(0), "datasite@hungary.example.org")
    assert running.heard(0, letters.shares_kind(0), va) is None
    running.bundles[va] = good
    running.steps()
    assert running.heard(0, letters.shares_kind(0), va)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("part", ["certificate-0", "shares-0", "ready-0", "masked", "unmask"])
def test_what_the_store_did_not_take_is_sent_again(
    running: Running, monkeypatch: pytest.MonkeyPatch, part: str, restart: bool
) -> None:
    """Whatever the journal holds and nobody has had is owed, after an outage as after a restart; a release once."""
    outage = Outage(monkeypatch, f".{part}.{OWN}")
    ran = running.run.step

    def again() -> bool:
        try:
            return ran()
        except StoreError:
            outage.over = True
            if restart:
                return running.restart().step()
            return True

    running.run.step = again  # type: ignore[method-assign]
    running.set_up()
    manifest = running.open(1)
    running.steps()
    running.survive(manifest)
    running.steps()
    assert outage.over
    assert running.heard(1, letters.UNMASK)
    assert running.heard(1, letters.ABSTAINED) is None
    assert len(running.logged("released")) == 1
    assert Round.objects.get().state == Round.State.UNMASKED


def test_an_abstention_is_sent_again(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running.set_up()
    running.open(2, letter_round=1)
    outage = Outage(monkeypatch, ".abstained.")
    read, holds = [], AuditLog.holds
    monkeypatch.setattr(AuditLog, "holds", lambda *a, **fields: read.append(a) or holds(*a, **fields))
    for _ in range(5):
        with pytest.raises(StoreError):
            running.steps()
    kinds = [kind for _, kind in read]
    assert kinds == ["released", "abstained"], "the whole log, each time that somebody keeps the letter from going out"
    assert len(running.logged("abstained")) == 1
    outage.over = True
    running.restart()
    running.steps()
    letter = running.heard(1, letters.ABSTAINED)
    assert letter is not None
    assert letter.body == {"outcome": "failed", "controls": []}
    assert "manifest of round 2" in Round.objects.get().reason
    assert not ledger.study_account(running.case.dataset, running.study_hash).charged_events("training")


@pytest.mark.parametrize("rule", ["dependent-rows", "monkey-patch", "model-error"])
def test_work_on_rows_that_fails_stops_the_study_and_tells_nobody_outside(
    running: Running, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    """An abstention, or a record in the log whose head leaves, would say something of the rows (I16)."""

    def refuse(*_: object) -> object:
        raise WorkerRefused("a row's output depends on other rows", rule=rule)

    monkeypatch.setattr(RowWork, "_train", refuse)
    running.set_up()
    running.open(1)
    running.steps()
    assert running.heard(1, letters.ABSTAINED) is None
    assert running.heard(1, letters.MASKED) is None
    assert not running.logged("stopped")
    assert not running.logged("abstained")
    assert rule in Round.objects.get().reason
    row = Case.objects.get(pk=running.row.pk)
    assert row.state == Case.State.STOPPED
    assert rule in row.note
    running.open(2)
    running.steps()
    assert running.heard(2, letters.MASKED) is None
    assert not Round.objects.filter(round=2).exists()


@pytest.mark.parametrize("restart", [False, True])
def test_a_study_closes_once_whatever_the_store_does(
    running: Running, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    running.tell(0, letters.CLOSE, {"rounds": 0})
    outage = Outage(monkeypatch, ".account.")
    for _ in range(2):
        with pytest.raises(StoreError):
            running.run.step()
        if restart:
            running.restart()
    # Other records in between move the head that a second account would have.
    running.site.audit.append("started", pid=1)
    outage.over = True
    running.steps()
    assert Case.objects.get(pk=running.row.pk).state == Case.State.CLOSED
    assert running.heard(0, letters.ACCOUNT)


@pytest.mark.parametrize("value", [2.0**21, -(2.0**21), float("nan"), float("inf")])
def test_a_model_beyond_the_bound_is_answered_before_rows_are_looked_at(running: Running, value: float) -> None:
    """Refused on rows, the study would stop in silence; this follows from the letter alone."""
    running.set_up()
    running.open(1, value=value)
    running.steps()
    letter = running.heard(1, letters.ABSTAINED)
    assert letter is not None
    assert letter.body == {"outcome": "failed", "controls": []}
    assert "not finite or beyond" in Round.objects.get().reason
    assert not running.logged("charged")
    assert Case.objects.get(pk=running.row.pk).state == Case.State.APPROVED


def test_an_epoch_of_fewer_hospitals_than_the_approved_threshold_is_refused_once(running: Running) -> None:
    running.offer(left_out=running.case.study.cohort.hospitals[2:])
    for _ in range(3):
        running.steps()
    (refused,) = running.logged("setup_refused")
    assert "2 hospitals" in str(refused.fields["reason"])
    assert "holds 3 or more" in str(refused.fields["reason"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"first_round": 1, "last_round": 102}, "trains at most 100 rounds"),
        ({"expires": today() + datetime.timedelta(days=8)}, "at most 7 days"),
        ({"left_out": ["x@other.example.org"]}, "x@other.example.org: not in the cohort"),
    ],
)
def test_an_offer_that_the_approved_study_does_not_cover_is_refused(
    running: Running, monkeypatch: pytest.MonkeyPatch, change: dict, words: str
) -> None:
    long = running.case.study.model_copy(update={"rounds": 500})
    monkeypatch.setattr(type(running.case), "study", long)
    running.offer(**{"last_round": 5, **change})
    running.steps()
    (refused,) = running.logged("setup_refused")
    assert words in str(refused.fields["reason"])
    assert running.heard(letters.SETUP_ROUND, letters.certificate_kind(0)) is None


@pytest.mark.parametrize(
    ("place", "written"), [(1, False), (1, True), (2, True), (3, True)], ids=["offer", "certificate", "shares", "peers"]
)
def test_a_hospital_killed_where_one_epoch_follows_another_goes_on_in_the_new_one(
    running: Running, monkeypatch: pytest.MonkeyPatch, place: int, written: bool
) -> None:
    """Keys of two epochs never lie in one journal, and no kill between them leaves a hospital in neither."""
    running.set_up()
    manifest = running.open(1)
    running.steps()
    running.survive(manifest)
    running.steps()
    old = running.journal.state
    assert old is not None

    commit, count, ran = Journal.commit, 0, running.run.step

    def killing(journal: Journal, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == place and not written:
            raise Killed
        commit(journal, *arguments)
        if count == place:
            raise Killed

    def again() -> bool:
        try:
            return ran()
        except Killed:
            return running.restart().step()

    monkeypatch.setattr(Journal, "commit", killing)
    running.run.step = again  # type: ignore[method-assign]
    running.set_up(epoch=1, first_round=2)
    assert count >= place, "it was killed"
    state = running.journal.state
    assert state is not None
    assert state.epoch == 1
    assert {secret.round for secret in state.secrets} == set(range(2, running.case.study.rounds + 2))
    assert state.certificate != old.certificate
    assert state.hpke_private == b""
    running.open(2)
    running.steps()
    assert not [kind for _, kind, _ in running.run._post.mailbox() if letters.setup_epoch(kind)], "collected"
    assert running.heard(2, letters.MASKED)


def test_a_worker_whose_model_has_another_size_than_approved_is_refused(running: Running) -> None:
    """A build_model that builds something larger once it is approved decides no size here."""
    case = open_case(running.site.home, running.row)
    terms = case.approval_terms.model_copy(update={"parameters": case.approval_terms.parameters + 1})
    with start_worker(running.site, case, {}, 60.0) as worker:
        assert worker.description.count == case.approval_terms.parameters
    with pytest.raises(WorkerRefused, match=f"approved with {terms.parameters}"):
        start_worker(running.site, dataclasses.replace(case, approval_terms=terms), {}, 60.0)


def test_without_a_sandbox_no_worker_is_started_or_kept_for_a_study_while_nobody_accepts_that(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor in the span before a round, in which none is decided on: it was approved while there was a sandbox."""
    begun: list[SimpleNamespace] = []

    def start(*_: object, **__: object) -> SimpleNamespace:
        worker = SimpleNamespace(alive=True, close=lambda: None)
        worker.kill = lambda **_: setattr(worker, "alive", False)
        begun.append(worker)
        return worker

    monkeypatch.setattr(Worker, "start", start)
    running.site = running.desk.without_sandbox()
    running.restart()
    running.set_up()
    assert begun == []
    running.open(1)
    running.steps()
    letter = running.heard(1, letters.ABSTAINED)
    assert letter is not None
    assert letter.body == {"outcome": "denied", "controls": ["site"]}
    assert (begun, running.logged("charged")) == ([], [])
    running.desk.accept_no_sandbox()
    running.restart()
    running.steps()
    starting = running.rows._starting
    assert starting is not None
    starting.result(30)
    assert [worker.alive for worker in begun] == [True]
    terminate_agreement(running.site, running.desk.login("bob"), "no-sandbox")
    running.steps()
    running.rows._thread.submit(int).result(30)
    assert [worker.alive for worker in begun] == [False]


def test_a_model_larger_than_the_studys_is_not_read(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int | None] = []
    receive = Mailroom.receive

    def watched(room: Mailroom, sender: str, study: str, round: int, kind: str, *, max_blob: int | None = None):  # type: ignore[no-untyped-def]
        if room is running.rooms[OWN]:
            limits.append(max_blob)
        return receive(room, sender, study, round, kind, max_blob=max_blob)

    monkeypatch.setattr(Mailroom, "receive", watched)
    running.set_up()
    running.tell(1, letters.ROUND, {}, bytes(1_000_000))
    running.steps()
    assert None not in limits
    assert running.logged("letter_rejected")


def test_a_round_that_was_killed_right_after_its_charge_goes_on_under_it(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its price stands in the log in full, once, whatever happens then; evidence holds the ledger against it."""

    def kill(*_: object) -> None:
        raise Killed

    running.set_up()
    running.open(1)
    with monkeypatch.context() as patch:
        patch.setattr("datasites.hospital.budget.pending._store", kill)
        with pytest.raises(Killed):
            running.steps()
    assert running.heard(1, letters.MASKED) is None
    ledger_log.forget(running.site.home)
    pending.finish_all(running.site)
    running.restart()
    running.steps()
    assert running.heard(1, letters.MASKED)
    (charged,) = running.logged("charged")
    entry = ledger.round_entry(running.case.dataset, running.study_hash, 1)
    assert charged.fields["digest"] == sha256_hex(canonical_json(entry))
    assert json.loads(str(charged.fields["charges"])) == entry["charges"]
    assert charged.fields["population"] == "heart"
