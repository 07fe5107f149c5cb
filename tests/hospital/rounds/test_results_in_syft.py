"""The account of a closed study becomes the output of its job in syft: once, as it was sent, and nothing besides."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from syft_job.job_storage import JobStorage

from datasites.control.sealer import open_keys, syft_fingerprint
from datasites.control.syft import ControlError, HospitalControl, ResearcherControl
from datasites.hospital.models import Case
from datasites.hospital.rounds.closing import results_of
from datasites.hospital.service import Service
from datasites.study import letters
from datasites.study.roster import Roster
from datasites.transport.store import Store
from tests.hospital.conftest import log_pins
from tests.hospital.desk import turn
from tests.hospital.running import OWN, RESEARCHER, Running, runs
from tests.kills import Killed, kill_after, kill_before

FILES = {"study.toml": b'name = "heart"\n', "model.py": b"pass\n"}


@pytest.fixture
def researcher(running: Running, service: Service, tmp_path: Path) -> Iterator[ResearcherControl]:
    """Who has submitted the study that runs, over the hospital's own store."""
    store = Store(running.site.home.settings.store)
    made = ResearcherControl.open(RESEARCHER, tmp_path / "box", store, tmp_path / "state", running.roster)
    keys = open_keys(OWN, running.site.home.transport / "syft_keys.json")
    fingerprints = {RESEARCHER: made.syft_fingerprint(), OWN: syft_fingerprint(keys)}
    roster = Roster(
        entries=tuple(
            entry.model_copy(update={"syft_fingerprint": fingerprints.get(entry.email, entry.syft_fingerprint)})
            for entry in running.roster.entries
        )
    )
    roster.save(running.site.home.roster)
    log_pins(running.site, roster)
    made.pin(roster)
    made.add_hospital(OWN)
    job = f"closing-{secrets.token_hex(4)}"  # the home, and so its SyftBox, is that of all tests
    # What is decided is told once the job is there.
    Case.objects.filter(pk=running.row.pk).update(job_name=job, recorded_in_syft=True)
    runs(service, running)
    made.sync()
    turn(service)
    made.submit(OWN, job, FILES)
    Case.objects.filter(pk=running.row.pk).update(recorded_in_syft=False)
    yield made
    made.close()


def closed(running: Running, service: Service) -> bytes:
    """Close the study for real; returns the account that its researcher was sent."""
    turn(service)
    running.tell(0, letters.CLOSE, {"rounds": 0})
    running.steps()
    letter = running.heard(0, letters.ACCOUNT)
    assert letter is not None
    return letters.PrivacyStatement.model_validate(letter.body).canonical()


def outputs(researcher: ResearcherControl, running: Running) -> list[tuple[str, bytes]]:
    """What a Syft user sees of the job, by syft's own client."""
    researcher.sync()
    job_name = Case.objects.get(pk=running.row.pk).job_name
    (job,) = [job for job in researcher._client.job_client.jobs if job.name == job_name]
    return sorted((path.name, path.read_bytes()) for path in job.output_paths)


def test_a_syft_user_finds_the_account_of_a_closed_study_where_results_are(
    running: Running, service: Service, researcher: ResearcherControl
) -> None:
    account = closed(running, service)
    row = Case.objects.get(pk=running.row.pk)
    assert (row.state, row.recorded_in_syft) == (Case.State.CLOSED, False)
    assert results_of(running.site.home, running.study_hash) == {"account.json": account}
    assert outputs(researcher, running) == []
    turn(service)
    assert Case.objects.get(pk=row.pk).recorded_in_syft
    assert outputs(researcher, running) == [("account.json", account)]
    assert researcher.results(OWN, row.job_name) == {"account.json": account}
    said = researcher.job_state(OWN, row.job_name)
    assert (said.state, said.reason) == ("done", f"approved {row.approval_hash}")


DIES: dict[str, Callable[[Any], None]] = {
    "before the files": kill_before(HospitalControl, "publish_result"),
    "before it is said to be done": kill_before(
        JobStorage, "write_state", lambda _, ref, state: state.status == "done"
    ),
    "before it is sent": kill_before(HospitalControl, "sync", lambda _, syncs=itertools.count(1): next(syncs) == 2),
    "before it is noted": kill_after(HospitalControl, "publish_result"),
}


@pytest.mark.parametrize("moment", DIES)
def test_killed_in_between_it_is_published_once_all_the_same(
    running: Running,
    service: Service,
    researcher: ResearcherControl,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    account = closed(running, service)
    with monkeypatch.context() as patch:
        DIES[moment](patch)
        with pytest.raises(Killed):
            turn(service)
    for _ in range(2):
        turn(service)
    assert outputs(researcher, running) == [("account.json", account)]
    job = Case.objects.get(pk=running.row.pk).job_name
    before = abstention_of(running, job)
    # By the service's own connection to syft, which is open: no turn publishes what is noted.
    service._control.publish_result(job, {"account.json": account}, RESEARCHER)
    assert abstention_of(running, job) == before != {}, "the same again changes nothing"


def abstention_of(running: Running, job: str) -> dict[Path, bytes]:
    """What the hospital's SyftBox holds about a job."""
    return {path: path.read_bytes() for path in running.site.home.syftbox.rglob("state.yaml") if job in path.parts}


def test_a_study_that_ends_before_its_approval_was_told_is_told_as_approved_and_done(
    running: Running, service: Service, researcher: ResearcherControl
) -> None:
    running.tell(0, letters.CLOSE, {"rounds": 0})
    running.steps()
    turn(service)
    assert [name for name, _ in outputs(researcher, running)] == ["account.json"]


def test_a_study_that_did_not_close_has_no_outputs(
    running: Running, service: Service, researcher: ResearcherControl
) -> None:
    """Nor one that was revoked after an account was stored, say by a service that was killed before it sent it."""
    account = running.site.home.secagg / running.study_hash / "account.json"
    turn(service)
    account.parent.mkdir(parents=True, exist_ok=True)
    account.write_bytes(b"{}")
    Case.objects.filter(pk=running.row.pk).update(state=Case.State.REVOKED, recorded_in_syft=False)
    turn(service)
    assert outputs(researcher, running) == []
    job = Case.objects.get(pk=running.row.pk).job_name
    # By the service's own connection (private): a turn asks for no result of a study that did not close.
    with pytest.raises(ControlError, match="only an approved one"):
        service._control.publish_result(job, {"account.json": b"{}"}, RESEARCHER)


def test_an_account_that_is_lost_leaves_the_study_done_without_outputs(
    running: Running, service: Service, researcher: ResearcherControl
) -> None:
    closed(running, service)
    (running.site.home.secagg / running.study_hash / "account.json").unlink()
    turn(service)
    assert Case.objects.get(pk=running.row.pk).recorded_in_syft
    assert outputs(researcher, running) == []
