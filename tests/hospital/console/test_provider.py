"""Signing in with the organisation's provider: a real one, and one that lies about everything it can lie about."""

from __future__ import annotations

import dataclasses
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from django.conf import settings
from django.test import Client

from datasites.hospital.cases import compliance
from datasites.hospital.config import DatasiteSettings, OidcSettings
from datasites.hospital.models import ProviderSubject
from datasites.hospital.people.accounts import PersonError, add_person, deactivate
from datasites.study.audit_chain import records
from tests.hospital.console.conftest import Console
from tests.hospital.console.providers import ANN, CLIENT, SECRET, Liar, Person, Real, configured, fresh, oidc

# -- a real provider ---------------------------------------------------------------------------------------------------


def audited(console: Console, kind: str) -> list[dict[str, Any]]:
    return [r.fields for r in records(console.desk.site.home.audit) if r.kind == kind]


@pytest.mark.slow
def test_the_doctor_compares_what_the_provider_says(console: Console, real: Real) -> None:
    from datasites.hospital import doctor

    def check(terms: OidcSettings) -> doctor.Diagnosis:
        with configured(terms):
            site = dataclasses.replace(console.desk.site, home=settings.DATASITE)
            return next(iter(doctor._sign_in(site)))

    assert check(oidc(real.base)).state == "ok"
    changed = check(oidc(real.base, token_endpoint="https://evil.example.org/token/"))
    assert (changed.state, "token_endpoint" in changed.message) == ("bad", True)
    assert "ES256" in check(oidc(real.base, algorithm="ES256")).message


@pytest.mark.slow
def test_people_sign_in_at_the_provider_and_confirm_there(console: Console, real: Real) -> None:
    with configured(oidc(real.base)):
        assert "Sign in with Cleveland" in Client(SERVER_NAME="localhost").get("/login/").content.decode()
        ann = Person()
        answer = ann.sign_in("ann", "/provider/?next=/studies/")
        assert (answer.status_code, answer.headers["Location"]) == (302, "/studies/")
        assert (ann.asked, ann.here.get("/cases/").status_code) == (1, 200)
        assert audited(console, "signed_in")[-1] == {"person": "ann", "by": "provider"}
        page = ann.here.get(f"/cases/{console.number}/").content.decode()
        assert "Sign in again with Cleveland" in page
        assert 'type="password"' not in page
        assert "keeps your password" in ann.here.get("/password/").content.decode()

        ann.here.post("/studies/kill/", {"action": "kill", "sure": "on", "reason": "drill"})
        assert compliance.is_killed(console.desk.site.home)
        widen = {"action": "unkill", "reason": "over"}
        refused = ann.here.post("/studies/kill/", widen)
        assert refused.status_code == 403
        assert b"Sign in again with Cleveland first" in refused.content
        assert compliance.is_killed(console.desk.site.home)
        # The provider still knows her, and asks all the same.
        answer = ann.sign_in("ann", "/provider/?again=1&next=/studies/")
        assert (ann.asked, answer.headers["Location"]) == (2, "/studies/")
        assert "You have signed in again" in ann.here.get("/studies/").content.decode()
        assert ann.here.post("/studies/kill/", widen).status_code == 302
        assert not compliance.is_killed(console.desk.site.home)
        # Once, and no more.
        ann.here.post("/studies/kill/", {"action": "kill", "sure": "on", "reason": "drill"})
        assert ann.here.post("/studies/kill/", widen).status_code == 403
        ann.sign_in("ann", "/provider/?again=1")
        assert ann.here.post("/studies/kill/", widen).status_code == 302


@pytest.mark.slow
def test_the_provider_lets_in_only_whom_an_admin_has_entered(console: Console, real: Real) -> None:
    with configured(oidc(real.base)):
        assert Person().sign_in("guest").status_code == 403  # not entered here
        add_person("eva2", "auditor", "eva@cleveland.example.org", by_provider=True)
        assert Person().sign_in("eva").status_code == 403  # her address is not verified there
        ann, bob = Person(), Person()
        ann.sign_in("ann")
        assert bob.sign_in("bob").status_code == 302
        # Confirming is for the one who is signed in here.
        ann.there.cookies.clear()
        assert b"The person who signed in" in ann.sign_in("bob", "/provider/?again=1").content
        deactivate("bob", by="eva")
        assert bob.here.get("/cases/").status_code == 302
        assert Person().sign_in("bob").status_code == 403
        assert ann.here.get("/cases/").status_code == 200


# -- one that lies -----------------------------------------------------------------------------------------------------


