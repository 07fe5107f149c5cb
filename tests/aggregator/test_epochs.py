"""Another epoch of the secure sum follows where one is due, lets in whoever is there, and costs a round at most."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from datasites.aggregator.epochs import EpochRefused
from datasites.aggregator.gather import RunError
from datasites.researcher.study import Study
from datasites.secagg.epoch_terms import EPOCH_ROUNDS
from datasites.study import letters
from datasites.study.identity import Identity
from datasites.study.manifest import MOST_ROUNDS
from datasites.study.package import StudyPackage
from datasites.study.roster import Roster
from tests.aggregator.interruptions import begin_round, fail_once, lose
from tests.researcher.conftest import HEART
from tests.researcher.hospitals import Federation
from tests.transport.parties import RESEARCHER, Party, make_parties

pytestmark = pytest.mark.waits

# -- one that is over is followed by another ---------------------------------------------------------------------------


@contextmanager
def of_rounds(rounds: int, folder: Path) -> Iterator[Federation]:
    """The heart study over so many rounds, among hospitals of its own."""
    files = dict(StudyPackage.read(HEART).files)
    files["study.toml"] = re.sub(rb"(?m)^rounds = 15$", b"rounds = %d" % rounds, files["study.toml"])
    study = Study(HEART, StudyPackage(files))
    parties = make_parties(folder, str(folder / "store"), study.terms.cohort.hospitals)
    federation = Federation(parties, study, folder / "run")
    try:
        yield federation
    finally:
        federation.stop()
        for party in parties:
            party.stop()


@pytest.mark.long
def test_a_study_of_more_rounds_than_an_epoch_goes_on_in_the_next_one(tmp_path: Path) -> None:
    """Keys of a hundred rounds at most lie on the hospitals' disks at one time."""
    rounds = EPOCH_ROUNDS + 1
    with of_rounds(rounds, tmp_path) as federation:
        run = federation.run()
        run.complete(progress=False)
        left = federation.researcher.mailroom.mailbox(run.study.hash)
    assert [record.outcome for record in run.state.rounds] == ["done"] * (rounds + 1)
    assert [record.epoch for record in run.state.rounds] == [0] * EPOCH_ROUNDS + [1, 1]
    assert not [kind for _, kind, _ in left if letters.setup_epoch(kind)], "setups that are over leave nothing behind"


@pytest.mark.slow
def test_the_longest_study_goes_through_its_first_and_its_last_epoch(tmp_path: Path) -> None:
    """Ten thousand rounds; those between the first epoch and the last are passed over."""
    with of_rounds(MOST_ROUNDS, tmp_path) as federation:
        run = federation.run(setup_patience=60.0, round_timeout=60.0)
        run.next_round()
        for number in (MOST_ROUNDS, MOST_ROUNDS + 1):
            federation.files.save_model(number, np.zeros(5, np.float32), {})
            run._progress.save(next_round=number)
            run.next_round()
        run.close()
    assert [(r.round, r.epoch, r.outcome, r.evaluate) for r in run.state.rounds] == [
        (1, 0, "done", "no"),
        (MOST_ROUNDS, 1, "done", "no"),
        (MOST_ROUNDS + 1, 1, "done", "final"),
    ]


@pytest.mark.parametrize("damage", ["another version", "cut off", "without enrolment", "another key"])
def test_an_epoch_whose_state_can_not_be_read_is_followed_by_another(federation: Federation, damage: str) -> None:
    """The round that may have begun in it is given up: hospitals that opened it take no other manifest."""
    federation.run().next_round()
    state = federation.folder / "aggregator-0.bin"
    data = state.read_bytes()
    if damage == "another version":
        state.write_bytes(data.replace(b'"format":2', b'"format":1'))
    elif damage == "another key":
        federation.researcher.identity = Identity.generate(RESEARCHER)
        entries = [
            party.entry() for party in (federation.researcher, *(h.party for h in federation.hospitals.values()))
        ]
        federation.researcher.roster = Roster(entries=tuple(entries))
    elif damage == "cut off":
        state.write_bytes(data[:-1])
    else:
        (federation.folder / "enrolment-0.json").unlink()
    run = federation.run()
    record = run.next_round()
    assert (record.round, record.outcome, record.epoch, len(record.survivors)) == (3, "done", 1, 4)
    assert [(r.outcome, r.reason[:24]) for r in run.state.rounds[1:2]] == [("failed", "given up for a new epoch")]
    assert not (federation.folder / "aggregator-0.bin").exists()
    assert not (federation.folder / "enrolment-0.json").exists()


