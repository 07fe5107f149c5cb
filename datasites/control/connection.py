"""A syft 0.10 connection over a `Store`: where stock syft uses Google Drive, this uses any folder, SFTP, S3 or WebDAV.

Layout in the store (all of it written by parties, none of it trusted):

    identities/<email>/bundle.json                      public syft keys; used only with the pinned fingerprint
    p2p/<datasite>/<peer>/request.json                  <peer> asks <datasite> to be its peer
    p2p/<datasite>/<peer>/inbox/msgv2_…                 <peer> → <datasite>: proposed files (encrypted)
    p2p/<datasite>/<peer>/outbox/syfteventsmessagev3_…  <datasite> → <peer>: files (encrypted)
    collections/<owner>/<prefix>_<name>_<hash>/<file>   mock data: public, in plain, signed by its owner

Peers' states are kept locally. There is no rolling state, no checkpoint, no event log and no version file: the owner's
own folder is the truth, and nothing about the owner is ever restored from the store. This file moves bytes; what
they must be to be believed is in `guards`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Collection, Iterator
from typing import Any, ClassVar, TypeAlias

import datasites.control.without_ipython  # noqa: F401

from pydantic import ConfigDict, PrivateAttr
from syft.sync.connections.base_connection import ConnectionConfig, FileCollection, SyftboxPlatformConnection
from syft.sync.connections.drive.gdrive_transport import CollectionFolder
from syft.sync.events.file_change_event import FileChangeEventsMessageFileName
from syft.sync.messages.proposed_filechange import FileNameParseError, MessageFileName
from syft.sync.version.version_info import VersionInfo

from datasites.control.sealer import MAX_BUNDLE_BYTES, WrongBundle, checked_bundle
from datasites.control.sync_state import SyncLog
from datasites.study.canonical import sha256_hex
from datasites.study.identity import EMAIL, IdentityError
from datasites.study.roster import Roster
from datasites.transport.passed_over import PassedOver
from datasites.transport.quarantine import Quarantine
from datasites.transport.second_look import SecondLook
from datasites.transport.store import PART, WHOLE_STORE, Store, StoreError
from datasites.transport.sweep import FolderLook, Sweep

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
#: Messages that are taken from one peer at one sync at most. An honest one sends a few.
MESSAGES_PER_PEER = 2_000
#: Records of names in one folder that no message has, at one sync; the last of them counts those that it doesn't name.
BAD_NAMES_PER_SYNC = 20
#: Collections of one owner that are looked at in one sync; the next one goes on.
COLLECTIONS_PER_SYNC = 500

MessageName: TypeAlias = MessageFileName | FileChangeEventsMessageFileName


def inbox_folder(datasite: str, peer: str) -> str:
    """Return where `peer` leaves messages for `datasite`."""
    return f"p2p/{datasite}/{peer}/inbox"


def outbox_folder(datasite: str, peer: str) -> str:
    """Return where `datasite` leaves messages for `peer`."""
    return f"p2p/{datasite}/{peer}/outbox"


def sent_at(name: str, kind: type[MessageName]) -> float | None:
    """Return when a message of that name says that it was sent; None for what can't be the name of one."""
    try:
        parsed = kind.from_string(name)
    except (ValueError, FileNameParseError):
        return None
    moment = parsed.submitted_timestamp if isinstance(parsed, MessageFileName) else parsed.timestamp
    is_proper = PART.fullmatch(name) is not None and parsed.as_string() == name and math.isfinite(moment)
    return moment if is_proper else None


