"""Keys change hands by a doubly signed hand-over or by telephone, and a revoked key never comes back (I9)."""

from __future__ import annotations

import pytest

from datasites.study.canonical import canonical_json
from datasites.study.identity import BadSignature, Identity, IdentityError
from datasites.study.roster import HandOver, Roster, RosterEntry
from tests.study.entries import entry_of

EMAIL = "a@x.org"


def entry(identity: Identity, **changed) -> RosterEntry:
    return entry_of(identity, **{"role": "researcher", "organisation": "A", **changed})


@pytest.fixture
def old() -> Identity:
    return Identity.generate(EMAIL)


@pytest.fixture
def new() -> Identity:
    return Identity.generate(EMAIL)


def test_a_hand_over_changes_the_key_for_all_who_had_pinned_the_old_one(old, new, tmp_path):
    other = entry(Identity.generate("b@x.org"))
    roster = Roster(entries=(entry(old), other))
    change = HandOver.sign(old, new, entry(old), entry(new, syft_fingerprint="f" * 64))
    after = roster.hand_over(HandOver.parse(change.canonical()))
    assert after.get(EMAIL).public_key == new.public_key
    assert after.get(EMAIL).syft_fingerprint == "f" * 64
    assert after.get("b@x.org") == other
    after.save(tmp_path / "roster.json")
    assert Roster.load(tmp_path / "roster.json") == after
    with pytest.raises(IdentityError, match="was revoked"):
        after.without(EMAIL).pin(entry(old))
    third = Identity.generate(EMAIL)
    again = after.hand_over(HandOver.sign(new, third, after.get(EMAIL), entry(third)))
    assert again.get(EMAIL).public_key == third.public_key
    for replayed in (change, HandOver.sign(old, new, entry(old), entry(new))):
        with pytest.raises(IdentityError, match="another entry than the pinned one"):
            again.hand_over(replayed)


def test_a_hand_over_needs_both_keys(old, new):
    roster, change = Roster(entries=(entry(old),)), HandOver.sign(old, new, entry(old), entry(new))
    for field in ("old_signature", "new_signature"):
        forged = change.model_copy(update={field: Identity.generate(EMAIL).sign("key hand-over", b"x").hex()})
        with pytest.raises(BadSignature):
            roster.hand_over(forged)
    swapped = change.model_copy(update={"old_signature": change.new_signature, "new_signature": change.old_signature})
    with pytest.raises(BadSignature):
        roster.hand_over(swapped)
    with pytest.raises(BadSignature):
        roster.hand_over(change.model_copy(update={"entry": entry(new, syft_fingerprint="0" * 64)}))
    with pytest.raises(IdentityError, match="which is which"):
        HandOver.sign(new, old, entry(old), entry(new))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"role": "hospital"}, "can't change"),
        ({"organisation": "B"}, "can't change"),
        ({"email": "c@x.org"}, "not pinned|can't"),
    ],
)
def test_a_hand_over_changes_keys_and_nothing_else(old, new, changed, reason):
    change = HandOver.sign(old, new, entry(old), entry(new, **changed))
    with pytest.raises(IdentityError, match=reason):
        Roster(entries=(entry(old),)).hand_over(change)
    with pytest.raises(IdentityError, match="can't change"):
        change.check(entry(old))


def test_a_hand_over_makes_a_new_key(old):
    change = HandOver.sign(old, old, entry(old), entry(old, syft_fingerprint="f" * 64))
    with pytest.raises(IdentityError, match="same as before"):
        Roster(entries=(entry(old),)).hand_over(change)


def test_a_hospitals_key_is_not_handed_over(old, new):
    """Else it could begin another log, and heads that others hold would no longer prove."""
    before, after = (entry(key, role="hospital") for key in (old, new))
    with pytest.raises(IdentityError, match="a hospital's key is not handed over"):
        Roster(entries=(before,)).hand_over(HandOver.sign(old, new, before, after))


def test_a_revoked_key_never_comes_back(old, new):
    roster = Roster(entries=(entry(old),)).revoke(EMAIL)
    with pytest.raises(IdentityError, match="not pinned"):
        roster.get(EMAIL)
    with pytest.raises(IdentityError, match="was revoked"):
        roster.pin(entry(old))
    with pytest.raises(IdentityError, match="was revoked"):
        roster.pin(entry(old, email="thief@x.org"))
    with pytest.raises(IdentityError, match="not pinned"):
        roster.hand_over(HandOver.sign(old, new, entry(old), entry(new)))
    assert roster.pin(entry(new)).without(EMAIL).revoked == (old.public_key,)
    with pytest.raises(ValueError, match="was revoked"):
        Roster(entries=(entry(old),), revoked=(old.public_key,))


def test_rosters_without_revocations_keep_their_bytes_and_hash(old):
    fields = {"entries": [entry(old).model_dump(mode="json")]}
    assert Roster(entries=(entry(old),)).canonical() == canonical_json(fields)
    assert Roster.parse(canonical_json(fields)) == Roster(entries=(entry(old),))
