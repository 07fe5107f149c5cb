"""What one party or the store can lay in the way of all others: each costs its own message and nothing else.

Where a test needs a file that this user may not delete, deleting is made to fail: tests may run as root.
"""

from __future__ import annotations

import gzip
import io
import os
import socket
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from syft.sync.messages.proposed_filechange import MessageFileName

from datasites.control.connection import inbox_folder, outbox_folder
from datasites.control.submissions import MAX_CONFIG_BYTES, MESSAGE_FILE, outgoing_folder
from datasites.study.identity import IdentityError
from datasites.transport.mailroom import MAX_ROUND, Rejected, Undelivered, letter_folder, letter_key
from datasites.transport.store import Store, StoreError
from tests.transport.parties import HOSPITALS, RESEARCHER, STUDY, Party, befriend, make_parties, study_files

A, B, C = HOSPITALS
HUGE = 8 * 1024**3


@pytest.fixture
def parties(parties: list[Party]) -> list[Party]:
    befriend(parties[0], parties[1:])
    return parties


def message_name() -> str:
    return MessageFileName().as_string()


def gnu_sparse() -> bytes:
    entry = tarfile.TarInfo(MESSAGE_FILE)
    entry.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"%011o\0" % 0, b"%011o\0" % 0  # one hole: offset, bytes that are there
    header[483:495] = tarfile.itn(HUGE, 12, tarfile.GNU_FORMAT)
    return checksummed(header) + bytes(1024)


def pax_sparse() -> bytes:
    entry = tarfile.TarInfo(MESSAGE_FILE)
    entry.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(HUGE)}
    return entry.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


def a_link() -> bytes:
    entry = tarfile.TarInfo(MESSAGE_FILE)
    entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return entry.tobuf() + bytes(1024)


