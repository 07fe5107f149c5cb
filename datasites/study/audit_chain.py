"""Reading and verifying an audit log: its record format, its signed heads, and what proves that it was changed.

Every party needs this half: an auditor with a copy of the file, and whoever keeps the signed heads that a hospital
sends along with its releases. Writing a log is the hospital's (`datasites.hospital.audit.log`, which also says what is
detected and what is not). Nothing here holds a private key or changes a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple, Self

from pydantic import Field, TypeAdapter

from datasites.study.canonical import Agreed, canonical_json, sha256_hex
from datasites.study.errors import DatasitesError
from datasites.study.identity import BadSignature, Identity, PublicKeyHex, verify_signature
from datasites.study.manifest import Sha256

DOMAIN, PUBLIC_DOMAIN, FORK_DOMAIN = "audit-checkpoint", "audit-head", "audit-fork"
#: Records of this kind are what a `PublicHead` counts; and those that hold one of another party's log.
RELEASED, KEPT_HEAD = "released", "counterparty_head"
#: And the first record of each, and those by which two people declare that a log goes on from a backup.
OPENED, RESTORED = "opened", "restored"
LARGEST_RECORD = 16 * 1024
#: More than any log holds, and a number that every log takes in: heads of others are kept in one.
MOST_RECORDS = 2**53
SLOT = 512  # bytes of one slot of the head file: one disk sector, written in place

_KEYS = {"seq", "time", "kind", "fields", "previous", "hash"}
_HEAD_FIELDS = {"public_key", "releases", "hash", "signature"}
SIGNED_COPY = "ask the hospital for an export, which ends in a signed checkpoint (`datasites audit export`)"
RESTORE = "keep both files as evidence, find out who changed them, and restore the log from a backup"


class AuditError(DatasitesError, RuntimeError):
    """The log, its head file or a record is not what it must be; names the file, the record and the remedy."""


class Head(Agreed):
    """A signed position: the log of `public_key` had, as its record number `seq`, the record with hash `hash`.

    For the hospital's own files, and for bundles of earlier versions. It does not leave: how many records a log holds
    tells of withdrawals, examinations and faults (see `PublicHead`).
    """

    format: Literal[1] = 1
    public_key: PublicKeyHex
    seq: Annotated[int, Field(ge=1, le=MOST_RECORDS)]
    hash: Sha256
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    @classmethod
    def sign(cls, identity: Identity, seq: int, hash: str) -> Self:
        """Sign a position with the hospital's key."""
        key = identity.public_key
        return cls(public_key=key, seq=seq, hash=hash, signature=identity.sign(DOMAIN, _signed(key, seq, hash)).hex())

    def check(self) -> None:
        """Raise `BadSignature` unless the signature is by `public_key`, which the caller compares with the roster."""
        signature = bytes.fromhex(self.signature)
        verify_signature(self.public_key, signature, DOMAIN, _signed(self.public_key, self.seq, self.hash))


class PublicHead(Agreed):
    """A signed position as other parties get it: the log held a record with hash `hash`, and `releases` up to there.

    The hash hides what it is of, since records hold nothing that depends on a row; their number stays inside.
    """

    format: Literal[2] = 2
    public_key: PublicKeyHex
    releases: Annotated[int, Field(ge=0, le=MOST_RECORDS)]
    hash: Sha256
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    @classmethod
    def sign(cls, identity: Identity, releases: int, hash: str) -> Self:
        """Sign a position with the hospital's key."""
        key = identity.public_key
        signature = identity.sign(PUBLIC_DOMAIN, _public_part(key, releases, hash)).hex()
        return cls(public_key=key, releases=releases, hash=hash, signature=signature)

    def check(self) -> None:
        """Raise `BadSignature` unless the signature is by `public_key`, which the caller compares with the roster."""
        signature = bytes.fromhex(self.signature)
        signed = _public_part(self.public_key, self.releases, self.hash)
        verify_signature(self.public_key, signature, PUBLIC_DOMAIN, signed)


class Fork(Agreed):
    """A hospital's word that its log goes on from an earlier position, since it was restored from a backup.

    continues: the last record that the restored log held. goes_on: the record by which two people declared it. Records
    that came after `continues` in the lost log are in this one no more, and heads of them are of the lost branch.
    """

    format: Literal[1] = 1
    continues: PublicHead
    goes_on: PublicHead
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    @classmethod
    def sign(cls, identity: Identity, continues: PublicHead, goes_on: PublicHead) -> Self:
        """Sign the statement with the hospital's key."""
        signature = identity.sign(FORK_DOMAIN, _fork_part(continues, goes_on)).hex()
        return cls(continues=continues, goes_on=goes_on, signature=signature)

    def check(self, public_key: str) -> None:
        """Raise `BadSignature` unless all of it is signed by that key."""
        for head in (self.continues, self.goes_on):
            head.check()
            if head.public_key != public_key:
                raise BadSignature("a fork of an audit log is signed by another key than its heads")
        signed = _fork_part(self.continues, self.goes_on)
        verify_signature(public_key, bytes.fromhex(self.signature), FORK_DOMAIN, signed)


