"""Attacks on the control plane by an approved peer that lies, and by the store; one test per known defect of syft 0.10.

Each test names the line that it defends and was seen to fail with that line taken out. Messages here are really
signed and encrypted by the attacker's own keys: what is attacked is what stock syft believes of their contents.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import shutil
import stat
import sys
import zlib
from pathlib import Path

import pytest
from syft.sync.events.file_change_event import (
    FileChangeEventsMessageFileName,
)
from syft.sync.messages.proposed_filechange import MessageFileName, ProposedFileChange, ProposedFileChangesMessage
from syft.sync.utils.syftbox_utils import compress_data

from datasites.control import guards
from datasites.control.connection import inbox_folder, outbox_folder
from datasites.control.mocks import SIGNED, MockManifest, sign_mock
from datasites.control.submissions import RUN_SCRIPT, submission_folder
from datasites.control.syft import ControlError
from datasites.study.identity import Identity, IdentityError
from datasites.study.roster import Roster
from datasites.transport import filesystems
from tests.transport.outboxes import STATE, announce, event, refused, state_of
from tests.transport.parties import HOSPITALS, RESEARCHER, Party, befriend, make_parties, study_files

A, B, C = HOSPITALS
JOB = submission_folder(RESEARCHER, "heart-1")
GOOD = {"config.yaml": b"name: heart-1\n", "run.sh": b"rm -rf /\n", "code/model.py": b"x = 1\n"}


@pytest.fixture
def parties(parties: list[Party]) -> list[Party]:
    befriend(parties[0], parties[1:])
    return parties


def proposal(files: dict[str, bytes], root: str = JOB, sender: str = RESEARCHER, owner: str = A, **changed):
    changes = [
        ProposedFileChange(
            path_in_datasite=Path(f"{root}/{path}" if root else path), content=data, datasite_email=owner
        )
        for path, data in files.items()
    ]
    for change in changes:
        for field, value in changed.items():
            setattr(change, field, value)
    return ProposedFileChangesMessage(sender_email=sender, proposed_file_changes=changes)


def post(signer: Party, message: ProposedFileChangesMessage, channel: str = RESEARCHER, name: str = "", to: str = A):
    """Put `message`, signed by `signer` for `to`, into the inbox channel of `channel`; returns its name."""
    sealed = signer.control.sealer().seal(to, message.as_compressed_data())
    name = name or message.message_filename.as_string()
    signer.control.store.put(f"{inbox_folder(to, channel)}/{name}", sealed)
    return name


def submissions(hospital: Party) -> dict[str, dict[str, bytes]]:
    return {job.name: dict(job.files) for job in hospital.control.jobs()}


def in_datasite(party: Party, path: str, owner: str = "") -> Path:
    return party.home / "SyftBox" / (owner or party.email) / path


def test_a_good_submission_of_this_shape_is_taken(researcher, hospital):
    """The frame of the tests below: unchanged, the message is accepted."""
    post(researcher, proposal(GOOD))
    hospital.control.sync()
    assert submissions(hospital) == {"heart-1": {"model.py": b"x = 1\n"}}
    assert hospital.control.quarantine.entries() == []


# Defect 1: a message names its own sender.


def test_sender_is_the_channel(researcher, hospital):
    """`read_submission_message`: `message.sender_email != sender`."""
    post(researcher, proposal(GOOD, sender=hospital.email))
    refused(hospital, "it says that it is from hannover@clinic.example")


def test_a_researcher_cannot_approve_its_own_job(researcher, hospital):
    """`submissions._place`: nothing but the sender's own inbox. Stock syft takes this as the owner's approval."""
    researcher.control.submit(hospital.email, "heart-1", study_files())
    hospital.control.sync()
    hospital.control.jobs()
    state = f"app_data/job/review/{RESEARCHER}/v1/heart-1/state.yaml"
    approval = b"canonical_name: JobState\nversion: '1'\nstatus: approved\n"
    for sender in (hospital.email, RESEARCHER):
        post(researcher, proposal({state: approval}, root="", sender=sender))
        refused(hospital, "it says that it is from" if sender == hospital.email else "may write to")
    assert hospital.control.jobs()[0].status == "pending"


def test_a_message_signed_by_another_peer_is_refused(parties, hospital):
    """`Router.open`: verified with the key of the channel's peer."""
    post(parties[2], proposal(GOOD))
    refused(hospital, "not a message that rita@uni.example signed")


