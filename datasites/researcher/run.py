"""Runs a study: sets the secure sum up, then round by round broadcasts, gathers, unmasks and makes the next model.

The aggregator's state is saved before each message goes out, so a killed run goes on where it was: letters that were
sent are sent again as they were, letters that came are read again. A hospital that is late or gone costs a round only
a little patience, once: it is still invited to every round, but no longer waited for until it answers again.
"""

from __future__ import annotations

import datetime
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from tqdm.auto import tqdm

from datasites.enclave.protocol import Parameter
from datasites.researcher.record import RoundRecord, RunFolder, RunState
from datasites.researcher.strategies import strategy_of
from datasites.researcher.study import Study
from datasites.secagg.aggregation import AggregatorState, RoundResult
from datasites.secagg.aggregator import Aggregator
from datasites.secagg.context import Context
from datasites.secagg.errors import OutOfOrder, SecaggError, TooFew, WrongShare
from datasites.secagg.messages import Certificate, MaskedVector, Ready, UnmaskShares
from datasites.secagg.ring import safe_scale
from datasites.study import letters
from datasites.study.audit_chain import Head
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.errors import DatasitesError
from datasites.study.identity import BadSignature, Identity, Roster
from datasites.study.manifest import RoundManifest, VectorTerm
from datasites.transport.mailroom import Letter, Mailroom, Rejected

#: Coordinates of a weighted update are cut to this before they are encoded; a step beyond it is no use to a model.
UPDATE_BOUND = 16.0
#: Patients of one hospital in one cell of the evaluation, noise included, at most.
COUNTS_BOUND = float(2**20)
MOST_FAILURES = 3
#: Positions of a hospital's audit log that are sent back to it at the end, the newest ones.
MOST_HEADS = 500

log = logging.getLogger(__name__)


class RunError(DatasitesError):
    """A run can't go on; the message says who is missing or what was refused, and what to do."""


