"""The console in a real browser, at a hospital of the heart consortium: approve, watch, pause, resume, revoke, export.

Every request that the pages make is checked to stay at the console, and every Content-Security-Policy violation is a
failure. How each page looks, and what axe says of it, is `tests/hospital/console/test_looks.py`.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datasites.hospital.evidence.verify_bundle import verify as verify_bundle
from datasites.study.audit_chain import verify_log
from tests.browser import WIDTHS, Browser, chromium, inspect, sync_api
from tests.e2e.support import KEYS, LocalDatasites

STEWARD, OFFICER, AUDITOR, ADMIN = "demo-steward", "demo-privacy-officer", "demo-auditor", "demo-admin"
OTHERS = "a long enough passphrase"


@pytest.fixture(scope="module")
def browser(datasites: LocalDatasites) -> Iterator[Browser]:
    for name, role in ((AUDITOR, "auditor"), (ADMIN, "admin")):
        done = datasites.command("cleveland", "person", "add", name, "--role", role)
        assert done.returncode == 0, done.stderr
        (link,) = [line for line in done.stdout.splitlines() if "/invitation/#" in line]
        accept = ("cleveland", "person", "accept", "--password-stdin")
        done = datasites.command(*accept, password=f"{link}\n{OTHERS}")
        assert done.returncode == 0, done.stderr
    ready = json.loads((datasites.consortium.home("cleveland") / "run" / "ready.json").read_text())
    passwords = {AUDITOR: OTHERS, ADMIN: OTHERS, **datasites.consortium.passwords()}
    with chromium(ready["console"], passwords) as started:
        yield started


def decide(page: Any, browser: Browser, name: str, verdict: str) -> None:
    page.get_by_label(verdict).check()
    page.get_by_label("Reason").fill("read code, terms and agreements")
    page.get_by_label("Your password").fill(browser.password(name))
    page.get_by_role("button", name="Decide").click()


def move(page: Any, browser: Browser, name: str, action: str) -> None:
    section = page.get_by_role("region", name=action, exact=True)
    section.get_by_label("Reason").fill("as agreed on the telephone")
    if section.get_by_label("Your password").count():
        section.get_by_label("Your password").fill(browser.password(name))
    section.get_by_role("button", name=action).click()


def test_two_people_decide_in_the_browser_and_the_researchers_run_follows(
    datasites: LocalDatasites, browser: Browser, tmp_path: Path
) -> None:
    import demo

    study = datasites.study("console", rounds="12")
    cleveland = datasites.email("cleveland")
    with datasites.federation() as federation:
        federation.submit(study)
        datasites.approve(study, *KEYS[1:])
        number = demo.case_id_of(datasites.consortium, datasites.hospital("cleveland"), study)

        steward, officer = browser.page(STEWARD), browser.page(OFFICER)
        for page in (steward, officer):
            page.goto("/cases/")
            page.locator(f'a[href="/cases/{number}/"]').click()
            page.wait_for_url(f"**/cases/{number}/")
            assert study.hash in page.content()
        decide(steward, browser, STEWARD, "Approve")
        sync_api.expect(steward.get_by_text("You approved case")).to_be_visible()
        # The officer's page is older than the steward's approval: it must be read again.
        decide(officer, browser, OFFICER, "Approve")
        sync_api.expect(officer.get_by_text("Something changed since you opened this page")).to_be_visible()
        # The browser says on its console that the answer was 409; that is what it should be.
        browser.complaints = [c for c in browser.complaints if "409" not in c]
        decide(officer, browser, OFFICER, "Approve")
        sync_api.expect(officer.get_by_text("it is Approved now")).to_be_visible()

        federation.wait(study, timeout=120, progress=False)
        run = federation.start(study)
        steward.goto(f"/studies/{number}/")
        rounds = steward.get_by_role("region", name="Rounds", exact=True).first
        for expected in (1, 2, 3):
            run.next_round()
            # Without a reload: the page asks for its rounds every two seconds.
            sync_api.expect(rounds.get_by_role("rowheader", name=str(expected), exact=True)).to_be_visible()
        sync_api.expect(rounds.get_by_text(re.compile("in the sum|sent")).first).to_be_visible()

        move(steward, browser, STEWARD, "Pause")
        sync_api.expect(steward.get_by_text("is Paused now")).to_be_visible()
        assert cleveland not in run.next_round().survivors
        move(steward, browser, STEWARD, "Resume")
        sync_api.expect(steward.get_by_text("is Running now")).to_be_visible()
        for _ in range(4):
            if cleveland in run.next_round().survivors:
                break
        else:
            pytest.fail(datasites.log("cleveland"))
        move(steward, browser, STEWARD, "Revoke")
        sync_api.expect(steward.get_by_text("is Revoked now")).to_be_visible()
        assert cleveland not in run.next_round().survivors

        key = federation.roster.get(cleveland).public_key
        auditor = browser.page(AUDITOR, accept_downloads=True)
        auditor.goto("/audit/")
        with auditor.expect_download() as download:
            auditor.get_by_role("button", name="Download the log").click()
        log = tmp_path / "audit.jsonl"
        download.value.save_as(log)
        assert verify_log(log, key).ok
        auditor.get_by_role("button", name="Verify the whole log").click()
        sync_api.expect(auditor.get_by_role("heading", name="The log is sound")).to_be_visible()
        auditor.goto(f"/cases/{number}/")
        with auditor.expect_download() as download:
            auditor.get_by_role("button", name="Download evidence").click()
        bundle = tmp_path / "evidence.zip"
        download.value.save_as(bundle)
        assert all(check.ok for check in verify_bundle(bundle, key))
        assert "frozen/model.py" in zipfile.ZipFile(bundle).namelist()
    browser.is_clean()


def test_a_case_in_review_is_decided_by_keyboard_alone(datasites: LocalDatasites, browser: Browser) -> None:
    """Tab reaches every control, focus shows, and axe is content with the page as a reviewer meets it."""
    import demo

    study = datasites.study("keyboard")
    with datasites.federation() as federation:
        federation.submit(study)
        number = demo.case_id_of(datasites.consortium, datasites.hospital("cleveland"), study)
    for theme in ("light", "dark"):
        page = browser.page(STEWARD, color_scheme=theme)
        for width, pixels in WIDTHS.items():
            page.set_viewport_size({"width": pixels, "height": 900})
            page.goto(f"/cases/{number}/")
            assert inspect(page, "review", width, theme) == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    reached: set[str] = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            "[document.activeElement.name || '', getComputedStyle(document.activeElement).outlineStyle]"
        )
        assert focus[1] != "none", f"no visible focus on {focus[0]}"
        reached.add(focus[0])
        if focus[0] == "verdict":
            page.keyboard.press("ArrowDown")
            page.keyboard.press("ArrowDown")
        elif focus[0] == "reason":
            page.keyboard.type("too broad a purpose")
        elif focus[0] == "password":
            page.keyboard.type(browser.password(STEWARD))
            page.keyboard.press("Enter")
            break
    assert {"verdict", "reason", "password"} <= reached
    sync_api.expect(page.get_by_text("case")).not_to_have_count(0)
    page.wait_for_load_state()
    assert re.search("You (approved|rejected) case", page.content())
    browser.is_clean()