def test_a_message_in_plain_is_refused(researcher, hospital):
    """`StrictPeerStore.peer_uses_encryption`, `Router.open`: stock syft would take it from a peer without keys."""
    message = proposal(GOOD)
    name = message.message_filename.as_string()
    researcher.control.store.put(f"{inbox_folder(A, RESEARCHER)}/{name}", message.as_compressed_data())
    refused(hospital, "not a message that")


# Defects 2 and 4: owner, path and name.


@pytest.mark.parametrize(
    "path",
    [
        "app_data/job/inbox/hannover@clinic.example/v1/heart-1/code/model.py",
        "app_data/job/inbox/syft.pub.yaml",
        "syft.pub.yaml",
        "private/syft_datasets/heart/data.csv",
        "public/syft_datasets/heart/mock.csv",
        f"{JOB}/../../../../../../private/x",
        f"{JOB}/code/../../../x",
        f"{JOB}/code/syft.pub.yaml",
        f"{JOB}/code/.hidden",
        f"{JOB}/outputs/x",
        f"{JOB}/code",
        "/etc/cron.d/x",
        submission_folder(RESEARCHER, "*") + "/code/model.py",
        submission_folder(RESEARCHER, "a b") + "/code/model.py",
        submission_folder(RESEARCHER, "..") + "/code/model.py",
        f"app_data/job/inbox/{RESEARCHER}/v0/heart-1/code/model.py",
    ],
)
def test_only_a_submission_can_be_written(researcher, hospital, path):
    """`submissions._place`: whitelist of paths; job names of letters, digits, _ and - only."""
    files = sorted(p for p in (hospital.home / "SyftBox").rglob("*") if p.is_file())
    post(researcher, proposal({path: b"x", **{f"{JOB}/{name}": data for name, data in GOOD.items()}}, root=""))
    refused(hospital, "")
    assert sorted(p for p in (hospital.home / "SyftBox").rglob("*") if p.is_file()) == files
    assert submissions(hospital) == {}


@pytest.mark.parametrize(
    "root",
    [
        *[submission_folder(RESEARCHER, job) for job in ("*", "?", "a b", "a.b", "[a]", "x" * 81)],
        submission_folder("ritb@uni.example", "heart-1"),
        f"app_data/job/inbox/{RESEARCHER}/v0/heart-1",
        f"app_data/job/outbx/{RESEARCHER}/v1/heart-1",
    ],
)
def test_a_whole_submission_in_another_place_is_refused(researcher, hospital, root):
    """`submissions._place`: prefix and name, where every other rule is kept."""
    post(researcher, proposal(GOOD, root=root))
    refused(hospital, "may write to" if "rita" not in root or "/v1/" not in root or "outbx" in root else "only letters")
    assert submissions(hospital) == {}


def test_owner_is_this_datasite(researcher, hospital):
    """`read_submission_message`: `change.datasite_email != owner`."""
    post(researcher, proposal(GOOD, owner=B))
    refused(hospital, f"is meant for {B}")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"is_deleted": True}, "only adds"), ({"old_hash": "0" * 64}, "only adds"), ({"new_hash": "0" * 64}, "differ")],
)
def test_a_submission_only_adds_files(researcher, hospital, changed, reason):
    """`read_submission_message`: no deletion, no change, hash of the content."""
    post(researcher, proposal(GOOD, **changed))
    refused(hospital, reason)


