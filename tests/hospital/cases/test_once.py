"""What is done once for an act of people, and what is not done again: opening, pricing, deciding, rehearsing."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datasites.hospital.budget import accounting, ledger
from datasites.hospital.cases import case, compliance, examination, rehearsal, review
from datasites.hospital.cases.case import OpenCase, open_case
from datasites.hospital.cases.views import view_case
from datasites.hospital.config import Home
from datasites.hospital.models import Case
from policies.engine import Engine
from tests.hospital.desk import Desk
from tests.hospital.unequal import manifest_of


def count(monkeypatch: pytest.MonkeyPatch, done: Counter[str], room: Any, name: str) -> None:
    """Count calls of a function."""
    real = getattr(room, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        done[name] += 1
        return real(*arguments, **options)

    monkeypatch.setattr(room, name, counted)


@pytest.fixture
def rehearsals(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Of which cases a rehearsal was held; each passes. Table and mock are as before after the test."""
    held: list[int] = []

    def passed(home: Home, case: OpenCase, *_: Any) -> dict[str, object]:
        held.append(case.row.pk)
        return {"outcome": "passed", "ticks": 20, "parameters": 9}

    monkeypatch.setattr(rehearsal, "_rehearse", passed)
    files = [desk.site.home.root / "data" / name for name in ("table.csv", "mock.csv")]
    before = {path: path.read_bytes() for path in files}
    yield held
    for path, content in before.items():
        path.write_bytes(content)


def _without_last_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def test_a_rehearsal_that_passed_is_not_held_again_and_shows_nothing_of_the_table(
    desk: Desk,
    rehearsals: list[int],
) -> None:
    """Else how long an examination takes would tell whether a patient has left the table (I16)."""
    shown, approved_as = desk.row.rehearsal, desk.row.approval_hash
    row = examination.recheck(desk.site, desk.row.pk)
    assert (row.state, row.rehearsal, row.approval_hash) == (Case.State.REVIEW, shown, approved_as)
    _without_last_line(desk.site.home.root / "data/table.csv")
    row = examination.recheck(desk.site, desk.row.pk)
    assert (row.state, row.rehearsal) == (Case.State.REVIEW, shown)
    assert row.approval_hash != approved_as, "it is of other records"
    assert rehearsals == []


@pytest.mark.parametrize("other", ["mock", "limits", "declared", "seconds", "dependencies", "machine", "failed"])
def test_a_rehearsal_of_anything_else_is_held_again(
    desk: Desk,
    rehearsals: list[int],
    monkeypatch: pytest.MonkeyPatch,
    other: str,
) -> None:
    site, home = desk.site, desk.site.home
    settings = home.settings
    if other == "mock":
        _without_last_line(home.root / "data/mock.csv")
    elif other == "limits":
        settings = settings.model_copy(update={"sandbox": settings.sandbox.model_copy(update={"threads": 2})})
    elif other == "declared":
        datasets = tuple(one.model_copy(update={"declared_records": 400}) for one in settings.datasets)
        settings = settings.model_copy(update={"datasets": datasets})
    elif other == "seconds":
        settings = settings.model_copy(update={"round_seconds": 1.0})
    elif other == "dependencies":
        monkeypatch.setattr(case, "dependencies", lambda: {"torch": "another"})
    elif other == "machine":
        monkeypatch.setattr(rehearsal.os, "cpu_count", lambda: 999)
    else:
        Case.objects.filter(pk=desk.row.pk).update(rehearsal={**desk.row.rehearsal, "outcome": "failed"})
    examination.recheck(dataclasses.replace(site, home=dataclasses.replace(home, settings=settings)), desk.row.pk)
    assert rehearsals == [desk.row.pk]


def test_a_rehearsal_rests_on_the_mock_rows_that_were_read_for_it(
    desk: Desk,
    rehearsals: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is written into their file meanwhile."""
    desk.forget_rehearsal()
    rehearse, mock = rehearsal._rehearse, desk.site.home.root / "data/mock.csv"
    whole = mock.read_bytes()

    def written_meanwhile(*arguments: Any) -> dict[str, Any]:
        _without_last_line(mock)
        return rehearse(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(rehearsal, "_rehearse", written_meanwhile)
        examination.recheck(desk.site, desk.row.pk)
    assert len(rehearsals) == 1
    examination.recheck(desk.site, desk.row.pk)
    assert len(rehearsals) == 2, "it was held on the mock as it was read"
    mock.write_bytes(whole)
    examination.recheck(desk.site, desk.row.pk)
    assert len(rehearsals) == 3


def test_a_case_is_opened_priced_and_decided_once_for_an_approval(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk.agree()
    person, done = desk.login("ann"), Counter[str]()
    count(monkeypatch, done, review, "open_case")
    count(monkeypatch, done, compliance, "_gather")
    count(monkeypatch, done, Engine, "decide")
    count(monkeypatch, done, ledger, "accounts_of")
    count(monkeypatch, done, accounting._Accountant, "ask")
    review.approve(desk.site, desk.row.pk, person, "read it", desk.row.approval_hash)
    assert done == {"open_case": 1, "_gather": 1, "decide": 1, "accounts_of": 1}, (
        "what it costs was priced when it was examined"
    )


def test_rounds_are_gated_and_shown_by_what_was_priced_when_the_study_was_examined(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that no round waits for the accountant's library."""
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")
    site, done = desk.site, Counter[str]()
    count(monkeypatch, done, accounting._Accountant, "ask")
    case = open_case(site.home, Case.objects.get(pk=desk.row.pk))
    for number in range(1, case.study.rounds + 2):
        manifest = manifest_of(case, number)
        compliance._budget(case, manifest)
        ledger.charge(site, case.dataset, case.row.study_hash, number, case.round_asked(manifest))
        ledger.state(case.dataset)
    view = view_case(site.home, case.row)
    assert view.examined is not None
    assert view.examined.privacy
    ledger.study_charged(case.dataset, case.row.study_hash, case.priced_delta)
    assert not done
