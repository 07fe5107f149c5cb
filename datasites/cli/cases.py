"""`datasites review` and `datasites study`: cases to decide on, and studies that run."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datasites.cli.terminal import (
    CaseArgument,
    HomeOption,
    NameOption,
    ReasonOption,
    StdinOption,
    acting,
    group,
    new_table,
    open_site,
    out,
)
from datasites.study.errors import DatasitesError

if TYPE_CHECKING:
    from datasites.hospital.cases.inbox import InboxLine

#: Seconds between two looks into the database of one who waits for a case.
_LOOKS = 0.1

review = group("Cases: read, approve, reject.")
study = group("Studies: check a folder; pause, resume, sit out, rejoin or revoke one that runs.")


@review.command("list")
def review_list(
    home: HomeOption,
    name: Annotated[str, typer.Option("--for", help="Whose work it is: a name as added with `person add`.")] = "",
    contains: Annotated[str, typer.Option(help="Only cases whose title, organisation or sender hold this.")] = "",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Show all cases: what waits for a decision, what can't be approved and why, what is done; newest first."""
    open_site(home)
    from datasites.hospital.cases.inbox import cases_for
    from datasites.hospital.people.accounts import find_reader

    person = find_reader(name) if name else None
    groups = cases_for(person.pk if person else None, person.role if person else "", contains=contains)
    lines = [line for group in groups.values() for line in group]
    if as_json:
        lines.sort(key=lambda line: -line.row.pk)
        print(json.dumps([_as_json(line) for line in lines]))
        return
    table = new_table("", "case", "study", "state", "approval hash", "waits for", "title", "from", "note")
    for line in lines:
        row = line.row
        whose = {"you": name, "others": ", ".join(line.missing), "blocked": "nobody", "done": ""}[line.group]
        note = " ".join(line.obstacles) or row.remark
        table.add_row(
            str(row.pk), row.study_name, row.state, row.approval_hash[:12], whose, line.title, row.submitted_by, note
        )
    out.print(table)


def _as_json(line: InboxLine) -> dict[str, Any]:
    row, summary = line.row, line.summary
    return {
        "case": row.pk,
        "study": row.study_name,
        "title": line.title,
        "organisation": summary.organisation if summary else "",
        "state": row.state,
        "group": line.group,
        "waits_for": line.missing,
        "obstacles": line.obstacles,
        "hash": row.approval_hash,
        "study_hash": row.study_hash,
        "from": row.submitted_by,
        "note": row.remark,
    }


@review.command("wait")
def review_wait(
    home: HomeOption,
    study_hash: Annotated[str, typer.Argument(help="The study's hash, as its researcher names it.")],
    seconds: Annotated[float, typer.Option(min=0, help="Longest time to wait, in seconds.")] = 600.0,
) -> None:
    """Wait until a submitted study can be reviewed; prints its case."""
    open_site(home)
    from datasites.hospital.models import Case

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        row = Case.objects.filter(study_hash=study_hash).exclude(state=Case.State.REFUSED).first()
        if row is not None and row.state != Case.State.INTAKE:
            print(row.pk)
            return
        # What can't be read as a study has no hash but that of its name.
        refused = Case.objects.filter(state=Case.State.REFUSED, job_name__endswith=f"-{study_hash[:12]}").first()
        stuck = refused if row is None else row
        if stuck is not None and stuck.note:
            raise DatasitesError(f"case {stuck.pk}: was not taken in: {stuck.note}")
        time.sleep(_LOOKS)
    raise DatasitesError(f"study {study_hash[:12]}: was not taken in within {seconds:.0f} s")


@review.command("show")
def review_show(home: HomeOption, case_id: CaseArgument) -> None:
    """Show everything that a decision is based on: terms, code, findings, policies, rehearsal, budget."""
    site = open_site(home)
    from datasites.hospital.cases.as_text import describe

    out.print(describe(site, case_id))


