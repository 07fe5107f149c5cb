"""One study's letters at this hospital: read without trusting them, and sent until the store has taken them.

A letter that can't be read, or a party whose keys are not in order, costs that letter and nothing else: it is written
down once and left. A letter counts as posted only after the store has taken it, so an outage or a crash leaves it owed
and the next `step` of its writer posts it; the mailroom makes a second send of the same letter a no-op.
"""

from __future__ import annotations

import logging

from pydantic import JsonValue

from datasites.hospital.site import Site
from datasites.study import letters
from datasites.study.identity import IdentityError
from datasites.transport.mailroom import Letter, Mailroom, Rejected
from datasites.transport.store import StoreError

log = logging.getLogger(__name__)


class Correspondence:
    """Letters of one study, to and from its researcher and the other hospitals."""

    def __init__(self, site: Site, mailroom: Mailroom, study: str, researcher: str) -> None:
        self._site, self._mailroom = site, mailroom
        self.study, self.researcher = study, researcher
        self._posted: set[tuple[str, int, str]] = set()
        self._noted: set[tuple[object, ...]] = set()

    def mailbox(self) -> list[tuple[int, str, str]]:
        """(round, kind, sender) of all letters to us that lie in the store, unchecked; ascending."""
        return self._mailroom.mailbox(self.study)

    def collect(self, before: int) -> None:
        """Remove from the store what rounds before this one have left there."""
        self._mailroom.collect(self.study, before=before)

    def collect_setup(self, epoch: int, *, over: bool = False) -> None:
        """Remove what the setup of epochs up to this one has left in the store.

        over: this epoch has ended as well. Until then the aggregator may read "ready" again, so that letter stays.
        """

        def is_done(kind: str) -> bool:
            setup = letters.setup_epoch(kind)
            return setup is not None and (setup[1] < epoch or (setup[1] == epoch and (over or setup[0] != "ready")))

        self._mailroom.collect_kinds(self.study, letters.SETUP_ROUND, is_done, blobs_too=over)

    def receive(self, sender: str, number: int, kind: str, most: int | None) -> Letter | None:
        """The letter under that path, or None where there is none or it is refused; raises `StoreError` only.

        most: bytes of its blob at most; None for the mailroom's own limit.
        """
        try:
            return self._mailroom.receive(sender, self.study, number, kind, max_blob=most)
        except StoreError:
            raise
        except (Rejected, IdentityError, ValueError) as error:
            self.note("letter_rejected", (number, kind, sender, type(error)), round=min(number, 2**31), reason=error)
            return None

    def post(self, to: str, number: int, kind: str, body: dict[str, JsonValue], blob: bytes | None = None) -> bool:
        """Send a letter; True once the store has taken it. Raises `StoreError`, and `Equivocation` for other words.

        False when `to` can't be written to now (not pinned any more, or other keys in the store than the pinned ones).
        """
        try:
            self._mailroom.send(to, self.study, number, kind, body, blob)
        except StoreError:
            raise
        except IdentityError as error:
            self.note("letter_not_sent", (number, kind, to, type(error)), round=number, kind=kind, reason=error)
            return False
        self._posted.add((to, number, kind))
        return True

    def posted(self, to: str, number: int, kind: str) -> bool:
        """Whether this process has seen that letter into the store."""
        return (to, number, kind) in self._posted

    def note(self, event: str, once: tuple[object, ...], *, reason: object, **fields: str | int) -> None:
        """Write an event into log and audit log, once per `once`: nobody can grow the log by repeating themselves."""
        if (event, *once) not in self._noted:
            self._noted.add((event, *once))
            log.warning("study %s: %s: %s", self.study[:12], event, reason)
            self._site.audit.append(event, study=self.study, reason=str(reason)[:500], **fields)
