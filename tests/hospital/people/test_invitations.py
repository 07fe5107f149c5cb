"""An invitation sets one password once, for whoever holds it, and nothing else anywhere tells of its secret."""

from __future__ import annotations

import datetime
import logging
import threading
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from datasites.hospital.config import Home
from datasites.hospital.models import Invitation
from datasites.hospital.people import invitations
from datasites.hospital.people.accounts import (
    PersonError,
    WrongPassword,
    change_password,
    deactivate,
    identify,
    written_down,
)
from datasites.hospital.people.invitations import Issued, accept, enter_person, invite, invited
from datasites.study.audit_chain import records
from tests.hospital.desk import PASSWORD, Desk

OWN, ANOTHER = "chosen by fay alone", "chosen by fay once more"


def entered(desk: Desk, by: str = "eva") -> Issued:
    issued = enter_person(desk.site, "fay", "steward", "fay@cleveland.example.org", by=by)
    assert issued is not None
    return issued


def kinds(home: Home) -> list[str]:
    return [record.kind for record in records(home.audit) if record.fields.get("person") == "fay"]


def test_whoever_holds_it_sets_the_password_and_nobody_could_sign_in_before(desk: Desk) -> None:
    issued = entered(desk)
    for guess in ("", issued.code, "!", PASSWORD):
        with pytest.raises(WrongPassword):
            identify("fay", guess)
    assert accept(desk.site, issued.link("http://127.0.0.1/"), OWN).name == "fay"
    assert identify("fay", OWN).role == "steward"
    assert kinds(desk.site.home) == ["person_added", "invited", "invitation_accepted"]


def test_it_is_good_once(desk: Desk) -> None:
    issued = entered(desk)
    accept(desk.site, issued.code, OWN)
    for _ in range(2):
        with pytest.raises(PersonError, match="not good"):
            accept(desk.site, issued.code, ANOTHER)
    assert identify("fay", OWN)
    assert kinds(desk.site.home).count("invitation_accepted") == 1


def test_to_look_at_it_uses_nothing_and_a_weak_password_neither(desk: Desk) -> None:
    issued = entered(desk)
    assert {invited(issued.code).name for _ in range(3)} == {"fay"}
    for weak in ("tiny", "passwordpassword", "fay-fay-fay-fay", "x" * 257):
        with pytest.raises(PersonError, match="too (short|easy|long)") as refused:
            accept(desk.site, issued.code, weak)
        assert weak not in str(refused.value).replace("person fay", "")
    assert kinds(desk.site.home) == ["person_added", "invited"]
    accept(desk.site, issued.code, OWN)


@pytest.mark.parametrize(("hours", "good"), [(71.9, True), (72.1, False), (-1, False)])
def test_it_is_good_for_72_hours_whatever_the_clock_did(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, hours: float, good: bool
) -> None:
    issued, now = entered(desk), timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: now + datetime.timedelta(hours=hours))
    if good:
        assert accept(desk.site, issued.code, OWN)
    else:
        with pytest.raises(PersonError, match="72 hours are over"):
            accept(desk.site, issued.code, OWN)


def test_a_newer_one_ends_it_and_leaves_the_password_until_it_is_used(desk: Desk) -> None:
    first = entered(desk)
    second = invite(desk.site, "fay", by="eva")
    with pytest.raises(PersonError, match="newer one"):
        accept(desk.site, first.code, OWN)
    accept(desk.site, second.code, OWN)
    third = invite(desk.site, "fay", by="eva")
    assert identify("fay", OWN), "who remembers it goes on"
    accept(desk.site, third.code, ANOTHER)
    with pytest.raises(WrongPassword):
        identify("fay", OWN)
    issued_by = [r.fields["by"] for r in records(desk.site.home.audit) if r.kind == "invited" and "fay" in str(r)]
    assert issued_by == ["eva"] * 3