class Run:
    """One study's run at the researcher. `complete` does it all; `next_round` goes by one round."""

    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        mailroom: Mailroom,
        folder: Path,
        study: Study,
        approved: Iterable[str],
        *,
        setup_patience: float = 120.0,
        round_timeout: float = 3600.0,
        least_patience: float = 5.0,
    ) -> None:
        self._identity, self._roster, self._mailroom, self.study = identity, roster, mailroom, study
        self._approved = tuple(sorted(approved))
        self._setup_patience, self._round_timeout, self._least_patience = setup_patience, round_timeout, least_patience
        self._files = RunFolder(folder)
        self.state: RunState = self._files.load(study.hash)
        self._strategy = strategy_of(study.terms.strategy)
        self.parameters = self._load_parameters()
        self._aggregator: Aggregator | None = None
        self._sums: AggregatorState | None = None
        if self.state.epoch >= 0:
            context = self._files.read(f"context-{self.state.epoch}.json")
            assert context is not None
            self._aggregator = Aggregator(identity, Context.parse(context))
            stored = self._files.read("aggregator.bin")
            self._sums = AggregatorState.from_bytes(stored) if stored else self._aggregator.start()

    # -- what a researcher calls -----------------------------------------------------------------------------------

    def complete(self, *, rounds: int | None = None, progress: bool = True) -> None:
        """Run up to training round `rounds` (all when None); after the last, evaluate and close the study.

        Raises `RunError` when rounds fail one after another.
        """
        last = self.study.terms.rounds + 1
        target = last if rounds is None else min(rounds, last)
        with tqdm(total=last, initial=self.state.next_round - 1, desc="rounds", disable=not progress) as bar:
            while self.state.next_round <= target:
                record = self.next_round()
                bar.update(1)
                bar.set_postfix_str(
                    f"{len(record.survivors)} of {len(record.participants)} hospitals, {record.outcome}"
                )
                failures = [r.outcome for r in self.state.rounds[-MOST_FAILURES:]]
                if failures == ["failed"] * MOST_FAILURES:
                    raise RunError(f"{MOST_FAILURES} rounds failed in a row; the last: {record.reason}")
        if target == last:
            self.close()

    def next_round(self) -> RoundRecord:
        """Run one round and return its record; sets the secure sum up first where that is due."""
        if self._aggregator is None or self._sums is None or not self._sums.record.readies:
            self.set_up()
        number = self.state.next_round
        if number > self.study.terms.rounds + 1:
            raise RunError(f"study {self.study.terms.name}: all {self.study.terms.rounds} rounds were run")
        clock = _Clock()
        stored = self._files.load_model(number)
        assert stored is not None
        model, self._strategy.state = stored
        record = self._open(number, model)
        clock.lap("broadcast")
        try:
            record = self._gather_vectors(record)
            clock.lap("wave_1")
            result, record = self._unmask(record)
            clock.lap("wave_2")
            record, model = self._apply(record, result, model)
        except RunError as error:
            record = record.model_copy(update={"outcome": "failed", "reason": str(error)})
        clock.lap("model")
        record = record.model_copy(update={"seconds": clock.laps})
        self._files.save_model(number + 1, model, self._strategy.state)
        self._save(next_round=number + 1, rounds=(*self.state.rounds, record))
        self._mailroom.collect(self.study.hash, before=number)
        return record

    def close(self, patience: float = 60.0) -> None:
        """Tell the hospitals that the study is over and gather their accounts; safe to repeat."""
        everybody = self._hospitals()
        for email in everybody:
            heads = [record.heads[email] for record in self.state.rounds if email in record.heads]
            body = letters.Close(rounds=len(self.state.rounds), heads=tuple(heads[-MOST_HEADS:]))
            self._mailroom.send(
                email, self.study.hash, letters.SETUP_ROUND, letters.CLOSE, body.model_dump(mode="json")
            )
        accounts = dict(self.state.accounts)

        def take(letter: Letter) -> None:
            account = letters.Account.model_validate(letter.body)
            self._check_head(letter.sender, account.head)
            accounts[letter.sender] = account

        self._gather(
            letters.SETUP_ROUND,
            {letters.ACCOUNT: take},
            wanted=set(everybody) - set(accounts),
            present=set(self.state.present),
            patience=patience,
            timeout=patience,
        )
        self._save(accounts=accounts, closed=True)

    @property
    def model(self) -> dict[str, npt.NDArray[np.float32]]:
        """The newest global model as named tensors."""
        stored = self._files.load_model(self.state.next_round)
        if stored is None:
            raise RunError("the run has no model yet; run a round first")
        flat, tensors, start = stored[0], {}, 0
        for parameter in self.parameters:
            size = int(np.prod(parameter.shape))
            tensors[parameter.name] = flat[start : start + size].reshape(parameter.shape)
            start += size
        return tensors

    # -- setup -----------------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Set up the next epoch of the secure sum among the hospitals that approved."""
        started = time.monotonic()
        if self._files.load_model(self.state.next_round) is None:
            model, description = self.study.initial_model()
            self.parameters = description.parameters
            self._files.write(
                "parameters.json", canonical_json([one.model_dump(mode="json") for one in description.parameters])
            )
            self._files.save_model(self.state.next_round, model, {})
        if self._aggregator is None or self._sums is None or self._sums.record.last_round:
            self._new_epoch()
        assert self._aggregator is not None
        assert self._sums is not None
        aggregator, epoch, study = self._aggregator, self.state.epoch, self.study.hash
        context = aggregator.context
        offer = letters.EpochOffer(
            epoch=epoch,
            hospitals=tuple(party.email for party in context.hospitals),
            first_round=context.first_round,
            last_round=context.last_round,
            expires=context.expires,
        )
        everybody = set(offer.hospitals)
        self._mailroom.send_all(
            sorted(everybody), study, letters.SETUP_ROUND, letters.offer_kind(epoch), offer.model_dump(mode="json")
        )
        today = datetime.datetime.now(datetime.UTC).date()
        if self._sums.record.enrolment is None:

            def certified(letter: Letter) -> None:
                assert self._sums is not None
                certificate = Certificate.from_bytes(_blob(letter))
                self._sums = aggregator.receive_certificate(self._sums, certificate, today=today)

            self._gather(
                letters.SETUP_ROUND,
                {letters.certificate_kind(epoch): certified},
                wanted=everybody,
                present=everybody,
                patience=self._setup_patience,
                timeout=self._setup_patience,
            )
            try:
                self._sums, _ = aggregator.enrol(self._sums, today=today)
            except TooFew as error:
                raise RunError(f"setup: {error}; are the datasites running, and did they approve?") from error
            self._save_sums()
        enrolment = self._sums.record.enrolment
        assert enrolment is not None
        enrolled = [certificate.sender for certificate in enrolment.certificates]
        self._mailroom.send_all(
            enrolled, study, letters.SETUP_ROUND, letters.enrolment_kind(epoch), {}, enrolment.to_bytes()
        )

        def took_shares(letter: Letter) -> None:
            assert self._sums is not None
            self._sums = aggregator.receive_ready(self._sums, Ready.from_bytes(_blob(letter)))

        self._gather(
            letters.SETUP_ROUND,
            {letters.ready_kind(epoch): took_shares},
            wanted=set(enrolled),
            present=set(enrolled),
            patience=self._setup_patience,
            timeout=self._setup_patience,
        )
        available = aggregator.available(self._sums)
        if len(available) < context.threshold:
            raise RunError(
                f"setup: {len(available)} hospitals hold each other's shares, the threshold is {context.threshold}; "
                "start the datasites that are missing and run again"
            )
        self._save_sums()
        self._save(present=available, setup_seconds=self.state.setup_seconds + time.monotonic() - started)

    def _new_epoch(self) -> None:
        terms = self.study.terms
        whole = len(self._approved) == len(terms.cohort.hospitals)
        epoch = self.state.epoch + 1
        context = Context.from_roster(
            self._roster,
            study=self.study.hash,
            epoch=epoch,
            aggregator=self._identity.email,
            hospitals=self._approved,
            colluders=terms.cohort.colluders,
            rounds=(self.state.next_round, terms.rounds + 1),
            expires=terms.ends,
            threshold=terms.cohort.survivors_needed if whole else None,
        )
        self._aggregator = Aggregator(self._identity, context)
        self._sums = self._aggregator.start()
        self._files.write(f"context-{epoch}.json", context.canonical())
        self._save_sums()
        self._save(epoch=epoch)

    # -- one round -------------------------------------------------------------------------------------------------

    def manifest(self, number: int, participants: tuple[str, ...], model_hash: str) -> RoundManifest:
        """The manifest of round `number`, as the study calls for it."""
        assert self._aggregator is not None
        terms, bins = self.study.terms, self.study.terms.evaluation.bins
        train = number <= terms.rounds
        every = terms.evaluation.every
        interim = train and every > 0 and number % every == 0 and number < terms.rounds
        lengths = {}
        if train:
            lengths["update"] = (sum(int(np.prod(p.shape)) for p in self.parameters), UPDATE_BOUND)
            lengths["weight"] = (1, 1.0)
        if interim or not train:
            lengths["counts"] = (2 * bins, COUNTS_BOUND)
        return RoundManifest(
            study=self.study.hash,
            epoch=self.state.epoch,
            round=number,
            participants=participants,
            threshold=self._aggregator.context.threshold,
            train=train,
            evaluate="interim" if interim else "no" if train else "final",
            weight_max=float(terms.cohort.max_patients),
            model_hash=model_hash,
            vectors=tuple(
                VectorTerm(name=name, length=length, bound=bound, scale=safe_scale(bound, len(participants)))
                for name, (length, bound) in lengths.items()
            ),
        )

    def _open(self, number: int, model: npt.NDArray[np.float32]) -> RoundRecord:
        assert self._aggregator is not None
        assert self._sums is not None
        self._welcome_back(number - 1)
        opened = self._sums.record.round
        payload = model.astype("<f4").tobytes()
        if opened is not None and opened.signed.manifest.round == number:
            signed = opened.signed
        else:
            manifest = self.manifest(number, self._aggregator.available(self._sums), sha256_hex(payload))
            self._sums, signed = self._aggregator.open_round(self._sums, manifest)
            self._save_sums()
        manifest = signed.manifest
        self._mailroom.send_all(
            manifest.participants,
            self.study.hash,
            number,
            letters.ROUND,
            {"manifest": signed.to_bytes().decode()},
            payload,
        )
        return RoundRecord(
            round=number,
            epoch=manifest.epoch,
            train=manifest.train,
            evaluate=manifest.evaluate,
            participants=manifest.participants,
        )

    def _gather_vectors(self, record: RoundRecord) -> RoundRecord:
        aggregator = self._aggregator
        assert aggregator is not None
        assert self._sums is not None
        heads: dict[str, Head] = {}
        sigmas: dict[str, float] = {}
        abstained: dict[str, tuple[str, ...]] = {}
        sent: dict[str, int] = {}

        def masked(letter: Letter) -> None:
            assert self._sums is not None
            body = letters.Masked.model_validate(letter.body)
            vector = MaskedVector.from_bytes(body.header.encode(), memoryview(letter.blob or b""))
            self._check_head(letter.sender, body.audit)
            if self._sums.record.round is None or self._sums.record.round.survivors is None:
                self._sums = aggregator.receive(self._sums, vector)
            heads[letter.sender] = body.audit
            sent[letter.sender] = len(letter.blob or b"")
            if record.evaluate != "no":
                sigmas[letter.sender] = body.counts_sigma[record.evaluate]

        def sat_out(letter: Letter) -> None:
            abstained[letter.sender] = letters.Abstention.model_validate(letter.body).controls

        opened = self._sums.record.round
        assert opened is not None
        wanted = set(record.participants)
        if opened.survivors is not None:
            wanted = {header.sender for header in opened.survivors.headers}
        refused = self._gather(
            record.round,
            {letters.MASKED: masked, letters.ABSTAINED: sat_out},
            wanted=wanted,
            present=set(self.state.present) & wanted,
            patience=self._patience(),
            timeout=self._round_timeout,
            enough=lambda: len(sent) >= aggregator.context.threshold,
        )
        self._save(present=tuple(sorted(set(heads) | set(abstained))))
        try:
            self._sums, survivors = aggregator.survivors(self._sums)
        except TooFew as error:
            raise RunError(f"{error}; {_words(abstained)}") from error
        emails = tuple(header.sender for header in survivors.headers)
        self._save_sums()
        self._mailroom.send_all(emails, self.study.hash, record.round, letters.SURVIVORS, {}, survivors.to_bytes())
        return record.model_copy(
            update={
                "survivors": emails,
                "abstained": abstained,
                "refused": tuple(refused),
                "heads": {email: heads[email] for email in emails},
                "sent": {email: sent[email] for email in emails},
                "counts_sigma": float(np.sqrt(sum(sigmas.get(email, 0.0) ** 2 for email in emails))),
            }
        )

    def _unmask(self, record: RoundRecord) -> tuple[RoundResult, RoundRecord]:
        aggregator = self._aggregator
        assert aggregator is not None
        opened: list[RoundResult] = []

        def answered(letter: Letter) -> None:
            assert self._sums is not None
            self._sums = aggregator.receive_shares(self._sums, UnmaskShares.from_bytes(_blob(letter)))
            if aggregator.can_open(self._sums):
                try:
                    opened.append(aggregator.result(self._sums))
                except (WrongShare, TooFew, OutOfOrder) as error:
                    log.warning("round %d: %s", record.round, error)

        refused = self._gather(
            record.round,
            {letters.UNMASK: answered},
            wanted=set(record.survivors),
            present=set(record.survivors),
            patience=self._patience(),
            timeout=self._round_timeout,
            done=lambda: bool(opened),
        )
        if not opened:
            raise RunError(
                f"round {record.round}: the sum could not be opened: too few survivors answered. The next round "
                "goes on from the same model"
            )
        return opened[-1], record.model_copy(update={"refused": (*record.refused, *refused)})

    def _apply(
        self, record: RoundRecord, result: RoundResult, model: npt.NDArray[np.float32]
    ) -> tuple[RoundRecord, npt.NDArray[np.float32]]:
        sums = result.sums
        changes: dict[str, object] = {}
        if record.train:
            # In distributed mode every hospital's update is its part of one step of all patients together.
            together = self.study.terms.privacy.mode == "distributed"
            mean = sums["update"] if together else sums["update"] / sums["weight"][0]
            changes["update_norm"] = float(np.linalg.norm(mean))
            model = self._strategy.next_model(model.astype(np.float64), mean).astype(np.float32)
        if record.evaluate != "no":
            changes["counts"] = tuple(map(tuple, sums["counts"].reshape(-1, 2).tolist()))
        return record.model_copy(update=changes), model

    # -- letters ---------------------------------------------------------------------------------------------------

    def _gather(
        self,
        number: int,
        kinds: dict[str, Callable[[Letter], None]],
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
        `patience` seconds, or after `timeout` seconds. A bad letter is refused and its sender counts as answered.
        """
        pending, refused = set(wanted), []
        started = time.monotonic()
        satisfied: float | None = None
        while pending and not done():
            expected = [(email, self.study.hash, number, kind) for email in sorted(pending) for kind in kinds]
            for sender, _, _, kind in self._mailroom.wait(expected, 0.5):
                try:
                    letter = self._mailroom.receive(sender, self.study.hash, number, kind)
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

    def _welcome_back(self, number: int) -> None:
        """A hospital whose vector of the last round came too late is there again: wait for it in the next one."""
        absent = set(self._hospitals()) - set(self.state.present)
        late = self._mailroom.waiting([(email, self.study.hash, number, letters.MASKED) for email in sorted(absent)])
        if late:
            self._save(present=tuple(sorted({*self.state.present, *(email for email, *_ in late)})))

    def _check_head(self, sender: str, head: Head) -> None:
        if head.public_key != self._roster.get(sender).public_key:
            raise RunError(f"audit head of {sender}: signed with a key that is not pinned")
        head.check()
        for record in reversed(self.state.rounds):
            known = record.heads.get(sender)
            if known is not None:
                if head.seq < known.seq or (head.seq == known.seq and head.hash != known.hash):
                    raise RunError(f"audit head of {sender}: its log went back from {known.seq} to {head.seq}")
                return

    def _patience(self) -> float:
        """How long to wait for the rest once enough have answered: a few times what rounds have taken so far."""
        past = [sum(record.seconds.values()) for record in self.state.rounds if record.outcome == "done"]
        return max(self._least_patience, 5 * statistics.median(past) if past else self._setup_patience)

    def _hospitals(self) -> list[str]:
        assert self._aggregator is not None
        return [party.email for party in self._aggregator.context.hospitals]

    # -- files -----------------------------------------------------------------------------------------------------

    def _save(self, **changes: object) -> None:
        self.state = self.state.model_copy(update=changes)
        self._files.save(self.state)

    def _save_sums(self) -> None:
        assert self._sums is not None
        self._files.write("aggregator.bin", self._sums.to_bytes())

    def _load_parameters(self) -> tuple[Parameter, ...]:
        stored = self._files.read("parameters.json")
        return tuple(Parameter.model_validate(one) for one in json.loads(stored)) if stored else ()


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Name the phase that ends now."""
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 4)
        self._last = now


def _blob(letter: Letter) -> bytes:
    return bytes(letter.blob or b"")


def _words(abstained: dict[str, tuple[str, ...]]) -> str:
    if not abstained:
        return "nobody abstained; are the datasites running?"
    return "abstained: " + ", ".join(f"{email} ({', '.join(why) or 'failed'})" for email, why in abstained.items())