@pytest.mark.parametrize("left_out", list(GOOD))
def test_a_submission_comes_whole(researcher, hospital, left_out):
    """`submissions._check_whole`: a job's files never come one by one, so it can't grow after it was seen."""
    post(researcher, proposal({path: data for path, data in GOOD.items() if path != left_out}))
    refused(hospital, "incomplete")


def test_two_submissions_in_one_message_are_refused(researcher, hospital):
    """`read_submission_message`: `len(jobs) != 1`."""
    files = {f"{submission_folder(RESEARCHER, job)}/{path}": data for job in ("a", "b") for path, data in GOOD.items()}
    post(researcher, proposal(files, root=""))
    refused(hospital, "one message is one submission")


def test_a_file_that_is_also_a_folder_is_refused(researcher, hospital):
    """`submissions._check_whole`: otherwise writing it fails again at every sync."""
    post(researcher, proposal({**GOOD, "code/a": b"x", "code/a/b": b"x"}))
    refused(hospital, "a file and a folder at once")


# Defect 3: code changed after approval; robustness: replay, stale hash, one bad message.


def test_code_cannot_change_after_it_was_shown(researcher, hospital):
    """`OwnerSyncer._place`: a submission that is there never changes."""
    post(researcher, proposal(GOOD))
    hospital.control.sync()
    hospital.control.jobs()
    hospital.control.record_approval("heart-1", "sha256:1")
    post(researcher, proposal({**GOOD, "code/model.py": b"evil = 1\n"}))
    refused(hospital, "there already with other content")
    post(researcher, proposal({**GOOD, "code/more.py": b"evil = 1\n"}))
    refused(hospital, "there already with other content")
    assert submissions(hospital) == {"heart-1": {"model.py": b"x = 1\n"}}


@pytest.mark.parametrize("limit", [("MOST_KEPT", 2), ("MOST_KEPT_BYTES", 500)])
def test_no_submitter_fills_the_disk(researcher, hospital, monkeypatch, limit):
    """`guards._require_room`: whoever signs, and however often."""
    monkeypatch.setattr(guards, *limit)
    for number in range(3):
        files = {**GOOD, "config.yaml": b"name: s%d\n" % number, "code/model.py": b"x" * 150}
        post(researcher, proposal(files, root=submission_folder(RESEARCHER, f"s{number}")))
        if number < 2:
            hospital.control.sync()
    counted: list[Path] = []
    monkeypatch.setattr(guards, "_kept", lambda folder: counted.append(folder))
    refused(hospital, "submissions of ")
    assert set(submissions(hospital)) == {"s0", "s1"}
    assert counted == [], "what is kept is counted once in a process"


def test_deciding_does_not_sync(researcher, hospital):
    """`HospitalControl._decide` takes in nothing: what came after the review is not approved with it."""
    post(researcher, proposal(GOOD))
    hospital.control.sync()
    hospital.control.jobs()
    waiting = post(researcher, proposal(GOOD, root=submission_folder(RESEARCHER, "heart-2")))
    hospital.control.record_approval("heart-1", "sha256:1")
    assert waiting in hospital.control.store.list(inbox_folder(A, RESEARCHER))
    assert list(submissions(hospital)) == ["heart-1"]
    with pytest.raises(ControlError, match="there is none"):
        hospital.control.record_approval("heart-2", "sha256:1")
    with pytest.raises(ControlError, match="made once"):
        hospital.control.record_rejection("heart-1", "no")


def test_a_replay_is_refused(researcher, hospital):
    """`OwnerSyncer.take_submissions`: `log.handled`, on disk; a job that was removed doesn't come back."""
    name = post(researcher, proposal(GOOD))
    key = f"{inbox_folder(A, RESEARCHER)}/{name}"
    old = hospital.control.store.get(key)
    hospital.control.sync()
    shutil.rmtree(in_datasite(hospital, JOB))
    hospital.restart()
    hospital.control.store.put(key, old)
    refused(hospital, "a replay")
    assert submissions(hospital) == {}


