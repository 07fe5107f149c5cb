"""Who a row is about: nobody else's side moves with a row, and nobody has two budgets under one pseudonym."""

from __future__ import annotations

import os
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from django.db import connection, connections
from hypothesis import given
from hypothesis import strategies as st

from datasites.hospital.budget import ledger_log, population
from datasites.hospital.cases import compliance, consent, examination
from datasites.hospital.cases.as_text import describe
from datasites.hospital.cases.case import OpenCase, open_case, records_folder
from datasites.hospital.cases.compliance import Denied
from datasites.hospital.cases.consent import NobodyToLeaveOut
from datasites.hospital.cases.encoded import PREPARED_FILE, StagedRecords, partitions, stage_records
from datasites.hospital.cases.examination import recheck
from datasites.hospital.cases.review import ReviewError
from datasites.hospital.config import DatasetSettings, Home
from datasites.hospital.data import patients
from datasites.hospital.data.mapping import read_mapping
from datasites.hospital.data.patients import SamePatients, row_identities
from datasites.hospital.data.reading import TableReader
from datasites.hospital.data.reading_messages import Cells
from datasites.hospital.data.tables import read_table
from datasites.hospital.doctor import examine
from datasites.hospital.models import Case, LedgerEntry, Population
from datasites.hospital.proposals import two_people
from datasites.hospital.site import Site
from datasites.privacy.accountant import epsilon_pld
from datasites.privacy.events import compose
from datasites.privacy.sampling import held_out
from datasites.study.errors import InputError
from datasites.study.package import StudyPackage
from tests.hospital.budget.accounts import Backup, restarted
from tests.hospital.conftest import HEART
from tests.hospital.desk import Desk
from tests.kills import Killed

SALT = b"0123456789abcdef"


@pytest.fixture
def files(desk: Desk) -> Iterator[Callable[[str, str, str], None]]:
    """Change words of a file of the home; all are put back, the records of the study too."""
    root = desk.site.home.root
    folder = records_folder(desk.site.home, desk.row.study_hash)
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def change(name: str, old: str, new: str) -> None:
        path = root / name
        before.setdefault(path, path.read_bytes())
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    yield change
    for path, content in before.items():
        path.write_bytes(content)


@pytest.fixture(autouse=True)
def no_identities(home: Home) -> Iterator[None]:
    yield
    for path in home.identities.glob("*"):
        path.unlink()


def table(rows: list[tuple[object, ...]], path: Path) -> Path:
    frame = pd.DataFrame(rows, columns=["age", "sex", "note"], dtype=object)
    frame.to_csv(path, index=False)
    return path


ROWS = st.lists(
    st.tuples(
        st.integers(20, 24) | st.none() | st.floats(20, 22),
        st.sampled_from(["f", "01", "1.0", "TRUE", ""]),
        st.just('x,"'),
    ),
    min_size=2,
    max_size=12,
)


@given(rows=ROWS, data=st.data())
def test_a_row_that_is_gone_renames_nobody_else(rows: list[tuple[object, ...]], data: st.DataObject) -> None:
    """Also where the reader would guess another type for a column, and whatever order the rows stand in."""
    home = home_for_properties()
    path = home.root / "rows.csv"
    before = Counter(row_identities(home, read_table(table(rows, path)).text))
    assert max(before.values()) == 1
    shuffled = data.draw(st.permutations(rows))
    gone = data.draw(st.integers(0, len(rows) - 1))
    after = Counter(row_identities(home, read_table(table(shuffled[:gone] + shuffled[gone + 1 :], path)).text))
    assert len(before - after) == 1
    assert not after - before


def home_for_properties() -> Home:
    from tests.hospital import conftest

    return conftest._home


def without_patient_column(files: Callable[[str, str, str], None]) -> None:
    files("mapping.toml", 'patient = "id"', "")


def staged_of(home: Home, package: StudyPackage, dataset: DatasetSettings) -> StagedRecords:
    with TableReader(home) as reader:
        return stage_records(home, reader, package, dataset)


