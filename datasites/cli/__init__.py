"""One command, `datasites`, for people. Thin: each command reads its arguments, calls a room, and prints.

Errors that a person can mend are one line on standard error and exit code 2; passwords are asked for on the terminal,
or read from standard input with `--password-stdin`. Modules here are called after the room that they show.

>>> from typer.testing import CliRunner
>>> from datasites.cli import app
>>> done = CliRunner().invoke(app, ["study", "check", "scripts/heart_disease/study"])  # as every hospital will
>>> done.exit_code, done.stdout.split()[-2:]
(0, ['0', 'finding(s)'])
"""

from __future__ import annotations

import gc
import io
import sys

import typer

from datasites.cli.agreements import agreements
from datasites.cli.audit import audit
from datasites.cli.budget import budget
from datasites.cli.cases import review, study
from datasites.cli.data import dataset
from datasites.cli.people import person
from datasites.cli.roster import roster
from datasites.cli.service import commands, identity
from datasites.hospital.outages import away
from datasites.study.errors import DatasitesError
from datasites.study.visible import visible
from datasites.transport.store_errors import StoreUnreachable

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A hospital's datasite, for the people who run it. Errors that you can correct are one line and exit code 2.",
)
app.add_typer(commands)
for name, group in (
    ("review", review),
    ("study", study),
    ("roster", roster),
    ("identity", identity),
    ("agreements", agreements),
    ("person", person),
    ("dataset", dataset),
    ("budget", budget),
    ("audit", audit),
):
    app.add_typer(group, name=name)


def main() -> None:
    """Run a command; turn errors of input into one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # nothing hangs on what a terminal can show
    try:
        app(standalone_mode=True)
    except Exception as error:
        outage = _store_away(error)
        error = _database_away(error) or error
        # Ours are for people; anything else is a defect and keeps its traceback.
        if not isinstance(error, DatasitesError):
            raise
        print(f"datasites: {visible(outage or str(error))}", file=sys.stderr)
        sys.exit(2)
    finally:
        gc.freeze()  # else the interpreter's end looks through all that was imported, a quarter of a second long


def _store_away(error: Exception) -> str:
    """Describe a store that can't be reached as other outages are described; return "" for any other error."""
    return away(*error.outage()) if isinstance(error, StoreUnreachable) and error.store else ""


def _database_away(error: Exception) -> Exception | None:
    """Return Django's error for an unreachable database, with a message of ours; None for any other error."""
    if not type(error).__module__.startswith("django.db"):
        return None
    from datasites.hospital.database import DATABASE_AWAY, DatabaseAway, name_of, reason_of, this_home

    home = this_home()
    return DatabaseAway(name_of(home), reason_of(home, error)) if isinstance(error, DATABASE_AWAY) else None
