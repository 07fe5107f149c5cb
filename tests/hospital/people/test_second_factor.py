"""A second factor is asked for wherever a password is, takes each code once, and only others take it off."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from django.conf import settings
from django.db import connection
from django_otp.oath import TOTP
from django_otp.plugins.otp_totp.models import TOTPDevice

from datasites.hospital.people import enrolment
from datasites.hospital.people.accounts import PersonError, WrongPassword, identify
from datasites.hospital.people.second_factor import device_of
from datasites.study.audit_chain import records
from tests.hospital.codes import code_of, enrolled, later
from tests.hospital.desk import PASSWORD, Desk


@contextmanager
def required(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    home = settings.DATASITE
    console = home.settings.console.model_copy(update={"second_factor": "required"})
    changed = type(home)(home.root, home.settings.model_copy(update={"console": console}))
    with monkeypatch.context() as patch:
        patch.setattr(settings, "DATASITE", changed)
        yield


def test_who_has_one_acts_only_with_a_code_that_was_not_used(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    enrolled(desk.site, desk.login("ann"))
    for wrong in ("", "000000", "abcdef", "1" * 400):
        with pytest.raises(WrongPassword, match="or the code is wrong"):
            identify("ann", PASSWORD, code=wrong)
    with pytest.raises(WrongPassword):
        identify("ann", PASSWORD, code=code_of("ann"))  # that which has confirmed it, or too soon after a wrong one
    later(monkeypatch, 60)
    code = code_of("ann")
    with pytest.raises(WrongPassword):
        identify("ann", "another long passphrase", code=code)
    assert identify("ann", PASSWORD, code=code).role == "steward"
    with pytest.raises(WrongPassword):
        identify("ann", PASSWORD, code=code)
    later(monkeypatch, 90)
    assert identify("ann", PASSWORD, code=code_of("ann"))
    assert identify("bob", PASSWORD), "who has none is asked for none"


def test_after_wrong_codes_the_right_one_has_to_wait(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    enrolled(desk.site, desk.login("ann"))
    later(monkeypatch, 60)
    for _ in range(6):
        with pytest.raises(WrongPassword):
            identify("ann", PASSWORD, code="000000")
    with pytest.raises(WrongPassword):
        identify("ann", PASSWORD, code=code_of("ann"))


@pytest.mark.waits
def test_of_two_who_give_one_code_at_the_same_moment_one_is_let_in(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    enrolled(desk.site, desk.login("ann"))
    later(monkeypatch, 60)
    code, begin, found = code_of("ann"), threading.Barrier(2), []

    def use() -> None:
        begin.wait()
        with suppress(WrongPassword):
            found.append(identify("ann", PASSWORD, code=code))
        connection.close()

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1


def test_a_secret_counts_once_a_code_of_it_was_given_and_the_old_one_until_then(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = desk.login("ann")
    enrolment.begin(ann)
    assert identify("ann", PASSWORD), "begun, and not confirmed"
    with pytest.raises(PersonError, match="wrong"):
        enrolment.confirm(desk.site, ann, "000000")
    enrolled(desk.site, ann)
    first = device_of(ann)
    later(monkeypatch, 60)
    enrolment.require_code(ann, code_of("ann"))
    with pytest.raises(PersonError, match="used before"):
        enrolment.require_code(ann, code_of("ann"))
    enrolment.begin(ann)
    assert device_of(ann) == first
    later(monkeypatch, 120)
    enrolment.confirm(desk.site, ann, code_of("ann", confirmed=False))
    assert device_of(ann) != first
    assert TOTPDevice.objects.filter(user_id=ann.pk).count() == 1
    kinds = [record.kind for record in records(desk.site.home.audit) if record.fields.get("person") == "ann"]
    assert kinds.count("second_factor_set_up") == 2


def test_another_admin_takes_it_off_and_the_log_says_so(desk: Desk) -> None:
    enrolled(desk.site, desk.login("ann"))
    with pytest.raises(PersonError, match="nobody takes off their own"):
        enrolment.reset(desk.site, "ann", by="ann")
    enrolment.reset(desk.site, "ann", by="eva")
    assert identify("ann", PASSWORD)
    with pytest.raises(PersonError, match="has no second factor"):
        enrolment.reset(desk.site, "ann", by="eva")
    with pytest.raises(PersonError, match="not entered"):
        enrolment.reset(desk.site, "nobody")
    logged = [record.fields for record in records(desk.site.home.audit) if record.kind == "second_factor_reset"]
    assert logged == [{"person": "ann", "by": "eva"}]


def test_where_it_is_demanded_nobody_acts_without(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with required(monkeypatch):
        with pytest.raises(PersonError, match="has no second factor, which datasite.toml demands; set it up with"):
            identify("ann", PASSWORD)
        enrolled(desk.site, identify("ann", PASSWORD, enrolling=True))
        later(monkeypatch, 60)
        assert identify("ann", PASSWORD, code=code_of("ann"))


def test_its_secret_is_in_no_log(desk: Desk) -> None:
    secret = enrolment.begin(desk.login("ann"))
    plain = secret.secret.replace(" ", "")
    assert plain in secret.address
    assert plain not in repr(secret)
    assert '<svg viewBox="0 0 ' in secret.picture(), "else a smaller place would show a part of it"
    assert "style=" not in secret.picture()
    enrolment.confirm(desk.site, desk.login("ann"), code_of("ann", confirmed=False))
    assert plain not in desk.site.home.audit.read_text()
    assert TOTP(TOTPDevice.objects.get(user__username="ann").bin_key).t() <= time.time() / 30
