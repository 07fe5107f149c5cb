"""I17, I5: a restore in which log, anchors or journals are lost: nothing is taken for new, and nothing leaves twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.db import connection  # noqa: F401 (the condition of on_sqlite)
from pydantic import ValidationError

from datasites.hospital.audit.log import head_file
from datasites.hospital.budget import ledger, ledger_log, openings, pending, population
from datasites.hospital.budget.ledger import BudgetExceeded
from datasites.hospital.budget.population import open_populations
from datasites.hospital.budget.reconcile import AccountsDiffer, differences, require_one_story
from datasites.hospital.budget.withdrawn import log_the_list
from datasites.hospital.cases import consent
from datasites.hospital.cases.case import open_case, records_folder
from datasites.hospital.cases.encoded import partitions
from datasites.hospital.cases.review import ReviewError
from datasites.hospital.config import Home
from datasites.hospital.doctor import examine as doctor
from datasites.hospital.models import BudgetFact, Case, LedgerEntry, Population, Round
from datasites.hospital.people.accounts import PersonError
from datasites.hospital.proposals import two_people
from datasites.hospital.proposals.restored import LostStudy, hold_against
from datasites.hospital.rounds import lifecycle
from datasites.hospital.rounds.journals import give_up_keys
from datasites.hospital.rounds.run import StudyRun
from datasites.hospital.service import Service
from datasites.hospital.site import Site
from datasites.secagg.errors import JournalRolledBack
from datasites.study import letters
from datasites.study.audit_chain import PublicHead, records
from datasites.study.errors import DatasitesError, InputError
from tests.hospital.budget.accounts import ROUND, STUDY, WHOLE, Backup, restarted, spent
from tests.hospital.desk import PASSWORD, Desk
from tests.hospital.invited import enter
from tests.hospital.proposals.restoring import (
    LOST,
    WholeHome,
    a_round,
    again,
    committed,
    head_of,
    no_charges,
    nothing_left,
    on_sqlite,
    settled,
)
from tests.hospital.running import OWN, Running
from tests.kills import Killed

IN_FULL = "charged in full after a restore"


def lose_log_and_anchors(home: Home) -> None:
    for path in (home.audit, head_file(home.audit)):
        path.unlink()
    shutil.rmtree(home.anchors)


def does_not_start(site: Site, words: str) -> Site:
    """What an operator tries first, twice; and `doctor` in between. The site as the next process opens it."""
    for _ in range(2):
        with pytest.raises(AccountsDiffer, match=words):
            Service(site)
        site = restarted(site)
        assert any(c.state == "bad" for c in doctor(site, ["accounts"]) if c.name == "accounts")
        site = restarted(site)
    assert not site.home.ledger_anchor.exists(), "an anchor that is written now would say that it knows of everything"
    return site


# -- log and anchors are gone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("started", [True, False])
def test_starting_once_makes_no_lost_log_a_new_one(desk: Desk, tmp_path: Path, started: bool) -> None:
    """The database knows one round of fifteen that were released: an open study counts as charged in full."""
    site, heart = desk.site, desk.site.home.dataset("heart")
    ledger.reserve(site, heart, STUDY, WHOLE)
    ledger.charge(site, heart, STUDY, 1, ROUND)
    backup = Backup(site.home, tmp_path / "backup")
    for number in range(2, 16):
        ledger.charge(site, heart, STUDY, number, ROUND)
    before = spent(site)
    backup.restore_database()
    lose_log_and_anchors(site.home)
    site = restarted(site)
    assert ledger_log.standing(site.home) == "missing"
    site = settled(desk, does_not_start(site, "is missing") if started else site)
    assert 0 in ledger_log.tell(site.home).of("heart")[STUDY].charged
    assert spent(site) == pytest.approx(before)
    for number in (1, 2):
        with pytest.raises(BudgetExceeded, match=IN_FULL):
            ledger.charge(site, heart, STUDY, number, ROUND)
    ledger.close(site, STUDY)
    assert committed(site) == pytest.approx(before)


def test_people_whom_a_lost_log_does_not_know_are_entered_again(desk: Desk) -> None:
    """Until the log knows somebody, those of the database are the ones who can settle what was lost."""
    lose_log_and_anchors(desk.site.home)
    site = restarted(desk.site)
    assert desk.login("ann").role == "steward"
    enter(site, "eve", "steward", PASSWORD, "eve@example.org")
    with pytest.raises(PersonError, match="ann was never entered, according to the log"):
        desk.login("ann")
    with pytest.raises(PersonError, match="already entered"):
        enter(site, "ann", "privacy_officer", PASSWORD, "ann@cleveland.example.org")
    enter(site, "ann", "steward", PASSWORD, "ann@cleveland.example.org")
    assert desk.login("ann").role == "steward"


def fresh_post(running: Running) -> None:
    """The store and everybody's mailroom are new: no letter of before is there."""
    for email, room in running.rooms.items():
        room.close()
        shutil.rmtree(running.folder / email / "mail")
    shutil.rmtree(running.folder / "store")
    running.store = type(running.store)(str(running.folder / "store"))
    running.rooms = {
        email: type(room)(email, running.store, running.sealers[email], running.folder / email / "mail")
        for email, room in running.rooms.items()
    }


