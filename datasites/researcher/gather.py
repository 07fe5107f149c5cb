"""Waiting for one letter from each of several hospitals, some of whom may be late, gone, or lying."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from datasites.secagg.errors import SecaggError
from datasites.study.errors import DatasitesError
from datasites.study.identity import BadSignature
from datasites.transport.mailroom import Letter, Mailroom, Rejected

log = logging.getLogger(__name__)


class RunError(DatasitesError):
    """A run can't go on; the message says who is missing or what was refused, and what to do."""


def gather(
    mailroom: Mailroom,
    study: str,
    number: int,
    kinds: Mapping[str, Callable[[Letter], None]],
    *,
    wanted: set[str],
    present: set[str],
    patience: float,
    timeout: float,
    enough: Callable[[], bool] = lambda: True,
    done: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Take one letter of any of `kinds` from each of `wanted`; returns what was refused, in words.

    Ends when all of `present` have answered (and it is `enough`), when it is `done`, when it has been `enough` for
    `patience` seconds, or after `timeout` seconds. A bad letter is refused and its sender counts as answered: a lying
    hospital costs the others nothing.
    """
    pending, refused = set(wanted), []
    started = time.monotonic()
    satisfied: float | None = None
    while pending and not done():
        expected = [(email, study, number, kind) for email in sorted(pending) for kind in kinds]
        for sender, _, _, kind in mailroom.wait(expected, 0.5):
            try:
                letter = mailroom.receive(sender, study, number, kind)
                if letter is None:
                    continue
                kinds[kind](letter)
            except (Rejected, SecaggError, ValidationError, BadSignature, RunError) as error:
                log.warning("%s", error)
                refused.append(f"{sender}: {error}")
            pending.discard(sender)
        now = time.monotonic()
        satisfied = (satisfied or now) if enough() else None
        if satisfied is not None and (not pending & present or now - satisfied > patience):
            break
        if now - started > timeout:
            break
    return refused


def blob(letter: Letter) -> bytes:
    """The letter's payload, empty when it has none."""
    return bytes(letter.blob or b"")


def who_abstained(abstained: Mapping[str, tuple[str, ...]]) -> str:
    """Who sat a round out, and by which controls, in words."""
    if not abstained:
        return "nobody abstained; are the datasites running?"
    return "abstained: " + ", ".join(f"{email} ({', '.join(why) or 'failed'})" for email, why in abstained.items())
