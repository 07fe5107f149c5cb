"""One study's letters at this hospital: read without trusting them, and sent until the store has taken them.

A letter that can't be read, or a party whose keys are not in order, costs that letter and nothing else: it is written
down once and left. A letter counts as posted only as long as it lies in the store, or until what it waits for has come
(`answered`, `over`): an outage, a crash or a store that loses it leaves it owed, and the next `step` of its writer
posts it, byte for byte the same; the mailroom makes a second send of the same letter a no-op.

Claim (log): whatever a party sends, and whoever sends under its name, adds at most `RECORDS_PER_HOUR` records an hour
to the audit log for each study (and as much to memory), and one more that says how many were left out: once the hour is
over, or at the end of the study or of the service, if that comes first. What could not be written is counted among
those, and a count is kept until it is written. Counted from the start of the process. Not claimed: the count of the
hour in which the process is killed, and one that can't be written when what counts ends. When letters are put again and
when records are written follows what others do, and the clock (I16).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import JsonValue

from datasites.hospital.site import Site
from datasites.study import letters
from datasites.study.identity import IdentityError
from datasites.transport.mailroom import Letter, Mailroom, Rejected
from datasites.transport.repeats import Posted, Repeats
from datasites.transport.store import WHOLE_STORE, StoreError

#: A study's honest parties give rise to none; so many are enough to see what is going on.
RECORDS_PER_HOUR = 10
HOUR = 3600.0

log = logging.getLogger(__name__)


@dataclass
class _Hour:
    """What one party has given rise to since `since`, by the monotonic clock."""

    since: float
    records: int = 0
    left_out: int = 0


class StudyMail:
    """Letters of one study, to and from its researcher and the other hospitals."""

    def __init__(self, site: Site, mailroom: Mailroom, study_hash: str, researcher: str) -> None:
        self._site, self._mailroom = site, mailroom
        self.study_hash, self.researcher = study_hash, researcher
        self._posted: set[Posted] = set()
        self._repeats = Repeats()
        self._noted: set[tuple[object, ...]] = set()
        self._hours: dict[str, _Hour] = {}

    def mailbox(self, sure: Iterable[tuple[int, str, str]] = ()) -> list[tuple[int, str, str]]:
        """Return (round, kind, sender) of the letters to us in the store, unchecked; see `Mailroom.mailbox`."""
        return self._mailroom.mailbox(self.study_hash, sure)

    def collect(self, before: int) -> None:
        """Remove from the store what rounds before this one have left there."""
        self._mailroom.collect(self.study_hash, before=before)

    def collect_setup(self, epoch: int, *, over: bool = False) -> None:
        """Remove what the setup of epochs up to this one has left in the store.

        over: this epoch has ended as well. Until then the aggregator may read "ready" again, so that letter stays.
        """

        def is_done(kind: str) -> bool:
            setup = letters.setup_epoch(kind)
            return setup is not None and (setup[1] < epoch or (setup[1] == epoch and (over or setup[0] != "ready")))

        self._mailroom.collect_kinds(self.study_hash, letters.SETUP_ROUND, is_done, blobs_too=over)

    @property
    def looks_at(self) -> float | None:
        """Say when `look_again` has something to look at, by the monotonic clock."""
        return self._repeats.next_due

    def look_again(self) -> None:
        """See whether letters that wait for an answer still lie in the store; one that doesn't is owed again."""
        for to, round, kind in self._repeats.due():
            if not self._mailroom.lies(to, self.study_hash, round, kind):
                self._posted.discard((to, round, kind))
        for party in list(self._hours):
            self._this_hour(party)

    def answered(self, round: int, *kinds: str) -> None:
        """Note that what our letters of these kinds wait for has arrived."""
        self._repeats.end(lambda letter: letter[1] == round and letter[2] in kinds)

    def over(self, before: int) -> None:
        """Note that nobody waits for our letters of rounds before this one any more."""
        self._repeats.end(lambda letter: letter[1] < before)

    def receive(self, sender: str, round: int, kind: str, most: int | None) -> Letter | None:
        """Return the letter under that path, or None where there is none or it is refused; raises `StoreError` only.

        most: bytes of its blob at most; None for the mailroom's own limit.
        """
        try:
            return self._mailroom.receive(sender, self.study_hash, round, kind, max_blob=most)
        except StoreError:
            raise
        except (Rejected, IdentityError, ValueError) as error:
            once = (round, kind, sender, type(error))
            self.note("letter_rejected", once, party=sender, round=min(round, 2**31), reason=error)
            return None

    def post(self, to: str, round: int, kind: str, body: dict[str, JsonValue], blob: bytes | None = None) -> bool:
        """Send a letter; True once the store has taken it. Raises `Equivocation` for other content, and `StoreError`
        where the store as a whole fails.

        False when `to` can't be written to now (not pinned any more, other keys in the store than the pinned ones, a
        mailbox that is out of order).
        """
        try:
            self._mailroom.send(to, self.study_hash, round, kind, body, blob)
        except WHOLE_STORE:
            raise
        except (IdentityError, StoreError) as error:
            once = (round, kind, to, type(error))
            self.note("letter_not_sent", once, party=to, round=round, kind=kind, reason=error)
            return False
        self._posted.add((to, round, kind))
        self._repeats.begin((to, round, kind))
        return True

    def posted(self, to: str, round: int, kind: str) -> bool:
        """Say whether this process has seen that letter into the store, and has not missed it there since."""
        return (to, round, kind) in self._posted

    def note(
        self, event: str, once: tuple[object, ...], *, reason: object, party: str = "", **fields: str | int
    ) -> None:
        """Write an event into log and audit log, once per `once` and only so often for each `party` that gives rise to
        it (left out: the researcher): nobody can grow the log by repeating themselves, nor by saying ever other things.
        """
        if (event, *once) in self._noted:
            return
        hour = self._this_hour(party or self.researcher)
        if hour.records >= RECORDS_PER_HOUR:
            hour.left_out += 1
            return
        log.warning("study %s: %s: %s", self.study_hash[:12], event, reason)
        try:
            self._site.audit.append(event, study=self.study_hash, reason=str(reason)[:500], **fields)
        except Exception:
            hour.left_out += 1
            raise
        hour.records += 1
        self._noted.add((event, *once))

    def _this_hour(self, party: str) -> _Hour:
        """Return the counts of `party` in this hour. Once an hour is over, what was left out of it is recorded."""
        now = time.monotonic()
        hour = self._hours.setdefault(party, _Hour(now))
        if now - hour.since < HOUR:
            return hour
        self._count_left_out(party, hour)
        self._hours[party] = _Hour(now)
        return self._hours[party]

    def _count_left_out(self, party: str, hour: _Hour) -> None:
        if hour.left_out:
            log.warning("study %s: %d more events of %s were left out", self.study_hash[:12], hour.left_out, party)
            self._site.audit.append("events_left_out", study=self.study_hash, party=party[:320], count=hour.left_out)
            hour.left_out = 0

    def close(self) -> None:
        """Record what was left out in hours that are not over: nobody asks for these letters any more."""
        for party, hour in self._hours.items():
            self._count_left_out(party, hour)
