"""A flood of names in a folder of the control plane hides nobody's messages for good, and goes; see `sweep`."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from syft.sync.messages.proposed_filechange import MessageFileName
from syft_datasets.dataset_manager import DATASET_COLLECTION_PREFIX

from datasites.control import mocks
from datasites.control.connection import inbox_folder, outbox_folder
from datasites.control.guards import FEW_MESSAGES
from datasites.transport import filesystems, store, sweep
from datasites.transport.filesystems import FolderFiles
from datasites.transport.store import Store, StoreError
from datasites.transport.sweep import Sweep
from tests.transport.clock import Hands
from tests.transport.parties import HOSPITALS, RESEARCHER, Party, settle, study_files

A = HOSPITALS[0]
MOST, FLOOD = 50, 1000

Lay = Callable[[Path, int], None]


def lay_hidden(folder: Path, number: int) -> None:
    (folder / f".x{number}").touch()


def lay_junk(folder: Path, number: int) -> None:
    (folder / f"junk-{number}").touch()


def lay_odd(folder: Path, number: int) -> None:
    """Names that no put can make, one of them no text."""
    (folder / f"é {number}\n").touch()
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff%d" % number)).touch()


def lay_links(folder: Path, number: int) -> None:
    (folder / f"junk-{number}").symlink_to("/etc")


def lay_folders(folder: Path, number: int) -> None:
    (folder / f"junk-{number}").mkdir()


def lay_full_folders(folder: Path, number: int) -> None:
    """They can't be removed under their name, as another party's files can't on some shares."""
    (folder / f"junk-{number}" / "x").mkdir(parents=True)


def lay_messages(folder: Path, number: int) -> None:
    """Empty files that are named as messages are, older than any."""
    (folder / MessageFileName(submitted_timestamp=float(number)).as_string()).touch()


def lay_nameless(folder: Path, number: int) -> None:
    """Almost the names of messages."""
    for moment in ("nan", "inf", "1", "1e3"):
        (folder / f"msgv2_{moment}_{uuid.uuid4()}.tar.gz").touch()


