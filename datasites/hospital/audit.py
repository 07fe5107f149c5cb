"""The audit log: what this datasite did, in an order and wording that nobody can change unnoticed.

JSON lines, one record each. A record holds the hash of the one before it; the first holds a value made from the
hospital's public key. Each append is on disk before it returns. Beside the log lies a *head file* with the signed
position of the last record, and every `CHECKPOINT_EVERY` records the log itself holds a signed checkpoint.

What is detected, and by whom:

- Editing, deleting, inserting or reordering records: by anyone with the file (the chain no longer fits).
- Truncation, or adding records behind the datasite's back: by the datasite, from its head file, when it next opens
  the log; by anyone who holds a later signed head.
- Rewriting the whole log *with the hospital's own key*: only by somebody who holds a head that was signed earlier.
  So the head goes out with every release and other parties keep it (`verify(..., counterparty_heads=...)`). What no
  counterparty has seen yet (the records after the last head that left) is not protected from the hospital itself.
  An attacker who rolls back both files to an old state without a key is likewise only caught by a later head.

Rows of patients never enter: fields are few, small, and of plain types (I12). This file does its own file I/O and
nothing else; it reads neither database nor registry.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError

from datasites.study.canonical import Agreed, canonical_json, sha256_hex
from datasites.study.identity import BadSignature, Email, Identity, PublicKeyHex
from datasites.study.identity import verify as verify_signature
from datasites.study.manifest import Sha256

DOMAIN = "audit-checkpoint"
CHECKPOINT_EVERY = 256
LARGEST_RECORD = 16 * 1024
MOST_FIELDS, LONGEST_TEXT, LONGEST_LIST = 32, 4000, 128

Scalar = str | int | float | bool
Value = Scalar | Sequence[Scalar]
Signature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

_NAME = re.compile(r"^[a-z][a-z0-9_]{0,47}$")
# Written by the log itself, so that nobody can imitate one with `append`.
_RESERVED = ("opened", "checkpoint", "recovered", "counterparty_head")
_SLOT = 512  # bytes of one slot of the head file: one disk sector, written in place


class AuditError(RuntimeError):
    """The log, its head file or a record is not what it must be; names the file, the record and the remedy."""


class Head(Agreed):
    """A signed position: the log of `public_key` had, as its record number `seq`, the record with hash `hash`."""

    format: Literal[1] = 1
    public_key: PublicKeyHex
    seq: Annotated[int, Field(ge=1)]
    hash: Sha256
    signature: Signature

    @classmethod
    def sign(cls, identity: Identity, seq: int, hash: str) -> Self:
        """Sign a position with the hospital's key."""
        signature = identity.sign(DOMAIN, _position(identity.public_key, seq, hash))
        return cls(public_key=identity.public_key, seq=seq, hash=hash, signature=signature.hex())

    def check(self) -> None:
        """Raise `BadSignature` unless the signature is by `public_key`, which the caller compares with the roster."""
        data = _position(self.public_key, self.seq, self.hash)
        verify_signature(self.public_key, bytes.fromhex(self.signature), DOMAIN, data)


class Record(Agreed):
    """One line of the log. `time` is UTC; `hash` is over the canonical bytes of all other fields."""

    seq: Annotated[int, Field(ge=1)]
    time: str
    kind: str
    fields: dict[str, Any]
    previous: Sha256
    hash: Sha256


class Report(Agreed):
    """What verifying a log found. first_bad: number of the first record that is wrong or missing, None when sound.

    checked: records in the file. checkpoints: signed checkpoints that verified. heads: counterparties' heads that
    agree. notes: what is odd but proves nothing, such as a clock that went back.
    """

    ok: bool
    checked: int
    first_bad: int | None
    reason: str
    checkpoints: int
    heads: int
    last_hash: str
    notes: tuple[str, ...] = ()


