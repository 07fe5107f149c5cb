"""Keys are private to their file, signatures bound to what they were made for, rosters pinned (I9)."""

from pathlib import Path

import pytest

from datasites.study.identity import (
    BadSignature,
    Identity,
    IdentityError,
    same_identity,
    verify_signature,
    written_twice,
)
from datasites.study.roster import Roster
from tests.study.entries import entry_of


def test_a_signature_holds_for_its_domain_its_bytes_and_its_key_only() -> None:
    identity, other = Identity.generate("a@x.org"), Identity.generate("b@x.org")
    signature = identity.sign("survivors", b"data")
    verify_signature(identity.public_key, signature, "survivors", b"data")
    for key, domain, data in [
        (other.public_key, "survivors", b"data"),
        (identity.public_key, "manifest", b"data"),
        (identity.public_key, "survivors", b"datb"),
    ]:
        with pytest.raises(BadSignature):
            verify_signature(key, signature, domain, data)


def test_a_key_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "institution.pem"
    identity = Identity.generate("a@x.org")
    identity.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Identity.load(path, "a@x.org").public_key == identity.public_key
    with pytest.raises(IdentityError, match="already"):
        identity.save(path)
    path.chmod(0o640)
    with pytest.raises(IdentityError, match="chmod 600"):
        Identity.load(path, "a@x.org")


def test_a_passphrase_protects_the_key(tmp_path: Path) -> None:
    path = tmp_path / "institution.pem"
    Identity.generate("a@x.org").save(path, passphrase="correct horse")
    with pytest.raises(IdentityError):
        Identity.load(path, "a@x.org")
    with pytest.raises(IdentityError):
        Identity.load(path, "a@x.org", passphrase="wrong")
    Identity.load(path, "a@x.org", passphrase="correct horse")


def test_another_key_for_a_pinned_party_is_refused(tmp_path: Path) -> None:
    mine, forged = Identity.generate("a@x.org"), Identity.generate("a@x.org")
    roster = Roster().pin(entry_of(mine))
    assert roster.pin(entry_of(mine)) == roster
    with pytest.raises(IdentityError, match="is pinned with key"):
        roster.pin(entry_of(forged))
    roster.save(tmp_path / "roster.json")
    assert Roster.load(tmp_path / "roster.json") == roster
    with pytest.raises(IdentityError, match="not pinned"):
        roster.without("a@x.org").get("a@x.org")


@pytest.mark.parametrize("other", ["A@X.org", "a@x.ORG", "A@X.ORG"])
def test_one_mailbox_is_one_party_however_it_is_written(other: str) -> None:
    first, second = Identity.generate("a@x.org"), Identity.generate(other)
    roster = Roster().pin(entry_of(first))
    with pytest.raises(IdentityError, match="are one mailbox, and so one party"):
        roster.pin(entry_of(second))
    with pytest.raises(IdentityError, match="is pinned as a@x.org; write it in this form"):
        roster.get(other)
    kept = Roster().pin(entry_of(second))
    assert kept.get(other).email == other  # as it was written, so that what is signed stays as it is
    assert Roster.parse(kept.canonical()) == kept
    # What an earlier version has pinned still reads, and can be revoked.
    assert len(Roster(entries=(entry_of(first), entry_of(second))).revoke(other).entries) == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Clinic A", " clinic\u00a0 a", True),
        ("Klinik Stra\u00dfe", "KLINIK STRASSE", True),
        ("Caf\u00e9", "cafe\u0301", True),
        ("\uff21nn", "ann", True),
        ("Clinic\u200d A\ufe0e", "Clinic A", True),
        ("\u1fb7", "\u0391\u0342\u0345", True),
        ("Clinic A", "ClinicA", False),
        ("Cafe", "Caf\u00e9", False),
    ],
)
def test_capitals_widths_compositions_and_spaces_tell_nobody_apart(one: str, other: str, same: bool) -> None:
    assert same_identity(one, other) == same
    assert (written_twice(("b", one, "c", other)) is not None) == same
