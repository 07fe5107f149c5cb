"""Sampling as it is priced: patients independently, all their records, no fixed size; and a split that nobody moves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from datasites.privacy.sampling import PatientIndex, held_out, poisson_rows

SALT = b"0123456789abcdef"


def test_each_patient_enters_with_the_rate_and_independently():
    patients, rate, steps = 200, 0.3, 2000
    index = PatientIndex.of(np.arange(patients))
    taken = np.zeros((steps, patients), dtype=bool)
    for step in range(steps):
        taken[step, poisson_rows(index, rate)] = True
    assert taken.mean() == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / taken.size))
    sizes = taken.sum(1)
    # A shuffled loader has batches of one size; Poisson sampling gives a binomial one.
    spread = sizes.var(ddof=1) / (patients * rate * (1 - rate))
    assert stats.chi2.cdf(spread * (steps - 1), steps - 1) == pytest.approx(0.5, abs=0.49999)
    # An epoch without replacement would make neighbouring steps avoid each other's patients.
    again = (taken[1:] & taken[:-1]).mean()
    assert again == pytest.approx(rate**2, abs=5 * np.sqrt(rate**2 / taken.size))


def test_all_records_of_a_sampled_patient_come_together():
    owner = np.array(["b", "a", "b", "c", "a", "b"])
    index = PatientIndex.of(owner)
    assert index.count == 3
    seen = set()
    for _ in range(200):
        rows = poisson_rows(index, 0.5)
        for name in "abc":
            mine = np.flatnonzero(owner == name)
            assert np.isin(mine, rows).all() or not np.isin(mine, rows).any()
        seen.add(tuple(rows))
    assert len(seen) == 8  # every subset of three patients, the empty one included


def test_empty_batches_happen_as_often_as_they_should():
    index = PatientIndex.of(np.arange(3))
    empty = np.mean([len(poisson_rows(index, 0.2)) == 0 for _ in range(4000)])
    assert empty == pytest.approx(0.8**3, abs=0.04)


def test_a_missing_identifier_is_not_a_patient_of_its_own():
    with pytest.raises(ValueError, match="identifier is missing"):
        PatientIndex.of([1.0, float("nan")])
    with pytest.raises(ValueError, match="identifier is missing"):
        PatientIndex.of(np.array(["a", None], dtype=object))


@given(st.lists(st.integers(0, 10**6), unique=True, min_size=2, max_size=50), st.integers(0, 49))
@settings(max_examples=50)
def test_removing_a_patient_moves_nobody_else(patients, which):
    which %= len(patients)
    whole = held_out(patients, SALT, 0.4)
    rest = held_out(patients[:which] + patients[which + 1 :], SALT, 0.4)
    assert (np.delete(whole, which) == rest).all()


def test_the_split_has_its_share_keeps_patients_whole_and_depends_on_the_salt():
    patients = np.repeat(np.arange(20_000), 2)
    mask = held_out(patients, SALT, 0.4)
    assert mask.mean() == pytest.approx(0.4, abs=0.02)
    assert (mask[::2] == mask[1::2]).all()
    assert (mask == held_out([str(patient) for patient in patients], SALT, 0.4)).all()
    other = held_out(patients, b"another salt 0123456789", 0.4)
    assert (mask & other).mean() == pytest.approx(0.16, abs=0.02)


@pytest.mark.parametrize(("salt", "fraction"), [(b"short", 0.4), (SALT, 0.0), (SALT, 1.0)])
def test_a_split_that_is_none_is_refused(salt, fraction):
    with pytest.raises(ValueError, match="salt|fraction"):
        held_out([1, 2], salt, fraction)