def checksummed(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("made", [gnu_sparse, pax_sparse, a_link])
def test_a_sparse_message_does_not_take_all_memory(researcher, hospital, made):
    """`bounded_message`: one plain file, of which at most 64 MiB are read."""
    message = gzip.compress(made())
    assert len(message) < 300
    with tarfile.open(fileobj=io.BytesIO(message)) as archive:
        assert made is a_link or archive.next().size == HUGE
    hospital.control.store.put(
        f"{inbox_folder(A, RESEARCHER)}/{message_name()}", researcher.control.sealer().seal(A, message)
    )
    tracemalloc.start()
    hospital.control.sync()
    assert tracemalloc.get_traced_memory()[1] < 64 * 1024**2
    tracemalloc.stop()
    assert "one plain file" in hospital.control.quarantine.entries()[-1].reason
    researcher.control.submit(A, "heart-1", study_files())
    hospital.control.sync()
    assert len(hospital.control.jobs()) == 1


@pytest.mark.parametrize(
    "name",
    [f"99999999999.round.{RESEARCHER}", f"{MAX_ROUND + 1:08d}.round.{RESEARCHER}", f"1.round.{RESEARCHER}",
     f"000000001.round.{RESEARCHER}", "00000001..@", "00000001"],
)  # fmt: skip
def test_a_name_that_no_letter_has_is_not_shown(researcher, hospital, name):
    """`Mailroom.mailbox`: whatever it lists can be received."""
    hospital.mailroom.store.put(f"{letter_folder(STUDY, A)}/{name}", b"")
    researcher.mailroom.send(A, STUDY, 1, "round", {"n": 1})
    assert hospital.mailroom.mailbox(STUDY) == [(1, "round", RESEARCHER)]
    for number, kind, sender in hospital.mailroom.mailbox(STUDY):
        assert hospital.mailroom.receive(sender, STUDY, number, kind).body == {"n": 1}


def lay_socket(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    here = Path.cwd()
    os.chdir(path.parent)  # socket paths are short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


def test_a_socket_in_the_store_is_refused_like_a_folder(researcher, hospital):
    """`store_errors`: ENXIO is `NotAFile`; in an inbox and in a mailbox."""
    lay_socket(Path(hospital.store_url, inbox_folder(A, RESEARCHER), message_name()))
    lay_socket(Path(hospital.store_url, letter_key(RESEARCHER, STUDY, A, 1, "round")))
    researcher.control.submit(A, "heart-1", study_files())
    hospital.control.sync()
    assert len(hospital.control.jobs()) == 1
    with pytest.raises(Rejected):
        hospital.mailroom.receive(RESEARCHER, STUDY, 1, "round")
    researcher.mailroom.send(A, STUDY, 1, "round", {"n": 1})
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "round").body == {"n": 1}


def lead_elsewhere(party: Party, folder: str, tmp_path: Path) -> None:
    place = Path(party.store_url, folder)
    if place.exists():
        place.rename(tmp_path / "moved-away")
    place.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to(tmp_path / "elsewhere")


def test_an_inbox_that_leads_elsewhere_stops_nobody_else(parties, tmp_path):
    """`_with_each`: reported once, no error from `sync`; `Store.snapshot` and `wait` go on."""
    researcher, hospital, second, _ = parties
    lead_elsewhere(hospital, f"p2p/{A}/{RESEARCHER}", tmp_path)
    for _ in range(3):
        hospital.control.sync()
    assert len(hospital.control.quarantine.entries()) <= 3
    before = len(hospital.control.quarantine.entries())
    hospital.control.sync()
    assert len(hospital.control.quarantine.entries()) == before
    folders = hospital.control.folders()
    assert not hospital.control.store.wait(folders, 0.1, since=hospital.control.store.snapshot(folders))
    with pytest.raises(StoreError):
        researcher.control.submit(A, "heart-1", study_files())
    researcher.control.submit(B, "heart-1", study_files())
    second.control.sync()
    assert len(second.control.jobs()) == 1
    researcher.control.sync()


def test_an_outbox_that_leads_elsewhere_does_not_end_the_researchers_sync(researcher, hospital, tmp_path):
    """`WatcherSyncer.sync_down`: as above, on the other side."""
    lead_elsewhere(researcher, outbox_folder(A, RESEARCHER), tmp_path)
    researcher.control.sync()
    researcher.control.sync()
    assert len(researcher.control.quarantine.entries()) == 1


@pytest.fixture
def undeletable(monkeypatch) -> list[str]:
    """Keys that can be read and not removed, like another user's in a folder with the sticky bit."""
    keys: list[str] = []
    delete = Store.delete

    def denied(store: Store, key: str) -> None:
        if key in keys:
            raise StoreError(f"{key}: not yours")
        delete(store, key)

    monkeypatch.setattr(Store, "delete", denied)
    return keys


def test_a_bad_letter_that_cannot_be_removed_is_reported_once(parties, undeletable):
    """`Mailroom._remove`: not once per look; and a wait does not return it again at once."""
    researcher, hospital, other, _ = parties
    key = letter_key(RESEARCHER, STUDY, A, 1, "round")
    undeletable.append(key)
    hospital.mailroom.store.put(key, b"garbage")
    with pytest.raises(Rejected):
        hospital.mailroom.receive(RESEARCHER, STUDY, 1, "round")
    for _ in range(3):
        assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "round") is None
    assert len(hospital.mailroom.quarantine.entries()) == 1
    assert hospital.mailroom.mailbox(STUDY) == []
    assert hospital.mailroom.wait([(RESEARCHER, STUDY, 1, "round")], 0.05) == []
    other.mailroom.send(A, STUDY, 1, "round", {"n": 2})
    assert hospital.mailroom.receive(B, STUDY, 1, "round").body == {"n": 2}
    hospital.mailroom.collect(STUDY, before=5)
    assert hospital.mailroom.receive(B, STUDY, 1, "round") is None, "what may be removed is"


def test_handled_messages_that_cannot_be_removed_do_not_fill_the_channel(researcher, hospital, undeletable):
    """`StoreConnection.remove`: a share where each party owns its files; 100 of them must not hide the next."""
    for number in range(3):
        researcher.control.submit(A, f"heart-{number}", study_files())
        folder = inbox_folder(A, RESEARCHER)
        undeletable.extend(f"{folder}/{name}" for name in hospital.control.store.list(folder))
        hospital.control.sync()
        hospital.control.sync()
    assert len(hospital.control.jobs()) == 3
    assert hospital.control.quarantine.entries() == []
    assert hospital.control.jobs(known=[("heart-0", RESEARCHER), ("heart-1", RESEARCHER)])[0].name == "heart-2"


