"""The frozen copy of a study: whole or not there, for its owner to read alone, and on the disk with its name."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from datasites.hospital.cases import freeze
from tests.kills import Killed
from tests.study.studies import heart_package


def test_a_frozen_study_is_read_only_and_on_the_disk(tmp_path: Path, synced: list[str]) -> None:
    study = freeze.freeze(heart_package().files, tmp_path / "frozen")
    folder = tmp_path / "frozen" / study.digest()
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o400] * len(study.files)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)] == [0o500, 0o700]
    *files, staging, frozen = synced
    assert [Path(path).name for path in files] == list(study.files)
    assert {str(Path(path).parent) for path in files} == {staging}
    assert frozen == str(folder.parent)
    assert freeze.open_frozen(folder.parent, study.digest()).files == study.files


def test_a_study_whose_freezing_ends_before_it_is_in_place_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(freeze, "move_durably", killed)
        with pytest.raises(Killed):
            freeze.freeze(heart_package().files, tmp_path)
    assert list(tmp_path.iterdir()) == []
    study = freeze.freeze(heart_package().files, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [study.digest()]
