"""Evidence bundles that somebody has changed: by the bytes of the archive, or with the hospital's own key.

Each `Tampered` names its kind, the check that must fail, and words of the sentence that it must fail with. Whoever has
the hospital's key may list, chain and sign all anew; then only what the files say of one another can give it away.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from datasites.hospital.bindings import commit
from datasites.hospital.evidence import build_bundle, entry_digest
from datasites.study.canonical import canonical_json
from datasites.study.identity import Identity
from tests.hospital.evidence_of import (
    APPROVAL,
    EVALUATION,
    STUDY_HASH,
    Hospital,
    edited,
    pack,
    pack_like_an_older_version,
    priced,
    rechain,
    resign,
    unpack,
)
from tests.policies.facts_of import HOSPITALS, OFFICER, RESEARCHER, STEWARD

Files = dict[str, bytes]
#: What the verifier may take for one bundle: bytes of address space, and CPU seconds.
MEMORY, SECONDS = 2 * 1024**3, 30
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
    for name in (b"../escape.py", b"/etc/passwd", b"frozen/../x", b"a\\b", b".hidden", b"frozen/", b"x" * 101, b"\xff"):
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


Records = list[dict[str, Any]]


def _with_key(change: Callable[[Files, Identity], object], **index: Any) -> Callable[[Path, Files, Identity], object]:
    def write(path: Path, files: Files, key: Identity) -> None:
        files = copy.deepcopy(files)
        change(files, key)
        pack(path, resign(files, key, **index))

    return write


def _log(change: Callable[[Records], object]) -> Callable[[Path, Files, Identity], object]:
    def tamper(files: Files, key: Identity) -> None:
        rechain(files, key, change)
        _open_only_what_is_bound(files)

    return _with_key(tamper)


def _open_only_what_is_bound(files: Files) -> None:
    """Leave openings out that the log does not bind any more: they would give the change away."""

    def is_bound(entry: dict[str, Any]) -> bool:
        return commit(bytes.fromhex(entry["salt"]), entry["content"]).encode() in files["audit.jsonl"]

    files["openings.json"] = canonical_json([e for e in json.loads(files["openings.json"]) if is_bound(e)])


def _of(bodies: Records, kind: str, **fields: Any) -> dict[str, Any]:
    """The first record of a kind with these fields."""
    return next(b for b in bodies if b["kind"] == kind and fields.items() <= b["fields"].items())


def _charged_as(charges: Mapping[str, Any], round: int = 2, *, local: bool = True) -> Callable[[Files, Identity], None]:
    """Charge a round otherwise, in ledger and log alike."""

    def change(files: Files, key: Identity) -> None:
        ledger = json.loads(files["ledger.json"])
        entry = next(entry for entry in ledger if entry["round"] == round)
        before = entry_digest(entry)
        text = canonical_json(charges).decode()
        names = ("charges", "local_charges") if local else ("charges",)
        entry.update(dict.fromkeys(names, charges))
        files["ledger.json"] = canonical_json(ledger)

        def relog(bodies: Records) -> None:
            fields = _of(bodies, "charged", digest=before)["fields"]
            fields.update(dict.fromkeys(names, text), digest=entry_digest(entry))

        rechain(files, key, relog)

    return change


def _decided_on(change: Callable[[dict[str, Any]], object]) -> Callable[[Files, Identity], None]:
    """Change the facts of every allowed decision, in file and log alike, as whoever forges a registry would."""

    def tamper(files: Files, key: Identity) -> None:
        decisions, renamed = json.loads(files["decisions.json"]), {}
        for decision in decisions:
            before = entry_digest(decision)
            if decision["allowed"]:
                change(decision["facts"])
                decision["facts_digest"] = entry_digest(decision["facts"])
            renamed[before] = entry_digest(decision)
        files["decisions.json"] = canonical_json(decisions)

        def relog(bodies: Records) -> None:
            for body in bodies:
                if body["kind"] == "decision":
                    body["fields"]["digest"] = renamed[body["fields"]["digest"]]

        rechain(files, key, relog)

    return tamper


def _typed_by_hand(files: Files, key: Identity) -> None:
    """An agreement is typed into the registry, and decisions rest on it."""
    book = json.loads(files["agreements.json"])
    typed = copy.deepcopy(book["agreements"][0])
    typed["terms"]["id"] = "baa-typed"
    edited(files, "agreements.json", lambda book: book["agreements"].append(typed))
    _decided_on(lambda facts: facts["agreements"].append(typed))(files, key)


def _changed_agreement(**terms: Any) -> Callable[[Files, Identity], None]:
    """What an agreement says is changed afterwards, wherever it stands but in the log."""

    def of(agreements: list[dict[str, Any]]) -> None:
        for agreement in agreements:
            if agreement["terms"]["id"] == "baa-centre":
                agreement["terms"].update(terms)

    def tamper(files: Files, key: Identity) -> None:
        edited(files, "agreements.json", lambda book: of(book["agreements"]))
        _decided_on(lambda facts: of(facts["agreements"]))(files, key)

    return tamper


def _opens_otherwise(kind: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Files, Identity], None]:
    def tamper(files: Files, _: Identity) -> None:
        edited(files, "openings.json", lambda entries: change(next(e for e in entries if e["content"]["kind"] == kind)))

    return tamper


def _same_address(files: Files, key: Identity) -> None:
    """Both reviewers are one person under two names, by the e-mail address that was bound."""
    salt, content = "cd" * 32, {"kind": "person", "name": OFFICER, "role": "privacy_officer", "email": STEWARD.upper()}
    edited(files, "openings.json", lambda entries: entries.append({"salt": salt, "content": content}))
    bound = {"commitment": commit(bytes.fromhex(salt), content)}
    rechain(files, key, lambda bodies: _of(bodies, "person_added", person=OFFICER)["fields"].update(bound))
    _open_only_what_is_bound(files)


def _before(bodies: Records, kind: str, record: dict[str, Any]) -> None:
    at = next(i for i, body in enumerate(bodies) if body["kind"] == kind)
    long_ago = bodies[0]["time"].replace(bodies[0]["time"][:4], "2001", 1)
    bodies.insert(at, {"kind": record.pop("kind"), "fields": record, "time": long_ago})


def with_the_key() -> Iterator[Tampered]:
    """Changes that the hospital signed throughout, log and all."""
    cheap = {"training": [{**priced(training=EVALUATION.event("final"))["training"][0], "noise_multiplier": 40.0}]}
    plan = {
        "count": 10,
        "format": 1,
        "mechanism": "poisson_sampled_gaussian",
        "noise_multiplier": 4.0,
        "sampling_rate": 0.1,
    }
    say = "but the approved plan says"
    for what, charges in (
        ("another mechanism, with more noise", cheap),
        ("a smaller rate", {"training": [{**plan, "sampling_rate": 0.01}]}),
        ("fewer steps", {"training": [{**plan, "count": 9}]}),
        ("another partition", {"held_out": [plan]}),
        ("nothing", {}),
    ):
        within = what in ("fewer steps", "nothing")
        words = say if within else "more than was reserved"
        yield Tampered("a charge unlike the plan", what, "charges", words, _with_key(_charged_as(charges)))
    yield Tampered(
        "a charge unlike the plan",
        "fewer steps, by one price of two",
        "charges",
        say,
        _with_key(_charged_as({"training": [{**plan, "count": 9}]}, local=False)),
    )

    def reserves(bodies: Records, charges: Mapping[str, Any]) -> None:
        text = canonical_json(charges).decode()
        _of(bodies, "reserved")["fields"].update(charges=text, local_charges=text)

    whole = {"training": [{**plan, "count": 30}], **priced(held_out=EVALUATION.event("final"))}
    for what, changes in (("more steps", {"count": 300}), ("no evaluation", None)):
        reserved = {"training": whole["training"]} if changes is None else {**whole, "training": [{**plan, **changes}]}
        yield Tampered("a reservation unlike the plan", what, "charges", say, _log(partial(reserves, charges=reserved)))
    yield Tampered(
        "a reservation unlike the plan",
        "called settled",
        "charges",
        "holds none before it",
        _log(lambda bodies: _of(bodies, "reserved")["fields"].update(settled=True)),
    )
    yield Tampered(
        "a reservation unlike the plan",
        "of other patients",
        "charges",
        "not the one of the terms",
        _log(lambda bodies: _of(bodies, "reserved")["fields"].update(population="lung")),
    )
    yield Tampered(
        "a reservation unlike the plan",
        "taken out",
        "charges",
        "was charged without a reservation",
        _log(lambda bodies: bodies.remove(_of(bodies, "reserved"))),
    )
    text = canonical_json({"training": [{**plan, "count": 1}]}).decode()
    yield Tampered(
        "a charge unlike the plan",
        "in the log alone",
        "charges",
        "charges of round 2 are others in ledger.json",
        _log(lambda bodies: _of(bodies, "charged", round=2)["fields"].update(charges=text)),
    )
    yield Tampered(
        "over the cap",
        "a smaller promise",
        "caps",
        "above the cap of 0.9",
        _log(lambda bodies: _of(bodies, "budget_opened")["fields"].update(epsilon=0.9)),
    )
    yield Tampered(
        "over the cap",
        "no promise",
        "caps",
        "has not opened",
        _log(lambda bodies: bodies.remove(_of(bodies, "budget_opened"))),
    )
    other = canonical_json({"training": [{**plan, "count": 900}]}).decode()
    yield Tampered(
        "over the cap",
        "by another study",
        "caps",
        "above the cap of 2.9",
        _log(
            lambda bodies: _before(
                bodies,
                "reserved",
                {
                    "kind": "reserved",
                    "study": "77" * 32,
                    "population": "heart",
                    "charges": other,
                    "local_charges": other,
                },
            )
        ),
    )
    for what, figures, words in (
        ("the population's figure", {"epsilon_after": 3.5}, "above the population's cap"),
        ("the study's figure", {"study_epsilon_after": 2.5}, "above the study's cap"),
        ("a wider cap than promised", {"epsilon_cap": 9.0}, "wider than the log promised"),
        ("a wider cap than reserved", {"study_epsilon_cap": 2.5}, "it was reserved with 2"),
    ):
        yield Tampered(
            "over the cap",
            f"{what}, as decisions have it",
            "caps",
            words,
            _with_key(_decided_on(lambda facts, f=figures: facts["budget"].update(f))),
        )
    yield Tampered(
        "an agreement typed by hand", "and decided on", "agreements", "does not know of it", _with_key(_typed_by_hand)
    )
    yield Tampered(
        "an agreement typed by hand",
        "into the registry alone",
        "agreements",
        "agreements.json holds agreement baa-typed",
        _with_key(
            lambda files, _: edited(
                files,
                "agreements.json",
                lambda book: book["agreements"].append(
                    {**book["agreements"][0], "terms": {**book["agreements"][0]["terms"], "id": "baa-typed"}}
                ),
            )
        ),
    )
    for what, terms in (
        ("runs longer", {"expires": "2099-12-31"}),
        ("covers more", {"services": ["aggregation", "backup", "model_distribution", "transport"]}),
        ("another document", {"document": "77" * 32}),
    ):
        yield Tampered(
            "an agreement changed by hand",
            what,
            "agreements",
            "it was changed afterwards",
            _with_key(_changed_agreement(**terms)),
        )
    yield Tampered(
        "an agreement changed by hand",
        "its end taken out",
        "agreements",
        "which had ended by record",
        _log(
            lambda bodies: _before(
                bodies, "decision", {"kind": "agreement_terminated", "agreement": "irb-heart", "person": STEWARD}
            )
        ),
    )
    yield Tampered(
        "an agreement changed by hand",
        "never confirmed",
        "agreements",
        "nobody confirmed",
        _log(lambda bodies: bodies.remove(_of(bodies, "agreement_confirmed"))),
    )
    yield Tampered(
        "an agreement changed by hand",
        "confirmed by another",
        "agreements",
        "nobody confirmed",
        _log(lambda bodies: _of(bodies, "agreement_confirmed")["fields"].update(person=STEWARD)),
    )
    yield Tampered(
        "an agreement changed by hand",
        "its binding taken out",
        "agreements",
        "binds no content",
        _log(lambda bodies: [b["fields"].pop("commitment") for b in bodies if b["kind"] == "agreement_confirmed"]),
    )
    for kind, change in (
        ("agreement", lambda entry: entry["content"]["agreement"].update(entered_by="nobody")),
        ("person", lambda entry: entry["content"].update(email="other@general.example")),
        ("party", lambda entry: entry["content"]["entry"].update(organisation="Other")),
    ):
        yield Tampered(
            "an opening",
            f"another content, of one {kind}",
            "agreements",
            "opens something else",
            _with_key(_opens_otherwise(kind, change)),
        )
        yield Tampered(
            "an opening",
            f"another salt, of one {kind}",
            "approvals",
            "opens something else",
            _with_key(_opens_otherwise(kind, lambda entry: entry.update(salt="00" * 32))),
        )
    yield Tampered(
        "an opening",
        "left out",
        "parties",
        "does not open",
        _with_key(lambda files, _: edited(files, "openings.json", lambda entries: entries.clear())),
    )
    yield Tampered(
        "a person",
        "whom nobody entered",
        "approvals",
        "does not know of it before",
        _log(lambda bodies: bodies.remove(_of(bodies, "person_added", person=OFFICER))),
    )
    yield Tampered(
        "a person",
        "who was shut out",
        "approvals",
        "which had ended",
        _log(lambda bodies: _before(bodies, "decision", {"kind": "person_deactivated", "person": OFFICER})),
    )
    yield Tampered(
        "a person", "under two names", "approvals", "one person approved in both roles", _with_key(_same_address)
    )
    yield Tampered(
        "a person",
        "in another role",
        "approvals",
        "no privacy_officer approved",
        _log(lambda bodies: _of(bodies, "approved", person=OFFICER)["fields"].update(role="steward")),
    )
    yield Tampered(
        "a party",
        "that nobody pinned",
        "parties",
        "does not know of it before",
        _log(lambda bodies: bodies.remove(_of(bodies, "pinned", email=HOSPITALS[1]))),
    )
    yield Tampered(
        "a party",
        "whom people had revoked",
        "parties",
        "which had ended",
        _log(lambda bodies: _before(bodies, "decision", {"kind": "unpinned", "email": RESEARCHER})),
    )
    yield Tampered(
        "a party",
        "of another organisation",
        "parties",
        "for Hub, and pinned was Centre",
        _with_key(_decided_on(lambda facts: facts["roster"].update(aggregator="Hub"))),
    )
    for format in (1, 2):
        yield Tampered(
            "an older format",
            f"format {format}",
            "audit log",
            f"says format {format}, whose logs bound no agreement",
            _with_key(lambda files, _: None, format=format),
        )
    for what, format in (("truth", True), ("text", "3"), ("fraction", 3.0), ("none", None), ("newer", 4)):
        yield Tampered(
            "an older format",
            f"a format that is {what}",
            "index",
            "is not an index of format",
            _with_key(lambda files, _: None, format=format),
        )
    for name in ("ledger.json", "decisions.json", "terms.json", "agreements.json", "openings.json"):
        yield Tampered(
            "JSON with two readings",
            name,
            "study" if name == "terms.json" else _CHECKS[name],
            "canonical form",
            _with_key(lambda files, _, name=name: files.update({name: files[name].replace(b"{", b'{"!":1,"!":2,', 1)})),
        )
    yield Tampered(
        "a file too many",
        "with a place in the index",
        "index",
        "has no place",
        _with_key(lambda files, _: files.update({"notes.txt": b"reviewed"})),
    )
    yield Tampered(
        "a file too few",
        "and none in the index",
        "index",
        "openings.json is missing",
        _with_key(lambda files, _: files.pop("openings.json")),
    )

    def signed_in_capitals(path: Path, files: Files, key: Identity) -> None:
        files = resign(files, key)
        pack(path, files | {"index.sig": files["index.sig"].upper().replace(b"\n", b" \n")})

    yield Tampered(
        "a signature", "written otherwise", "signature", "not a signature of 128 hex digits", signed_in_capitals
    )
    other_key = Identity.generate("forger@x.example")
    yield Tampered(
        "a signature",
        "by another key",
        "signature",
        "not the one that you gave",
        lambda path, files, _: pack(path, resign(files, other_key)),
    )
    yield Tampered(
        "a history",
        "a round released twice",
        "releases",
        "released more than once",
        _log(lambda bodies: bodies.append(copy.deepcopy(_of(bodies, "released", study=STUDY_HASH)))),
    )
    yield Tampered(
        "a history",
        "approved afterwards",
        "approvals",
        "before a steward approved it",
        _log(lambda bodies: bodies.append(bodies.pop(bodies.index(_of(bodies, "approved", hash=APPROVAL))))),
    )
    yield Tampered(
        "a history",
        "a charge left out",
        "log and files agree",
        "is not in the audit log",
        _log(lambda bodies: bodies.remove(_of(bodies, "charged", round=2))),
    )


_CHECKS = {
    "ledger.json": "log and files agree",
    "decisions.json": "log and files agree",
    "agreements.json": "agreements",
    "openings.json": "parties",
}


def tampered_bundles() -> list[Tampered]:
    """All of them."""
    return list(itertools.chain(of_the_archive(), with_the_key()))


def good_bundle(folder: Path) -> tuple[Files, Identity]:
    """The files of a bundle that verifies, and its hospital's key."""
    hospital = Hospital(folder)
    hospital.run()
    checks = build_bundle(folder / "good.zip", hospital.contents)
    assert all(check.ok for check in checks), checks
    return unpack(folder / "good.zip"), hospital.identity


