"""Runs a study: round by round broadcasts the model, opens the secure sum, and makes the next model.

A killed run goes on where it was. A hospital that is late or gone costs a round only a little patience, once: it is
still invited to every round, but no longer waited for until it answers again.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from datasites.enclave.protocol import Parameter
from datasites.researcher.gather import RunError, gather, who_abstained
from datasites.researcher.record import RoundRecord, RunFolder, RunState
from datasites.researcher.secure_sum import SecureSum, Survivors, Wait
from datasites.researcher.strategies import strategy_of
from datasites.researcher.study import Study
from datasites.secagg.aggregation import RoundResult
from datasites.secagg.ring import safe_scale
from datasites.study import letters
from datasites.study.audit_chain import Head
from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.identity import Identity, Roster
from datasites.study.manifest import COUNTS_BOUND, UPDATE_BOUND, RoundManifest, VectorTerm
from datasites.transport.mailroom import Letter, Mailroom

MOST_FAILURES = 3
#: Positions of a hospital's audit log that are sent back to it at the end, the newest ones.
MOST_HEADS = 500


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
        self._roster, self._mailroom, self.study = roster, mailroom, study
        self._approved = tuple(approved)
        self._setup_patience, self._round_timeout, self._least_patience = setup_patience, round_timeout, least_patience
        self._files = RunFolder(folder)
        self.state: RunState = self._files.load(study.hash)
        self._strategy = strategy_of(study.terms.strategy)
        self._sum = SecureSum(identity, roster, mailroom, self._files, study.hash, self.state.epoch)
        stored = self._files.read("parameters.json")
        self.parameters = tuple(Parameter.model_validate(one) for one in json.loads(stored)) if stored else ()

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
        number = self.state.next_round
        if number > self.study.terms.rounds + 1:
            raise RunError(f"study {self.study.terms.name}: all {self.study.terms.rounds} rounds were run")
        if not self._sum.is_set_up:
            self.set_up()
        clock = _Clock()
        stored = self._files.load_model(number)
        assert stored is not None
        model, self._strategy.state = stored
        record = self._broadcast(number, model)
        clock.lap("broadcast")
        try:
            record, survivors = self._collect(record)
            clock.lap("wave_1")
            result, refused = self._sum.unmask(number, survivors, self._wait(survivors.emails))
            clock.lap("wave_2")
            record, model = self._apply(record, result, model)
            record = record.model_copy(update={"refused": (*record.refused, *refused)})
        except RunError as error:
            record = record.model_copy(update={"outcome": "failed", "reason": str(error)})
        clock.lap("model")
        record = record.model_copy(update={"seconds": clock.laps})
        self._files.save_model(number + 1, model, self._strategy.state)
        self._save(next_round=number + 1, rounds=(*self.state.rounds, record))
        self._mailroom.collect(self.study.hash, before=number)
        return record

    def set_up(self, *, again: bool = False) -> None:
        """Set the secure sum up among the hospitals that approved; `again` begins a new epoch, with whoever is there.

        A new epoch lets a hospital in that missed the first setup, or whose journal was lost.
        """
        started = time.monotonic()
        if self._files.load_model(self.state.next_round) is None:
            model, description = self.study.initial_model()
            self.parameters = description.parameters
            self._files.write(
                "parameters.json", canonical_json([one.model_dump(mode="json") for one in description.parameters])
            )
            self._files.save_model(self.state.next_round, model, {})
        if self._sum.epoch < 0 or again:
            self._sum.new_epoch(self.study.terms, self._approved, self.state.next_round)
            self._save(epoch=self._sum.epoch)
        available = self._sum.set_up(self._setup_patience)
        self._save(present=available, setup_seconds=self.state.setup_seconds + time.monotonic() - started)

    def close(self, patience: float = 60.0) -> None:
        """Tell the hospitals that the study is over and gather their accounts; safe to repeat."""
        everybody, study = self._sum.hospitals, self.study.hash
        for email in everybody:
            heads = [record.heads[email] for record in self.state.rounds if email in record.heads]
            body = letters.Close(rounds=len(self.state.rounds), heads=tuple(heads[-MOST_HEADS:]))
            self._mailroom.send(email, study, letters.SETUP_ROUND, letters.CLOSE, body.model_dump(mode="json"))
        accounts = dict(self.state.accounts)

        def take(letter: Letter) -> None:
            account = letters.Account.model_validate(letter.body)
            self._check_head(letter.sender, account.head)
            accounts[letter.sender] = account

        gather(
            self._mailroom,
            study,
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

    # -- one round -------------------------------------------------------------------------------------------------

    def manifest(self, number: int, participants: tuple[str, ...], model_hash: str) -> RoundManifest:
        """The manifest of round `number`, as the study calls for it."""
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
            epoch=self._sum.epoch,
            round=number,
            participants=participants,
            threshold=self._sum.context.threshold,
            train=train,
            evaluate="interim" if interim else "no" if train else "final",
            weight_max=float(terms.cohort.max_patients),
            model_hash=model_hash,
            vectors=tuple(
                VectorTerm(name=name, length=length, bound=bound, scale=safe_scale(bound, len(participants)))
                for name, (length, bound) in lengths.items()
            ),
        )

    def _broadcast(self, number: int, model: npt.NDArray[np.float32]) -> RoundRecord:
        self._welcome_back(number - 1)
        payload = model.astype("<f4").tobytes()
        manifest = self._sum.opened(number) or self.manifest(number, self._sum.available(), sha256_hex(payload))
        self._sum.broadcast(manifest, payload)
        return RoundRecord(
            round=number,
            epoch=manifest.epoch,
            train=manifest.train,
            evaluate=manifest.evaluate,
            participants=manifest.participants,
        )

    def _collect(self, record: RoundRecord) -> tuple[RoundRecord, Survivors]:
        heads: dict[str, Head] = {}
        sigmas: dict[str, float] = {}
        sent: dict[str, int] = {}
        abstained: dict[str, tuple[str, ...]] = {}

        def masked(letter: Letter, body: letters.Masked) -> None:
            self._check_head(letter.sender, body.audit)
            heads[letter.sender] = body.audit
            sent[letter.sender] = len(letter.blob or b"")
            if record.evaluate != "no":
                sigmas[letter.sender] = body.counts_sigma[record.evaluate]

        def sat_out(letter: Letter) -> None:
            abstained[letter.sender] = letters.Abstention.model_validate(letter.body).controls

        try:
            survivors = self._sum.collect(
                record.round, self._wait(self.state.present), masked, {letters.ABSTAINED: sat_out}
            )
        except RunError as error:
            raise RunError(f"{error}; {who_abstained(abstained)}") from error
        finally:
            self._save(present=tuple(sorted({*heads, *abstained})))
        emails = survivors.emails
        changes = {
            "survivors": emails,
            "abstained": abstained,
            "refused": survivors.refused,
            "heads": {email: heads[email] for email in emails if email in heads},
            "sent": {email: sent[email] for email in emails if email in sent},
            "counts_sigma": float(np.sqrt(sum(sigmas.get(email, 0.0) ** 2 for email in emails))),
        }
        return record.model_copy(update=changes), survivors

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

    # -- who is there ----------------------------------------------------------------------------------------------

    def _wait(self, present: Iterable[str]) -> Wait:
        """Once enough have answered, wait for the rest a few times as long as rounds have taken so far."""
        past = [sum(record.seconds.values()) for record in self.state.rounds if record.outcome == "done"]
        patience = max(self._least_patience, 5 * statistics.median(past) if past else self._setup_patience)
        return Wait(frozenset(present), patience, self._round_timeout)

    def _welcome_back(self, number: int) -> None:
        """A hospital whose vector of the last round came too late is there again: wait for it in the next one."""
        absent = set(self._sum.hospitals) - set(self.state.present)
        late = self._mailroom.waiting([(email, self.study.hash, number, letters.MASKED) for email in sorted(absent)])
        if late:
            self._save(present=tuple(sorted({*self.state.present, *(email for email, *_ in late)})))

    def _check_head(self, sender: str, head: Head) -> None:
        """Raise unless `head` is signed by the pinned key and not behind the last head of that hospital (I11)."""
        if head.public_key != self._roster.get(sender).public_key:
            raise RunError(f"audit head of {sender}: signed with a key that is not pinned")
        head.check()
        for record in reversed(self.state.rounds):
            known = record.heads.get(sender)
            if known is not None:
                if head.seq < known.seq or (head.seq == known.seq and head.hash != known.hash):
                    raise RunError(f"audit head of {sender}: its log went back from {known.seq} to {head.seq}")
                return

    def _save(self, **changes: object) -> None:
        self.state = self.state.model_copy(update=changes)
        self._files.save(self.state)


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