def test_a_replay_under_a_new_name_is_refused(researcher, hospital):
    """`read_submission_message`: the name is the one that was signed."""
    message = proposal(GOOD)
    post(researcher, message, name=MessageFileName().as_string())
    refused(hospital, "replay under a new name")


def test_one_bad_message_blocks_nobody(parties, researcher, hospital, monkeypatch):
    """`OwnerSyncer.take_submissions`: `except Refused`; also names that are no messages, and a folder as a message."""
    store, folder = hospital.control.store, inbox_folder(A, RESEARCHER)
    store.put(f"{folder}/{MessageFileName(submitted_timestamp=0.0).as_string()}", b"garbage")
    store.put(f"{folder}/{MessageFileName(submitted_timestamp=float('nan')).as_string()}", b"")
    store.put(f"{folder}/readme.txt", b"garbage")
    store.put(f"{folder}/{MessageFileName().as_string()}/nested/deeper", b"garbage")
    post(researcher, proposal(GOOD))
    hospital.control.sync()
    assert submissions(hospital) == {"heart-1": {"model.py": b"x = 1\n"}}
    assert len(hospital.control.quarantine.entries()) == 2
    monkeypatch.setattr(filesystems, "IN_FLIGHT_SECONDS", -1.0)  # names that are no messages are nobody's by now
    for _ in range(2):
        hospital.control.sync()
        assert len(hospital.control.quarantine.entries()) == 4


def test_a_clock_that_steps_back_loses_nothing(researcher, hospital):
    """Names order nothing that matters: an older name after a newer one is taken as well."""
    for job, at in (("late", 2e9), ("early", 1.0)):
        message = proposal(GOOD, root=submission_folder(RESEARCHER, job))
        message.message_filename = MessageFileName(submitted_timestamp=at)
        post(researcher, message)
        hospital.control.sync()
    assert set(submissions(hospital)) == {"late", "early"}


def test_bombs_are_refused(researcher, hospital):
    """`bounded_message` (64 MiB unpacked) and `_PlainLoader` (no aliases)."""
    seal, store, folder = researcher.control.sealer().seal, hospital.control.store, inbox_folder(A, RESEARCHER)
    bomb = compress_data(b" " * 100_000_000)
    assert len(bomb) < 200_000
    store.put(f"{folder}/{MessageFileName().as_string()}", seal(A, bomb))
    refused(hospital, "unpacks to more than")
    aliases = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    post(researcher, proposal({**GOOD, "config.yaml": aliases.encode()}))
    refused(hospital, "aliases")


@pytest.mark.parametrize("value", ['!!int ""', "!!bool x", "!!timestamp x", '!!float ""', "!!int '_'", "2020-99-99"])
def test_a_value_that_does_not_fit_its_tag_is_refused(researcher, hospital, value):
    """`read_table`: of some PyYAML raises LookupError or AttributeError."""
    post(researcher, proposal({**GOOD, "config.yaml": f"submitted_at: {value}".encode()}))
    refused(hospital, "config.yaml: ")


def test_an_oversized_message_is_not_read(researcher, hospital):
    """`Router.open`: `limit=MAX_MESSAGE_BYTES`."""
    file = Path(hospital.store_url, inbox_folder(A, RESEARCHER), MessageFileName().as_string())
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as sparse:
        sparse.truncate(10**11)
    refused(hospital, "it was not read")


# Defect 2, the researcher's side; defect 9: roll-back.


def test_a_hospital_speaks_for_itself_only(parties, researcher):
    """`WatcherSyncer._apply`: `event.datasite_email != peer`. B forges A's approval."""
    announce(parties[2], event(STATE, state_of("approved"), owner=A), channel=B)
    refused(researcher, f"it speaks for {A}, but came from {B}")
    assert researcher.control.job_state(A, "heart-1").state == "not submitted"