@on_sqlite
def test_a_study_of_a_home_without_log_and_anchors_releases_no_round_again(running: Running, tmp_path: Path) -> None:
    home, whole = running.site.home, committed(running.site)
    running.set_up()
    a_round(running, 1)
    backup = WholeHome(running.site, tmp_path / "backup")
    a_round(running, 2)
    again(running)
    backup.restore()
    lose_log_and_anchors(home)
    fresh_post(running)
    site = settled(running.desk, does_not_start(restarted(running.site), "is missing"))
    assert committed(site) == spent(site) == pytest.approx(whole)
    ann = running.desk.login("ann")
    for act in (lifecycle.rejoin, lifecycle.resume):
        with pytest.raises(DatasitesError, match=IN_FULL):
            act(site, running.row.pk, ann, "as the guide says")
    assert Case.objects.get(pk=running.row.pk).state == Case.State.STOPPED


@on_sqlite
@pytest.mark.parametrize("killed", ["no", "before the heads are settled", "after the heads are settled"])
def test_anchors_that_came_back_with_the_home_tell_nothing_where_others_hold_a_head(
    running: Running,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed: str,
) -> None:
    """A snapshot of the whole home: rounds 2 to 4 left since, and no round of the study may leave a second time."""
    home, whole = running.site.home, committed(running.site)
    running.set_up()
    a_round(running, 1)
    backup = WholeHome(running.site, tmp_path / "backup")
    shutil.copytree(home.anchors, tmp_path / "anchors")
    for number in (2, 3, 4):
        a_round(running, number)
    head = head_of(running, 4)
    again(running)
    backup.restore()
    shutil.rmtree(home.anchors)
    shutil.copytree(tmp_path / "anchors", home.anchors)
    fresh_post(running)
    site = restarted(running.site)
    assert ledger_log.standing(home) == "current", "nothing in here can know"
    assert hold_against(site, [head]) == [head]
    if killed != "no":
        entered = two_people.propose_restored(site, running.desk.login("ann"), (), "a snapshot was put back")
        unlink = Path.unlink

        def kill(path: Path, missing_ok: bool = False) -> None:
            if path != home.unknown_heads:
                return unlink(path, missing_ok=missing_ok)
            if killed.startswith("after"):
                unlink(path, missing_ok=missing_ok)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", kill)
            with pytest.raises(Killed):
                two_people.confirm(site, running.desk.login("bob"), entered.pk)
        two_people.withdraw(site, running.desk.login("ann"), entered.pk)
        site = restarted(site)
    site = settled(running.desk, site)
    assert spent(site) == committed(site) == pytest.approx(whole)
    row, ann = Case.objects.get(pk=running.row.pk), running.desk.login("ann")
    for act in (lifecycle.rejoin, lifecycle.resume):
        with pytest.raises(DatasitesError, match=IN_FULL):
            act(site, row.pk, ann, "as the note says")
    assert row.state == Case.State.STOPPED


@on_sqlite
def test_a_case_that_was_only_proposed_before_the_backup_explains_no_journal(
    desk: Desk,
    tmp_path: Path,
) -> None:
    """Its journal's anchor survived, and shows that it ran since: two people must enter what it cost."""
    home = desk.site.home
    home.secagg.mkdir(exist_ok=True)
    backup = WholeHome(desk.site, tmp_path / "backup")
    study = Running(desk, tmp_path)
    study.set_up()
    a_round(study, 1)
    again(study)
    backup.restore()
    home.ledger_anchor.unlink()
    site = restarted(study.site)
    assert Case.objects.get(study_hash=study.study_hash).state == Case.State.REVIEW
    ann = desk.login("ann")
    with pytest.raises(InputError, match="shows that it ran here, and no account knows it"):
        two_people.propose_restored(site, ann, (), "restored")
    settled(desk, site, LOST.model_copy(update={"study": study.study_hash}))


