"""One hospital's running study among real parties: keys, mailrooms, the secure sum and the sandboxed worker are real.

The other hospitals and the researcher do their part in this process; the hospital under test is a `StudyRun`.
"""

from __future__ import annotations

import datetime
import functools
import json
import shutil
import tempfile
import time
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasites.control.sealer import SyftSealer, open_keys, syft_fingerprint
from datasites.hospital.cases.case import open_case
from datasites.hospital.models import Case
from datasites.hospital.rounds import run
from datasites.hospital.rounds.row_work import RowWork
from datasites.hospital.rounds.run import StudyRun
from datasites.hospital.service import Service
from datasites.secagg.aggregator import Aggregator
from datasites.secagg.epoch_terms import EpochTerms
from datasites.secagg.journal import Journal
from datasites.secagg.member import Member
from datasites.secagg.messages import Certificate, Enrolment, MaskedVector, Ready, ShareBundle, SurvivorList
from datasites.secagg.state import MemberState
from datasites.study import letters
from datasites.study.audit_chain import LogRecord, records
from datasites.study.canonical import sha256_hex
from datasites.study.identity import Identity
from datasites.study.manifest import UPDATE_BOUND, RoundManifest, VectorTerm
from datasites.study.package import StudyPackage
from datasites.study.roster import Roster
from datasites.study.rounds import safe_scale
from datasites.transport.mailroom import Letter, Mailroom
from datasites.transport.store import Store
from tests.hospital.conftest import HEART, furnish_roster, log_pins, moments, own_identity
from tests.hospital.desk import Desk
from tests.study.entries import entry_of

RESEARCHER = "researcher@university.example.org"
OWN = "datasite@cleveland.example.org"


def today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


class Hastened:
    """In place of the module `time` in `rounds.run`: once a round's rows are done, its tick comes at once.

    Work that is not done by then is late by as much as it would be.
    """

    def __init__(self, running: Running) -> None:
        self._running, self._ahead = running, 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    def sleep(self, seconds: float) -> None:
        round, ends = self._running.run._at_work, self.monotonic() + seconds
        if round is None:
            time.sleep(seconds)
        else:
            wait([round.work], timeout=seconds)
            self._ahead += max(0.0, ends - self.monotonic())


@dataclass(frozen=True)
class _Parties:
    """Everybody's keys; only this hospital's are kept in its home."""

    keys: dict[str, Identity]
    syft: dict[str, Any]
    bundles: dict[str, bytes]
    roster: Roster


@functools.cache
def _parties() -> _Parties:
    emails = (RESEARCHER, *StudyPackage.read(HEART / "study").study.cohort.hospitals)
    keys = {email: own_identity() if email == OWN else Identity.generate(email) for email in emails}
    with tempfile.TemporaryDirectory() as folder:
        syft = {email: open_keys(email, Path(folder) / email / "keys.json") for email in emails}
    bundles = {
        email: json.dumps({"public_encryption_bundle": held.get_public_bundle()}).encode()
        for email, held in syft.items()
    }
    as_researcher = {"role": "researcher", "organisation": "University"}
    entries = tuple(
        entry_of(
            keys[email],
            syft_fingerprint=syft_fingerprint(syft[email]),
            **(as_researcher if email == RESEARCHER else {}),
        )
        for email in emails
    )
    return _Parties(keys, syft, bundles, Roster(entries=entries))


def _approve(desk: Desk) -> None:
    """Let two people approve the study, and pin all its parties."""
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")
    roster = _parties().roster
    roster.save(desk.site.home.roster)
    log_pins(desk.site, roster)


