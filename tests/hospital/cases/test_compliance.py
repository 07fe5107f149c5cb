"""Gathering facts and storing decisions: what can't be known denies, and log and database always hold the same (I3)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from datasites.hospital.audit.log import AuditLog, Head
from datasites.hospital.budget import ledger
from datasites.hospital.cases import compliance, freeze
from datasites.hospital.cases.case import OpenCase, open_case
from datasites.hospital.config import DatasetSettings
from datasites.hospital.doctor import examine
from datasites.hospital.evidence.export import export_evidence
from datasites.hospital.models import Case, PolicyDecision
from datasites.hospital.proposals import two_people
from datasites.hospital.rounds import lifecycle
from datasites.hospital.site import Site
from datasites.privacy.accountant import epsilon_at_order, epsilon_pld
from datasites.study.audit_chain import records
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.roster import Roster
from tests.hospital.conftest import log_pins
from tests.hospital.desk import Desk
from tests.hospital.unequal import Terms, case_of, manifest_of
from tests.kills import Killed


@pytest.fixture
def case(desk: Desk) -> Iterator[OpenCase]:
    desk.agree()
    roster = desk.site.home.roster.read_bytes()
    yield open_case(desk.site.home, desk.row)
    desk.site.home.roster.write_bytes(roster)


def test_a_pause_by_another_process_counts_from_the_next_decision(desk: Desk, case: OpenCase) -> None:
    desk.approve("ann")
    desk.approve("bob")
    opened = open_case(desk.site.home, type(desk.row).objects.get(pk=desk.row.pk))  # a round begins …
    assert "state" not in compliance.decide(desk.site, opened, "release").controls
    lifecycle.pause(desk.site, desk.row.pk, desk.login("bob"), "question")  # … is paused while it trains …
    decision = compliance.decide(desk.site, opened, "release")  # … and may not release
    assert "state" in decision.controls
    assert decision.facts is not None
    assert decision.facts.state == "paused"


def test_what_differs_from_what_was_approved_is_named_with_both_values_and_accuses_nobody(
    desk: Desk,
    case: OpenCase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk.approve("ann")
    row = desk.approve("bob")
    manifest = manifest_of(case)
    assert not open_case(desk.site.home, row).differs
    was = version("numpy")
    (tmp_path / "numpy-99.0.0.dist-info").mkdir()
    (tmp_path / "numpy-99.0.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: numpy\nVersion: 99.0.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(freeze, "version", version)  # which tests read once in a process
    said = f"numpy was {was} when this was examined and is 99.0.0 now"
    decision = compliance.decide(desk.site, open_case(desk.site.home, row), "run_round", manifest=manifest)
    assert said in decision.summary
    assert "submit again" in decision.summary
    assert "changed the" not in decision.summary
    assert [
        check.message.split(": ")[1].split(";")[0]
        for check in examine(desk.site, ["cases"])
        if check.name == f"case {row.pk}"
    ] == [said]
    monkeypatch.undo()
    assert [check.state for check in examine(desk.site, ["cases"]) if check.name == "cases"] == ["ok"]
    Case.objects.filter(pk=row.pk).update(approval_terms={})
    (unreadable,) = [check for check in examine(desk.site, ["cases"]) if check.name in ("cases", f"case {row.pk}")]
    assert unreadable.name == f"case {row.pk}"
    assert "has not been examined" in unreadable.message
    row.approval_terms["data_version"] = "0" * 64
    assert "somebody changed the datasite's private folder" in "".join(open_case(desk.site.home, row).differs)


def test_facts_that_can_not_be_gathered_deny_and_are_named(desk: Desk, case: OpenCase) -> None:
    assert compliance.decide(desk.site, case, "intake").allowed
    desk.site.home.roster.write_text("not a roster")
    decision = compliance.decide(desk.site, case, "intake")
    assert decision.controls == ("baa", "site")
    assert "Not known: which parties are pinned" in decision.summary
    patients = case.dataset.model_copy(update={"declared_patients": 10**13})
    assert "cohort" in compliance.decide(desk.site, dataclasses.replace(case, dataset=patients), "intake").controls


def test_the_aggregators_organisation_is_the_pinned_one(desk: Desk, case: OpenCase) -> None:
    roster = Roster.load(desk.site.home.roster)
    entries = tuple(
        e.model_copy(update={"organisation": "Elsewhere"}) if e.email == case.study.researcher else e
        for e in roster.entries
    )
    changed = roster.model_copy(update={"entries": entries})
    changed.save(desk.site.home.roster)
    log_pins(desk.site, changed)
    decision = compliance.decide(desk.site, case, "intake")
    assert decision.controls == ("baa",)
    assert "the roster says Elsewhere, the study says aggregation by University" in decision.summary


def test_a_delta_above_the_datasets_is_denied(desk: Desk, case: OpenCase) -> None:
    strict = dataclasses.replace(case, dataset=case.dataset.model_copy(update={"delta": 1e-6}))
    decision = compliance.decide(desk.site, strict, "intake")
    assert "budget-delta" in {denial.rule for denial in decision.denied_by}


def denied(site: Site, case: OpenCase, action: Any, manifest: Any = None) -> dict[str, str]:
    """The rules that deny, with their reasons."""
    decision = compliance.decide(site, case, action, manifest=manifest)
    return {denial.rule: denial.reason for denial in decision.denied_by}


def test_delta_is_small_against_the_patients_of_the_release_unless_two_people_took_the_risk(
    desk: Desk,
    case: OpenCase,
) -> None:
    """Delta 1e-5 fits up to 1,000 patients; the hospital's own count in local mode, and it is asked at every gate."""
    rule, round_one = "budget-delta-patients", manifest_of(case, 1)
    for patients, fits in ((1000, True), (1001, False)):
        sized = dataclasses.replace(case, dataset=case.dataset.model_copy(update={"declared_patients": patients}))
        for action, manifest in (("intake", None), ("approve", None), ("run_round", round_one)):
            assert (rule not in denied(desk.site, sized, action, manifest)) is fits, (patients, action)
    reason = denied(desk.site, sized, "intake")[rule]
    assert "study's delta is 1e-05; for 1001 patients it may be 9.990009e-06 at most" in reason
    entered = two_people.propose_delta(desk.site, desk.login("bob"), "heart", 1e-5, "a rare disease")
    assert rule in denied(desk.site, sized, "intake"), "one person is not enough"
    two_people.confirm(desk.site, desk.login("cyd"), entered.pk)
    assert rule not in denied(desk.site, sized, "intake")
    assert "accepted for these patients up to 1e-05" in sized.delta_in_words