LIES: dict[str, dict[str, Any]] = {
    "another issuer": {"iss": "https://evil.example.org"},
    "another audience": {"aud": "somebody-else"},
    "another party among the audience": {"aud": [CLIENT, "other"], "azp": "other"},
    "expired": {"exp": 1},
    "no expiry": {"exp": None},
    "no subject": {"sub": None},
    "another nonce": {"nonce": "guessed"},
    "issued in the future": {"iat": int(time.time()) + 10_000},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_token_that_is_not_for_this_console_signs_nobody_in(console: Console, liar: Liar, lie: str) -> None:
    changed = {**liar.claims, **LIES[lie]}
    liar.claims = {name: value for name, value in changed.items() if value is not None}
    client = fresh()
    assert liar.comes_back(client).status_code == 403
    assert client.get("/cases/").status_code == 302
    assert not ProviderSubject.objects.exists()


def test_a_token_signed_by_somebody_else_or_with_the_clients_secret_signs_nobody_in(
    console: Console, liar: Liar
) -> None:
    for key, algorithm in (
        (rsa.generate_private_key(public_exponent=65537, key_size=2048), "RS256"),
        (SECRET, "HS256"),
    ):
        liar.signs_with, liar.algorithm = key, algorithm
        client = fresh()
        assert liar.comes_back(client).status_code in (400, 403)
        assert client.get("/cases/").status_code == 302


@pytest.mark.parametrize(
    "info",
    [
        {"sub": "43", "email": ANN, "email_verified": True},
        {"sub": "42", "email": ANN},
        {"sub": "42", "email": ANN, "email_verified": "true"},
        {"sub": "42", "email": "nobody@cleveland.example.org", "email_verified": True},
        {"sub": "42", "email_verified": True},
        {"sub": "42", "email": ANN.replace("c", "\uff43"), "email_verified": True},
        {"sub": "42", "email": ANN.replace("c", "\u217d"), "email_verified": True},
    ],
)
def test_userinfo_of_another_subject_or_without_a_verified_address_signs_nobody_in(
    console: Console, liar: Liar, info: dict[str, Any]
) -> None:
    liar.info = info
    client = fresh()
    assert liar.comes_back(client).status_code == 403
    assert client.get("/cases/").status_code == 302


def test_an_address_that_was_given_to_somebody_else_does_not_open_the_account(console: Console, liar: Liar) -> None:
    assert liar.comes_back(fresh()).status_code == 302
    liar.claims["sub"] = liar.info["sub"] = "43"
    client = fresh()
    assert liar.comes_back(client).status_code == 403
    assert client.get("/cases/").status_code == 302
    # Nor does one subject open two accounts.
    liar.claims["sub"] = liar.info["sub"] = "42"
    liar.info["email"] = "bob@cleveland.example.org"
    assert liar.comes_back(fresh()).status_code == 403


def test_an_answer_without_its_question_or_given_twice_is_refused(console: Console, liar: Liar) -> None:
    assert fresh().get("/provider/callback/", {"code": "c", "state": "s"}).status_code == 403
    client = fresh()
    assert liar.comes_back(client, state="guessed").status_code == 403
    sent = parse_qs(urlsplit(client.get("/provider/").headers["Location"]).query)
    liar.nonce = sent["nonce"][0]
    query = {"code": "c", "state": sent["state"][0]}
    assert client.get("/provider/callback/", query).status_code == 302
    assert client.get("/provider/callback/", query).status_code == 403


def test_a_provider_that_did_not_ask_again_confirms_nothing(console: Console, liar: Liar) -> None:
    client = fresh()
    liar.comes_back(client)
    for auth_time in (int(time.time()) - 3600, None):
        if auth_time is None:
            del liar.claims["auth_time"]
        else:
            liar.claims["auth_time"] = auth_time
        answer = liar.comes_back(client, "/provider/?again=1")
        assert answer.status_code == 403
        assert b"did not ask you to sign in again" in answer.content
        refused = client.post("/studies/kill/", {"action": "unkill", "reason": "no"})
        assert b"Sign in again with Cleveland first" in refused.content


def test_a_confirmation_ends_after_five_minutes(console: Console, liar: Liar, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasites.hospital.console import access

    client = fresh()
    liar.comes_back(client)
    assert liar.comes_back(client, "/provider/?again=1").status_code == 302
    monkeypatch.setattr(access, "CONFIRMED_SECONDS", -1)
    assert client.post("/studies/kill/", {"action": "unkill", "reason": "late"}).status_code == 403


@pytest.mark.parametrize("target", ["https://evil.example.org/", "//evil.example.org/", "javascript:alert(1)"])
def test_signing_in_at_the_provider_leads_nowhere_else(console: Console, liar: Liar, target: str) -> None:
    answer = liar.comes_back(fresh(), f"/provider/?next={target}")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/cases/")


def test_a_sign_in_that_was_cancelled_at_the_provider_signs_nobody_in(console: Console, liar: Liar) -> None:
    client = fresh()
    assert liar.comes_back(client, error="access_denied").status_code == 403
    assert client.get("/cases/").status_code == 302


# -- settings and people -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["http://login.example.org/", "ftp://login.example.org/", "login", "https://"])
def test_addresses_of_the_provider_are_https(url: str) -> None:
    with pytest.raises(ValueError, match="https"):
        oidc("http://127.0.0.1:1/", token_endpoint=url)


def test_the_clients_secret_is_for_its_owner_only(home: Any) -> None:
    from datasites.hospital.settings import _provider
    from datasites.study.errors import InputError

    terms = oidc("http://127.0.0.1:1/", client_secret_file="keys/open.secret")
    with pytest.raises(InputError, match="put the client's secret there"):
        _provider(terms)
    (home.root / "keys" / "open.secret").write_text(SECRET)
    (home.root / "keys" / "open.secret").chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        _provider(terms)


def test_the_block_in_datasite_toml_is_read() -> None:
    settings_ = DatasiteSettings.model_validate(
        {
            "organisation": "A",
            "email": "a@a.example.org",
            "store": "s",
            "console": {"oidc": oidc("https://login.example.org/").model_dump()},
        }
    )
    assert settings_.console.oidc
    assert settings_.console.oidc.algorithm == "RS256"


def test_each_person_is_entered_once_and_reviewers_say_who_they_are(console: Console) -> None:
    with pytest.raises(PersonError, match="needs an e-mail address"):
        add_person("fay", "steward")
    with pytest.raises(PersonError, match="entered under another name"):
        add_person("ann2", "privacy_officer", "Ann@Cleveland.example.org")
    with pytest.raises(PersonError, match="already entered"):
        add_person("ANN", "auditor")
    with pytest.raises(PersonError, match="valid email"):
        add_person("fay", "steward", "not an address")
    with pytest.raises(PersonError, match="other letters than ASCII"):
        add_person("fay", "steward", "fay@stra\u00dfe.example.org")  # strasse.example.org is somebody else's
    add_person("fay@cleveland.example.org", "steward")
