"""Which mocks a hospital offers, and that a researcher sees all of them: however many, and whatever lies there."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
from syft_rds.config import COLLECTION_SUBPATH

from datasites.control import connection, mocks
from datasites.transport import second_look
from datasites.transport.store import Store, StoreDenied
from tests.transport.clock import Hands
from tests.transport.parties import HOSPITALS, Party, settle

A = HOSPITALS[0]


def publish(hospital: Party, name: str, size: int = 1_000) -> None:
    (hospital.home / "mock.csv").write_bytes(os.urandom(size))
    hospital.control.publish_dataset(name, hospital.home / "mock.csv")


def in_store(hospital: Party) -> list[Path]:
    return sorted(Path(hospital.store_url, "collections", A).iterdir())


def names_at(researcher: Party) -> list[str]:
    return [manifest.name for manifest in researcher.control.datasets(A)]


def names_in_store(hospital: Party) -> list[str]:
    return [folder.name.split("_")[-2] for folder in in_store(hospital)]


def test_room_for_another_mock_is_made_by_its_hospital_and_its_researcher(
    friends: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the refusal says: out of the store first, then out of the researcher's folder."""
    monkeypatch.setattr(mocks, "MOST_MOCKS", 3)
    monkeypatch.setattr(mocks, "LOOKS_EVERY", 0.0)
    researcher, hospital, *_ = friends
    for number in range(4):
        publish(hospital, f"d{number}")
    for _ in range(2):
        researcher.control.sync()
    assert names_at(researcher) == ["d0", "d1", "d2"]
    (entry,) = researcher.control.quarantine.entries()
    root = researcher.home / "SyftBox" / A / COLLECTION_SUBPATH
    assert f"remove it from {root}, too" in entry.reason
    hospital.restart()
    publish(hospital, "d3")
    hospital.control.offer_datasets(["d1", "d2", "d3"])
    assert names_in_store(hospital) == ["d1", "d2", "d3"]
    assert not list((hospital.home / "SyftBox" / A).rglob("d0"))
    shutil.rmtree(root / "d0")
    for _ in range(2):
        researcher.control.sync()
    assert names_at(researcher) == ["d1", "d2", "d3"]


