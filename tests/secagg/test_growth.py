"""What a step or a setup writes is what is new, however much is kept; bytes are those given to the kernel."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_setup import SLACK

from datasites.secagg.epoch_terms import EPOCH_ROUNDS
from datasites.secagg.state import PAIR
from tests.secagg.cohort import Cohort, email, integers
from tests.secagg.journalled import Journalled

A = email(0)
ROUNDS = 40
#: Record and anchors, which every step writes; with an open round the record holds its manifest and one header.
SMALL = 12_000


def written_by(action: Callable[[], object]) -> int:
    """Bytes that this process writes meanwhile."""

    def so_far() -> int:
        (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("wchar:"))
        return int(line.split()[1])

    before = so_far()
    action()
    return so_far() - before


@pytest.fixture
def twelve(tmp_path: Path):
    hospitals = Journalled(Cohort.of(12, rounds=(1, ROUNDS)), tmp_path)
    hospitals.share()
    yield hospitals
    hospitals.close()


def test_each_bundle_costs_its_own_shares(twelve):
    cohort, costs = twelve.cohort, []
    for bundle in twelve.store:
        if bundle.recipient == A:
            cohort.states[A] = cohort.members[A].accept(cohort.states[A], bundle)
            costs.append(written_by(lambda: twelve.commit(A)))
    assert len(costs) == 11
    assert max(costs) < ROUNDS * PAIR * 4 / 3 + SMALL
    assert max(costs) - min(costs) < 500, "the last costs no more than the first"


def test_the_setup_and_the_rounds_of_an_epoch_cost_what_they_bring(twelve):
    """All shares are kept twice over, by peer and by round, one after the other; the enrolment once."""
    cohort = twelve.cohort
    shares = 12 * ROUNDS * PAIR
    accepted = written_by(lambda: twelve.accept(A))
    assert accepted < shares * 4 / 3 + 11 * SMALL
    cohort.states[A], ready = cohort.members[A].ready(cohort.states[A])
    assert written_by(lambda: twelve.commit(A, ready)) < len(ready.to_bytes()) + shares + ROUNDS * 200 + SMALL
    cohort.state = cohort.aggregator.receive_ready(cohort.state, ready)
    for name in cohort.members:
        if name != A:
            twelve.accept(name)
            twelve.ready(name)
    kept = [file.stat().st_size for file in (twelve.folder / A).rglob("*") if file.is_file()]
    enrolment = len(cohort.state.enrolment.to_bytes())
    bundles = sum(len(one.to_bytes()) for one in twelve.store if one.sender == A)
    assert sum(kept) < enrolment + bundles + shares + len(ready.to_bytes()) + ROUNDS * 200 + 2 * SMALL
    for number in (1, 2, 30):
        manifest = cohort.manifest(number)
        inputs = integers(manifest, manifest.participants)
        cohort.open(manifest)
        assert written_by(lambda: twelve.commit(A)) < SMALL
        cohort.states[A], masked = cohort.members[A].mask(cohort.states[A], inputs[A])
        cost = written_by(lambda masked=masked: twelve.commit(A, masked))
        assert cost < len(masked.payload) + 12 * PAIR + SMALL
    files = [file for file in (twelve.folder / A / "journal" / "parts").iterdir() if file.stat().st_size > 12 * PAIR]
    assert len(files) < ROUNDS - 30 + 8, "a file for each round that is still to come"


@pytest.mark.long
def test_a_setup_costs_the_aggregator_bytes_in_proportion_to_its_hospitals(tmp_path: Path) -> None:
    """In this range the enrolment, of 9 KB for each, is sent once as a blob; below it travels in each envelope.

    Measured by the benchmark in a process of its own, since a process has one datasite's database.
    """
    bench, found = Path(__file__).resolve().parents[2] / "scripts" / "bench_setup.py", tmp_path / "found.json"
    command = [sys.executable, str(bench), "--hospitals", "10", "20", "--rounds", str(EPOCH_ROUNDS)]
    subprocess.run([*command, "--json", str(found)], check=True, capture_output=True)
    lines = {line["name"]: line["value"] for line in json.loads(found.read_text())}
    large = f"n=20 rounds={EPOCH_ROUNDS}: aggregator"
    assert lines[f"{large}, written against linear growth"] < SLACK
    assert lines[f"{large}, kept against linear growth"] < SLACK
    assert lines[f"{large}, written"] < 0.8
