"""A researcher's home: made once, made again after a failure, and clear about a file that a person spoilt."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from datasites.aggregator.run import Run
from datasites.control import mocks
from datasites.enclave.sandbox import SandboxUnavailable
from datasites.privacy.plan import PlanError
from datasites.researcher import Federation, Study
from datasites.researcher.beforehand import FirstModel
from datasites.researcher.federation import Incomplete, NotApproved
from datasites.study import letters
from datasites.study.errors import DatasitesError, InputError
from datasites.study.holding import Held
from datasites.transport.store import StoreError
from tests.no_namespaces import NO_NAMESPACE, without_namespaces
from tests.researcher.homes import EMAIL, befriended, create
from tests.study.studies import HEART, distributed_package
from tests.transport.parties import Party


def test_a_home_that_failed_can_be_made_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        create(tmp_path / "home", tmp_path / "file" / "store")
    with create(tmp_path / "home", tmp_path / "store") as federation:
        entry = federation.entry
    with Federation.open(tmp_path / "home") as federation:
        assert federation.entry == entry
    with pytest.raises(InputError, match="here already"):
        create(tmp_path / "home", tmp_path / "store")


def test_a_home_is_open_once(tmp_path: Path) -> None:
    """Whoever comes second is told, and changes nothing; what failed or was closed holds nothing."""
    with create(tmp_path / "home", tmp_path / "store"):
        for again in (
            lambda: create(tmp_path / "home", tmp_path / "store"),
            lambda: Federation.open(tmp_path / "home"),
        ):
            with pytest.raises(Held, match=r"home is open already \(this very process, since .*Federation\.close"):
                again()
    (tmp_path / "home" / "roster.json").write_text("[")
    for _ in range(2):
        with pytest.raises(DatasitesError, match="roster"):
            Federation.open(tmp_path / "home")


@pytest.mark.parametrize("email", ["nobody", "a@b c.example", ""])
def test_a_bad_address_is_one_clear_line_and_leaves_nothing(tmp_path: Path, email: str) -> None:
    with pytest.raises(InputError, match="email"):
        create(tmp_path / "home", tmp_path / "store", email)
    assert not (tmp_path / "home").exists()


def test_settings_that_a_person_edited(tmp_path: Path) -> None:
    create(tmp_path / "home", tmp_path / "store").close()
    file = tmp_path / "home" / "researcher.json"
    text = file.read_text()
    file.write_text(text.replace(",", ",\n  ") + "\n")
    Federation.open(tmp_path / "home").close()
    for spoilt in (text[:-1], text.replace('"store"', '"shop"'), "[]"):
        file.write_text(spoilt)
        with pytest.raises(InputError, match=r"researcher\.json"):
            Federation.open(tmp_path / "home")


def test_a_folder_that_is_made_is_spoken_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Perhaps it should have been a mounted share."""
    with caplog.at_level(logging.WARNING):
        create(tmp_path / "home", tmp_path / "store").close()
    assert "Is the share mounted?" in caplog.text


@pytest.fixture(autouse=True)
def no_first_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """No submission starts a worker here; `test_beforehand` is about what one makes."""
    monkeypatch.setattr(FirstModel, "_make", lambda self: None)


