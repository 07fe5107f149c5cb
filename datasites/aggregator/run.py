"""Runs a study: round by round broadcasts the model, opens the secure sum, and makes the next model.

A killed run goes on where it was. A hospital that is late or down delays a round only a little, and once: it is still
invited to every round, but no longer waited for until it answers again. One that approved late, or was not there when
the secure sum was set up, is let in between two rounds, by a new epoch of the secure sum; so is one that says that it
lacks the keys of the present epoch (`lost_keys`).

Claim (nothing is passed before it is known to go on): another epoch, the count of a round that is given up for it, and
of whom it lets in, are saved in one step, once the epoch's terms were found good and its files are on the disk. Refused
(`EpochRefused`), failed or killed up to there, the run stands where it stood, and may be tried again as often as one
likes. Assumes files that are replaced in one step. Not claimed: a state that is lost again and again costs a round each
time.

Claim (one at a time goes on with a run): whatever changes it holds its folder (`holding`) and starts from what was
saved last, or is refused. Assumes what `holding` does.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from datasites.aggregator.gather import Question, RunError, gather, who_abstained
from datasites.aggregator.lost_keys import who_lacks_keys
from datasites.aggregator.manifests import manifest_of
from datasites.aggregator.run_files import RUN_FILE, Clock, DeclaredFork, RoundRecord, RunFolder, RunState
from datasites.aggregator.secure_sum import SecureSum, Survivors, Wait
from datasites.aggregator.strategies import strategy_of
from datasites.secagg.aggregator_state import OpenedSum
from datasites.secagg.errors import SecaggError
from datasites.study import letters
from datasites.study.audit_chain import Fork, PublicHead
from datasites.study.canonical import sha256_hex
from datasites.study.errors import DatasitesError
from datasites.study.identity import Identity, IdentityError
from datasites.study.manifest import PARAMETER_BOUND, StudyTerms
from datasites.study.roster import Roster
from datasites.study.rounds import counts_ring
from datasites.study.tensors import Parameter
from datasites.transport.mailroom import AWAY_SECONDS, Letter, Mailroom
from datasites.transport.store import WHOLE_STORE, StoreError

MOST_FAILURES = 3
#: Epochs that are begun to let one and the same hospital in; one that is late each time costs the others no more.
EPOCHS_PER_HOSPITAL = 3
#: Seconds between looks at who has approved meanwhile.
LOOK_SECONDS = 5.0
#: Seconds: for everybody at each of the two steps of a setup; for enough hospitals in a round.
SETUP_PATIENCE, ROUND_TIMEOUT = 120.0, 3600.0
#: Seconds for which accounts are waited for at the end.
CLOSE_PATIENCE = 60.0
#: Rounds whose late answers are looked for by name, so that whatever else lies in the mailbox hides none.
SURE_ROUNDS = 10
#: Late answers, the newest ones, that are opened to see whether their senders wrote them.
MOST_LATE = 200
#: Positions of a hospital's audit log that are sent back to it at the end, the newest ones.
MOST_HEADS = 500

log = logging.getLogger(__name__)


class Described(Protocol):
    """A model's tensors, in the order in which it is flattened."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Return one for each tensor."""
        ...


#: Flat float32 parameters, shape (d,), and what they are.
Model = tuple[npt.NDArray[np.float32], Described]


class RunnableStudy(Protocol):
    """What is run: `researcher.Study` is one."""

    @property
    def hash(self) -> str:
        """Return the study hash, 64 hex digits."""
        ...

    @property
    def terms(self) -> StudyTerms:
        """Return what `study.toml` says."""
        ...

    def initial_model(self) -> Model:
        """Return the model that the first round starts from."""
        ...


class EpochRefused(RunError):
    """There can be no such epoch of the secure sum now; nothing was begun or given up."""


