"""The first model is made from a study's submission on; what goes wrong with that costs the run nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from datasites.enclave.worker_client import WorkerCrashed
from datasites.researcher import federation as federations
from datasites.researcher.beforehand import FirstModel, Model
from datasites.researcher.federation import Federation
from datasites.researcher.study import Study
from tests.researcher.homes import befriended
from tests.study.studies import HEART
from tests.transport.parties import Party

MODEL = cast(Model, (np.arange(3, dtype=np.float32), SimpleNamespace(parameters=())))


class Build:
    """A study whose model takes as long as the test likes; a worker that is killed fails it."""

    def __init__(self, *, fails: int = 0) -> None:
        self.fails, self.tries = fails, 0
        self.go_on, self.began = threading.Event(), threading.Event()
        self.killed = False

    def kill(self) -> None:
        self.killed = True
        self.go_on.set()

    def initial_model(self, began: Callable[[Any], None] | None = None) -> Model:
        self.tries += 1
        if began is not None:
            self.began.set()
            began(self)
            self.go_on.wait(30)
        if self.killed or self.tries <= self.fails:
            raise WorkerCrashed("it ended")
        return MODEL


def test_the_model_that_was_made_beforehand_is_the_one() -> None:
    build = Build()
    first = FirstModel(cast(Study, build))
    build.go_on.set()
    assert (first.result(), build.tries) == (MODEL, 1)


def test_what_went_wrong_beforehand_is_tried_again_when_the_model_is_due() -> None:
    build = Build(fails=1)
    build.go_on.set()
    assert (FirstModel(cast(Study, build)).result(), build.tries) == (MODEL, 2)
    build = Build(fails=2)
    build.go_on.set()
    with pytest.raises(WorkerCrashed, match="it ended"):
        FirstModel(cast(Study, build)).result()


def test_nobody_wants_it_any_more_so_its_worker_ends() -> None:
    build = Build()
    first = FirstModel(cast(Study, build))
    assert build.began.wait(30)
    first.close()
    assert build.killed


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hashes of the studies whose first model was begun; none of them starts a worker."""
    found: list[str] = []

    class Made:
        def __init__(self, study: Study) -> None:
            found.append(study.hash)

        def result(self) -> Model:
            return MODEL

        def close(self) -> None:
            found.append("closed")

    monkeypatch.setattr(federations, "FirstModel", Made)
    return found


def test_a_model_is_begun_at_the_first_submission_and_taken_by_the_run(
    tmp_path: Path,
    hospitals: list[Party],
    begun: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = Study.load(HEART)
    monkeypatch.setattr(Study, "initial_model", lambda study: pytest.fail("it was made once more"))
    with befriended(tmp_path, hospitals) as federation:
        assert begun == []
        federation.submit(study)
        federation.submit(study)
        assert begun == [study.hash]
        run = federation._run(study, list(study.terms.cohort.hospitals))
        assert run._first_model() is MODEL
        federation.submit(study)  # to whoever has not got it; the run has its model
        assert begun == [study.hash]
        for party in hospitals:
            party.stop()


def test_a_model_that_no_run_has_taken_ends_with_the_federation(
    tmp_path: Path,
    hospitals: list[Party],
    begun: list[str],
) -> None:
    study = Study.load(HEART)
    federation: Federation
    with befriended(tmp_path, hospitals) as federation:
        federation.submit(study)
        for party in hospitals:
            party.stop()
    assert begun == [study.hash, "closed"]
