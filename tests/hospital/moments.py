"""A home as it was at a moment at which many tests begin: made once in a process, and put back for each of them."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from django.db import connection

from datasites.hospital.audit.log import head_file
from datasites.hospital.budget import ledger_log
from datasites.hospital.config import Home


class Moments:
    """Moments of one home, by name. folder: where its copies lie. On another database than SQLite each is made anew."""

    def __init__(self, home: Home, folder: Path) -> None:
        self._home, self._folder = home, folder

    def at(self, name: str, make: Callable[[], object]) -> None:
        """Put the home back to the moment of this name; the first time `make` leads to it."""
        kept = self._folder / name
        if kept.exists():
            self._put_back(kept)
        else:
            make()
            if connection.vendor == "sqlite":
                self._keep(kept)

    def _changing(self) -> tuple[Path, ...]:
        """All that tests change, beside the tables; what they prepare and work out serves the next one too."""
        home = self._home
        logs = (home.audit, head_file(home.audit), home.anchors, home.ledger_pending, home.unknown_heads, home.fork)
        return (*logs, home.secagg, home.identities, home.bindings, home.roster, home.registry, home.ready)

    def _keep(self, kept: Path) -> None:
        kept.mkdir(parents=True)
        for path in self._changing():
            if path.is_dir():
                shutil.copytree(path, kept / path.name)
            elif path.exists():
                shutil.copy2(path, kept / path.name)
        _copy_tables(self._home.database, kept / "tables")

    def _put_back(self, kept: Path) -> None:
        for path in self._changing():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            if (kept / path.name).is_dir():
                shutil.copytree(kept / path.name, path)
            elif (kept / path.name).exists():
                shutil.copy2(kept / path.name, path)
        ledger_log.forget(self._home)
        _copy_tables(kept / "tables", self._home.database)


def _copy_tables(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as there, closing(sqlite3.connect(target)) as here:
        there.backup(here)
