"""How far a study is, as people read it: counts, what each round cost, who was away, what comes next."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.utils import timezone

from datasites.hospital.budget.accounting import PricesApart
from datasites.hospital.models import Case, PolicyDecision, Round
from datasites.hospital.people.agreements import terminate_agreement
from datasites.hospital.rounds import lifecycle
from datasites.hospital.rounds.progress import PAGE, counted, in_epsilon, progress, with_counts
from datasites.privacy.accountant import epsilon_pld
from datasites.study.package import StudyPackage
from tests.hospital.conftest import HEART
from tests.hospital.desk import Desk
from tests.hospital.running import Running

HOSPITALS = StudyPackage.read(HEART / "study").study.cohort.hospitals


def approved(desk: Desk, **terms: Any) -> Case:
    plan = {**desk.row.approval_terms["plan"], **terms}
    Case.objects.filter(pk=desk.row.pk).update(
        state=Case.State.RUNNING, approval_terms={**desk.row.approval_terms, "plan": plan}
    )
    return Case.objects.get(pk=desk.row.pk)


def rounds(row: Case, numbers: range, state: str = Round.State.UNMASKED, **values: Any) -> None:
    values = {"epoch": 0, "manifest_hash": "", "survivors": list(HOSPITALS), **values}
    Round.objects.bulk_create(Round(case=row, round=number, state=state, **values) for number in numbers)


@pytest.mark.waits
def test_a_round_shows_what_it_cost_when_it_was_charged_and_prices_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.set_up()
    manifest = running.open(1)
    running.steps()
    row = Case.objects.get(pk=running.row.pk)
    (sent,) = progress(running.site.home, row).lines
    assert (sent.state, sent.away) == ("sent", None)
    running.survive(manifest)
    running.steps()

    def priced(*_: object) -> float:
        raise AssertionError("priced")

    for name in ("pld", "rdp", "divergence", "at_order", "share"):
        monkeypatch.setattr(PricesApart, name, priced)
    shown = progress(running.site.home, row)
    (line,) = shown.lines
    cost = epsilon_pld([running.case.planned(1)["training"].event], running.case.priced_delta)
    assert line.epsilon == pytest.approx(cost)
    assert line.added == line.epsilon
    assert line.cost == f"{cost:.2f} (+{cost:.2f})"
    assert (line.state, line.away) == ("in the sum", ())
    assert line.charged_at is not None
    assert shown.summary == "1 of 15 training rounds, evaluation to come"
    assert "begins round 2 of 15" in shown.next
    assert shown.at == 6
    PolicyDecision.objects.filter(action="run_round").update(record={})
    assert progress(running.site.home, row).lines[0].cost == "charged; the figure was not stored"


@pytest.mark.waits
def test_a_round_that_was_denied_costs_nothing_and_is_sat_out(running: Running) -> None:
    running.set_up()
    terminate_agreement(running.site, running.desk.login("ann"), "baa-university")
    running.open(1)
    running.steps()
    (line,) = progress(running.site.home, Case.objects.get(pk=running.row.pk)).lines
    assert (line.state, line.cost, line.away) == ("sat out", "not charged", None)


def test_counts_are_of_all_rounds_and_the_evaluation_is_none_that_trains(desk: Desk) -> None:
    row = approved(desk, rounds=250)
    rounds(row, range(1, 251))
    (listed,) = with_counts(Case.objects.all())
    assert counted(listed) == progress(desk.site.home, row).summary == "250 of 250 training rounds, evaluation to come"
    rounds(row, range(251, 252), Round.State.CHARGED)
    (listed,) = with_counts(Case.objects.all())
    assert counted(listed) == "250 of 250 training rounds, evaluation begun"
    Round.objects.filter(round=251).update(state=Round.State.UNMASKED)
    (listed,) = with_counts(Case.objects.all())
    assert counted(listed) == progress(desk.site.home, row).summary == "250 of 250 training rounds, evaluation done"
    seen = [line.round.round for page in range(1, 7) for line in progress(desk.site.home, row, page).lines]
    assert seen == list(range(251, 0, -1))
    assert progress(desk.site.home, row, 10**6).page == -(-251 // PAGE)


def test_hospitals_that_were_away_are_named(desk: Desk) -> None:
    row = approved(desk)
    missing = next(email for email in HOSPITALS if email != desk.site.home.settings.email)
    rounds(row, range(1, 2), survivors=[email for email in HOSPITALS if email != missing])
    rounds(row, range(2, 3), survivors=[email for email in HOSPITALS if email != desk.site.home.settings.email])
    second, first = progress(desk.site.home, row).lines
    assert first.away is not None
    assert len(first.away) == 1
    assert second.away == ("Cleveland",)


def test_a_vector_that_was_never_added_up_is_not_said_to_wait(desk: Desk) -> None:
    row = approved(desk)
    rounds(row, range(1, 3), Round.State.RELEASED, survivors=[])
    second, first = progress(desk.site.home, row).lines
    assert (first.state, second.state) == ("sent, not added up", "sent")


def test_what_comes_next_is_said_with_when(desk: Desk) -> None:
    row = approved(desk)
    home = desk.site.home
    assert "begins round 1 of 15, once enough hospitals have approved" in progress(home, row).next
    rounds(row, range(1, 4))
    now = timezone.now()
    for number in (1, 2, 3):
        at = now - datetime.timedelta(minutes=10 * (3 - number) + 1)
        Round.objects.filter(round=number).update(at=at)
    foreseen = now + datetime.timedelta(minutes=9)
    words = progress(home, row).next
    assert f"about 10 minutes apart, so it is to be expected at about {foreseen:%Y-%m-%d %H:%M} UTC." in words
    assert "No round begins after 20" in words
    for r in Round.objects.all():
        Round.objects.filter(pk=r.pk).update(at=r.at - datetime.timedelta(days=1))
    assert "so it has been due since" in progress(home, row).next
    rounds(row, range(4, 5), Round.State.CHARGED)
    assert "This hospital trains now, for round 4." in progress(home, row).next
    Round.objects.filter(round=4).update(state=Round.State.RELEASED)
    assert "adds up round 4, then begins round 5 of 15" in progress(home, row).next
    rounds(row, range(5, 17))
    assert progress(home, row).next.startswith("All rounds are done.")
    lifecycle.kill(desk.site, desk.login("ann"), "incident")
    try:
        assert "turns the kill switch off" in progress(home, row).next
    finally:
        assert lifecycle.unkill(desk.site, desk.login("bob"), "over")
    assert not lifecycle.unkill(desk.site, desk.login("bob"), "over")
    for state, words in {"paused": "resumes it", "stopped": "decides how it goes on", "closed": "over here"}.items():
        row.state = state
        assert words in progress(home, row).next


def test_a_frozen_copy_that_is_lost_leaves_the_rounds_to_be_read(desk: Desk) -> None:
    row = approved(desk)
    rounds(row, range(1, 2))
    row.study_hash = "0" * 64
    shown = progress(desk.site.home, row)
    assert (shown.study, shown.steps, shown.lines[0].away) == (None, (), None)


def test_an_epsilon_has_two_decimals_and_is_never_none_where_it_is_some() -> None:
    assert [in_epsilon(value) for value in (0, 0.004, 0.005, 1, 2.345)] == [
        "0.00",
        "below 0.01",
        "0.01",
        "1.00",
        "2.35",
    ]
