"""A consortium on one machine: its TOML file, and setting its hospitals and its researcher up through the real parts.

Each hospital gets a home folder with its own key, database, agreements and table, made by the same functions as
`datasites init`, `person add`, `agreements import` and `roster pin`; all parties are then pinned at each other. That
the operator of one machine vouches for all keys is what makes this a demo and not a deployment.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from threading import BrokenBarrierError
from typing import TYPE_CHECKING, Annotated

from heart_disease import prepare as heart_disease
from pydantic import Field

from datasites.study.canonical import Agreed
from datasites.study.errors import InputError, read_toml
from datasites.study.identity import Email
from datasites.study.manifest import Name
from datasites.study.package import StudyPackage
from datasites.study.roster import RosterEntry

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

    import pandas as pd

    from datasites.hospital.site import Site

SCRIPTS = Path(__file__).resolve().parent
STEWARD, OFFICER = "demo-steward", "demo-privacy-officer"
#: Seconds for which one hospital that is being made waits for the others.
MAKING_SECONDS = 300.0


class LocalAnswer(Agreed):
    """What a hospital's steward says of a finding on its table that is right as it is (`datasites dataset accept`)."""

    finding: str
    reason: str


class LocalHospital(Agreed):
    """One hospital of a local consortium. Its console takes any free port unless `console_port` sets one."""

    key: Name
    organisation: str
    email: Email
    mapping: str
    declared_patients: Annotated[int, Field(ge=1)]
    console_port: Annotated[int, Field(ge=0, le=65535)] = 0
    database: Annotated[str, Field(repr=False)] = "sqlite"
    accepted: tuple[LocalAnswer, ...] = ()


class LocalResearcher(Agreed):
    """The researcher of a local consortium."""

    organisation: str
    email: Email


class LocalDataset(Agreed):
    """What all hospitals say of their dataset."""

    name: Name
    summary: str
    epsilon: float
    delta: float
    study_epsilon: float
    held_out: float = 0.4
    split_salt: str = ""


class LocalAgreement(Agreed):
    """An agreement that each hospital's people enter and confirm; {hospital} in parties is the organisation."""

    id: Name
    kind: str
    parties: tuple[str, ...]
    services: tuple[str, ...] = ()
    purposes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    reference: str = ""
    effective: date
    expires: date
    document: str


class Consortium(Agreed):
    """The whole of a CONSORTIUM.toml. `tables` names where the hospitals' rows come from."""

    name: Name
    study: str
    tables: str
    researcher: LocalResearcher
    hospitals: tuple[LocalHospital, ...]
    dataset: LocalDataset
    agreements: tuple[LocalAgreement, ...]


