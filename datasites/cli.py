"""One command, `datasites`, for people. Thin: each command reads its arguments, calls a room, and prints.

Errors that a person can mend are one line on standard error and exit code 2; passwords are asked for on the terminal,
or read from standard input with `--password-stdin`.
"""

from __future__ import annotations

import dataclasses
import datetime
import getpass
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from datasites.study.errors import DatasitesError
from datasites.study.identity import Roster, RosterEntry

if TYPE_CHECKING:
    from datasites.hospital.review import Acting
    from datasites.hospital.site import Site

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
review_app = typer.Typer(no_args_is_help=True, help="Cases: read, approve, reject.")
study_app = typer.Typer(no_args_is_help=True, help="Studies: check a folder; pause, resume or revoke one that runs.")
roster_app = typer.Typer(no_args_is_help=True, help="Parties whose keys this hospital trusts.")
identity_app = typer.Typer(no_args_is_help=True, help="This hospital's own keys.")
agreements_app = typer.Typer(no_args_is_help=True, help="BAA, DUA, IRB: entered by one, confirmed by another.")
person_app = typer.Typer(no_args_is_help=True, help="The hospital's people and their roles.")
dataset_app = typer.Typer(no_args_is_help=True, help="Datasets and their readiness for a study.")
budget_app = typer.Typer(no_args_is_help=True, help="The privacy ledger.")
audit_app = typer.Typer(no_args_is_help=True, help="The audit log.")
for name, group in (
    ("review", review_app),
    ("study", study_app),
    ("roster", roster_app),
    ("identity", identity_app),
    ("agreements", agreements_app),
    ("person", person_app),
    ("dataset", dataset_app),
    ("budget", budget_app),
    ("audit", audit_app),
):
    app.add_typer(group, name=name)

out = Console(highlight=False, soft_wrap=True)

HomeOption = Annotated[Path, typer.Option("--home", envvar="DATASITES_HOME", help="The datasite's home folder.")]
NameOption = Annotated[str, typer.Option("--as", help="Your name, as entered with `datasites person add`.")]
StdinOption = Annotated[bool, typer.Option("--password-stdin", help="Read your password from standard input.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept in the audit log.")]


def main() -> None:
    """Entry point: runs a command and turns errors of input into one line and exit code 2."""
    try:
        app(standalone_mode=True)
    except Exception as error:
        # Errors that a room of ours defines are for people; anything else is a defect and keeps its traceback.
        if not type(error).__module__.startswith(("datasites.", "policies.")):
            raise
        print(f"datasites: {error}", file=sys.stderr)
        sys.exit(2)


def _site(home: Path) -> Site:
    from datasites.hospital.site import Site

    return Site.open(home)


@contextmanager
def _acting(home: Path, name: str, from_stdin: bool) -> Iterator[tuple[Site, Acting]]:
    site = _site(home)
    from datasites.hospital.review import Acting

    yield site, Acting.login(name, _password(from_stdin, f"Password of {name}: "))


def _password(from_stdin: bool, prompt: str) -> str:
    return sys.stdin.readline().rstrip("\n") if from_stdin else getpass.getpass(prompt)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


# -- the datasite itself ---------------------------------------------------------------------------------------------


@app.command()
def init(
    home: HomeOption,
    settings: Annotated[Path, typer.Argument(help="The datasite.toml to start from.")],
) -> None:
    """Make a datasite: key, database, SyftBox, and the roster entry to give to the other parties."""
    from datasites.hospital.setup import initialise

    if not settings.is_file():
        raise DatasitesError(f"{settings}: no such file; write the datasite's settings first (see README)")
    entry = initialise(home, settings.read_text())
    from datasites.hospital.people import FIRST_ADMIN, add_first_admin

    password = add_first_admin()
    out.print(f"datasite of {entry.organisation} in {home}\nfingerprint  {entry.fingerprint}")
    out.print(f"give {home / 'roster-entry.json'} to the other parties, and compare fingerprints by telephone")
    out.print(f"console: sign in as {FIRST_ADMIN} with {password} (shown once; change it there), then enter people")


