"""Who signs: an institution's one long-term Ed25519 key, its file, and what its signatures are bound to.

Whose keys others trust is the matter of `roster`. This room does no network I/O; it reads and writes files of its own
only.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field

from datasites.study.errors import DatasitesError
from datasites.study.visible import BLANK

EMAIL = re.compile(r"^[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+$")
Email = Annotated[str, Field(pattern=EMAIL.pattern, max_length=190)]
PublicKeyHex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class IdentityError(DatasitesError, ValueError):
    """A key, a roster or a signature is not what it must be; the message names the remedy."""


class BadSignature(IdentityError):
    """A signature does not verify under the pinned key."""


def identity_key(name: str) -> str:
    """Return what tells one person, party, organisation or address from another: names of one key are one.

    Capitals, widths and compositions of letters, spaces, and what is not seen, tell nobody apart; letters that only
    look alike do (those of other scripts, i without its dot). Names are compared by it and kept as they were written,
    so that what is signed stays as it is.
    """
    # Caseless matching of compatibility forms (The Unicode Standard, 3.13, D146), composed again.
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFD", name).casefold()).casefold()
    seen = "".join(c for c in folded if unicodedata.category(c) != "Cf" and c not in BLANK)
    return " ".join(unicodedata.normalize("NFKC", seen).split())


def same_identity(one: str, other: str) -> bool:
    """Return whether two names are one person's, party's, organisation's or mailbox's."""
    return identity_key(one) == identity_key(other)


def written_twice(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two of these names that are one, or None."""
    seen: dict[str, str] = {}
    for name in names:
        if (key := identity_key(name)) in seen:
            return seen[key], name
        seen[key] = name
    return None


def fingerprint(public_key: str) -> str:
    """Return what two people compare by telephone: 40 hex digits of SHA-256(key) in groups of four."""
    digest = hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:40]
    return " ".join(digest[i : i + 4] for i in range(0, 40, 4))


def verify_signature(public_key: str, signature: bytes, domain: str, data: bytes) -> None:
    """Raise `BadSignature` unless `signature` is by `public_key` (hex) over `data` in `domain`."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(signature, _framed(domain, data))
    except (InvalidSignature, ValueError) as error:
        raise BadSignature(
            f"{domain}: the signature does not verify under the pinned key {fingerprint(public_key)}; "
            "ask the sender to send it again, and compare fingerprints by telephone if it happens twice"
        ) from error


def _framed(domain: str, data: bytes) -> bytes:
    # The domain keeps a signature over one kind of message from serving as another kind.
    name = domain.encode()
    return b"datasites/1\0" + len(name).to_bytes(2, "big") + name + data


class Identity:
    """An institution's long-term signing key; the private half never leaves its file (mode 0600)."""

    def __init__(self, email: str, key: Ed25519PrivateKey) -> None:
        if not EMAIL.match(email):
            raise IdentityError(f"identity: {email!r} is not an e-mail address")
        self.email = email
        self._key = key

    @property
    def public_key(self) -> str:
        """Return the Ed25519 public key, 64 hex digits."""
        return self._key.public_key().public_bytes_raw().hex()

    @property
    def fingerprint(self) -> str:
        """See `fingerprint()`."""
        return fingerprint(self.public_key)

    def sign(self, domain: str, data: bytes) -> bytes:
        """Make an Ed25519 signature (64 bytes) over `data`, bound to `domain` (a message kind such as "survivors")."""
        return self._key.sign(_framed(domain, data))

    @classmethod
    def generate(cls, email: str) -> Identity:
        """Make a new key from the operating system's generator."""
        return cls(email, Ed25519PrivateKey.generate())

    def save(self, path: Path, passphrase: str | None = None) -> None:
        """Write the key as PKCS#8 PEM with mode 0600, on the disk when this returns; refuses to overwrite."""
        from datasites.study.files import write_durably  # locks, which a system that only verifies need not have

        protection = (
            serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
        )
        pem = self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_durably(path.parent, {path.name: pem}, new=True)
        except FileExistsError as error:
            raise IdentityError(f"{path}: a key is already there; move it away to make a new one") from error

    @classmethod
    def load(cls, path: Path, email: str, passphrase: str | None = None) -> Identity:
        """Read a key file; refuses one that others can read."""
        try:
            mode = path.stat().st_mode & 0o777
            pem = path.read_bytes()
        except FileNotFoundError as error:
            raise IdentityError(f"{path}: no institution key; run `datasites init`") from error
        if mode & 0o077:
            raise IdentityError(f"{path}: mode {mode:o} lets others read the key; run `chmod 600 {path}`")
        try:
            key = serialization.load_pem_private_key(pem, passphrase.encode() if passphrase else None)
        except (ValueError, TypeError) as error:
            raise IdentityError(f"{path}: not a readable key: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityError(f"{path}: not an Ed25519 key")
        return cls(email, key)