@pytest.mark.parametrize("left", ["rounds", "a journal", "identities"])
def test_what_a_study_leaves_behind_shows_that_a_home_without_log_and_anchors_is_no_new_one(
    running: Running,
    left: str,
) -> None:
    home = running.site.home
    running.set_up()
    a_round(running, 1)
    again(running)
    for table in (LedgerEntry, BudgetFact, Population):
        table.objects.all().delete()
    lose_log_and_anchors(home)
    if left != "rounds":
        Round.objects.all().delete()
    if left != "a journal":
        shutil.rmtree(home.secagg / running.study_hash / "journal")
    shutil.rmtree(home.identities, ignore_errors=True)
    if left == "identities":
        home.identities.mkdir()
        (home.identities / "heart.bin").touch()
    does_not_start(restarted(running.site), "is missing")


# -- budgets that are being opened -------------------------------------------------------------------------------------


def test_a_database_from_before_the_first_study_is_no_new_home_where_log_and_anchors_are_gone(
    desk: Desk,
    tmp_path: Path,
) -> None:
    site, heart = desk.site, desk.site.home.dataset("heart")
    backup = Backup(site.home, tmp_path / "backup")
    ledger.reserve(site, heart, STUDY, WHOLE)
    for number in range(1, 16):
        ledger.charge(site, heart, STUDY, number, ROUND)
    ledger.close(site, STUDY)
    backup.restore_database()
    lose_log_and_anchors(site.home)
    assert not LedgerEntry.objects.exists()
    assert BudgetFact.objects.exists()
    site = does_not_start(restarted(site), "is missing")
    for act in (
        lambda: open_populations(site),
        lambda: ledger.reserve(site, heart, "b" * 64, WHOLE),
    ):
        with pytest.raises(AccountsDiffer):
            act()
    assert "budget_opened" not in {record.kind for record in records(site.home.audit)}
    site = settled(desk, restarted(site), LOST.model_copy(update={"study": STUDY}))
    open_populations(site)
    with pytest.raises(BudgetExceeded, match="above the cap"):
        ledger.reserve(site, heart, "b" * 64, WHOLE)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    "step", ["openings.begin", "_open", "_record", "_log", "ledger_log.write_anchor", "openings.end"]
)
@pytest.mark.parametrize("first", [True, False])
def test_an_opening_that_a_kill_interrupts_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch, step: str, after: bool, first: bool
) -> None:
    """The first of a home, and another one beside a budget that log and anchor know."""
    home = site.home
    if first:
        BudgetFact.objects.all().delete()
        Population.objects.all().delete()
        lose_log_and_anchors(home)
    else:
        stroke = home.dataset("heart").model_copy(update={"name": "stroke", "population": "stroke"})
        site = replace(site, home=replace(home, settings=home.settings.model_copy(update={"datasets": (stroke,)})))
    site = restarted(site)
    acted: Any = population
    for name in step.split("."):
        acted = getattr(acted, name)

    def killed(*arguments: Any, **fields: Any) -> None:
        if after:
            acted(*arguments, **fields)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"datasites.hospital.budget.population.{step}", killed)
        with pytest.raises(Killed):
            open_populations(site)
    site = restarted(site)
    pending.finish_all(site)
    require_one_story(site.home)
    open_populations(site)
    assert openings.under_way(site.home) == frozenset()
    assert [r.kind for r in records(site.home.audit)].count("budget_opened") == (1 if first else 2)
    assert BudgetFact.objects.count() == (1 if first else 2)
    site = restarted(site)
    require_one_story(site.home)
    assert ledger_log.standing(site.home) == "current"


def test_a_population_that_the_log_lacks_is_a_difference(site: Site) -> None:
    made = Population.objects.create(name="stroke", split_key=b"k" * 32, fraction=0.5, order=8)
    BudgetFact.objects.create(population=made, what="opened", epsilon=4.0, delta=1e-5)
    with pytest.raises(AccountsDiffer, match="population stroke: the database knows its cap, and the audit log"):
        require_one_story(restarted(site).home)


# -- a round that was charged and has not left -------------------------------------------------------------------------


@pytest.fixture
def at_work(running: Running) -> Running:
    """Round 1 is charged, its rows are worked on, and its tick has not come."""
    running.set_up()
    running.open(1)
    running.until_at_work()
    running.at_work.work.result()
    return running