@pytest.mark.parametrize(
    "path",
    [
        "private/crypto_keys.json",
        f"../{RESEARCHER}/private/crypto_keys.json",
        f"{JOB}/code/model.py",
        f"app_data/job/review/{B}/v1/heart-1/state.yaml",
        f"app_data/job/review/{RESEARCHER}/v1/heart-1/stdout.txt",
        f"app_data/job/review/{RESEARCHER}/v1/heart-1/outputs/../../x",
        f"app_data/job/review/{RESEARCHER}/v1/../../x/state.yaml",
        f"app_data/job/review/{RESEARCHER}/v1/heart-1/outputs/syft/deep",
        "syft.pub.yaml",
        "/etc/passwd",
    ],
)
def test_a_hospital_writes_states_and_outputs_only(researcher, hospital, path):
    """`outgoing_job` in `WatcherSyncer._apply`."""
    researcher.control.submit(A, "heart-1", study_files())
    before = sorted(p for p in researcher.home.rglob("*") if p.is_file() and "quarantine" not in p.parts)
    announce(hospital, event(STATE, state_of("approved")), event(path, b"x"))
    refused(researcher, "sends states and outputs")
    assert sorted(p for p in researcher.home.rglob("*") if p.is_file() and "quarantine" not in p.parts) == before


@pytest.mark.parametrize(
    ("changed", "reason"), [({"is_deleted": True}, "states and outputs"), ({"new_hash": "0" * 64}, "hash differ")]
)
def test_a_hospital_deletes_nothing_and_hashes_hold(researcher, hospital, changed, reason):
    """`WatcherSyncer._apply`."""
    researcher.control.submit(A, "heart-1", study_files())
    announce(hospital, event(STATE, state_of("approved"), **changed))
    refused(researcher, reason)


def test_an_old_message_under_a_new_name_does_not_roll_back(researcher, hospital):
    """`WatcherSyncer._apply`: the name is the one that was signed."""
    researcher.control.submit(A, "heart-1", study_files())
    key = announce(hospital, event(STATE, state_of("pending")), number=1.0)
    old = hospital.control.store.get(key)
    announce(hospital, event(STATE, state_of("approved")), number=2.0)
    researcher.control.sync()
    name = FileChangeEventsMessageFileName(timestamp=3.0).as_string()
    hospital.control.store.put(f"{outbox_folder(A, RESEARCHER)}/{name}", old)
    refused(researcher, "an old message under a new name")
    assert researcher.control.job_state(A, "heart-1").state == "approved"


def test_a_replayed_or_delayed_message_does_not_roll_back(researcher, hospital):
    """`WatcherSyncer.take_events`: `log.handled`; `_apply`: `number > applied`; both after a restart."""
    researcher.control.submit(A, "heart-1", study_files())
    key = announce(hospital, event(STATE, state_of("pending")), number=1.0)
    first = hospital.control.store.get(key)
    researcher.control.sync()
    delayed = announce(hospital, event(STATE, state_of("rejected")), number=2.0)
    second = hospital.control.store.get(delayed)
    hospital.control.store.delete(delayed)
    announce(hospital, event(STATE, state_of("approved")), number=3.0)
    researcher.control.sync()
    researcher.restart()
    hospital.control.store.put(key, first)
    refused(researcher, "a replay")
    hospital.control.store.put(delayed, second)
    researcher.control.sync()
    assert researcher.control.job_state(A, "heart-1").state == "approved"


def test_numbers_rise_when_the_clock_steps_back(researcher, hospital, monkeypatch):
    """`SyncLog.next_number`: stock syft loses what is sent after a step back."""
    researcher.control.submit(A, "heart-1", study_files())
    hospital.control.sync()
    hospital.control.jobs()
    hospital.control.sync()
    monkeypatch.setattr("datasites.control.sync_state.time.time", lambda: 1.0)
    hospital.control.record_approval("heart-1", "sha256:1")
    hospital.control.sync()
    researcher.control.sync()
    assert researcher.control.job_state(A, "heart-1").state == "approved"


# Defects 4, 6 and the idle read: what leaves a datasite.


