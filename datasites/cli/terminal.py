"""What all commands share: options, the hospital's site, the acting person, and what is printed."""

from __future__ import annotations

import getpass
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from datasites.study.errors import InputError
from datasites.study.visible import one_line, visible

if TYPE_CHECKING:
    from datasites.hospital.config import Home
    from datasites.hospital.people.accounts import Actor
    from datasites.hospital.site import Site


class Terminal(Console):
    """Prints what it is given and nothing else: no markup, no picture for a word, no character that acts."""

    def __init__(self, file: IO[str] | None = None) -> None:
        super().__init__(file=file, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return any text that is printed, also in the cells of a table."""
        return super().render_str(visible(text), **options)


class Rows(Table):
    """A table whose cells are one line each, so that none of them passes for rows below it."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row of texts."""
        super().add_row(*(one_line(cell) if isinstance(cell, str) else cell for cell in cells), **options)


class LogLines(logging.Formatter):
    """The service's log: each record on a line of its own, and no character of it acts on a terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """Return the traceback below it."""
        return visible(super().formatException(ei))


out = Terminal()

CaseArgument = Annotated[int, typer.Argument(metavar="case")]
HomeOption = Annotated[Path, typer.Option("--home", envvar="DATASITES_HOME", help="The datasite's home folder.")]
NameOption = Annotated[str, typer.Option("--as", help="Your name, as added with `datasites person add`.")]
StdinOption = Annotated[bool, typer.Option("--password-stdin", help="Read your password from standard input.")]
ReasonOption = Annotated[
    str,
    typer.Option(
        "--reason",
        help="Why; read by people here, and in evidence bundles by others, but not sent to the researcher: no patient, "
        "no count.",
    ),
]


def group(description: str) -> typer.Typer:
    """Make a group of commands."""
    return typer.Typer(no_args_is_help=True, help=description)


def open_site(home: Path) -> Site:
    """Open the datasite in this home folder and set Django up; import rooms that need Django after this."""
    from datasites.hospital.site import Site

    return Site.open(home)


@contextmanager
def acting(home: Path, name: str, from_stdin: bool, *, enrolling: bool = False) -> Iterator[tuple[Site, Actor]]:
    """Yield the datasite, and the person who has just given their password, and a code if they have a second factor.

    From standard input each is a line. enrolling: see `identify`. Raises `PersonError`.
    """
    site = open_site(home)
    from datasites.hospital.people.accounts import identify
    from datasites.hospital.people.second_factor import has_one

    password = ask_password(from_stdin, f"Password of {name}: ")
    code = ask_password(from_stdin, f"Code of {name}'s second factor: ") if has_one(name) else ""
    yield site, identify(name, password, code=code, enrolling=enrolling)


def ask_password(from_stdin: bool, prompt: str) -> str:
    """Read a password from standard input's next line, or typed unseen on the terminal."""
    try:
        return sys.stdin.readline().rstrip("\n") if from_stdin else getpass.getpass(prompt)
    except UnicodeDecodeError:
        raise InputError("password: not UTF-8 text; type it on the terminal") from None  # the cause holds its bytes


def check_place(home: Home, target: Path) -> None:
    """Raise `InputError` where no file of its own can be written: at a folder, beside none, or among the home's files.

    A file of the home that were overwritten might be its log or its key.
    """
    if target.is_dir() or not target.parent.is_dir():
        raise InputError(f"{target}: not a file in a folder that is there; make the folder, or name a file")
    if target.resolve().is_relative_to(home.root.resolve()):
        raise InputError(f"{target}: lies in the datasite's home, among its own files; name a place outside of it")


def new_table(title: str, *columns: str) -> Rows:
    """Make an empty table."""
    table = Rows(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table