@on_sqlite
def test_a_charged_round_is_not_released_again_under_the_same_charge(at_work: Running, tmp_path: Path) -> None:
    """The backup is from between charge and release; journals and anchors are lost."""
    study, home = at_work, at_work.site.home
    backup = WholeHome(study.site, tmp_path / "backup")
    study.steps()
    assert study.heard(1, letters.MASKED)
    again(study)
    backup.restore()
    shutil.rmtree(home.anchors)
    shutil.rmtree(home.secagg / study.study_hash)
    fresh_post(study)
    site = study.site = settled(study.desk, restarted(study.site))
    row, ann = Case.objects.get(pk=study.row.pk), study.desk.login("ann")
    assert list(Round.objects.filter(case=row).values_list("round", "state")) == [(1, Round.State.FAILED)]
    for act in (lifecycle.resume, lifecycle.sit_out, lifecycle.rejoin):
        with pytest.raises(DatasitesError, match=IN_FULL):
            act(site, row.pk, ann, "goes on")
    assert Case.objects.get(pk=row.pk).state == Case.State.STOPPED
    asked = study.case.planned(1)
    with pytest.raises(BudgetExceeded, match=IN_FULL):
        ledger.charge(site, study.case.dataset, study.study_hash, 1, asked)
    # The journal alone keeps it from that, too.
    Case.objects.filter(pk=row.pk).update(state=Case.State.RUNNING)
    with pytest.raises(JournalRolledBack, match="rounds of this study were opened"):
        StudyRun(site, study.rooms[OWN], Case.objects.get(pk=row.pk))
    assert nothing_left(study, 1)
    (home.secagg / study.study_hash).mkdir(exist_ok=True)  # for the fixture's end


@pytest.mark.parametrize("knows", ["ledger", "rounds"])
def test_a_journal_that_is_gone_is_no_new_one(at_work: Running, knows: str) -> None:
    study, home = at_work, at_work.site.home
    study.steps()
    study.run.close()
    shutil.rmtree(home.secagg / study.study_hash)
    (home.anchors / study.study_hash).unlink()
    if knows == "ledger":
        Round.objects.all().delete()
    with pytest.raises(JournalRolledBack, match="study rejoin"):
        StudyRun(study.site, study.rooms[OWN], Case.objects.get(pk=study.row.pk))
    Case.objects.filter(pk=study.row.pk).update(state=Case.State.STOPPED)
    lifecycle.rejoin(study.site, study.row.pk, study.desk.login("ann"), "the disk failed")
    give_up_keys(home, study.study_hash)
    study.restart()
    assert study.journal.floor[1] == 1, "round 1 stays closed"


def test_work_at_hand_is_of_no_round_that_may_be_sat_out_once_a_restore_is_settled(at_work: Running) -> None:
    study = at_work
    no_charges()
    ann, bob = study.desk.login("ann"), study.desk.login("bob")
    two_people.confirm(study.site, bob, two_people.propose_restored(study.site, ann, (), "restored").pk)
    row = Case.objects.get(pk=study.row.pk)
    assert row.state == Case.State.STOPPED
    assert list(Round.objects.filter(case=row).values_list("state", flat=True)) == [Round.State.FAILED]
    with pytest.raises(ReviewError, match="no round of it waits"):
        lifecycle.sit_out(study.site, row.pk, ann, "we sit this one out")
    lifecycle.resume(study.site, row.pk, ann, "goes on with the next round")
    study.steps()
    assert nothing_left(study, 1), "what was at work is dropped"


# -- what the heads that others hold count -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("releases", "lost", "enough"),
    [
        (500, {"steps": 1, "noise_multiplier": 50.0, "rounds": 1}, False),
        (500, {"steps": 500}, False),
        (16, {"steps": 75, "rounds": 15}, True),
        (17, {"steps": 75, "rounds": 15}, False),
        (2, {"steps": 75, "rounds": None}, True),
        (3, {"steps": 75, "rounds": None}, False),
    ],
)
def test_a_lost_study_explains_its_own_releases_and_no_more(
    desk: Desk,
    releases: int,
    lost: dict[str, object],
    enough: bool,
) -> None:
    site = desk.site
    entered = LostStudy.model_validate({**LOST.model_dump(), "rounds": None, **lost})
    assert hold_against(site, [PublicHead.sign(site.identity, releases, "cd" * 32)])
    if enough:
        settled(desk, site, entered)
        return
    with pytest.raises(InputError, match=f"counts {releases} releases; this log holds 0.*with their `rounds`"):
        two_people.propose_restored(site, desk.login("ann"), (entered,), "restored")
    # Twice the same one, for two populations or by mistake, was released once.
    with pytest.raises(InputError, match=f"counts {releases} releases"):
        two_people.propose_restored(site, desk.login("ann"), (entered, entered), "restored")


