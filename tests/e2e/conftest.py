"""One set of four datasite processes for the end-to-end tests; each test runs its own study on them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.support import KEYS, LocalDatasites


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/e2e/" in str(item.path):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def datasites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDatasites]:
    local = LocalDatasites(tmp_path_factory.mktemp("consortium"))
    try:
        local.start(*KEYS)
        yield local
    finally:
        local.stop()
