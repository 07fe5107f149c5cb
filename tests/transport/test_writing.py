"""Folders are put in place whole, are on the disk by then, and leave nothing behind when that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasites.transport import writing
from datasites.transport.writing import INCOMING, put_folder

FILES = {"config.yaml": b"name: heart\n", "code/study.toml": b"title\n"}


def read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_on_the_disk_before_it_is_in_its_place(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut would take is no more than a place without the folder: a submission is not half there."""
    seen, move = list[str](), writing.move_durably

    def note(source: Path, target: Path) -> None:
        seen.extend(str(Path(path).relative_to(source)) for path in synced)
        move(source, target)

    monkeypatch.setattr(writing, "move_durably", note)
    put_folder(tmp_path, tmp_path / "inbox" / "heart-1", FILES)
    assert sorted(seen) == [".", "code", "code/study.toml", "config.yaml"]
    assert synced[-1] == str(tmp_path / "inbox")
    assert read(tmp_path / "inbox" / "heart-1") == FILES


def test_the_folder_before_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "mock"
    put_folder(tmp_path, target, {"a": b"1", "b": b"2"})
    put_folder(tmp_path, target, {"b": b"3"})
    assert read(target) == {"b": b"3"}


def test_what_fails_leaves_the_folder_before_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "mock"
    put_folder(tmp_path, target, {"a": b"1"})
    with pytest.raises(OSError, match="File exists"):
        put_folder(tmp_path, target, {"a": b"2", "a/b": b"3"})
    assert read(target) == {"a": b"1"}
    assert not list((tmp_path / INCOMING).iterdir())
