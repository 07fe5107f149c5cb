"""Waits for one letter from each of several hospitals, some of which may be late, down or dishonest.

The letter that they are to answer is put again, byte for byte the same, for each that has not answered and whose letter
the store has lost (`transport.repeats`). Our keys are put again as well: a hospital that has started anew needs them to
read any letter of ours.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from datasites.study import letters
from datasites.study.errors import DatasitesError
from datasites.study.identity import IdentityError
from datasites.transport.mailroom import Letter, Mailroom, Rejected
from datasites.transport.repeats import Repeats
from datasites.transport.store import WHOLE_STORE, StoreError

#: Payload of a letter that carries one signed message of the setup: keys or shares for all rounds and hospitals, bytes.
LARGEST_SETUP_LETTER = 64 * 1024 * 1024
#: The same for one round: a hospital's shares, or its acknowledgement, bytes.
LARGEST_ANSWER = 1024 * 1024
#: Refusals of one hospital's letters that a run keeps in words; anybody who writes to the store can cause more.
MOST_REFUSALS = 5

log = logging.getLogger(__name__)


class RunError(DatasitesError):
    """A run can't go on; the message says who is missing or what was refused, and what to do.

    refused: letters that were refused, in words. blamed: hospitals that are shown to have broken the protocol.
    """

    def __init__(self, message: str, refused: tuple[str, ...] = (), blamed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.refused, self.blamed = refused, blamed


@dataclass(frozen=True)
class Question:
    """The letters that are waited to be answered. `send` sends them to these hospitals, new or as they were.

    publish: puts what all may read of ours where the store has lost it.
    """

    kind: str
    send: Callable[[Collection[str]], None]
    publish: Callable[[], None] = lambda: None


def gather(
    mailroom: Mailroom,
    study_hash: str,
    round: int,
    kinds: Mapping[str, Callable[[Letter], None]],
    *,
    max_blob: Mapping[str, int],
    wanted: set[str],
    present: set[str],
    patience: float,
    timeout: float,
    question: Question | None = None,
    enough: Callable[[], bool] = lambda: True,
    done: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Take one letter of any of `kinds` from each of `wanted`; returns what was refused, in words.

    Ends when all of `present` have answered (and it is `enough`), when it is `done`, when it has been `enough` for
    `patience` seconds, or after `timeout` seconds. `max_blob`: the most bytes of payload by kind; none where left out.
    `question` is put again to those who have lost it. A bad letter that its sender signed counts as its answer: a lying
    hospital costs the others nothing. One that the mailroom refused may be somebody else's: for `patience` seconds the
    true one may still come.
    """
    pending, doubted = set(wanted), set[str]()
    refused: list[str] = []
    started = time.monotonic()
    satisfied: float | None = None
    repeats = Repeats()
    if question is not None:
        for email in wanted:
            repeats.begin((email, round, question.kind))
    while pending and not done():
        due = [(to, kind) for to, _, kind in repeats.due() if to in pending]
        if question is not None and due:
            question.publish()
        asked = [to for to, kind in due if not mailroom.lies(to, study_hash, round, kind)]
        if question is not None and asked:
            log.info("%s of round %d is put again for %s", question.kind, round, ", ".join(asked))
            question.send(asked)
        expected = [(email, study_hash, round, kind) for email in sorted(pending) for kind in kinds]
        for sender, _, _, kind in mailroom.wait(expected, 0.5):
            if sender not in pending:
                continue  # its letter of another kind has just been taken
            try:
                letter = mailroom.receive(sender, study_hash, round, kind, max_blob=max_blob.get(kind, 0))
                if letter is None:
                    continue
                kinds[kind](letter)
            except WHOLE_STORE:
                raise
            except Rejected as error:
                doubted.add(sender)
                _refuse(refused, sender, error)
                continue
            except (IdentityError, StoreError, ValueError, RunError) as error:
                _refuse(refused, sender, error)
            pending.discard(sender)
        now = time.monotonic()
        satisfied = (satisfied or now) if enough() or not pending - doubted else None
        if (enough() and not pending & present) or (satisfied is not None and now - satisfied > patience):
            break
        if now - started > timeout:
            break
    return refused


def _refuse(refused: list[str], sender: str, error: Exception) -> None:
    if sum(refusal.startswith(f"{sender}: ") for refusal in refused) < MOST_REFUSALS:
        log.warning("%s: %s", sender, error)
        refused.append(f"{sender}: {error}")


def who_abstained(abstained: Mapping[str, tuple[str, ...]]) -> str:
    """Return who sat a round out, and by which controls, in words."""
    if not abstained:
        return "nobody abstained; are the datasites running?"
    summary = "abstained: " + ", ".join(f"{email} ({', '.join(why) or 'failed'})" for email, why in abstained.items())
    if {letters.EPOCH_KEYS, letters.EPOCH_LOST} & {control for why in abstained.values() for control in why}:
        summary += (
            "; once every party has pinned the same keys, run the study again: a new epoch of the secure sum follows "
            "by itself, or else by `run.set_up(again=True)`"
        )
    return summary
