"""Work that is repeated after a crash gives the same bytes; work on anything else gets independent noise (I6, I13)."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from datasites.enclave.worker_client import TrainResult, Worker, WorkerCrashed
from datasites.hospital.budget import ledger
from datasites.hospital.cases import compliance, review
from datasites.hospital.cases.case import open_case
from datasites.hospital.cases.machine import Machine
from datasites.hospital.models import Case, Round
from datasites.hospital.rounds import lifecycle, row_work, run
from datasites.hospital.rounds.round_keys import RoundKeys
from datasites.hospital.rounds.row_work import RowWork
from datasites.privacy.noise import SecureRandom, noised
from datasites.secagg.journal import Journal
from datasites.secagg.member import Member
from datasites.secagg.messages import MaskedVector
from datasites.study import letters
from tests.hospital.desk import Desk
from tests.hospital.running import Running
from tests.kills import Killed, kill_after, kill_before

pytestmark = pytest.mark.waits


def asks_to_release(*arguments: Any, **_: Any) -> bool:
    return arguments[2] == "release"


def makes_the_release(_: Journal, __: Any, *messages: Any) -> bool:
    return any(isinstance(message, MaskedVector) for message in messages)


#: Every place between the manifest's commit and the release's, in order.
PLACES = {
    "manifest opened": kill_after(run.StudyRun, "_open"),
    "charge begun": kill_before(ledger, "charge"),
    "charged": kill_after(ledger, "charge"),
    "worker asked": kill_before(RowWork, "_train"),
    "trained": kill_after(RowWork, "_train"),
    "masking": kill_before(Member, "mask"),
    "masked": kill_after(Member, "mask"),
    "release asked": kill_before(compliance, "decide", asks_to_release),
    "release to be made": kill_before(Journal, "commit", makes_the_release),
}


@pytest.mark.slow
def test_killed_anywhere_the_next_try_makes_the_same_release(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what leaves would be conditioned on the tries before it having failed, which a model can arrange."""
    made: list[bytes] = []
    mask = Member.mask

    def recorded(*arguments: Any, **options: Any) -> Any:
        after, masked = mask(*arguments, **options)
        made.append(bytes(masked.payload))
        return after, masked

    monkeypatch.setattr(Member, "mask", recorded)
    running.set_up()
    running.open(1)
    for place, kill in PLACES.items():
        with monkeypatch.context() as patch:
            kill(patch)
            with pytest.raises(Killed):
                running.steps()
        assert running.heard(1, letters.MASKED) is None, place
        running.restart()
    # The last try's worker is killed as well, once.
    crashed = threading.Event()
    train = Worker.train

    def crashing(worker: Worker, *arguments: Any, **options: Any) -> Any:
        if not crashed.is_set():
            crashed.set()
            os.kill(worker.pid, signal.SIGKILL)
        return train(worker, *arguments, **options)

    monkeypatch.setattr(Worker, "train", crashing)
    running.steps()
    assert crashed.is_set()
    letter = running.heard(1, letters.MASKED)
    assert letter is not None
    # Tries that reached the masks: three that were killed there, and the one that was let out.
    assert len(made) == 4
    assert set(made) == {bytes(letter.blob or b"")}
    assert len({record.fields["digest"] for record in running.logged("charged")}) == 1, "under one charge"
    assert len(running.logged("released")) == 1
    assert "crashed" in Round.objects.get().reason, "said to people here"
    assert not running.logged("worker_ended"), "and not in the log, whose head goes out"


#: Names the files below a folder that hold one of some bytes.
HOLDERS = """
import sys
from contextlib import suppress
from pathlib import Path
forms = [bytes.fromhex(form) for form in sys.argv[2:]]
for path in Path(sys.argv[1]).rglob("*"):
    with suppress(OSError):
        if path.is_file() and any(form in path.read_bytes() for form in forms):
            print(path.name)
"""


