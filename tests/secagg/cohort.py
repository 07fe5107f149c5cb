"""Whole cohorts for the tests of the secure sum: real keys, real messages through bytes, in one process."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datasites.secagg.aggregator import Aggregator
from datasites.secagg.aggregator_state import AggregatorState, OpenedSum
from datasites.secagg.epoch_terms import EpochTerms
from datasites.secagg.member import Member
from datasites.secagg.messages import (
    AckList,
    Certificate,
    Enrolment,
    MaskedVector,
    Ready,
    ShareBundle,
    SignedManifest,
    SurvivorAck,
    SurvivorList,
    UnmaskShares,
)
from datasites.secagg.state import MemberState
from datasites.study.identity import Identity
from datasites.study.manifest import RoundManifest, VectorTerm
from tests.study.entries import roster_of

TODAY = datetime.date(2026, 3, 2)
EXPIRES = datetime.date(2027, 1, 1)
STUDY = "5" * 64


def email(index: int) -> str:
    return f"site@h{index:03d}.example.org"


@dataclass
class Cohort:
    """n hospitals and an aggregator; `states` and `state` are the newest of each."""

    context: EpochTerms
    aggregator: Aggregator
    members: dict[str, Member]
    state: AggregatorState
    states: dict[str, MemberState] = field(default_factory=dict)
    readies: dict[str, Ready] = field(default_factory=dict)

    @classmethod
    def of(
        cls, n: int, *, epoch: int = 0, rounds: tuple[int, int] = (1, 3), study: str = STUDY, **terms: Any
    ) -> Cohort:
        researcher = Identity.generate("pi@university.example.org")
        hospitals = {email(i): Identity.generate(email(i)) for i in range(n)}
        roster = roster_of((researcher, *hospitals.values()), researcher.email)
        terms = {"colluders": 1 if n < 7 else 2, **terms}
        context = EpochTerms.from_roster(
            roster,
            study_hash=study,
            epoch=0,
            aggregator=researcher.email,
            hospitals=hospitals,
            rounds=rounds,
            expires=EXPIRES,
            **terms,
        )
        aggregator = Aggregator(researcher, context)
        members = {name: Member(identity, context) for name, identity in hospitals.items()}
        return cls(context, aggregator, members, aggregator.start())

    def enrol(self, absent: Collection[str] = ()) -> Enrolment:
        for name, member in self.members.items():
            if name not in absent:
                self.states[name], certificate = member.certify()
                again = Certificate.from_bytes(certificate.to_bytes())
                self.state = self.aggregator.receive_certificate(self.state, again, today=TODAY)
        self.state, enrolment = self.aggregator.enrol(self.state, today=TODAY)
        return Enrolment.from_bytes(enrolment.to_bytes())

    def setup(self, absent: Collection[str] = (), silent: Collection[str] = ()) -> Cohort:
        """All of setup. `absent` send no certificate, `silent` send no shares."""
        enrolment = self.enrol(absent)
        bundles: list[ShareBundle] = []
        for name in self.states:
            self.states[name], made = self.members[name].share(self.states[name], enrolment, today=TODAY)
            if name not in silent:
                bundles.extend(ShareBundle.from_bytes(bundle.to_bytes()) for bundle in made.values())
        for bundle in bundles:
            name = bundle.recipient
            self.states[name] = self.members[name].accept(self.states[name], bundle)
        for name, member in self.members.items():
            if name in self.states and name not in silent:
                self.states[name], ready = member.ready(self.states[name])
                self.readies[name] = ready = Ready.from_bytes(ready.to_bytes())
                self.state = self.aggregator.receive_ready(self.state, ready)
        return self

    def manifest(self, round: int = 1, **changes: Any) -> RoundManifest:
        terms: dict[str, Any] = {
            "study": self.context.study,
            "epoch": self.context.epoch,
            "round": round,
            "participants": self.aggregator.available(self.state),
            "threshold": self.context.threshold,
            "train": True,
            "evaluate": "no",
            "weight_max": 1.0,
            "model_hash": "a" * 64,
            "vectors": (
                VectorTerm(name="update", length=37, bound=2.0, scale=2.0**16),
                VectorTerm(name="weight", length=1, bound=1.0, scale=2.0**20),
            ),
        }
        return RoundManifest(**{**terms, **changes})

    def signed(self, manifest: RoundManifest) -> SignedManifest:
        """A manifest signed as a malicious aggregator would: without its own checks."""
        return SignedManifest.seal(self.aggregator.identity, context=self.context.digest(), manifest=manifest)

    def open(self, manifest: RoundManifest) -> None:
        self.state, signed = self.aggregator.open_round(self.state, manifest)
        signed = SignedManifest.from_bytes(signed.to_bytes())
        for name in manifest.participants:
            self.states[name] = self.members[name].open(self.states[name], signed, today=TODAY)

    def mask(self, name: str, vectors: Mapping[str, np.ndarray]) -> MaskedVector:
        self.states[name], masked = self.members[name].mask(self.states[name], vectors)
        return MaskedVector.from_bytes(masked.to_bytes(), bytes(masked.payload))

    def collect(self, inputs: Mapping[str, Mapping[str, np.ndarray]], names: Iterable[str]) -> None:
        for name in names:
            self.state = self.aggregator.receive(self.state, self.mask(name, inputs[name]))

    def survivors(self) -> SurvivorList:
        self.state, survivors = self.aggregator.survivors(self.state)
        return SurvivorList.from_bytes(survivors.to_bytes())

    def acks(self, survivors: SurvivorList, names: Iterable[str]) -> AckList:
        for name in names:
            self.states[name], ack = self.members[name].acknowledge(self.states[name], survivors)
            self.state = self.aggregator.receive_ack(self.state, SurvivorAck.from_bytes(ack.to_bytes()))
        self.state, acks = self.aggregator.acknowledged(self.state)
        return AckList.from_bytes(acks.to_bytes())

    def answer(self, name: str, survivors: SurvivorList, acks: AckList | None = None) -> UnmaskShares:
        self.states[name], answer = self.members[name].unmask(self.states[name], survivors, acks)
        return UnmaskShares.from_bytes(answer.to_bytes())

    def unmask(self, names: Iterable[str], survivors: SurvivorList, acks: AckList | None = None) -> OpenedSum:
        for name in names:
            self.state = self.aggregator.receive_shares(self.state, self.answer(name, survivors, acks))
        return self.result()

    def result(self) -> OpenedSum:
        """The opened sum, with the "ready" letters still in the store."""
        return self.aggregator.result(self.state, ready_again=self.readies.get)

    def restart(self) -> None:
        """The aggregator's state, as it is read from its files."""
        assert self.state.enrolment is not None
        self.state = AggregatorState.from_bytes(self.state.to_bytes(), self.state.enrolment.to_bytes())

    def run_round(
        self,
        inputs: Mapping[str, Mapping[str, np.ndarray]],
        manifest: RoundManifest | None = None,
        *,
        dropped: Collection[str] = (),
        mute: Collection[str] = (),
    ) -> OpenedSum:
        """A whole round. `dropped` send no vector, `mute` send one but don't answer."""
        manifest = manifest or self.manifest()
        self.open(manifest)
        alive = [name for name in manifest.participants if name not in dropped]
        self.collect(inputs, alive)
        survivors = self.survivors()
        speaking = [name for name in alive if name not in mute]
        acks = self.acks(survivors, speaking) if self.context.consistency else None
        return self.unmask(speaking, survivors, acks)


def integers(manifest: RoundManifest, names: Iterable[str], seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Random in-range integer inputs, so that the true sum is known exactly."""
    rng = np.random.default_rng(seed)
    return {
        name: {
            term.name: rng.integers(-int(term.bound * term.scale), int(term.bound * term.scale) + 1, term.length)
            for term in manifest.vectors
        }
        for name in names
    }


def assert_exact(result: OpenedSum, inputs: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    for term in result.manifest.vectors:
        truth = sum(inputs[name][term.name].astype(np.int64) for name in result.survivors)
        assert np.array_equal(result.integers[term.name], truth)
        assert np.array_equal(result.sums[term.name], truth / term.scale)
