"""One datasite home for all in-process tests of the hospital room; its tables are emptied between tests.

With DATASITES_TEST_DATABASE=postgresql://… its tables lie in that (empty) database, and not in SQLite.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from datasites.hospital.audit.bindings import bind, party_content
from datasites.hospital.audit.log import AuditLog, head_file
from datasites.hospital.config import DatasetSettings, Home
from datasites.hospital.database import connect
from datasites.hospital.isolated import process
from datasites.hospital.site import Site
from datasites.study.identity import Identity
from datasites.study.roster import Roster
from tests.hospital.cleveland import SETTINGS
from tests.study.entries import entry_of
from tests.study.studies import heart_package

if TYPE_CHECKING:
    from datasites.hospital.cases.case import OpenCase
    from datasites.hospital.service import Service
    from tests.hospital.desk import Desk
    from tests.hospital.moments import Moments

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
HEART = SCRIPTS / "heart_disease"

DATABASE = os.environ.get("DATASITES_TEST_DATABASE", "sqlite")

# Django's models can be imported only once a database is chosen, and test modules import them at their top.
_folder = tempfile.TemporaryDirectory(prefix="datasite-")
(Path(_folder.name) / "datasite.toml").write_text(
    SETTINGS.format(store=Path(_folder.name) / "store", database=DATABASE)
)
_home = connect(Path(_folder.name))
#: Beside the home, whose files tests look through.
_beside = tempfile.TemporaryDirectory(prefix="encoded-")

# The fixtures of a session are asked for by two folders of tests (`tests/cli`), each of which has its own of them: what
# they make is made once in a process, like the home that they are of.


@pytest.fixture(scope="session")
def home() -> Home:
    return _home


@pytest.fixture(scope="session", autouse=True)
def one_hash_per_password() -> Iterator[None]:
    """Argon2 is slow on purpose, and every test enters five people, who sign in again and again; it is what each
    password is hashed by, and held against each hash by, once.
    """
    from django.contrib.auth import base_user, hashers, models

    @functools.cache
    def holds(password: str, encoded: str) -> bool:
        return hashers.check_password(password, encoded)

    with pytest.MonkeyPatch.context() as patch:
        for module in (base_user, models):
            patch.setattr(module, "make_password", functools.cache(hashers.make_password))
        patch.setattr(base_user, "check_password", lambda password, encoded, _: holds(password, encoded))
        yield


@pytest.fixture(scope="session", autouse=True)
def versions_read_once() -> Iterator[None]:
    """No test installs anything, and a case that is opened reads the description of each package it is bound to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasites.hospital.cases.freeze.version", functools.cache(version))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_process_to_read_and_one_to_price() -> Iterator[None]:
    """Each act has its own (`isolated/test_process`); tests of what comes of it share theirs, with the same answers."""
    from tests.hospital.isolated.kept_apart import KeptApart

    with pytest.MonkeyPatch.context() as patch, KeptApart() as kept:
        patch.setattr(process, "Apart", kept.start)
        yield


def log_pins(site: Site, roster: Roster) -> None:
    """Log that these parties were pinned, for a test that begins a log or writes a roster by itself."""
    for entry in roster.entries:
        fields = {"email": entry.email, "fingerprint": entry.fingerprint, "person": "command line"}
        site.audit.append("pinned", **fields, commitment=bind(site.home, party_content(entry)))


@functools.cache
def own_identity() -> Identity:
    identity = Identity.generate(_home.settings.email)
    identity.save(_home.key)
    return identity


@pytest.fixture(scope="session")
def own() -> Identity:
    """The hospital's key."""
    return own_identity()


def begun_anew(home: Home, own: Identity) -> Site:
    """The hospital as its service opens it, with nothing in log and anchors but the budget and who is pinned."""
    from datasites.hospital.budget import ledger_log
    from datasites.hospital.budget.population import open_populations

    # Log and anchors with the tables: they tell one story, or nothing runs.
    home.audit.unlink(missing_ok=True)
    head_file(home.audit).unlink(missing_ok=True)
    for folder in (home.anchors, home.ledger_pending, home.secagg, home.identities, home.bindings):
        shutil.rmtree(folder, ignore_errors=True)
    home.unknown_heads.unlink(missing_ok=True)
    home.fork.unlink(missing_ok=True)
    home.ready.unlink(missing_ok=True)
    ledger_log.forget(home)
    site = Site(home, own, AuditLog(home.audit, own))
    open_populations(site)
    if _furnished(home).exists():
        furnish_roster(home)
    log_pins(site, Roster.load(home.roster))
    return site


def furnish_roster(home: Home) -> None:
    """Pin who is pinned before any test, whatever one of them has left."""
    shutil.copy(_furnished(home), home.roster)


