"""The control plane between honest parties: restarts, resends, results; attacks are in tests/adversarial."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datasites.control.submissions import submission_folder
from datasites.control.syft import ControlError, HospitalControl
from datasites.study.identity import IdentityError
from datasites.study.roster import Roster
from datasites.transport.store import StoreUnreachable
from tests.transport.parties import RESEARCHER, Party, study_files

JOB = "heart-1"


def test_study_from_submission_to_result(friends, tmp_path):
    researcher, *hospitals = friends
    for hospital in hospitals:
        researcher.control.submit(hospital.email, JOB, study_files())
        hospital.control.sync()
        (job,) = hospital.control.jobs()
        assert (job.name, job.submitted_by, job.status) == (JOB, RESEARCHER, "pending")
        assert set(job.files) == {"study.toml", "features.toml", "model.py"}
        assert job.files["study.toml"] == b'name = "heart"\n'
    hospitals[0].control.record_approval(JOB, "sha256:1")
    hospitals[1].control.record_rejection(JOB, "no IRB")
    for party in (*hospitals, researcher):
        party.control.sync()
    states = [researcher.control.job_state(hospital.email, JOB) for hospital in hospitals]
    assert [(state.state, state.reason) for state in states] == [
        ("approved", "sha256:1"),
        ("rejected", "no IRB"),
        ("pending", ""),
    ]
    hospitals[0].control.publish_result(JOB, {"evidence.bin": bytes(range(256))})
    hospitals[0].control.sync()
    researcher.control.sync()
    assert researcher.control.results(hospitals[0].email, JOB) == {"evidence.bin": bytes(range(256))}
    with pytest.raises(ControlError, match="only an approved one"):
        hospitals[1].control.publish_result(JOB, {"x": b""})


def test_a_state_is_what_was_sent_and_what_was_said_last(friends, monkeypatch):
    """Nothing that wasn't sent is submitted, and no approval that was revoked is one."""
    researcher, hospital, silent, _ = friends

    def state(of=hospital):
        return researcher.control.job_state(of.email, JOB).state

    def away(*_):
        raise StoreUnreachable("the store is unavailable")

    assert state() == "not submitted"
    with monkeypatch.context() as patch:
        router = type(researcher.control._manager.peer_manager.connection_router)
        patch.setattr(router, "watcher_send_proposed_file_changes_message", away)
        with pytest.raises(StoreUnreachable):
            researcher.control.submit(hospital.email, JOB, study_files())
    assert state() == "not submitted"
    researcher.restart()
    for party in (hospital, silent):
        researcher.control.submit(party.email, JOB, study_files())
        researcher.control.submit(party.email, JOB, study_files())
    assert state() == "submitted"
    with pytest.raises(ControlError, match="other content"):
        researcher.control.submit(hospital.email, JOB, study_files("other"))
    hospital.control.sync()
    assert len(hospital.control.jobs()) == 1
    for _ in range(2):
        hospital.control.record_approval(JOB, "sha256:1")
    hospital.control.sync()
    researcher.control.sync()
    assert state() == "approved"
    for _ in range(2):
        hospital.control.record_revocation(JOB, "revoked")
    with pytest.raises(ControlError, match="decision is made once"):
        hospital.control.record_approval(JOB, "sha256:1")
    hospital.control.sync()
    researcher.control.sync()
    assert (state(), state(silent)) == ("revoked", "submitted")


def test_a_revocation_of_an_approval_that_nobody_was_told_of_is_a_rejection(friends):
    researcher, hospital, *_ = friends
    researcher.control.submit(hospital.email, JOB, study_files())
    hospital.control.sync()
    hospital.control.record_revocation(JOB, "revoked")
    hospital.control.sync()
    researcher.control.sync()
    assert researcher.control.job_state(hospital.email, JOB).state == "rejected"


def test_restarts_keep_submissions_and_decisions(friends, tmp_path):
    """Stock syft reverts an approval when it restarts before a sync."""
    researcher, hospital, *_ = friends
    researcher.control.submit(hospital.email, JOB, study_files())
    researcher.restart()
    hospital.restart()
    hospital.control.sync()
    hospital.restart()
    assert [job.status for job in hospital.control.jobs()] == ["pending"]
    hospital.control.record_approval(JOB, "sha256:1")
    hospital.restart()
    assert [(job.status, job.reason) for job in hospital.control.jobs()] == [("approved", "sha256:1")]
    hospital.control.record_approval(JOB, "sha256:1")
    hospital.control.sync()
    researcher.restart()
    researcher.control.sync()
    researcher.restart()
    assert researcher.control.job_state(hospital.email, JOB).state == "approved"


