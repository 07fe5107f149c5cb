"""Mock datasets in the store: public, in plain, and signed by the institution whose data they imitate.

Stock syft takes whatever lies in a collection's folder. Here a folder holds `mock.signed.json`: the names and SHA-256
of all its files with a version that only rises, signed with the institution key that the roster pins. A folder that
doesn't match to the byte, or is older than one seen before, is quarantined and changes nothing; one that may be half
written is looked at again before. Claim: of a mock that its hospital publishes since it started, what the store lacks
or has changed is put again within `LOOKS_EVERY` seconds and one sync, the same bytes, however obstructed the places
of other mocks are; one whose own place is, within that time of its being free again. It costs the hospital to read
its mocks from the store once in that time.

Claim (floods): of one owner, however well it signs, a researcher keeps `MOST_MOCKS` mocks of `MOST_MOCKS_BYTES`, of
each the newest version that it took and no file of another, whole or not at all. At one sync it reads `BYTES_PER_SYNC`
(and one mock more) of what lies there, whoever wrote it, first of all what it has not looked at before, and nothing
that may be half written twice within the time that it is given. What a hospital no longer offers leaves the store when
it says so, and where somebody lays it there again within `LOOKS_EVERY` seconds and one sync (of a flood, some each
time), however many lie there that can't be deleted; what a researcher has of it stays until a person removes it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import datasites.control.without_ipython  # noqa: F401

from pydantic import Field, ValidationError
from syft.sync.connections.drive.gdrive_transport import CollectionFolder
from syft_datasets.dataset_manager import DATASET_COLLECTION_PREFIX
from syft_rds.config import COLLECTION_SUBPATH

from datasites.control.connection import StoreConnection
from datasites.control.sync_state import LARGEST_NUMBER, SyncLog
from datasites.study.canonical import Agreed, sha256_hex
from datasites.study.errors import DatasitesError
from datasites.study.identity import Email, Identity, IdentityError, verify_signature
from datasites.study.roster import Roster
from datasites.transport.store import WHOLE_STORE, Store, StoreError, TooLarge
from datasites.transport.writing import put_folder

logger = logging.getLogger(__name__)

SIGNED = "mock.signed.json"
DOMAIN = "mock-dataset"
#: Seconds between two looks whether our own mocks still lie in the store.
LOOKS_EVERY = 300.0
MAX_SIGNED_BYTES = 256 * 1024
#: Files and bytes of one mock dataset.
MOST_FILES, MAX_MOCK_BYTES = 100, 64 * 1024 * 1024
#: Mock datasets of one owner that a researcher keeps, and bytes of them.
MOST_MOCKS, MOST_MOCKS_BYTES = 100, 1024**3
#: What a researcher reads of one owner's mock data at a sync.
BYTES_PER_SYNC = 2 * MAX_MOCK_BYTES
#: Syncs in which all that is kept of one owner can come, the lists of what has come read at each of them.
SYNCS_FOR_ALL = MOST_MOCKS_BYTES // BYTES_PER_SYNC + 2
FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


class BadMock(DatasitesError, ValueError):
    """A mock dataset is not what its owner signed; the message says in what."""


class MockManifest(Agreed):
    """What an institution signs of a mock dataset. `mock` is the file that stands for the data."""

    format: Annotated[int, Field(ge=1, le=1)] = 1
    owner: Email
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,80}$")]
    version: Annotated[int, Field(ge=1, le=LARGEST_NUMBER)]
    summary: Annotated[str, Field(max_length=4000)] = ""
    mock: str
    files: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]


class SignedMock(Agreed):
    """A manifest and the Ed25519 signature (hex) over its canonical bytes in domain "mock-dataset"."""

    manifest: MockManifest
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


def sign_mock(identity: Identity, manifest: MockManifest) -> bytes:
    """Return the content of `mock.signed.json`."""
    signature = identity.sign(DOMAIN, manifest.canonical()).hex()
    return SignedMock(manifest=manifest, signature=signature).canonical()


def check_signed(owner: str, name: str, head: bytes, roster: Roster) -> MockManifest:
    """Return what the pinned `owner` signed as `name`, from the bytes of `mock.signed.json`; raise `BadMock`."""
    try:
        signed = SignedMock.parse(head)
        verify_signature(
            roster.get(owner).public_key, bytes.fromhex(signed.signature), DOMAIN, signed.manifest.canonical()
        )
    except (ValidationError, ValueError, IdentityError) as error:
        raise BadMock(f"{SIGNED}: {error}") from error
    manifest = signed.manifest
    if (manifest.owner, manifest.name) != (owner, name):
        raise BadMock(f"it is signed as {manifest.name} of {manifest.owner}, it lay as {name} of {owner}")
    if manifest.mock not in manifest.files or not all(FILE.fullmatch(file) for file in manifest.files):
        raise BadMock("its list of files is not proper")
    if len(manifest.files) > MOST_FILES:
        raise BadMock(f"it has {len(manifest.files)} files; {MOST_FILES} are the most")
    return manifest


def check_mock(owner: str, name: str, files: dict[str, bytes], roster: Roster) -> MockManifest:
    """Return the manifest if the pinned `owner` signed `files` (with `mock.signed.json`) as `name`; raise `BadMock`."""
    if SIGNED not in files:
        raise BadMock(f"{SIGNED} is missing")
    manifest = check_signed(owner, name, files[SIGNED], roster)
    found = {file: sha256_hex(data) for file, data in files.items() if file != SIGNED}
    if found != manifest.files:
        differ = sorted({*found.items()} ^ {*manifest.files.items()})
        raise BadMock(f"file {differ[0][0]} is not what {owner} signed")
    return manifest


def next_version(
    owner: str, log: SyncLog, name: str, mock: str, summary: str, files: Mapping[str, bytes]
) -> MockManifest:
    """Return what `owner` is to sign of a mock of these files; the same files again keep their version.

    Noted before it is put: a crash in between may skip a version, it can't use one twice. Raises `BadMock` for more
    than readers take.
    """
    size = sum(map(len, files.values()))
    if len(files) > MOST_FILES or size > MAX_MOCK_BYTES:
        raise BadMock(
            f"mock {name}: {len(files)} files of {size} bytes together; researchers take {MOST_FILES} files of "
            f"{MAX_MOCK_BYTES} bytes at most; publish fewer invented rows"
        )
    hashes = {file: sha256_hex(data) for file, data in files.items()}
    digest = hashlib.sha256(json.dumps([summary, mock, hashes], sort_keys=True).encode()).hexdigest()
    last = log.mock(owner, name)
    version = 1 if last is None else last[0] + (last[1] != digest)
    manifest = MockManifest(owner=owner, name=name, version=version, summary=summary, mock=mock, files=hashes)
    log.mark_mock(owner, name, version, digest)
    return manifest


def _put(connection: StoreConnection, identity: Identity, manifest: MockManifest, files: dict[str, bytes]) -> None:
    """Put what the store lacks of a mock, not what lies there byte for byte, and remove other versions of it."""
    # The signed list comes last: before it, a reader takes nothing.
    whole = {**files, SIGNED: sign_mock(identity, manifest)}
    content_hash = CollectionFolder.compute_hash(whole)
    place = DATASET_COLLECTION_PREFIX, manifest.name, content_hash
    folder = connection.owner_create_collection_folder(*place, manifest.owner)
    lost = {file: data for file, data in whole.items() if not connection.store.holds(f"{folder}/{file}", data)}
    connection.owner_upload_collection_files(*place, lost)
    connection.owner_delete_collection(DATASET_COLLECTION_PREFIX, manifest.name, keep=content_hash)


class OwnMocks:
    """What a hospital publishes since it started, to put it again where the store loses it."""

    def __init__(self, connection: StoreConnection, identity: Identity) -> None:
        self._connection = connection
        self._identity = identity
        self._published: dict[str, tuple[MockManifest, Path]] = {}
        self._offered: frozenset[str] | None = None
        self._next_look = time.monotonic() + LOOKS_EVERY

    def publish(self, manifest: MockManifest, folder: Path, files: dict[str, bytes]) -> None:
        """Put these files into the store. Where that fails, they are put when it is time to look.

        folder: holds the same files.
        """
        self._published[manifest.name] = manifest, folder
        _put(self._connection, self._identity, manifest, files)

    def offer(self, names: Collection[str]) -> None:
        """Take all mocks but these out of the store, now and whenever it is time to look."""
        self._offered = frozenset(names)
        self._published = {name: one for name, one in self._published.items() if name in self._offered}
        self._connection.owner_keep_collections(DATASET_COLLECTION_PREFIX, self._offered)

    def put_again(self) -> None:
        """Put what the store has lost, when it is time to look; in an outage it stays time to look.

        Each is tried by itself. Raises `StoreError` when all were tried, for those whose places are out of order.
        """
        if time.monotonic() < self._next_look:
            return
        obstructed = []
        for manifest, folder in self._published.values():
            try:
                files = {file: (folder / file).read_bytes() for file in manifest.files}
            except OSError as error:
                logger.warning("mock %s is not put again: %s", manifest.name, error)
                continue
            if {file: sha256_hex(data) for file, data in files.items()} != manifest.files:
                logger.warning("mock %s is not put again: %s holds other files by now", manifest.name, folder)
                continue
            try:
                _put(self._connection, self._identity, manifest, files)
            except WHOLE_STORE:
                raise
            except StoreError as error:
                obstructed.append(f"mock {manifest.name}: {error}")
        if self._offered is not None:
            self._connection.owner_keep_collections(DATASET_COLLECTION_PREFIX, self._offered)
        self._next_look = time.monotonic() + LOOKS_EVERY
        if obstructed:
            raise StoreError("; ".join(obstructed))


@dataclass
class _Reading:
    """What was read from the store at one sync."""

    store: Store
    read: int = 0

    def get(self, key: str, limit: int) -> bytes | None:
        """As the store's."""
        try:
            data = self.store.get(key, limit=limit)
        except TooLarge:
            self.read += limit  # some stores show how large it is by being read
            raise
        self.read += len(data or b"")
        return data


