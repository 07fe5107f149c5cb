from __future__ import annotations

import dataclasses

import pytest

from tests.secagg.cohort import Cohort


@pytest.fixture(scope="session")
def _four() -> Cohort:
    return Cohort.of(4).setup()


@pytest.fixture
def four(_four: Cohort) -> Cohort:
    """Four hospitals after setup, threshold 3, one colluder. States are values, so sharing them is safe."""
    return dataclasses.replace(_four, states=dict(_four.states))


@pytest.fixture(scope="session")
def _seven() -> Cohort:
    return Cohort.of(7, threshold=5, consistency=True).setup()


@pytest.fixture
def seven(_seven: Cohort) -> Cohort:
    """Seven hospitals after setup, threshold 5, two colluders, consistency wave."""
    return dataclasses.replace(_seven, states=dict(_seven.states))
