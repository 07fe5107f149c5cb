"""Large payloads beside an envelope: encrypted parts of 4 MiB, and the pointer that the envelope carries.

A blob of n bytes is cut into parts of 4 MiB (at least one). Part i of m is AES-256-GCM under the blob's own key,
nonce = i, associated data = (i, m), and is one object of the store. The pointer (id, size, key, SHA-256 of the
plaintext) travels inside the signed, encrypted envelope. So the store sees sizes and nothing else, and parts can't be
swapped, cut or mixed. AES-GCM alone would not bind the contents for those who know the key: the SHA-256 stops the
sender from showing two contents under one signature, and one recipient of a broadcast from feeding another.

The key is HKDF(the sender's secret; study, round, kind, SHA-256 of the plaintext). The same plaintext gives the same
parts, so an upload that was broken off goes on where it was; another plaintext gives another key, so a nonce is
never used twice under one key.

Claim: of downloads that were broken off, a recipient keeps parts of `MOST_PARTIAL_BYTES` (and of those under way), and
none of a blob that was read or refused. Where others broke off more, the oldest are fetched again.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import Field

from datasites.study.canonical import Agreed, canonical_json
from datasites.study.errors import DatasitesError
from datasites.study.files import write_whole
from datasites.transport.store import WHOLE_STORE, Store, StoreError

PART_BYTES = 4 * 1024 * 1024
TAG_BYTES = 16
#: What is kept of broken-off downloads, beside one that alone is larger.
MOST_PARTIAL_BYTES = 4 * 1024**3


class BadBlob(DatasitesError):
    """The parts in the store are not the blob that the pointer means; the message says how."""


class Pointer(Agreed):
    """Where a blob is and how to open it. `size` is that of the plaintext in bytes."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    size: Annotated[int, Field(ge=0)]
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @property
    def parts(self) -> int:
        """Return the number of parts in the store."""
        return part_count(self.size)


