from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from datasites.researcher.study import Study
from tests.researcher.hospitals import Federation
from tests.study.studies import HEART, heart_package
from tests.transport.parties import Party, make_parties


@pytest.fixture
def study() -> Study:
    """The heart disease study with three rounds."""
    return Study(HEART, heart_package(rounds="3"))


@pytest.fixture
def federation(tmp_path: Path, study: Study) -> Iterator[Federation]:
    """A researcher and the study's four hospitals, running."""
    parties = make_parties(tmp_path, str(tmp_path / "store"), study.terms.cohort.hospitals)
    federation = Federation(parties, study, tmp_path / "run")
    yield federation
    federation.stop()
    for party in parties:
        party.stop()


@pytest.fixture
def hospitals(tmp_path: Path) -> list[Party]:
    emails = Study.load(HEART).terms.cohort.hospitals
    _, *hospitals = make_parties(tmp_path / "hospitals", str(tmp_path / "store"), emails, start=False)
    return hospitals
