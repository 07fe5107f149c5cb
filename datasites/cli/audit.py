"""`datasites audit`: the hash-chained log."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Annotated

import typer

from datasites.cli.terminal import HomeOption, check_place, group, open_site, out
from datasites.study.errors import InputError
from datasites.study.visible import one_line

audit = group("The audit log.")


@audit.command("verify")
def audit_verify(
    log: Path,
    key: Annotated[str, typer.Option("--key", help="The hospital's public key, 64 hex digits.")],
    heads: Annotated[list[Path] | None, typer.Option("--head", help="Heads that other parties hold.")] = None,
    logs: Annotated[
        list[Path] | None,
        typer.Option("--kept-in", help="Exports of other hospitals' logs, which may hold heads of this one."),
    ] = None,
) -> None:
    """Verify an audit log; needs only the file and the public key.

    A hospital that has written its log anew with its own key is found by heads that others hold: those that a
    researcher has, and those that other hospitals of a study keep in their own logs. Such a log is verified, too, by
    the key that it begins with: compare the fingerprint that is shown with that of its hospital. One that holds no
    head of this log shows nothing of it.
    """
    from datasites.study.audit_chain import AuditError, kept_heads, owner, read_any_head, verify_log
    from datasites.study.identity import fingerprint

    if not re.fullmatch("[0-9a-f]{64}", key):
        raise InputError("--key: not a public key of 64 hex digits; `datasites identity show` prints it")
    if not log.is_file():
        raise InputError(f"{log}: no such file; name the audit log, or a copy of it")
    try:
        held = tuple(read_any_head(path.read_bytes()) for path in heads or ())
    except (OSError, ValueError) as error:
        raise InputError(
            f"--head: not a signed head of a log ({type(error).__name__}); ask its holder again"
        ) from error
    for other in logs or ():
        try:
            email, its_key = owner(other)
            sound, kept = verify_log(other, its_key), kept_heads(other)
        except (OSError, ValueError, AuditError) as error:
            raise InputError(f"--kept-in {other}: not an audit log: {error}; ask its hospital for an export") from error
        if not sound.ok:
            raise InputError(f"--kept-in {other}: not sound: {sound.reason}; ask its hospital for an export")
        out.print(f"{other} is the log of {email}, under the key {fingerprint(its_key)}")
        mine = [head for _, head in kept if head.public_key == key]
        out.print(f"{other} holds {len(mine)} head(s) of this log")
        # As after a hospital began anew with another key; or as by one that gave its log another beginning.
        keys = {head.public_key for email, head in kept if email == _address(log)} - {key}
        for before in sorted(keys):
            out.print(f"{other} holds heads of another log of this address, under the key {fingerprint(before)}")
        held += tuple(mine)
    report = verify_log(log, key, held)
    out.print(report.model_dump_json(indent=2))
    raise typer.Exit(0 if report.ok else 1)


def _address(log: Path) -> str:
    from datasites.study.audit_chain import AuditError, owner

    try:
        return owner(log)[0]
    except AuditError:
        return ""


@audit.command("tail")
def audit_tail(
    home: HomeOption,
    lines: Annotated[int, typer.Option("-n", min=1, max=10_000)] = 20,
    kind: Annotated[str, typer.Option(help="Only records of this kind.")] = "",
    text: Annotated[str, typer.Option("--contains", help="Only records with these words in them.")] = "",
    person: Annotated[str, typer.Option(help="Only what this person did or entered.")] = "",
    since: Annotated[
        datetime.datetime | None, typer.Option(formats=["%Y-%m-%d"], help="From this day on, UTC.")
    ] = None,
    until: Annotated[datetime.datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Up to this day, UTC.")] = None,
) -> None:
    """Show the last records, oldest first."""
    from datasites.hospital.audit.pages import Filter, audit_page
    from datasites.hospital.config import Home

    log = Home.open(home).audit
    if not log.is_file():
        raise InputError(f"{log}: no such file; the datasite writes it from `datasites init` on")
    days = [None if day is None else day.date() for day in (since, until)]
    page = audit_page(log, Filter(kind, text, person, *days), size=lines)
    if page.older and len(page.records) < lines:
        out.print("(only the newest part of the log was searched)")
    for record in reversed(page.records):
        fields = " ".join(f"{key}={value}" for key, value in record.fields.items())
        out.print(one_line(f"{record.seq} {record.time} {record.kind} {fields}"))


@audit.command("export")
def audit_export(home: HomeOption, target: Path) -> None:
    """Copy the log after a signed checkpoint."""
    site = open_site(home)
    check_place(site.home, target)
    head = site.audit.checkpoint()
    try:
        # Written to and not replaced: it may be a pipe or a device.
        target.write_bytes(site.home.audit.read_bytes())
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror}); name another place") from error
    out.print(f"{target}: {head.seq} records, verify with --key {site.identity.public_key}")


@audit.command("held")
def audit_held(home: HomeOption, heads: list[Path]) -> None:
    """Compare heads that other parties hold with the log; exit code 1 where it lacks one, and then nothing runs."""
    site = open_site(home)
    from datasites.hospital.proposals.restored import hold_against
    from datasites.study.audit_chain import read_any_head

    try:
        held = [read_any_head(path.read_bytes()) for path in heads]
    except (OSError, ValueError) as error:
        raise InputError(f"not a signed head of a log ({type(error).__name__}); ask its holder again") from error
    lacking = hold_against(site, held)
    for head in lacking:
        out.print(f"not in this log: the record with hash {head.hash}")
    if lacking:
        out.print("this home was restored from a backup: settle what was charged since, `datasites budget restored`")
    else:
        out.print(f"all {len(held)} are in this log")
    raise typer.Exit(1 if lacking else 0)


@audit.command("replay")
def audit_replay(
    home: HomeOption,
    case_id: Annotated[int | None, typer.Option("--case", help="Only decisions on this case.")] = None,
) -> None:
    """Evaluate stored policy decisions again, from the facts stored with them; exit code 1 where one differs.

    Each is compared with what the present rules decide on its facts, and with its digest in the audit log. Decisions
    under another rule set (of another version, or before a local rule changed), and those of the oldest format, are
    compared with the log alone.
    """
    site = open_site(home)
    from datasites.hospital.cases.lookup import find_case
    from datasites.hospital.cases.replay import replay

    found = replay(site, None if case_id is None else find_case(case_id))
    out.print(f"{found.alike} stored decision(s) decide alike when they are evaluated again")
    if found.other_rules:
        out.print(
            f"{found.other_rules} made under another rule set than the present one: not evaluated again, but in the "
            "audit log as they are stored"
        )
    if found.older:
        out.print(
            f"{found.older} of an older format: can be shown but not evaluated again, and in the audit log as they are "
            "stored"
        )
    for difference in found.differs:
        out.print(difference)
    out.print(f"{len(found.differs)} differ(s)" if found.differs else "none differs")
    raise typer.Exit(1 if found.differs else 0)
