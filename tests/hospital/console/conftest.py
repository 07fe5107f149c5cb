"""A desk with a case in review and people of every role, and clients that act for them in the console."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.test import Client

from datasites.hospital.config import Home
from tests.hospital.console.providers import Liar, Real, configured, oidc
from tests.hospital.desk import PASSWORD, Desk
from tests.hospital.invited import enter

#: Name of one person per role; `tests.hospital.desk.Desk` enters the first four.
PEOPLE = {"steward": "ann", "privacy_officer": "bob", "auditor": "dee", "admin": "eva"}


class Console:
    """The console of a desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.number = desk.row.pk

    def client(self, name: str = "", *, csrf: bool = False) -> Client:
        """A browser, with `name` signed in."""
        from django.contrib.auth import get_user_model

        client = Client(enforce_csrf_checks=csrf, raise_request_exception=False, SERVER_NAME="localhost")
        if name:
            user = get_user_model().objects.get(username=name)
            client.force_login(user, backend=settings.PASSWORD_BACKEND)
        return client

    def seen(self, client: Client) -> dict[str, str]:
        """The hidden fields of the case's form, as its page has them."""
        html = client.get(f"/cases/{self.number}/").content.decode()
        return dict(re.findall(r'<input type="hidden" name="(seen|hash)" value="([0-9a-f]{64})"', html))

    def decide(self, client: Client, verdict: str = "approve", password: str = PASSWORD, **fields: str) -> Any:
        """Open the case, and decide."""
        shown = self.seen(client)
        values = {**shown, "verdict": verdict, "reason": "read it", "password": password, **fields}
        return client.post(f"/cases/{self.number}/decide/", values)


@pytest.fixture
def console(database: Home, examined: dict[str, Any]) -> Console:
    desk = Desk(database, examined)
    enter(desk.site, "eva", "admin", PASSWORD)
    return Console(desk)


@pytest.fixture(scope="module")
def real() -> Iterator[Real]:
    """A real identity provider."""
    provider = Real()
    try:
        provider.start()
        yield provider
    finally:
        provider.stop()


@pytest.fixture
def liar(home: Home) -> Iterator[Liar]:
    """One that answers whatever a test wants; the console signs people in with it."""
    provider = Liar()
    provider.honest()
    provider.start()
    try:
        with configured(oidc(provider.base)):
            yield provider
    finally:
        provider.close()