@pytest.mark.slow
def test_an_epoch_in_which_too_few_are_left_is_followed_by_another(federation: Federation) -> None:
    """One was silent at the setup and is there now, one sent wrong shares: two are left, of three in another epoch."""
    liar, silent, *_ = federation.hospitals.values()
    liar.wrong_shares, silent.silent_at = True, {"ready"}
    run = federation.run()
    record = run.next_round()
    assert (record.outcome, record.blamed, len(record.participants)) == ("failed", (liar.email,), 3)
    silent.silent_at = set()
    record = run.next_round()
    assert (record.outcome, record.epoch, len(record.survivors)) == ("done", 1, 3)
    assert liar.email not in record.participants


def test_an_epoch_whose_days_are_over_is_followed_by_another(federation: Federation, monkeypatch) -> None:
    run = federation.run()
    run.next_round()
    later = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=7)
    monkeypatch.setattr("datasites.aggregator.secure_sum.today", lambda: later)
    monkeypatch.setattr("tests.researcher.hospitals.today", lambda: later)
    run = federation.run()
    record = run.next_round()
    assert (record.outcome, record.epoch, len(record.survivors)) == ("done", 1, 4)


def test_a_round_that_was_begun_ends_in_its_own_epoch_though_its_days_are_over(
    federation: Federation, monkeypatch
) -> None:
    run = federation.run()
    run.next_round()
    monkeypatch.setattr(run._sum, "collect", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run.next_round()
    later = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=7)
    monkeypatch.setattr("datasites.aggregator.secure_sum.today", lambda: later)
    run = federation.run()
    record = run.next_round()
    assert (record.round, record.outcome, record.epoch) == (2, "done", 0)


# -- who is let in -----------------------------------------------------------------------------------------------------


def test_a_hospital_that_approves_late_is_let_in(federation: Federation) -> None:
    """By a new run (a restarted researcher), and by the same run while it goes on."""
    *early, late = federation.hospitals
    run = federation.run(*early)
    assert len(run.next_round().survivors) == 3
    run = federation.run()
    record = run.next_round()
    assert (record.outcome, record.epoch, len(record.survivors)) == ("done", 1, 4)
    assert late in record.survivors
    assert (run.next_round().epoch, run.state.next_round) == (1, 4)
    run.complete(progress=False)
    assert set(run.state.accounts) == set(federation.hospitals)


def test_who_approves_meanwhile_is_asked_between_rounds(federation: Federation, monkeypatch) -> None:
    monkeypatch.setattr("datasites.aggregator.epochs.LOOK_SECONDS", 0.0)
    *early, late = federation.hospitals
    approved = list(early)
    run = federation.run(*early, look=lambda: approved)
    run.next_round()
    approved.append(late)
    assert late in run.next_round().survivors