class StoreConnection(SyftboxPlatformConnection):
    """See the module's text. File ids are store keys."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    connection_type: ClassVar[type] = ConnectionConfig
    email: str
    store: Store
    log: SyncLog
    quarantine: Quarantine
    roster: Roster
    _stuck: PassedOver = PrivateAttr(default_factory=PassedOver)
    _second_look: SecondLook = PrivateAttr()
    _sweep: Sweep = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Begin to look."""
        super().model_post_init(context)
        self._second_look = SecondLook(self.store.settles)
        self._sweep = Sweep(self.store)

    def get_authenticated_email(self) -> str:
        """Our own e-mail; a store has no accounts that we know of."""
        return self.email

    def reset_caches(self) -> None:
        """There are none."""

    def refuse(self, key: str, reason: str, data: bytes = b"") -> None:
        """Quarantine what lay under `key` and take it out of the store, so that it blocks nobody."""
        if key in self._stuck:
            return
        self._second_look.forget(key)
        self.quarantine.keep(key, reason, data)
        self.remove(key)

    def refuse_when_settled(self, key: str, reason: str, data: bytes) -> None:
        """As `refuse`, for what a message would look like that is still being written: not at the first look."""
        if self._second_look.is_final(key, sha256_hex(data)):
            self.refuse(key, reason, data)

    def remove(self, key: str) -> bool:
        """Take a message that is done with out of the store; whether it is gone.

        One that we may not delete is passed over from now on; in an outage it is removed at another sync.
        """
        try:
            self.store.delete(key)
        except WHOLE_STORE as error:
            logger.warning("%s; it is removed later", error)
            return False
        except StoreError as error:
            logger.warning("%s; it is passed over from now on", error)
            self._stuck.add(key)
            return False
        return True

    def _is_passed_over(self, key: str) -> bool:
        return key in self._stuck or self._second_look.waits(key)

    def refuse_folder(self, folder: str, reason: str, rest: float = 0.0) -> None:
        """Report a folder, or what kept us from using it, once, and pass it over; its owner alone may mend it.

        rest: seconds for which `rests` says so.
        """
        if folder not in self._stuck:
            self.quarantine.keep(folder, reason)
        self._stuck.add(folder, rest=rest)

    @contextlib.contextmanager
    def _obstructed(self, folder: str) -> Iterator[None]:
        """Report a folder that is found to be out of order, and go on; raises what concerns the whole store."""
        try:
            yield
        except WHOLE_STORE:
            raise
        except StoreError as error:
            self.refuse_folder(folder, str(error))

    def refuse_folder_when_settled(self, folder: str, reason: str, mark: str, rest: float = 0.0) -> None:
        """As `refuse_folder`, for a folder whose contents, `mark`, may be half written: not at the first look."""
        if folder in self._stuck or self._second_look.is_final(folder, mark):
            self.refuse_folder(folder, reason, rest)

    def rests(self, folder: str) -> bool:
        """Tell whether a folder was refused a moment ago, or is perhaps half written and was looked at a moment ago."""
        return self._stuck.rests(folder) or self._second_look.waits(folder)

    def turn_of(self, folder: str) -> tuple[float, bool]:
        """Return the sort key of a folder: never looked at first, then in doubt, then refused; longest ago first."""
        return self._stuck.rests_until(folder), folder in self._second_look

    def is_in_order(self, key: str) -> None:
        """Note that what was perhaps half written at `key` is whole."""
        self._second_look.forget(key)

    def download_file(self, file_id: str) -> bytes:
        """Return the object under a key; raise `FileNotFoundError` when absent, `TooLarge` above 16 MiB."""
        data = self.store.get(file_id, limit=MAX_MESSAGE_BYTES)
        if data is None:
            raise FileNotFoundError(file_id)
        return data

    def delete_file_by_id(self, file_id: str, verbose: bool = False, raise_on_error: bool = False) -> None:
        """Delete one object."""
        self.store.delete(file_id)

    def delete_multiple_files_by_ids(
        self, file_ids: list[str], ignore_permissions_errors: bool = True, ignore_file_not_found: bool = True
    ) -> None:
        """Delete objects."""
        for file_id in file_ids:
            self.store.delete(file_id)

    # Peers

    def add_peer(self, peer_email: str) -> None:
        """Ask `peer_email` to be our peer."""
        key = f"p2p/{peer_email}/{self.email}/request.json"
        if not self.store.exists(key):
            self.store.put(key, json.dumps({"from": self.email}).encode())

    def get_peer_requests(self) -> list[str]:
        """Pinned parties that have asked us and whom we have neither accepted nor rejected; others are not shown."""
        known = self._get_peers_json()
        asking = []
        listing = self.store.look(f"p2p/{self.email}")
        # Where more lies there than is listed, each pinned party is looked for by name.
        names = listing.names if listing.is_whole else [entry.email for entry in self.roster.entries]
        for email in names:
            if known.get(email, {}).get("state") in ("accepted", "rejected") or not self._pinned(email):
                continue
            with self._obstructed(f"p2p/{self.email}/{email}"):
                if self.store.exists(f"p2p/{self.email}/{email}/request.json"):
                    asking.append(email)
        return asking

    def _pinned(self, email: str) -> bool:
        try:
            return bool(EMAIL.fullmatch(email)) and bool(self.roster.get(email).syft_fingerprint)
        except IdentityError:
            return False

    def _get_peers_json(self, force_download: bool = False) -> dict[str, dict[str, Any]]:
        """Return our peers that are pinned now. A remembered bundle that no longer fits the roster is left out."""
        peers = {}
        for email, entry in self.log.peers().items():
            if not self._pinned(email):
                continue
            bundle = entry.get("public_encryption_bundle")
            if bundle is not None:
                try:
                    checked_bundle(email, json.dumps({"public_encryption_bundle": bundle}).encode(), self.roster)
                except WrongBundle:
                    entry = {**entry, "public_encryption_bundle": None}
            peers[email] = entry
        return peers

    def _update_peer_state(
        self, peer_email: str, state: str, public_encryption_bundle: dict[str, Any] | None = None
    ) -> None:
        entry = self.log.peers().get(peer_email, {})
        entry["state"] = state
        if public_encryption_bundle is not None:
            entry["public_encryption_bundle"] = public_encryption_bundle
        self.log.mark_peer(peer_email, entry)

    # Keys. One bundle serves all peers. Version files are neither written nor read: stock syft pastes what a peer
    # writes there into the script that it runs.

    def write_encryption_bundle(self, peer_email: str, bundle_json: str) -> None:
        """Publish our public keys."""
        key, data = f"identities/{self.email}/bundle.json", bundle_json.encode()
        with contextlib.suppress(WrongBundle):
            if self.stored_bundle(self.email) == data:
                return
        self.store.put(key, data)

    def share_encryption_bundles_folder(self, peer_email: str) -> None:
        """Nothing to do: everybody may read the store."""

    def stored_bundle(self, email: str) -> bytes | None:
        """Return what the store holds as the keys of `email`, unchecked."""
        try:
            return self.store.get(f"identities/{email}/bundle.json", limit=MAX_BUNDLE_BYTES)
        except WHOLE_STORE:
            raise
        except StoreError as error:
            raise WrongBundle(f"keys of {email} in the store: {error}") from error

    def read_peer_encryption_bundle(self, peer_email: str) -> str | None:
        """Return a peer's pinned bundle, or None if the store has none or a wrong one (which goes to quarantine)."""
        key, data = f"identities/{peer_email}/bundle.json", None
        try:
            data = self.stored_bundle(peer_email)
            checked_bundle(peer_email, data, self.roster)
        except IdentityError as error:
            # It is looked at at each sync, and reported once, when it can't be half written any more.
            mark = f"{peer_email} {sha256_hex(data or b'')}"
            if data is not None and mark not in self._stuck and self._second_look.is_final(key, mark):
                self.quarantine.keep(key, str(error), data)
                self._stuck.add(mark)
            return None
        self._second_look.forget(key)
        return data.decode() if data is not None else None

    def write_version_file(self, version_info: VersionInfo) -> None:
        """Not written."""

    def share_version_file_with_peer(self, peer_email: str) -> None:
        """Not written."""

    def read_own_version_file(self) -> VersionInfo | None:
        """None."""
        return None

    def read_peer_version_file(self, peer_email: str) -> VersionInfo | None:
        """None: never trusted."""
        return None

    # Inbox: researcher → datasite

    def watcher_send_raw_bytes_to_inbox(self, recipient: str, filename: str, data: bytes) -> None:
        """Put a message for a datasite."""
        self.store.put(f"{inbox_folder(recipient, self.email)}/{filename}", data)

    def inbox_keys(self, sender_email: str) -> list[str]:
        """Return the keys of the messages of one sender, oldest first; other names in the folder are refused."""
        return self._messages(inbox_folder(self.email, sender_email), MessageFileName)

    def _messages(self, folder: str, kind: type[MessageName]) -> list[str]:
        """Keys of messages in `folder`, oldest first; see `sweep` for what is seen of a crowded one, and when."""
        times: dict[str, float] = {}

        def is_wanted(name: str) -> bool | None:
            moment = sent_at(name, kind)
            if moment is None:
                return False
            times[name] = moment
            return None if self._is_passed_over(f"{folder}/{name}") else True

        seen = self._sweep.look(folder, is_wanted, MESSAGES_PER_PEER)
        self._report(folder, seen, "not the name of a syft message")
        return [f"{folder}/{name}" for name in sorted(seen.wanted, key=lambda name: (times[name], name))]

    def _report(self, folder: str, seen: FolderLook, reason: str) -> None:
        """Keep a record of names that were removed: of some by name, of all others how many there were."""
        shown = sorted(seen.removed)[: BAD_NAMES_PER_SYNC - 1]
        for name in shown:
            self.quarantine.keep(f"{folder}/{ascii(name)[1:-1]}", reason)
        if rest := len(seen.removed) - len(shown):
            self.quarantine.keep(folder, f"{reason}: {rest} more names, removed as well")
        if seen.kept:
            self.refuse_folder(folder, f"{reason}: {seen.kept} names that can't be removed; they hide no others")

    def owner_remove_proposed_filechange_message_from_inbox(self, message: Any) -> None:
        """Take a handled message out of the inbox."""
        self.store.delete(message.platform_id)

    # Outbox: datasite → researcher

    def owner_write_raw_bytes_to_outbox(self, recipient: str, filename: str, data: bytes) -> None:
        """Put a message for a peer."""
        self.store.put(f"{outbox_folder(self.email, recipient)}/{filename}", data)

    def outbox_keys(self, peer_email: str) -> list[str]:
        """Return the keys of the messages that a datasite has left for us, oldest first; other names are refused."""
        return self._messages(outbox_folder(peer_email, self.email), FileChangeEventsMessageFileName)

    def _get_own_datasite_outbox_id(self, peer_email: str) -> str | None:
        return None  # nothing to merge: a peer removes what it has read

    # Collections: mock data, public

    def _collections(self, owner: str, prefix: str) -> list[tuple[CollectionFolder, str]]:
        return self._look_at_collections(owner, prefix)[0]

    def _look_at_collections(self, owner: str, prefix: str) -> tuple[list[tuple[CollectionFolder, str]], bool]:
        """Read collections of one owner, some at a time, and whether those were the last; of what else lies there the
        owner clears what is no folder.
        """
        found: dict[str, CollectionFolder] = {}

        def is_wanted(name: str) -> bool | None:
            with contextlib.suppress(ValueError):
                if PART.fullmatch(name):
                    found[name] = CollectionFolder.from_name(prefix, name)
                    return True
            return False if owner == self.email else None

        seen = self._sweep.look(f"collections/{owner}", is_wanted, COLLECTIONS_PER_SYNC)
        self._report(f"collections/{owner}", seen, "not the name of a collection")
        return [(found[name], f"collections/{owner}/{name}") for name in sorted(seen.wanted)], seen.is_over

    def owner_create_collection_folder(self, prefix: str, tag: str, content_hash: str, owner_email: str) -> str:
        """Return the folder's key; folders come with the first file."""
        folder = CollectionFolder(prefix=prefix, tag=tag, content_hash=content_hash).folder_name
        return f"collections/{self.email}/{folder}"

    def owner_tag_collection_as_any(self, prefix: str, tag: str, content_hash: str) -> None:
        """Nothing to do: a mock collection is open to all who read the store."""

    def owner_share_collection(self, prefix: str, tag: str, content_hash: str, users: list[str]) -> None:
        """Nothing to do: a mock collection is open to all who read the store."""

    def owner_upload_collection_files(self, prefix: str, tag: str, content_hash: str, files: dict[str, bytes]) -> None:
        """Put the files of a collection."""
        folder = self.owner_create_collection_folder(prefix, tag, content_hash, self.email)
        for name, data in files.items():
            self.store.put(f"{folder}/{name}", data)

    def owner_list_collections(self, prefix: str) -> list[str]:
        """Return the names of our collections."""
        return [collection.tag for collection, _ in self._collections(self.email, prefix)]

    def owner_list_all_collections_with_permissions(self, prefix: str) -> list[FileCollection]:
        """None: an owner never restores its own data from the store."""
        return []

    def owner_delete_collection(self, prefix: str, tag: str, keep: str = "") -> None:
        """Delete all versions of a collection but that with content hash `keep`; which can't be is reported once."""
        for collection, folder in self._collections(self.email, prefix):
            if collection.tag == tag and collection.content_hash != keep:
                try:
                    self.store.delete_folder(folder)
                except WHOLE_STORE:
                    raise
                except StoreError as error:
                    self.refuse_folder(folder, str(error))

    def owner_keep_collections(self, prefix: str, tags: Collection[str]) -> None:
        """Delete collections that have none of these names, some at a time; what can't be deleted is reported once,
        and keeps no other there."""
        with self._obstructed(f"collections/{self.email}"):
            for collection, folder in self._collections(self.email, prefix):
                if collection.tag not in tags:
                    with self._obstructed(folder):
                        self.store.delete_folder(folder)

    def peer_collections(self, owner: str, prefix: str) -> tuple[list[tuple[str, str]], bool]:
        """(name, folder key) of some of one owner's collections, and whether those were the last; several versions of
        one name may lie there."""
        found, is_over = self._look_at_collections(owner, prefix)
        return [(collection.tag, folder) for collection, folder in found], is_over

    # What stock syft would keep of an owner's state in the transport: nothing.

    def download_raw_latest_checkpoint(self) -> bytes | None:
        """None."""
        return None

    def download_all_raw_incremental_checkpoints(self) -> list[bytes]:
        """None."""
        return []

    def download_raw_rolling_state(self) -> bytes | None:
        """None."""
        return None

    def owner_get_all_accepted_event_file_ids(self, since_timestamp: float | None = None) -> list[str]:
        """None."""
        return []