@app.command()
def serve(
    home: HomeOption,
    console: Annotated[bool, typer.Option(help="Serve the approval console too ([console] in datasite.toml).")] = True,
) -> None:
    """Run the datasite until Ctrl-C or SIGTERM."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    site = _site(home)
    from datasites.hospital.console.server import serving
    from datasites.hospital.datasite import Datasite, only_process

    settings = site.home.settings.console
    with (
        only_process(site.home),
        serving(settings.model_copy(update={"enabled": settings.enabled and console})) as address,
    ):
        Datasite(site, address).serve(stop)


@app.command()
def kill(home: HomeOption, name: NameOption, reason: ReasonOption, password_stdin: StdinOption = False) -> None:
    """Stop all studies of this datasite before their next round."""
    with _acting(home, name, password_stdin) as (site, person):
        from datasites.hospital import review

        review.kill(site, person, reason)
    out.print("the kill switch is on; `datasites unkill` takes it off")


@app.command()
def unkill(home: HomeOption, name: NameOption, reason: ReasonOption, password_stdin: StdinOption = False) -> None:
    """Take the kill switch off."""
    with _acting(home, name, password_stdin) as (site, person):
        from datasites.hospital import review

        review.unkill(site, person, reason)
    out.print("the kill switch is off")


@app.command()
def evidence(home: HomeOption, case: int, out_file: Annotated[Path, typer.Option("--out")]) -> None:
    """Write the evidence bundle of a case, with a stand-alone verifier inside; exit code 0 only when it verifies."""
    site = _site(home)
    from datasites.hospital.export import export_evidence

    checks = export_evidence(site, case, out_file)
    for check in checks:
        out.print(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.found}", markup=False)
    out.print(f"{out_file}: verify with `python verify_bundle.py {out_file.name} --key {site.identity.public_key}`")
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


@app.command()
def doctor(home: HomeOption) -> None:
    """Check store, clock, permissions, keys, roster, agreements, sandbox and GPU, and say what to mend."""
    site = _site(home)
    from datasites.hospital.doctor import examine

    sick = False
    for check in examine(site):
        sick = sick or check.state == "bad"
        out.print(f"{check.state:4} {check.name}: {check.words}", markup=False)
    raise typer.Exit(1 if sick else 0)


@identity_app.command("show")
def identity_show(home: HomeOption) -> None:
    """This hospital's fingerprint and roster entry."""
    from datasites.hospital.setup import ENTRY_FILE

    entry = RosterEntry.parse((_site(home).home.root / ENTRY_FILE).read_bytes())
    out.print(f"{entry.organisation} <{entry.email}>\nfingerprint  {entry.fingerprint}")
    out.print(entry.model_dump_json(indent=2), markup=False)


# -- roster ----------------------------------------------------------------------------------------------------------


@roster_app.command("show")
def roster_show(home: HomeOption) -> None:
    """Pinned parties."""
    table = _table("", "organisation", "e-mail", "role", "fingerprint")
    for entry in Roster.load(_site(home).home.roster).entries:
        table.add_row(entry.organisation, entry.email, entry.role, entry.fingerprint)
    out.print(table)


@roster_app.command("pin")
def roster_pin(
    home: HomeOption,
    files: Annotated[list[Path], typer.Argument(help="Roster entries of other parties.")],
    yes: Annotated[bool, typer.Option("--yes", help="You have compared the fingerprints already.")] = False,
) -> None:
    """Trust parties, after comparing their fingerprints by telephone."""
    site = _site(home)
    roster = Roster.load(site.home.roster)
    for file in files:
        try:
            entry = RosterEntry.parse(file.read_bytes())
        except (OSError, ValueError) as error:
            raise DatasitesError(f"{file}: not a roster entry; ask for the party's roster-entry.json") from error
        out.print(f"{entry.organisation} <{entry.email}> ({entry.role})\nfingerprint  {entry.fingerprint}")
        if not yes and not typer.confirm("Did they read you this fingerprint by telephone?"):
            raise DatasitesError(f"{entry.email}: not pinned")
        roster = roster.pin(entry)
        roster.save(site.home.roster)
        site.audit.append("pinned", email=entry.email, fingerprint=entry.fingerprint)


@roster_app.command("revoke")
def roster_revoke(home: HomeOption, email: str, reason: ReasonOption) -> None:
    """Stop trusting a party; its studies are denied from the next round on."""
    site = _site(home)
    Roster.load(site.home.roster).revoke(email).save(site.home.roster)
    site.audit.append("unpinned", email=email, reason=reason)
    out.print(f"{email} is no longer trusted")


@roster_app.command("propose")
def roster_propose(home: HomeOption, file: Path, name: NameOption, password_stdin: StdinOption = False) -> None:
    """Enter a party's roster entry; it is trusted once a second person has pinned it with `roster confirm`."""
    with _acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.parties import propose_party

        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise DatasitesError(f"{file}: cannot be read; ask for the party's roster-entry.json") from error
        proposal = propose_party(site, person, text)
    out.print(f"entry {proposal.pk}: {proposal.email} waits for a second person")