@review.command("approve")
def review_approve(
    home: HomeOption,
    case_id: CaseArgument,
    name: NameOption,
    reason: ReasonOption,
    hash: Annotated[str, typer.Option("--hash", help="The approval hash that `review show` showed you.")],
    password_stdin: StdinOption = False,
) -> None:
    """Approve exactly what was shown; a study runs once a steward and a privacy officer have approved it."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.cases import review

        row = review.approve(site, case_id, person, reason, hash)
    out.print(f"case {case_id}: approved by {name}; it is {row.state}")


@review.command("reject")
def review_reject(
    home: HomeOption,
    case_id: CaseArgument,
    name: NameOption,
    message: Annotated[
        str, typer.Option("--tell", help="What the researcher reads, word for word: no patient, no count.")
    ],
    reason: ReasonOption,
    password_stdin: StdinOption = False,
) -> None:
    """Reject a case; the researcher reads the words of `--tell`, not the reason."""
    with acting(home, name, password_stdin) as (site, person):
        from datasites.hospital.cases import review

        review.reject(site, case_id, person, reason, message=message)
    out.print(f"case {case_id}: rejected")


@review.command("recheck")
def review_recheck(home: HomeOption, case_id: CaseArgument) -> None:
    """Recheck an unapproved case, after data, mapping or agreements have changed."""
    site = open_site(home)
    from datasites.hospital.cases.examination import recheck

    row = recheck(site, case_id)
    out.print(f"case {case_id}: {row.state} {row.remark}")


def _lifecycle(action: str, description: str) -> None:
    def command(
        home: HomeOption,
        case_id: CaseArgument,
        name: NameOption,
        reason: ReasonOption,
        password_stdin: StdinOption = False,
    ) -> None:
        with acting(home, name, password_stdin) as (site, person):
            from datasites.hospital.rounds import lifecycle

            row = getattr(lifecycle, action.replace("-", "_"))(site, case_id, person, reason)
        out.print(f"case {case_id}: {row.state}")

    study.command(action, help=description)(command)


_lifecycle("pause", "Pause a study; effective before the next round.")
_lifecycle(
    "resume",
    "Resume a study that was paused or stopped; a round whose work has failed is tried again. The researcher sees "
    "that the study continues.",
)
_lifecycle(
    "sit-out",
    "Continue a stopped study without the round whose work has failed. The researcher reads that this hospital sat "
    "it out, but not why.",
)
_lifecycle("revoke", "End a study here for good; effective before the next round.")
_lifecycle(
    "rejoin",
    "Delete a stopped study's keys and continue in a new epoch, once the researcher starts it; for a journal that was "
    "restored from a backup or damaged.",
)


@study.command("rounds")
def study_rounds(home: HomeOption, case_id: CaseArgument) -> None:
    """Show the rounds of a study at this hospital: what each cost, who was away, what was sent, and what is next."""
    site = open_site(home)
    from datasites.hospital.cases.lookup import find_case
    from datasites.hospital.rounds.progress import progress

    row = find_case(case_id)
    shown = progress(site.home, row)
    lines = [line for page in range(shown.pages, 1, -1) for line in progress(site.home, row, page).lines[::-1]]
    table = new_table(
        "", "round", "state", "began (UTC)", "epsilon so far", "away", "steps", "seconds", "sent", "reason"
    )
    for line in (*lines, *shown.lines[::-1]):
        r = line.round
        away = "?" if line.away is None else ", ".join(line.away) or "nobody"
        sent = str(r.release.get("sha256", ""))[:12]
        began = f"{r.at:%Y-%m-%d %H:%M:%S}"
        name = f"{r.round} (evaluation)" if line.is_final else str(r.round)
        table.add_row(name, line.state, began, line.cost, away, str(r.steps), f"{r.seconds:.2f}", sent, r.reason)
    out.print(table)
    out.print(f"{shown.summary}. Next: {shown.next}")


@study.command("plan")
def study_plan(folder: Path, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Show what a study costs, and for each threshold the dropouts tolerated and the noise beyond what is priced.

    In distributed mode it names the noise that fits where the study leaves it out or asks for too little.
    """
    from datasites.researcher.study import Study

    plan = Study.load(folder).plan()
    if as_json:
        print(json.dumps([dataclasses.asdict(choice) for choice in plan.choices()]))
        return
    out.print(str(plan))
    names = (
        "threshold",
        "dropouts",
        "honest",
        "noise, all survive",
        "noise, least survive",
        "epsilon (PLD)",
        "local epsilon (RDP)",
    )
    table = new_table("", *names)
    for choice in plan.choices():
        mark = "*" if choice.threshold == plan.threshold else ""
        table.add_row(
            f"{choice.threshold}{mark}",
            str(choice.dropouts),
            str(choice.honest),
            *("-" if factor is None else f"{factor:.3f}" for factor in (choice.noise_if_all, choice.noise_at_least)),
            f"{choice.epsilon:.3f}",
            f"{choice.local_epsilon:.3f}",
        )
    out.print(table)


@study.command("check")
def study_check(folder: Path, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Check a study folder as every hospital will; exit code 0 only when it is clean."""
    from datasites.researcher.study import Study

    study = Study.load(folder)
    findings = study.check()
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            out.print(str(finding))
        out.print(f"study {study.terms.name} {study.hash}: {len(findings)} finding(s)")
    raise typer.Exit(1 if findings else 0)