def test_who_was_deactivated_uses_none_and_gets_none(desk: Desk) -> None:
    issued = entered(desk)
    with written_down(desk.site, "person_deactivated", person="fay", by="eva"):
        deactivate("fay", by="eva")
    with pytest.raises(PersonError, match="not good"):
        accept(desk.site, issued.code, OWN)
    with pytest.raises(PersonError, match="was shut out"):
        invite(desk.site, "fay")


def test_who_signs_in_through_the_organisation_gets_no_second_way_in(desk: Desk) -> None:
    assert enter_person(desk.site, "gil", "auditor", "gil@cleveland.example.org", by="eva", by_provider=True) is None
    with pytest.raises(PersonError, match="through the organisation only"):
        invite(desk.site, "gil", by="eva")
    with pytest.raises(PersonError, match="not entered"):
        invite(desk.site, "nobody")


def test_its_secret_is_kept_nowhere(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        issued = entered(desk)
        accept(desk.site, issued.code, OWN)
        again = invite(desk.site, "fay")
    connection.close()  # what SQLite still holds beside its file
    for code in (issued.code, again.code):
        assert len(code) >= 32
        assert code not in repr((issued, again))
        assert code not in caplog.text
        for file in desk.site.home.root.rglob("*"):
            assert not file.is_file() or code.encode() not in file.read_bytes(), file


@pytest.mark.waits
def test_of_two_who_use_it_at_the_same_moment_one_does(desk: Desk) -> None:
    issued, found = entered(desk), []
    begin = threading.Barrier(2)

    def use(password: str) -> None:
        begin.wait()
        try:
            accept(desk.site, issued.code, password)
            found.append(password)
        except PersonError:
            pass
        connection.close()

    threads = [threading.Thread(target=use, args=(password,)) for password in (OWN, ANOTHER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (password,) = found
    assert identify("fay", password)
    assert kinds(desk.site.home).count("invitation_accepted") == 1


def test_nothing_is_logged_of_one_that_the_database_did_not_take(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    issued = entered(desk)

    def breaks(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(invitations, "set_password", breaks)
    with pytest.raises(RuntimeError):
        accept(desk.site, issued.code, OWN)
    assert "invitation_accepted" not in kinds(desk.site.home)
    assert Invitation.objects.filter(person__username="fay").exists()


def test_one_check_of_strength_knows_the_person_and_the_place(desk: Desk) -> None:
    ann = desk.login("ann")
    for weak, reason in (
        ("passwordpassword", "easy to guess. Repeats like .* Avoid repeated words"),
        ("ann@cleveland.example.org", "easy to guess"),
        ("Cleveland-datasite", "easy to guess"),
        ("qwertyuiop12345", "easy to guess"),
        ("123456789012", "easy to guess"),
    ):
        with pytest.raises(PersonError, match=reason) as refused:
            change_password(desk.site, ann, weak)
        assert weak not in str(refused.value)
    # Looked at in part only, so that a long one takes no longer.
    change_password(desk.site, ann, "many quite uncommon terms in a row, such as zeppelin and marzipan " * 3)


def test_a_home_whose_people_had_first_passwords_invites_them_anew(desk: Desk) -> None:
    before, now = [("hospital", "0010_approval_terms_and_details")], [("hospital", "0012_no_first_passwords")]
    migrate = MigrationExecutor(connection)
    try:
        migrate.migrate(before)
        old = migrate.loader.project_state(before).apps
        bob = get_user_model().objects.get(username="bob")
        old.get_model("hospital", "FirstPassword").objects.create(person_id=bob.pk)
    finally:
        again = MigrationExecutor(connection)
        again.migrate(now)
    with pytest.raises(WrongPassword):
        identify("bob", PASSWORD)  # somebody else knows it
    assert identify("ann", PASSWORD).role == "steward", "hers is her own"
    assert Invitation.objects.get(person__username="bob").ends_at <= timezone.now()
    accept(desk.site, invite(desk.site, "bob").code, OWN)
    assert identify("bob", OWN).role == "privacy_officer"
