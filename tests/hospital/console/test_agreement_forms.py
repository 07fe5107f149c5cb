"""Agreements and parties by forms: previewed, compared with the document, and nothing that was typed is lost."""

from __future__ import annotations

import datetime
import hashlib
import http.client
import re
from contextlib import closing
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from datasites.hospital.cases.case import open_case
from datasites.hospital.cases.compliance import preview
from datasites.hospital.config import ConsoleSettings
from datasites.hospital.console import uploads
from datasites.hospital.console.server import serving
from datasites.hospital.models import Case, PartyProposal
from datasites.hospital.people.agreements import enter_toml
from datasites.study.audit_chain import records
from datasites.study.roster import Roster
from policies.registry import Registry, RegistryFile
from tests.hospital.console.conftest import Console
from tests.hospital.desk import PASSWORD
from tests.study.entries import stranger

CONTENT = b"%PDF-1.7 the signed agreement"
HASH = hashlib.sha256(CONTENT).hexdigest()
BAA = {
    "id": "baa-new",
    "other_parties": "Storage Provider\n\n  Another   Party ",
    "services": ["transport"],
    "effective": "2026-01-01",
    "expires": "2099-12-31",
    "document": HASH,
}
IRB = {
    "id": "irb-new",
    "reference": "IRB-9",
    "other_purposes": "cardiology-research",
    "features": ["age"],
    "other_features": "sex",
    "effective": "2026-01-01",
    "expires": "2099-12-31",
    "document": HASH,
}


def registry(console: Console) -> Registry:
    return RegistryFile(console.desk.site.home.registry, "Cleveland").load()


def page_of(response: Any, status: int = 200) -> str:
    html = unescape(response.content.decode())
    assert response.status_code == status, html
    return html


def error_at(html: str, field: str) -> str:
    """What stands at a field."""
    found = re.search(rf'id="id_{field}_error">(.*?)</(div|fieldset)>', html, re.DOTALL)
    return found[1] if found else ""


class Hidden(HTMLParser):
    """The hidden fields of a page's last form."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form":
            self.fields = {}
        elif tag == "input" and given.get("type") == "hidden":
            self.fields[given["name"] or ""] = given["value"] or ""


def sent(response: Any) -> dict[str, str]:
    """The hidden fields of a preview, as a browser sends them."""
    page_of(response)
    page = Hidden()
    page.feed(response.content.decode())
    return page.fields


def signed(content: bytes = CONTENT) -> SimpleUploadedFile:
    return SimpleUploadedFile("baa.pdf", content)


def test_what_a_form_enters_is_what_the_same_toml_enters(console: Console) -> None:
    ann, desk = console.client("ann"), console.desk
    shown = ann.post("/agreements/new/baa/", BAA)
    assert "Nothing is entered yet" in page_of(shown)
    assert registry(console).agreements == (), "a preview enters nothing"
    assert ann.post("/agreements/new/baa/", {**sent(shown), "step": "enter"}).status_code == 302
    shown = ann.post("/agreements/new/irb/", IRB)
    assert ann.post("/agreements/new/irb/", {**sent(shown), "step": "enter"}).status_code == 302
    by_hand = registry(console)
    desk.site.home.registry.unlink()
    parties = '["Cleveland", "Storage Provider", "Another Party"]'
    text = f"""
