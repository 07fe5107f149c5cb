"""The audit log: what this datasite did, in an order and wording that nobody can change unnoticed.

JSON lines, one record each. A record holds the hash of the one before it; the first holds a value made from the
hospital's public key. Each append is on disk before it returns. Beside the log lies a *head file* with the signed
position of the last record, and every `CHECKPOINT_EVERY` records the log itself holds a signed checkpoint.

What is detected, and by whom:

- Editing, deleting, inserting or reordering records, without the hospital's key: by anyone who has the file and the
  public key. The chain no longer fits; or, where it was made anew, a signature is wrong or reaches less far than to
  the record before the last. A copy without its head file therefore needs a checkpoint at its end (an export has one).
- Truncation: by the datasite from its head file, when it next opens the log, and by anyone who holds a later head.
- Rewriting the whole log *with the hospital's own key*: only by somebody who holds a head that was signed earlier.
  So a head goes out with every release and other parties keep it: the researcher, and once a study is over the other
  hospitals of its cohort, each in its own log (`verify_log(..., counterparty_heads=...)`, `kept_heads`). Records
  after the last head that left are not protected from the hospital itself, nor from an attacker who puts back old
  copies of both files. What goes out is a `PublicHead`: how many records there are would tell of withdrawals,
  examinations and crashes, so it counts releases instead, and no record holds anything that depends on a row (I16).

A crash may leave a torn last line, or a whole one that the head file does not know yet. Both are repaired when the
log is next used, but only where the signed head shows that nothing acknowledged is lost, and a `recovered` record
says what was found. Anything else is refused: the datasite runs nothing (I14) until somebody has looked.

Rows of patients never enter: fields are few, small, and of plain types (I12). This file does its own file I/O and
nothing else.
"""

from __future__ import annotations

import datetime
import fcntl
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from datasites.study.audit_chain import (
    KEPT_HEAD,
    LARGEST_RECORD,
    OPENED,
    RELEASED,
    RESTORE,
    SLOT,
    AuditError,
    Head,
    PublicHead,
    bounded_lines,
    genesis,
    head_file,
    read_head,
    read_record,
    records,
    verify_log,
)
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.identity import Identity

__all__ = [
    "AuditError",
    "AuditLog",
    "Head",
    "PublicHead",
    "head_file",
    "records",
    "verify_log",
]

CHECKPOINT_EVERY = 256
MOST_FIELDS, LONGEST_TEXT, LONGEST_LIST = 32, 4000, 128
#: Bytes of a record beside its fields, and more.
_AROUND = 1024

Scalar = str | int | float | bool
Value = Scalar | Sequence[Scalar]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")
# Written by the log itself, so that nobody can imitate one with `append`.
_RESERVED = (OPENED, "checkpoint", "recovered", KEPT_HEAD)


class _Position(NamedTuple):
    seq: int
    hash: str
    offset: int  # bytes of the log up to and including this record
    releases: int  # records of releases up to and including this one


