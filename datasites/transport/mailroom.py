"""Letters between parties of a study over an untrusted store.

One letter stands under one path (study, to, from, round, kind). It is an envelope, signed by its sender and encrypted
to its one recipient by a `Sealer`, that repeats that path inside, holds a small JSON body, and carries a binary
payload either within or as a pointer to encrypted parts (see `blobs`). The recipient checks the seal, then the path,
and remembers the digest of the first authentic letter under each path. So a store (or a third party who writes to it)
can only withhold a letter:

- a forged, changed, cut or swapped one is refused (I10): `Rejected`, with a copy of the evidence in quarantine;
- a replay under another path (other study, round, kind, sender, recipient) is refused;
- a second, different letter under one path is equivocation and refused, on the sender's side as well (`AlreadySent`);
- a letter that is sent again is byte-identical (I6).

A letter that may be half written is looked at again before it is refused (`second_look`). A refused letter is removed
from the recipient's mailbox, so that a wait goes on and the sender, who sees by `lies` that it is gone, can put the
true one back by calling `send` again. One that can't be removed is reported once, passed over for `STUCK_RESTS` seconds
by all that say what lies there, and then looked at again: so a true one that was put over it is found, and one whose
blob came late. Who asks `receive` for it by name is given the true one at once.

Claim (cost of putting back): of n times that a letter is put back, its blob's parts are compared with what was sent 1 +
log2(n) times, at the 1st, 2nd, 4th, 8th ...; else by presence and size. So who removes an envelope again and again
costs its sender envelopes, and a part that was changed is put right at once, or at the latest when the letter has been
removed as often again as before. A bad letter of one sender never delays those of another, nor does what can't be read
or sent. Nothing is ordered by clock.

What others put into a mailbox costs its owner, for each call: `MOST_NAMES` names, and for each letter that is received,
or looked at by `signed`, the bytes of one envelope (`LetterLimits.body` and 80 KiB) before a signature is checked; a
blob is fetched only for an envelope that its sender signed, and of a letter that was refused and can't be removed not
again for `STUCK_RESTS` seconds. Letters that are expected are found by name even where more lies there than is listed.
What the store learns: who writes to whom, when, in which study and round, what kind of letter (so also who abstains),
and sizes.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import JsonValue, ValidationError

from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.identity import EMAIL, IdentityError
from datasites.transport import blobs
from datasites.transport.blobs import BadBlob, Pointer
from datasites.transport.journal import MailJournal, SentMessage
from datasites.transport.letter import (
    ENVELOPE_OVERHEAD,
    INLINE_BYTES,
    KIND,
    MAX_ROUND,
    AlreadySent,
    BadEnvelope,
    Blob,
    Contents,
    Expected,
    Letter,
    LetterLimits,
    Rejected,
    Sealer,
    Undelivered,
    kind_of,
    letter_folder,
    letter_key,
    letter_name,
    pack,
    unpack,
)
from datasites.transport.passed_over import PassedOver
from datasites.transport.quarantine import Quarantine
from datasites.transport.second_look import SecondLook
from datasites.transport.store import WHOLE_STORE, Store, StoreError, StoreUnreachable, TooLarge

__all__ = [
    "MAX_ROUND",
    "BadEnvelope",
    "Blob",
    "Contents",
    "AlreadySent",
    "Expected",
    "Letter",
    "LetterLimits",
    "Mailroom",
    "Rejected",
    "Sealer",
    "Undelivered",
    "letter_folder",
    "letter_key",
]

logger = logging.getLogger(__name__)

#: Objects that one collecting removes from a folder: more than honest parties leave of a round, and on a store far away
#: still a matter of minutes.
MOST_REMOVED = 1000
#: Seconds for which a letter that was refused and can't be removed is not opened again: its blob may come late.
STUCK_RESTS = 300.0
#: Seconds for which the store may fail for one recipient after another before it is taken to be away.
AWAY_SECONDS = 60.0


class _Bad(Exception):
    """What lies under a path is not a letter that may be believed; the message says why."""


class _PerhapsUnfinished(_Bad):
    """As above, and a letter of which only a part has come would look the same. blob: the one that is not whole."""

    def __init__(self, reason: str, blob: Pointer | None = None) -> None:
        super().__init__(reason)
        self.blob = blob


class _Reach:
    """What keeps a letter from some of its recipients, by recipient; `away` where it is the store as a whole."""

    def __init__(self) -> None:
        self.failures: dict[str, IdentityError | StoreError] = {}
        self.away: StoreError | None = None
        self._until = time.monotonic() + AWAY_SECONDS

    @contextmanager
    def trying(self, recipient: str) -> Iterator[None]:
        """Note what keeps the letter from `recipient`; raises once the store has been away for `AWAY_SECONDS`."""
        try:
            yield
            self._until = time.monotonic() + AWAY_SECONDS
        except WHOLE_STORE as error:
            self.failures[recipient] = self.away = error
            if time.monotonic() > self._until:
                raise
        except (IdentityError, StoreError) as error:
            self.failures[recipient] = error


class Mailroom:
    """One party's letters. `folder` is private to the party (journal, quarantine, downloads broken off)."""

    def __init__(
        self,
        email: str,
        store: Store,
        sealer: Sealer,
        folder: Path,
        *,
        limits: LetterLimits | None = None,
        durable: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.email = email
        self.store = store
        self.limits = limits or LetterLimits()
        self.quarantine = Quarantine(folder / "quarantine")
        self._sealer = sealer
        self._partial = folder / "partial"
        self._journal = MailJournal(folder / "mailroom.sqlite", durable=durable)
        self._secret = self._journal.secret
        self._stuck = PassedOver()
        #: How often a letter with a blob was sent again in this process, by (study, round, kind).
        self._sent_again = Counter[tuple[str, int, str]]()
        self._second_look = SecondLook(store.settles)

    def close(self) -> None:
        """Close quarantine and journal."""
        self.quarantine.close()
        self._journal.close()

    def send(
        self, to: str, study: str, round: int, kind: str, body: dict[str, JsonValue], blob: Blob | None = None
    ) -> str:
        """Put one letter; returns its digest. See `send_all`; raises what kept it from being sent."""
        try:
            return self.send_all([to], study, round, kind, body, blob)[to]
        except Undelivered as error:
            raise error.failures[to] from error

    def send_all(
        self,
        to: Sequence[str],
        study: str,
        round: int,
        kind: str,
        body: dict[str, JsonValue],
        blob: Blob | None = None,
    ) -> dict[str, str]:
        """Put the same body and blob for each recipient, the blob encrypted once; returns digests by recipient.

        The same content again is byte-identical, and puts back what the store has lost or changed: the envelope at
        once, parts of the blob as said above. Other content under a path already used raises `AlreadySent` and puts
        nothing. A recipient whose keys are not the pinned ones, or for whom the store fails, whatever it says,
        keeps it from nobody else: `Undelivered` is raised after the others were sent. Raises `StoreError` for the
        blob, and where the store as a whole fails: for each recipient, or for `AWAY_SECONDS` on end.
        """
        keys = {recipient: letter_key(self.email, study, recipient, round, kind) for recipient in to}
        payload = None if blob is None else memoryview(blob).cast("B")
        plain = None if payload is None else hashlib.sha256(payload).hexdigest()
        digest = sha256_hex(canonical_json([body, plain]))
        before = {recipient: self._journal.sent(key) for recipient, key in keys.items()}
        for recipient, entry in before.items():
            self._same_as_before(entry, digest, recipient, study, round, kind)
        again = [recipient for recipient, entry in before.items() if entry is not None]
        # A path whose round was collected has no envelope to repair; it was delivered, and its digest still binds.
        open_paths = [recipient for recipient, entry in before.items() if entry is None or entry.envelope is not None]
        pointer = None
        if payload is not None and plain is not None and len(payload) > INLINE_BYTES and open_paths:
            mend = self._look_at_blob(study, round, kind) if again else ""
            pointer = blobs.upload(self.store, self.email, study, round, kind, payload, plain, self._secret, mend)
        inline = bytes(payload) if payload is not None and len(payload) <= INLINE_BYTES else None
        reach = _Reach()
        sealed: dict[str, SentMessage] = {}
        for recipient in [recipient for recipient, entry in before.items() if entry is None]:
            contents = Contents(
                sender=self.email,
                recipient=recipient,
                study=study,
                round=round,
                kind=kind,
                body=body,
                inline=None if inline is None else len(inline),
                blob=pointer,
            )
            with reach.trying(recipient):
                sealed[keys[recipient]] = self._sealed(digest, contents, inline)
        # Committed before any is put: after a crash in between, the same envelopes are put by the next call.
        new = self._journal.commit(study, round, sealed)
        entries = {recipient: new.get(key, before[recipient]) for recipient, key in keys.items()}
        for recipient, entry in entries.items():
            self._same_as_before(entry, digest, recipient, study, round, kind)
        digests: dict[str, str] = {}
        for recipient, entry in entries.items():
            if entry is not None:
                with reach.trying(recipient):
                    self._put(keys[recipient], entry, check=before[recipient] is not None)
                    digests[recipient] = entry.contents
        if reach.away is not None and not digests:
            raise reach.away
        if reach.failures:
            raise Undelivered(reach.failures)
        return digests

    def _look_at_blob(self, study: str, round: int, kind: str) -> Literal["sizes", "bytes"]:
        """Return how closely to look at the blob of a letter that is sent again now."""
        self._sent_again[study, round, kind] += 1
        times = self._sent_again[study, round, kind]
        return "bytes" if times & (times - 1) == 0 else "sizes"

    def _sealed(self, digest: str, contents: Contents, inline: bytes | None) -> SentMessage:
        """Return one new letter, sealed."""
        inner = pack(contents, inline)
        if len(inner) > self.limits.body + INLINE_BYTES:
            raise ValueError(f"letter {contents.kind}: body of {len(inner)} bytes; put large things into the blob")
        return SentMessage(digest, sha256_hex(inner), self._sealer.seal(contents.recipient, inner))

    def _put(self, key: str, entry: SentMessage, check: bool) -> None:
        if entry.envelope is not None and not (check and self.store.holds(key, entry.envelope)):
            self.store.put(key, entry.envelope)

    def lies(self, to: str, study: str, round: int, kind: str) -> bool:
        """Return whether a letter of ours lies where it was put, byte for byte, or its round was collected.

        Where it doesn't, `send` of the same puts it back. Of a blob nothing is said: a recipient that misses a part of
        it removes the letter, and then `send` puts back both, as said above.
        """
        key = letter_key(self.email, study, to, round, kind)
        entry = self._journal.sent(key)
        return entry is not None and (entry.envelope is None or self.store.holds(key, entry.envelope))

    def put_again(self, to: str, study: str, round: int, kind: str) -> bool:
        """Put back the envelope of a letter that was sent, whatever its words; False where none ever was.

        For who has lost the words; a blob of it is not looked at. Raises `StoreError`.
        """
        key = letter_key(self.email, study, to, round, kind)
        entry = self._journal.sent(key)
        if entry is not None:
            self._put(key, entry, check=True)
        return entry is not None

    def _same_as_before(
        self, entry: SentMessage | None, digest: str, to: str, study: str, round: int, kind: str
    ) -> None:
        if entry is not None and entry.said != digest:
            raise AlreadySent(
                f"{self.email} has already sent another {kind} to {to} for round {round} of study {study[:16]}; "
                "what was sent stands; start a new round to send something else"
            )

    def receive(self, sender: str, study: str, round: int, kind: str, *, max_blob: int | None = None) -> Letter | None:
        """Return the letter under that path, checked and decrypted; None when there is none, or perhaps half of one.

        Raises `Rejected` for a bad one (once, where it can't be removed: then None). The letter stays where it is
        after `StoreError`, and after `IdentityError`: the sender isn't pinned, or its keys in the store are others. May
        be called again for the same letter. `max_blob` (bytes) is what this letter's blob may be at most, by default
        `limits.blob`; a larger one is refused before it is downloaded.
        """
        key = letter_key(sender, study, self.email, round, kind)
        envelope: bytes | None = None
        if self._second_look.waits(key):
            return None
        try:
            envelope = self._envelope(key)
            if envelope is not None and self._stuck.rests(key) and self._stuck.mark(key) == sha256_hex(envelope):
                return None
            found = None if envelope is None else self._checked(sender, study, round, kind, envelope, max_blob)
            self._second_look.forget(key)
            self._stuck.forget(key)
            return found
        except _Bad as error:
            reason = str(error)
            # Of a blob that is on its way the reason says how far it has come.
            mark = sha256_hex(reason.encode() + (envelope or b""))
            if isinstance(error, _PerhapsUnfinished) and not self._second_look.is_final(key, mark):
                return None
            if isinstance(error, _PerhapsUnfinished) and error.blob is not None:
                blobs.forget(self._partial, error.blob)
        if self._remove(key, reason, envelope or b""):
            raise Rejected(sender, study, round, kind, reason)
        return None

    def _envelope(self, key: str) -> bytes | None:
        """Return what lies under `key`, None when there is nothing; raise `_Bad` for what can't be a letter."""
        most = self.limits.body + INLINE_BYTES + ENVELOPE_OVERHEAD
        try:
            return self.store.get(key, limit=most)
        except TooLarge:
            raise _Bad(f"envelope is larger than {most} bytes") from None
        except WHOLE_STORE:
            raise
        except StoreError as error:
            self.store.list(key.rpartition("/")[0])  # raises where it is not this letter but our credentials
            raise _Bad(str(error)) from error

    def _checked(self, sender: str, study: str, round: int, kind: str, envelope: bytes, max_blob: int | None) -> Letter:
        """Return the letter in an envelope with its blob; raise as `_opened` does."""
        contents, inline, digest = self._opened(sender, study, round, kind, envelope)
        blob: bytes | bytearray | None = inline
        if contents.blob is not None:
            limit = self.limits.blob if max_blob is None else max_blob
            if contents.blob.size > limit:
                raise _Bad(f"blob of {contents.blob.size} bytes, the limit is {limit}; it was not downloaded")
            try:
                blob = blobs.download(self.store, sender, study, round, contents.blob, self._partial)
            except BadBlob as error:
                self.store.list(letter_folder(study, self.email))  # raises where it is our credentials
                raise _PerhapsUnfinished(f"blob: {error}", contents.blob) from error
        elif max_blob is not None and inline is not None and len(inline) > max_blob:
            raise _Bad(f"blob of {len(inline)} bytes, the limit is {max_blob}")
        return Letter(sender, self.email, study, round, kind, contents.body, blob, digest)

    def _opened(
        self, sender: str, study: str, round: int, kind: str, envelope: bytes
    ) -> tuple[Contents, bytes | None, str]:
        """Return what an envelope holds, and its digest; raise `_Bad`, or `IdentityError` when the sender isn't known
        for certain.
        """
        try:
            inner = self._sealer.open(sender, envelope)
            contents, inline = unpack(inner)
        except IdentityError:
            raise  # our roster or the sender's keys aren't in order; the letter may be good and stays
        except (BadEnvelope, ValidationError, ValueError) as error:
            raise _PerhapsUnfinished(f"not a letter that {sender} signed for us: {error}") from error
        wanted = (sender, self.email, study, round, kind)
        found = (contents.sender, contents.recipient, contents.study, contents.round, contents.kind)
        if found != wanted:
            raise _Bad(f"its contents say {found}, but it lay under {wanted}: a replay under another path")
        digest = sha256_hex(inner)
        first = self._journal.first_seen(letter_key(sender, study, self.email, round, kind), digest)
        if first != digest:
            seen = f"({first[:16]}, {digest[:16]})"
            raise _Bad(f"equivocation: {sender} signed two different letters for this path {seen}")
        return contents, inline, digest

    def _remove(self, key: str, reason: str, envelope: bytes) -> bool:
        """Quarantine a bad letter and take it out of the mailbox; False if it is one that we could not remove before.

        What may not be removed (somebody else's folder, a link) is reported once, and looked at again now and then.
        """
        mark = sha256_hex(envelope or reason.encode())
        if self._stuck.mark(key) == mark:
            self._stuck.add(key, mark, rest=STUCK_RESTS)
            return False
        self.quarantine.keep(key, reason, envelope)
        self._second_look.forget(key)
        try:
            self.store.delete(key)
            self._stuck.forget(key)
        except StoreUnreachable:
            pass  # it is seen again, and removed, when the store is back
        except StoreError as error:
            logger.warning("%s; it is looked at again every %.0f s", error, STUCK_RESTS)
            self._stuck.add(key, mark, rest=STUCK_RESTS)
        return True

    def waiting(self, expected: Iterable[Expected]) -> list[Expected]:
        """Which of `expected` lie in the mailbox now (unchecked), in the order given; without those passed over now,
        and those that wait for a second look."""
        items = list(expected)
        listed = {study: self.store.look(letter_folder(study, self.email)) for study in {item[1] for item in items}}
        names = {study: set(listing.names) for study, listing in listed.items()}
        found = []
        for sender, study, round, kind in items:
            key = letter_key(sender, study, self.email, round, kind)
            there = letter_name(sender, round, kind) in names[study]
            if not there and not listed[study].is_whole:
                there = self.store.exists(key)
            if there and not self._is_passed_over(key):
                found.append((sender, study, round, kind))
        return found

    def _is_passed_over(self, key: str) -> bool:
        return self._stuck.rests(key) or self._second_look.waits(key)

    def signed(self, expected: Iterable[Expected]) -> list[Expected]:
        """Return those `waiting` that their sender signed for us under this path: anybody may lay a file of that name.

        Their blobs aren't looked at, and what is no such letter stays.
        """
        found = []
        for item in self.waiting(expected):
            try:
                envelope = self._envelope(letter_key(item[0], item[1], self.email, *item[2:]))
                if envelope is not None:
                    self._opened(*item, envelope)
                    found.append(item)
            except WHOLE_STORE:
                raise
            except (_Bad, IdentityError, StoreError) as error:
                logger.debug("%s", error)
        return found

    @property
    def looks_again_at(self) -> float | None:
        """Return when a letter that was perhaps half written is to be received again, by the monotonic clock."""
        return self._second_look.due

    def wait(
        self,
        expected: Iterable[Expected],
        timeout: float,
        *,
        want: Literal["any", "all"] = "any",
        stop: threading.Event | None = None,
    ) -> list[Expected]:
        """Sleep until one (or all) of `expected` (sender, study, round, kind) have come; returns those that have.

        Returns what is there, perhaps nothing, when `timeout` seconds are over or `stop` is set.
        """
        items = list(expected)
        for sender, study, round, kind in items:
            letter_key(sender, study, self.email, round, kind)
        folders = {letter_folder(study, self.email) for _, study, _, _ in items}
        arrived: list[Expected] = []
        for _ in self.store.changes(folders, timeout, stop):
            arrived = self.waiting(items)
            if len(arrived) == len(items) or (arrived and want == "any"):
                break
        return arrived

    def mailbox(self, study: str, sure: Iterable[tuple[int, str, str]] = ()) -> list[tuple[int, str, str]]:
        """Return (round, kind, sender) of the letters to us in a study that lie in the store, unchecked; ascending.

        Names that no letter has are left out, and so are letters that are passed over now or wait for a second look.
        sure: letters that are found in any case, also where more lies in the mailbox than is listed.
        """
        listing = self.store.look(letter_folder(study, self.email))
        names = set(listing.names)
        if not listing.is_whole:
            keys = [letter_key(sender, study, self.email, round, kind) for round, kind, sender in sure]
            names.update(key.rpartition("/")[2] for key in keys if self.store.exists(key))
        found = []
        for name in names:
            number, _, rest = name.partition(".")
            kind, _, sender = rest.partition(".")
            if not (number.isdecimal() and KIND.fullmatch(kind) and EMAIL.fullmatch(sender)):
                continue
            item = (int(number), kind, sender)
            if item[0] > MAX_ROUND or letter_name(sender, item[0], kind) != name:
                continue
            if not self._is_passed_over(letter_key(sender, study, self.email, item[0], kind)):
                found.append(item)
        return sorted(found)

    def collect(self, study: str, before: int, first: int = 1) -> int:
        """Remove what finished rounds (first ≤ round < before) have left in the store; returns how many objects.

        That is letters to us and our own blobs, `MOST_REMOVED` in each folder at a time. Digests stay in the journal: a
        finished round can't be said anew.
        """
        removed = 0
        for folder in (letter_folder(study, self.email), blobs.blob_folder(study, self.email)):
            numbers = ((name, name.partition(".")[0]) for name in self.store.list(folder))
            over = [name for name, number in numbers if number.isdecimal() and first <= int(number[:12]) < before]
            removed += self._remove_some(folder, over)
        self._journal.forget_envelopes(study, first, before)
        for letter in [one for one in self._sent_again if one[0] == study and first <= one[1] < before]:
            del self._sent_again[letter]
        return removed

    def collect_kinds(self, study: str, round: int, of_kind: Callable[[str], bool], *, blobs_too: bool = False) -> int:
        """Remove what letters of some kinds have left of one round, as `collect` does for whole rounds.

        Of our own letters the envelopes are forgotten, so they are not put again. Whose blob is whose can't be told by
        its name: blobs_too removes all of ours in that round.
        """
        removed = 0
        folders = [letter_folder(study, self.email)]
        folders += [blobs.blob_folder(study, self.email)] if blobs_too else []
        for folder in folders:
            over = []
            for name in self.store.list(folder):
                number, _, rest = name.partition(".")
                if not (number.isdecimal() and int(number[:12]) == round):
                    continue
                if folder != folders[0] or ("." in rest and of_kind(kind_of(name))):
                    over.append(name)
            removed += self._remove_some(folder, over)
        self._journal.forget_letters(study, round, of_kind)
        return removed

    def _remove_some(self, folder: str, names: list[str]) -> int:
        """Remove some of these, what is spelt as our names are first; the rest is left for another time."""
        removed = 0
        for name in sorted(names, key=lambda name: not (name[:8].isdecimal() and name[8:9] == "."))[:MOST_REMOVED]:
            try:
                self.store.delete(f"{folder}/{name}")
                removed += 1
            except WHOLE_STORE:
                raise
            except StoreError as error:
                logger.debug("%s", error)  # not ours to remove; it harms nobody
        return removed