def sides(home: Home) -> dict[str, bool]:
    package = StudyPackage.read(HEART / "study")
    staged = staged_of(home, package, home.dataset("heart"))
    try:
        with np.load(staged.folder / PREPARED_FILE) as stored:
            names = stored["patient"]
    finally:
        staged.drop()
    return dict(zip(names.tolist(), held_out(names, SALT, 0.5).tolist(), strict=True))


def test_without_a_patient_column_removing_one_row_moves_nobody_else(
    desk: Desk,
    files: Callable[[str, str, str], None],
) -> None:
    home = desk.site.home
    without_patient_column(files)
    before = sides(home)
    text = (home.root / "data/table.csv").read_text()
    files("data/table.csv", text.splitlines(keepends=True)[7], "")
    after = sides(home)
    assert len(before) == 303
    assert len(after) == 302
    assert {name: before[name] for name in after} == after


def both_sides(case: OpenCase) -> bool:
    asked = case.asked()
    whole = compose([case.plan.event(), case.evaluation.total_event()])
    return [asked[partition].event for partition in ("training", "held_out")] == [whole, whole]


@pytest.mark.slow
def test_without_a_patient_column_both_sides_are_charged_the_sum_within_the_studys_epsilon(
    desk: Desk,
    files: Callable[[str, str, str], None],
) -> None:
    assert not both_sides(open_case(desk.site.home, desk.row))
    without_patient_column(files)
    case = open_case(desk.site.home, recheck(desk.site, desk.row.pk))
    assert both_sides(case)
    assert (case.approval_terms.identity, case.approval_terms.both_sides) == ("", True)
    study = case.study.privacy
    assert epsilon_pld([case.asked()["training"].event], study.delta) <= study.epsilon
    assert "charged to both sides" in describe(desk.site, desk.row.pk)


@pytest.mark.slow
def test_a_withdrawal_drops_exactly_the_named_patient_and_needs_a_patient_column(
    desk: Desk,
    files: Callable[[str, str, str], None],
) -> None:
    home = desk.site.home
    case = open_case(home, desk.row)
    with np.load(records_folder(home, desk.row.study_hash) / PREPARED_FILE) as stored:
        others = stored["patient"] != "CLEVELAND-0007"
        expected = sorted(stored["x"][others].tolist())
    try:
        consent.withdraw(desk.site, desk.login("bob"), "heart", "CLEVELAND-0007", "letter of the patient")
        left = np.concatenate([part.x for part in partitions(home, case).values()])
        assert len(left) == 302
        assert sorted(left.tolist()) == expected
        without_patient_column(files)
        consent.withdraw(desk.site, desk.login("bob"), "heart", "CLEVELAND-0008", "the frozen records name patients")
        assert sum(len(part.x) for part in partitions(home, case).values()) == 301
        recheck(desk.site, desk.row.pk)
        with pytest.raises(NobodyToLeaveOut, match="name the column"):
            consent.withdraw(desk.site, desk.login("bob"), "heart", "CLEVELAND-0009", "letter of the patient")
    finally:
        (home.withdrawals / "heart.json").unlink()


def test_another_patient_column_is_reviewed_anew_and_charges_both_sides_from_then_on(
    desk: Desk,
    files: Callable[[str, str, str], None],
) -> None:
    home = desk.site.home
    desk.agree()
    desk.approve("ann")
    first = open_case(home, desk.row)
    files("data/table.csv", "id,", "pseudonym,")
    files("mapping.toml", 'patient = "id"', 'patient = "pseudonym"')
    with pytest.raises(Denied) as caught:
        desk.approve("bob")
    assert caught.value.controls == ("code",)
    files("mapping.toml", 'patient = "pseudonym"', 'patient = "id"')
    desk.approve("bob")
    assert Population.objects.get(name="heart").identity == "id"
    files("mapping.toml", 'patient = "id"', 'patient = "pseudonym"')
    changed = open_case(home, desk.row)
    assert changed.approval_hash != first.approval_hash
    assert changed.approval_terms.both_sides
    population.settle_identity(desk.site, "heart", "pseudonym")
    files("mapping.toml", 'patient = "pseudonym"', 'patient = "id"')
    assert open_case(home, desk.row).approval_terms.both_sides, "from then on"
    assert open_case(home, desk.row).approval_hash != first.approval_hash


