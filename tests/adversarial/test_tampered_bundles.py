"""More than a hundred tampered bundles of more than twenty kinds: each is found, by the check that should."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adversarial.tampered_bundles import show, tampered_bundles


@pytest.mark.long
def test_every_tampered_bundle_is_found_within_bounds(tmp_path: Path) -> None:
    missed = [
        (tampered.kind, tampered.what, told.status, told.output)
        for tampered, told in show(tmp_path)
        if not told.finds(tampered) or told.memory > 256
    ]
    assert missed == []


def test_they_are_of_many_kinds() -> None:
    made = tampered_bundles()
    assert len(made) >= 100
    assert len({tampered.kind for tampered in made}) >= 20
    assert len({(tampered.kind, tampered.what) for tampered in made}) == len(made)
