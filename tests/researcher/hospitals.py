"""Hospitals for the tests of a run: real keys, letters, shares and masks in one process; what they train on is made up.

They follow the protocol as `datasites.hospital` does, without its database, ledger and worker, put letters again that
the store has lost, and can be told to lie.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import re
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from datasites.aggregator.run import Run
from datasites.aggregator.run_files import RunFolder
from datasites.researcher.study import Study
from datasites.secagg.epoch_terms import EpochTerms
from datasites.secagg.errors import SecaggError
from datasites.secagg.member import Member
from datasites.secagg.messages import AckList, Enrolment, Ready, ShareBundle, SignedManifest, SurvivorList
from datasites.secagg.state import MemberState
from datasites.study import letters
from datasites.study.audit_chain import PublicHead
from datasites.study.identity import IdentityError
from datasites.study.manifest import RoundManifest
from datasites.transport.mailroom import Letter, Rejected
from datasites.transport.repeats import Posted, Repeats
from tests.transport.parties import RESEARCHER, Party

PEER_PATIENCE = 0.3
SHARE = 0.25
"""What each hospital weighs."""
GRADIENT = -23.0
"""Each coordinate of a hospital's sum of clipped gradients, in distributed mode."""


class Hospital:
    """One hospital. `step` does what can be done now. The flags say where it lies or is silent."""

    def __init__(self, party: Party, study: Study, runs: Path) -> None:
        self.party, self.study, self.email = party, study, party.email
        self._contexts = runs
        self.member: Member | None = None
        self.state: MemberState | None = None
        self._ready: Ready | None = None
        self._floor = (-1, 0)
        self.there = True
        self.releases = 0
        self.heads = "a" * 64
        self.update = 0.5
        self.weight = SHARE
        self.wrong_shares = False
        self.silent_at: set[str] = set()
        self.body: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: body
        self.account: dict[str, Any] = {}
        self.charged: list[int] = []
        self._since = 0.0
        self._told: set[tuple[str, int]] = set()
        self._sent: dict[Posted, tuple[dict[str, Any], Any]] = {}
        self._repeats = Repeats()

    def step(self) -> None:
        """Look at the mailbox once."""
        if not self.there:
            return
        self._put_again()
        for number, kind, sender in self.party.mailroom.mailbox(self.study.hash):
            if sender == RESEARCHER and number == letters.SETUP_ROUND and re.fullmatch("offer-[0-9]{1,3}", kind):
                self._offered(int(kind.removeprefix("offer-")))
            if (number, kind, sender) == (letters.SETUP_ROUND, letters.CLOSE, RESEARCHER):
                self._close()
        if self.state is None or self.member is None:
            self._sit_out_without_keys()
            return
        self._set_up(self.member, self.state)
        for number, kind, sender in self.party.mailroom.mailbox(self.study.hash):
            new = number > self.state.last_round and ("refused", number) not in self._told
            if sender == RESEARCHER and kind == letters.ROUND and new:
                self._attend(self.member, number)
        if self.state.open is not None and self.state.open.answer is None:
            self._answer(self.member)

    def _letter(self, kind: str, number: int = letters.SETUP_ROUND, sender: str = RESEARCHER) -> Letter | None:
        try:
            letter: Letter | None = self.party.mailroom.receive(sender, self.study.hash, number, kind)
            return letter
        except (Rejected, IdentityError):
            return None

    def _send(self, kind: str, body: dict[str, Any], blob: Any = None, number: int = 0, to: str = RESEARCHER) -> None:
        if kind.split("-")[0] not in self.silent_at:
            self._sent[to, number, kind] = (body, blob)
            self._repeats.begin((to, number, kind))
            with contextlib.suppress(IdentityError):  # its keys are not in the store: put again when they are
                self.party.mailroom.send(to, self.study.hash, number, kind, body, blob)

    def _put_again(self) -> None:
        for to, number, kind in self._repeats.due():
            if not self.party.mailroom.lies(to, self.study.hash, number, kind):
                with contextlib.suppress(IdentityError):
                    self.party.mailroom.send(to, self.study.hash, number, kind, *self._sent[to, number, kind])

    def rejoin(self) -> None:
        """Give the keys up, as `datasites study rejoin` does; what was reached stays closed."""
        assert self.state is not None
        self._floor = (self.state.epoch, self.state.last_round)
        self.state = self.member = None

    def _sit_out_without_keys(self) -> None:
        if self._floor[0] >= 0:
            for number, kind, sender in self.party.mailroom.mailbox(self.study.hash):
                if sender == RESEARCHER and kind == letters.ROUND and number > self._floor[1]:
                    self._sit_out(number, letters.EPOCH_LOST)

    def _sit_out(self, number: int, control: str) -> None:
        if ("refused", number) not in self._told:
            self._told.add(("refused", number))
            body = letters.Abstention(outcome="denied", controls=(control,)).model_dump(mode="json")
            self._send(letters.ABSTAINED, body, None, number)

    def _is_pinned(self, context: EpochTerms) -> bool:
        return all(self.party.roster.get(one.email).public_key == one.public_key for one in context.hospitals)

    def _offered(self, epoch: int) -> None:
        if epoch <= (self._floor[0] if self.state is None else self.state.epoch):
            return
        if self._letter(letters.offer_kind(epoch)) is None:
            return
        # The terms that a datasite would build from offer and study; its own tests show that it does.
        context = EpochTerms.parse((self._contexts / f"context-{epoch}.json").read_bytes())
        if not self._is_pinned(context):
            return
        self._repeats.end(lambda _: True)
        self.member = Member(self.party.identity, context)
        self.state, certificate = self.member.certify(self.state)
        if self.wrong_shares:
            wrong = tuple(one.model_copy(update={"seed": secrets.token_bytes(32)}) for one in self.state.secrets)
            self.state = self.state.model_copy(update={"secrets": wrong})
        self._send(letters.certificate_kind(epoch), {}, certificate.to_bytes())

    def _set_up(self, member: Member, state: MemberState) -> None:
        epoch = member.context.epoch
        if state.enrolment is None:
            letter = self._letter(letters.enrolment_kind(epoch))
            if letter is None:
                return
            state, bundles = member.share(state, Enrolment.from_bytes(bytes(letter.blob or b"")), today=today())
            for bundle in bundles.values():
                self._send(letters.shares_kind(epoch), {}, bundle.to_bytes(), to=bundle.recipient)
            self._since = time.monotonic()
        assert state.enrolment is not None
        everybody = {certificate.sender for certificate in state.enrolment.certificates}
        for peer in set() if state.ready else everybody - state.holds:
            letter = self._letter(letters.shares_kind(epoch), sender=peer)
            if letter is not None:
                state = member.accept(state, ShareBundle.from_bytes(bytes(letter.blob or b"")))
        self.state = state
        waited = time.monotonic() - self._since > PEER_PATIENCE
        if (state.holds >= everybody or waited) and not state.ready:
            self.state, self._ready = member.ready(state)
            self._send(letters.ready_kind(epoch), {}, self._ready.to_bytes())

    def say_ready(self) -> None:
        """Say that it is ready, which was kept back before."""
        assert self.member is not None
        assert self._ready is not None
        self._send(letters.ready_kind(self.member.context.epoch), {}, self._ready.to_bytes())

    def _attend(self, member: Member, number: int) -> None:
        letter = self._letter(letters.ROUND, number)
        if letter is None:
            return
        self._repeats.end(lambda sent: sent[1] < number)
        if not self._is_pinned(member.context):
            self._sit_out(number, letters.EPOCH_KEYS)
            return
        signed = SignedManifest.from_bytes(str(letter.body["manifest"]).encode())
        assert self.state is not None
        try:
            self.state = member.open(self.state, signed, today=today())
        except SecaggError:
            self._send(letters.ABSTAINED, letters.Abstention(outcome="failed").model_dump(mode="json"), None, number)
            self._told.add(("refused", number))
            return
        self.charged.append(number)
        self.state, masked = member.mask(self.state, self._vectors(signed.manifest))
        self.releases += 1
        body = letters.Masked(
            header=masked.to_bytes().decode(),
            audit=PublicHead.sign(self.party.identity, self.releases, self.heads),
            counts_sigma={"final": 1.0, "interim": 0.0},
        ).model_dump(mode="json")
        self._send(letters.MASKED, self.body(body), masked.payload, number)

    def _vectors(self, manifest: RoundManifest) -> dict[str, np.ndarray]:
        made = {}
        for term in manifest.vectors:
            value = {"update": self.update * SHARE, "weight": self.weight, "counts": 20.0, "gradient": GRADIENT}
            made[term.name] = np.full(term.length, value[term.name])
        return made

    def _answer(self, member: Member) -> None:
        assert self.state is not None
        assert self.state.open is not None
        number = self.state.open.manifest.round
        letter = self._letter(letters.SURVIVORS, number)
        if letter is None:
            return
        survivors, acks = SurvivorList.from_bytes(bytes(letter.blob or b"")), None
        if member.context.consistency:
            self.state, ack = member.acknowledge(self.state, survivors)
            if ("acknowledged", number) not in self._told:
                self._told.add(("acknowledged", number))
                self._send(letters.ACKNOWLEDGE, {}, ack.to_bytes(), number)
            letter = self._letter(letters.ACKNOWLEDGED, number)
            if letter is None:
                return
            acks = AckList.from_bytes(bytes(letter.blob or b""))
        self.state, answer = member.unmask(self.state, survivors, acks)
        self._send(letters.UNMASK, {}, answer.to_bytes(), number)

    def _close(self) -> None:
        if ("closed", 0) in self._told or self._letter(letters.CLOSE) is None:
            return
        self._told.add(("closed", 0))
        epsilons = {"pld": 0.9, "local": 1.0}
        account = letters.PrivacyStatement(
            rounds=len(self.charged), steps=2, delta=1e-5, noise_multiplier=1.0, sampling_rate=0.3,
            cap=3.0, charged={"training": epsilons, "held_out": epsilons},
            head=PublicHead.sign(self.party.identity, self.releases, "b" * 64),
        )  # fmt: skip
        self._send(letters.ACCOUNT, account.model_dump(mode="json") | self.account)


