"""Attacks on the console: scripts in what strangers write, stolen and fixed sessions, guessing, replay, and races."""

from __future__ import annotations

import datetime
import threading
import unicodedata
from typing import Any

import pytest
from axes.models import AccessAttempt
from django.conf import settings
from django.utils import timezone

from datasites.hospital.budget import ledger
from datasites.hospital.cases import compliance, review, views
from datasites.hospital.cases.case import OpenCase, open_case
from datasites.hospital.config import Home
from datasites.hospital.console.views import cases
from datasites.hospital.models import Case, PartyProposal, Review
from datasites.hospital.people import sign_ins
from datasites.hospital.people.accounts import Actor
from datasites.hospital.people.agreements import terminate_agreement
from datasites.study.audit_chain import records
from datasites.study.roster import Roster
from policies.engine import Decision, Engine
from policies.facts import Facts
from tests.hospital.console.conftest import Console
from tests.hospital.console.links import link_of, twice
from tests.hospital.desk import PASSWORD
from tests.study.entries import stranger

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'\u202e\u009b\u200b"
LOGIN = {"username": "ann", "password": PASSWORD}


def clean(response: Any) -> None:
    assert response.status_code == 200
    html = response.content.decode()
    assert "<script>alert" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html
    assert not [c for c in html if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") and c not in "\n\t"]
    assert "\u27e6U+202E\u27e7" in html


def test_what_strangers_write_is_shown_as_text(console: Console) -> None:
    desk = console.desk
    finding = {"line": 1, "column": 0, "rule": EVIL, "reason": EVIL, "remedy": EVIL}
    readiness = [{**report, "reason": EVIL, "ready": False} for report in desk.row.readiness]
    Case.objects.filter(pk=desk.row.pk).update(
        study_name=EVIL[:64], job_name=EVIL, note=EVIL, submitted_by=EVIL, findings=[finding], readiness=readiness,
        rehearsal={"outcome": "failed", "reason": EVIL},
    )  # fmt: skip
    review.reject(desk.site, desk.row.pk, desk.login("bob"), EVIL, message=EVIL)
    desk.site.audit.append("refused", reason=EVIL, job=EVIL)
    client = console.client("ann")
    for path in (
        "/cases/",
        f"/cases/{console.number}/",
        "/audit/",
        "/audit/?contains=%3Cscript%3Ealert(1)%3C/script%3E",
    ):
        clean(client.get(path))
    Case.objects.filter(pk=desk.row.pk).update(state="running")
    for path in ("/studies/", f"/studies/{console.number}/"):
        clean(client.get(path))


def test_code_can_not_break_out_of_its_line() -> None:
    from datasites.hospital.console.code import code_lines, diff_lines

    source = f"x = 1\n# {EVIL}\ny = '''{EVIL}\n{EVIL}'''\nz = '\u202e\u200bevil'\r\n"
    lines = code_lines("model.py", source)
    assert len(lines) == source.count("\n")
    joined = "".join(line.html for line in lines)
    assert "<script" not in joined
    assert "<img" not in joined
    assert all(line.html.count("<span") == line.html.count("</span>") for line in lines)
    assert "\u202e" not in joined
    assert "U+202E" in joined
    assert "U+200B" in joined
    assert [line.text for line in diff_lines("a\nb\n", "a\n\u202eb\n") if line.kind == "add"] == ["\u27e6U+202E\u27e7b"]


def test_lines_that_are_all_alike_are_not_compared_for_long() -> None:
    from datasites.hospital.console.code import diff_lines

    old, new = "a\n" + "\n" * 4000, "b\n" + "\n" * 4001
    first, *lines = diff_lines(old, new)
    assert (first.kind, "the rest is shown whole" in first.text) == ("gap", True)
    for kind, text in (("del", old), ("add", new)):
        assert [line.text for line in lines if line.kind == kind] == text.split("\n")
    assert diff_lines(new, new) == ()


@pytest.mark.parametrize(
    "target", ["https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:alert(1)"]
)
def test_signing_in_leads_nowhere_else(console: Console, target: str) -> None:
    response = console.client().post("/login/", {**LOGIN, "next": target})
    assert response.status_code == 302
    assert response.headers["Location"] == "/"


def test_signing_in_gives_the_session_a_new_key(console: Console) -> None:
    client = console.client()
    session = client.session
    session["fixed"] = "by an attacker"
    session.save()
    client.cookies[settings.SESSION_COOKIE_NAME] = session.session_key
    assert client.post("/login/", LOGIN).status_code == 302
    assert client.cookies[settings.SESSION_COOKIE_NAME].value != session.session_key
    stolen = console.client()
    stolen.cookies[settings.SESSION_COOKIE_NAME] = session.session_key
    assert stolen.get("/cases/").status_code == 302
    cookie = client.cookies[settings.SESSION_COOKIE_NAME]
    assert cookie["httponly"]
    assert cookie["samesite"] == "Lax"


def test_a_changed_password_ends_other_sessions(console: Console) -> None:
    here, there = console.client("ann"), console.client("ann")
    new = "another long passphrase"
    changed = here.post("/password/", {"password": PASSWORD, "new_password": new, "again": new})
    assert changed.status_code == 302
    assert here.get("/cases/").status_code == 200
    assert there.get("/cases/").status_code == 302


def test_a_password_longer_than_any_is_not_hashed(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django.contrib.auth.forms.authenticate", lambda *_, **__: pytest.fail("it was looked at"))
    answer = console.client().post("/login/", {"username": "ann", "password": "x" * 257})
    assert answer.status_code == 200
    assert "at most 256 characters" in answer.content.decode()


def test_guessing_at_sign_in_is_locked_out_and_others_are_not(console: Console) -> None:
    guesser = console.client()
    answers = [guesser.post("/login/", {"username": "ann", "password": f"guess {i}"}).status_code for i in range(6)]
    assert answers[0] == 200
    assert answers[-1] == 429
    assert guesser.post("/login/", LOGIN).status_code == 429
    elsewhere = console.client()
    assert elsewhere.post("/login/", LOGIN, REMOTE_ADDR="10.0.0.9").status_code == 302
    assert console.client().post("/login/", {**LOGIN, "username": "bob"}).status_code == 302


def told_of_signing_in(console: Console) -> list[tuple[str, str, int]]:
    kinds = ("signed_in", "signed_out", "sign_in_failed", "confirmation_failed", "locked_out")
    log = [r for r in records(console.desk.site.home.audit) if r.kind in kinds]
    return [(r.kind, str(r.fields["person"]), int(str(r.fields.get("times", 1)))) for r in log]


def test_failures_to_sign_in_and_lock_outs_are_counted_in_the_log_and_a_flood_does_not_fill_it(
    console: Console,
) -> None:
    begins = len(told_of_signing_in(console))
    guesser, ann = console.client(), console.client()
    for name in ("ann", "nobody", "somebody-else"):
        for number in range(8):
            guesser.post("/login/", {"username": name, "password": f"guess {number}"})
    told = told_of_signing_in(console)[begins:]
    assert sorted(told) == sorted(
        [("sign_in_failed", "ann", 1), ("locked_out", "ann", 1), ("sign_in_failed", "", 1), ("locked_out", "", 1)]
    )
    assert ann.post("/login/", LOGIN, REMOTE_ADDR="10.0.0.9").status_code == 302
    assert ann.post("/logout/").status_code == 302
    rest = told_of_signing_in(console)[begins + 4 :]
    assert rest[-2:] == [("signed_in", "ann", 1), ("signed_out", "ann", 1)]
    assert sorted(rest[:-2]) == sorted(
        [("sign_in_failed", "ann", 7), ("locked_out", "ann", 3), ("sign_in_failed", "", 15), ("locked_out", "", 7)]
    )


def test_a_password_that_was_typed_for_a_name_is_kept_nowhere(
    console: Console, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in the database nor in a log, and guessing at it is locked out like any other."""
    typed, guesser = "a passphrase in haste", console.client()
    with caplog.at_level("DEBUG"):
        answers = [guesser.post("/login/", {"username": typed, "password": "x"}).status_code for _ in range(6)]
    assert answers[-1] == 429
    assert AccessAttempt.objects.filter(username__startswith="nobody-").exists()
    kept = [str(row) for row in AccessAttempt.objects.values()]
    assert not [words for words in (*kept, caplog.text, console.desk.site.home.audit.read_text()) if typed in words]


def test_failing_to_confirm_a_decision_is_in_the_log(console: Console) -> None:
    begins = len(told_of_signing_in(console))
    assert console.decide(console.client("ann"), password="a guess").status_code == 403
    assert told_of_signing_in(console)[begins:] == [("confirmation_failed", "ann", 1)]


def test_failures_an_hour_apart_are_two_records_whatever_the_clock_did(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, now = console.desk.site, timezone.now()
    begins = len(told_of_signing_in(console))
    for hours in (0, 0.5, 1.5, -3):
        monkeypatch.setattr(timezone, "now", lambda hours=hours: now + datetime.timedelta(hours=hours))
        sign_ins.failed(site, "sign_in_failed", "ann")
    assert [times for _, _, times in told_of_signing_in(console)[begins:]] == [1, 2, 1]


def test_guessing_at_the_second_question_is_locked_out_too(console: Console) -> None:
    console.desk.agree()
    client = console.client("ann")
    answers = [console.decide(client, password=f"guess {i}").status_code for i in range(5)]
    assert answers[0] == 403
    assert console.decide(client).status_code == 429
    console.desk.nothing_happened()
    assert not Review.objects.exists()


def test_no_password_is_kept_from_a_failed_attempt(console: Console) -> None:
    from axes.models import AccessAttempt

    client = console.client("ann")
    secret = "a password that is very secret"
    client.post("/password/", {"password": secret, "new_password": secret, "again": secret})
    console.client().post("/login/", {"username": "ann", "password": secret})
    kept = " ".join(f"{a.get_data} {a.post_data}" for a in AccessAttempt.objects.all())
    assert "password" in kept
    assert secret not in kept


def test_two_people_approve(console: Console) -> None:
    console.desk.agree()
    assert console.decide(console.client("ann")).status_code == 302
    assert console.decide(console.client("bob")).status_code == 302
    console.desk.row.refresh_from_db()
    assert console.desk.row.state == Case.State.APPROVED


def test_a_page_that_is_out_of_date_decides_nothing(console: Console) -> None:
    """Another review, another agreement, another hash: each is 409, and the answer is the page as it is now."""
    console.desk.agree()
    bob = console.client("bob")
    shown = console.seen(bob)
    values = {**shown, "verdict": "approve", "reason": "read it", "password": PASSWORD}
    path = f"/cases/{console.number}/decide/"
    assert console.decide(console.client("ann")).status_code == 302
    assert bob.post(path, values).status_code == 409
    assert Review.objects.count() == 1
    values |= console.seen(bob)
    console.client("ann").post("/agreements/terminate/", {"id": "baa-storage", "password": PASSWORD})
    assert bob.post(path, values).status_code == 409
    console.desk.nothing_happened()


def test_what_changed_on_the_page_decides_nothing_though_the_policies_would_allow_it(console: Console) -> None:
    console.desk.agree()
    ann = console.client("ann")
    values = {**console.seen(ann), "verdict": "approve", "reason": "read it", "password": PASSWORD}
    console.desk.agree(expires="2098-12-31")
    answer = ann.post(f"/cases/{console.number}/decide/", values)
    assert answer.status_code == 409
    assert "Something changed since you opened this page" in answer.content.decode()
    assert "<strong>allow</strong>" in answer.content.decode()
    console.desk.nothing_happened()
    assert console.decide(ann).status_code == 302


def test_a_page_of_another_day_decides_nothing(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agreements come into force and end by the date alone: what the policies said there may be so no longer."""
    console.desk.agree()
    ann = console.client("ann")
    with monkeypatch.context() as patch:
        patch.setattr(compliance, "today", lambda: datetime.date(2025, 12, 31))
        values = {**console.seen(ann), "verdict": "approve", "reason": "read it", "password": PASSWORD}
    answer = ann.post(f"/cases/{console.number}/decide/", values)
    assert answer.status_code == 409
    assert "Something changed since you opened this page" in answer.content.decode()
    console.desk.nothing_happened()
    assert console.decide(ann).status_code == 302


def test_the_policies_are_evaluated_once_at_the_moment_of_an_approval(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    console.desk.agree()
    clients = {name: console.client(name) for name in ("ann", "bob")}
    asked: list[str] = []
    decide, entered = Engine.decide, cases.confirmed

    def counted(engine: Engine, facts: Facts) -> Decision:
        asked.append(facts.action)
        return decide(engine, facts)

    def changed_meanwhile(request: Any) -> Actor:
        desk = console.desk
        terminate_agreement(desk.site, desk.login("ann"), "baa-storage")
        return entered(request)

    monkeypatch.setattr(Engine, "decide", counted)
    shown = console.seen(clients["ann"])
    assert asked == ["approve"]
    values = {**shown, "verdict": "approve", "reason": "read it", "password": PASSWORD}
    path = f"/cases/{console.number}/decide/"
    assert clients["ann"].post(path, values).status_code == 302
    assert asked == ["approve", "approve"], "for the page, and for the act"
    values |= console.seen(clients["bob"])
    # Between the look at what the page had shown and the act.
    monkeypatch.setattr(cases, "confirmed", changed_meanwhile)
    assert clients["bob"].post(path, values).status_code == 409
    assert asked[2:4] == ["approve", "approve"]
    console.desk.nothing_happened()


def test_an_approval_opens_the_case_once(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    console.desk.agree()
    ann = console.client("ann")
    values = {**console.seen(ann), "verdict": "approve", "reason": "read it", "password": PASSWORD}
    opened: list[int] = []

    def counted(home: Home, row: Case) -> OpenCase:
        opened.append(row.pk)
        return open_case(home, row)

    for room in (views, review):
        monkeypatch.setattr(room, "open_case", counted)
    assert ann.post(f"/cases/{console.number}/decide/", values).status_code == 302
    assert opened == [console.number]


def test_a_replayed_approval_and_a_foreign_hash_are_refused(console: Console) -> None:
    console.desk.agree()
    ann = console.client("ann")
    values = {**console.seen(ann), "verdict": "approve", "reason": "read it", "password": PASSWORD}
    path = f"/cases/{console.number}/decide/"
    assert ann.post(path, {**values, "hash": "0" * 64}).status_code == 409
    assert ann.post(path, values).status_code == 302
    assert ann.post(path, values).status_code == 409
    assert not console.seen(ann), "who has decided is shown no form"
    as_bob_sees_it = {**values, **console.seen(console.client("bob"))}
    assert ann.post(path, as_bob_sees_it).status_code == 409, "one person twice"
    assert Review.objects.count() == 1
    console.desk.nothing_happened()


def test_one_who_submitted_can_not_approve_under_another_form(console: Console) -> None:
    """A console session of an auditor, an admin, or nobody never decides, whatever it posts."""
    console.desk.agree()
    shown = console.seen(console.client("ann"))
    values = {**shown, "verdict": "approve", "reason": "x", "password": PASSWORD, "role": "steward", "person": "ann"}
    for name in ("dee", "eva", ""):
        assert console.client(name).post(f"/cases/{console.number}/decide/", values).status_code in (302, 403)
    assert not Review.objects.exists()


@pytest.mark.waits
def test_a_race_of_two_stewards_never_stands_in_for_a_privacy_officer(console: Console) -> None:
    """Both stewards press the button at the same moment: nothing is approved, reserved or half made."""
    from django.db import connection

    console.desk.agree()
    clients = {name: console.client(name) for name in ("ann", "cyd")}
    forms = {
        name: {**console.seen(client), "verdict": "approve", "reason": "x", "password": PASSWORD}
        for name, client in clients.items()
    }
    answers: list[int] = []

    def press(name: str) -> None:
        answers.append(clients[name].post(f"/cases/{console.number}/decide/", forms[name]).status_code)
        connection.close()

    threads = [threading.Thread(target=press, args=(name,)) for name in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [302, 409]
    assert Review.objects.count() == 1
    assert set(Review.objects.values_list("role", flat=True)) == {"steward"}
    console.desk.nothing_happened()


@pytest.mark.parametrize(
    "path", ["/cases/../../keys/", "/budget/..%2f..%2fkeys/", "/static/../datasite.toml", "/datasets/%2e%2e/"]
)
def test_no_path_leads_out(console: Console, path: str) -> None:
    assert console.client("ann").get(path).status_code in (400, 404)


def test_numbers_of_other_hospitals_or_none_are_not_found(console: Console) -> None:
    client = console.client("ann")
    for number in (0, console.number + 1, 10**30):
        assert client.get(f"/cases/{number}/").status_code == 404
        assert client.get(f"/studies/{number}/").status_code == 404
    assert client.get("/budget/other/").status_code == 404


def test_a_party_is_pinned_by_a_second_person_who_names_its_fingerprint(console: Console) -> None:
    roster, entry = console.desk.site.home.roster, stranger()
    kept = roster.read_bytes()
    try:
        ann, bob = console.client("ann"), console.client("bob")
        assert ann.post("/roster/propose/", {"entry": entry.model_dump_json()}).status_code == 302
        number = PartyProposal.objects.get().pk
        assert entry.fingerprint not in bob.get("/roster/").content.decode()
        pin = {"action": "pin", "fingerprint": entry.fingerprint, "password": PASSWORD}
        assert ann.post(f"/roster/{number}/", pin).status_code == 409
        assert bob.post(f"/roster/{number}/", {**pin, "fingerprint": "0" * 40}).status_code == 409
        assert bob.post(f"/roster/{number}/", {**pin, "password": "guess"}).status_code == 403
        assert Roster.load(roster) == Roster.parse(kept)
        assert bob.post(f"/roster/{number}/", pin).status_code == 302
        assert Roster.load(roster).get(entry.email) == entry
        assert bob.post(f"/roster/{number}/", pin).status_code == 409
        revoke = {"email": entry.email, "reason": "over", "password": PASSWORD}
        assert ann.post("/roster/revoke/", revoke).status_code == 302
        assert Roster.load(roster).entries == Roster.parse(kept).entries
        # A stolen key is never taken again, whoever enters it.
        assert entry.public_key in Roster.load(roster).revoked
        assert ann.post("/roster/propose/", {"entry": entry.model_dump_json()}).status_code == 409
    finally:
        roster.write_bytes(kept)


def test_agreements_need_two_people_here_too(console: Console) -> None:
    console.desk.agree()
    text = (console.desk.site.home.root / "agreements.toml").read_text().replace("2099-12-31", "2098-12-31")
    ann, bob = console.client("ann"), console.client("bob")
    assert ann.post("/agreements/enter/", {"text": text}).status_code == 302
    confirm = {"id": "baa-storage", "version": 2, "password": PASSWORD}
    assert ann.post("/agreements/confirm/", confirm).status_code == 409
    assert bob.post("/agreements/confirm/", {**confirm, "version": 1}).status_code == 409
    assert bob.post("/agreements/confirm/", confirm).status_code == 302
    assert ann.post("/agreements/enter/", {"text": "[[agreement]]\nid = 1"}).status_code == 409


def test_pause_resume_revoke_and_kill_from_the_console(console: Console) -> None:
    from datasites.hospital.cases import compliance

    desk = console.desk
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")
    ann = console.client("ann")
    path = f"/studies/{console.number}/move/"
    assert ann.post(path, {"action": "pause", "reason": "question"}).status_code == 302
    assert ann.post(path, {"action": "resume", "reason": "answered"}).status_code == 403
    assert ann.post(path, {"action": "resume", "reason": "answered", "password": PASSWORD}).status_code == 302
    eva = console.client("eva")
    unsure = eva.post("/studies/kill/", {"action": "kill", "reason": "incident"})
    assert (unsure.status_code, b"Tick this box first" in unsure.content) == (400, True)
    assert not compliance.is_killed(desk.site.home)
    assert "killed" not in {record.kind for record in records(desk.site.home.audit)}
    try:
        assert eva.post("/studies/kill/", {"action": "kill", "sure": "on", "reason": "incident"}).status_code == 302
        assert compliance.is_killed(desk.site.home)
        assert b"kill switch is on" in ann.get("/cases/").content
        off = {"action": "unkill", "reason": "over", "password": PASSWORD}
        assert eva.post("/studies/kill/", off).status_code == 409
        assert ann.post("/studies/kill/", off).status_code == 302
        assert not compliance.is_killed(desk.site.home)
    finally:
        (desk.site.home.root / "KILLED").unlink(missing_ok=True)
    assert ann.post(path, {"action": "revoke", "reason": "withdrawn", "password": PASSWORD}).status_code == 302
    assert ledger.state(desk.site.home.dataset("heart"))[0].committed == 0


def test_an_admin_enters_people_and_shuts_them_out(console: Console) -> None:
    eva, chosen = console.client("eva"), "chosen by fay alone"
    values = {"name": "fay", "role": "steward", "password": PASSWORD}
    assert b"needs an e-mail address" in eva.post("/people/add/", values).content
    values["email"] = "fay@cleveland.example.org"
    assert (
        b"entered under another name"
        in eva.post("/people/add/", {**values, "email": "ann@cleveland.example.org"}).content
    )
    assert eva.post("/people/add/", {**values, "password": "guess"}).status_code == 403
    fay = console.client()
    accepted = fay.post("/invitation/", {"code": link_of(eva.post("/people/add/", values)), **twice(chosen)})
    assert accepted.headers["Location"] == "/login/"
    assert fay.post("/login/", {"username": "fay", "password": chosen}).status_code == 302
    assert eva.post("/people/deactivate/", {"name": "fay", "password": PASSWORD}).status_code == 302
    assert fay.get("/cases/").status_code == 302
    assert eva.post("/people/deactivate/", {"name": "eva", "password": PASSWORD}).status_code == 403


def test_a_party_that_no_letter_could_reach_is_not_entered(console: Console) -> None:
    incomplete = stranger().model_copy(update={"syft_fingerprint": ""})
    answer = console.client("ann").post("/roster/propose/", {"entry": incomplete.model_dump_json()})
    assert answer.status_code == 409
    assert "syft fingerprint" in answer.content.decode()
    assert not PartyProposal.objects.exists()


def test_somebody_without_a_password_here_can_not_give_themselves_one(console: Console) -> None:
    from django.contrib.auth import get_user_model

    user = get_user_model().objects.get(username="ann")
    user.set_unusable_password()
    user.save()
    change = {"password": PASSWORD, "new_password": "another long passphrase", "again": "another long passphrase"}
    assert console.client("ann").post("/password/", change).status_code == 409
    user.refresh_from_db()
    assert not user.has_usable_password()


def test_one_bad_case_takes_neither_its_page_nor_the_inbox(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever breaks while a case is shown: people can read that, and reject it."""
    from datasites.hospital.cases import views
    from datasites.hospital.console.views import cases

    def breaks(*_: object, **__: object) -> None:
        raise RecursionError("quotes 'Mrs Smith'")

    ann = console.client("ann")
    for room, name in ((cases, "code_lines"), (views, "open_case")):
        monkeypatch.setattr(room, name, breaks)
        page = ann.get(f"/cases/{console.number}/")
        assert page.status_code == 200
        assert "RecursionError" in page.content.decode()
        assert "Smith" not in page.content.decode()
        assert ann.get("/").status_code in (200, 302)
        assert ann.get("/cases/").status_code == 200
    assert console.decide(ann, "reject", message="not here").status_code == 302
    console.desk.row.refresh_from_db()
    assert console.desk.row.state == "rejected"


def test_a_stopped_study_is_rejoined_with_the_password(console: Console) -> None:
    from datasites.hospital.models import Case

    Case.objects.filter(pk=console.number).update(state="stopped")
    ann, path = console.client("ann"), f"/studies/{console.number}/move/"
    assert "Rejoin" in ann.get(f"/studies/{console.number}/").content.decode()
    rejoin = {"action": "rejoin", "reason": "restored from a backup"}
    assert ann.post(path, {**rejoin, "password": "guess"}).status_code == 403
    assert ann.post(path, {**rejoin, "password": PASSWORD}).status_code == 302
    row = Case.objects.get(pk=console.number)
    assert (row.state, row.rejoins) == ("running", True)


def test_a_rule_file_that_permits_stops_decisions_and_says_so(console: Console) -> None:
    console.desk.agree()
    rule = console.desk.site.home.local_rules / "generous.cedar"
    shown = console.seen(console.client("ann"))
    rule.write_text("permit (principal, action, resource);")
    try:
        client = console.client("ann")
        page = client.get(f"/cases/{console.number}/")
        assert page.status_code == 200
        assert b"generous" in page.content
        answer = client.post(
            f"/cases/{console.number}/decide/", {**shown, "verdict": "approve", "reason": "x", "password": PASSWORD}
        )
        assert answer.status_code == 409
    finally:
        rule.unlink()
    console.desk.nothing_happened()
    assert not Review.objects.exists()
