"""What the setup of an epoch costs one hospital and the aggregator: bytes on their disks, and seconds of processor.

The measured hospital and the aggregator work with real mailrooms, journals and files; the other hospitals are played in
the same process, with real keys and shares. The store is in memory, so that what is written is what they keep. Prints a
table, whose targets are the stated bounds, and cost that grows with hospitals by no more than a fifth above linearly;
`--json FILE` writes [{name, value, unit, target, met}].

    python scripts/bench_setup.py [--hospitals 10 30 100] [--rounds 100]
"""

from __future__ import annotations

import argparse
import datetime
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench_secagg import Table
from bench_transport import MB, RESEARCHER, mailroom

from datasites.researcher.gather import LARGEST_SETUP_LETTER, RunError, blob
from datasites.researcher.record import RunFolder
from datasites.researcher.secure_sum import SecureSum
from datasites.secagg.context import EPOCH_ROUNDS, Context
from datasites.secagg.journal import Journal
from datasites.secagg.member import Member
from datasites.secagg.messages import Enrolment, Message, ShareBundle
from datasites.secagg.state import MemberState
from datasites.study import letters
from datasites.study.identity import Identity, Roster, RosterEntry
from datasites.study.package import StudyPackage
from datasites.transport.mailroom import Mailroom
from datasites.transport.sealer import open_keys, syft_fingerprint

HEART = Path(__file__).resolve().parent / "heart_disease" / "study"
STUDY = "5" * 64
TODAY = datetime.datetime.now(datetime.UTC).date()
#: At 100 hospitals and 100 rounds, in MB.
HOSPITAL_MB, AGGREGATOR_MB = 8.0, 20.0
#: How far above linear growth a cost may lie.
SLACK = 1.2


@dataclass
class Cost:
    """What one party has spent: seconds of processor, bytes given to the kernel to write, bytes in files at the end."""

    seconds: float = 0.0
    written: int = 0
    kept: int = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Add what is spent in the block; nobody else works meanwhile."""
        seconds, written = time.process_time(), _written()
        try:
            yield
        finally:
            self.seconds += time.process_time() - seconds
            self.written += _written() - written


def _written() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])
    raise OSError("no wchar in /proc/self/io")


def size_of(folder: Path) -> int:
    """Bytes in all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@dataclass
class Hospital:
    """One hospital in the order of `hospital.epochs`; `journal` only where its cost is measured."""

    identity: Identity
    mailroom: Mailroom
    journal: Journal | None = None
    member: Member | None = None
    state: MemberState | None = None
    received: list[ShareBundle] = field(default_factory=list)

    def commit(self, state: MemberState, *messages: Message) -> None:
        """The next state, on the disk where there is a journal."""
        self.state = state
        if self.journal is not None:
            self.journal.commit(state, *messages)

    def send(self, to: str, kind: str, message: Message) -> None:
        """Put a letter of the setup."""
        self.mailroom.send(to, STUDY, letters.SETUP_ROUND, kind, {}, message.to_bytes())

    def receive(self, sender: str, kind: str) -> bytes:
        """The payload of a letter of the setup."""
        letter = self.mailroom.receive(sender, STUDY, letters.SETUP_ROUND, kind, max_blob=LARGEST_SETUP_LETTER)
        assert letter is not None
        return blob(letter)

    def certify(self, context: Context) -> None:
        """Answer the offer."""
        self.member = Member(self.identity, context)
        state, certificate = self.member.certify(None)
        self.commit(state, certificate)
        self.send(RESEARCHER, letters.certificate_kind(0), certificate)

    def share(self, enrolment: Enrolment) -> dict[str, ShareBundle]:
        """Check all certificates and make the bundles."""
        assert self.member is not None
        assert self.state is not None
        state, bundles = self.member.share(self.state, enrolment, today=TODAY)
        self.commit(state, *bundles.values())
        return bundles

    def accept(self, bundle: ShareBundle) -> None:
        """Take one bundle in."""
        assert self.member is not None
        assert self.state is not None
        self.commit(self.member.accept(self.state, bundle))

    def ready(self) -> None:
        """Tell the aggregator."""
        assert self.member is not None
        assert self.state is not None
        state, ready = self.member.ready(self.state)
        self.commit(state, ready)
        self.send(RESEARCHER, letters.ready_kind(0), ready)