def test_where_hospitals_share_the_noise_the_release_is_on_the_whole_cohort(
    desk: Desk,
    heart: DatasetSettings,
) -> None:
    desk.agree()
    for patients, fits in ((1000, True), (1001, False)):
        case = case_of(desk.site.home, Terms().package(patients=patients), heart)
        facts = compliance._budget(case, None)
        assert facts.release_patients == patients
        assert facts.declared_patients == 303
        assert (facts.delta * facts.release_patients <= 0.01) is fits
        assert ("NOT within the rule" in str(case.study_plan)) is not fits


def test_a_cohort_said_to_be_small_allows_no_larger_delta(
    desk: Desk,
    heart: DatasetSettings,
) -> None:
    """The researcher names its patients; but this hospital has its own, and each other one the study's least."""
    desk.agree()
    case = case_of(desk.site.home, Terms().package(patients=10), heart)
    cohort = case.study.cohort
    assert compliance._budget(case, None).release_patients == 303 + (len(cohort.hospitals) - 1) * cohort.min_patients


def test_the_studys_cap_is_of_pld_at_the_studys_delta_and_the_populations_of_its_filter(
    desk: Desk,
    case: OpenCase,
) -> None:
    """A study calibrated to its cap passes it by the accountant that it was calibrated with, and only by that."""
    facts = compliance._budget(case, None)
    asked = case.asked().values()
    assert facts.study_epsilon_after == max(epsilon_pld([price.event], 1e-5) for price in asked)
    assert 2.99 < facts.study_epsilon_after <= facts.study_epsilon_cap == 3.0
    assert facts.epsilon_after == max(epsilon_at_order([price.event], 6, 1e-5) for price in asked) > 3.0
    tight = dataclasses.replace(case, dataset=case.dataset.model_copy(update={"study_epsilon": 2.9}))
    assert "budget-study" in denied(desk.site, tight, "intake")
    tight = dataclasses.replace(case, dataset=case.dataset.model_copy(update={"epsilon": 3.0}))
    assert "budget-dataset" in denied(desk.site, tight, "intake")


def test_a_round_that_is_done_again_counts_once_against_the_studys_cap(
    desk: Desk,
    case: OpenCase,
) -> None:
    desk.approve("ann")
    desk.approve("bob")
    case = open_case(desk.site.home, type(desk.row).objects.get(pk=desk.row.pk))
    for number in range(1, case.study.rounds + 1):
        manifest = manifest_of(case, number)
        ledger.charge(desk.site, case.dataset, case.row.study_hash, number, case.round_asked(manifest))
    facts = compliance._budget(case, manifest)
    assert facts.study_epsilon_after == pytest.approx(epsilon_pld([case.plan.event()], 1e-5), rel=1e-6)
    assert facts.study_epsilon_after <= facts.study_epsilon_cap


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
    desk: Desk,
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


def test_an_export_right_after_a_kill_verifies(desk: Desk, case: OpenCase, tmp_path: Path) -> None:
    site = dataclasses.replace(desk.site, audit=DiesAround(desk.site.home.audit, desk.site.identity))
    with pytest.raises(Killed):
        compliance.decide(site, case, "intake")
    again = Site.open(desk.site.home.root)
    failed = {c.name: c.found for c in export_evidence(again, case.row.pk, tmp_path / "b.zip") if not c.ok}
    assert failed == {}
