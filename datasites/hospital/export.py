"""Gathers one case's evidence from database, files and audit log for `evidence.build_bundle`."""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path

from datasites.hospital import compliance, ledger, pending
from datasites.hospital.cases import open_case
from datasites.hospital.closing import COUNTERPARTY_HEADS
from datasites.hospital.evidence import EvidenceContents, build_bundle
from datasites.hospital.intake import ApprovalTerms
from datasites.hospital.models import PolicyDecision
from datasites.hospital.review import find_case
from datasites.hospital.site import Site
from datasites.hospital.verify_bundle import Check
from policies.registry import RegistryFile

TRIES, PAUSE = 3, 0.5


def export_evidence(site: Site, number: int, out: Path) -> tuple[Check, ...]:
    """Write the evidence bundle of case `number`; returns what its own verifier says of it.

    While a study runs, a round can write between our reading of the database and of the log, so that they seem to part.
    A bundle that does not verify is therefore gathered again, a few times, before it counts.
    """
    for _ in range(TRIES - 1):
        checks = _export(site, number, out)
        if all(check.ok for check in checks):
            return checks
        time.sleep(PAUSE)
    return _export(site, number, out)


def _export(site: Site, number: int, out: Path) -> tuple[Check, ...]:
    case = open_case(site.home, find_case(number))
    study = case.row.study_hash
    compliance.finish_interrupted(site)
    pending.finish_all(site)
    site.audit.checkpoint()
    heads = site.home.secagg / study / COUNTERPARTY_HEADS
    registry = RegistryFile(site.home.registry, site.home.settings.organisation).load()
    return build_bundle(
        out,
        EvidenceContents(
            identity=site.identity,
            hospital=site.home.settings.organisation,
            title=case.study.title,
            study=study,
            terms=ApprovalTerms.model_validate(case.row.terms).canonical(),
            frozen=case.package.files,
            findings=case.row.findings,
            decisions=[decision.record for decision in PolicyDecision.objects.filter(case=case.row)],
            ledger=[
                ledger.round_entry(case.dataset, study, charge)
                for charge in sorted(ledger.charged_rounds(case.dataset, study))
            ],
            registry=registry.canonical(),
            audit=site.home.audit,
            heads=json.loads(heads.read_text()) if heads.exists() else [],
            created=datetime.datetime.now(datetime.UTC),
        ),
    )
