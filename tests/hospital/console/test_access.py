"""Who may do what: every address x every role x anonymous, from the URL configuration; and no POST without a token."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from django.urls import get_resolver, resolve

from tests.hospital.console.access import TABLE
from tests.hospital.console.conftest import PEOPLE, Console


def test_every_address_has_a_row() -> None:
    assert {pattern.name for pattern in get_resolver().url_patterns} == set(TABLE)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["", *PEOPLE])
def test_each_role_opens_what_it_may_and_nothing_else(console: Console, role: str) -> None:
    for name, (path, methods, roles) in TABLE.items():
        if name == "logout":
            continue
        client = console.client(PEOPLE.get(role, ""))
        address = path.format(case=console.number, missing=10**9)
        for method in ("GET", "POST"):
            if method not in methods and not (role and role in roles):
                continue
            # Empty forms: what matters is whether the view is reached; 400, 404 and 409 come from inside it.
            response = client.generic(method, address, content_type="application/x-www-form-urlencoded")
            told = f"{method} {name} as {role or 'nobody'}: {response.status_code}"
            assert response.status_code < 500, told
            if method not in methods and method == "GET":
                # As when people press Enter in the address bar after a form was refused: the page it belongs to.
                assert response.status_code == 302, told
                above = resolve(urlsplit(response.headers["Location"]).path).url_name
                assert above is not None, told
                assert "GET" in TABLE[above][1], told
            elif method not in methods:
                assert response.status_code == 405, told
            elif role in roles:
                assert response.status_code in (200, 302, 400, 404, 409), told
                assert "/login/" not in response.headers.get("Location", ""), told
            elif role:
                assert response.status_code == 403, told
            else:
                assert response.status_code == 302, told
                assert response.headers["Location"].startswith("/login/"), told
    console.desk.nothing_happened()


def test_no_post_is_taken_without_this_sessions_token(console: Console) -> None:
    from datasites.hospital.cases import compliance

    for name, (path, methods, roles) in TABLE.items():
        if "POST" not in methods:
            continue
        role = next(role for role in PEOPLE if role in roles)
        client = console.client(PEOPLE[role], csrf=True)
        values = {"action": "kill", "reason": "forged", "csrfmiddlewaretoken": "x" * 64}
        response = client.post(path.format(case=console.number, missing=console.number), values)
        assert response.status_code == 403, name
        assert b"not sent from a page of this console" in response.content, name
    assert not compliance.is_killed(console.desk.site.home)
    console.desk.nothing_happened()


def test_somebody_without_a_role_and_somebody_shut_out_get_nowhere(console: Console) -> None:
    from django.contrib.auth import get_user_model

    ann = get_user_model().objects.get(username="ann")
    client = console.client("ann")
    ann.groups.clear()
    assert client.get("/cases/").status_code == 403
    ann.is_active = False
    ann.save()
    assert client.get("/cases/").status_code == 302


def test_headers_forbid_inline_code_frames_and_caches(console: Console) -> None:
    for client, path in ((console.client("ann"), "/cases/"), (console.client(), "/login/"), (console.client(), "/x/")):
        headers = client.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"


def test_no_template_has_inline_code_or_style_or_another_host() -> None:
    import re
    from pathlib import Path

    from datasites.hospital import console

    folder = Path(console.__file__).parent
    files = [*folder.rglob("*.html"), *folder.rglob("*.css")]
    assert len(files) > 20
    for file in files:
        text = file.read_text()
        assert not re.search(
            r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:|\|safe|autoescape off", text
        ), file
        assert not re.search(r"(src|href|url\()\W*(https?:)?//", text), file
