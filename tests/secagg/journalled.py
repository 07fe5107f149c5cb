"""A cohort whose hospitals keep real journals, and a store that forgets nothing; for what disks hold after a step."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from datasites.secagg.aggregator_state import OpenedSum
from datasites.secagg.journal import Journal
from datasites.secagg.messages import MaskedVector, Message, ShareBundle, SurvivorList
from datasites.study.manifest import RoundManifest
from tests.secagg.cohort import TODAY, Cohort, assert_exact, integers

Inputs = Mapping[str, Mapping[str, np.ndarray]]


class Journalled:
    """`cohort` with a journal for each of its hospitals in `folder`. store: all bundles that were ever sent."""

    def __init__(self, cohort: Cohort, folder: Path) -> None:
        self.cohort = cohort
        self.folder = folder
        self.store: list[ShareBundle] = []
        self.journals = {name: Journal(folder / name / "journal", folder / name / "anchor") for name in cohort.members}

    def close(self) -> None:
        for journal in self.journals.values():
            journal.close()

    def commit(self, name: str, *messages: Message | MaskedVector) -> None:
        self.journals[name].commit(self.cohort.states[name], *messages)

    def share(self) -> None:
        """Certificates, enrolment and bundles."""
        enrolment = self.cohort.enrol()
        for name, member in self.cohort.members.items():
            certificate = self.cohort.states[name].certificate
            self.commit(name, certificate)
            self.cohort.states[name], made = member.share(self.cohort.states[name], enrolment, today=TODAY)
            self.commit(name, *made.values())
            self.store += made.values()

    def accept(self, name: str, without: Collection[str] = ()) -> None:
        """Take in the bundles of all but some."""
        for bundle in self.store:
            if bundle.recipient == name and bundle.sender not in without:
                self.cohort.states[name] = self.cohort.members[name].accept(self.cohort.states[name], bundle)
                self.commit(name)

    def ready(self, name: str) -> None:
        """Say whose shares are held."""
        cohort = self.cohort
        cohort.states[name], ready = cohort.members[name].ready(cohort.states[name])
        self.commit(name, ready)
        cohort.readies[name] = ready
        cohort.state = cohort.aggregator.receive_ready(cohort.state, ready)

    def set_up(self) -> None:
        self.share()
        for name in self.cohort.members:
            self.accept(name)
            self.ready(name)

    def open(self, number: int) -> RoundManifest:
        """Open a round."""
        manifest = self.cohort.manifest(number)
        self.cohort.open(manifest)
        for name in manifest.participants:
            self.commit(name)
        return manifest

    def mask(self, manifest: RoundManifest, inputs: Inputs) -> SurvivorList:
        """All masked vectors of an open round."""
        cohort = self.cohort
        for name in manifest.participants:
            cohort.states[name], masked = cohort.members[name].mask(cohort.states[name], inputs[name])
            self.commit(name, masked)
            cohort.state = cohort.aggregator.receive(cohort.state, masked)
        return cohort.survivors()

    def unmask(self, manifest: RoundManifest, survivors: SurvivorList) -> OpenedSum:
        """All answers, and the opened sum."""
        cohort = self.cohort
        for name in manifest.participants:
            cohort.states[name], answer = cohort.members[name].unmask(cohort.states[name], survivors)
            self.commit(name, answer)
            cohort.state = cohort.aggregator.receive_shares(cohort.state, answer)
        return cohort.result()

    def run_round(self, number: int) -> OpenedSum:
        """A whole round; the sum is checked."""
        manifest = self.open(number)
        inputs = integers(manifest, manifest.participants)
        result = self.unmask(manifest, self.mask(manifest, inputs))
        assert_exact(result, inputs)
        return result


def files_with(folder: Path, secrets: Iterable[bytes]) -> list[tuple[str, int]]:
    """Which files below `folder` hold which of `secrets`: as they are, in hexadecimal, or within any base64."""
    sought = {index: list(_forms(secret)) for index, secret in enumerate(secrets)}
    assert all(len(form) >= 16 for forms in sought.values() for form in forms)
    found = []
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        found += [
            (path.name, index)
            for index, forms in sought.items()
            for form in forms
            if form in data or form in data.lower()
        ]
    return found


def _forms(secret: bytes) -> Iterable[bytes]:
    yield secret
    yield secret.hex().encode()
    for before in range(3):
        whole = base64.b64encode(bytes(before) + secret)
        yield whole[4 if before else 0 : len(whole) // 4 * 4 - 4]
