"""Gathering facts and storing decisions: what can't be known denies, and log and database always hold the same (I3)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datasites.hospital import compliance, review
from datasites.hospital.audit import AuditLog, Head, head_file
from datasites.hospital.cases import OpenCase, open_case
from datasites.hospital.export import export_evidence
from datasites.hospital.models import PolicyDecision
from datasites.hospital.site import Site
from datasites.study.audit_chain import records
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.identity import Roster
from tests.hospital.test_review import Desk, desk, examined  # noqa: F401 (fixtures)


class Killed(BaseException):
    """Stands for kill -9: nothing that handles errors sees it."""


@pytest.fixture
def case(desk: Desk) -> Iterator[OpenCase]:  # noqa: F811
    # The tables are emptied between tests, so the log begins anew with them.
    for path in (desk.site.home.audit, head_file(desk.site.home.audit)):
        path.unlink()
    desk.site = Site.open(desk.site.home.root)
    desk.agree()
    roster = desk.site.home.roster.read_bytes()
    yield open_case(desk.site.home, desk.row)
    desk.site.home.roster.write_bytes(roster)


def test_a_pause_by_another_process_counts_from_the_next_decision(desk: Desk, case: OpenCase) -> None:  # noqa: F811
    desk.approve("ann")
    desk.approve("bob")
    opened = open_case(desk.site.home, type(desk.row).objects.get(pk=desk.row.pk))  # a round begins …
    assert "state" not in compliance.decide(desk.site, opened, "release").controls
    review.pause(desk.site, desk.row.pk, desk.login("bob"), "question")  # … is paused while it trains …
    decision = compliance.decide(desk.site, opened, "release")  # … and may not release
    assert "state" in decision.controls
    assert decision.facts is not None
    assert decision.facts.state == "paused"


def test_facts_that_can_not_be_gathered_deny_and_are_named(desk: Desk, case: OpenCase) -> None:  # noqa: F811
    assert compliance.decide(desk.site, case, "intake").allowed
    desk.site.home.roster.write_text("not a roster")
    decision = compliance.decide(desk.site, case, "intake")
    assert decision.controls == ("baa", "site")
    assert "Not known: which parties are pinned" in decision.summary
    patients = case.dataset.model_copy(update={"declared_patients": 10**13})
    assert "cohort" in compliance.decide(desk.site, dataclasses.replace(case, dataset=patients), "intake").controls


def test_the_aggregators_organisation_is_the_pinned_one(desk: Desk, case: OpenCase) -> None:  # noqa: F811
    roster = Roster.load(desk.site.home.roster)
    entries = tuple(
        e.model_copy(update={"organisation": "Elsewhere"}) if e.email == case.study.researcher else e
        for e in roster.entries
    )
    roster.model_copy(update={"entries": entries}).save(desk.site.home.roster)
    decision = compliance.decide(desk.site, case, "intake")
    assert decision.controls == ("baa",)
    assert "the roster says Elsewhere, the study says aggregation by University" in decision.summary


def test_a_delta_above_the_datasets_is_denied(desk: Desk, case: OpenCase) -> None:  # noqa: F811
    strict = dataclasses.replace(case, dataset=case.dataset.model_copy(update={"delta": 1e-4}))
    decision = compliance.decide(desk.site, strict, "intake")
    assert "budget-delta" in {denial.rule for denial in decision.denied_by}


class DiesAround(AuditLog):
    """A log whose process is killed before or after it wrote a record."""

    before = False

    def append(self, kind: str, /, **fields: Any) -> Head:
        if not self.before:
            super().append(kind, **fields)
        raise Killed


def digests(site: Site) -> tuple[Counter[str], Counter[str]]:
    logged = Counter(str(r.fields["digest"]) for r in records(site.home.audit) if r.kind == "decision")
    stored = Counter(sha256_hex(canonical_json(row.record)) for row in PolicyDecision.objects.all())
    return logged, stored


@pytest.mark.parametrize("moment", ["before the log", "after the log", "after the row"])
def test_killed_while_a_decision_is_stored_log_and_database_agree_again(
    desk: Desk,  # noqa: F811
    case: OpenCase,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    log = DiesAround(desk.site.home.audit, desk.site.identity)
    log.before = moment == "before the log"
    site = dataclasses.replace(desk.site, audit=log)
    if moment == "after the row":
        site = desk.site
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        compliance.decide(site, case, "intake")
    monkeypatch.undo()
    again = Site.open(desk.site.home.root)
    compliance.decide(again, case, "intake")
    logged, stored = digests(again)
    assert logged == stored
    assert sum(stored.values()) == (1 if moment == "before the log" else 2)
    assert [check.found for check in export_evidence(again, case.row.pk, tmp_path / "b.zip") if not check.ok] == []


def test_an_export_right_after_a_kill_verifies(desk: Desk, case: OpenCase, tmp_path: Path) -> None:  # noqa: F811
    site = dataclasses.replace(desk.site, audit=DiesAround(desk.site.home.audit, desk.site.identity))
    with pytest.raises(Killed):
        compliance.decide(site, case, "intake")
    again = Site.open(desk.site.home.root)
    failed = {c.name: c.found for c in export_evidence(again, case.row.pk, tmp_path / "b.zip") if not c.ok}
    assert failed == {}
