"""How a hospital's state lies in files, so that each step writes what is new and removes what is over.

`record` is small and replaced at each step. It names everything else: `parts/<SHA-256>`, files that are written once
(certificate, enrolment, messages to send again, and one file of secrets for each round), and two files that grow by
entries, of which it says how much counts (bundles taken in, releases). What no record names any more is removed.

**Claim.** A step writes the small record and what is new: for the enrolment, all certificates and the bundles made; for
a bundle, its shares; for "ready", all secrets once more, now by round, while their first copies are removed; for a
round, its own secrets and messages. So the setup of an epoch is linear in hospitals times rounds, and a round's secrets
are in one file of their own, which is gone when the step that destroys them has returned. Assumes a disk that forgets
removed files, as an encrypted one does for those who lack its key.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from datasites.secagg.errors import REJOIN, JournalDamaged
from datasites.secagg.messages import Certificate, Enrolment, Octets
from datasites.secagg.state import Accepted, MemberState, OpenRound, Released, RoundSecrets
from datasites.study.canonical import Agreed, sha256_hex
from datasites.study.manifest import Sha256

_SECRETS = struct.Struct(">IBB")  # round, bytes of its key and of its seed; then both, and the shares held
_ENTRY = struct.Struct(">I")


class JournalledMessage(Agreed):
    """One message in the journal: kind and recipient ("" for all), and the SHA-256 that names its file."""

    kind: str
    recipient: str
    sha256: Sha256


class Outbox(Agreed):
    """All messages that may have to be sent again."""

    sent: tuple[JournalledMessage, ...]


class RoundFiles(Agreed):
    """The files of the rounds' secrets as they were at "ready": of round `first` and those after it."""

    first: int
    files: tuple[Sha256, ...]


class Stretch(Agreed):
    """How much of a file that grows counts: bytes, and its entries' chained SHA-256. More is of an unfinished step."""

    size: Annotated[int, Field(ge=0)] = 0
    chained: Sha256 = "0" * 64

    def and_then(self, entries: Iterable[Agreed]) -> tuple[Stretch, bytes]:
        """Return the stretch with `entries` after it, and the bytes that they add."""
        chained, added = self.chained, []
        for entry in entries:
            data = entry.canonical()
            chained = sha256_hex(bytes.fromhex(chained) + data)
            added += [_ENTRY.pack(len(data)), data]
        data = b"".join(added)
        return Stretch(size=self.size + len(data), chained=chained), data


class JournalRecord(Agreed):
    """What one commit makes true: the small fields of `MemberState`, and the names of the files of the others.

    own_secrets: of all rounds in one file, before "ready"; then `rounds` lists a file each, and `opened` names that of
    the open round. coming: the bundles taken in, with their shares, before "ready"; then `accepted`, without.
    """

    format: Literal[2] = 2
    context: Sha256
    study: Sha256
    epoch: int
    binding: Sha256 | None
    hpke_private: Octets = Field(repr=False)
    ready: bool
    open: OpenRound | None
    last_round: int
    sequence: int
    head: Sha256
    parent: Sha256
    certificate: Sha256
    enrolment: Sha256 | None
    own_shares: Sha256 | None
    commitments: Sha256 | None
    own_secrets: Sha256 | None
    rounds: Sha256 | None
    opened: Sha256 | None
    coming: Stretch
    accepted: Sha256 | None
    released: Stretch
    outbox: Sha256


@dataclass(frozen=True)
class Layout:
    """A state, the messages kept with it, and where both lie. round_files: by round, once "ready" was said."""

    record: JournalRecord
    state: MemberState = field(repr=False)
    sent: tuple[JournalledMessage, ...]
    round_files: dict[int, str]

    @property
    def parts(self) -> set[str]:
        """Return the names of the files in `parts` that this record needs."""
        record, state = self.record, self.state
        named = {record.certificate, record.enrolment, record.own_shares, record.commitments, record.own_secrets}
        named |= {record.rounds, record.opened, record.accepted, record.outbox, *(one.sha256 for one in self.sent)}
        opened = None if state.open is None else state.last_round
        named |= {self.round_files[one.round] for one in state.secrets if state.ready and one.round != opened}
        return {name for name in named if name is not None}

    @property
    def growing(self) -> dict[str, Stretch]:
        """Return the files that grow, by name, and how much of each counts."""
        stretches = {f"accepted-{self.record.epoch}": self.record.coming}
        stretches[f"released-{self.record.epoch}"] = self.record.released
        return {name: stretch for name, stretch in stretches.items() if stretch.size}