def test_two_lost_studies_explain_the_releases_of_both(desk: Desk) -> None:
    assert hold_against(desk.site, [PublicHead.sign(desk.site.identity, 32, "cd" * 32)])
    settled(desk, desk.site, LOST, LOST.model_copy(update={"study": "d" * 64}))


def test_steps_that_are_not_those_of_the_rounds_are_refused() -> None:
    with pytest.raises(ValidationError, match="are not those of 15 rounds"):
        LostStudy.model_validate({**LOST.model_dump(), "steps": 5, "rounds": 15})


# -- who has withdrawn -------------------------------------------------------------------------------------------------


@pytest.fixture
def patients(running: Running) -> Iterator[list[str]]:
    """Pseudonyms of the running study's table; whoever withdraws is back after the test."""
    home = running.site.home
    with np.load(records_folder(home, running.study_hash) / "records.npz") as stored:
        yield [str(patient) for patient in stored["patient"][:3]]
    shutil.rmtree(home.withdrawals, ignore_errors=True)


def rows(study: Running) -> int:
    return sum(len(part.y) for part in partitions(study.site.home, open_case(study.site.home, study.row)).values())


def withdraw(study: Running, patient: str) -> int:
    return consent.withdraw(study.site, study.desk.login("ann"), "heart", patient, "letter of the patient").patients


def older(home: Home) -> None:
    """The list of the night before, with the first of two on it."""
    path = home.withdrawals / "heart.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:1]))


def gone(home: Home) -> None:
    (home.withdrawals / "heart.json").unlink()


@pytest.mark.parametrize(("restore", "lacking"), [(older, 1), (gone, 2)])
@pytest.mark.parametrize("by_name", [True, False])
def test_a_list_that_came_back_from_a_backup_puts_nobody_back(
    running: Running,
    patients: list[str],
    restore: Callable[[Home], None],
    lacking: int,
    by_name: bool,
) -> None:
    site, home, before = running.site, running.site.home, rows(running)
    first, second, third = patients
    assert (withdraw(running, first), withdraw(running, second)) == (1, 2)
    assert rows(running) == before - 2
    require_one_story(home)
    restore(home)
    assert rows(running) == before - 2, "the log counts where the list does not"
    words = f"withdrawals of population heart: the list lacks {lacking} of"
    running.set_up()
    running.open(1)
    with pytest.raises(AccountsDiffer, match=words):
        running.steps()
    assert nothing_left(running, 1)
    with pytest.raises(AccountsDiffer, match=words):
        Service(restarted(site))
    assert any(words in c.message for c in doctor(site, ["accounts"]) if c.name == "accounts" and c.state == "bad")
    withdraw(running, third)
    with pytest.raises(AccountsDiffer, match=words):
        require_one_story(home)  # another one makes nothing good
    if by_name:
        withdraw(running, first)
        withdraw(running, second)
        require_one_story(restarted(site).home)
    else:
        site = running.site = settled(running.desk, site)
    assert rows(running) == before - 3
    assert not any(patient.encode() in home.audit.read_bytes() for patient in patients)


def test_a_withdrawal_that_a_log_lost_is_known_by_its_anchor(
    running: Running,
    patients: list[str],
    tmp_path: Path,
) -> None:
    home, before = running.site.home, rows(running)
    backup = Backup(home, tmp_path / "backup")
    withdraw(running, patients[0])
    backup.restore_database()
    backup.restore_log()
    gone(home)
    again(running)
    running.site = settled(running.desk, running.site)
    assert rows(running) == before - 1


def test_who_is_on_the_list_and_not_in_the_log_is_logged_at_the_start(
    running: Running,
    patients: list[str],
) -> None:
    """Killed between list and log, or entered by an older version."""
    home, before = running.site.home, rows(running)
    home.withdrawals.mkdir(exist_ok=True)
    (home.withdrawals / "heart.json").write_text(json.dumps(patients[:1]))
    for _ in range(2):
        site = again(running)
        log_the_list(site)
    assert len(running.site.home.audit.read_text().split('"kind":"withdrawn"')) == 2
    gone(home)
    assert rows(running) == before - 1
    assert list(differences(home))
