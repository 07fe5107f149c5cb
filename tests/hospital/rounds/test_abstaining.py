"""A round is sat out or released, never both, and the log says which, once, also where it is killed in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from datasites.hospital.audit.log import AuditLog
from datasites.hospital.cases import review
from datasites.hospital.models import Case, Round
from datasites.hospital.rounds import lifecycle
from datasites.hospital.rounds.abstaining import abstention_of, log_abstention
from datasites.hospital.rounds.journals import give_up_keys
from datasites.hospital.rounds.release import RoundReleases
from datasites.study import letters
from datasites.study.audit_chain import records
from tests.hospital.desk import Desk
from tests.hospital.running import OWN, RESEARCHER, Running
from tests.kills import Killed, kill_before

pytestmark = pytest.mark.waits


def test_a_round_that_was_sat_out_leaves_nothing_although_its_vector_was_made(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the journal's commit and the record; the next start can't open the study, and people answer."""
    killed_at_release(running, monkeypatch, kill_before(RoundReleases, "_send"))
    lifecycle.sit_out(running.site, running.row.pk, running.desk.login("bob"), "it is not to leave")
    running.restart()
    running.steps()
    assert running.heard(1, letters.ABSTAINED)
    assert running.heard(1, letters.MASKED) is None
    assert Round.objects.get().state == Round.State.FAILED
    assert not running.logged("released")


def test_a_hospital_that_returns_charges_only_what_can_still_count(running: Running) -> None:
    """It sits out a round that the researcher has said is over, takes the next, and believes nobody else."""
    other = next(email for email in running.rooms if email not in (OWN, RESEARCHER))
    running.set_up()
    running.open(1)
    running.tell(1, letters.OVER, {})
    running.restart()
    running.steps()
    letter = running.heard(1, letters.ABSTAINED)
    assert letter is not None
    assert letter.body == {"outcome": "denied", "controls": ["round-over"]}
    assert [record.fields["controls"] for record in running.logged("abstained")] == [["round-over"]]
    assert not running.logged("charged")
    running.open(2)
    running.tell(2, letters.OVER, {}, sender=other)
    running.steps()
    assert running.heard(2, letters.MASKED)
    running.open(3)
    running.until_at_work()
    running.tell(3, letters.OVER, {})
    running.steps()
    assert running.heard(3, letters.MASKED), "it was charged, so it goes on"
    assert [record.fields["round"] for record in running.logged("charged")] == [2, 3]


def test_a_round_that_is_charged_goes_on_after_a_restart_although_it_is_over(running: Running) -> None:
    """What becomes of a charged round must not hang on how far the work on its rows had come."""
    running.set_up()
    running.open(1)
    running.until_at_work()
    running.tell(1, letters.OVER, {})
    running.restart()
    running.steps()
    assert running.heard(1, letters.MASKED)
    assert not running.heard(1, letters.ABSTAINED)
    assert len(running.logged("charged")) == 1


