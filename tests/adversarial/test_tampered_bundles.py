"""More than a hundred tampered bundles of more than twenty kinds: each is found, by the check that should."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adversarial.tampered_archives import Tampered
from tests.adversarial.tampered_bundles import ask, good_bundle, show, tampered_bundles
from tests.adversarial.tampered_work import of_work


@pytest.mark.long
def test_every_tampered_bundle_is_found_within_bounds(tmp_path: Path) -> None:
    missed = [
        (tampered.kind, tampered.what, told.status, told.output)
        for tampered, told in show(tmp_path)
        if not told.finds(tampered) or told.memory > 256
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
    assert told.memory < 256


def test_they_are_of_many_kinds() -> None:
    made = tampered_bundles()
    assert len(made) >= 100
    assert len({tampered.kind for tampered in made}) >= 20
    assert len({(tampered.kind, tampered.what) for tampered in made}) == len(made)
