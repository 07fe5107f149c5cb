"""Verify an evidence bundle: `python verify_bundle.py BUNDLE.zip --key FINGERPRINT [--head HEAD.json ...]`.

Stands alone, in one file: Python 3.9 or later and the package `cryptography`, nothing of the software that wrote the
bundle. A copy lies in every bundle for convenience; take yours from a source that you trust, since whoever forges a
bundle would forge that copy too.

--key: the hospital's public key (64 hex digits) or fingerprint (40), which you got from the hospital by another
channel. --head: a signed head of the hospital's audit log that *another* party was sent with a release (JSON). Without
heads from others a hospital could have rewritten its whole log with its own key, and nothing inside could show it.

**Claim.** If all checks pass for a bundle of format 3, then: (1) the file is, byte for byte, the one archive that its
names and contents make, so every tool that reads zip files reads the same files from it, and each JSON file has one
reading; (2) the key that was given signed all of it, and the frozen code and the terms are those that the approved hash
covers; (3) the audit log is one chain that holds every given head; every decision and charge of the study is in it, and
none of the log's is left out here; (4) every charge is what the approved plan says of its round, all together are
within what was reserved, that is the whole plan, and at each reservation and charge of the study the population's
commitments, recomputed from the log at its Renyi order, were within the cap that the log says, which no record widens
but on the word of a steward and a privacy officer whom it knew as two people then; (5) a steward and a privacy officer
approved that hash before anything ran, whom the log knows under these roles and different e-mail addresses; each
release was charged and allowed first; (6) each allowed decision had, on its day, an agreement in force for every
service, an IRB approval and pinned parties, all with the contents that the log bound when people entered them,
agreements when one person entered and another confirmed them, and none that the log had ended or of which it had
confirmed a newer version that was left out. Its day is the one, in UTC, on which the log holds it.

**Assumed.** Ed25519 and SHA-256 hold, HMAC-SHA256 binds; the key is the hospital's; and for what came after the last
head from another party, that the hospital did not write its log anew.

**Not proved.** That what people typed is true; that the hospital's clock, which dates the log, was right; that the
study's own epsilon, priced by privacy loss distributions, is as its decisions state (they are held against its cap, and
not priced again; the checks say where the log states no cap); what two people settled after a restore, which may differ
from the plan; who a person was that the log names; `summary.html` and `verify_bundle.py`, which are for convenience.
What an older format could not prove, the checks say: format 2 bound neither the contents of agreements, people and
roster nor the bytes of its archive, and is not held against plan, caps and the days of its log; format 1 had no charges
in full.

**Work.** The archive is at most `LARGEST_ARCHIVE` bytes of at most `MOST_FILES` files; that is seen before anything
else is read. Files are read in pieces, lists entry by entry, and the log may have `MOST_RECORDS` records, so that 2 GiB
of memory are enough (the longest log was measured at 0.7 GiB and 20 s of CPU). Numbers that drive a loop are bounded
first: rounds of a plan, Renyi orders and how often they change, mechanisms and their prices; heads and restores are
looked at once each.

Exit status 0 if all checks pass.
"""

from __future__ import annotations  # for Python 3.9, which some auditors have

import argparse
import bisect
import codecs
import datetime
import hashlib
import hmac
import io
import itertools
import json
import math
import os
import re
import struct
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FORMATS = (1, 2, 3)
#: What a bundle may hold, in all formats. An entry is one of a list, such as a decision; a record is of the log.
LARGEST_ARCHIVE, LARGEST_FILE, MOST_FILES, LONGEST_NAME = 512 * 1024**2, 256 * 1024**2, 64, 100
LARGEST_RECORD, LARGEST_ENTRY, LARGEST_JSON, MOST_RECORDS = 16 * 1024, 256 * 1024, 4 * 1024**2, 500_000
LARGEST_OPENINGS, _PIECE = 16 * 1024**2, 64 * 1024
_HEX64, _SIGNATURE = re.compile(r"[0-9a-f]{64}"), re.compile(rb"[0-9a-f]{128}\n")
#: Windows leaves a dot at the end off, and has devices of some names: neither is the file that others read.
_PART = r"(?!(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:[./]|$))[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
#: Files of format 3, beside those below `frozen/`.
LISTS = ("findings.json", "decisions.json", "ledger.json", "heads.json", "openings.json")
NAMES = ("agreements.json", "audit.head.json", "audit.jsonl", "summary.html", "terms.json", "verify_bundle.py")


class Check(NamedTuple):
    """One check: what was looked at, whether it holds, and what was found."""

    name: str
    ok: bool
    found: str


class Fault(Exception):
    """A check does not hold; the text says which thing is wrong."""


# -- the archive: one sequence of bytes for names and contents

_LOCAL, _CENTRAL, _END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
#: Bytes of the record of large archives (ZIP64) that stands before the end record and names another one.
_LOCATOR = 20
#: 1 January 1980, the first day that a zip file can express; a regular file that its owner reads and writes.
_DATE, _ATTRIBUTES, _UNIX = 33, 0o100600 << 16, 3 << 8 | 20


class _Entry(NamedTuple):
    """One file of an archive, as the central directory has it. `offset`: of its local header."""

    name: str
    method: int
    crc: int
    packed: int
    size: int
    offset: int

    @property
    def begins(self) -> int:
        return self.offset + _LOCAL.size + len(self.name)

    def local(self) -> bytes:
        """Return its local header as format 3 has it."""
        name = self.name.encode("ascii")
        return _LOCAL.pack(b"PK\3\4", 20, 0, 0, 0, _DATE, self.crc, self.size, self.size, len(name), 0) + name

    def central(self) -> bytes:
        """Return its line of the directory as format 3 has it."""
        name = self.name.encode("ascii")
        sizes = (self.crc, self.size, self.size, len(name), 0, 0, 0, 0)
        return _CENTRAL.pack(b"PK\1\2", _UNIX, 20, 0, 0, 0, _DATE, *sizes, _ATTRIBUTES, self.offset) + name


def write_archive(stream: BinaryIO, files: Mapping[str, bytes]) -> None:
    """Write the one archive of format 3 that these files make; raises `Fault` for more than a bundle may hold."""
    if len(files) > MOST_FILES:
        raise Fault(f"a bundle holds at most {MOST_FILES} files, not {len(files)}")
    directory, offset = b"", 0
    for name in sorted(files):
        entry = _Entry(name, 0, zlib.crc32(files[name]), len(files[name]), len(files[name]), offset)
        _check_entry(entry)
        header = entry.local()
        offset += len(header) + entry.size
        directory += entry.central()
        if offset + len(directory) + _END.size > LARGEST_ARCHIVE:
            raise Fault(f"a bundle has at most {LARGEST_ARCHIVE} bytes, and {name} goes beyond that")
        stream.write(header)
        stream.write(files[name])
    _check_before_end(directory[-_LOCATOR:])
    stream.write(directory + _END.pack(b"PK\5\6", 0, 0, len(files), len(files), len(directory), offset, 0))


def _check_before_end(found: bytes) -> None:
    """Raise `Fault` where a reader of large archives would take what stands before the end record for a locator."""
    if found.startswith(b"PK\6\7"):
        raise Fault("the archive has a ZIP64 locator before its end record: some readers would go by another directory")


def _check_entry(entry: _Entry) -> None:
    if not _NAME.fullmatch(entry.name) or len(entry.name) > LONGEST_NAME:
        raise Fault(f"a file has the odd name {entry.name[:LONGEST_NAME]!r}")
    if max(entry.size, entry.packed) > LARGEST_FILE:
        raise Fault(f"{entry.name} would unpack to {entry.size} bytes; at most {LARGEST_FILE} are allowed")


