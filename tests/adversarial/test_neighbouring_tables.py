"""I16: what leaves, and when, is the same for a table and for its neighbour, once what is priced is taken out.

A whole study runs on a table, and on the same table without one patient's records. On the second, all work is done on
the neighbour's rows, and only what comes out at the doors (noised sums, noised counts, keyed commitments) is replaced
by what came out on the first: that this is as likely there is what epsilon and a secret key are for. Everything else
that others can see is compared, to the byte and to the moment: names, contents before encryption, sizes, order,
deletions, heads, evidence. See `neighbours`.
"""

from __future__ import annotations

import ast
import io
import runpy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from datasites.privacy import per_row
from datasites.privacy.model_inputs import binary_loss, tensor, tensors
from datasites.study.errors import read_toml
from datasites.study.schema import DataModel
from tests.adversarial.neighbours import tables
from tests.adversarial.neighbours.laboratory import Laboratory, Outcome, Scenario
from tests.adversarial.neighbours.tables import SOMEBODY, without
from tests.adversarial.neighbours.watch import Left, difference

WORKS = "done, abstained: []"
PLAIN = Scenario(real_worker=False)
#: All that may happen to a study at once: a withdrawal; the datasite killed before it masks, so that it trains again,
#: and a worker that dies in doing so; and a backup put back that knows a round less, after which people settle what was
#: lost and let it rejoin.
EVENTFUL = Scenario(
    withdrawals=((2, "P-05"),), worker_dies=(2,), dies_before="mask 1", backed_up=2, restored=3, after_stop="rejoin"
)
MODES = ("local", "distributed")
REJECTED = replace(PLAIN, rejected=True)
DENIED = replace(PLAIN, agreement_ends=2)
WITHDRAWN = replace(PLAIN, withdrawals=((2, SOMEBODY),))
FAILED = replace(PLAIN, worker_dies=(1, 2))

Run = Callable[[Scenario], Outcome]
Four = tuple[Outcome, Outcome, Outcome, Outcome]


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    running = Laboratory(tmp_path_factory.mktemp("neighbours"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def run(laboratory: Laboratory) -> Run:
    """Runs a scenario; the same one is run once only."""
    return cache(laboratory.run)


@pytest.fixture(scope="module")
def sides(run: Run) -> dict[str, list[str]]:
    """Whose records train, and whose are held out."""
    return run(replace(PLAIN, to_intake=True)).sides


@pytest.fixture(scope="module")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Four]:
    """By mode, both at once: on a table, on the same again with nothing replaced, and on its neighbour.

    And on the neighbour up to the first thing that differs, with nothing replaced that comes out of the worker.
    """

    folders = {mode: tmp_path_factory.mktemp(mode) for mode in MODES}

    def four(mode: str) -> Four:
        laboratory = Laboratory(folders[mode])
        scenario = replace(EVENTFUL, mode=mode)
        on_table = laboratory.run(scenario)
        again = laboratory.run(scenario)
        replayed = replace(scenario, patients=without(scenario.patients), replayed=on_table.file)
        neighbour = laboratory.run(replayed)
        open_doors = laboratory.run(replace(replayed, open_doors=True, to_difference=True))
        laboratory.close()
        return on_table, again, neighbour, open_doors

    with ThreadPoolExecutor(len(MODES)) as both:
        return dict(zip(MODES, both.map(four, MODES), strict=True))


def on_neighbour(run: Run, scenario: Scenario, name: str = SOMEBODY) -> tuple[Outcome, str]:
    """How the study ends on a table, and the first thing in which the neighbour's shows."""
    on_table = run(scenario)
    patients = without(scenario.patients, name)
    neighbour = run(replace(scenario, patients=patients, replayed=on_table.file, to_difference=True))
    return on_table, difference(on_table.left, neighbour.left)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_all_that_leaves_is_the_same_on_a_neighbouring_table(eventful: dict[str, Four], mode: str) -> None:
    """With the real worker; `SOMEBODY` has rows that are not finite and with a code out of range, or isn't there."""
    on_table, again, neighbour, _ = eventful[mode]
    # The last round is of the restored home, whose log the researcher has seen go back, as two people there declared.
    assert on_table.rounds == [WORKS] * 3
    assert on_table.state == "closed: looked at it"
    assert len([one for one in on_table.left if ".masked." in one.name and one.did == "put"]) == 3
    assert difference(on_table.left, again.left) == ""
    assert difference(on_table.left, neighbour.left) == ""


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_what_comes_out_at_the_doors_does_differ(eventful: dict[str, Four], mode: str) -> None:
    """Without the replacement the same comparison sees the patient: it looks at what it must."""
    on_table, _, _, open_doors = eventful[mode]
    assert "00000001.masked" in difference(on_table.left, open_doors.left)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "mode"), [("training", "distributed"), pytest.param("held_out", "local", marks=pytest.mark.long)]
)
def test_nobody_sees_that_one_side_is_empty(run: Run, sides: dict[str, list[str]], side: str, mode: str) -> None:
    """The patient removed was the only one who trained, or who was held out."""
    other = "held_out" if side == "training" else "training"
    only = sides[side][0]
    table = Scenario(patients=tuple(sorted([only, *sides[other]])), mode=mode)
    assert run(replace(table, real_worker=False, to_intake=True)).sides[side] == [only]
    on_table, found = on_neighbour(run, table, only)
    assert on_table.rounds == [WORKS] * 3
    assert found == ""