def _fork_part(continues: PublicHead, goes_on: PublicHead) -> bytes:
    return canonical_json([continues.model_dump(mode="json"), goes_on.model_dump(mode="json")])


def read_any_head(data: bytes) -> Head | PublicHead:
    """Read a head that another party holds, of either format; raise `ValueError` for anything else."""
    return _ANY_HEAD.validate_json(data)


_ANY_HEAD: TypeAdapter[Head | PublicHead] = TypeAdapter(Annotated[Head | PublicHead, Field(discriminator="format")])


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One line of the log. `time` is UTC, ISO 8601; `hash` is over the canonical bytes of everything else."""

    seq: int
    time: str
    kind: str
    fields: dict[str, Any]
    previous: str
    hash: str


class LogVerification(Agreed):
    """What verifying a log found. first_bad: number of the first record that is wrong, missing, or that nothing signed
    vouches for; None if sound.

    checked: whole records that chain from the first. checkpoints, heads: signed checkpoints in the log, and heads
    of counterparties, that agree. last_hash: of the last record checked. notes: what is odd but proves nothing; among
    them a last record that no signature covers yet, as a crash right after writing it leaves.
    """

    ok: bool
    checked: int
    first_bad: int | None
    reason: str
    checkpoints: int
    heads: int
    last_hash: str
    notes: tuple[str, ...]


def head_file(path: Path) -> Path:
    """Return where the signed head of the log at `path` lies."""
    return path.with_name(path.name + ".head")


def genesis(public_key: str) -> str:
    """Return what the first record has as its `previous`; it ties the chain to one hospital's key (hex)."""
    return sha256_hex(b"datasites audit 1\0" + bytes.fromhex(public_key))


def read_record(line: bytes, seq: int, previous: str | None = None) -> LogRecord:
    """Read one line (with its newline), which must be record `seq`, canonical, and follow the hash `previous`.

    Raises `ValueError` naming the record and what is wrong with it.
    """
    if not line.endswith(b"\n") or len(line) > LARGEST_RECORD:
        raise ValueError(f"record {seq} is torn or longer than {LARGEST_RECORD} bytes")
    try:
        data = json.loads(line)
        canonical = isinstance(data, dict) and set(data) == _KEYS and canonical_json(data) == line[:-1]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"record {seq} is not JSON: it was overwritten") from error
    if not canonical:
        raise ValueError(f"record {seq} is not in the form that the log writes: it was edited")
    texts = (data["time"], data["kind"], data["previous"], data["hash"])
    if not all(type(text) is str for text in texts) or type(data["seq"]) is not int or type(data["fields"]) is not dict:
        raise ValueError(f"record {seq} is not in the form that the log writes: it was edited")
    hash = data.pop("hash")
    if data["seq"] != seq:
        raise ValueError(f"record {seq} is missing or moved: record {data['seq']} stands in its place")
    if previous is not None and data["previous"] != previous:
        raise ValueError(f"record {seq} does not follow record {seq - 1}: a record was inserted, replaced or edited")
    if sha256_hex(canonical_json(data)) != hash:
        raise ValueError(f"record {seq} was edited: its content does not have its hash")
    return LogRecord(hash=hash, **data)


