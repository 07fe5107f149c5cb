"""Invitations, second factors and what happened since the last visit, as people and attackers meet them."""

from __future__ import annotations

import logging
from html import unescape
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from django_otp.plugins.otp_totp.models import TOTPDevice

from datasites.hospital.people.accounts import WrongPassword, identify
from datasites.study.audit_chain import records
from tests.hospital.codes import code_of, enrolled, later
from tests.hospital.console.conftest import Console
from tests.hospital.console.links import link_of, twice
from tests.hospital.desk import PASSWORD

FAY = {"name": "fay", "email": "fay@cleveland.example.org", "role": "steward", "password": PASSWORD}
LOGIN = {"username": "ann", "password": PASSWORD}
OWN = "chosen by fay alone"


def text(response: Any) -> str:
    return unescape(response.content.decode())


def signed_in(console: Console, name: str, password: str = PASSWORD, **fields: str) -> Client:
    client = console.client()
    assert client.post("/login/", {"username": name, "password": password, **fields}).status_code == 302
    return client


# -- invitations -------------------------------------------------------------------------------------------------------


def test_an_admin_hands_over_a_link_and_never_learns_the_password(
    console: Console, caplog: pytest.LogCaptureFixture
) -> None:
    eva = console.client("eva")
    with caplog.at_level(logging.DEBUG):
        shown = eva.post("/people/add/", FAY)
        link = link_of(shown)
        address, _, code = link.partition("#")
        fay = console.client()
        assert fay.get("/invitation/").status_code == 200
        filled = fay.get("/invitation/code/", headers={"HX-Request": "true", "HX-Current-URL": link})
        assert fay.post("/invitation/", {"code": code, **twice(OWN)}).headers["Location"] == "/login/"
    assert address == "http://localhost/invitation/"
    assert shown.headers["Cache-Control"] == "no-store"
    assert code in text(filled)
    assert "You are fay, data steward" in text(filled)
    assert identify("fay", OWN).role == "steward"
    # Once: neither the page of people nor any log, nor the session of the admin, tells it again.
    kept = [text(eva.get("/people/")), caplog.text, console.desk.site.home.audit.read_text(), str(dict(eva.session))]
    assert not [words for words in kept if code in words or OWN in words]
    by = [(r.kind, r.fields["by"]) for r in records(console.desk.site.home.audit) if r.kind == "invited"]
    assert by[-1] == ("invited", "eva")


def test_to_open_a_link_uses_nothing_and_strangers_learn_nothing(console: Console) -> None:
    link = link_of(console.client("eva").post("/people/add/", FAY))
    for _ in range(3):
        console.client().get("/invitation/code/", headers={"HX-Current-URL": link})
        console.client().head("/invitation/")
    for guess in ("", "#", "x" * 2000, "http://localhost/invitation/#\x00<script>", link[:-1], link.partition("#")[0]):
        answer = console.client().get("/invitation/code/", headers={"HX-Current-URL": guess.replace("\x00", "")})
        assert answer.status_code == 200
        assert "fay" not in text(answer)
        assert "<script>" not in answer.content.decode()
        refused = console.client().post("/invitation/", {"code": guess, **twice(OWN)})
        assert refused.status_code in (400, 409), guess
    with pytest.raises(WrongPassword):
        identify("fay", OWN)
    assert console.client().post("/invitation/", {"code": link, **twice(OWN)}).status_code == 302
    again = console.client().post("/invitation/", {"code": link, **twice("another one that is long")})
    assert (again.status_code, "it was used" in text(again)) == (409, True)
    assert identify("fay", OWN)


def test_a_weak_password_is_refused_with_its_reasons_and_the_link_stays_good(console: Console) -> None:
    link = link_of(console.client("eva").post("/people/add/", FAY))
    weak = console.client().post("/invitation/", {"code": link, **twice("passwordpassword")})
    assert weak.status_code == 409
    assert "too easy to guess. Repeats like" in text(weak)
    assert "Avoid repeated words" in text(weak)
    assert "passwordpassword" not in text(weak)
    assert link in text(weak), "what was typed into the other field is kept"
    differ = console.client().post("/invitation/", {"code": link, "new_password": OWN, "again": "another"})
    assert (differ.status_code, "differ" in text(differ)) == (400, True)
    assert console.client().post("/invitation/", {"code": link, **twice(OWN)}).status_code == 302


