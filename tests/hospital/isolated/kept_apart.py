"""Keeps processes apart (`hospital.isolated.process`) from one act to the next: tests don't wait for their starts."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from datasites.enclave.sandbox import SandboxConfig
from datasites.hospital.isolated.process import Apart


class Kept(Apart):
    """One that outlives the act that it was started for."""

    def close(self) -> None:
        """Keep it."""


class KeptApart:
    """Kept by thread, since each ends with the thread that started it."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], Kept] = {}

    def start(self, config: SandboxConfig, room: str, *options: str, remedy: str) -> Apart:
        key = (threading.get_ident(), config, room, options)
        if key not in self._kept or not self._kept[key].alive:
            self._kept[key] = Kept(config, room, *options, remedy=remedy)
        return self._kept[key]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for kept in self._kept.values():
            Apart.close(kept)