@pytest.mark.long
@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(WITHDRAWN, id="the patient withdraws"),
        pytest.param(replace(WITHDRAWN, mode="distributed"), id="the patient withdraws, distributed"),
        pytest.param(REJECTED, id="people reject"),
        pytest.param(replace(PLAIN, unfit=True, to_intake=True), id="a gate holds the table back"),
        pytest.param(replace(REJECTED, unfit=True), id="a gate holds the table back, and people reject"),
        pytest.param(DENIED, id="an agreement ends"),
        pytest.param(FAILED, id="a round fails, and nobody answers"),
        pytest.param(replace(FAILED, after_stop="resume"), id="a round fails, and people resume"),
        pytest.param(replace(FAILED, after_stop="sit_out"), id="a round fails, and people sit it out"),
        pytest.param(replace(PLAIN, backed_up=2, restored=2), id="restored as it was"),
        pytest.param(replace(PLAIN, backed_up=1, restored=2, after_stop="rejoin"), id="restored before its keys"),
        pytest.param(replace(PLAIN, dies_before=r"\.certificate-0\."), id="killed before its certificate"),
        pytest.param(replace(PLAIN, dies_before=r"/outbox/"), id="killed before its approval"),
        pytest.param(replace(PLAIN, dies_before=r"/00000001\.masked\."), id="killed before its vector"),
        pytest.param(replace(PLAIN, dies_before=r"\.unmask\."), id="killed before its shares"),
        pytest.param(replace(PLAIN, dies_before=r"\.account\."), id="killed before its account"),
    ],
)
def test_other_ways_that_a_study_may_go(run: Run, scenario: Scenario) -> None:
    on_table, found = on_neighbour(run, scenario)
    assert on_table.left
    assert found == ""


