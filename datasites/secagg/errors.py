"""Named refusals of the secure sum: each says what was wrong, by which rule, and what to do.

A caller quarantines the message that raised one and goes on; none of these texts holds a secret or a private number.
"""

from __future__ import annotations

from datasites.study.errors import DatasitesError

#: The way back for a hospital whose journal can't be gone on with.
REJOIN = "run `datasites study rejoin CASE` at this hospital; the researcher's run then begins a new epoch"


class SecaggError(DatasitesError, ValueError):
    """Base of every refusal in this room."""


class BadTerms(SecaggError):
    """The terms of an epoch or a round can't give the protection that the study declares."""


class BadMessage(SecaggError):
    """A message is malformed, wrongly addressed, or not signed by the pinned key of its sender (I10)."""


class UnknownParty(SecaggError):
    """A message names somebody who is not in the epoch (I9)."""


class Equivocation(SecaggError):
    """One sender said two different things where it may say one."""


class OutOfOrder(SecaggError):
    """A step was asked for before the step that it needs."""


class RoundUsed(SecaggError):
    """The round, or an earlier one that a later round has closed, can't be opened again (I6)."""


class AlreadyMasked(SecaggError):
    """A masked vector of this round exists; send the journal's copy again, never a second one (I6)."""


class AlreadyAnswered(SecaggError):
    """This round's unmask request was answered for another survivor list (I8)."""


class NotASurvivor(SecaggError):
    """The survivor list leaves out this hospital, or lists another vector than the one it released."""


class TooFew(SecaggError):
    """Fewer survivors, certificates or answers than the threshold: nothing is revealed."""


class WrongShare(SecaggError):
    """Shares that don't match their owner's signed commitment; `members` names who sent them."""

    def __init__(self, message: str, members: tuple[str, ...]) -> None:
        super().__init__(message)
        self.members = members


class CommitmentsLost(SecaggError):
    """A share is wrong, and the letter that would tell whose it is can't be read any more; nobody is blamed."""

    rule = "commitments-gone"


class LateVector(SecaggError):
    """A masked vector came after the survivors were fixed; the hospital joins again at the next round."""


class SpentState(SecaggError):
    """An older value of a state was used after a newer one was made from it."""


class JournalRolledBack(SecaggError):
    """The journal is older than what this hospital has released: restored from a backup or copied."""


class JournalDamaged(SecaggError):
    """A journal file is missing, unreadable, or not what the journal says it wrote."""