def test_the_secret_is_stored_before_any_work_and_gone_from_every_file_with_the_release(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = running.site.home.root
    found_at_work: list[list[str]] = []

    def holding(secret: bytes) -> list[str]:
        forms = (secret, secret.hex().encode(), base64.b64encode(secret))
        # In a process of its own: one that closes a file of SQLite gives up all locks that it has on it (POSIX).
        command = [sys.executable, "-c", HOLDERS, str(home), *(form.hex() for form in forms)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()

    secrets: list[bytes] = []
    train = RowWork._train

    def looking(*arguments: Any) -> Any:
        state = running.journal.state
        assert state is not None
        assert state.open is not None
        secrets.append(state.open.secret)
        found_at_work.append(holding(secrets[0]))
        return train(*arguments)

    monkeypatch.setattr(RowWork, "_train", looking)
    running.set_up()
    running.open(1)
    running.steps()
    assert running.heard(1, letters.MASKED)
    assert len(secrets[0]) == 32
    assert found_at_work == [["record"]]
    assert holding(secrets[0]) == []
    state = running.journal.state
    assert state is not None
    assert state.open is not None
    with pytest.raises(ValueError, match="secret was deleted"):
        RoundKeys(state.open.secret, "", "", "").key("training")


def test_a_withdrawal_between_two_tries_gives_the_second_other_keys(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same keys on other records would let the difference of two sums show a patient without noise."""
    keys: list[bytes] = []
    train = RowWork._train

    def seen(*arguments: Any) -> Any:
        keys.append(arguments[-1])
        if len(keys) < 3:
            raise Killed
        return train(*arguments)

    monkeypatch.setattr(RowWork, "_train", seen)
    running.set_up()
    running.open(1)
    home, withdrawals = running.site.home, running.site.home.withdrawals / "heart.json"
    try:
        for _ in range(2):
            with pytest.raises(Killed):
                running.steps()
            running.restart()
        with np.load(home.prepared / running.study_hash / "records.npz") as stored:
            patient = str(stored["patient"][0])
        home.withdrawals.mkdir(exist_ok=True)
        withdrawals.write_text(f'["{patient}"]')
        running.steps()
    finally:
        withdrawals.unlink(missing_ok=True)
    assert running.heard(1, letters.MASKED)
    assert keys[0] == keys[1] != keys[2]


def test_a_worker_at_work_gets_other_rows_and_keys_after_a_withdrawal(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the rows of the round before, and their commitment stands in its keys."""
    given: list[int] = []
    bound: list[str] = []
    start = row_work.start_worker

    def started(home: Any, case: Any, rows: Any, *others: Any) -> Worker:
        given.append(sum(len(part.y) for part in rows.values()))
        return start(home, case, rows, *others)

    begin = RowWork.begin

    def begun(work: RowWork, case: Any, manifest: Any, model: Any, keys: Callable[[str], RoundKeys], gone: Any) -> Any:
        return begin(work, case, manifest, model, lambda records: (bound.append(records), keys(records))[1], gone)

    monkeypatch.setattr(row_work, "start_worker", started)
    monkeypatch.setattr(RowWork, "begin", begun)
    home, withdrawals = running.site.home, running.site.home.withdrawals / "heart.json"
    running.set_up()
    with np.load(home.prepared / running.study_hash / "records.npz") as stored:
        patient = str(stored["patient"][0])
        theirs = int((stored["patient"] == patient).sum())
    try:
        running.open(1)
        running.steps()
        withdrawals.parent.mkdir(exist_ok=True)
        withdrawals.write_text(f'["{patient}"]')
        running.open(2)
        running.steps()
    finally:
        withdrawals.unlink(missing_ok=True)
    assert running.heard(2, letters.MASKED)
    assert given == [given[0], given[0] - theirs]
    assert bound[0] != bound[1]


def test_a_worker_that_dies_idle_is_followed_by_one_and_no_more_before_the_next_round(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[object] = []
    monkeypatch.setattr(RowWork, "_started_worker", lambda *_: started.append(None))
    monkeypatch.setattr(RowWork, "_vectors", lambda *_: ({}, 0))
    work, case = RowWork(desk.site, Machine()), open_case(desk.site.home, desk.row)
    keys: Any = SimpleNamespace(key=lambda _: b"")
    try:
        work.start(case, 0.0)
        for round in (1, 2):
            for _ in range(4):
                if work._starting is not None:
                    work._starting.result(30)
                work.revive(case)
            work._thread.submit(int).result(30)
            assert len(started) == 2 * round, "a start, or a round, and one start after it"
            work.begin(case, SimpleNamespace(round=round), None, lambda _: keys, frozenset()).result(30)  # type: ignore[arg-type]
    finally:
        work.close(wait=True)


@pytest.mark.waits
def test_the_end_of_a_datasite_waits_for_no_worker_that_is_being_started(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, killed = threading.Event(), threading.Event()

    def start(*given: Any) -> Worker:
        *_, began = given
        began(SimpleNamespace(kill=killed.set))
        begun.set()
        if not killed.wait(30):
            pytest.fail("it was waited for")
        raise WorkerCrashed("it was killed")

    monkeypatch.setattr(row_work, "start_worker", start)
    monkeypatch.setattr(row_work, "partitions", lambda *_: {})
    work = RowWork(desk.site, Machine())
    work.start(open_case(desk.site.home, desk.row), 0.0)
    assert begun.wait(30)
    work.close(wait=True)
    assert killed.is_set()
    assert work._starting is not None
    assert isinstance(work._starting.exception(0), WorkerCrashed)


INPUTS = {"manifest": "a" * 64, "approval": "b" * 64, "records": "c" * 64}


@pytest.mark.parametrize("changed", [None, *INPUTS])
def test_noise_of_other_inputs_is_independent_and_of_the_same_inputs_the_same(changed: str | None) -> None:
    size, sigma = 400_000, 3.0
    draws = []
    for inputs in (INPUTS, INPUTS | ({changed: "d" * 64} if changed else {})):
        key = RoundKeys(bytes(range(32)), **inputs).key("training")
        draws.append(noised(np.zeros(size), 1.0, sigma, SecureRandom(key)))
    difference = draws[0] - draws[1]
    if changed is None:
        assert not difference.any()
    else:
        assert difference.var() == pytest.approx(2 * sigma**2, rel=0.02)
        assert abs(np.corrcoef(*draws)[0, 1]) < 5 / np.sqrt(size)


def test_each_use_and_each_round_has_a_key_of_its_own() -> None:
    uses = ("training", "evaluation", "rounding")
    keys = {RoundKeys(bytes([n]) * 32, **INPUTS).key(use) for n in range(3) for use in uses}
    assert len(keys) == 9
    assert "secret" not in repr(RoundKeys(bytes(32), **INPUTS))


def test_a_second_crash_stops_the_study_and_nothing_leaves_until_people_answer(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[bytes] = []
    train = Worker.train

    def crashing(worker: Worker, *arguments: Any, **options: Any) -> Any:
        keys.append(options["key"])
        os.kill(worker.pid, signal.SIGKILL)
        return train(worker, *arguments, **options)

    monkeypatch.setattr(Worker, "train", crashing)
    running.set_up()
    running.open(1)
    before = running.site.audit.head()
    running.steps()
    assert len(keys) == 2
    assert keys[0] == keys[1]
    row = Case.objects.get(pk=running.row.pk)
    assert row.state == Case.State.STOPPED
    assert "memory" in row.note
    assert [running.heard(1, kind) for kind in (letters.MASKED, letters.ABSTAINED)] == [None, None]
    kinds = {r.kind for kind in ("decision", "charged") for r in running.logged(kind) if r.seq > before.seq}
    assert running.site.audit.head().seq == before.seq + 2, "its decision and its charge"
    assert kinds == {"decision", "charged"}
    # A person looks, and answers.
    officer = running.desk.login("bob")
    lifecycle.sit_out(running.site, running.row.pk, officer, "the machine was out of memory")
    running.steps()
    letter = running.heard(1, letters.ABSTAINED)
    assert letter is not None
    assert letter.body == {"outcome": "failed", "controls": []}
    assert running.site.audit.head().seq == before.seq + 3, "that people sat it out"
    assert Case.objects.get(pk=running.row.pk).state == Case.State.RUNNING
    with pytest.raises(review.ReviewError, match="needs one that is stopped"):
        lifecycle.sit_out(running.site, running.row.pk, officer, "again")


def test_a_restart_between_two_crashes_gives_no_further_try(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a model that fails on a patient's row would be tried as often as the service is started."""
    keys: list[bytes] = []
    train = Worker.train

    def failing(worker: Worker, *arguments: Any, **options: Any) -> Any:
        keys.append(options["key"])
        if len(keys) % 2 == 0:
            raise Killed
        os.kill(worker.pid, signal.SIGKILL)
        return train(worker, *arguments, **options)

    monkeypatch.setattr(Worker, "train", failing)
    running.set_up()
    running.open(1)
    with pytest.raises(Killed):
        running.steps()
    running.restart()
    # Killed again between the second failure and the stop, then started once more.
    with monkeypatch.context() as patch:
        kill_before(run.StudyRun, "_stop")(patch)
        with pytest.raises(Killed):
            running.steps()
    assert Case.objects.get(pk=running.row.pk).state == Case.State.RUNNING
    running.restart()
    running.steps()
    assert len(keys) == 3
    assert Case.objects.get(pk=running.row.pk).state == Case.State.STOPPED
    assert "has failed 2 times" in Case.objects.get(pk=running.row.pk).note
    assert running.heard(1, letters.MASKED) is None
    monkeypatch.setattr(Worker, "train", train)
    lifecycle.resume(running.site, running.row.pk, running.desk.login("ann"), "more memory")
    running.steps()
    assert running.heard(1, letters.MASKED)


def test_training_and_evaluation_of_a_round_have_keys_of_their_own(running: Running) -> None:
    """Under one key the noise of both would be one draw."""
    seen: dict[str, bytes] = {}

    class Watched:
        def train(self, parameters: Any, **options: Any) -> TrainResult:
            seen["train"] = options["key"]
            return TrainResult(np.zeros(len(parameters)), 1)

        def evaluate(self, _: Any, **options: Any) -> Any:
            seen["evaluate"] = options["key"]
            return np.zeros((2, 4))

    running.set_up()
    manifest = running.open(1).model_copy(update={"evaluate": "interim"})
    rows, keys = RowWork(running.site, Machine()), RoundKeys(bytes(32), **INPUTS)
    rows._vectors(Watched(), running.case, manifest, np.zeros(3, np.float32), keys)  # type: ignore[arg-type]
    assert seen == {"train": keys.key("training"), "evaluate": keys.key("evaluation")}
    assert len({*seen.values(), keys.key("rounding")}) == 3


def test_a_round_that_is_resumed_after_a_failure_is_tried_again_with_the_same_keys(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[bytes] = []
    train = RowWork._train

    def failing(*arguments: Any) -> Any:
        keys.append(arguments[-1])
        if len(keys) == 1:
            raise TypeError("could not convert 'Mrs Smith'")
        return train(*arguments)

    monkeypatch.setattr(RowWork, "_train", failing)
    running.set_up()
    running.open(1)
    running.steps()
    row = Case.objects.get(pk=running.row.pk)
    assert row.state == Case.State.STOPPED
    assert "TypeError" in row.note
    assert "Smith" not in row.note
    lifecycle.resume(running.site, row.pk, running.desk.login("ann"), "mended")
    running.steps()
    assert running.heard(1, letters.MASKED)
    assert keys[0] == keys[1]


def held_at_work(running: Running, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Round 1, its rows at work until the event is set."""
    go_on, at_work = threading.Event(), threading.Event()
    train = RowWork._train

    def slow(*arguments: Any) -> Any:
        at_work.set()
        assert go_on.wait(120)
        return train(*arguments)

    monkeypatch.setattr(RowWork, "_train", slow)
    running.set_up()
    running.open(1)
    while not at_work.is_set():
        running.run.step()
    return go_on


def test_nothing_waits_for_the_work_on_rows(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the moment at which any other letter leaves would tell how long that work took (I16)."""
    go_on = held_at_work(running, monkeypatch)
    round = running.at_work
    assert round is not None
    running.run.step()  # comes back, again and again, while rows are at work
    assert running.heard(1, letters.MASKED) is None
    assert running.run._machine.free_at >= round.due
    go_on.set()
    running.steps()
    assert running.heard(1, letters.MASKED)


def test_a_study_that_is_let_go_of_waits_for_no_rows(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed in the loop that everybody's letters leave from; and its worker, once started, gets no work."""
    reached, go_on, done, trained = (threading.Event() for _ in range(4))
    rows = row_work.partitions

    def slow(*arguments: Any) -> Any:
        reached.set()
        assert go_on.wait(30)
        done.set()
        return rows(*arguments)

    monkeypatch.setattr(row_work, "partitions", slow)
    monkeypatch.setattr(RowWork, "_train", lambda *_: trained.set())
    running.set_up()
    running.open(1)
    while not reached.is_set():
        running.run.step()
    running.run.close()
    assert not done.is_set()
    go_on.set()
    running.run.close(wait=True)
    assert done.is_set()
    assert not trained.is_set()
    worker = running.rows._worker
    assert worker is None or not worker.alive


def test_a_round_that_was_sat_out_is_not_released_after_all(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """People stopped the study while its rows were at work, and answered for the round."""
    go_on = held_at_work(running, monkeypatch)
    Case.objects.filter(pk=running.row.pk).update(state=Case.State.STOPPED)
    lifecycle.sit_out(running.site, running.row.pk, running.desk.login("bob"), "looked at")
    go_on.set()
    running.steps()
    assert running.heard(1, letters.ABSTAINED)
    assert running.heard(1, letters.MASKED) is None
    assert not running.logged("released")


@pytest.mark.slow
def test_a_round_begins_when_the_round_before_it_leaves_whenever_its_work_was_done(running: Running) -> None:
    """The rows of another study were at work: when that ends is public, unlike when the work is done."""
    running.set_up()
    free_at = running.run._machine.free_at = time.monotonic() + 3
    running.open(1)
    running.until_at_work()
    ticks = running.at_work.case.approval_terms.ticks
    assert running.at_work.started == free_at
    assert running.at_work.due == pytest.approx(free_at + ticks * run.TICK)
    running.steps()
    assert running.heard(1, letters.MASKED)