def test_a_submission_may_be_sent_again_and_never_changed(friends, tmp_path):
    researcher, hospital, *_ = friends
    files = study_files()
    for _ in range(3):
        researcher.control.submit(hospital.email, JOB, files)
        hospital.control.sync()
    assert len(hospital.control.jobs()) == 1
    assert hospital.control.quarantine.entries() == []
    files["model.py"] = b"other = 1\n"
    with pytest.raises(ControlError, match="choose another name"):
        researcher.control.submit(hospital.email, JOB, files)
    researcher.control.submit(hospital.email, "heart-2", files)
    hospital.control.sync()
    assert len(hospital.control.jobs()) == 2


def test_a_lost_message_is_replaced_by_submitting_again(friends, tmp_path):
    researcher, hospital, *_ = friends
    researcher.control.submit(hospital.email, JOB, study_files())
    for path in Path(hospital.store_url).rglob("msgv2_*"):
        path.unlink()
    hospital.control.sync()
    assert hospital.control.jobs() == []
    researcher.control.submit(hospital.email, JOB, study_files())
    hospital.control.sync()
    assert len(hospital.control.jobs()) == 1


@pytest.mark.parametrize("lost", ["the rename", "the note", "the removal", "the delivery note"])
def test_a_crash_between_any_two_steps_costs_a_repetition(friends, tmp_path, monkeypatch, lost):
    """The steps of a datasite's sync: place, note, remove; put, note. Each crash is a real exception at that step."""
    researcher, hospital, *_ = friends
    researcher.control.submit(hospital.email, JOB, study_files())
    owner = hospital.control._manager.datasite_owner_syncer

    def crash(*_, **__):
        raise KeyboardInterrupt

    def sync_and_look():
        hospital.control.sync()
        hospital.control.jobs()
        hospital.control.sync()

    target = {
        "the rename": ("datasites.transport.writing.move_durably", None),
        "the note": (None, "mark_handled"),
        "the removal": ("datasites.control.connection.StoreConnection.remove", None),
        "the delivery note": (None, "mark_delivered"),
    }[lost]
    with monkeypatch.context() as patched:
        if target[0]:
            patched.setattr(target[0], crash)
        else:
            patched.setattr(type(owner.log), target[1], crash)
        with pytest.raises(KeyboardInterrupt):
            sync_and_look()
    hospital.restart()
    hospital.control.sync()
    (job,) = hospital.control.jobs()
    assert len(job.files) == 3
    hospital.control.sync()
    researcher.control.sync()
    assert researcher.control.job_state(hospital.email, JOB).state == "pending"
    assert hospital.control.quarantine.entries() == researcher.control.quarantine.entries() == []
    assert not list((hospital.home / "SyftBox" / ".cache" / "incoming").glob("*"))


def test_binary_files_and_odd_text_arrive_unchanged(friends, tmp_path):
    """Stock syft crashes the sender on binary files and rewrites line ends."""
    researcher, hospital, *_ = friends
    contents = {
        "weights.bin": bytes(range(256)) * 10,
        "dos.txt": b"a\r\nb\r\n",
        "empty.txt": b"",
        "utf8.txt": "é€\n".encode(),
    }
    researcher.control.submit(hospital.email, JOB, study_files() | contents)
    hospital.control.sync()
    (job,) = hospital.control.jobs()
    assert {name: job.files[name] for name in contents} == contents


def test_one_hospital_away_from_the_store_does_not_hold_up_others(friends, tmp_path, monkeypatch):
    researcher, first, second, _ = friends
    for hospital in (first, second):
        researcher.control.submit(hospital.email, JOB, study_files())
        hospital.control.sync()
        hospital.control.jobs()
        hospital.control.record_approval(JOB, "sha256:1")
        hospital.control.sync()
    monkeypatch.setattr("datasites.transport.store.RETRY_DELAYS", ())
    files, real = researcher.control.store.files, researcher.control.store.files.walk

    def walk(folder):
        if first.email in folder:
            raise ConnectionResetError("gone")
        return real(folder)

    monkeypatch.setattr(files, "walk", walk)
    with pytest.raises(Exception, match="check the network"):
        researcher.control.sync()
    assert researcher.control.job_state(second.email, JOB).state == "approved"
    monkeypatch.setattr(files, "walk", real)
    researcher.control.sync()
    assert researcher.control.job_state(first.email, JOB).state == "approved"


def test_mock_datasets_get_versions(friends, tmp_path):
    researcher, hospital, *_ = friends
    mock = tmp_path / "mock.csv"
    mock.write_text("age\n50\n")
    assert hospital.control.publish_dataset("heart", mock, "one").version == 1
    hospital.restart()
    assert hospital.control.publish_dataset("heart", mock, "one").version == 1
    assert hospital.control.publish_dataset("heart", mock, "two").version == 2
    mock.write_text("age\n60\n")
    assert hospital.control.publish_dataset("heart", mock, "two").version == 3
    researcher.control.sync()
    (manifest,) = researcher.control.datasets(hospital.email)
    assert (manifest.name, manifest.summary, manifest.version) == ("heart", "two", 3)
    assert researcher.control.mock(hospital.email, "heart") == b"age\n60\n"
    assert len(list(Path(hospital.store_url, "collections", hospital.email).iterdir())) == 1