@dataclass(frozen=True)
class Change:
    """What makes a layout true once its record is written: new files in `parts`, and entries after a position."""

    layout: Layout
    parts: dict[str, bytes] = field(repr=False)
    entries: dict[str, tuple[int, bytes]] = field(repr=False)


def lay_out(state: MemberState, sent: tuple[JournalledMessage, ...], before: Layout | None) -> Change:
    """Return where `state` lies, by what is new since `before`. Messages themselves are written by the caller."""
    new: dict[str, bytes] = {}

    def put(data: bytes) -> str:
        name = sha256_hex(data)
        new[name] = data
        return name

    def part(name: str, write: Callable[[], bytes]) -> str | None:
        value = getattr(state, name)
        if not value:
            return None
        if before is not None and getattr(before.state, name) is value:
            known: str | None = getattr(before.record, "own_secrets" if name == "secrets" else name)
            if known is not None:
                return known
        return put(write())

    same = before if before is not None and before.record.context == state.context else None
    round_files: dict[int, str] = {}
    rounds = opened = accepted = None
    coming = added = None
    if not state.ready:
        known = {one.owner for one in same.state.accepted} if same else set()
        entries = [one for one in state.accepted if one.owner not in known]
        coming, added = (same.record.coming if same else Stretch()).and_then(entries)
    else:
        accepted = part("accepted", lambda: Stretch().and_then(state.accepted)[1])
        round_files, rounds = (same.round_files, same.record.rounds) if same else ({}, None)
        if rounds is None and state.secrets:
            round_files = {one.round: put(_secrets_bytes(one)) for one in state.secrets}
            index = RoundFiles(first=state.secrets[0].round, files=tuple(round_files.values()))
            rounds = put(index.canonical())
        secrets = None if state.open is None else state.of_round(state.last_round)
        if secrets is not None:
            opened = put(_secrets_bytes(secrets))
    released, releases = (same.record.released if same else Stretch()).and_then(
        state.released[len(same.state.released) if same else 0 :]
    )
    certificate = part("certificate", state.certificate.to_bytes)
    assert certificate is not None
    outbox = before.record.outbox if before is not None and before.sent == sent else None
    record = JournalRecord(
        context=state.context,
        study=state.study,
        epoch=state.epoch,
        binding=state.binding,
        hpke_private=state.hpke_private,
        ready=state.ready,
        open=state.open,
        last_round=state.last_round,
        sequence=state.sequence,
        head=state.head,
        parent=state.parent,
        certificate=certificate,
        enrolment=part("enrolment", lambda: state.enrolment.to_bytes() if state.enrolment else b""),
        own_shares=part("own_shares", lambda: state.own_shares),
        commitments=part("commitments", lambda: state.commitments),
        own_secrets=None if state.ready else part("secrets", lambda: b"".join(map(_secrets_bytes, state.secrets))),
        rounds=rounds,
        opened=opened,
        coming=coming or Stretch(),
        accepted=accepted,
        released=released,
        outbox=outbox or put(Outbox(sent=sent).canonical()),
    )
    layout = Layout(record, state, sent, round_files)
    there = before.parts if before is not None else set()
    grown = {}
    if coming is not None and added:
        grown[f"accepted-{state.epoch}"] = (coming.size - len(added), added)
    if releases:
        grown[f"released-{state.epoch}"] = (released.size - len(releases), releases)
    needed = layout.parts
    return Change(layout, {name: data for name, data in new.items() if name in needed - there}, grown)


