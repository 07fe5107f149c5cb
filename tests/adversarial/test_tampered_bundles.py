"""More than a hundred tampered bundles of more than twenty kinds: each is found, by the check that should."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.adversarial.tampered_archives import Tampered
from tests.adversarial.tampered_bundles import PEAK, ask, good_bundle, show, tampered_bundles
from tests.adversarial.tampered_work import of_work


@pytest.mark.long
def test_every_tampered_bundle_is_found_within_bounds(tmp_path: Path) -> None:
    missed = [
        (tampered.kind, tampered.what, told.status, told.output)
        for tampered, told in show(tmp_path)
        if not told.finds(tampered) or not 0 < told.memory <= PEAK
    ]
    assert missed == []


@pytest.mark.parametrize("tampered", list(of_work())[:-1], ids=lambda tampered: tampered.what)
def test_what_has_no_end_or_grows_twice_is_refused_within_bounds(tampered: Tampered, tmp_path: Path) -> None:
    # The last of them, whose heads take seconds to sign, is among all of them above.
    files, key = good_bundle(tmp_path)
    path, verifier = tmp_path / "tampered.zip", tmp_path / "verify_bundle.py"
    verifier.write_bytes(files["verify_bundle.py"])
    tampered.write(path, files, key)
    told = ask(verifier, path, key.public_key)
    assert told.finds(tampered), told.output
    assert 0 < told.memory <= PEAK


def test_the_verifiers_peak_is_its_own_and_not_that_of_whoever_starts_it(tmp_path: Path) -> None:
    files, key = good_bundle(tmp_path)
    verifier = tmp_path / "verify_bundle.py"
    verifier.write_bytes(files["verify_bundle.py"])
    alone = ask(verifier, tmp_path / "good.zip", key.public_key)
    held = bytearray(os.urandom(4096)) * (PEAK * 256 * 2)  # this process alone holds twice what the verifier may
    beside = ask(verifier, tmp_path / "good.zip", key.public_key)
    assert len(held) == 2 * PEAK * 1024**2
    assert (alone.status, beside.status) == (0, 0)
    assert 5 < alone.memory < PEAK
    assert 5 < beside.memory < PEAK


def test_they_are_of_many_kinds() -> None:
    made = tampered_bundles()
    assert len(made) >= 100
    assert len({tampered.kind for tampered in made}) >= 20
    assert len({(tampered.kind, tampered.what) for tampered in made}) == len(made)