def test_only_states_and_outputs_leave(researcher, hospital, tmp_path):
    """`OwnerSyncer.send_changes`: not what lies beside them, whatever syft's permissions say (I7, I12)."""
    researcher.control.submit(A, "heart-1", study_files())
    hospital.control.sync()
    hospital.control.jobs()
    hospital.control.record_approval("heart-1", "sha256:1")
    review = in_datasite(hospital, f"app_data/job/review/{RESEARCHER}/v1/heart-1")
    for path in ("stdout.txt", "stderr.txt", "logs/x.txt", "outputs/deep/x", "outputs/.hidden"):
        (review / path).parent.mkdir(parents=True, exist_ok=True)
        (review / path).write_text("CANARY_PRIVATE")
    in_datasite(hospital, f"{JOB}/code/written_later.txt").write_text("CANARY_PRIVATE")
    in_datasite(hospital, "notes.txt").write_text("CANARY_PRIVATE")
    secret = tmp_path / "rows.csv"
    secret.write_text("CANARY_PRIVATE")
    (review / "outputs" / "link.csv").symlink_to(secret)
    hospital.control.publish_result("heart-1", {"report.json": b"{}"})
    hospital.control.sync()
    researcher.control.sync()
    got = [p for p in (researcher.home / "SyftBox" / A).rglob("*") if p.is_file() and b"CANARY" in p.read_bytes()]
    assert [path.name for path in got] == ["model.py"], "its own code, which has CANARY_CODE"
    assert researcher.control.results(A, "heart-1") == {"report.json": b"{}"}


def test_idle_sync_opens_no_private_file(researcher, hospital):
    """`OwnerSyncer.send_changes` walks one folder; stock syft reads every private file at each sync."""
    private = in_datasite(hospital, "private/rows.csv")
    private.parent.mkdir(parents=True, exist_ok=True)
    private.write_text("a patient")
    opened: list[str] = []
    watching = [True]
    sys.addaudithook(lambda name, args: opened.append(str(args[0])) if watching and name == "open" else None)
    hospital.control.sync()
    watching.clear()
    assert opened, "the hook saw nothing"
    assert not [path for path in opened if "private" in path]


def test_private_side_of_a_dataset_is_a_pointer_and_stays(researcher, hospital, tmp_path):
    """`HospitalControl.publish_dataset`: no upload_private; rows are nowhere in the SyftBox (I12)."""
    mock = tmp_path / "mock.csv"
    mock.write_text("age\n50\n")
    hospital.control.publish_dataset("heart", mock)
    private = [p for p in in_datasite(hospital, "private").rglob("*") if p.is_file()]
    assert b'{"pointer": "datasites://heart"}' in [path.read_bytes() for path in private]
    assert not [p for p in Path(hospital.store_url).rglob("*") if p.is_file() and b"pointer" in p.read_bytes()]
    assert not list(Path(hospital.store_url).rglob("*privatecollection*"))


def test_syft_keys_lie_outside_the_syftbox_with_mode_0600(hospital):
    """`open_keys`; and keys that others could read are refused."""
    keys = hospital.home / "state" / "syft_keys.json"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert not list((hospital.home / "SyftBox").rglob("*keys*"))
    keys.chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        hospital.restart()


# Defect 5: version files and run.sh.


def test_what_a_hospital_claims_of_itself_is_not_pasted_into_run_sh(researcher, hospital):
    """`StoreConnection.read_peer_version_file`, `submissions.RUN_SCRIPT`."""
    version = '{"syft_client_version":"0.10.0","min_supported_syft_client_version":"0","protocol_version":"1",'
    version += '"min_supported_protocol_version":"0","syft_client_install_source":"x\\"; touch owned; \\""}'
    for path in (f"identities/{A}/version.json", f"identities/{A}/SYFT_version.json"):
        researcher.control.store.put(path, version.encode())
    researcher.control.sync()
    researcher.control.submit(A, "heart-1", study_files())
    job = in_datasite(researcher, JOB, owner=A)
    assert (job / "run.sh").read_bytes() == RUN_SCRIPT
    assert researcher.control._connection.read_peer_version_file(A) is None
    assert b"touch" not in (job / "config.yaml").read_bytes()