[[agreement]]
id = "baa-new"
kind = "baa"
parties = {parties}
services = ["transport"]
effective = 2026-01-01
expires = 2099-12-31
document = "{HASH}"
[[agreement]]
id = "irb-new"
kind = "irb"
parties = ["Cleveland"]
reference = "IRB-9"
purposes = ["cardiology-research"]
features = ["age", "sex"]
effective = 2026-01-01
expires = 2099-12-31
document = "{HASH}"
"""
    enter_toml(desk.site, desk.login("ann"), text)
    assert registry(console) == by_hand
    logged = [r.fields["agreement"] for r in records(desk.site.home.audit) if r.kind == "agreement_entered"]
    assert logged == ["baa-new", "irb-new"] * 2


@pytest.mark.parametrize("kind", ["baa", "dua", "irb", "expert_determination", "risk_acceptance"])
def test_each_kind_has_a_form_that_enters_it(console: Console, kind: str) -> None:
    ann = console.client("ann")
    page_of(ann.get(f"/agreements/new/{kind}/"))
    values = {**BAA, **IRB, "id": "one", "services": ["no_sandbox"] if kind == "risk_acceptance" else ["transport"]}
    shown = ann.post(f"/agreements/new/{kind}/", values)
    assert ann.post(f"/agreements/new/{kind}/", {**sent(shown), "step": "enter"}).status_code == 302
    assert registry(console).latest("one").terms.kind == kind
    assert ann.get("/agreements/new/promise/").status_code == 404


def test_a_chosen_document_is_hashed_and_kept_nowhere(console: Console, tmp_path: Path) -> None:
    ann, desk = console.client("ann"), console.desk
    content = b"0123456789abcdef" * 200_000  # larger than what Django keeps in memory
    values = {name: value for name, value in BAA.items() if name != "document"}
    shown = ann.post("/agreements/new/baa/", {**values, "document_file": signed(content)})
    assert hashlib.sha256(content).hexdigest() in page_of(shown)
    assert ann.post("/agreements/new/baa/", {**sent(shown), "step": "enter"}).status_code == 302
    assert registry(console).latest("baa-new").terms.document == hashlib.sha256(content).hexdigest()
    kept = [p for p in desk.site.home.root.rglob("*") if p.is_file() and content[:64] in p.read_bytes()]
    assert kept == []


def test_no_file_that_is_sent_to_any_page_is_written(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    def written(*_: object, **__: object) -> None:
        pytest.fail("a file was written")

    for name in ("NamedTemporaryFile", "TemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, written)
    monkeypatch.setattr("django.core.files.uploadedfile.TemporaryUploadedFile.__init__", written)
    large = b"x" * (3 * 2**20)
    for path in ("/agreements/new/baa/", "/agreements/confirm/", "/roster/propose/", "/studies/kill/"):
        response = console.client("ann").post(path, {"any": SimpleUploadedFile("a", large)})
        assert response.status_code in (400, 404, 409)


def test_a_document_and_another_hash_are_not_taken_together(console: Console) -> None:
    ann = console.client("ann")
    html = page_of(ann.post("/agreements/new/baa/", {**BAA, "document": "ab" * 32, "document_file": signed()}), 400)
    assert f"The chosen file has another SHA-256, {HASH}" in html
    for value, problem in (("", "Choose the signed document"), ("abc", "this has 3 characters")):
        assert problem in page_of(ann.post("/agreements/new/baa/", {**BAA, "document": value}), 400)
    upper = " ".join((HASH[:32].upper(), HASH[32:]))
    assert HASH in page_of(ann.post("/agreements/new/baa/", {**BAA, "document": upper}))
    empty = {**BAA, "document": "", "document_file": SimpleUploadedFile("a.pdf", b"")}
    assert "empty" in page_of(ann.post("/agreements/new/baa/", empty), 400)
    assert registry(console).agreements == ()


def test_a_document_that_is_too_large_is_not_hashed(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasites.hospital.console import agreement_forms

    for module in (uploads, agreement_forms):
        monkeypatch.setattr(module, "MOST_DOCUMENT", 1000)
    values = {**BAA, "document": "", "document_file": signed(b"x" * 1001)}
    html = page_of(console.client("ann").post("/agreements/new/baa/", values), 400)
    assert "Larger than" in html
    assert hashlib.sha256(b"x" * 1001).hexdigest() not in html
    assert hashlib.sha256(b"").hexdigest() not in html


def test_what_was_typed_is_there_after_an_error_with_the_error_at_its_field(console: Console) -> None:
    ann = console.client("ann")
    values = {
        **IRB,
        "id": "Not A Name",
        "expires": "2020-01-01",
        "other_purposes": "Cardiology Research\nheart",
        "other_parties": "University of <b>X</b>",
        "document": "",
        "document_file": signed(),
    }
    html = page_of(ann.post("/agreements/new/irb/", values), 400)
    assert "<title>Error: " in html
    for typed in ("Not A Name", "2020-01-01", "Cardiology Research\nheart", "IRB-9", HASH):
        assert typed in html
    assert "<b>X" not in ann.post("/agreements/new/irb/", values).content.decode()
    assert re.search(r'name="features" value="age"[^>]* checked', html)
    assert "write not_a_name" in error_at(html, "id")
    assert "write cardiology_research" in error_at(html, "other_purposes")
    for kind in ("baa", "dua", "irb", "risk_acceptance"):
        html = page_of(ann.post(f"/agreements/new/{kind}/", {"id": "a"}), 400)
        assert "Pick or type one at least." in html
    html = page_of(ann.post("/agreements/new/baa/", {**BAA, "expires": "2020-01-01"}), 400)
    assert "It expires before it takes effect" in error_at(html, "expires")
    assert registry(console).agreements == ()


def test_an_id_that_is_taken_is_said_at_the_id_and_a_stale_preview_enters_nothing(console: Console) -> None:
    console.desk.agree()
    ann, cyd = console.client("ann"), console.client("cyd")
    html = page_of(ann.post("/agreements/new/baa/", {**BAA, "id": "baa-storage"}), 409)
    assert "is known here already" in error_at(html, "id")
    assert "Another   Party" in html
    path = "/agreements/id/baa-storage/new-version/"
    form = {**BAA, "expires": "2098-12-31"}
    mine = sent(ann.post(path, form))
    theirs = sent(cyd.post(path, {**form, "expires": "2097-12-31"}))
    assert cyd.post(path, {**theirs, "step": "enter"}).status_code == 302
    html = page_of(ann.post(path, {**mine, "step": "enter"}), 409)
    assert "is at version 2 by now, and not 1" in html
    assert 'value="2098-12-31"' in html
    assert registry(console).latest("baa-storage").version == 2


def test_a_forged_preview_enters_no_more_than_the_form_would(console: Console) -> None:
    """Of the kind of its address, with this hospital as a party, and under the id of its agreement."""
    console.desk.agree()
    ann = console.client("ann")
    shown = sent(ann.post("/agreements/new/irb/", IRB))
    assert ann.post("/agreements/new/baa/", {**shown, "step": "enter"}).status_code == 400
    elsewhere = shown["terms"].replace("Cleveland", "Elsewhere")
    assert ann.post("/agreements/new/irb/", {**shown, "terms": elsewhere, "step": "enter"}).status_code == 302
    assert registry(console).latest("irb-new").terms.parties == ("Cleveland", "Elsewhere")
    path = "/agreements/id/baa-storage/new-version/"
    posted = {**sent(ann.post(path, {**BAA, "id": "irb"})), "step": "enter"}
    assert ann.post(path, {**posted, "terms": posted["terms"].replace("baa-storage", "irb")}).status_code == 302
    assert registry(console).latest("baa-storage").version == 2
    assert registry(console).latest("irb").version == 1
    for terms in ("", "{}", "[" * 5000, "x", '{"id": 1}'):
        assert ann.post(path, {**posted, "terms": terms}).status_code == 400
    hidden_character = shown["terms"].replace("IRB-9", "IRB-9\\u202e")
    answer = ann.post("/agreements/new/irb/", {**shown, "terms": hidden_character, "after": "1", "step": "enter"})
    assert answer.status_code == 409


def test_a_new_version_starts_from_the_present_one(console: Console) -> None:
    console.desk.agree()
    ann = console.client("ann")
    html = page_of(ann.get("/agreements/id/irb/new-version/"))
    for value in ("IRB-2026-017", "2026-01-01", "2099-12-31", "ab" * 32):
        assert f'value="{value}"' in html
    assert re.search(r'name="purposes" value="cardiology-research"[^>]* checked', html)
    now = registry(console).latest("irb").terms
    same = {
        "purposes": now.purposes, "features": now.features, "parties": ["University"], "reference": now.reference,
        "effective": "2026-01-01", "expires": "2099-12-31", "document": now.document,
    }  # fmt: skip
    assert "already registered like this" in page_of(ann.post("/agreements/id/irb/new-version/", same), 409)
    shown = ann.post("/agreements/id/irb/new-version/", {**same, "document_file": signed()})
    assert HASH in page_of(shown), "a chosen file stands for the hash that the form came with"
    page_of(ann.post("/agreements/id/irb/new-version/", {**sent(shown), "step": "change"}))
    assert ann.post("/agreements/id/irb/new-version/", {**sent(shown), "step": "enter"}).status_code == 302
    changed = registry(console).latest("irb").terms
    assert changed == now.model_copy(update={"document": HASH})


def test_the_second_person_sees_what_differs_from_what_was_confirmed(console: Console) -> None:
    """Also where the first one enters a wide version, and then a small change of it."""
    console.desk.agree()
    ann, bob = console.client("ann"), console.client("bob")
    path = "/agreements/id/baa-storage/new-version/"
    base = {"parties": ["Storage Provider"], "effective": "2026-01-01", "expires": "2099-12-31", "document": HASH}
    for more in (
        {"services": ["transport", "aggregation"]},
        {"services": ["transport", "aggregation"], "reference": "7"},
    ):
        shown = ann.post(path, {**base, **more})
        assert ann.post(path, {**sent(shown), "step": "enter"}).status_code == 302
    html = page_of(bob.get("/agreements/id/baa-storage/"))
    assert "What differs from version 1, the last that was confirmed" in html
    assert "<ins>aggregation</ins>" in html
    assert "Version 2, which ann entered" in html
    assert "never confirmed" in html
    assert 'name="password"' in html
    own = page_of(ann.get("/agreements/id/baa-storage/"))
    assert "You entered it; another" in own
    assert 'value="confirm"' not in own
    assert 'value="confirm"' not in page_of(console.client("dee").get("/agreements/id/baa-storage/"))


def test_the_second_person_chooses_the_document_again_and_another_one_is_not_confirmed(console: Console) -> None:
    ann, bob = console.client("ann"), console.client("bob")
    shown = ann.post("/agreements/new/baa/", BAA)
    ann.post("/agreements/new/baa/", {**sent(shown), "step": "enter"})
    values = {"id": "baa-new", "version": "1", "step": "compare"}
    path = "/agreements/confirm/"
    assert "Choose the document" in page_of(bob.post(path, values), 400)
    html = page_of(bob.post(path, {**values, "document_file": signed(b"another")}), 409)
    assert "was entered from another document" in html
    html = page_of(bob.post(path, {**values, "document_file": signed()}))
    assert "It is the same document" in html
    assert f'value="{HASH}"' in html, "it is compared again when it is confirmed"
    decide = {**values, "step": "confirm", "password": PASSWORD}
    assert bob.post(path, {**decide, "document_file": signed(b"another")}).status_code == 409
    assert bob.post(path, {**decide, "document": "00" * 32}).status_code == 409
    html = page_of(bob.post(path, {**decide, "document": HASH, "password": "a guess"}), 403)
    assert "The password is wrong." in html
    assert HASH in html
    assert "a guess" not in html
    assert registry(console).latest("baa-new").confirmed_by is None
    assert bob.post(path, {**decide, "document_file": signed()}).status_code == 302
    assert registry(console).latest("baa-new").confirmed_by == "bob"
    assert "was confirmed by bob" in page_of(console.client("cyd").post(path, decide), 409)


def test_what_rests_on_an_agreement_is_what_the_policies_deny_without_it(console: Console) -> None:
    desk = console.desk
    desk.agree()
    ann = console.client("ann")
    home = desk.site.home

    def denied() -> set[str]:
        return set(preview(home, open_case(home, desk.row)).decision.controls) & {"baa", "irb", "purpose"}

    assert denied() == set()
    html = page_of(ann.get("/agreements/id/irb/"))
    assert "IRB approval IRB-2026-017 for cardiology-research is over" in html
    html = page_of(ann.get("/agreements/id/baa-storage/"))
    assert "Storage Provider may no longer run transport" in html
    assert f'href="/cases/{desk.row.pk}/"' in html
    assert page_of(ann.post("/agreements/terminate/", {"id": "baa-storage", "password": "a guess"}), 403)
    assert denied() == set()
    assert ann.post("/agreements/terminate/", {"id": "baa-storage", "password": PASSWORD}).status_code == 302
    assert denied() == {"baa"}
    assert "no version of it is in force" in page_of(ann.get("/agreements/id/baa-storage/"))
    ann.post("/agreements/terminate/", {"id": "irb", "password": PASSWORD})
    assert denied() == {"baa", "irb", "purpose"}


def test_expired_unused_and_ending_agreements_are_shown_as_such(console: Console) -> None:
    desk = console.desk
    soon = (datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=10)).isoformat()
    desk.agree(expires=soon)
    ann, bob = console.client("ann"), console.client("bob")
    for id, expires in (("baa-old", "2026-01-02"), ("baa-unused", "9999-12-31")):
        shown = ann.post("/agreements/new/baa/", {**BAA, "id": id, "other_parties": "Elsewhere", "expires": expires})
        if id == "baa-old":
            assert "Its last day is over" in page_of(shown)
        ann.post("/agreements/new/baa/", {**sent(shown), "step": "enter"})
        assert bob.post("/agreements/confirm/", {"id": id, "version": 1, "password": PASSWORD}).status_code == 302
    html = page_of(ann.get("/agreements/"))
    assert "expires in 10 days" in html
    assert "University may no longer run aggregation, model_distribution" in html
    cards = dict(re.findall(r'<article class="card" aria-labelledby="a-(.*?)">(.*?)</article>', html, re.DOTALL))
    assert "expired" in cards["baa-old"]
    assert "unused" in cards["baa-unused"]
    page_of(ann.get("/agreements/id/baa-unused/"))
    assert "ends in 10 days" in cards["baa-university"]
    assert "unused" not in cards["irb"]
    Case.objects.filter(pk=desk.row.pk).update(state="closed")
    assert html.count(">unused<") < page_of(ann.get("/agreements/")).count(">unused<"), (
        "a study that is over needs none"
    )


def test_a_registry_that_was_edited_is_said_to_count_for_nothing(console: Console) -> None:
    desk = console.desk
    desk.agree()
    file = desk.site.home.registry
    file.write_bytes(file.read_bytes().replace(b"Storage Provider", b"Storage Prowider"))
    for path in ("/agreements/", "/agreements/id/baa-storage/"):
        assert "no agreement counts at present" in page_of(console.client("ann").get(path))
    log = desk.site.home.audit
    kept = log.read_bytes()
    try:
        log.write_bytes(kept.replace(b"agreement_entered", b"agreement_extered"))
        assert "no agreement counts at present" in page_of(console.client("ann").get("/agreements/"))
    finally:
        log.write_bytes(kept)
    file.write_bytes(b"{}")
    for path in ("/agreements/", "/agreements/new/baa/", "/agreements/id/irb/"):
        assert "not a registry" in page_of(console.client("ann").get(path), 500)


def test_a_preview_names_features_that_nothing_here_knows(console: Console) -> None:
    html = page_of(console.client("ann").post("/agreements/new/irb/", {**IRB, "other_features": "hart_rate"}))
    assert "check how they are written: hart_rate" in html


def test_toml_is_previewed_and_not_lost(console: Console) -> None:
    ann = console.client("ann")
    console.desk.agree()
    good = (console.desk.site.home.root / "agreements.toml").read_text()
    bad = good.replace('kind = "irb"', 'kind = "promise"')
    for step in ("preview", "enter"):
        html = page_of(ann.post("/agreements/enter/", {"text": bad, "step": step}), 409)
        assert "entry 3 (irb): kind" in html
        assert 'kind = "promise"' in html
    assert 'kind = "irb' in page_of(ann.post("/agreements/enter/", {"text": good + "#" * 60_000}), 400)
    assert "there is nothing to enter" in page_of(ann.post("/agreements/enter/", {"text": good, "step": "preview"}))
    wider = good.replace('services = ["transport"]', 'services = ["transport", "aggregation"]')
    html = page_of(ann.post("/agreements/enter/", {"text": wider, "step": "preview"}))
    assert "<ins>aggregation</ins>" in html
    assert registry(console).latest("baa-storage").version == 1
    assert "[[agreement]]" in page_of(ann.post("/agreements/enter/", {"text": wider, "step": "change"}))
    assert ann.post("/agreements/enter/", {"text": wider, "step": "enter"}).status_code == 302
    assert registry(console).latest("baa-storage").version == 2


def test_a_party_is_chosen_as_a_file_or_pasted_and_a_fault_keeps_what_was_pasted(console: Console) -> None:
    ann, entry = console.client("ann"), stranger()
    text = entry.model_dump_json()
    path = "/roster/propose/"
    assert "Choose the file" in page_of(ann.post(path, {}), 400)
    wrong = text.replace('"hospital"', '"clinic"')
    for sent_as in ({"entry": wrong}, {"entry_file": SimpleUploadedFile("e.json", wrong.encode())}):
        html = page_of(ann.post(path, sent_as), 409)
        assert '"clinic"' in html
        assert "role: Input should be" in error_at(html, "entry")
    for content, words in ((b"\xff\xfe", "not UTF-8"), (b"x" * (uploads.MOST_TEXT + 1), "more than 64 KiB")):
        assert words in page_of(ann.post(path, {"entry_file": SimpleUploadedFile("e.json", content)}), 400)
    assert "not the text of a party" in page_of(ann.post(path, {"entry": "[" * 9000}), 409)
    assert not PartyProposal.objects.exists()
    assert ann.post(path, {"entry_file": SimpleUploadedFile("e.json", text.encode())}).status_code == 302
    assert PartyProposal.objects.get().email == entry.email


def test_what_is_typed_to_pin_or_revoke_is_there_after_an_error(console: Console) -> None:
    ann, bob, entry = console.client("ann"), console.client("bob"), stranger()
    ann.post("/roster/propose/", {"entry": entry.model_dump_json()})
    path = f"/roster/{PartyProposal.objects.get().pk}/"
    pin = {"action": "pin", "fingerprint": "0123 4567", "password": PASSWORD}
    html = page_of(bob.post(path, pin), 409)
    assert 'value="0123 4567"' in html
    assert "that is not the fingerprint of this entry" in html
    assert entry.fingerprint not in html
    html = page_of(bob.post(path, {**pin, "password": "a guess"}), 403)
    assert 'value="0123 4567"' in html
    assert "a guess" not in html
    assert PASSWORD not in html
    other = next(e for e in Roster.load(console.desk.site.home.roster).entries if e.role == "researcher")
    revoke = {"email": other.email, "reason": "their office was burgled", "password": "a guess"}
    html = page_of(ann.post("/roster/revoke/", revoke), 403)
    assert "their office was burgled" in html
    assert "What you typed" not in html.replace("What you typed is still here", "")
    nobody = {**revoke, "email": "nobody@example.org", "password": PASSWORD}
    html = page_of(ann.post("/roster/revoke/", nobody), 409)
    assert "their office was burgled" in html, "though the party has no form on the page"
    assert Roster.load(console.desk.site.home.roster).get(other.email) == other


@pytest.mark.waits
def test_a_request_that_is_too_large_is_refused_before_it_is_read(console: Console) -> None:
    """It would be spooled to the disk otherwise, whoever sends it."""

    def answer(headers: dict[str, str], path: str) -> int:
        there = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
        there.putrequest("POST", path)
        for name, value in headers.items():
            there.putheader(name, value)
        there.endheaders()
        with closing(there), there.getresponse() as response:
            return response.status

    with serving(ConsoleSettings(port=0)) as started:
        address = urlsplit(started)
        assert answer({"Content-Length": str(uploads.MOST_REQUEST + 1)}, "/login/") == 413
        assert answer({"Content-Length": str(uploads.MOST_WITH_DOCUMENT + 1)}, "/agreements/confirm/") == 413
        assert answer({"Transfer-Encoding": "chunked"}, "/login/") == 411
        assert answer({"Content-Length": "0"}, "/login/") == 403
