"""Each room's opening has an example, and it runs."""

import doctest
import importlib

import pytest

from tests.test_house import MAY_IMPORT, ROOT

ROOMS = [room if room == "policies" else f"datasites.{room}" for room in MAY_IMPORT if room != "cli"]


@pytest.mark.parametrize("room", ROOMS)
def test_the_example_of_a_room_runs(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(importlib.import_module(room))
    assert result.attempted > 0
    assert result.failed == 0
