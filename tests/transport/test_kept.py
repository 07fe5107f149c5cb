"""What other parties make a party keep is bounded, goes when it was not put in place, and is counted where it is left
out. Real parties over a folder; a full disk is a write that fails."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from syft.sync.events.file_change_event import FileChangeEventsMessageFileName
from syft_rds.config import COLLECTION_SUBPATH

from datasites.control import guards, mocks, sync_state
from datasites.control.connection import StoreConnection, outbox_folder
from datasites.control.mocks import SIGNED, SignedMock, sign_mock
from datasites.control.sealer import StrictPeerStore, open_keys
from datasites.control.submissions import outgoing_folder, submission_folder
from datasites.transport import blobs, mailroom, passed_over, quarantine
from datasites.transport.mailroom import Rejected, letter_key
from datasites.transport.quarantine import Quarantine
from datasites.transport.store import Store, StoreDenied, StoreUnreachable
from datasites.transport.sweep import FolderLook
from datasites.transport.writing import INCOMING
from tests.transport.clock import Hands
from tests.transport.outboxes import STATE, announce, event, refused, state_of
from tests.transport.parties import HOSPITALS, RESEARCHER, STUDY, Party, make_parties, study_files

A = HOSPITALS[0]


@pytest.fixture
def full_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names at whose writing the disk is full."""
    names: list[str] = []
    write, open_new = Path.write_bytes, os.open

    def require_room(path: str | Path) -> None:
        if any(name in Path(path).name for name in names):
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(path: Path, data: bytes) -> int:
        require_room(path)
        return write(path, data)

    def full_when_made(path: str | Path, flags: int, *mode: int, **folder: int) -> int:
        if flags & os.O_CREAT:
            require_room(path)
        return open_new(path, flags, *mode, **folder)

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(os, "open", full_when_made)
    return names


def staged_by(party: Party) -> list[Path]:
    return sorted((party.home / "SyftBox" / INCOMING).glob("*"))


def test_a_submission_that_finds_no_room_leaves_nothing_and_is_taken_later(
    friends: list[Party], full_at: list[str]
) -> None:
    researcher, hospital, *_ = friends
    researcher.control.submit(A, "heart-1", {**study_files(), "zz.txt": b"last"})
    full_at.append("zz.txt")
    for _ in range(3):
        hospital.control.sync()
        assert staged_by(hospital) == []
        assert hospital.control.jobs() == []
    full_at.clear()
    hospital.control.sync()
    assert [job.files["zz.txt"] for job in hospital.control.jobs()] == [b"last"]


def test_a_study_that_could_not_be_submitted_leaves_nothing_in_the_next(
    friends: list[Party], full_at: list[str]
) -> None:
    researcher, hospital, *_ = friends
    full_at.append("zz.txt")
    with pytest.raises(OSError, match="No space"):
        researcher.control.submit(A, "heart-1", {**study_files(), "old.py": b"old = 1\n", "zz.txt": b"last"})
    job = researcher.home / "SyftBox" / A / submission_folder(RESEARCHER, "heart-1")
    assert staged_by(researcher) == list(job.parent.glob("*")) == []
    full_at.clear()
    researcher.control.submit(A, "heart-1", study_files())
    assert {path.name for path in (job / "code").iterdir()} == set(study_files())
    hospital.control.sync()
    assert [set(job.files) for job in hospital.control.jobs()] == [set(study_files())]