@dataclass(frozen=True)
class LocalConsortium:
    """A consortium file and the state folder in which its parties live."""

    file: Path
    settings: Consortium
    state: Path

    @classmethod
    def open(cls, file: Path, state: Path) -> LocalConsortium:
        """Read the file and everything that it points to; raises `InputError`."""
        settings = read_toml(file, Consortium)
        keys = [hospital.key for hospital in settings.hospitals]
        for wrong in sorted({key for key in keys if keys.count(key) > 1}):
            raise InputError(f"{file}: hospitals.key {wrong!r} stands twice; give each hospital its own")
        if settings.tables != "uci-heart-disease":
            raise InputError(f"{file}: tables {settings.tables!r} is unknown; the one shipped is 'uci-heart-disease'")
        for hospital in settings.hospitals:
            if hospital.key not in heart_disease.EXPECTED:
                known = ", ".join(heart_disease.EXPECTED)
                raise InputError(
                    f"{file}: hospitals.key {hospital.key!r} has no rows in {settings.tables}; use {known}"
                )
            if not (file.parent / hospital.mapping).is_file():
                raise InputError(f"{file}: mapping {hospital.mapping!r} of {hospital.key} is no file; write it")
        return cls(file, settings, state.resolve())

    @property
    def store(self) -> Path:
        """The shared folder."""
        return self.state / "store"

    @property
    def study_folder(self) -> Path:
        """The study that ships with the consortium."""
        return self.file.parent / self.settings.study

    @property
    def researcher_home(self) -> Path:
        """The researcher's home folder."""
        return self.state / "researcher"

    def home(self, key: str) -> Path:
        """Return a hospital's home folder."""
        return self.state / "hospitals" / key

    def entry(self, key: str) -> RosterEntry:
        """Return a hospital's roster entry."""
        return RosterEntry.parse((self.home(key) / "roster-entry.json").read_bytes())

    def researcher_entry(self) -> RosterEntry:
        """Return the researcher's roster entry."""
        return RosterEntry.parse((self.researcher_home / "roster-entry.json").read_bytes())

    def passwords(self) -> dict[str, str]:
        """Passwords of the demo people, made at set-up; mode 0600, for this machine only."""
        passwords: dict[str, str] = json.loads((self.state / "demo-passwords.json").read_text())
        return passwords

    def is_set_up(self) -> bool:
        """Return whether set-up has finished before."""
        return (self.state / "set-up").exists()

    def store_url(self) -> str:
        """Return the store that the parties were set up with."""
        return str(json.loads((self.researcher_home / "researcher.json").read_bytes())["store"])

    def set_up(self, store_url: str | None = None) -> None:
        """Make all parties in the state folder; raises `InputError`. A half-made folder is never used."""
        for _ in self.setting_up(store_url):
            pass

    def setting_up(self, store_url: str | None = None) -> Iterator[str]:
        """Run `set_up`, naming each hospital as soon as its home is whole: it may be served from then on."""
        if self.state.exists() and any(self.state.iterdir()):
            raise InputError(
                f"{self.state}: is in use and not a finished consortium; remove it or name another --state"
            )
        # Asked here, too, so that what is wrong with them is said once and before there is a home.
        StudyPackage.read(self.study_folder)
        heart_disease.load()
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not store_url:
            self.store.mkdir()
        passwords = self.state / "demo-passwords.json"
        passwords.touch(mode=0o600)
        passwords.write_text(json.dumps({name: secrets.token_urlsafe(18) for name in (STEWARD, OFFICER)}))
        making = subprocess.Popen(
            [sys.executable, __file__, str(self.file), str(self.state), store_url or str(self.store)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # an interrupted terminal reaches us, who end it
        )
        try:
            assert making.stdout is not None
            for line in making.stdout:
                yield line.strip()
        except BaseException:
            making.terminate()
            raise
        finally:
            code = making.wait()
        if code != 0:
            raise InputError(f"{self.settings.name}: could not be set up; see above")
        (self.state / "set-up").touch()

    def settings_toml(self, hospital: LocalHospital, store_url: str) -> str:
        """Return the `datasite.toml` of one hospital."""
        dataset = self.settings.dataset
        return f"""organisation = {json.dumps(hospital.organisation)}
email = {json.dumps(hospital.email)}
store = {json.dumps(store_url)}
database = {json.dumps(hospital.database)}
control_seconds = 1.0
run_as_root = {json.dumps(os.geteuid() == 0)}

[console]
port = {hospital.console_port}

[[datasets]]
name = {json.dumps(dataset.name)}
table = "data/table.csv"
mapping = "mapping.toml"
mock = "data/mock.csv"
summary = {json.dumps(dataset.summary)}
declared_patients = {hospital.declared_patients}
epsilon = {dataset.epsilon}
delta = {dataset.delta}
study_epsilon = {dataset.study_epsilon}
held_out = {dataset.held_out}
split_salt = {json.dumps(dataset.split_salt)}
"""

    def agreements_toml(self, hospital: LocalHospital) -> str:
        """Return what the hospital's steward types in."""
        blocks = []
        for agreement in self.settings.agreements:
            lines = ["[[agreement]]"]
            for name, value in agreement:
                if value in ((), ""):
                    continue
                if isinstance(value, tuple):
                    value = [part.replace("{hospital}", hospital.organisation) for part in value]
                lines.append(f"{name} = {value.isoformat() if isinstance(value, date) else json.dumps(value)}")
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks)