def test_the_same_table_under_another_name_is_not_ready(
    desk: Desk,
    files: Callable[[str, str, str], None],
) -> None:
    """Renaming a dataset starts no budget at zero: its patients stand in a population that has one."""
    home = desk.site.home
    row = recheck(desk.site, desk.row.pk)
    assert row.state == Case.State.REVIEW
    package, renamed = StudyPackage.read(HEART / "study"), home.dataset("heart").model_copy(update={"name": "heart-2"})
    staged_of(home, package, renamed).drop()
    other = renamed.model_copy(update={"population": "heart-2"})
    with pytest.raises(SamePatients, match="303 of its patients are in population heart too"):
        staged_of(home, package, other)
    assert recheck(desk.site, row.pk).state == Case.State.REVIEW, "who was there first is not blocked"
    Population.objects.create(name="heart-2", split_key=b"k" * 32, fraction=0.5)
    entered = two_people.propose_other_patients(desk.site, desk.login("ann"), "heart-2", "heart", "numbers by chance")
    with pytest.raises(SamePatients):
        staged_of(home, package, other)
    two_people.confirm(desk.site, desk.login("bob"), entered.pk)
    staged_of(home, package, other).drop()
    lines = home.audit.read_text().splitlines()
    assert any('"kind":"other_patients"' in line for line in lines)


@pytest.mark.parametrize("known", ["its list", "its charges"])
def test_two_people_answer_for_a_population_of_which_only_this_is_left(desk: Desk, known: str) -> None:
    """Its dataset and its budget are gone; else no study of any other population could be examined again."""
    home, package, gone = desk.site.home, StudyPackage.read(HEART / "study"), "gone" + known[-4:]
    left = home.identities / f"{gone}.bin"
    if known == "its list":
        left.parent.mkdir(mode=0o700, exist_ok=True)
        left.write_bytes(b"some of them, v1" + bytes(2 * ledger_log.TOKEN))
    else:
        LedgerEntry.objects.create(population=gone, partition="training", study_hash="0" * 64, kind="charge", round=1)
    try:
        with pytest.raises(SamePatients, match=f"`datasites budget other-patients heart {gone}`"):
            staged_of(home, package, home.dataset("heart"))
        entered = two_people.propose_other_patients(desk.site, desk.login("ann"), "heart", gone, "a ward of its own")
        two_people.confirm(desk.site, desk.login("bob"), entered.pk)
        staged_of(home, package, home.dataset("heart")).drop()
    finally:
        left.unlink(missing_ok=True)


@pytest.mark.parametrize("columns", [("id", None), (None, "id"), ("id", "chol"), ("chol", "id")])
def test_the_same_table_is_known_whatever_column_names_patients(
    desk: Desk,
    columns: tuple[str | None, str | None],
) -> None:
    """Else one person alone would have a fresh budget, by two lines in two files."""
    home, package = desk.site.home, StudyPackage.read(HEART / "study")
    mapping = (home.root / "mapping.toml").read_text()
    other = home.dataset("heart").model_copy(update={"population": "heart-2"})
    Population.objects.create(name="heart-2", split_key=b"k" * 32, fraction=0.5)

    def named_by(column: str | None) -> None:
        line = "" if column is None else f"patient = {column!r}"
        (home.root / "mapping.toml").write_text(mapping.replace('patient = "id"', line))

    try:
        named_by(columns[0])
        assert recheck(desk.site, desk.row.pk).state == Case.State.REVIEW
        named_by(columns[1])
        with pytest.raises(SamePatients, match="303 rows of its table are in population heart too|of its patients"):
            staged_of(home, package, other)
    finally:
        (home.root / "mapping.toml").write_text(mapping)
        recheck(desk.site, desk.row.pk)  # the records that other tests approve


