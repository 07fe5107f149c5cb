"""Who holds whose shares, by the hospitals' "ready" letters, kept by the aggregator as digests.

A letter holds a commitment to every share that its sender made, thousands of them; what is kept is one digest over all,
and for each peer whether the sender saw the same digest there. The commitments themselves stay in the letter, which is
read again, and compared with the digest, where a wrong share must be told from right ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import Field

from datasites.secagg.epoch import Epoch
from datasites.secagg.errors import Equivocation
from datasites.secagg.messages import HeldCommitments, Octets, Ready
from datasites.secagg.shares import SECRET
from datasites.study.canonical import Agreed, sha256_hex
from datasites.study.identity import Email
from datasites.study.manifest import Sha256

#: A byte names one of the digests that were said of a hospital; 0 is none.
_MOST_DIGESTS = 255


class SetupReport(Agreed):
    """What one hospital said. own: which digest of its own columns; seen: which one of each place's, a byte each."""

    sender: Email
    own: Annotated[int, Field(ge=1, le=_MOST_DIGESTS)]
    seen: Octets


class Reports(Agreed):
    """All that was said. digests: by place, what was said of that hospital's columns, each once, as they came."""

    digests: tuple[tuple[Sha256, ...], ...] = ()
    said: tuple[SetupReport, ...] = ()

    def own(self, epoch: Epoch, sender: str) -> str | None:
        """Return the digest of a hospital's columns as it reported it; None before it was ready."""
        for report in self.said:
            if report.sender == sender:
                return self.digests[epoch.place(sender)][report.own - 1]
        return None

    def with_report(self, epoch: Epoch, sender: str, columns: str, seen: Iterable[HeldCommitments]) -> Self:
        """Return these reports with one hospital's in the place of its earlier one."""
        digests = [list(known) for known in self.digests] or [[] for _ in epoch.members]

        def number(place: int, digest: str) -> int:
            known = digests[place]
            if digest not in known:
                if len(known) == _MOST_DIGESTS:
                    raise Equivocation(f"ready from {sender}: too many different columns of {epoch.members[place]}")
                known.append(digest)
            return known.index(digest) + 1

        marks = bytearray(len(epoch.members))
        for one in seen:
            if one.owner in epoch.places:
                marks[epoch.place(one.owner)] = number(epoch.place(one.owner), one.columns)
        report = SetupReport(sender=sender, own=number(epoch.place(sender), columns), seen=bytes(marks))
        others = (known for known in self.said if known.sender != sender)
        reports = tuple(sorted((*others, report), key=lambda one: one.sender))
        return self.model_copy(update={"digests": tuple(map(tuple, digests)), "said": reports})

    def holds(self, epoch: Epoch) -> dict[str, set[str]]:
        """Return whose shares each hospital holds: of those whose digest it saw as its owner has told it."""
        own = {epoch.place(report.sender): report.own for report in self.said}
        return {
            report.sender: {epoch.members[place] for place, which in own.items() if report.seen[place] == which}
            for report in self.said
        }


def columns_digest(epoch: Epoch, ready: Ready) -> str:
    """Return the SHA-256 of the columns that the sender's commitments make, as its bundles must have shown them."""
    size = len(epoch.context.rounds) * 2 * SECRET
    parts = [ready.commitments[start : start + size] for start in range(0, len(ready.commitments), size)]
    return sha256_hex(b"".join(hashlib.sha256(part).digest() for part in parts))