@roster_app.command("confirm")
def roster_confirm(
    home: HomeOption,
    entry: int,
    name: NameOption,
    fingerprint: Annotated[str, typer.Option(help="As the party reads it to you by telephone.")],
    password_stdin: StdinOption = False,
) -> None:
    """Pin what somebody else entered."""
    with _acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.parties import pin_party

        out.print(f"{pin_party(site, person, entry, fingerprint).email} is pinned")


@roster_app.command("withdraw")
def roster_withdraw(home: HomeOption, entry: int, name: NameOption, password_stdin: StdinOption = False) -> None:
    """Drop an entry that waits for a second person."""
    with _acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.parties import withdraw_party

        withdraw_party(site, person, entry)
    out.print(f"entry {entry}: withdrawn")


# -- people, agreements ----------------------------------------------------------------------------------------------


@person_app.command("add")
def person_add(
    home: HomeOption,
    name: str,
    role: Annotated[str, typer.Option(help="steward, privacy_officer, auditor or admin")],
    password_stdin: StdinOption = False,
) -> None:
    """Enter a person; asks for their password."""
    site = _site(home)
    from datasites.hospital.people import add_person

    add_person(name, role, _password(password_stdin, f"New password of {name}: "))
    site.audit.append("person_added", person=name, role=role)
    out.print(f"{name}: {role}")


@person_app.command("password")
def person_password(home: HomeOption, name: str, password_stdin: StdinOption = False) -> None:
    """Set a person's new password, for one who has forgotten it."""
    site = _site(home)
    from datasites.hospital.people import change_password

    change_password(name, _password(password_stdin, f"New password of {name}: "))
    site.audit.append("password_changed", person=name)
    out.print(f"{name}: password changed")


@person_app.command("deactivate")
def person_deactivate(home: HomeOption, name: str) -> None:
    """Keep a person out from now on; their past decisions stand."""
    site = _site(home)
    from datasites.hospital.people import deactivate

    deactivate(name, by="")
    site.audit.append("person_deactivated", person=name, by="command line")
    out.print(f"{name}: can't act any more")


@person_app.command("list")
def person_list(home: HomeOption) -> None:
    """Who is entered, and in which role."""
    _site(home)
    from datasites.hospital.people import people

    table = _table("", "name", "role")
    for name, role in people():
        table.add_row(name, role)
    out.print(table)


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


@agreements_app.command("list")
def agreements_list(home: HomeOption) -> None:
    """All agreements, newest version of each."""
    site = _site(home)
    from policies.registry import RegistryFile

    registry = RegistryFile(site.home.registry, site.home.settings.organisation).load()
    forced = {(a.terms.id, a.version) for a in registry.in_force(_today())}
    table = _table("", "id", "kind", "version", "parties", "until", "state")
    for id in sorted({a.terms.id for a in registry.agreements}):
        a = registry.latest(id)
        state = "in force" if (id, a.version) in forced else "unconfirmed" if a.confirmed_by is None else "not in force"
        table.add_row(id, a.terms.kind, str(a.version), ", ".join(a.terms.parties), str(a.terms.expires), state)
    out.print(table)
    for warning in registry.expiring(_today()):
        out.print(f"expires in {warning.days_left} days: {warning.id}")


@agreements_app.command("import")
def agreements_import(home: HomeOption, file: Path, name: NameOption, password_stdin: StdinOption = False) -> None:
    """Enter the agreements of a TOML file; each counts once a second person has confirmed it."""
    with _acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.agreements import enter_agreements

        for id, version in enter_agreements(site, person, file):
            out.print(f"{id} version {version}: entered; a second person confirms it")


@agreements_app.command("confirm")
def agreements_confirm(
    home: HomeOption, id: str, version: int, name: NameOption, password_stdin: StdinOption = False
) -> None:
    """Confirm that an entry says what the document says."""
    with _acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.agreements import confirm_agreement

        confirm_agreement(site, person, id, version)
    out.print(f"{id} version {version}: confirmed")


@agreements_app.command("draft")
def agreements_draft(home: HomeOption, document: str, study: Annotated[Path, typer.Option("--study")]) -> None:
    """Draft a document from a study: baa_schedule, irb_section or data_protection_summary."""
    site = _site(home)
    from datasites.study.package import StudyPackage
    from policies.registry import RegistryFile
    from policies.templates import render

    package = StudyPackage.read(study)
    features = tuple(feature.name for feature in (*package.data_model.features, package.data_model.label))
    registry = RegistryFile(site.home.registry, site.home.settings.organisation).load()
    print(render(document, package.study, package.digest(), features, registry, _today()))


