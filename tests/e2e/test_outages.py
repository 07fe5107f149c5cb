"""Each outside service is stopped and started again at ten points of a study: the model is the one without outages.

Real processes, a real PostgreSQL server under one hospital, which takes no connection without TLS and must show its
certificate, a real WebDAV server as the store; training is one plain step, so that the model can be computed in the
clear.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import fsspec
import numpy as np
import pytest
from local_postgresql import Certificates, postgresql
from loopback_servers import Absent, free_port, wait_for_port, webdav_command

from datasites.aggregator.run import Run
from datasites.hospital.outages import RETRY
from datasites.transport.store import StoreUnreachable
from tests.e2e.noiseless_datasite import plain_update
from tests.e2e.support import KEYS, LocalDatasites, Place, training_rows

ROUNDS = 7
#: Seconds for which a service is unavailable at most, should a hospital not notice: nobody rests for that long.
LONGEST = 60.0
#: What a hospital writes once in each outage that it notices.
WAITING = f"waiting, tried again every {RETRY:g} s"
#: And when it is over.
BACK = "is back after"


class Store:
    """A WebDAV server that is stopped and started again over the same folder."""

    def __init__(self, folder: Path) -> None:
        (folder / "exchange").mkdir(parents=True)
        self.port = free_port()
        self._command = webdav_command(folder, self.port)
        self.start()

    def start(self) -> None:
        null = subprocess.DEVNULL
        self._process = subprocess.Popen(self._command, stdout=null, stderr=null)
        wait_for_port(self.port, self._process)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class Service(Protocol):
    """What hospitals depend on, and a test stops and starts."""

    def stop(self) -> None: ...
    def start(self) -> None: ...


@contextmanager
def away(service: Service, local: LocalDatasites, hospitals: Sequence[str]) -> Iterator[None]:
    """While the block begins the service goes away, until each of these hospitals has written that it waits for it.

    The block may end before. A hospital tries for some seconds before it says so, and each tries often.
    """

    def said(words: str) -> list[int]:
        return [local.service_log(key).read_text().count(words) for key in hospitals]

    def until(seen: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LONGEST
        while not seen() and time.monotonic() < deadline:
            time.sleep(0.1)

    def outage() -> None:
        time.sleep(0.3)
        service.stop()
        until(lambda: all(now > was for was, now in zip(before, said(WAITING), strict=True)))
        service.start()

    until(lambda: said(WAITING) == said(BACK))  # of the outage before this one
    before = said(WAITING)
    thread = threading.Thread(target=outage)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def again(act: Callable[[], object]) -> None:
    """What a researcher does whose call ends with the sentence that the store is unreachable: call again."""
    while True:
        try:
            act()
            return
        except StoreUnreachable:
            time.sleep(0.5)


Rows = dict[str, tuple[np.ndarray, np.ndarray]]


def study_through(
    local: LocalDatasites, name: str, point: Callable[[], AbstractContextManager[None]]
) -> tuple[Run, Rows]:
    """A whole study of ten steps, each under what `point` makes; and each hospital's rows, which go with its end."""
    study = local.study(name, rounds=str(ROUNDS))
    with local.federation() as federation:
        with point():
            again(lambda: federation.submit(study))
        local.approve(study)
        with point():
            again(lambda: federation.wait(study, timeout=180, progress=False))
        run = federation.start(study)
        run._least_patience = 90.0  # a hospital that is held up is waited for
        with point():
            again(lambda: run.complete(rounds=1, progress=False))
        for _ in range(1, ROUNDS):
            with point():
                again(run.next_round)
        rows = {key: training_rows(local, key, study.hash) for key in KEYS}
        with point():
            again(lambda: run.complete(progress=False))
    return run, rows


@contextmanager
def parties(folder: Path, patch: pytest.MonkeyPatch, which: str) -> Iterator[tuple[LocalDatasites, Service]]:
    """Four datasites, and the service that they all, or the first of them, depend on."""
    serve = [str(Path(__file__).with_name("noiseless_datasite.py"))]
    with ExitStack() as stack:
        if which == "database":
            folder.mkdir()
            certificates = Certificates.make(folder / "certificates")
            server = stack.enter_context(postgresql(certificates))
            server.make_database("cleveland")
            options = f"sslmode=verify-full&sslrootcert={certificates.authority}"
            local = LocalDatasites(folder, serve=serve, database=server.address("cleveland", "localhost", options))
            yield started(stack, local), server
        else:
            store = Store(folder / "dav")
            stack.callback(store.stop)
            base = {"base_url": f"http://127.0.0.1:{store.port}"}
            patch.setenv("FSSPEC_WEBDAV", json.dumps(base))
            patch.setitem(fsspec.config.conf, "webdav", base)
            yield started(stack, LocalDatasites(folder, serve=serve, store="webdav://exchange")), store


def started(stack: ExitStack, local: LocalDatasites) -> LocalDatasites:
    stack.callback(local.stop)
    local.start(*KEYS)
    return local


@pytest.mark.long
@pytest.mark.parametrize("which", ["database", "store"])
def test_a_service_that_goes_away_at_ten_points_of_a_study_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """The model is the one without; each round is charged once, then released once, everywhere; no log has an alarm."""
    points = 0
    depend = KEYS[:1] if which == "database" else KEYS
    try:
        with parties(tmp_path / "parties", monkeypatch, which) as (local, service):

            def point() -> AbstractContextManager[None]:
                nonlocal points
                points += 1
                return away(service, local, depend)

            run, rows = study_through(local, which, point)
            assert points == 10
            assert all(len(record.survivors) == 4 for record in run.state.rounds)
            found = np.concatenate([part.ravel() for part in run.model.values()])
            np.testing.assert_allclose(found, in_the_clear(local, run, rows), atol=1e-3)
            rounds = range(1, ROUNDS + 2)
            began = dict.fromkeys(KEYS, Place())  # the study is the first thing that they ever did
            local.require_honest(run.study.hash, began, possible=rounds, sure=dict.fromkeys(KEYS, rounds))
            logs = [local.service_log(key).read_text() for key in depend]
    except Absent as absent:
        pytest.skip(str(absent))
    names = {
        "database": "database postgresql://datasite:***@localhost",
        "store": "store webdav://exchange is unavailable: ",
    }
    for log in logs:
        assert names[which] in log
        assert log.count(WAITING) == 10  # each of them noticed each outage
        assert log.count(BACK) >= 9  # the last may be a moment away


def in_the_clear(local: LocalDatasites, run: Run, rows: Rows) -> np.ndarray:
    """The model of a plain weighted FedAvg, computed by this test as the operator of all machines."""
    declared = {key: local.hospital(key).declared_patients for key in KEYS}
    model = np.zeros(sum(part.size for part in run.model.values()), dtype=np.float32)
    for _ in range(ROUNDS):
        updates = [declared[key] * plain_update(model, *rows[key]).astype(np.float64) for key in KEYS]
        model = (model + sum(updates) / sum(declared.values())).astype(np.float32)
    return model
