"""A run against hospitals that are late, gone, or lie: each costs the others a little patience and no more."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasites.aggregator.gather import RunError
from datasites.researcher import report
from datasites.secagg import masks
from datasites.study import letters
from datasites.transport.mailroom import letter_folder, letter_key
from tests.researcher.hospitals import Federation
from tests.transport.parties import RESEARCHER

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


@pytest.mark.parametrize("when", ["between rounds", "in a round"])
def test_keys_of_the_researcher_that_the_store_loses_are_put_again_during_a_run(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Hospitals read them anew after a restart, and when their roster changes: here one alone, and all in a round."""
    run = federation.run(round_timeout=20.0)
    run.next_round()
    bundle = Path(federation.researcher.mailroom.store.url, "identities", RESEARCHER, "bundle.json")
    kept = bundle.read_bytes()
    broadcast = run._sum.broadcast

    def lose(*letter: Any) -> None:
        with federation.lock:
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
        mailroom = federation.researcher.mailroom
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
        federation.researcher.mailroom.store.put(
            letter_key(gone.email, run.study.hash, RESEARCHER, number, kind), b"no letter"
        )
    record = run.next_round()
    assert (record.epoch, len(record.survivors)) == (0, 3)
    assert gone.email not in run.state.present


def test_a_round_that_can_not_open_is_not_waited_for_to_the_end(federation: Federation) -> None:
    """Two have no keys and one is silent: patience is enough to know."""
    run = federation.run(round_timeout=30.0)
    run.next_round()
    silent, *gone = list(federation.hospitals.values())[:3]
    with federation.lock:
        silent.silent_at.add("masked")
        for hospital in gone:
            hospital.rejoin()
    record = run.next_round()
    assert (record.outcome, set(record.abstained)) == ("failed", {hospital.email for hospital in gone})
    assert 0 < sum(run.state.rounds[-1].seconds.values()) < 20.0


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
    while all(liar.email not in run.state.blamed for liar in liars) or len(run.state.blamed) < 2:
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
    assert not federation.files.has_model(2)
    record = run.next_round()
    assert (record.round, record.outcome) == (1, "done")
    np.testing.assert_allclose(run.model["weight"], 0.5, atol=1e-4)
