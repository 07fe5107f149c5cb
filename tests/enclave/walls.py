"""Sandboxes with one wall changed, and what the attempts to get out came to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from datasites.enclave.attempts import Attempt


def failed(attempts: Iterable[Attempt]) -> set[str]:
    """Names of those that got out; each was made."""
    attempts = list(attempts)
    assert {attempt.outcome for attempt in attempts} <= {"held", "got out"}, attempts
    return {attempt.name for attempt in attempts if not attempt.held}


def showing(folder: str) -> Callable[[Sequence[str]], list[str]]:
    """To a command that shows this folder as well."""

    def change(command: Sequence[str]) -> list[str]:
        place = len(command) - 1 - command[::-1].index("--remount-ro")
        return [*command[:place], "--ro-bind", folder, folder, *command[place:]]

    return change