def test_one_recipient_with_foreign_keys_keeps_a_letter_from_nobody_else(parties, tmp_path):
    """`Mailroom.send_all`: `Undelivered` after all others were sent; `send` says why."""
    researcher, hospital, second, third = parties
    researcher.restart()
    bundle = Path(researcher.store_url, f"identities/{A}/bundle.json")
    true = bundle.read_bytes()
    bundle.write_bytes(Path(researcher.store_url, f"identities/{B}/bundle.json").read_bytes())
    with pytest.raises(Undelivered) as caught:
        researcher.mailroom.send_all([A, B, C], STUDY, 1, "round", {"n": 1}, b"x" * 100_000)
    assert list(caught.value.failures) == [A]
    with pytest.raises(IdentityError):
        researcher.mailroom.send(A, STUDY, 1, "round", {"n": 1}, b"x" * 100_000)
    for party in (second, third):
        assert party.mailroom.receive(RESEARCHER, STUDY, 1, "round").body == {"n": 1}
    bundle.write_bytes(true)
    researcher.mailroom.send_all([A, B, C], STUDY, 1, "round", {"n": 1}, b"x" * 100_000)
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "round").body == {"n": 1}


@pytest.mark.parametrize(
    "text",
    [b"a: [", b"- 1", b"status: nonsense", b"\xff\xfe", b"a: &a [1]\nb: *a\n", b"x: " + b"y" * MAX_CONFIG_BYTES,
     b"status: [approved]", b"[" * 3000],
)  # fmt: skip
def test_a_hospitals_unreadable_state_is_its_own(parties, text):
    """`ResearcherControl.job_state`: raises nothing for what a hospital wrote."""
    researcher, hospital, second, _ = parties
    for email in (A, B):
        researcher.control.submit(email, "heart-1", study_files())
    for party in (hospital, second):
        party.control.sync()
        party.control.jobs()
    second.control.record_approval("heart-1", "approved")
    state = hospital.home / "SyftBox" / A / outgoing_folder(RESEARCHER) / "heart-1" / "state.yaml"
    assert state.is_file()
    state.write_bytes(text)
    hospital.control.sync()
    second.control.sync()
    researcher.control.sync()
    assert researcher.control.job_state(A, "heart-1").state == "unreadable"
    assert researcher.control.job_state(B, "heart-1").state == "approved"


def test_a_decision_that_was_lost_on_its_way_comes_again_with_the_submission(researcher, hospital):
    """`OwnerSyncer._place`: the same submission again has its state sent again."""
    researcher.control.submit(A, "heart-1", study_files())
    hospital.control.sync()
    hospital.control.jobs()
    hospital.control.record_approval("heart-1", "approved")
    hospital.control.sync()
    for lost in Path(researcher.store_url, outbox_folder(A, RESEARCHER)).iterdir():
        lost.unlink()
    hospital.control.sync()
    researcher.control.sync()
    assert researcher.control.job_state(A, "heart-1").state == "submitted"
    researcher.control.submit(A, "heart-1", study_files())
    hospital.control.sync()
    researcher.control.sync()
    assert researcher.control.job_state(A, "heart-1").state == "approved"


@pytest.mark.parametrize("url", ["s3:/bucket/prefix", "file:/x", "webdav:", "SSH:/host"])
def test_half_a_url_makes_no_folder(tmp_path, monkeypatch, url):
    """`local_path`."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="//"):
        Store(url)
    assert list(tmp_path.iterdir()) == []


def test_an_incomplete_roster_entry_keeps_no_other_peer_out(tmp_path):
    """`HospitalControl.accept_peers`: a researcher pinned without syft fingerprint is named after the others."""
    researcher, hospital = make_parties(tmp_path, str(tmp_path / "store"), (A,))
    incomplete = researcher.entry().model_copy(
        update={"email": "ada@uni.example", "syft_fingerprint": "", "public_key": "1" * 64}
    )
    hospital.control.pin(hospital.roster.pin(incomplete))
    with pytest.raises(IdentityError, match="ada@uni.example has no syft fingerprint"):
        hospital.control.accept_peers(["ada@uni.example", RESEARCHER])
    researcher.control.add_hospital(A)
    researcher.control.submit(A, "heart-1", study_files())
    hospital.control.sync()
    assert len(hospital.control.jobs()) == 1
    for party in (researcher, hospital):
        party.stop()