class AuditLog:
    """One hospital's log. Safe among threads and processes: each append takes an exclusive lock on the file.

    Raises `AuditError` when the log is shorter than its head says, has records that the head does not know, or does
    not follow its own chain. The datasite then runs nothing (I14) until somebody has looked.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity,
        clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self.path = path
        self.head_path = path.with_name(path.name + ".head")
        self._identity = identity
        self._clock = clock
        self._threads = threading.Lock()
        self._seen: Head | None = None
        self._size = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked() as file:
            self._catch_up(file)
            if self._seen is None:
                self._write(file, "opened", {"email": identity.email, "public_key": identity.public_key})

    def append(self, kind: str, /, **fields: Value) -> Head:
        """Write one record and return its signed head once both are on disk.

        kind and field names: lower-case words with underscores. Values: text, whole number, finite number, truth
        value, or a list of those; raises `AuditError` for anything else or too much of it.
        """
        if kind in _RESERVED:
            raise AuditError(f"audit: records of kind {kind!r} are written by the log itself; choose another kind")
        return self._append(kind, fields)

    def checkpoint(self) -> Head:
        """Write a signed checkpoint into the log now."""
        with self._locked() as file:
            self._catch_up(file)
            return self._write_checkpoint(file)

    def record_counterparty_head(self, email: str, head: Head) -> Head:
        """Keep another party's head in this log, so that each holds the other's. Checks its signature.

        The caller has compared `head.public_key` with the pinned roster entry of `email`.
        """
        head.check()
        fields = {"email": email, "public_key": head.public_key, "seq": head.seq, "hash": head.hash}
        return self._append("counterparty_head", {**fields, "signature": head.signature})

    def head(self) -> Head:
        """The signed position of the last record, from any process."""
        with self._locked() as file:
            self._catch_up(file)
            assert self._seen is not None  # the first record was written when the log was opened
            return self._seen

    def _append(self, kind: str, fields: dict[str, Any]) -> Head:
        clean = _clean(kind, fields)
        with self._locked() as file:
            self._catch_up(file)
            assert self._seen is not None
            if (self._seen.seq + 1) % CHECKPOINT_EVERY == 0:
                self._write_checkpoint(file)
            return self._write(file, kind, clean)

    def _write_checkpoint(self, file: int) -> Head:
        assert self._seen is not None
        covers = {"covers": self._seen.seq, "hash": self._seen.hash, "signature": self._seen.signature}
        return self._write(file, "checkpoint", covers)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        # The file is opened anew each time: a lock belongs to an open file, so neither threads nor forked processes
        # share one by accident, and a log that was replaced is noticed.
        with self._threads:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
            finally:
                os.close(file)

    def _write(self, file: int, kind: str, fields: dict[str, Any]) -> Head:
        seq = self._seen.seq + 1 if self._seen else 1
        previous = self._seen.hash if self._seen else genesis(self._identity.public_key)
        now = self._clock().astimezone(datetime.UTC).isoformat(timespec="milliseconds")
        body = {"seq": seq, "time": now, "kind": kind, "fields": fields, "previous": previous}
        hash = sha256_hex(canonical_json(body))
        line = canonical_json({**body, "hash": hash}) + b"\n"
        if len(line) > LARGEST_RECORD:
            raise AuditError(f"audit: record {kind} has {len(line)} bytes, at most {LARGEST_RECORD} are allowed")
        head = Head.sign(self._identity, seq, hash)
        written = os.write(file, line)
        if written != len(line):
            raise AuditError(f"{self.path}: the disk took {written} of {len(line)} bytes; free space and reopen the log")
        os.fdatasync(file)
        self._write_head(head)
        self._seen, self._size = head, self._size + len(line)
        return head

    # -- the head file: two slots, written in turn, so that a torn write leaves the other one

    def _write_head(self, head: Head) -> None:
        slot = head.canonical().ljust(_SLOT - 1) + b"\n"
        file = os.open(self.head_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(file, slot, (head.seq % 2) * _SLOT)
            os.fdatasync(file)
        finally:
            os.close(file)

    def _read_head(self) -> Head | None:
        try:
            data = self.head_path.read_bytes()
        except FileNotFoundError:
            return None
        heads = []
        for slot in (data[:_SLOT], data[_SLOT : 2 * _SLOT]):
            with suppress(ValueError):  # a torn slot; BadSignature is a ValueError too
                head = Head.parse(slot.rstrip())
                head.check()
                if head.public_key == self._identity.public_key:
                    heads.append(head)
        return max(heads, key=lambda head: head.seq, default=None)

    # -- what is on disk, since we last looked

    def _catch_up(self, file: int) -> None:
        """Follow what other processes appended; at the first call, everything. Repairs a torn last line.

        A torn line is cut off only when the signed head says that the last whole record is indeed the last that was
        acknowledged: then the torn one never was. In any other case the log is left as it is and refused.
        """
        size = os.fstat(file).st_size
        if self._seen is not None and size == self._size:
            return
        if size < self._size:
            raise AuditError(f"{self.path}: became shorter while open; {_RESTORE}")
        seen, offset, tail = self._seen, self._size, b""
        head = self._read_head()
        past_head = 0
        for line in _lines(file, offset, size):
            if not line.endswith(b"\n"):
                tail = line
                break
            seen, offset = self._follow(seen, line), offset + len(line)
            past_head += head is not None and seen.seq > head.seq
        self._agree_with_head(head, seen, past_head, tail)
        if seen is not None and (head is None or head.seq < seen.seq):
            self._write_head(seen)
        self._seen, self._size = seen, offset
        if tail:
            os.ftruncate(file, offset)
            os.fdatasync(file)
            self._write(file, "recovered", {"bytes_cut": len(tail), "sha256_of_cut": sha256_hex(tail)})

    def _follow(self, seen: Head | None, line: bytes) -> Head:
        expected = seen.seq + 1 if seen else 1
        previous = seen.hash if seen else genesis(self._identity.public_key)
        try:
            record = check_record(line[:-1], expected, previous)
        except ValueError as error:
            raise AuditError(f"{self.path}: {error}; {_RESTORE}") from error
        return Head.model_construct(
            format=1, public_key=self._identity.public_key, seq=record["seq"], hash=record["hash"], signature=""
        )

    def _agree_with_head(self, head: Head | None, seen: Head | None, past_head: int, tail: bytes) -> None:
        raise NotImplementedError


_RESTORE = "find out who changed it, keep both files as evidence, and restore the log from a backup"
