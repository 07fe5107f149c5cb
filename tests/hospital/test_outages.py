"""The database goes away at every single query and commit of a study's round: nothing is lost, nothing is done twice.

On SQLite the query fails as a locked or unreachable file does. On PostgreSQL (`test_postgresql` runs this file there)
the server ends the session before the query; and a commit is carried out by the server while its answer is lost.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest
from django.db import InterfaceError, OperationalError, connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from datasites.control.syft import HospitalControl
from datasites.hospital.budget import ledger_log, pending
from datasites.hospital.budget.reconcile import require_one_story
from datasites.hospital.cases import compliance
from datasites.hospital.database import DATABASE_AWAY, let_go
from datasites.hospital.models import Case, LedgerEntry, Review, Round
from datasites.hospital.rounds import row_work
from datasites.hospital.service import Service
from datasites.hospital.site import Site
from datasites.study import letters
from datasites.study.audit_chain import records
from policies.engine import Decision
from tests.hospital.conftest import HEART
from tests.hospital.desk import Desk, all_taken_in, job, without_rehearsal
from tests.hospital.running import Running

#: The same model as other bytes, so another study.
MODEL = (HEART / "study" / "model.py").read_bytes() + b"\n\n"

Result = TypeVar("Result")


def end_session() -> None:
    """End this thread's session at the server, if there is one."""
    if connection.vendor == "postgresql" and connection.connection is not None:
        import psycopg

        pid = connection.connection.info.backend_pid
        with psycopg.connect(connection.connection.info.dsn, password=connection.settings_dict["PASSWORD"]) as other:
            other.execute("select pg_terminate_backend(%s, 5000)", [pid])


#: Before a query; after it, so that nobody knows whether it was done; and after a commit, likewise.
KINDS = ("query", "answer", "commit")
COMMIT = BaseDatabaseWrapper._commit