class AuditLog:
    """One hospital's log. Safe among threads and processes: each append takes an exclusive lock on the file.

    Opening reads the end of the log only, whatever its length; `verify_log` reads all of it. Raises `AuditError` when
    the log is shorter than its signed head says, or holds what the head does not account for.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity,
        clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self.path = path
        self.head_path = head_file(path)
        self._identity = identity
        self._clock = clock
        self._threads = threading.Lock()
        self._at: _Position | None = None  # the last record known to this object
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked() as file:
            if self._catch_up(file).seq == 0:
                self._write(file, OPENED, {"email": identity.email, "public_key": identity.public_key})

    def append(self, kind: str, /, **fields: Value) -> Head:
        """Write one record and return its signed head once both are on disk.

        kind and field names: lower-case words with underscores. Values: text, whole number, finite number, truth
        value, or a list of those; raises `AuditError` for anything else or too much of it.
        """
        _require_unreserved(kind)
        return self._append(kind, fields)

    def require_fit(self, kind: str, /, **fields: Value) -> None:
        """Raise `AuditError` unless `append` would take this record."""
        _require_unreserved(kind)
        if len(canonical_json(_clean(kind, fields))) > LARGEST_RECORD - _AROUND:
            raise AuditError(f"audit: record {kind} is longer than {LARGEST_RECORD - _AROUND} bytes")

    def append_once(self, kind: str, /, **fields: Value) -> None:
        """Write this record unless the log holds it: for what is done again after a kill or an outage.

        Log, database and journal can't be written at once. Whoever calls this makes what the record states durable
        either before it (and calls this until that is marked as logged) or right after it, from the same inputs. Two
        processes that do so at once write one record. Reads the whole log, so it is for what is rare.
        """
        _require_unreserved(kind)
        self._append(kind, fields, once=True)

    def holds(self, kind: str, /, **fields: Value) -> bool:
        """Say whether a record of this kind has these fields, and maybe others. Reads the whole log."""
        wanted = _clean(kind, fields).items()
        return any(record.kind == kind and wanted <= record.fields.items() for record in records(self.path))

    def checkpoint(self) -> Head:
        """Write a signed checkpoint into the log now (before an export, so that every record of it is signed)."""
        with self._locked() as file:
            self._catch_up(file)
            return self._write_checkpoint(file)

    def public_head(self) -> PublicHead:
        """Return what other parties may be told of the last record, by whichever process it was written."""
        with self._locked() as file:
            at = self._catch_up(file)
            return PublicHead.sign(self._identity, at.releases, at.hash)

    def keep_heads(self, heads: Mapping[str, PublicHead]) -> None:
        """Keep heads of other parties' logs, by e-mail address, in this log: each once, so that each holds the others'.

        Raises `BadSignature` before any is kept. The caller has compared the key of each with the pinned roster entry
        of its address. Reads the whole log, once.
        """
        for head in heads.values():
            head.check()
        with self._locked() as file:
            self._catch_up(file)
            kept = [record.fields for record in records(self.path) if record.kind == KEPT_HEAD]
            held = {(fields["email"], fields["public_key"], fields["hash"]) for fields in kept}
            for email, head in sorted(heads.items()):
                if (email, head.public_key, head.hash) not in held:
                    self._write_next(file, KEPT_HEAD, _clean(KEPT_HEAD, {"email": email, **_head_fields(head)}))

    def head(self) -> Head:
        """Return the signed position of the last record, by whichever process it was written."""
        with self._locked() as file:
            at = self._catch_up(file)
            return Head.sign(self._identity, at.seq, at.hash)

    def _append(self, kind: str, fields: dict[str, Value], *, once: bool = False) -> Head:
        clean = _clean(kind, fields)
        with self._locked() as file:
            at = self._catch_up(file)
            if once and self.holds(kind, **fields):
                return Head.sign(self._identity, at.seq, at.hash)
            return self._write_next(file, kind, clean)

    def _write_next(self, file: int, kind: str, clean: dict[str, Any]) -> Head:
        if (self._known().seq + 1) % CHECKPOINT_EVERY == 0:
            self._write_checkpoint(file)
        return self._write(file, kind, clean)

    def _write_checkpoint(self, file: int) -> Head:
        at = self._known()
        signed = Head.sign(self._identity, at.seq, at.hash)
        return self._write(file, "checkpoint", {"covers": at.seq, "hash": at.hash, "signature": signed.signature})

    @contextmanager
    def _locked(self) -> Iterator[int]:
        # By hand, since the lock is the log itself, and its descriptor is what is written to. It is opened anew each
        # time: a lock belongs to an open file, so neither threads nor forked processes share one by accident, and a
        # log that was put in its place is noticed. The lock among threads is for file systems (NFS) that give a lock
        # to the whole process.
        with self._threads:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
            except OSError as error:
                raise AuditError(
                    f"{self.path}: {error.strerror or error}; nothing runs until it can be written"
                ) from error
            finally:
                os.close(file)

    def _known(self) -> _Position:
        return self._at or self._beginning()

    def _beginning(self) -> _Position:
        return _Position(0, genesis(self._identity.public_key), 0, 0)

    def _write(self, file: int, kind: str, fields: dict[str, Any]) -> Head:
        at = self._known()
        body = {
            "seq": at.seq + 1,
            "time": self._clock().astimezone(datetime.UTC).isoformat(timespec="milliseconds"),
            "kind": kind,
            "fields": fields,
            "previous": at.hash,
        }
        hash = sha256_hex(canonical_json(body))
        line = canonical_json({**body, "hash": hash}) + b"\n"
        if len(line) > LARGEST_RECORD:
            raise AuditError(f"audit: record {kind} has {len(line)} bytes, at most {LARGEST_RECORD} are allowed")
        head = Head.sign(self._identity, at.seq + 1, hash)
        if os.write(file, line) != len(line):
            raise AuditError(f"{self.path}: the disk took only part of record {at.seq + 1}; make room and try again")
        os.fdatasync(file)
        # Log first, head second: a crash in between leaves a record that nobody was told of, never a head without
        # its record, which could not be told from a truncated log.
        position = _Position(at.seq + 1, hash, at.offset + len(line), at.releases + (kind == RELEASED))
        self._write_head(head, position)
        self._at = position
        return head

    # -- the head file: two slots, written in turn, so that a torn write leaves the other one

    def _write_head(self, head: Head, at: _Position) -> None:
        content = {"head": head.model_dump(), "offset": at.offset, "releases": at.releases}
        slot = canonical_json(content).ljust(SLOT - 1) + b"\n"
        file = os.open(self.head_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(file, slot, (head.seq % 2) * SLOT)
            os.fdatasync(file)
        finally:
            os.close(file)

    # -- what is on disk since we last looked

    def _catch_up(self, file: int) -> _Position:
        """Follow what other processes appended, and repair what a crash left; see the top of this file."""
        size = os.fstat(file).st_size
        if self._at is not None and size == self._at.offset:
            return self._at
        head = read_head(self.head_path, self._identity.public_key)
        at = start = self._at or self._start(file, head, size)
        if size < at.offset:
            raise AuditError(f"{self.path}: {at.offset - size} bytes are missing at its end; {RESTORE}")
        tail = b""
        for line in _lines(file, at.offset, size):
            if not line.endswith(b"\n"):
                tail = line
                break
            try:
                record = read_record(line, at.seq + 1, at.hash)
            except ValueError as error:
                raise AuditError(f"{self.path}: {error}; {RESTORE}") from error
            at = _Position(record.seq, record.hash, at.offset + len(line), at.releases + (record.kind == RELEASED))
        acknowledged = head[0].seq if head else 0
        if acknowledged > at.seq:
            raise AuditError(
                f"{self.path}: ends at record {at.seq}, but its signed head is record {acknowledged}; {RESTORE}"
            )
        unknown = at.seq - acknowledged
        if unknown > 1 or (unknown == 1 and tail):
            raise AuditError(
                f"{self.path}: records from {acknowledged + 1} on are not known to its signed head "
                f"({self.head_path.name}); a crash leaves one at most; {RESTORE}"
            )
        if head is not None and acknowledged >= start.seq and unknown == 0 and head[0].hash != at.hash:
            raise AuditError(f"{self.path}: record {at.seq} is not the one that its head signs; {RESTORE}")
        self._at = at
        if unknown:
            self._write_head(Head.sign(self._identity, at.seq, at.hash), at)
            self._write(file, "recovered", {"found": "a whole record without a head", "record": at.seq})
        elif tail:
            os.ftruncate(file, at.offset)
            found = {"found": "a torn record", "bytes_cut": len(tail), "sha256_of_cut": sha256_hex(tail)}
            if at.seq > 0:
                self._write(file, "recovered", found)
        return self._known()

    def _start(self, file: int, head: tuple[Head, int, int] | None, size: int) -> _Position:
        """Say where to begin on opening: the record that the head signs, once the log is seen to hold it there."""
        if head is None:
            # No head yet: right for a new log, and for one whose very first append was cut short. `_catch_up`
            # refuses a longer one.
            return self._beginning()
        signed, offset, releases = head
        if offset > size:
            raise AuditError(
                f"{self.path}: has {size} bytes, but its signed head (record {signed.seq}) ends at {offset}; {RESTORE}"
            )
        begin = max(0, offset - LARGEST_RECORD)
        line = os.pread(file, offset - begin, begin)[:-1].rpartition(b"\n")[2] + b"\n"
        with suppress(ValueError):
            record = read_record(line, signed.seq)
            if record.hash == signed.hash:
                if releases < 0:
                    releases = sum(r.kind == RELEASED and r.seq <= signed.seq for r in records(self.path))
                return _Position(signed.seq, signed.hash, offset, releases)
        raise AuditError(f"{self.path}: record {signed.seq} is not the one that its head signs; {RESTORE}")


def _lines(file: int, begin: int, end: int) -> Iterator[bytes]:
    with os.fdopen(os.dup(file), "rb") as stream:
        stream.seek(begin)
        yield from bounded_lines(stream)


def _head_fields(head: PublicHead) -> dict[str, Value]:
    return {"public_key": head.public_key, "releases": head.releases, "hash": head.hash, "signature": head.signature}


def _require_unreserved(kind: str) -> None:
    if kind in _RESERVED:
        raise AuditError(f"audit: records of kind {kind!r} are written by the log itself; choose another kind")


def _clean(kind: str, fields: dict[str, Value]) -> dict[str, Any]:
    if not _NAME.fullmatch(kind):
        raise AuditError(f"audit: {kind!r} is no kind of record; use lower-case words with underscores")
    if len(fields) > MOST_FIELDS:
        raise AuditError(f"audit: record {kind} has {len(fields)} fields, at most {MOST_FIELDS} are allowed")
    clean: dict[str, Any] = {}
    for name, value in fields.items():
        if not _NAME.fullmatch(name):
            raise AuditError(f"audit: record {kind}: {name!r} is no field name; use lower-case words with underscores")
        if isinstance(value, list | tuple):
            if len(value) > LONGEST_LIST:
                raise AuditError(f"audit: record {kind}: {name} has {len(value)} items, at most {LONGEST_LIST}")
            clean[name] = [_scalar(kind, name, item) for item in value]
        else:
            clean[name] = _scalar(kind, name, value)
    return clean


def _scalar(kind: str, name: str, value: Any) -> Scalar:
    # Errors name the field and never the value: what does not belong in the log must not end up in a message either.
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, str) and len(value) <= LONGEST_TEXT:
        with suppress(UnicodeEncodeError):
            value.encode()
            return str(value)
    raise AuditError(
        f"audit: record {kind}: {name} must be text of at most {LONGEST_TEXT} characters, a whole number below 2^63, a "
        f"finite number, a truth value, or a list of those; it is {type(value).__name__}"
    )