@agreements_app.command("terminate")
def agreements_terminate(home: HomeOption, id: str, name: NameOption, password_stdin: StdinOption = False) -> None:
    """End an agreement today."""
    with _acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.agreements import terminate_agreement

        terminate_agreement(site, person, id)
    out.print(f"{id}: terminated")


# -- cases and studies -----------------------------------------------------------------------------------------------


@review_app.command("list")
def review_list(home: HomeOption, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """All cases, newest first."""
    _site(home)
    from datasites.hospital.models import Case

    rows = [
        {
            "case": row.pk,
            "study": row.study_name,
            "state": row.state,
            "hash": row.approval_hash,
            "study_hash": row.study_hash,
            "from": row.submitted_by,
            "note": row.note,
        }
        for row in Case.objects.all()
    ]
    if as_json:
        print(json.dumps(rows))
        return
    table = _table("", "case", "study", "state", "approval hash", "from", "note")
    for row in rows:
        table.add_row(str(row["case"]), row["study"], row["state"], row["hash"][:12], row["from"], row["note"])
    out.print(table)


@review_app.command("show")
def review_show(home: HomeOption, case: int) -> None:
    """Everything that a decision is based on: terms, code, findings, policies, rehearsal, budget."""
    site = _site(home)
    from datasites.hospital.case_page import describe

    out.print(describe(site, case), markup=False)


@review_app.command("approve")
def review_approve(
    home: HomeOption,
    case: int,
    name: NameOption,
    reason: ReasonOption,
    hash: Annotated[str, typer.Option("--hash", help="The approval hash that `review show` showed you.")],
    password_stdin: StdinOption = False,
) -> None:
    """Approve exactly what was shown; a study runs after a steward and a privacy officer did."""
    with _acting(home, name, password_stdin) as (site, person):
        from datasites.hospital import review

        row = review.approve(site, case, person, reason, hash)
    out.print(f"case {case}: approved by {name}; it is {row.state}")


@review_app.command("reject")
def review_reject(
    home: HomeOption, case: int, name: NameOption, reason: ReasonOption, password_stdin: StdinOption = False
) -> None:
    """Reject a case; the researcher reads the reason."""
    with _acting(home, name, password_stdin) as (site, person):
        from datasites.hospital import review

        review.reject(site, case, person, reason)
    out.print(f"case {case}: rejected")


@review_app.command("recheck")
def review_recheck(home: HomeOption, case: int) -> None:
    """Examine an unapproved case again, after data, mapping or agreements have changed."""
    site = _site(home)
    from datasites.hospital.admission import recheck

    row = recheck(site, case)
    out.print(f"case {case}: {row.state} {row.note}")


def _lifecycle(action: str) -> None:
    def command(
        home: HomeOption, case: int, name: NameOption, reason: ReasonOption, password_stdin: StdinOption = False
    ) -> None:
        with _acting(home, name, password_stdin) as (site, person):
            from datasites.hospital import review

            row = getattr(review, action)(site, case, person, reason)
        out.print(f"case {case}: {row.state}")

    study_app.command(action, help=f"{action.capitalize()} a study; effective before the next round.")(command)


for action in ("pause", "resume", "revoke"):
    _lifecycle(action)


@study_app.command("rounds")
def study_rounds(home: HomeOption, case: int) -> None:
    """Rounds of a study at this hospital: charged, released, survivors."""
    _site(home)
    from datasites.hospital.models import Round

    table = _table("", "round", "state", "steps", "seconds", "survivors", "released", "reason")
    for r in Round.objects.filter(case=case):
        released = str(r.release.get("sha256", ""))[:12]
        table.add_row(
            str(r.round), r.state, str(r.steps), f"{r.seconds:.2f}", str(len(r.survivors)), released, r.reason
        )
    out.print(table)


@study_app.command("check")
def study_check(folder: Path, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Check a study folder as every hospital will; exit code 0 only when it is clean."""
    from datasites.researcher.study import Study

    study = Study.load(folder)
    findings = study.check()
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            out.print(str(finding), markup=False)
        out.print(f"study {study.terms.name} {study.hash}: {len(findings)} finding(s)")
    raise typer.Exit(1 if findings else 0)


# -- data, budget, audit ---------------------------------------------------------------------------------------------


@dataset_app.command("check")
def dataset_check(home: HomeOption, dataset: str, study: Annotated[Path, typer.Option("--study")]) -> None:
    """Readiness of a dataset for a study folder, for the hospital's eyes; exit code 0 only when it is ready."""
    _site(home)
    from datasites.hospital.config import Home
    from datasites.hospital.readiness import check_dataset
    from datasites.study.package import StudyPackage

    readiness = check_dataset(Home.open(home), dataset, StudyPackage.read(study))
    shown = _table(f"{dataset}: {readiness.rows} rows", "feature", "ready", "unit", "missing", "out of range", "reason")
    for r in readiness.features:
        shown.add_row(r.name, "yes" if r.ready else "NO", r.unit, str(r.missing), str(r.out_of_range), r.reason)
    out.print(shown)
    out.print(readiness.patients_in_words())
    raise typer.Exit(0 if readiness.ready else 1)


@dataset_app.command("withdraw")
def dataset_withdraw(
    home: HomeOption,
    dataset: str,
    patient: str,
    name: NameOption,
    reason: ReasonOption,
    password_stdin: StdinOption = False,
) -> None:
    """Leave a patient who withdrew consent out from the next round on; what was released before stays released."""
    with _acting(home, name, password_stdin) as (site, person):
        from datasites.hospital import review

        number = review.withdraw(site, person, dataset, patient, reason)
    out.print(f"dataset {dataset}: {number} patient(s) have withdrawn, from the next round on")


@budget_app.command("show")
def budget_show(home: HomeOption) -> None:
    """Spent, committed and free privacy budget of each dataset, by partition of its patients."""
    site = _site(home)
    from datasites.hospital import ledger

    table = _table("", "dataset", "patients", "spent (RDP)", "spent (PLD)", "committed", "cap", "delta")
    for dataset in site.home.settings.datasets:
        tight = ledger.spent_pld(dataset)
        for s in ledger.state(dataset):
            figures = (s.spent_rdp, tight[s.partition], s.committed_rdp, s.cap)
            table.add_row(dataset.name, s.partition, *(f"{figure:.3f}" for figure in figures), f"{s.delta:g}")
    out.print(table)


@budget_app.command("history")
def budget_history(home: HomeOption, dataset: str) -> None:
    """Every line of a dataset's ledger."""
    _site(home)
    from datasites.hospital.models import LedgerEntry

    table = _table("", "at", "patients", "study", "what", "round", "events")
    for entry in LedgerEntry.objects.filter(dataset=dataset):
        events = "; ".join(
            f"{c['count']} x {c['mechanism']} z={c['noise_multiplier']} q={c['sampling_rate']}" for c in entry.charges
        )
        at = entry.at.isoformat(timespec="seconds")
        table.add_row(at, entry.partition, entry.study_hash[:12], entry.kind, str(entry.round or ""), events)
    out.print(table)


@budget_app.command("what-if")
def budget_what_if(home: HomeOption, dataset: str, epsilon: float, rounds: int, steps: int, rate: float) -> None:
    """Whether one more study that asks this much would fit today."""
    site = _site(home)
    from datasites.hospital.budget_view import Book

    answer = Book.read(site.home.dataset(dataset)).what_if(epsilon, rounds, steps, rate)
    out.print(
        f"{'fits' if answer.fits else 'does NOT fit'}: training patients at {answer.after:.3f} of {answer.cap:g}, "
        f"noise multiplier {answer.noise_multiplier:.3f}"
    )
    raise typer.Exit(0 if answer.fits else 1)


@audit_app.command("verify")
def audit_verify(
    log: Path,
    key: Annotated[str, typer.Option("--key", help="The hospital's public key, 64 hex digits.")],
    heads: Annotated[list[Path] | None, typer.Option("--head", help="Heads that other parties hold.")] = None,
) -> None:
    """Verify an audit log; needs only the file and the public key."""
    from datasites.study.audit_chain import Head, verify

    report = verify(log, key, tuple(Head.parse(path.read_bytes()) for path in heads or ()))
    out.print(report.model_dump_json(indent=2), markup=False)
    raise typer.Exit(0 if report.ok else 1)


@audit_app.command("tail")
def audit_tail(home: HomeOption, lines: Annotated[int, typer.Option("-n")] = 20) -> None:
    """The last records."""
    from collections import deque

    from datasites.hospital.config import Home
    from datasites.study.audit_chain import records

    for record in deque(records(Home.open(home).audit), maxlen=lines):
        fields = " ".join(f"{key}={value}" for key, value in record.fields.items())
        out.print(f"{record.seq} {record.time} {record.kind} {fields}", markup=False)


@audit_app.command("export")
def audit_export(home: HomeOption, target: Path) -> None:
    """Copy the log after a signed checkpoint."""
    site = _site(home)
    head = site.audit.checkpoint()
    target.write_bytes(site.home.audit.read_bytes())
    out.print(f"{target}: {head.seq} records, verify with --key {site.identity.public_key}")


if __name__ == "__main__":
    main()