def test_what_is_submitted_is_what_was_checked(tmp_path: Path, hospitals: list[Party]) -> None:
    """A file that changes between `load` and `submit` is not sent; the job's name holds the hash of what is."""
    folder = tmp_path / "study"
    folder.mkdir()
    for file in HEART.glob("*.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    with befriended(tmp_path, hospitals) as federation:
        study = Study.load(folder)
        (folder / "model.py").write_text("import os\n")
        federation.submit(study)
        hospitals[0].control.sync()
        (job,) = hospitals[0].control.jobs()
        assert dict(job.files) == study.package.files
        for party in hospitals:
            party.stop()


def test_all_that_hospitals_offer_is_shown(
    tmp_path: Path, hospitals: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is more than one sync reads."""
    monkeypatch.setattr(mocks, "BYTES_PER_SYNC", 5_000)
    (tmp_path / "mock.csv").write_bytes(b"age\n" + b"50\n" * 2_000)
    with befriended(tmp_path, hospitals) as federation:
        offered = [(party.email, f"d{number}") for party in hospitals for number in range(3)]
        for party in hospitals:
            for number in range(3):
                party.control.publish_dataset(f"d{number}", tmp_path / "mock.csv")
        shown = federation.datasets()
        assert sorted(zip(shown["email"], shown["dataset"], strict=True)) == sorted(offered)
        for party in hospitals:
            party.stop()


def test_a_study_with_a_hospital_that_nobody_pinned_is_sent_to_none(tmp_path: Path, hospitals: list[Party]) -> None:
    stranger, *others = hospitals
    with create(tmp_path / "home", tmp_path / "store") as federation:
        federation.pin(*(party.entry() for party in others))
        for party in others:
            party.roster = federation.roster
            party.start()
            party.control.accept_peers([EMAIL])
        federation.connect()
        study = Study.load(HEART)
        with pytest.raises(InputError, match=rf"cohort names {stranger.email}.*nothing was sent"):
            federation.submit(study)
        for party in others:
            party.control.sync()
            assert party.control.jobs() == []
            party.stop()
        assert {state.state for state in federation.states(study)} == {"not submitted"}
        with pytest.raises(InputError, match="submitted to no hospital"):
            federation.wait(study, progress=False)


def test_whoever_waits_for_a_study_that_can_not_run_any_more_is_told(
    tmp_path: Path, hospitals: list[Party], caplog: pytest.LogCaptureFixture
) -> None:
    """One hospital rejects, and another takes its approval back: two of four are left, and the threshold is three."""
    one, two, three, _ = hospitals
    with befriended(tmp_path, hospitals) as federation:
        study = Study.load(HEART)
        federation.submit(study)
        for party in (one, two, three):
            party.control.sync()
            party.control.jobs()
            party.control.record_approval(study.job_name, "approved")
            party.control.sync()
        assert federation.start(study)._epochs.approved
        two.control.record_revocation(study.job_name, "revoked")
        three.control.record_revocation(study.job_name, "revoked")
        for party in (two, three):
            party.control.sync()
        states = federation.wait(study, timeout=600, progress=False)
        assert {state.email: state.state for state in states} == dict(
            zip([party.email for party in hospitals], ["approved", "revoked", "revoked", "submitted"], strict=True)
        )
        told = r"2 hospital\(s\) can still take part and the threshold is 3.*Federation\.end"
        assert re.search(told, caplog.text)
        with pytest.raises(NotApproved, match=told):
            federation.start(study)
        for party in hospitals:
            party.stop()


def test_a_study_that_fits_no_plan_is_not_sent(tmp_path: Path) -> None:
    package = distributed_package(mode='"distributed"\nnoise_multiplier = 0.3')
    with create(tmp_path / "home", tmp_path / "store") as federation:
        with pytest.raises(PlanError, match=r"noise_multiplier is 0.3: [0-9.]+ is the least that fits"):
            federation.submit(Study(HEART, package))
        assert not list((tmp_path / "store").rglob("*study.toml*"))


def test_a_machine_without_namespaces_is_named_before_anything_is_sent(
    tmp_path: Path, hospitals: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study is fine, and the run would have failed once all hospitals had approved it."""
    with befriended(tmp_path, hospitals) as federation:
        without_namespaces(tmp_path, monkeypatch)
        study = Study.load(HEART)
        with pytest.raises(SandboxUnavailable, match=NO_NAMESPACE):
            federation.submit(study)
        with pytest.raises(SandboxUnavailable, match=NO_NAMESPACE):
            study.initial_model()
        for party in hospitals:
            party.control.sync()
            assert party.control.jobs() == []
            party.stop()


@pytest.mark.waits
def test_one_hospitals_nonsense_ends_nobodys_wait(tmp_path: Path, hospitals: list[Party]) -> None:
    liar, *honest = hospitals
    with befriended(tmp_path, hospitals) as federation:
        study = Study.load(HEART)
        federation.submit(study)
        for party in hospitals:
            party.control.sync()
            party.control.jobs()
        for party in honest:
            party.control.record_approval(study.job_name, "approved")
            party.control.sync()
        (state,) = (liar.home / "SyftBox").rglob("state.yaml")
        state.write_text("a: [")
        liar.control.sync()
        states = federation.wait(study, timeout=20, progress=False)
        assert {s.email: s.state for s in states} == {p.email: "approved" for p in honest} | {liar.email: "unreadable"}
        assert re.search("can't be read", next(s.reason for s in states if s.email == liar.email))
        run = federation.start(study)
        assert set(run._epochs.approved) == {party.email for party in honest}
        for party in hospitals:
            party.stop()


@pytest.mark.waits
def test_a_study_that_too_few_approve_can_be_ended(
    tmp_path: Path, hospitals: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that approved, and those that may yet, are told so: they hold budget for it."""
    monkeypatch.setattr(Run.close, "__defaults__", (0.5,))
    one, *_ = hospitals
    with befriended(tmp_path, hospitals) as federation:
        study = Study.load(HEART)
        federation.submit(study)
        one.control.sync()
        one.control.jobs()
        one.control.record_approval(study.job_name, "approved")
        one.control.sync()
        with pytest.raises(NotApproved, match=r"1 hospital\(s\) approved.*Federation\.end"):
            federation.start(study)
        assert federation.end(study).state.closed
        for party in hospitals:
            assert party.mailroom.receive(EMAIL, study.hash, letters.SETUP_ROUND, letters.CLOSE) is not None
            party.stop()


def test_a_study_is_ended_also_where_a_hospital_is_pinned_no_more(
    tmp_path: Path, hospitals: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run.close, "__defaults__", (0.5,))
    gone, *others = hospitals
    with befriended(tmp_path, hospitals) as federation:
        study = Study.load(HEART)
        federation.submit(study)
        federation.roster = federation.roster.without(gone.email)
        federation._control.pin(federation.roster)
        assert gone.email in [state.email for state in federation.states(study)]
        assert federation.end(study).state.closed
        for party in others:
            assert party.mailroom.receive(EMAIL, study.hash, letters.SETUP_ROUND, letters.CLOSE) is not None
        for party in hospitals:
            party.stop()


def test_whoever_waits_again_and_again_reminds_no_more_often(
    tmp_path: Path, hospitals: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message is remembered at both sides for good."""
    with befriended(tmp_path, hospitals) as federation:
        study = Study.load(HEART)
        federation.submit(study)
        moments = set()
        for _ in range(3):
            federation.wait(study, timeout=0.0, progress=False)
            moments.add(federation._reminders[study.job_name].next_due)
        assert len(moments) == 1
        for party in hospitals:
            party.stop()


@pytest.mark.waits
def test_what_the_store_loses_is_sent_again_while_decisions_are_waited_for(
    tmp_path: Path, hospitals: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submission, and a decision: the hospital that has a submission already says again where it stands."""
    monkeypatch.setattr("datasites.researcher.federation.REMINDERS", (0.0, 0.0))

    def lose(names: str) -> None:
        lost = list((tmp_path / "store").rglob(names))
        assert len(lost) >= len(hospitals)
        for file in lost:
            file.unlink()

    with befriended(tmp_path, hospitals) as federation:
        study = Study.load(HEART)
        federation.submit(study)
        lose("msgv2_*")
        federation.wait(study, timeout=0.5, progress=False)
        for party in hospitals:
            party.control.sync()
            party.control.jobs()
            party.control.record_approval(study.job_name, "approved")
            party.control.sync()
        lose("syfteventsmessagev3_*")
        federation.wait(study, timeout=0.5, progress=False)
        for party in hospitals:
            party.control.sync()
        assert {state.state for state in federation.wait(study, timeout=20, progress=False)} == {"approved"}
        run = federation.start(study, round_timeout=7.0, setup_patience=5.0)
        assert (run._round_timeout, run._setup_patience) == (7.0, 5.0)
        for seconds in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(InputError, match="round_timeout"):
                federation.start(study, round_timeout=seconds)
        for party in hospitals:
            assert party.control.quarantine.entries() == []
            party.stop()


def test_half_a_url_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasitesError, match="s3://"):
        create(tmp_path / "home", "s3:/bucket")


def test_a_hospital_that_cannot_be_reached_keeps_a_study_from_nobody_else(
    tmp_path: Path, hospitals: list[Party]
) -> None:
    first, *others = hospitals
    with befriended(tmp_path, hospitals) as federation:
        bundle = tmp_path / "store" / "identities" / first.email / "bundle.json"
        true = bundle.read_bytes()
        bundle.unlink()
        study = Study.load(HEART)
        with pytest.raises(Incomplete, match=first.email):
            federation.submit(study)
        for party in others:
            party.control.sync()
            assert len(party.control.jobs()) == 1
        bundle.write_bytes(true)
        assert federation.submit(study) == study.hash
        for party in hospitals:
            party.stop()


def test_an_incomplete_entry_keeps_no_other_hospital_from_being_a_peer(tmp_path: Path, hospitals: list[Party]) -> None:
    first, *others = hospitals
    with create(tmp_path / "home", tmp_path / "store") as federation:
        federation.pin(first.entry().model_copy(update={"syft_fingerprint": ""}))
        federation.pin(*(party.entry() for party in others))
        with pytest.raises(Incomplete, match="no syft fingerprint"):
            federation.connect()
        assert federation._control._peers() == sorted(party.email for party in others)