def today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


class Federation:
    """A researcher's run and its hospitals, which a thread steps while the run waits."""

    def __init__(self, parties: list[Party], study: Study, folder: Path) -> None:
        self.researcher, *others = parties
        self.study, self.folder = study, folder
        self.hospitals = {party.email: Hospital(party, study, folder) for party in others}
        self.problems: list[BaseException] = []
        self._stop = threading.Event()
        #: Held while a hospital has its turn.
        self.lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop.wait(0.003):
            for hospital in self.hospitals.values():
                with self.lock:
                    try:
                        hospital.step()
                    except BaseException as error:
                        self.problems.append(error)
                        raise

    @property
    def files(self) -> RunFolder:
        """What the run keeps, as another process finds it."""
        return RunFolder(self.folder)

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(10)
        assert not self.problems, self.problems

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something while the run waits."""
        threading.Timer(seconds, act).start()

    def wait_for_letter(self, hospital: Hospital, kind: str, number: int = letters.SETUP_ROUND) -> None:
        """Sleep until that letter is in the researcher's mailbox."""
        expected = [(hospital.email, self.study.hash, number, kind)]
        assert self.researcher.mailroom.wait(expected, 5.0) == expected

    def run(self, *approved: str, **options: Any) -> Run:
        """A run as a new process would make it."""
        self.folder.mkdir(exist_ok=True)
        parameters = self.folder / "parameters.json"
        if not parameters.exists() and not (self.folder / "run.json").exists():
            parameters.write_text('[{"name":"weight","shape":[5]}]')
        options = {"setup_patience": 4.0, "round_timeout": 60.0, "least_patience": 1.0, **options}
        control = self.researcher.control
        assert control is not None
        options.setdefault("publish", control.put_again)
        run = Run(
            self.researcher.identity, self.researcher.roster, self.researcher.mailroom, self.folder, self.study,
            approved or sorted(self.hospitals), **options,
        )  # fmt: skip
        if run.state.next_round == 1 and not self.files.has_model(1):
            dimension = sum(math.prod(one.shape) for one in run.parameters)
            self.files.save_model(1, np.zeros(dimension, np.float32), {})
        return run
