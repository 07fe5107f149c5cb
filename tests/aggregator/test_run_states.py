"""One run at a time goes on; what it can't write or read costs no round; and it can be closed in each state."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable

import numpy as np
import pytest

from datasites.aggregator import run as run_module
from datasites.aggregator.gather import RunError
from datasites.study import letters
from datasites.study.holding import Held
from datasites.transport.mailroom import letter_key
from datasites.transport.store import Store, StoreMissing, StoreUnreachable
from tests.aggregator.interruptions import begin_round, fail_once, lose
from tests.researcher.hospitals import Federation
from tests.transport.parties import RESEARCHER

pytestmark = pytest.mark.waits


# -- one at a time -----------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_elsewhere_is_left_alone(federation: Federation) -> None:
    """Whoever holds its folder, and whoever has gone on from a state that was read before."""
    run, other = federation.run(), federation.run()
    acts: tuple[Callable[[], object], ...] = (run.complete, run.next_round, run.set_up, run.close)
    with federation.files.hold():
        for act in acts:
            with pytest.raises(Held, match="this run is open already"):
                act()
    assert other.next_round().outcome == "done"
    saved = (federation.folder / "run.json").read_bytes()
    for act in acts:
        with pytest.raises(RunError, match=r"has gone on with it.*Federation\.start"):
            act()
    assert (federation.folder / "run.json").read_bytes() == saved
    assert other.next_round().round == 2


# -- a full disk -------------------------------------------------------------------------------------------------------


def test_where_the_disk_is_full_at_the_end_of_a_round_it_is_ended_again(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = federation.run()
    run.set_up()
    for file in ("model-000002.npz", "aggregator-0.bin"):
        fail_once(monkeypatch, file)
        with pytest.raises(OSError, match="no space"):
            run.next_round()
    record = run.next_round()
    assert (record.round, record.outcome, run.state.next_round) == (1, "done", 2)
    assert run.model["weight"] == pytest.approx(0.5, abs=1e-4)


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", ["whole", "cut off", "gone", "context cut off", "context gone", "another key", "cut off in a round"]
)
def test_a_run_can_be_closed_whatever_is_left_of_it(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    run = federation.run()
    if how == "cut off in a round":
        begin_round(run, monkeypatch)
    else:
        run.complete(rounds=1, progress=False)
        federation.files.save_model(5, *federation.files.load_model(2))
        run._progress.save(next_round=5)  # as after all three and the evaluation
    if how != "whole":
        lose(federation, how)
    run = federation.run()
    if how != "cut off in a round":
        acts: tuple[Callable[[], object], ...] = (run.next_round, lambda: run.set_up(again=True))
        for act in acts:
            with pytest.raises(RunError, match=r"all 3 rounds were run; end it with `close`"):
                act()
    run.close()
    assert run.state.closed
    assert set(run.state.accounts) == set(federation.hospitals)


def test_a_run_that_was_never_set_up_can_be_closed_and_holds_no_round_then(federation: Federation) -> None:
    run = federation.run()
    run.close()
    assert set(run.state.accounts) == set(federation.hospitals)
    run = federation.run()
    for act in (run.next_round, run.set_up, lambda: run.complete(progress=False)):
        with pytest.raises(RunError, match="it was closed"):
            act()


def test_who_is_in_the_present_epoch_no_more_is_told_of_the_end(federation: Federation) -> None:
    liar, *_ = federation.hospitals.values()
    liar.wrong_shares = True
    run = federation.run()
    assert run.next_round().blamed == (liar.email,)
    run.set_up(again=True)
    assert liar.email not in run._sum.hospitals
    run.next_round()
    run.close()
    federation.wait_for_letter(liar, letters.ACCOUNT)
    run.close()
    assert set(run.state.accounts) == set(federation.hospitals)


def test_a_close_that_was_interrupted_ends_the_study_the_next_time(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round in between would make other words of it, which hospitals would take from nobody."""
    run = federation.run()
    run.complete(rounds=1, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr("datasites.aggregator.run.gather", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.close()
    again = federation.run()
    for act in (run.next_round, again.next_round):
        with pytest.raises(RunError, match="it was closed.*not confirmed by .*: `close` tells them again"):
            act()
    run.close()
    assert set(run.state.accounts) == set(federation.hospitals)
    with pytest.raises(RunError, match="no further round is run$"):
        run.next_round()


def test_each_hospital_gets_the_newest_heads_of_the_others_at_the_end(federation: Federation) -> None:
    """Those that it said itself come back beside them, as before."""
    run = federation.run()
    run.complete(rounds=2, progress=False)
    run.close()
    last = run.state.rounds[-1].heads
    assert set(last) == set(federation.hospitals)
    for email, hospital in federation.hospitals.items():
        letter = hospital.party.mailroom.receive(RESEARCHER, run.study.hash, letters.SETUP_ROUND, letters.CLOSE)
        assert letter is not None
        told = letters.Close.model_validate(letter.body)
        assert told.others == {other: head for other, head in last.items() if other != email}
        assert told.heads == tuple(record.heads[email] for record in run.state.rounds)


def test_all_that_can_be_told_of_the_end_are_told(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the store fails for the first of them, as if it were away as a whole."""
    run = federation.run()
    run.complete(rounds=1, progress=False)
    first, *others = federation.study.terms.cohort.hospitals
    key, put = letter_key(RESEARCHER, run.study.hash, first, letters.SETUP_ROUND, letters.CLOSE), Store.put

    def failing(store: Store, name: str, data: bytes) -> None:
        if name == key:
            raise StoreMissing(name)
        put(store, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", failing)
        with pytest.raises(StoreMissing):
            run.close()
        for email in others:
            federation.wait_for_letter(federation.hospitals[email], letters.ACCOUNT)
    run.close()
    assert set(run.state.accounts) == set(federation.hospitals)


def test_a_store_that_stays_away_is_not_tried_for_one_hospital_after_the_other(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tried, put = federation.run(), list[str](), Store.put
    run.complete(rounds=1, progress=False)

    def failing(store: Store, name: str, data: bytes) -> None:
        if not name.endswith(RESEARCHER):  # of a hospital, which answers as late as it likes
            return put(store, name, data)
        tried.append(name)
        raise StoreUnreachable(name)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "AWAY_SECONDS", -1.0)
        patch.setattr(Store, "put", failing)
        with pytest.raises(StoreUnreachable):
            run.close()
    assert len([name for name in tried if letters.CLOSE in name]) == 1
    run.close()
    assert set(run.state.accounts) == set(federation.hospitals)


@pytest.mark.parametrize("lost", ["all", "parameters.json"])
def test_a_run_whose_files_are_lost_says_again_that_it_is_over(federation: Federation, lost: str) -> None:
    run, one = federation.run(), next(iter(federation.hospitals))
    key = letter_key(RESEARCHER, run.study.hash, one, letters.SETUP_ROUND, letters.CLOSE)
    run.complete(rounds=1, progress=False)
    if lost == "all":
        run.close()
        federation.researcher.mailroom.store.delete(key)
        shutil.rmtree(federation.folder)
    else:
        (federation.folder / lost).write_bytes(b"[")
    run = federation.run()
    run.close(2.0)
    assert run.state.closed
    assert federation.researcher.mailroom.store.exists(key)


@pytest.mark.parametrize("damage", [b"", b"[", b"{}", b'{"study": 1}', b"\xff"])
def test_a_damaged_state_is_named_with_its_remedy(federation: Federation, damage: bytes) -> None:
    file = federation.folder / "run.json"
    federation.run().complete(rounds=1, progress=False)
    file.write_bytes(damage)
    with pytest.raises(RunError, match=r"run\.json: not as a run saves it: .*; restore it .*`Federation\.end`"):
        federation.run()
    file.rename(file.with_suffix(".bad"))
    run = federation.run()
    run.close()
    assert set(run.state.accounts) == set(federation.hospitals)


@pytest.mark.parametrize("name", ["parameters.json", "model-000002.npz"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "other", "text"])
def test_a_damaged_file_of_a_run_is_named_with_its_remedy(federation: Federation, name: str, damage: str) -> None:
    """No round begins, and none from another model; the study can be ended."""
    path = federation.folder / name
    federation.run().complete(rounds=1, progress=False)
    whole = path.read_bytes()
    other = io.BytesIO()
    np.savez(other, model=np.zeros((2, 2)))
    bad = {"empty": b"", "cut": whole[:-7], "other": other.getvalue(), "text": b'{"a": 1}'}
    path.unlink() if damage == "gone" else path.write_bytes(bad[damage])
    words = rf"{name}: not as a run saves it: .+; restore it .*`close`"
    for act in (lambda run: run.next_round(), lambda run: run.model):
        with pytest.raises(RunError, match=words):
            act(federation.run())
    if "model" in name:
        with pytest.raises(RunError, match=words):
            federation.run().set_up(again=True)
    run = federation.run()
    assert run.state.next_round == 2
    run.close()
    assert set(run.state.accounts) == set(federation.hospitals)


def test_the_state_of_another_study_is_no_state(federation: Federation) -> None:
    run = federation.run()
    federation.files.save(run.state.model_copy(update={"study": "0" * 64}))
    with pytest.raises(RunError, match=r"run\.json: not as a run saves it: it is of study 0000"):
        federation.run()