def records(path: Path) -> Iterator[LogRecord]:
    """All whole records in order; raises `AuditError` at the first that is malformed. Does not check signatures."""
    with path.open("rb") as file:
        previous = None
        for seq, line in enumerate(bounded_lines(file), start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = read_record(line, seq, previous)
            except ValueError as error:
                raise AuditError(f"{path}: {error}; {RESTORE}") from error
            previous = record.hash
            yield record


def owner(path: Path) -> tuple[str, str]:
    """Return whose log it is, as its first record says: e-mail address and public key (hex). Raises `AuditError`.

    Whether it is that key's is for `verify_log` to see.
    """
    first = next(iter(records(path)), None)
    if first is None or first.kind != OPENED or not {"email", "public_key"} <= set(first.fields):
        raise AuditError(f"{path}: does not begin as an audit log does")
    return str(first.fields["email"]), str(first.fields["public_key"])


def kept_heads(path: Path) -> list[tuple[str, PublicHead]]:
    """Return what the log at `path` holds of other hospitals' logs, with the address of each: heads to compare with.

    Whether that log is sound, and whose heads these are, is for `verify_log` to see. Raises `AuditError`, `OSError`,
    and `ValueError`.
    """
    found = (record.fields for record in records(path) if record.kind == KEPT_HEAD)
    return [
        (str(fields["email"]), PublicHead.model_validate({name: fields.get(name) for name in _HEAD_FIELDS}))
        for fields in found
    ]


class Position(NamedTuple):
    """How far a log was read: the last record, its hash, and the bytes up to its end."""

    seq: int = 0
    hash: str = ""
    offset: int = 0


def holds(path: Path, at: Position) -> bool:
    """Return whether a log has this record where the position says; every log has the beginning."""
    if at == Position():
        return True
    try:
        with path.open("rb") as file:
            begin = max(0, at.offset - LARGEST_RECORD)
            file.seek(begin)
            line = file.read(at.offset - begin)[:-1].rpartition(b"\n")[2] + b"\n"
        return read_record(line, at.seq).hash == at.hash
    except (OSError, ValueError):
        return False


def follow(path: Path, at: Position) -> Iterator[tuple[Position, LogRecord]]:
    """Yield whole records that a log has after `at`, each with the position behind it.

    A last line that is being written, or was torn by a crash, is left to the next time. Raises `AuditError` where the
    log is shorter than it was, or another one lies there. That the first record is this hospital's is not checked.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        size = 0
    if size < at.offset:
        raise AuditError(f"{path}: {at.offset - size} bytes are missing at its end; {RESTORE}")
    if size and not holds(path, at):
        raise AuditError(f"{path}: record {at.seq} is not the one that was read before; {RESTORE}")
    if size == at.offset:
        return
    with path.open("rb") as file:
        file.seek(at.offset)
        for line in bounded_lines(file):
            if not line.endswith(b"\n"):
                return
            try:
                record = read_record(line, at.seq + 1, at.hash or None)
            except ValueError as error:
                raise AuditError(f"{path}: {error}; {RESTORE}") from error
            at = Position(record.seq, record.hash, at.offset + len(line))
            yield at, record


def verify_log(path: Path, public_key: str, counterparty_heads: Sequence[Head | PublicHead] = ()) -> LogVerification:
    """Check a whole log against the hospital's public key (hex), its head file if one lies beside it, and the heads
    that other parties were given. Needs no private key and changes nothing. Raises `OSError` if it can't be read.

    The chain alone proves nothing, since anybody can make one: what counts is how far a signature of the hospital
    reaches, be it of a checkpoint, of the head file or of a counterparty's head. Every record but the last must lie
    before one (an honest crash leaves one record without); a log with a longer tail, or with no signature, is not ok.
    A log that is being written is checked up to what was in it at the beginning.
    """
    notes: list[str] = []
    signed_heads: list[tuple[str, Head | PublicHead]] = []
    size, own, head_exists = _between_writes(path, public_key)
    if own:
        signed_heads.append(("its head file", own[0]))
    for head in counterparty_heads:
        try:
            head.check()
            if head.public_key != public_key:
                raise BadSignature("signed by another key")
            signed_heads.append(("a counterparty", head))
        except BadSignature:
            notes.append(f"a head for {_where(head)} is not signed by this hospital and proves nothing")
    wanted = {head.seq for _, head in signed_heads if isinstance(head, Head)}
    asked = {head.hash for _, head in signed_heads if isinstance(head, PublicHead)}
    hashes: dict[int, str] = {}
    places: dict[str, tuple[int, int]] = {}  # by hash: which record it is, and the releases up to there
    releases = 0
    previous, count, checkpoints, signed_up_to = genesis(public_key), 0, 0, 0
    last_kind, restored = "", 0
    bad: tuple[int, str] | None = None
    last_time = ""
    with path.open("rb") as file:
        for line in bounded_lines(file):
            if size <= 0:
                break
            size -= len(line)
            try:
                record = read_record(line, count + 1, previous)
                if record.kind == "checkpoint":
                    _check_checkpoint(record, public_key)
                    checkpoints, signed_up_to = checkpoints + 1, record.seq - 1
            except ValueError as error:
                bad = (count + 1, str(error))
                break
            if record.time < last_time and len(notes) < 20:
                notes.append(f"the clock went back at record {record.seq}")
            count, previous, last_time, last_kind = record.seq, record.hash, record.time, record.kind
            releases += record.kind == RELEASED
            restored = record.seq if record.kind == RESTORED else restored
            if count in wanted:
                hashes[count] = previous
            if previous in asked:
                places[previous] = (count, releases)
    agreed = heads = since = 0
    numbered = [(source, head) for source, head in signed_heads if isinstance(head, Head)]
    for source, head in sorted(numbered, key=lambda item: item[1].seq):
        if bad and head.seq >= bad[0]:
            break
        if head.seq > count:
            bad = (count + 1, f"record {count + 1} is missing: {source} has the signed head of record {head.seq}")
        elif hashes[head.seq] != head.hash:
            bad = (
                head.seq,
                f"record {head.seq} is not the one that {source} has the signed head of; "
                f"the log was rewritten somewhere in records {agreed + 1} to {head.seq}",
            )
        else:
            agreed, signed_up_to = head.seq, max(signed_up_to, head.seq)
            heads += source == "a counterparty"
    public = [head for _, head in signed_heads if isinstance(head, PublicHead)]
    for known in sorted(public, key=lambda item: item.releases):
        at, counted = places.get(known.hash, (0, 0))
        if at and counted == known.releases:
            since, signed_up_to, heads = at, max(signed_up_to, at), heads + 1
        elif bad is None and at:
            bad = (at, f"record {at} is the one after {counted} releases; a counterparty has {known.releases} signed")
        elif bad is None:
            bad = (
                since + 1,
                f"no record is the one that a counterparty has the signed head of (release {known.releases}); "
                f"the log was rewritten or cut somewhere after record {since}"
                # A log with more releases than a head counts holds the record of that head, whenever it was copied.
                + (", or this copy is older than that head: ask for a new one" if known.releases >= releases else "")
                + (f"; record {restored} says that it goes on from a backup" if restored else ""),
            )
    if bad is None and count == 0:
        bad = (1, "record 1 is missing: the log is empty")
    if bad is None and head_exists and own is None:
        bad = (
            signed_up_to + 1,
            f"{head_file(path).name} holds no head that the hospital signed: it was damaged or replaced; a crash "
            "spoils one of its two slots at most",
        )
    if bad is None and signed_up_to == 0:
        bad = (1, f"nothing in the log is signed, so anybody may have written it; {SIGNED_COPY}")
    if bad is None and signed_up_to < count - 1:
        bad = (
            signed_up_to + 1,
            f"records {signed_up_to + 1} to {count} come after the last signature, so anybody may have written them; "
            f"{SIGNED_COPY}",
        )
    if bad is None and signed_up_to < count and last_kind != "checkpoint":
        notes.append(
            f"record {count} comes after the last signature; a crash right after writing it leaves one like it"
        )
    return LogVerification(
        ok=bad is None,
        checked=count,
        first_bad=bad[0] if bad else None,
        reason=bad[1] if bad else "sound",
        checkpoints=checkpoints,
        heads=heads,
        last_hash=previous,
        notes=tuple(notes),
    )


def _where(head: Head | PublicHead) -> str:
    return f"record {head.seq}" if isinstance(head, Head) else f"release {head.releases}"


def _between_writes(path: Path, public_key: str) -> tuple[int, tuple[Head, int, int] | None, bool]:
    """Length of the log, its head, and whether there is a head file, at a moment when nobody writes (where the file
    system has locks)."""
    with path.open("rb") as file:
        with suppress(ImportError, OSError):
            import fcntl

            # Not by `study.files`: of a copy that is only read, on whatever system, and among others who read it.
            fcntl.flock(file, fcntl.LOCK_SH)
        # In this order: without locks the log may only be longer than its head says, as after a crash.
        head = read_head(head_file(path), public_key)
        return os.fstat(file.fileno()).st_size, head, head_file(path).exists()


def _check_checkpoint(record: LogRecord, public_key: str) -> None:
    fields = record.fields
    try:
        head = Head(public_key=public_key, seq=fields["covers"], hash=fields["hash"], signature=fields["signature"])
        head.check()
    except (KeyError, ValueError) as error:
        raise ValueError(f"record {record.seq} is a checkpoint that the hospital's key did not sign") from error
    if (head.seq, head.hash) != (record.seq - 1, record.previous):
        raise ValueError(f"record {record.seq} is a checkpoint of another position")


def read_head(path: Path, public_key: str) -> tuple[Head, int, int] | None:
    """Return the newest signed head of the two slots, with the length of the log that it was written at, and its
    releases (-1 where it does not say).
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    found: list[tuple[Head, int, int]] = []
    for slot in (data[:SLOT], data[SLOT : 2 * SLOT]):
        with suppress(ValueError, KeyError, TypeError):  # a torn slot, or one that this key did not sign
            content = json.loads(slot)
            head = Head.model_validate(content["head"])
            head.check()
            # Head files of earlier versions don't count releases.
            offset, releases = content["offset"], content.get("releases", -1)
            if head.public_key == public_key and type(offset) is int and type(releases) is int:
                found.append((head, offset, releases))
    return max(found, key=lambda item: item[0].seq, default=None)


def _public_part(public_key: str, releases: int, hash: str) -> bytes:
    return canonical_json({"public_key": public_key, "releases": releases, "hash": hash})


def _signed(public_key: str, seq: int, hash: str) -> bytes:
    return canonical_json({"public_key": public_key, "seq": seq, "hash": hash})


def bounded_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines with their newline; one longer than any record is cut, and so refused by `read_record`."""
    while line := stream.readline(LARGEST_RECORD + 1):
        yield line
