"""A hospital whose audit log went back is left out, unless it declares that it was restored from a backup (I11)."""

from __future__ import annotations

import numpy as np
import pytest

from datasites.aggregator.run import Run
from datasites.researcher import report
from datasites.study.audit_chain import Fork, PublicHead
from tests.researcher.hospitals import Federation, Hospital

pytestmark = pytest.mark.waits


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
