"""Submissions that are meant to break intake, and decisions that people make while a case is examined (I14)."""

from __future__ import annotations

import dataclasses
import datetime
import re
from typing import Any

import pytest

from datasites.enclave.worker_client import Worker, WorkerError
from datasites.hospital.budget import ledger
from datasites.hospital.cases import compliance, examination, review
from datasites.hospital.cases.case import open_case
from datasites.hospital.cases.encoded import stage_records
from datasites.hospital.cases.review import ReviewError
from datasites.hospital.config import Home
from datasites.hospital.data import records as encoded
from datasites.hospital.data.reading import TableReader
from datasites.hospital.isolated.process import ApartFailed
from datasites.hospital.models import Case, Review
from datasites.hospital.people.agreements import terminate_agreement
from datasites.hospital.site import Site
from datasites.privacy.plan import PlanError, PrivacyPlan
from datasites.study.audit_chain import records
from datasites.study.errors import InputError
from policies.registry import RegistryFile
from tests.hospital.conftest import HEART
from tests.hospital.desk import Desk, job


@pytest.mark.parametrize(
    "terms", [b"x = " + b"[" * 5000 + b"]" * 5000, b"rounds = " + b"9" * 5000, b"x = 1" + b"e9" * 9, b"\xff\xfe"]
)
def test_terms_that_break_a_parser_are_refused_with_a_reason(database: Home, furnished: Home, terms: bytes) -> None:
    row = examination.admit(Site.open(furnished.root), job(**{"study.toml": terms}))
    assert row.state == Case.State.REFUSED
    assert row.note


def test_numbers_beyond_any_policy_can_not_be_approved_and_can_be_rejected(desk: Desk) -> None:
    """A cohort of 2e12 patients breaks the facts of every decision; the case stays one that people can reject."""
    terms = (HEART / "study" / "study.toml").read_text()
    old = next(line for line in terms.splitlines() if line.startswith("min_patients"))
    sent = job(**{"study.toml": terms.replace(old, "min_patients = 2000000000000").encode()})
    row = examination.admit(desk.site, dataclasses.replace(sent, name="heart-2"))
    assert row.state in (Case.State.REFUSED, Case.State.REVIEW)
    assert row.note
    if row.state == Case.State.REVIEW:
        desk.agree()
        with pytest.raises(Exception):  # noqa: B017 (whatever it is, it does not approve)
            review.approve(desk.site, row.pk, desk.login("ann"), "read it", row.approval_hash)
        assert not Review.objects.exists()
        assert (
            review.reject(desk.site, row.pk, desk.login("ann"), "no such cohort", message="no").state
            == Case.State.REJECTED
        )


