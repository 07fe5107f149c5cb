"""Who withdraws is left out of the records that are trained on, whatever the table says by then, or nobody says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from datasites.enclave.worker_client import Worker
from datasites.hospital.audit.entered import EntryRefused
from datasites.hospital.budget import ledger_log
from datasites.hospital.budget.reconcile import differences
from datasites.hospital.budget.withdrawn import log_the_list
from datasites.hospital.cases import consent
from datasites.hospital.cases.case import open_case
from datasites.hospital.cases.consent import NobodyToLeaveOut, OtherSpellings, Withdrawal
from datasites.hospital.cases.encoded import partitions
from datasites.hospital.cases.examination import recheck
from datasites.hospital.cases.machine import Machine
from datasites.hospital.cases.review import ReviewError
from datasites.hospital.data import withdrawal
from datasites.hospital.data.withdrawal import NotToUndo, withdrawn
from datasites.hospital.data.withdrawal import undo as undone
from datasites.hospital.models import Proposal
from datasites.hospital.proposals import two_people
from datasites.hospital.rounds import row_work
from datasites.study import letters
from datasites.study.audit_chain import records
from datasites.transport.mailroom import Letter, Mailroom
from tests.hospital.desk import Desk, without_rehearsal
from tests.hospital.running import Running
from tests.kills import Killed, kill_before

SOMEBODY, ANOTHER = "CLEVELAND-0007", "CLEVELAND-0300"
Change = Callable[[Callable[[pd.DataFrame], pd.DataFrame]], None]


@pytest.fixture
def table(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Change]:
    """Change the hospital's table; table, records and list of withdrawals are as before after the test."""
    home = desk.site.home
    passed = {"outcome": "passed", "ticks": 20, "parameters": desk.row.approval_terms["parameters"]}
    without_rehearsal(monkeypatch, **passed)
    path = home.root / "data" / "table.csv"
    folder = home.prepared / desk.row.study_hash
    before = {kept: kept.read_bytes() for kept in (path, *folder.iterdir())}

    def change(how: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        how(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)

    yield change
    for kept, content in before.items():
        kept.write_bytes(content)
    shutil.rmtree(home.withdrawals, ignore_errors=True)


def cut_to_a_third(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.iloc[: len(rows) // 3].assign(num="0")


def renamed(how: Callable[[str], str]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda rows: rows.assign(id=rows["id"].map(how))


def withdraw(desk: Desk, patient: str, **options: Any) -> Withdrawal:
    return consent.withdraw(desk.site, desk.login("bob"), "heart", patient, "letter of the patient", **options)


def rows(desk: Desk) -> int:
    case = open_case(desk.site.home, desk.row)
    return sum(len(part.y) for part in partitions(desk.site.home, case).values())


def undo(desk: Desk, patient: str) -> Proposal:
    return two_people.propose_undoing(desk.site, desk.login("ann"), "heart", patient, "a typo")


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[set[tuple[float, ...]]]:
    """The rows that each worker is given, in order."""
    seen: list[set[tuple[float, ...]]] = []
    start = row_work.start_worker

    def started(home: Any, case: Any, parts: Any, *others: Any) -> Worker:
        seen.append({tuple(row) for part in parts.values() for row in part.x.tolist()})
        return start(home, case, parts, *others)

    monkeypatch.setattr(row_work, "start_worker", started)
    return seen


def frozen_row(running: Running, patient: str) -> tuple[float, ...]:
    with np.load(running.site.home.prepared / running.study_hash / "records.npz") as stored:
        (row,) = stored["x"][stored["patient"] == patient].tolist()
    return tuple(row)


def test_who_withdraws_after_the_table_changed_is_not_among_what_the_worker_is_given(
    running: Running, table: Change, given: list[set[tuple[float, ...]]]
) -> None:
    """The patient isn't in the table any more, and the frozen records are what is trained on."""
    theirs = frozen_row(running, ANOTHER)
    running.set_up()
    running.open(1)
    running.steps()
    table(cut_to_a_third)
    entered = withdraw(running.desk, ANOTHER)
    running.open(2)
    running.steps()
    assert running.heard(2, letters.MASKED)
    assert [theirs in rows for rows in given] == [True, False]
    assert given[0] - given[1] == {theirs}
    assert [(place.frozen, place.rows) for place in entered.places] == [(False, 0), (True, 1)]
    assert f"frozen records of case {running.row.pk} (running): 1 row(s) are left out" in entered.in_words()[1]


def test_who_withdraws_while_a_letter_is_read_is_left_out_of_its_round(
    running: Running, table: Change, given: list[set[tuple[float, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model takes minutes to come from a store far away; the log then says withdrawn before it says charged."""
    theirs = frozen_row(running, ANOTHER)
    running.set_up()
    running.steps()
    receive, during = Mailroom.receive, list[int]()

    def read(room: Mailroom, sender: str, study: str, number: int, kind: str, **most: Any) -> Letter | None:
        letter = receive(room, sender, study, number, kind, **most)
        if kind == letters.ROUND and not during:
            during.append(withdraw(running.desk, ANOTHER).patients)
        return letter

    monkeypatch.setattr(Mailroom, "receive", read)
    running.open(1)
    running.steps()
    assert during == [1]
    assert running.heard(1, letters.MASKED)
    assert theirs not in given[-1]


def test_who_is_put_back_and_withdraws_again_while_a_worker_starts_is_left_out_next(
    desk: Desk,
    table: Change,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home, case, held, seen = desk.site.home, open_case(desk.site.home, desk.row), list[int](), row_work.partitions
    withdraw(desk, SOMEBODY)

    def put_back_meanwhile(*of: Any) -> Any:
        if not held:
            two_people.confirm(desk.site, desk.login("bob"), undo(desk, SOMEBODY).pk)
        parts = seen(*of)
        held.append(sum(len(part.y) for part in parts.values()))
        return parts

    monkeypatch.setattr(row_work, "partitions", put_back_meanwhile)
    worker = SimpleNamespace(alive=False, close=lambda: setattr(worker, "alive", False))

    def started(*_: Any) -> Any:
        worker.alive = True
        return worker

    monkeypatch.setattr(row_work, "start_worker", started)
    work = row_work.RowWork(desk.site, Machine())
    work._started_worker(case, withdrawn(home, "heart"))
    withdraw(desk, SOMEBODY)
    work._started_worker(case, withdrawn(home, "heart"))
    assert held == [held[0], held[0] - 1]


def test_who_withdraws_under_another_spelling_is_found_and_people_say_whether_it_is_one(
    desk: Desk,
    table: Change,
) -> None:
    """The export writes capitals since: neither name is taken for granted before people say that both are one."""
    before = rows(desk)
    table(renamed(str.lower))
    with pytest.raises(OtherSpellings, match="1 other spelling.* table of heart.*--all-spellings"):
        withdraw(desk, SOMEBODY)
    with pytest.raises(OtherSpellings, match="frozen records of case"):
        withdraw(desk, SOMEBODY.lower())
    assert (rows(desk), withdrawn(desk.site.home, "heart")) == (before, frozenset())
    said = withdraw(desk, SOMEBODY.lower(), all_spellings=False).in_words()
    assert "none is left out; 1 under another spelling stay" in said[1]
    assert rows(desk) == before
    said = withdraw(desk, SOMEBODY.lower(), all_spellings=True).in_words()
    assert all("1 row(s)" in line for line in said)
    assert rows(desk) == before - 1
    recheck(desk.site, desk.row.pk)
    desk.row.refresh_from_db()
    assert rows(desk) == before - 1, "nor with the new table's spelling"
    (desk.site.home.withdrawals / "heart.json").unlink()
    assert rows(desk) == before - 1, "known by the log alone"
    assert SOMEBODY.lower() not in desk.site.home.audit.read_text().lower()


def test_a_withdrawal_that_finds_nobody_is_refused_unless_it_is_for_later_tables(
    desk: Desk,
    table: Change,
) -> None:
    home, before = desk.site.home, rows(desk)
    with pytest.raises(NobodyToLeaveOut, match="nobody was found.*--for-later") as caught:
        withdraw(desk, "CLEVELAND-O007")
    assert "O007" not in str(caught.value)
    assert (withdrawn(home, "heart"), logged(desk, ledger_log.WITHDRAWN)) == (frozenset(), 0)
    entered = withdraw(desk, "NEW-1", for_later=True)
    assert all("none is left out" in line for line in entered.in_words())
    for later in ("NEW-1", "new-1"):
        table(renamed(lambda name, later=later: later if name in (SOMEBODY, "NEW-1") else name))  # type: ignore[misc]
        recheck(desk.site, desk.row.pk)
        desk.row.refresh_from_db()
        assert rows(desk) == before - 1
    (home.root / "data" / "table.csv").unlink()
    assert "not read" in withdraw(desk, ANOTHER).in_words()[0]
    assert withdraw(desk, ANOTHER).patients == 2, "entered again, which a restore may ask for"


def logged(desk: Desk, kind: str) -> int:
    return sum(record.kind == kind for record in records(desk.site.home.audit))


def test_a_withdrawal_is_undone_by_two_people_before_the_next_round_and_not_after_it(
    running: Running, table: Change, given: list[set[tuple[float, ...]]]
) -> None:
    theirs, others = frozen_row(running, SOMEBODY), frozen_row(running, ANOTHER)
    site, desk = running.site, running.desk
    running.set_up()
    withdraw(desk, SOMEBODY)
    running.steps()
    starting = running.rows._starting
    assert starting is not None
    wait([starting])
    assert theirs not in given[-1]
    with pytest.raises(NotToUndo, match="nobody has withdrawn"):
        undo(desk, ANOTHER)
    entered = undo(desk, SOMEBODY)
    for name in ("ann", "cyd"):
        with pytest.raises(ReviewError, match="a different person of the other role"):
            two_people.confirm(site, desk.login(name), entered.pk)
    assert len(withdrawn(site.home, "heart")) == 1, "until the second person"
    assert "withdrawal of record" in two_people.in_words(entered)
    two_people.confirm(site, desk.login("bob"), entered.pk)
    running.open(1)
    running.steps()
    assert running.heard(1, letters.MASKED)
    assert theirs in given[-1]
    assert not list(differences(site.home))
    withdraw(desk, ANOTHER)
    late = undo(desk, ANOTHER)
    running.open(2)
    running.steps()
    assert (theirs in given[-1], others in given[-1]) == (True, False)
    with pytest.raises(NotToUndo, match="charges a round that was held without the patient"):
        two_people.confirm(site, desk.login("bob"), late.pk)
    with pytest.raises(NotToUndo, match="charges a round"):
        undo(desk, ANOTHER)
    assert SOMEBODY not in site.home.audit.read_text() + json.dumps(list(Proposal.objects.values_list("details")))


def test_undoing_that_was_killed_half_way_leaves_the_patient_out_and_may_be_confirmed_again(
    desk: Desk,
    table: Change,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home, before = desk.site.home, rows(desk)
    withdraw(desk, SOMEBODY, all_spellings=False)
    withdraw(desk, SOMEBODY.lower(), all_spellings=True)
    entered = undo(desk, SOMEBODY)
    with monkeypatch.context() as patch:
        kill_before(ledger_log, "write_anchor")(patch)
        with pytest.raises(Killed):
            two_people.confirm(desk.site, desk.login("bob"), entered.pk)
    assert rows(desk) == before - 1
    log_the_list(desk.site)  # as the next start does
    assert rows(desk) == before - 1
    assert not list(differences(home))
    two_people.confirm(desk.site, desk.login("bob"), entered.pk)
    assert (rows(desk), withdrawn(home, "heart")) == (before, frozenset())
    log_the_list(desk.site)
    assert (rows(desk), list(differences(home))) == (before, [])


def test_one_person_undoes_no_later_withdrawal_by_an_entry_that_is_older(
    desk: Desk,
    table: Change,
) -> None:
    """Two entries waited for one withdrawal; it was undone by the one, and the patient withdrew again."""
    before = rows(desk)
    withdraw(desk, SOMEBODY, all_spellings=False)
    older = undo(desk, SOMEBODY)
    withdraw(desk, SOMEBODY)
    with pytest.raises(NotToUndo, match="once more"):
        two_people.confirm(desk.site, desk.login("bob"), older.pk)
    two_people.withdraw(desk.site, desk.login("bob"), older.pk)
    both = undo(desk, SOMEBODY)
    two_people.confirm(desk.site, desk.login("bob"), both.pk)
    assert rows(desk) == before
    withdraw(desk, SOMEBODY)
    terms = both.details
    with pytest.raises(NotToUndo, match="once more"):
        undone(desk.site, terms["populations"], terms["commitments"], terms["record"], ("ann", "bob"), "the old one")
    assert rows(desk) == before - 1


def test_a_withdrawal_that_was_killed_before_its_record_is_not_undone_after_a_round(
    running: Running, table: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = running.desk
    with monkeypatch.context() as patch:
        kill_before(withdrawal, "_log")(patch)
        with pytest.raises(Killed):
            withdraw(desk, SOMEBODY)
    running.set_up()
    entered = undo(desk, SOMEBODY)
    running.open(1)
    running.steps()
    for _ in range(2):
        with pytest.raises(NotToUndo, match="charges a round that was held without the patient"):
            two_people.confirm(running.site, desk.login("bob"), entered.pk)
        log_the_list(running.site)  # as the next start does


def test_an_undoing_that_somebody_typed_into_the_database_counts_for_nothing(
    desk: Desk,
    table: Change,
) -> None:
    withdraw(desk, SOMEBODY)
    withdraw(desk, ANOTHER)
    entered = undo(desk, SOMEBODY)
    other = undo(desk, ANOTHER)
    entered.details = other.details
    entered.save()
    with pytest.raises(EntryRefused, match="is not what was entered"):
        two_people.confirm(desk.site, desk.login("bob"), entered.pk)
    assert len(withdrawn(desk.site.home, "heart")) == 2
