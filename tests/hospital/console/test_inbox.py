"""The inbox says what each person must do; a case that can't be approved says why, there and on its page."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest

from datasites.hospital.cases import case, views
from datasites.hospital.cases.summary import bring_up_to_date
from datasites.hospital.models import Case
from policies.engine import Engine
from tests.hospital.console.conftest import Console
from tests.hospital.desk import PASSWORD


def inbox(console: Console, name: str, query: str = "") -> str:
    return unescape(console.client(name).get(f"/cases/{query}").content.decode())


def page_of(console: Console, name: str) -> str:
    return unescape(console.client(name).get(f"/cases/{console.number}/").content.decode())


def test_the_inbox_says_what_i_must_do_and_counts_it_on_every_page(console: Console) -> None:
    console.desk.agree()
    bring_up_to_date(console.desk.site.home)
    shown = inbox(console, "ann")
    assert "For you" in shown
    assert "<title>(1) Cases" in shown
    assert "Waiting for: data steward and privacy officer." in shown
    assert "epsilon 3 here, at most" in shown
    assert "<title>(1) " in console.client("ann").get("/budget/").content.decode()
    assert "For others" in inbox(console, "dee")
    assert "<title>Cases" in inbox(console, "dee"), "an auditor decides nothing"
    assert console.decide(console.client("ann")).status_code == 302
    bring_up_to_date(console.desk.site.home)
    assert "You have reviewed it." in inbox(console, "ann")
    assert "<title>Cases" in inbox(console, "ann")
    assert "<title>(1) Cases" in inbox(console, "bob")


def test_a_case_that_policies_deny_says_so_in_the_list_and_can_not_be_approved(console: Console) -> None:
    bring_up_to_date(console.desk.site.home)
    shown = inbox(console, "ann")
    assert "Can’t be approved, and why" in shown
    assert "For you" not in shown
    assert "<title>Cases" in shown
    assert 'class="state review"' not in shown, "it looks like one that waits"
    page = page_of(console, "ann")
    assert '<input type="radio" disabled> Approve' in page
    assert 'value="approve"' not in page
    assert 'value="reject"' in page
    refused = console.decide(console.client("ann"))
    assert refused.status_code == 409, "a form that was made up is denied all the same"


def test_the_form_is_gone_once_i_have_decided(console: Console) -> None:
    console.desk.agree()
    assert 'name="verdict"' in page_of(console, "ann")
    assert console.decide(console.client("ann")).status_code == 302
    page = page_of(console, "ann")
    assert 'name="verdict"' not in page
    assert "You decided on " in page
    other = page_of(console, "cyd")
    assert '<input type="radio" disabled> Approve' in other
    assert "has already approved this study as data steward" in other
    assert 'value="approve"' in page_of(console, "bob")


def test_the_second_reviewer_keeps_what_they_typed_when_the_first_one_decides(console: Console) -> None:
    console.desk.agree()
    bob = console.client("bob")
    values = {**console.seen(bob), "verdict": "approve", "reason": "I have read <all> of it", "password": PASSWORD}
    assert console.decide(console.client("ann")).status_code == 302
    answer = bob.post(f"/cases/{console.number}/decide/", values)
    page = answer.content.decode()
    assert answer.status_code == 409
    assert "ann decided approve at " in page
    assert "I have read &lt;all&gt; of it</textarea>" in page
    assert re.search(r'value="approve"[^>]*checked', page)
    assert PASSWORD not in page
    shown = dict(re.findall(r'<input type="hidden" name="(seen|hash)" value="([0-9a-f]{64})"', page))
    assert bob.post(f"/cases/{console.number}/decide/", {**values, **shown}).status_code == 302


def test_a_failed_rehearsal_is_shown_in_full(console: Console) -> None:
    text = "Traceback:\n" + "\n".join(f"  line {n}" for n in range(90)) + "\nRuntimeError: shapes (3, 4) and (5,)"
    Case.objects.filter(pk=console.number).update(
        rehearsal={"outcome": "failed", "findings": [{"where": "model-error", "reason": text}]}
    )
    page = page_of(console, "ann")
    assert "model-error" in page
    assert '<p class="lines">RuntimeError: shapes (3, 4) and (5,)</p>' in page
    assert "line 89" in page
    assert "The researcher corrects it and submits a new version" in page
    assert "{'where'" not in page


def test_the_list_opens_no_case_and_asks_no_policies(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    bring_up_to_date(console.desk.site.home)

    def refused(*_: Any) -> None:
        raise AssertionError

    for owner, name in ((case, "open_case"), (views, "open_case"), (Engine, "decide")):
        monkeypatch.setattr(owner, name, refused)
    assert console.client("ann").get("/cases/").status_code == 200


def test_case_and_study_lead_to_each_other(console: Console) -> None:
    console.desk.agree()
    console.desk.approve("ann")
    console.desk.approve("bob")
    assert f'href="/studies/{console.number}/"' in page_of(console, "ann")
    study = console.client("ann").get(f"/studies/{console.number}/").content.decode()
    assert f'href="/cases/{console.number}/"' in study


@pytest.mark.parametrize("query", ["?state=nonsense", "?order=price", "?contains=" + "x" * 500, "?page=0", "?page=x"])
def test_a_search_that_makes_no_sense_shows_the_list(console: Console, query: str) -> None:
    answer = console.client("ann").get(f"/cases/{query}")
    assert answer.status_code == 200
