"""Evidence bundles of which somebody changed the archive: every file that is listed is as the hospital signed it.

Each `Tampered` names its kind, the check that must fail, and words of the sentence that it must fail with.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from datasites.study.identity import Identity
from tests.hospital.evidence_of import (
    pack_like_an_older_version,
)

Files = dict[str, bytes]
_LINK, _FOLDER, _DEVICE = 0o120777 << 16, 0o040755 << 16, 0o020666 << 16


@dataclass(frozen=True)
class Tampered:
    """One tampered bundle: `write` puts it at a path, given the files of a good one and the hospital's key."""

    kind: str
    what: str
    check: str
    words: str
    write: Callable[[Path, Files, Identity], object]


@dataclass(frozen=True)
class Part:
    """One entry of an archive as somebody may write it: headers may say what they like."""

    name: bytes
    data: bytes
    local: Mapping[str, int | bytes] | None = None
    central: Mapping[str, int | bytes] | None = None
    before: bytes = b""
    listed: bool = True


def parts(files: Files) -> list[Part]:
    return [Part(name.encode(), files[name]) for name in sorted(files)]


def assemble(
    made: list[Part], *, end: Mapping[str, int] | None = None, comment: bytes = b"", before: bytes = b""
) -> bytes:
    """The bytes of an archive; what headers don't say otherwise is as the builder writes it."""
    out, directory, count = bytearray(before), bytearray(), 0
    for part in made:
        out += part.before
        usual = {
            "version": 20,
            "flags": 0,
            "method": 0,
            "time": 0,
            "date": 33,
            "crc": zlib.crc32(part.data),
            "packed": len(part.data),
            "size": len(part.data),
            "name": part.name,
            "extra": b"",
            "comment": b"",
            "made": 3 << 8 | 20,
            "disk": 0,
            "attributes": 0o100600 << 16,
            "offset": len(out),
        }
        here: dict[str, Any] = {**usual, **(part.local or {})}
        there: dict[str, Any] = {**usual, **(part.local or {}), **(part.central or {})}
        if part.listed:
            names = ("made", "version", "flags", "method", "time", "date", "crc", "packed", "size")
            lengths = (len(there["name"]), len(there["extra"]), len(there["comment"]))
            tail = (there["disk"], 0, there["attributes"], there["offset"])
            directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", *(there[n] for n in names), *lengths, *tail)
            directory += there["name"] + there["extra"] + there["comment"]
            count += 1
        names = ("version", "flags", "method", "time", "date", "crc", "packed", "size")
        out += struct.pack("<4s5H3L2H", b"PK\3\4", *(here[n] for n in names), len(here["name"]), len(here["extra"]))
        out += here["name"] + here["extra"] + part.data
    last = {"disk": 0, "first": 0, "here": count, "count": count, "length": len(directory), "at": len(out)} | dict(
        end or {}
    )
    names = ("disk", "first", "here", "count", "length", "at")
    return (
        bytes(out + directory) + struct.pack("<4s4H2LH", b"PK\5\6", *(last[n] for n in names), len(comment)) + comment
    )


def changed(files: Files, name: str, **changes: Any) -> list[Part]:
    """All parts, with changes to one of them."""
    return [replace(part, **changes) if part.name == name.encode() else part for part in parts(files)]


def _written(made: Callable[[Files], bytes]) -> Callable[[Path, Files, Identity], object]:
    return lambda path, files, key: path.write_bytes(made(files))