@pytest.mark.parametrize("name", ["", "a b", "*", "../x", "v1", "x" * 81, "é"])
def test_bad_submission_names_are_refused_before_anything_is_sent(friends, tmp_path, name):
    researcher, hospital, *_ = friends
    with pytest.raises(ValueError, match="use 1 to 80 letters"):
        researcher.control.submit(hospital.email, name, study_files())
    assert not list(Path(hospital.store_url).rglob("msgv2_*"))


def test_what_cannot_be_done_is_said(parties, tmp_path):
    researcher, hospital, *_ = parties
    with pytest.raises(ControlError, match="add_hospital"):
        researcher.control.submit(hospital.email, JOB, study_files())
    with pytest.raises(ControlError, match="expected a hospital"):
        researcher.control.add_hospital(RESEARCHER)
    with pytest.raises(IdentityError, match="is not pinned"):
        researcher.control.add_hospital("nobody@clinic.example")
    with pytest.raises(ControlError, match="there is none"):
        hospital.control.record_approval(JOB, "x")
    with pytest.raises(ControlError, match="needs a reason"):
        hospital.control.record_approval(JOB, "")


def test_keys_survive_and_their_fingerprint_is_the_pinned_one(parties):
    for party in parties:
        fingerprint = party.control.syft_fingerprint()
        party.restart()
        assert party.control.syft_fingerprint() == fingerprint == party.roster.get(party.email).syft_fingerprint


HOSPITAL = """
import sys, time
from pathlib import Path
from datasites.study.identity import Identity
from datasites.study.roster import Roster
from datasites.transport.store import Store
from datasites.control.syft import HospitalControl
email, home, url, roster, researcher = sys.argv[1:6]
home = Path(home)
identity = Identity.load(home / "key.pem", email)
control = HospitalControl.open(identity, home / "SyftBox", Store(url), home / "state", Roster.load(Path(roster)))
control.accept_peers([researcher])
print("ready", flush=True)
while True:
    seen = control.store.snapshot(control.folders())
    control.sync()
    for job in control.jobs():
        if job.status == "pending":
            control.record_approval(job.name, "sha256:" + str(len(job.files)))
    control.sync()
    control.store.wait(control.folders(), 0.5, since=seen)
"""


def start_hospital(hospital: Party, roster: Path) -> subprocess.Popen:
    if not (hospital.home / "key.pem").exists():
        hospital.identity.save(hospital.home / "key.pem")
    command = [sys.executable, "-c", HOSPITAL, hospital.email, str(hospital.home), hospital.store_url, str(roster)]
    return subprocess.Popen([*command, RESEARCHER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.waits
def test_three_hospitals_in_processes_of_their_own_one_killed_again_and_again(parties, tmp_path):
    """Kill -9 at moments spread over start, sync and decision: every submission is decided once, nothing is refused."""
    researcher, *hospitals = parties
    roster = tmp_path / "roster.json"
    Roster(entries=researcher.roster.entries).save(roster)
    for hospital in hospitals:
        hospital.stop()
        researcher.control.add_hospital(hospital.email)
    processes = [start_hospital(hospital, roster) for hospital in hospitals]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for number in range(4):
            for hospital in hospitals:
                researcher.control.submit(hospital.email, f"study-{number}", study_files())
            time.sleep(0.015 * number)
            os.kill(processes[0].pid, signal.SIGKILL)
            processes[0].communicate()
            processes[0] = start_hospital(hospitals[0], roster)
            assert processes[0].stdout.readline() == "ready\n"
        wanted = [(hospital.email, f"study-{number}") for hospital in hospitals for number in range(4)]
        deadline = time.monotonic() + 60
        states: set[tuple[str, str]] = set()
        while time.monotonic() < deadline and states != {("approved", "sha256:3")}:
            time.sleep(0.1)
            researcher.control.sync()
            decisions = [researcher.control.job_state(email, job) for email, job in wanted]
            states = {(decision.state, decision.reason) for decision in decisions}
        assert states == {("approved", "sha256:3")}
        assert researcher.control.quarantine.entries() == []
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for hospital in hospitals:
        hospital.start()
        assert isinstance(hospital.control, HospitalControl)
        assert len(hospital.control.jobs()) == 4
        assert hospital.control.quarantine.entries() == []
        folder = hospital.home / "SyftBox" / hospital.email / submission_folder(RESEARCHER, "study-0")
        assert (folder / "run.sh").is_file()
