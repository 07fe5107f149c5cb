"""Gathers one case's evidence from database, files and audit log for `bundle.build_bundle`."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasites.hospital.audit.bindings import FIELD, openings
from datasites.hospital.budget import ledger, pending
from datasites.hospital.cases import compliance, owed
from datasites.hospital.cases.case import OpenCase, open_case
from datasites.hospital.cases.freeze import ApprovalTerms
from datasites.hospital.cases.lookup import find_case
from datasites.hospital.evidence.bundle import EvidenceContents, build_bundle
from datasites.hospital.evidence.verify_bundle import Check
from datasites.hospital.models import PolicyDecision
from datasites.hospital.rounds.abstaining import log_newest
from datasites.hospital.rounds.closing import COUNTERPARTY_HEADS
from datasites.hospital.site import Site
from datasites.study.audit_chain import records
from policies.registry import Registry, RegistryFile

TRIES, PAUSE = 3, 0.5


def export_evidence(site: Site, case_id: int, out: Path) -> tuple[Check, ...]:
    """Write the evidence bundle of `case_id`; returns what its own verifier says of it.

    While a study runs, a round can write between our reading of the database and of the log, so that they seem to part.
    A bundle that does not verify is therefore gathered again, a few times, before it counts.
    """
    for _ in range(TRIES - 1):
        checks = _export(site, case_id, out)
        if all(check.ok for check in checks):
            return checks
        time.sleep(PAUSE)
    return _export(site, case_id, out)


def _export(site: Site, case_id: int, out: Path) -> tuple[Check, ...]:
    case = open_case(site.home, find_case(case_id))
    study_hash = case.row.study_hash
    compliance.finish_interrupted(site)
    pending.finish_all(site)
    owed.settle_all(site)
    log_newest(site, case.row)
    site.audit.checkpoint()
    heads = site.home.secagg / study_hash / COUNTERPARTY_HEADS
    decisions = [decision.record for decision in PolicyDecision.objects.filter(case=case.row)]
    registry = _registry(site, case, decisions)
    return build_bundle(
        out,
        EvidenceContents(
            identity=site.identity,
            hospital=site.home.settings.organisation,
            title=case.study.title,
            study_hash=study_hash,
            approval_terms=ApprovalTerms.model_validate(case.row.approval_terms).canonical(),
            frozen=case.package.files,
            findings=case.row.findings,
            decisions=decisions,
            ledger=[
                ledger.round_entry(case.dataset, study_hash, charge)
                for charge in sorted(ledger.charged_rounds(case.dataset, study_hash))
            ],
            registry=registry.canonical(),
            openings=_openings(site, case, registry),
            audit=site.home.audit,
            heads=json.loads(heads.read_text()) if heads.exists() else [],
            created=datetime.datetime.now(datetime.UTC),
        ),
    )


def _registry(site: Site, case: OpenCase, decisions: Sequence[Mapping[str, Any]]) -> Registry:
    """Return those of the hospital's agreements that bear on the study or that a decision about it looked at."""
    whole = RegistryFile(site.home.registry, site.home.settings.organisation).load()
    looked_at = {a["terms"]["id"] for d in decisions for a in ((d["facts"] or {}).get("agreements") or ())}
    bearing = {a.terms.id for a in whole.relevant(case.study.services, case.study.irb, case.study.purpose)}
    kept = tuple(a for a in whole.agreements if a.terms.id in looked_at | bearing)
    return Registry(organisation=whole.organisation, agreements=kept)


def _openings(site: Site, case: OpenCase, registry: Registry) -> list[dict[str, Any]]:
    """Return what opens the log's commitments to these agreements, to the study's parties, and to who approved it."""
    agreements = {(a.terms.id, a.version) for a in registry.agreements}
    parties = {case.study.researcher, *case.study.cohort.hospitals}
    log = list(records(site.home.audit))
    people = {r.fields["person"] for r in log if r.kind == "approved" and r.fields.get("study") == case.row.study_hash}
    mine = [
        record.fields[FIELD]
        for record in log
        if FIELD in record.fields
        and (
            (record.fields.get("agreement"), record.fields.get("version")) in agreements
            or (record.kind == "person_added" and record.fields["person"] in people)
            or (record.kind in ("initialised", "pinned") and record.fields["email"] in parties)
        )
    ]
    return list(openings(site.home, mine))
