"""A run against hospitals that are late, gone, or lie: each costs the others a little patience and no more."""

from __future__ import annotations

import datetime
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasites.aggregator.gather import RunError
from datasites.aggregator.run import Run
from datasites.researcher import report
from datasites.researcher.study import Study
from datasites.secagg import masks
from datasites.secagg.epoch_terms import EPOCH_ROUNDS
from datasites.study import letters
from datasites.study.audit_chain import Fork, PublicHead
from datasites.study.identity import Identity
from datasites.study.manifest import MOST_ROUNDS
from datasites.study.package import StudyPackage
from datasites.study.roster import Roster
from datasites.transport.mailroom import letter_folder, letter_key
from tests.researcher.conftest import HEART
from tests.researcher.hospitals import Federation, Hospital
from tests.transport.parties import RESEARCHER, Party, make_parties

pytestmark = pytest.mark.waits


def test_a_whole_run(federation: Federation) -> None:
    """The frame of the tests below."""
    run = federation.run()
    run.complete(progress=False)
    assert [record.outcome for record in run.state.rounds] == ["done"] * 4
    assert all(len(record.survivors) == 4 for record in run.state.rounds)
    np.testing.assert_allclose(run.model["weight"], 1.5, atol=1e-4)
    assert report.result(run)["unaccounted"] == []
    assert run.state.epoch == 0


def test_a_model_that_no_hospital_would_take_is_not_made(federation: Federation) -> None:
    run = federation.run()
    before = run.model["weight"].copy()
    for hospital in federation.hospitals.values():
        hospital.update, hospital.weight = 15.0, 1e-7
    record = run.next_round()
    assert record.outcome == "failed"
    assert "which no hospital takes" in record.reason
    np.testing.assert_array_equal(run.model["weight"], before)


# -- late, gone, back --------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr("datasites.aggregator.run.LOOK_SECONDS", 0.0)
    *early, late = federation.hospitals
    approved = list(early)
    run = federation.run(*early, look=lambda: approved)
    run.next_round()
    approved.append(late)
    assert late in run.next_round().survivors


