"""What the aggregator keeps of one epoch, and what a round's sum is when it is open.

Holds no secret of a hospital. Values are replaced at each step, except the running sum of the open round, which is
added to in place so that memory stays at one vector.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from datasites.secagg import ring
from datasites.secagg.errors import SecaggError, SpentState
from datasites.secagg.messages import (
    AckList,
    Certificate,
    Enrolment,
    JournalMark,
    MaskedHeader,
    SignedManifest,
    SurvivorAck,
    SurvivorList,
    UnmaskShares,
)
from datasites.secagg.reports import Reports
from datasites.secagg.ring import Ring
from datasites.study.canonical import Agreed, sha256_hex
from datasites.study.manifest import RoundManifest, Sha256


class ReceivedRound(Agreed):
    """What the aggregator has received in the open round; the vectors themselves are only in the running sum.

    survivors and acknowledged: what the hospitals were told; once told, it stays as it was.
    """

    signed: SignedManifest
    headers: tuple[MaskedHeader, ...] = ()
    survivors: SurvivorList | None = None
    acks: tuple[SurvivorAck, ...] = ()
    acknowledged: AckList | None = None
    answers: tuple[UnmaskShares, ...] = ()


class EpochRecord(Agreed):
    """Everything of an epoch but its enrolment and the running sum.

    certificates: until enrolment is closed. enrolment: SHA-256 of its bytes, which are stored once.
    """

    format: Literal[2] = 2
    context: Sha256
    certificates: tuple[Certificate, ...] = ()
    enrolment: Sha256 | None = None
    binding: Sha256 | None = None
    reports: Reports = Reports()
    marks: tuple[JournalMark, ...] = ()
    last_round: int = 0
    round: ReceivedRound | None = None


class RunningSum:
    """The sum of the masked vectors so far, modulo 2**32; the one thing that is changed in place, to save memory."""

    def __init__(self, vector: Ring, added: int = 0, opened: bool = False) -> None:
        # Together in one value: an interrupt can't come between the opened vector and the word that it is open.
        self._held = (vector, opened)
        self.added = added

    @property
    def vector(self) -> Ring:
        """Return the sum, uint32 of shape (dimension,), masked until it is opened."""
        return self._held[0]

    @property
    def opened(self) -> bool:
        """Return whether `vector` is without its masks."""
        return self._held[1]

    def add(self, vector: Ring) -> None:
        """Add one masked vector, (dimension,). Interrupted, the sum counts as spent and is never taken as whole."""
        self.added += 1
        np.add(self.vector, vector, out=self.vector)

    def open(self, vector: Ring) -> None:
        """Put the unmasked sum, shape (dimension,), in the place of the masked one."""
        self._held = (vector, True)


@dataclass(frozen=True)
class AggregatorState:
    """A record, its running sum, and who is enrolled, with which keys.

    An older value must not be used once a vector was added to a newer one. The enrolment never changes once it is
    there: store its bytes once, beside those of the state.
    """

    record: EpochRecord
    total: RunningSum | None = None
    enrolment: Enrolment | None = None

    def with_record(self, **changes: object) -> Self:
        """Return the state with fields of the record replaced."""
        return replace(self, record=self.record.model_copy(update=changes))

    def with_round(self, **changes: object) -> Self:
        """Return the state with fields of the open round replaced."""
        assert self.record.round is not None
        return self.with_record(round=self.record.round.model_copy(update=changes))

    def to_bytes(self) -> bytes:
        """To store across restarts, beside the enrolment: record, then the sum if a round is open.

        Raises `SpentState` where the sum holds more than the record knows of: an addition was interrupted.
        """
        if self.total is not None and self.record.round and self.total.added != len(self.record.round.headers):
            raise SpentState("aggregator state: adding a vector was interrupted; go on from the stored state")
        record = self.record.canonical()
        parts: list[bytes | memoryview] = [len(record).to_bytes(8, "big"), record]
        if self.total is not None:
            parts += [bytes((self.total.opened,)), self.total.vector.astype("<u4", copy=False).data.cast("B")]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes, enrolment: bytes | None = None) -> Self:
        """Read `to_bytes()` and the enrolment's bytes; raises `SecaggError` if damaged or of another version."""
        size = int.from_bytes(data[:8], "big")
        try:
            record = EpochRecord.parse(data[8 : 8 + size])
        except (ValidationError, ValueError) as error:
            raise SecaggError(
                "aggregator state: damaged, or written by another version; the study goes on in a new epoch"
            ) from error
        enrolled = None
        if record.enrolment is not None:
            if enrolment is None or sha256_hex(enrolment) != record.enrolment:
                raise SecaggError("aggregator state: its enrolment is missing or another; go on in a new epoch")
            enrolled = Enrolment.from_bytes(enrolment)
        if record.round is None:
            return cls(record, None, enrolled)
        wanted = 4 * ring.dimension(record.round.signed.manifest.vectors)
        if len(data) != 9 + size + wanted:
            raise SecaggError("aggregator state: the running sum is cut off; open the next round")
        vector = np.frombuffer(data, np.dtype("<u4"), offset=9 + size).astype(np.uint32)
        return cls(record, RunningSum(vector, len(record.round.headers), bool(data[8 + size])), enrolled)


@dataclass(frozen=True)
class OpenedSum:
    """The opened sum of a round. integers: exact sums of encoded coordinates per vector (int32)."""

    manifest: RoundManifest
    survivors: tuple[str, ...]
    integers: dict[str, npt.NDArray[np.int32]]
    wrong_shares_from: tuple[str, ...] = ()

    @property
    def sums(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return decoded sums per vector, shape (length,): integers over scale, float64, a new array each time."""
        return {term.name: self.integers[term.name] / np.float64(term.scale) for term in self.manifest.vectors}