def test_a_population_whose_patients_are_not_known_counts_as_the_same(desk: Desk) -> None:
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")
    with pytest.raises(SamePatients, match="its patients are not all known"):
        patients.require_others(desk.site.home, "stroke", ["1", "2"], frozenset())


def test_the_digests_of_patients_are_private_and_under_the_hospitals_key(
    desk: Desk,
) -> None:
    home = desk.site.home
    recheck(desk.site, desk.row.pk)
    path = home.identities / "heart.bin"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == (3 + 303 + 303) * patients.KEPT, "a heading, patients and rows"
    assert read_mapping(home.root / "mapping.toml").patient == "id"


def keep(site: Site, *names: str) -> Path:
    """What an examination does with these patients of population heart; the list that they are on."""
    digests = patients.require_others(site.home, "heart", names, frozenset())
    with patients.remembering(site, "heart", digests) as remember:
        remember()
    return site.home.identities / "heart.bin"


def stand_in_two(site: Site, *names: str) -> str:
    """What is said of patients who come in population stroke as well; nothing for others than those of heart."""
    try:
        patients.require_others(site.home, "stroke", names, frozenset())
    except SamePatients as error:
        return str(error)
    return ""


@pytest.mark.parametrize("put_back", ["an older list", "none", "one of an older version", "a kill's"])
def test_an_older_list_of_patients_is_never_taken_for_all_of_them(site: Site, put_back: str) -> None:
    file = keep(site, "1", "2")
    assert stand_in_two(site, "2", "3").startswith("population stroke: 1 of its patients are in population heart")
    if put_back == "a kill's":
        before = ledger_log.tell(site.home).token("heart")
        killed_before_the_log(site, "7")
        assert ledger_log.tell(site.home).token("heart") == before
        assert "1 of its patients" in stand_in_two(site, "7"), "the list is all of them, ahead of the log"
        assert stand_in_two(site, "8") == ""
    backup = file.read_bytes()
    keep(site, "3", "4")
    assert "2 of its patients" in stand_in_two(site, "3", "4")
    assert stand_in_two(site, "5") == "", "who stands in one is not refused"
    if put_back == "none":
        file.unlink()
    else:
        file.write_bytes(backup[3 * patients.KEPT :] if put_back == "one of an older version" else backup)
    for _ in range(3):
        assert "are not all known here" in stand_in_two(site, "3", "4")
        assert [check.state for check in examine(site, ["accounts"]) if check.name == "patients"] == ["warn"]
        keep(site, "5")  # the next examination makes another list, and it is none of all either
        ledger_log.forget(site.home)
    assert patients.require_others(site.home, "stroke", ["3"], frozenset({"heart"})), "two people have said so"


def killed_before_the_log(site: Site, *names: str) -> None:
    digests = patients.require_others(site.home, "heart", names, frozenset())

    def killed() -> None:
        with patients.remembering(site, "heart", digests) as remember:
            remember()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()


def test_a_list_that_a_kill_left_unsaid_is_logged_before_a_budget_is_reserved(desk: Desk) -> None:
    file = keep(desk.site, "1", "2")
    backup = file.read_bytes()
    killed_before_the_log(desk.site, "7")
    desk.agree()
    desk.approve("ann")
    desk.approve("bob")
    file.write_bytes(backup)
    ledger_log.forget(desk.site.home)
    assert "are not all known here" in stand_in_two(desk.site, "7")