def fetch_mocks(connection: StoreConnection, log: SyncLog, owner: str, syftbox: Path) -> tuple[bool, bool]:
    """Bring `owner`'s new mock datasets into our SyftBox; unsigned, changed and older ones go to quarantine.

    So do those for which there is no room. Returns whether all that was looked at had its turn, and whether that look
    came to the end of what lies there.
    """
    root = syftbox / owner / COLLECTION_SUBPATH
    reading, kept = _Reading(connection.store), _kept(root)
    found, is_over = connection.peer_collections(owner, DATASET_COLLECTION_PREFIX)
    for name, folder in sorted(found, key=lambda one: (connection.turn_of(one[1]), one)):
        if connection.rests(folder):
            continue
        if reading.read >= BYTES_PER_SYNC:
            return False, is_over
        files: dict[str, bytes] = {}
        try:
            head = reading.get(f"{folder}/{SIGNED}", MAX_SIGNED_BYTES)
            if head is None:
                continue  # still being uploaded, or a stranger's folder; nothing is taken from it
            if (root / name / SIGNED).is_file() and (root / name / SIGNED).read_bytes() == head:
                continue
            files = {SIGNED: head}
            manifest = check_signed(owner, name, head, connection.roster)
            digest, last = manifest.digest(), log.mock(owner, name)
            if last is not None and manifest.version < last[0]:
                raise BadMock(f"version {manifest.version} is older than {last[0]}, which we have seen")
            if last is not None and manifest.version == last[0] and last[1] != digest:
                raise BadMock(f"version {manifest.version} is signed twice with different contents")
            _require_room(root, kept, name, 0)  # before it is read
            files |= _download(reading, folder, manifest)
            check_mock(owner, name, files, connection.roster)
            _require_room(root, kept, name, sum(map(len, files.values())))
        except WHOLE_STORE:
            raise
        except BadMock as error:
            connection.refuse_folder_when_settled(
                folder, str(error), CollectionFolder.compute_hash(files), rest=LOOKS_EVERY
            )
            continue
        except StoreError as error:
            connection.refuse_folder(folder, str(error), rest=LOOKS_EVERY)
            continue
        connection.is_in_order(folder)
        try:
            put_folder(syftbox, root / name, {file: files[file] for file in (*manifest.files, SIGNED)})
        except OSError as error:
            # Our own trouble (disk), not the owner's: it stays and is tried again.
            logger.error("mock %s of %s: %s", name, owner, error)
            kept = _kept(root)
            continue
        kept[name] = sum(map(len, files.values()))
        log.mark_mock(owner, name, manifest.version, digest)
    return True, is_over


def _kept(root: Path) -> dict[str, int]:
    """Return the bytes of what is kept of one owner, by name."""
    folders = [folder for folder in root.glob("*") if folder.is_dir()]
    return {one.name: sum(file.stat().st_size for file in one.rglob("*") if file.is_file()) for one in folders}


def _require_room(root: Path, kept: Mapping[str, int], name: str, size: int) -> None:
    """Refuse what is more than is kept of one owner; another version of `name` takes the place of that."""
    whole = {**kept, name: size}
    if len(whole) > MOST_MOCKS or sum(whole.values()) > MOST_MOCKS_BYTES:
        raise BadMock(
            f"{len(kept)} mocks of its owner are kept, and {MOST_MOCKS} of {MOST_MOCKS_BYTES} bytes are the most; "
            "where the owner takes one out of its datasite.toml and starts again, it leaves the store: then remove it "
            f"from {root}, too, and this one is taken at a sync some minutes later"
        )


def _download(reading: _Reading, folder: str, manifest: MockManifest) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    left = MAX_MOCK_BYTES
    for name in manifest.files:
        data = reading.get(f"{folder}/{name}", left)
        if data is not None:
            files[name] = data
            left -= len(data)
    return files