#: What is planted, and the study in which it shows, in local mode; None: the one in which training is empty on the
#: neighbour.
PLANTED: dict[str, Scenario | None] = {
    "row_count_in_a_letter": PLAIN,
    "size_by_rows": PLAIN,
    "steps_that_found_somebody": PLAIN,
    "spent_by_actual_patients": PLAIN,
    "silence_below_a_number_of_patients": PLAIN,
    "another_letter": PLAIN,
    "order_of_letters": PLAIN,
    "later_by_rows": PLAIN,
    "slower_to_look": PLAIN,
    "not_collected": PLAIN,
    "record_for_an_odd_number": PLAIN,
    "retry_for_a_patient": PLAIN,
    "withdrawal_of_nobody": WITHDRAWN,
    "abstains_where_nobody_is": None,
    "counts_beside_the_door": PLAIN,
    "approval_that_tells": PLAIN,
    "unkeyed_version": PLAIN,
    "rejection_that_tells": REJECTED,
    "not_ready_without_a_person": PLAIN,
    "denial_that_tells": DENIED,
    "file_named_by_rows": PLAIN,
    "mock_of_real_rows": PLAIN,
    "certificate_by_rows": PLAIN,
    "keys_drawn_from_rows": PLAIN,
    "evidence_with_counts": PLAIN,
    "study_that_stops_for_a_patient": PLAIN,
}


#: Of each kind one, for the fast tests: in a letter, beside the door, by time, by a record, by a name, by a decision.
FAST = {"row_count_in_a_letter", "later_by_rows", "file_named_by_rows"}
#: Planted in distributed mode too, where rows reach the ring, ticks and letters by other ways.
DISTRIBUTED = ("counts_beside_the_door", "later_by_rows", "abstains_where_nobody_is")
#: Planted beside the real worker too, as in the comparison that guards the product: in training, in counts, by time.
REAL_WORKER = ("retry_for_a_patient", "counts_beside_the_door", "later_by_rows")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("leak", "changes"),
    [
        *(pytest.param(name, {}, id=name, marks=[pytest.mark.long] * (name not in FAST)) for name in PLANTED),
        *(
            pytest.param(name, {"mode": "distributed"}, id=f"{name}, distributed", marks=pytest.mark.long)
            for name in DISTRIBUTED
        ),
        *(
            pytest.param(name, {"real_worker": True}, id=f"{name}, real worker", marks=pytest.mark.long)
            for name in REAL_WORKER
        ),
    ],
)
def test_a_planted_leak_shows(run: Run, sides: dict[str, list[str]], leak: str, changes: dict[str, Any]) -> None:
    scenario, name = PLANTED[leak], SOMEBODY
    if scenario is None:
        name = sides["training"][0]
        scenario = replace(PLAIN, patients=tuple(sorted([name, *sides["held_out"]])))
    scenario = replace(scenario, **changes)
    clean, found = on_neighbour(run, scenario, name)
    assert found == "", "without the leak there is nothing to see"
    assert clean.left
    leaky, found = on_neighbour(run, replace(scenario, leak=leak), name)
    assert leaky.looked > 0, "the planted lines never ran"
    assert found != ""


def test_every_leak_is_planted() -> None:
    source = Path(tables.__file__).with_name("leaks.py").read_text()
    functions = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    assert functions == set(PLANTED)


def test_somebody_alone_has_a_code_out_of_range_and_a_row_that_is_not_finite() -> None:
    """One record each; or the comparison would not meet them."""
    study = Path(tables.__file__).with_name("study")
    namespace = runpy.run_path(str(study / "model.py"))
    table = pd.read_csv(io.StringIO(tables.table(tables.everybody())))
    x, y = read_toml(study / "features.toml", DataModel).encode(table)
    made = per_row.run(namespace["build_model"](x.shape[1]), tensors(x), None, binary_loss, tensor(y))
    finite = torch.isfinite(made.losses)
    odd = table[~(made.fit & finite).numpy()]
    assert list(odd["id"]) == [SOMEBODY, SOMEBODY]
    assert list(odd["pressure"]) == [30.0, float("inf")]
    assert int((~made.fit).sum()) == int((~finite).sum()) == 1


def test_a_difference_is_said_in_words() -> None:
    one = [Left(1.0, "put", "a", b"x", 1), Left(2.0, "put", "b", b"y", 1)]
    assert difference(one, list(one)) == ""
    assert "time" in difference(one, [one[0], replace(one[1], time=2.05)])
    assert "name" in difference(one, one[::-1])
    assert "missing: put b" in difference(one, one[:1])
