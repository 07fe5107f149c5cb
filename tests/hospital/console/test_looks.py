"""Every page in headless Chromium: light and dark, 360 and 1440 px; axe finds nothing, all is loaded from here."""

from __future__ import annotations

import random
from typing import Any

import pytest

from datasites.hospital.budget import ledger
from datasites.hospital.cases.case import open_case
from datasites.hospital.cases.freeze import freeze
from datasites.hospital.config import ConsoleSettings
from datasites.hospital.console.server import serving
from datasites.hospital.models import Case, Round
from datasites.hospital.people.roster import propose_party
from tests.browser import WIDTHS, Browser, chromium, inspect, sync_api
from tests.hospital.console.conftest import Console
from tests.hospital.desk import PASSWORD, job, values_of
from tests.study.entries import stranger


def busy(console: Console) -> Case:
    """A desk as it is after some months; returns a case in review, with an earlier version of it approved."""
    desk = console.desk
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")
    case = open_case(desk.site.home, desk.row)
    dice = random.Random(1)
    for number in range(1, 9):
        asked = {"training": ledger.PrivacyCost(case.plan.round_event(), case.plan.local_round_event())}
        ledger.charge(desk.site, case.dataset, case.row.study_hash, number, asked)
        Round.objects.create(
            case=desk.row,
            round=number,
            epoch=0,
            manifest_hash="ab" * 32,
            state="failed" if number == 5 else "unmasked",
            reason="worker: time limit" if number == 5 else "",
            steps=2,
            seconds=dice.uniform(0.4, 0.9),
            survivors=[] if number == 5 else list(case.study.cohort.hospitals),
            release={} if number == 5 else {"sha256": f"{dice.getrandbits(256):064x}", "bytes": 4096},
        )
    ledger.close(desk.site, case.row.study_hash)
    Case.objects.filter(pk=desk.row.pk).update(state=Case.State.CLOSED)
    source = job().files["model.py"].replace(b"tanh", b"relu").replace(b"import torch\n", b"import os\nimport torch\n")
    files = {**job().files, "model.py": source}
    values = values_of(desk.row)
    package = freeze(files, desk.site.home.frozen)
    prepared = desk.site.home.prepared
    if not (prepared / package.digest()).exists():
        (prepared / package.digest()).symlink_to(prepared / desk.row.study_hash)
    finding = {"line": 3, "column": 0, "rule": "import", "reason": "os may not be imported", "remedy": "leave it out"}
    terms = {**values["approval_terms"], "study_hash": package.digest()}
    values |= {"study_hash": package.digest(), "job_name": "heart-2", "state": "review", "approval_terms": terms}
    second = Case.objects.create(**{**values, "findings": [finding], "rehearsal": {}})
    Case.objects.filter(pk=second.pk).update(approval_hash=open_case(desk.site.home, second).approval_hash)
    Case.objects.create(**{**values, "job_name": "heart-3", "state": "refused", "note": "study.toml: rounds: too many"})
    propose_party(desk.site, desk.login("bob"), stranger().model_dump_json())
    return second