def make_parties(consortium: LocalConsortium, store_url: str) -> int:
    """Make the homes of all parties and print each hospital's key when its own is whole; returns the exit code.

    A process can be of one datasite only, so each hospital is made by a child of this one, which starts with all that
    they need imported.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the children, too
    # What imports most comes first: the children have it, too.
    from datasites.hospital import setup  # noqa: F401
    from datasites.researcher import Federation

    researcher, tables = consortium.settings.researcher, heart_disease.load()
    Federation.create(
        consortium.researcher_home, organisation=researcher.organisation, email=researcher.email, store=store_url
    ).close()
    forked = multiprocessing.get_context("fork")
    everybody = forked.Barrier(len(tables))
    children = {}
    for index, hospital in enumerate(consortium.settings.hospitals):
        arguments = (consortium, index, tables[hospital.key], store_url, everybody)
        child = forked.Process(target=_make_hospital, args=arguments, name=hospital.key, daemon=True)
        child.start()
        children[child.sentinel] = child
    failed = False
    while children:
        for ended in multiprocessing.connection.wait(list(children)):
            child = children.pop(ended)  # type: ignore[arg-type]
            child.join()
            failed = failed or child.exitcode != 0
            if not failed:
                print(child.name, flush=True)
    if failed:
        return 1
    with Federation.open(consortium.researcher_home) as federation:
        federation.pin(*(consortium.entry(hospital.key) for hospital in consortium.settings.hospitals))
    return 0


def _make_hospital(
    consortium: LocalConsortium, index: int, rows: pd.DataFrame, store_url: str, everybody: Barrier
) -> None:
    """Make one hospital, and pin the other parties once `everybody` has an entry to be pinned by."""
    hospital = consortium.settings.hospitals[index]
    try:
        site = _enter_all(consortium, index, rows, store_url)
        everybody.wait(MAKING_SECONDS)
        from datasites.hospital.people.roster import pin_compared

        others = [other.key for other in consortium.settings.hospitals if other.key != hospital.key]
        for entry in (consortium.researcher_entry(), *(consortium.entry(other) for other in others)):
            pin_compared(site, entry)
    except BrokenBarrierError:
        sys.exit(1)  # of another hospital, which says why
    except Exception as error:
        everybody.abort()
        print(f"{hospital.key}: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


def _enter_all(consortium: LocalConsortium, index: int, rows: pd.DataFrame, store_url: str) -> Site:
    """One hospital's home, table, people and agreements, and its people's answers on its table."""
    from datasites.hospital.setup import initialise

    hospital, package = consortium.settings.hospitals[index], StudyPackage.read(consortium.study_folder)
    home = consortium.home(hospital.key)
    initialise(home, consortium.settings_toml(hospital, store_url))
    data = home / "data"
    data.mkdir()
    heart_disease.local_table(hospital.key, rows).to_csv(data / "table.csv", index=False)
    heart_disease.mock_table(package.data_model, 200, seed=index).to_csv(data / "mock.csv", index=False)
    (home / "mapping.toml").write_bytes((consortium.file.parent / hospital.mapping).read_bytes())
    from django.contrib.auth import get_user_model

    from datasites.hospital.cases.readiness import accept
    from datasites.hospital.people.accounts import acting
    from datasites.hospital.people.agreements import confirm_agreement, enter_agreements
    from datasites.hospital.people.invitations import accept as accept_invitation
    from datasites.hospital.people.invitations import enter_person
    from datasites.hospital.site import Site

    site, passwords = Site.open(home), consortium.passwords()
    for name, role in ((STEWARD, "steward"), (OFFICER, "privacy_officer")):
        issued = enter_person(site, name, role, f"{name}@{hospital.email.partition('@')[2]}")
        assert issued is not None
        accept_invitation(site, issued.code, passwords[name])
    # Who has just set their passwords need not show them.
    steward, officer = (acting(get_user_model().objects.get(username=name)) for name in (STEWARD, OFFICER))
    agreements = home / "agreements.toml"
    agreements.write_text(consortium.agreements_toml(hospital))
    for id, version in enter_agreements(site, steward, agreements):
        confirm_agreement(site, officer, id, version)
    for acceptance in hospital.accepted:
        accept(site, steward, consortium.settings.dataset.name, package, acceptance.finding, acceptance.reason)
    return site


if __name__ == "__main__":
    _file, _state, _url = sys.argv[1:]
    sys.exit(make_parties(LocalConsortium.open(Path(_file), Path(_state)), _url))
