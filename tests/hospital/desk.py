"""A case in review with the hospital's people in front of it, and what they do with it."""

from __future__ import annotations

import dataclasses
import datetime
import threading
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import replace
from typing import Any

import pytest

from datasites.control.syft import SubmittedJob
from datasites.hospital.audit.entered import agreements_by_hand
from datasites.hospital.cases import rehearsal, review
from datasites.hospital.config import Home
from datasites.hospital.models import Case, LedgerEntry, Round
from datasites.hospital.people.accounts import Actor, identify
from datasites.hospital.people.agreements import confirm_agreement, enter_agreements
from datasites.hospital.service import Service
from datasites.hospital.site import Site
from datasites.study.package import StudyPackage
from policies.registry import RegistryFile
from tests.agreements import agreements
from tests.hospital.conftest import HEART, moments
from tests.hospital.invited import enter
from tests.polling import PATIENCE

PASSWORD = "a long enough passphrase"
NO_SANDBOX = f"""
[[agreement]]
id = "no-sandbox"
kind = "risk_acceptance"
parties = ["Cleveland"]
services = ["no_sandbox"]
effective = 2026-01-01
expires = 2099-12-31
document = "{"ab" * 32}"
"""


def job(**files: bytes) -> SubmittedJob:
    study = {path.name: path.read_bytes() for path in (HEART / "study").iterdir() if path.is_file()}
    return SubmittedJob(
        name="heart-1",
        submitted_by="researcher@university.example.org",
        files={**study, **files},
        status="pending",
        reason="",
    )


def _enter(home: Home, values: dict[str, Any]) -> None:
    site = Site.open(home.root)
    Case.objects.create(**values)
    for name, role in (("ann", "steward"), ("bob", "privacy_officer"), ("cyd", "steward"), ("dee", "auditor")):
        enter(site, name, role, PASSWORD, f"{name}@cleveland.example.org")
    home.registry.unlink(missing_ok=True)


class Desk:
    """A case in review, with the hospital's people in front of it."""

    def __init__(self, home: Home, values: dict[str, Any]) -> None:
        moments().at("desk", lambda: _enter(home, values))
        self.site = Site.open(home.root)
        self.row = Case.objects.get(job_name=values["job_name"])

    def agree(self, *, expires: str = "2099-12-31", transport: str = "transport", features: Sequence[str] = ()) -> None:
        package = StudyPackage.read(HEART / "study")
        names = [f.name for f in (*package.data_model.features, package.data_model.label)]
        file = self.site.home.root / "agreements.toml"
        file.write_text(agreements("Cleveland", features or names, expires=expires, transport=transport))
        for id, version in enter_agreements(self.site, self.login("ann"), file):
            confirm_agreement(self.site, self.login("bob"), id, version)

    def without_sandbox(self) -> Site:
        """The same datasite, whose operator has switched the sandbox off."""
        settings = self.site.home.settings
        off = settings.model_copy(update={"sandbox": settings.sandbox.model_copy(update={"mode": "off"})})
        return replace(self.site, home=replace(self.site.home, settings=off))

    def accept_no_sandbox(self, *, confirmed: bool = True) -> None:
        file = self.site.home.root / "risk.toml"
        file.write_text(NO_SANDBOX)
        ((id, version),) = enter_agreements(self.site, self.login("ann"), file)
        if confirmed:
            confirm_agreement(self.site, self.login("bob"), id, version)

    def login(self, name: str) -> Actor:
        return identify(name, PASSWORD)

    def approve(self, name: str) -> Case:
        return review.approve(self.site, self.row.pk, self.login(name), "read it", self.row.approval_hash)

    def forget_rehearsal(self) -> None:
        """Let the next examination rehearse again."""
        Case.objects.filter(pk=self.row.pk).update(rehearsal={})

    def nothing_happened(self) -> None:
        assert not LedgerEntry.objects.exists()
        assert not Round.objects.exists()
        self.row.refresh_from_db()
        assert self.row.state == Case.State.REVIEW


def turn(service: Service, *, sync: bool = True) -> None:
    """One turn of the loop, with a sync unless told otherwise, and without its sleep."""
    stop = threading.Event()
    stop.set()
    service.step(stop, sync=sync)


def all_taken_in(service: Service) -> None:
    """Turns until nothing is left in the inbox that may be taken in."""
    turn(service)
    # Private, since a turn says nothing of what a thread does beside it, and to turn until then would take a processor.
    while work := service._submissions._work:
        wait([work.pending], PATIENCE)
        turn(service)


def end(service: Service) -> None:
    """End it as one that is told to stop."""
    stop = threading.Event()
    stop.set()
    service.serve(stop)


def without_rehearsal(patch: pytest.MonkeyPatch, **of: Any) -> None:
    """Let each submission pass its rehearsal at once, as if no worker were started. of: other figures of it."""
    passed = {"outcome": "passed", "ticks": 1, "parameters": 9, **of}
    patch.setattr(rehearsal, "_rehearse", lambda *_: dict(passed))


def another(name: str, *, long: bool = False, submitter: str = "") -> SubmittedJob:
    """A submission of a study of its own. long: its rehearsal takes minutes."""
    terms = (HEART / "study" / "study.toml").read_text().replace("IRB-2026-017", f"IRB-{name}")
    if long:
        terms = terms.replace("hidden = 0", "hidden = 60000").replace("steps = 2", "steps = 200")
    sent = job(**{"study.toml": terms.encode()})
    return dataclasses.replace(sent, name=name, submitted_by=submitter or sent.submitted_by)


def values_of(row: Case) -> dict[str, Any]:
    """All that a case holds but its id, to make one like it."""
    return {field.attname: getattr(row, field.attname) for field in Case._meta.concrete_fields if field.name != "id"}


def by_hand(site: Site) -> list[str]:
    """What `doctor` finds of the registry as it is."""
    agreements = RegistryFile(site.home.registry, "Cleveland").load().agreements
    return agreements_by_hand(site.home, agreements, datetime.datetime.now(datetime.UTC).date())