@pytest.mark.slow
def test_every_page_looks_right_to_axe_and_stays_at_home(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    case = busy(console)
    # Playwright's event loop runs in this thread, where the fixtures empty the tables afterwards.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    passwords = dict.fromkeys(("ann", "bob", "dee", "eva"), PASSWORD)
    with serving(ConsoleSettings(port=0)) as address, chromium(address, passwords) as browser:
        look(browser, console.number, case.pk)
        browser.is_clean()


def look(browser: Browser, number: int, second: int) -> None:
    paths = {
        "cases": "/cases/",
        "case": f"/cases/{number}/",
        "review": f"/cases/{second}/",
        "studies": "/studies/",
        "study": f"/studies/{number}/",
        "budget": "/budget/",
        "dataset-budget": "/budget/heart/?epsilon=1&rounds=5&steps=2&rate=0.1",
        "agreements": "/agreements/",
        "agreement": "/agreements/id/irb/",
        "agreement-form": "/agreements/new/irb/",
        "roster": "/roster/",
        "audit": "/audit/",
        "datasets": "/datasets/",
        "dataset": "/datasets/heart/",
        "home": "/",
        "password": "/password/",
        "second-factor": "/second-factor/",
        "missing": "/nothing/",
    }
    faults: list[str] = []
    for theme in ("light", "dark"):
        stranger = browser.page(color_scheme=theme)
        people = {name: browser.page(name, color_scheme=theme) for name in ("ann", "eva")}
        visits = [(stranger, "login", "/login/"), (people["eva"], "people", "/people/")]
        visits += [(stranger, "invitation", "/invitation/#no-code"), (people["eva"], "home-of-admin", "/")]
        visits += [(people["ann"], name, path) for name, path in paths.items()]
        for width, pixels in WIDTHS.items():
            for page, name, path in visits:
                page.set_viewport_size({"width": pixels, "height": 900})
                # Of a link, htmx still asks for its code: one that was left would be a complaint.
                page.goto(path, wait_until="networkidle" if "#" in path else "load")
                faults += inspect(page, name, width, theme)
    assert not faults, "\n".join(faults)
    browser.complaints = [c for c in browser.complaints if "404" not in c]
    faults = shown_once(browser)
    assert not faults, "\n".join(faults)
    prints_whole_and_light(browser.page("ann", color_scheme="dark"), number)


def shown_once(browser: Browser) -> list[str]:
    """An admin enters somebody, who opens the link, sets a password and a second factor, on the telephone they have."""
    faults: list[str] = []
    for theme, width in (("light", "wide"), ("dark", "narrow")):
        name = f"fay-{width}"
        eva, fay = browser.page("eva", color_scheme=theme), browser.page(color_scheme=theme)
        for page in (eva, fay):
            page.set_viewport_size({"width": WIDTHS[width], "height": 900})
        eva.goto("/people/")
        eva.get_by_label("Name").fill(name)
        eva.get_by_label("E-mail address").fill(f"{name}@cleveland.example.org")
        form = eva.get_by_role("region", name="Add a person")
        form.get_by_label("Your own password").fill(PASSWORD)
        form.get_by_role("button", name="Add").click()
        link = eva.get_by_label("Link").input_value()
        faults += inspect(eva, "invited", width, theme)
        requests: list[str] = []
        fay.on("request", lambda request, seen=requests: seen.append(request.url))
        fay.goto(link)
        code = fay.get_by_label("Your link, or what follows its #")
        sync_api.expect(code).to_have_value(link.partition("#")[2])  # htmx filled it in
        sync_api.expect(fay.get_by_text(f"You are {name}, data steward")).to_be_visible()
        faults += inspect(fay, "invitation-open", width, theme)
        for label in ("New password", "New password again"):
            fay.get_by_label(label, exact=True).fill(PASSWORD)
        fay.get_by_role("button", name="Set password").click()
        sync_api.expect(fay.get_by_text(f"Sign in as {name}")).to_be_visible()
        # Chromium reports an address with its fragment; what was asked of the server has none.
        assert not [url for url in requests if link.partition("#")[2] in url.partition("#")[0]]
        fay.get_by_label("Name").fill(name)
        fay.get_by_label("Password").fill(PASSWORD)
        fay.get_by_role("button", name="Sign in").click()
        fay.goto("/second-factor/")
        fay.get_by_label("Your password").fill(PASSWORD)
        fay.get_by_role("button", name="Show a new secret").click()
        sync_api.expect(fay.get_by_role("img", name="QR code of the secret below")).to_be_visible()
        faults += inspect(fay, "secret", width, theme)
    return faults


def prints_whole_and_light(page: Any, number: int) -> None:
    """On paper a case has all of its files, and dark ink, whatever the screen shows."""
    page.goto(f"/cases/{number}/")
    terms = page.get_by_text("learning_rate").first
    sync_api.expect(terms).to_be_hidden()
    page.emulate_media(media="print")
    sync_api.expect(terms).to_be_visible()
    sync_api.expect(page.get_by_role("navigation")).to_be_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