def part_count(size: int) -> int:
    """Return how many parts a blob of `size` bytes has."""
    return max(1, -(-size // PART_BYTES))


def blob_folder(study: str, sender: str) -> str:
    """Return the folder that holds a sender's blobs of one study."""
    return f"blobs/{study}/{sender}"


def upload(
    store: Store,
    sender: str,
    study: str,
    round: int,
    kind: str,
    data: memoryview,
    plain: str,
    secret: bytes,
    mend: Literal["", "sizes", "bytes"] = "",
) -> Pointer:
    """Encrypt `data` into the store and return its pointer. `plain`: the SHA-256 of `data`, hex.

    Parts that an earlier try has left are not sent again to a remote store. mend: the blob was sent before; parts that
    are missing or of another size are put again, with "bytes" those that differ at all, for which all of them are
    read. Memory: three parts beside `data`.
    """
    key, name = _derive(secret, study, round, kind, plain)
    cipher, count = AESGCM(key), part_count(len(data))
    sealed = bytearray(PART_BYTES + TAG_BYTES)
    for index in range(count):
        part = data[index * PART_BYTES : (index + 1) * PART_BYTES]
        cut = memoryview(sealed)[: len(part) + TAG_BYTES]
        path = _part_key(sender, study, round, name, index)
        by_size = mend == "sizes" or (not mend and store.local is None)
        if by_size and store.size(path) == len(cut):
            continue
        cipher.encrypt_into(_nonce(index), part, _place(index, count), cut)
        if mend != "bytes" or not store.holds(path, bytes(cut)):
            store.put(path, cut)
    return Pointer(id=name, size=len(data), key=key.hex(), sha256=plain)


def download(store: Store, sender: str, study: str, round: int, pointer: Pointer, partial: Path) -> bytearray:
    """Fetch, check and decrypt a blob; raises `BadBlob` when a part is missing, changed, of another size or unreadable.

    From a remote store, parts that have come are kept (encrypted) in `partial`, so that a broken-off download goes
    on where it was; who refuses the blob for good calls `forget`. Memory: the blob and two parts. The caller has
    checked `pointer.size` against its limit.
    """
    cipher, count, whole = AESGCM(bytes.fromhex(pointer.key)), pointer.parts, hashlib.sha256()
    plain = bytearray(pointer.size)
    view, begin = memoryview(plain), 0
    keys = [_part_key(sender, study, round, pointer.id, index) for index in range(count)]
    _make_room(partial, pointer)
    for index, sealed in enumerate(_fetch(store, keys, pointer, partial)):
        end = begin + len(sealed) - TAG_BYTES
        try:
            cipher.decrypt_into(_nonce(index), sealed, _place(index, count), view[begin:end])
        except InvalidTag as error:
            forget(partial, pointer)
            raise BadBlob(f"part {index} of {count} was changed: it does not authenticate") from error
        whole.update(view[begin:end])
        begin = end
    if not hmac.compare_digest(whole.hexdigest(), pointer.sha256):
        forget(partial, pointer)
        raise BadBlob("the contents are not those that the sender signed: their SHA-256 differs")
    forget(partial, pointer)
    return plain


def _fetch(store: Store, keys: list[str], pointer: Pointer, partial: Path) -> Iterator[bytes]:
    for index, key in enumerate(keys):
        last = index == pointer.parts - 1
        expected = (pointer.size - index * PART_BYTES if last else PART_BYTES) + TAG_BYTES
        kept = partial / f"{pointer.id}.{index:06d}"
        if store.local is None and (part := _kept_part(kept, expected)) is not None:
            yield part
            continue
        try:
            sealed = store.get(key, limit=expected)
        except WHOLE_STORE:
            raise
        except StoreError as error:  # too long, no file, not readable, or in a folder that leads elsewhere
            raise BadBlob(f"part {index} of {pointer.parts} can't be read: {error}") from error
        if sealed is None:
            raise BadBlob(f"part {index} of {pointer.parts} is missing")
        if len(sealed) != expected:
            raise BadBlob(f"part {index} of {pointer.parts} is cut off: {len(sealed)} of {expected} bytes")
        if store.local is None and pointer.parts > 1:
            partial.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(kept, sealed)
        yield sealed


def _kept_part(kept: Path, expected: int) -> bytes | None:
    """Return a part that has come before; None for none, or one that another download has just made room of."""
    try:
        return kept.read_bytes() if kept.stat().st_size == expected else None
    except OSError:
        return None


def _make_room(partial: Path, pointer: Pointer) -> None:
    """Forget the oldest parts of other blobs, so that this one finds room beside those that are kept."""
    found = []
    for kept in partial.glob("*"):  # what a kill left of a part as well
        with contextlib.suppress(FileNotFoundError):
            if not kept.name.startswith(pointer.id):
                status = kept.stat()
                found.append((status.st_mtime_ns, kept, status.st_size))
    left = MOST_PARTIAL_BYTES - pointer.size - pointer.parts * TAG_BYTES
    for _, kept, size in sorted(found, reverse=True):
        left -= size
        if left < 0:
            kept.unlink(missing_ok=True)


def forget(partial: Path, pointer: Pointer) -> None:
    """Keep no part of a blob any more."""
    for kept in partial.glob(f"{pointer.id}.*"):
        kept.unlink(missing_ok=True)


def _part_key(sender: str, study: str, round: int, name: str, index: int) -> str:
    return f"{blob_folder(study, sender)}/{round:08d}.{name}.{index:06d}"


def _nonce(index: int) -> bytes:
    return struct.pack(">IQ", 0, index)


def _place(index: int, count: int) -> bytes:
    return struct.pack(">QQ", index, count)


def _derive(secret: bytes, study: str, round: int, kind: str, plain: str) -> tuple[bytes, str]:
    info = canonical_json(["datasites/blob/1", study, round, kind, plain])
    output = HKDF(algorithm=hashes.SHA256(), length=48, salt=None, info=info).derive(secret)
    return output[:32], output[32:].hex()
