"""What other parties make a party keep is bounded, goes when it was not put in place, and is counted where it is left
out. Real parties over a folder; a full disk is a write that fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from datasites.transport import passed_over, quarantine
from datasites.transport.connection import StoreConnection
from datasites.transport.mailroom import Rejected, letter_key
from datasites.transport.quarantine import Quarantine
from datasites.transport.sealer import StrictPeerStore, open_keys
from datasites.transport.store_errors import StoreDenied
from datasites.transport.submissions import submission_folder
from datasites.transport.sweep import Seen
from datasites.transport.writing import INCOMING
from tests.transport.parties import HOSPITALS, RESEARCHER, STUDY, Party, study_files
from tests.transport.test_hostile_folder import Hands

A = HOSPITALS[0]


@pytest.fixture
def full_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names at whose writing the disk is full."""
    names: list[str] = []
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if any(name in path.name for name in names):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
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


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Filled to have a quarantine's disk full: its second file of an entry finds no room."""
    is_full: list[bool] = []
    open_file = os.open

    def full(path: str | Path, *rest: int) -> int:
        if is_full and str(path).endswith(".json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open_file(path, *rest)

    monkeypatch.setattr(quarantine.os, "open", full)
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
    for act in (lambda: kept.keep("later", "no letter"), kept.close):
        with pytest.raises(OSError, match="No space"):
            act()
    assert len(list(tmp_path.iterdir())) == 2 * 20, "no part of an entry stays"
    full_disk.clear()
    kept.keep("later", "no letter")
    *_, flood, last = kept.entries()
    assert (flood.what, last.what) == ("flood", "later")
    assert flood.reason.startswith("50 more")
    kept.close()
    assert len(kept.entries()) == 22


def test_what_could_not_be_recorded_is_recorded_or_counted_later(friends: list[Party], full_disk: list[bool]) -> None:
    """A folder that is out of order, which nobody can look at again, and names that are removed already."""
    connection = friends[1].control._connection
    assert isinstance(connection, StoreConnection)
    full_disk.append(True)
    with pytest.raises(OSError, match="No space"):
        connection.refuse_folder("collections/x", "a link")
    with pytest.raises(OSError, match="No space"):
        connection._report("p2p/x", Seen(wanted=[], removed=["a", "b", "c"], kept=0), "odd")
    full_disk.clear()
    connection.refuse_folder("collections/x", "a link")
    connection.quarantine.close()
    folder, flood = connection.quarantine.entries()
    assert (folder.what, flood.what) == ("collections/x", "flood")
    assert flood.reason.startswith("3 more")


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
