"""Which budgets are being opened: each is named in a file before the database knows it, until log and anchor do.

So a start that a kill interrupted is distinguished from a home whose audit log was lost: a population that the database
knows and the log lacks is named in such a file, or the log is not the one that this hospital wrote.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from datasites.hospital.config import Home
from datasites.study.canonical import Agreed
from datasites.study.files import replace_durably


class Opening(Agreed):
    """The population whose budget is being opened."""

    opening: str


def begin(home: Home, population: str) -> None:
    """Name it, before anything else knows it."""
    replace_durably(_path(home, population), Opening(opening=population).canonical())


def end(home: Home, population: str) -> None:
    """Log and anchor know it now."""
    _path(home, population).unlink(missing_ok=True)


def under_way(home: Home) -> frozenset[str]:
    """Return the populations whose opening has begun and not ended."""
    return frozenset(name for path in home.ledger_pending.glob("*.json") if (name := _read(path)) is not None)


def _read(path: Path) -> str | None:
    try:
        return Opening.parse(path.read_bytes()).opening
    except (FileNotFoundError, ValidationError, ValueError):
        return None  # gone meanwhile, or a line of the ledger (`pending`)


def _path(home: Home, population: str) -> Path:
    return home.ledger_pending / f"{Opening(opening=population).digest()}.json"
