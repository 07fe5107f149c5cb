"""A clock in place of the one that modules wait by."""

from __future__ import annotations

import time

import pytest


class Hands:
    """A clock that a test moves."""

    def __init__(self, patch: pytest.MonkeyPatch, *modules: object) -> None:
        self.now = 1000.0
        for module in modules:
            patch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)