def of_the_archive() -> Iterator[Tampered]:
    """Changes that need no key: every file that the directory lists is as the hospital signed it."""

    def one(kind: str, what: str, words: str, made: Callable[[Files], bytes]) -> Tampered:
        return Tampered(kind, what, "archive", words, _written(made))

    for name in ("ledger.json", "decisions.json", "index.json", "audit.jsonl", "frozen/model.py"):
        hidden = Part(name.encode(), b"[]", listed=False)
        yield one(
            "a second file outside the directory",
            f"{name}, first",
            "entries overlap or leave a gap",
            lambda files, hidden=hidden: assemble([hidden, *parts(files)]),
        )
        yield one(
            "a second file outside the directory",
            f"{name}, last",
            "between the last file and the directory",
            lambda files, hidden=hidden: assemble([*parts(files), hidden]),
        )
    for what, content in (("one byte", b"\0"), ("a shell script", b"#!/bin/sh\nexit\n")):
        yield one(
            "bytes before",
            f"{what}, offsets mended",
            "overlap or leave a gap",
            lambda files, content=content: assemble(parts(files), before=content),
        )
        yield one(
            "bytes before",
            f"{what}, offsets as they were",
            "does not end where its end record begins",
            lambda files, content=content: content + assemble(parts(files)),
        )
    for what, content in (("one byte", b"\0"), ("a line", b"see below\n"), ("a script", b"exit\n" * 9)):
        yield one(
            "bytes after", what, "something follows it", lambda files, content=content: assemble(parts(files)) + content
        )
    yield one(
        "bytes after",
        "another archive",
        "does not end where its end record begins",
        lambda files: assemble(parts(files)) + assemble([Part(b"ledger.json", b"[]")]),
    )
    for what, content in (
        ("a word", b"reviewed"),
        ("22 bytes that are an end record", struct.pack("<4s4H2LH", b"PK\5\6", *[0] * 7)),
    ):
        words = "something follows it" if what == "a word" else "does not end where"
        yield one("a comment", what, words, lambda files, content=content: assemble(parts(files), comment=content))
    yield one(
        "a comment",
        "of a file",
        "ledger.json has a comment",
        lambda files: assemble(changed(files, "ledger.json", central={"comment": b"x"})),
    )
    for name in ("ledger.json", "audit.jsonl", "frozen/model.py", "verify_bundle.py"):
        yield one(
            "attributes",
            f"{name} is a link",
            f"{name} is marked as a link",
            lambda files, name=name: assemble(changed(files, name, central={"attributes": _LINK})),
        )
    for what, attributes in (("a folder", _FOLDER), ("a device", _DEVICE)):
        yield one(
            "attributes",
            f"summary.html is {what}",
            "and not as a file",
            lambda files, a=attributes: assemble(changed(files, "summary.html", central={"attributes": a})),
        )
    yield one(
        "attributes",
        "anybody may write terms.json",
        "other versions, times or attributes",
        lambda files: assemble(changed(files, "terms.json", central={"attributes": 0o100666 << 16})),
    )
    for name in ("ledger.json", "decisions.json", "frozen/study.toml"):
        yield one(
            "a name twice",
            f"{name} in the directory",
            f"{name} stands twice",
            lambda files, name=name: assemble([*parts(files), Part(name.encode(), b"[]")]),
        )
        yield one(
            "a name twice",
            f"{name} in other case",
            "differ in case alone",
            lambda files, name=name: assemble([*parts(files), Part(name.upper().encode(), b"[]")]),
        )
    for name, other in (("ledger.json", b"Xedger.json"), ("frozen/model.py", b"frozen/other.py")):
        yield one(
            "two headers that differ",
            f"name of {name}",
            "something else than the directory",
            lambda files, n=name, o=other: assemble(changed(files, n, local={"name": o}, central={"name": n.encode()})),
        )
    for name, other in (("size", 1), ("packed", 1), ("crc", 0), ("method", 8), ("date", 34)):
        yield one(
            "two headers that differ",
            f"{name} of ledger.json",
            "something else than the directory",
            lambda files, f=name, o=other: assemble(
                [
                    replace(part, local={f: o}, central={f: _usual(part)[f]}) if part.name == b"ledger.json" else part
                    for part in parts(files)
                ]
            ),
        )
    yield one(
        "entries that overlap",
        "two names for one content",
        "overlap or leave a gap",
        lambda files: assemble(changed(files, "ledger.json", central={"offset": 0})),
    )
    for name in ("decisions.json", "verify_bundle.py"):
        yield one(
            "a gap",
            f"before {name}",
            "overlap or leave a gap",
            lambda files, name=name: assemble(changed(files, name, before=b"\0" * 7)),
        )
    for what, flags in (("encrypted", 1), ("sizes behind the content", 8), ("name in UTF-8", 0x800)):
        yield one(
            "flags",
            what,
            "has a comment, extra fields, flags",
            lambda files, flags=flags: assemble(changed(files, "ledger.json", local={"flags": flags})),
        )
    path = b"up\x09\x00\x01" + struct.pack("<L", zlib.crc32(b"ledger.json")) + b"x.js"
    yield one(
        "extra fields",
        "in the directory",
        "extra fields",
        lambda files: assemble(changed(files, "ledger.json", central={"extra": path})),
    )
    yield one(
        "extra fields",
        "in the local header",
        "something else than the directory",
        lambda files: assemble(changed(files, "ledger.json", local={"extra": path}, central={"extra": b""})),
    )
    for field, value in (("date", 0x5A21), ("time", 1), ("version", 10)):
        yield one(
            "another header",
            f"{field} {value}",
            "is not as the builder writes it",
            lambda files, f=field, v=value: assemble(changed(files, "audit.jsonl", local={f: v})),
        )
    for name in ("audit.jsonl", "decisions.json"):
        yield one(
            "packed",
            name,
            f"the header of {name} is not as the builder writes it",
            lambda files, name=name: assemble([_packed(p) if p.name == name.encode() else p for p in parts(files)]),
        )
    yield Tampered(
        "packed",
        "all, by the library",
        "archive",
        "is not as the builder writes it",
        lambda path, files, _: pack_like_an_older_version(path, files),
    )
    yield one(
        "another order", "reversed", "not in the order of their names", lambda files: assemble(parts(files)[::-1])
    )
    for cut in (1, 22, 4000):
        yield one("cut off", f"{cut} bytes", "zip file", lambda files, cut=cut: assemble(parts(files))[:-cut])
    outside = (b"../escape.py", b"/etc/passwd", b"frozen/../x", b"a\\b", b".hidden", b"frozen/", b"x" * 101, b"\xff")
    for name in (*outside, b"ledger.json.", b"frozen./model.py", b"frozen/NUL.txt"):
        yield one(
            "an odd name",
            repr(name)[:40],
            "odd name",
            lambda files, name=name: assemble([*parts(files), Part(name, b"")]),
        )
    yield one(
        "an odd name",
        "a folder that is a file",
        "in a folder that is a file",
        lambda files: assemble([*parts(files), Part(b"terms.json/x", b"")]),
    )
    for what, end in (("several disks", {"disk": 1}), ("fewer files than there are", {"here": 1})):
        yield one(
            "the end record", what, "speaks of several disks", lambda files, end=end: assemble(parts(files), end=end)
        )
    yield one(
        "the end record",
        "with what is read as a ZIP64 locator before it",
        "has a ZIP64 locator before its end record",
        lambda files: assemble([*parts(files), Part(b"zzzzzzzz.txt", b"", central={"attributes": 0x07064B50})]),
    )
    yield one(
        "the end record",
        "as large archives have it",
        "files; at most",
        lambda files: assemble(parts(files), end={"here": 0xFFFF, "count": 0xFFFF}),
    )
    for name in ("ledger.json", "terms.json", "verify_bundle.py"):
        yield one(
            "a flipped bit",
            name,
            f"{name} can't be read",
            lambda files, name=name: assemble(
                [
                    replace(p, data=_flipped(p.data), local={"crc": zlib.crc32(p.data)})
                    if p.name == name.encode()
                    else p
                    for p in parts(files)
                ]
            ),
        )
    yield from _large()


