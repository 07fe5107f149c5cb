"""What a hospital makes of a study: its own plans within its limits, a fixed split, withdrawals, readiness."""

from __future__ import annotations

import numpy as np
import pytest

from datasites.hospital.budget.population import split_of
from datasites.hospital.cases import consent
from datasites.hospital.cases.case import limits_of, open_case, site_plan
from datasites.hospital.cases.compliance import Denied
from datasites.hospital.cases.encoded import partitions
from datasites.hospital.cases.freeze import FrozenCopyChanged
from datasites.hospital.cases.readiness import check_dataset
from datasites.hospital.cases.review import ReviewError
from datasites.hospital.config import Home
from datasites.hospital.data.withdrawal import add, withdrawn
from datasites.privacy.accountant import epsilon_pld
from datasites.study.errors import InputError
from datasites.study.package import StudyPackage
from tests.hospital.conftest import HEART
from tests.hospital.desk import Desk


def test_a_hospital_is_never_laxer_than_its_own_limits(heart) -> None:  # type: ignore[no-untyped-def]
    """I4: a study that asks for more gets what the hospital allows, with noise that the hospital calibrated."""
    study = StudyPackage.read(HEART / "study").study
    greedy = study.model_copy(
        update={"privacy": study.privacy.model_copy(update={"epsilon": 50.0, "delta": 0.05, "sampling_rate": 1.0})}
    )
    made = site_plan(greedy, heart)
    plan, evaluation = made.training, made.evaluation
    assert epsilon_pld([plan.event()], greedy.privacy.delta) <= heart.study_epsilon
    assert epsilon_pld([evaluation.total_event()], greedy.privacy.delta) <= heart.study_epsilon
    assert plan.sampling_rate == heart.max_sampling_rate
    modest = site_plan(study, heart).training
    assert epsilon_pld([modest.event()], study.privacy.delta) <= study.privacy.epsilon


def test_a_limit_of_delta_is_what_the_rules_count(heart) -> None:  # type: ignore[no-untyped-def]
    """A study that takes the figure that its plan's refusal names would be denied for the digits beyond."""
    assert limits_of(heart.model_copy(update={"delta": 0.01 / 1303})).delta == 7.674597e-06


def test_the_split_never_moves(heart) -> None:  # type: ignore[no-untyped-def]
    """A patient who moved between the partitions could lose on both, and the ledger counts the larger loss only."""
    first = split_of(heart)
    assert split_of(heart).split_key == first.split_key
    with pytest.raises(InputError, match="held_out"):
        split_of(heart.model_copy(update={"held_out": 0.3}))
    with pytest.raises(InputError, match="salt"):
        split_of(heart.model_copy(update={"split_salt": "ab" * 16}))


def test_training_and_held_out_patients_are_different_people(desk: Desk) -> None:
    case = open_case(desk.site.home, desk.row)
    parts = partitions(desk.site.home, case)
    training, held_out = parts["training"].patients, parts["held_out"].patients
    assert training is not None
    assert held_out is not None
    assert not set(training) & set(held_out)
    assert len(training) + len(held_out) == 303


def test_records_that_are_not_those_approved_never_train(desk: Desk) -> None:
    case = open_case(desk.site.home, desk.row)
    path = desk.site.home.prepared / desk.row.study_hash / "records.npz"
    original = path.read_bytes()
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    try:
        arrays["y"] = 1 - arrays["y"]
        np.savez(path.with_suffix(""), **arrays)
        with pytest.raises(FrozenCopyChanged, match="not the version that was approved"):
            partitions(desk.site.home, case)
    finally:
        path.write_bytes(original)


def test_a_patient_who_withdraws_is_left_out_and_not_named_in_the_log(desk: Desk) -> None:
    home = desk.site.home
    case = open_case(home, desk.row)
    before = sum(len(part.y) for part in partitions(home, case).values())
    with pytest.raises(ReviewError, match="auditor"):
        consent.withdraw(desk.site, desk.login("dee"), "heart", "CLEVELAND-0007", "asked")
    try:
        entered = consent.withdraw(desk.site, desk.login("bob"), "heart", "CLEVELAND-0007", "letter of the patient")
        assert entered.patients == 1
        assert sum(len(part.y) for part in partitions(home, case).values()) == before - 1
        assert (home.withdrawals / "heart.json").stat().st_mode & 0o777 == 0o600
        assert b"CLEVELAND-0007" not in home.audit.read_bytes()
    finally:
        (home.withdrawals / "heart.json").unlink()


@pytest.mark.waits
def test_two_withdrawals_at_once_are_both_kept(home: Home) -> None:
    import threading

    try:
        names = [f"P{number:03d}" for number in range(40)]
        threads = [threading.Thread(target=add, args=(home, "heart", name)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert withdrawn(home, "heart") == set(names)
    finally:
        (home.withdrawals / "heart.json").unlink(missing_ok=True)


def test_readiness_says_what_treating_records_as_patients_would_cost(furnished: Home, tmp_path, database) -> None:  # type: ignore[no-untyped-def]
    import pandas as pd

    package = StudyPackage.read(HEART / "study")
    single = check_dataset(furnished, "heart", package)
    assert single.ready
    assert single.most_records == 1
    table = furnished.root / "data" / "table.csv"
    original = table.read_bytes()
    try:
        rows = pd.read_csv(table)
        rows.loc[:2, "id"] = rows.loc[0, "id"]
        rows.to_csv(table, index=False)
        several = check_dataset(furnished, "heart", package)
        assert several.most_records == 3
        assert several.epsilon_by_record > 2 * several.epsilon
        assert "at most 3 records" in several.patients_in_words()
    finally:
        table.write_bytes(original)


def test_a_registry_that_can_not_be_read_denies(desk: Desk) -> None:
    desk.agree()
    desk.site.home.registry.write_text("{")
    with pytest.raises(Denied) as caught:
        desk.approve("ann")
    assert {"baa", "irb"} <= set(caught.value.controls)
    desk.nothing_happened()
