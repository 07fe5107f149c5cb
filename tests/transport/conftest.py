from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_servers import SERVERS, Absent, Served

from tests.transport.parties import Party, befriend, make_parties


@pytest.fixture(scope="session", params=list(SERVERS))
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """(url, options) of each kind of store in turn; skips with the reason where a server is not installed."""
    try:
        with SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as served:
            yield served
    except Absent as absent:
        pytest.skip(str(absent))


@pytest.fixture
def parties(tmp_path: Path) -> Iterator[list[Party]]:
    """A researcher and three hospitals over a folder, with mailrooms, pinned to each other."""
    parties = make_parties(tmp_path, str(tmp_path / "store"))
    yield parties
    for party in parties:
        party.stop()


@pytest.fixture
def friends(parties: list[Party]) -> list[Party]:
    """The same, peers of each other."""
    befriend(parties[0], parties[1:])
    return parties