def _furnished(home: Home) -> Path:
    return home.root / "furnished-roster.json"


@functools.cache
def moments() -> Moments:
    """Where tests of this process begin."""
    from tests.hospital.moments import Moments

    return Moments(_home, Path(_beside.name) / "moments")


def _empty_tables() -> None:
    from django.core.management import call_command

    call_command("flush", verbosity=0, interactive=False, inhibit_post_migrate=True)


@pytest.fixture
def site(home: Home, own: Identity) -> Iterator[Site]:
    """`begun_anew`, with empty tables."""
    moments().at(f"begun-{_furnished(home).exists()}", lambda: begun_anew(home, own))
    yield Site(home, own, AuditLog(home.audit, own))
    _empty_tables()


@pytest.fixture
def database(site: Site) -> Home:
    return site.home


@pytest.fixture
def heart(database: Home) -> DatasetSettings:
    return database.dataset("heart")


@pytest.fixture(scope="session")
def furnished() -> Home:
    """The home with a key, a pinned roster, Cleveland's table, and a mock."""
    _furnish()
    return _home


@functools.cache
def _furnish() -> None:
    from heart_disease import prepare

    from datasites.study.errors import read_toml
    from datasites.study.schema import DataModel

    home, own = _home, own_identity()
    others = ("hungary", "switzerland", "va")
    parties = [own, *(Identity.generate(f"datasite@{key}.example.org") for key in others)]
    researcher = Identity.generate("researcher@university.example.org")
    entries = (*map(entry_of, parties), entry_of(researcher, "researcher", organisation="University"))
    Roster(entries=entries).save(home.roster)
    shutil.copy(home.roster, _furnished(home))
    (home.root / "data").mkdir()
    home.local_rules.mkdir()
    prepare.local_table("cleveland", prepare.load()["cleveland"]).to_csv(home.root / "data/table.csv", index=False)
    model = read_toml(HEART / "study" / "features.toml", DataModel)
    prepare.mock_table(model, 200, seed=1).to_csv(home.root / "data/mock.csv", index=False)
    (home.root / "mapping.toml").write_bytes((HEART / "mappings" / "cleveland.toml").read_bytes())


@pytest.fixture
def running(desk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An approved study at the hospital, a `Running`, which waits for no tick."""
    from datasites.hospital.rounds import run
    from tests.hospital.running import Hastened, Running

    study = Running(desk, tmp_path, begins=True)
    monkeypatch.setattr(run, "time", Hastened(study))
    yield study
    study.end()


@pytest.fixture(scope="session")
def encoded() -> Path:
    """A copy of the records that `examined` has encoded; a test may end its study, and with it destroy them."""
    return Path(_beside.name) / "records"


@pytest.fixture(scope="session")
def examined(furnished: Home) -> dict[str, Any]:
    """A submitted study, taken in and rehearsed once for all tests."""
    return dict(_examine())


@functools.cache
def _examine() -> dict[str, Any]:
    from datasites.hospital.cases import examination
    from datasites.hospital.cases.case import records_folder
    from datasites.hospital.models import Case
    from tests.hospital.desk import job, values_of

    row = examination.admit(begun_anew(_home, own_identity()), job())
    assert row.state == Case.State.REVIEW, row.note
    assert row.rehearsal["outcome"] == "passed", row.rehearsal.get("findings") or row.rehearsal
    values = values_of(row)
    _empty_tables()
    shutil.copytree(records_folder(_home, row.study_hash), Path(_beside.name) / "records")
    values["rehearsal"] |= {"start_ticks": 0}  # few tests look at when the first round leaves; the others don't wait
    values["listed_as"] = ""  # each test begins with a log of its own, which doesn't know the list of this one
    return values


@pytest.fixture
def desk(database: Home, examined: dict[str, Any], encoded: Path) -> Desk:
    from datasites.hospital.cases.case import records_folder
    from tests.hospital.desk import Desk

    folder = records_folder(database, examined["study_hash"])
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(encoded, folder)
    return Desk(database, examined)


@pytest.fixture
def service(desk: Desk) -> Iterator[Service]:
    from datasites.hospital.service import Service
    from tests.hospital.desk import end

    datasite = Service(desk.site)
    yield datasite
    end(datasite)


@pytest.fixture(params=["local", "distributed"])
def case(request: pytest.FixtureRequest, heart: DatasetSettings, furnished: Home) -> OpenCase:
    """A study in either mode with interim evaluations, as it is approved here, without its records."""
    from tests.hospital.unequal import Terms, case_of, with_interim

    package = heart_package() if request.param == "local" else Terms(counts_noise=1.7).package(threshold=4)
    return case_of(furnished, with_interim(package), heart)