LAID = [lay_hidden, lay_junk, lay_odd, lay_links, lay_folders, lay_full_folders, lay_messages, lay_nameless]
GO = [lay for lay in LAID if lay not in (lay_hidden, lay_full_folders)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One look reads `MOST` names."""
    for module in (store, sweep):
        monkeypatch.setattr(module, "MOST_NAMES", MOST)


def looks_at(names: int, most_names: int) -> int:
    """Syncs within which every message of a channel is seen, if nobody adds to `names`; see `sweep`."""
    return 2 * (names // most_names + 2)


@pytest.mark.parametrize("lay", LAID)
def test_a_flood_that_ended_hides_no_submission(friends: list[Party], small: None, lay: Lay) -> None:
    researcher, hospital, *_ = friends
    folder = Path(hospital.store_url, inbox_folder(A, RESEARCHER))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(FLOOD):
        lay(folder, number)
    for number in range(5):
        researcher.control.submit(A, f"heart-{number}", study_files())
    laid = len(os.listdir(folder))
    syncs = looks_at(laid, MOST) + (3 * laid // FEW_MESSAGES if lay is lay_messages else 0)
    for _ in range(syncs):
        hospital.control.sync()
    assert [job.name for job in hospital.control.jobs()] == [f"heart-{number}" for number in range(5)]
    left = os.listdir(folder)
    assert len(left) == (0 if lay in GO else FLOOD)
    assert len(hospital.control.quarantine.entries()) <= 100
    if lay is lay_full_folders:
        assert [e.reason for e in hospital.control.quarantine.entries()][-1].endswith("they hide no others")


@pytest.mark.parametrize("lay", [lay_hidden, lay_junk, lay_full_folders])
def test_a_flood_that_ended_hides_no_decision(friends: list[Party], small: None, lay: Lay) -> None:
    researcher, hospital, *_ = friends
    researcher.control.submit(A, "heart-1", study_files())
    folder = Path(hospital.store_url, outbox_folder(A, RESEARCHER))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(FLOOD):
        lay(folder, number)
    hospital.control.sync()
    hospital.control.jobs()
    hospital.control.sync()
    for _ in range(looks_at(FLOOD, MOST)):
        researcher.control.sync()
    assert researcher.control.job_state(A, "heart-1").state == "pending"


def lay_collections(folder: Path, number: int) -> None:
    (folder / f"{DATASET_COLLECTION_PREFIX}_heart_{number:012x}").mkdir()


@pytest.mark.parametrize("lay", [lay_hidden, lay_junk, lay_full_folders, lay_collections])
def test_a_flood_that_ended_hides_no_mock_data(friends: list[Party], small: None, tmp_path: Path, lay: Lay) -> None:
    researcher, hospital, *_ = friends
    folder = Path(hospital.store_url, "collections", A)
    folder.mkdir(parents=True)
    for number in range(FLOOD):
        lay(folder, number)
    mock = tmp_path / "mock.csv"
    mock.write_text("age\n50\n")
    hospital.control.publish_dataset("heart", mock)
    for _ in range(looks_at(FLOOD, MOST)):
        researcher.control.sync()
    assert researcher.control.mock(A, "heart") == b"age\n50\n"


def test_the_owner_of_mock_data_clears_its_folder(
    friends: list[Party], small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = friends[1]
    mock = tmp_path / "mock.csv"
    mock.write_text("age\n50\n")
    clock = Hands(monkeypatch, mocks)
    hospital.restart()
    hospital.control.publish_dataset("heart", mock)
    folder = Path(hospital.store_url, "collections", A)
    for number in range(FLOOD):
        lay_junk(folder, number)
        lay_collections(folder, number)  # of this name, and not what was published under it last
    for _ in range(looks_at(2 * FLOOD, MOST)):
        clock.now += mocks.LOOKS_EVERY
        hospital.control.sync()
    assert len(os.listdir(folder)) == 1


def test_a_flood_hides_nobody_who_asks_to_be_a_peer(parties: list[Party], small: None) -> None:
    researcher, hospital, *_ = parties
    folder = Path(hospital.store_url, "p2p", A)
    folder.mkdir(parents=True)
    for number in range(FLOOD):
        lay_junk(folder, number)
    researcher.control.add_hospital(A)
    assert hospital.control._connection.get_peer_requests() == [RESEARCHER]


@pytest.mark.waits
def test_a_flood_of_what_looks_like_messages_is_looked_at_twice_and_ends(friends: list[Party], small: None) -> None:
    """With the pause for what may be half written, in which nothing is removed."""
    import time

    researcher, hospital, *_ = friends
    hospital = settle(hospital, 0.01)
    folder = Path(hospital.store_url, inbox_folder(A, RESEARCHER))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(300):
        lay_messages(folder, number)
    researcher.control.submit(A, "heart-1", study_files())
    for _ in range(looks_at(300, MOST) + 9):
        hospital.control.sync()
        time.sleep(0.011)
    assert [job.name for job in hospital.control.jobs()] == ["heart-1"]
    assert os.listdir(folder) == []


# -- what is removed, and what is not ------------------------------------------------------------------------------


def all_odd(name: str) -> bool:
    return False


def test_files_in_flight_are_removed_when_they_are_old_and_in_the_way(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, looks = Store(tmp_path), Sweep(Store(tmp_path))
    (tmp_path / "a").mkdir()
    for number in range(FLOOD):
        lay_hidden(tmp_path / "a", number)
    for _ in range(looks_at(FLOOD, MOST)):
        assert looks.look("a", all_odd).removed == []
    assert len(os.listdir(tmp_path / "a")) == FLOOD, "young ones may be written to"
    monkeypatch.setattr(filesystems, "IN_FLIGHT_SECONDS", -1.0)
    for _ in range(looks_at(FLOOD, MOST)):
        looks.look("a", all_odd)
    left = os.listdir(tmp_path / "a")
    assert len(left) < MOST, "where one look reads them all they are in nobody's way"
    assert place.list("a") == []


def test_odd_names_are_removed_when_they_are_old_or_in_the_way(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What rclone and Syncthing write under another name before it is whole is left to them, and a crowd is not."""
    looks, names = Sweep(Store(tmp_path)), ["msgv2_1.tar.gz.1a2b3c4d.partial", "~syncthing~msgv2_1.tar.gz.tmp"]
    (tmp_path / "a").mkdir()
    for name in names:
        (tmp_path / "a" / name).touch()
    seen = looks.look("a", all_odd)
    assert (seen.removed, seen.kept) == ([], 0)
    assert sorted(os.listdir(tmp_path / "a")) == names
    for number in range(2 * MOST):
        lay_junk(tmp_path / "a", number)
    assert len(looks.look("a", all_odd).removed) == MOST, "however young they are"
    for number in range(2 * MOST):
        (tmp_path / "a" / f"junk-{number}").unlink(missing_ok=True)
    looks = Sweep(Store(tmp_path))
    (tmp_path / "a" / names[0]).touch()
    assert looks.look("a", all_odd).removed == []
    monkeypatch.setattr(filesystems, "IN_FLIGHT_SECONDS", -1.0)
    looks.look("a", all_odd)
    assert os.listdir(tmp_path / "a") == []


def test_what_is_cleared_lies_in_that_folder_and_no_link_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "store"
    (root / "a").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "junk").write_text("kept")
    (root / "a" / "a-link").symlink_to(elsewhere)
    (root / "a" / "to-file").symlink_to(elsewhere / "junk")
    place = Store(root)
    monkeypatch.setattr(filesystems, "IN_FLIGHT_SECONDS", -1.0)
    assert sorted(Sweep(place).look("a", all_odd).removed) == ["a-link", "to-file"]
    (root / "a").rmdir()
    (root / "a").symlink_to(elsewhere)
    with pytest.raises(StoreError, match="a link inside the store leads elsewhere"):
        Sweep(place).look("a", all_odd)
    # The same when the link is laid after it was looked for.
    monkeypatch.setattr(FolderFiles, "_folder", lambda *_: "")
    assert Sweep(place).look("a", all_odd).removed == []
    assert list(place.clear("a", ["junk"])) == []
    assert (elsewhere / "junk").read_text() == "kept"


