"""Every page at 360 px in headless Chromium: nothing scrolls sideways, rows are cards, navigation folds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from datasites.hospital.budget import ledger
from datasites.hospital.cases.case import open_case
from datasites.hospital.config import ConsoleSettings
from datasites.hospital.console.server import serving
from datasites.hospital.models import Case, PolicyDecision, Round
from tests.browser import Browser, chromium, inspect, sync_api
from tests.hospital.console.conftest import Console
from tests.hospital.desk import PASSWORD

NARROW = {"width": 360, "height": 800}
#: Regions of a page that scroll sideways by themselves, other than the mock's columns, and tables without labels.
SCROLLED = """[...document.querySelectorAll(".scroll:has(.cards), .scroll:has(.audit), .scroll.code")]
    .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.getAttribute("aria-label"))"""
#: Letters of a drawing's labels, in pixels of the screen.
LETTERS = """(() => {
    const plot = [...document.querySelectorAll(".plot")].find(e => e.getBoundingClientRect().width > 0);
    const scale = plot.getBoundingClientRect().width / plot.viewBox.baseVal.width;
    return scale * parseFloat(getComputedStyle(plot.querySelector("text")).fontSize); })()"""


def fill(console: Console) -> None:
    """A study with rounds, in some of which hospitals were away, and a log of some pages."""
    desk = console.desk
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")
    case = open_case(desk.site.home, desk.row)
    hospitals = list(case.study.cohort.hospitals)
    for number in range(1, 6):
        asked = {"training": ledger.PrivacyCost(case.plan.round_event(), case.plan.local_round_event())}
        ledger.charge(desk.site, case.dataset, case.row.study_hash, number, asked)
        record = {"facts": {"budget": {"study_epsilon_after": 0.4 + 0.1 * number}}}
        PolicyDecision.objects.create(case=desk.row, action="run_round", round=number, allowed=True, record=record)
        Round.objects.create(
            case=desk.row,
            round=number,
            epoch=0,
            manifest_hash="ab" * 32,
            state="failed" if number == 3 else "unmasked",
            reason="worker: time limit" if number == 3 else "",
            steps=2,
            seconds=0.5,
            survivors=[] if number == 3 else hospitals[number % 2 :],
            release={} if number == 3 else {"sha256": "cd" * 32, "bytes": 4096},
        )
    Case.objects.filter(pk=desk.row.pk).update(state=Case.State.RUNNING)
    for number in range(60):
        fields = {"study": desk.row.study_hash, "round": number, "person": "ann", "manifest": "ef" * 32}
        desk.site.audit.append("released", **fields, sha256="ab" * 32, vectors=["update", "counts"], bytes=4096)


@pytest.fixture
def browser(console: Console, monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    fill(console)
    # Playwright's event loop runs in this thread, where the fixtures empty the tables afterwards.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    passwords = dict.fromkeys(("ann", "bob", "dee", "eva"), PASSWORD)
    with serving(ConsoleSettings(port=0)) as address, chromium(address, passwords) as started:
        yield started


@pytest.mark.slow
def test_a_phone_shows_every_page_whole(console: Console, browser: Browser) -> None:
    number = console.number
    pages = {
        "cases": "/cases/",
        "case": f"/cases/{number}/",
        "studies": "/studies/",
        "study": f"/studies/{number}/",
        "budget": "/budget/",
        "dataset-budget": "/budget/heart/?epsilon=1&rounds=5&steps=2&rate=0.1",
        "agreements": "/agreements/",
        "roster": "/roster/",
        "audit": "/audit/",
        "audit-refused": "/audit/?kind=No!",
        "datasets": "/datasets/",
        "dataset": "/datasets/heart/",
        "password": "/password/",
        "missing": "/nothing/",
    }
    faults: list[str] = []
    for theme in ("light", "dark"):
        ann, eva = (browser.page(name, color_scheme=theme, viewport=NARROW) for name in ("ann", "eva"))
        for page, name, path in [(ann, *visit) for visit in pages.items()] + [(eva, "people", "/people/")]:
            page.goto(path)
            faults += inspect(page, f"small-{name}", "360", theme)
            faults += [f"{name}, {theme}: {region} scrolls sideways" for region in page.evaluate(SCROLLED)]
    assert not faults, "\n".join(faults)
    # The browser says on its console that answers were 400 and 404; that is what they should be.
    browser.complaints = [c for c in browser.complaints if "404" not in c and "400" not in c]
    browser.is_clean()
    ann.goto("/budget/heart/")
    assert ann.evaluate(LETTERS) >= 10.9


@pytest.mark.slow
def test_fifty_records_take_some_screens_and_the_rest_is_behind_them(browser: Browser) -> None:
    page = browser.page("dee", viewport=NARROW)
    page.goto("/audit/")
    rows = page.get_by_role("row").filter(has=page.get_by_role("rowheader"))
    assert rows.count() == 50
    assert page.evaluate("document.documentElement.scrollHeight") < 6000
    record = rows.nth(3)  # the newest ones are of signing in
    whole = record.locator("dl")
    sync_api.expect(whole).to_be_hidden()
    record.locator("summary").press("Enter")
    sync_api.expect(whole).to_be_visible()
    assert "ab" * 32 in whole.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    browser.is_clean()


@pytest.mark.slow
def test_navigation_folds_and_is_reached_by_keyboard(browser: Browser) -> None:
    page = browser.page("ann", viewport=NARROW)
    page.goto("/studies/")
    navigation, menu = page.get_by_role("navigation", name="Pages"), page.locator(".menu > summary")
    sync_api.expect(navigation).to_be_hidden()
    assert page.locator("header.top").bounding_box()["height"] < 110
    for _ in range(5):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    page.keyboard.press("Enter")
    sync_api.expect(navigation).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Cases"
    sync_api.expect(navigation.get_by_role("link")).to_have_count(7)
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto("/studies/")
    sync_api.expect(navigation).to_be_visible()
    sync_api.expect(menu).to_be_hidden()
    browser.is_clean()


@pytest.mark.slow
def test_errors_have_the_focus_when_a_page_opens(browser: Browser) -> None:
    page = browser.page(viewport=NARROW)
    page.goto("/login/")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    sync_api.expect(page.get_by_role("alert")).to_be_focused()
    sync_api.expect(page).to_have_title("Error: Sign in – Cleveland")
    browser.is_clean()
