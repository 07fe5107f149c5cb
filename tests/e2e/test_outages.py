"""Each outside service is stopped and started again at ten points of a study: the model is the one without outages.

Real processes, a real PostgreSQL server under one hospital, a real WebDAV server as the store; training is one plain
step, so that two studies can be compared.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pytest
from local_postgresql import postgresql
from loopback_servers import Absent, free_port, wait_for_port, webdav_command

from datasites.researcher.run import Run
from tests.e2e.support import KEYS, LocalDatasites

ROUNDS = 7
#: Seconds for which a service is away: longer than one try of those who wait for it.
AWAY = 4.0


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


@contextmanager
def away(service: object) -> Iterator[None]:
    """While the block begins the service goes away, and it is back some seconds later; the block may end before."""

    def outage() -> None:
        time.sleep(0.3)
        service.stop()  # type: ignore[attr-defined]
        time.sleep(AWAY)
        service.start()  # type: ignore[attr-defined]

    thread = threading.Thread(target=outage)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def study_through(local: LocalDatasites, name: str, point: Callable[[], object]) -> Run:
    """A whole study of ten steps, each under what `point` makes."""
    study = local.study(name, rounds=str(ROUNDS))
    with local.federation() as federation:
        with point():  # type: ignore[attr-defined]
            federation.submit(study)
        local.approve(study)
        with point():  # type: ignore[attr-defined]
            federation.wait(study, timeout=180, progress=False)
        run = federation.start(study)
        run._least_patience = 90.0  # a hospital that is held up is waited for
        with point():  # type: ignore[attr-defined]
            run.complete(rounds=1, progress=False)
        for _ in range(1, ROUNDS):
            with point():  # type: ignore[attr-defined]
                run.next_round()
        with point():  # type: ignore[attr-defined]
            run.complete(progress=False)
    return run


@pytest.mark.long
def test_each_outside_service_goes_away_at_ten_points_of_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        with postgresql() as database:
            store, parties = Store(tmp_path / "dav"), tmp_path / "parties"
            parties.mkdir()
            options = {"base_url": f"http://127.0.0.1:{store.port}"}
            monkeypatch.setenv("FSSPEC_WEBDAV", json.dumps(options))
            monkeypatch.setitem(fsspec.config.conf, "webdav", options)
            local = LocalDatasites(
                parties,
                serve=[str(Path(__file__).with_name("noiseless_datasite.py"))],
                store="webdav://exchange",
                database=database.make_database("cleveland"),
            )
            try:
                local.start(*KEYS)
                points: Counter[str] = Counter()

                @contextmanager
                def none() -> Iterator[None]:
                    points["none"] += 1
                    yield

                def of(name: str, service: object) -> Callable[[], object]:
                    def point() -> object:
                        points[name] += 1
                        return away(service)

                    return point

                expected = study_through(local, "without", none)
                for name, service in (("database", database), ("store", store)):
                    run = study_through(local, name, of(name, service))
                    assert points[name] == 10
                    require_same(local, run, expected)
                log = (local.folder / "cleveland.log").read_text()
                assert "database postgresql://datasite:***@" in log
                assert "store webdav://exchange is away: " in log
                assert log.count("waiting, tried again every 2 s") >= 10
                assert "Traceback" not in log
            finally:
                local.stop()
                store.stop()
    except Absent as absent:
        pytest.skip(str(absent))


def require_same(local: LocalDatasites, run: Run, expected: Run) -> None:
    """The same model; every hospital in every round, charged and released once; a log that holds; no study stopped."""
    assert all(len(record.survivors) == 4 for record in run.state.rounds)
    for name, values in expected.model.items():
        np.testing.assert_allclose(run.model[name], values, atol=1e-3)
    for key in KEYS:
        mine = [r for r in local.audit_log(key) if r["fields"].get("study") == run.study.hash]
        for kind in ("charged", "released"):
            assert [r["fields"]["round"] for r in mine if r["kind"] == kind] == list(range(1, ROUNDS + 2))
        assert not [r for r in mine if r["kind"] in ("stopped", "abstained", "contained")]
        assert local.command(key, "audit", "verify").returncode == 0
