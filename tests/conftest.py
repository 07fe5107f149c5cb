"""Marks the tests that wait (`tests.waiting`), which `scripts/show_steady.py` runs most often; and times none."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import hypothesis
import pytest

from tests.templates import share
from tests.waiting import mark_waiting

#: A busy machine is no fault of what is tested.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def templates() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        share(monkeypatch)
        yield


@pytest.hookimpl(tryfirst=True)
@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was put on the disk, in order."""
    paths, fsync = list[str](), os.fsync

    def noted(descriptor: int) -> None:
        paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    return paths


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_waiting(items)


def pytest_collection_finish() -> None:
    """Thousands of tests stay in memory to the end, and need not be looked through for garbage each time."""
    gc.collect()
    gc.freeze()
