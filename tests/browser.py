"""Headless Chromium for tests of the console, recording what a page must not do. Skips where there is no browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("CI"):
    pytest.skip("no browser in continuous integration", allow_module_level=True)
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("chromium is not installed (Debian: apt-get install chromium)", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install playwright)")
axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = {"narrow": 360, "wide": 1440}
#: Elements that reach beyond the right edge, outside of what scrolls by itself.
WIDEST = """[...document.querySelectorAll("body *")].filter(e => !e.parentElement.closest(".scroll")
    && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(e => e.outerHTML.slice(0, 120)).slice(0, 5)"""
#: Where pictures of the pages go, for people who look at them; nowhere unless set.
PICTURES = os.environ.get("CONSOLE_PICTURES", "")


class Browser:
    """Chromium on one hospital's console, with everything recorded that it should not do."""

    def __init__(self, chromium: Any, address: str, passwords: dict[str, str]) -> None:
        self._chromium, self.address, self._passwords = chromium, address, passwords
        self.elsewhere: list[str] = []
        self.complaints: list[str] = []

    def page(self, name: str = "", **options: Any) -> Any:
        """A page in a context of its own, signed in as `name`."""
        page = self._chromium.new_context(base_url=self.address, **options).new_page()
        page.set_default_timeout(20_000)
        page.on("request", self._note_request)
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        if name:
            page.goto("/login/")
            page.get_by_label("Name").fill(name)
            page.get_by_label("Password").fill(self.password(name))
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url(lambda url: "/login" not in url)
        return page

    def password(self, name: str) -> str:
        return self._passwords[name]

    def _note_request(self, request: Any) -> None:
        if not request.url.startswith(self.address):
            self.elsewhere.append(request.url)

    def is_clean(self) -> None:
        """No request elsewhere, no violation, no script error so far."""
        assert self.elsewhere == [], self.elsewhere
        assert self.complaints == [], self.complaints


def inspect(page: Any, name: str, width: str, theme: str) -> list[str]:
    """What axe finds on the page, and by how much it scrolls sideways; takes its picture where these are kept."""
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"{name}-{width}-{theme}.png"), full_page=True)
    found = axe_api.Axe().run(page)
    where = f"{name}, {width}, {theme}"
    faults = [f"{where}: {found.generate_report()}"] if found.violations_count else []
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if wide > 0:
        widest = page.evaluate(WIDEST)
        faults.append(f"{where}: {wide} px too wide: {widest}")
    return faults


@contextmanager
def chromium(address: str, passwords: dict[str, str]) -> Iterator[Browser]:
    """A browser on the console at `address`."""
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield Browser(started, address, passwords)
        finally:
            started.close()
