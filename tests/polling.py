"""Waits until something holds that another process or thread brings about."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

#: Seconds that a busy machine may take at most.
PATIENCE = 240.0


def until(holds: Callable[[], object]) -> None:
    """Look again and again until it holds; a test that waits in vain fails."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail("waited in vain")
        time.sleep(0.01)
