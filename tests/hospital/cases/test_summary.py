"""What lists show of cases is stored, follows what it rests on, and records no decision."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest

from datasites.hospital.budget import ledger
from datasites.hospital.cases import inbox, summary
from datasites.hospital.cases.case import open_case
from datasites.hospital.cases.inbox import cases_for, waiting_for
from datasites.hospital.cases.summary import Upkeep, bring_up_to_date, outdated
from datasites.hospital.config import Home
from datasites.hospital.models import BudgetFact, Case, CaseSummary, PolicyDecision, Population
from datasites.hospital.people.accounts import deactivate, find_reader
from datasites.study.dates import today
from datasites.study.roster import Roster
from tests.hospital.desk import PASSWORD, Desk
from tests.hospital.invited import enter
from tests.polling import until


@pytest.fixture
def desk(database: Home, examined: dict[str, Any]) -> Desk:
    return Desk(database, examined)


def controls(desk: Desk) -> set[str]:
    return {one["control"] for one in CaseSummary.objects.get(case=desk.row).denied_by}


def groups(name: str, **search: str) -> dict[str, list[str]]:
    person = find_reader(name)
    found = cases_for(person.pk, person.role, **search)
    return {group: [line.row.job_name for line in lines] for group, lines in found.items() if lines}


def test_a_summary_says_what_the_study_is_and_why_nobody_can_approve_it(desk: Desk) -> None:
    home = desk.site.home
    log, decisions = home.audit.read_bytes(), PolicyDecision.objects.count()
    assert outdated(home) == [desk.row.pk]
    bring_up_to_date(home)
    kept = CaseSummary.objects.get(case=desk.row)
    case = open_case(home, desk.row)
    entry = Roster.load(home.roster).get(desk.row.submitted_by)
    assert (kept.title, kept.purpose, kept.epsilon) == (case.study.title, case.study.purpose, case.study_cap)
    assert kept.organisation == entry.organisation
    assert {"baa", "irb"} <= controls(desk), "nothing was agreed yet"
    desk.agree()
    assert outdated(home) == [desk.row.pk]
    bring_up_to_date(home)
    assert controls(desk) == set()
    assert outdated(home) == []
    assert home.audit.read_bytes().startswith(log)
    assert PolicyDecision.objects.count() == decisions, "a preview is no decision"


def test_the_organisation_is_the_rosters_and_not_the_studys_word(desk: Desk) -> None:
    home = desk.site.home
    roster = Roster.load(home.roster)
    renamed = [
        entry.model_copy(update={"organisation": "Renamed"}) if entry.email == desk.row.submitted_by else entry
        for entry in roster.entries
    ]
    Roster(entries=tuple(renamed)).save(home.roster)
    try:
        bring_up_to_date(home)
        assert CaseSummary.objects.get(case=desk.row).organisation == "Renamed"
    finally:
        roster.save(home.roster)


def _reserved(desk: Desk) -> None:
    case = open_case(desk.site.home, desk.row)
    ledger.reserve(desk.site, case.dataset, "ab" * 32, case.asked())


def _wider(desk: Desk) -> None:
    population = Population.objects.get(name="heart")
    BudgetFact.objects.create(population=population, what="widened", epsilon=9, delta=1e-5)


def _approved(desk: Desk) -> None:
    desk.approve("ann")


CHANGES: dict[str, Callable[[Desk], None]] = {
    "another study reserves": _reserved,
    "a cap": _wider,
    "a person": lambda desk: deactivate("cyd", "eva"),
    "an approval": _approved,
    "the kill switch": lambda desk: (desk.site.home.root / "KILLED").touch(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_it_rests_on_brings_it_up_to_date(desk: Desk, change: Callable[[Desk], None]) -> None:
    home = desk.site.home
    enter(desk.site, "eva", "admin", PASSWORD)
    desk.agree()
    bring_up_to_date(home)
    assert outdated(home) == []
    try:
        change(desk)
        assert outdated(home) == [desk.row.pk]
    finally:
        (home.root / "KILLED").unlink(missing_ok=True)


def test_the_next_day_brings_it_up_to_date(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    bring_up_to_date(desk.site.home)
    tomorrow = today() + datetime.timedelta(1)
    monkeypatch.setattr(summary, "today", lambda: tomorrow)
    assert outdated(desk.site.home) == [desk.row.pk]


def test_rounds_of_running_studies_bring_nothing_up_to_date(desk: Desk) -> None:
    """They charge what was reserved: a hospital with a study at work would price all day."""
    _reserved(desk)
    bring_up_to_date(desk.site.home)
    case = open_case(desk.site.home, desk.row)
    ledger.charge(desk.site, case.dataset, "ab" * 32, 1, case.planned(1))
    assert outdated(desk.site.home) == []


def test_the_service_brings_summaries_up_to_date_beside_its_loop(desk: Desk) -> None:
    upkeep = Upkeep(desk.site.home)
    upkeep.look()
    until(lambda: CaseSummary.objects.filter(case=desk.row).exists())
    upkeep.close()


def test_a_case_is_for_whoever_must_decide_on_it(desk: Desk) -> None:
    bring_up_to_date(desk.site.home)
    assert groups("ann") == {"blocked": ["heart-1"]}, "nobody can approve it yet"
    desk.agree()
    bring_up_to_date(desk.site.home)
    for name, group in {"ann": "you", "bob": "you", "cyd": "you", "dee": "others"}.items():
        assert groups(name) == {group: ["heart-1"]}
        person = find_reader(name)
        assert waiting_for(person.pk, person.role) == (group == "you")
    desk.approve("ann")
    bring_up_to_date(desk.site.home)
    for name, group in {"ann": "others", "bob": "you", "cyd": "others"}.items():
        assert groups(name) == {group: ["heart-1"]}
        person = find_reader(name)
        assert waiting_for(person.pk, person.role) == (group == "you")
    desk.approve("bob")
    assert groups("bob") == {"done": ["heart-1"]}


def test_a_failed_rehearsal_never_looks_healthy(desk: Desk) -> None:
    desk.agree()
    Case.objects.filter(pk=desk.row.pk).update(rehearsal={"outcome": "failed", "reason": "model-error: boom"})
    CaseSummary.objects.all().delete()
    bring_up_to_date(desk.site.home)
    assert controls(desk) == {"code"}
    assert groups("ann") == {"blocked": ["heart-1"]}


def test_where_nobody_is_entered_who_may_approve_that_is_the_reason(desk: Desk) -> None:
    desk.agree()
    enter(desk.site, "eva", "admin", PASSWORD)
    for name in ("ann", "cyd", "bob"):
        deactivate(name, "eva")
    bring_up_to_date(desk.site.home)
    (denial,) = CaseSummary.objects.get(case=desk.row).denied_by
    assert denial["control"] == "people"
    assert "No data steward or privacy officer" in denial["reason"]


def test_a_case_that_can_not_be_opened_is_in_the_list_with_its_reason(desk: Desk) -> None:
    (desk.site.home.frozen / desk.row.study_hash).rename(desk.site.home.frozen / "elsewhere")
    try:
        bring_up_to_date(desk.site.home)
        assert controls(desk) == {"case"}
        assert groups("ann") == {"blocked": ["heart-1"]}
    finally:
        (desk.site.home.frozen / "elsewhere").rename(desk.site.home.frozen / desk.row.study_hash)


def test_cases_are_searched_and_ordered(desk: Desk) -> None:
    desk.agree()
    bring_up_to_date(desk.site.home)
    assert groups("ann", contains="heart") == groups("ann", contains=desk.row.study_hash[:8])
    assert groups("ann", contains="no such words") == {}
    assert groups("ann", state="closed") == {}
    for order in inbox.ORDERS:
        assert groups("ann", order=order) == {"you": ["heart-1"]}