@dataclass(frozen=True)
class Told:
    """What the stand-alone verifier said of one bundle: exit status, output, CPU seconds, and memory in MiB."""

    status: int
    output: str
    seconds: float
    memory: float

    def finds(self, tampered: Tampered) -> bool:
        """Whether the check that must fail does, with the words of its sentence."""
        lines = self.output.splitlines()
        return self.status == 1 and any(
            line.startswith(f"FAILED  {tampered.check}: ") and tampered.words in line for line in lines
        )


def ask(verifier: Path, bundle: Path, key: str) -> Told:
    """Run the verifier alone, with at most `MEMORY` of address space and `SECONDS` of CPU."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))

    command = [sys.executable, "-I", str(verifier), str(bundle), "--key", key]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=limit) as child:
        assert child.stdout is not None
        output = child.stdout.read().decode()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    return Told(child.returncode, output, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def show(folder: Path) -> Iterator[tuple[Tampered, Told]]:
    """Write each tampered bundle in turn and ask the verifier that lies in a good one."""
    files, key = good_bundle(folder)
    verifier = folder / "verify_bundle.py"
    verifier.write_bytes(files["verify_bundle.py"])
    assert ask(verifier, folder / "good.zip", key.public_key).status == 0
    for tampered in tampered_bundles():
        path = folder / "tampered.zip"
        tampered.write(path, dict(files), key)
        yield tampered, ask(verifier, path, key.public_key)
        path.unlink()
