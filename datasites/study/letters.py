"""What hospitals and researcher write to each other about a study: the kinds of letters and their typed bodies.

Letters of the secure sum itself (certificates, shares, vectors, …) have their types in `secagg.messages`; here are the
names under which they travel and the few bodies around them. Setup letters belong to round 0 and carry the epoch in
their kind, since one kind stands once per round between two parties.
"""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from datasites.study.audit_chain import Fork, PublicHead
from datasites.study.canonical import Agreed
from datasites.study.identity import Email
from datasites.study.manifest import MOST_EPOCHS, MOST_HOSPITALS, MOST_ROUNDS

SETUP_ROUND = 0

# Per round, researcher -> hospital: manifest and model; survivors; to those that had not answered by then, that the
# round is over without them, so that whoever returns pays nothing for it. Hospital -> researcher: the rest.
ROUND, SURVIVORS, OVER = "round", "survivors", "over"
MASKED, UNMASK, ABSTAINED = "masked", "unmask", "abstained"
# With the consistency wave: hospital -> researcher, and all of them back.
ACKNOWLEDGE, ACKNOWLEDGED = "acknowledge", "acknowledged"
#: Controls by which a hospital abstains that are none of the policies'; see `Abstention`.
EPOCH_KEYS, EPOCH_LOST, ROUND_OVER = "epoch-keys", "epoch-lost", "round-over"
# Once per study.
CLOSE, ACCOUNT = "close", "account"


def offer_kind(epoch: int) -> str:
    """Researcher to hospital: an `EpochOffer`."""
    return f"offer-{epoch}"


def certificate_kind(epoch: int) -> str:
    """Hospital to researcher: its certificate."""
    return f"certificate-{epoch}"


def enrolment_kind(epoch: int) -> str:
    """Researcher to hospital: all certificates."""
    return f"enrolment-{epoch}"


def shares_kind(epoch: int) -> str:
    """Hospital to hospital: a share bundle."""
    return f"shares-{epoch}"


def ready_kind(epoch: int) -> str:
    """Hospital to researcher: whose shares it holds."""
    return f"ready-{epoch}"


def setup_epoch(kind: str) -> tuple[str, int] | None:
    """Return what a setup letter is and its epoch, such as ("shares", 3); None for letters of other kinds."""
    found = re.fullmatch(r"(offer|certificate|enrolment|shares|ready)-(0|[1-9][0-9]{0,9})", kind)
    return None if found is None else (found[1], int(found[2]))


class EpochOffer(Agreed):
    """Researcher to hospitals: set up keys for these rounds among the approved cohort, but for `left_out`.

    Who is in it is not listed, since an offer goes to each of them: so the offers of an epoch grow as the cohort does.
    """

    epoch: Annotated[int, Field(ge=0, le=MOST_EPOCHS)]
    left_out: Annotated[tuple[Email, ...], Field(max_length=MOST_HOSPITALS)] = ()
    first_round: Annotated[int, Field(ge=1, le=MOST_ROUNDS + 1)]
    last_round: Annotated[int, Field(ge=1, le=MOST_ROUNDS + 1)]
    expires: datetime.date


#: Noise beyond this (sd, patients per cell) drowns every count.
MOST_SIGMA = 2.0**20
#: Figures of what a study charged one partition of patients: by PLD, as its cap is, and without others' noise.
FIGURES = {"pld", "local"}


class Masked(Agreed):
    """Around a masked vector (the letter's payload): its signed header, the audit head, and public noise of counts.

    counts_sigma: sd in patients per cell, of both kinds of evaluation; 0 for one that the study has not. fork: the
    last restore of the hospital's log from a backup, if there ever was one; its heads may go back by it, once.
    """

    header: str
    audit: PublicHead
    counts_sigma: Annotated[
        dict[Literal["final", "interim"], Annotated[float, Field(ge=0, le=MOST_SIGMA)]], Field(min_length=2)
    ]
    fork: Fork | None = None


class Abstention(Agreed):
    """A hospital sits a round out. `controls` names the policies that deny; of a failure no more is said (I7).

    Three controls are none of the policies': "epoch-keys", where a key of the present epoch is not (any more) the one
    that the hospital has pinned; a new epoch heals it, once researcher and hospital have pinned the same. And
    "epoch-lost", where the hospital holds no keys of any epoch, since its journal was given up; a new epoch heals that.
    And "round-over", where the researcher had said `OVER` before the hospital began the round.
    """

    outcome: Literal["denied", "failed"]
    controls: Annotated[tuple[str, ...], Field(max_length=32)] = ()


class Close(Agreed):
    """Researcher to hospital: the study is over. heads: positions of the hospital's log that the researcher holds.

    others: by e-mail address, the newest position that the researcher holds of each other hospital's log, to be kept
    there too: where all but one hospital hold it, no log is written anew by its hospital and the researcher alone.
    """

    rounds: Annotated[int, Field(ge=0)]
    heads: Annotated[tuple[PublicHead, ...], Field(max_length=500)] = ()
    others: Annotated[dict[Email, PublicHead], Field(max_length=MOST_HOSPITALS)] = {}


class PrivacyStatement(Agreed):
    """What a study cost a hospital's patients, by its own ledger; follows from public terms and the rounds it ran.

    cap: epsilon that patients are guaranteed at the study's `delta`, whenever it ended. charged: epsilon of the rounds
    that ran, a reading, by partition of patients ("training", "held_out") and by the names in `FIGURES`.
    """

    rounds: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    noise_multiplier: Annotated[float, Field(ge=0)]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    cap: Annotated[float, Field(gt=0, le=1e9)]
    charged: Annotated[dict[str, dict[str, Annotated[float, Field(ge=0, le=1e15)]]], Field(min_length=1, max_length=8)]
    head: PublicHead
    fork: Fork | None = None

    @field_validator("charged")
    @classmethod
    def _whole(cls, charged: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for partition, epsilons in charged.items():
            if len(partition) > 64 or set(epsilons) != FIGURES:
                raise ValueError(f"charged of {partition[:64]!r} must hold {', '.join(sorted(FIGURES))}")
        return charged
