"""Syft identities with pinned fingerprints, and envelopes sealed with them.

Each party has syft-crypto keys: an Ed25519 identity key that signs envelopes, and X25519 keys to encrypt to. Its
public bundle lies in the store, where anybody may replace it; the roster holds the fingerprint of the true one. A
bundle is used only if its fingerprint is the pinned one and its own signatures hold (I9). Nothing is sent in plain:
where stock syft passes bytes through for a peer without keys, this raises.

An envelope's signature covers its header, and the header covers the ciphertext for its recipients; so an envelope
has one recipient, and what is inside repeats who it is from and for. Padding between header and ciphertext is not
covered by the signature: changing it changes the envelope's bytes and nothing that is read from it.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasites.control.without_ipython  # noqa: F401

import syft_crypto_python as syc
from syft.sync.peers.peer import Peer
from syft.sync.peers.peer_store import PeerStore

from datasites.study.files import sync_file, sync_folder
from datasites.study.identity import EMAIL, IdentityError
from datasites.study.roster import Roster
from datasites.transport.mailroom import BadEnvelope

MAX_BUNDLE_BYTES = 64 * 1024


class WrongBundle(IdentityError):
    """The key bundle in the store is missing or not the one whose fingerprint is pinned."""


class StrictPeerStore(PeerStore):
    """Syft's keys and peers, always encrypting: a peer without verified keys is an error, never plaintext."""

    def peer_uses_encryption(self, email: str) -> bool:
        """Return True always; stock syft says no for an unknown peer and then sends plaintext."""
        return True


def open_keys(email: str, path: Path) -> StrictPeerStore:
    """Open the syft keys of `email` in `path` (mode 0600); make them at first use."""
    if not EMAIL.match(email):
        raise IdentityError(f"syft keys: {email!r} is not an e-mail address")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists():
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise IdentityError(f"{path}: mode {mode:o} lets others read the keys; run `chmod 600 {path}`")
        keys = StrictPeerStore.load_keys(path)
        if keys.email != email:
            raise IdentityError(f"{path}: these are the keys of {keys.email}, not of {email}; set another folder")
        keys.clear_caches()  # bundles of peers are taken from the store and checked against the roster
        return keys
    keys = StrictPeerStore(email=email, use_encryption=True)
    keys.generate_keys()
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    # Made with its mode before syft writes into it: at no time may others read it.
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        keys.save_keys(temporary)
        sync_file(temporary)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # unlike a rename, it doesn't replace keys that another process made meanwhile
        # Before anybody pins their fingerprint: a power cut would leave keys that nobody knows.
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return open_keys(email, path)


def syft_fingerprint(keys: PeerStore) -> str:
    """Return the fingerprint of our public bundle, 64 hex digits, as it goes into our roster entry."""
    return str(keys.public_key.identity_fingerprint())


def checked_bundle(email: str, data: bytes | None, roster: Roster) -> dict[str, Any]:
    """Return the public bundle (a DID document) in `data` if it is the pinned one; raise `WrongBundle` otherwise."""
    entry = roster.get(email)
    if not entry.syft_fingerprint:
        raise WrongBundle(f"roster: the entry of {email} has no syft fingerprint; ask for a complete entry, pin that")
    if data is None:
        raise WrongBundle(f"{email} has not published its keys in the store yet; try again when it has started")
    try:
        bundle = json.loads(data)["public_encryption_bundle"]
        parsed = syc.SyftPublicKeyBundle.from_did_document(bundle)
        found = str(parsed.identity_fingerprint())
        sound = bool(parsed.verify_signatures())
    except Exception as error:  # the native library and json raise various types on hostile input
        raise WrongBundle(f"keys of {email} in the store can't be read: {error}; ask it to start again") from error
    if not sound or not hmac.compare_digest(found, entry.syft_fingerprint):
        raise WrongBundle(
            f"keys of {email} in the store have fingerprint {found}, pinned is {entry.syft_fingerprint}; somebody "
            f"may have replaced them: compare by telephone, and pin the new entry only if {email} confirms it"
        )
    return dict(bundle)


class SyftSealer:
    """Envelopes between pinned parties (a `mailroom.Sealer`). `fetch` gives the stored bundle bytes of a party."""

    def __init__(self, keys: PeerStore, roster: Roster, fetch: Callable[[str], bytes | None]) -> None:
        # Own list of peers beside syft's: letters go between hospitals too, which are no syft peers of each other.
        self._keys = StrictPeerStore(email=keys.email, use_encryption=True)
        self._keys._private_keys = keys._private_keys
        self._fetch = fetch
        self._roster = roster

    def pin(self, roster: Roster) -> None:
        """Use another roster from now on; bundles are checked anew."""
        self._roster = roster
        self._keys.clear_caches()

    def seal(self, to: str, data: bytes) -> bytes:
        """Sign and encrypt to `to`; raises `IdentityError` when it isn't pinned or its bundle is not the pinned one."""
        self._know(to)
        return bytes(self._keys.encrypt(to, data))

    def open(self, sender: str, envelope: bytes) -> bytes:
        """Verify and decrypt; raises `BadEnvelope`, or `IdentityError` when `sender` isn't known for certain."""
        self._know(sender)
        try:
            self._keys.verify_message(sender, envelope)
            return bytes(self._keys.decrypt(sender, envelope))
        except Exception as error:  # the native library raises various types on hostile input
            raise BadEnvelope(str(error)[:200]) from error

    def _know(self, email: str) -> None:
        if self._keys.has_peer_bundle(email):
            return
        bundle = checked_bundle(email, self._fetch(email), self._roster)
        self._keys.set_peer(Peer(email=email, public_encryption_bundle=bundle))
