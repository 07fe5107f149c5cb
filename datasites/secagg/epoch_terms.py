"""The terms of one epoch of the secure sum: who takes part, how many must survive, for which rounds.

Every hospital and the aggregator build the same `EpochTerms` from the approved study and *their own pinned roster*; its
digest is in every message and, through the enrolment, in every key. Two parties that pinned different keys, or
understand the threshold differently, can't complete a setup. Decides nothing at run time and does no I/O.

How long an epoch lasts bounds what is lost with the hospitals' disks. Suppose that somebody who has kept all letters
seizes the journals of t hospitals while round r of epoch e is open. Claim: they can unmask single hospitals' vectors of
round r and the later rounds of epoch e, and of no other round. Proof. Each journal holds shares of all hospitals' keys
and seeds for the rounds from r on, and t of them give these secrets. Of earlier rounds it holds none: the shares, keys
and seeds of a round are removed when it is answered or a later one is opened, and those of a whole epoch when the next
is certified. The key that opens the stored bundles is removed when the hospital says that it is ready, whether all
bundles have come or not, and before that it opens no round. A hospital that stops before "ready" keeps that key, and
takes part in no round: if t hospitals opened a round, at most n - t have stopped, and their shares with those of c
colluders are fewer than t, since 2t > n + c. Later epochs' secrets are drawn later. Assumes that disks forget what is
overwritten or removed, and that HPKE, X25519 and the masks hold. So an epoch has keys for at most `EPOCH_ROUNDS` rounds
of training and the final evaluation, and opens rounds for at most `EPOCH_DAYS` days, plus one day for differing clocks;
the researcher's side then starts the next one by itself, and hospitals accept it without asking a person.

Claim: any study that can be approved can be set up, whatever its number of rounds: from each of its rounds on,
`epoch_rounds` gives an epoch that `EpochTerms` allows and that hospitals, which compare with the same function, accept.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from datasites.secagg.errors import BadTerms
from datasites.secagg.graph import RING_ABOVE, Neighbourhood
from datasites.secagg.threshold import check_threshold, choose_threshold
from datasites.study.canonical import Agreed
from datasites.study.identity import Email, PublicKeyHex, same_identity, written_twice
from datasites.study.manifest import Sha256
from datasites.study.roster import Roster
from datasites.study.survivors import honest_contributors

#: Rounds of training whose keys are made at one setup (the final evaluation may be one more), and days from setup on
#: that rounds may be opened.
EPOCH_ROUNDS, EPOCH_DAYS = 100, 7


def epoch_rounds(first: int, training: int) -> tuple[int, int]:
    """First and last round of an epoch that begins with `first`, in a study of `training` rounds and an evaluation."""
    last = min(first + EPOCH_ROUNDS - 1, training)
    return first, last + 1 if last == training else last


class Party(Agreed):
    """One party of an epoch with the institution key that was pinned for it."""

    email: Email
    public_key: PublicKeyHex


class EpochTerms(Agreed):
    """The agreed terms of one epoch.

    consistency: survivors first sign one survivor list (a third wave). neighbours: *everyone*, or a *ring* that
    saves masks in a large cohort (needs the consistency wave). expires: the last day on which rounds may be opened.
    """

    format: Literal[2] = 2
    study: Sha256
    epoch: Annotated[int, Field(ge=0)]
    aggregator: Party
    hospitals: tuple[Party, ...]
    threshold: int
    colluders: Annotated[int, Field(ge=0)]
    first_round: Annotated[int, Field(ge=1)]
    last_round: int
    expires: datetime.date
    consistency: bool = False
    neighbours: Literal["everyone", "ring"] = "everyone"

    @field_validator("hospitals")
    @classmethod
    def _sorted_and_distinct(cls, hospitals: tuple[Party, ...]) -> tuple[Party, ...]:
        if written_twice(party.email for party in hospitals):
            raise BadTerms("epoch: two hospitals have the same email")
        if len({party.public_key for party in hospitals}) != len(hospitals):
            raise BadTerms("epoch: two hospitals have the same public_key")
        return tuple(sorted(hospitals, key=lambda party: party.email))

    @model_validator(mode="after")
    def _protects(self) -> Self:
        if not self.first_round <= self.last_round <= self.first_round + EPOCH_ROUNDS:
            raise BadTerms(
                f"epoch: rounds {self.first_round}..{self.last_round} must be 1 to {EPOCH_ROUNDS} rounds and an "
                "evaluation; further ones belong to the next epoch"
            )
        for party in self.hospitals:
            if same_identity(self.aggregator.email, party.email) or self.aggregator.public_key == party.public_key:
                raise BadTerms("epoch: the aggregator can't be one of the hospitals; it would be a colluder")
        if self.neighbours == "ring" and not self.consistency:
            raise BadTerms("epoch: a ring of neighbours is safe only with the consistency wave; switch it on")
        check_threshold(len(self.hospitals), self.threshold, self.colluders, one_list=self.consistency)
        return self

    @classmethod
    def from_roster(
        cls,
        roster: Roster,
        *,
        study_hash: str,
        epoch: int,
        aggregator: str,
        hospitals: Iterable[str],
        colluders: int,
        rounds: tuple[int, int],
        expires: datetime.date,
        threshold: int | None = None,
        consistency: bool | None = None,
        neighbours: Literal["everyone", "ring"] | None = None,
    ) -> EpochTerms:
        """Make the context from this party's own pinned roster (I9); all parties that agree get the same digest.

        `threshold` is that of the approved cohort, also for an epoch of a part of it: noise and honest contributors
        are counted on it, and a part with fewer hospitals is refused. Left out: `threshold` is the least safe one for
        these hospitals, `neighbours` a ring above 64 hospitals, `consistency` on for a ring. Raises `IdentityError` for
        an e-mail that is not pinned, `BadTerms` for terms that don't protect.
        """
        emails = sorted(hospitals)
        if neighbours is None:
            large = len(emails) > RING_ABOVE and consistency is not False
            neighbours = "ring" if large else "everyone"
        if consistency is None:
            consistency = neighbours == "ring"
        if threshold is None:
            threshold = choose_threshold(len(emails), colluders, one_list=consistency)

        def pinned(email: str) -> Party:
            return Party(email=email, public_key=roster.get(email).public_key)

        try:
            return cls(
                study=study_hash,
                epoch=epoch,
                aggregator=pinned(aggregator),
                hospitals=tuple(pinned(email) for email in emails),
                threshold=threshold,
                colluders=colluders,
                first_round=rounds[0],
                last_round=rounds[1],
                expires=expires,
                consistency=consistency,
                neighbours=neighbours,
            )
        except ValidationError as error:
            raise BadTerms("; ".join(detail["msg"] for detail in error.errors())) from error

    @cached_property
    def digest_once(self) -> str:
        """Return `digest()`, computed once: every message carries it."""
        return self.digest()

    @cached_property
    def keys(self) -> dict[str, str]:
        """Return the pinned public key by hospital e-mail."""
        return {party.email: party.public_key for party in self.hospitals}

    @property
    def honest_contributors(self) -> int:
        """m: honest hospitals that any sum is sure to hold; *distributed* noise is sized by it."""
        return honest_contributors(len(self.hospitals), self.threshold, self.colluders, one_list=self.consistency)

    @property
    def rounds(self) -> range:
        """Return the rounds that this epoch has keys for."""
        return range(self.first_round, self.last_round + 1)

    def neighbourhood(self, enrolled: int) -> Neighbourhood:
        """Return the mask and share graph among `enrolled` hospitals."""
        if self.neighbours == "ring":
            return Neighbourhood.ring(enrolled, self.threshold, self.colluders)
        return Neighbourhood.complete(enrolled, self.threshold)
