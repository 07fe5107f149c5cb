"""The parties that attacks are tried on: those of the transport's own tests."""

from __future__ import annotations

import pytest

from tests.transport.conftest import parties
from tests.transport.parties import Party

__all__ = ["parties"]


@pytest.fixture
def researcher(parties: list[Party]) -> Party:
    return parties[0]


@pytest.fixture
def hospital(parties: list[Party]) -> Party:
    return parties[1]
