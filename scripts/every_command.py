"""Every command of `datasites`, as a hospital's people would run them one after the other on a small home.

For the bench and for the test of what each imports. The home has a steward, a privacy officer, their agreements, pinned
parties and an examined case that nobody has reviewed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasites.study.audit_chain import PublicHead, records
from datasites.study.canonical import sha256_hex
from datasites.study.identity import Identity
from datasites.study.package import StudyPackage
from datasites.study.roster import HandOver, RosterEntry


@dataclass(frozen=True)
class Desk:
    """What the commands speak of. password: of both people; second: a case that may be rejected."""

    home: Path
    study: Path
    steward: str
    officer: str
    passwords: tuple[str, str]
    case_id: int
    hash: str
    second: int
    dataset: str
    population: str
    organisation: str


@dataclass(frozen=True)
class Run:
    """One command with its arguments.

    code: how it ends here, if that is known. apart: it prices, reads tables or opens the store.
    """

    command: str
    arguments: tuple[str, ...] = ()
    code: int | None = 0
    password: str = ""
    apart: bool = False

    @property
    def line(self) -> list[str]:
        """The command line, without `datasites`."""
        return [*self.command.split(), *self.arguments]


def every_command(desk: Desk, folder: Path) -> Iterator[Run]:
    """All of them, in an order in which each has something to do; what they need beside the home goes to `folder`.

    Each is yielded only when those before it may have been run.
    """
    home, case, second = ("--home", str(desk.home)), str(desk.case_id), str(desk.second)
    steward, officer = ((*home, "--as", name, "--password-stdin") for name in (desk.steward, desk.officer))
    first_password, second_password = desk.passwords
    why = ("--reason", "read it")

    def by_steward(command: str, *arguments: str, code: int = 0, apart: bool = False) -> Run:
        return Run(command, (*arguments, *steward), code, first_password, apart)

    def by_officer(command: str, *arguments: str, code: int = 0) -> Run:
        return Run(command, (*arguments, *officer), code, second_password)

    parties = {name: _entry(name) for name in ("east", "west", "south")}
    for name, entry in parties.items():
        (folder / f"{name}.json").write_bytes(entry.canonical())
    (folder / "agreement.toml").write_text(_agreement(desk.organisation))
    whole = ("--study", str(desk.study))

    yield Run("identity show", home)
    yield Run("person list", home)
    yield Run("person add", ("eve.lee", "--role", "auditor", *home))
    yield Run("person invite", ("eve.lee", *home))
    yield Run("person accept", ("--password-stdin", *home), code=2, password="no link")  # it was shown once
    yield Run("person password", steward, password=f"{first_password}\n{first_password}")
    yield by_steward("person second-factor")
    yield Run("person reset-second-factor", (desk.steward, *home))
    yield Run("person deactivate", ("eve.lee", *home))
    yield Run("roster show", home)
    yield Run("roster pin", (str(folder / "east.json"), "--yes", *home))
    yield by_steward("roster propose", str(folder / "west.json"))
    yield by_officer("roster confirm", "1", "--fingerprint", parties["west"].fingerprint)
    yield by_steward("roster propose", str(folder / "south.json"))
    yield by_officer("roster withdraw", "2")
    yield Run("roster pin", (_handing_over(folder), "--yes", *home))
    yield by_officer("roster hand-over", str(folder / "hand-over.json"), "--yes")
    yield by_officer("roster revoke", parties["west"].email, *why)
    yield Run("agreements list", home)
    yield Run("agreements preview", (str(folder / "agreement.toml"), *home))
    yield by_steward("agreements import", str(folder / "agreement.toml"))
    yield Run("agreements show", ("another", *home))
    yield by_officer("agreements confirm", "another", "1")
    yield Run("agreements draft", ("irb_section", *whole, *home))
    yield by_officer("agreements terminate", "another")
    yield Run("budget show", home)
    yield Run("budget history", (desk.dataset, *home))
    yield by_steward("budget widen", desk.population, *why, code=2)  # datasite.toml says nothing wider
    yield by_steward("budget accept-delta", desk.population, "0.001", *why)
    yield Run("budget waiting", home)
    yield by_officer("budget confirm", "1")
    yield by_steward("budget accept-delta", desk.population, "0.002", *why)
    yield by_officer("budget withdraw", "2")
    yield by_steward("budget other-patients", desk.population, "others", *why, code=2)  # nobody else is known
    yield by_steward("budget restored", "--nothing-lost", *why, code=2)  # nothing was
    yield by_steward("dataset withdraw", desk.dataset, "NOBODY", "--for-later", *why, apart=True)
    yield Run("dataset check", (desk.dataset, *whole, *home), apart=True)
    yield by_steward("dataset accept", desk.dataset, "nothing", *whole, *why, code=2, apart=True)
    yield Run("budget what-if", (desk.dataset, "0.1", "5", "1", "0.1", *home), apart=True)
    yield Run("study plan", (str(desk.study),), apart=True)
    yield Run("study check", (str(desk.study),), apart=True)
    yield Run("review list", home)
    yield Run("review wait", (StudyPackage.read(desk.study).digest(), *home))
    yield Run("review show", (case, *home))
    yield Run("review recheck", (second, *home), apart=True)
    yield by_steward("review reject", second, "--tell", "not now", *why)
    for approves in (by_steward, by_officer):
        yield approves("review approve", case, "--hash", desk.hash, *why)
    yield Run("study rounds", (case, *home))
    yield by_steward("study pause", case, *why)
    yield by_steward("study resume", case, *why)
    yield by_steward("study sit-out", case, *why, code=2)  # it has not stopped
    yield by_steward("study rejoin", case, *why, code=2)
    yield by_steward("study revoke", case, *why)
    yield by_steward("kill", "--yes", *why)
    yield by_officer("unkill", *why)
    yield Run("audit tail", home)
    yield Run("audit replay", home)
    yield Run("audit export", (str(folder / "exported.jsonl"), *home))
    own = RosterEntry.parse((desk.home / "roster-entry.json").read_bytes())
    yield Run("audit verify", (str(desk.home / "audit.jsonl"), "--key", own.public_key))
    *_, last = records(desk.home / "audit.jsonl")
    head = PublicHead.sign(Identity.load(desk.home / "keys/institution.pem", own.email), 0, last.hash)
    (folder / "head.json").write_bytes(head.canonical())
    yield Run("audit held", (str(folder / "head.json"), *home))
    # What these two find depends on what was run before.
    yield Run("evidence", (case, "--out", str(folder / "evidence.zip"), *home), code=None, apart=True)
    yield Run("doctor", home, code=None, apart=True)
    settings = f'organisation = "A"\nemail = "a@a.example.org"\nstore = "{folder}"\nrun_as_root = true\n'
    (folder / "datasite.toml").write_text(settings)
    yield Run("init", (str(folder / "datasite.toml"), "--home", str(folder / "another")), apart=True)


def _entry(name: str) -> RosterEntry:
    email = f"datasite@{name}.example.org"
    key = Identity.generate(email).public_key
    return RosterEntry(
        organisation=name.title(), email=email, role="hospital", public_key=key, syft_fingerprint="ab" * 20
    )


def _handing_over(folder: Path) -> str:
    """Return a researcher's entry, and beside it its hand-over to another key."""
    old, new = (Identity.generate("office@university-2.example.org") for _ in range(2))
    before, after = (
        RosterEntry(
            organisation="University 2",
            email=key.email,
            role="researcher",
            public_key=key.public_key,
            syft_fingerprint="cd" * 20,
        )
        for key in (old, new)
    )
    (folder / "researcher.json").write_bytes(before.canonical())
    (folder / "hand-over.json").write_bytes(HandOver.sign(old, new, before, after).canonical())
    return str(folder / "researcher.json")


def _agreement(organisation: str) -> str:
    return f"""[[agreement]]
id = "another"
kind = "baa"
parties = ["{organisation}", "Elsewhere"]
services = ["aggregation"]
effective = 2026-01-01
expires = 2099-12-31
document = "{sha256_hex(b"another")}"
"""