def test_an_error_that_nobody_foresaw_is_a_reason_without_its_words(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def quotes(*_: object) -> None:
        raise TypeError("could not convert 'Mrs Smith' to a number")

    monkeypatch.setattr(examination, "stage_records", quotes)
    row = examination.recheck(desk.site, desk.row.pk)
    assert row.state == Case.State.INTAKE
    assert "TypeError" in row.note
    assert "Smith" not in row.note


def test_a_table_that_breaks_its_reader_shows_in_no_rehearsal_and_no_record(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the log, whose heads leave, would tell of the table (I16): the mock is read before it."""
    acts: list[str] = []
    read_mock, whole = TableReader.mock, TableReader.records

    def mock(*of: Any) -> Any:
        acts.append("mock")
        return read_mock(*of)

    def records_of(*of: Any) -> Any:
        acts.append("table")
        if "breaks" in acts:
            raise ApartFailed("table.csv: the process that works on it ended with SIGSEGV; export it anew")
        return whole(*of)

    def rehearse(home: Any, case: Any, mock: Any, *_: Any) -> dict[str, object]:
        acts.append(type(mock).__name__)
        return {"outcome": "passed", "ticks": 1, "parameters": 9}

    monkeypatch.setattr(TableReader, "mock", mock)
    monkeypatch.setattr(TableReader, "records", records_of)
    monkeypatch.setattr(examination, "rehearse_once", rehearse)
    logged = []
    for states in (Case.State.REVIEW, Case.State.INTAKE):
        begins = desk.site.audit.head().seq
        row = examination.recheck(desk.site, desk.row.pk)
        assert row.state == states
        assert acts[-3:] == ["mock", "table", "Partition"]
        found = [r for r in records(desk.site.audit.path) if r.seq > begins]
        logged.append([(r.kind, r.fields.get("rehearsal"), r.fields.get("allowed")) for r in found])
        acts.append("breaks")
    assert "SIGSEGV; export it anew" in row.note
    assert logged[0] == logged[1]


@pytest.mark.parametrize("act", ["reject", "approve"])
def test_what_people_decide_while_a_case_is_examined_stands(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    act: str,
) -> None:
    desk.agree()

    def meanwhile(*_: Any) -> dict[str, object]:
        if act == "reject":
            review.reject(desk.site, desk.row.pk, desk.login("ann"), "too broad", message="no")
        else:
            desk.approve("ann")
            desk.approve("bob")
            Case.objects.filter(pk=desk.row.pk).update(recorded_in_syft=True)
        return {"outcome": "failed", "reason": "the mock has changed"}

    monkeypatch.setattr(examination, "rehearse_once", meanwhile)
    row = examination.recheck(desk.site, desk.row.pk)
    assert row.state == (Case.State.REJECTED if act == "reject" else Case.State.APPROVED)
    assert row.rehearsal["outcome"] == "passed"
    if act == "approve":
        assert row.recorded_in_syft
        assert open_case(desk.site.home, row).approval_hash == row.approval_hash
        assert ledger.state(desk.site.home.dataset("heart"))[0].committed > 0
    assert not list(desk.site.home.prepared.glob(".staging-*"))


def test_an_approval_is_of_the_hash_that_was_read_even_if_the_case_is_examined_meanwhile(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk.agree()
    decide = compliance.decide

    def slow(*arguments: Any, **options: Any) -> Any:
        decision = decide(*arguments, **options)
        Case.objects.filter(pk=desk.row.pk).update(approval_hash="f" * 64)
        return decision

    monkeypatch.setattr(compliance, "decide", slow)
    with pytest.raises(ReviewError, match="read it again"):
        desk.approve("ann")
    assert not Review.objects.exists()


@pytest.mark.parametrize(
    ("accepted", "begins"),
    [("by nobody", False), ("by one person", False), ("by hand", False), ("and ended", False), ("by two people", True)],
)
def test_without_a_sandbox_submitted_code_is_not_even_rehearsed_before_two_people_have_accepted_that(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, accepted: str, begins: bool
) -> None:
    begun: list[str] = []

    def start(*_: object, **__: object) -> None:
        begun.append("a worker")
        raise WorkerError("none in this test")

    monkeypatch.setattr(Worker, "start", start)
    desk.agree()
    if accepted != "by nobody":
        desk.accept_no_sandbox(confirmed=accepted not in ("by one person", "by hand"))
    if accepted == "by hand":
        file = RegistryFile(desk.site.home.registry, "Cleveland")
        file.update(lambda registry: registry.confirm("no-sandbox", 1, "bob", datetime.date.today()))
    if accepted == "and ended":
        terminate_agreement(desk.site, desk.login("bob"), "no-sandbox")
    desk.forget_rehearsal()
    row = examination.recheck(desk.without_sandbox(), desk.row.pk)
    assert (row.rehearsal["outcome"], begun) == (("failed", ["a worker"]) if begins else ("not_run", []))
    assert begins or "risk acceptance for no_sandbox" in row.rehearsal["reason"]


def test_a_study_of_more_steps_than_can_be_priced_is_refused(desk: Desk) -> None:
    terms = (HEART / "study" / "study.toml").read_text()
    many, changed = re.subn(r"(?m)^steps = .*$", "steps = 10000", terms)
    assert changed == 1
    row = examination.admit(desk.site, dataclasses.replace(job(**{"study.toml": many.encode()}), name="heart-2"))
    assert row.state == Case.State.REFUSED
    assert "150000, and 100000 noised steps are the most" in row.note
    with pytest.raises(PlanError, match="110000 is more than 100000"):
        PrivacyPlan.calibrate(3.0, 1e-5, clip=1.0, sampling_rate=0.01, rounds=10_000, steps_per_round=11)


def test_undecided_submissions_of_one_researcher_are_limited(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = desk.site.home.settings.model_copy(update={"undecided_per_researcher": 1})
    site = dataclasses.replace(desk.site, home=dataclasses.replace(desk.site.home, settings=settings))
    row = examination.admit(site, dataclasses.replace(job(), name="heart-2"))
    assert row.state == Case.State.REFUSED
    assert "1 submissions already wait" in row.note


def test_a_case_that_was_refused_says_so_and_blames_nobody(database: Home, furnished: Home) -> None:
    row = examination.admit(Site.open(furnished.root), job(**{"run.sh": b"curl"}))
    with pytest.raises(InputError, match=r"was refused on arrival.*run\.sh"):
        open_case(furnished, row)


def test_a_case_that_was_not_examined_can_not_be_approved_or_exported(desk: Desk, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from datasites.hospital.evidence.export import export_evidence

    Case.objects.filter(pk=desk.row.pk).update(
        state=Case.State.INTAKE, approval_terms={}, note="the table is not ready"
    )
    with pytest.raises(ReviewError, match="only a case in review can be approved"):
        desk.approve("ann")
    with pytest.raises(InputError, match="has not been examined: the table is not ready"):
        export_evidence(desk.site, desk.row.pk, tmp_path / "bundle.zip")


def test_more_columns_than_the_declared_records_bear_are_refused_before_a_row_is_read(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = desk.site.home
    large = home.dataset("heart").model_copy(update={"declared_records": 2**25})
    settings = home.settings.model_copy(update={"datasets": (large,)})
    site = dataclasses.replace(desk.site, home=dataclasses.replace(home, settings=settings))
    monkeypatch.setattr(examination, "stage_records", lambda *_: pytest.fail("rows were read"))
    row = examination.admit(site, dataclasses.replace(job(), name="heart-2"))
    assert row.state == Case.State.REFUSED
    assert "encoded columns for 33554432 declared records are more than 268435456 numbers" in row.note


def test_more_rows_than_the_columns_leave_room_for_are_not_prepared(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever was declared: the table may hold more."""
    monkeypatch.setattr(encoded, "MOST_CELLS", 303 * 8)
    home = desk.site.home
    with TableReader(home) as reader, pytest.raises(InputError, match="rows of .* are more than 2424 numbers"):
        stage_records(home, reader, open_case(home, desk.row).package, home.dataset("heart"))