def test_people_who_answer_between_the_journal_and_the_record_are_heard(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, bob = RoundReleases._send, running.desk.login("bob")

    def answered_by_then(*arguments: Any, **options: Any) -> bool:
        Case.objects.filter(pk=running.row.pk).update(state=Case.State.STOPPED)
        lifecycle.sit_out(running.site, running.row.pk, bob, "it is not to leave")
        return send(*arguments, **options)

    running.set_up()
    running.open(1)
    monkeypatch.setattr(RoundReleases, "_send", answered_by_then)
    running.steps()
    assert running.heard(1, letters.ABSTAINED)
    assert running.heard(1, letters.MASKED) is None
    assert not running.logged("released")
    assert len(running.logged("sat_out")) == 1


def test_a_round_whose_release_is_logged_is_not_sat_out(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the record and the database."""
    killed_at_release(running, monkeypatch, kill_before(Round, "save"))
    assert Round.objects.get().state == Round.State.CHARGED
    assert running.logged("released")
    with pytest.raises(review.ReviewError, match="round 1 is released"):
        lifecycle.sit_out(running.site, running.row.pk, running.desk.login("bob"), "it is not to leave")
    lifecycle.resume(running.site, running.row.pk, running.desk.login("bob"), "mended")
    running.restart()
    running.steps()
    assert running.heard(1, letters.MASKED)
    assert running.heard(1, letters.ABSTAINED) is None
    assert len(running.logged("released")) == 1


def test_a_round_that_was_left_with_its_keys_is_not_answered_in_the_next_epoch(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the record of its release and the database; then people give the keys up."""
    killed_at_release(running, monkeypatch, kill_before(Round, "save"))
    assert running.logged("released")
    lifecycle.rejoin(running.site, running.row.pk, running.desk.login("ann"), "the disk failed")
    give_up_keys(running.site.home, running.study_hash)  # as the service does, before it follows the study again
    Case.objects.filter(pk=running.row.pk).update(rejoins=False)
    running.restart()
    running.set_up(epoch=1, first_round=2)
    running.steps()
    assert running.heard(1, letters.ABSTAINED) is None
    assert running.heard(1, letters.MASKED) is None
    assert not running.logged("abstained")
    assert Round.objects.get().state == Round.State.CHARGED
    running.open(2)
    running.steps()
    assert running.heard(2, letters.MASKED), "and the study goes on"


def test_a_hospital_that_gave_its_keys_up_says_so_of_each_new_round_until_the_next_epoch(running: Running) -> None:
    """That is how the researcher learns that another epoch is due; of rounds that it had reached it says nothing."""
    running.set_up()
    running.open(1)
    running.steps()
    assert running.heard(1, letters.MASKED)
    Case.objects.filter(pk=running.row.pk).update(state=Case.State.STOPPED)
    lifecycle.rejoin(running.site, running.row.pk, running.desk.login("ann"), "the disk failed")
    running.run.close()
    give_up_keys(running.site.home, running.study_hash)
    Case.objects.filter(pk=running.row.pk).update(rejoins=False)
    running.restart()
    running.steps()
    assert running.heard(1, letters.ABSTAINED) is None
    running.open(2)
    running.steps()
    running.restart()
    running.steps()
    letter = running.heard(2, letters.ABSTAINED)
    assert letter is not None
    assert letter.body == {"outcome": "denied", "controls": ["epoch-lost"]}
    assert [record.fields["round"] for record in running.logged("charged")] == [1]
    assert len(running.logged("abstained")) == 1
    running.set_up(epoch=1, first_round=3)
    running.open(3)
    running.steps()
    assert running.heard(3, letters.MASKED)
    assert running.heard(2, letters.MASKED) is None


@pytest.mark.parametrize("rejoins", [False, True])
def test_a_hospital_that_never_had_keys_answers_no_round_and_takes_the_first_epoch(
    running: Running, rejoins: bool
) -> None:
    """Whatever its researcher sends before there is one; also where people rejoined, of which there was no need."""
    running.tell(1, letters.ROUND, {"manifest": "nothing"})
    running.steps()
    if rejoins:
        Case.objects.filter(pk=running.row.pk).update(state=Case.State.STOPPED)
        lifecycle.rejoin(running.site, running.row.pk, running.desk.login("ann"), "to be sure")
        running.run.close()
        give_up_keys(running.site.home, running.study_hash)
        Case.objects.filter(pk=running.row.pk).update(rejoins=False)
    running.restart()
    running.steps()
    assert not Round.objects.exists()
    assert running.heard(1, letters.ABSTAINED) is None
    assert not running.logged("abstained")
    running.set_up()
    running.open(2)
    running.steps()
    assert running.heard(2, letters.MASKED)


def test_a_round_that_was_only_sat_out_is_none_that_a_journal_has_lost(running: Running) -> None:
    """As earlier versions answered one before the first epoch: it keeps no service from starting, and no epoch out."""
    running.run._abstain(running.row, 1, "failed", (), "its letter can't be read")
    running.restart()
    assert running.journal.floor == (-1, 0)
    running.run.close()
    give_up_keys(running.site.home, running.study_hash)
    running.restart()
    assert running.journal.floor == (-1, 0)
    running.set_up()
    running.open(1)
    running.steps()
    assert running.heard(1, letters.MASKED) is None, "it was sat out"


def test_a_round_whose_release_is_logged_is_no_abstention_either(running: Running) -> None:
    running.site.audit.append("released", study=running.study_hash, round=1)
    running.run._abstain(running.row, 1, "failed", (), "its letter can't be read")
    running.row.refresh_from_db()
    assert running.row.state == Case.State.STOPPED
    assert "round 1 is released" in running.row.note
    assert running.heard(1, letters.ABSTAINED) is None
    assert not running.logged("abstained")


def test_what_people_answered_stands_against_what_the_service_would(running: Running) -> None:
    Round.objects.create(case=running.row, round=1, epoch=0, manifest_hash="", state=Round.State.CHARGED)
    Case.objects.filter(pk=running.row.pk).update(state=Case.State.STOPPED)
    lifecycle.sit_out(running.site, running.row.pk, running.desk.login("bob"), "we sit it out")
    running.run._abstain(running.row, 1, "denied", ("irb",), "denied by irb")
    assert len(running.logged("sat_out")) == 1
    assert not running.logged("abstained")
    assert abstention_of(Round.objects.get()) == letters.Abstention(outcome="failed")


def killed_at_release(running: Running, monkeypatch: pytest.MonkeyPatch, kill: Callable[[Any], None]) -> None:
    """Round 1, killed once the journal holds its vector; then the study can't be opened, and is stopped."""
    running.set_up()
    running.open(1)
    running.until_at_work()
    with monkeypatch.context() as patch:
        kill(patch)
        with pytest.raises(Killed):
            running.steps()
    state = running.journal.state
    assert state is not None
    assert state.open is not None
    assert state.open.header is not None
    running.run.close(wait=True)
    Case.objects.filter(pk=running.row.pk).update(state=Case.State.STOPPED, note="can't be opened")


def stopped_at_round(desk: Desk, **states: Round.State) -> Case:
    """An approved case, stopped, with these rounds: r1, r2, ..."""
    desk.agree()
    desk.approve("ann")
    row = desk.approve("bob")
    for name, state in states.items():
        Round.objects.create(case=row, round=int(name[1:]), epoch=0, manifest_hash="", state=state)
    Case.objects.filter(pk=row.pk).update(state=Case.State.STOPPED)
    return row


@pytest.mark.parametrize("killed", [False, True])
def test_that_people_sit_a_round_out_is_logged_once_it_is_decided_and_once(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    killed: bool,
) -> None:
    row, bob = stopped_at_round(desk, r1=Round.State.CHARGED), desk.login("bob")
    if killed:
        with monkeypatch.context() as patch:
            kill_before(AuditLog, "append_once")(patch)
            with pytest.raises(Killed):
                lifecycle.sit_out(desk.site, row.pk, bob, "out of memory")
    else:
        lifecycle.sit_out(desk.site, row.pk, bob, "out of memory")
    round = Round.objects.get()
    assert round.state == Round.State.FAILED
    for _ in range(2):  # as the service does when it goes on
        log_abstention(desk.site, row.study_hash, round)
    (record,) = [
        r for r in records(desk.site.home.audit) if r.kind == "sat_out" and r.fields["study"] == row.study_hash
    ]
    wanted = {"round": 1, "person": "bob", "role": "privacy_officer", "reason": "out of memory"}
    assert wanted.items() <= record.fields.items()
    assert abstention_of(round) == letters.Abstention(outcome="failed"), "no reason and nobody's name"


def test_people_sit_the_newest_round_out_and_none_that_was_left_before_it(desk: Desk) -> None:
    row = stopped_at_round(desk, r1=Round.State.CHARGED, r2=Round.State.UNMASKED)
    with pytest.raises(review.ReviewError, match="no round of it waits"):
        lifecycle.sit_out(desk.site, row.pk, desk.login("bob"), "we sit it out")
    assert Round.objects.get(round=1).state == Round.State.CHARGED
