"""The home that commands run on: that of the hospital's own tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from every_command import Desk as EveryDesk
from every_command import Run, every_command

from tests.hospital.conftest import (
    HEART,
    database,
    desk,
    encoded,
    examined,
    furnished,
    home,
    one_hash_per_password,
    one_process_to_read_and_one_to_price,
    own,
    running,
    site,
    versions_read_once,
)
from tests.study.entries import entry_of

if TYPE_CHECKING:
    from tests.cli.command_line import CommandLine
    from tests.hospital.desk import Desk

__all__ = [
    "database",
    "desk",
    "encoded",
    "examined",
    "furnished",
    "home",
    "one_hash_per_password",
    "one_process_to_read_and_one_to_price",
    "own",
    "running",
    "site",
    "versions_read_once",
]


@pytest.fixture
def datasites(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandLine]:
    """The command, on the home of `desk`, where ann is steward, bob privacy officer and dee auditor."""
    from tests.cli.command_line import CommandLine

    yield CommandLine(desk.site.home, monkeypatch)
    (desk.site.home.root / "KILLED").unlink(missing_ok=True)


@pytest.fixture
def runs(desk: Desk, tmp_path: Path) -> list[Run]:
    """Every command on the hospital's home."""
    from datasites.hospital.models import Case
    from tests.hospital.desk import PASSWORD, values_of

    desk.agree()
    home, row = desk.site.home, desk.row
    entry = entry_of(desk.site.identity, organisation=home.settings.organisation)
    home.roster_entry.write_bytes(entry.canonical())
    second = Case.objects.create(**{**values_of(row), "job_name": "heart-2"})
    about = EveryDesk(
        home=home.root,
        study=HEART / "study",
        steward="ann",
        officer="bob",
        passwords=(PASSWORD, PASSWORD),
        case_id=row.pk,
        hash=row.approval_hash,
        second=second.pk,
        dataset="heart",
        population="heart",
        organisation=home.settings.organisation,
    )
    return list(every_command(about, tmp_path))