def test_keys_that_could_not_be_saved_leave_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = StrictPeerStore.save_keys

    def cut(keys: StrictPeerStore, path: Path) -> None:
        save(keys, path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(StrictPeerStore, "save_keys", cut)
    with pytest.raises(OSError, match="No space"):
        open_keys(A, tmp_path / "syft_keys.json")
    assert list(tmp_path.iterdir()) == []


def test_syft_keys_are_on_the_disk_before_their_fingerprint_is_given_to_anybody(
    tmp_path: Path, synced: list[str]
) -> None:
    open_keys(A, tmp_path / "syft_keys.json")
    assert synced == [str(tmp_path / "syft_keys.tmp"), str(tmp_path)]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Filled to have a quarantine's disk full: its second file of an entry finds no room."""
    is_full: list[bool] = []
    write = Quarantine._write_file

    def full(self: Quarantine, name: str, content: bytes) -> None:
        if is_full and name.endswith(".json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, name, content)

    monkeypatch.setattr(Quarantine, "_write_file", full)
    return is_full


def test_a_count_that_could_not_be_written_is_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: list[bool]
) -> None:
    monkeypatch.setattr(quarantine, "KEEP_PER_HOUR", 20)
    clock, kept = Hands(monkeypatch, quarantine), Quarantine(tmp_path)
    for number in range(70):
        kept.keep(f"key-{number}", "no letter")
    clock.now += quarantine.HOUR
    full_disk.append(True)
    kept.keep("lost", "no letter")
    kept.close()
    assert len(list(tmp_path.iterdir())) == 2 * 20, "no part of an entry stays"
    full_disk.clear()
    kept.keep("later", "no letter")
    *_, flood, last = kept.entries()
    assert (flood.what, last.what) == ("flood", "later")
    assert flood.reason.startswith("51 more")
    kept.close()
    assert len(kept.entries()) == 22


def test_what_could_not_be_recorded_is_counted(friends: list[Party], full_disk: list[bool]) -> None:
    """A folder that is out of order, keys that are not the pinned ones, and names that are removed already: nobody
    tries these again."""
    connection = friends[1].control._connection
    assert isinstance(connection, StoreConnection)
    full_disk.append(True)
    connection.refuse_folder("collections/x", "a link")
    connection.store.put(f"identities/{RESEARCHER}/bundle.json", b"no keys")
    for _ in range(2):
        assert connection.read_peer_encryption_bundle(RESEARCHER) is None
    connection._report("p2p/x", FolderLook(wanted=[], removed=["a", "b", "c"], kept=0), "odd")
    full_disk.clear()
    connection.refuse_folder("collections/x", "a link")
    connection.quarantine.close()
    (flood,) = connection.quarantine.entries()
    assert flood.reason.startswith("5 more")


@pytest.mark.parametrize("bad", ["folder", "message", "mock"])
def test_what_is_refused_while_the_disk_is_full_holds_up_nobody(
    friends: list[Party], full_disk: list[bool], bad: str
) -> None:
    """Another of its kind may lie there at each sync; who comes later has its turn."""
    researcher, hospital, other, *_ = friends
    for one in (hospital, other):
        researcher.control.submit(one.email, "heart-1", study_files())
    full_disk.append(True)
    for number, state in enumerate(("pending", "approved"), 1):
        if bad == "folder":
            box = Path(hospital.store_url, "p2p", A, RESEARCHER, "outbox")
            box.parent.mkdir(parents=True, exist_ok=True)
            box.unlink(missing_ok=True)
            box.symlink_to("/etc")
        elif bad == "message":
            name = FileChangeEventsMessageFileName(timestamp=float(number)).as_string()
            hospital.control.store.put(f"{outbox_folder(A, RESEARCHER)}/{name}", b"no message")
        else:
            publish(hospital, f"d{number}")
            for folder in Path(hospital.store_url, "collections", A).iterdir():
                (folder / "mock.csv").write_bytes(b"x")
        announce(other, event(STATE, state_of(state), owner=other.email), channel=other.email, number=float(number))
        researcher.control.sync()
        assert researcher.control.job_state(other.email, "heart-1").state == state
    full_disk.clear()
    researcher.control.quarantine.close()
    assert ["more were refused" in entry.reason for entry in researcher.control.quarantine.entries()] == [True]


@pytest.mark.parametrize("bad", [True, False])
def test_a_log_that_finds_no_room_holds_up_nobody(friends: list[Party], bad: bool) -> None:
    """SQLite itself has no room, when a message of one hospital is refused or taken; the next one has its turn."""
    researcher, hospital, other, *_ = friends
    for one in (hospital, other):
        researcher.control.submit(one.email, "heart-1", study_files())
        announce(one, event(STATE, state_of("pending"), owner=one.email), channel=one.email, number=1.0)
    researcher.control.sync()
    announce(hospital, event("x/" + STATE if bad else STATE, state_of("approved")), number=2.0)
    announce(other, event(STATE, state_of("approved"), owner=other.email), channel=other.email, number=2.0)
    database = researcher.control._connection.log._database
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    for width in (200, 10):
        with pytest.raises(sqlite3.OperationalError, match="full"):
            database.executemany("INSERT INTO handled VALUES (?, ?)", ((A, f"{n:0{width}d}") for n in range(10_000)))
    researcher.control.sync()
    assert researcher.control.job_state(other.email, "heart-1").state == "approved"
    database.execute("PRAGMA max_page_count = 1000000")
    researcher.control.sync()
    assert researcher.control.job_state(A, "heart-1").state == ("pending" if bad else "approved")
    assert researcher.control.store.list(outbox_folder(other.email, RESEARCHER)) == []


def test_a_mock_that_no_log_has_room_for_holds_up_no_other_hospital(
    friends: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    researcher, hospital, other, *_ = friends
    mark = sync_state.SyncLog.mark_mock

    def full(log: sync_state.SyncLog, owner: str, *mock: Any) -> None:
        if owner == A:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mark(log, owner, *mock)

    for one in (hospital, other):
        publish(one, "heart")
    monkeypatch.setattr(sync_state.SyncLog, "mark_mock", full)
    researcher.control.sync()
    assert [manifest.name for manifest in researcher.control.datasets(other.email)] == ["heart"]


def test_what_nobody_foresaw_at_one_hospital_holds_up_no_other(
    friends: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    researcher, hospital, other, *_ = friends
    mark = sync_state.SyncLog.mark_mock

    def broken(log: sync_state.SyncLog, owner: str, *mock: Any) -> None:
        if owner == A:
            raise LookupError("nobody foresaw this")
        mark(log, owner, *mock)

    for one in (hospital, other):
        publish(one, "heart")
    monkeypatch.setattr(sync_state.SyncLog, "mark_mock", broken)
    with pytest.raises(LookupError):
        researcher.control.sync()
    assert [manifest.name for manifest in researcher.control.datasets(other.email)] == ["heart"]


def test_who_stops_while_the_disk_is_full_stops_whole(
    friends: list[Party], full_disk: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    """Mailroom and control, each with a count that is owed; the log has it."""
    hospital = friends[1]
    full_disk.append(True)
    for kept in (hospital.mailroom.quarantine, hospital.control.quarantine):
        kept.keep("lost", "no letter")
    journal, log = hospital.mailroom._journal, hospital.control._connection.log
    hospital.mailroom.close()
    hospital.control.close()
    hospital.mailroom = hospital.control = None
    assert caplog.text.count("1 that were refused are not counted") == 2
    for database in (journal._database, log._database):
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            database.execute("SELECT 1")


def test_a_letter_that_is_refused_while_the_disk_is_full_makes_room_for_the_true_one(
    parties: list[Party], full_disk: list[bool]
) -> None:
    researcher, hospital, *_ = parties
    full_disk.append(True)
    hospital.mailroom.store.put(letter_key(RESEARCHER, STUDY, A, 1, "round"), b"no letter")
    with pytest.raises(Rejected):
        hospital.mailroom.receive(RESEARCHER, STUDY, 1, "round")
    researcher.mailroom.send(A, STUDY, 1, "round", {})
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 1, "round") is not None


def test_what_is_passed_over_is_remembered_within_bounds(friends: list[Party], monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of mock data, keys that differ at each look, letters that can't be removed: whoever lays them, and how
    many. The newest are known, and reported once."""
    monkeypatch.setattr(passed_over, "MOST_PASSED_OVER", 20)
    monkeypatch.setattr(quarantine, "KEEP_PER_HOUR", 1_000)
    researcher, hospital, *_ = friends
    connection, room = researcher.control._connection, hospital.mailroom
    for number in range(100):
        connection.refuse_folder(f"collections/{A}/{number}", "no mock", rest=60.0)
        connection.store.put(f"identities/{A}/bundle.json", b"%d" % number)
        assert connection.read_peer_encryption_bundle(A) is None
    assert len(connection._stuck._known) <= 20
    assert [connection.rests(f"collections/{A}/{number}") for number in (0, 95, 99)] == [False, True, True]
    before = len(connection.quarantine.entries())
    connection.refuse_folder(f"collections/{A}/99", "no mock", rest=60.0)
    assert len(connection.quarantine.entries()) == before

    def denied(key: str) -> None:
        raise StoreDenied(key)

    monkeypatch.setattr(room.store, "delete", denied)
    for number in range(1, 60):
        room.store.put(letter_key(RESEARCHER, STUDY, A, number, "round"), b"no letter")
        with pytest.raises(Rejected):
            room.receive(RESEARCHER, STUDY, number, "round")
        assert room.receive(RESEARCHER, STUDY, number, "round") is None
    assert len(room._stuck._known) <= 20


def mocks_at(researcher: Party) -> dict[str, set[str]]:
    """Files of the mocks that a researcher keeps of A, by dataset."""
    root = researcher.home / "SyftBox" / A / COLLECTION_SUBPATH
    return {folder.name: {file.name for file in folder.iterdir()} for folder in root.glob("*")}


def publish(hospital: Party, name: str, file: str = "mock.csv", size: int = 1_000) -> None:
    (hospital.home / file).write_bytes(os.urandom(size))
    hospital.control.publish_dataset(name, hospital.home / file)


@pytest.mark.parametrize("limit", [("MOST_MOCKS", 3), ("MOST_MOCKS_BYTES", 7_000)])
def test_mocks_of_one_owner_are_bounded(
    friends: list[Party], monkeypatch: pytest.MonkeyPatch, limit: tuple[str, int]
) -> None:
    monkeypatch.setattr(mocks, *limit)
    researcher, hospital, *_ = friends
    for number in range(5):
        publish(hospital, f"d{number}")
    for _ in range(2):
        researcher.control.sync()
    kept = set(mocks_at(researcher))
    assert 2 <= len(kept) <= 3
    assert {"are the most" in entry.reason for entry in researcher.control.quarantine.entries()} == {True}
    researcher.restart()
    researcher.control.sync()
    assert set(mocks_at(researcher)) == kept
    publish(hospital, min(kept), "other.csv")
    researcher.control.sync()
    assert "other.csv" in mocks_at(researcher)[min(kept)], "another version takes the place of the one before"


def test_of_a_mock_only_its_newest_version_is_kept(friends: list[Party]) -> None:
    researcher, hospital, *_ = friends
    for number in range(4):
        publish(hospital, "heart", f"mock{number}.csv")
        researcher.control.sync()
    assert mocks_at(researcher) == {"heart": {"dataset.yaml", SIGNED, "mock3.csv"}}


def test_a_mock_that_finds_no_room_holds_up_no_other_and_is_taken_later(
    friends: list[Party], full_at: list[str]
) -> None:
    researcher, hospital, *_ = friends
    publish(hospital, "heart", "old.csv")
    researcher.control.sync()
    publish(hospital, "heart", "big.csv")
    publish(hospital, "lung", "small.csv")
    full_at.append("big.csv")
    for _ in range(2):
        researcher.control.sync()
        assert staged_by(researcher) == []
        assert {name: sorted(files)[-1] for name, files in mocks_at(researcher).items()} == {
            "heart": "old.csv",
            "lung": "small.csv",
        }
    full_at.clear()
    researcher.control.sync()
    assert "big.csv" in mocks_at(researcher)["heart"]
    assert researcher.control.quarantine.entries() == []


def test_a_sync_reads_bounded_bytes_of_one_owners_mocks(friends: list[Party], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many folders hold what its owner signed with other contents; what was not refused is read first."""
    monkeypatch.setattr(mocks, "BYTES_PER_SYNC", 20_000)
    monkeypatch.setattr(mocks, "LOOKS_EVERY", 0.0)
    researcher, hospital, *_ = friends
    publish(hospital, "heart")
    (true,) = Path(hospital.store_url, "collections", A).iterdir()
    for number in range(6):
        junk = true.with_name(f"{true.name.rpartition('_')[0]}_{number:012x}")
        shutil.copytree(true, junk)
        (junk / "mock.csv").write_bytes(b"x" * 15_000)
    true.rename(true.with_name(f"{true.name.rpartition('_')[0]}_{'f' * 12}"))
    read: list[int] = []
    get = Store.get

    def counted(store: Store, key: str, limit: int | None = None) -> bytes | None:
        data = get(store, key, limit)
        read.append(len(data or b""))
        return data

    monkeypatch.setattr(Store, "get", counted)
    for _ in range(4):
        assert mocks_at(researcher) == {}
        read.clear()
        researcher.control.sync()
        assert sum(read) < 20_000 + 16_000 + 10_000
    assert set(mocks_at(researcher)) == {"heart"}


def outputs_at(researcher: Party) -> set[str]:
    root = researcher.home / "SyftBox" / A / outgoing_folder(RESEARCHER)
    return {file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()}


def test_outputs_of_what_was_not_submitted_are_refused(friends: list[Party]) -> None:
    researcher, hospital, *_ = friends
    for job in ("heart-1", "other"):
        announce(hospital, event(f"{outgoing_folder(RESEARCHER)}/{job}/outputs/x.bin", b"x"))
        announce(hospital, event(f"{outgoing_folder(RESEARCHER)}/{job}/state.yaml", state_of("approved")))
    researcher.control.submit(A, "heart-1", study_files())
    researcher.control.sync()
    assert outputs_at(researcher) == {"heart-1/outputs/x.bin", "heart-1/state.yaml"}
    reasons = [entry.reason for entry in researcher.control.quarantine.entries()]
    assert ["of our submissions only" in reason for reason in reasons] == [True, True]


@pytest.mark.parametrize("limit", [("MOST_RESULTS", 3), ("MOST_RESULTS_BYTES", 3_500)])
def test_outputs_of_one_hospital_are_bounded(
    friends: list[Party], monkeypatch: pytest.MonkeyPatch, limit: tuple[str, int]
) -> None:
    """However they are spread over messages, and over starts of the researcher; another version takes no more room."""
    monkeypatch.setattr(guards, *limit)
    researcher, hospital, *_ = friends
    researcher.control.submit(A, "heart-1", study_files())
    outputs = f"{outgoing_folder(RESEARCHER)}/heart-1/outputs"
    announce(hospital, *(event(f"{outputs}/all-{number}", b"x" * 1_000) for number in range(5)))
    for number in range(3):
        announce(hospital, event(f"{outputs}/x-{number}", b"x" * 1_000), number=1.0 + number)
    researcher.control.sync()
    kept = {f"heart-1/outputs/x-{number}" for number in range(3)}
    assert outputs_at(researcher) == kept
    researcher.restart()
    announce(hospital, event(f"{outputs}/more", b"x" * 1_000), number=8.0)
    announce(hospital, event(f"{outputs}/x-1", b"y" * 1_000), number=9.0)
    researcher.control.sync()
    assert outputs_at(researcher) == kept
    assert researcher.control.results(A, "heart-1")["x-1"] == b"y" * 1_000
    assert ["are the most" in entry.reason for entry in researcher.control.quarantine.entries()] == [True, True]


@pytest.mark.parametrize("number", [1e300, -1e300, 2.0**63])
def test_a_number_that_no_log_holds_stops_nobodys_sync(friends: list[Party], number: float) -> None:
    researcher, hospital, *_ = friends
    researcher.control.submit(A, "heart-1", study_files())
    announce(hospital, event(STATE, state_of("approved")), number=number)
    refused(researcher, "its number is larger than")


def test_a_version_that_no_log_holds_stops_nobodys_sync(friends: list[Party]) -> None:
    researcher, hospital, *_ = friends
    publish(hospital, "heart")
    (folder,) = Path(hospital.store_url, "collections", A).iterdir()
    manifest = SignedMock.parse((folder / SIGNED).read_bytes()).manifest.model_copy(update={"version": 2**63})
    (folder / SIGNED).write_bytes(sign_mock(hospital.identity, manifest))
    refused(researcher, "less than or equal to")


def test_messages_that_are_remembered_are_bounded(friends: list[Party], monkeypatch: pytest.MonkeyPatch) -> None:
    """Then no further one is taken, from that sender alone; what was handled before is a replay all the same."""
    for module in (guards, sync_state):
        monkeypatch.setattr(module, "MOST_HANDLED", 3)
    researcher, hospital, other, *_ = friends
    researcher.control.submit(A, "heart-1", study_files())
    researcher.control.submit(other.email, "heart-1", study_files())
    key = announce(hospital, event(STATE, state_of("pending")), number=1.0)
    old = hospital.control.store.get(key)
    announce(hospital, event(STATE, state_of("approved")), number=2.0)
    announce(hospital, event(STATE, b"x", new_hash="0" * 64), number=3.0)
    researcher.control.sync()
    researcher.restart()
    for number in (4.0, 5.0):
        announce(hospital, event(STATE, state_of("rejected")), number=number)
        refused(researcher, "needs another address")
    hospital.control.store.put(key, old)
    refused(researcher, "a replay")
    assert researcher.control._connection.log._handled == {A: 3}
    announce(other, event(STATE, state_of("approved"), owner=other.email), channel=other.email)
    researcher.control.sync()
    assert [researcher.control.job_state(one, "heart-1").state for one in (A, other.email)] == ["approved"] * 2


@pytest.fixture
def far_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Party]]:
    """A researcher and a hospital over a store that is no folder, and blobs of small parts."""
    monkeypatch.setattr(blobs, "PART_BYTES", 1_000)
    parties = make_parties(tmp_path, f"memory://{tmp_path.name}", HOSPITALS[:1])
    yield parties
    for party in parties:
        party.stop()


def test_parts_of_a_blob_that_is_refused_or_read_do_not_stay(far_away: list[Party]) -> None:
    researcher, hospital = far_away
    folder = blobs.blob_folder(STUDY, RESEARCHER)
    for number, cut in ((1, True), (2, True), (3, False)):
        researcher.mailroom.send(A, STUDY, number, "round", {}, os.urandom(blobs.PART_BYTES * 90))
        if cut:
            researcher.mailroom.store.delete(f"{folder}/{max(researcher.mailroom.store.list(folder))}")
            with pytest.raises(Rejected, match="part 89 of 90 is missing"):
                hospital.mailroom.receive(RESEARCHER, STUDY, number, "round")
        else:
            assert hospital.mailroom.receive(RESEARCHER, STUDY, number, "round") is not None
        assert list((hospital.home / "state" / "mail" / "partial").iterdir()) == []


def test_a_blob_of_a_refused_letter_that_cannot_be_removed_is_fetched_seldom(
    far_away: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is asked for; and a blob that came late, or a letter that was put again, is taken."""
    researcher, hospital = far_away
    blob, folder, clock = os.urandom(90_000), blobs.blob_folder(STUDY, RESEARCHER), Hands(monkeypatch, passed_over)
    store, fetched = hospital.mailroom.store, list[str]()
    get, delete = store.get, store.delete

    def counted(key: str, limit: int | None = None) -> bytes | None:
        fetched.append(key)
        return get(key, limit)

    def denied(key: str) -> None:
        raise StoreDenied(key)

    monkeypatch.setattr(store, "get", counted)
    monkeypatch.setattr(store, "delete", denied)
    for number, comes in enumerate(("late", "again"), 1):
        known = set(store.list(folder))
        researcher.mailroom.send(A, STUDY, number, "round", {}, blob)
        part = f"{folder}/{max(set(store.list(folder)) - known)}"
        last = get(part)
        assert last is not None
        delete(part)
        with pytest.raises(Rejected, match="part 89 of 90 is missing"):
            hospital.mailroom.receive(RESEARCHER, STUDY, number, "round")
        for rest in (mailroom.STUCK_RESTS, 0.0):
            fetched.clear()
            for _ in range(3):
                assert hospital.mailroom.receive(RESEARCHER, STUDY, number, "round") is None
            assert [key for key in fetched if key.startswith("blobs/")] == []
            clock.now += rest
            assert hospital.mailroom.receive(RESEARCHER, STUDY, number, "round") is None
        store.put(part, last)
        if comes == "late":
            clock.now += mailroom.STUCK_RESTS
        else:
            delete(letter_key(RESEARCHER, STUDY, A, number, "round"))
            assert hospital.mailroom.receive(RESEARCHER, STUDY, number, "round") is None
            researcher.mailroom.send(A, STUDY, number, "round", {}, blob)
        letter = hospital.mailroom.receive(RESEARCHER, STUDY, number, "round")
        assert letter is not None
        assert letter.blob == blob


def test_a_true_letter_over_one_that_cannot_be_removed_is_found_again(
    parties: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever looks what lies there, as by who asks for it by name; what is still bad is looked at seldom."""
    researcher, hospital, *_ = parties
    room, letter, clock = hospital.mailroom, (RESEARCHER, STUDY, 1, "round"), Hands(monkeypatch, passed_over)

    def denied(key: str) -> None:
        raise StoreDenied(key)

    monkeypatch.setattr(room.store, "delete", denied)
    room.store.put(letter_key(RESEARCHER, STUDY, A, 1, "round"), b"no letter")
    with pytest.raises(Rejected):
        room.receive(*letter)
    for _ in range(3):
        assert (room.mailbox(STUDY), room.wait([letter], 0.0)) == ([], [])
        clock.now += mailroom.STUCK_RESTS
        assert (room.mailbox(STUDY), room.signed([letter])) == ([(1, "round", RESEARCHER)], [])
        assert room.receive(*letter) is None
    assert len(room.quarantine.entries()) == 1
    researcher.mailroom.send(A, STUDY, 1, "round", {"n": 1})
    clock.now += mailroom.STUCK_RESTS
    assert room.mailbox(STUDY) == [(1, "round", RESEARCHER)]
    assert room.wait([letter], 0.0) == room.signed([letter]) == [letter]
    assert room.receive(*letter) is not None


def test_parts_of_broken_off_downloads_are_bounded(far_away: list[Party], monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest are kept and not fetched again."""
    most = 250_000
    monkeypatch.setattr(blobs, "MOST_PARTIAL_BYTES", most)
    researcher, hospital = far_away
    partial = hospital.home / "state" / "mail" / "partial"
    store, fetched, is_away = hospital.mailroom.store, list[str](), [True]
    get = store.get

    def broken(key: str, limit: int | None = None) -> bytes | None:
        if is_away and key.endswith(".000089"):
            raise StoreUnreachable(key)
        fetched.append(key)
        return get(key, limit)

    monkeypatch.setattr(store, "get", broken)
    for number in range(1, 6):
        researcher.mailroom.send(A, STUDY, number, "round", {}, os.urandom(blobs.PART_BYTES * 90))
        with pytest.raises(StoreUnreachable):
            hospital.mailroom.receive(RESEARCHER, STUDY, number, "round")
        assert 80_000 < sum(part.stat().st_size for part in partial.iterdir()) <= most
    is_away.clear()
    fetched.clear()
    assert hospital.mailroom.receive(RESEARCHER, STUDY, 5, "round") is not None
    assert len([key for key in fetched if key.startswith("blobs/")]) == 1
