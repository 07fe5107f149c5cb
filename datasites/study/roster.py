"""Whose keys count: entries that people have pinned, hand-overs of keys, and keys that never come back.

The roster lists parties with their public keys; a party trusts only entries that it has pinned after comparing
fingerprints by another channel. Keys never come from the store or from the aggregator (I9).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from datasites.study.canonical import Agreed, canonical_json
from datasites.study.files import replace_durably
from datasites.study.identity import (
    Email,
    Identity,
    IdentityError,
    PublicKeyHex,
    fingerprint,
    same_identity,
    verify_signature,
)
from datasites.study.visible import require_plain

Role = Literal["hospital", "researcher"]


HAND_OVER = "key hand-over"


class RosterEntry(Agreed):
    """One party: who it is, what it may be, and the keys it signs with."""

    organisation: Annotated[str, Field(min_length=1, max_length=120)]
    email: Email
    role: Role
    public_key: PublicKeyHex
    syft_fingerprint: Annotated[str, Field(max_length=200)] = ""

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the institution key, to compare by telephone."""
        return fingerprint(self.public_key)


class HandOver(Agreed):
    """A party's signed change from one roster entry to another: how keys are rotated without a telephone call.

    Signed by the old key, which gives the right, and by the new key, which proves that the party holds it. It names
    the entry that it replaces, so that an old hand-over can't be replayed. A party whose key was stolen must not use
    this, since the thief could as well: it is revoked, and its new entry pinned after comparing fingerprints.

    A hospital's key is not handed over. Its audit log begins with that key and is signed by it, and others hold heads
    of that log: under another key a new log would begin, of which those heads prove nothing. A hospital whose key was
    lost or stolen begins anew, and people revoke and pin it as what it is then, a new party.
    """

    format: Literal[1] = 1
    replaces: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    entry: RosterEntry
    old_signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
    new_signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    @classmethod
    def sign(cls, old: Identity, new: Identity, replaced: RosterEntry, entry: RosterEntry) -> HandOver:
        """Hand over from `replaced` (whose key is `old`) to `entry` (whose key is `new`)."""
        if (old.public_key, new.public_key) != (replaced.public_key, entry.public_key):
            raise IdentityError("hand-over: each entry must carry the key that signs for it; check which is which")
        signed = _hand_over_part(replaced.digest(), entry)
        signatures = [identity.sign(HAND_OVER, signed).hex() for identity in (old, new)]
        return cls(replaces=replaced.digest(), entry=entry, old_signature=signatures[0], new_signature=signatures[1])

    def check(self, replaced: RosterEntry) -> None:
        """Raise `IdentityError` unless this is a proper hand-over from the pinned entry `replaced`."""
        new = self.entry
        if self.replaces != replaced.digest():
            raise IdentityError(
                f"hand-over of {new.email}: it replaces another entry than the pinned one ({replaced.fingerprint}); "
                "ask for the hand-overs in between, or revoke and pin the new entry after comparing fingerprints"
            )
        if (new.email, new.role, new.organisation) != (replaced.email, replaced.role, replaced.organisation):
            raise IdentityError(
                f"hand-over of {replaced.email}: e-mail, role and organisation can't change, since agreements name "
                "them; pin a new entry instead"
            )
        if replaced.role == "hospital":
            raise IdentityError(
                f"hand-over of {replaced.email}: a hospital's key is not handed over, since its audit log is signed by "
                "it and heads of that log would no longer prove anything; revoke it and pin its new entry, after "
                "comparing fingerprints"
            )
        if new.public_key == replaced.public_key:
            raise IdentityError(f"hand-over of {new.email}: the key is the same as before; make a new one")
        signed = _hand_over_part(self.replaces, new)
        verify_signature(replaced.public_key, bytes.fromhex(self.old_signature), HAND_OVER, signed)
        verify_signature(new.public_key, bytes.fromhex(self.new_signature), HAND_OVER, signed)


def _hand_over_part(replaced: str, entry: RosterEntry) -> bytes:
    return canonical_json([replaced, entry.model_dump(mode="json")])


