"""No address is shown with its secret, however badly it is written."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datasites.study.addresses import fault_of, hidden, is_address, shown
from tests.study.addresses import MARK, forms, schemes, secrets


@settings(max_examples=300)
@given(schemes, forms, secrets, st.booleans())
@example("https", "{scheme}://{secret}@host.example.org/x", MARK, False)
@example("webdav", "{scheme}://{secret}@host.example.org/x", MARK, False)
def test_no_part_of_a_secret_is_shown_or_left_in_the_words_of_a_library(
    scheme: str, form: str, secret: str, escaped: bool
) -> None:
    address = form.format(scheme=scheme, secret=quote(secret, safe="") if escaped else secret)
    assert MARK not in shown(address)
    parts = re.split(r"[/?#@:&=\[\]]", secret)
    for quoted in (address, secret, quote(secret, safe=""), *parts):
        assert MARK not in hidden(f"cannot connect to {quoted!s}: refused", address)
    assert MARK not in fault_of(address)


@pytest.mark.parametrize(
    "address",
    [
        "/mnt/federation",
        "./store",
        "data/table.csv",
        "sqlite",
        "s3://bucket/prefix",
        "ssh://user@host.example.org:22/folder",
        "postgresql:///ds?host=/run/postgresql&sslmode=verify-full&sslrootcert=/etc/ca.crt",
        "postgresql://ds@[::1]:5432/ds",
        "datasite@general.example.org",
    ],
)
def test_what_holds_no_secret_is_shown_as_it_is(address: str) -> None:
    assert shown(address) == address
    assert not fault_of(address) or "://" not in address
    assert is_address(address) == ("://" in address)


@pytest.mark.parametrize("secret", [MARK, f"{MARK}/{MARK}", f"{MARK}?a={MARK}", f"{MARK}#{MARK}", f"{MARK}:{MARK}"])
@pytest.mark.parametrize(
    "form", ["postgresql://user:{}/name", "ssh://user:{}", "s3://key:{}/bucket", "sftp://u,v:{}/x"]
)
def test_a_password_to_which_no_host_was_written_is_not_shown_as_a_port(form: str, secret: str) -> None:
    address = form.format(secret)
    assert MARK not in shown(address)
    assert MARK not in hidden(f"cannot connect to {address}: bad port {secret}", address)
    assert MARK not in fault_of(address)


def test_the_user_of_a_server_is_shown_and_a_token_is_not() -> None:
    assert shown("postgresql://ds:secret@db.example.org/ds") == "postgresql://ds:***@db.example.org/ds"
    several = "postgresql://ds@one.example.org:5432,two.example.org:5433/ds?target_session_attrs=read-write"
    assert shown(several) == several
    assert shown("https://ghp_token@git.example.org/x?sslmode=a") == "https://***@git.example.org/x?sslmode=a"