class Running:
    """The study of `desk`, approved. `rooms`: everybody's mailroom; `run`: the hospital's run of it."""

    def __init__(self, desk: Desk, folder: Path, *, begins: bool = False) -> None:
        """begins: a test begins with it, so that nothing else has happened at `desk`."""
        self.desk, self.site, self.folder = desk, desk.site, folder
        if begins:
            moments().at("running", lambda: _approve(desk))
        else:
            _approve(desk)
        home, parties = self.site.home, _parties()
        self.row = Case.objects.get(pk=desk.row.pk)
        self.begins = self.site.audit.head().seq
        self.case = open_case(home, self.row)
        self.study_hash = self.row.study_hash
        self.keys, self.roster, self.bundles = dict(parties.keys), parties.roster, dict(parties.bundles)
        # Refused at the first look: these tests don't wait for the second.
        self.store = Store(str(folder / "store"), settles=0.0)
        self.sealers = {email: SyftSealer(syft, self.roster, self.bundles.get) for email, syft in parties.syft.items()}
        self.rooms = {
            email: Mailroom(email, self.store, self.sealers[email], folder / email / "mail") for email in parties.keys
        }
        self.run = StudyRun(self.site, self.rooms[OWN], self.row)
        self.states: dict[str, MemberState] = {}
        self.members: dict[str, Member] = {}

    # What shows outside only by the moments at which something leaves, or is held by one process at a time.

    @property
    def journal(self) -> Journal:
        """The journal of the secure sum, which the run holds locked."""
        return self.run._journal

    @property
    def at_work(self) -> Any:
        """The round whose rows are worked on, if one is."""
        return self.run._at_work

    @property
    def rows(self) -> RowWork:
        """What works on rows for the run."""
        return self.run._rows

    def restart(self) -> StudyRun:
        """The hospital's service ends and starts again."""
        self.run.close(wait=True)
        self.run = StudyRun(self.site, self.rooms[OWN], Case.objects.get(pk=self.row.pk))
        return self.run

    def steps(self) -> None:
        """Let the hospital do all it can."""
        while self.run.step() or self.run.wakes_at is not None:
            self._sleep()

    def until_at_work(self) -> None:
        """Let the hospital step until a round's rows are worked on, its letter having waited for that."""
        while self.at_work is None:
            if not self.run.step():
                assert self.run.wakes_at is not None
                self._sleep()

    def _sleep(self) -> None:
        if self.run.wakes_at is not None:
            clock = run.time  # type: ignore[attr-defined]  # which a test may have replaced
            clock.sleep(max(0.0, self.run.wakes_at - clock.monotonic()))

    def end(self) -> None:
        self.run.close(wait=True)
        for room in self.rooms.values():
            room.close()
        home = self.site.home
        furnish_roster(home)
        shutil.rmtree(home.secagg / self.study_hash)
        (home.anchors / self.study_hash).unlink(missing_ok=True)

    def logged(self, kind: str) -> list[LogRecord]:
        """This test's records of this kind about the study; other tests wrote to the same log."""
        mine = [r for r in records(self.site.home.audit) if r.seq > self.begins]
        return [r for r in mine if r.kind == kind and r.fields.get("study") == self.study_hash]

    def tell(
        self, number: int, kind: str, body: dict[str, Any], blob: bytes | None = None, sender: str = RESEARCHER
    ) -> None:
        """A letter of somebody to the hospital."""
        self.rooms[sender].send(OWN, self.study_hash, number, kind, body, blob)

    def heard(self, number: int, kind: str, recipient: str = RESEARCHER) -> Letter | None:
        """The hospital's letter to somebody."""
        return self.rooms[recipient].receive(OWN, self.study_hash, number, kind)

    def offer(self, epoch: int = 0, **changes: object) -> None:
        """The researcher offers an epoch."""
        study = self.case.study
        fields: dict[str, object] = {
            "epoch": epoch,
            "first_round": 1,
            "last_round": study.rounds + 1,
            "expires": today() + datetime.timedelta(days=6),
        }
        offer = letters.EpochOffer.model_validate({**fields, **changes})
        self.tell(letters.SETUP_ROUND, letters.offer_kind(epoch), offer.model_dump(mode="json"))

    def set_up(self, epoch: int = 0, first_round: int = 1) -> None:
        """An epoch among all hospitals, up to every `Ready`."""
        study = self.case.study
        context = EpochTerms.from_roster(
            self.roster,
            study_hash=self.study_hash,
            epoch=epoch,
            aggregator=RESEARCHER,
            hospitals=study.cohort.hospitals,
            colluders=study.cohort.colluders,
            rounds=(first_round, study.rounds + 1),
            expires=today() + datetime.timedelta(days=6),
            threshold=study.cohort.survivors_needed,
            consistency=study.consistency_wave,
        )
        self.aggregator = Aggregator(self.keys[RESEARCHER], context)
        self.state = self.aggregator.start()
        self.offer(epoch, first_round=first_round)
        self.steps()
        certificates = [Certificate.from_bytes(self._blob(letters.certificate_kind(epoch)))]
        self.members = {email: Member(self.keys[email], context) for email in study.cohort.hospitals if email != OWN}
        for email, member in self.members.items():
            self.states[email], certificate = member.certify(self.states.get(email))
            certificates.append(certificate)
        for certificate in certificates:
            self.state = self.aggregator.receive_certificate(self.state, certificate, today=today())
        self.state, enrolment = self.aggregator.enrol(self.state, today=today())
        self.tell(letters.SETUP_ROUND, letters.enrolment_kind(epoch), {}, enrolment.to_bytes())
        bundles: list[ShareBundle] = []
        for email, member in self.members.items():
            again = Enrolment.from_bytes(enrolment.to_bytes())
            self.states[email], made = member.share(self.states[email], again, today=today())
            bundles += made.values()
        for bundle in bundles:
            if bundle.recipient == OWN:
                kind = letters.shares_kind(epoch)
                self.tell(letters.SETUP_ROUND, kind, {}, bundle.to_bytes(), sender=bundle.sender)
        self.steps()
        for email, member in self.members.items():
            own = ShareBundle.from_bytes(self._blob(letters.shares_kind(epoch), email))
            for bundle in [own, *(b for b in bundles if b.recipient == email)]:
                self.states[email] = member.accept(self.states[email], bundle)
            self.states[email], ready = member.ready(self.states[email])
            self.state = self.aggregator.receive_ready(self.state, ready)
        self.state = self.aggregator.receive_ready(self.state, Ready.from_bytes(self._blob(letters.ready_kind(epoch))))

    def _blob(self, kind: str, recipient: str = RESEARCHER) -> bytes:
        letter = self.heard(letters.SETUP_ROUND, kind, recipient)
        assert letter is not None
        return bytes(letter.blob or b"")

    def open(self, number: int, letter_round: int | None = None, *, value: float = 0.0) -> RoundManifest:
        """The researcher opens a training round on a model of one value; the other hospitals open it too."""
        dimension = self.case.approval_terms.parameters
        model = np.full(dimension, value, dtype="<f4").tobytes()
        study = self.case.study
        scale = safe_scale(UPDATE_BOUND, len(study.cohort.hospitals))
        manifest = RoundManifest(
            study=self.study_hash,
            epoch=self.aggregator.context.epoch,
            round=number,
            participants=self.aggregator.available(self.state),
            threshold=self.aggregator.context.threshold,
            train=True,
            evaluate="no",
            weight_max=float(study.cohort.max_patients),
            model_hash=sha256_hex(model),
            vectors=(
                VectorTerm(name="update", length=dimension, bound=UPDATE_BOUND, scale=scale),
                VectorTerm(name="weight", length=1, bound=1.0, scale=safe_scale(1.0, len(study.cohort.hospitals))),
            ),
        )
        self.state, signed = self.aggregator.open_round(self.state, manifest)
        for email, member in self.members.items():
            self.states[email] = member.open(self.states[email], signed, today=today())
        self.tell(letter_round or number, letters.ROUND, {"manifest": signed.to_bytes().decode()}, model)
        return manifest

    def survive(self, manifest: RoundManifest) -> SurvivorList:
        """All vectors come in, the hospital's among them; the researcher names the survivors."""
        letter = self.heard(manifest.round, letters.MASKED)
        assert letter is not None
        body = letters.Masked.model_validate(letter.body)
        own = MaskedVector.from_bytes(body.header.encode(), memoryview(letter.blob or b""))
        self.state = self.aggregator.receive(self.state, own)
        for email, member in self.members.items():
            zeros = {term.name: np.zeros(term.length) for term in manifest.vectors}
            self.states[email], masked = member.mask(self.states[email], zeros)
            self.state = self.aggregator.receive(self.state, masked)
        self.state, survivors = self.aggregator.survivors(self.state)
        self.tell(manifest.round, letters.SURVIVORS, {}, survivors.to_bytes())
        return survivors


def require_sat_out(running: Running, number: int) -> None:
    """Nothing was charged or left in that round, and everybody learns why."""
    letter = running.heard(number, letters.ABSTAINED)
    assert letter is not None
    assert letter.body == {"outcome": "denied", "controls": ["epoch-keys"]}
    assert running.heard(number, letters.MASKED) is None
    (told,) = running.logged("abstained")
    assert told.fields["controls"] == ["epoch-keys"]
    assert "pinned" in told.fields["reason"]


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def killed_in(running: Running, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The service ends when it comes to this, and starts again."""
    with monkeypatch.context() as patch:
        patch.setattr(what, killed)
        with pytest.raises(KeyboardInterrupt):
            running.steps()
    running.restart()
    running.steps()


def runs(service: Service, running: Running) -> None:
    """Let the service run this study as it is (its private table): a run of its own would read its home's store."""
    service._runs = {running.row.pk: running.run}


def lets_go(service: Service) -> None:
    """Take back what `runs` gave it (private): the run is the fixture's, and would be closed with the service."""
    service._runs.clear()
