"""Everybody around the hospital under test: its home and people, the researcher, and two more hospitals.

Made once per folder, then copied for each run, so that keys, agreements and people are the same in all of them.
"""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

import numpy as np

from datasites.control.sealer import SyftSealer, open_keys, syft_fingerprint
from datasites.hospital.data.answers import answer
from datasites.hospital.data.findings import TableFinding
from datasites.hospital.people.accounts import Actor, acting
from datasites.hospital.people.agreements import confirm_agreement, enter_agreements
from datasites.hospital.people.roster import pin_compared
from datasites.hospital.setup import initialise
from datasites.hospital.site import Site
from datasites.researcher.federation import Federation
from datasites.secagg.epoch_terms import EpochTerms
from datasites.secagg.member import Member
from datasites.secagg.messages import AckList, Enrolment, ShareBundle, SignedManifest, SurvivorList
from datasites.secagg.state import MemberState
from datasites.study import letters
from datasites.study.audit_chain import PublicHead
from datasites.study.identity import Identity
from datasites.study.manifest import RoundManifest
from datasites.study.package import StudyPackage
from datasites.study.roster import Roster, RosterEntry
from datasites.transport.mailroom import Letter, Mailroom
from datasites.transport.store import Store
from tests.agreements import agreements
from tests.hospital.invited import enter
from tests.study.entries import entry_of

STUDY = Path(__file__).with_name("study")
RESEARCHER = "researcher@university.example.org"
OWN = "datasite@north.example.org"
PEERS = ("datasite@south.example.org", "datasite@west.example.org")
DATASET = "clinic"
PASSPHRASE = "a long enough passphrase"

SETTINGS = """
organisation = "North"
email = "datasite@north.example.org"
store = "{store}"
control_seconds = 1.0
run_as_root = true

[[datasets]]
name = "clinic"
table = "data/table.csv"
mapping = "mapping.toml"
mock = "data/mock.csv"
summary = "Invented patients"
declared_patients = 60
epsilon = 8.0
delta = 1e-5
study_epsilon = 4.0
held_out = 0.4
max_sampling_rate = 0.9
"""

MAPPING = """
patient = "id"

[columns]
age = { from = "age", unit = "a" }
sex = { from = "sex" }
pressure = { from = "pressure", unit = "mm[Hg]" }
disease = { from = "disease" }
"""


def furnish(root: Path) -> None:
    """Make all parties below `root`: home (the hospital under test), researcher, and one folder for each peer."""
    initialise(root / "home", SETTINGS.format(store=root / "store"))
    site = Site.open(root / "home")
    home = site.home
    (home.root / "data").mkdir()
    (home.root / "mapping.toml").write_text(MAPPING)
    (home.root / "data" / "mock.csv").write_text(_mock())
    for name, role in (("ann", "steward"), ("bob", "privacy_officer")):
        enter(site, name, role, PASSPHRASE, f"{name}@north.example.org")
    # What people have said of the table is part of the public record: the same beside each neighbour.
    model = StudyPackage.read(STUDY).data_model
    for kind, column in (("patients", ""), ("infinite", "pressure")):
        finding = TableFinding(kind, column, 1.0, "looked at by people")
        answer(site, person("ann"), DATASET, finding, model, "invented like that", holds=True)
    file = root / "agreements.toml"
    file.write_text(agreements("North", ("age", "sex", "pressure", "disease")))
    for id, version in enter_agreements(site, person("ann"), file):
        confirm_agreement(site, person("bob"), id, version)
    entries = [RosterEntry.model_validate_json((root / "home" / "roster-entry.json").read_bytes())]
    for email in PEERS:
        Identity.generate(email).save(root / email / "institution.pem", None)
        keys = open_keys(email, root / email / "syft_keys.json")
        bundle = json.dumps({"public_encryption_bundle": keys.get_public_bundle()}, sort_keys=True)
        Store(root / "store").put(f"identities/{email}/bundle.json", bundle.encode())
        entries.append(
            entry_of(
                _identity(root, email),
                organisation=email.partition("@")[2].partition(".")[0].title(),
                syft_fingerprint=syft_fingerprint(keys),
            )
        )
    with Federation.create(
        root / "researcher", organisation="University", email=RESEARCHER, store=str(root / "store")
    ) as federation:
        federation.pin(*entries)
        researcher = federation.entry
    for entry in (*entries[1:], researcher):
        pin_compared(site, entry)


def _identity(root: Path, email: str) -> Identity:
    return Identity.load(root / email / "institution.pem", email, None)


def _mock() -> str:
    draw = np.random.default_rng(5)
    rows = [
        f"MOCK-{i},{draw.integers(30, 80)},{draw.integers(0, 2)},{draw.integers(100, 180)},{draw.integers(0, 2)}"
        for i in range(60)
    ]
    return "\n".join(["patient,age,sex,pressure,disease", *rows, ""])