def test_a_forgotten_password_is_set_anew_by_a_link_that_ends_sessions(console: Console) -> None:
    eva, ann = console.client("eva"), signed_in(console, "ann")
    first = link_of(eva.post("/people/invite/", {"name": "ann", "password": PASSWORD}))
    second = link_of(eva.post("/people/invite/", {"name": "ann", "password": PASSWORD}))
    assert eva.post("/people/invite/", {"name": "ann", "password": "a guess"}).status_code == 403
    assert ann.get("/cases/").status_code == 200
    assert console.client().post("/invitation/", {"code": first, **twice(OWN)}).status_code == 409
    assert console.client().post("/invitation/", {"code": second, **twice(OWN)}).status_code == 302
    assert ann.get("/cases/").status_code == 302, "somebody else might have sat there"
    home = text(signed_in(console, "ann", OWN).get("/"))
    assert "eva issued a link by which your password can be set anew" in home
    assert "ann set your password by a link" in home


# -- second factor -----------------------------------------------------------------------------------------------------


def test_a_second_factor_is_set_up_and_asked_for_at_sign_in(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, elsewhere = signed_in(console, "ann"), signed_in(console, "ann")
    assert ann.post("/second-factor/", {"password": "a guess"}).status_code == 400
    shown = ann.post("/second-factor/", {"password": PASSWORD})
    secret = text(shown)
    assert "<svg" in shown.content.decode()
    assert "otpauth://totp/Cleveland" in secret
    wrong = ann.post("/second-factor/confirm/", {"code": "000000"})
    assert (wrong.status_code, "otpauth://" in text(wrong)) == (400, True)
    later(monkeypatch, 30)
    code = code_of("ann", confirmed=False)
    assert ann.post("/second-factor/confirm/", {"code": code}).status_code == 302
    assert ann.get("/cases/").status_code == 200
    assert elsewhere.get("/cases/").headers["Location"].startswith("/login/"), "begun without a code"
    assert "otpauth" not in text(ann.get("/second-factor/"))
    later(monkeypatch, 60)
    for fields in ({}, {"code": "000000"}, {"code": code}):
        refused = console.client().post("/login/", {**LOGIN, **fields})
        assert "Name, password or code is wrong" in text(refused), fields
    later(monkeypatch, 120)
    again = signed_in(console, "ann", code=code_of("ann"))
    assert again.get("/cases/").status_code == 200
    used = console.client().post("/login/", {**LOGIN, "code": code_of("ann")})
    assert "Name, password or code is wrong" in text(used)
    # A decision asks for the password only: the session began with a code.
    assert console.decide(again, "reject", message="not here").status_code == 302


def test_guessing_at_codes_is_locked_out_and_counted(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    enrolled(console.desk.site, console.desk.login("ann"))
    guesser = console.client()
    answers = [guesser.post("/login/", {**LOGIN, "code": f"00000{n}"}).status_code for n in range(6)]
    assert answers[-1] == 429
    later(monkeypatch, 300)
    assert guesser.post("/login/", {**LOGIN, "code": code_of("ann")}).status_code == 429
    kinds = [record.kind for record in records(console.desk.site.home.audit) if record.fields.get("person") == "ann"]
    assert {"sign_in_failed", "locked_out"} <= set(kinds)


def test_a_code_is_kept_nowhere(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    from axes.models import AccessAttempt

    enrolled(console.desk.site, console.desk.login("ann"))
    with caplog.at_level("DEBUG", logger="datasites"):
        console.client().post("/login/", {**LOGIN, "code": "271828"})
    kept = " ".join(f"{a.get_data} {a.post_data}" for a in AccessAttempt.objects.all())
    assert "code" in kept
    assert "271828" not in kept + caplog.text + console.desk.site.home.audit.read_text()


def test_one_is_replaced_only_with_its_code_and_taken_off_only_by_another(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrolled(console.desk.site, console.desk.login("ann"))
    enrolled(console.desk.site, console.desk.login("eva"))
    later(monkeypatch, 60)
    ann = signed_in(console, "ann", code=code_of("ann"))
    eva = signed_in(console, "eva", code=code_of("eva"))
    later(monkeypatch, 120)
    for code in ("", "000000"):
        refused = ann.post("/second-factor/", {"password": PASSWORD, "code": code})
        assert (refused.status_code, "otpauth" in text(refused)) == (400, False)
    later(monkeypatch, 180)
    assert "otpauth" in text(ann.post("/second-factor/", {"password": PASSWORD, "code": code_of("ann")}))
    assert ann.post("/people/second-factor/", {"name": "ann", "password": PASSWORD}).status_code == 403
    assert eva.post("/people/second-factor/", {"name": "eva", "password": PASSWORD}).status_code == 403
    assert eva.post("/people/second-factor/", {"name": "ann", "password": "a guess"}).status_code == 403
    assert TOTPDevice.objects.filter(user__username="ann", confirmed=True).exists()
    assert eva.post("/people/second-factor/", {"name": "ann", "password": PASSWORD}).status_code == 302
    log = [record.fields for record in records(console.desk.site.home.audit) if record.kind == "second_factor_reset"]
    assert log == [{"person": "ann", "by": "eva"}]


def test_who_lost_theirs_reads_who_took_it_off(console: Console) -> None:
    signed_in(console, "ann")
    enrolled(console.desk.site, console.desk.login("ann"))
    off = {"name": "ann", "password": PASSWORD}
    assert console.client("eva").post("/people/second-factor/", off).status_code == 302
    home = text(signed_in(console, "ann").get("/"))
    assert "eva took off your second factor" in home
    assert "ann set up your second factor" in home


def test_where_it_is_demanded_nothing_else_is_open_before(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    home = settings.DATASITE
    demanding = home.settings.console.model_copy(update={"second_factor": "required"})
    changed = type(home)(home.root, home.settings.model_copy(update={"console": demanding}))
    monkeypatch.setattr(settings, "DATASITE", changed)
    ann = signed_in(console, "ann")
    for path in ("/", "/cases/", f"/cases/{console.number}/", "/audit/", "/password/"):
        assert ann.get(path).headers["Location"] == "/second-factor/", path
    assert ann.post("/studies/kill/", {"action": "kill", "sure": "on", "reason": "x"}).status_code == 302
    console.desk.nothing_happened()
    assert not (console.desk.site.home.root / "KILLED").exists()
    assert "demands a second factor" in text(ann.get("/second-factor/"))
    assert ann.post("/second-factor/", {"password": PASSWORD}).status_code == 200
    code = code_of("ann", confirmed=False)
    assert ann.post("/second-factor/confirm/", {"code": code}).status_code == 302
    assert ann.get("/cases/").status_code == 200
    assert ann.post("/logout/").status_code == 302


# -- since the last visit ----------------------------------------------------------------------------------------------


def test_home_says_what_happened_since_the_last_visit(console: Console) -> None:
    console.desk.agree()
    assert "This is your first visit" in text(signed_in(console, "ann").get("/"))
    guesser = console.client()
    for number in range(6):
        guesser.post("/login/", {"username": "ann", "password": f"guess {number}"}, REMOTE_ADDR="10.0.0.9")
    console.decide(signed_in(console, "ann"), password="a guess")
    console.desk.approve("bob")
    console.desk.site.audit.append("refused", reason="<script>alert(1)</script>")
    home = text(signed_in(console, "ann").get("/"))
    for words in (
        f"bob approved case {console.number}",
        f'href="/cases/{console.number}/"',
        "<dt>Failed sign-ins</dt><dd>0",  # before the last but one
        "<dt>Failed confirmations</dt><dd>1</dd>",
        "If some of this was not you",
    ):
        assert words in home, words
    dee = text(signed_in(console, "dee").get("/"))
    assert "first visit" in dee
    home = text(signed_in(console, "ann").get("/"))
    assert "<dt>Failed confirmations</dt><dd>0</dd>" in home
    assert "What people decided</h3>\n<p>Nothing.</p>" in home


def test_home_counts_failures_and_lock_outs_of_this_person_alone(console: Console) -> None:
    signed_in(console, "ann")
    guesser = console.client()
    for name in ("ann", "bob", "nobody"):
        for number in range(6):
            guesser.post("/login/", {"username": name, "password": f"guess {number}"}, REMOTE_ADDR="10.0.0.9")
    home = text(signed_in(console, "ann").get("/"))
    assert "<dt>Failed sign-ins</dt><dd>6 with a wrong password or code</dd>" in home
    assert "<dt>Lock-outs</dt><dd>2</dd>" in home


def test_home_of_an_admin_shows_no_case_and_a_long_log_is_read_in_part(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed_in(console, "eva")
    console.desk.agree()
    console.desk.approve("bob")
    link_of(console.client("eva").post("/people/add/", FAY))
    home = text(signed_in(console, "eva").get("/"))
    assert "eva entered fay" in home
    assert "/cases/" not in home
    monkeypatch.setattr("datasites.hospital.people.visits.MOST", 1)
    assert "more records since then than are read here" in text(signed_in(console, "eva").get("/"))
