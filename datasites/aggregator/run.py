"""Runs a study: round by round broadcasts the model, opens the secure sum, and makes the next model; and ends it.

A killed run goes on where it was. A hospital that is late or down delays a round only a little, and once: it is still
invited to every round, but no longer waited for until it answers again. Whether a round needs another epoch of the
secure sum is looked at before it begins (`epochs`).

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

from datasites.aggregator.epochs import Epochs
from datasites.aggregator.gather import Question, RunError, gather, who_abstained
from datasites.aggregator.heads import check_head, newest_head
from datasites.aggregator.manifests import manifest_of
from datasites.aggregator.run_files import RUN_FILE, Clock, Progress, RoundRecord, RunFolder, RunState
from datasites.aggregator.secure_sum import SecureSum, Survivors, Wait
from datasites.aggregator.strategies import strategy_of
from datasites.secagg.aggregator_state import OpenedSum
from datasites.study import letters
from datasites.study.audit_chain import PublicHead
from datasites.study.canonical import sha256_hex
from datasites.study.identity import Identity, IdentityError
from datasites.study.manifest import PARAMETER_BOUND, StudyTerms
from datasites.study.roster import Roster
from datasites.study.rounds import counts_ring
from datasites.study.tensors import Parameter
from datasites.transport.mailroom import AWAY_SECONDS, Letter, Mailroom
from datasites.transport.store import WHOLE_STORE, StoreError

MOST_FAILURES = 3
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
        self._setup_patience, self._round_timeout, self._least_patience = setup_patience, round_timeout, least_patience
        self._put_keys = publish
        self._files = RunFolder(folder)
        self._progress = Progress(self._files, study.hash)
        self._strategy = strategy_of(study.terms.strategy)
        self._sum = SecureSum(identity, roster, mailroom, self._files, study.hash, self.state.epoch, self._publish)
        self._epochs = Epochs(
            study.terms, self._progress, self._sum, approved, look=look, patience=setup_patience, prepare=self._prepare
        )

    # -- what a researcher calls -----------------------------------------------------------------------------------

    @property
    def state(self) -> RunState:
        """Return where the run stands, as last saved."""
        return self._progress.state

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
        self._epochs.before_round()
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
            self._progress.save(next_round=round + 1, rounds=(*self.state.rounds, round_record))
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
            self._require_rounds_left()
            self._epochs.set_up(again=again)

    def _require_rounds_left(self) -> None:
        name, rounds = self.study.terms.name, self.study.terms.rounds
        if self.state.closed:
            silent = ", ".join(email for email in self.study.terms.cohort.hospitals if email not in self.state.accounts)
            unconfirmed = f"; its end was not confirmed by {silent}: `close` tells them again" if silent else ""
            raise RunError(f"study {name}: it was closed, no further round is run{unconfirmed}")
        if self.state.next_round > rounds + 1:
            raise RunError(f"study {name}: all {rounds} rounds were run; end it with `close`")

    def _prepare(self) -> None:
        """Make the model that the first round starts from; raises `RunError` where that of the next one is damaged."""
        if self.state.next_round == 1 and not self._files.has_model(1):
            model, description = self._first_model()
            self.parameters = description.parameters
            self._files.save_parameters(description.parameters)
            self._files.save_model(1, model, {})
        self._files.load_model(self.state.next_round)

    def _publish(self) -> None:
        """While answers are waited for: put our keys again, and see whether those who are to give them still will."""
        self._put_keys()
        self._epochs.look_again()

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
        self._progress.save(closed=True)
        self._say_over(everybody)
        accounts = dict(self.state.accounts)

        def take(letter: Letter) -> None:
            account = letters.PrivacyStatement.model_validate(letter.body)
            check_head(self._progress, self._roster, letter.sender, account.head, account.fork, of_release=False)
            accounts[letter.sender] = account

        gather(
            self._mailroom,
            study,
            letters.SETUP_ROUND,
            {letters.ACCOUNT: take},
            max_blob={},
            wanted=set(everybody) - set(accounts),
            present=set(self.state.present or self._epochs.approved),
            patience=patience,
            timeout=patience,
            question=Question(letters.CLOSE, self._say_over, self._publish),
        )
        self._progress.save(accounts=accounts)
        self._sum.collect_setup(self._sum.epoch + 1)

    def _say_over(self, emails: Collection[str]) -> None:
        """Tell these hospitals of the end, or put what they were told of it before, which stands, where it lay.

        Each gets the newest head of each other hospital's log along, so that the researcher is not the only one who
        holds it. All are tried before trouble with the whole store is raised, which may be one mailbox alone, unless it
        goes on for `AWAY_SECONDS`.
        """
        held = ((email, newest_head(self.state, email)) for email in self.study.terms.cohort.hospitals)
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
            blamed, threshold = self.state.blamed, self._sum.context.threshold
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
            check_head(self._progress, self._roster, letter.sender, body.audit, body.fork, of_release=True)
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
        self._progress.save(present=tuple(sorted({*heads, *abstained})))
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
            self._progress.save(present=tuple(sorted({*self.state.present, *late})))