def test_removing_is_bounded_where_it_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a second at each name that is removed."""
    clock, real = Hands(monkeypatch, sweep), filesystems._unlinked

    def slow(descriptor: int, name: str) -> bool:
        clock.now += 1.0
        return real(descriptor, name)

    monkeypatch.setattr(filesystems, "_unlinked", slow)
    monkeypatch.setattr(filesystems, "IN_FLIGHT_SECONDS", -1.0)
    (tmp_path / "a").mkdir()
    for number in range(100):
        lay_junk(tmp_path / "a", number)
    looks = Sweep(Store(tmp_path))
    assert [len(looks.look("a", all_odd).removed) for _ in range(6)] == [20, 20, 20, 20, 20, 0]


def test_passes_that_have_not_ended_are_bounded(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is an open directory; a folder for which there is none begins anew, and has its turn later."""
    monkeypatch.setattr(sweep, "MOST_PASSES", 3)
    looks, seen = Sweep(Store(tmp_path)), [set[str]() for _ in range(6)]
    for place in range(6):
        (tmp_path / str(place)).mkdir()
        for number in range(200):
            lay_junk(tmp_path / str(place), number)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        for place, names in enumerate(seen):
            names.update(looks.look(str(place), lambda _: True).wanted)
        assert len(os.listdir("/proc/self/fd")) <= before + 3
    assert [len(names) for names in seen] == [200] * 6


@pytest.mark.slow
@pytest.mark.parametrize("lay", [lay_hidden, lay_junk])
def test_a_hundred_thousand_names_hide_ten_submissions_for_seconds(friends: list[Party], lay: Lay) -> None:
    researcher, hospital, *_ = friends
    folder = Path(hospital.store_url, inbox_folder(A, RESEARCHER))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(100_000):
        lay(folder, number)
    for number in range(10):
        researcher.control.submit(A, f"heart-{number}", study_files())
    for _ in range(looks_at(100_010, filesystems.MOST_NAMES)):
        hospital.control.sync()
    assert len(hospital.control.jobs()) == 10
    if lay is lay_junk:
        for _ in range(70):  # where two cores have other work, a second may not be enough for all that a look has read
            hospital.control.sync()
        assert os.listdir(folder) == []
