"""What the setup of an epoch costs one hospital and the aggregator: bytes on their disks, and seconds of processor.

The measured hospital goes through a datasite's own setup of an epoch (`hospital.rounds.setup`), with its database,
audit log, journal, mailroom and files, except that the study is only said to be approved and its service does nothing
else; the aggregator is the researcher's, with mailroom and files. The other hospitals are played in the same process,
with real keys and shares. The store is in memory, so that what is written is what they keep. Seconds are the least of
three setups at every size, since what else the machine does only adds to them. Prints a table, whose targets are the
stated bounds, and cost that grows with hospitals by no more than a fifth above linearly; `--json FILE` writes [{name,
value, unit, target, met}].

    python scripts/bench_setup.py [--hospitals 10 30 100] [--rounds 100]
"""

from __future__ import annotations

import argparse
import datetime
import gc
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench_secagg import Table
from bench_transport import MB, RESEARCHER, mailroom
from measure import files_below

from datasites.aggregator.gather import LARGEST_SETUP_LETTER, RunError
from datasites.aggregator.run_files import RunFolder
from datasites.aggregator.secure_sum import SecureSum
from datasites.control.sealer import open_keys, syft_fingerprint
from datasites.hospital.setup import initialise
from datasites.hospital.site import Site
from datasites.secagg.epoch_terms import EPOCH_ROUNDS, EpochTerms
from datasites.secagg.journal import Journal
from datasites.secagg.member import Member
from datasites.secagg.messages import Enrolment, Message, ShareBundle
from datasites.secagg.state import MemberState
from datasites.study import letters
from datasites.study.identity import Identity
from datasites.study.manifest import StudyTerms
from datasites.study.package import StudyPackage
from datasites.study.roster import Roster, RosterEntry
from datasites.transport.letter import read_blob
from datasites.transport.mailroom import Mailroom

HEART = Path(__file__).resolve().parent / "heart_disease" / "study"
STUDY = "5" * 64
TODAY = datetime.datetime.now(datetime.UTC).date()
#: At 100 hospitals and 100 rounds, in MB.
HOSPITAL_MB, AGGREGATOR_MB = 8.0, 20.0
#: How far above linear growth a cost may lie.
SLACK = 1.2
#: Seconds are the least of so many setups.
REPEATS = 3
SETTINGS = 'organisation = "Bench"\nemail = "hospital000@bench.example"\nstore = "{}"\nrun_as_root = true\n'


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


class Measured:
    """The hospital whose cost is measured; its home is `site`, and `home` has what belongs to this study."""

    def __init__(self, site: Site, room: Mailroom, terms: StudyTerms, home: Path) -> None:
        from datasites.hospital.rounds.mail import StudyMail
        from datasites.hospital.rounds.setup import EpochSetup

        self._home, self._site = home, site
        self._before, self.cost = files_below(site.home.root)[1], Cost()
        # All that a setup asks of an approved case.
        case: Any = SimpleNamespace(study=terms, row=SimpleNamespace(study_hash=STUDY))
        with self.cost.counting():
            self._journal = Journal(home / "journal", home / "anchor")
            self._post = StudyMail(site, room, STUDY, RESEARCHER)
            self._setup = EpochSetup(site, case, self._post, self._journal, home)

    def turn(self) -> None:
        """Do all that can be done now."""
        with self.cost.counting():
            while self._setup.step():
                pass

    def end(self) -> None:
        """As at the first round."""
        with self.cost.counting():
            self._post.collect_setup(0)
            self._journal.close()

    def count_kept(self) -> None:
        """Once nobody has its files open any more."""
        self.cost.kept = files_below(self._home)[1] + files_below(self._site.home.root)[1] - self._before


@dataclass
class Played:
    """One of the others, in the order of `hospital.rounds.setup`."""

    identity: Identity
    mailroom: Mailroom
    member: Member | None = None
    state: MemberState | None = None
    received: list[ShareBundle] = field(default_factory=list)

    def send(self, to: str, kind: str, message: Message) -> None:
        """Put a letter of the setup."""
        self.mailroom.send(to, STUDY, letters.SETUP_ROUND, kind, {}, message.to_bytes())

    def receive(self, sender: str, kind: str) -> bytes:
        """Receive the payload of a letter of the setup."""
        letter = self.mailroom.receive(sender, STUDY, letters.SETUP_ROUND, kind, max_blob=LARGEST_SETUP_LETTER)
        assert letter is not None
        return read_blob(letter)

    def certify(self, context: EpochTerms) -> None:
        """Answer the offer."""
        self.member = Member(self.identity, context)
        self.state, certificate = self.member.certify(None)
        self.send(RESEARCHER, letters.certificate_kind(0), certificate)

    def share(self, enrolment: Enrolment) -> dict[str, ShareBundle]:
        """Check all certificates and make the bundles."""
        assert self.member is not None
        assert self.state is not None
        self.state, bundles = self.member.share(self.state, enrolment, today=TODAY)
        return bundles

    def accept(self, bundle: ShareBundle) -> None:
        """Take one bundle in."""
        assert self.member is not None
        assert self.state is not None
        self.state = self.member.accept(self.state, bundle)

    def ready(self) -> None:
        """Tell the aggregator."""
        assert self.member is not None
        assert self.state is not None
        self.state, ready = self.member.ready(self.state)
        self.send(RESEARCHER, letters.ready_kind(0), ready)