def test_a_mock_that_is_no_longer_offered_is_removed_where_it_is_laid_again(
    friends: list[Party], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that can't be removed is reported, and keeps no other from it; what is offered later is put."""
    hospital, clock = friends[1], Hands(monkeypatch, mocks)
    hospital.restart()
    for name in ("heart", "lung", "old"):
        publish(hospital, name)
    heart, _, old = in_store(hospital)
    shutil.copytree(old, tmp_path / "old")
    hospital.control.offer_datasets(["lung", "heart"])
    assert names_in_store(hospital) == ["heart", "lung"]
    shutil.copytree(tmp_path / "old", old)
    shutil.rmtree(heart)
    clock.now += mocks.LOOKS_EVERY
    hospital.control.sync()
    assert names_in_store(hospital) == ["heart", "lung"]
    shutil.copytree(tmp_path / "old", old)
    stuck = old.with_name(old.name.replace("_old_", "_a_"))
    shutil.copytree(tmp_path / "old", stuck)
    delete = Store.delete_folder

    def denied(store: Store, folder: str) -> int:
        if folder.endswith(stuck.name):
            raise StoreDenied(folder)
        return delete(store, folder)

    monkeypatch.setattr(Store, "delete_folder", denied)
    for _ in range(3):
        clock.now += mocks.LOOKS_EVERY
        hospital.control.sync()
    assert names_in_store(hospital) == ["a", "heart", "lung"]
    (entry,) = hospital.control.quarantine.entries()
    assert entry.what.endswith(stuck.name)
    hospital.control.offer_datasets([])
    assert names_in_store(hospital) == ["a"]


def test_what_cannot_be_deleted_keeps_no_withdrawn_mock_in_the_store(friends: list[Party]) -> None:
    """Links that a stranger laid are reported once each; a file that is named as a mock goes."""
    hospital = friends[1]
    for name in ("heart", "old", "older"):
        publish(hospital, name)
    old = in_store(hospital)[1]
    links = [old.with_name(old.name.replace("_old_", f"_a{number}_")) for number in range(3)]
    for link in links:
        link.symlink_to("/etc")
    old.with_name(old.name.replace("_old_", "_file_")).touch()
    for _ in range(2):
        hospital.control.offer_datasets(["heart"])
        assert names_in_store(hospital) == ["a0", "a1", "a2", "heart"]
    assert {entry.what.rpartition("/")[2] for entry in hospital.control.quarantine.entries()} == {
        link.name for link in links
    }
    assert len(hospital.control.quarantine.entries()) == 3
    links[0].unlink()
    shutil.copytree(in_store(hospital)[-1], links[0])
    hospital.control.offer_datasets(["heart"])
    assert names_in_store(hospital) == ["a1", "a2", "heart"], "what could not be deleted is tried again"


def test_all_that_a_hospital_offers_is_fetched_at_once(
    friends: list[Party], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mocks, "BYTES_PER_SYNC", 10_000)
    researcher, hospital, *_ = friends
    names = [f"d{number}" for number in range(6)]
    for name in names:
        publish(hospital, name, 6_000)
    with caplog.at_level(logging.WARNING, "datasites.control.syft"):
        researcher.control.sync_all()
        assert names_at(researcher) == names
        assert caplog.records == []
        for folder in in_store(hospital):
            for number in range(9):
                shutil.copytree(folder, folder.with_name(f"{folder.name[:-12]}{number:012x}"))
        for junk in in_store(hospital):
            (junk / mocks.SIGNED).write_bytes(b"x" * 6_000)
        researcher.control.sync_all()
    assert "more mock data" in caplog.text


@pytest.mark.parametrize("flood", [60, 600])
def test_names_that_nobody_offers_hide_no_mock_without_a_word(
    friends: list[Party], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, flood: int
) -> None:
    """More than one sync looks at; also where the sync before has looked at a part of them."""
    monkeypatch.setattr(connection, "COLLECTIONS_PER_SYNC", 20)
    researcher, hospital, *_ = friends
    publish(hospital, "d0")
    (one,) = in_store(hospital)
    for number in range(flood):
        one.with_name(f"{one.name[:-12]}{number:012x}").mkdir()
    researcher.control.sync()
    names = [f"d{number}" for number in range(6)]
    for name in names[1:]:
        publish(hospital, name)
    with caplog.at_level(logging.WARNING, "datasites.control.syft"):
        researcher.control.sync_all()
    assert (names_at(researcher) == names) or flood == 600
    assert ("more mock data" in caplog.text) == (flood == 600)


def test_what_is_in_doubt_is_not_read_before_what_nobody_has_looked_at(
    friends: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sync reads of that first: so many bytes that lie there delay a mock by one sync."""
    monkeypatch.setattr(mocks, "BYTES_PER_SYNC", 20_000)
    researcher, hospital, *_ = friends
    researcher, clock = settle(researcher, 2.0), Hands(monkeypatch, second_look)
    publish(hospital, "heart")
    (true,) = in_store(hospital)
    for number in range(6):
        junk = true.with_name(f"{true.name.rpartition('_')[0]}_{number:012x}")
        shutil.copytree(true, junk)
        (junk / "mock.csv").write_bytes(b"x" * 15_000)
    true.rename(true.with_name(f"{true.name.rpartition('_')[0]}_{'f' * 12}"))
    for pause in (0.1, 2.0, 0.1, 0.0):
        assert names_at(researcher) == []
        researcher.control.sync()
        clock.now += pause
    assert names_at(researcher) == ["heart"]
    assert researcher.control.quarantine.entries() == []


def test_what_is_in_doubt_is_not_read_again_before_its_time(
    friends: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    researcher, hospital, *_ = friends
    researcher, clock = settle(researcher, 2.0), Hands(monkeypatch, second_look)
    publish(hospital, "heart")
    (folder,) = in_store(hospital)
    (folder / "mock.csv").write_bytes(b"x")
    get, read = Store.get, list[str]()

    def counted(store: Store, key: str, limit: int | None = None) -> bytes | None:
        read.append(key)
        return get(store, key, limit)

    monkeypatch.setattr(Store, "get", counted)
    times = []
    for pause in (0.5, 1.4, 0.2, 0.0):
        read.clear()
        researcher.control.sync()
        times.append(sum(key.endswith("mock.csv") for key in read))
        clock.now += pause
    assert times == [1, 0, 0, 1]
