"""When a run begins another epoch of the secure sum, with whom, and what that costs.

One follows where the rounds or days of the present one are used up, where its state is lost, and where too few
hospitals are left in it. A hospital that approved late, or was not there when the secure sum was set up, is let in
between two rounds by another epoch; so is one that says that it lacks the keys of the present one (`lost_keys`).

Claim (nothing is passed before it is known to go on): another epoch, the count of a round that is given up for it, and
of whom it lets in, are saved in one step, once the epoch's terms were found good and its files are on the disk. Refused
(`EpochRefused`), failed or killed up to there, the run stands where it stood, and may be tried again as often as one
likes. Assumes files that are replaced in one step. Not claimed: a state that is lost again and again costs a round each
time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable

from datasites.aggregator.gather import RunError
from datasites.aggregator.lost_keys import who_lacks_keys
from datasites.aggregator.run_files import Progress, RoundRecord, RunState
from datasites.aggregator.secure_sum import SecureSum
from datasites.secagg.errors import SecaggError
from datasites.study.errors import DatasitesError
from datasites.study.identity import IdentityError
from datasites.study.manifest import StudyTerms

#: Epochs that are begun to let one and the same hospital in; one that is late each time costs the others no more.
EPOCHS_PER_HOSPITAL = 3
#: Seconds between looks at who has approved meanwhile.
LOOK_SECONDS = 5.0

log = logging.getLogger(__name__)


class EpochRefused(RunError):
    """There can be no such epoch of the secure sum now; nothing was begun or given up."""


class Epochs:
    """The epochs of one run's secure sum.

    approved: hospitals that have approved the study; `look` says it anew while a run goes on. patience: seconds for
    everybody at each of the two steps of a setup. prepare: is called before an epoch is begun or set up, and raises
    where no round could follow.
    """

    def __init__(
        self,
        terms: StudyTerms,
        progress: Progress,
        secure_sum: SecureSum,
        approved: Iterable[str],
        *,
        look: Callable[[], Iterable[str]] | None,
        patience: float,
        prepare: Callable[[], None],
    ) -> None:
        self._terms, self._progress, self._sum = terms, progress, secure_sum
        self.approved, self._look, self._looked = tuple(approved), look, time.monotonic()
        self._patience, self._prepare = patience, prepare
        self._stale = False

    def before_round(self) -> None:
        """See to it that the next round has an epoch: the present one, or another where that is due."""
        if not self._sum.is_set_up:
            self.set_up()
        elif self._sum.is_over(self._state.next_round):
            log.info("a new epoch of the secure sum: the rounds or days of the last one are used up")
            self.look_again()
            self.set_up(again=True)
        elif self._too_few_are_left():
            log.info("a new epoch of the secure sum: too few hospitals are left in the last one")
            self.set_up(again=True)
        elif not self._sum.has_begun(self._state.next_round):
            self._let_in()

    def set_up(self, *, again: bool = False, let_in: Collection[str] = ()) -> None:
        """Set the present epoch up, or another one where it can't go on; `again` begins another one anyhow.

        let_in: on whose account it is begun. Raises `EpochRefused` where there can be no such epoch, and `RunError`
        where too few hospitals come.
        """
        self._prepare()
        started = time.monotonic()
        present = None
        begun = self._sum.epoch >= 0
        lost = self._sum.is_lost
        if not begun or again or self._stale or lost or self._sum.is_over(self._state.next_round):
            if again and self._sum.is_set_up:
                invited = self._invited() - set(self._sum.available())
                present = {*self._state.present, *invited, *self._sum.replaced()}
            self._begin(let_in)
        try:
            available = self._sum.set_up(self._terms.cohort.hospitals, self._patience, present)
        except RunError:
            # Who is in this epoch is fixed and too few are there: the next try begins another one.
            self._stale = self._sum.is_enrolled
            raise
        seconds = self._state.setup_seconds + time.monotonic() - started
        self._progress.save(present=available, setup_seconds=seconds)

    def look_again(self) -> None:
        """See who has approved meanwhile, and who does no longer, unless that was looked at a moment ago."""
        if self._look is None or time.monotonic() - self._looked < LOOK_SECONDS:
            return
        before = set(self.approved)
        try:
            self.approved = tuple(self._look())
        except DatasitesError as error:
            log.warning("who has approved meanwhile is not known: %s", error)
        self._looked = time.monotonic()
        lost, needed = before - set(self.approved), self._terms.cohort.survivors_needed
        if lost:
            few = (
                f", and the threshold is {needed}: no round can be opened while that is so; `close` ends the study"
                if len(self.approved) < needed
                else ""
            )
            log.warning(
                "study %s: %s no longer approve it; %d hospital(s) do%s",
                self._terms.name, ", ".join(sorted(lost)), len(self.approved), few,
            )  # fmt: skip

    # -- parts -----------------------------------------------------------------------------------------------------

    @property
    def _state(self) -> RunState:
        return self._progress.state

    def _invited(self) -> set[str]:
        return set(self.approved) - self._state.blamed

    def _begin(self, let_in: Collection[str]) -> None:
        """Begin another epoch, and count a round that was begun in the last one as failed: both in one step, or none.

        Raises `EpochRefused`.
        """
        round, invited = self._state.next_round, self._invited()
        given_up, begun = self._given_up(round), dict(self._state.epochs_for)
        first = round if given_up is None else round + 1
        for email in let_in:
            begun[email] = begun.get(email, 0) + 1

        def save(epoch: int) -> None:
            rounds, files = self._state.rounds, self._progress.files
            if given_up is not None:
                files.save_model(first, *files.load_model(round))
                rounds = (*rounds, given_up)
            self._progress.save(epoch=epoch, epochs_for=begun, next_round=first, rounds=rounds)

        try:
            self._sum.new_epoch(self._terms, invited, first, save)
        except (SecaggError, IdentityError) as error:
            raise EpochRefused(
                f"setup among {len(invited)} hospitals: {error}. Nothing was begun: correct that and run the study "
                "again, or end it with `close`"
            ) from error
        self._stale = False

    def _given_up(self, round: int) -> RoundRecord | None:
        """Return the record of the next round as failed if it has begun, or may have: then it can no longer be held.

        Where the state is lost, whether it has begun, and under which manifest, can't be read. The final evaluation has
        no round after it: it is held again then, and hospitals that have begun it refuse.
        """
        if self._sum.is_lost:
            if round > self._terms.rounds:
                return None
            return RoundRecord(
                round=round,
                epoch=self._sum.epoch,
                train=True,
                evaluate="no",
                participants=(),
                outcome="failed",
                reason="given up for a new epoch, since the state of its own could not be read",
            )
        if not self._sum.has_begun(round):
            return None
        if round > self._terms.rounds:
            raise EpochRefused("the final evaluation has begun, and a new epoch can't hold it again; finish it first")
        manifest = self._sum.opened(round)
        assert manifest is not None
        given_up = {"outcome": "failed", "reason": "given up for a new epoch"}
        return RoundRecord.begun(manifest).model_copy(update=given_up)

    def _too_few_are_left(self) -> bool:
        """Tell whether the present epoch can open no further round, and another one may, with others that approved."""
        if self._sum.has_begun(self._state.next_round):
            return False
        threshold = self._sum.context.threshold
        if len(set(self._sum.available()) - self._state.blamed) >= threshold:
            return False
        self.look_again()
        return len(self._invited()) >= threshold

    def _let_in(self) -> None:
        """Begin a new epoch if a hospital that approved is out of the present one, or lacks its keys, and is there."""
        taking_part = set(self._sum.available())
        if taking_part >= set(self._terms.cohort.hospitals) - self._state.blamed and not self._lacking_keys():
            return
        self.look_again()
        out = self._invited() - taking_part
        asking = (out - set(self._sum.hospitals)) | (out & self._sum.late()) | self._lacking_keys()
        begun = self._state.epochs_for
        asking = {email for email in asking if begun.get(email, 0) < EPOCHS_PER_HOSPITAL}
        if asking:
            log.info("new epoch of the secure sum, to let in %s", ", ".join(sorted(asking)))
            try:
                self.set_up(again=True, let_in=asking)
            except EpochRefused as error:
                log.warning("%s", error)  # the present one goes on

    def _lacking_keys(self) -> set[str]:
        return who_lacks_keys(
            self._state.rounds,
            self._sum.epoch,
            approved=self._invited(),
            present=set(self._state.present),
            replaced=self._sum.replaced(),
            threshold=self._sum.context.threshold,
        )