def test_whoever_waits_in_a_round_is_told_that_too_few_approve_any_more(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("datasites.aggregator.epochs.LOOK_SECONDS", 0.0)
    approved = list(federation.hospitals)
    run = federation.run(look=lambda: approved, round_timeout=3.0)
    run.next_round()
    for hospital in [federation.hospitals[email] for email in approved[1:]]:
        hospital.there = False
    del approved[1:]
    assert run.next_round().outcome == "failed"
    (told,) = [record.getMessage() for record in caplog.records if "no longer approve it" in record.getMessage()]
    assert "1 hospital(s) do, and the threshold is 3" in told


@pytest.mark.slow
def test_a_hospital_that_was_down_at_setup_is_let_in_when_it_is_back(federation: Federation) -> None:
    late = federation.hospitals["datasite@va.example.org"]
    late.there = False
    run = federation.run()
    assert len(run.next_round().survivors) == 3
    assert run.next_round().epoch == 0, "while it is gone, no epoch is tried"
    late.there = True
    federation.wait_for_letter(late, "certificate-0")
    record = run.next_round()
    assert (record.epoch, record.outcome) == (1, "done")
    assert late.email in record.survivors


def test_a_hospital_that_is_late_each_time_is_let_in_a_few_times_only(federation: Federation, monkeypatch) -> None:
    monkeypatch.setattr("datasites.aggregator.epochs.EPOCHS_PER_HOSPITAL", 1)
    late = federation.hospitals["datasite@va.example.org"]
    late.silent_at.add("ready")
    run = federation.run(setup_patience=0.8)
    run.next_round()
    late.silent_at.clear()
    late.say_ready()
    late.silent_at.add("ready")
    assert run.next_round().epoch == 1
    late.silent_at.clear()
    late.say_ready()
    record = run.next_round()
    assert (record.epoch, len(record.survivors)) == (1, 3)


@pytest.mark.parametrize("rejoining", [1, 2, 4])
def test_hospitals_that_gave_their_keys_up_are_let_in_by_another_epoch(federation: Federation, rejoining: int) -> None:
    """They sit one round out; where fewer than the threshold are left in it, it fails at once."""
    run = federation.run(round_timeout=30.0)
    run.next_round()
    gone = list(federation.hospitals.values())[:rejoining]
    with federation.lock:
        for hospital in gone:
            hospital.rejoin()
    record = run.next_round()
    assert record.abstained == {hospital.email: (letters.EPOCH_LOST,) for hospital in gone}
    assert (record.outcome, record.epoch) == ("done" if rejoining == 1 else "failed", 0)
    assert 0 < sum(run.state.rounds[-1].seconds.values()) < 20.0
    record = federation.run().next_round()
    assert (record.outcome, record.epoch, len(record.survivors)) == ("done", 1, 4)


def test_a_hospital_that_says_each_time_that_it_lacks_keys_begins_a_few_epochs_only(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasites.aggregator.epochs.EPOCHS_PER_HOSPITAL", 1)
    run = federation.run()
    hospital = next(iter(federation.hospitals.values()))
    for number, epoch in ((1, 0), (2, 1), (3, 1)):
        monkeypatch.setattr(hospital, "_attend", lambda _, number: hospital._sit_out(number, letters.EPOCH_LOST))
        record = run.next_round()
        assert (record.round, record.epoch, len(record.survivors)) == (number, epoch, 3)


def test_an_epoch_follows_once_all_have_pinned_a_key_that_was_replaced(federation: Federation) -> None:
    """None before the researcher has: it would be refused as the last one is."""
    run = federation.run(round_timeout=30.0)
    run.next_round()
    stolen, late, *others = federation.hospitals.values()
    stolen.party.identity = Identity.generate(stolen.email)
    entries = (party.entry() for party in (federation.researcher, *(h.party for h in federation.hospitals.values())))
    roster = Roster(entries=tuple(entries))

    def pin(*parties: Party) -> None:
        for party in parties:
            party.roster = roster
            assert party.control is not None
            party.control.pin(roster)

    with federation.lock:
        stolen.rejoin()
        pin(stolen.party, *(hospital.party for hospital in others))
    for _ in range(2):
        record = run.next_round()
        assert (record.outcome, record.epoch) == ("failed", 0)
        assert re.search(r"epoch-keys.*pinned the same keys.*`run.set_up\(again=True\)`", record.reason)
    with federation.lock:
        pin(federation.researcher, late.party)
    record = federation.run().next_round()
    assert (record.outcome, record.epoch, len(record.survivors)) == ("done", 1, 4)


# -- one that is refused, or fails -------------------------------------------------------------------------------------


def test_a_setup_with_too_few_is_not_taken_for_one(federation: Federation) -> None:
    """`SecureSum.is_set_up`; the next try is a new epoch, for enrolment of this one is closed."""
    gone = [federation.hospitals[email] for email in sorted(federation.hospitals)[:2]]
    for hospital in gone:
        hospital.silent_at.add("ready")
    run = federation.run(setup_patience=0.8, least_patience=30.0)
    for _ in range(2):
        with pytest.raises(RunError, match="the threshold is 3"):
            run.next_round()
    assert run.state.rounds == ()
    for hospital in gone:
        hospital.silent_at.clear()
    run._epochs._patience = 30.0
    assert len(run.next_round().survivors) == 4


def test_an_epoch_that_is_refused_is_not_the_present_one(federation: Federation) -> None:
    """Who says that it lacks keys is looked for in the present one, and let in."""
    run = federation.run()
    run.next_round()
    before = run.state
    run._epochs.approved = tuple(sorted(federation.hospitals)[:2])
    with pytest.raises(EpochRefused, match="among 2 hospitals.*Nothing was begun"):
        run.set_up(again=True)
    assert (run._sum.epoch, run._sum.context.epoch, run.state) == (0, 0, before)
    run._epochs.approved = tuple(sorted(federation.hospitals))
    with federation.lock:
        next(iter(federation.hospitals.values())).rejoin()
    assert [(record.epoch, len(record.survivors)) for record in (run.next_round(), run.next_round())] == [
        (0, 3),
        (1, 4),
    ]


def test_a_party_that_is_not_pinned_refuses_an_epoch(federation: Federation) -> None:
    run = federation.run()
    run.next_round()
    run._epochs.approved = (*run._epochs.approved, "datasite@elsewhere.example.org")
    with pytest.raises(EpochRefused, match="elsewhere"):
        run.set_up(again=True)
    assert (run._sum.epoch, run.state.epoch) == (0, 0)


def test_an_epoch_that_is_refused_is_not_offered(federation: Federation) -> None:
    """Nobody has answered the offer of epoch 0 yet, and it stays the one that is offered."""
    for hospital in federation.hospitals.values():
        hospital.there = False
    run = federation.run(setup_patience=0.3)
    with pytest.raises(RunError, match="are the datasites running"):
        run.set_up()
    run._epochs.approved = tuple(sorted(federation.hospitals)[:2])
    with pytest.raises(EpochRefused):
        run.set_up(again=True)
    with pytest.raises(RunError, match="are the datasites running"):
        run.set_up()
    one = next(iter(federation.hospitals.values()))
    kinds = {kind for _, kind, _ in one.party.mailroom.mailbox(federation.study.hash)}
    assert {kind for kind in kinds if kind.startswith("offer")} == {letters.offer_kind(0)}


@pytest.mark.parametrize("file", ["context-1.json", "aggregator-1.bin", "model-000003.npz", "run.json"])
def test_where_the_disk_is_full_the_last_epoch_and_its_round_go_on(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    run = federation.run()
    run.next_round()
    begin_round(run, monkeypatch)
    before = run.state
    fail_once(monkeypatch, file)
    with pytest.raises(OSError, match="no space"):
        run.set_up(again=True)
    assert (run._sum.epoch, run._sum.context.epoch, run.state) == (0, 0, before)
    record = run.next_round()
    assert (record.round, record.epoch, record.outcome, len(record.survivors)) == (2, 0, "done", 4)


def test_where_the_disk_is_full_at_an_enrolment_it_is_written_before_rounds_need_it(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = federation.run()
    fail_once(monkeypatch, "enrolment-0.json")
    with pytest.raises(OSError, match="no space"):
        run.set_up()
    run.set_up()
    run = federation.run()
    assert not run._sum.is_lost
    assert len(run.next_round().survivors) == 4


def test_a_hospital_that_can_not_be_let_in_keeps_nobody_from_the_present_epoch(federation: Federation) -> None:
    """And what is refused is not counted as an epoch that was begun for it."""
    run = federation.run()
    run.next_round()
    with federation.lock:
        next(iter(federation.hospitals.values())).rejoin()
    run.next_round()
    everybody = run._epochs.approved
    run._epochs.approved = (*everybody, "datasite@elsewhere.example.org")  # approved, and not pinned here
    record = run.next_round()
    assert (record.epoch, record.outcome, run.state.epochs_for) == (0, "done", {})
    run._epochs.approved = everybody
    record = run.next_round()
    assert (record.epoch, len(record.survivors)) == (1, 4)


# -- rounds that are given up ------------------------------------------------------------------------------------------


def test_a_new_epoch_in_mid_round_gives_that_round_up(federation: Federation, monkeypatch) -> None:
    """Hospitals have opened round 1 under the old epoch and would refuse it for good under the new one."""
    run = federation.run()
    run.set_up()
    with monkeypatch.context() as patch:
        patch.setattr(run, "_collect", lambda record: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.next_round()
    federation.wait_for_letter(next(iter(federation.hospitals.values())), "masked", 1)
    run.set_up(again=True)
    assert [(record.round, record.outcome) for record in run.state.rounds] == [(1, "failed")]
    record = run.next_round()
    assert (record.round, record.epoch, len(record.survivors)) == (2, 1, 4)
    run.complete(progress=False)


def test_a_crash_while_an_epoch_begins_leaves_the_old_one_whole(federation: Federation, monkeypatch) -> None:
    """The new epoch's files are written before `run.json` names it."""
    run = federation.run()
    run.next_round()
    with monkeypatch.context() as patch:
        patch.setattr(run._progress, "save", lambda **changes: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.set_up(again=True)
    run = federation.run()
    record = run.next_round()
    assert (record.epoch, record.outcome, len(record.survivors)) == (0, "done", 4)


def test_a_lost_state_costs_one_round_however_often_the_next_epoch_is_refused(federation: Federation) -> None:
    federation.run().next_round()
    lose(federation, "cut off")
    for _ in range(3):
        run = federation.run(*sorted(federation.hospitals)[:2])
        with pytest.raises(EpochRefused):
            run.next_round()
        assert (run.state.next_round, len(run.state.rounds)) == (2, 1)
    record = federation.run().next_round()
    assert (record.round, record.epoch, record.outcome) == (3, 1, "done")


def test_a_round_is_given_up_and_its_epoch_begun_in_one_step(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed just before that, and tried again: one round in all."""
    federation.run().next_round()
    lose(federation, "cut off")
    for _ in range(2):
        run = federation.run()
        fail_once(monkeypatch, "run.json", KeyboardInterrupt, b'"epoch":1,"epochs_for"')
        with pytest.raises(KeyboardInterrupt):
            run.next_round()
    run = federation.run()
    assert run.next_round().round == 3
    assert [record.outcome for record in run.state.rounds] == ["done", "failed", "done"]