def set_up(n: int, rounds: int, home: Path, site: Site) -> tuple[Cost, Cost]:
    """One epoch among n hospitals; what it costs `site`, the first of them, and the aggregator."""
    gc.collect()  # databases that an earlier setup left open write when they go: now, and not while somebody is counted
    emails = [site.identity.email, *(f"hospital{index:03d}@bench.example" for index in range(1, n))]
    identities = {email: Identity.generate(email) for email in (RESEARCHER, *emails[1:])}
    identities[emails[0]] = site.identity
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
    roster.save(site.home.roster)
    for entry in roster.entries:
        site.audit.append("pinned", email=entry.email, fingerprint=entry.fingerprint, person="command line")
    url = f"memory://bench-{secrets.token_hex(8)}"
    rooms = {email: mailroom(email, home, url, roster) for email in (RESEARCHER, *emails)}
    heart = StudyPackage.read(HEART).study
    cohort = heart.cohort.model_copy(update={"hospitals": tuple(emails), "threshold": None})
    trained = 10 * EPOCH_ROUNDS if rounds == EPOCH_ROUNDS else rounds - 1
    terms = heart.model_copy(update={"cohort": cohort, "rounds": trained, "researcher": RESEARCHER})
    aggregator = Cost()
    with aggregator.counting():
        total = SecureSum(
            identities[RESEARCHER], roster, rooms[RESEARCHER], RunFolder(home / RESEARCHER / "run"), STUDY, -1
        )
        total.new_epoch(terms, emails, 1)
        with suppress(RunError):
            total.set_up(emails, 0.0)  # offers; nobody has answered yet
    assert len(total.context.rounds) == rounds
    measured = Measured(site, rooms[emails[0]], terms, home / emails[0])
    others = {email: Played(identities[email], rooms[email]) for email in emails[1:]}
    measured.turn()
    for hospital in others.values():
        hospital.certify(total.context)
    with aggregator.counting(), suppress(RunError):
        total.set_up(emails, 0.0)  # certificates and enrolment; nobody is ready yet
    measured.turn()
    enrolment = Enrolment.from_bytes(others[emails[1]].receive(RESEARCHER, letters.enrolment_kind(0)))
    for hospital in others.values():
        for peer, bundle in hospital.share(enrolment).items():
            if peer == emails[0]:
                hospital.send(peer, letters.shares_kind(0), bundle)
            else:
                others[peer].received.append(bundle)
    graph = total.context.neighbourhood(n)
    for place, hospital in enumerate(others.values(), 1):
        if graph.are_neighbours(0, place):
            hospital.received.append(ShareBundle.from_bytes(hospital.receive(emails[0], letters.shares_kind(0))))
        for received in hospital.received:
            hospital.accept(received)
        hospital.received.clear()
        hospital.ready()
        hospital.state = None
    measured.turn()
    with aggregator.counting():
        available = total.set_up(emails, 0.0)
    assert len(available) == n
    measured.end()
    for room in rooms.values():
        room.close()
    # All of it: a database that is empty has pages already, which the first letters fill without growing it.
    measured.count_kept()
    aggregator.kept = files_below(home / RESEARCHER)[1]
    return measured.cost, aggregator


def least(n: int, rounds: int, site: Site) -> tuple[Cost, Cost]:
    """Return what one setup costs, in the least of the seconds that several take."""
    times = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            times.append(set_up(n, rounds, Path(folder), site))
    hospital, aggregator = (min(costs, key=lambda cost: cost.seconds) for costs in zip(*times, strict=True))
    return hospital, aggregator


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
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "store").mkdir()
        initialise(Path(folder) / "home", SETTINGS.format(Path(folder) / "store"))
        site = Site.open(Path(folder) / "home")
        for n in sorted(given.hospitals):
            costs = least(n, given.rounds, site)
            smallest = smallest or (n, costs)
            show(table, n, given.rounds, costs, smallest)
    table.finish(given.json)


def show(table: Table, n: int, rounds: int, costs: tuple[Cost, Cost], smallest: tuple[int, tuple[Cost, Cost]]) -> None:
    """Add the lines of one size, beside the smallest one."""
    for who, cost, of_smallest, bound in zip(
        ("hospital", "aggregator"), costs, smallest[1], (HOSPITAL_MB, AGGREGATOR_MB), strict=True
    ):
        label, times = f"n={n} rounds={rounds}: {who}", n / smallest[0]
        stated = bound if (n, rounds) == (100, 100) else None
        table.add(f"{label}, written", cost.written / MB, "MB", stated)
        table.add(f"{label}, kept", cost.kept / MB, "MB", stated)
        table.add(f"{label}, processor", cost.seconds, "s")
        if n != smallest[0]:
            for what in ("written", "kept", "seconds"):
                growth = getattr(cost, what) / getattr(of_smallest, what) / times
                table.add(f"{label}, {what} against linear growth", growth, "x", SLACK)


if __name__ == "__main__":
    main()