class Run:
    """One study's run at the researcher. `complete` does it all; `next_round` goes by one round.

    approved: hospitals that have approved the study; `look` says it anew while a run goes on. publish: puts our keys
    where the store has lost them. first_model: gives the one to start from, which is made when it is due if left out.
    """

    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        mailroom: Mailroom,
        folder: Path,
        study: RunnableStudy,
        approved: Iterable[str],
        *,
        setup_patience: float = SETUP_PATIENCE,
        round_timeout: float = ROUND_TIMEOUT,
        least_patience: float = 5.0,
        look: Callable[[], Iterable[str]] | None = None,
        publish: Callable[[], None] = lambda: None,
        first_model: Callable[[], Model] | None = None,
    ) -> None:
        self._first_model = first_model or study.initial_model
        self._roster, self._mailroom, self.study = roster, mailroom, study
        self._approved, self._look, self._looked = tuple(approved), look, time.monotonic()
        self._stale, self._put_keys = False, publish
        self._setup_patience, self._round_timeout, self._least_patience = setup_patience, round_timeout, least_patience
        self._files = RunFolder(folder)
        self.state: RunState = self._files.load(study.hash)
        self._strategy = strategy_of(study.terms.strategy)
        self._sum = SecureSum(identity, roster, mailroom, self._files, study.hash, self.state.epoch, self._publish)

    # -- what a researcher calls -----------------------------------------------------------------------------------

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Return the model's tensors, in their order, since the first set-up."""
        return self._files.load_parameters()

    def complete(self, *, rounds: int | None = None, progress: bool = True) -> None:
        """Run up to training round `rounds` (all when None); after the last, evaluate and close the study.

        Raises `RunError` when rounds fail one after another, and when the final evaluation fails: it can't be held
        again, since hospitals release once per round. The study is then left open; `close` closes it. Raises `Held`
        where another process goes on with it.
        """
        with self._hold():
            self._complete(rounds, progress)

    def _complete(self, rounds: int | None, progress: bool) -> None:
        last = self.study.terms.rounds + 1
        target = last if rounds is None else min(rounds, last)
        with tqdm(total=last, initial=self.state.next_round - 1, desc="rounds", disable=not progress) as bar:
            while self.state.next_round <= target:
                round_record = self._next_round()
                bar.update(1)
                there = f"{len(round_record.survivors)} of {len(round_record.participants)} hospitals"
                bar.set_postfix_str(f"{there}, {round_record.outcome}")
                failures = [r.outcome for r in self.state.rounds[-MOST_FAILURES:]]
                if failures == ["failed"] * MOST_FAILURES:
                    raise RunError(f"{MOST_FAILURES} rounds failed in a row; the last: {round_record.reason}")
        if target < last:
            return
        held = self.state.rounds[-1]
        if held.outcome == "failed" and not self.state.closed:
            raise RunError(
                f"the final evaluation failed: {held.reason}. It can't be held again; the model is whole "
                "(`report.save_model`), and `close` closes the study"
            )
        self._close(CLOSE_PATIENCE)

    def next_round(self) -> RoundRecord:
        """Run one round and return its record; sets the secure sum up first where that is due. Raises `Held`."""
        with self._hold():
            return self._next_round()

    @contextmanager
    def _hold(self) -> Iterator[None]:
        """Hold the run's folder; raises `RunError` where another has gone on with this run since it was read."""
        with self._files.hold():
            if self._files.read(RUN_FILE) is not None and self._files.load(self.study.hash) != self.state:
                raise RunError(
                    f"study {self.study.terms.name}: another `Run` has gone on with it since this one was made; take "
                    "it up from there with `Federation.start`"
                )
            yield

    def _next_round(self) -> RoundRecord:
        self._require_rounds_left()
        if not self._sum.is_set_up:
            self._set_up(False, ())
        elif self._sum.is_over(self.state.next_round):
            log.info("a new epoch of the secure sum: the rounds or days of the last one are used up")
            self._look_again()
            self._set_up(True, ())
        elif self._too_few_are_left():
            log.info("a new epoch of the secure sum: too few hospitals are left in the last one")
            self._set_up(True, ())
        elif not self._sum.has_begun(self.state.next_round):
            self._let_in()
        round, clock = self.state.next_round, Clock()
        model, self._strategy.state = self._files.load_model(round)
        try:
            round_record = self._broadcast(round, model)
            clock.lap("broadcast")
            round_record, survivors = self._collect(round_record)
            self._say_round_over(round_record)
            clock.lap("wave_1")
            if survivors is not None:
                round_record, model = self._open(round_record, survivors, model, clock)
            clock.lap("model")
            round_record = round_record.model_copy(update={"seconds": clock.laps})
            self._files.save_model(round + 1, model, self._strategy.state)
            self._save(next_round=round + 1, rounds=(*self.state.rounds, round_record))
        except BaseException:
            # Interrupted: nothing of this round was saved but what was sent, and it is gone through again.
            self._sum.forget_unsaved()
            raise
        self._welcome_back(round)
        self._mailroom.collect(self.study.hash, before=round)
        return round_record

    def set_up(self, *, again: bool = False) -> None:
        """Set the secure sum up among the hospitals that approved; `again` begins a new epoch, with whoever is there.

        A new epoch lets a hospital in that missed the first setup, or whose journal was lost. A round that was begun
        in the old epoch is given up: hospitals that opened it take no second manifest for it. Raises `EpochRefused`
        where there can be no such epoch now; then the run is where it was. Raises `Held`.
        """
        with self._hold():
            self._set_up(again, ())

    def _set_up(self, again: bool, let_in: Collection[str]) -> None:
        self._require_rounds_left()
        started = time.monotonic()
        if self.state.next_round == 1 and not self._files.has_model(1):
            model, description = self._first_model()
            self.parameters = description.parameters
            self._files.save_parameters(description.parameters)
            self._files.save_model(1, model, {})
        self._files.load_model(self.state.next_round)  # raises before anything is begun
        present = None
        begun = self._sum.epoch >= 0
        lost = self._sum.is_lost
        if not begun or again or self._stale or lost or self._sum.is_over(self.state.next_round):
            if again and self._sum.is_set_up:
                invited = set(self._approved) - self._blamed() - set(self._sum.available())
                present = {*self.state.present, *invited, *self._sum.replaced()}
            self._begin_epoch(let_in)
        try:
            available = self._sum.set_up(self.study.terms.cohort.hospitals, self._setup_patience, present)
        except RunError:
            # Who is in this epoch is fixed and too few are there: the next try begins another one.
            self._stale = self._sum.is_enrolled
            raise
        self._save(present=available, setup_seconds=self.state.setup_seconds + time.monotonic() - started)

    def _begin_epoch(self, let_in: Collection[str]) -> None:
        """Begin another epoch, and count a round that was begun in the last one as failed: both in one step, or none.

        let_in: on whose account it is begun. Raises `EpochRefused`.
        """
        round, invited = self.state.next_round, set(self._approved) - self._blamed()
        given_up, begun = self._given_up(round), dict(self.state.epochs_for)
        first = round if given_up is None else round + 1
        for email in let_in:
            begun[email] = begun.get(email, 0) + 1

        def save(epoch: int) -> None:
            rounds = self.state.rounds
            if given_up is not None:
                self._files.save_model(first, *self._files.load_model(round))
                rounds = (*rounds, given_up)
            self._save(epoch=epoch, epochs_for=begun, next_round=first, rounds=rounds)

        try:
            self._sum.new_epoch(self.study.terms, invited, first, save)
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
            if round > self.study.terms.rounds:
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
        if round > self.study.terms.rounds:
            raise EpochRefused("the final evaluation has begun, and a new epoch can't hold it again; finish it first")
        manifest = self._sum.opened(round)
        assert manifest is not None
        given_up = {"outcome": "failed", "reason": "given up for a new epoch"}
        return RoundRecord.begun(manifest).model_copy(update=given_up)

    def _require_rounds_left(self) -> None:
        name, rounds = self.study.terms.name, self.study.terms.rounds
        if self.state.closed:
            silent = ", ".join(email for email in self.study.terms.cohort.hospitals if email not in self.state.accounts)
            unconfirmed = f"; its end was not confirmed by {silent}: `close` tells them again" if silent else ""
            raise RunError(f"study {name}: it was closed, no further round is run{unconfirmed}")
        if self.state.next_round > rounds + 1:
            raise RunError(f"study {name}: all {rounds} rounds were run; end it with `close`")

    def _too_few_are_left(self) -> bool:
        """Tell whether the present epoch can open no further round, and another one may, with others that approved."""
        if self._sum.has_begun(self.state.next_round):
            return False
        threshold, blamed = self._sum.context.threshold, self._blamed()
        if len(set(self._sum.available()) - blamed) >= threshold:
            return False
        self._look_again()
        return len(set(self._approved) - blamed) >= threshold

    def _let_in(self) -> None:
        """Begin a new epoch if a hospital that approved is out of the present one, or lacks its keys, and is there."""
        taking_part, blamed = set(self._sum.available()), self._blamed()
        if taking_part >= set(self.study.terms.cohort.hospitals) - blamed and not self._lacking_keys():
            return
        self._look_again()
        out = set(self._approved) - taking_part - blamed
        asking = (out - set(self._sum.hospitals)) | (out & self._sum.late()) | self._lacking_keys()
        begun = self.state.epochs_for
        asking = {email for email in asking if begun.get(email, 0) < EPOCHS_PER_HOSPITAL}
        if asking:
            log.info("new epoch of the secure sum, to let in %s", ", ".join(sorted(asking)))
            try:
                self._set_up(True, asking)
            except EpochRefused as error:
                log.warning("%s", error)  # the present one goes on

    def _lacking_keys(self) -> set[str]:
        return who_lacks_keys(
            self.state.rounds,
            self._sum.epoch,
            approved=set(self._approved) - self._blamed(),
            present=set(self.state.present),
            replaced=self._sum.replaced(),
            threshold=self._sum.context.threshold,
        )

    def _publish(self) -> None:
        """While answers are waited for: put our keys again, and see whether those who are to give them still will."""
        self._put_keys()
        self._look_again()

    def _look_again(self) -> None:
        if self._look is None or time.monotonic() - self._looked < LOOK_SECONDS:
            return
        before = set(self._approved)
        try:
            self._approved = tuple(self._look())
        except DatasitesError as error:
            log.warning("who has approved meanwhile is not known: %s", error)
        self._looked = time.monotonic()
        lost, needed = before - set(self._approved), self.study.terms.cohort.survivors_needed
        if lost:
            few = (
                f", and the threshold is {needed}: no round can be opened while that is so; `close` ends the study"
                if len(self._approved) < needed
                else ""
            )
            log.warning(
                "study %s: %s no longer approve it; %d hospital(s) do%s",
                self.study.terms.name, ", ".join(sorted(lost)), len(self._approved), few,
            )  # fmt: skip

    def _blamed(self) -> set[str]:
        return {email for round_record in self.state.rounds for email in round_record.blamed}

    def close(self, patience: float = CLOSE_PATIENCE) -> None:
        """Tell the hospitals that the study is over and gather their accounts; safe to repeat, and at any moment.

        From its begin on, no round can be run: what hospitals were told of the end can't be told otherwise. All of the
        cohort are told, so that whoever left the epoch, or approves only now, ends it too: also before
        anything was set up, and where the secure sum's state is lost or of another key. Those that answered last are
        waited for, or all that approved where none did, `patience` seconds at most. Raises `Held`.
        """
        with self._hold():
            self._close(patience)

    def _close(self, patience: float) -> None:
        everybody, study = self.study.terms.cohort.hospitals, self.study.hash
        self._save(closed=True)
        self._say_over(everybody)
        accounts = dict(self.state.accounts)

        def take(letter: Letter) -> None:
            account = letters.PrivacyStatement.model_validate(letter.body)
            self._check_head(letter.sender, account.head, account.fork, of_release=False)
            accounts[letter.sender] = account

        gather(
            self._mailroom,
            study,
            letters.SETUP_ROUND,
            {letters.ACCOUNT: take},
            max_blob={},
            wanted=set(everybody) - set(accounts),
            present=set(self.state.present or self._approved),
            patience=patience,
            timeout=patience,
            question=Question(letters.CLOSE, self._say_over, self._publish),
        )
        self._save(accounts=accounts)
        self._sum.collect_setup(self._sum.epoch + 1)

    def _say_over(self, emails: Collection[str]) -> None:
        """Tell these hospitals of the end, or put what they were told of it before, which stands, where it lay.

        Each gets the newest head of each other hospital's log along, so that the researcher is not the only one who
        holds it. All are tried before trouble with the whole store is raised, which may be one mailbox alone, unless it
        goes on for `AWAY_SECONDS`.
        """
        held = ((email, self._newest_head(email)) for email in self.study.terms.cohort.hospitals)
        newest = {email: head for email, head in held if head is not None}
        away: StoreError | None = None
        until = time.monotonic() + AWAY_SECONDS
        for email in emails:
            heads = [round_record.heads[email] for round_record in self.state.rounds if email in round_record.heads]
            others = {other: head for other, head in newest.items() if other != email}
            body = letters.Close(rounds=len(self.state.rounds), heads=tuple(heads[-MOST_HEADS:]), others=others)
            content, study = body.model_dump(mode="json"), self.study.hash
            try:
                # After the run's files were lost, the words would be others.
                if not self._mailroom.put_again(email, study, letters.SETUP_ROUND, letters.CLOSE):
                    self._mailroom.send(email, study, letters.SETUP_ROUND, letters.CLOSE, content)
                until = time.monotonic() + AWAY_SECONDS
            except (IdentityError, StoreError) as error:
                log.warning("%s could not be told that the study is over: %s", email, error)
                away = away or (error if isinstance(error, WHOLE_STORE) else None)
                if away is not None and time.monotonic() > until:
                    break
        if away is not None:
            raise away

    @property
    def model(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the newest global model as named tensors, float32, each in its own shape."""
        if self.state.next_round == 1 and not self._files.has_model(1):
            raise RunError("the run has no model yet; run a round first")
        flat, tensors, start = self._files.load_model(self.state.next_round)[0], {}, 0
        for parameter in self.parameters:
            size = int(np.prod(parameter.shape))
            tensors[parameter.name] = flat[start : start + size].reshape(parameter.shape)
            start += size
        return tensors

    # -- one round -------------------------------------------------------------------------------------------------

    def _broadcast(self, round: int, model: npt.NDArray[np.float32]) -> RoundRecord:
        self._welcome_back(round)
        payload = model.astype("<f4").tobytes()
        manifest = self._sum.opened(round)
        if manifest is None:
            blamed, threshold = self._blamed(), self._sum.context.threshold
            participants = tuple(email for email in self._sum.available() if email not in blamed)
            if len(participants) < threshold:
                raise RunError(
                    f"round {round}: {len(participants)} hospitals can take part, the threshold is {threshold}"
                    + (f"; left out for wrong shares: {', '.join(sorted(blamed))}" if blamed else "")
                )
            manifest = manifest_of(
                self.study.terms,
                self.parameters,
                self._sum.context,
                round,
                participants,
                sha256_hex(payload),
            )
        self._sum.broadcast(manifest, payload)
        return RoundRecord.begun(manifest)

    def _collect(self, round_record: RoundRecord) -> tuple[RoundRecord, Survivors | None]:
        """Wave 1; no survivors when the round failed, and then the record says why."""
        heads: dict[str, PublicHead] = {}
        sigmas: dict[str, float] = {}
        sent: dict[str, int] = {}
        abstained: dict[str, tuple[str, ...]] = {}

        def masked(letter: Letter, body: letters.Masked) -> None:
            self._check_head(letter.sender, body.audit, body.fork, of_release=True)
            heads[letter.sender] = body.audit
            sent[letter.sender] = len(letter.blob or b"")
            if round_record.evaluate != "no":
                sigmas[letter.sender] = body.counts_sigma[round_record.evaluate]

        def sat_out(letter: Letter) -> None:
            abstained[letter.sender] = letters.Abstention.model_validate(letter.body).controls

        survivors, changes = None, {}
        try:
            survivors = self._sum.collect(
                round_record.round, self._wait(self.state.present), masked, {letters.ABSTAINED: sat_out}
            )
            emails = survivors.emails
            changes = {
                "survivors": emails,
                "refused": survivors.refused,
                "counts_sigma": self._counts_sigma(round_record, {email: sigmas.get(email, 0.0) for email in emails}),
            }
        except RunError as error:
            reason = f"{error}; {who_abstained(abstained)}"
            changes = {"outcome": "failed", "reason": reason, "refused": error.refused}
        self._save(present=tuple(sorted({*heads, *abstained})))
        changes |= {"abstained": abstained, "heads": heads, "sent": sent}
        return round_record.model_copy(update=changes), survivors

    def _say_round_over(self, round_record: RoundRecord) -> None:
        """Tell those whose answer nobody waits for any more: who has not begun the round by then need not."""
        for email in sorted({*round_record.participants} - {*round_record.heads, *round_record.abstained}):
            try:
                self._mailroom.send(email, self.study.hash, round_record.round, letters.OVER, {})
            except WHOLE_STORE:
                raise
            except (IdentityError, StoreError) as error:
                log.info("%s could not be told that round %d is over: %s", email, round_record.round, error)

    def _counts_sigma(self, round_record: RoundRecord, sigmas: dict[str, float]) -> float:
        """Sd of the noise on each summed count: of what each survivor said in local mode, else by the study's terms."""
        if round_record.evaluate == "no":
            return 0.0
        ring = counts_ring(self.study.terms, round_record.evaluate)
        if ring is not None:
            return ring.deviation * math.sqrt(len(sigmas))
        return math.sqrt(sum(sigma**2 for sigma in sigmas.values()))

    def _open(
        self, round_record: RoundRecord, survivors: Survivors, model: npt.NDArray[np.float32], clock: Clock
    ) -> tuple[RoundRecord, npt.NDArray[np.float32]]:
        """Wave 2 and the next model; when the round fails, the same model, and the record says why."""
        kept = dict(self._strategy.state)
        try:
            result, refused = self._sum.unmask(round_record.round, survivors, self._wait(survivors.emails))
            clock.lap("wave_2")
            round_record = round_record.model_copy(update={"refused": (*round_record.refused, *refused)})
            return self._apply(round_record, result, model)
        except RunError as error:
            self._strategy.state = kept
            changes = {
                "outcome": "failed",
                "reason": str(error),
                "refused": (*round_record.refused, *error.refused),
                "blamed": error.blamed,
            }
            return round_record.model_copy(update=changes), model

    def _apply(
        self, round_record: RoundRecord, result: OpenedSum, model: npt.NDArray[np.float32]
    ) -> tuple[RoundRecord, npt.NDArray[np.float32]]:
        sums = result.sums
        changes: dict[str, object] = {}
        if round_record.train:
            mean = self._mean_step(round_record.round, sums)
            changes["update_norm"] = float(np.linalg.norm(mean))
            with np.errstate(over="ignore", invalid="ignore"):
                model = self._strategy.next_model(model.astype(np.float64), mean).astype(np.float32)
            if not (np.abs(model) <= PARAMETER_BOUND).all():  # so it is for NaN as well
                raise RunError(
                    f"round {round_record.round}: the next model would hold numbers beyond +-{PARAMETER_BOUND:g}, "
                    "which no hospital takes; lower the server's step size"
                )
        if round_record.evaluate != "no":
            changes["counts"] = tuple(map(tuple, sums["counts"].reshape(-1, 2).tolist()))
        return round_record.model_copy(update=changes), model

    def _mean_step(self, round: int, sums: Mapping[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
        """Return what the strategy takes as the hospitals' step, shape (d,)."""
        terms = self.study.terms
        if terms.is_distributed:
            # The noised sum of clipped gradients of all patients together: nobody divided it or took a step before.
            return sums["gradient"] * (-terms.training.learning_rate / terms.divisor)
        weight = float(sums["weight"][0])
        if weight <= 0:
            raise RunError(f"round {round}: the hospitals' weights sum to {weight:g}: one of them is false")
        return sums["update"] / weight

    # -- who is there ----------------------------------------------------------------------------------------------

    def _wait(self, present: Iterable[str]) -> Wait:
        """Once enough have answered, wait for the rest a few times as long as rounds have taken that lost nobody."""
        past, before = [], set[str]()
        for round_record in self.state.rounds:
            if round_record.outcome == "done" and before <= set(round_record.survivors):
                past.append(sum(round_record.seconds.values()))
            before = set(round_record.survivors)
        patience = max(self._least_patience, 5 * statistics.median(past) if past else self._setup_patience)
        return Wait(frozenset(present), patience, self._round_timeout)

    def _welcome_back(self, round: int) -> None:
        """Wait again for a hospital that signed an answer to a round before `round` too late."""
        absent, kinds = set(self._sum.hospitals) - set(self.state.present), (letters.MASKED, letters.ABSTAINED)
        if not absent:
            return
        last = range(max(1, round - SURE_ROUNDS), round)
        sure = [(earlier, kind, sender) for earlier in last for kind in kinds for sender in sorted(absent)]
        answers = [
            (sender, self.study.hash, earlier, kind)
            for earlier, kind, sender in self._mailroom.mailbox(self.study.hash, sure)
            if 0 < earlier < round and kind in kinds and sender in absent
        ]
        late = {sender for sender, *_ in self._mailroom.signed(answers[-MOST_LATE:])}
        if late:
            self._save(present=tuple(sorted({*self.state.present, *late})))

    def _check_head(self, sender: str, head: PublicHead, fork: Fork | None, *, of_release: bool) -> None:
        """Raise unless `head` is signed by the pinned key and counts on from the last head of that hospital (I11).

        A log that went back, and has counted at least as many releases of other studies since, is not seen here: only
        the hospital can compare heads with its log (`datasites audit held`).
        of_release: it came with a release, which each head before it lacks; else nothing need have been released since.
        A fork that the hospital declares lets its heads go back to it, once: from then on they go on from there. Each
        is kept for the report, since what came after it in the lost log is in the hospital's log no more.
        """
        if head.public_key != self._roster.get(sender).public_key:
            raise RunError(f"audit head of {sender}: signed with a key that is not pinned")
        head.check()
        self._declare(sender, fork)
        known = self._newest_head(sender)
        if known is not None and head.releases < known.releases + of_release:
            raise RunError(
                f"audit head of {sender}: its log went back: {head.releases} releases, it has said {known.releases}"
            )

    def _newest_head(self, email: str) -> PublicHead | None:
        """Return the last head of its log that a hospital has sent; of a log restored since, where it goes on."""
        forks = self.state.forks.get(email, ())
        since = forks[-1].round if forks else 0
        heads = (r.heads[email] for r in reversed(self.state.rounds) if email in r.heads and r.round >= since)
        return next(heads, forks[-1].fork.goes_on if forks else None)

    def _declare(self, sender: str, fork: Fork | None) -> None:
        """Note the fork that a hospital declares, if it is a new one; raises `BadSignature` for a forged one."""
        known = self.state.forks.get(sender, ())
        if fork is None or fork in [one.fork for one in known]:
            return
        fork.check(self._roster.get(sender).public_key)
        log.warning(
            "the audit log of %s was restored from a backup, as it declares: it goes on from release %d",
            sender,
            fork.continues.releases,
        )
        declared = DeclaredFork(fork=fork, round=self.state.next_round)
        self._save(forks={**self.state.forks, sender: (*known, declared)})

    def _save(self, **changes: object) -> None:
        """Go on to this state; where it can't be written, the last one stays."""
        state = self.state.model_copy(update=changes)
        self._files.save(state)
        self.state = state
