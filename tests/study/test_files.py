"""Files of a party's own: new ones only where none is, private, whole or not at all, and their names on the disk."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from datasites.study.files import move_durably, on_disk, put_whole, write_durably
from datasites.study.identity import Identity


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("there", ["file", "link"])
def test_a_new_file_is_never_written_over_another_nor_through_a_link(tmp_path: Path, there: str) -> None:
    other, path = tmp_path / "other", tmp_path / "key"
    path.symlink_to(other) if there == "link" else path.write_bytes(b"old")
    with pytest.raises(FileExistsError), on_disk(path, new=True) as file:
        file.write(b"new")
    assert not other.exists()
    assert there == "link" or path.read_bytes() == b"old"


def test_new_files_and_their_names_are_on_the_disk(tmp_path: Path, synced: list[str]) -> None:
    write_durably(tmp_path, {"a": b"1", "b": b"2"}, mode=0o400, new=True)
    assert synced == [str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path)]
    assert [mode(tmp_path / name) for name in "ab"] == [0o400, 0o400]


def test_an_identity_s_key_and_its_name_are_on_the_disk(tmp_path: Path, synced: list[str]) -> None:
    """A key whose name a power cut loses is lost to all who pinned it."""
    Identity.generate("a@a.example.org").save(tmp_path / "key.pem")
    assert synced == [str(tmp_path / "key.pem"), str(tmp_path)]
    assert mode(tmp_path / "key.pem") == 0o600


def test_a_folder_is_put_where_none_is_and_not_over_one_that_holds_something(tmp_path: Path) -> None:
    for name in ("staging", "again"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    move_durably(tmp_path / "staging", tmp_path / "target")
    with pytest.raises(OSError, match="not empty"):
        move_durably(tmp_path / "again", tmp_path / "target")
    assert (tmp_path / "target" / "file").read_text() == "staging"


def test_what_is_put_in_place_is_whole_whoever_fails_or_writes_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    with put_whole(path) as first, put_whole(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert not path.exists()
    assert path.read_text() == "first", "the one that was put in place last"
    with pytest.raises(UnicodeEncodeError), put_whole(path) as third:
        third.write_text("thi\ud800")
    assert path.read_text() == "first"
    assert [one.name for one in path.parent.iterdir()] == ["file"]