def set_up(n: int, rounds: int, home: Path) -> tuple[Cost, Cost]:
    """One epoch among n hospitals; what it costs the first of them, and the aggregator."""
    emails = [f"hospital{index:03d}@bench.example" for index in range(n)]
    identities = {email: Identity.generate(email) for email in (RESEARCHER, *emails)}
    roster = Roster(
        entries=tuple(
            RosterEntry(
                organisation=email,
                email=email,
                role="researcher" if email == RESEARCHER else "hospital",
                public_key=identity.public_key,
                syft_fingerprint=syft_fingerprint(open_keys(email, home / email / "syft_keys.json")),
            )
            for email, identity in identities.items()
        )
    )
    url = f"memory://bench-{secrets.token_hex(8)}"
    rooms = {email: mailroom(email, home, url, roster) for email in (RESEARCHER, *emails)}
    heart = StudyPackage.read(HEART).study
    cohort = heart.cohort.model_copy(update={"hospitals": tuple(emails), "threshold": None})
    terms = heart.model_copy(
        update={"cohort": cohort, "rounds": 10 * EPOCH_ROUNDS if rounds == EPOCH_ROUNDS else rounds - 1}
    )
    first, aggregator = Cost(), Cost()
    with aggregator.counting():
        total = SecureSum(
            identities[RESEARCHER], roster, rooms[RESEARCHER], RunFolder(home / RESEARCHER / "run"), STUDY, -1
        )
        total.new_epoch(terms, emails, 1)
    assert len(total.context.rounds) == rounds
    hospitals = {email: Hospital(identities[email], rooms[email]) for email in emails}
    measured, *others = hospitals.values()
    with first.counting():
        measured.journal = Journal(home / emails[0] / "journal", home / emails[0] / "anchor")
        measured.certify(total.context)
    for hospital in others:
        hospital.certify(total.context)
    with aggregator.counting(), suppress(RunError):
        total.set_up(emails, 0.0)  # certificates and enrolment; nobody is ready yet
    kind = letters.enrolment_kind(0)
    with first.counting():
        enrolment = Enrolment.from_bytes(measured.receive(RESEARCHER, kind))
        for peer, bundle in measured.share(enrolment).items():
            measured.send(peer, letters.shares_kind(0), bundle)
    for hospital in others:
        for peer, bundle in hospital.share(enrolment).items():
            if peer == emails[0]:
                hospital.send(peer, letters.shares_kind(0), bundle)
            else:
                hospitals[peer].received.append(bundle)
    for hospital in others:
        graph = total.context.neighbourhood(n)
        if graph.are_neighbours(0, emails.index(hospital.identity.email)):
            hospital.received.append(ShareBundle.from_bytes(hospital.receive(emails[0], letters.shares_kind(0))))
            with first.counting():
                bundle = measured.receive(hospital.identity.email, letters.shares_kind(0))
                measured.accept(ShareBundle.from_bytes(bundle))
        for received in hospital.received:
            hospital.accept(received)
        hospital.received.clear()
        hospital.ready()
        hospital.state = None
    with first.counting():
        measured.ready()
    with aggregator.counting():
        available = total.set_up(emails, 600.0)
    assert len(available) == n
    with first.counting():  # as at the first round
        done = {letters.shares_kind(0), letters.certificate_kind(0), kind}
        measured.mailroom.collect_kinds(STUDY, letters.SETUP_ROUND, done.__contains__)
        assert measured.journal is not None
        measured.journal.close()
    for room in rooms.values():
        room.close()
    # All of it: a database that is empty has pages already, which the first letters fill without growing it.
    first.kept, aggregator.kept = size_of(home / emails[0]), size_of(home / RESEARCHER)
    return first, aggregator


def main() -> None:
    """Run all sizes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--hospitals", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    table = Table()
    table.add("load average at the start (above 1: times are of a busy machine)", os.getloadavg()[0], "")
    smallest: tuple[int, tuple[Cost, Cost]] | None = None
    for n in sorted(given.hospitals):
        with tempfile.TemporaryDirectory() as folder:
            costs = set_up(n, given.rounds, Path(folder))
        smallest = smallest or (n, costs)
        for who, cost, least, bound in zip(
            ("hospital", "aggregator"), costs, smallest[1], (HOSPITAL_MB, AGGREGATOR_MB), strict=True
        ):
            label, times = f"n={n} rounds={given.rounds}: {who}", n / smallest[0]
            stated = bound if (n, given.rounds) == (100, 100) else None
            table.add(f"{label}, written", cost.written / MB, "MB", stated)
            table.add(f"{label}, kept", cost.kept / MB, "MB", stated)
            table.add(f"{label}, processor", cost.seconds, "s")
            if n != smallest[0]:
                for what in ("written", "kept", "seconds"):
                    growth = getattr(cost, what) / getattr(least, what) / times
                    table.add(f"{label}, {what} against linear growth", growth, "x", SLACK)
    table.finish(given.json)


if __name__ == "__main__":
    main()
