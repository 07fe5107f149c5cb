"""A hospital's setup of an epoch in cohorts of all kinds; of keys and epochs that follow, see `test_epoch_keys`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_setup import set_up

from datasites.hospital.site import Site


@pytest.fixture
def own_roster(site: Site) -> Iterator[None]:
    """The roster is put back."""
    before = site.home.roster.read_bytes() if site.home.roster.exists() else None
    yield
    site.home.roster.unlink(missing_ok=True)
    if before is not None:
        site.home.roster.write_bytes(before)


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 66])
def test_a_hospital_is_ready_once_it_has_the_shares_that_are_meant_for_it(
    site: Site, own_roster: None, tmp_path: Path, n: int
) -> None:
    """In a large cohort those of its neighbours alone; it waits for nobody else's."""
    hospital, aggregator = set_up(n, 2, tmp_path, site)
    assert hospital.kept > 0
    assert aggregator.kept > 0