def test_no_case_is_approved_whose_patients_stood_on_a_list_that_was_lost_unseen(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The case is stored, and the list is killed before the log knows it; then an older list is put back alone."""
    file = keep(desk.site, "1", "2")
    backup = file.read_bytes()
    examined_and_killed_before_the_log(desk, monkeypatch)
    lost = file.read_bytes()
    file.write_bytes(backup)
    desk.agree()
    with pytest.raises(InputError, match=f"`datasites review recheck {desk.row.pk}`"):
        desk.approve("ann")
    file.write_bytes(lost)
    desk.approve("ann")
    file.write_bytes(backup)
    desk.approve("bob")
    assert patients.in_part(desk.site.home) == ["heart"], "from the first approval on, the log knows what is missing"


def examined_and_killed_before_the_log(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    slept, sleep = list[int](), examination.sleep_to_tick

    def killed_while_keeping(started: float, ticks: int, check: Callable[[], None]) -> None:
        slept.append(ticks)
        if len(slept) == 2:
            raise Killed
        sleep(started, ticks, check)

    with monkeypatch.context() as patch:
        patch.setattr(examination, "sleep_to_tick", killed_while_keeping)
        with pytest.raises(Killed):
            recheck(desk.site, desk.row.pk)
    desk.row = Case.objects.get(pk=desk.row.pk)


@pytest.mark.parametrize("back", ["after the approvals", "during one"])
def test_a_list_that_was_away_while_people_approved_is_none_of_all_when_it_is_back(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    back: str,
) -> None:
    """It lacks the patients of the case, whose own list was killed before the log knew it, and is lost."""
    file, is_whole = keep(desk.site, "1", "2"), patients._is_whole
    backup = file.read_bytes()
    examined_and_killed_before_the_log(desk, monkeypatch)
    file.unlink()

    def put_back_after(home: Home, name: str) -> bool:
        whole = is_whole(home, name)
        monkeypatch.setattr(patients, "_is_whole", is_whole)
        file.write_bytes(backup)
        return whole

    if back == "during one":
        monkeypatch.setattr(patients, "_is_whole", put_back_after)
    desk.agree()
    desk.approve("ann")
    assert desk.approve("bob").state == Case.State.APPROVED
    if back != "during one":
        file.write_bytes(backup)
    ledger_log.forget(desk.site.home)
    assert patients.in_part(desk.site.home) == ["heart"]
    assert "are not all known here" in stand_in_two(desk.site, "a patient of the case")


def test_nobody_approves_what_is_examined_again_meanwhile(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the same hash, but with a list that the log need not know yet."""
    decide = compliance.decide

    def examined_again(*arguments: Any, **options: Any) -> Any:
        Case.objects.filter(pk=desk.row.pk).update(listed_as="ab" * ledger_log.TOKEN)
        return decide(*arguments, **options)

    desk.agree()
    monkeypatch.setattr(compliance, "decide", examined_again)
    with pytest.raises(ReviewError, match="read it again"):
        desk.approve("ann")


def test_rows_of_other_contents_are_told_apart() -> None:
    tables = [
        Cells.of(columns, rows)
        for columns, rows in [
            (["a", "b"], [["1", "23"], ["12", "3"], ["", "123"], ["1,2", "3"]]),
            (["ab", ""], [["1", "23"]]),
            (["b", "a"], [["1", "23"]]),
        ]
    ]
    every = [text for table in tables for text in patients.contents(table)]
    assert len(set(every)) == len(every) == 6
    turned = Cells.of(["b", "a"], [row[::-1] for row in tables[0]])
    assert list(patients.contents(turned)) == list(patients.contents(tables[0]))


def test_a_list_of_an_older_version_is_taken_as_it_is(site: Site) -> None:
    site.home.identities.mkdir()
    file = site.home.identities / "heart.bin"
    file.write_bytes(b"".join(patients._digests(site.home, "patient", ["1", "2"])))
    assert "1 of its patients" in stand_in_two(site, "2")
    keep(site, "3")
    assert "3 of its patients" in stand_in_two(site, "1", "2", "3")
    assert stand_in_two(site, "4") == ""
    assert not [check for check in examine(site, ["accounts"]) if check.name == "patients"]


def test_after_a_restore_of_the_log_no_list_of_patients_is_taken_for_all_of_them(
    desk: Desk,
    tmp_path: Path,
) -> None:
    site = desk.site
    file = keep(site, "1")
    backup, whole = Backup(site.home, tmp_path / "backup"), file.read_bytes()
    keep(site, "2")
    file.write_bytes(whole)
    backup.restore_log()
    site = restarted(site)
    entered = two_people.propose_restored(site, desk.login("ann"), (), "restored")
    two_people.confirm(site, desk.login("bob"), entered.pk)
    for _ in range(2):
        assert "are not all known here" in stand_in_two(site, "2")
        site = restarted(site)
        keep(site, "3")
    with patients.remembering(site, "later", patients.in_portions(())) as remember:
        remember()
    assert patients.in_part(site.home) == ["heart"], "a population that began since is known"


def test_others_write_to_the_database_while_patients_are_kept(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What grows with their number is written before the transaction, and in it nothing but names are put on disk."""
    fsync, beside, within = os.fsync, [], []

    def written(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        (within if connection.in_atomic_block else beside).append(path)
        if path.name.startswith("heart.bin"):
            others = in_a_thread(lambda: Case.objects.filter(pk=desk.row.pk).update(recorded_in_syft=False))
            others.join(10)
            assert not others.is_alive(), "another thread's write waits for as long as the patients take"
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", written)
    recheck(desk.site, desk.row.pk)
    assert {"heart.bin.new", PREPARED_FILE} <= {path.name for path in beside}
    assert desk.site.home.identities in within
    assert all(path.is_dir() for path in within), within


def test_nobody_is_forgotten_where_two_keep_patients_of_one_population_at_once(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home, fsync, second = desk.site.home, os.fsync, []
    first, other = b"a" * patients.KEPT, b"b" * patients.KEPT

    def keep_one(digest: bytes) -> None:
        with patients.remembering(desk.site, "heart", patients.in_portions([digest])) as remember:
            remember()

    def written(descriptor: int) -> None:
        if not second:  # the first has read who is known, and has not written yet
            second.append(in_a_thread(lambda: keep_one(other)))
            second[0].join(0.5)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", written)
    keep_one(first)
    second[0].join(60)
    assert (home.identities / "heart.bin").read_bytes()[3 * patients.KEPT :] == first + other
    assert [path.name for path in home.identities.glob("heart.bin*")] == ["heart.bin"]


@given(st.sets(st.binary(min_size=patients.KEPT, max_size=patients.KEPT)))
def test_what_is_stored_tells_nothing_of_the_order_in_which_patients_came(digests: set[bytes]) -> None:
    assert b"".join(patients.in_portions([*digests, *digests])) == b"".join(sorted(digests))


def test_nothing_that_holds_patients_is_made_or_freed_in_one_piece(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever grows, sorts or frees one piece that holds all of them gives no other thread a turn meanwhile."""
    number, largest, fsync = 30_000, list[int](), os.fsync

    def look() -> None:
        taken = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, patients.__file__)])
        largest.append(max(trace.size for trace in taken.traces))

    def names() -> Iterator[str]:
        yield from (f"patient-{i}" for i in range(number))
        look()

    def written(descriptor: int) -> None:
        look()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", written)
    tracemalloc.start()
    try:
        digests = patients.require_others(site.home, "heart", names(), frozenset())
        for _ in range(2):
            with patients.remembering(site, "heart", digests) as remember:
                look()
                remember()
    finally:
        tracemalloc.stop()
    assert (site.home.identities / "heart.bin").stat().st_size >= number * patients.KEPT
    assert max(largest) < 100_000 < number * patients.KEPT, "a block of the file is 65,536 bytes"


def in_a_thread(act: Callable[[], object]) -> threading.Thread:
    def run() -> None:
        try:
            act()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread
