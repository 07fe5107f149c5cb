"""Addresses in datasite.toml: each option is passed on or refused by name, and no secret of one is ever said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datasites.hospital.config import DatasiteSettings
from datasites.hospital.postgresql import PostgresAddress
from datasites.study.errors import InputError, parse_toml
from datasites.transport.store import Store, StoreError
from datasites.transport.store_errors import diagnose
from tests.study.addresses import ESCAPED_COLON, MARK, forms, schemes, secrets

OIDC = ("issuer", "authorization_endpoint", "token_endpoint", "userinfo_endpoint", "jwks_uri")


def settings_toml(**addresses: str) -> str:
    lines = ['organisation = "A"', 'email = "a@a.example.org"', f"store = {json.dumps(addresses.get('store', 's'))}"]
    lines += [f"database = {json.dumps(addresses.get('database', 'sqlite'))}", "[console.oidc]", 'name = "A"']
    lines += [f"{name} = {json.dumps(addresses.get(name, 'https://login.example.org/x'))}" for name in OIDC]
    return "\n".join([*lines, 'client_id = "a"'])


def parsed(toml: str) -> tuple[DatasiteSettings | None, str]:
    try:
        return parse_toml(toml, DatasiteSettings, "datasite.toml"), ""
    except InputError as error:
        return None, str(error)


@settings(max_examples=150)
@given(st.sampled_from(["store", "database", *OIDC]), schemes, forms, secrets)
@example("issuer", "https", ESCAPED_COLON, f"{MARK}[{MARK}]{MARK}")
@example("database", "postgresql", ESCAPED_COLON, MARK)
def test_no_address_of_any_setting_is_said_with_its_secret(name: str, scheme: str, form: str, secret: str) -> None:
    """Whether it is refused (the words) or taken (what is printed of settings, store and the words of libraries)."""
    address = form.format(scheme=scheme, secret=secret)
    taken, refusal = parsed(settings_toml(**{name: address}))
    if taken is None:
        assert MARK not in refusal
        assert "\n" not in refusal
        assert name in refusal
        return
    if name == "store":
        for error in (ValueError(address), OSError(f"cannot reach {secret}"), ConnectionError(f"no {address}!")):
            assert MARK not in str(diagnose(error, "store", address))
    elif name == "database":
        assert MARK not in repr(PostgresAddress.parse(address))
    else:
        assert taken.console.oidc is not None
        assert MARK not in taken.console.oidc.hidden(f"HTTPSConnectionPool: Max retries exceeded with url: {address}")
        return
    assert MARK not in repr(taken)


@pytest.mark.parametrize("url", ["ssh://user:Zq7Xk/x@host/x", "ssh://user:Zq7Xk@host:port/x", "user:Zq7Xk@host:/x"])
def test_a_store_that_can_not_be_opened_is_one_sentence(url: str) -> None:
    with pytest.raises(StoreError) as refused:
        Store(url)
    assert MARK not in str(refused.value)
    assert "store" in str(refused.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "postgresql://ds:secret@db.example.org/ds?sslmode=verify-full&sslrootcert=/etc/ca.crt",
            {"HOST": "db.example.org", "NAME": "ds", "PASSWORD": "secret", "sslmode": "verify-full"},
        ),
        ("postgresql:///ds?host=/var/run/postgresql", {"HOST": "/var/run/postgresql", "NAME": "ds"}),
        ("postgres://ds:secret@db.example.org:5433/ds", {"USER": "ds", "PASSWORD": "secret", "PORT": "5433"}),
        ("postgresql://ds:sec#ret@db.example.org/ds", {"PASSWORD": "sec#ret"}),
        ("postgresql://ds:%5Bx%40%2F@db.example.org/ds", {"PASSWORD": "[x@/"}),
        ("postgresql://[::1]:5432/ds?connect_timeout=3", {"HOST": "::1", "connect_timeout": "3"}),
        ("postgresql://a,b:5433/ds?target_session_attrs=read-write", {"HOST": "a,b", "PORT": ",5433"}),
        ("postgresql://h/ds?sslcert=/c&sslkey=/k&application_name=x", {"sslcert": "/c", "application_name": "x"}),
    ],
)
def test_what_an_address_says_reaches_the_connection(url: str, expected: dict[str, str]) -> None:
    django: dict[str, Any] = PostgresAddress.parse(url).in_django()
    assert {**django, **django["OPTIONS"]}.items() >= expected.items()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://ds:Zq7Xk@h/ds?sslmodee=require", "option sslmodee.*did you mean sslmode"),
        ("postgresql://ds:Zq7Xk@h/ds?sslmode=require&sslmode=disable", "option sslmode twice"),
        ("postgresql://ds:Zq7Xk@h/ds?sslmode=verify", "value can't be used.*sslmode"),
        ("postgresql://ds:Zq7Xk@h/ds?connect_timeout=soon", "connect_timeout, whose value must be a whole number"),
        ("postgresql://ds:Zq7Xk@h/ds?service=clinic", "option service, which is not taken here"),
        ("postgresql://ds:Zq7Xk@h/ds?client_encoding=latin1", "always UTF-8"),
        ("postgresql://ds:Zq7Xk@h/ds?sslkeylogfile=/tmp/keys", "keeps for debugging"),
        ("postgresql://ds:Zq7Xk@h/ds?sslmode", "without a name or without a value"),
        ("postgresql://ds:Zq7Xk@h:port/ds", "no whole number from 1 to 65535"),
        ("postgresql://ds:Zq7Xk@h:70000/ds", "no whole number from 1 to 65535"),
        ("postgresql://ds:Zq7Xk@[h/ds", "can't be read"),
        ("postgresql://ds:Zq7Xk/x@h/ds", "not escaped"),
        ("postgresql://ds:%zz@h/ds", "can't be read"),
        ("postgresql://ds:Zq7Xk@h", "names no database"),
        ("mysql://ds:Zq7Xk@h/ds", "neither"),
        ("host=h password=Zq7Xk", "neither"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        parse_toml(settings_toml(database=url), DatasiteSettings, "datasite.toml")
    assert MARK not in str(refused.value)


@pytest.mark.parametrize("name", OIDC)
@pytest.mark.parametrize("option", ["?", "?p=Zq7Xk", "?tenant=a&p=Zq7Xk"])
def test_an_option_of_a_providers_address_is_refused(name: str, option: str) -> None:
    """Taken, it would be torn: what asks the provider begins its own options with another question mark."""
    with pytest.raises(InputError, match=rf"{name}: https://login\.example\.org/x\?.*has an option") as refused:
        parse_toml(settings_toml(**{name: f"https://login.example.org/x{option}"}), DatasiteSettings, "datasite.toml")
    assert MARK not in str(refused.value)


def test_a_refused_or_absent_database_is_one_sentence_of_every_command(tmp_path: Path) -> None:
    """`init` makes no key for it, and no command gives a traceback."""
    for code, server in (("port", "h:port"), ("unavailable", "127.0.0.1:1")):
        address = f"postgresql://ds:Zq7Xk@{server}/ds"
        home = tmp_path / code
        home.mkdir()
        toml = f'organisation = "A"\nemail = "a@a.example.org"\nstore = "{home}/store"\ndatabase = "{address}"\n'
        (tmp_path / f"{code}.toml").write_text(toml)
        for command in (["init", str(tmp_path / f"{code}.toml")], ["doctor"]):
            done = subprocess.run(
                [sys.executable, "-m", "datasites.cli", *command, "--home", str(home)], capture_output=True, text=True
            )
            assert done.returncode == 2
            assert done.stderr.startswith("datasites: ")
            assert code in done.stderr
            assert len(done.stderr.splitlines()) == 1
            assert MARK not in done.stderr + done.stdout
            assert code == "unavailable" or not list(home.rglob("*.pem"))
            (home / "datasite.toml").write_text(toml)