class Outage:
    """The database goes away at these places of this thread, counted by kind."""

    def __init__(self, kind: str, places: Iterable[int]) -> None:
        self.kind, self.places = kind, frozenset(places)
        self.count = self.struck = 0
        self.thread = threading.get_ident()

    def _here(self) -> None:
        self.count += 1
        if self.count in self.places:
            self.struck += 1
            end_session()
            if connection.vendor != "postgresql" or self.kind != "query":
                raise OperationalError("server closed the connection unexpectedly")

    def around_query(self, execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        if self.kind == "query":
            self._here()
        result = execute(sql, *arguments)
        if self.kind == "answer" and not connection.in_atomic_block:
            self._here()
        return result

    def around_commit(self, wrapper: BaseDatabaseWrapper) -> None:
        COMMIT(wrapper)
        if self.kind == "commit" and threading.get_ident() == self.thread:
            self._here()

    def strikes(self, act: Callable[[], Result]) -> Result:
        """Do `act` while it may strike, and again where it has, as the service's loop does."""
        with pytest.MonkeyPatch.context() as patch, connection.execute_wrapper(self.around_query):
            patch.setattr(BaseDatabaseWrapper, "_commit", lambda wrapper: self.around_commit(wrapper))
            while True:
                before = self.struck
                try:
                    return act()
                except DATABASE_AWAY:
                    assert self.struck > before
                    let_go()


def places(kind: str, seed: int) -> list[int]:
    """Places all over a study. It commits three transactions, and asks some hundred queries: the more, the longer it
    waits for its work on rows.
    """
    if kind == "commit":
        return list(range(1, 1000, 2))
    draw = random.Random(seed)
    return list(itertools.accumulate(draw.randint(2, 10) for _ in range(500)))


def study_under(running: Running, outage: Outage, *, rounds: int = 1) -> None:
    """Setup, rounds and closing of a study at a hospital whose database goes away in between."""
    step = running.run.step
    running.run.step = lambda: outage.strikes(step)  # type: ignore[method-assign]
    running.set_up()
    for number in range(1, rounds + 1):
        manifest = running.open(number)
        running.steps()
        running.survive(manifest)
        running.steps()
    running.tell(0, letters.CLOSE, {"rounds": rounds})
    running.steps()


def require_whole(running: Running, rounds: int = 1) -> None:
    """Everything that the study called for was done, once."""
    numbers = list(range(1, rounds + 1))
    for number in numbers:
        assert running.heard(number, letters.MASKED)
        assert running.heard(number, letters.UNMASK)
        assert running.heard(number, letters.ABSTAINED) is None
    assert running.heard(0, letters.ACCOUNT)
    for kind in ("charged", "released", "unmasked"):
        assert [record.fields["round"] for record in running.logged(kind)] == numbers, kind
    assert len(running.logged("closed")) == 1
    assert Case.objects.get(pk=running.row.pk).state == Case.State.CLOSED
    assert set(Round.objects.values_list("state", flat=True)) == {Round.State.UNMASKED}
    assert all(len(record.survivors) == 4 for record in Round.objects.all())
    require_one_book(running.site)


def require_one_book(site: Site) -> None:
    """Database and log tell one story, each line stands once, and none is left half written."""
    lines = list(LedgerEntry.objects.values_list("population", "partition", "study_hash", "kind", "round"))
    assert len(set(lines)) == len(lines)
    assert not list(site.home.ledger_pending.glob("*.json"))
    ledger_log.forget(site.home)
    require_one_story(site.home)


def again_and_again(running: Running, kind: str, seed: int) -> None:
    outage = Outage(kind, places(kind, seed))
    study_under(running, outage)
    assert outage.struck >= (2 if kind == "commit" else 10)
    require_whole(running)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_database_that_goes_away_again_and_again_in_a_study_costs_nothing(running: Running, kind: str) -> None:
    again_and_again(running, kind, seed=16)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_database_that_goes_away_anywhere_costs_nothing(running: Running, kind: str, seed: int) -> None:
    again_and_again(running, kind, seed)


def test_work_on_rows_waits_for_the_database(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study is not stopped, and nothing tells that it was: the work takes longer."""
    monkeypatch.setattr(row_work, "RETRY", 0.05)
    failures = iter([OperationalError("connection refused"), InterfaceError("connection already closed")])

    def partitions(*arguments: Any) -> Any:
        for error in failures:
            raise error
        return read(*arguments)

    read = row_work.partitions
    monkeypatch.setattr(row_work, "partitions", partitions)
    study_under(running, Outage("query", ()))
    require_whole(running)
    assert next(failures, None) is None


@pytest.mark.parametrize("kind", KINDS[:2])
def test_an_abstention_is_decided_logged_and_said_once(
    running: Running,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """The database goes away once it is logged; asked again, the policies would allow the round."""
    outage, decided = Outage(kind, ()), iter([True])

    def denies_once(decision: Decision, *arguments: Any) -> None:
        if next(decided, False):
            raise compliance.Denied(decision)

    def append_once(written: str, /, **fields: Any) -> None:
        write(written, **fields)
        if written == "abstained":
            outage.places = frozenset({outage.count + 1})

    write = running.site.audit.append_once
    monkeypatch.setattr(running.site.audit, "append_once", append_once)
    running.set_up()
    monkeypatch.setattr(compliance, "require", denies_once)
    running.open(1)
    step = running.run.step
    running.run.step = lambda: outage.strikes(step)  # type: ignore[method-assign]
    running.steps()
    assert outage.struck == 1
    assert [record.fields["outcome"] for record in running.logged("abstained")] == ["denied"]
    assert not running.logged("charged")
    assert running.heard(1, letters.ABSTAINED)
    assert running.heard(1, letters.MASKED) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_approval_that_is_interrupted_anywhere_can_be_done_again(desk: Desk, kind: str) -> None:
    """One reservation, whatever broke: the person reads the case again, and approves it again where it is not."""
    desk.agree()
    outage = Outage(kind, range(3, 400, 23) if kind != "commit" else range(1, 9))

    def approve(name: str) -> None:
        if not Review.objects.filter(person__username=name).exists():
            desk.approve(name)

    for name in ("ann", "bob"):
        outage.strikes(functools.partial(approve, name))
    assert outage.struck >= 2
    assert Case.objects.get(pk=desk.row.pk).state == Case.State.APPROVED
    pending.finish_all(desk.site)
    assert {row.kind for row in LedgerEntry.objects.all()} == {"reserve"}
    assert Review.objects.count() == 2
    require_one_book(desk.site)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(KINDS[0], marks=pytest.mark.long), KINDS[1]])
def test_a_submission_that_is_interrupted_anywhere_becomes_one_case(
    desk: Desk,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """It is examined to its end, and logged once as received."""
    sent = dataclasses.replace(job(), name="heart-again", files={**job().files, "model.py": MODEL})
    monkeypatch.setattr(
        HospitalControl, "next_job", lambda _, known, order: None if (sent.name, sent.submitted_by) in known else sent
    )
    monkeypatch.setattr("datasites.hospital.outages.RETRY", 0.0)
    without_rehearsal(monkeypatch)
    outage = Outage(kind, itertools.accumulate(range(3, 30, 3)))
    begins = desk.site.audit.head().seq
    in_threads: list[str] = []

    def opened(connection: BaseDatabaseWrapper, **_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            in_threads.append(threading.current_thread().name)
            connection.execute_wrappers.append(outage.around_query)

    connection_created.connect(opened)
    try:
        with connection.execute_wrapper(outage.around_query):
            for _ in range(12):
                all_taken_in(service)
    finally:
        connection_created.disconnect(opened)
    assert outage.struck >= 3
    assert len(in_threads) >= 2, "it struck only where submissions are not examined"
    (row,) = Case.objects.filter(job_name="heart-again")
    assert row.state == Case.State.REVIEW
    assert row.rehearsal
    all_taken_in(service)  # of what was interrupted nothing is left to be taken again
    mine = [r for r in records(desk.site.home.audit) if r.seq > begins and r.fields.get("case") == row.pk]
    assert [r.kind for r in mine if r.kind in ("received", "examined")] == ["received", "examined"]
