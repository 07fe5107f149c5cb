"""Ends a process where a test says, as far as one process can: for tests of what the next one finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


class Killed(BaseException):
    """The process ends here, as by kill -9: nobody catches it, and nothing is tidied up."""


def kill_before(where: object, name: str, when: Callable[..., bool] = lambda *_, **__: True) -> Callable[[Any], None]:
    """Kill on entering a function, at the first call for which `when` holds."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        inner = getattr(where, name)

        def dying(*arguments: Any, **options: Any) -> Any:
            if when(*arguments, **options):
                raise Killed
            return inner(*arguments, **options)

        monkeypatch.setattr(where, name, dying)

    return patch


def kill_after(where: object, name: str, when: Callable[..., bool] = lambda *_, **__: True) -> Callable[[Any], None]:
    """Kill on leaving a function, after the first call for which `when` holds."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        inner = getattr(where, name)

        def dying(*arguments: Any, **options: Any) -> Any:
            returned = inner(*arguments, **options)
            if when(*arguments, **options):
                raise Killed
            return returned

        monkeypatch.setattr(where, name, dying)

    return patch