# Defect 7: mock data.


def published(hospital: Party, researcher: Party, text: str = "age\n50\n") -> Path:
    mock = hospital.home / "mock.csv"
    mock.write_text(text)
    hospital.control.publish_dataset("heart", mock)
    (folder,) = Path(hospital.store_url, "collections", hospital.email).iterdir()
    return folder


def test_a_replaced_mock_is_refused(researcher, hospital):
    """`check_mock`: `found != manifest.files`."""
    folder = published(hospital, researcher)
    (folder / "mock.csv").write_text("age\n666\n")
    refused(researcher, "file mock.csv is not what")
    with pytest.raises(ControlError, match="no mock has come"):
        researcher.control.mock(A, "heart")


def test_a_mock_signed_by_somebody_else_is_refused(parties, researcher, hospital):
    """`check_mock`: the signature is that of the pinned owner."""
    folder = published(hospital, researcher)
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != SIGNED}
    manifest = MockManifest(owner=A, name="heart", version=9, mock="mock.csv", files=files)
    (folder / SIGNED).write_bytes(sign_mock(Identity.generate(A), manifest))
    refused(researcher, "signature does not verify")


def test_a_mock_of_another_hospital_is_refused(parties, researcher, hospital):
    """`check_mock`: owner and name."""
    folder = published(hospital, researcher)
    other = Path(hospital.store_url, "collections", B, folder.name)
    shutil.copytree(folder, other)
    researcher.control.sync()
    assert ["signature does not verify" in e.reason for e in researcher.control.quarantine.entries()] == [True]
    renamed = folder.parent / folder.name.replace("_heart_", "_stroke_")
    shutil.copytree(folder, renamed)
    refused(researcher, "signed as heart of")


def test_an_older_mock_does_not_come_back(researcher, hospital, tmp_path):
    """`fetch_mocks`: versions only rise."""
    folder = published(hospital, researcher)
    researcher.control.sync()
    shutil.copytree(folder, tmp_path / "old")
    published(hospital, researcher, "age\n60\n")
    researcher.control.sync()
    assert researcher.control.mock(A, "heart") == b"age\n60\n"
    shutil.copytree(tmp_path / "old", folder)
    refused(researcher, "older than 2")
    assert researcher.control.mock(A, "heart") == b"age\n60\n"


def test_a_mock_changed_on_our_own_disk_is_noticed(researcher, hospital):
    """`ResearcherControl.mock` checks again."""
    published(hospital, researcher)
    researcher.control.sync()
    in_datasite(researcher, "public/syft_datasets/heart/mock.csv", owner=A).write_text("age\n666\n")
    with pytest.raises(ValueError, match="is not what"):
        researcher.control.mock(A, "heart")


# Defect 8: trust on first use.


def test_a_stranger_cannot_become_a_peer(tmp_path, parties, hospital):
    """`StoreConnection._pinned`, `_Control._add_peer`: only pinned parties are peers (I9)."""
    mallory = make_parties(tmp_path / "m", hospital.store_url)[0]
    mallory.control._connection.email = "mallory@evil.example"
    mallory.control._connection.add_peer(A)
    hospital.control.sync()
    assert hospital.control._peers() == [RESEARCHER]
    assert "mallory@evil.example" in hospital.control.store.list(f"p2p/{A}")
    assert hospital.control._connection.get_peer_requests() == []
    with pytest.raises(IdentityError, match="is not pinned"):
        hospital.control.accept_peers(["mallory@evil.example"])