def test_whoever_waits_in_a_round_is_told_that_too_few_approve_any_more(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("datasites.aggregator.run.LOOK_SECONDS", 0.0)
    approved = list(federation.hospitals)
    run = federation.run(look=lambda: approved, round_timeout=3.0)
    run.next_round()
    for hospital in [federation.hospitals[email] for email in approved[1:]]:
        hospital.there = False
    del approved[1:]
    assert run.next_round().outcome == "failed"
    (told,) = [record.getMessage() for record in caplog.records if "no longer approve it" in record.getMessage()]
    assert "1 hospital(s) do, and the threshold is 3" in told


def test_who_did_not_answer_is_told_that_the_round_is_over(federation: Federation) -> None:
    """Also of a round that failed; and nobody who had answered is."""
    run = federation.run(round_timeout=2.0, setup_patience=2.0)
    run.next_round()
    first, second, *_ = federation.hospitals.values()

    def told(number: int) -> set[str]:
        return {
            hospital.email
            for hospital in federation.hospitals.values()
            if hospital.party.mailroom.receive(RESEARCHER, federation.study.hash, number, letters.OVER) is not None
        }

    first.there = False
    assert run.next_round().outcome == "done"
    second.there = False
    assert run.next_round().outcome == "failed"
    assert [told(number) for number in (1, 2, 3)] == [set(), {first.email}, {first.email, second.email}]


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


@pytest.mark.parametrize("when", ["between rounds", "in a round"])
def test_keys_of_the_researcher_that_the_store_loses_are_put_again_during_a_run(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Hospitals read them anew after a restart, and when their roster changes: here one alone, and all in a round."""
    run = federation.run(round_timeout=20.0)
    run.next_round()
    bundle = Path(run._mailroom.store.url, "identities", RESEARCHER, "bundle.json")
    kept = bundle.read_bytes()
    broadcast = run._sum.broadcast

    def lose(*letter: Any) -> None:
        with federation._lock:
            if letter:
                broadcast(*letter)
            bundle.unlink()
            for hospital in list(federation.hospitals.values())[: 4 if letter else 1]:
                assert hospital.party.control is not None
                hospital.party.control.pin(hospital.party.roster)

    if when == "between rounds":
        lose()
    else:
        monkeypatch.setattr(run._sum, "broadcast", lose)
    record = run.next_round()
    assert (record.outcome, len(record.survivors)) == ("done", 4)
    assert bundle.read_bytes() == kept


@pytest.mark.slow
@pytest.mark.parametrize("is_crowded", [False, True])
def test_whoever_answers_an_older_round_after_all_is_waited_for_again(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, is_crowded: bool
) -> None:
    """As where people looked at a failure first: meanwhile the others have gone on."""
    back = federation.hospitals["datasite@va.example.org"]
    back.silent_at.add("masked")
    run = federation.run(least_patience=5.0, round_timeout=10.0)
    for _ in range(3):
        assert len(run.next_round().survivors) == 3
    assert back.email not in run.state.present
    abstention = letters.Abstention(outcome="failed").model_dump(mode="json")
    back._send(letters.ABSTAINED, abstention, None, 1)
    federation.wait_for_letter(back, "abstained", 1)
    if is_crowded:
        monkeypatch.setattr("datasites.transport.store.MOST_NAMES", 50)
        mailroom = run._mailroom
        for number in range(2000):
            Path(mailroom.store.url, letter_folder(run.study.hash, mailroom.email), f"junk-{number}").touch()
    back.silent_at.clear()
    back.there = False
    federation.later(1.0, lambda: setattr(back, "there", True))
    assert back.email in run.next_round().survivors


@pytest.mark.parametrize("gone_from", ["setup", "round 2"])
def test_a_file_in_the_name_of_a_hospital_that_is_gone_is_not_taken_for_its_answer(
    federation: Federation, gone_from: str
) -> None:
    gone = federation.hospitals["datasite@va.example.org"]
    gone.there = gone_from != "setup"
    run = federation.run(setup_patience=2.0)
    run.next_round()
    gone.there = False
    if gone_from != "setup":
        run.next_round()
    for number, kind in ((letters.SETUP_ROUND, letters.certificate_kind(0)), (1, letters.MASKED)):
        run._mailroom.store.put(letter_key(gone.email, run.study.hash, RESEARCHER, number, kind), b"no letter")
    record = run.next_round()
    assert (record.epoch, len(record.survivors)) == (0, 3)
    assert gone.email not in run.state.present


def test_a_hospital_that_is_late_each_time_is_let_in_a_few_times_only(federation: Federation, monkeypatch) -> None:
    monkeypatch.setattr("datasites.aggregator.run.EPOCHS_PER_HOSPITAL", 1)
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


def test_a_setup_with_too_few_is_not_taken_for_one(federation: Federation) -> None:
    """`SecureSum.is_set_up`; the next try is a new epoch, for enrolment of this one is closed."""
    gone = [federation.hospitals[email] for email in sorted(federation.hospitals)[:2]]
    for hospital in gone:
        hospital.silent_at.add("ready")
    run = federation.run(setup_patience=0.8)
    for _ in range(2):
        with pytest.raises(RunError, match="the threshold is 3"):
            run.next_round()
    assert run.state.rounds == ()
    for hospital in gone:
        hospital.silent_at.clear()
    run._setup_patience = 30.0
    assert len(run.next_round().survivors) == 4


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
        patch.setattr(run, "_save", lambda **changes: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.set_up(again=True)
    run = federation.run()
    record = run.next_round()
    assert (record.epoch, record.outcome, len(record.survivors)) == (0, "done", 4)


# -- lies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [{"counts_sigma": {}}, {"counts_sigma": {"final": 1e200, "interim": 0.0}}, {"counts_sigma": {"final": 1.0}},
     {"header": "\ud7ff"}, {"header": "{}"}, {"audit": {}}],
    ids=str,
)  # fmt: skip
def test_a_lie_around_a_vector_costs_its_sender_alone(federation: Federation, lie: dict) -> None:
    liar = next(iter(federation.hospitals.values()))
    liar.body = lambda body: body | lie
    run = federation.run()
    run.complete(progress=False)
    assert all(record.outcome == "done" for record in run.state.rounds)
    assert all(liar.email not in record.survivors for record in run.state.rounds)
    # Nobody waits for it after the first round, so that what it says of a later one may come too late to be refused.
    assert any(liar.email in words for words in run.state.rounds[0].refused)
    report.result(run)


@pytest.mark.parametrize(
    "lie", [{"charged": {}}, {"charged": {"training": {}}}, {"charged": {"training": {"pld": 1.0}}}]
)
def test_an_account_without_figures_is_none(federation: Federation, lie: dict) -> None:
    liar = next(iter(federation.hospitals.values()))
    liar.account = lie
    run = federation.run()
    run.complete(progress=False)
    assert report.result(run)["unaccounted"] == [liar.email]
    table = report.privacy_table(run, federation.researcher.roster)
    assert len(table) == 3
    assert set(table["epsilon cap"]) == {3.0}
    assert set(table["epsilon charged"]) == {0.9}
    assert set(table["delta"]) == {1e-5}


@pytest.mark.parametrize("weight", [-0.75, -1.0])
def test_weights_that_cancel_fail_the_round_and_keep_the_model(federation: Federation, weight: float) -> None:
    liar = next(iter(federation.hospitals.values()))
    run = federation.run()
    run.next_round()
    before = run.model["weight"].copy()
    liar.weight = weight
    record = run.next_round()
    assert record.outcome == "failed"
    assert "weights" in record.reason
    assert record.heads.keys() == federation.hospitals.keys(), "heads of failed rounds are kept"
    np.testing.assert_array_equal(run.model["weight"], before)
    liar.weight = 0.25
    run = federation.run()
    assert run.next_round().outcome == "done"


def test_a_log_that_went_back_is_not_in_the_sum(federation: Federation) -> None:
    liar = next(iter(federation.hospitals.values()))
    run = federation.run()
    run.next_round()
    liar.releases -= 1  # as many releases as before, by another history
    liar.heads = "c" * 64
    liar.update = 8.0
    record = run.next_round()
    assert liar.email not in record.survivors
    assert any("its log went back" in words for words in record.refused)
    np.testing.assert_allclose(run.model["weight"], 1.0, atol=1e-4)


def put_back(hospital: Hospital, releases: int) -> Fork:
    """Restore a hospital's log from a backup, and let two people declare it."""
    identity = hospital.party.identity
    continues = PublicHead.sign(identity, releases, "d" * 64)
    fork = Fork.sign(identity, continues, PublicHead.sign(identity, releases, "e" * 64))
    hospital.releases, hospital.heads = releases, "f" * 64
    said = {"fork": fork.model_dump(mode="json")}
    hospital.body = lambda body: body | said
    hospital.account = said
    return fork


def test_a_log_that_went_back_and_says_so_is_in_the_sum(federation: Federation) -> None:
    """It is charged for each of its vectors, so these are taken; and the report says what came before."""
    honest = next(iter(federation.hospitals.values()))
    run = federation.run()
    run.next_round()
    run.next_round()
    fork = put_back(honest, releases=0)
    for _ in range(2):
        assert honest.email in run.next_round().survivors
    assert [record.heads[honest.email].releases for record in run.state.rounds] == [1, 2, 1, 2]
    run.close()
    assert honest.email in run.state.accounts
    (said,) = report.result(run)["audit_forks"][honest.email]
    assert (said["fork"], said["round"]) == (fork.model_dump(mode="json"), 3)


def test_a_fork_lets_a_log_go_back_once(federation: Federation) -> None:
    liar = next(iter(federation.hospitals.values()))
    run = federation.run()
    run.next_round()
    put_back(liar, releases=0)
    assert liar.email in run.next_round().survivors
    liar.releases = 0  # again, by the same statement
    record = run.next_round()
    assert any("its log went back: 1 releases, it has said 1" in words for words in record.refused)


def test_a_fork_does_not_let_a_log_go_back_beyond_it(federation: Federation) -> None:
    liar = next(iter(federation.hospitals.values()))
    run = federation.run()
    for _ in range(2):
        run.next_round()
    put_back(liar, releases=2)
    liar.releases = 0
    assert liar.email not in run.next_round().survivors


def test_a_fork_that_the_hospital_did_not_sign_is_none(federation: Federation) -> None:
    liar, other = list(federation.hospitals.values())[:2]
    run = federation.run()
    run.next_round()
    fork = put_back(other, releases=0)
    other.body, other.releases = (lambda body: body), 1
    liar.releases = 0
    liar.body = lambda body: body | {"fork": fork.model_dump(mode="json")}
    assert liar.email not in run.next_round().survivors
    assert run.state.forks == {}


def test_a_run_that_is_killed_right_after_a_fork_takes_it_again(federation: Federation, monkeypatch) -> None:
    honest = next(iter(federation.hospitals.values()))
    run = federation.run()
    run.next_round()
    put_back(honest, releases=0)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_open", killed)
        with pytest.raises(KeyboardInterrupt):
            run.next_round()
    assert list(run.state.forks) == [honest.email]
    again = federation.run()
    assert honest.email in again.next_round().survivors


def test_whose_shares_are_wrong_is_named_and_left_out(federation: Federation) -> None:
    liar = next(iter(federation.hospitals.values()))
    liar.wrong_shares = True
    run = federation.run()
    record = run.next_round()
    assert record.outcome == "failed"
    assert record.blamed == (liar.email,)
    assert liar.email in record.reason
    assert "too few" not in record.reason
    run = federation.run()
    run.complete(progress=False)
    assert [record.outcome for record in run.state.rounds] == ["failed", "done", "done", "done"]
    assert liar.charged == [1]
    assert run.state.epoch == 0, "it is not let in again either"


def test_without_the_letter_that_tells_whose_share_is_wrong_nobody_is_blamed(federation: Federation) -> None:
    """The store has lost it. The study goes on in another epoch, which needs no letter of this one."""
    liar = next(iter(federation.hospitals.values()))
    liar.wrong_shares = True
    run = federation.run()
    run.set_up()
    for letter in federation.folder.parent.glob(f"store/mail/*/{federation.researcher.email}/*ready-0*"):
        letter.unlink()
    record = run.next_round()
    assert (record.outcome, record.blamed) == ("failed", ())
    assert "nobody is blamed; set up a new epoch" in record.reason
    liar.wrong_shares = False
    run.set_up(again=True)
    record = run.next_round()
    assert (record.outcome, record.epoch, len(record.survivors)) == ("done", 1, 4)


def test_when_too_few_are_left_the_rest_is_not_charged(federation: Federation) -> None:
    liars = [federation.hospitals[email] for email in sorted(federation.hospitals)[:2]]
    for liar in liars:
        liar.wrong_shares = True
    run = federation.run()
    while all(liar.email not in run._blamed() for liar in liars) or len(run._blamed()) < 2:
        run.next_round()
    charged = {email: list(hospital.charged) for email, hospital in federation.hospitals.items()}
    with pytest.raises(RunError, match="2 hospitals can take part, the threshold is 3; left out for wrong shares"):
        run.next_round()
    assert charged == {email: hospital.charged for email, hospital in federation.hospitals.items()}


def test_keys_that_were_replaced_in_the_store_keep_one_hospital_out(federation: Federation) -> None:
    """The researcher can seal for it no more; the others' rounds go on."""
    out, other, *_ = federation.hospitals
    run = federation.run()
    run.next_round()
    store = federation.researcher.mailroom.store
    federation.hospitals[out].there = False
    store.put(f"identities/{out}/bundle.json", store.get(f"identities/{other}/bundle.json"))
    federation.researcher.control.pin(federation.researcher.roster)  # bundles are looked at anew
    record = run.next_round()
    assert (record.outcome, len(record.survivors)) == ("done", 3)
    run.complete(progress=False)
    assert set(run.state.accounts) == set(federation.hospitals) - {out}


def test_a_forged_letter_does_not_stand_for_its_sender(federation: Federation) -> None:
    """Somebody else lays garbage under its path; the true vector, sent again, is in the sum."""
    victim = federation.hospitals["datasite@hungary.example.org"]
    run = federation.run()
    run.set_up()
    victim.there = False
    room = federation.researcher.mailroom
    forged = f"mail/{federation.study.hash}/{federation.researcher.email}/00000001.masked.{victim.email}"
    room.store.put(forged, b"garbage")
    federation.later(0.15, lambda: setattr(victim, "there", True))
    record = run.next_round()
    assert any("not a letter" in words for words in record.refused)
    assert victim.email in record.survivors


@pytest.mark.slow
def test_a_vector_of_another_size_is_not_downloaded(federation: Federation) -> None:
    liar = next(iter(federation.hospitals.values()))
    send = liar._send
    liar._send = lambda kind, body, blob=None, number=0, to="": send(
        kind, body, bytes(100_000) if kind == "masked" else blob, number, to or federation.researcher.email
    )
    run = federation.run()
    record = run.next_round()
    assert any("the limit is 24; it was not downloaded" in words for words in record.refused)
    assert (record.outcome, len(record.survivors)) == ("done", 3)


# -- the end, and interruptions ----------------------------------------------------------------------------------------


def test_a_final_evaluation_that_fails_is_said_and_the_study_stays_open(federation: Federation) -> None:
    run = federation.run()
    run.complete(rounds=3, progress=False)
    for hospital in federation.hospitals.values():
        hospital.silent_at.add("unmask")
    for _ in range(2):
        with pytest.raises(RunError, match="can't be held again"):
            run.complete(progress=False)
    assert not run.state.closed
    np.testing.assert_allclose(run.model["weight"], 1.5, atol=1e-4)
    run.close()
    assert set(run.state.accounts) == set(federation.hospitals)


def test_an_interruption_while_the_sum_opens_costs_nothing(federation: Federation, monkeypatch) -> None:
    """Half of the masks are off the sum in memory; what is on disk is whole, and the round is gone through again."""
    run = federation.run()
    run.set_up()
    apply = masks.apply

    def interrupted(vector: np.ndarray, left: tuple, **options: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            apply(vector, left, **options)  # a hospital masks
            return
        apply(vector, left[:2], **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(masks, "apply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.next_round()
    assert run.state.rounds == ()
    assert not run._files.has_model(2)
    record = run.next_round()
    assert (record.round, record.outcome) == (1, "done")
    np.testing.assert_allclose(run.model["weight"], 0.5, atol=1e-4)


# -- epochs end by themselves ------------------------------------------------------------------------------------------


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


@pytest.mark.slow
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
            run._files.save_model(number, np.zeros(5, np.float32), {})
            run._save(next_round=number)
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


@pytest.mark.parametrize("rejoining", [1, 2, 4])
def test_hospitals_that_gave_their_keys_up_are_let_in_by_another_epoch(federation: Federation, rejoining: int) -> None:
    """They sit one round out; where fewer than the threshold are left in it, it fails at once."""
    run = federation.run(round_timeout=30.0)
    run.next_round()
    gone = list(federation.hospitals.values())[:rejoining]
    with federation._lock:
        for hospital in gone:
            hospital.rejoin()
    record = run.next_round()
    assert record.abstained == {hospital.email: (letters.EPOCH_LOST,) for hospital in gone}
    assert (record.outcome, record.epoch) == ("done" if rejoining == 1 else "failed", 0)
    assert 0 < sum(run.state.rounds[-1].seconds.values()) < 20.0
    record = federation.run().next_round()
    assert (record.outcome, record.epoch, len(record.survivors)) == ("done", 1, 4)


def test_a_round_that_can_not_open_is_not_waited_for_to_the_end(federation: Federation) -> None:
    """Two have no keys and one is silent: patience is enough to know."""
    run = federation.run(round_timeout=30.0)
    run.next_round()
    silent, *gone = list(federation.hospitals.values())[:3]
    with federation._lock:
        silent.silent_at.add("masked")
        for hospital in gone:
            hospital.rejoin()
    record = run.next_round()
    assert (record.outcome, set(record.abstained)) == ("failed", {hospital.email for hospital in gone})
    assert 0 < sum(run.state.rounds[-1].seconds.values()) < 20.0


def test_a_hospital_that_says_each_time_that_it_lacks_keys_begins_a_few_epochs_only(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasites.aggregator.run.EPOCHS_PER_HOSPITAL", 1)
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

    with federation._lock:
        stolen.rejoin()
        pin(stolen.party, *(hospital.party for hospital in others))
    for _ in range(2):
        record = run.next_round()
        assert (record.outcome, record.epoch) == ("failed", 0)
        assert re.search(r"epoch-keys.*pinned the same keys.*`run.set_up\(again=True\)`", record.reason)
    with federation._lock:
        pin(federation.researcher, late.party)
    record = federation.run().next_round()
    assert (record.outcome, record.epoch, len(record.survivors)) == ("done", 1, 4)


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
