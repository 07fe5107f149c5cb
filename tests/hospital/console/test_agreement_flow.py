"""An agreement by form in headless Chromium: picked, previewed, compared with its document, and confirmed."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from datasites.hospital.config import ConsoleSettings
from datasites.hospital.console.server import serving
from policies.registry import RegistryFile
from tests.browser import Browser, chromium, inspect, sync_api
from tests.hospital.console.conftest import Console
from tests.hospital.desk import PASSWORD

WIDTHS = {"narrow": 360, "middle": 720, "wide": 1440}


class Looks:
    """Axe on each page that a flow passes, at all widths and in both themes."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def at(self, page: Any, name: str) -> None:
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            for width, pixels in WIDTHS.items():
                page.set_viewport_size({"width": pixels, "height": 900})
                self.faults += inspect(page, name, width, theme)


@pytest.mark.slow
def test_an_agreement_by_form(console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    console.desk.agree()
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    document, other = tmp_path / "irb-2027.pdf", tmp_path / "another.pdf"
    document.write_bytes(b"%PDF signed " + b"x" * (3 * 2**20))
    other.write_bytes(b"%PDF draft")
    passwords = dict.fromkeys(("ann", "bob"), PASSWORD)
    with serving(ConsoleSettings(port=0)) as address, chromium(address, passwords) as browser:
        looks = Looks()
        enters(browser.page("ann"), looks, document)
        confirms(browser.page("bob"), looks, document, other)
        by_keyboard(browser)
        browser.complaints = [c for c in browser.complaints if not re.search("status of 40[09]", c)]
        browser.is_clean()
    assert not looks.faults, "\n".join(looks.faults)
    latest = RegistryFile(console.desk.site.home.registry, "Cleveland").load().latest("irb")
    assert (latest.version, latest.confirmed_by) == (2, "bob")
    assert latest.terms.document == hashlib.sha256(document.read_bytes()).hexdigest()


def enters(page: Any, looks: Looks, document: Path) -> None:
    """The next version of an IRB approval, with a mistake at first."""
    page.goto("/agreements/")
    looks.at(page, "agreements-forms")
    page.get_by_role("link", name="Enter an agreement").click()
    looks.at(page, "agreement-kinds")
    page.goto("/agreements/new/baa/")
    looks.at(page, "agreement-form-baa")
    page.goto("/agreements/enter/")
    looks.at(page, "agreement-toml")
    page.goto("/agreements/id/irb/")
    page.get_by_role("link", name="Enter a new version").click()
    page.get_by_label("Last day in force").fill("2025-01-01")
    page.get_by_label("age", exact=True).uncheck()
    page.get_by_label("The signed document").set_input_files(document)
    page.get_by_role("button", name="Preview").click()
    sync_api.expect(page.get_by_role("alert")).to_contain_text("Nothing was entered.")
    assert page.title().startswith("Error: ")
    sync_api.expect(page.get_by_label("Last day in force")).to_have_value("2025-01-01")
    sync_api.expect(page.get_by_label("age", exact=True)).not_to_be_checked()
    looks.at(page, "agreement-form-error")
    page.get_by_label("Last day in force").fill("2098-12-31")
    page.get_by_role("button", name="Preview").click()
    sync_api.expect(page.get_by_role("heading", level=1)).to_have_text("Preview")
    sync_api.expect(page.get_by_text("no longer permitted: age")).to_be_visible()
    looks.at(page, "agreement-preview")
    page.get_by_role("button", name="Enter it").click()
    sync_api.expect(page.get_by_role("status")).to_contain_text("irb version 2 is entered")


def confirms(page: Any, looks: Looks, document: Path, other: Path) -> None:
    """The second person, who chooses a draft first, and then the document that was signed."""
    page.goto("/agreements/id/irb/")
    sync_api.expect(page.get_by_role("deletion").get_by_text("age", exact=True)).to_be_visible()
    page.get_by_label("The signed document, as you have it").set_input_files(other)
    page.get_by_role("button", name="Only compare the document").click()
    sync_api.expect(page.get_by_role("alert")).to_contain_text("from another document")
    looks.at(page, "agreement-other-document")
    page.get_by_label("The signed document, as you have it").set_input_files(document)
    page.get_by_role("button", name="Only compare the document").click()
    sync_api.expect(page.get_by_role("status")).to_contain_text("the same document")
    looks.at(page, "agreement-confirm")
    page.get_by_label("Your password, to confirm").fill(PASSWORD)
    page.get_by_role("button", name="confirm", exact=False).last.click()
    sync_api.expect(page.get_by_role("status")).to_contain_text("irb version 2 is confirmed")
    page.goto("/roster/")
    page.get_by_label("Or its text").fill('{"organisation": "North"}')
    page.get_by_role("button", name="Propose").click()
    sync_api.expect(page.get_by_label("Or its text")).to_have_value('{"organisation": "North"}')
    looks.at(page, "roster-error")


def by_keyboard(browser: Browser) -> None:
    """The form from its first field to the preview, without a pointer."""
    page = browser.page("ann")
    page.goto("/agreements/new/risk_acceptance/")
    page.get_by_label("Id").focus()
    page.keyboard.type("no-sandbox-2027")
    reached: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name || document.activeElement.textContent"))
        if reached[-1] == "Preview":
            break
    # A date has several parts to tab through.
    order = [name for name in dict.fromkeys(reached) if not name.startswith("csrf")]
    assert order == [
        "services", "other_services", "reference", "effective", "expires", "document_file", "document", "Preview",
    ]  # fmt: skip
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("ab" * 32)
    page.get_by_label("First day in force").fill("2026-01-01")
    page.get_by_label("Last day in force").fill("2026-12-31")
    page.get_by_role("button", name="Preview").focus()
    page.keyboard.press("Enter")
    sync_api.expect(page.get_by_role("heading", level=1)).to_have_text("Preview")
