"""A table or mapping that is not what a study was examined on: people are told so, and the log counts nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datasites.hospital import doctor
from datasites.hospital.cases.as_text import describe
from datasites.hospital.cases.examination import recheck
from datasites.hospital.cases.views import view_case
from datasites.hospital.cases.whereabouts import open_cases
from datasites.hospital.data import sources
from datasites.hospital.data.reading import Records, TableReader
from datasites.hospital.data.sources import SOURCE_FILE, WRITTEN, in_words, log_written
from datasites.hospital.models import Case
from datasites.study.audit_chain import records
from tests.hospital.desk import Desk, without_rehearsal

Write = Callable[[str, bytes], None]


@pytest.fixture
def write(desk: Desk) -> Iterator[Write]:
    """Write a file of the home at a later time than any before; all are put back."""
    root, before, at = desk.site.home.root, dict[Path, tuple[bytes, int]](), [0]

    def written(name: str, content: bytes) -> None:
        path = root / name
        kept = path.read_bytes() if path.exists() else b""
        before.setdefault(path, (kept, path.stat().st_mtime_ns))
        path.write_bytes(content)
        at[0] += 10**9
        later = before[path][1] + at[0]
        os.utime(path, ns=(later, later))

    _examined_as_it_is(desk)
    yield written
    for path, (content, when) in before.items():
        path.write_bytes(content)
        os.utime(path, ns=(when, when))


def _examined_as_it_is(desk: Desk) -> None:
    """Other tests have put the same bytes into the home at other times."""
    home = desk.site.home
    path = home.prepared / desk.row.study_hash / SOURCE_FILE
    source = sources.source_of(home, desk.row)
    assert source is not None
    now = source.model_copy(update={"written": sources.written_at(home, home.dataset("heart"))})
    path.write_bytes(now.canonical())


def lines(desk: Desk) -> list[bytes]:
    return (desk.site.home.root / "data/table.csv").read_bytes().splitlines(keepends=True)


def cut_to_a_third(desk: Desk) -> bytes:
    return b"".join(lines(desk)[:102])


def said_by_the_doctor(desk: Desk) -> list[tuple[str, str]]:
    return [(check.state, check.message) for check in doctor._sources(desk.site)]


def logged(desk: Desk) -> list[dict[str, object]]:
    return [dict(record.fields) for record in records(desk.site.home.audit) if record.kind == WRITTEN]


def approved(desk: Desk) -> Case:
    desk.agree()
    desk.approve("ann")
    desk.row = desk.approve("bob")
    return desk.row


def test_a_table_that_changed_after_approval_is_named_by_doctor_case_page_and_log(desk: Desk, write: Write) -> None:
    row, home = approved(desk), desk.site.home
    assert [state for state, _ in said_by_the_doctor(desk)] == ["ok"]
    write("data/table.csv", cut_to_a_third(desk))
    words = f"source of case {row.pk}: data/table.csv is not the table that was read: 101 rows now, 202 fewer"
    assert [(state, said.startswith(words)) for state, said in said_by_the_doctor(desk)] == [("warn", True)]
    assert words in describe(desk.site, row.pk)
    assert "is not the file that was read" in view_case(home, row).source
    for _ in range(2):
        log_written(desk.site, open_cases(home))
    what = {"case": row.pk, "study": row.study_hash, "hash": row.approval_hash, "dataset": "heart"}
    assert logged(desk) == [what], "once, and without a count"


def test_labels_that_changed_in_place_are_seen_though_the_file_has_its_old_time(desk: Desk, write: Write) -> None:
    row, home = approved(desk), desk.site.home
    path = home.root / "data/table.csv"
    when = path.stat().st_mtime_ns
    write("data/table.csv", lines(desk)[0] + b"".join(line[:-2] + b"0\n" for line in lines(desk)[1:]))
    os.utime(path, ns=(when, when))
    assert "303 rows now, as many, but not the same" in in_words(home, row, rows=True)
    (word,) = said_by_the_doctor(desk)
    assert word[0] == "warn"


@pytest.mark.parametrize("how", ["the same bytes", "another order", "other line ends"])
def test_a_table_that_was_written_anew_and_says_the_same_is_no_other_one(desk: Desk, write: Write, how: str) -> None:
    """The log follows from when files were written alone, so that it tells nothing of what stands in them."""
    row, (head, *others) = approved(desk), lines(desk)
    content = {
        "the same bytes": [head, *others],
        "another order": [head, *reversed(others)],
        "other line ends": [line.replace(b"\n", b"\r\n") for line in (head, *others)],
    }[how]
    write("data/table.csv", b"".join(content))
    assert in_words(desk.site.home, row, rows=True) == ""
    assert [state for state, _ in said_by_the_doctor(desk)] == ["ok"]
    assert logged(desk)


def test_a_mapping_that_changed_and_a_table_that_is_gone_are_named(desk: Desk, write: Write) -> None:
    row, home = desk.row, desk.site.home
    mapping = (home.root / "mapping.toml").read_bytes()
    write("mapping.toml", mapping + b"\n# another hand\n")
    assert "mapping.toml is not the one by which the table was read" in in_words(home, row, rows=False)
    assert f"`datasites review recheck {row.pk}`" in in_words(home, row, rows=True)
    assert not logged(desk), "nobody has approved it yet: whether it could be depends on rows"
    write("data/table.csv", b"")
    (home.root / "data/table.csv").unlink()
    assert "can't be compared" in in_words(home, row, rows=True)


def test_what_is_examined_again_is_what_the_records_are_made_from(desk: Desk, write: Write) -> None:
    home, folder = desk.site.home, desk.site.home.prepared / desk.row.study_hash
    before = {path: path.read_bytes() for path in folder.iterdir()}
    write("data/table.csv", b"".join(lines(desk)[:290]))
    assert in_words(home, desk.row, rows=True)
    try:
        row = recheck(desk.site, desk.row.pk)
        assert row.state == Case.State.REVIEW, row.note
        assert in_words(home, row, rows=True) == ""
        assert (folder / SOURCE_FILE).stat().st_mode & 0o777 == 0o600
    finally:
        for path, content in before.items():
            path.write_bytes(content)


def test_a_table_that_was_written_while_it_was_examined_is_named(
    desk: Desk,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An export ends between the reading of the table and the end of the examination, which reads it no more."""
    home, read = desk.site.home, TableReader.records
    without_rehearsal(monkeypatch, ticks=20, parameters=1)

    def written_then(*of: Any) -> Records:
        records = read(*of)
        write("data/table.csv", cut_to_a_third(desk))
        return records

    folder = home.prepared / desk.row.study_hash
    before = {kept: kept.read_bytes() for kept in folder.iterdir()}
    monkeypatch.setattr(TableReader, "records", written_then)
    row = recheck(desk.site, desk.row.pk)
    words = in_words(home, row, rows=True)
    for kept, content in before.items():
        kept.write_bytes(content)
    assert "data/table.csv is not the table that was read: 101 rows now, 202 fewer" in words


def test_a_table_whose_disk_is_away_keeps_no_datasite_from_its_start(desk: Desk, write: Write) -> None:
    """Its frozen records are here, and nothing else of it is needed."""
    approved(desk)
    home, path = desk.site.home, desk.site.home.root / "data/table.csv"
    write("data/table.csv", path.read_bytes())
    path.unlink()
    path.symlink_to(path.name)  # the system says neither that it is there nor that it isn't
    try:
        log_written(desk.site, open_cases(home))
        assert "it can't be compared" in in_words(home, desk.row, rows=True)
    finally:
        path.unlink()
    assert logged(desk)
