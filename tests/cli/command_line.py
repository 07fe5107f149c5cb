"""`datasites` as a person types it, in this process: what it prints, its exit code, and what it has changed."""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from typer.main import get_command

import datasites.cli.terminal
from datasites.hospital.config import Home
from datasites.study.audit_chain import records
from tests.hospital.desk import PASSWORD

#: Made of all functions and their types each time that the program starts, which these tests do hundreds of times.
COMMAND = get_command(datasites.cli.app)


@dataclass(frozen=True)
class Done:
    """What became of one command. printed, error: on the two streams, with its white space made one."""

    code: int
    lines: list[str]
    printed: str
    error: str


class CommandLine:
    """The command, on one home."""

    def __init__(self, home: Home, patch: pytest.MonkeyPatch) -> None:
        self.home, self._patch = home, patch
        patch.setenv("DATASITES_HOME", str(home.root))
        patch.setattr(datasites.cli.terminal.out, "width", 300)
        patch.setattr(datasites.cli, "app", COMMAND)
        patch.setattr(gc, "freeze", lambda: None)  # it is for a process that ends

    def __call__(self, *words: object, by: str = "", typed: str = f"{PASSWORD}\n") -> Done:
        """Run it. by: who acts; typed: what is typed, a password first where one is asked for."""
        line = [*map(str, words), *(("--as", by, "--password-stdin") if by else ())]
        printed, error, code = io.StringIO(), io.StringIO(), 0
        with self._patch.context() as patch, redirect_stdout(printed), redirect_stderr(error):
            patch.setattr(sys, "argv", ["datasites", *line])
            patch.setattr(sys, "stdin", io.StringIO(typed))
            try:
                datasites.cli.main()
            except SystemExit as ended:
                code = int(ended.code or 0)
        shown = printed.getvalue()
        return Done(code, shown.splitlines(), " ".join(shown.split()), " ".join(error.getvalue().split()))

    def does(self, *words: object, by: str = "", typed: str = f"{PASSWORD}\n") -> Done:
        """Run a command that succeeds."""
        done = self(*words, by=by, typed=typed)
        assert done.code == 0, done
        return done

    def refuses(self, *words: object, by: str = "", typed: str = f"{PASSWORD}\n") -> str:
        """Run a command that is refused in one line, with exit code 2, and has changed nothing; returns the line."""
        before = facts(self.home)
        done = self(*words, by=by, typed=typed)
        assert done.code == 2, done
        assert done.error.startswith("datasites: "), done
        after = facts(self.home)
        changed = {name for name in before | after if before.get(name) != after.get(name)}
        assert not changed, f"refused, and changed {changed}"
        return done.error

    def logged(self, kind: str) -> list[dict[str, Any]]:
        """Fields of all records of a kind."""
        return [dict(record.fields) for record in records(self.home.audit) if record.kind == kind]


def facts(home: Home) -> dict[str, Any]:
    """All rows of the database by table, and when all files of the home were last written, but for those of locks."""
    with connection.cursor() as cursor:
        tables = {name: _rows(cursor, name) for name in connection.introspection.table_names(cursor)}
    kept = {
        str(file.relative_to(home.root)): (written.st_ino, written.st_mtime_ns, written.st_size)
        for file, written in _files(home.root)
        if file.suffix != ".lock" and not file.name.startswith(home.database.name) and file.parent != home.run
    }
    return tables | kept


def _rows(cursor: Any, table: str) -> list[str]:
    cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
    return sorted(map(repr, cursor.fetchall()))


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All files in a folder and below it. `Path.rglob` asks three times of each."""
    for within, _, names in os.walk(folder):
        for name in names:
            file = Path(within, name)
            yield file, file.stat()


def holds(home: Home, words: str) -> bool:
    """Whether any file of the home does, the database's among them."""
    return any(words.encode() in path.read_bytes() for path in home.root.rglob("*") if path.is_file())


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """All commands by their names, as a person types them."""
    within: Any = group or COMMAND
    for name, one in within.commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, (*path, name))
        else:
            yield " ".join((*path, name)), one