def read(folder: Path) -> Layout | None:
    """Return the layout that lies in `folder`, checked against its record; None where there is no record.

    Raises `JournalDamaged`, without the contents, for anything but what `lay_out` writes.
    """
    path = folder / "record"
    try:
        record = JournalRecord.parse(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError):
        # Not the validation error itself: it quotes the file, which holds secrets.
        raise JournalDamaged(f"{path}: not a journal record of this version; {REJOIN}") from None
    try:
        return _read(folder, record)
    except JournalDamaged:
        raise
    except (ValidationError, ValueError, KeyError, struct.error):
        raise JournalDamaged(f"{folder}: the record's files are damaged; {REJOIN}") from None


def _read(folder: Path, record: JournalRecord) -> Layout:
    def part(name: str | None) -> bytes:
        return b"" if name is None else _checked(folder / "parts" / name, name)

    round_files: dict[int, str] = {}
    if record.rounds is not None:
        index = RoundFiles.parse(part(record.rounds))
        round_files = dict(enumerate(index.files, index.first))
    if record.ready:
        live = [name for round, name in round_files.items() if record.open is None or round > record.last_round]
        names = [*([record.opened] if record.opened is not None else []), *live]
        secrets = [_secrets_of(part(name)) for name in names]
        accepted = [Accepted.parse(entry) for entry in _entries(part(record.accepted))]
    else:
        secrets = list(_split(part(record.own_secrets)))
        accepted = [Accepted.parse(entry) for entry in _counted(folder / f"accepted-{record.epoch}", record.coming)]
    released = [Released.parse(entry) for entry in _counted(folder / f"released-{record.epoch}", record.released)]
    state = MemberState(
        context=record.context,
        study=record.study,
        epoch=record.epoch,
        certificate=Certificate.parse(part(record.certificate)),
        hpke_private=record.hpke_private,
        enrolment=None if record.enrolment is None else Enrolment.parse(part(record.enrolment)),
        binding=record.binding,
        secrets=tuple(secrets),
        own_shares=part(record.own_shares),
        commitments=part(record.commitments),
        accepted=tuple(sorted(accepted, key=lambda one: one.owner)),
        ready=record.ready,
        open=record.open,
        last_round=record.last_round,
        sequence=record.sequence,
        head=record.head,
        parent=record.parent,
        released=tuple(released),
    )
    return Layout(record, state, Outbox.parse(part(record.outbox)).sent, round_files)


def _checked(path: Path, digest: str) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise JournalDamaged(f"{path}: the record names this file, and it is missing; {REJOIN}") from None
    if sha256_hex(data) != digest:
        raise JournalDamaged(f"{path}: not what the record says was written; {REJOIN}")
    return data


def _counted(path: Path, stretch: Stretch) -> Iterator[bytes]:
    if not stretch.size:
        return
    try:
        with path.open("rb") as file:
            data = file.read(stretch.size)
    except FileNotFoundError:
        raise JournalDamaged(f"{path}: the record counts on this file, and it is missing; {REJOIN}") from None
    chained = Stretch().chained
    for entry in _entries(data):
        chained = sha256_hex(bytes.fromhex(chained) + entry)
        yield entry
    if len(data) != stretch.size or chained != stretch.chained:
        raise JournalDamaged(f"{path}: not what the record says was written; {REJOIN}")


def _entries(data: bytes) -> Iterator[bytes]:
    place = 0
    while place < len(data):
        (size,) = _ENTRY.unpack_from(data, place)
        place += _ENTRY.size
        yield data[place : place + size]
        place += size


def _secrets_bytes(one: RoundSecrets) -> bytes:
    return _SECRETS.pack(one.round, len(one.key), len(one.seed)) + one.key + one.seed + one.held


def _secrets_of(data: bytes) -> RoundSecrets:
    round, key, seed = _SECRETS.unpack_from(data)
    start = _SECRETS.size
    return RoundSecrets(
        round=round,
        key=data[start : start + key],
        seed=data[start + key : start + key + seed],
        held=data[start + key + seed :],
    )


def _split(data: bytes) -> Iterator[RoundSecrets]:
    """Yield the secrets of all rounds, before any share is held by round."""
    place = 0
    while place < len(data):
        _, key, seed = _SECRETS.unpack_from(data, place)
        size = _SECRETS.size + key + seed
        yield _secrets_of(data[place : place + size])
        place += size
