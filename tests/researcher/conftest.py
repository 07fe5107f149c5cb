from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasites.researcher.study import Study
from datasites.study.package import StudyPackage
from tests.researcher.hospitals import Federation
from tests.transport.parties import make_parties

HEART = Path(__file__).resolve().parents[2] / "scripts" / "heart_disease" / "study"
sys.path.insert(0, str(HEART.parents[1]))


@pytest.fixture
def study() -> Study:
    """The heart disease study with three rounds."""
    files = dict(StudyPackage.read(HEART).files)
    files["study.toml"] = re.sub(rb"(?m)^rounds = 15$", b"rounds = 3", files["study.toml"])
    return Study(HEART, StudyPackage(files))


@pytest.fixture
def federation(tmp_path: Path, study: Study) -> Iterator[Federation]:
    """A researcher and the study's four hospitals, running."""
    parties = make_parties(tmp_path, str(tmp_path / "store"), study.terms.cohort.hospitals)
    federation = Federation(parties, study, tmp_path / "run")
    yield federation
    federation.stop()
    for party in parties:
        party.stop()