def test_a_peer_whose_keys_were_replaced_in_the_store_is_not_believed(tmp_path):
    """`checked_bundle` in `read_peer_encryption_bundle`: replaced before the first contact."""
    researcher, hospital, *_ = make_parties(tmp_path, str(tmp_path / "store"))
    mallory = make_parties(tmp_path / "m", str(tmp_path / "other"))[0]
    true = Path(researcher.store_url, "identities", RESEARCHER, "bundle.json")
    fake = Path(mallory.store_url, "identities", RESEARCHER, "bundle.json")
    keep = true.read_bytes()
    researcher.control.add_hospital(A)
    true.write_bytes(fake.read_bytes())
    hospital.control.accept_peers([RESEARCHER])
    hospital.control.sync()
    post(researcher, proposal(GOOD))
    post(mallory_as(mallory, hospital), proposal(GOOD, root=submission_folder(RESEARCHER, "evil")))
    for _ in range(3):
        hospital.control.sync()
    assert submissions(hospital) == {}
    (kept,) = hospital.control.quarantine.entries()
    assert "compare by telephone" in kept.reason
    true.write_bytes(keep)
    hospital.control.sync()
    assert submissions(hospital) == {"heart-1": {"model.py": b"x = 1\n"}}, "the true one waited and is taken"
    assert "not a message that rita@uni.example signed" in hospital.control.quarantine.entries()[-1].reason


def mallory_as(mallory: Party, hospital: Party) -> Party:
    """Mallory, who has pinned the true hospital and writes to its store."""
    mallory.stop()
    mallory.store_url = hospital.store_url
    mallory.roster = Roster(entries=(*(e for e in mallory.roster.entries if e.email != A), hospital.entry()))
    keep = Path(hospital.store_url, "identities", RESEARCHER, "bundle.json").read_bytes()
    mallory.start()
    Path(hospital.store_url, "identities", RESEARCHER, "bundle.json").write_bytes(keep)
    return mallory


def test_a_revoked_peer_is_heard_no_more(researcher, hospital):
    """`StoreConnection._get_peers_json`: the roster is asked at each sync."""
    hospital.control.pin(hospital.roster.without(RESEARCHER))
    post(researcher, proposal(GOOD))
    hospital.control.sync()
    assert submissions(hospital) == {}
    hospital.control.pin(hospital.roster)
    hospital.control.sync()
    assert list(submissions(hospital)) == ["heart-1"]


def test_nothing_is_sent_in_plain(researcher, hospital, tmp_path):
    """Code, approval and outputs are in no file of the store: raw, base64, or after gunzip."""
    researcher.control.submit(A, "heart-1", study_files("CANARY_CODE_1234"))
    files = {p: p.read_bytes() for p in Path(hospital.store_url).rglob("*") if p.is_file()}
    hospital.control.sync()
    hospital.control.jobs()
    hospital.control.record_approval("heart-1", "CANARY_REASON_1234")
    hospital.control.publish_result("heart-1", {"report.txt": b"CANARY_OUTPUT_1234"})
    hospital.control.sync()
    files |= {p: p.read_bytes() for p in Path(hospital.store_url).rglob("*") if p.is_file()}
    assert len(files) >= 9
    for path, data in files.items():
        texts = [data]
        with contextlib.suppress(zlib.error):
            texts.append(zlib.decompress(data, wbits=47))
        for text in texts:
            for canary in (b"CANARY_CODE_1234", b"CANARY_REASON_1234", b"CANARY_OUTPUT_1234"):
                assert canary not in text, path
                for shift in range(3):
                    assert base64.b64encode(b"\0" * shift + canary)[4:-4] not in text, path
    researcher.control.sync()
    assert researcher.control.job_state(A, "heart-1").reason == "CANARY_REASON_1234"


def test_nothing_is_sent_to_a_party_without_verified_keys(researcher, hospital):
    """`StrictPeerStore`: stock syft sends plaintext to a peer it has no keys of."""
    keys = researcher.control._keys
    keys.clear_caches()
    with pytest.raises(ValueError, match="No cached peer"):
        keys.encrypt_if_needed(A, b"plain")