class Roster(Agreed):
    """The parties that one party has pinned. Immutable: `pin`, `revoke`, `hand_over` and `without` return a new one.

    `revoked` holds institution keys that were revoked or handed over; none of them is ever pinned again.
    """

    entries: tuple[RosterEntry, ...] = ()
    revoked: tuple[PublicKeyHex, ...] = ()

    @field_validator("entries")
    @classmethod
    def _unique(cls, entries: tuple[RosterEntry, ...]) -> tuple[RosterEntry, ...]:
        for field in ("email", "public_key"):
            values = [getattr(entry, field) for entry in entries]
            if len(set(values)) != len(values):
                raise ValueError(f"roster: two entries have the same {field}")
        return tuple(sorted(entries, key=lambda entry: entry.email))

    @field_validator("revoked")
    @classmethod
    def _sorted(cls, revoked: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(revoked)))

    @model_validator(mode="after")
    def _none_is_revoked(self) -> Self:
        if bad := [entry.email for entry in self.entries if entry.public_key in self.revoked]:
            raise ValueError(f"roster: the key of {bad[0]} was revoked")
        return self

    def canonical(self) -> bytes:
        """As `Agreed`; without `revoked` when there is none, so that older rosters keep their bytes and hash."""
        fields = self.model_dump(mode="json")
        if not fields["revoked"]:
            del fields["revoked"]
        return canonical_json(fields)

    def get(self, email: str) -> RosterEntry:
        """Return the pinned entry of `email`; raise `IdentityError` when there is none (I9)."""
        for entry in self.entries:
            if entry.email == email:
                return entry
        for entry in self.entries:
            if same_identity(entry.email, email):
                raise IdentityError(f"roster: {email} is pinned as {entry.email}; write it in this form")
        raise IdentityError(f"roster: {email} is not pinned; compare fingerprints and run `datasites roster pin`")

    def pin(self, entry: RosterEntry) -> Roster:
        """Return a roster with `entry` added.

        Raises `IdentityError` if another entry is pinned for that mailbox, however it is written, or if the key was
        revoked, and `InputError` for an entry with characters that people don't see.
        """
        if entry.public_key in self.revoked:
            raise IdentityError(
                f"roster: the key {entry.fingerprint} of {entry.email} was revoked; ask for an entry with a new key"
            )
        for known in self.entries:
            if known.email == entry.email:
                if known == entry:
                    return self
                raise IdentityError(
                    f"roster: {entry.email} is pinned with key {known.fingerprint}, the new entry has "
                    f"{entry.fingerprint}; revoke the old entry first if the change is real"
                )
            if same_identity(known.email, entry.email):
                raise IdentityError(
                    f"roster: {entry.email} and {known.email}, which is pinned, are one mailbox, and so one party; "
                    "revoke the old entry first if the change is real"
                )
        require_plain(entry, f"roster entry of {entry.email}")
        return Roster(entries=(*self.entries, entry), revoked=self.revoked)

    def without(self, email: str) -> Roster:
        """Return a roster without `email`, which may be pinned again later."""
        self.get(email)
        return Roster(entries=tuple(entry for entry in self.entries if entry.email != email), revoked=self.revoked)

    def revoke(self, email: str) -> Roster:
        """Return a roster without `email` that never takes its key again (lost, stolen, or no longer trusted)."""
        entry = self.get(email)
        return Roster(entries=self.without(email).entries, revoked=(*self.revoked, entry.public_key))

    def hand_over(self, change: HandOver) -> Roster:
        """Return a roster with the new entry of `change` in place of the old one, whose key is never taken again.

        Raises `IdentityError` when the change isn't signed by the pinned key and the new one, or not for this entry.
        """
        change.check(self.get(change.entry.email))
        return self.revoke(change.entry.email).pin(change.entry)

    def save(self, path: Path) -> None:
        """Write, in one step."""
        replace_durably(path, self.canonical(), mode=0o666)

    @classmethod
    def load(cls, path: Path) -> Roster:
        """Read the roster; a missing file is an empty roster."""
        try:
            return cls.parse(path.read_bytes())
        except FileNotFoundError:
            return cls()
        except ValueError as error:
            raise IdentityError(f"{path}: not a roster: {error}") from error
