"""One datasite home for all in-process tests of the hospital room; its tables are emptied between tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasites.hospital.config import DatasetSettings, Home
from datasites.hospital.database import connect

SETTINGS = """
organisation = "Cleveland"
email = "datasite@cleveland.example.org"
store = "{store}"

[[datasets]]
name = "heart"
table = "data/table.csv"
mapping = "mapping.toml"
mock = "data/mock.csv"
summary = "Heart disease"
declared_patients = 303
epsilon = 4.0
delta = 1e-3
study_epsilon = 3.0
"""


# Django's models can be imported only once a database is chosen, and test modules import them at their top.
_folder = tempfile.TemporaryDirectory(prefix="datasite-")
(Path(_folder.name) / "datasite.toml").write_text(SETTINGS.format(store=Path(_folder.name) / "store"))
_home = connect(Path(_folder.name))


@pytest.fixture(scope="session")
def home() -> Home:
    return _home


@pytest.fixture
def database(home: Home) -> Iterator[Home]:
    from django.core.management import call_command

    yield home
    call_command("flush", verbosity=0, interactive=False)


@pytest.fixture
def heart(database: Home) -> DatasetSettings:
    return database.dataset("heart")