def study_folder(root: Path, mode: str) -> Path:
    """The study to submit, as its researcher has it."""
    folder = root / f"study-{mode}"
    shutil.copytree(STUDY, folder, dirs_exist_ok=True)
    terms = (folder / "study.toml").read_text()
    if mode == "distributed":
        terms = terms.replace('mode = "local"', 'mode = "distributed"\nnoise_multiplier = 2.5')
        terms = terms.replace("[evaluation]", "[evaluation]\nnoise_multiplier = 2.5")
    (folder / "study.toml").write_text(terms)
    return folder


def person(name: str) -> Actor:
    """Somebody who works at the hospital under test."""
    from django.contrib.auth import get_user_model

    return acting(get_user_model().objects.get(username=name))


class Peer:
    """Another hospital, which takes part with nothing of its own. `step` does what can be done now."""

    def __init__(self, root: Path, email: str, study: str, runs: Path) -> None:
        self.email, self._study, self._runs = email, study, runs
        self._identity = _identity(root, email)
        store = Store(root / "store")
        sealer = SyftSealer(
            open_keys(email, root / email / "syft_keys.json"),
            Roster.load(root / "researcher" / "roster.json"),
            lambda party: store.get(f"identities/{party}/bundle.json"),
        )
        self._mailroom = Mailroom(email, store, sealer, root / email / "mail")
        self._member: Member | None = None
        self._state: MemberState | None = None
        self._done: set[tuple[int, str]] = set()

    def step(self) -> bool:
        """Look at the mailbox once; True when something was done."""
        for number, kind, sender in self._mailroom.mailbox(self._study):
            if (number, kind + sender) in self._done:
                continue
            letter = self._mailroom.receive(sender, self._study, number, kind)
            if letter is not None and self._take(number, kind, letter):
                self._done.add((number, kind + sender))
                return True
        return False

    def _take(self, number: int, kind: str, letter: Letter) -> bool:
        stem, _, epoch = kind.rpartition("-")
        if number == letters.SETUP_ROUND and stem == letters.offer_kind(0)[:-2]:
            self._member = Member(self._identity, EpochTerms.parse((self._runs / f"context-{epoch}.json").read_bytes()))
            self._state, certificate = self._member.certify(self._state)
            self._send(number, letters.certificate_kind(int(epoch)), certificate.to_bytes())
            return True
        if number == letters.SETUP_ROUND and kind == letters.CLOSE:
            return True
        if self._member is None or self._state is None:
            return False
        payload = bytes(letter.blob or b"")
        if number == letters.SETUP_ROUND:
            return self._set_up(kind, payload)
        if kind == letters.ROUND:
            signed = SignedManifest.from_bytes(str(letter.body["manifest"]).encode())
            self._state = self._member.open(self._state, signed, today=_today())
            self._state, masked = self._member.mask(self._state, _nothing(signed.manifest))
            self._send_masked(masked.to_bytes().decode(), bytes(masked.payload), number)
        elif kind == letters.SURVIVORS:
            self._survivors = SurvivorList.from_bytes(payload)
            if self._member.context.consistency:
                self._state, ack = self._member.acknowledge(self._state, self._survivors)
                self._send(number, letters.ACKNOWLEDGE, ack.to_bytes())
            else:
                self._answer(number, None)
        elif kind == letters.ACKNOWLEDGED:
            self._answer(number, AckList.from_bytes(payload))
        return True

    def _set_up(self, kind: str, payload: bytes) -> bool:
        assert self._member is not None
        assert self._state is not None
        member, epoch = self._member, self._member.context.epoch
        if kind == letters.enrolment_kind(epoch):
            self._state, bundles = member.share(self._state, Enrolment.from_bytes(payload), today=_today())
            for bundle in bundles.values():
                self._send(letters.SETUP_ROUND, letters.shares_kind(epoch), bundle.to_bytes(), bundle.recipient)
            return True
        if self._state.enrolment is None:
            return False
        self._state = member.accept(self._state, ShareBundle.from_bytes(payload))
        if self._state.holds >= {one.sender for one in self._state.enrolment.certificates}:
            self._state, ready = member.ready(self._state)
            self._send(letters.SETUP_ROUND, letters.ready_kind(epoch), ready.to_bytes())
        return True

    def _answer(self, number: int, acks: AckList | None) -> None:
        assert self._member is not None
        assert self._state is not None
        self._state, answer = self._member.unmask(self._state, self._survivors, acks)
        self._send(number, letters.UNMASK, answer.to_bytes())

    def _send_masked(self, header: str, payload: bytes, number: int) -> None:
        head = PublicHead.sign(self._identity, number, "a" * 64)
        body = letters.Masked(header=header, audit=head, counts_sigma={"final": 1.0, "interim": 0.0})
        self._mailroom.send(RESEARCHER, self._study, number, letters.MASKED, body.model_dump(mode="json"), payload)

    def _send(self, number: int, kind: str, payload: bytes, to: str = RESEARCHER) -> None:
        self._mailroom.send(to, self._study, number, kind, {}, payload)


def _nothing(manifest: RoundManifest) -> dict[str, np.ndarray]:
    return {term.name: np.zeros(term.length) for term in manifest.vectors}


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()
