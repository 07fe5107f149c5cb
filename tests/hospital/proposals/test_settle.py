"""I17, I5: after a restore the larger loss of all that is known counts, on two people's word, and nothing before it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from datasites.hospital.audit.log import AuditLog, head_file
from datasites.hospital.budget import ledger, ledger_log, population
from datasites.hospital.budget.ledger import BudgetExceeded, PrivacyCost
from datasites.hospital.budget.population import open_populations
from datasites.hospital.budget.reconcile import AccountsDiffer, differences, require_one_story
from datasites.hospital.cases.examination import recheck
from datasites.hospital.cases.review import ReviewError
from datasites.hospital.data import patients
from datasites.hospital.doctor import examine as doctor
from datasites.hospital.evidence import verify_bundle
from datasites.hospital.evidence.export import export_evidence
from datasites.hospital.models import BudgetFact, Case, LedgerEntry, Population, Proposal, Round
from datasites.hospital.proposals import restored, two_people
from datasites.hospital.proposals.restored import Lost, hold_against
from datasites.hospital.rounds import lifecycle
from datasites.hospital.rounds.journals import give_up_keys, journal_of
from datasites.hospital.service import Service
from datasites.hospital.site import Site
from datasites.privacy.plan import PrivacyPlan
from datasites.secagg.journal import Anchor
from datasites.study import letters
from datasites.study.audit_chain import AuditError, Fork, PublicHead, records
from datasites.study.errors import DatasitesError, InputError, read_toml
from datasites.study.identity import BadSignature, Identity
from tests.hospital.budget.accounts import ROUND, STUDY, WHOLE, Backup, restarted, spent
from tests.hospital.desk import Desk
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
from tests.hospital.running import Running
from tests.kills import Killed

PLAN = PrivacyPlan(clip=1.0, noise_multiplier=4.0, sampling_rate=0.3, rounds=15, steps_per_round=5)


@pytest.fixture
def charged(desk: Desk) -> Site:
    """A study that has charged three rounds of fifteen."""
    heart = desk.site.home.dataset("heart")
    ledger.reserve(desk.site, heart, STUDY, WHOLE)
    for number in (1, 2, 3):
        ledger.charge(desk.site, heart, STUDY, number, ROUND)
    return desk.site


# -- the database alone ------------------------------------------------------------------------------------------------


def nothing() -> None:
    LedgerEntry.objects.all().delete()


def cheaper() -> None:
    for entry in LedgerEntry.objects.filter(kind="charge"):
        entry.charges[0]["noise_multiplier"] *= 100
        entry.save()


def ended() -> None:
    LedgerEntry.objects.create(population="heart", partition="training", study_hash=STUDY, kind="release")


@pytest.mark.parametrize("edit", [no_charges, nothing, cheaper, ended])
def test_what_was_taken_from_the_database_is_put_back_and_the_study_goes_on(
    desk: Desk,
    charged: Site,
    edit: Callable[[], None],
) -> None:
    before = ledger.accounts_of("heart")
    edit()
    site, heart = settled(desk, charged), charged.home.dataset("heart")
    assert ledger.accounts_of("heart") == before
    ledger.charge(site, heart, STUDY, 4, ROUND)
    with pytest.raises(BudgetExceeded, match="cap of 4"):
        ledger.reserve(site, heart, "b" * 64, WHOLE)


def test_a_row_that_was_added_counts_once_two_people_have_looked(desk: Desk, charged: Site) -> None:
    entry = LedgerEntry.objects.get(kind="charge", round=3)
    entry.pk, entry.round = None, 9
    entry.save()
    site = settled(desk, charged)
    assert set(ledger_log.tell(site.home).of("heart")[STUDY].charged) == {1, 2, 3, 9}


def test_a_split_that_was_lost_charges_both_sides_and_ends_what_is_open(desk: Desk, charged: Site) -> None:
    BudgetFact.objects.all().delete()
    Population.objects.all().delete()
    site, heart = settled(desk, charged), charged.home.dataset("heart")
    assert population.charges_both_sides("heart", "mrn")
    with pytest.raises(BudgetExceeded, match="charged in full after a restore"):
        ledger.charge(site, heart, STUDY, 4, ROUND)


def test_nothing_is_settled_where_nothing_differs(desk: Desk, charged: Site) -> None:
    with pytest.raises(ReviewError, match="nothing to settle"):
        two_people.propose_restored(charged, desk.login("ann"), (), "why not")


# -- the whole home ----------------------------------------------------------------------------------------------------


@pytest.fixture
def put_back(desk: Desk, tmp_path: Path) -> Site:
    """Database and log as after round 1 of a study that has charged eight rounds; the anchors are gone."""
    heart = desk.site.home.dataset("heart")
    ledger.reserve(desk.site, heart, STUDY, WHOLE)
    ledger.charge(desk.site, heart, STUDY, 1, ROUND)
    backup = Backup(desk.site.home, tmp_path / "backup")
    for number in range(2, 9):
        ledger.charge(desk.site, heart, STUDY, number, ROUND)
    backup.restore_database()
    backup.restore_log()
    backup.lose_anchors()
    return restarted(desk.site)


def test_an_open_study_counts_as_charged_in_full_where_the_anchor_is_gone(desk: Desk, put_back: Site) -> None:
    heart = put_back.home.dataset("heart")
    assert spent(put_back) > 0
    for act in (
        lambda: ledger.reserve(put_back, heart, "b" * 64, ROUND),
        lambda: ledger.charge(put_back, heart, STUDY, 9, ROUND),
    ):
        with pytest.raises(AccountsDiffer, match="is missing"):
            act()
    site = settled(desk, put_back)
    state = ledger.state(heart)[0]
    assert state.spent == pytest.approx(state.committed)
    assert state.spent == pytest.approx(ledger.Measure.of(heart).epsilon([PLAN.event()]))
    with pytest.raises(BudgetExceeded, match="charged in full after a restore"):
        ledger.charge(site, heart, STUDY, 9, ROUND)
    ledger.close(site, STUDY)
    assert ledger.state(heart)[0].committed == pytest.approx(state.spent), "its end frees nothing"


def test_what_was_approved_after_the_backup_counts_in_full(desk: Desk, put_back: Site) -> None:
    heart = put_back.home.dataset("heart")
    site = settled(desk, put_back, LOST)
    events = [PLAN.event(), PLAN.event()]
    assert ledger.state(heart)[0].spent == pytest.approx(ledger.Measure.of(heart).epsilon(events))
    with pytest.raises(BudgetExceeded):
        ledger.reserve(site, heart, "b" * 64, ROUND)
    with pytest.raises(BudgetExceeded, match="has reserved before"):
        ledger.reserve(site, heart, LOST.study, ROUND)
    assert population.charges_both_sides("heart", "mrn"), "which column it told patients apart by is not known"
    (said,) = [r.fields for r in records(site.home.audit) if r.kind == "restored"]
    assert (said["entered_by"], said["confirmed_by"], said["lost"]) == ("ann", "bob", [LOST.study])
    entered = Proposal.objects.get(kind="restored")
    assert "75 steps at noise 4 and rate 0.3, final evaluation at noise 100" in two_people.in_words(entered)


def test_where_the_ledgers_anchor_is_there_it_says_what_was_charged(desk: Desk, tmp_path: Path) -> None:
    heart = desk.site.home.dataset("heart")
    ledger.reserve(desk.site, heart, STUDY, WHOLE)
    backup = Backup(desk.site.home, tmp_path / "backup")
    for number in range(1, 6):
        ledger.charge(desk.site, heart, STUDY, number, ROUND)
    before = spent(desk.site)
    backup.restore_database()
    backup.restore_log()
    site = settled(desk, restarted(desk.site))
    assert spent(site) == before
    assert set(ledger_log.tell(site.home).of("heart")[STUDY].charged) == {1, 2, 3, 4, 5}
    ledger.charge(site, heart, STUDY, 6, ROUND)


def test_a_damaged_anchor_is_said_and_is_as_good_as_gone_once_it_is_moved_away(desk: Desk, charged: Site) -> None:
    charged.home.ledger_anchor.write_bytes(b"{}")
    ledger_log.forget(charged.home)
    with pytest.raises(AuditError, match="move it away as evidence"):
        require_one_story(charged.home)
    charged.home.ledger_anchor.unlink()
    site = settled(desk, restarted(charged))
    assert 0 in ledger_log.tell(site.home).of("heart")[STUDY].charged


# -- what shows that there was more ------------------------------------------------------------------------------------


def release(site: Site, times: int) -> PublicHead:
    for number in range(times):
        site.audit.append("released", study=STUDY, round=number)
    return site.audit.public_head()


def test_a_head_that_others_hold_stops_everything_until_what_was_lost_is_entered(
    desk: Desk,
    charged: Site,
    tmp_path: Path,
) -> None:
    """All was put back together, anchors included: nothing in here can know, and a head that left does."""
    shutil.copytree(charged.home.anchors, tmp_path / "anchors")
    backup = Backup(charged.home, tmp_path / "backup")
    head = release(charged, 16)
    ledger.charge(charged, charged.home.dataset("heart"), STUDY, 4, ROUND)
    backup.restore_database()
    backup.restore_log()
    shutil.rmtree(charged.home.anchors)
    shutil.copytree(tmp_path / "anchors", charged.home.anchors)
    site = restarted(charged)
    require_one_story(site.home)
    assert hold_against(site, [site.audit.public_head()]) == []
    assert hold_against(site, [head]) == [head]
    with pytest.raises(AccountsDiffer, match="other parties hold heads"):
        ledger.reserve(site, site.home.dataset("heart"), "b" * 64, ROUND)
    with pytest.raises(InputError, match="counts 16 releases; this log holds 0"):
        two_people.propose_restored(site, desk.login("ann"), (), "restored")
    after = settled(desk, site, LOST)
    assert hold_against(after, [head]) == [], "its part of the log was settled"
    require_one_story(after.home)


def test_heads_of_others_and_forged_ones_hold_nobody_up(site: Site) -> None:
    stranger = Identity.generate("datasite@elsewhere.example.org")
    true = site.audit.public_head()
    with pytest.raises(InputError, match="another hospital's log"):
        hold_against(site, [PublicHead.sign(stranger, 5, "ab" * 32)])
    with pytest.raises(InputError, match="ask its holder again"):
        hold_against(site, [true.model_copy(update={"releases": 5})])
    assert not site.home.unknown_heads.exists()


def test_the_anchor_of_a_journal_shows_a_study_that_nothing_else_knows(desk: Desk, put_back: Site) -> None:
    put_back.home.anchors.mkdir(exist_ok=True)
    (put_back.home.anchors / LOST.study).write_bytes(b"{}")
    with pytest.raises(InputError, match="enter it"):
        two_people.propose_restored(put_back, desk.login("ann"), (), "restored")
    settled(desk, put_back, LOST)


def test_a_lost_study_of_an_unknown_population_is_refused(desk: Desk, put_back: Site) -> None:
    with pytest.raises(InputError, match=r"'hart': not here \(known: heart\)"):
        two_people.propose_restored(
            put_back, desk.login("ann"), (LOST.model_copy(update={"population": "hart"}),), "restored"
        )


def test_the_file_of_lost_studies(tmp_path: Path) -> None:
    file = tmp_path / "lost.toml"
    words = LOST.model_dump(exclude_defaults=True)
    file.write_text("[[study]]\n" + "\n".join(f"{name} = {value!r}" for name, value in words.items()))
    assert read_toml(file, Lost).study == (LOST,)


# -- kills -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["_declare", "adopt", "pending.bring_up", "_stop_studies", "replace_durably"])
@pytest.mark.parametrize("after", [False, True])
def test_killed_anywhere_it_is_confirmed_again(
    desk: Desk,
    put_back: Site,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    after: bool,
) -> None:
    entered = two_people.propose_restored(put_back, desk.login("ann"), (LOST,), "restored")
    acted: object = restored
    for name in step.split("."):
        acted = getattr(acted, name)

    def killed(*arguments: object, **fields: object) -> None:
        if after:
            acted(*arguments, **fields)  # type: ignore[operator]
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"datasites.hospital.proposals.restored.{step}", killed)
        with pytest.raises(Killed):
            two_people.confirm(put_back, desk.login("bob"), entered.pk)
    site = restarted(put_back)
    assert any(differences(site.home)), "nothing runs in between"
    two_people.confirm(site, desk.login("bob"), entered.pk)
    site = restarted(site)
    require_one_story(site.home)
    heart = site.home.dataset("heart")
    assert ledger.state(heart)[0].spent == pytest.approx(ledger.Measure.of(heart).epsilon([PLAN.event()] * 2))
    assert Proposal.objects.get(pk=entered.pk).outcome == "confirmed"


# -- a running study ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edit", [no_charges, cheaper])
def test_a_ledger_that_is_edited_under_the_running_service_ends_it_and_nothing_leaves(
    running: Running, edit: Callable[[], None]
) -> None:
    running.set_up()
    a_round(running, 1)
    before = spent(running.site)
    edit()
    running.open(2)
    with pytest.raises(AccountsDiffer, match="round 1: database and audit log differ"):
        running.steps()
    assert nothing_left(running, 2)
    assert spent(running.site) == before
    with pytest.raises(AccountsDiffer):
        Service(again(running))


@on_sqlite
def test_a_file_of_tables_that_was_put_back_three_rounds(running: Running, tmp_path: Path) -> None:
    running.set_up()
    a_round(running, 1)
    backup = WholeHome(running.site, tmp_path / "backup")
    for number in (2, 3, 4):
        a_round(running, number)
    before = spent(running.site)
    backup.restore_tables()
    assert LedgerEntry.objects.filter(kind="charge").count() == 1
    assert spent(running.site) == before
    running.open(5)
    with pytest.raises(AccountsDiffer, match="round 2: database and audit log differ"):
        running.steps()
    assert nothing_left(running, 5)
    site = again(running)
    with pytest.raises(AccountsDiffer, match="round 2"):
        Service(site)
    bad = [check.message for check in doctor(site, ["accounts"]) if check.name == "accounts" and check.state == "bad"]
    assert [number for number in range(1, 5) if any(f"round {number}:" in words for words in bad)] == [2, 3, 4]
    site = settled(running.desk, site)
    # Round 5 was opened in the journal, which closes it for good; so it is paid for, too.
    assert set(ledger_log.tell(site.home).of("heart")[running.study_hash].charged) == {1, 2, 3, 4, 5}
    assert spent(site) > before
    row = Case.objects.get(pk=running.row.pk)
    assert row.state == Case.State.STOPPED
    assert "rejoin" in row.note
    assert Round.objects.filter(case=row).count() == 5


@on_sqlite
def test_the_guides_own_restore_refunds_nothing_and_the_study_does_not_go_on(running: Running, tmp_path: Path) -> None:
    """A home without anchors: rounds after the backup were released, and nothing here says how many."""
    running.set_up()
    a_round(running, 1)
    backup = WholeHome(running.site, tmp_path / "backup")
    for number in (2, 3):
        a_round(running, number)
    home, whole = running.site.home, committed(running.site)
    before = spent(running.site)
    backup.restore()
    shutil.rmtree(home.anchors)
    site = again(running)
    with pytest.raises(AccountsDiffer, match="is missing"):
        Service(site)
    with pytest.raises(AccountsDiffer):
        ledger.reserve(site, home.dataset("heart"), "b" * 64, ROUND)
    with pytest.raises(ReviewError):
        lifecycle.rejoin(
            site, running.row.pk, running.desk.login("ann"), "as the guide says"
        )  # it runs, as the tables say
    site = settled(running.desk, site)
    assert spent(site) == pytest.approx(whole)
    assert spent(site) > before
    row = Case.objects.get(pk=running.row.pk)
    assert (row.state, "charged in full" in row.note) == (Case.State.STOPPED, True)
    with pytest.raises(DatasitesError, match="charged in full after a restore"):
        lifecycle.rejoin(site, row.pk, running.desk.login("ann"), "as the guide says")
    lifecycle.revoke(site, row.pk, running.desk.login("ann"), "lost")
    assert committed(site) == pytest.approx(whole), "nothing is refunded"
    with pytest.raises(BudgetExceeded):
        ledger.reserve(site, home.dataset("heart"), "b" * 64, {"training": PrivacyCost(PLAN.event(), PLAN.event())})


@on_sqlite
@pytest.mark.parametrize("ledgers", [True, False])
def test_rejoining_charges_what_the_anchors_know_and_goes_on_in_a_new_epoch(
    running: Running, tmp_path: Path, ledgers: bool
) -> None:
    """Of the ledger's anchor, or, where that one is gone, of the journal's."""
    running.set_up()
    a_round(running, 1)
    backup = WholeHome(running.site, tmp_path / "backup")
    for number in (2, 3):
        a_round(running, number)
    home, before = running.site.home, spent(running.site)
    backup.restore()
    if not ledgers:
        home.ledger_anchor.unlink()
    site = again(running)
    with pytest.raises(AccountsDiffer):
        Service(site)
    site = settled(running.desk, site)
    assert spent(site) == pytest.approx(before)
    row = lifecycle.rejoin(site, running.row.pk, running.desk.login("ann"), "restored")
    assert spent(site) == pytest.approx(before)
    give_up_keys(home, running.study_hash)
    Case.objects.filter(pk=row.pk).update(rejoins=False)
    running.site = running.desk.site = site
    running.restart()
    assert running.journal.floor[1] == 3, "no round that was released is opened again"
    running.set_up(epoch=1, first_round=4)
    a_round(running, 4)
    assert spent(site) > before
    letter = running.heard(4, letters.MASKED)
    assert letter is not None
    body = letters.Masked.model_validate(letter.body)
    assert body.fork is not None
    body.fork.check(site.identity.public_key)
    # The log came back with one release in it: its heads go back, as the fork says.
    assert (body.fork.continues.releases, body.audit.releases) == (1, 2)
    running.restart().step()  # owes nothing, and what it would send again says the same
    running.steps()
    bundle = tmp_path / "bundle.zip"
    failed = [check for check in export_evidence(site, row.pk, bundle) if not check.ok]
    assert failed == []
    given = [head_of(running, number).model_dump() for number in (1, 2, 3, 4)]
    checks = verify_bundle.verify(bundle, site.identity.public_key, given)
    assert [check for check in checks if not check.ok] == []
    assert any("2 are of a part of the log that was LOST" in check.found for check in checks)


def test_rejoining_charges_rounds_that_the_journal_reached_and_nobody_charged(running: Running) -> None:
    running.set_up()
    a_round(running, 1)
    running.run.close()
    site, study = running.site, running.study_hash
    one = spent(site)
    Case.objects.filter(pk=running.row.pk).update(state=Case.State.STOPPED)
    _, path = journal_of(site.home, study)
    anchor = Anchor.parse(path.read_bytes())
    path.write_bytes(anchor.model_copy(update={"last_round": 3}).canonical())
    lifecycle.rejoin(site, running.row.pk, running.desk.login("ann"), "restored")
    assert set(ledger_log.tell(site.home).of("heart")[study].charged) == {1, 2, 3}
    assert spent(site) > one
    require_one_story(restarted(site).home)


# -- what others are told ----------------------------------------------------------------------------------------------


def test_a_fork_is_signed_by_the_hospital_and_by_nobody_else(site: Site) -> None:
    stranger = Identity.generate("datasite@elsewhere.example.org")
    one, two = site.audit.public_head(), PublicHead.sign(site.identity, 0, "ab" * 32)
    fork = Fork.sign(site.identity, one, two)
    fork.check(site.identity.public_key)
    for forged in (
        Fork.sign(stranger, one, two),
        fork.model_copy(update={"goes_on": one}),
        Fork.sign(stranger, PublicHead.sign(stranger, 0, "ab" * 32), PublicHead.sign(stranger, 0, "cd" * 32)),
    ):
        with pytest.raises(BadSignature):
            forged.check(site.identity.public_key)


def test_a_home_is_open_as_before_where_nothing_was_lost(site: Site) -> None:
    again = Site(site.home, site.identity, AuditLog(site.home.audit, site.identity))
    open_populations(again)
    require_one_story(restarted(again).home)


def test_a_case_whose_list_the_restored_log_does_not_know_is_approved_once_that_is_settled(
    desk: Desk,
) -> None:
    """The list that is there passes for all patients no more, so nobody on it, or missing, is a new person."""
    home = desk.site.home
    desk.agree()
    ledger_log.write_anchor(home)
    backup = {path: path.read_bytes() for path in (home.audit, head_file(home.audit))}
    recheck(desk.site, desk.row.pk)
    desk.row = Case.objects.get(pk=desk.row.pk)
    assert desk.row.listed_as
    desk.approve("ann")
    for path, data in backup.items():
        path.write_bytes(data)
    desk.site = settled(desk, restarted(desk.site))
    patients.log_lists(desk.site)
    assert not desk.site.audit.holds(ledger_log.PATIENTS_KEPT, token=desk.row.listed_as)
    assert desk.approve("bob").state == Case.State.APPROVED
    assert patients.in_part(home) == ["heart"]