def _usual(part: Part) -> dict[str, int]:
    size = len(part.data)
    return {"size": size, "packed": size, "crc": zlib.crc32(part.data), "method": 0, "date": 33}


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _packed(part: Part) -> Part:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(part.data) + packer.flush()
    header = {"method": 8, "crc": zlib.crc32(part.data), "size": len(part.data), "packed": len(packed)}
    return replace(part, data=packed, local=header)


def _large() -> Iterator[Tampered]:
    def empty(path: Path, files: Files, _: Identity) -> None:
        made = [Part(b"frozen/%05d" % number, b"") for number in range(60_000)]
        path.write_bytes(assemble([*parts(files), *made]))

    def sparse(path: Path, files: Files, _: Identity) -> None:
        with path.open("wb") as file:
            file.write(assemble(parts(files)))
            os.truncate(path, 8 * 1024**3)
            file.seek(0, os.SEEK_END)
            file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0))

    def bomb(size: int, path: Path, files: Files, _: Identity) -> None:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        zeros = b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()
        header = {"method": 8, "crc": 0, "size": min(size, 2**32 - 1), "packed": len(zeros)}
        path.write_bytes(assemble([*parts(files), Part(b"frozen/zeros", zeros, local=header)]))

    def lies(path: Path, files: Files, key: Identity) -> None:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        zeros = packer.compress(bytes(200 << 20)) + packer.flush()
        path.write_bytes(assemble([*parts(files), Part(b"frozen/zeros", zeros, local={"method": 8, "size": 5})]))

    yield Tampered("too much", "60,000 empty files", "archive", "files; at most 64 are allowed", empty)
    yield Tampered("too much", "8 GiB of nothing", "archive", "the archive has 85", sparse)
    yield Tampered("too much", "a file of 300 MiB in 300 KB", "archive", "would unpack to", partial(bomb, 300 << 20))
    yield Tampered("too much", "200 MiB that call themselves 5 bytes", "archive", "unpacks to more than the 5", lies)
    yield Tampered(
        "too much",
        "a directory of 300 KB",
        "archive",
        "bytes, more than 64 files need",
        lambda path, files, _: path.write_bytes(
            assemble([replace(p, central={"comment": b"x" * 30_000}) for p in parts(files)])
        ),
    )
