"""What people read when something can't be done, and in which words: addresses, refusals, fields with errors, log."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest

from datasites.hospital.models import Case, Round
from datasites.study.audit_chain import records
from tests.hospital.console.conftest import Console
from tests.hospital.desk import PASSWORD


class Page(HTMLParser):
    """Ids, references to ids, and controls of a page, in their order."""

    def __init__(self, response: Any) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: set[str] = set()
        self.controls: list[dict[str, str]] = []
        self.focused: list[dict[str, str]] = []
        self.html = response.content.decode()
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.ids.append(values["id"])
        for name in ("aria-describedby", "aria-labelledby", "for"):
            self.references |= set(values.get(name, "").split())
        if tag in ("input", "textarea", "select", "form"):
            self.controls.append({"tag": tag, **values})
        if "autofocus" in values:
            self.focused.append(values)

    @property
    def title(self) -> str:
        found = re.search("<title>(.*?)</title>", self.html)
        assert found is not None
        return found[1]


def approved(console: Console) -> None:
    console.desk.agree()
    console.desk.approve("ann")
    console.desk.approve("bob")


@pytest.mark.parametrize(
    ("address", "page"),
    [
        ("/cases/{}/decide/", "/cases/{}/"),
        ("/cases/{}/recheck/", "/cases/{}/"),
        ("/cases/{}/evidence/", "/cases/{}/"),
        ("/studies/{}/move/", "/studies/{}/"),
        ("/studies/kill/", "/studies/"),
        ("/populations/widen/", "/budget/"),
        ("/populations/entries/7/", "/budget/"),
        ("/agreements/confirm/", "/agreements/"),
        ("/roster/7/", "/roster/"),
        ("/audit/verify/", "/audit/"),
        ("/people/add/", "/people/"),
        ("/logout/", "/"),
    ],
)
def test_an_address_that_only_takes_forms_leads_to_its_page(console: Console, address: str, page: str) -> None:
    for client in (console.client("ann"), console.client()):
        response = client.get(address.format(console.number))
        assert (response.status_code, response.headers["Location"]) == (302, page.format(console.number))
    assert console.client("ann").put(address.format(console.number)).status_code == 405
    console.desk.nothing_happened()


def test_a_page_for_others_says_for_whom_and_whom_to_ask(console: Console) -> None:
    words = unescape(console.client("ann").get("/people/").content.decode())
    assert "This page is for auditors and admins. You are signed in as ann, data steward." in words
    assert "ask an admin (eva)" in words
    answer = console.client("dee").post(f"/cases/{console.number}/decide/")
    words = unescape(answer.content.decode())
    assert answer.status_code == 403
    assert "This action is for data stewards and privacy officers. You are signed in as dee, auditor." in words
    assert f'<a href="/cases/{console.number}/">Back to the page that this belongs to</a>' in words
    assert "privacy_officer" not in words
    assert "Nothing was changed" not in console.client("ann").get("/people/").content.decode()
    missing = unescape(console.client("ann").get("/cases/999/").content.decode())
    assert "There is no page at this address. It may be mistyped, or of another hospital" in missing


def test_somebody_without_a_role_is_told_whom_to_ask(console: Console) -> None:
    from django.contrib.auth import get_user_model

    get_user_model().objects.get(username="ann").groups.clear()
    words = console.client("ann").get("/cases/").content.decode()
    assert "you have no role yet, so you can open no page. Ask an admin for one (eva)" in words


def test_a_form_with_errors_names_them_takes_the_focus_and_says_so_in_its_title(console: Console) -> None:
    eva = console.client("eva")
    page = Page(eva.post("/password/", {"password": "x", "new_password": "short", "again": "other"}))
    assert page.title.startswith("Error: Your password")
    assert page.focused[0]["role"] == "alert"
    assert 'href="#id_again"' in page.html
    again = next(control for control in page.controls if control.get("name") == "again")
    assert again["aria-invalid"] == "true"
    assert again["aria-describedby"] == "id_again_error"
    search = Page(console.client("ann").get("/audit/?kind=No!&since=yesterday"))
    assert search.title.startswith("Error: ")
    for shown in (page, search, Page(console.client().post("/login/", {"username": "ann", "password": "wrong"}))):
        assert shown.title.startswith("Error: ")
        assert len(shown.ids) == len(set(shown.ids))
        assert shown.references <= set(shown.ids)
        assert len(shown.focused) >= 1
    for path in ("/people/add/", "/people/deactivate/"):
        refused = Page(eva.post(path, {}))
        assert refused.title.startswith("Error: Not done")
        assert refused.focused[0]["role"] == "alert"


def test_every_page_names_only_ids_that_it_has(console: Console) -> None:
    approved(console)
    ann, eva = console.client("ann"), console.client("eva")
    paths = ("/cases/", "/studies/", f"/studies/{console.number}/", "/budget/", "/budget/heart/?epsilon=0&rate=2")
    paths += ("/agreements/", "/roster/", "/audit/", "/datasets/heart/", "/password/", f"/cases/{console.number}/")
    for client, path in [(ann, path) for path in paths] + [(eva, "/people/")]:
        page = Page(client.get(path))
        assert page.references <= set(page.ids), path
        assert len(page.ids) == len(set(page.ids)), path


def test_every_form_with_a_password_names_whose_it_is(console: Console) -> None:
    approved(console)
    Case.objects.filter(pk=console.number).update(state="paused")
    found = 0
    for name, path in (("ann", f"/studies/{console.number}/"), ("ann", "/agreements/"), ("eva", "/people/")):
        form: list[dict[str, str]] = []
        for control in [*Page(console.client(name).get(path)).controls, {"tag": "form"}]:
            if control["tag"] == "form":
                form = []
            elif control.get("autocomplete") == "current-password":
                (user,) = (one for one in form if one.get("autocomplete") == "username")
                assert user["value"] == name
                assert "hidden" in user
                # Not sent: the lock-out counts by the name that a form sends.
                assert "name" not in user
                found += 1
            form.append(control)
    assert found >= 4


def test_a_form_that_is_too_large_is_told_so(console: Console) -> None:
    ann = console.client("ann")
    for values in ({"text": "x" * 600_000}, {f"f{n}": "1" for n in range(1200)}):
        answer = ann.post("/agreements/enter/", values)
        assert answer.status_code == 413
        assert "The form is too large: this console takes 512 KiB of text and 1000 fields" in answer.content.decode()


def test_a_page_that_is_changed_on_its_way_says_how_long_it_is(console: Console) -> None:
    """A browser gets no page at all otherwise."""
    Case.objects.update(study_name="harm\u202eless")
    for path in ("/cases/", "/nothing/"):
        answer = console.client("ann").get(path)
        assert int(answer.headers["Content-Length"]) == len(answer.content), path
    assert "\u202e" not in console.client("ann").get("/cases/").content.decode()


def test_the_kill_switch_is_not_turned_off_twice(console: Console) -> None:
    off = {"action": "unkill", "reason": "over", "password": PASSWORD}
    answer = console.client("ann").post("/studies/kill/", off, follow=True)
    assert "The kill switch was not on, so nothing was done." in answer.content.decode()
    assert not [record for record in records(console.desk.site.home.audit) if record.kind == "unkilled"]


def test_the_audit_log_is_filtered_by_person_and_day_and_leads_to_what_it_is_about(console: Console) -> None:
    approved(console)
    audit = console.desk.site.audit
    audit.append("noted", person="Anna", text="ann")
    ann = console.client("ann")

    def shown(query: str) -> str:
        return ann.get(f"/audit/?{query}").content.decode()

    by_bob = shown("person=BOB")
    assert "by bob" not in by_bob
    assert by_bob.count('<tr id="r') == len([r for r in records(audit.path) if "bob" in _names(r.fields)])
    assert "Anna" not in shown("person=ann&kind=noted")
    today = list(records(audit.path))[-1].time[:10]
    assert shown(f"since={today}&until={today}&kind=noted").count('<tr id="r') == 1
    assert "No record matches" in shown("until=2001-01-01")
    assert "No record matches" in shown("since=2999-01-01")
    html = shown("")
    assert f'<a href="/cases/{console.number}/">case {console.number}</a>' in html
    assert f'<a href="/studies/{console.number}/">study <code>{console.desk.row.study_hash[:8]}</code></a>' in html
    for record in list(records(audit.path))[-3:]:
        assert record.hash in html
    for number in range(60):
        audit.append("noted", person="bob", number=number)
    older = re.search(r'href="\?([^"]*)">Older records', shown(f"person=bob&since={today}"))
    assert older is not None
    assert "person=bob" in unescape(older[1])
    assert f"since={today}" in unescape(older[1])
    assert "number 0<" in shown(unescape(older[1]))


def _names(fields: dict[str, Any]) -> set[str]:
    return {str(fields.get(key)) for key in ("person", "by", "entered_by", "confirmed_by")}


def test_a_studys_page_speaks_as_people_do(console: Console) -> None:
    approved(console)
    hospitals = list(console.desk.row.approval_terms.get("cohort", []))
    Round.objects.create(case_id=console.number, round=1, epoch=0, state=Round.State.UNMASKED, survivors=hospitals)
    html = unescape(console.client("bob").get(f"/studies/{console.number}/").content.decode())
    for words in ("in the sum", "The way of one round", "It is masked", "Next:", " UTC</time>", "Approval hash"):
        assert words in html
    for internal in ("held_out", "survivors", "privacy_officer", ">unmasked<"):
        assert internal not in html
    row = Case.objects.get(pk=console.number)
    assert f'title="{row.approval_hash}"' in html
    assert "".join(f'<span class="four">{row.approval_hash[at : at + 4]}</span>' for at in range(0, 64, 4)) in html
    for path in ("/budget/", "/budget/heart/", "/datasets/heart/"):
        assert "held_out" not in console.client("bob").get(path).content.decode(), path
    assert ">years<" in console.client("bob").get("/datasets/heart/").content.decode()
