"""Marks the tests that wait (`tests.waiting`), which `scripts/show_steady.py` runs most often."""

from __future__ import annotations

import pytest

from tests.waiting import mark_waiting


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_waiting(items)