class _Archive:
    """A zip file whose structure leaves no choice to who reads it; raises `Fault` for any other.

    One entry per name and no two that differ in case alone; entries lie one after the other from the first byte to the
    directory, and the directory and its end record to the last; local headers say what the directory says; no
    comments, extra fields, flags, links or folders; nothing that passes for the records of large archives (ZIP64).
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        size = file.seek(0, os.SEEK_END)
        if size > LARGEST_ARCHIVE:
            raise Fault(f"the archive has {size} bytes; at most {LARGEST_ARCHIVE} are allowed")
        if size < _END.size:
            raise Fault("this is not a readable zip file: it is too short for one")
        end = _END.unpack(self._at(size - _END.size, _END.size))
        if end[0] != b"PK\5\6":
            raise Fault(
                "this is not a readable zip file, or something follows it: it does not end with an end record that has "
                "no comment"
            )
        _, disk, first, here, count, length, at, comment = end
        if (disk, first, comment) != (0, 0, 0) or here != count:
            raise Fault("the archive's end record has a comment, or speaks of several disks")
        if size >= _LOCATOR + _END.size:
            _check_before_end(self._at(size - _END.size - _LOCATOR, _LOCATOR))
        if count > MOST_FILES:
            raise Fault(f"the archive has {count} files; at most {MOST_FILES} are allowed")
        if length > MOST_FILES * (_CENTRAL.size + LONGEST_NAME):
            raise Fault(f"the archive's directory has {length} bytes, more than {MOST_FILES} files need")
        if at + length + _END.size != size:
            raise Fault("the archive's directory does not end where its end record begins: bytes were added or removed")
        self.directory = self._at(at, length)
        self.end = self._at(size - _END.size, _END.size)
        self.entries = {entry.name: entry for entry in self._read_directory(count, at)}

    def _read_directory(self, count: int, end: int) -> Iterator[_Entry]:
        at = offset = total = 0
        seen: dict[str, str] = {}
        for _ in range(count):
            if len(self.directory) - at < _CENTRAL.size:
                raise Fault("the archive's directory has fewer entries than its end record says")
            fields = _CENTRAL.unpack_from(self.directory, at)
            (
                signature,
                made_by,
                _,
                flags,
                method,
                _,
                _,
                crc,
                packed,
                size,
                length,
                extra,
                comment,
                disk,
                _,
                attributes,
            ) = fields[:16]
            at += _CENTRAL.size
            name = self.directory[at : at + length].decode("latin-1")
            at += length
            entry = _Entry(name, method, crc, packed, size, fields[16])
            if signature != b"PK\1\2" or len(name) != length:
                raise Fault("the archive's directory has something else between its entries")
            _check_entry(entry)
            if name in seen.values():
                raise Fault(f"{name} stands twice in the archive")
            if name.casefold() in seen:
                raise Fault(f"{name} and {seen[name.casefold()]} differ in case alone: some systems would mix them up")
            if extra or comment or flags or disk:
                raise Fault(f"{name} has a comment, extra fields, flags or another disk in the archive's directory")
            kind = attributes >> 16 & 0o170000 if made_by >> 8 == 3 else (attributes & 0x10) << 10
            if kind not in (0, 0o100000):
                raise Fault(f"{name} is marked as a link, a folder or a device, and not as a file")
            if method not in (0, 8) or (method == 0 and packed != size):
                raise Fault(f"{name} is packed by method {method}, or stored with two sizes")
            if entry.offset != offset:
                raise Fault(f"{name} begins at byte {entry.offset} and not at {offset}: entries overlap or leave a gap")
            self._check_local(entry, fields)
            offset, total = entry.begins + packed, total + size
            if total > LARGEST_ARCHIVE:
                raise Fault(f"the archive would unpack to {total} bytes or more; at most {LARGEST_ARCHIVE} are allowed")
            seen[name.casefold()] = name
            yield entry
        if at != len(self.directory):
            raise Fault("the archive's directory has more than its entries")
        for name in seen.values():
            if any("/".join(name.split("/")[:depth]) in seen.values() for depth in range(1, name.count("/") + 1)):
                raise Fault(f"{name} lies in a folder that is a file of the archive")
        if offset != end:
            raise Fault(f"there are {end - offset} bytes between the last file and the directory")

    def _check_local(self, entry: _Entry, fields: tuple[Any, ...]) -> None:
        found = self._at(entry.offset, _LOCAL.size + len(entry.name))
        # Versions, flags, method, time, date, CRC, sizes and length of the name are the same fields in both.
        wanted = _LOCAL.pack(b"PK\3\4", *fields[2:11], 0) + entry.name.encode("ascii")
        if found != wanted:
            raise Fault(f"{entry.name} has a local header that says something else than the directory")

    def check_bytes(self) -> None:
        """Raise `Fault` unless this is, byte for byte, the archive that its names and contents make (format 3)."""
        names = list(self.entries)
        if names != sorted(names):
            raise Fault("the files of the archive are not in the order of their names")
        for entry in self.entries.values():
            if self._at(entry.offset, entry.begins - entry.offset) != entry.local():
                raise Fault(f"the header of {entry.name} is not as the builder writes it: packed, or of another time")
        if self.directory != b"".join(entry.central() for entry in self.entries.values()):
            raise Fault("the archive's directory is not as the builder writes it: other versions, times or attributes")
        length = len(self.directory)
        count, at = len(names), sum(entry.begins - entry.offset + entry.size for entry in self.entries.values())
        if self.end != _END.pack(b"PK\5\6", 0, 0, count, count, length, at, 0):
            raise Fault("the archive's end record is not as the builder writes it")

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file, in pieces; raises `Fault` where it is missing or not what the directory says."""
        if name not in self.entries:
            raise Fault(f"{name} is missing")
        entry, crc, size = self.entries[name], 0, 0
        for piece in self._stored(entry) if entry.method == 0 else self._unpacked(entry):
            crc, size = zlib.crc32(piece, crc), size + len(piece)
            if size > entry.size:
                raise Fault(f"{name} unpacks to more than the {entry.size} bytes that it states")
            yield piece
        if (crc, size) != (entry.crc, entry.size):
            raise Fault(f"{name} can't be read: its content does not have the size and CRC that the archive states")

    def _stored(self, entry: _Entry) -> Iterator[bytes]:
        for at in range(0, entry.packed, _PIECE):
            yield self._at(entry.begins + at, min(_PIECE, entry.packed - at))

    def _unpacked(self, entry: _Entry) -> Iterator[bytes]:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            for piece in self._stored(entry):
                out = b"-"
                while not stream.eof and (piece or len(out) == _PIECE):
                    out = stream.decompress(piece, _PIECE)
                    yield out
                    piece = stream.unconsumed_tail
                if stream.unused_data or piece:
                    raise Fault(f"{entry.name} has bytes behind its packed content")
        except zlib.error as error:
            raise Fault(f"{entry.name} can't be read: {error}") from None
        if not stream.eof:
            raise Fault(f"{entry.name} can't be read: its packed content ends too early")

    def _at(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        found = self._file.read(length)
        if len(found) != length:
            raise Fault("the archive ends before the place that its directory names")
        return found


# -- what is read from it


def _whole(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError("a whole number of more than 20 digits")
    return int(digits)


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


# Numbers of a million digits would take minutes to read.
_DECODER = json.JSONDecoder(parse_int=_whole, parse_constant=_constant)


class _Bundle:
    """The files of a bundle, and what the checks so far have made of them."""

    def __init__(self, archive: _Archive) -> None:
        self.archive = archive
        self.index: dict[str, Any] = {}
        self.format = 0
        self.key = ""
        self.study_hash = ""  # hash of the frozen files; audit records name it
        self.approval = ""  # hash of the terms, which hold the study hash; people approve it
        self.approval_terms: dict[str, Any] = {}
        self.log = _Log()

    def read(self, name: str, most: int = LARGEST_JSON) -> bytes:
        entry = self.archive.entries.get(name)
        if entry is not None and entry.size > most:
            raise Fault(f"{name} has {entry.size} bytes; at most {most} are allowed")
        return b"".join(self.archive.pieces(name))

    def json(self, name: str) -> Any:
        try:
            text = self.read(name).decode("utf-8")
            value, end = _DECODER.raw_decode(text)
            if end != len(text):
                raise ValueError
        except (ValueError, RecursionError):
            raise Fault(f"{name} is not JSON") from None
        self._check_form(name, text, value)
        return value

    def _check_form(self, name: str, text: str, value: Any) -> None:
        # Two members of one name, or other spellings of a number, are read differently by different programs.
        if self.format >= 3 and _canonical(value).decode("utf-8") != text:
            raise Fault(f"{name} is not in canonical form: other programs may read something else in it")

    def entries(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the entries of a list, one at a time, so that a long one takes no more memory than a short one."""
        pieces = codecs.iterdecode(self.archive.pieces(name), "utf-8")
        try:
            buffer, at, number = next(pieces, ""), 1, 0
            more = buffer[1:2] != "]"
            if buffer[:1] != "[":
                raise Fault(f"{name} is not a list of entries")
            while more:
                while len(buffer) - at <= LARGEST_ENTRY:
                    piece = next(pieces, "")
                    if not piece:
                        break
                    buffer, at = buffer[at:] + piece, 0
                number += 1
                value, end = _DECODER.raw_decode(buffer, at)
                if not isinstance(value, dict):
                    raise Fault(f"{name} is not a list of entries")
                if end - at > LARGEST_ENTRY:
                    raise Fault(f"{name}: entry {number} has more than {LARGEST_ENTRY} characters")
                self._check_form(f"{name}: entry {number}", buffer[at:end], value)
                yield value
                more, at = buffer[end : end + 1] == ",", end + 1
                if not more and buffer[end : end + 1] != "]":
                    raise ValueError
            if buffer[at + (number == 0) :] or next(pieces, ""):
                raise ValueError
        except (ValueError, RecursionError):
            raise Fault(f"{name} is not JSON, or has an entry of more than {LARGEST_ENTRY} characters") from None

    def place(self, kind: str, digest: str) -> int:
        """Return the number of the first audit record about this study that holds the digest."""
        if (kind, digest) not in self.log.places:
            raise Fault(f"the log has no {kind} record of an entry that would be needed here")
        return self.log.places[kind, digest]

    def decisions(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Yield position, digest and value of each decision."""
        for position, decision in enumerate(self.entries("decisions.json"), start=1):
            yield position, _sha256(_canonical(decision)), decision

    def before(self, format: int, what: str) -> str:
        """Return the note on what bundles of this format could not prove; nothing for newer ones."""
        return f"; {what} BEFORE FORMAT {format}" if self.format < format else ""


class _Log:
    """What the checks need of the audit log: the place of every hash, and whole those records that count here."""

    #: Kinds that count whatever study they are about.
    KEPT = {
        *("restored", "budget_opened", "budget_narrowed", "budget_widened", "budget_settled"),
        *("reserved", "charged", "reservation_released"),
        *("agreement_entered", "agreement_confirmed", "agreement_terminated"),
        *("person_added", "person_deactivated", "initialised", "pinned", "unpinned"),
    }

    def __init__(self) -> None:
        self.length = 0
        self.seqs: dict[bytes, int] = {}
        self.released: list[int] = []  # numbers of the records of releases, of all studies
        self.kept: list[dict[str, Any]] = []
        self.places: dict[tuple[str, str], int] = {}
        self._by_kind: dict[str, list[dict[str, Any]]] = {}

    def add(self, record: dict[str, Any], study_hash: str) -> None:
        self.length, kind, fields = record["seq"], record["kind"], record["fields"]
        self.seqs[bytes.fromhex(record["hash"])] = self.length
        if kind == "released":
            self.released.append(self.length)
        mine = fields.get("study") == study_hash
        if mine or kind in self.KEPT:
            kept = {name: record[name] for name in ("seq", "time", "kind", "fields")}
            self.kept.append(kept)
            self._by_kind.setdefault(kind, []).append(kept)
        if mine and isinstance(fields.get("digest"), str):
            self.places.setdefault((kind, fields["digest"]), self.length)

    def of(self, kind: str, study: str | None = None) -> list[dict[str, Any]]:
        """Return the records of one kind; of a study where it is named."""
        found = self._by_kind.get(kind, [])
        return found if study is None else [r for r in found if r["fields"].get("study") == study]

    def find(self, hash: str) -> int | None:
        """Return the number of the record with this hash."""
        return self.seqs.get(bytes.fromhex(hash))

    def releases_up_to(self, seq: int) -> int:
        return bisect.bisect_right(self.released, seq)


def verify(path: Path, key: str | None = None, heads: Sequence[dict[str, Any]] = ()) -> list[Check]:
    """Make all checks in order; a check that needs the result of one that failed is not made and fails too."""
    checks: list[Check] = []
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        return [Check("archive", False, f"{path} is not a readable zip file: {error}")]
    with file:
        try:
            bundle = _Bundle(_Archive(file))
        except Fault as fault:
            return [Check("archive", False, str(fault))]
        steps: list[tuple[str, Callable[[], str]]] = [
            ("archive", lambda: _archive(bundle)),
            ("index", lambda: _index(bundle)),
            ("signature", lambda: _signature(bundle, key)),
            ("study", lambda: _study(bundle)),
            ("audit log", lambda: _audit(bundle)),
            ("heads", lambda: _heads(bundle, heads)),
            ("log and files agree", lambda: _logged(bundle)),
            ("charges", lambda: _charges(bundle)),
            ("caps", lambda: _caps(bundle)),
            ("decisions", lambda: _decisions(bundle)),
            ("approvals", lambda: _approvals(bundle)),
            ("releases", lambda: _releases(bundle)),
            ("agreements", lambda: _agreements(bundle)),
            ("parties", lambda: _parties(bundle)),
        ]
        broken = ""
        for name, step in steps:
            if broken:
                checks.append(Check(name, False, f"not checked, because '{broken}' failed"))
                continue
            try:
                checks.append(Check(name, True, step()))
            except Fault as fault:
                checks.append(Check(name, False, str(fault)))
            except (
                KeyError,
                TypeError,
                ValueError,
                AttributeError,
                IndexError,
                RecursionError,
                ArithmeticError,
            ) as error:
                checks.append(Check(name, False, f"malformed content: {type(error).__name__} {str(error)[:200]}"))
            if not checks[-1].ok and name in ("archive", "index", "signature", "audit log"):
                broken = name
    return checks


def _archive(bundle: _Bundle) -> str:
    archive = bundle.archive
    for name in archive.entries:
        for _ in archive.pieces(name):
            pass
    try:
        format = bundle.json("index.json")["format"]
    except (Fault, KeyError, TypeError):
        format = None
    if type(format) is not int or format not in FORMATS:
        return f"{len(archive.entries)} files; of no format that is known"  # the next check says what is wrong
    bundle.format = format
    if format >= 3:
        archive.check_bytes()
        return f"{len(archive.entries)} files, byte for byte the archive that they make"
    note = bundle.before(3, "how they are packed, and with which times, is NOT BOUND")
    return f"{len(archive.entries)} files, each there once and whole{note}"


def _index(bundle: _Bundle) -> str:
    index = bundle.json("index.json")
    if not bundle.format or not isinstance(index["files"], dict):
        raise Fault(f"index.json is not an index of format {', '.join(map(str, FORMATS))}; get a newer verifier")
    present = set(bundle.archive.entries) - {"index.json", "index.sig"}
    missing, extra = sorted(set(index["files"]) - present), sorted(present - set(index["files"]))
    if missing:
        raise Fault(f"{', '.join(missing)} is listed in the index but missing")
    if extra:
        raise Fault(f"{', '.join(extra)} is not listed in the index")
    if index["format"] >= 3:
        wanted = {*NAMES, *LISTS}
        odd = sorted(name for name in present ^ wanted if not name.startswith("frozen/"))
        if odd:
            raise Fault(f"{', '.join(odd)} is missing, or has no place in a bundle of format {index['format']}")
    for name, digest in sorted(index["files"].items()):
        hashed = hashlib.sha256()
        for piece in bundle.archive.pieces(name):
            hashed.update(piece)
        if hashed.hexdigest() != digest:
            raise Fault(f"{name} was changed: its content does not have the digest in the index")
    bundle.index, bundle.key, bundle.study_hash = index, index["public_key"], index["study"]
    bundle.approval = index["approval"]
    if not all(_HEX64.fullmatch(value) for value in (bundle.key, bundle.study_hash, bundle.approval)):
        raise Fault("index.json has no valid public key, study hash or approval hash")
    return f"{len(index['files'])} files are listed and unchanged"


def _signature(bundle: _Bundle, key: str | None) -> str:
    signature = bundle.read("index.sig", 1024)
    if bundle.format >= 3 and not _SIGNATURE.fullmatch(signature):
        raise Fault("index.sig is not a signature of 128 hex digits and a line feed")
    text = signature.decode("ascii", "replace").strip()
    _check_signature(bundle.key, text, "evidence-index", bundle.read("index.json"), "the index")
    fingerprint = hashlib.sha256(bytes.fromhex(bundle.key)).hexdigest()[:40]
    grouped = " ".join(fingerprint[i : i + 4] for i in range(0, 40, 4))
    if key is None:
        return f"by the key {grouped}; NOT COMPARED with a key that you know (use --key)"
    wanted = re.sub(r"[\s:]", "", key).lower()
    if not wanted or wanted not in (bundle.key, fingerprint):
        raise Fault(f"the bundle is signed by the key {grouped}, which is not the one that you gave")
    return f"by the key that you gave, {grouped}"


def _study(bundle: _Bundle) -> str:
    approval_terms = bundle.read("terms.json")
    if _sha256(approval_terms) != bundle.approval:
        raise Fault("terms.json does not have the approval hash as its digest: these are not the terms approved")
    files = [name for name in bundle.index["files"] if name.startswith("frozen/")]
    digests = {name[len("frozen/") :]: bundle.index["files"][name] for name in files}
    if not files or _sha256(_canonical(digests)) != bundle.study_hash:
        raise Fault("the frozen files do not have the study hash as their digest: this is not the code approved")
    bundle.approval_terms = bundle.json("terms.json")
    if bundle.approval_terms["study_hash"] != bundle.study_hash:
        raise Fault("terms.json is about another study")
    return f"{len(files)} frozen files are study {bundle.study_hash[:12]}…; terms and files are what was approved"


def _audit(bundle: _Bundle) -> str:
    previous = _sha256(b"datasites audit 1\0" + bytes.fromhex(bundle.key))
    checkpoints = number = 0
    for number, line in enumerate(_lines(bundle.archive.pieces("audit.jsonl")), start=1):
        if number > MOST_RECORDS:
            raise Fault(f"the audit log has more than {MOST_RECORDS} records, the most that a bundle may hold")
        record = _record(line, number, previous)
        if record["kind"] == "checkpoint":
            fields = record["fields"]
            if (fields["covers"], fields["hash"]) != (number - 1, previous):
                raise Fault(f"record {number} is a checkpoint of another position")
            _check_head(bundle.key, number - 1, previous, fields["signature"], f"the checkpoint in record {number}")
            checkpoints += 1
        previous = record["hash"]
        bundle.log.add(record, bundle.study_hash)
    if not number:
        raise Fault("audit.jsonl is empty")
    last = bundle.json("audit.head.json")
    _check_head(bundle.key, last["seq"], last["hash"], last["signature"], "audit.head.json")
    if (last["seq"], last["hash"]) != (number, previous):
        raise Fault(f"the log ends at record {number}, its signed head is record {last['seq']}")
    _require_format_of_the_log(bundle)
    return f"{number} records in one chain, {checkpoints} signed checkpoints, signed head"


def _require_format_of_the_log(bundle: _Bundle) -> None:
    """Require that the log holds nothing that the format which the bundle states did not know."""
    if bundle.format < 3 and any("commitment" in record["fields"] for record in bundle.log.kept):
        raise Fault(
            f"index.json says format {bundle.format}, whose logs bound no agreement, person or party; this log does"
        )


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield lines with their ends; one that is too long comes in parts, which no record fits."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line + b"\n"
        if len(rest) > LARGEST_RECORD:
            break
    if rest:
        yield rest


def _record(line: bytes, number: int, previous: str) -> dict[str, Any]:
    if not line.endswith(b"\n") or len(line) > LARGEST_RECORD:
        raise Fault(f"record {number} of the audit log is torn or too long")
    try:
        record: dict[str, Any] = _DECODER.decode(line[:-1].decode("utf-8"))
        same = isinstance(record, dict) and _canonical(record) == line[:-1]
    except (ValueError, RecursionError):
        raise Fault(f"record {number} of the audit log is not JSON") from None
    if not same:
        raise Fault(f"record {number} of the audit log was edited: it is not in the form that the log writes")
    body = {name: value for name, value in record.items() if name != "hash"}
    if record["seq"] != number:
        raise Fault(f"record {number} of the audit log is missing or moved: record {record['seq']} is in its place")
    if record["previous"] != previous:
        raise Fault(f"record {number} of the audit log does not follow the one before it")
    if _sha256(_canonical(body)) != record["hash"]:
        raise Fault(f"record {number} of the audit log was edited: its content does not have its hash")
    return record


def _heads(bundle: _Bundle, others: Sequence[dict[str, Any]]) -> str:
    counted = lost = 0
    restored = _restored(bundle)
    own = ((entry["head"], "heads.json") for entry in bundle.entries("heads.json"))
    for head, source in itertools.chain(own, ((head, "the head that you gave") for head in others)):
        if head["public_key"] != bundle.key:
            raise Fault(f"{source}: a head is of another hospital's log")
        if head["format"] == 1:
            held = _numbered_head(bundle, head, source, restored)
        elif head["format"] == 2:
            held = _public_head(bundle, head, source, restored)
        else:
            raise Fault(f"{source}: a head is of format {head['format']!r}, known are 1 and 2")
        counted, lost = counted + held, lost + (not held)
    note = "" if others else "; NO HEAD FROM ANOTHER PARTY was given (use --head)"
    if lost:
        note += f"; {lost} are of a part of the log that was LOST, as two people declared after a restore"
    return f"{counted} heads agree with the log{note}"


class _Kept(NamedTuple):
    """The first record, and the fewest releases, from which the log goes on after a restore that it declares."""

    seq: float = math.inf
    releases: float = math.inf


def _restored(bundle: _Bundle) -> _Kept:
    """Return what the log keeps, whichever restore is meant; each restore is declared by two people."""
    kept, entered = _Kept(), None
    # Of a format that binds people; the log may have lost all of them.
    known = [record["seq"] for record in bundle.log.of("person_added")[:1] if bundle.format >= 3]
    for record in bundle.log.of("restored"):
        fields = record["fields"]
        if not _names_two(fields):
            raise Fault(f"record {record['seq']} declares a restore on one person's word")
        if known and known[0] < record["seq"]:
            entered = entered or _Entered(bundle)
            entered.two_people(record)
        at = bundle.log.find(fields["continues"])
        if at is None or at >= record["seq"]:
            raise Fault(f"record {record['seq']} declares that the log goes on from a record that it lacks")
        kept = _Kept(min(kept.seq, at), min(kept.releases, bundle.log.releases_up_to(at)))
    return kept


def _identity(name: str) -> str:
    """Return what tells one person, organisation or mailbox from another, as the datasite compares them."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def _names_two(fields: Mapping[str, Any]) -> bool:
    """Say whether a record names who entered and another who confirmed what it tells."""
    names = {_identity(str(fields.get(name) or "")) for name in ("entered_by", "confirmed_by")}
    return len(names) == 2 and "" not in names


def _numbered_head(bundle: _Bundle, head: dict[str, Any], source: str, restored: _Kept) -> bool:
    """Check a head as hospitals sent it in earlier versions: the number of a record, and its hash.

    False for one beyond a record from which the log goes on after a restore: it is of the part that was lost.
    """
    _check_head(bundle.key, head["seq"], head["hash"], head["signature"], source)
    if bundle.log.find(head["hash"]) == head["seq"]:
        return True
    if head["seq"] > restored.seq:
        return False
    if head["seq"] > bundle.log.length:
        raise Fault(f"the log was truncated: {source} knows record {head['seq']}, it has {bundle.log.length}")
    raise Fault(f"the log was rewritten: record {head['seq']} is not the one that {source} knows")


def _public_head(bundle: _Bundle, head: dict[str, Any], source: str, restored: _Kept) -> bool:
    """Check a head by the hash of its record and the number of all studies' releases up to there; else as above."""
    releases, hash = head["releases"], head["hash"]
    signed = _canonical({"public_key": bundle.key, "releases": releases, "hash": hash})
    _check_signature(bundle.key, head["signature"], "audit-head", signed, source)
    at = bundle.log.find(hash)
    if at is None and releases >= restored.releases:
        return False
    if at is None:
        raise Fault(f"the log was rewritten or truncated: it lacks the record that {source} knows (release {releases})")
    counted = bundle.log.releases_up_to(at)
    if counted != releases:
        raise Fault(f"{source} says {releases} releases up to record {at}, the log holds {counted}")
    return True


def _logged(bundle: _Bundle) -> str:
    total = 0
    for kind, name in (("decision", "decisions.json"), ("charged", "ledger.json")):
        digests: set[str] = set()
        for position, entry in enumerate(bundle.entries(name), start=1):
            digest = _sha256(_canonical(entry))
            if (kind, digest) not in bundle.log.places:
                raise Fault(f"{name}: entry {position} is not in the audit log: it was changed or added")
            if digest in digests:
                raise Fault(f"{name}: entry {position} stands twice")
            digests.add(digest)
        replaced = _replaced(bundle) if kind == "charged" else set()
        for record in bundle.log.of(kind, bundle.study_hash):
            if record["fields"].get("digest") not in digests and record["seq"] not in replaced:
                raise Fault(f"{name}: what record {record['seq']} of the audit log is about is left out")
        total += len(digests)
    return f"{total} decisions and charges, each in both"


def _replaced(bundle: _Bundle) -> set[int]:
    """Return the records of charges that two people replaced by a larger one after a restore."""
    charged = bundle.log.of("charged", bundle.study_hash)
    settled = {r["fields"]["round"]: r["seq"] for r in charged if r["fields"].get("settled")}
    return {r["seq"] for r in charged if r["seq"] < settled.get(r["fields"]["round"], 0)}


# -- charges: what the approved plan says, and the caps

#: A mechanism as a charge names it: kind, noise multiplier, sampling rate; and how often each of them ran.
_Events = Counter[tuple[str, float, float]]
#: Discrete noise is priced as continuous noise of this part of its multiplier (datasites.study.rounds).
_LATTICE = math.sqrt(1 - (2.0 / 64.0) ** 2)
#: Mechanisms of one study, and of all studies of a population: no plan comes near, and more would take long to price.
_MOST_MECHANISMS, _MOST_IN_ALL, _LARGEST_ORDER = 64, 10_000, 1024
#: Rounds of a plan (datasites.study.manifest); orders that a population's budget went through, one after the other.
_MOST_ROUNDS, _MOST_ORDERS = 10_000, 16
#: Versions of one agreement, each of which is looked for in every decision that rests on an older one.
_MOST_VERSIONS = 100
_TOLERANCE = 1e-6


def _charges(bundle: _Bundle) -> str:
    """Log and ledger hold every charge in full, each after a reservation and within it; format 3: as planned."""
    charged = bundle.log.of("charged", bundle.study_hash)
    if bundle.format == 1:
        if any("charges" in r["fields"] for r in charged):
            raise Fault("index.json says format 1, which had no charges in the log; this log has them")
        return "not in the log in full before format 2; their digests are, see above"
    by_digest: dict[Any, list[dict[str, Any]]] = {}
    for record in charged:
        by_digest.setdefault(record["fields"].get("digest"), []).append(record)
    for entry in bundle.entries("ledger.json"):
        for record in by_digest.get(_sha256(_canonical(entry)), ()):
            _compare(record, entry, bundle.format)
    replaced, reserved = _replaced(bundle), bundle.log.of("reserved", bundle.study_hash)
    charged = [r for r in charged if r["seq"] not in replaced]
    totals: dict[str, _Events] = {}
    for record in charged:
        if not reserved or reserved[0]["seq"] > record["seq"]:
            round = record["fields"]["round"]
            raise Fault(f"record {record['seq']}: round {round} was charged without a reservation")
        for partition, events in _amounts(record, format=bundle.format).items():
            totals.setdefault(partition, Counter()).update(events)
    whole = _amounts(reserved[-1], format=bundle.format) if reserved else {}
    for partition, counts in totals.items():
        for mechanism, count in counts.items():
            if count > whole.get(partition, Counter())[mechanism]:
                amounts = _in_words({mechanism: count})
                raise Fault(f"{partition} patients were charged {amounts}, more than was reserved")
    if bundle.format < 3:
        note = bundle.before(3, "NOT HELD AGAINST the approved plan")
        return f"{len(charged)} charges in full, within what was reserved{note}"
    settled = _as_planned(bundle, [*reserved, *charged])
    note = f"; {settled} were SETTLED by two people after a restore, and may be other amounts" if settled else ""
    return f"{len(charged)} charges in full, as the approved plan says, within what was reserved{note}"


def _compare(record: Mapping[str, Any], entry: Mapping[str, Any], format: int) -> None:
    """Raise `Fault` unless a charge's record says of round, population and amounts what its ledger entry says."""
    seq, fields = record["seq"], record["fields"]
    for name in ("round", "population"):
        if format < 3 and not (name in fields and name in entry):
            continue  # bundles of format 2 may lack the population
        if fields[name] != entry[name]:
            raise Fault(f"record {seq} charges {name} {fields[name]}, and its entry in ledger.json says {entry[name]}")
    for name in ("charges", "local_charges"):
        if _amounts(record, name, format) != _counted(entry[name]):
            raise Fault(f"record {seq}: {name} of round {entry['round']} are others in ledger.json")


def _as_planned(bundle: _Bundle, records: Sequence[dict[str, Any]]) -> int:
    """Raise `Fault` for a reservation or charge that is not the plan's; returns how many were settled instead."""
    plan = _Plan(bundle.approval_terms)
    restored = [r["seq"] for r in bundle.log.of("restored")]
    settled, interim = 0, {}
    for record in records:
        seq, fields = record["seq"], record["fields"]
        if fields["population"] != bundle.approval_terms["population"]:
            raise Fault(f"record {seq} charges population {fields['population']}, and not the one of the terms")
        if fields.get("settled"):
            if not restored or restored[0] > seq:
                raise Fault(f"record {seq} says that it was settled after a restore, and the log holds none before it")
            settled += 1
            continue
        found = {local: _amounts(record, "local_charges" if local else "charges") for local in (False, True)}
        if record["kind"] == "reserved":
            round, what = 0, "the study reserved"
        else:
            round = fields["round"]
            what = f"round {round} was charged"
            if not 1 <= round <= plan.rounds + 1 or round in interim:
                raise Fault(f"record {seq}: {what} again, or is none of the approved plan's {plan.rounds + 1} rounds")
            interim[round] = False
        wanted = [{local: plan.of(round, holds, local=local) for local in found} for holds in (False, True)]
        if found not in wanted:
            raise Fault(
                f"record {seq}: {what} {_in_words_by_partition(found)}, but the approved plan says "
                + " or ".join(dict.fromkeys(_in_words_by_partition(each) for each in wanted))
            )
        if round:
            interim[round] = found == wanted[1] and wanted[0] != wanted[1]
    plan.require_schedule(interim)
    return settled


class _Plan:
    """What the approved terms say of each round, as `datasites.privacy.plan` prices it."""

    def __init__(self, approval_terms: Mapping[str, Any]) -> None:
        self.training, self.evaluation = approval_terms["plan"], approval_terms["evaluation_plan"]
        for plan in (self.training, self.evaluation):
            if plan["format"] != 1:
                raise Fault(f"terms.json holds a plan of format {plan['format']!r}; get a newer verifier")
        self.rounds = _figure(self.training, "rounds", 1, _MOST_ROUNDS)
        _figure(self.training, "steps_per_round", 1)
        _figure(self.evaluation, "interim", 0)
        self.both_sides = approval_terms["both_sides"]

    def of(self, round: int, interim: bool, *, local: bool) -> dict[str, _Events]:
        """Price of a round with or without an interim evaluation, by partition; round 0: of the whole study."""
        held_out: _Events = Counter()
        if round == 0:
            steps = self.rounds
            held_out[self._counts("final", local)] += 1
            if self.evaluation["interim"]:
                held_out[self._counts("interim", local)] += self.evaluation["interim"]
        else:
            steps = int(round <= self.rounds)
            if round == self.rounds + 1:
                held_out[self._counts("final", local)] += 1
            elif interim and round < self.rounds and self.evaluation["interim"]:
                held_out[self._counts("interim", local)] += 1
        training: _Events = Counter({self._step(local): steps * self.training["steps_per_round"]})
        if self.both_sides:
            training = held_out = training + held_out
        return {name: +events for name, events in (("training", training), ("held_out", held_out)) if +events}

    def _step(self, local: bool) -> tuple[str, float, float]:
        noise, shared = self.training["noise_multiplier"], self.training["mode"] == "distributed"
        noise = noise / math.sqrt(self.training["honest"] or 1) if local else noise * (_LATTICE if shared else 1.0)
        rate = float(self.training["sampling_rate"])
        return ("poisson_sampled_gaussian" if rate < 1 else "gaussian", float(noise), rate)

    def _counts(self, kind: str, local: bool) -> tuple[str, float, float]:
        noise, honest = self.evaluation[f"{kind}_multiplier"], self.evaluation["honest"]
        if honest:
            noise = noise / math.sqrt(honest) if local else noise * _LATTICE
        return ("gaussian", float(noise), 1.0)

    def require_schedule(self, interim: Mapping[int, bool]) -> None:
        """Raise `Fault` unless evaluations came each so many rounds, as many as the plan pays for.

        interim: rounds that were charged, and whether each held an interim evaluation.
        """
        count = self.evaluation["interim"]
        if not count:
            return
        held = {round for round in interim if interim[round]}
        # Each `every` with (rounds - 1) // every == count: at most rounds / count of them, of count rounds each.
        for every in range(1, self.rounds):
            if (self.rounds - 1) // every == count and held == interim.keys() & set(range(every, self.rounds, every)):
                return
        found = ", ".join(str(round) for round in sorted(interim) if interim[round]) or "no round"
        raise Fault(f"interim evaluations were charged in {found}; the plan pays for {count}, at equal distances")


def _figure(plan: Mapping[str, Any], name: str, least: int, most: int | None = None) -> int:
    """Return a whole number of a plan; raises `Fault` for any other value, and for one that would take for ever."""
    value = plan[name]
    if type(value) is not int or value < least or (most is not None and value > most):
        allowed = f"of {least} to {most}" if most is not None else f"of {least} or more"
        raise Fault(f"terms.json holds a plan whose {name} is {str(value)[:40]!r}, and not a whole number {allowed}")
    return value


def _amounts(record: Mapping[str, Any], name: str = "charges", format: int = 3) -> dict[str, _Events]:
    text = record["fields"][name]
    value = _DECODER.decode(text)
    # The log's own form is checked of a record, not of the JSON in one of its fields.
    if format >= 3 and _canonical(value).decode("utf-8") != text:
        where = f"record {record['seq']}: {name}" if "seq" in record else name
        raise Fault(f"{where} in the log is not in canonical form: other programs may read other amounts in it")
    return _counted(value)


def _counted(by_partition: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, _Events]:
    counted: dict[str, _Events] = {}
    for partition, charges in by_partition.items():
        if partition not in ("training", "held_out"):
            raise Fault(f"a charge is about {partition!r} patients; known are training and held_out")
        events: _Events = Counter()
        for charge in charges:
            noise, rate, count = (
                float(charge["noise_multiplier"]),
                float(charge.get("sampling_rate", 1.0)),
                charge["count"],
            )
            if not (noise > 0 and 0 < rate <= 1 and type(count) is int and count > 0):
                raise Fault(f"a charge of {partition} patients has figures that no mechanism has")
            events[charge.get("mechanism", "gaussian"), noise, rate] += count
        counted[partition] = events
    return counted


def _in_words(events: Mapping[Any, int]) -> str:
    return " and ".join(
        f"{count} x {mechanism.replace('_', ' ')} of noise {noise:g}" + (f" at rate {rate:g}" if rate < 1 else "")
        for (mechanism, noise, rate), count in sorted(events.items())
    )


def _in_words_by_partition(found: Mapping[bool, Mapping[str, _Events]]) -> str:
    sides = [f"{partition}: {_in_words(events)}" for partition, events in sorted(found[False].items())]
    local = "" if found[True] == found[False] else f" (against one who sees the vectors: {_sides(found[True])})"
    return (", ".join(sides) or "nothing") + local


def _sides(by_partition: Mapping[str, _Events]) -> str:
    return ", ".join(f"{partition}: {_in_words(events)}" for partition, events in sorted(by_partition.items()))


class _Account:
    """One study's events in one partition: what it reserved and charged, and what that commits."""

    def __init__(self) -> None:
        self.reserved: _Events = Counter()
        self.charged: dict[int, _Events] = {}
        self.total: _Events = Counter()
        self.ended = False

    def reserve(self, events: _Events) -> None:
        self.reserved, self.ended = events, False
        _check_few(events)

    def charge(self, round: int, events: _Events) -> None:
        total = self.total + events  # another object: what `committed` returned stays as it was
        total.subtract(self.charged.get(round, Counter()))
        self.total = +total
        self.charged[round] = events
        _check_few(self.total)

    def committed(self) -> _Events:
        """Return the reservation until it ends, never less than was charged (datasites.hospital.budget.balances)."""
        if self.ended:
            return self.total
        covers = all(count <= self.reserved[mechanism] for mechanism, count in self.total.items())
        return self.reserved if covers else self.reserved + self.total


def _check_few(events: _Events) -> None:
    if len(events) > _MOST_MECHANISMS:
        raise Fault(f"a study reserved or was charged more than {_MOST_MECHANISMS} mechanisms; no plan has so many")


class _Gate:
    """A population's commitments, record by record, at the Renyi order of its budget."""

    def __init__(self) -> None:
        self.epsilon = self.delta = 0.0
        self.order = self._orders = 0
        self._accounts: dict[tuple[str, str], _Account] = {}
        #: What each account commits, all of them together, and its divergence at the order.
        self._committed: dict[tuple[str, str], _Events] = {}
        self._counts: dict[str, _Events] = {"training": Counter(), "held_out": Counter()}
        self._totals = {"training": 0.0, "held_out": 0.0}
        #: At all orders, so that their number bounds the work.
        self._prices: dict[tuple[int, tuple[str, float, float]], float] = {}

    def promise(self, record: Mapping[str, Any]) -> None:
        """Take caps, and the order where it is told, from a record; raises `Fault` for wider ones but by two people."""
        fields, widens = record["fields"], record["kind"] == "budget_widened"
        epsilon, delta = float(fields["epsilon"]), float(fields["delta"])
        wider = self.order and not (epsilon <= self.epsilon and delta <= self.delta)
        if (wider or widens) and not (widens and _names_two(fields)):
            raise Fault(
                f"record {record['seq']} ({record['kind']}) widens a cap to epsilon {epsilon:g} at delta {delta:g}, "
                "and not on the word of two people"
            )
        self.epsilon, self.delta = epsilon, delta
        order = fields.get("order", self.order)
        if not (type(order) is int and 1 < order <= _LARGEST_ORDER and 0 < self.delta < 1):
            raise Fault(f"the log promises delta {self.delta:g} at the Renyi order {order!r}, which can't be priced")
        if order != self.order:
            self.order, self._orders = order, self._orders + 1
            if self._orders > _MOST_ORDERS:
                raise Fault(f"the log changes the Renyi order more than {_MOST_ORDERS} times; no budget needs that")
            for side, counts in self._counts.items():
                self._totals[side] = self._divergence_of(+counts)

    def line(self, record: Mapping[str, Any]) -> list[str]:
        """Follow a reservation, a charge or an end; returns the partitions that it is about."""
        fields = record["fields"]
        study = fields["study"]
        if record["kind"] == "reservation_released":
            sides = [side for side in ("training", "held_out") if (study, side) in self._accounts]
            for side in sides:
                self._accounts[study, side].ended = True
        else:
            amounts = _amounts(record)
            sides = sorted(amounts)
            for side, events in amounts.items():
                account = self._accounts.setdefault((study, side), _Account())
                if record["kind"] == "charged":
                    account.charge(int(fields["round"]), events)
                else:
                    account.reserve(events)
        for side in sides:
            self._update(study, side)
        return sides

    def reads(self, side: str) -> float:
        """Return the epsilon of all that is committed of a partition."""
        overhead = math.log1p(-1 / self.order) - math.log(self.delta * self.order) / (self.order - 1)
        return max(0.0, self._totals[side] + overhead)

    def _update(self, study_hash: str, side: str) -> None:
        before, now = self._committed.get((study_hash, side), Counter()), self._accounts[study_hash, side].committed()
        if now is before:
            return
        self._committed[study_hash, side] = now
        self._counts[side].subtract(before)
        self._counts[side].update(now)
        self._totals[side] += self._divergence_of(now) - self._divergence_of(before)

    def _divergence_of(self, events: _Events) -> float:
        return sum(count * self._price(mechanism) for mechanism, count in events.items())

    def _price(self, mechanism: tuple[str, float, float]) -> float:
        if not self.order:
            return 0.0
        key = (self.order, mechanism)
        if key not in self._prices:
            if len(self._prices) >= _MOST_IN_ALL:
                raise Fault(f"the log charges more than {_MOST_IN_ALL} mechanisms; no population has so many")
            self._prices[key] = _divergence(mechanism, self.order)
        return self._prices[key]


def _divergence(mechanism: tuple[str, float, float], order: int) -> float:
    """Return the Renyi divergence of one run (Mironov, Talwar, Zhang 2019, for whole orders)."""
    kind, noise, rate = mechanism
    if kind not in ("gaussian", "poisson_sampled_gaussian"):
        raise Fault(f"the log charges a mechanism {kind!r}, which has no price here; get a newer verifier")
    if rate == 1:
        return order / (2 * noise**2)
    terms = [
        math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
        + k * math.log(rate) + (order - k) * math.log1p(-rate) + k * (k - 1) / (2 * noise**2)
        for k in range(order + 1)
    ]  # fmt: skip
    most = max(terms)
    return (most + math.log(math.fsum(math.exp(term - most) for term in terms))) / (order - 1)


def _caps(bundle: _Bundle) -> str:
    """Check the population's cap at each reservation and charge of the study, and both caps in each decision."""
    if bundle.format < 3:
        return bundle.before(3, "NOT HELD AGAINST the caps").removeprefix("; ")
    name, gate, most, looked_at = bundle.approval_terms["population"], _Gate(), 0.0, 0
    promised: list[tuple[int, float]] = []
    entered: _Entered | None = None
    for record in bundle.log.kept:
        seq, kind, fields = record["seq"], record["kind"], record["fields"]
        if fields.get("population") != name:
            continue
        if kind in ("budget_opened", "budget_narrowed", "budget_widened", "budget_settled"):
            gate.promise(record)
            if kind == "budget_widened":
                entered = entered or _Entered(bundle)
                entered.two_people(record)
            promised.append((seq, gate.epsilon))
        elif kind in ("reserved", "charged", "reservation_released"):
            sides = gate.line(record)
            if fields["study"] != bundle.study_hash or fields.get("settled") or kind == "reservation_released":
                continue
            if not promised:
                raise Fault(f"record {seq} is about population {name}, whose budget the log has not opened before")
            for side in sides:
                reads = gate.reads(side)
                if not reads <= gate.epsilon + _TOLERANCE:
                    raise Fault(
                        f"record {seq}: with it, {side} patients of population {name} stand at epsilon {reads:.4f}, "
                        f"above the cap of {gate.epsilon:g} at delta {gate.delta:g}"
                    )
                most, looked_at = max(most, reads), looked_at + 1
    note = _caps_of_decisions(bundle, promised)
    if not looked_at:
        return f"nothing was reserved{note}"
    return f"population {name} stood at epsilon {most:.4f} at most (order {gate.order}), within its cap each time{note}"


def _caps_of_decisions(bundle: _Bundle, promised: Sequence[tuple[int, float]]) -> str:
    """Check that figures of allowed decisions are within caps no wider than the log says; returns a note."""
    unheld = 0
    reserved = [r for r in bundle.log.of("reserved", bundle.study_hash) if "study_epsilon" in r["fields"]]
    seqs = [seq for seq, _ in promised]
    for position, digest, decision in bundle.decisions():
        budget = (decision["facts"] or {}).get("budget")
        if not decision["allowed"] or budget is None:
            continue
        where, at = f"decisions.json: entry {position}", bundle.place("decision", digest)
        for figure, cap, whose in (
            ("epsilon_after", "epsilon_cap", "the population's"),
            ("study_epsilon_after", "study_epsilon_cap", "the study's"),
        ):
            if not budget[figure] <= budget[cap] + _TOLERANCE:
                raise Fault(f"{where} allows epsilon {budget[figure]:.4f} above {whose} cap of {budget[cap]:g}")
        known = bisect.bisect_left(seqs, at)
        if promised and (not known or budget["epsilon_cap"] > promised[known - 1][1] + _TOLERANCE):
            raise Fault(f"{where} goes by a cap of {budget['epsilon_cap']:g}, wider than the log promised then")
        if decision["action"] not in _RUNNING or _approval(decision) != bundle.approval:
            continue
        unheld += not reserved
        if reserved:
            fields = reserved[-1]["fields"]
            wider = budget["study_epsilon_cap"] > fields["study_epsilon"] + _TOLERANCE
            if wider or budget["delta"] != fields["study_delta"]:
                raise Fault(
                    f"{where} goes by a cap of {budget['study_epsilon_cap']:g} at delta {budget['delta']:g} for the "
                    f"study; it was reserved with {fields['study_epsilon']:g} at {fields['study_delta']:g}"
                )
    if not unheld:
        return ""
    return f"; the study's own cap in {unheld} decisions is NOT HELD AGAINST the log, in which no reservation states it"


# -- decisions, people, releases, agreements

_RUNNING = ("run_round", "release")


def _decisions(bundle: _Bundle) -> str:
    allowed = denied = 0
    for position, _, decision in bundle.decisions():
        where = f"decisions.json: entry {position}"
        # Reviews of terms that changed before approval have another hash; nothing may run on them.
        if _approval(decision) != bundle.approval and decision["allowed"] and decision["action"] in _RUNNING:
            raise Fault(f"{where} lets something run that is not what people approved")
        facts, outcomes = decision["facts"], [result["outcome"] for result in decision["results"]]
        if facts is not None and _sha256(_canonical(facts)) != decision["facts_digest"]:
            raise Fault(f"{where}: its facts do not have the digest that it states")
        if decision["allowed"]:
            bad = decision["denied_by"] or facts is None or "pass" not in outcomes
            if bad or set(outcomes) - {"pass", "not_applicable"}:
                raise Fault(f"{where} allows although a control denied or could not be evaluated")
        elif not decision["denied_by"]:
            raise Fault(f"{where} denies without naming a control")
        allowed, denied = allowed + bool(decision["allowed"]), denied + (not decision["allowed"])
    return f"{allowed} allowed, {denied} denied, each with its facts"


def _approvals(bundle: _Bundle) -> str:
    approved = [r for r in bundle.log.of("approved", bundle.study_hash) if r["fields"]["hash"] == bundle.approval]
    ran = [r["seq"] for kind in ("charged", "released") for r in bundle.log.of(kind, bundle.study_hash)]
    people: dict[str, set[str]] = {"steward": set(), "privacy_officer": set()}
    for role in people if ran else ():
        mine = [r for r in approved if r["fields"]["role"] == role]
        if not mine:
            raise Fault(f"the study ran, but no {role} approved this hash")
        if mine[0]["seq"] > min(ran):
            raise Fault(f"the study ran (record {min(ran)}) before a {role} approved it (record {mine[0]['seq']})")
        people[role] = {_identity(r["fields"]["person"]) for r in mine}
    _require_two(people)
    note = bundle.before(3, "who they are is NOT BOUND by the log")
    if bundle.format >= 3:
        entered = _Entered(bundle)
        emails: dict[str, set[str]] = {role: set() for role in people}
        for record in approved:
            emails[record["fields"]["role"]] |= entered.approver(record)
        _require_two(emails)
        note = entered.note()
    if not ran:
        return f"{len(approved)} approvals; nothing ran{note}"
    return f"a data steward and a privacy officer, different people, before anything ran{note}"


def _require_two(people: Mapping[str, set[str]]) -> None:
    same = people["steward"] & people["privacy_officer"]
    if same:
        raise Fault(f"one person approved in both roles: {', '.join(sorted(same))}")


def _releases(bundle: _Bundle) -> str:
    released = bundle.log.of("released", bundle.study_hash)
    charged: dict[int, int] = {}
    for entry in bundle.entries("ledger.json"):
        seq = bundle.place("charged", _sha256(_canonical(entry)))
        charged[entry["round"]] = min(seq, charged.get(entry["round"], seq))
    runs: list[int] = []
    leaves: dict[Any, int] = {}
    for _, digest, decision in bundle.decisions():
        if not decision["allowed"] or _approval(decision) != bundle.approval or decision["action"] not in _RUNNING:
            continue
        seq = bundle.place("decision", digest)
        if decision["action"] == "run_round":
            runs.append(seq)
        else:
            leaves[_round(decision)] = min(seq, leaves.get(_round(decision), seq))
    runs.sort()
    before, seen = 0, set()
    for record in released:
        round, at = record["fields"]["round"], record["seq"]
        if round in seen:
            raise Fault(f"round {round} was released more than once")
        if round not in charged:
            raise Fault(f"round {round} was released but never charged to the privacy budget")
        if charged[round] > at:
            raise Fault(f"round {round} was released before it was charged")
        # The decision that let this round run lies after the round before it and before its own charge.
        since = bisect.bisect_right(runs, before)
        if since == len(runs) or runs[since] >= charged[round]:
            raise Fault(f"round {round} was charged and run without a decision that allowed it")
        if leaves.get(round, at) >= at:
            raise Fault(f"round {round} was released without a decision that allowed it")
        before = at
        seen.add(round)
    return f"{len(released)} releases, each charged and allowed before"


def _approval(decision: dict[str, Any]) -> Any:
    """Return the approval hash that a decision is about, which decisions of format 1 call `study`."""
    return decision["study" if decision["format"] == 1 else "approval"]


def _round(decision: dict[str, Any]) -> int | None:
    release = (decision["facts"] or {}).get("release") or {}
    round: int | None = release.get("round")
    return round


def _agreements(bundle: _Bundle) -> str:
    """Check what allowed decisions rested on against registry and log, without the rule engine."""
    known = {(a["terms"]["id"], a["version"]): a for a in bundle.json("agreements.json")["agreements"]}
    entered = _Entered(bundle) if bundle.format >= 3 else None
    looked_at = 0
    for position, digest, decision in bundle.decisions():
        if not decision["allowed"]:
            continue
        facts = decision["facts"]
        day, hospital = facts["today"], facts["hospital"]
        for agreement in facts["agreements"]:
            kept = known.get((agreement["terms"]["id"], agreement["version"]))
            if kept is None or kept["terms"] != agreement["terms"]:
                raise Fault(
                    f"decision {position} rests on agreement {agreement['terms']['id']} version "
                    f"{agreement['version']}, which the registry does not hold like that"
                )
        in_force = [a for a in _newest(facts["agreements"], day) if _in_force(a, day, hospital)]
        if entered is not None:
            at = bundle.place("decision", digest)
            entered.require_day(day, at, f"decision {position}")
            beside = _versions(facts["agreements"])
            for agreement in in_force:
                entered.agreement(agreement, at, f"decision {position} rests on", beside)
        for service in facts["terms"]["services"]:
            parties = [
                [_identity(party) for party in a["terms"]["parties"]]
                for a in in_force
                if a["terms"]["kind"] == "baa" and service["kind"] in a["terms"]["services"]
            ]
            by = _identity(service["organisation"])
            if by != _identity(hospital) and not any(by in names for names in parties):
                raise Fault(
                    f"decision {position} allows on {day}, but no BAA in force covers {service['kind']} by "
                    f"{service['organisation']}"
                )
        irb, purpose = facts["terms"]["irb"], facts["terms"]["purpose"]
        if not any(
            a["terms"]["kind"] == "irb" and a["terms"]["reference"] == irb and purpose in a["terms"]["purposes"]
            for a in in_force
        ):
            raise Fault(f"decision {position} allows on {day}, but IRB approval {irb} is not in force for {purpose}")
        looked_at += 1
    if entered is not None:
        beside = _versions(known.values())
        for agreement in known.values():
            if agreement["confirmed_on"] is not None and agreement["terminated_on"] is None:
                entered.agreement(agreement, bundle.log.length + 1, "agreements.json holds", beside)
    unproved = "their day is NOT HELD AGAINST the log, and their contents are NOT BOUND by the log"
    note = entered.note() if entered is not None else bundle.before(3, unproved)
    return f"{looked_at} allowed decisions had a BAA for every service and an IRB approval in force on their day{note}"


def _versions(agreements: Iterable[Mapping[str, Any]]) -> set[tuple[Any, Any]]:
    return {(one["terms"]["id"], one["version"]) for one in agreements if one["confirmed_on"] is not None}


def _newest(agreements: list[dict[str, Any]], day: str) -> list[dict[str, Any]]:
    newest: dict[str, dict[str, Any]] = {}
    for agreement in sorted(agreements, key=lambda a: int(a["version"])):
        confirmed = agreement["confirmed_on"] is not None and agreement["confirmed_on"] <= day
        if confirmed and agreement["terms"]["effective"] <= day:
            newest[agreement["terms"]["id"]] = agreement
    return list(newest.values())


def _in_force(agreement: dict[str, Any], day: str, hospital: str) -> bool:
    terms = agreement["terms"]
    ended = agreement["terminated_on"] is not None and agreement["terminated_on"] <= day
    two_people = _identity(agreement["confirmed_by"]) != _identity(agreement["entered_by"])
    in_term: bool = terms["effective"] <= day <= terms["expires"]
    return in_term and not ended and two_people and _identity(hospital) in map(_identity, terms["parties"])


def _parties(bundle: _Bundle) -> str:
    """Check that parties which decisions took for pinned were pinned, with the contents that the log bound."""
    if bundle.format < 3:
        return bundle.before(3, "who was pinned is NOT BOUND by the log").removeprefix("; ")
    entered, parties = _Entered(bundle), set()
    for position, digest, decision in bundle.decisions():
        if not decision["allowed"] or (decision["facts"] or {}).get("roster") is None:
            continue
        facts, at = decision["facts"], bundle.place("decision", digest)
        where = f"decision {position} takes"
        for email in facts["roster"]["pinned"]:
            entry = entered.party(email, at, where)
            if entry is None:
                continue
            if email == facts["terms"]["researcher"] and entry["organisation"] != facts["roster"]["aggregator"]:
                raise Fault(
                    f"{where} {email} for {facts['roster']['aggregator']}, and pinned was {entry['organisation']}"
                )
            parties.add(email)
    return f"{len(parties)} parties of allowed decisions, pinned as the log says{entered.note()}"


class _Entered:
    """Agreements, people and parties as the log bound them when people entered them, and what the bundle opens of it.

    A record binds a content by HMAC-SHA256 under a salt of its own; `openings.json` holds salt and content of those
    that this study rests on. Those of others show nothing. Ends (a termination, a deactivation, a revocation) stand in
    the log in clear. Facts of a decision are gathered before it is logged, and clocks are corrected: so an end counts
    `GRACE` later, and a decision's day is that of its record, give or take as much.
    """

    GRACE = datetime.timedelta(minutes=10)

    def __init__(self, bundle: _Bundle) -> None:
        self._lines: dict[tuple[str, Any], list[dict[str, Any]]] = {}
        self._ends: dict[tuple[str, Any], list[dict[str, Any]]] = {}
        #: By agreement, the first confirmation of each version, in the order of the log.
        self._confirmed: dict[str, dict[Any, dict[str, Any]]] = {}
        self._bundle = bundle
        self._older: set[tuple[str, Any]] = set()
        bound: set[str] = set()
        self._first = bundle.log.length + 1
        for record in bundle.log.kept:
            kind, fields = record["kind"], record["fields"]
            if kind in ("agreement_entered", "agreement_confirmed"):
                key: tuple[str, Any] = ("agreement", (fields["agreement"], fields["version"]))
            elif kind == "agreement_terminated":
                key = ("agreement", fields["agreement"])
            elif kind in ("person_added", "person_deactivated"):
                key = ("person", fields["person"])
            elif kind in ("initialised", "pinned", "unpinned"):
                key = ("party", fields["email"])
            else:
                continue
            if kind == "agreement_confirmed":
                versions = self._confirmed.setdefault(fields["agreement"], {})
                versions.setdefault(fields["version"], record)
                if len(versions) > _MOST_VERSIONS:
                    raise Fault(f"the log confirms more than {_MOST_VERSIONS} versions of {fields['agreement']}")
            ends = kind in ("agreement_terminated", "person_deactivated", "unpinned")
            (self._ends if ends else self._lines).setdefault(key, []).append(record)
            if "commitment" in fields:
                bound.add(fields["commitment"])
                self._first = min(self._first, record["seq"])
        openings = bundle.archive.entries.get("openings.json")
        if openings is not None and openings.size > LARGEST_OPENINGS:
            raise Fault(f"openings.json has {openings.size} bytes; at most {LARGEST_OPENINGS} are allowed")
        self._opened: dict[str, Any] = {}
        for entry in bundle.entries("openings.json"):
            salt, content = entry["salt"], entry["content"]
            commitment = hmac.new(bytes.fromhex(salt), _canonical(content), "sha256").hexdigest()
            if not _HEX64.fullmatch(salt) or commitment not in bound:
                raise Fault("openings.json opens something else than the log binds: a content or a salt was changed")
            self._opened[commitment] = content

    def require_day(self, day: str, at: int, where: str) -> None:
        """Raise `Fault` unless facts of this day could be gathered for record `at`."""
        logged = self._time_of(at)
        if day not in {str((logged + grace).date()) for grace in (-self.GRACE, self.GRACE)}:
            raise Fault(f"{where} rests on facts of {day}, and record {at}, which logs it, is of {logged.date()}")

    def agreement(self, agreement: dict[str, Any], at: int, where: str, beside: AbstractSet[tuple[Any, Any]]) -> None:
        """Raise `Fault` unless people entered and confirmed this before record `at`, and it had not ended.

        beside: (id, version) of all that are held there: one that replaced this one must not be left out.
        """
        id, version = agreement["terms"]["id"], agreement["version"]
        what = f"{where} agreement {id} version {version}"
        lines = self._lines.get(("agreement", (id, version)), [])
        newest = self._newest(("agreement", (id, version)), at, what)
        if newest["kind"] != "agreement_confirmed" or newest["fields"]["person"] != agreement["confirmed_by"]:
            raise Fault(f"{what}, which nobody confirmed in the log as {agreement['confirmed_by']}")
        entry = self._entry(agreement, lines, newest, what)
        self._require_open(("agreement", id), lines[0]["seq"], at, what)
        for newer, record in self._confirmed.get(id, {}).items():
            if record["seq"] >= at:
                break
            if newer > version and (id, newer) not in beside and self._counts(record, at):
                raise Fault(f"{what}, and leaves out version {newer}, confirmed by record {record['seq']} of the log")
        content = self._content(("agreement", (id, version)), newest, what)
        stands = {name: value for name, value in agreement.items() if not name.startswith("terminated_")}
        if content is not None and content != {"kind": "agreement", "agreement": stands}:
            raise Fault(f"{what}, which is not what record {newest['seq']} of the log binds: it was changed afterwards")
        content = self._content(("agreement", (id, version)), entry, what)
        waiting = {**stands, "confirmed_by": None, "confirmed_on": None}
        if content is not None and content != {"kind": "agreement", "agreement": waiting}:
            raise Fault(f"{what}, which is not what record {entry['seq']} of the log entered: it was changed before")

    def _entry(
        self, agreement: dict[str, Any], lines: list[dict[str, Any]], confirmed: dict[str, Any], what: str
    ) -> dict[str, Any]:
        """Return the record by which somebody else entered, before, what this one confirms; raises `Fault`."""
        before = lines[: _place(lines, confirmed["seq"])]
        entered = (record for record in reversed(before) if record["kind"] == "agreement_entered")
        entry: dict[str, Any] | None = next(entered, None)
        who = None if entry is None else entry["fields"]["person"]
        if entry is None or who != agreement["entered_by"] or _identity(who) == _identity(agreement["confirmed_by"]):
            raise Fault(
                f"{what}, which nobody else than {agreement['confirmed_by']} entered in the log before, as "
                f"{agreement['entered_by']}"
            )
        return entry

    def approver(self, record: dict[str, Any]) -> set[str]:
        """Return the e-mail address of who approved in this record; none where the log bound none. Raises `Fault`."""
        fields, at = record["fields"], record["seq"]
        what = f"record {at} is an approval of {fields['person']}"
        newest = self._newest(("person", fields["person"]), at, what)
        self._require_open(("person", fields["person"]), newest["seq"], at, what)
        content = self._content(("person", fields["person"]), newest, what)
        if content is None:
            return set()
        if (content["name"], content["role"]) != (fields["person"], fields["role"]):
            raise Fault(f"{what} as {fields['role']}, whom record {newest['seq']} entered as {content['role']}")
        return {_identity(str(content["email"]))}

    def two_people(self, record: dict[str, Any]) -> None:
        """Raise `Fault` unless a steward and a privacy officer, as the log knew them then, stand for this record."""
        at, roles, emails = record["seq"], set(), set()
        for name in ("entered_by", "confirmed_by"):
            person = record["fields"][name]
            what = f"record {at} ({record['kind']}) is on the word of {person}"
            newest = self._newest(("person", person), at, what)
            self._require_open(("person", person), newest["seq"], at, what)
            roles.add(newest["fields"].get("role"))
            emails.add(str(newest["fields"].get("email", person)).casefold())
        if roles != {"steward", "privacy_officer"} or len(emails) != 2:
            raise Fault(f"record {at} ({record['kind']}) is not on the word of a steward and a privacy officer")

    def party(self, email: str, at: int, where: str) -> dict[str, Any] | None:
        """Return the roster entry pinned for this address before record `at`; None where the log bound none."""
        what = f"{where} {email} for pinned"
        newest = self._newest(("party", email), at, what)
        self._require_open(("party", email), newest["seq"], at, what)
        content = self._content(("party", email), newest, what)
        if content is None:
            return None
        entry: dict[str, Any] = content["entry"]
        if entry["email"] != email:
            raise Fault(f"{what}, and record {newest['seq']} pins {entry['email']}")
        return entry

    def note(self) -> str:
        """Return the note on entries whose contents no record binds."""
        if not self._older:
            return ""
        return f"; {len(self._older)} were entered BEFORE THE LOG BOUND CONTENTS, which are the hospital's word"

    def _newest(self, key: tuple[str, Any], at: int, what: str) -> dict[str, Any]:
        lines = self._lines.get(key, [])
        place = _place(lines, at)
        if not place:
            raise Fault(f"{what}, and the audit log does not know of it before: nobody entered it there")
        return lines[place - 1]

    def _require_open(self, key: tuple[str, Any], since: int, at: int, what: str) -> None:
        ends = self._ends.get(key, [])
        first = _place(ends, since + 1)
        if first == len(ends) or ends[first]["seq"] >= at:
            return
        end = ends[first]
        if self._counts(end, at):
            raise Fault(f"{what}, which had ended by record {end['seq']} of the log")

    def _counts(self, record: dict[str, Any], at: int) -> bool:
        """Say whether facts that were gathered for record `at` must know of an earlier record."""
        return at > self._bundle.log.length or _time(record["time"]) + self.GRACE <= self._time_of(at)

    def _time_of(self, seq: int) -> datetime.datetime:
        kept = self._bundle.log.kept
        return _time(kept[_place(kept, seq)]["time"])

    def _content(self, key: tuple[str, Any], record: dict[str, Any], what: str) -> Any:
        commitment = record["fields"].get("commitment")
        if commitment is None:
            if record["seq"] > self._first:
                raise Fault(
                    f"{what}, and record {record['seq']}, which enters it, binds no content as others before it"
                )
            self._older.add(key)
            return None
        if commitment not in self._opened:
            raise Fault(f"{what}, and openings.json does not open what record {record['seq']} binds of it")
        return self._opened[commitment]


def _place(records: Sequence[dict[str, Any]], seq: int) -> int:
    """Say how many records come before number `seq`."""
    low, high = 0, len(records)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if records[middle]["seq"] < seq else (low, middle)
    return low


def _time(text: str) -> datetime.datetime:
    time = datetime.datetime.fromisoformat(text)
    if time.utcoffset() != datetime.timedelta(0):
        raise Fault(f"the log holds the time {text[:40]}, which is not in UTC")
    return time


def _check_head(key: str, seq: int, hash: str, signature: str, what: str) -> None:
    signed = _canonical({"public_key": key, "seq": seq, "hash": hash})
    _check_signature(key, signature, "audit-checkpoint", signed, what)


def _check_signature(key: str, signature: str, domain: str, data: bytes, what: str) -> None:
    name = domain.encode()
    framed = b"datasites/1\0" + len(name).to_bytes(2, "big") + name + data
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), framed)
    except (InvalidSignature, ValueError):
        raise Fault(f"{what} is not signed by the hospital's key") from None


def _canonical(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _shown(text: str) -> str:
    """Return a bundle's text with each hidden or control character as its code point, as the datasite shows it."""
    return "".join(c if c.isprintable() else f"<U+{ord(c):04X}>" for c in text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--key", help="the hospital's public key or fingerprint, from another channel")
    parser.add_argument("--head", type=Path, action="append", default=[], help="a head that another party holds (JSON)")
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no verdict hangs on what a terminal can show
    try:
        heads = [json.loads(path.read_bytes()) for path in options.head]
    except (OSError, ValueError) as error:
        print(f"--head: can't be read: {error}", file=sys.stderr)
        return 2
    checks = verify(options.bundle, options.key, heads)
    for check in checks:
        print(f"{'ok    ' if check.ok else 'FAILED'}  {check.name}: {_shown(check.found)}")
    good = all(check.ok for check in checks)
    print("The bundle verifies." if good else "THE BUNDLE DOES NOT VERIFY.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
